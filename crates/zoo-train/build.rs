//! Notes the versions that a build was made of, for the records of its runs: a number without them cannot be
//! reproduced.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let rustc = env::var_os("RUSTC")
        .and_then(|rustc| Command::new(rustc).arg("--version").output().ok())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .and_then(|text| text.split_whitespace().nth(1).map(str::to_owned));
    println!("cargo::rustc-env=ZOO_RUSTC_VERSION={}", rustc.as_deref().unwrap_or("unknown"));
    println!("cargo::rustc-env=ZOO_CANDLE_VERSION={}", locked_version("candle-core").as_deref().unwrap_or("unknown"));
}

/// The version of `package` in the lock file that governs this build. That file is the building workspace's, above
/// the target folder as a rule; when the target folder lies elsewhere, the one above this crate is the next best.
fn locked_version(package: &str) -> Option<String> {
    let starts = [env::var("OUT_DIR").ok()?, env::var("CARGO_MANIFEST_DIR").ok()?];
    let lock = starts
        .iter()
        .flat_map(|start| Path::new(start).ancestors())
        .map(|dir| dir.join("Cargo.lock"))
        .find(|file| file.is_file())?;
    println!("cargo::rerun-if-changed={}", lock.display());
    let text = fs::read_to_string(lock).ok()?;
    let (_, rest) = text.split_once(&format!("name = \"{package}\"\nversion = \""))?;
    Some(rest.split('"').next()?.to_owned())
}

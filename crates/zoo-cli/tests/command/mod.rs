//! The `zoo` command, run in a folder.

use std::path::Path;
use std::process::{Command, Output};

pub fn zoo(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_zoo")).args(arguments).current_dir(folder).output().unwrap()
}

/// Standard output and standard error of a command that must succeed.
pub fn succeeds(folder: &Path, arguments: &[&str]) -> (String, String) {
    let output = zoo(folder, arguments);
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "zoo {arguments:?}: {err}");
    (out, err)
}

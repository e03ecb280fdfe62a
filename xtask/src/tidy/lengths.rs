//! Lengths of source files: a file that grows long has several jobs, and is cut by them.

use anyhow::Result;
use std::path::{Path, PathBuf};

/// The most lines of a file.
const MOST: usize = 500;
/// The most lines of a file of kernels, which are written out for each case that is fast in a way of its own.
const MOST_OF_A_KERNEL: usize = 600;
/// The folder of these.
const KERNELS: &str = "crates/zoo-core/src/kernels/";
/// A line in the doc at a file's top that begins so, with the reason, lets it be longer.
const REASON: &str = "//! Longer than 500 lines:";

/// Files that are too long, one line each; they are shown from `root` on.
pub fn too_long(root: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let sources = files.iter().map(|file| (super::shown(root, file), file)).filter(|(shown, _)| is_source(shown));
    let sources = sources.map(|(shown, file)| Ok((shown, super::read(file)?))).collect::<Result<Vec<_>>>()?;
    Ok(check(&sources))
}

/// Whether a file is part of a program, and no test of its own, example or benchmark.
fn is_source(shown: &str) -> bool {
    let parts: Vec<&str> = shown.split('/').collect();
    matches!(parts[..], ["crates", _, "src", ..] | ["xtask", "src", ..])
}

/// The complaints about `sources`, each as it is shown and with its text.
fn check(sources: &[(String, String)]) -> Vec<String> {
    let complaint = |(shown, text): &(String, String)| {
        let lines = text.lines().count();
        let most = if shown.starts_with(KERNELS) { MOST_OF_A_KERNEL } else { MOST };
        (lines > most && !has_reason(text)).then(|| {
            format!("{shown}: {lines} lines, more than {most}: cut it by its jobs, or say at its top `{REASON} …`")
        })
    };
    sources.iter().filter_map(complaint).collect()
}

/// Whether the doc at the top says why the file is long.
fn has_reason(text: &str) -> bool {
    let doc = text.lines().take_while(|line| line.starts_with("//!"));
    doc.filter_map(|line| line.strip_prefix(REASON)).any(|reason| !reason.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The complaints about a file of so many lines, the first of which are `top`.
    fn complaints(file: &str, top: &str, lines: usize) -> Vec<String> {
        let text = top.to_owned() + &"x\n".repeat(lines - top.lines().count());
        check(&[(file.into(), text)])
    }

    #[test]
    fn a_file_may_have_its_lines_and_none_more() {
        for (file, most) in [
            ("crates/zoo-core/src/kernels/conv/plan.rs", 600),
            ("crates/zoo-core/src/kernels.rs", 500),
            ("crates/zoo-train/src/kernels/x.rs", 500),
            ("xtask/src/main.rs", 500),
        ] {
            assert_eq!(complaints(file, "", most), Vec::<String>::new());
            let found = complaints(file, "", most + 1);
            let words = format!("{file}: {} lines, more than {most}: ", most + 1);
            assert!(found.len() == 1 && found[0].starts_with(&words), "{found:?}");
        }
    }

    #[test]
    fn programs_alone_are_measured() {
        let measured = ["crates/zoo/src/lib.rs", "crates/zoo-core/src/ops/fused/x.rs", "xtask/src/tidy/rooms.rs"];
        assert!(measured.into_iter().all(is_source));
        let others = ["crates/zoo/tests/x.rs", "crates/zoo-train/examples/src/x.rs", "tests/tests/x.rs", "xtask/x.rs"];
        assert!(!others.into_iter().any(is_source));
    }

    #[test]
    fn a_reason_at_the_top_lets_a_file_be_longer() {
        let file = "crates/zoo-core/src/x.rs";
        let long = |top: &str| complaints(file, top, 700).len();
        assert_eq!(long("//! Words.\n//!\n//! Longer than 500 lines: one table.\n"), 0);
        assert_eq!(long("//! Longer than 500 lines:\n"), 1, "no reason");
        assert_eq!(long("use x;\n//! Longer than 500 lines: one table.\n"), 1, "not at the top");
    }
}

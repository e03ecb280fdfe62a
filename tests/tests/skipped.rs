//! A test that lacks what it needs is seen: its line passes the harness, and the closing line of CI counts it.

use std::fs;
use std::path::Path;
use std::process::Command;
use tests::shared;

/// Set in the process that runs the test below a second time.
const INNER: &str = "ZOO_TEST_SKIPS";

/// The test's own binary, run again: there the test skips, and is seen from outside.
#[test]
fn a_test_without_its_data_says_so_to_whoever_runs_it() {
    if std::env::var_os(INNER).is_some() {
        assert!(shared("no/such/file").is_none());
        return;
    }
    let name = "a_test_without_its_data_says_so_to_whoever_runs_it";
    let binary = std::env::current_exe().unwrap();
    let output = Command::new(binary).args([name, "--exact", "--test-threads=2"]).env(INNER, "1").output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains(&format!("skipped: {name}: ")) && told.contains("no/such/file is absent"), "{told}");
}

#[cfg(unix)]
#[test]
fn the_closing_line_of_ci_counts_what_was_skipped() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/summary");
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let summary = |text: &str| {
        fs::write(&log, text).unwrap();
        let output = Command::new(&script).arg(&log).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let result = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n";
    assert_eq!(summary(result), "3 passed, 0 failed, 1 skipped\n");
    // Several threads, one thread, and a test that lacks two things.
    let lines = "skipped: one: a is absent\nskipped: one: b is absent\ntest two ... skipped: two: b is absent\nok\ntest a_line_is_skipped ... ok\n";
    let text = format!("{lines}{result}{result}");
    let expected = "skipped: one: a is absent\nskipped: two: b is absent\n4 passed, 0 failed, 4 skipped\n";
    assert_eq!(summary(&text), expected);
}

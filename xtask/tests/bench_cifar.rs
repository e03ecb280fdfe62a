//! `bench-cifar` as a user runs it: what it leaves, what it refuses, and that the seed fixes every number.

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// The suite on a little synthetic data.
fn command(out: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["bench-cifar", "--data", "synthetic", "--models", "mlp", "--recipe", "quick", "--epochs", "2"]);
    command.args(["--limit", "256", "--out"]).arg(out).args(more).env_remove("CIFAR10_DIR");
    command
}

fn bench(out: &Path, more: &[&str]) -> Output {
    command(out, more).output().unwrap()
}

fn error_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let last =
        text.lines().rfind(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("no error line: {text}"));
    last.to_owned()
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_suite_leaves_records_curves_weights_and_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("suite");
    let output = bench(&out, &["--seeds", "1,2", "--threads", "1"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let records = lines(&out.join("results.jsonl"));
    assert_eq!(records.len(), 2);
    for (record, seed) in records.iter().zip([1, 2]) {
        assert_eq!((&record["model"], &record["seed"], &record["epochs"]), (&"mlp".into(), &seed.into(), &2.into()));
        assert_eq!((&record["status"], &record["threads"]), (&"finished".into(), &1.into()));
        assert_eq!(record["data"]["synthetic"], true);
        assert_eq!(record["data"]["train_images"], 256);
        assert!(record["parameters"].as_u64().unwrap() == 1_707_274 && record["macs"].as_u64().unwrap() > 1_000_000);
        assert!(record["command"].as_str().unwrap().contains("--data synthetic"));
        let run = out.join(record["folder"].as_str().unwrap());
        assert_eq!(lines(&run.join("metrics.jsonl")).len(), 2);
        assert!(run.join("model.safetensors").exists());
    }
    let html = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(html.contains("Synthetic data") && html.contains("mlp"));
    assert!(fs::read_to_string(out.join("report.md")).unwrap().contains("Synthetic data"));

    // What stands there is not overwritten unasked.
    let again = bench(&out, &[]);
    assert_eq!(again.status.code(), Some(1));
    assert!(error_line(&again).contains("--force"), "{}", error_line(&again));
    assert_eq!(lines(&out.join("results.jsonl")).len(), 2);
    assert!(bench(&out, &["--force"]).status.success());
    assert_eq!(lines(&out.join("results.jsonl")).len(), 1);
}

#[test]
fn one_seed_gives_the_same_metrics_bit_by_bit() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str| {
        let out = folder.path().join(name);
        assert!(bench(&out, &["--threads", "2"]).status.success());
        let mut epochs = lines(&out.join("runs/mlp-quick-2epochs-seed1/metrics.jsonl"));
        for epoch in &mut epochs {
            for time in ["seconds", "images_per_s", "wait_share", "rss_mb"] {
                epoch.as_object_mut().unwrap().remove(time);
            }
        }
        epochs
    };
    assert_eq!(run("a"), run("b"));
}

#[test]
fn a_suite_that_was_stopped_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("suite");
    let stopped = bench(&out, &["--seeds", "1,2", "--time-budget", "1ms"]);
    let said = String::from_utf8_lossy(&stopped.stderr).into_owned();
    assert!(stopped.status.success() && said.contains("--resume goes on"), "{said}");
    let went_on = bench(&out, &["--seeds", "1,2", "--resume"]);
    assert!(went_on.status.success(), "{}", String::from_utf8_lossy(&went_on.stderr));
    let finished = || lines(&out.join("results.jsonl")).into_iter().filter(|r| r["status"] == "finished").count();
    assert_eq!(finished(), 2);
    // Nothing is left to resume, and nothing is done again.
    let run = out.join("runs/mlp-quick-2epochs-seed1");
    assert!(!zoo_train::checkpoint::is_in(&run) && lines(&run.join("metrics.jsonl")).len() == 2);
    let again = bench(&out, &["--seeds", "1,2", "--resume"]);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert_eq!((finished(), said.matches("finished already").count()), (2, 2), "{said}");
    // The same run as in a suite that nobody stopped.
    let whole = folder.path().join("whole");
    assert!(bench(&whole, &[]).status.success());
    let weights = |out: &Path| fs::read(out.join("runs/mlp-quick-2epochs-seed1/model.safetensors")).unwrap();
    assert!(weights(&out) == weights(&whole));
}

/// Unlike a budget that is spent: `bench-cifar … && next` must not go on.
#[test]
#[cfg(unix)]
fn ctrl_c_is_no_success() {
    use std::process::Stdio;
    use std::time::{Duration, Instant};
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("suite");
    let more = ["--epochs", "100000", "--seeds", "1,2", "--time-budget", "1h"];
    let mut suite = command(&out, &more).stderr(Stdio::piped()).spawn().unwrap();
    let metrics = out.join("runs/mlp-quick-100000epochs-seed1/metrics.jsonl");
    let begin = Instant::now();
    while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < 2 {
        assert!(begin.elapsed() < Duration::from_secs(60) && suite.try_wait().unwrap().is_none(), "no epoch yet");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(Command::new("kill").args(["-INT", &suite.id().to_string()]).status().unwrap().success());
    let output = suite.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(error_line(&output), "error: interrupted, with 2 of 2 runs left");
    assert!(out.join("report.html").exists());
    let records = lines(&out.join("results.jsonl"));
    assert_eq!((records.len(), &records[0]["status"]), (1, &Value::from("interrupted")));
}

/// As with `bench-cifar … 2>&1 | head`, or when the terminal that it was started from is gone.
#[test]
fn a_suite_that_nobody_listens_to_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("suite");
    let mut suite = command(&out, &[]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(suite.stderr.take());
    assert!(suite.wait().unwrap().success());
    assert_eq!(lines(&out.join("results.jsonl"))[0]["status"], "finished");
}

#[test]
fn what_cannot_be_done_is_said_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let fails = |more: &[&str], expected: &str| {
        let output = bench(&folder.path().join("never"), more);
        assert_eq!(output.status.code(), Some(1), "{more:?}");
        let line = error_line(&output);
        assert!(line.contains(expected), "{more:?}: {line}");
        assert!(!folder.path().join("never").exists(), "{more:?} left a folder behind");
    };
    fails(&["--models", "cifar_resnet2O"], "did you mean cifar_resnet20");
    fails(&["--data", "/no/such/folder"], "/no/such/folder");
    fails(&["--recipe", "none"], "there is no recipe `none`");
    fails(&["--epochs", "0"], "epochs");
    fails(&["--limit", "0"], "--limit");
    fails(&["--device", "abacus"], "abacus");
    let usage = bench(folder.path(), &["--no-such-flag"]);
    assert_eq!(usage.status.code(), Some(2));
}

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

/// f32 and bf16 of one network in one suite: two runs, two rows, two curves.
#[test]
fn a_suite_compares_precisions() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("suite");
    let succeeds = |out: &Path, more: &[&str]| {
        let output = bench(out, more);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        said
    };
    succeeds(&out, &["--precision", "f32"]);
    // More of the same suite: what is there is not done again, and not taken for the other.
    let said = succeeds(&out, &["--precision", "f32,bf16", "--seeds", "1,2", "--resume"]);
    assert_eq!(said.matches("finished already").count(), 1, "{said}");
    let records = lines(&out.join("results.jsonl"));
    let told = |record: &Value| (record["precision"].clone(), record["seed"].clone(), record["folder"].clone());
    let run = |precision: &str, seed: u64, folder: &str| (precision.into(), seed.into(), folder.into());
    assert_eq!(
        records.iter().map(told).collect::<Vec<(Value, Value, Value)>>(),
        [
            run("f32", 1, "runs/mlp-quick-2epochs-seed1"),
            run("f32", 2, "runs/mlp-quick-2epochs-seed2"),
            run("bf16", 1, "runs/mlp-quick-2epochs-bf16-seed1"),
            run("bf16", 2, "runs/mlp-quick-2epochs-bf16-seed2"),
        ]
    );
    for record in &records {
        let is_mixed = record["precision"] == "bf16";
        assert_eq!(record["command"].as_str().unwrap().contains(" --precision bf16"), is_mixed);
        assert_eq!(record["hyperparameters"].get("precision").is_some(), is_mixed);
    }
    let loss = |run: &str| lines(&out.join("runs").join(run).join("metrics.jsonl"))[1]["train_loss"].as_f64().unwrap();
    let (whole, mixed) = (loss("mlp-quick-2epochs-seed1"), loss("mlp-quick-2epochs-bf16-seed1"));
    assert!(whole != mixed && (whole - mixed).abs() < 0.1 * whole, "{whole} {mixed}");
    let html = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(html.contains("mlp · bf16</li>") && html.contains("mlp · f32</li>"), "{html}");
    let text = fs::read_to_string(out.join("report.md")).unwrap();
    assert_eq!(text.matches("| quick, 2 epochs, bf16 | 1, 2 |").count(), 1, "{text}");
    assert_eq!(text.matches("| quick, 2 epochs | 1, 2 |").count(), 1, "{text}");

    // The bits of f32 are those of a suite that knows of nothing else.
    let alone = folder.path().join("alone");
    succeeds(&alone, &[]);
    let weights = |out: &Path| fs::read(out.join("runs/mlp-quick-2epochs-seed1/model.safetensors")).unwrap();
    assert!(weights(&out) == weights(&alone));
    let unknown = bench(&folder.path().join("never"), &["--precision", "f16"]);
    let message = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(unknown.status.code() == Some(2) && message.contains("f32, or bf16"), "{message}");
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

/// A run's folder is called by its model, recipe and seed alone.
#[test]
fn a_run_on_other_data_is_not_taken_for_this_one() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("suite");
    assert!(bench(&out, &[]).status.success());
    let before = fs::read(out.join("results.jsonl")).unwrap();
    let refused = |more: &[&str]| {
        let output = bench(&out, more);
        assert_eq!(output.status.code(), Some(1));
        assert!(fs::read(out.join("results.jsonl")).unwrap() == before);
        error_line(&output)
    };
    let line = refused(&["--limit", "200", "--resume"]);
    assert!(
        line.contains("256 images of [3, 32, 32]") && line.contains("200 images") && line.contains("--out"),
        "{line}"
    );
    // And of runs that were recorded before they said which they are.
    fs::remove_file(out.join("runs/mlp-quick-2epochs-seed1/run.json")).unwrap();
    let line = refused(&["--limit", "200", "--resume"]);
    assert!(line.contains("data.train_images: 256 there, 200 here"), "{line}");
    let again = bench(&out, &["--resume"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("finished already"));
}

#[test]
fn the_quick_suite_is_not_in_the_way_of_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args(["bench-cifar", "--models", "mlp", "--epochs", "1", "--limit", "128"]).args(more);
        assert!(command.current_dir(folder.path()).env_remove("CIFAR10_DIR").status().unwrap().success());
    };
    run(&["--quick"]);
    run(&["--data", "synthetic"]);
    for suite in ["bench-cifar-quick", "bench-cifar"] {
        assert!(folder.path().join("target").join(suite).join("report.html").exists());
    }
}

/// What a run takes at the most is its own, not that of what ran before it.
#[test]
#[cfg(target_os = "linux")]
fn the_peak_memory_is_the_runs_own() {
    let folder = tempfile::tempdir().unwrap();
    let peak = |models: &str| {
        let out = folder.path().join(models);
        assert!(bench(&out, &["--models", models, "--epochs", "1", "--threads", "2"]).status.success());
        lines(&out.join("results.jsonl")).last().unwrap()["peak_rss_mb"].as_f64().unwrap()
    };
    let (alone, behind) = (peak("mlp"), peak("cifar_resnet20,mlp"));
    assert!(behind < 1.3 * alone, "{alone} MB alone, {behind} MB behind another");
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
    // Nobody else may write there meanwhile.
    let second = bench(&out, &["--resume"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(error_line(&second).contains(&format!("is in use: process {} ", suite.id())), "{}", error_line(&second));
    assert!(Command::new("kill").args(["-INT", &suite.id().to_string()]).status().unwrap().success());
    let output = suite.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let line = error_line(&output);
    assert!(line.starts_with("error: interrupted, with 2 of 2 runs left") && line.contains("--resume"), "{line}");
    assert!(out.join("report.html").exists());
    let records = lines(&out.join("results.jsonl"));
    assert_eq!((records.len(), &records[0]["status"]), (1, &Value::from("interrupted")));
}

/// `nohup` starts a program without SIGHUP: it goes on when the terminal goes. SIGTERM ends it as it ends others.
#[test]
#[cfg(unix)]
fn a_signal_that_the_suite_was_started_without_does_nothing() {
    use std::process::Stdio;
    use std::time::{Duration, Instant};
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("suite");
    let suite = command(&out, &["--epochs", "100000"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(suite.get_program()).args(suite.get_args());
    let mut suite = shell.stderr(Stdio::piped()).spawn().unwrap();
    let epochs = || {
        fs::read_to_string(out.join("runs/mlp-quick-100000epochs-seed1/metrics.jsonl")).map_or(0, |t| t.lines().count())
    };
    let begin = Instant::now();
    let wait_for = |suite: &mut std::process::Child, more: usize| {
        let wanted = epochs() + more;
        while epochs() < wanted {
            assert!(begin.elapsed() < Duration::from_secs(60) && suite.try_wait().unwrap().is_none(), "it ended");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait_for(&mut suite, 2);
    let kill = |suite: &std::process::Child, signal: &str| {
        assert!(Command::new("kill").args([signal, &suite.id().to_string()]).status().unwrap().success());
    };
    kill(&suite, "-HUP");
    wait_for(&mut suite, 10);
    kill(&suite, "-TERM");
    assert_eq!(suite.wait().unwrap().code(), Some(143));
}

/// At such a rate the very last step, behind the last loss that training looks at, ruins the network.
#[test]
fn a_network_that_is_not_finite_is_a_failed_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("suite");
    for more in [&[][..], &["--resume"]] {
        let output = bench(&out, &[&["--epochs", "1", "--batch", "256", "--lr", "1e38"][..], more].concat());
        assert_eq!(output.status.code(), Some(1));
        let line = error_line(&output);
        assert!(line.contains("1 run failed: mlp seed 1: ") && line.contains("after epoch 1 of 1"), "{line}");
        let records = lines(&out.join("results.jsonl"));
        assert_eq!(records.last().unwrap()["status"], "failed");
    }
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
    fails(&["--models", "resnet21"], "did you mean cifar_resnet20,");
    // The first thing to read is the command that works, with what was asked for.
    let hub = "this gets it and starts: `curl -O https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz && tar xzf";
    fails(&["--data", "hub"], hub);
    fails(&["--data", "hub"], "--out");
    fails(&["--data", "hub"], "--data hub --data cifar-10-batches-bin`");
    fails(&["--data", "/no/such/folder"], "/no/such/folder");
    fails(&["--recipe", "none"], "there is no recipe `none`");
    fails(&["--epochs", "0"], "epochs");
    fails(&["--limit", "0"], "--limit");
    fails(&["--device", "abacus"], "abacus");
    let usage = bench(folder.path(), &["--no-such-flag"]);
    assert_eq!(usage.status.code(), Some(2));
}

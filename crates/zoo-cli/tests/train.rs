//! `zoo train` as a user runs it, on images made here: a folder of plain colours, and files in CIFAR-10's format.

mod images;

use images::{add_cifar, colours};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn train(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zoo"));
    command.arg("train").args(arguments).current_dir(folder);
    command
}

fn output(folder: &Path, arguments: &[&str]) -> Output {
    train(folder, arguments).output().unwrap()
}

/// Standard output and standard error of a command that must succeed.
fn succeeds(folder: &Path, arguments: &[&str]) -> (String, String) {
    let output = output(folder, arguments);
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "zoo train {arguments:?}: {err}");
    (out, err)
}

/// The message of a command that must fail before it trains: one line, with exit status 1.
fn fails(folder: &Path, arguments: &[&str]) -> String {
    let output = output(folder, arguments);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "zoo train {arguments:?}: {message}");
    assert!(message.starts_with("error: ") && message.lines().count() == 1, "{message}");
    message
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_folder_of_images_leaves_a_network_its_classes_and_a_record() {
    let root = colours();
    let path = root.path();
    let (out, err) = succeeds(path, &["mlp", "--data", "photos", "--out", "my run", "--epochs", "4", "--batch", "6"]);
    assert_eq!(out, "");
    assert!(err.contains("36 images to train on, 12 to test on; 3 classes of 12 images each"), "{err}");
    assert!(
        err.contains("epoch   4/4") && err.contains("zoo predict mlp --weights 'my run/model.safetensors' IMAGE"),
        "{err}"
    );

    let run = path.join("my run");
    assert_eq!(std::fs::read_to_string(run.join("classes.txt")).unwrap(), "blue\ngreen\nred\n");
    assert_eq!(std::fs::read_to_string(run.join("metrics.jsonl")).unwrap().lines().count(), 4);
    let record = json(&run.join("record.json"));
    assert_eq!(std::fs::read_to_string(run.join("record.json")).unwrap().lines().count(), 1);
    assert_eq!(
        (&record["model"], &record["recipe"], &record["status"]),
        (&"mlp".into(), &"mlp-sgd".into(), &"finished".into())
    );
    assert_eq!(record["overrides"], serde_json::json!({"batch": 6}));
    assert_eq!((&record["epochs_done"], &record["data"]["train_images"]), (&4.into(), &36.into()));
    assert_eq!(record["command"], "zoo train mlp --data photos --out 'my run' --epochs 4 --batch 6");
    // Plain colours; a third of them by chance.
    assert!(record["test_acc_last"].as_f64().unwrap() > 0.9, "{record}");

    let weights = candle_core::safetensors::load(run.join("model.safetensors"), &candle_core::Device::Cpu).unwrap();
    assert_eq!(weights["layers.2.weight"].dims(), [3, 256]);
}

#[test]
fn cifar_files_train_under_the_networks_recipe_and_start_other_tasks() {
    let root = colours();
    let path = root.path();
    add_cifar(path);
    let on_cifar = ["mlp", "--data", "cifar", "--classes", "10", "--epochs", "1", "--limit", "30", "--out", "first"];
    let (out, _) = succeeds(path, &[&on_cifar[..], &["--json"]].concat());
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{out}");
    assert_eq!(lines[0]["epoch"], 1);
    assert_eq!(lines[1], json(&path.join("first/record.json")));
    assert_eq!((&lines[1]["recipe"], &lines[1]["data"]["name"]), (&"mlp-sgd".into(), &"CIFAR-10".into()));
    assert_eq!((&lines[1]["data"]["train_images"], &lines[1]["overrides"]), (&30.into(), &serde_json::json!({})));

    // Ten classes there, three here: the classifier starts afresh, and the user is told.
    let tuned = ["mlp", "--data", "photos", "--weights", "first/model.safetensors", "--epochs", "1", "--out", "second"];
    let (_, err) = succeeds(path, &tuned);
    assert!(err.contains("4 tensors loaded") && err.contains("layers.2.weight"), "{err}");
    let record = json(&path.join("second/record.json"));
    assert_eq!(record["recipe"], "finetune");
    assert_eq!(record["overrides"], serde_json::json!({"weights": "first/model.safetensors"}));

    // Any other part that does not fit ends it, and nothing is left behind.
    let other = ["cifar_resnet20", "--data", "photos", "--weights", "first/model.safetensors", "--out", "third"];
    let output = output(path, &other);
    let err = String::from_utf8(output.stderr).unwrap();
    // The line of the error, and below it the keys.
    let error = err.lines().find(|line| line.starts_with("error: ")).unwrap();
    assert!(output.status.code() == Some(1) && error.contains("does not fit"), "{err}");
    assert!(!path.join("third").exists(), "{err}");
}

#[test]
fn a_recipe_of_ones_own_and_single_settings_are_followed_and_recorded() {
    let root = colours();
    let path = root.path();
    let text =
        "base = 'finetune'\nbatch = 6\nlength.epochs = 2\nnormalize = 'pixel_mean'\n[optimizer]\nkind = 'adamw'\n";
    std::fs::write(path.join("gentle.toml"), text).unwrap();
    let common = ["mlp", "--data", "photos", "--recipe", "gentle.toml", "--out", "run"];
    let set = ["--set", "optimizer.weight_decay=0.05", "--set", "augment.flip=false", "--set", "batch=6"];
    let (_, err) = succeeds(path, &[&common[..], &set].concat());
    assert!(err.contains("recipe gentle, batch 6"), "{err}");
    let record = json(&path.join("run/record.json"));
    assert_eq!((&record["recipe"], &record["epochs"], &record["batch"]), (&"gentle".into(), &2.into(), &6.into()));
    let set = serde_json::json!({"set": ["optimizer.weight_decay=0.05", "augment.flip=false"]});
    assert_eq!(record["overrides"], set);
    let followed = &record["hyperparameters"];
    assert_eq!(
        (&followed["optimizer"]["kind"], &followed["optimizer"]["weight_decay"]),
        (&"adamw".into(), &0.05.into())
    );
    // What a file states of the pixels counts, where else the network's own would.
    assert_eq!((&followed["normalize"], &followed["augment"]["flip"]), (&"pixel_mean".into(), &false.into()));

    for (wrong, told) in [
        (&["--set", "lr_rate=0.1"][..], "--set: `lr_rate=0.1`: there is no setting `lr_rate`: did you mean `lr`?"),
        (&["--set", "lr=0.1", "--lr", "0.2"], "--set lr=0.1 and --lr say the same setting twice"),
        (&["--swa", "0"], "swa must be more than 0"),
        (&["--loss", "bce", "--class-weights", "balanced"], "`bce` asks each class by itself"),
        (&["--set", "bce_target_thresh=0.2"], "set loss=bce"),
        (&["--set", "lr=0"], "the learning rate must be a positive number, got 0"),
    ] {
        let other = ["mlp", "--data", "photos", "--recipe", "gentle.toml", "--out", "other"];
        let error = fails(path, &[&other[..], wrong].concat());
        assert!(error.contains(told) && !path.join("other").exists(), "{error}");
    }
}

#[test]
fn pixels_are_normalised_as_the_checkpoint_was_trained_unless_the_user_says_otherwise() {
    let root = colours();
    let path = root.path();
    // The recipe has its own means; a folder of images is for the network's.
    let common = ["mlp", "--data", "photos", "--recipe", "template-600", "--epochs", "1", "--batch", "12", "--out"];
    succeeds(path, &[&common[..], &["model"]].concat());
    succeeds(path, &[&common[..], &["recipe", "--normalize", "recipe"]].concat());
    let overrides = |run: &str| json(&path.join(run).join("record.json"))["overrides"].clone();
    assert_eq!(overrides("model"), serde_json::json!({"batch": 12, "normalize": "model"}));
    assert_eq!(overrides("recipe"), serde_json::json!({"batch": 12}));
}

#[test]
fn an_earlier_run_is_kept_unless_the_user_says_otherwise() {
    let root = colours();
    let path = root.path();
    let arguments = ["mlp", "--data", "photos", "--epochs", "1", "--out", "run"];
    succeeds(path, &arguments);
    std::fs::write(path.join("run/notes.txt"), "mine").unwrap();
    let before = std::fs::read(path.join("run/model.safetensors")).unwrap();
    let error = fails(path, &[&arguments[..], &["--seed", "2"]].concat());
    assert!(error.contains("run") && error.contains("--force") && error.contains("--resume"), "{error}");
    assert!(std::fs::read(path.join("run/model.safetensors")).unwrap() == before);

    succeeds(path, &[&arguments[..], &["--seed", "2", "--force"]].concat());
    assert!(std::fs::read(path.join("run/model.safetensors")).unwrap() != before);
    // One epoch, not that of the run before as well; and a file that is not the command's own stays.
    assert_eq!(std::fs::read_to_string(path.join("run/metrics.jsonl")).unwrap().lines().count(), 1);
    assert!(path.join("run/notes.txt").exists());
}

#[test]
fn what_cannot_be_trained_is_said_in_one_line() {
    let root = colours();
    let path = root.path();
    add_cifar(path);
    let with = |more: &[&'static str]| fails(path, &[&["mlp", "--out", "run"], more].concat());
    let neither = with(&["--data", "photos/train"]);
    assert!(neither.contains("data_batch_*.bin") && neither.contains("train/CLASS"), "{neither}");
    assert!(with(&["--data", "absent"]).contains("absent: no such directory"));
    let classes = with(&["--data", "photos", "--classes", "10"]);
    assert!(classes.contains("--classes 10") && classes.contains("3 classes"), "{classes}");
    assert!(with(&["--data", "photos", "--limit", "0"]).contains("--limit"));
    assert!(with(&["--data", "photos", "--epochs", "0"]).contains("epochs"));
    assert!(with(&["--data", "photos", "--weights", "absent.pth"]).contains("absent.pth"));
    assert!(with(&["--data", "photos", "--device", "tpu"]).contains("tpu"));
    assert!(fails(path, &["no_such_net", "--data", "photos", "--out", "run"]).contains("no_such_net"));
    assert!(!path.join("run").exists());

    for wrong in [
        &["mlp", "--data", "photos"][..],
        &["mlp", "--out", "run"],
        &["mlp", "--data", "photos", "--out", "run", "--recipe", "none"],
        &["mlp", "--data", "photos", "--out", "run", "--resume", "--force"],
        &["mlp", "--data", "photos", "--out", "run", "--epochs", "many"],
    ] {
        assert_eq!(output(path, wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
#[cfg(unix)]
fn ctrl_c_keeps_what_is_done() {
    use std::process::Stdio;
    use std::time::{Duration, Instant};
    let root = colours();
    let path = root.path();
    let mut command = train(path, &["mlp", "--data", "photos", "--epochs", "100000", "--out", "run"]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let begin = Instant::now();
    while std::fs::read_to_string(path.join("run/metrics.jsonl")).map_or(0, |text| text.lines().count()) < 2 {
        assert!(begin.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none(), "no epoch yet");
        std::thread::sleep(Duration::from_millis(20));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{err}");
    // One message, with what to do.
    let after = err.lines().skip_while(|line| line.contains("epoch ") || line.contains(" images")).collect::<Vec<_>>();
    assert!(after.len() == 1 && after[0].starts_with("error: interrupted after "), "{after:?}");
    assert!(after[0].ends_with("zoo train mlp --data photos --epochs 100000 --out run --resume"), "{after:?}");
    let record = json(&path.join("run/record.json"));
    assert_eq!(record["status"], "interrupted");
    assert!(record["epochs_done"].as_u64().unwrap() >= 2 && path.join("run/model.safetensors").exists());
}

/// At such a rate the very last step, behind the last loss that training looks at, ruins the network.
/// What the time allows is kept, which is no failure, and the run can go on.
#[test]
fn a_time_budget_ends_a_run_that_can_go_on() {
    let root = colours();
    let path = root.path();
    let arguments = ["mlp", "--data", "photos", "--out", "run", "--epochs", "100000", "--time-budget", "2s"];
    let (_, err) = succeeds(path, &arguments);
    assert!(err.contains("the time budget of 2s is spent: stopping after this step"), "{err}");
    assert!(err.contains("of 100000 epochs; run holds what was done, to go on: zoo train mlp"), "{err}");
    let done = |record: &Value| (record["status"].clone(), record["epochs_done"].as_u64().unwrap());
    let (status, first) = done(&json(&path.join("run/record.json")));
    assert!(status == "interrupted" && (1..100_000).contains(&first), "{status} {first}");
    assert!(path.join("run/model.safetensors").exists() && path.join("run/report.html").exists());
    succeeds(path, &[&arguments[..], &["--resume"]].concat());
    assert!(done(&json(&path.join("run/record.json"))).1 > first);
}

/// Mixed images are trained on, and shown on the sheet of what the network sees.
#[test]
fn mixed_images_train_and_are_shown() {
    let root = colours();
    let path = root.path();
    let mixed = ["--set", "augment.mixup=0.2", "--set", "augment.cutmix=1.0"];
    for (out, more) in [("run", &["--loss", "bce"][..]), ("second", &["--class-weights", "balanced", "--swa", "0.5"])] {
        let arguments = ["mlp", "--data", "photos", "--out", out, "--epochs", "2", "--batch", "6"];
        succeeds(path, &[&arguments[..], &mixed, more].concat());
        assert!(path.join(out).join("samples.png").exists() && path.join(out).join("model.safetensors").exists());
    }
}

/// With the feature there are event files; without it the user is told how to get them, before anything is trained.
#[test]
fn event_files_are_written_or_refused() {
    let root = colours();
    let path = root.path();
    let arguments = ["mlp", "--data", "photos", "--out", "run", "--epochs", "2", "--tensorboard"];
    if cfg!(feature = "tensorboard") {
        succeeds(path, &arguments);
        let files: Vec<_> = std::fs::read_dir(path.join("run/tensorboard")).unwrap().collect();
        assert_eq!(files.len(), 1);
        succeeds(path, &[&arguments[..], &["--force"]].concat());
        assert_eq!(std::fs::read_dir(path.join("run/tensorboard")).unwrap().count(), 1);
    } else {
        let error = fails(path, &arguments);
        assert!(error.contains("--features tensorboard") && !path.join("run").exists(), "{error}");
    }
}

#[test]
fn a_network_that_is_not_finite_is_no_result() {
    let root = colours();
    let path = root.path();
    let arguments = ["mlp", "--data", "photos", "--epochs", "1", "--batch", "36", "--lr", "1e38", "--out", "run"];
    for more in [&[][..], &["--resume"]] {
        let output = output(path, &[&arguments[..], more].concat());
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{err}");
        let last = err.lines().last().unwrap();
        assert!(last.starts_with("error: mlp: ") && last.contains("after epoch 1 of 1"), "{err}");
        assert!(last.contains("NaN") || last.contains("not finite"), "{err}");
        assert!(!err.contains("to use it") && !path.join("run/model.safetensors").exists(), "{err}");
        assert_eq!(json(&path.join("run/record.json"))["status"], "failed");
    }
}

#[test]
fn the_end_says_which_epoch_the_file_holds() {
    let root = colours();
    let (_, err) = succeeds(root.path(), &["mlp", "--data", "photos", "--out", "run", "--epochs", "6", "--batch", "6"]);
    let record = json(&root.path().join("run/record.json"));
    let line = err.lines().find(|line| line.contains("this is what model.safetensors holds")).unwrap();
    let (kept, accuracy) = (record["kept"]["epoch"].as_u64().unwrap(), record["test_acc_best"].as_f64().unwrap());
    assert_eq!((record["best_epoch"].as_u64(), record["kept"]["accuracy"].as_f64()), (Some(kept), Some(accuracy)));
    assert!(line.contains(&format!("{:.1} % on the validation images after epoch {kept}", 100.0 * accuracy)), "{line}");
    // The last epoch's, where that is asked for.
    let last = ["mlp", "--data", "photos", "--out", "last", "--epochs", "2", "--batch", "6", "--keep", "last"];
    let (_, err) = succeeds(root.path(), &last);
    assert!(err.contains("after epoch 2: this is what model.safetensors holds"), "{err}");
}

#[test]
fn a_finished_run_is_not_taken_for_another() {
    let root = colours();
    let path = root.path();
    let arguments = ["mlp", "--data", "photos", "--out", "run", "--epochs", "1"];
    succeeds(path, &arguments);
    let (_, err) = succeeds(path, &[&arguments[..], &["--resume"]].concat());
    assert!(err.contains("this run is finished"), "{err}");
    let asked =
        ["mlp", "--data", "photos", "--out", "run", "--epochs", "5", "--seed", "2", "--limit", "30", "--resume"];
    let error = fails(path, &asked);
    for difference in ["recipe.length.epochs: 1 there, 5 here", "seed: 1 there, 2 here", "36 images", "30 images"] {
        assert!(error.contains(difference), "{error}");
    }
    // A folder from before the runs said which they are.
    std::fs::remove_file(path.join("run/run.json")).unwrap();
    succeeds(path, &[&arguments[..], &["--resume"]].concat());
    let error = fails(path, &asked);
    assert!(error.contains("epochs: 1 there, 5 here") && error.contains("train_images: 36 there, 30 here"), "{error}");
}

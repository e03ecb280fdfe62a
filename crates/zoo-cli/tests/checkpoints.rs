//! Checkpoints as people have them, through the commands that read them.

mod command;
mod images;

use candle_core::{DType, Device, Tensor};
use command::{succeeds, zoo};
use images::{add_cifar, colours};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;
use zoo::{ModelOptions, VarStore};
use zoo_core::weights::{save_safetensors, save_tensors};

/// Standard output, and standard error from the line on that begins with `error: `, of a command that must fail.
fn fails(folder: &Path, arguments: &[&str]) -> (String, String) {
    let output = zoo(folder, arguments);
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert_eq!(output.status.code(), Some(1), "zoo {arguments:?}: {err}");
    let at = err.find("error: ").unwrap_or_else(|| panic!("{err}"));
    (out, err[at..].to_string())
}

fn mlp(options: &ModelOptions) -> VarStore {
    let store = VarStore::new(7, DType::F32, &Device::Cpu);
    zoo::create("mlp", options, &store).unwrap();
    store
}

/// The network's tensors behind `prefix` in a file, with others beside them.
fn write(path: &Path, store: &VarStore, prefix: &str, beside: &[&str]) {
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    for slot in store.slots() {
        tensors.push((format!("{prefix}{}", slot.key), slot.var.unwrap().as_tensor().clone()));
    }
    tensors.extend(beside.iter().map(|&key| (key.to_string(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap())));
    let named: Vec<_> = tensors.iter().map(|(key, tensor)| (key.as_str(), tensor)).collect();
    save_tensors(named, path, &Default::default()).unwrap();
}

#[test]
fn a_file_larger_than_memory_is_an_error_at_once() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("huge.safetensors");
    let length = 100_000_000_000u64;
    for tensors in [1, 1000] {
        let each = length / tensors / 4;
        let info = |i: u64| {
            format!(
                r#""t{i}":{{"dtype":"F32","shape":[{each}],"data_offsets":[{},{}]}}"#,
                4 * each * i,
                4 * each * (i + 1)
            )
        };
        let header = format!("{{{}}}", (0..tensors).map(info).collect::<Vec<_>>().join(","));
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        // No byte of it is on the disk.
        file.set_len(8 + header.len() as u64 + 4 * each * tensors).unwrap();
        let (_, error) = fails(folder.path(), &["convert", "huge.safetensors", "small.safetensors"]);
        assert!(error.contains("huge.safetensors: its tensors take 100.0 GB, and "), "{error}");
        assert!(!folder.path().join("small.safetensors").exists());
        let (_, error) = fails(folder.path(), &["check", "mlp", "huge.safetensors"]);
        assert!(error.contains("does not fit mlp: 0 keys match"), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn what_is_no_regular_file_is_an_error_at_once_in_every_command() {
    let root = colours();
    let path = root.path();
    assert!(Command::new("mkfifo").arg(path.join("pipe")).status().unwrap().success());
    save_safetensors(&mlp(&ModelOptions::default()), path.join("net.safetensors"), &Default::default()).unwrap();
    let input = Tensor::zeros((1, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
    save_tensors([("input", &input)], path.join("x.safetensors"), &Default::default()).unwrap();
    for name in ["pipe", "/dev/zero"] {
        for arguments in [
            &["check", "mlp", name][..],
            &["convert", name, "new.safetensors"],
            &["run", "mlp", "--weights", name, "--input", "x.safetensors", "--output", "y.safetensors"],
            &["run", "mlp", "--weights", "net.safetensors", "--input", name, "--output", "y.safetensors"],
            &["predict", "mlp", "--weights", name, "photos/val/red/0.png"],
            &["eval", "mlp", "--weights", name, "--data", "photos"],
            &["train", "mlp", "--weights", name, "--data", "photos", "--out", "run"],
        ] {
            let (_, error) = fails(path, arguments);
            let what = if name == "pipe" { "a pipe" } else { "a device" };
            assert!(error.contains(&format!("{name}: it is {what}, not a regular file")), "{arguments:?}: {error}");
        }
    }
    let (_, error) = fails(path, &["check", "mlp", "photos"]);
    assert!(error.contains("photos: a folder without model.safetensors"), "{error}");
}

#[test]
fn check_lists_what_differs_under_headings() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let others: Vec<String> = (0..30).map(|i| format!("decoder.{i:02}")).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    write(&path.join("net.safetensors"), &mlp(&ModelOptions::default()), "", &others);
    let (out, error) = fails(path, &["check", "mlp", "net.safetensors"]);
    assert!(out.contains("\n\nunexpected: in the file only (30)\n  decoder.00 [1]\n  decoder.01 [1]\n"), "{out}");
    assert!(out.contains("  decoder.29 [1]\n"), "{out}");
    assert!(
        error.starts_with("error: net.safetensors does not fit mlp: ") && error.contains(", 30 unexpected,"),
        "{error}"
    );
    assert_eq!(error.lines().count(), 1, "{error}");
    let ignoring = ["check", "mlp", "net.safetensors", "--ignore", "decoder*"];
    assert!(succeeds(path, &ignoring).0.contains("left out of the file (30)\n  decoder.00\n"));
    assert!(fails(path, &["check", "mlp", "net.safetensors", "--ignore", "a[b"]).1.contains("`a[b` is no pattern"));

    // A key of 100,000 letters, some of which would move the cursor.
    let long = format!("\u{1b}[2J{}", "k".repeat(100_000));
    write(&path.join("long.safetensors"), &mlp(&ModelOptions::default()), "", &[&long]);
    let (out, error) = fails(path, &["check", "mlp", "long.safetensors"]);
    assert!(out.len() < 300 && error.len() < 300 && !out.contains('\u{1b}'), "{out}{error}");
    let convert = ["convert", "long.safetensors", "x.safetensors", "--model", "mlp"];
    assert!(fails(path, &convert).1.len() < 400);
}

#[test]
fn a_network_behind_a_prefix_is_read_by_every_command() {
    let root = colours();
    let path = root.path();
    let options = ModelOptions { num_classes: Some(3), ..ModelOptions::default() };
    write(&path.join("net.safetensors"), &mlp(&options), "model.", &["criterion.weight"]);
    let weights = ["mlp", "--weights", "net.safetensors"];
    let (out, _) = succeeds(path, &["check", "mlp", "net.safetensors", "--classes", "3"]);
    assert!(out.contains("(behind `model.`)") && out.contains("left out of the file (1)\n  criterion.weight"), "{out}");
    let (_, err) = succeeds(path, &[&["predict"], &weights[..], &["photos/val/red/0.png"]].concat());
    assert!(err.contains("net.safetensors: keys behind `model.`\n"), "{err}");
    assert!(err.contains("net.safetensors: 1 tensors passed over: `criterion.weight`\n"), "{err}");
    assert!(err.contains("CIFAR-10's mean and deviation (assumed, since the file does not say)"), "{err}");
    succeeds(path, &[&["eval", "--data", "photos", "--prefix", "model"], &weights[..]].concat());
    let train = [&["train", "--data", "photos", "--epochs", "1", "--out", "run"], &weights[..]].concat();
    let (_, err) = succeeds(path, &train);
    assert!(err.contains("tensors loaded (behind `model.`)"), "{err}");
    assert!(
        err.contains("net.safetensors: CIFAR-10's mean and deviation, assumed, since the file does not say"),
        "{err}"
    );
    succeeds(path, &["convert", "net.safetensors", "ours.safetensors", "--model", "mlp", "--classes", "3"]);
    assert!(
        succeeds(path, &["check", "mlp", "ours.safetensors", "--classes", "3"]).0.contains("0 missing, 0 unexpected")
    );
    assert!(
        fails(path, &[&["predict", "--prefix", "net"], &weights[..], &["x.png"]].concat())
            .1
            .contains("no key begins with `net.`")
    );
    let no_model = ["convert", "net.safetensors", "x.safetensors", "--prefix", "model"];
    assert_eq!(zoo(path, &no_model).status.code(), Some(2));

    // A run's folder stands for the weights in it.
    succeeds(path, &["check", "mlp", "run", "--classes", "3"]);
    let (_, err) = succeeds(path, &["predict", "mlp", "--weights", "run", "photos/val/red/0.png"]);
    assert!(!err.contains("assumed"), "{err}");
    let again = ["train", "mlp", "--data", "photos", "--epochs", "1", "--out", "again", "--weights", "run", "--force"];
    assert!(succeeds(path, &again).1.contains("mean and deviation, as the checkpoint says"));
}

#[test]
fn a_checkpoint_that_does_not_fit_is_told_before_an_earlier_run_is_removed() {
    let root = colours();
    let path = root.path();
    write(&path.join("other.safetensors"), &mlp(&ModelOptions::default()), "", &["more"]);
    succeeds(path, &["train", "mlp", "--data", "photos", "--epochs", "1", "--out", "run"]);
    let again = [
        "train",
        "mlp",
        "--data",
        "photos",
        "--epochs",
        "1",
        "--out",
        "run",
        "--force",
        "--weights",
        "other.safetensors",
    ];
    assert!(fails(path, &again).1.contains("1 unexpected"));
    assert!(path.join("run/model.safetensors").exists());
}

#[test]
fn grey_networks_are_trained_measured_and_asked() {
    let root = colours();
    let path = root.path();
    add_cifar(path);
    for data in ["cifar", "photos"] {
        let train = ["train", "mlp", "--epochs", "2", "--batch", "6", "--in-chans", "1", "--out", "run", "--force"];
        succeeds(path, &[&train[..], &["--data", data]].concat());
        let (out, _) = succeeds(path, &["eval", "mlp", "--weights", "run", "--data", data, "--json"]);
        let measured: serde_json::Value = serde_json::from_str(&out).unwrap();
        let record: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path.join("run/record.json")).unwrap()).unwrap();
        assert_eq!(measured["loss"], record["test_loss_last"], "{data}");
    }
    succeeds(path, &["predict", "mlp", "--weights", "run", "photos/val/red/0.png"]);
    let colour = ["predict", "mlp", "--weights", "run", "--in-chans", "3", "photos/val/red/0.png"];
    assert!(fails(path, &colour).1.contains("does not fit the network"));
    let many = ["train", "mlp", "--data", "photos", "--in-chans", "4", "--out", "four"];
    assert!(fails(path, &many).1.contains("images of 3 channels cannot become images of 4"));
}

#[test]
fn other_classes_ask_for_training() {
    let root = colours();
    let path = root.path();
    save_safetensors(&mlp(&ModelOptions::default()), path.join("ten.safetensors"), &Default::default()).unwrap();
    let (_, error) = fails(path, &["eval", "mlp", "--weights", "ten.safetensors", "--data", "photos"]);
    assert!(
        error.contains("tells 10 classes apart, the images are of 3: train it for them first (`zoo train --weights`)"),
        "{error}"
    );
    let (_, error) = fails(path, &["check", "mlp", "ten.safetensors", "--classes", "3"]);
    assert!(
        error.contains("10 classes in the file and 3 in the network: ask for 10 classes (--classes 10), or train"),
        "{error}"
    );
}

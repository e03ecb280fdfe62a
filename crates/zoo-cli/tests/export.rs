//! `zoo export` as a user runs it.

mod command;

use candle_core::{DType, Device, Tensor};
use command::{succeeds, zoo};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use zoo::{ModelOptions, VarStore};
use zoo_core::weights::{Weights, save_safetensors};

/// What is said on standard error by a command that ends with `code`.
fn ends(folder: &Path, code: i32, arguments: &[&str]) -> String {
    let output = zoo(folder, arguments);
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "zoo {arguments:?}: {err}");
    err
}

/// A file of a network's initial weights, for `classes`.
fn weights(folder: &Path, model: &str, classes: usize) {
    let store = VarStore::new(3, DType::F32, &Device::Cpu);
    zoo::create(model, &ModelOptions { num_classes: Some(classes), ..ModelOptions::default() }, &store).unwrap();
    save_safetensors(&store, folder.join(format!("{model}.safetensors")), &BTreeMap::new()).unwrap();
}

#[test]
fn onnx_files_say_what_goes_in_and_nothing_is_overwritten() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    weights(path, "cifar_resnet20", 3);
    let export = ["export", "cifar_resnet20", "--weights", "cifar_resnet20.safetensors", "--to", "onnx"];
    let to = |more: &[&'static str]| [&export[..], more].concat();
    let (out, err) = succeeds(path, &to(&["-o", "a.onnx"]));
    assert!(
        out.is_empty() && err.contains("images (batch, 3, 32, 32) f32 in, logits (batch, 3) f32 out"),
        "{out}{err}"
    );
    assert!(ends(path, 1, &to(&["-o", "a.onnx"])).contains("--force"));
    std::fs::write(path.join("names.txt"), "cat\ndog\nfrog\n").unwrap();
    let (_, err) = succeeds(path, &to(&["-o", "a.onnx", "--force", "--pixels", "--labels", "names.txt"]));
    assert!(err.contains("pixels (batch, 32, 32, 3) u8 in"), "{err}");
    let file = std::fs::read(path.join("a.onnx")).unwrap();
    let holds = |text: &str| file.windows(text.len()).any(|part| part == text.as_bytes());
    for text in
        [r#"["cat","dog","frog"]"#, r#""interpolation":"bilinear""#, "layer1.0.conv1.weight", "BatchNormalization"]
    {
        assert!(holds(text), "the file does not hold {text}");
    }
    assert!(ends(path, 1, &to(&["-o", "a.bin"])).contains("must end in .onnx"));
    assert!(ends(path, 2, &to(&["-o", "b.onnx", "--dtype", "f16"])).contains("--dtype is for --to timm"));
    assert!(ends(path, 2, &to(&["-o", "b.onnx", "--precision", "bf16"])).contains("--precision"));
    std::fs::write(path.join("names.txt"), "cat\ndog\n").unwrap();
    assert!(ends(path, 1, &to(&["-o", "b.onnx", "--labels", "names.txt"])).contains("2 names for the network's 3"));
    assert!(!path.join("b.onnx").exists());
}

/// What was written for timm is read again by its own description: the same network, names and images.
#[test]
fn a_folder_for_timm_is_the_network_that_it_was() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    weights(path, "mobilenet_v2", 2);
    std::fs::write(path.join("names.txt"), "cat\ndog\n").unwrap();
    let image = image::RgbImage::from_fn(64, 48, |x, y| image::Rgb([4 * x as u8, 5 * y as u8, (x * y) as u8]));
    image.save(path.join("a.png")).unwrap();
    let export = ["export", "mobilenet_v2", "--weights", "mobilenet_v2.safetensors", "--to", "timm", "--size", "96"];
    let to = |more: &[&'static str]| [&export[..], more].concat();
    succeeds(path, &to(&["--crop", "0.9", "--labels", "names.txt", "-o", "out"]));
    let config: Value = serde_json::from_slice(&std::fs::read(path.join("out/config.json")).unwrap()).unwrap();
    assert_eq!((&config["architecture"], &config["num_features"]), (&"mobilenetv2_100".into(), &1280.into()));
    assert_eq!(config["pretrained_cfg"]["input_size"], serde_json::json!([3, 96, 96]));
    assert!(std::fs::read_to_string(path.join("out/README.md")).unwrap().contains("library_name: timm"));
    let stored = Weights::open(path.join("out/model.safetensors")).unwrap();
    for key in ["conv_stem.weight", "blocks.0.0.conv_pw.weight", "blocks.6.0.bn3.running_var", "conv_head.weight"] {
        assert!(stored.keys().any(|there| there == key), "no {key}");
    }

    let before = ["predict", "mobilenet_v2", "--weights", "mobilenet_v2.safetensors", "--labels", "names.txt"];
    let (before, _) = succeeds(path, &[&before[..], &["--size", "96", "--crop", "0.9", "--json", "a.png"]].concat());
    let (after, err) = succeeds(path, &["predict", "--weights", "out", "--json", "a.png"]);
    assert_eq!(before, after);
    assert!(err.contains("mobilenet_v2 with 2 classes; images of 96x96 cut from 106"), "{err}");

    assert!(ends(path, 1, &to(&["-o", "out"])).contains("--force"));
    succeeds(path, &to(&["-o", "out", "--force", "--dtype", "bf16"]));
    let stored = Weights::open(path.join("out/model.safetensors")).unwrap();
    let tensor: Tensor = stored.tensor("conv_stem.weight", &Device::Cpu).unwrap();
    assert_eq!(tensor.dtype(), DType::BF16);
    assert!(ends(path, 2, &to(&["-o", "b", "--pixels"])).contains("--pixels is for --to onnx"));
    weights(path, "cifar_resnet20", 10);
    let other = ["export", "cifar_resnet20", "--weights", "cifar_resnet20.safetensors", "--to", "timm", "-o", "b"];
    assert!(ends(path, 1, &other).contains("timm has no network like it"));
    assert!(!path.join("b").exists());
}

/// Published weights come from the hub's cache, by the network's own name; what is not there is said, with what fetches it.
#[test]
fn default_weights_are_looked_for_in_pythons_caches() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    let offline = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zoo"));
        command.args(arguments).current_dir(path).env("HF_HOME", path.join("hf")).env("TORCH_HOME", path.join("torch"));
        for other in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"] {
            command.env_remove(other);
        }
        let output = command.env("HF_HUB_OFFLINE", "1").output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, _, err) = offline(&["check", "mobilenet_v2", "default"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("hf:timm/mobilenetv2_100.ra_in1k: no model.safetensors"), "{err}");
    assert!(
        err.contains("fetch it with `hf download timm/mobilenetv2_100.ra_in1k model.safetensors config.json`"),
        "{err}"
    );
    let (code, _, err) = offline(&["check", "alexnet", "default"]);
    assert!(code == Some(1) && err.contains("alexnet-owt-7be5be79.pth") && err.contains("curl -L"), "{err}");
    let (code, _, err) = offline(&["check", "cifar_resnet20", "default"]);
    assert!(code == Some(1) && err.contains("there are no published weights of it"), "{err}");
    let (code, _, err) = offline(&["predict", "--weights", "default", "x.png"]);
    assert!(code == Some(1) && err.contains("name that first"), "{err}");

    weights(path, "mobilenet_v2", 1000);
    let source = path.join("mobilenet_v2.safetensors");
    let snapshot = path.join("hf/hub/models--timm--mobilenetv2_100.ra_in1k/snapshots/main");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::copy(&source, snapshot.join("model.safetensors")).unwrap();
    let (code, out, err) = offline(&["check", "mobilenet_v2", "default"]);
    assert!(code == Some(0), "{out}{err}");

    // A name that states another hash than the file has.
    std::fs::copy(&source, path.join("mobilenet_v2-7ebf99e0.pth")).unwrap();
    let (code, _, err) = offline(&["check", "mobilenet_v2", "mobilenet_v2-7ebf99e0.pth"]);
    assert!(code == Some(1) && err.contains("its name says that its SHA-256 begins with 7ebf99e0"), "{err}");
}

//! The commands as a user runs them: what they leave, what they print, and how they fail.

use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;
use zoo::{ModelOptions, VarStore};
use zoo_core::Precision;
use zoo_core::loss::cross_entropy;
use zoo_core::tape::value_and_grad;
use zoo_core::weights::save_safetensors;

fn zoo(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_zoo")).args(arguments).current_dir(folder).output().unwrap()
}

fn succeeds(folder: &Path, arguments: &[&str]) -> String {
    let output = zoo(folder, arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "zoo {arguments:?}: {err}");
    out.into_owned()
}

/// The message of a command that must fail, with exit status 1: one line, and below it at most a list under headings.
fn fails(folder: &Path, arguments: &[&str]) -> String {
    let output = zoo(folder, arguments);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "zoo {arguments:?}: {message}");
    let is_listed = |line: &str| line.starts_with("  ") || line.ends_with(':');
    assert!(message.starts_with("error: ") && message.lines().skip(1).all(is_listed), "{message}");
    message
}

/// A folder with a checkpoint `net.safetensors` of a small residual network, and the network.
fn checkpoint() -> (TempDir, VarStore, Box<dyn zoo::Model>) {
    let folder = TempDir::new().unwrap();
    let store = VarStore::new(7, DType::F32, &Device::Cpu);
    let net = zoo::create("cifar_resnet20", &ModelOptions::default(), &store).unwrap();
    save_safetensors(&store, folder.path().join("net.safetensors"), &Default::default()).unwrap();
    (folder, store, net)
}

fn save(folder: &Path, name: &str, tensors: &[(&str, &Tensor)]) {
    let tensors: HashMap<&str, Tensor> = tensors.iter().map(|&(key, t)| (key, t.clone())).collect();
    candle_core::safetensors::save(&tensors, folder.join(name)).unwrap();
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn run_gives_the_networks_own_numbers() {
    let (folder, store, net) = checkpoint();
    let path = folder.path();
    let input = Tensor::arange(0f32, 6144., &Device::Cpu).unwrap().reshape((2, 3, 32, 32)).unwrap();
    let input = (input.sin().unwrap() * 2.0).unwrap();
    save(path, "x.safetensors", &[("input", &input), ("target", &Tensor::new(&[3i64, 8], &Device::Cpu).unwrap())]);

    let eval = [
        "run",
        "cifar_resnet20",
        "--weights",
        "net.safetensors",
        "--input",
        "x.safetensors",
        "--output",
        "y.safetensors",
    ];
    succeeds(path, &eval);
    let stored = candle_core::safetensors::load(path.join("y.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(stored.len(), 1);
    assert_eq!(flat(&stored["logits"]), flat(&net.forward_t(&input, false).unwrap()));

    assert!(fails(path, &[&eval[..], &["--grads"]].concat()).contains("--force"), "an output that exists is kept");
    succeeds(path, &[&eval[..], &["--grads", "--force"]].concat());
    let exact = candle_core::safetensors::load(path.join("y.safetensors"), &Device::Cpu).unwrap();
    succeeds(path, &[&eval[..], &["--grads", "--force", "--dtype", "f32"]].concat());
    let stored = candle_core::safetensors::load(path.join("y.safetensors"), &Device::Cpu).unwrap();
    // Unless asked otherwise gradients are computed in f64 and stored in f32.
    assert_eq!((exact.len(), exact["logits"].dtype()), (stored.len(), DType::F32));
    let off = (&exact["logits"] - &stored["logits"]).unwrap().abs().unwrap().max_all().unwrap();
    let off = off.to_scalar::<f32>().unwrap();
    assert!(off > 0.0 && off < 1e-4, "{off}");
    let logits = net.forward_t(&input, true).unwrap();
    let loss = cross_entropy(&logits, &Tensor::new(&[3u32, 8], &Device::Cpu).unwrap(), 0.0).unwrap();
    let grads = loss.backward().unwrap();
    assert_eq!(flat(&stored["logits"]), flat(&logits));
    assert_eq!(flat(&stored["loss"]), flat(&loss));
    for (key, var) in store.parameters() {
        assert_eq!(flat(&stored[&format!("grad.{key}")]), flat(grads.get(&var).unwrap()), "{key}");
    }
    for (key, var) in store.buffers() {
        assert_eq!(flat(&stored[&format!("stat.{key}")]), flat(&var), "{key}");
    }
    assert_eq!(stored.len(), 2 + store.parameters().len() + store.buffers().len());
}

/// The map's type decides: what the command does in mixed precision is what a cast of the images does in Rust.
#[test]
fn run_computes_in_mixed_precision() {
    let (folder, store, net) = checkpoint();
    let path = folder.path();
    let input = Tensor::arange(0f32, 6144., &Device::Cpu).unwrap().reshape((2, 3, 32, 32)).unwrap().sin().unwrap();
    save(path, "x.safetensors", &[("input", &input), ("target", &Tensor::new(&[3i64, 8], &Device::Cpu).unwrap())]);
    let run = ["run", "cifar_resnet20", "--weights", "net.safetensors", "--precision", "bf16"];
    let files = ["--input", "x.safetensors", "--output", "y.safetensors", "--force"];
    let stored = |more: &[&str]| {
        succeeds(path, &[&run[..], &files, more].concat());
        candle_core::safetensors::load(path.join("y.safetensors"), &Device::Cpu).unwrap()
    };
    let images = Precision::Bf16.cast(&input).unwrap();
    let logits = net.forward_t(&images, false).unwrap();
    assert_eq!(flat(&stored(&[])["logits"]), flat(&logits.to_dtype(DType::F32).unwrap()));
    let in_f32 = net.forward_t(&input, false).unwrap();
    assert_ne!(flat(&logits.to_dtype(DType::F32).unwrap()), flat(&in_f32));

    let stored = stored(&["--grads"]);
    let target = Tensor::new(&[3u32, 8], &Device::Cpu).unwrap();
    let loss = |xs: &Tensor| cross_entropy(&net.forward_t(xs, true)?, &target, 0.0);
    let (loss, grads) = value_and_grad(&images, loss).unwrap();
    assert_eq!(flat(&stored["loss"]), flat(&loss));
    for (key, var) in store.parameters() {
        assert_eq!(flat(&stored[&format!("grad.{key}")]), flat(grads.get(&var).unwrap()), "{key}");
    }
    let message = String::from_utf8(zoo(path, &[&run[..], &files, &["--dtype", "f64"]].concat()).stderr).unwrap();
    assert!(message.contains("--precision") && message.contains("--dtype"), "{message}");
}

#[test]
fn run_says_what_its_input_lacks() {
    let (folder, ..) = checkpoint();
    let path = folder.path();
    let run = ["run", "cifar_resnet20", "--weights", "net.safetensors", "--output", "y.safetensors", "--input"];
    let with = |input: &'static str, more: &[&'static str]| fails(path, &[&run[..], &[input], more].concat());
    let image = Tensor::zeros((1, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
    save(path, "no_input.safetensors", &[("images", &image)]);
    save(path, "no_target.safetensors", &[("input", &image)]);
    save(path, "flat.safetensors", &[("input", &image.flatten_all().unwrap())]);
    let minus = Tensor::new(&[-1i64], &Device::Cpu).unwrap();
    save(path, "negative.safetensors", &[("input", &image), ("target", &minus)]);
    save(
        path,
        "two_targets.safetensors",
        &[("input", &image), ("target", &Tensor::new(&[1i64, 2], &Device::Cpu).unwrap())],
    );
    let gray = Tensor::zeros((1, 1, 32, 32), DType::F32, &Device::Cpu).unwrap();
    save(path, "gray.safetensors", &[("input", &gray)]);
    assert!(with("no_input.safetensors", &[]).contains("`input`"));
    assert!(with("no_target.safetensors", &["--grads"]).contains("`target`"));
    assert!(with("flat.safetensors", &[]).contains("[3072]"));
    assert!(with("negative.safetensors", &["--grads"]).contains("-1"));
    assert!(with("two_targets.safetensors", &["--grads"]).contains("2 targets for 1 images"));
    // The network follows the input's channels; the checkpoint does not.
    assert!(with("gray.safetensors", &[]).contains("conv1.weight"));
    assert!(with("absent.safetensors", &[]).contains("absent.safetensors"));
    assert!(!path.join("y.safetensors").exists());
}

#[test]
fn check_lists_every_key_and_exits_0_only_if_all_match() {
    let (folder, store, _) = checkpoint();
    let path = folder.path();
    let keys = store.slots().len();
    assert!(succeeds(path, &["check", "cifar_resnet20", "net.safetensors"]).contains(&format!("{keys} keys match")));
    let output = zoo(path, &["check", "cifar_resnet32", "net.safetensors", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["fits"], false);
    assert_eq!(report["matching"].as_array().unwrap().len(), keys);
    assert!(report["missing"].as_array().unwrap().iter().any(|m| m["key"] == "layer1.4.conv2.weight"));
    let error = fails(path, &["check", "cifar_resnet20", "net.safetensors", "--classes", "7"]);
    assert!(error.contains("2 mis-shaped"), "{error}");
}

#[test]
fn a_checkpoint_with_other_classes_gets_a_hint() {
    let folder = TempDir::new().unwrap();
    let store = VarStore::new(7, DType::F32, &Device::Cpu);
    let options = ModelOptions { num_classes: Some(100), ..Default::default() };
    zoo::create("cifar_resnet20", &options, &store).unwrap();
    save_safetensors(&store, folder.path().join("net.safetensors"), &Default::default()).unwrap();
    let error = fails(folder.path(), &["check", "cifar_resnet20", "net.safetensors"]);
    assert!(error.contains("--classes 100"), "{error}");
    succeeds(folder.path(), &["check", "cifar_resnet20", "net.safetensors", "--classes", "100"]);
}

#[test]
fn convert_renames_and_keeps_values() {
    let (folder, store, _) = checkpoint();
    let path = folder.path();
    // The same checkpoint as some files have it: wrapped, and the classifier under ImageNet's name.
    let renamed: Vec<(String, Tensor)> = store
        .slots()
        .into_iter()
        .map(|slot| (format!("module.{}", slot.key.replace("linear", "fc")), slot.var.unwrap().as_tensor().clone()))
        .collect();
    save(path, "other.safetensors", &renamed.iter().map(|(key, t)| (key.as_str(), t)).collect::<Vec<_>>());
    let convert = ["convert", "other.safetensors", "ours.safetensors", "--model", "cifar_resnet20"];
    succeeds(path, &convert);
    let ours = candle_core::safetensors::load(path.join("ours.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(ours.len(), store.slots().len());
    for slot in store.slots() {
        assert_eq!(flat(&ours[&slot.key]), flat(&slot.var.unwrap()), "{}", slot.key);
    }
    assert!(fails(path, &convert).contains("--force"));
    assert!(fails(path, &["convert", "other.safetensors", "x.pth"]).contains(".safetensors"));
    let error = fails(path, &["convert", "other.safetensors", "x.safetensors", "--model", "cifar_resnet32"]);
    assert!(error.contains("does not fit") && !path.join("x.safetensors").exists(), "{error}");
}

#[test]
fn plot_writes_what_the_extension_says() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    succeeds(path, &["plot", "cifar_resnet20", "-o", "net.svg"]);
    succeeds(path, &["plot", "cifar_resnet20", "-o", "net.dot"]);
    let svg = std::fs::read_to_string(path.join("net.svg")).unwrap();
    assert!(svg.contains("<svg") && svg.contains("16×32×32") && svg.contains("Block × 3"), "{svg}");
    assert!(std::fs::read_to_string(path.join("net.dot")).unwrap().starts_with("digraph"));
    assert!(fails(path, &["plot", "cifar_resnet20", "-o", "net.svg"]).contains("--force"));
    assert!(fails(path, &["plot", "cifar_resnet20", "-o", "net.png"]).contains(".svg"));
}

#[test]
fn info_follows_image_and_classes_and_refuses_what_cannot_be() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let text = succeeds(path, &["info", "cifar_resnet20", "--image", "1x64x48", "--classes", "5", "--json"]);
    let info: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(info["image"], serde_json::json!([1, 64, 48]));
    assert_eq!(info["layers"].as_array().unwrap().last().unwrap()["output"], serde_json::json!([1, 5]));
    assert!(fails(path, &["info", "no_such_net"]).contains("no_such_net"));
    assert_eq!(zoo(path, &["info", "cifar_resnet20", "--image", "3x32"]).status.code(), Some(2));
}

#[test]
fn bench_measures_what_it_is_asked_for() {
    let folder = TempDir::new().unwrap();
    let bench = ["bench", "template_mixer_s4", "--batch", "2", "--seconds", "0.01", "--json"];
    let line: serde_json::Value = serde_json::from_str(&succeeds(folder.path(), &bench)).unwrap();
    assert_eq!((&line["parameters"], &line["batch"], &line["image"]), (&273_674.into(), &2.into(), &32.into()));
    assert!(line["train_images_per_s"].as_f64().unwrap() > 0.0 && line["infer_images_per_s"].as_f64().unwrap() > 0.0);
    let text = succeeds(folder.path(), &[&bench[..], &["--mode", "infer"]].concat());
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(line["train_images_per_s"].is_null() && line["infer_images_per_s"].as_f64().unwrap() > 0.0);
    assert!(fails(folder.path(), &["bench", "template_mixer_s4", "--batch", "0"]).contains("batch"));
}

#[test]
fn bench_says_what_it_computed_in() {
    let folder = TempDir::new().unwrap();
    let bench = ["bench", "mlp", "--batch", "2", "--seconds", "0.01"];
    let json = |more: &[&str]| -> serde_json::Value {
        serde_json::from_str(&succeeds(folder.path(), &[&bench[..], &["--json"], more].concat())).unwrap()
    };
    let level = zoo_core::ops::Level::current().name();
    for (more, precision) in [(&[][..], "f32"), (&["--precision", "f32"], "f32"), (&["--precision", "bf16"], "bf16")] {
        let line = json(more);
        assert_eq!((&line["precision"], &line["simd"]), (&precision.into(), &level.into()), "{more:?}");
        assert!(
            line["train_images_per_s"].as_f64().unwrap() > 0.0 && line["infer_images_per_s"].as_f64().unwrap() > 0.0
        );
    }
    let text = succeeds(folder.path(), &[&bench[..], &["--precision", "bf16", "--mode", "infer"]].concat());
    assert!(text.starts_with("mlp: batch 2, 32x32, cpu, ") && text.contains(", bf16, "), "{text}");
    let mut portable = Command::new(env!("CARGO_BIN_EXE_zoo"));
    portable.args(bench).args(["--json", "--mode", "infer", "--precision", "bf16"]).env("ZOO_SIMD", "portable");
    let line: serde_json::Value = serde_json::from_slice(&portable.output().unwrap().stdout).unwrap();
    assert_eq!((&line["precision"], &line["simd"]), (&"bf16".into(), &"portable".into()));
}

/// Wrong arguments, with what is right in the message.
#[test]
fn an_unknown_precision_is_refused() {
    let folder = TempDir::new().unwrap();
    for command in [
        &["bench", "mlp"][..],
        &["train", "mlp", "--data", "photos", "--out", "run"],
        &["eval", "mlp", "--weights", "w.pth", "--data", "photos"],
        &["predict", "mlp", "--weights", "w.pth", "image.png"],
    ] {
        for name in ["f16", "BF16", "bfloat16", ""] {
            let output = zoo(folder.path(), &[command, &["--precision", name]].concat());
            let message = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{command:?} {name}: {message}");
            assert!(message.contains("--precision") && message.contains("f32, or bf16"), "{message}");
        }
    }
}

/// Products of such numbers overflow, and what they ask for fits no memory.
#[test]
fn numbers_beyond_reason_are_refused() {
    let folder = TempDir::new().unwrap();
    let most = &u64::MAX.to_string();
    for arguments in [
        &["info", "mlp", "--image", &format!("3x{most}x1")][..],
        &["info", "resnet18", "--image", "3x4294967296x4294967296"],
        &["info", "resnet18", "--classes", most],
        &["plot", "resnet18", "-o", "net.svg", "--classes", most],
        &["bench", "mlp", "--batch", most],
        &["bench", "mlp", "--batch", "1000000000000"],
        &["bench", "mlp", "--image", most],
        &["bench", "mlp", "--seconds", "1e300"],
    ] {
        let output = zoo(folder.path(), arguments);
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "zoo {arguments:?}: {message}");
        assert!(message.starts_with("error: ") && !message.contains("panicked"), "{message}");
    }
}

/// Whatever can be given is explained, and in words that need not be read twice.
#[test]
fn every_command_explains_all_that_it_takes() {
    let folder = TempDir::new().unwrap();
    let all = succeeds(folder.path(), &["--help"]);
    let (_, commands) = all.split_once("Commands:").unwrap();
    let lines = commands.lines().skip(1).take_while(|line| !line.is_empty());
    let names: Vec<&str> =
        lines.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").collect();
    assert!(names.len() >= 11 && names.contains(&"recipe"), "{names:?}");
    for name in names {
        let help = succeeds(folder.path(), &[name, "--help"]);
        for unclear in ["where they are not", "where it is not", "Tell what is on", "as they came by"] {
            assert!(!help.contains(unclear), "zoo {name}: {unclear}");
        }
        // The text stands behind two spaces, or on the next line; an option or argument without text is followed by
        // neither.
        let is_item = |line: &str| {
            let item = line.trim_start();
            let named = |mark: char| item.strip_prefix(mark).is_some_and(|rest| !rest.starts_with([' ', 'd', 'p']));
            line.starts_with("  ") && ['-', '<', '['].into_iter().any(named)
        };
        let lines: Vec<&str> = help.lines().collect();
        for (line, next) in lines.iter().zip(lines[1..].iter().chain([&""])) {
            let told = line.trim().contains("  ") || (!next.trim().is_empty() && !is_item(next));
            assert!(!is_item(line) || told, "zoo {name} does not say what this is: {line}");
        }
    }
}

#[test]
fn recipes_are_listed_and_shown() {
    let folder = TempDir::new().unwrap();
    let list = succeeds(folder.path(), &["recipe", "list"]);
    let whose = |line: &str| Some(line.strip_prefix("resnet-paper ")?.trim_start().to_owned());
    assert!(list.starts_with("name "), "{list}");
    assert!(list.lines().filter_map(whose).any(|rest| rest.starts_with("He et al. 2015, section 4.2 ")), "{list}");
    let lines = succeeds(folder.path(), &["recipe", "list", "--json"]);
    assert!(lines.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["whose"].is_string()));
    assert_eq!(lines.lines().count() + 1, list.lines().count());

    let shown = succeeds(folder.path(), &["recipe", "show", "modern-200"]);
    for line in ["Optimizer          SGD with momentum 0.9", "Its course         a cosine down to 0, epoch by epoch"] {
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
    // What is printed is a recipe: what a record holds, bit for bit.
    let json = succeeds(folder.path(), &["recipe", "show", "fast", "--model", "mlp", "--json"]);
    let recipe: zoo_train::recipe::Recipe = serde_json::from_str(&json).unwrap();
    assert_eq!(recipe, zoo_train::recipe::Recipe::named("fast").unwrap().adapted_to("mlp"));

    // As a file it is the same recipe, and one of the user's own is shown like the zoo's.
    let toml = succeeds(folder.path(), &["recipe", "show", "fast", "--model", "mlp", "--toml"]);
    std::fs::write(folder.path().join("same.toml"), &toml).unwrap();
    assert_eq!(zoo_train::recipe::Recipe::read(&folder.path().join("same.toml")).unwrap(), recipe, "{toml}");
    std::fs::write(folder.path().join("mine.toml"), "base = 'modern-200'\nlr = 0.2\n").unwrap();
    let shown = succeeds(folder.path(), &["recipe", "show", "mine.toml", "--set", "optimizer.momentum=0.8"]);
    assert!(shown.contains("SGD with momentum 0.8") && shown.contains("Learning rate      0.2"), "{shown}");
    let error = fails(folder.path(), &["recipe", "show", "mine.toml", "--set", "lr_rate=1"]);
    assert!(error.contains("there is no setting `lr_rate`: did you mean `lr`?"), "{error}");
    let error = fails(folder.path(), &["recipe", "show", "absent.toml"]);
    assert!(error.contains("absent.toml: "), "{error}");

    let unknown = zoo(folder.path(), &["recipe", "show", "modern-20"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("modern-200"));
    fails(folder.path(), &["recipe", "show", "fast", "--model", "resnet-20"]);
}

/// Candle's errors print a backtrace where the environment of a container asks for one.
#[test]
fn an_error_is_one_line_whatever_the_environment() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zoo"));
        let output = command.args(arguments).env("RUST_BACKTRACE", "1").env_remove("ZOO_BACKTRACE").output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let long = "n".repeat(100_000);
    for arguments in [
        &["info", "no_such_net"][..],
        &["info", &long],
        &["info", "vit_tiny_patch16_224", "--image", "3x23x23"],
        &["check", "mlp", "absent.pth"],
        &["plot", "mlp", "-o", "/absent/folder/net.svg"],
        &["bench", "vit_tiny_patch16_224", "--image", "23"],
    ] {
        let (status, text) = run(arguments);
        assert!(status == Some(1) && text.starts_with("error: "), "{text}");
        assert!(text.lines().count() == 1 && !text.contains("candle_core::"), "{text}");
        // The longest is the one with the names of all networks.
        assert!(text.len() < 3_000, "{}", text.len());
    }
    let (status, text) = run(&["recipe", "show", &long]);
    assert!(status == Some(2) && text.len() < 3_000, "{}", text.len());
    let mut command = Command::new(env!("CARGO_BIN_EXE_zoo"));
    command.args(["info", "no_such_net"]).env("RUST_BACKTRACE", "1").env("ZOO_BACKTRACE", "1");
    let full = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert!(full.lines().count() > 3 && full.contains("candle_core::error::Error::bt"), "{full}");
}

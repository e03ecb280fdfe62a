//! Files that hold more than a network, or hold it behind something: what is taken, what is left out, and what is asked
//! for.

use candle_core::{DType, Device, Tensor};
use std::path::PathBuf;
use tempfile::TempDir;
use zoo_core::weights::{self, KeyReport, LoadOptions, LoadReport, Selection, Weights, save_tensors};
use zoo_core::{Init, VarStore};

const KEYS: [&str; 3] = ["conv1.weight", "fc.weight", "fc.bias"];

fn shape(key: &str) -> &'static [usize] {
    match key.rsplit_once("conv1").or(key.rsplit_once("fc")).map(|(_, end)| end) {
        Some(end) if key.contains("conv1") && end.ends_with("weight") => &[2, 3, 1, 1],
        Some(end) if end.ends_with("weight") => &[4, 2],
        Some(_) => &[4],
        None => &[1],
    }
}

fn network() -> VarStore {
    let store = VarStore::new(1, DType::F32, &Device::Cpu);
    for key in KEYS {
        store.root().param(shape(key), key, Init::ZEROS).unwrap();
    }
    store
}

/// A safetensors file with these keys; a tensor is full of the number of its key.
fn file(keys: &[&str]) -> Weights {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("made.safetensors");
    let full = |(i, &key): (usize, &&str)| (key.to_string(), Tensor::full(i as f32, shape(key), &Device::Cpu).unwrap());
    let tensors: Vec<(String, Tensor)> = keys.iter().enumerate().map(full).collect();
    save_tensors(tensors.iter().map(|(key, tensor)| (key.as_str(), tensor)), &path, &Default::default()).unwrap();
    Weights::from_bytes("made.safetensors", std::fs::read(path).unwrap()).unwrap()
}

/// The network's keys behind `prefix`, and what stands beside them.
fn behind(prefix: &str, beside: &[&str]) -> Vec<String> {
    let behind = KEYS.iter().map(|key| format!("{prefix}{key}"));
    behind.chain(beside.iter().map(|key| key.to_string())).collect()
}

fn of(keys: &[String]) -> Weights {
    file(&keys.iter().map(String::as_str).collect::<Vec<_>>())
}

fn loaded(keys: &[String], selection: &Selection) -> Result<(LoadReport, Vec<f32>), String> {
    let store = network();
    let options = selection.of(LoadOptions::default());
    let report = weights::load(&store, &of(keys), &options).map_err(|error| error.to_string())?;
    let first = |key| store.get(key).unwrap().var.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
    Ok((report, KEYS.map(first).to_vec()))
}

fn checked(keys: &[String]) -> KeyReport {
    weights::check(&network(), &of(keys), &LoadOptions::default()).unwrap()
}

#[test]
fn a_network_behind_one_prefix_is_found_and_what_stands_beside_it_is_told() {
    for (prefix, beside) in [
        // An averaged model of torch.optim.swa_utils, Lightning's modules, wrappers of people's own, MoCo.
        ("module.", &["n_averaged"][..]),
        ("model.", &[]),
        ("net.", &["criterion.weight", "ema_loss"]),
        ("backbone.", &[]),
        ("timm_model.", &["margin.center"]),
        ("module.encoder_q.", &["module.queue", "module.queue_ptr"]),
        ("model.module.backbone.", &["step"]),
    ] {
        let keys = behind(prefix, beside);
        let report = checked(&keys);
        assert!(report.is_exact(), "{prefix}: {report}");
        assert_eq!(report.prefix.as_deref(), Some(prefix));
        assert_eq!(report.left_out, beside, "{prefix}");
        assert!(report.summary().contains(&format!("behind `{prefix}`")), "{report}");
        let (report, values) = loaded(&keys, &Selection::default()).unwrap();
        assert_eq!(report.prefix.as_deref(), Some(prefix));
        assert_eq!(report.passed_over, beside, "{prefix}");
        assert_eq!(values, [0.0, 1.0, 2.0], "{prefix}");
    }
    assert_eq!(checked(&behind("", &[])).prefix, None);
}

#[test]
fn what_wrappers_put_between_the_parts_is_dropped() {
    for keys in [
        ["conv1._orig_mod.weight", "fc.weight", "fc.bias"],
        ["_orig_mod.conv1.weight", "_orig_mod.fc.weight", "_orig_mod.fc.bias"],
        ["model._orig_mod.conv1.weight", "model._orig_mod.fc.weight", "model._orig_mod.fc.bias"],
        // Data parallel around a part of the network, and sharding around each.
        ["conv1.module.weight", "fc.weight", "fc.bias"],
        ["_fsdp_wrapped_module.conv1._fsdp_wrapped_module.weight", "_fsdp_wrapped_module.fc.weight", "fc.bias"],
        ["module.conv1._checkpoint_wrapped_module.weight", "module.fc.weight", "module.fc.bias"],
    ] {
        let report = checked(&keys.map(str::to_string));
        assert!(report.is_exact() && report.left_out.is_empty(), "{keys:?}: {report}");
    }
    // Where two keys would become one, both stay.
    let report = checked(&behind("", &["fc.module.bias"]));
    assert_eq!(report.unexpected[0].0, "fc.module.bias");
}

#[test]
fn several_prefixes_are_asked_for() {
    let keys = [behind("module.encoder_q.", &[]), behind("module.encoder_k.", &["module.queue"])].concat();
    let error = loaded(&keys, &Selection::default()).unwrap_err();
    assert!(error.starts_with("made.safetensors holds what the network wants behind 2 prefixes: "), "{error}");
    assert!(error.contains("`module.encoder_k.`, `module.encoder_q.`: choose one (--prefix)"), "{error}");
    for (named, values) in [("module.encoder_q", [0.0, 1.0, 2.0]), ("encoder_k.", [3.0, 4.0, 5.0])] {
        let selection = Selection { prefix: Some(named.into()), ..Selection::default() };
        let (report, found) = loaded(&keys, &selection).unwrap();
        assert_eq!((found, report.passed_over.len()), (values.to_vec(), 4), "{named}");
        assert!(report.prefix.unwrap().starts_with("module.encoder_"));
    }
    let absent = Selection { prefix: Some("teacher".into()), ..Selection::default() };
    let error = loaded(&keys, &absent).unwrap_err();
    assert!(
        error.contains("no key begins with `teacher.`; they begin with `encoder_k`, `encoder_q`, `queue`"),
        "{error}"
    );
}

#[test]
fn what_the_network_does_not_want_is_passed_over_only_on_request() {
    let keys = behind("", &["decoder.0.weight", "decoder.norm.bias", "mask_token"]);
    let error = loaded(&keys, &Selection::default()).unwrap_err();
    assert!(error.contains("3 keys match, 0 missing, 3 unexpected"), "{error}");
    let ignoring = |patterns: &[&str]| Selection {
        ignore: patterns.iter().map(|pattern| pattern.to_string()).collect(),
        ..Selection::default()
    };
    assert!(loaded(&keys, &ignoring(&["decoder*"])).unwrap_err().contains("1 unexpected"));
    let (report, values) = loaded(&keys, &ignoring(&["decoder*", "mask_token"])).unwrap();
    assert_eq!(report.passed_over, ["decoder.0.weight", "decoder.norm.bias", "mask_token"]);
    assert_eq!(values, [0.0, 1.0, 2.0]);
    // A copy elsewhere in the file does not take the place of what is at the top.
    let copied = [behind("", &[]), behind("ema.", &[])].concat();
    assert!(loaded(&copied, &Selection::default()).unwrap_err().contains("3 unexpected"));
    assert_eq!(loaded(&copied, &ignoring(&["ema.*"])).unwrap().1, [0.0, 1.0, 2.0]);
    let error = loaded(&keys, &ignoring(&["dec***"])).unwrap_err();
    assert!(error.contains("`dec***` is no pattern of keys: "), "{error}");
}

#[test]
fn what_is_nearly_there_is_told_from_where_it_is() {
    // A backbone whose classifier stands beside it.
    let keys = ["model.backbone.conv1.weight", "model.backbone.fc.bias", "model.classifier.weight"].map(str::to_string);
    let error = loaded(&keys, &Selection::default()).unwrap_err();
    for part in [
        "2 keys match, 1 missing, 0 unexpected, 0 mis-shaped (behind `model.backbone.`)\n",
        "\n  fc.weight [4, 2]\n",
        "left out of the file:\n  model.classifier.weight",
    ] {
        assert!(error.contains(part), "{part:?} is not in:\n{error}");
    }
    let store = network();
    let options = LoadOptions { may_differ: &["fc"], ..LoadOptions::default() };
    let report = weights::load(&store, &of(&keys), &options).unwrap();
    assert_eq!(
        (report.loaded, report.initial),
        (vec!["conv1.weight".into()], vec!["fc.bias".into(), "fc.weight".into()])
    );
}

#[test]
fn other_classes_are_told_with_what_helps() {
    let store = VarStore::shapes_only();
    for (key, shape) in [("conv1.weight", &[2usize, 3, 1, 1][..]), ("fc.weight", &[7, 2]), ("fc.bias", &[7])] {
        store.root().param(shape, key, Init::ZEROS).unwrap();
    }
    let report = weights::check(&store, &of(&behind("", &[])), &LoadOptions::default()).unwrap();
    assert_eq!(report.other_outputs(), Some(("fc", 4, 7)));
    let text = report.to_string();
    let first = text.lines().next().unwrap();
    assert!(first.contains("only `fc` differs, which has 4 classes in the file and 7 in the network: "), "{first}");
    assert!(first.contains("--classes 4") && first.contains("zoo train --weights"), "{first}");
    // Not where more than that differs.
    let report = weights::check(&store, &of(&behind("", &["more"])), &LoadOptions::default()).unwrap();
    assert_eq!(report.other_outputs(), None);
}

#[test]
fn other_channels_are_told_with_what_helps() {
    let store = VarStore::shapes_only();
    for (key, shape) in [("conv1.weight", &[2usize, 1, 1, 1][..]), ("fc.weight", &[4, 2]), ("fc.bias", &[4])] {
        store.root().param(shape, key, Init::ZEROS).unwrap();
    }
    let report = weights::check(&store, &of(&behind("", &[])), &LoadOptions::default()).unwrap();
    assert_eq!(report.other_channels(), Some(("conv1.weight", 3, 1)));
    let text = report.summary();
    assert!(
        text.contains("reads 3 channels in the file and 1 in the network: ask for images of 3 (--in-chans 3)"),
        "{text}"
    );
}

#[test]
fn a_long_key_makes_a_short_message() {
    let long = "k".repeat(100_000);
    let error = loaded(&behind("", &[&long]), &Selection::default()).unwrap_err();
    assert!(error.contains("kkkk…") && error.len() < 300, "{} bytes", error.len());
    let error = loaded(&behind("", &[&format!("{}x\ny", "k.".repeat(40_000))]), &Selection::default()).unwrap_err();
    assert!(error.len() < 300 && error.lines().count() == 3, "{error}");
    assert_eq!(weights::shown("\u{202e}lave.\u{200b}x"), "\u{FFFD}lave.\u{FFFD}x");
    let error = loaded(&behind("", &[""]), &Selection::default()).unwrap_err();
    assert!(error.contains("1 unexpected"), "a key may be empty: {error}");
    let weights = of(&behind("", &[&long]));
    assert!(weights.tensor(&"z".repeat(100_000), &Device::Cpu).unwrap_err().to_string().len() < 300);
}

#[test]
fn whole_numbers_are_no_weights() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("int8.safetensors");
    let tensors = KEYS.map(|key| {
        let dtype = if key == "fc.weight" { DType::U8 } else { DType::F32 };
        (key, Tensor::zeros(shape(key), dtype, &Device::Cpu).unwrap())
    });
    save_tensors(tensors.iter().map(|(key, tensor)| (*key, tensor)), &path, &Default::default()).unwrap();
    let opened = Weights::open(&path).unwrap();
    let error = weights::load(&network(), &opened, &LoadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("`fc.weight` holds whole numbers (u8), as quantized weights do: load it where"), "{error}");
    assert!(weights::check(&network(), &opened, &LoadOptions::default()).is_err());
}

#[test]
fn a_file_of_very_many_prefixes_is_answered_soon() {
    let mut header = String::from("{\"__metadata__\":{\"note\":\"");
    header += &"x".repeat(1 << 20);
    header += "\"}";
    for i in 0..20_000 {
        header +=
            &format!(r#","p{i}.a.b.c.d.e.f.g.h.conv1.weight":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
    }
    header += "}";
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    let weights = Weights::from_bytes("many.safetensors", file).unwrap();
    let start = std::time::Instant::now();
    let report = weights::check(&network(), &weights, &LoadOptions::default()).unwrap();
    assert_eq!((report.missing.len(), report.unexpected.len()), (3, 20_000));
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
    // All keys behind a thousand wrappers.
    let report = checked(&behind(&"module.".repeat(1000), &[]));
    assert_eq!(report.missing.len(), 3);
}

// ---- training states ----

/// What torch.save writes in its older format: a dictionary of dictionaries, to any depth, of tensors of three numbers.
enum Node {
    Tensor,
    Number,
    Dict(Vec<(&'static str, Node)>),
}

fn pickled(node: &Node) -> Vec<u8> {
    const TENSOR: &[u8] =
        b"ctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nU\x01kU\x03cpuK\x03tQ\
                            K\x00K\x03\x85K\x01\x85\x89}tR";
    match node {
        Node::Tensor => TENSOR.to_vec(),
        Node::Number => b"K\x07".to_vec(),
        Node::Dict(items) => {
            let item =
                |(key, value): &(&str, Node)| [b"U", &[key.len() as u8][..], key.as_bytes(), &pickled(value)].concat();
            [b"}(".to_vec(), items.iter().flat_map(item).collect(), b"u".to_vec()].concat()
        }
    }
}

fn state(folder: &TempDir, root: &Node) -> PathBuf {
    let head = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.\x80\x02";
    let storages = [b"]U\x01ka.".as_slice(), &3u64.to_le_bytes(), &[0; 12]].concat();
    let path = folder.path().join("state.pth");
    let bytes = [&head[..], &pickled(root), b".", &storages].concat();
    std::fs::write(&path, bytes).unwrap();
    path
}

fn tensors(keys: &[&'static str]) -> Node {
    Node::Dict(keys.iter().map(|&key| (key, Node::Tensor)).collect())
}

fn optimizer() -> Node {
    Node::Dict(vec![("state", Node::Dict(vec![("0", tensors(&["exp_avg"]))])), ("lr", Node::Number)])
}

#[test]
fn an_entry_is_taken_by_rule_or_by_name() {
    let folder = TempDir::new().unwrap();
    let opened = |root: &Node, entry: Option<&str>| {
        let weights = Weights::open_entry(state(&folder, root), entry).map_err(|error| error.to_string())?;
        let keys = weights.keys().collect::<Vec<_>>().join(" ");
        Ok::<_, String>((weights.entry().map(str::to_string), keys, weights.other_entries().to_vec()))
    };
    let some = |name: &str| Some(name.to_string());

    // The usual name before averaged weights, which are told of and taken on request.
    let both = Node::Dict(vec![
        ("epoch", Node::Number),
        ("model_ema", tensors(&["b"])),
        ("model", tensors(&["a"])),
        ("optimizer", optimizer()),
    ]);
    assert_eq!(opened(&both, None), Ok((some("model"), "a".into(), vec!["model_ema".into()])));
    assert_eq!(opened(&both, Some("model_ema")), Ok((some("model_ema"), "b".into(), vec!["model".into()])));
    let error = opened(&both, Some("teacher")).unwrap_err();
    assert!(
        error.contains("no entry `teacher`; those with tensors are `model_ema` (1 tensors), `model` (1 tensors)"),
        "{error}"
    );

    // The only one that holds tensors, whatever it is called, and one level down.
    for name in ["model_ema", "state_dict_ema", "weights"] {
        let only = Node::Dict(vec![("epoch", Node::Number), (name, tensors(&["a"])), ("optimizer", optimizer())]);
        assert_eq!(opened(&only, None), Ok((some(name), "a".into(), vec![])));
    }
    let below = Node::Dict(vec![
        ("model", Node::Dict(vec![("name", Node::Number)])),
        ("ckpt", Node::Dict(vec![("net", tensors(&["a"]))])),
    ]);
    assert_eq!(opened(&below, None).unwrap().0, some("ckpt.net"));
    assert_eq!(opened(&below, Some("ckpt.net")).unwrap().1, "a");

    // DINO's student and teacher: the user's choice.
    let dino =
        Node::Dict(vec![("student", tensors(&["a", "b"])), ("teacher", tensors(&["a"])), ("epoch", Node::Number)]);
    let error = opened(&dino, None).unwrap_err();
    assert!(
        error.contains("several sets of tensors: `student` (2 tensors), `teacher` (1 tensors); choose one (--entry)"),
        "{error}"
    );
    assert_eq!(opened(&dino, Some("student")), Ok((some("student"), "a b".into(), vec!["teacher".into()])));

    // A state dict as it is has no entry, and one that is asked for in a file without any is refused.
    assert_eq!(opened(&tensors(&["a"]), None), Ok((None, "a".into(), vec![])));
    assert!(opened(&tensors(&["a"]), Some("ema")).unwrap_err().contains("no entry `ema`: none holds tensors"));
    let path = folder.path().join("x.safetensors");
    save_tensors([("a", &Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap())], &path, &Default::default()).unwrap();
    let error = Weights::open_entry(&path, Some("ema")).unwrap_err().to_string();
    assert!(error.contains("a safetensors file has no entries, such as `ema`"), "{error}");
}

// ---- files that are called by their names ----

#[test]
fn what_is_no_checkpoint_is_called_by_its_name() {
    let refused = |bytes: &[u8]| Weights::from_bytes("f", bytes.to_vec()).unwrap_err().to_string();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";
    let index = br#"{"metadata": {"total_size": 8}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    for (bytes, words) in [
        (&pointer[..], &["Git LFS pointer", "git lfs pull"][..]),
        (index, &["index of a sharded checkpoint", "2 tensors lie in 2 files", "model-00001-of-00002", "save_file"]),
        (b"{\"model_type\": \"vit\"}", &["JSON text", "config.json"]),
        (b"<!DOCTYPE html><html>", &["web page", "download"]),
        (b"\x89HDF\r\n\x1a\n", &["HDF5", "Keras"]),
        (b"\x89PNG\r\n\x1a\n", &["picture (PNG)"]),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\0", &["gzip", "unpack"]),
    ] {
        let error = refused(bytes);
        assert!(words.iter().all(|word| error.contains(word)) && error.len() < 400, "{words:?}: {error}");
    }
    // Float8 and unsigned types in safetensors.
    for (dtype, size, words) in [("F8_E4M3", 1, "quantized"), ("U64", 8, "float32")] {
        let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,{size}]}}}}"#);
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; size]].concat();
        let error = refused(&file);
        assert!(error.contains(&format!("type {dtype} has no equivalent here")) && error.contains(words), "{error}");
    }
}

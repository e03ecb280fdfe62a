//! `zoo predict` and `zoo eval` as a user runs them, on networks that `zoo train` left.

mod command;
mod images;

use candle_core::Device;
use command::{succeeds, zoo};
use images::{add_cifar, colours};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use zoo_core::weights::{Weights, save_tensors};

/// Standard output and the error's line on standard error, of a command that must fail with exit status 1; only a list
/// may follow.
fn fails(folder: &Path, arguments: &[&str]) -> (String, String) {
    let output = zoo(folder, arguments);
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert_eq!(output.status.code(), Some(1), "zoo {arguments:?}: {err}");
    let at = err.find("error: ").filter(|&at| at == 0 || err[..at].ends_with('\n')).unwrap_or_else(|| panic!("{err}"));
    let mut lines = err[at..].lines();
    let error = lines.next().unwrap_or_default().to_owned();
    assert!(lines.all(|line| line.starts_with("  ") || line.ends_with(':')), "{err}");
    (out, error)
}

fn objects(out: &str) -> Vec<Value> {
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn record(run: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(run.join("record.json")).unwrap()).unwrap()
}

const COLOURS: [&str; 9] = ["mlp", "--data", "photos", "--epochs", "4", "--batch", "6", "--out", "run"];
const MODEL: [&str; 3] = ["mlp", "--weights", "run/model.safetensors"];

#[test]
fn a_network_trained_on_a_folder_names_what_it_sees() {
    let root = colours();
    let path = root.path();
    succeeds(path, &[&["train"], &COLOURS[..]].concat());

    let photos = ["photos/val/red/0.png", "photos/val/blue/1.png"];
    let (out, err) = succeeds(path, &[&["predict"], &MODEL[..], &photos[..]].concat());
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 8, "{out}");
    assert_eq!((lines[0], lines[4]), photos.into());
    assert!(lines[1].ends_with("%  red") && lines[5].ends_with("%  blue"), "{out}");
    assert!(err.contains("mlp with 3 classes; images of 32x32 (bilinear), CIFAR-10's mean and deviation"), "{err}");

    let (out, _) = succeeds(path, &[&["predict", "--json", "--top", "2"], &MODEL[..], &photos[..]].concat());
    let objects = objects(&out);
    assert_eq!((objects.len(), &objects[1]["image"]), (2, &json!(photos[1])));
    let top = objects[0]["top"].as_array().unwrap();
    assert_eq!((top.len(), &top[0]["class"], &top[0]["label"]), (2, &json!(2), &json!("red")));
    let probability = |k: usize| top[k]["probability"].as_f64().unwrap();
    assert!(probability(0) > probability(1) && probability(0) + probability(1) <= 1.0, "{out}");

    // The file says which network it holds, and a folder that is called as the network is no picture.
    std::fs::create_dir(path.join("mlp")).unwrap();
    let unnamed = [&["predict", "--weights", "run"], &photos[..]].concat();
    let named = [&["predict", "mlp", "--weights", "run"], &photos[..]].concat();
    assert_eq!(succeeds(path, &unnamed).0, succeeds(path, &named).0);
    let (table, _) = succeeds(path, &[&unnamed[..], &["--csv", "--top", "1"]].concat());
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!((lines.len(), lines[0]), (3, "image,rank,class,label,probability"));
    assert!(lines[1].starts_with("photos/val/red/0.png,1,2,red,0."), "{table}");

    // Other images than it was trained on, part by part.
    let (_, err) =
        succeeds(path, &[&unnamed[..], &["--mean", "0,0,0", "--std", "1,1,1", "--interpolation", "lanczos"]].concat());
    assert!(err.contains("images of 32x32 (lanczos), mean [0.0, 0.0, 0.0] and deviation [1.0, 1.0, 1.0]"), "{err}");
    let (_, error) = fails(path, &[&unnamed[..], &["--crop", "7"]].concat());
    assert!(error.contains("a crop of 0.1 to 1, not 7"), "{error}");

    // The file goes on saying what it is when it is converted; other names are the user's.
    succeeds(path, &["convert", "run/model.safetensors", "again.safetensors", "--model", "mlp", "--classes", "3"]);
    std::fs::write(path.join("labels.txt"), "bleu\nvert\nrouge\n").unwrap();
    let again = ["predict", "mlp", "--weights", "again.safetensors", "--top", "1", photos[0]];
    assert!(succeeds(path, &again).0.ends_with("red\n"));
    assert!(succeeds(path, &[&again[..], &["--labels", "labels.txt"]].concat()).0.ends_with("rouge\n"));

    // Of a file that does not say it, the name is asked for.
    let weights = Weights::open(path.join("again.safetensors")).unwrap();
    let tensors: Vec<_> = weights.keys().map(|key| (key, weights.tensor(key, &Device::Cpu).unwrap())).collect();
    let tensors = tensors.iter().map(|(key, tensor)| (*key, tensor));
    save_tensors(tensors, path.join("bare.safetensors"), &BTreeMap::new()).unwrap();
    let (_, error) = fails(path, &["predict", "--weights", "bare.safetensors", photos[0]]);
    assert!(error.contains("does not say which network it holds: name it first"), "{error}");
    let (_, error) = fails(path, &["predict", "mpl", "--weights", "bare.safetensors", photos[0]]);
    assert!(error.contains("did you mean mlp"), "{error}");
    // timm's configuration beside it does, and has the names.
    let config = r#"{"architecture": "mlp", "label_names": ["x", "y", "z"], "pretrained_cfg": {"crop_pct": 0.5}}"#;
    std::fs::write(path.join("config.json"), config).unwrap();
    let (out, err) = succeeds(path, &["predict", "--weights", "bare.safetensors", "--top", "1", photos[0]]);
    assert!(out.ends_with("z\n") && err.contains("images of 32x32 cut from 64 (bicubic)"), "{out}{err}");
    assert!(err.contains("ImageNet's mean and deviation (as config.json beside it says)"), "{err}");
}

#[test]
fn a_page_tells_of_one_run_and_of_several() {
    let root = colours();
    let path = root.path();
    succeeds(path, &[&["train"], &COLOURS[..]].concat());
    let (out, _) = succeeds(path, &["report", "run"]);
    assert_eq!(out, "run/report.html\n");
    let page = std::fs::read_to_string(path.join("run/report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("mlp") && page.contains("confus"), "no chart, name or confusion");
    succeeds(path, &["report", "run"]);
    assert!(fails(path, &["report", "run", "-o", "run"]).1.contains("run/report.html is there already"));
    assert!(fails(path, &["report", "run", "run"]).1.contains("say where the report goes (-o DIR)"));
    assert!(fails(path, &["report", "photos"]).1.contains("photos/record.json: no record of a run"));
    succeeds(path, &["report", "run", "run", "-o", "both"]);
    assert!(path.join("both/report.md").exists());
}

/// Of a network of three classes, on data that has two of them under other names.
#[test]
fn classes_are_told_one_by_one() {
    let root = colours();
    let path = root.path();
    succeeds(path, &[&["train"], &COLOURS[..]].concat());
    let eval = ["eval", "--weights", "run", "--data", "photos", "--per-class"];
    let (out, _) = succeeds(path, &eval);
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("12 of 12 images right") && lines[1].is_empty(), "{out}");
    assert!(lines[2].starts_with("class") && lines[2].ends_with("most often taken for"), "{out}");
    assert_eq!(
        lines[3].split_whitespace().collect::<Vec<_>>(),
        ["blue", "4", "100.0", "%", "100.0", "%", "100.0", "%"]
    );
    let (out, _) = succeeds(path, &[&eval[..], &["--json"]].concat());
    let object: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(object["confusion"], json!([[4, 0, 0], [0, 4, 0], [0, 0, 4]]));
    assert_eq!((&object["classes"][2]["name"], &object["classes"][2]["recall"]), (&json!("red"), &json!(1.0)));

    let two = path.join("two/val");
    std::fs::create_dir_all(&two).unwrap();
    for (from, to) in [("red", "rouge"), ("blue", "bleu")] {
        std::fs::create_dir(two.join(to)).unwrap();
        for file in std::fs::read_dir(path.join("photos/val").join(from)).unwrap() {
            let file = file.unwrap().path();
            std::fs::copy(&file, two.join(to).join(file.file_name().unwrap())).unwrap();
        }
    }
    std::fs::write(path.join("map.json"), r#"{"rouge": "red", "bleu": 0}"#).unwrap();
    let eval = ["eval", "--weights", "run", "--data", "two", "--class-map", "map.json", "--per-class", "--csv"];
    let (out, _) = succeeds(path, &eval);
    let expected =
        "class,name,images,correct,precision,recall,f1,bleu,rouge\n0,bleu,4,4,1,1,1,4,0\n2,rouge,4,4,1,1,1,0,4\n";
    assert_eq!(out, expected);
    for (map, error) in [
        (r#"{"rouge": "pink", "bleu": 0}"#, "`rouge`: \"pink\" is none of the network's 3 classes"),
        (r#"{"rouge": 3, "bleu": 0}"#, "`rouge`: 3 is none of the network's 3 classes"),
        (r#"{"rouge": 0, "bleu": 0}"#, "class 0 stands twice"),
        ("[1]", "expected a JSON object"),
    ] {
        std::fs::write(path.join("map.json"), map).unwrap();
        let (_, said) = fails(path, &eval);
        assert!(said.contains(error) && said.contains("map.json"), "{said}");
    }
}

#[test]
fn shells_and_man_know_the_commands() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(succeeds(folder.path(), &["completions", shell]).0.contains("predict"), "{shell}");
    }
    assert!(succeeds(folder.path(), &["man"]).0.contains(".TH zoo 1"));
    succeeds(folder.path(), &["man", "-o", "pages"]);
    let page = std::fs::read_to_string(folder.path().join("pages/zoo-predict.1")).unwrap();
    assert!(page.contains("interpolation"), "{page}");
}

#[test]
fn vectors_are_written_for_numpy_and_as_tensors() {
    let root = colours();
    let path = root.path();
    succeeds(path, &[&["train"], &COLOURS[..]].concat());
    let embed = ["embed", "--weights", "run", "photos/val", "-o"];
    let (_, err) = succeeds(path, &[&embed[..], &["vectors.safetensors"]].concat());
    assert!(err.contains("vectors.safetensors: 12 vectors of "), "{err}");
    let stored = Weights::open(path.join("vectors.safetensors")).unwrap();
    let vectors = stored.tensor("vectors", &Device::Cpu).unwrap();
    let images: Vec<String> = serde_json::from_str(&stored.metadata()["images"]).unwrap();
    assert_eq!((vectors.dim(0).unwrap(), images.len()), (12, 12));

    // The same numbers, row by row, behind a header of whole lines of 64 bytes.
    succeeds(path, &[&embed[..], &["vectors.npy"]].concat());
    let bytes = std::fs::read(path.join("vectors.npy")).unwrap();
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let text = std::str::from_utf8(&bytes[10..header]).unwrap();
    assert!(bytes.starts_with(b"\x93NUMPY\x01\x00") && header.is_multiple_of(64) && text.ends_with(" \n"), "{text}");
    assert!(text.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (12, "), "{text}");
    let numbers: Vec<f32> =
        bytes[header..].chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
    assert_eq!(numbers, vectors.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    assert_eq!(std::fs::read_to_string(path.join("vectors.txt")).unwrap().lines().collect::<Vec<_>>(), images);
    let (_, error) = fails(path, &[&embed[..], &["vectors.npy"]].concat());
    assert!(error.contains("vectors.npy is there already"), "{error}");
    let (_, error) = fails(path, &[&embed[..], &["vectors.csv"]].concat());
    assert!(error.contains("ends in .npy or .safetensors"), "{error}");
}

#[test]
fn an_image_that_cannot_be_read_does_not_hide_the_others() {
    let root = colours();
    let path = root.path();
    succeeds(path, &[&["train"], &COLOURS[..]].concat());
    std::fs::write(path.join("text.png"), "no image").unwrap();
    let images = ["absent.jpg", "photos/val/green/0.png", "text.png"];
    let output = zoo(path, &[&["predict"], &MODEL[..], &images[..]].concat());
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert_eq!(output.status.code(), Some(1));
    assert!(out.starts_with("photos/val/green/0.png\n") && out.lines().count() == 4, "{out}");
    // The first with the error, the others before it.
    assert!(err.contains("\ntext.png: expected an image"), "{err}");
    assert!(err.contains("\nerror: 2 of 3 images could not be read, the first: absent.jpg: No such file"), "{err}");
    let (_, only) = fails(path, &[&["predict"], &MODEL[..], &["text.png"]].concat());
    assert_eq!(only, "error: text.png: expected an image (JPEG, PNG, WebP, BMP, GIF or TIFF)");
}

/// A red picture as a JPEG.
fn jpeg() -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let red = image::RgbImage::from_pixel(40, 36, image::Rgb([220, 30, 30]));
    red.write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
    bytes.into_inner()
}

#[test]
fn pictures_come_from_folders_and_pipes_and_other_things_are_refused_at_once() {
    use std::io::Write;
    use std::process::Stdio;
    let root = colours();
    let path = root.path();
    succeeds(path, &[&["train"], &COLOURS[..]].concat());
    let zoo = |images: &[&str], input: &[u8]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zoo"));
        command.args([&["predict", "--top", "1"], &MODEL[..], images].concat()).current_dir(path);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).ok();
        let output = child.wait_with_output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code(), out, err.lines().last().unwrap_or_default().to_owned())
    };
    let (code, out, _) = zoo(&["-"], &jpeg());
    assert_eq!((code, out.lines().next(), out.ends_with("red\n")), (Some(0), Some("-"), true), "{out}");
    let (code, _, err) = zoo(&["-"], &jpeg()[..300]);
    assert_eq!(code, Some(1));
    assert_eq!(err, "error: standard input: truncated: the JPEG ends at byte 300, before all of it is there");
    assert!(zoo(&["-", "-"], &jpeg()).2.contains("can be read once"));
    let (code, _, err) = zoo(&["-"], b"<html>\nno such page");
    assert_eq!(code, Some(1));
    assert!(err.contains("standard input: expected an image") && err.ends_with("there is no file `<html>`"), "{err}");

    // A folder in a folder, an odd name, and what is no picture.
    std::fs::create_dir_all(path.join("mine/more")).unwrap();
    std::fs::write(path.join("mine/more/red.jfif"), jpeg()).unwrap();
    std::fs::write(path.join("mine/list.txt"), "x").unwrap();
    let (code, out, _) = zoo(&["mine", "photos/val/blue/0.png"], b"");
    assert_eq!((code, out.lines().count()), (Some(0), 4), "{out}");
    assert!(out.starts_with("mine/more/red.jfif\n") && out.contains("red\n") && out.ends_with("blue\n"), "{out}");

    // The same as a list, with a line that is no file.
    let (code, out, err) = zoo(&["-"], b"mine\r\nphotos/val/blue/0.png\nabsent.png\n");
    assert_eq!((code, out.lines().count()), (Some(1), 4), "{out}");
    assert!(err.starts_with("error: absent.png: No such file"), "{err}");
    let (code, list, _) = zoo(&["-"], b"mine/more/red.jfif\0photos/val/blue/0.png\0");
    assert_eq!((code, list), (Some(0), out));

    let (code, _, err) = zoo(&["/dev/zero"], b"");
    assert_eq!((code, err.as_str()), (Some(1), "error: /dev/zero: it is a device, not a regular file"));
    let (code, _, err) = zoo(&["/dev/stdin"], &jpeg());
    assert_eq!(code, Some(1));
    assert!(
        err.starts_with("error: /dev/stdin: it is a pipe, not a regular file; from a pipe a picture is read as `-`"),
        "{err}"
    );
}

#[test]
fn pictures_that_are_too_large_or_cut_off_are_refused_and_told() {
    let root = colours();
    let path = root.path();
    succeeds(path, &[&["train"], &COLOURS[..]].concat());
    let image = "photos/val/red/0.png";
    let (_, large) = fails(path, &[&["predict", "--max-pixels", "1439"], &MODEL[..], &[image]].concat());
    assert_eq!(
        large,
        format!("error: {image}: 40x36 pixels, and more than 1439 are not decoded: --max-pixels raises that")
    );
    succeeds(path, &[&["predict", "--max-pixels", "1440"], &MODEL[..], &[image]].concat());

    // Twelve whole pictures, and one of which the end is missing.
    std::fs::write(path.join("photos/val/red/cut.jpg"), &jpeg()[..500]).unwrap();
    let (out, err) = succeeds(path, &[&["eval", "--json", "--data", "photos"], &MODEL[..]].concat());
    assert_eq!((&objects(&out)[0]["images"], &objects(&out)[0]["left_out"]), (&json!(12), &json!(1)));
    assert!(err.contains("1 file left out:\n  photos/val/red/cut.jpg: truncated: the JPEG ends at byte 500"), "{err}");
    let (_, err) = succeeds(path, &["train", "mlp", "--data", "photos", "--epochs", "1", "--out", "again"]);
    assert!(err.contains("1 file left out:\n  photos/val/red/cut.jpg: truncated: the JPEG ends at byte 500"), "{err}");
    assert!(err.contains("36 images to train on, 12 to test on; 3 classes of 12 images each"), "{err}");
    let (_, all) = fails(path, &[&["eval", "--max-pixels", "1", "--data", "photos"], &MODEL[..]].concat());
    assert_eq!(all, "error: there are no images to evaluate on");
}

/// What `zoo eval` measures is what training measured last, under every normalisation that a recipe has.
#[test]
fn eval_measures_what_training_measured() {
    let root = colours();
    let path = root.path();
    add_cifar(path);
    for (recipe, data) in
        [("mlp-sgd", "photos"), ("template-600", "photos"), ("resnet-paper", "photos"), ("modern-200", "cifar")]
    {
        let common = ["train", "mlp", "--epochs", "1", "--batch", "8", "--out", "run", "--force"];
        succeeds(path, &[&common[..], &["--recipe", recipe, "--data", data, "--normalize", "recipe"]].concat());
        let (out, _) = succeeds(path, &[&["eval", "--json", "--data", data], &MODEL[..]].concat());
        let measured = &objects(&out)[0];
        let trained = record(&path.join("run"));
        assert_eq!(measured["top1"], trained["test_acc_last"], "{recipe}");
        assert_eq!(measured["loss"], trained["test_loss_last"], "{recipe}");
        assert_eq!(measured["images"], trained["data"]["test_images"]);
        let share = measured["correct"].as_f64().unwrap() / measured["images"].as_f64().unwrap();
        assert_eq!(measured["top1"], json!(share));
        assert!(
            measured["top5"].as_f64() >= measured["top1"].as_f64() && measured["images_per_s"].as_f64() > Some(0.0)
        );
    }
    let (out, _) = succeeds(path, &[&["eval", "--data", "cifar"], &MODEL[..]].concat());
    assert!(out.contains(" of 10 images right: top-1 "), "{out}");
}

/// The weights are f32 whatever they were trained in, and either precision reads them.
#[test]
fn a_network_of_bf16_is_used_in_both_precisions() {
    let root = colours();
    let path = root.path();
    let (_, err) = succeeds(path, &[&["train"], &COLOURS[..], &["--precision", "bf16"]].concat());
    assert!(err.contains("batch 6; bf16, cpu, ") && err.contains("mlp mlp-sgd bf16 seed 1 epoch   4/4"), "{err}");
    let trained = record(&path.join("run"));
    assert_eq!((&trained["precision"], &trained["overrides"]), (&"bf16".into(), &json!({"batch": 6})));
    assert_eq!(trained["hyperparameters"]["precision"], "bf16");
    assert!(trained["command"].as_str().unwrap().ends_with(" --precision bf16"), "{trained}");
    assert!(trained["test_acc_last"].as_f64().unwrap() > 0.9, "{trained}");
    let weights = candle_core::safetensors::load(path.join("run/model.safetensors"), &Device::Cpu).unwrap();
    assert!(weights.values().all(|tensor| tensor.dtype() == candle_core::DType::F32));

    let eval = |more: &[&str]| {
        let (out, _) = succeeds(path, &[&["eval", "--json", "--data", "photos"], &MODEL[..], more].concat());
        objects(&out).swap_remove(0)
    };
    let (whole, mixed) = (eval(&[]), eval(&["--precision", "bf16"]));
    assert_eq!((&whole["precision"], &mixed["precision"]), (&"f32".into(), &"bf16".into()));
    assert_eq!((&mixed["loss"], &mixed["top1"]), (&trained["kept"]["loss"], &trained["kept"]["accuracy"]));
    let [whole, mixed] = [whole, mixed].map(|line| line["loss"].as_f64().unwrap());
    assert!(whole != mixed && (whole - mixed).abs() < 0.02, "{whole} {mixed}");

    let image = "photos/val/red/0.png";
    let (out, err) = succeeds(path, &[&["predict", "--precision", "bf16"], &MODEL[..], &[image]].concat());
    assert!(out.lines().nth(1).unwrap().ends_with("%  red"), "{out}");
    assert!(err.contains("mlp with 3 classes in bf16; images of"), "{err}");

    // Neither is taken for the other.
    let resume = |more: &[&'static str]| [&["train"], &COLOURS[..], &["--resume"], more].concat();
    let (_, error) = fails(path, &resume(&[]));
    assert!(error.contains(r#"recipe.precision: "bf16" there, "f32" here"#), "{error}");
    let (_, err) = succeeds(path, &resume(&["--precision", "bf16"]));
    assert!(err.contains("this run is finished"), "{err}");
    std::fs::remove_file(path.join("run/run.json")).unwrap();
    let (_, error) = fails(path, &resume(&[]));
    assert!(error.contains(r#"precision: "bf16" there, "f32" here"#), "{error}");
}

#[test]
fn classes_are_matched_by_name_where_they_have_one() {
    let root = colours();
    let path = root.path();
    add_cifar(path);
    succeeds(path, &[&["train"], &COLOURS[..]].concat());
    let eval =
        |weights: &'static str, data: &'static str| ["eval", "mlp", "--json", "--weights", weights, "--data", data];
    let top1 = |out: &str| objects(out)[0]["top1"].as_f64().unwrap();
    // Two of the three, without a training set: red stays class 2.
    for class in ["green", "red"] {
        std::fs::create_dir_all(path.join("two/test").join(class)).unwrap();
        std::fs::copy(
            path.join("photos/val").join(class).join("0.png"),
            path.join("two/test").join(class).join("0.png"),
        )
        .unwrap();
    }
    assert_eq!(top1(&succeeds(path, &eval("run/model.safetensors", "two")).0), 1.0);
    let (_, other) = fails(path, &eval("run/model.safetensors", "cifar"));
    assert!(other.contains("blue, green, red") && other.contains("airplane, automobile"), "{other}");

    // A file that says nothing of itself: classes in the order of the folders, and as many as the network has.
    let tensors = candle_core::safetensors::load(path.join("run/model.safetensors"), &Device::Cpu).unwrap();
    candle_core::safetensors::save(&tensors, path.join("bare.safetensors")).unwrap();
    assert_eq!(top1(&succeeds(path, &eval("bare.safetensors", "photos")).0), 1.0);
    let (_, count) = fails(path, &eval("bare.safetensors", "two"));
    assert!(count.contains("tells 3 classes apart, the images are of 2"), "{count}");
    let (out, _) = succeeds(path, &["predict", "mlp", "--weights", "bare.safetensors", "photos/val/red/0.png"]);
    assert!(out.lines().nth(1).unwrap().ends_with("%  class 2"), "{out}");
}

#[test]
fn what_does_not_fit_is_said_in_one_line() {
    let root = colours();
    let path = root.path();
    succeeds(path, &[&["train"], &COLOURS[..]].concat());
    let image = "photos/val/red/0.png";
    let weights = "run/model.safetensors";
    let (_, other) = fails(path, &["predict", "cifar_resnet20", "--weights", weights, image]);
    assert!(other.contains("holds the weights of mlp, not of cifar_resnet20"), "{other}");
    assert!(fails(path, &["predict", "mlp", "--weights", "absent.pth", image]).1.contains("absent.pth"));
    std::fs::write(path.join("two.txt"), "a\nb\n").unwrap();
    let (_, names) = fails(path, &["predict", "mlp", "--weights", weights, "--labels", "two.txt", image]);
    assert!(names.contains("two.txt: 2 names for the network's 3 classes"), "{names}");
    assert!(fails(path, &["eval", "mlp", "--weights", weights, "--data", "absent"]).1.contains("no such directory"));
    std::fs::create_dir_all(path.join("other/val/yellow")).unwrap();
    let (_, unknown) = fails(path, &["eval", "mlp", "--weights", weights, "--data", "other"]);
    assert!(unknown.contains("yellow: the network knows no class of this name, but blue, green, red"), "{unknown}");
    let tensors = candle_core::safetensors::load(path.join(weights), &Device::Cpu).unwrap();
    candle_core::safetensors::save(&tensors, path.join("bare.safetensors")).unwrap();
    let (_, keys) = fails(path, &["predict", "cifar_resnet20", "--weights", "bare.safetensors", image]);
    assert!(keys.contains("does not fit"), "{keys}");

    // CIFAR-10's images are not cut.
    add_cifar(path);
    for flag in [["--size", "16"], ["--crop", "0.5"], ["--crop-mode", "squash"], ["--interpolation", "bicubic"]] {
        let (_, error) = fails(path, &[&["eval", "mlp", "--weights", weights, "--data", "cifar"], &flag[..]].concat());
        assert!(error.contains("cifar: its images are 32x32 pixels as they are"), "{error}");
    }

    for wrong in [
        &["predict", "mlp", "--weights", weights][..],
        &["predict", "mlp", image],
        &["predict", "mlp", "--weights", weights, "--top", "0", image],
        &["eval", "mlp", "--weights", weights],
    ] {
        assert_eq!(zoo(path, wrong).status.code(), Some(2), "{wrong:?}");
    }
}

//! Configurations beside a file of weights: `config.json` as timm writes it to the hub, `preprocessor_config.json` and
//! `config.json` of Hugging Face transformers. They say what the weights want images to look like, and what the classes
//! are called.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};
use std::io::Read;
use std::path::Path;
use zoo_core::weights::open_regular;
use zoo_core::{ChannelOrder, Interpolation, Preprocess, PreprocessParts};

/// The largest configuration, in bytes: the names of 22,000 classes take 2 MB.
const MOST_BYTES: u64 = 64 << 20;

/// What a configuration states.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Config {
    /// Of the images.
    pub parts: PreprocessParts,
    /// Names of the classes in the order of the outputs.
    pub classes: Option<Vec<String>>,
    /// timm's name of the network.
    pub architecture: Option<String>,
    /// The files that were read, for the user.
    pub files: Vec<&'static str>,
    /// What was not understood, a line each.
    pub notes: Vec<String>,
}

/// What lies beside the file of weights at `path`.
pub(crate) fn beside(path: &Path) -> Config {
    let mut config = Config::default();
    let folder = path.parent().unwrap_or(Path::new(""));
    for (name, read) in
        [("config.json", from_config as fn(&Value, &mut Config) -> Result<bool>), (PREPROCESSOR, from_preprocessor)]
    {
        match object(&folder.join(name)).and_then(|value| value.map_or(Ok(false), |value| read(&value, &mut config))) {
            Ok(true) => config.files.push(name),
            Ok(false) => {}
            Err(error) => config.notes.push(format!("{name} beside it is not followed: {error:#}")),
        }
    }
    config
}

const PREPROCESSOR: &str = "preprocessor_config.json";

/// The JSON in a file, if there is one.
fn object(path: &Path) -> Result<Option<Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    open_regular(path)?.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= MOST_BYTES, "it has more than {MOST_BYTES} bytes");
    Ok(Some(serde_json::from_slice(&bytes).context("it is no JSON")?))
}

/// `config.json`: timm's `pretrained_cfg`, or the one of before timm 0.9 whose fields lie at the top; the names of classes
/// of either library. Whether it is one of theirs.
fn from_config(value: &Value, config: &mut Config) -> Result<bool> {
    let Some(top) = value.as_object() else { return Ok(false) };
    config.classes = names(top)?;
    config.architecture = top.get("architecture").and_then(Value::as_str).map(str::to_owned);
    let cfg = match top.get("pretrained_cfg").and_then(Value::as_object) {
        Some(cfg) => cfg,
        None if ["crop_pct", "interpolation", "input_size"].iter().all(|key| top.contains_key(*key)) => top,
        None => return Ok(config.classes.is_some()),
    };
    config.parts = timm(cfg)?;
    Ok(true)
}

/// timm's fields; those that it leaves out have its defaults.
fn timm(cfg: &Map<String, Value>) -> Result<PreprocessParts> {
    let size = match cfg.get("input_size").map(numbers).transpose().context("input_size")?.as_deref() {
        Some(&[_, height, width]) => Some(square(height, width)?),
        None => None,
        Some(other) => bail!("input_size of {} numbers", other.len()),
    };
    let squash = match cfg.get("crop_mode").and_then(Value::as_str) {
        None | Some("center") => false,
        Some("squash") => true,
        Some(other) => bail!("crop_mode `{other}`: center and squash are known"),
    };
    let interpolation = match cfg.get("interpolation").and_then(Value::as_str) {
        None => Interpolation::Bicubic,
        Some(name) => name.parse().map_err(anyhow::Error::msg).context("interpolation")?,
    };
    Ok(PreprocessParts {
        size,
        crop: Some(number(cfg, "crop_pct")?.unwrap_or(0.875)),
        interpolation: Some(interpolation),
        squash: Some(squash),
        mean: Some(colours(cfg, "mean")?.unwrap_or(Preprocess::IMAGENET.mean)),
        std: Some(colours(cfg, "std")?.unwrap_or(Preprocess::IMAGENET.std)),
        channel_order: Some(ChannelOrder::Rgb),
    })
}

/// `preprocessor_config.json`, of the processors of ViT, DeiT, ConvNeXt (which ResNets have, too) and CLIP.
fn from_preprocessor(value: &Value, config: &mut Config) -> Result<bool> {
    let Some(top) = value.as_object().filter(|top| top.contains_key("image_mean") || top.contains_key("size")) else {
        return Ok(false);
    };
    let is = |key: &str, default: bool| top.get(key).and_then(Value::as_bool).unwrap_or(default);
    ensure!(
        is("do_resize", true) && is("do_rescale", true),
        "it wants images that are not resized, or not scaled to 0..1"
    );
    if let Some(factor) = number(top, "rescale_factor")? {
        ensure!((factor * 255.0 - 1.0).abs() < 1e-6, "it scales pixels by {factor} where 1/255 was expected");
    }
    let kind = ["image_processor_type", "feature_extractor_type"].iter().find_map(|key| top.get(*key)?.as_str());
    let convnext = kind.is_some_and(|kind| kind.starts_with("ConvNext"));
    let cut = match top.get("crop_size").filter(|_| is("do_center_crop", false)) {
        Some(size) => Some(side(size).context("crop_size")?),
        None => None,
    };
    let share = number(top, "crop_pct")?;
    let (size, crop, squash) = match (top.get("size"), cut) {
        (None, None) => (None, None, None),
        (None, Some(cut)) => (Some(cut), Some(1.0), Some(false)),
        (Some(size), cut) => {
            // One number is the shorter side where something is cut, and both sides where nothing is.
            let shorter = size.get("shortest_edge").and_then(Value::as_u64).map(|edge| edge as usize);
            let is_shorter = shorter.is_some() || (size.is_u64() && cut.is_some());
            let edge = shorter.map_or_else(|| side(size), Ok).context("size")?;
            match (cut, convnext) {
                (Some(cut), _) => (Some(cut), Some((cut as f64 / edge.max(1) as f64).min(1.0)), Some(!is_shorter)),
                // Its images from 384 pixels on are whole.
                (None, true) if edge < 384 => (Some(edge), Some(share.unwrap_or(224.0 / 256.0)), Some(false)),
                (None, _) => (Some(edge), Some(1.0), Some(true)),
            }
        }
    };
    let resample = match top.get("resample").and_then(Value::as_u64) {
        None => None,
        Some(0) => Some(Interpolation::Nearest),
        Some(1) => Some(Interpolation::Lanczos),
        Some(2) => Some(Interpolation::Bilinear),
        Some(3) => Some(Interpolation::Bicubic),
        Some(other) => bail!("resample {other}: 0 to 3 are known"),
    };
    let normalized = is("do_normalize", true);
    let order = if is("do_flip_channel_order", false) { ChannelOrder::Bgr } else { ChannelOrder::Rgb };
    config.parts = PreprocessParts {
        size,
        crop,
        interpolation: resample,
        squash,
        mean: if normalized { colours(top, "image_mean")? } else { Some([0.0; 3]) },
        std: if normalized { colours(top, "image_std")? } else { Some([1.0; 3]) },
        channel_order: Some(order),
    };
    Ok(true)
}

/// timm's `label_names`, or transformers' `id2label`, unless that only counts: `LABEL_0`.
fn names(top: &Map<String, Value>) -> Result<Option<Vec<String>>> {
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a class's name that is no text");
    if let Some(names) = top.get("label_names").and_then(Value::as_array) {
        return names.iter().map(text).collect::<Result<_>>().map(Some);
    }
    let Some(map) = top.get("id2label").and_then(Value::as_object) else { return Ok(None) };
    let names = (0..map.len()).map(|class| text(map.get(&class.to_string()).context("id2label leaves out a class")?));
    let names: Vec<String> = names.collect::<Result<_>>()?;
    let is_counted = names.iter().enumerate().all(|(class, name)| *name == format!("LABEL_{class}"));
    Ok((!is_counted).then_some(names))
}

fn number(map: &Map<String, Value>, key: &str) -> Result<Option<f64>> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_f64().map(Some).with_context(|| format!("{key} is no number")),
    }
}

/// Three numbers, or one for all of a grey image.
fn colours(map: &Map<String, Value>, key: &str) -> Result<Option<[f64; 3]>> {
    let Some(values) = map.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
    let values: Vec<f64> = values.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    match values[..] {
        [grey] => Ok(Some([grey; 3])),
        [red, green, blue] => Ok(Some([red, green, blue])),
        _ => bail!("{key} is not three numbers"),
    }
}

fn numbers(value: &Value) -> Result<Vec<usize>> {
    let number = |value: &Value| value.as_u64().map(|n| n as usize).context("expected whole numbers");
    value.as_array().context("expected a list")?.iter().map(number).collect()
}

/// `224`, or `{"height": 224, "width": 224}`, or `{"shortest_edge": 224}`.
fn side(value: &Value) -> Result<usize> {
    if let Some(side) = value.as_u64().or_else(|| value.get("shortest_edge")?.as_u64()) {
        return Ok(side as usize);
    }
    let of = |key: &str| value.get(key).and_then(Value::as_u64).map(|side| side as usize);
    match (of("height"), of("width")) {
        (Some(height), Some(width)) => square(height, width),
        _ => bail!("expected a side, or height and width"),
    }
}

fn square(height: usize, width: usize) -> Result<usize> {
    ensure!(height == width, "images of {height}x{width}: only square ones are known");
    Ok(height)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(name: &str, value: Value) -> Config {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), value.to_string()).unwrap();
        beside(&folder.path().join("model.safetensors"))
    }

    /// As they lie on the hub, shortened to what concerns images.
    #[test]
    fn the_images_of_published_configurations() {
        let a1 = json!({
            "architecture": "resnet18", "num_classes": 1000, "num_features": 512,
            "pretrained_cfg": {
                "tag": "a1_in1k", "input_size": [3, 224, 224], "test_input_size": [3, 288, 288], "fixed_input_size": false,
                "interpolation": "bicubic", "crop_pct": 0.95, "test_crop_pct": 1.0, "crop_mode": "center",
                "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "first_conv": "conv1", "classifier": "fc"
            }
        });
        let vit = json!({
            "do_normalize": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
            "resample": 2, "size": 224
        });
        let deit = json!({
            "do_center_crop": true, "crop_size": {"height": 224, "width": 224}, "size": {"height": 256, "width": 256},
            "do_normalize": true, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3
        });
        let resnet = json!({
            "crop_pct": 0.875, "do_normalize": true, "do_resize": true, "image_processor_type": "ConvNextImageProcessor",
            "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3, "size": 224
        });
        let clip = json!({
            "crop_size": 224, "do_center_crop": true, "do_normalize": true, "do_resize": true, "resample": 3, "size": 224,
            "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]
        });
        let mobile = json!({
            "do_flip_channel_order": true, "do_normalize": false, "size": {"shortest_edge": 288}, "do_center_crop": true,
            "crop_size": {"height": 256, "width": 256}, "resample": 2, "rescale_factor": 0.00392156862745098
        });
        let imagenet = Preprocess::IMAGENET.interpolation(Interpolation::Bicubic);
        let plain = Preprocess::IMAGENET.mean([0.0; 3]).std([1.0; 3]);
        for (name, value, want) in [
            ("config.json", a1, imagenet.crop(0.95)),
            (PREPROCESSOR, vit, Preprocess::inception(1.0).interpolation(Interpolation::Bilinear).squash(true)),
            (PREPROCESSOR, deit, imagenet.squash(true)),
            (PREPROCESSOR, resnet, imagenet),
            (
                PREPROCESSOR,
                clip,
                imagenet.crop(1.0).mean([0.48145466, 0.4578275, 0.40821073]).std([0.26862954, 0.26130258, 0.27577711]),
            ),
            (PREPROCESSOR, mobile, plain.size(256).crop(256.0 / 288.0).channel_order(ChannelOrder::Bgr)),
        ] {
            let config = read(name, value);
            assert_eq!(config.parts.over(Preprocess::CIFAR10), want, "{config:?}");
            assert_eq!((config.files, config.notes), (vec![name], vec![]));
        }
    }

    #[test]
    fn names_of_classes_are_taken_unless_they_only_count() {
        let named = read("config.json", json!({"id2label": {"1": "dog", "0": "cat"}}));
        assert_eq!(named.classes, Some(vec!["cat".to_string(), "dog".to_string()]));
        let timms =
            read("config.json", json!({"architecture": "x", "label_names": ["a", "b", "c"], "pretrained_cfg": {}}));
        assert_eq!(timms.classes.map(|names| names.len()), Some(3));
        assert_eq!(read("config.json", json!({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}})), Config::default());
    }

    /// What is no configuration of theirs says nothing; what is and cannot be followed says why.
    #[test]
    fn what_cannot_be_followed_is_said() {
        for value in [json!({"learning_rate": 0.1, "mean": 3}), json!([1, 2]), json!({"size": null}), json!("text")] {
            assert_eq!(read("config.json", value), Config::default());
        }
        for (name, value, complaint) in [
            ("config.json", json!({"pretrained_cfg": {"crop_mode": "border"}}), "crop_mode `border`"),
            ("config.json", json!({"pretrained_cfg": {"input_size": [3, 240, 320]}}), "240x320"),
            ("config.json", json!({"pretrained_cfg": {"interpolation": "hamming"}}), "`hamming`"),
            ("config.json", json!({"pretrained_cfg": {"mean": [0.5, 0.5]}}), "mean is not three numbers"),
            (PREPROCESSOR, json!({"image_mean": [0, 0, 0], "do_rescale": false}), "not scaled to 0..1"),
            (PREPROCESSOR, json!({"size": 224, "rescale_factor": 1.0}), "pixels by 1"),
            (PREPROCESSOR, json!({"size": {"longest_edge": 224}}), "expected a side"),
        ] {
            let config = read(name, value);
            assert!(config.notes.len() == 1 && config.notes[0].contains(complaint), "{config:?}");
            assert_eq!(config.files, Vec::<&str>::new());
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), "{\"a\": ").unwrap();
        assert!(beside(&folder.path().join("net.pth")).notes[0].contains("it is no JSON"));
    }
}

//! A trained network with all that its weights' file says of how it is used: on photographs, and measured on test images.
//!
//! [`train`](crate::trainer::train) writes into `model.safetensors` which network it holds, the size of its images, how their
//! pixels were normalised and what the classes are called. [`Trained::open`] follows that; of other files, which say nothing of the
//! kind, it takes what the published checkpoints with these names of tensors want ([`ModelInfo::input_of`]).

use crate::augment::{Normalize, Transform};
use crate::data::photo::Framing;
use crate::data::{Split, TestImages};
use crate::eval::{Evaluation, evaluate_parts};
use crate::loader::Loader;
use crate::recipe::{BatchNormOverride, Recipe};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zoo::{ModelInfo, ModelOptions, VarStore};
use zoo_core::Model;
use zoo_core::threads::in_pool;
use zoo_core::weights::{KeyReport, LoadReport, Selection, Weights, check, load, shown};

/// The file of a run's folder that holds the trained network.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// The file of weights at `path`, or in the run's folder there.
///
/// # Errors
/// A folder without one.
pub fn weights_file(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.into());
    }
    let file = path.join(WEIGHTS_FILE);
    ensure!(
        file.exists(),
        "{}: a folder without {WEIGHTS_FILE}, where a file of weights or a run's folder was expected",
        path.display()
    );
    Ok(file)
}

/// What a file of weights says of itself: keys of its metadata, behind [`key::PREFIX`].
mod key {
    /// Before every key, since other programs use words like these for other things.
    pub const PREFIX: &str = "zoo.";
    /// The zoo's name of the network.
    pub const MODEL: &str = "model";
    /// Side of its images in pixels.
    pub const IMAGE_SIZE: &str = "image_size";
    /// Channels of its images, where they are not 3.
    pub const IN_CHANS: &str = "in_chans";
    /// JSON: a list of names, in the order of the outputs.
    pub const CLASSES: &str = "classes";
    /// JSON: a [`Normalize`](crate::augment::Normalize).
    pub const NORMALIZE: &str = "normalize";
    /// JSON: the values that are taken off each pixel, where `normalize` is `"pixel_mean"`.
    pub const PIXEL_MEAN: &str = "pixel_mean";
    /// JSON: what the recipe changed in the network's BatchNorm layers, if it did.
    pub const BATCH_NORM: &str = "batch_norm";
    /// All of them.
    pub const ALL: [&str; 7] = [MODEL, IMAGE_SIZE, IN_CHANS, CLASSES, NORMALIZE, PIXEL_MEAN, BATCH_NORM];
    /// Those that every file had when none of them had the prefix.
    pub const ALWAYS: [&str; 4] = [MODEL, IMAGE_SIZE, CLASSES, NORMALIZE];
}

/// What the file of a network trained under `recipe` says of itself.
pub(crate) fn metadata(
    model: &ModelInfo,
    recipe: &Recipe,
    transform: &Transform,
    classes: &[String],
) -> Result<BTreeMap<String, String>> {
    fn json(value: &(impl Serialize + ?Sized)) -> Result<String> {
        serde_json::to_string(value).context("cannot write what the weights are as JSON")
    }
    let [channels, side, _] = transform.shape();
    let mut values = BTreeMap::from([
        (key::MODEL, model.name.to_owned()),
        (key::IMAGE_SIZE, side.to_string()),
        (key::CLASSES, json(classes)?),
        (key::NORMALIZE, json(&recipe.normalize)?),
    ]);
    if channels != 3 {
        values.insert(key::IN_CHANS, channels.to_string());
    }
    if let Some(mean) = transform.pixel_mean() {
        values.insert(key::PIXEL_MEAN, json(mean)?);
    }
    if recipe.batch_norm != BatchNormOverride::default() {
        values.insert(key::BATCH_NORM, json(&recipe.batch_norm)?);
    }
    Ok(values.into_iter().map(|(key, value)| (format!("{}{key}", key::PREFIX), value)).collect())
}

/// The metadata of a file that holds what `weights` does as `model`'s, or as it is: what it says of itself goes along.
///
/// # Errors
/// Metadata under the zoo's keys that the zoo did not write.
pub fn carried(weights: &Weights, model: Option<&str>) -> Result<BTreeMap<String, String>> {
    let mut metadata = weights.metadata().clone();
    if FileMetadata::of(weights)?.1 == Origin::Bare {
        for key in key::ALL {
            metadata.remove(key).map(|value| metadata.insert(format!("{}{key}", key::PREFIX), value));
        }
    }
    if let Some(model) = model {
        metadata.insert(format!("{}{}", key::PREFIX, key::MODEL), model.to_owned());
    }
    Ok(metadata)
}

/// What a file of weights says of itself, as [`metadata`] wrote it.
#[derive(Debug, Default)]
struct FileMetadata {
    model: Option<String>,
    image_size: Option<usize>,
    in_chans: Option<usize>,
    classes: Option<Vec<String>>,
    normalize: Option<Normalize>,
    pixel_mean: Option<Vec<f32>>,
    batch_norm: Option<BatchNormOverride>,
}

/// Whose words the metadata of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The zoo's.
    Own,
    /// The zoo's, from before its keys had a prefix.
    Bare,
    /// Somebody else's, who uses some of the same words.
    Foreign,
    /// There are none.
    Absent,
}

impl FileMetadata {
    fn of(weights: &Weights) -> Result<(Self, Origin)> {
        let metadata = weights.metadata();
        if metadata.keys().any(|key| key.starts_with(key::PREFIX)) {
            let own = Self::read(|key| Some(metadata.get(&format!("{}{key}", key::PREFIX))?.as_str()));
            return Ok((own.with_context(|| weights.name().to_owned())?, Origin::Own));
        }
        if !key::ALL.iter().any(|key| metadata.contains_key(*key)) {
            return Ok((Self::default(), Origin::Absent));
        }
        let whole = key::ALWAYS.iter().all(|key| metadata.contains_key(*key));
        Ok(match Self::read(|key| Some(metadata.get(key)?.as_str())) {
            Ok(bare) if whole && bare.model.as_deref().is_some_and(|name| zoo::find(name).is_ok()) => {
                (bare, Origin::Bare)
            }
            _ => (Self::default(), Origin::Foreign),
        })
    }

    fn read<'a>(text: impl Fn(&str) -> Option<&'a str>) -> Result<Self> {
        fn json<T: DeserializeOwned>(key: &str, text: Option<&str>) -> Result<Option<T>> {
            let value = text.map(serde_json::from_str).transpose();
            value.with_context(|| format!("its metadata `{}{key}` is not what zoo train writes", key::PREFIX))
        }
        Ok(Self {
            model: text(key::MODEL).map(str::to_owned),
            image_size: json(key::IMAGE_SIZE, text(key::IMAGE_SIZE))?,
            in_chans: json(key::IN_CHANS, text(key::IN_CHANS))?,
            classes: json(key::CLASSES, text(key::CLASSES))?,
            normalize: json(key::NORMALIZE, text(key::NORMALIZE))?,
            pixel_mean: json(key::PIXEL_MEAN, text(key::PIXEL_MEAN))?,
            batch_norm: json(key::BATCH_NORM, text(key::BATCH_NORM))?,
        })
    }
}

/// How images must be normalised for the network in a file, and why: what the file says, else what is usual for files with such
/// names of tensors, by a [`KeyReport`].
///
/// # Errors
/// Metadata under the zoo's keys that the zoo did not write.
pub fn normalize_of(model: &ModelInfo, weights: &Weights, report: &KeyReport) -> Result<(Normalize, String)> {
    Ok(match FileMetadata::of(weights)?.0.normalize {
        Some(normalize) => (normalize, "as the checkpoint says".into()),
        None => (Normalize::of(&model.input_of(report.layout)), assumption(report.layout)),
    })
}

/// Why images are taken to be of a kind that nobody said they are.
fn assumption(layout: Option<&str>) -> String {
    match layout {
        Some(name) => format!("assumed, since the file has {name}'s names"),
        None => "assumed, since the file does not say".into(),
    }
}

/// What is used in place of what a file of weights says.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// How pixels are normalised.
    pub normalize: Option<Normalize>,
    /// Side of the images in pixels.
    pub image_size: Option<usize>,
    /// Channels of the images: 3, or 1 for grey.
    pub in_chans: Option<usize>,
    /// What of the file is wanted.
    pub selection: Selection,
}

/// A network with its weights, ready for images.
///
/// ```no_run
/// use candle_core::Device;
/// use zoo_train::trained::{Overrides, Trained};
/// let trained = Trained::open(zoo::find("resnet18")?, "my-run/model.safetensors".as_ref(), &Overrides::default(), &Device::Cpu)?;
/// let image = trained.framing().read("photo.jpg".as_ref())?;
/// for (class, probability) in Trained::largest(&trained.probabilities(&[image])?[0], 5) {
///     println!("{:5.1} %  {}", 100.0 * probability, trained.class_name(class));
/// }
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct Trained {
    net: Box<dyn Model>,
    num_classes: usize,
    classes: Option<Vec<String>>,
    framing: Framing,
    normalize: Normalize,
    assumed: Option<String>,
    notes: Vec<String>,
    transform: Arc<Transform>,
    device: Device,
}

impl Trained {
    /// `model` with the weights in `file`: .safetensors, .pth, .pt, .th or a run's folder. The file decides how many classes there
    /// are.
    ///
    /// # Errors
    /// A file that does not hold this network's weights, with the keys that do not fit; metadata that contradicts them.
    pub fn open(model: &ModelInfo, file: &Path, overrides: &Overrides, device: &Device) -> Result<Self> {
        let file = &weights_file(file)?;
        let weights = overrides.selection.open(file)?;
        let (metadata, origin) = FileMetadata::of(&weights)?;
        if let Some(held) = &metadata.model {
            // Networks may have the same keys and be others, as cifar_resnet20 and cifar_plain20 do.
            let (name, held) = (model.name, shown(held));
            ensure!(held == name, "{} holds the weights of {held}, not of {name}", file.display());
        }
        let size = overrides.image_size.or(metadata.image_size).unwrap_or(model.input.size);
        // As in training: a file's claim does not make an image larger than the network's own.
        ensure!(
            (1..=model.input.size).contains(&size),
            "{}: {} takes images of up to {s}x{s}, not {size}x{size}",
            file.display(),
            model.name,
            s = model.input.size
        );
        let channels = overrides.in_chans.or(metadata.in_chans).unwrap_or(3);
        ensure!(
            channels == 1 || channels == 3,
            "{}: images have 3 channels, or 1 where they are grey, not {channels}",
            file.display()
        );
        let shape = [channels, size, size];

        let load_options = overrides.selection.of(model.load_options());
        let options = ModelOptions { in_chans: Some(channels), image_size: Some(size), num_classes: None };
        let shapes = VarStore::shapes_only();
        let place = model.build(&options, shapes.root())?.classifier().place().to_string();
        let report = check(&shapes, &weights, &load_options)?;
        let input = model.input_of(report.layout);
        // Photographs that `zoo train` saw were cut its way.
        let framing = if metadata.image_size.is_some() || size != model.input.size {
            Framing::whole(size)
        } else {
            Framing::of(&input)
        };
        let is_stated = overrides.normalize.is_some() || metadata.normalize.is_some();
        let assumed = (!is_stated).then(|| assumption(report.layout));
        let normalize = overrides.normalize.clone().or(metadata.normalize).unwrap_or_else(|| Normalize::of(&input));
        let transform = match &normalize {
            Normalize::Channels { mean, std } => Transform::of_channels(*mean, *std, shape),
            Normalize::PixelMean => match metadata.pixel_mean {
                Some(mean) => Transform::of_pixel_mean(mean, shape),
                None => bail!("{}: it does not hold the mean image that is to be taken off", file.display()),
            },
        }
        .with_context(|| format!("{}: how its images are normalised", file.display()))?;

        let num_classes = classes_in(&report, &place).unwrap_or(model.num_classes);
        if let Some(names) = &metadata.classes {
            let n = names.len();
            ensure!(n == num_classes, "{}: {n} names for the network's {num_classes} classes", file.display());
        }
        let store = VarStore::new(0, DType::F32, device);
        store.set_batch_norm(metadata.batch_norm.unwrap_or_default().into());
        let net = model.build(&ModelOptions { num_classes: Some(num_classes), ..options }, store.root())?;
        let report = load(&store, &weights, &load_options)?;
        Ok(Self {
            net,
            num_classes,
            classes: metadata.classes,
            framing,
            normalize,
            assumed,
            notes: notes(&weights, &report, origin),
            transform: transform.into(),
            device: device.clone(),
        })
    }

    /// Gives the classes names, in the order of the outputs, whatever the file calls them.
    ///
    /// # Errors
    /// Another number of names than of classes.
    pub fn with_classes(mut self, names: Vec<String>) -> Result<Self> {
        let (n, expected) = (names.len(), self.num_classes);
        ensure!(n == expected, "{n} names for the network's {expected} classes");
        self.classes = Some(names);
        Ok(self)
    }

    /// The names of the classes, if they are known.
    pub fn classes(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }

    /// How many classes it tells apart.
    pub fn num_classes(&self) -> usize {
        self.num_classes
    }

    /// A class by its name, or by its number where that is all that is known.
    pub fn class_name(&self, class: usize) -> String {
        match self.classes.as_ref().and_then(|names| names.get(class)) {
            Some(name) => name.clone(),
            None => format!("class {class}"),
        }
    }

    /// How it wants photographs cut.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// How pixels are normalised.
    pub fn normalize(&self) -> &Normalize {
        &self.normalize
    }

    /// Why its images are taken to be what [`framing`](Self::framing) and [`normalize`](Self::normalize) say, if nobody said it.
    pub fn assumed(&self) -> Option<&str> {
        self.assumed.as_deref()
    }

    /// What of the file was taken and what was left, a line each, where that is not all of it.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The network itself: for its features, and for whatever else a [`Model`] gives.
    pub fn model(&self) -> &dyn Model {
        self.net.as_ref()
    }

    /// One batch for [`model`](Self::model) of `images` as [`Framing::read`] gives them: grey where the network sees
    /// grey, and normalised. (n, channels, size, size) on the network's device.
    ///
    /// # Errors
    /// No images, or images of another size.
    pub fn preprocess(&self, images: &[Vec<u8>]) -> Result<Tensor> {
        let [channels, height, width] = self.transform.shape();
        let split = Split::new(images.concat(), vec![0; images.len()], [3, height, width])?.with_channels(channels)?;
        let loader = Loader::eval(split.into(), self.transform.clone(), images.len().max(1), &self.device)?;
        Ok(loader.epoch(0)?.next().context("there are no images to look at")??.images)
    }

    /// The probabilities of the classes, softmax of the logits, for each of `images` as [`Framing::read`] gives them.
    ///
    /// # Errors
    /// Images of another size; an output that is not finite.
    pub fn probabilities(&self, images: &[Vec<u8>]) -> Result<Vec<Vec<f64>>> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let batch = self.preprocess(images)?;
        let logits = in_pool(|| self.net.forward_t(&batch, false))?;
        logits.to_dtype(DType::F32)?.to_vec2::<f32>()?.iter().map(|row| softmax(row)).collect()
    }

    /// The `k` largest of `probabilities` with their classes, largest first; of equals the lower class comes first.
    pub fn largest(probabilities: &[f64], k: usize) -> Vec<(usize, f64)> {
        let mut ranked: Vec<(usize, f64)> = probabilities.iter().copied().enumerate().collect();
        ranked.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        ranked.truncate(k);
        ranked
    }

    /// Measures it on `images`, `batch` at a time, and tells `seen` after each batch how many images that had.
    ///
    /// # Errors
    /// Images of another number of classes, files that cannot be read, or what the network refuses.
    pub fn evaluate(
        &self,
        images: &TestImages,
        batch: usize,
        mut seen: impl FnMut(usize) + Send,
    ) -> Result<Evaluation> {
        let (n, expected) = (images.classes().len(), self.num_classes);
        ensure!(
            n == expected,
            "the network tells {expected} classes apart, the images are of {n}: train it for them first (`zoo train --weights`), which \
             gives it a new classifier"
        );
        let channels = self.transform.shape()[0];
        let grey = |split: Arc<Split>| match split.shape()[0] == channels {
            true => Ok(split),
            false => Arc::unwrap_or_clone(split).with_channels(channels).map(Arc::new),
        };
        let loader = |split: Result<Arc<Split>, _>| {
            Ok(Loader::eval(grey(split?)?, self.transform.clone(), batch, &self.device)?)
        };
        in_pool(|| {
            evaluate_parts(self.net.as_ref(), images.parts().map(loader), |batch, _| {
                seen(batch.host_labels.len());
                Ok(())
            })
        })
    }
}

/// The width of the classifier at `place` in the file, where it is not the network's own.
fn classes_in(report: &KeyReport, place: &str) -> Option<usize> {
    let head = report.mis_shaped.iter().find(|m| m.key == format!("{place}.weight"))?;
    head.file.dims().first().copied()
}

/// What of a file was taken and what was left.
fn notes(weights: &Weights, report: &LoadReport, origin: Origin) -> Vec<String> {
    let mut notes = taken(weights);
    notes.extend(report.prefix.as_ref().map(|prefix| format!("keys behind `{}`", shown(prefix))));
    if !report.passed_over.is_empty() {
        let first: Vec<String> = report.passed_over.iter().take(4).map(|key| format!("`{}`", shown(key))).collect();
        let more = if report.passed_over.len() > first.len() { ", …" } else { "" };
        notes.push(format!("{} tensors passed over: {}{more}", report.passed_over.len(), first.join(", ")));
    }
    if origin == Origin::Foreign {
        notes.push("its metadata is not the zoo's: nothing is taken from it".into());
    }
    notes
}

/// Which entry of a training state was taken, where there are others.
pub fn taken(weights: &Weights) -> Vec<String> {
    let others = weights.other_entries();
    if others.is_empty() {
        return Vec::new();
    }
    let listed: Vec<String> = others.iter().take(4).map(|entry| format!("`{}`", shown(entry))).collect();
    let from = weights.entry().map_or("the top of the file".into(), |entry| format!("its entry `{}`", shown(entry)));
    vec![format!("tensors from {from}; {} holds some too (--entry)", listed.join(", "))]
}

fn softmax(logits: &[f32]) -> Result<Vec<f64>> {
    ensure!(logits.iter().all(|x| x.is_finite()), "the network's output is not finite");
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|&x| f64::from(x - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    Ok(powers.into_iter().map(|power| power / sum).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoints;
    use crate::data::{Dataset, Synthetic};
    use crate::recipe;
    use crate::trainer::{Job, train};
    use std::sync::atomic::AtomicBool;

    /// What `cifar_resnet20`, trained for an epoch under a recipe, leaves in a folder; its test loss.
    fn run(recipe: &str, overrides: &recipe::Overrides, data: &Dataset, folder: &Path) -> f64 {
        let recipe = Recipe::named(recipe).unwrap().with(overrides).unwrap();
        let job = Job::new(zoo::find("cifar_resnet20").unwrap(), recipe, 1, Device::Cpu);
        let outcome = train(&job, data, folder, &Checkpoints::default(), &AtomicBool::new(false)).unwrap();
        outcome.epochs.last().unwrap().test_loss
    }

    fn loss(trained: &Trained, data: &Dataset) -> f64 {
        let images: Vec<Vec<u8>> = (0..data.test.len()).map(|index| data.test.image(index).to_vec()).collect();
        let probabilities = trained.probabilities(&images).unwrap();
        let own = probabilities.iter().zip(data.test.labels()).map(|(row, &label)| -row[label as usize].ln());
        own.sum::<f64>() / images.len() as f64
    }

    #[test]
    fn a_file_brings_all_that_its_recipe_changed() {
        let data = Synthetic { train: 64, test: 20, seed: 3 }.generate();
        let once = recipe::Overrides { epochs: Some(1), batch: Some(16), ..recipe::Overrides::NONE };
        for (recipe, overrides) in [
            ("resnet-paper", once),
            ("modern-200", recipe::Overrides { bn_eps: Some(0.1), ..once }),
            ("modern-200", recipe::Overrides { batch_norm: Some(false), lr: Some(1e-4), ..once }),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let expected = run(recipe, &overrides, &data, folder.path());
            let model = zoo::find("cifar_resnet20").unwrap();
            let file = folder.path().join(WEIGHTS_FILE);
            let trained = Trained::open(model, &file, &Overrides::default(), &Device::Cpu).unwrap();
            assert_eq!((trained.num_classes(), trained.classes()), (10, Some(&data.classes[..])));
            let found = loss(&trained, &data);
            assert!((found - expected).abs() < 1e-5 * expected, "{recipe}: {found}, {expected}");

            // It is the file's word that makes it so.
            let overrides = Overrides { normalize: Some(Normalize::HALF), ..Overrides::default() };
            let other = loss(&Trained::open(model, &file, &overrides, &Device::Cpu).unwrap(), &data);
            assert!((other - expected).abs() > 1e-3 * expected, "{recipe}: {other}, {expected}");
        }
    }

    #[test]
    fn what_a_file_claims_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net.safetensors");
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        let model = zoo::find("mlp").unwrap();
        model.build(&ModelOptions { num_classes: Some(3), ..ModelOptions::default() }, store.root()).unwrap();
        let message = |claims: &[(&str, &str)]| {
            let metadata = claims.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
            zoo_core::weights::save_safetensors(&store, &path, &metadata).unwrap();
            let opened = Trained::open(model, &path, &Overrides::default(), &Device::Cpu);
            opened.map(|trained| trained.num_classes()).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(message(&[]), Ok(3));
        assert_eq!(message(&[("zoo.classes", r#"["a","b","c"]"#)]), Ok(3));
        for (claims, complaint) in [
            (&[("zoo.classes", r#"["a","b"]"#)][..], "2 names for the network's 3 classes"),
            (&[("zoo.classes", "a, b, c")], "its metadata `zoo.classes` is not what zoo train writes"),
            (&[("zoo.image_size", "0")], "images of up to 32x32, not 0x0"),
            (&[("zoo.image_size", "1000000")], "images of up to 32x32, not 1000000x1000000"),
            (&[("zoo.in_chans", "2")], "3 channels, or 1 where they are grey, not 2"),
            (&[("zoo.normalize", r#""pixel_mean""#)], "does not hold the mean image"),
            (&[("zoo.normalize", r#""pixel_mean""#), ("zoo.pixel_mean", "[0.5]")], "a mean image of 1 values"),
            (&[("zoo.model", "cifar_plain20")], "holds the weights of cifar_plain20, not of mlp"),
        ] {
            let error = message(claims).unwrap_err();
            assert!(error.contains(complaint) && error.contains("net.safetensors"), "{error}");
        }

        // Words of others that happen to be the zoo's, alone and together.
        let foreign = [
            ("model", "resnet18"),
            ("classes", "cat,dog"),
            ("image_size", "224x224"),
            ("normalize", "imagenet"),
            ("format", "pt"),
        ];
        assert_eq!(message(&foreign), Ok(3));
        foreign.iter().for_each(|&claim| assert_eq!(message(&[claim]), Ok(3), "{claim:?}"));
        assert_eq!(message(&[("image_size", "7"), ("classes", r#"["a"]"#)]), Ok(3));

        // Files from before the prefix.
        let channels = r#"{"channels":{"mean":[0.5,0.5,0.5],"std":[0.5,0.5,0.5]}}"#;
        let bare =
            |name, classes| [("model", name), ("classes", classes), ("image_size", "32"), ("normalize", channels)];
        assert_eq!(message(&bare("mlp", r#"["a","b","c"]"#)), Ok(3));
        let opened = Trained::open(model, &path, &Overrides::default(), &Device::Cpu).unwrap();
        assert_eq!((opened.normalize(), opened.classes().unwrap().len()), (&Normalize::HALF, 3));
        let carried = carried(&Weights::open(&path).unwrap(), None).unwrap();
        assert_eq!(carried.keys().collect::<Vec<_>>(), ["zoo.classes", "zoo.image_size", "zoo.model", "zoo.normalize"]);
        assert!(message(&bare("cifar_plain20", r#"["a","b","c"]"#)).unwrap_err().contains("not of mlp"));
    }

    #[test]
    fn the_names_in_a_file_decide_how_images_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net.safetensors");
        let model = zoo::find("vit_tiny_patch16_224").unwrap();
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        model.build(&ModelOptions { num_classes: Some(3), ..ModelOptions::default() }, store.root()).unwrap();
        // As torchvision calls the same tensors.
        let renamed = |key: &str| {
            let key = key.replace("patch_embed.proj", "conv_proj").replace("cls_token", "class_token");
            let key = key.replace("pos_embed", "encoder.pos_embedding").replace("attn.qkv.", "self_attention.in_proj_");
            let key = key
                .replace("attn.proj", "self_attention.out_proj")
                .replace("mlp.fc1", "mlp.0")
                .replace("mlp.fc2", "mlp.3");
            let key = key
                .replace("norm1", "ln_1")
                .replace("norm2", "ln_2")
                .replace("blocks.", "encoder.layers.encoder_layer_");
            let key = key.strip_prefix("norm.").map_or(key.clone(), |rest| format!("encoder.ln.{rest}"));
            key.strip_prefix("head.").map_or(key.clone(), |rest| format!("heads.head.{rest}"))
        };
        let opened = |rename: &dyn Fn(&str) -> String, metadata: &[(&str, &str)]| {
            let tensors: Vec<_> =
                store.slots().into_iter().map(|slot| (rename(&slot.key), slot.var.unwrap())).collect();
            let tensors = tensors.iter().map(|(key, var)| (key.as_str(), var.as_tensor()));
            let metadata = metadata.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
            zoo_core::weights::save_tensors(tensors, &path, &metadata).unwrap();
            let trained = Trained::open(model, &path, &Overrides::default(), &Device::Cpu).unwrap();
            (
                trained.framing(),
                trained.normalize().clone(),
                trained.assumed().map(str::to_owned),
                trained.notes().len(),
            )
        };
        let (framing, normalize, assumed, notes) = opened(&renamed, &[]);
        assert_eq!((framing, normalize), (Framing::of(&zoo_core::Input::IMAGENET), Normalize::IMAGENET));
        assert_eq!((assumed.as_deref(), notes), (Some("assumed, since the file has torchvision's names"), 0));
        let (framing, normalize, assumed, _) = opened(&str::to_owned, &[]);
        assert_eq!((framing, normalize), (Framing::of(&model.input), Normalize::HALF));
        assert_eq!(assumed.as_deref(), Some("assumed, since the file does not say"));
        // What the file says of itself comes first.
        let cifar = serde_json::to_string(&Normalize::CIFAR10).unwrap();
        let (_, normalize, assumed, _) = opened(&renamed, &[("zoo.normalize", &cifar)]);
        assert_eq!((normalize, assumed), (Normalize::CIFAR10, None));
    }

    #[test]
    fn a_network_for_grey_images_sees_colour_as_grey() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net.safetensors");
        let model = zoo::find("mlp").unwrap();
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        model.build(&ModelOptions { in_chans: Some(1), ..ModelOptions::default() }, store.root()).unwrap();
        zoo_core::weights::save_safetensors(&store, &path, &BTreeMap::new()).unwrap();
        let error = Trained::open(model, &path, &Overrides::default(), &Device::Cpu).err().unwrap().to_string();
        assert!(error.contains("does not fit the network"), "{error}");
        let grey = Overrides { in_chans: Some(1), ..Overrides::default() };
        let trained = Trained::open(model, &path, &grey, &Device::Cpu).unwrap();
        // A colour, and the grey that it is.
        let image = |colour: [u8; 3]| colour.iter().flat_map(|&value| [value; 1024]).collect::<Vec<u8>>();
        let seen = trained.probabilities(&[image([255, 0, 0]), image([76; 3]), image([200; 3])]).unwrap();
        assert!(seen[0] == seen[1] && seen[0] != seen[2], "{seen:?}");
    }

    #[test]
    fn the_most_probable_come_first_and_probabilities_sum_to_one() {
        let probabilities = softmax(&[1.0, 3.0, 3.0, -1000.0]).unwrap();
        assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        let classes = |k| Trained::largest(&probabilities, k).into_iter().map(|(class, _)| class).collect::<Vec<_>>();
        assert_eq!((classes(2), classes(9)), (vec![1, 2], vec![1, 2, 0, 3]));
        assert!(softmax(&[0.0, f32::NAN]).is_err() && softmax(&[f32::INFINITY, 0.0]).is_err());
    }
}

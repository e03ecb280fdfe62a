//! Trained networks: opened as their file of weights describes them, run on photographs, measured on test images.
//!
//! [`train`](crate::trainer::train) writes into `model.safetensors` which network it holds, the size of its images, how
//! their pixels were normalised and what the classes are called. [`Trained::open`] follows that; of other files, which
//! say nothing of the kind, it takes what the published checkpoints with these names of tensors want
//! ([`ModelInfo::input_of`]).

mod metadata;

pub(crate) use metadata::metadata;
pub use metadata::{carried, normalize_of};

use crate::augment::{Normalize, Transform};
use crate::data::photo::Framing;
use crate::data::{Split, TestImages};
use crate::eval::{Evaluation, evaluate_parts};
use crate::loader::Loader;
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use metadata::{FileMetadata, Origin, assumption};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zoo::{ModelInfo, ModelOptions, VarStore};
use zoo_core::threads::in_pool;
use zoo_core::weights::{KeyReport, LoadReport, Selection, Weights, check, load, shown};
use zoo_core::{Model, Precision};

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
/// let file = "my-run/model.safetensors".as_ref();
/// let trained = Trained::open(zoo::find("resnet18")?, file, &Overrides::default(), &Device::Cpu)?;
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
    precision: Precision,
}

impl Trained {
    /// `model` with the weights in `file`: .safetensors, .pth, .pt, .th or a run's folder. The file decides how many
    /// classes there are.
    ///
    /// # Errors
    /// A file that does not hold this network's weights, with the keys that do not fit; metadata that contradicts them.
    pub fn open(model: &ModelInfo, file: &Path, overrides: &Overrides, device: &Device) -> Result<Self> {
        let file = &weights_file(file)?;
        let weights = overrides.selection.open(file)?;
        let (metadata, origin) = FileMetadata::of(&weights)?;
        if let Some(held) = &metadata.model {
            // Different networks may have the same keys, as cifar_resnet20 and cifar_plain20 do.
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
        let place = model.build(&options, shapes.root())?.classifier().path().to_string();
        let report = check(&shapes, &weights, &load_options)?;
        let input = model.input_of(report.layout);
        // What `zoo train` does with photographs.
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
            precision: Precision::F32,
        })
    }

    /// Computes in `precision` from now on, whatever the network was trained in: its weights are f32 in any case.
    ///
    /// # Errors
    /// One that the network's device does not compute in.
    pub fn with_precision(mut self, precision: Precision) -> Result<Self> {
        precision.check(&self.device)?;
        self.precision = precision;
        Ok(self)
    }

    /// What the network computes in: f32, if nothing else was asked for.
    pub fn precision(&self) -> Precision {
        self.precision
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

    /// The reason for [`framing`](Self::framing) and [`normalize`](Self::normalize), where neither the file nor the
    /// caller states how images are normalised.
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
    /// grey, normalised, and of its precision. (n, channels, size, size) on the network's device.
    ///
    /// # Errors
    /// No images, or images of another size.
    pub fn preprocess(&self, images: &[Vec<u8>]) -> Result<Tensor> {
        let [channels, height, width] = self.transform.shape();
        let split = Split::new(images.concat(), vec![0; images.len()], [3, height, width])?.with_channels(channels)?;
        let loader = Loader::eval(split.into(), self.transform.clone(), images.len().max(1), &self.device)?;
        let loader = loader.precision(self.precision);
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
            let loader = Loader::eval(grey(split?)?, self.transform.clone(), batch, &self.device)?;
            Ok(loader.precision(self.precision))
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

/// Notes on what of a file was taken and what was left.
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

/// Notes on which entry of a training state was taken, where there are others.
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
mod tests;

//! Trained networks: opened as their file of weights describes them, run on photographs, measured on test images.
//!
//! [`train`](crate::trainer::train) writes into `model.safetensors` which network it holds, the size of its images, how
//! their pixels were normalised and what the classes are called. [`Trained::open`] follows that, and the configurations of
//! timm and Hugging Face transformers where they lie beside the file. For other files it takes what the published
//! checkpoints with these names of tensors want ([`ModelInfo::preprocess_of`]), and says so.

mod config;
mod metadata;
mod place;
mod timm;

pub(crate) use metadata::metadata;
pub use metadata::{carried, normalize_of};
pub use place::{DEFAULT_WEIGHTS, WEIGHTS_FILE, model_of, weights_file};

use crate::augment::{Normalize, Transform};
use crate::confusion::ConfusionMatrix;
use crate::data::photo::Framing;
use crate::data::{Split, TestImages};
use crate::eval::{Evaluation, evaluate_parts};
use crate::loader::Loader;
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use metadata::{FileMetadata, Origin, assumption};
use std::path::Path;
use std::sync::Arc;
use zoo::{ModelInfo, ModelOptions, VarStore};
use zoo_core::threads::in_pool;
use zoo_core::weights::{KeyReport, LoadOptions, LoadReport, Selection, Weights, check, load, shown};
use zoo_core::{Model, Precision, Preprocess, PreprocessParts};

/// What is used in place of what a file of weights says.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// How pixels are normalised.
    pub normalize: Option<Normalize>,
    /// Single parts of how photographs become images, over everything else.
    pub preprocess: PreprocessParts,
    /// Side of images that are there as they are, in pixels: those of a data set.
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
    info: ModelInfo,
    store: VarStore,
    net: Box<dyn Model>,
    num_classes: usize,
    classes: Option<Vec<String>>,
    /// Names for classes that nobody states: a configuration's, or those of the published weights' data set.
    usual_classes: Vec<String>,
    preprocess: Preprocess,
    /// Whether the mean image is taken off, and not the mean of each colour.
    mean_image: bool,
    /// Whether a recipe changed what BatchNorm computes in evaluation.
    has_other_norms: bool,
    assumed: Option<String>,
    stated_by: Vec<&'static str>,
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
        let file = &weights_file(file, Some(model))?;
        let weights = overrides.selection.open(file)?;
        let (metadata, origin) = FileMetadata::of(&weights)?;
        if let Some(held) = &metadata.model {
            // Different networks may have the same keys, as cifar_resnet20 and cifar_plain20 do.
            let (name, held) = (model.name, shown(held));
            ensure!(held == name, "{} holds the weights of {held}, not of {name}", file.display());
        }
        let config = config::beside(file);
        let stated = config.parts;
        if let Some(size) = metadata.image_size {
            // As in training: a file's claim does not make an image larger than the network's own.
            ensure!(
                (1..=model.preprocess.size).contains(&size),
                "{}: {} takes images of up to {s}x{s}, not {size}x{size}",
                file.display(),
                model.name,
                s = model.preprocess.size
            );
        }
        let fixed = overrides.image_size.or(metadata.image_size);
        let size = overrides.preprocess.size.or(fixed).or(stated.size).unwrap_or(model.preprocess.size);
        let channels = overrides.in_chans.or(metadata.in_chans).unwrap_or(3);
        ensure!(
            channels == 1 || channels == 3,
            "{}: images have 3 channels, or 1 where they are grey, not {channels}",
            file.display()
        );
        let shape = [channels, size, size];

        let load_options = LoadOptions { adapt: true, ..overrides.selection.of(model.load_options()) };
        let options = ModelOptions { in_chans: Some(channels), image_size: Some(size), num_classes: None };
        let shapes = VarStore::shapes_only();
        let place = model.build(&options, shapes.root())?.classifier().path().to_string();
        let report = check(&shapes, &weights, &load_options)?;

        let preprocess = preprocess(model.preprocess_of(report.layout), &stated, &metadata, overrides).size(size);
        if let Some(fault) = preprocess.fault() {
            bail!("{}: the network's images: expected {fault}", file.display())
        }
        let normalize = overrides.normalize.as_ref().or(metadata.normalize.as_ref());
        let has_own = overrides.preprocess.mean.is_some() || overrides.preprocess.std.is_some();
        let mean_image = normalize == Some(&Normalize::PixelMean) && !has_own;
        let is_stated = normalize.is_some() || has_own || stated.mean.is_some();
        let assumed = (!is_stated).then(|| assumption(report.layout));
        let transform = match (mean_image, metadata.pixel_mean) {
            (false, _) => {
                let [mean, std] = [preprocess.mean, preprocess.std].map(|values| values.map(|value| value as f32));
                Transform::of_channels(mean, std, shape)
            }
            (true, Some(mean)) => Transform::of_pixel_mean(mean, shape),
            (true, None) => bail!("{}: it does not hold the mean image that is to be taken off", file.display()),
        }
        .with_context(|| format!("{}: how its images are normalised", file.display()))?
        .with_channel_order(preprocess.channel_order);

        let num_classes = classes_in(&report, &place).unwrap_or(model.num_classes);
        if let Some(names) = &metadata.classes {
            let n = names.len();
            ensure!(n == num_classes, "{}: {n} names for the network's {num_classes} classes", file.display());
        }
        let mut notes = notes(&weights, origin);
        notes.extend(config.notes);
        let usual_classes = match config.classes {
            Some(names) if names.len() == num_classes => names,
            others => {
                let told = others.map(|names| names.len());
                notes.extend(
                    told.map(|n| format!("the {n} names beside it are not those of its {num_classes} classes")),
                );
                let usual = zoo::classes::usual(model, num_classes).into_iter().flatten();
                usual.map(|&name| name.to_owned()).collect()
            }
        };
        // The file says more of itself than what lies beside it.
        let is_followed = metadata.normalize.is_none() && stated != PreprocessParts::default();
        let stated_by = if is_followed { config.files } else { Vec::new() };
        let norms = metadata.batch_norm.unwrap_or_default();
        let has_other_norms = norms.off || norms.eps.is_some();
        let store = VarStore::for_loading(DType::F32, device);
        store.set_batch_norm(norms.into());
        let net = model.build(&ModelOptions { num_classes: Some(num_classes), ..options }, store.root())?;
        notes.extend(notes_of(&load(&store, &weights, &load_options)?));
        Ok(Self {
            info: *model,
            store,
            net,
            num_classes,
            classes: metadata.classes,
            usual_classes,
            preprocess,
            mean_image,
            has_other_norms,
            assumed,
            stated_by,
            notes,
            transform: transform.into(),
            device: device.clone(),
            precision: Precision::F32,
        })
    }

    /// A network of the zoo with its published weights ([`ModelInfo::weights`]), from this machine or, with the feature
    /// `download`, from where they are published.
    ///
    /// ```no_run
    /// let trained = zoo_train::trained::Trained::pretrained("resnet50")?;
    /// let image = trained.framing().read("photo.jpg".as_ref())?;
    /// let best = zoo_train::trained::Trained::largest(&trained.probabilities(&[image])?[0], 1)[0];
    /// println!("{} ({:.1} %)", trained.class_name(best.0), 100.0 * best.1);
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    ///
    /// # Errors
    /// No such network, none published, and as [`open`](Self::open).
    pub fn pretrained(name: &str) -> Result<Self> {
        Self::open(zoo::find(name)?, DEFAULT_WEIGHTS.as_ref(), &Overrides::default(), &Device::Cpu)
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

    /// The zoo's name of the network.
    pub fn name(&self) -> &'static str {
        self.info.name
    }

    /// The names of the classes, if the file or the caller state them: those that a data set's must be among.
    pub fn classes(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }

    /// How many classes it tells apart.
    pub fn num_classes(&self) -> usize {
        self.num_classes
    }

    /// A class's name: as the file or the caller say, else a configuration beside the file, else that of ImageNet's or
    /// CIFAR-10's class where the network has as many outputs as its published weights.
    pub fn label(&self, class: usize) -> Option<&str> {
        self.classes.as_ref().unwrap_or(&self.usual_classes).get(class).map(String::as_str)
    }

    /// A class by its name, or by its number where that is all that is known.
    pub fn class_name(&self, class: usize) -> String {
        self.label(class).map_or_else(|| format!("class {class}"), str::to_owned)
    }

    /// How photographs become its images. Where a mean image is taken off, mean and deviation here are not followed.
    pub fn preprocess(&self) -> Preprocess {
        self.preprocess
    }

    /// How it wants photographs cut.
    pub fn framing(&self) -> Framing {
        Framing::of(&self.preprocess)
    }

    /// How pixels are normalised.
    pub fn normalize(&self) -> Normalize {
        if self.mean_image { Normalize::PixelMean } else { Normalize::of(&self.preprocess) }
    }

    /// The reason for [`preprocess`](Self::preprocess), where neither the weights nor the caller state how images are
    /// normalised.
    pub fn assumed(&self) -> Option<&str> {
        self.assumed.as_deref()
    }

    /// The configurations beside the file that say how its images are made, where the file itself does not.
    pub fn stated_by(&self) -> &[&'static str] {
        &self.stated_by
    }

    /// What of the file was taken and what was left, a line each, where that is not all of it.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The network's tensors, by key.
    pub fn store(&self) -> &VarStore {
        &self.store
    }

    /// Channels, height and width of its images.
    pub fn image_shape(&self) -> [usize; 3] {
        self.transform.shape()
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
    pub fn batch(&self, images: &[Vec<u8>]) -> Result<Tensor> {
        let [channels, height, width] = self.transform.shape();
        let split = Split::new(images.concat(), vec![0; images.len()], [3, height, width])?.with_channels(channels)?;
        let loader = Loader::eval(split.into(), self.transform.clone(), images.len().max(1), &self.device)?;
        let loader = loader.precision(self.precision);
        Ok(loader.epoch(0)?.next().context("there are no images to look at")??.images)
    }

    /// The vector that the classifier reads, of each of `images` as [`Framing::read`] gives them: (n, width), f32. Images
    /// that look alike to the network have vectors at small angles.
    ///
    /// # Errors
    /// Images of another size, or none.
    pub fn embed(&self, images: &[Vec<u8>]) -> Result<Tensor> {
        let batch = self.batch(images)?;
        let vectors = in_pool(|| self.net.pre_logits(&self.net.forward_features(&batch, false)?, false))?;
        Ok(vectors.to_dtype(DType::F32)?)
    }

    /// The probabilities of the classes, softmax of the logits, for each of `images` as [`Framing::read`] gives them.
    ///
    /// # Errors
    /// Images of another size; an output that is not finite.
    pub fn probabilities(&self, images: &[Vec<u8>]) -> Result<Vec<Vec<f64>>> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let batch = self.batch(images)?;
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
    pub fn evaluate(&self, images: &TestImages, batch: usize, seen: impl FnMut(usize) + Send) -> Result<Evaluation> {
        Ok(self.evaluate_by_class(images, batch, seen)?.0)
    }

    /// [`evaluate`](Self::evaluate), and which classes are taken for which.
    ///
    /// # Errors
    /// As [`evaluate`](Self::evaluate).
    pub fn evaluate_by_class(
        &self,
        images: &TestImages,
        batch: usize,
        mut seen: impl FnMut(usize) + Send,
    ) -> Result<(Evaluation, ConfusionMatrix)> {
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
        let mut matrix = ConfusionMatrix::new(n);
        let result = in_pool(|| {
            evaluate_parts(self.net.as_ref(), images.parts().map(loader), |batch, logits| {
                seen(batch.host_labels.len());
                matrix.add_batch(batch, logits)
            })
        })?;
        Ok((result, matrix))
    }
}

/// How photographs become images: what is `usual` for the file's names, over it what is stated beside the file, in the file
/// itself, and by the caller.
fn preprocess(
    usual: Preprocess,
    stated: &PreprocessParts,
    metadata: &FileMetadata,
    overrides: &Overrides,
) -> Preprocess {
    let mut preprocess = stated.over(usual);
    let fixed = overrides.image_size.filter(|size| *size != preprocess.size).or(metadata.image_size);
    if let Some(size) = fixed {
        // What `zoo train` does with photographs.
        preprocess = Framing::whole(size).over(preprocess);
    }
    if let Some(Normalize::Channels { mean, std }) = overrides.normalize.as_ref().or(metadata.normalize.as_ref()) {
        preprocess = preprocess.mean(mean.map(f64::from)).std(std.map(f64::from));
    }
    overrides.preprocess.over(preprocess)
}

/// The width of the classifier at `place` in the file, where it is not the network's own.
fn classes_in(report: &KeyReport, place: &str) -> Option<usize> {
    let head = report.mis_shaped.iter().find(|m| m.key == format!("{place}.weight"))?;
    head.file.dims().first().copied()
}

/// Notes on what of a file is taken.
fn notes(weights: &Weights, origin: Origin) -> Vec<String> {
    let mut notes = taken(weights);
    if origin == Origin::Foreign {
        notes.push("its metadata is not the zoo's: nothing is taken from it".into());
    }
    notes
}

/// Notes on what of its tensors was taken, adapted and left.
fn notes_of(report: &LoadReport) -> Vec<String> {
    let mut notes = Vec::new();
    notes.extend(report.prefix.as_ref().map(|prefix| format!("keys behind `{}`", shown(prefix))));
    if !report.passed_over.is_empty() {
        let first: Vec<String> = report.passed_over.iter().take(4).map(|key| format!("`{}`", shown(key))).collect();
        let more = if report.passed_over.len() > first.len() { ", …" } else { "" };
        notes.push(format!("{} tensors passed over: {}{more}", report.passed_over.len(), first.join(", ")));
    }
    notes.extend(report.adapted.iter().map(|(key, how)| format!("`{}` adapted: {how}", shown(key))));
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

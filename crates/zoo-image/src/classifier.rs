//! The classifier: a network with its weights, opened as their file describes them, and run on pictures.
//!
//! Training writes into `model.safetensors` which network it holds, the size of its images, how their pixels were
//! normalised and what the classes are called. [`ImageClassifier::open`] follows that, and the configurations of timm and
//! Hugging Face transformers where they lie beside the file. For other files it takes what the published checkpoints with
//! these names of tensors want ([`ModelInfo::preprocess_of`]), and says so.

use crate::config;
use crate::error::{Error, Result};
use crate::framing::Framing;
use crate::grey::grey;
use crate::input::Input;
use crate::metadata::{Metadata, assumption};
use crate::notes;
use crate::options::Options;
use crate::picture::{Limits, Picture};
use crate::place::DEFAULT_WEIGHTS;
use crate::prediction::{Names, Prediction};
use crate::transform::{Normalize, Transform, View};
use candle_core::{DType, Device, Tensor};
use image::metadata::Orientation;
use rayon::prelude::*;
use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use zoo::{ModelInfo, ModelOptions, VarStore};
use zoo_core::model::FeatureInfo;
use zoo_core::threads::in_pool;
use zoo_core::weights::{KeyReport, LoadOptions, check, load, shown};
use zoo_core::{Model, Precision, Preprocess, PreprocessParts};

/// A network with its weights, ready for pictures. Threads share one: nothing in it changes.
///
/// ```no_run
/// use zoo_image::ImageClassifier;
/// let classifier = ImageClassifier::open("my-run/model.safetensors")?;
/// let paths = ["cat.jpg", "dog.png"];
/// for (path, prediction) in paths.iter().zip(classifier.classify_batch(paths)?) {
///     println!("{path}: {}", prediction.best());
/// }
/// # Ok::<(), zoo_image::Error>(())
/// ```
pub struct ImageClassifier {
    pub(crate) info: ModelInfo,
    pub(crate) store: VarStore,
    pub(crate) net: Box<dyn Model>,
    pub(crate) num_classes: usize,
    /// As the file or the caller state them.
    classes: Option<Vec<String>>,
    /// Those, or what else is known of them.
    names: Names,
    preprocess: Preprocess,
    /// Whether the mean image is taken off, and not the mean of each colour.
    pub(crate) mean_image: bool,
    /// Whether a recipe changed what BatchNorm computes in evaluation.
    pub(crate) has_other_norms: bool,
    assumed: Option<String>,
    stated_by: Vec<&'static str>,
    notes: Vec<String>,
    transform: Arc<Transform>,
    device: Device,
    precision: Precision,
    limits: Limits,
}

impl ImageClassifier {
    /// The network that the weights at `source` say they are of: a file (.safetensors, .pth, .pt, .th), a run's folder,
    /// or a name (`hf:…`, an address). [`Options::open`] opens what does not say it.
    ///
    /// # Errors
    /// As [`Options::open`].
    pub fn open(source: impl AsRef<Path>) -> Result<Self> {
        Options::new().open(source)
    }

    /// A network of the zoo with its published weights ([`ModelInfo::weights`]), from this machine or, with the feature
    /// `download`, from where they are published.
    ///
    /// # Errors
    /// No such network, none published, and as [`Options::open`].
    pub fn pretrained(name: &str) -> Result<Self> {
        let model = zoo::find(name).map_err(|error| Error::Name(error.to_string()))?;
        Options::new().model(model).open(DEFAULT_WEIGHTS)
    }

    /// `model` with the weights in `file`, which decides how many classes there are.
    pub(crate) fn of(model: &ModelInfo, file: &Path, options: &Options) -> Result<Self> {
        options.precision.check(&options.device)?;
        let fault = |problem: String| Error::weights(file, problem);
        let weights = options.selection.open(file)?;
        let (metadata, origin) = Metadata::of(&weights)?;
        if let Some(held) = metadata.model.as_ref().filter(|held| *held != model.name) {
            // Different networks may have the same keys, as cifar_resnet20 and cifar_plain20 do.
            return Err(fault(format!("it holds the weights of {}, not of {}", shown(held), model.name)));
        }
        let config = config::beside(file);
        let stated = config.parts;
        let most = model.preprocess.size;
        if let Some(size) = metadata.image_size.filter(|size| !(1..=most).contains(size)) {
            // As in training: a file's claim does not make an image larger than the network's own.
            return Err(fault(format!("{} takes images of up to {most}x{most}, not {size}x{size}", model.name)));
        }
        let fixed = options.image_size.or(metadata.image_size);
        let size = options.preprocess.size.or(fixed).or(stated.size).unwrap_or(model.preprocess.size);
        let channels = options.in_chans.or(metadata.in_chans).unwrap_or(3);
        if channels != 1 && channels != 3 {
            return Err(fault(format!("images have 3 channels, or 1 where they are grey, not {channels}")));
        }
        let shape = [channels, size, size];

        let load_options = LoadOptions { adapt: true, ..options.selection.of(model.load_options()) };
        let own = ModelOptions { in_chans: Some(channels), image_size: Some(size), ..ModelOptions::default() };
        let shapes = VarStore::shapes_only();
        let place = model.build(&own, shapes.root())?.classifier().path().to_string();
        let report = check(&shapes, &weights, &load_options)?;

        let preprocess = preprocess(model.preprocess_of(report.layout), &stated, &metadata, options).size(size);
        if let Some(expected) = preprocess.fault() {
            return Err(fault(format!("the network's images: expected {expected}")));
        }
        let normalize = options.normalize.as_ref().or(metadata.normalize.as_ref());
        let has_own = options.preprocess.mean.is_some() || options.preprocess.std.is_some();
        let mean_image = normalize == Some(&Normalize::PixelMean) && !has_own;
        let is_stated = normalize.is_some() || has_own || stated.mean.is_some();
        let assumed = (!is_stated).then(|| assumption(report.layout));
        let transform = match (mean_image, metadata.pixel_mean) {
            (false, _) => {
                let [mean, std] = [preprocess.mean, preprocess.std].map(|values| values.map(|value| value as f32));
                Transform::of_channels(mean, std, shape)
            }
            (true, Some(mean)) => Transform::of_pixel_mean(mean, shape),
            (true, None) => return Err(fault("it does not hold the mean image that is to be taken off".into())),
        }
        .map_err(|error| fault(format!("how its images are normalised: {error}")))?
        .with_channel_order(preprocess.channel_order);

        let num_classes = classes_in(&report, &place).unwrap_or(model.num_classes);
        let stated_classes = match (&options.classes, metadata.classes) {
            (Some(names), _) if names.len() != num_classes => {
                return Err(Error::Input(format!("{} names for the network's {num_classes} classes", names.len())));
            }
            (_, Some(names)) if names.len() != num_classes => {
                return Err(fault(format!("{} names for the network's {num_classes} classes", names.len())));
            }
            (Some(names), _) => Some(names.clone()),
            (None, names) => names,
        };
        let mut notes = notes::of_file(&weights, origin);
        notes.extend(config.notes);
        let usual = || zoo::classes::usual(model, num_classes).into_iter().flatten().map(|&name| name.to_owned());
        let names = match (&stated_classes, config.classes) {
            (Some(names), _) => names.clone(),
            (None, Some(names)) if names.len() == num_classes => names,
            (None, others) => {
                let told = others.map(|names| names.len());
                notes.extend(
                    told.map(|n| format!("the {n} names beside it are not those of its {num_classes} classes")),
                );
                usual().collect()
            }
        };
        // The file says more of itself than what lies beside it.
        let is_followed = metadata.normalize.is_none() && stated != PreprocessParts::default();
        let stated_by = if is_followed { config.files } else { Vec::new() };
        let norms = metadata.batch_norm.unwrap_or_default();
        let store = VarStore::for_loading(DType::F32, &options.device);
        store.set_batch_norm(norms.into());
        let net = model.build(&ModelOptions { num_classes: Some(num_classes), ..own }, store.root())?;
        notes.extend(notes::of_load(&load(&store, &weights, &load_options)?));
        Ok(Self {
            info: *model,
            store,
            net,
            num_classes,
            classes: stated_classes,
            names: names.into(),
            preprocess,
            mean_image,
            has_other_norms: norms.off || norms.eps.is_some(),
            assumed,
            stated_by,
            notes,
            transform: transform.into(),
            device: options.device.clone(),
            precision: options.precision,
            limits: options.limits,
        })
    }

    /// The probabilities of a picture's classes.
    ///
    /// # Errors
    /// A picture that cannot be read, or does not fit the network.
    pub fn classify<'a>(&self, picture: impl Into<Input<'a>>) -> Result<Prediction> {
        let mut predictions = self.classify_batch([picture])?;
        predictions.pop().ok_or_else(|| Error::Input("the network gave no answer".into()))
    }

    /// The probabilities of several pictures' classes, in their order: read by several threads, then one pass through the
    /// network, which is quicker than a pass for each.
    ///
    /// # Errors
    /// As [`classify`](Self::classify), of the first picture that has a fault. [`prepare`](Self::prepare) reads pictures
    /// one by one, for whoever goes on without it.
    pub fn classify_batch<'a, I: Into<Input<'a>>>(
        &self,
        pictures: impl IntoIterator<Item = I>,
    ) -> Result<Vec<Prediction>> {
        match self.prepare_batch(pictures)? {
            Some(batch) => self.predict(&batch),
            None => Ok(Vec::new()),
        }
    }

    /// The vector that the classifier reads, f32. Images that look alike to the network have vectors at small angles.
    ///
    /// # Errors
    /// As [`classify`](Self::classify).
    pub fn embed<'a>(&self, picture: impl Into<Input<'a>>) -> Result<Vec<f32>> {
        Ok(self.embed_batch([picture])?.flatten_all()?.to_vec1()?)
    }

    /// The vectors of several pictures: (n, width), f32.
    ///
    /// # Errors
    /// As [`classify_batch`](Self::classify_batch); no pictures.
    pub fn embed_batch<'a, I: Into<Input<'a>>>(&self, pictures: impl IntoIterator<Item = I>) -> Result<Tensor> {
        let batch = self.prepare_batch(pictures)?.ok_or_else(|| Error::Input("there are no pictures".into()))?;
        self.embeddings(&batch)
    }

    /// What the network's stages make of a picture, from the image upwards, with their names: f32, (1, c, h, w), or
    /// (1, tokens, c) for a network on tokens. [`feature_info`](Self::feature_info) knows them beforehand.
    ///
    /// ```no_run
    /// let classifier = zoo_image::ImageClassifier::pretrained("resnet50")?;
    /// for (stage, (_, map)) in classifier.feature_info()?.iter().zip(classifier.feature_maps("photo.jpg")?) {
    ///     println!("{}: {} channels, every {} pixels: {:?}", stage.name, stage.channels, stage.stride, map.shape());
    /// }
    /// # Ok::<(), zoo_image::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`classify`](Self::classify).
    pub fn feature_maps<'a>(&self, picture: impl Into<Input<'a>>) -> Result<Vec<(String, Tensor)>> {
        let image = self.prepare(picture)?;
        let maps = in_pool(|| self.net.forward_intermediates(&image, false))?;
        let as_f32 = |(name, map): (String, Tensor)| Ok((name, map.to_dtype(DType::F32)?.contiguous()?));
        maps.into_iter().map(as_f32).collect()
    }

    /// Names, channels, strides and shapes of [`feature_maps`](Self::feature_maps).
    ///
    /// # Errors
    /// What tracing the network refuses.
    pub fn feature_info(&self) -> Result<Vec<FeatureInfo>> {
        Ok(self.net.feature_info(self.image_shape())?)
    }

    /// A picture as the network reads it: cut, grey where the network sees grey, normalised, and of its precision.
    /// (1, channels, size, size) on the network's device; several make a batch by `Tensor::cat`.
    ///
    /// # Errors
    /// A picture that cannot be read, or a tensor of another shape.
    pub fn prepare<'a>(&self, picture: impl Into<Input<'a>>) -> Result<Tensor> {
        let [channels, height, width] = self.image_shape();
        let values = self.values(picture.into())?;
        self.tensor(values, [1, channels, height, width])
    }

    /// [`prepare`](Self::prepare) for several pictures, by several threads; `None` without one.
    fn prepare_batch<'a, I: Into<Input<'a>>>(&self, pictures: impl IntoIterator<Item = I>) -> Result<Option<Tensor>> {
        let pictures: Vec<Input> = pictures.into_iter().map(Into::into).collect();
        if pictures.is_empty() {
            return Ok(None);
        }
        let [channels, height, width] = self.image_shape();
        let values = match &pictures[..] {
            // A server's threads, each with a picture of its own, do not wait for the pool.
            [picture] => vec![self.values(*picture)?],
            _ => pictures.par_iter().map(|picture| self.values(*picture)).collect::<Result<Vec<_>>>()?,
        };
        self.tensor(values.concat(), [pictures.len(), channels, height, width]).map(Some)
    }

    fn tensor(&self, values: Vec<f32>, shape: [usize; 4]) -> Result<Tensor> {
        let [n, c, h, w] = shape;
        Ok(self.precision.cast(&Tensor::from_vec(values, (n, c, h, w), &self.device)?)?)
    }

    /// What the network reads of a picture.
    fn values(&self, picture: Input) -> Result<Vec<f32>> {
        let framing = self.framing();
        match picture {
            Input::Path(path) => self.normalized(&framing.read_within(path, self.limits)?),
            Input::Bytes(bytes) => {
                let picture = Picture::from_bytes(bytes, "picture".as_ref(), self.limits)?;
                self.normalized(&framing.apply(&picture)?)
            }
            Input::Picture(picture) => self.normalized(&framing.apply(picture)?),
            Input::Tensor(pixels) if pixels.dtype() == DType::U8 => {
                self.normalized(&framing.apply(&of_tensor(pixels)?)?)
            }
            Input::Tensor(image) => {
                let (found, expected) = (image.dims(), self.image_shape());
                if found != expected {
                    return Err(Error::Input(format!("an image of {expected:?} is expected, not of {found:?}")));
                }
                Ok(image.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
            }
        }
    }

    /// The bytes of an image, three planes of the network's size, as the network reads them.
    fn normalized(&self, image: &[u8]) -> Result<Vec<f32>> {
        let shape = self.image_shape();
        let [channels, height, width] = shape;
        if image.len() != 3 * height * width {
            let n = image.len();
            return Err(Error::Input(format!("an image of 3x{height}x{width} bytes is expected, not of {n} bytes")));
        }
        let image = if channels == 1 { Cow::Owned(grey(image)) } else { Cow::Borrowed(image) };
        let mut values = vec![0.0; shape.iter().product()];
        self.transform.write(&image, View::default(), &mut values);
        Ok(values)
    }

    /// One batch for [`model`](Self::model) of `images` as [`Framing::read`] gives them: (n, channels, size, size).
    ///
    /// # Errors
    /// Images of another size.
    pub fn batch(&self, images: &[Vec<u8>]) -> Result<Tensor> {
        let values: Vec<Vec<f32>> = images.iter().map(|image| self.normalized(image)).collect::<Result<_>>()?;
        let [channels, height, width] = self.image_shape();
        self.tensor(values.concat(), [images.len(), channels, height, width])
    }

    /// The predictions for a batch of prepared images: (n, channels, size, size), from [`batch`](Self::batch) or
    /// [`prepare`](Self::prepare).
    ///
    /// # Errors
    /// Images of another shape; an output that is not finite.
    pub fn predict(&self, batch: &Tensor) -> Result<Vec<Prediction>> {
        let logits = in_pool(|| self.net.forward_t(batch, false))?;
        let rows = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        rows.iter().map(|row| Prediction::of(row, &self.names)).collect()
    }

    /// The vectors of a batch of prepared images, as [`embed_batch`](Self::embed_batch) gives them.
    ///
    /// # Errors
    /// Images of another shape.
    pub fn embeddings(&self, batch: &Tensor) -> Result<Tensor> {
        let vectors = in_pool(|| self.net.pre_logits(&self.net.forward_features(batch, false)?, false))?;
        Ok(vectors.to_dtype(DType::F32)?)
    }

    /// What the network computes in: f32, if nothing else was asked for.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Where the network computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Gives the classes names, in the order of the outputs, whatever the file calls them.
    ///
    /// # Errors
    /// Another number of names than of classes.
    pub fn with_classes(mut self, names: Vec<String>) -> Result<Self> {
        let (n, expected) = (names.len(), self.num_classes);
        if n != expected {
            return Err(Error::Input(format!("{n} names for the network's {expected} classes")));
        }
        (self.names, self.classes) = (names.clone().into(), Some(names));
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
        self.names.get(class)
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

    /// How an image's bytes become what the network reads.
    pub fn transform(&self) -> &Arc<Transform> {
        &self.transform
    }
}

/// The pixels in a tensor (3, height, width) as a picture.
fn of_tensor(pixels: &Tensor) -> Result<Picture> {
    let &[3, height, width] = pixels.dims() else {
        let found = pixels.dims();
        return Err(Error::Input(format!("pixels of (3, height, width) are expected, not of {found:?}")));
    };
    let rgb = pixels.permute((1, 2, 0))?.flatten_all()?.to_vec1::<u8>()?;
    Ok(Picture { width: width as u32, height: height as u32, rgb, orientation: Orientation::NoTransforms })
}

/// How photographs become images: what is `usual` for the file's names, over it what is stated beside the file, in the file
/// itself, and by the caller.
fn preprocess(usual: Preprocess, stated: &PreprocessParts, metadata: &Metadata, options: &Options) -> Preprocess {
    let mut preprocess = stated.over(usual);
    let fixed = options.image_size.filter(|size| *size != preprocess.size).or(metadata.image_size);
    if let Some(size) = fixed {
        // What `zoo train` does with photographs.
        preprocess = Framing::whole(size).over(preprocess);
    }
    if let Some(Normalize::Channels { mean, std }) = options.normalize.as_ref().or(metadata.normalize.as_ref()) {
        preprocess = preprocess.mean(mean.map(f64::from)).std(std.map(f64::from));
    }
    options.preprocess.over(preprocess)
}

/// The width of the classifier at `place` in the file, where it is not the network's own.
fn classes_in(report: &KeyReport, place: &str) -> Option<usize> {
    let head = report.mis_shaped.iter().find(|m| m.key == format!("{place}.weight"))?;
    head.file.dims().first().copied()
}

#[cfg(test)]
mod tests;

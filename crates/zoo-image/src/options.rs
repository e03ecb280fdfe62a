//! What of a file of weights is not followed, and what it leaves open.

use crate::classifier::ImageClassifier;
use crate::error::{Error, Result};
use crate::picture::Limits;
use crate::place::{model_of, weights_file};
use crate::transform::Normalize;
use candle_core::Device;
use std::path::Path;
use zoo::ModelInfo;
use zoo_core::weights::Selection;
use zoo_core::{Interpolation, Precision, PreprocessParts};

/// How a classifier is opened. What is not set is as the file of weights says, a configuration beside it, or as files with
/// its names of tensors usually want it.
///
/// ```no_run
/// use zoo_image::Options;
/// use zoo_core::Precision;
/// let classifier = Options::new()
///     .model(zoo::find("resnet50")?)
///     .size(288)
///     .crop(1.0)
///     .precision(Precision::Bf16)
///     .open("resnet50-11ad3fa6.pth")?;
/// # Ok::<(), zoo_image::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// The network; by default what the weights say.
    pub model: Option<&'static ModelInfo>,
    /// Where it computes.
    pub device: Device,
    /// What it computes in: its weights are f32 in any case.
    pub precision: Precision,
    /// How pixels are normalised.
    pub normalize: Option<Normalize>,
    /// Single parts of how pictures become images, over everything else.
    pub preprocess: PreprocessParts,
    /// Side of images that are there as they are, in pixels: those of a data set.
    pub image_size: Option<usize>,
    /// Channels of the images: 3, or 1 for grey.
    pub in_chans: Option<usize>,
    /// Names of the classes, in the order of the outputs, whatever the file calls them.
    pub classes: Option<Vec<String>>,
    /// What of the file is wanted.
    pub selection: Selection,
    /// How large pictures may be.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            model: None,
            device: Device::Cpu,
            precision: Precision::default(),
            normalize: None,
            preprocess: PreprocessParts::default(),
            image_size: None,
            in_chans: None,
            classes: None,
            selection: Selection::default(),
            limits: Limits::default(),
        }
    }
}

impl Options {
    /// Everything as the file says, in f32 on the CPU.
    pub fn new() -> Self {
        Self::default()
    }

    /// The network, a row of [`zoo::all`].
    #[must_use]
    pub fn model(self, model: &'static ModelInfo) -> Self {
        Self { model: Some(model), ..self }
    }

    /// Where it computes.
    #[must_use]
    pub fn device(self, device: &Device) -> Self {
        Self { device: device.clone(), ..self }
    }

    /// What it computes in.
    #[must_use]
    pub fn precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Side of the network's images in pixels.
    #[must_use]
    pub fn size(mut self, size: usize) -> Self {
        self.preprocess.size = Some(size);
        self
    }

    /// Share of the resized picture's side that is kept, from the middle: 0.875 cuts 224 from 256.
    #[must_use]
    pub fn crop(mut self, crop: f64) -> Self {
        self.preprocess.crop = Some(crop);
        self
    }

    /// How pictures are resized.
    #[must_use]
    pub fn interpolation(mut self, interpolation: Interpolation) -> Self {
        self.preprocess.interpolation = Some(interpolation);
        self
    }

    /// Mean that is taken off red, green and blue, and the deviation that they are divided by, on the scale 0 to 1.
    #[must_use]
    pub fn mean_std(mut self, mean: [f64; 3], std: [f64; 3]) -> Self {
        (self.preprocess.mean, self.preprocess.std) = (Some(mean), Some(std));
        self
    }

    /// How pixels are normalised, where that is more than a mean and a deviation.
    #[must_use]
    pub fn normalize(self, normalize: Normalize) -> Self {
        Self { normalize: Some(normalize), ..self }
    }

    /// Channels of the network's images: 3, or 1, for which pictures are turned grey.
    #[must_use]
    pub fn in_chans(self, channels: usize) -> Self {
        Self { in_chans: Some(channels), ..self }
    }

    /// Names of the classes, in the order of the outputs.
    #[must_use]
    pub fn classes(self, names: Vec<String>) -> Self {
        Self { classes: Some(names), ..self }
    }

    /// How large pictures may be.
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Opens the weights at `source`: a file, a run's folder or a name, as [`weights_file`] reads it.
    ///
    /// # Errors
    /// A file that does not say which network it holds, where [`model`](Self::model) does not either, or that does not
    /// hold that network's weights, with the keys that do not fit; metadata that contradicts them.
    pub fn open(&self, source: impl AsRef<Path>) -> Result<ImageClassifier> {
        let file = weights_file(source.as_ref(), self.model, &mut |_| {})?;
        let model = match self.model {
            Some(model) => model,
            None => model_of(&file, &self.selection)?.ok_or_else(|| {
                Error::weights(&file, "it does not say which network it holds: name it with `Options::model`")
            })?,
        };
        ImageClassifier::of(model, &file, self)
    }
}

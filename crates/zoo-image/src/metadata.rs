//! Metadata of a file of weights: which network it holds and how its images are made, written by training and read
//! where the network is used.

use crate::config;
use crate::error::{Error, Result};
use crate::transform::Normalize;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use zoo::ModelInfo;
use zoo_core::BatchNormSettings;
use zoo_core::weights::{KeyReport, Weights};

/// The metadata's keys, without the [`key::PREFIX`] that stands before each in a file.
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
    /// JSON: a [`Normalize`](crate::Normalize).
    pub const NORMALIZE: &str = "normalize";
    /// JSON: the values that are taken off each pixel, where `normalize` is `"pixel_mean"`.
    pub const PIXEL_MEAN: &str = "pixel_mean";
    /// JSON: what the recipe changed in the network's BatchNorm layers, if it did.
    pub const BATCH_NORM: &str = "batch_norm";
    /// JSON: a [`Kept`](crate::Kept), which epoch's weights they are.
    pub const KEPT: &str = "kept";
    /// All of them.
    pub const ALL: [&str; 8] = [MODEL, IMAGE_SIZE, IN_CHANS, CLASSES, NORMALIZE, PIXEL_MEAN, BATCH_NORM, KEPT];
    /// Those that every file had when none of them had the prefix.
    pub const ALWAYS: [&str; 4] = [MODEL, IMAGE_SIZE, CLASSES, NORMALIZE];
}

/// What a recipe changes in every BatchNorm of a network, for ablations; by default nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchNormOverride {
    /// Weight of the new batch in the running statistics, in PyTorch's sense.
    pub momentum: Option<f64>,
    /// Added to the variance before its root.
    pub eps: Option<f64>,
    /// Nothing is normalised: of the layer, its weight and bias are left.
    pub off: bool,
}

impl BatchNormOverride {
    /// Whether it changes nothing.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl From<BatchNormOverride> for BatchNormSettings {
    fn from(BatchNormOverride { momentum, eps, off }: BatchNormOverride) -> Self {
        Self { momentum, eps, normalize: !off }
    }
}

/// Which epoch's weights a run's file holds, and what they came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// The epoch, counted from 1.
    pub epoch: usize,
    /// Epochs that were measured before the file was written.
    pub of: usize,
    /// Share of the images it was measured on that were classified right, 0 to 1.
    pub accuracy: f64,
    /// Mean cross-entropy on them; a loss that is not finite is written as null.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// What those images are: `validation` or `test`.
    pub measured_on: String,
}

fn null_is_nan<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// What a file of weights says of its network, so that whoever has the file needs nothing else.
///
/// ```
/// use zoo_image::{Metadata, Normalize};
/// let mut metadata = Metadata::default();
/// metadata.model = Some("cifar_resnet20".into());
/// metadata.normalize = Some(Normalize::CIFAR10);
/// assert_eq!(metadata.to_map()?["zoo.model"], "cifar_resnet20");
/// # Ok::<(), zoo_image::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Metadata {
    /// The zoo's name of the network.
    pub model: Option<String>,
    /// Side of its images in pixels.
    pub image_size: Option<usize>,
    /// Channels of its images, where they are not 3.
    pub in_chans: Option<usize>,
    /// Names of the classes, in the order of the outputs.
    pub classes: Option<Vec<String>>,
    /// How pixels are normalised.
    pub normalize: Option<Normalize>,
    /// The values that are taken off each pixel, with [`Normalize::PixelMean`].
    pub pixel_mean: Option<Vec<f32>>,
    /// What the recipe changed in the network's BatchNorm layers, if it did.
    pub batch_norm: Option<BatchNormOverride>,
    /// Which epoch's weights they are, where a run wrote them.
    pub kept: Option<Kept>,
}

/// The metadata for a copy of `weights`, unchanged or converted for `model`: the file's own, with the zoo's keys behind
/// their prefix.
///
/// # Errors
/// Metadata under the zoo's keys that the zoo did not write.
pub fn carried(weights: &Weights, model: Option<&str>) -> Result<BTreeMap<String, String>> {
    let mut metadata = weights.metadata().clone();
    if Metadata::of(weights)?.1 == Origin::Bare {
        for key in key::ALL {
            metadata.remove(key).map(|value| metadata.insert(format!("{}{key}", key::PREFIX), value));
        }
    }
    if let Some(model) = model {
        metadata.insert(format!("{}{}", key::PREFIX, key::MODEL), model.to_owned());
    }
    Ok(metadata)
}

/// The program that wrote a file's metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The zoo.
    Own,
    /// The zoo, from before its keys had a prefix.
    Bare,
    /// Another program, which uses some of the same keys.
    Foreign,
    /// None: there is no metadata.
    Absent,
}

impl Metadata {
    /// As a file of weights keeps it: [`save_safetensors`](zoo_core::weights::save_safetensors) takes it.
    ///
    /// # Errors
    /// A value that cannot be written as JSON.
    pub fn to_map(&self) -> Result<BTreeMap<String, String>> {
        fn json<T: Serialize>(value: &Option<T>) -> Result<Option<String>> {
            let text = value.as_ref().map(serde_json::to_string).transpose();
            text.map_err(|error| Error::Input(format!("cannot write what the weights are as JSON: {error}")))
        }
        let values = [
            (key::MODEL, self.model.clone()),
            (key::IMAGE_SIZE, json(&self.image_size)?),
            (key::IN_CHANS, json(&self.in_chans)?),
            (key::CLASSES, json(&self.classes)?),
            (key::NORMALIZE, json(&self.normalize)?),
            (key::PIXEL_MEAN, json(&self.pixel_mean)?),
            (key::KEPT, json(&self.kept)?),
            (key::BATCH_NORM, json(&self.batch_norm)?),
        ];
        Ok(values.into_iter().filter_map(|(key, value)| Some((format!("{}{key}", key::PREFIX), value?))).collect())
    }

    /// What a file says; nothing where another program wrote it.
    ///
    /// # Errors
    /// Metadata under the zoo's keys that the zoo did not write.
    pub fn of_weights(weights: &Weights) -> Result<Self> {
        Ok(Self::of(weights)?.0)
    }

    pub(crate) fn of(weights: &Weights) -> Result<(Self, Origin)> {
        let metadata = weights.metadata();
        if metadata.keys().any(|key| key.starts_with(key::PREFIX)) {
            let own = Self::read(|key| Some(metadata.get(&format!("{}{key}", key::PREFIX))?.as_str()));
            let own = own.map_err(|problem| Error::weights(Path::new(weights.name()), problem))?;
            return Ok((own, Origin::Own));
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

    fn read<'a>(text: impl Fn(&str) -> Option<&'a str>) -> Result<Self, String> {
        fn json<T: DeserializeOwned>(key: &str, text: Option<&str>) -> Result<Option<T>, String> {
            let value = text.map(serde_json::from_str).transpose();
            value.map_err(|error| format!("its metadata `{}{key}` is not what zoo train writes: {error}", key::PREFIX))
        }
        Ok(Self {
            model: text(key::MODEL).map(str::to_owned),
            image_size: json(key::IMAGE_SIZE, text(key::IMAGE_SIZE))?,
            in_chans: json(key::IN_CHANS, text(key::IN_CHANS))?,
            classes: json(key::CLASSES, text(key::CLASSES))?,
            normalize: json(key::NORMALIZE, text(key::NORMALIZE))?,
            pixel_mean: json(key::PIXEL_MEAN, text(key::PIXEL_MEAN))?,
            batch_norm: json(key::BATCH_NORM, text(key::BATCH_NORM))?,
            kept: json(key::KEPT, text(key::KEPT))?,
        })
    }
}

/// The normalisation that the network in a file expects, and the reason to give for it: what the file states, else what
/// a configuration beside it states, else what is usual for files whose tensors have these names, by a [`KeyReport`].
///
/// # Errors
/// Metadata under the zoo's keys that the zoo did not write.
pub fn normalize_of(
    model: &ModelInfo,
    file: &Path,
    weights: &Weights,
    report: &KeyReport,
) -> Result<(Normalize, String)> {
    if let Some(normalize) = Metadata::of(weights)?.0.normalize {
        return Ok((normalize, "as the checkpoint says".into()));
    }
    let config = config::beside(file);
    let why = match config.parts.mean {
        Some(_) => format!("as {} beside it says", config.files.join(" and ")),
        None => assumption(report.layout),
    };
    Ok((Normalize::of(&config.parts.over(model.preprocess_of(report.layout))), why))
}

/// The reason to give for a normalisation that the file does not state.
pub(crate) fn assumption(layout: Option<&str>) -> String {
    match layout {
        Some(name) => format!("assumed, since the file has {name}'s names"),
        None => "assumed, since the file does not say".into(),
    }
}

//! Metadata of a file of weights: which network it holds and how its images are made, written by training and read
//! where the network is used.

use super::config;
use crate::augment::{Normalize, Transform};
use crate::recipe::{BatchNormOverride, Recipe};
use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::Path;
use zoo::ModelInfo;
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

/// The metadata for a network that was trained under `recipe`.
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

/// The metadata for a copy of `weights`, unchanged or converted for `model`: the file's own, with the zoo's keys behind
/// their prefix.
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

/// A file's metadata, read back as [`metadata`] wrote it.
#[derive(Debug, Default)]
pub(super) struct FileMetadata {
    pub(super) model: Option<String>,
    pub(super) image_size: Option<usize>,
    pub(super) in_chans: Option<usize>,
    pub(super) classes: Option<Vec<String>>,
    pub(super) normalize: Option<Normalize>,
    pub(super) pixel_mean: Option<Vec<f32>>,
    pub(super) batch_norm: Option<BatchNormOverride>,
}

/// The program that wrote a file's metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The zoo.
    Own,
    /// The zoo, from before its keys had a prefix.
    Bare,
    /// Another program, which uses some of the same keys.
    Foreign,
    /// None: there is no metadata.
    Absent,
}

impl FileMetadata {
    pub(super) fn of(weights: &Weights) -> Result<(Self, Origin)> {
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
    if let Some(normalize) = FileMetadata::of(weights)?.0.normalize {
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
pub(super) fn assumption(layout: Option<&str>) -> String {
    match layout {
        Some(name) => format!("assumed, since the file has {name}'s names"),
        None => "assumed, since the file does not say".into(),
    }
}

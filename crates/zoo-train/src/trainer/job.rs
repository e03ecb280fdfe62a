//! What is trained, and what comes of it.

use crate::recipe::Recipe;
use crate::record::{EpochMetrics, Status};
use candle_core::Device;
use std::path::PathBuf;
use zoo::ModelInfo;
use zoo_core::weights::Selection;
use zoo_image::{Metadata, Transform};

/// What to train.
#[derive(Debug, Clone)]
pub struct Job {
    /// The network.
    pub model: &'static ModelInfo,
    /// How it is trained.
    pub recipe: Recipe,
    /// Fixes initialisation, order, augmentation and dropout.
    pub seed: u64,
    /// Where it runs.
    pub device: Device,
    /// The checkpoint that training starts from; from scratch without one.
    pub start: Option<Start>,
    /// Called after every epoch, once its metrics are in `metrics.jsonl`: for programs that follow a run as it goes.
    pub on_epoch: Option<fn(&EpochMetrics)>,
}

/// A checkpoint to start from.
#[derive(Debug, Clone)]
pub struct Start {
    /// A file of any kind that [`zoo_core::weights`] reads.
    pub file: PathBuf,
    /// Parts of the network, as key prefixes, that may differ from the file and then start afresh: the classifier.
    pub may_differ: Vec<String>,
    /// What of the file is wanted.
    pub selection: Selection,
}

impl Job {
    /// From scratch.
    pub fn new(model: &'static ModelInfo, recipe: Recipe, seed: u64, device: Device) -> Self {
        Self { model, recipe, seed, device, start: None, on_epoch: None }
    }

    /// From the weights in `file`; the parts named by `may_differ` start afresh where their shapes differ.
    #[must_use]
    pub fn weights(mut self, file: impl Into<PathBuf>, may_differ: &[&str]) -> Self {
        let may_differ = may_differ.iter().map(|&s| s.to_owned()).collect();
        self.start = Some(Start { file: file.into(), may_differ, selection: Selection::default() });
        self
    }

    /// What the file of the trained weights says of them.
    pub(super) fn metadata(&self, recipe: &Recipe, transform: &Transform, classes: Vec<String>) -> Metadata {
        let [channels, side, _] = transform.shape();
        let mut metadata = Metadata::default();
        metadata.model = Some(self.model.name.into());
        metadata.image_size = Some(side);
        metadata.in_chans = (channels != 3).then_some(channels);
        metadata.classes = Some(classes);
        metadata.normalize = Some(recipe.normalize.clone());
        metadata.pixel_mean = transform.pixel_mean().map(<[f32]>::to_vec);
        metadata.batch_norm = Some(recipe.batch_norm).filter(|changed| !changed.is_none());
        metadata
    }
}

/// What a run came to.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Outcome {
    /// Finished, interrupted, or failed with the reason.
    pub status: Status,
    /// Every completed epoch.
    pub epochs: Vec<EpochMetrics>,
    /// Optimizer steps completed.
    pub steps: u64,
    /// Images trained on, of each epoch.
    pub train_images: usize,
    /// Wall-clock time, evaluation included.
    pub seconds: f64,
}

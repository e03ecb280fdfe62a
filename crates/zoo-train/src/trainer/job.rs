//! What is trained, and what comes of it.

use super::keeper::kept;
use crate::eval::Evaluation;
use crate::recipe::{Keep, Recipe};
use crate::record::{EpochMetrics, Status};
use candle_core::Device;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use zoo::ModelInfo;
use zoo_core::weights::Selection;
use zoo_image::Kept;

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
    pub on_epoch: Option<Hook>,
}

/// What is called after every epoch of a [`Job`].
#[derive(Clone)]
pub struct Hook(Arc<dyn Fn(&EpochMetrics) + Send + Sync>);

impl Hook {
    /// Calls `tell`.
    pub fn new(tell: impl Fn(&EpochMetrics) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    pub(super) fn call(&self, metrics: &EpochMetrics) {
        (self.0)(metrics);
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook")
    }
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
}

/// What a run came to.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Outcome {
    /// Finished, interrupted, or failed with the reason.
    pub status: Status,
    /// Every completed epoch.
    pub epochs: Vec<EpochMetrics>,
    /// Which epoch's weights the run's file holds, and what they came to; `None` before the first one is done.
    pub kept: Option<Kept>,
    /// What the kept weights come to on test images that no epoch was measured on, where the data has any.
    pub test: Option<Evaluation>,
    /// Images to train on that could not be read.
    pub unreadable: usize,
    /// Optimizer steps completed.
    pub steps: u64,
    /// Images trained on, of each epoch.
    pub train_images: usize,
    /// Wall-clock time, evaluation included.
    pub seconds: f64,
}

impl Outcome {
    /// What a run that is still training has come to; its epochs are measured on images called `measured_on`
    /// ([`Recipe::measured_on`]).
    pub fn running(epochs: Vec<EpochMetrics>, keep: Keep, measured_on: &str, train_images: usize) -> Self {
        let kept = kept(&epochs, keep, measured_on);
        let steps = epochs.last().map_or(0, |epoch| epoch.step);
        let seconds = epochs.iter().map(|epoch| epoch.seconds).sum();
        Self { status: Status::Running, kept, epochs, steps, seconds, train_images, ..Self::default() }
    }
}

//! What a user may choose of a registered network, and which of it a network has.

use crate::layers::GlobalPool;
use candle_core::{Result, bail};

/// What a user may choose when building a registered model; `None` keeps the model's own default.
#[derive(Debug, Clone, Default)]
pub struct ModelOptions {
    /// Width of the classifier.
    pub num_classes: Option<usize>,
    /// Channels of the input image (3 if `None`).
    pub in_chans: Option<usize>,
    /// Side of the square input image, for networks whose parameters depend on it (position embeddings, token mixing).
    pub image_size: Option<usize>,
    /// Rate of the dropout in front of the classifier, or of all layers behind the last map.
    pub drop_rate: Option<f64>,
    /// Rate of stochastic depth at the last block; it rises evenly from 0 at the first.
    pub drop_path_rate: Option<f64>,
    /// What makes a vector of the last features.
    pub global_pool: Option<GlobalPool>,
}

impl ModelOptions {
    /// Options for a data set: an output for each of its `classes`, and inputs that are its images, `channels` channels
    /// of `side` by `side` pixels.
    pub fn for_data(classes: usize, channels: usize, side: usize) -> Self {
        Self { num_classes: Some(classes), in_chans: Some(channels), image_size: Some(side), ..Self::default() }
    }
}

/// [`ModelOptions`] with every default filled in: what a model's builder reads.
#[derive(Debug, Clone, Copy)]
pub struct Dimensions {
    /// Width of the classifier.
    pub num_classes: usize,
    /// Channels of the input image.
    pub in_chans: usize,
    /// Side of the square input image in pixels.
    pub image_size: usize,
    /// As [`ModelOptions::drop_rate`]; `None` is the network's own.
    pub drop_rate: Option<f64>,
    /// As [`ModelOptions::drop_path_rate`]; `None` is the network's own.
    pub drop_path_rate: Option<f64>,
    /// As [`ModelOptions::global_pool`]; `None` is the network's own.
    pub global_pool: Option<GlobalPool>,
}

/// Which of [`ModelOptions`] a network has, besides sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choices {
    /// A rate for [`ModelOptions::drop_rate`].
    pub drop_rate: bool,
    /// A rate for [`ModelOptions::drop_path_rate`].
    pub drop_path_rate: bool,
    /// What [`ModelOptions::global_pool`] may be; the first is the network's own.
    pub global_pool: &'static [GlobalPool],
}

impl Choices {
    /// Nothing.
    pub const NONE: Self = Self { drop_rate: false, drop_path_rate: false, global_pool: &[] };
    /// Dropout, and any pooling of maps.
    pub const OF_MAPS: Self = Self { drop_rate: true, drop_path_rate: false, global_pool: GlobalPool::OF_MAPS };
    /// The same with stochastic depth.
    pub const OF_RESIDUAL_MAPS: Self = Self { drop_path_rate: true, ..Self::OF_MAPS };

    /// Refuses what is asked for and not there.
    pub(super) fn check(&self, name: &str, options: &ModelOptions) -> Result<()> {
        if options.drop_rate.is_some() && !self.drop_rate {
            bail!("{name}: it has no dropout, so no drop_rate can be chosen")
        }
        if options.drop_path_rate.is_some() && !self.drop_path_rate {
            bail!("{name}: it has no stochastic depth, so no drop_path_rate can be chosen")
        }
        match options.global_pool {
            Some(pool) if !self.global_pool.contains(&pool) => {
                let there: Vec<_> = self.global_pool.iter().map(|pool| pool.name()).collect();
                let there = if there.is_empty() { "there is no choice".into() } else { there.join(", ") };
                bail!("{name}: global_pool `{pool}` is none of its own: {there}")
            }
            _ => Ok(()),
        }
    }
}

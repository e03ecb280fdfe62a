//! Networks of fully connected layers.
#![deny(missing_docs)]

use zoo_core::ModelInfo;

pub mod mlp;

/// Every model of this family, file by file.
pub const MODELS: &[&[ModelInfo]] = &[mlp::MODELS];

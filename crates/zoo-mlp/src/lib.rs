//! Networks of fully connected layers.
#![deny(missing_docs)]

use zoo_core::ModelInfo;

pub mod mlp;
pub mod mlp_mixer;
pub mod template_mixer;

/// Every model of this family, file by file.
pub const MODELS: &[&[ModelInfo]] = &[mlp::MODELS, mlp_mixer::MODELS, template_mixer::MODELS];

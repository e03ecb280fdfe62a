//! Networks of attention: ViT for images, and the sequence-to-sequence Transformer.
#![deny(missing_docs)]

use zoo_core::ModelInfo;

pub mod vit;

/// Every model of this family, file by file.
pub const MODELS: &[&[ModelInfo]] = &[vit::MODELS];

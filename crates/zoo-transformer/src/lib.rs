//! Networks of attention: ViT for images, and the sequence-to-sequence Transformer.
#![deny(missing_docs)]

use zoo_core::{ModelInfo, SequenceInfo};

pub mod transformer;
pub mod vit;

/// Every model of this family, file by file.
pub const MODELS: &[&[ModelInfo]] = &[vit::MODELS];

/// Every model of this family that maps two sequences to one.
pub const SEQUENCE_MODELS: &[SequenceInfo] = transformer::MODELS;

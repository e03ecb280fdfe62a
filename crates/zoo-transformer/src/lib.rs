//! The family of ViT and the sequence-to-sequence Transformer. It has no model yet: the registry lists none under its name.
#![deny(missing_docs)]

use zoo_core::ModelInfo;

/// Every model of this family, file by file.
pub const MODELS: &[&[ModelInfo]] = &[];

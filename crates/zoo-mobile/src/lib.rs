//! The family of MobileNet v1 and v2 and ShuffleNet v1. It has no model yet: the registry lists none under its name.
#![deny(missing_docs)]

use zoo_core::ModelInfo;

/// Every model of this family, file by file.
pub const MODELS: &[&[ModelInfo]] = &[];

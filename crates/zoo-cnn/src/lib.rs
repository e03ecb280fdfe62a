//! Convolutional networks without shortcuts: VGG for small images, and the plain CNN of the template suite.
#![deny(missing_docs)]

use zoo_core::ModelInfo;

pub mod plain_cnn;
pub mod vgg;

/// Every model of this family, file by file.
pub const MODELS: &[&[ModelInfo]] = &[plain_cnn::MODELS, vgg::MODELS];

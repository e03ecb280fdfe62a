//! Convolutional networks without residual shortcuts: AlexNet, VGG, GoogLeNet, DenseNet, and the plain CNN of the
//! template suite.
#![deny(missing_docs)]

use zoo_core::ModelInfo;

pub mod alexnet;
pub mod densenet;
pub mod googlenet;
pub mod template_cnn;
pub mod vgg;

/// Every model of this family, file by file.
pub const MODELS: &[&[ModelInfo]] =
    &[alexnet::MODELS, densenet::MODELS, googlenet::MODELS, template_cnn::MODELS, vgg::MODELS];

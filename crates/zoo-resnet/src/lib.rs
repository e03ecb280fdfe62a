//! Residual networks: He et al. 2015 for ImageNet and for CIFAR, the same networks without shortcuts and with squeeze
//! and excitation, and the residual network of the template suite. All are made of one block, [`resnet::block()`].
#![deny(missing_docs)]

use zoo_core::ModelInfo;

pub mod cifar_resnet;
pub mod resnet;
pub mod se_resnet;
pub mod template_residual_cnn;

/// Every model of this family, file by file.
pub const MODELS: &[&[ModelInfo]] =
    &[resnet::MODELS, se_resnet::MODELS, cifar_resnet::MODELS, template_residual_cnn::MODELS];

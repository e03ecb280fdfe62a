//! Residual networks: He et al. 2015 in its CIFAR form, and the same networks without shortcuts.
#![deny(missing_docs)]

use zoo_core::ModelInfo;

pub mod cifar_resnet;

/// Every model of this family, file by file.
pub const MODELS: &[&[ModelInfo]] = &[cifar_resnet::MODELS];

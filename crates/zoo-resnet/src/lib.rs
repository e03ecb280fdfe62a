//! Residual networks: He et al. 2015 for ImageNet and for CIFAR, the same networks without shortcuts and with squeeze
//! and excitation, and the residual network of the template suite. All are made of one block, [`resnet::block()`].
//!
//! A checkpoint of torchvision's, loaded and run:
//!
//! ```no_run
//! use candle_core::{DType, Device, Tensor};
//! use zoo_core::weights::{LoadOptions, Weights, load};
//! use zoo_core::{Model, VarStore};
//! use zoo_resnet::resnet::{Config, ResNet};
//! let store = VarStore::for_loading(DType::F32, &Device::Cpu);
//! let net = ResNet::new(&Config::resnet(50)?, store.root())?;
//! load(&store, &Weights::open("resnet50-11ad3fa6.pth")?, &LoadOptions::default())?; // every key, or an error that names it
//! let images = Tensor::zeros((1, 3, 224, 224), DType::F32, &Device::Cpu)?;
//! assert_eq!(net.forward_t(&images, false)?.dims(), &[1, 1000]);
//! # Ok::<(), candle_core::Error>(())
//! ```
#![deny(missing_docs)]

use zoo_core::ModelInfo;

pub mod cifar_resnet;
pub mod resnet;
pub mod se_resnet;
pub mod template_residual_cnn;

/// Every model of this family, file by file.
pub const MODELS: &[&[ModelInfo]] =
    &[resnet::MODELS, se_resnet::MODELS, cifar_resnet::MODELS, template_residual_cnn::MODELS];

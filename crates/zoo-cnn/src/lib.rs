//! Convolutional networks without residual shortcuts: AlexNet, VGG, GoogLeNet, DenseNet, and the plain CNN of the
//! template suite.
//!
//! A network with its own number of classes, trained for one step:
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use zoo_cnn::vgg::{Config, Vgg};
//! use zoo_core::{Model, VarStore, tape::value_and_grad};
//! let store = VarStore::new(42, DType::F32, &Device::Cpu); // the seed fixes weights and dropout
//! let net = Vgg::new(&Config { num_classes: 3, ..Config::cifar(16)? }, store.root())?;
//! let images = Tensor::randn(0f32, 1.0, (2, 3, 32, 32), &Device::Cpu)?;
//! let labels = Tensor::new(&[0u32, 2], &Device::Cpu)?;
//! let (loss, grads) = value_and_grad(&images, |xs| Ok(net.training_loss(xs, &labels, 0.0)?.0))?;
//! assert!(loss.to_scalar::<f32>()? > 0.0);
//! assert!(store.parameters().iter().all(|(_, weight)| grads.get(weight).is_some()));
//! # Ok::<(), candle_core::Error>(())
//! ```
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

//! Networks of fully connected layers.
//!
//! A Mixer for small images:
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use zoo_core::{Model, VarStore};
//! use zoo_mlp::mlp_mixer::{Config, MlpMixer};
//! let store = VarStore::new(0, DType::F32, &Device::Cpu);
//! let net = MlpMixer::new(&Config { image_size: 32, num_classes: 10, ..Config::new(8, 2, 64) }, store.root())?;
//! let images = Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu)?;
//! assert_eq!(net.forward_t(&images, false)?.dims(), &[2, 10]);
//! # Ok::<(), candle_core::Error>(())
//! ```
#![deny(missing_docs)]

use zoo_core::ModelInfo;

pub mod mlp;
pub mod mlp_mixer;
pub mod template_mixer;

/// Every model of this family, file by file.
pub const MODELS: &[&[ModelInfo]] = &[mlp::MODELS, mlp_mixer::MODELS, template_mixer::MODELS];

//! Networks of attention: ViT for images, and the sequence-to-sequence Transformer.
//!
//! A ViT for images of a size of your own, and an encoder with its decoder on sequences:
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use zoo_core::{Model, VarStore};
//! use zoo_transformer::{transformer, vit};
//! let store = VarStore::new(0, DType::F32, &Device::Cpu);
//! let config = vit::Config { image_size: 48, patch: 8, depth: 2, num_classes: 5, ..vit::Config::vit_tiny_patch16_224() };
//! let net = vit::VisionTransformer::new(&config, store.root().pp("vit"))?;
//! assert_eq!(net.forward_t(&Tensor::zeros((1, 3, 48, 48), DType::F32, &Device::Cpu)?, false)?.dims(), &[1, 5]);
//!
//! let config = transformer::Config { d_model: 32, heads: 4, encoder_layers: 1, decoder_layers: 1, ..transformer::Config::base() };
//! let net = transformer::Transformer::new(&config, store.root().pp("translator"))?;
//! let sequence = |length: usize| Tensor::zeros((1, length, 32), DType::F32, &Device::Cpu);
//! let masks = transformer::Masks::default();
//! assert_eq!(net.forward(&sequence(7)?, &sequence(5)?, &masks, false)?.dims(), &[1, 5, 32]);
//! # Ok::<(), candle_core::Error>(())
//! ```
#![deny(missing_docs)]

use zoo_core::{ModelInfo, SequenceInfo};

pub mod transformer;
pub mod vit;

/// Every model of this family, file by file.
pub const MODELS: &[&[ModelInfo]] = &[vit::MODELS];

/// Every model of this family that maps two sequences to one.
pub const SEQUENCE_MODELS: &[SequenceInfo] = transformer::MODELS;

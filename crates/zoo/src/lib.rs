//! The classic image networks on Candle: every family behind one registry.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use zoo::{ModelOptions, VarStore};
//!
//! let store = VarStore::new(42, DType::F32, &Device::Cpu);
//! let net = zoo::create("cifar_resnet20", &ModelOptions::default(), &store)?;
//! let logits = net.forward_t(&Tensor::zeros((1, 3, 32, 32), DType::F32, &Device::Cpu)?, false)?;
//! assert_eq!(logits.dims(), &[1, 10]);
//!
//! // In mixed precision on the CPU: the same network, its images cast.
//! let images = zoo::Precision::Bf16.cast(&Tensor::zeros((1, 3, 32, 32), DType::F32, &Device::Cpu)?)?;
//! assert_eq!(net.forward_t(&images, false)?.dtype(), DType::BF16);
//! # Ok::<(), candle_core::Error>(())
//! ```
#![deny(missing_docs)]

pub mod classes;
pub mod registry;

pub use registry::{all, create, files, find, find_for, find_sequence, select, select_for, sequence_models};
pub use zoo_cnn as cnn;
pub use zoo_core as core;
pub use zoo_core::{Model, ModelInfo, ModelOptions, ModuleT, Precision, SequenceInfo, SequenceModel, VarStore};
pub use zoo_mlp as mlp;
pub use zoo_mobile as mobile;
pub use zoo_resnet as resnet;
pub use zoo_transformer as transformer;

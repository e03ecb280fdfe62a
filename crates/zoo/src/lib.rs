//! The classic image networks on Candle: every family behind one registry. The package is called `candle-zoo`.
//!
//! Build a network by its name, load a checkpoint of torchvision's, timm's or your own, and run it:
//!
//! ```no_run
//! use zoo::weights::{Weights, load};
//! use zoo::{DType, Device, ModelOptions, Tensor, VarStore};
//!
//! let store = VarStore::for_loading(DType::F32, &Device::Cpu);
//! let net = zoo::create("resnet50", &ModelOptions::default(), &store)?;
//! load(&store, &Weights::open("resnet50-11ad3fa6.pth")?, &zoo::find("resnet50")?.load_options())?;
//! let images = Tensor::zeros((1, 3, 224, 224), DType::F32, &Device::Cpu)?; // as `zoo::find("resnet50")?.preprocess` says
//! println!("{}", net.forward_t(&images, false)?);
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! Or start from random weights, which a seed fixes:
//!
//! ```
//! use zoo::{DType, Device, ModelOptions, Tensor, VarStore};
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

pub use candle_core::{DType, Device, Tensor};
pub use registry::{all, create, files, find, find_for, find_sequence, select, select_for, sequence_models};
pub use zoo_cnn as cnn;
pub use zoo_core as core;
pub use zoo_core::weights;
pub use zoo_core::{
    GlobalPool, Model, ModelInfo, ModelOptions, ModuleT, Precision, SequenceInfo, SequenceModel, VarStore,
};
pub use zoo_mlp as mlp;
pub use zoo_mobile as mobile;
pub use zoo_resnet as resnet;
pub use zoo_transformer as transformer;

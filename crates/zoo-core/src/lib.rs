//! Layers for Candle that train right: what every network of the zoo is built from.
//!
//! Stock candle 0.11 gives wrong gradients for pooling and ReLU, cuts the graph at its LayerNorm and cannot be seeded
//! on the CPU. This crate has its own operations ([`ops`]) with gradients held to PyTorch's, layers on top of them,
//! seeded initialisation and dropout ([`rng`], [`init`]), and the store that a network's tensors live in ([`vars`]).
//! Candle's `Tensor`, autograd and `Var` stay the interface.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use zoo_core::{BatchNorm, Conv2d, Conv2dConfig, ModuleT, VarStore, relu};
//!
//! let store = VarStore::new(42, DType::F32, &Device::Cpu);
//! let vb = store.root();
//! let conv = Conv2d::new(3, 16, Conv2dConfig::new(3).padding(1).no_bias(), vb.pp("conv1"))?;
//! let norm = BatchNorm::new(16, vb.pp("bn1"))?;
//! let images = Tensor::ones((2, 3, 32, 32), DType::F32, &Device::Cpu)?;
//! let features = relu(&norm.forward_t(&conv.forward_t(&images, true)?, true)?)?;
//! assert_eq!(features.dims(), &[2, 16, 32, 32]);
//! let gradients = features.sum_all()?.backward()?;
//! assert!(store.parameters().iter().all(|(_, var)| gradients.get(var).is_some()));
//! # Ok::<(), candle_core::Error>(())
//! ```
#![deny(missing_docs)]

pub mod init;
pub mod inspect;
pub mod loss;
pub mod memory;
pub mod model;
pub mod ops;
pub mod rng;
pub mod tape;
pub mod threads;
pub mod trace;
pub mod vars;
pub mod weights;

mod containers;
mod fuse;
mod input;
mod kernels;
mod layers;
mod op;
mod pass;
mod storage;
#[cfg(test)]
mod testing;

pub use containers::{Concat, DenseBlock, Residual, Sequential, Stages, conv_bn};
pub use init::{Fan, Init};
pub use layers::{
    AvgPool2d, BatchNorm, BatchNormConfig, ChannelShuffle, Classifier, Conv2d, Conv2dConfig, Dropout, Layer, LayerNorm,
    Linear, MaxPool2d, MlpBlock, PadChannels, PatchEmbed, SelfAttention, SqueezeExcite, SqueezeExciteConfig, Transpose,
    activate, adaptive_avg_pool2d, add, channel_shuffle, concat, flatten, global_avg_pool2d, merge_heads, pad_channels,
    relu, scaled_dot_product_attention, softmax, split_heads, transpose,
};
pub use model::{
    Auxiliary, Dimensions, Input, Interpolation, Model, ModelInfo, ModelOptions, ModuleT, SequenceInfo, SequenceModel,
};
pub use ops::Pointwise;
pub use vars::{BatchNormSettings, Slot, VarBuilder, VarKind, VarStore, weight_for};

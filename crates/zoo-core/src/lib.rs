//! Layers for Candle that train right and fast: what every network of the zoo is built from, and yours can be.
//!
//! Stock candle 0.11 gives wrong gradients for pooling and ReLU, cuts the graph at its LayerNorm and cannot be seeded
//! on the CPU. This crate has its own operations ([`ops`]) with gradients held to PyTorch's, layers on top of them,
//! seeded initialisation and dropout ([`rng`], [`init`]), and the store that a network's tensors live in ([`vars`]).
//! Candle's `Tensor`, autograd and `Var` stay the interface.
//!
//! # Write your own network, train it, save it
//!
//! ```
//! use candle_core::{DType, Device, Result, Tensor};
//! use zoo_core::ops::{cross_entropy, optim::{SgdStep, sgd_step}};
//! use zoo_core::tape::{recorded, value_and_grad};
//! use zoo_core::weights::{LoadOptions, Weights, load, save_safetensors};
//! use zoo_core::*;
//!
//! /// A stem, two residual blocks, a classifier. The keys of its tensors are what stands in `pp`.
//! fn build(num_classes: usize, vb: VarBuilder) -> Result<(Sequential, Classifier)> {
//!     let unit = |name: &str, c_in: usize, activation| {
//!         let (conv, norm) = (Conv2dConfig::new(3).padding(1).no_bias(), BatchNormConfig::default());
//!         conv_bn((c_in, 8), conv, norm, activation, (vb.pp(name).pp("conv"), vb.pp(name).pp("bn")))
//!     };
//!     let mut net = unit("stem", 3, Some(Pointwise::Relu))?;
//!     for block in ["block1", "block2"] {
//!         let first = unit(&format!("{block}.0"), 8, Some(Pointwise::Relu))?;
//!         let branch = seq![first, unit(&format!("{block}.1"), 8, None)?];
//!         net = seq![net, Residual::new(branch).activation(Pointwise::Relu)]; // relu(x + f(x))
//!     }
//!     Ok((net, Classifier::new(8, num_classes, vb.pp("fc"))?))
//! }
//!
//! let store = VarStore::new(42, DType::F32, &Device::Cpu); // the seed fixes weights and dropout
//! let (net, fc) = build(2, store.root())?;
//! // (b, 3, h, w) -> (b, classes). In training the pass goes on a tape of its own.
//! let forward = |xs: &Tensor, train: bool| {
//!     recorded(xs, train, |xs| fc.forward_t(&global_avg_pool2d(&net.forward_t(xs, train)?)?, train))
//! };
//!
//! let images = Tensor::randn(0f32, 1.0, (8, 3, 16, 16), &Device::Cpu)?;
//! let labels = Tensor::new(&[0u32, 1, 0, 1, 0, 1, 0, 1], &Device::Cpu)?;
//! let step = SgdStep { lr: 0.1, momentum: 0.0, nesterov: false, weight_decay: 5e-4 };
//! let mut losses = Vec::new();
//! for _ in 0..10 {
//!     let (loss, grads) = value_and_grad(&images, |xs| cross_entropy(&forward(xs, true)?, &labels, 0.0))?;
//!     losses.push(loss.to_scalar::<f32>()?);
//!     for (_, var) in store.parameters() {
//!         if let Some(grad) = grads.get(&var) {
//!             sgd_step(&var, grad, None, &step)?;
//!         }
//!     }
//! }
//! assert!(losses[9] < losses[0]);
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("mine.safetensors");
//! save_safetensors(&store, &path, &Default::default())?;
//! let other = VarStore::new(0, DType::F32, &Device::Cpu);
//! build(2, other.root())?;
//! load(&other, &Weights::open(&path)?, &LoadOptions::default())?; // every key, or an error that names it
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Which container
//!
//! | you write | for |
//! |---|---|
//! | [`seq!`]`[f, g]` | g(f(x)); neighbours that have one kernel run as one operation |
//! | [`Residual::new`]`(f)` | x + f(x), with `.shortcut(s)` s(x) + f(x), with `.activation(a)` a(x + f(x)) |
//! | [`Concat::new`]`(vec![f, g])` | \[f(x), g(x)\] along the channels: Inception, ShuffleNet |
//! | [`DenseBlock::new`]`(layers, reader, name)` | every layer reads the maps of all before it: DenseNet |
//! | [`Stages`] | the network's stages with their names, for [`Model::forward_intermediates`] |
//!
//! Any type that has candle's `ModuleT` and `Debug` is a layer of these, yours too. Implement [`Model`] to have the
//! rest of the zoo take your network: `forward_features`, `pre_logits` and the classifier are yours, the pass as a
//! whole is the trait's.
//!
//! # bfloat16 in one word
//!
//! [`Precision::Bf16`]`.cast(&images)?` makes every network run in mixed precision, in training and in evaluation: its
//! maps are bfloat16, its weights stay f32. Cast before [`tape::value_and_grad`].
//!
//! # What must go through `foreign_op`
//!
//! In training a network runs on a tape, which knows the operations of this crate. An operation of candle's own on a
//! tensor that depends on the input goes through [`tape::foreign_op`], which differentiates it by candle's graph:
//! `tape::foreign_op(&[&xs], |xs| xs[0].sqr())`. Forgotten, it ends the pass with an error that says so. On weights
//! alone (`weight * 2.0`), and in evaluation, nothing of the kind is needed. Between layers, wrap it in [`trace::op`]
//! besides, so that graphs, tables and multiply-adds have no gap.
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
mod kernels;
mod layers;
mod op;
mod pass;
mod precision;
mod preprocess;
mod storage;
#[cfg(test)]
mod testing;

pub use containers::{Concat, DenseBlock, Residual, Sequential, Stages, conv_bn};
pub use init::{Fan, Init, InitRule};
pub use layers::{
    AvgPool2d, BatchNorm, BatchNormConfig, ChannelShuffle, Classifier, Conv2d, Conv2dConfig, Dropout, GlobalPool,
    Layer, LayerNorm, Linear, MaxPool2d, MlpBlock, PadChannels, PatchEmbed, PooledMap, SelfAttention, SqueezeExcite,
    SqueezeExciteConfig, Transpose, activate, adaptive_avg_pool2d, add, channel_shuffle, concat, flatten,
    global_avg_pool2d, merge_heads, pad_channels, relu, scaled_dot_product_attention, softmax, split_heads, transpose,
};
pub use model::{
    Auxiliary, ChannelOrder, Choices, Dimensions, FeatureInfo, Interpolation, Model, ModelInfo, ModelOptions, ModuleT,
    Preprocess, PreprocessParts, SequenceInfo, SequenceModel,
};
pub use ops::Pointwise;
pub use pass::with_fixed_weights;
pub use precision::{Precision, UnknownPrecision};
pub use vars::{BatchNormSettings, Slot, VarBuilder, VarKind, VarStore, weight_for};

//! Layers with their weights and configs, and steps without weights.

mod activation;
mod attention;
mod conv;
mod dropout;
mod functional;
mod linear;
mod mlp_block;
mod norm;
mod patch;
mod pool;
mod squeeze_excite;

pub use activation::{activate, relu, softmax};
pub use attention::{SelfAttention, merge_heads, scaled_dot_product_attention, split_heads};
pub use conv::{Conv2d, Conv2dConfig};
pub use dropout::Dropout;
pub use functional::{
    ChannelShuffle, PadChannels, Transpose, add, channel_shuffle, concat, flatten, pad_channels, transpose,
};
pub use linear::{Classifier, Linear};
pub use mlp_block::MlpBlock;
pub use norm::{BatchNorm, BatchNormConfig, LayerNorm};
pub use patch::PatchEmbed;
pub use pool::{AvgPool2d, GlobalPool, MaxPool2d, PooledMap, adaptive_avg_pool2d, global_avg_pool2d};
pub use squeeze_excite::{SqueezeExcite, SqueezeExciteConfig};

use candle_nn::ModuleT;
use std::any::Any;
use std::fmt::Debug;

/// What a container holds: any module, of this crate or of yours.
pub trait Layer: ModuleT + Any + Debug + Send + Sync {}

impl<L: ModuleT + Any + Debug + Send + Sync> Layer for L {}

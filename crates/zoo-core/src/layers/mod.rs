//! Layers with their weights and configs, steps without weights, and the containers that put them together.

mod activation;
mod attention;
pub(crate) mod concat;
pub(crate) mod conv;
mod dropout;
mod functional;
mod linear;
mod mlp_block;
pub(crate) mod norm;
mod patch;
mod pool;
mod residual;
pub(crate) mod sequential;
mod squeeze_excite;

pub use activation::{activate, relu, softmax};
pub use attention::{SelfAttention, merge_heads, scaled_dot_product_attention, split_heads};
pub use concat::{Concat, DenseBlock};
pub use conv::{Conv2d, Conv2dConfig, conv_bn};
pub use dropout::Dropout;
pub use functional::{
    ChannelShuffle, PadChannels, Transpose, add, channel_shuffle, concat, flatten, pad_channels, transpose,
};
pub use linear::{Classifier, Linear};
pub use mlp_block::MlpBlock;
pub use norm::{BatchNorm, BatchNormConfig, LayerNorm};
pub use patch::PatchEmbed;
pub use pool::{AvgPool2d, MaxPool2d, adaptive_avg_pool2d, global_avg_pool2d};
pub use residual::Residual;
pub use sequential::{Layer, Sequential, Stages};
pub use squeeze_excite::{SqueezeExcite, SqueezeExciteConfig};

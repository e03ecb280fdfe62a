//! Networks for small machines: MobileNet v1 and v2, whose 3x3 convolutions are depthwise, and ShuffleNet v1, whose 1x1
//! convolutions are grouped too.
#![deny(missing_docs)]

use candle_core::{Result, bail};
use zoo_core::{BatchNorm, BatchNormConfig, Conv2d, Conv2dConfig, ConvBn, ModelInfo, Pointwise, VarBuilder};

pub mod mobilenet_v1;
pub mod mobilenet_v2;
pub mod shufflenet_v1;

/// Every model of this family, file by file.
pub const MODELS: &[&[ModelInfo]] = &[mobilenet_v1::MODELS, mobilenet_v2::MODELS, shufflenet_v1::MODELS];

/// A convolution without bias at the first place, and its BatchNorm at the second.
fn conv_bn(
    (c_in, c_out): (usize, usize),
    conv: Conv2dConfig,
    norm: BatchNormConfig,
    activation: Option<Pointwise>,
    (conv_at, bn_at): (VarBuilder, VarBuilder),
) -> Result<ConvBn> {
    let conv = Conv2d::new(c_in, c_out, conv.no_bias(), conv_at)?;
    Ok(ConvBn::new(conv, BatchNorm::with(c_out, norm, bn_at)?, activation))
}

/// `channels` · `width`, to the nearest multiple of `unit`, at least one.
fn scaled(channels: usize, width: f64, unit: usize) -> usize {
    ((channels as f64 * width / unit as f64).round() as usize).max(1) * unit
}

fn check_width(model: &str, width: f64) -> Result<()> {
    if !(width > 0.0 && width.is_finite()) {
        bail!("{model}: the width multiplier must be a number above 0, got {width}")
    }
    Ok(())
}

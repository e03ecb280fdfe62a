//! Networks for small machines: MobileNet v1 and v2, whose 3x3 convolutions are depthwise, and ShuffleNet v1, whose 1x1
//! convolutions are grouped too.
#![deny(missing_docs)]

use candle_core::{Result, bail};
use zoo_core::ModelInfo;

pub mod mobilenet_v1;
pub mod mobilenet_v2;
pub mod shufflenet_v1;

/// Every model of this family, file by file.
pub const MODELS: &[&[ModelInfo]] = &[mobilenet_v1::MODELS, mobilenet_v2::MODELS, shufflenet_v1::MODELS];

/// `channels` · `width`, to the nearest multiple of `unit`, at least one.
fn make_divisible(channels: usize, width: f64, unit: usize) -> usize {
    ((channels as f64 * width / unit as f64).round() as usize).max(1) * unit
}

fn check_width(model: &str, width: f64) -> Result<()> {
    if !(width > 0.0 && width.is_finite()) {
        bail!("{model}: the width multiplier must be a number above 0, got {width}")
    }
    Ok(())
}

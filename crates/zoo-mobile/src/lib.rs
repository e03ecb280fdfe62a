//! Networks for small machines: MobileNet v1 and v2, whose 3x3 convolutions are depthwise, and ShuffleNet v1, whose 1x1
//! convolutions are grouped too.
//!
//! A network of a quarter of the width, and its stages' maps for a detector:
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use zoo_core::{Model, VarStore};
//! use zoo_mobile::mobilenet_v1::{Config, MobileNetV1};
//! let store = VarStore::new(0, DType::F32, &Device::Cpu);
//! let net = MobileNetV1::new(&Config::new(0.25), store.root())?;
//! let images = Tensor::zeros((1, 3, 96, 96), DType::F32, &Device::Cpu)?;
//! let strides: Vec<usize> = net.feature_info([3, 96, 96])?.iter().map(|stage| stage.stride).collect();
//! assert_eq!(strides, [2, 4, 8, 16, 32]);
//! assert_eq!(net.forward_intermediates(&images, false)?[4].1.dims(), &[1, 256, 3, 3]);
//! # Ok::<(), candle_core::Error>(())
//! ```
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

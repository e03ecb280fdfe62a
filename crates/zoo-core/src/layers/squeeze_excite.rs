//! Squeeze and excitation.

use super::activation::{activate, relu};
use super::conv::{Conv2d, Conv2dConfig};
use crate::init::Init;
use crate::ops::{Pointwise, avg_pool2d, scale};
use crate::trace::{self, Step};
use crate::vars::VarBuilder;
use candle_core::{Result, Tensor};
use candle_nn::ModuleT;

/// How a [`SqueezeExcite`] is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SqueezeExciteConfig {
    /// Channels between the two layers.
    pub reduced: usize,
    /// What the weights start at.
    pub weight_init: Init,
    /// What the biases start at; `None` for PyTorch's rule.
    pub bias_init: Option<Init>,
}

impl SqueezeExciteConfig {
    /// Started as PyTorch starts convolutions.
    pub fn new(reduced: usize) -> Self {
        Self { reduced, weight_init: Init::TORCH_WEIGHT, bias_init: None }
    }
}

/// A gate on the channels (Hu et al. 2017, arXiv:1709.01507): x · σ(W₂ · relu(W₁ · mean(x))), where the mean runs over
/// all pixels of a channel. (b, c, h, w) -> (b, c, h, w)
///
/// Keys: `fc1` (r, c, 1, 1) and `fc2` (c, r, 1, 1) with biases, 1x1 convolutions as in timm.
#[derive(Debug, Clone)]
pub struct SqueezeExcite {
    fc1: Conv2d,
    fc2: Conv2d,
    path: String,
}

impl SqueezeExcite {
    /// Squeezes `channels` to `reduced`.
    ///
    /// # Errors
    /// A key that is taken already.
    pub fn new(channels: usize, reduced: usize, vb: VarBuilder) -> Result<Self> {
        Self::with(channels, SqueezeExciteConfig::new(reduced), vb)
    }

    /// With `config`.
    ///
    /// # Errors
    /// A key that is taken already.
    pub fn with(channels: usize, config: SqueezeExciteConfig, vb: VarBuilder) -> Result<Self> {
        let SqueezeExciteConfig { reduced, weight_init, bias_init } = config;
        let conv = Conv2dConfig::new(1).init(weight_init);
        let conv = bias_init.map_or(conv, |init| conv.bias_init(init));
        Ok(Self {
            fc1: Conv2d::new(channels, reduced, conv, vb.pp("fc1"))?,
            fc2: Conv2d::new(reduced, channels, conv, vb.pp("fc2"))?,
            path: vb.path().to_string(),
        })
    }
}

impl ModuleT for SqueezeExcite {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        trace::block("SqueezeExcite", &self.path, || {
            let (_, _, h, w) = xs.dims4()?;
            let mean = || avg_pool2d(xs, (h, w), (1, 1), (0, 0), false, false); // (b, c, 1, 1)
            let pooled = trace::op(Step::GlobalAvgPool, &[xs], mean)?;
            let gate = self.fc2.forward_t(&relu(&self.fc1.forward_t(&pooled, train)?)?, train)?;
            let gate = activate(&gate, Pointwise::Sigmoid)?;
            trace::op(Step::Scale, &[xs, &gate], || scale::gate(xs, &gate))
        })
    }
}

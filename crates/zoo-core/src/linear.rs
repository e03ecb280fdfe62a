//! Fully connected layers.

use crate::init::Init;
use crate::ops::linear;
use crate::vars::{VarBuilder, weight_for};
use candle_core::{Result, Tensor};
use candle_nn::ModuleT;

/// y = x · weightᵀ + bias over the last dimension: (…, in_features) -> (…, out_features), see [`linear`].
///
/// Keys: `weight` (out, in) and, with bias, `bias` (out).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{Linear, ModuleT, VarStore};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let fc = Linear::new(64, 10, store.root().pp("fc"))?;
/// let xs = Tensor::zeros((2, 64), DType::F32, &Device::Cpu)?;
/// assert_eq!(fc.forward_t(&xs, false)?.dims(), &[2, 10]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// With bias, initialised as PyTorch does.
    ///
    /// # Errors
    /// A key that is taken already.
    pub fn new(in_features: usize, out_features: usize, vb: VarBuilder) -> Result<Self> {
        Self::with(in_features, out_features, true, Init::TORCH_WEIGHT, vb)
    }

    /// With or without bias, the weight filled by `init`; the bias starts as PyTorch's.
    ///
    /// # Errors
    /// A key that is taken already.
    pub fn with(in_features: usize, out_features: usize, bias: bool, init: Init, vb: VarBuilder) -> Result<Self> {
        let weight = vb.param((out_features, in_features), "weight", init)?;
        let bias = bias.then(|| vb.param(out_features, "bias", Init::torch_bias(in_features))).transpose()?;
        Ok(Self { weight, bias })
    }
}

impl ModuleT for Linear {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(|b| weight_for(b, train));
        linear(xs, &weight_for(&self.weight, train), bias.as_ref())
    }
}

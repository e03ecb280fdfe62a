//! The perceptron of Transformer and Mixer blocks.

use super::activation::activate;
use super::dropout::Dropout;
use super::linear::Linear;
use crate::init::Init;
use crate::ops::Pointwise;
use crate::vars::{Training, VarBuilder};
use candle_core::{Result, Tensor};
use candle_nn::ModuleT;

/// The multilayer perceptron inside Transformer and Mixer blocks: linear, GELU, dropout, linear, dropout, over the last
/// dimension. (…, in) -> (…, out)
///
/// Keys: `fc1`, `fc2`, as timm has them.
#[derive(Debug, Clone)]
pub struct MlpBlock {
    fc1: Linear,
    fc2: Linear,
    activation: Pointwise,
    dropout: Dropout,
}

impl MlpBlock {
    /// Makes the layers at `vb`: `widths` are (in, hidden, out). Weights start by `init`, biases by `bias`.
    ///
    /// # Errors
    /// A dropout rate outside 0..1.
    pub fn new(widths: (usize, usize, usize), dropout: f64, init: Init, bias: Init, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            fc1: Linear::with_bias(widths.0, widths.1, init, Some(bias), vb.pp("fc1"))?,
            fc2: Linear::with_bias(widths.1, widths.2, init, Some(bias), vb.pp("fc2"))?,
            activation: Pointwise::Gelu,
            dropout: Dropout::new(dropout, &vb)?,
        })
    }

    /// What of it is trained.
    pub(crate) fn training(&self) -> Training {
        self.fc1.training().and(self.fc2.training())
    }

    /// Weights and biases of the two layers, where nothing but GELU stands between and behind them.
    pub(crate) fn parts(&self, train: bool) -> Option<[(Tensor, Tensor); 2]> {
        let is_plain = !self.dropout.drops(train) && self.activation == Pointwise::Gelu;
        is_plain.then(|| Some([self.fc1.parts(train)?, self.fc2.parts(train)?])).flatten()
    }
}

impl ModuleT for MlpBlock {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let hidden = activate(&self.fc1.forward_t(xs, train)?, self.activation)?;
        let ys = self.fc2.forward_t(&self.dropout.forward_t(&hidden, train)?, train)?;
        self.dropout.forward_t(&ys, train)
    }
}

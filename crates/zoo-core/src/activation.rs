//! Activation functions as modules and as methods.

use crate::ops::{Pointwise, pointwise};
use candle_core::{Module, Result, Tensor};

impl Module for Pointwise {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        pointwise(xs, *self)
    }
}

/// max(x, 0) with derivative 0 at 0, as PyTorch has it (candle's own has 1 there).
///
/// # Errors
/// An element type that is not floating point.
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    pointwise(xs, Pointwise::Relu)
}

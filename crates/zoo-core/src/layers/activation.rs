//! Activation functions as modules and as methods.

use crate::ops::{Pointwise, pointwise, softmax as softmax_op};
use crate::trace::{self, Step};
use candle_core::{Module, Result, Tensor};

impl Module for Pointwise {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        activate(xs, *self)
    }
}

/// Applies `function` to every element.
///
/// # Errors
/// An element type that is not floating point.
pub fn activate(xs: &Tensor, function: Pointwise) -> Result<Tensor> {
    trace::op(Step::Activation(function), &[xs], || pointwise(xs, function))
}

/// max(x, 0) with derivative 0 at 0, as PyTorch has it (candle's own has 1 there).
///
/// # Errors
/// An element type that is not floating point.
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    activate(xs, Pointwise::Relu)
}

/// exp(x) / Σ exp(x) over the last dimension, see [`crate::ops::softmax`].
///
/// # Errors
/// An element type that is not floating point.
pub fn softmax(xs: &Tensor) -> Result<Tensor> {
    trace::op(Step::Softmax, &[xs], || softmax_op(xs))
}

//! Softmax over the last dimension.

use super::Real;
use crate::kernels::softmax as kernel;
use crate::op::{Op, Operand, Passed, Saved, apply};
use candle_core::{D, Result, Tensor, bail};
use half::bf16;

/// yₖ = exp(xₖ - max x) / Σⱼ exp(xⱼ - max x) over the last dimension, as `torch.softmax(x, -1)`: any shape, the same
/// shape.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let ys = zoo_core::ops::softmax(&Tensor::new(&[[0f32, f32::NEG_INFINITY], [800., 800.]], &Device::Cpu)?)?;
/// assert_eq!(ys.to_vec2::<f32>()?, [[1., 0.], [0.5, 0.5]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// A scalar or an empty tensor, or an element type that is not floating point.
pub fn softmax(xs: &Tensor) -> Result<Tensor> {
    if xs.rank() == 0 || xs.elem_count() == 0 {
        bail!("softmax: wants a tensor with a last dimension and elements, got {:?}", xs.dims())
    }
    apply(Softmax { shape: xs.dims().to_vec() }, &[xs])
}

struct Softmax {
    shape: Vec<usize>,
}

impl Softmax {
    /// Elements of a row.
    fn row(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }
}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn saves(&self) -> (bool, bool) {
        (false, true)
    }

    fn forward<T: Real>(&self, inputs: &[&[T]]) -> Result<Vec<T>> {
        Ok(kernel::forward(self.row(), inputs[0]))
    }

    /// dx = y · (dy - Σ dy·y)
    fn backward<T: Real>(&self, saved: &Saved<T>) -> Result<Vec<Passed<T>>> {
        Ok(vec![Passed::Made(kernel::backward(self.row(), saved.output, saved.grad))])
    }

    /// A map (b, c, h, w) has its channels innermost, and not what ends its shape.
    fn maps(&self) -> usize {
        usize::from(self.shape.len() != 4)
    }

    fn forward_bf16(&self, inputs: &[Operand]) -> Result<Vec<bf16>> {
        Ok(kernel::mixed_forward(self.row(), inputs[0].map()))
    }

    fn backward_bf16(&self, saved: &Saved<bf16, Operand>) -> Result<Vec<Passed<bf16>>> {
        Ok(vec![Passed::Made(kernel::backward(self.row(), saved.output, saved.grad))])
    }

    fn fallback(&self, inputs: &[Tensor]) -> Result<Tensor> {
        candle_nn::ops::softmax(&inputs[0], D::Minus1)
    }
}

//! Activation functions, element by element, each with the derivative that PyTorch uses at the kinks.

use super::{Real, fallback};
use crate::kernels::pointwise::{self as kernel, Pointwise};
use crate::op::{Op, Operand, Passed, Saved, apply};
use candle_core::{Result, Tensor};
use half::bf16;

/// Applies the function to every element; the shape stays.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use zoo_core::ops::{pointwise, Pointwise};
/// let xs = Tensor::new(&[-1f32, 0., 2.], &Device::Cpu)?;
/// assert_eq!(pointwise(&xs, Pointwise::Relu)?.to_vec1::<f32>()?, [0., 0., 2.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// An element type that is not floating point.
pub fn pointwise(xs: &Tensor, function: Pointwise) -> Result<Tensor> {
    apply(Activation { function, shape: xs.dims().to_vec() }, &[xs])
}

struct Activation {
    function: Pointwise,
    shape: Vec<usize>,
}

impl Op for Activation {
    fn name(&self) -> &'static str {
        "pointwise"
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn forward<T: Real>(&self, inputs: &[&[T]]) -> Result<Vec<T>> {
        Ok(kernel::forward(self.function, inputs[0]))
    }

    fn backward<T: Real>(&self, saved: &Saved<T>) -> Result<Vec<Passed<T>>> {
        Ok(vec![Passed::Made(kernel::backward(self.function, saved.inputs[0], saved.grad))])
    }

    fn maps(&self) -> usize {
        1
    }

    fn forward_bf16(&self, inputs: &[Operand]) -> Result<Vec<bf16>> {
        Ok(kernel::forward(self.function, inputs[0].map()))
    }

    fn backward_bf16(&self, saved: &Saved<bf16, Operand>) -> Result<Vec<Passed<bf16>>> {
        Ok(vec![Passed::Made(kernel::backward(self.function, saved.inputs[0].map(), saved.grad))])
    }

    fn fallback(&self, inputs: &[Tensor]) -> Result<Tensor> {
        fallback::pointwise(&inputs[0], self.function)
    }
}

//! The sum of two tensors: where a shortcut meets its branch.

use super::Real;
use crate::kernels::bf16::pointwise;
use crate::kernels::copy;
use crate::op::{Op, Operand, Passed, Saved, apply};
use candle_core::{Result, Tensor, bail};
use half::bf16;

/// a + b, element by element, of one shape and type.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let (a, b) = (Tensor::new(&[1f32, 2.], &Device::Cpu)?, Tensor::new(&[10f32, 20.], &Device::Cpu)?);
/// assert_eq!(zoo_core::ops::add(&a, &b)?.to_vec1::<f32>()?, [11., 22.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Shapes or types that differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() || a.dtype() != b.dtype() {
        bail!("add: {:?} {:?} and {:?} {:?} do not fit together", a.dims(), a.dtype(), b.dims(), b.dtype())
    }
    if a.elem_count() == 0 {
        return a + b;
    }
    apply(Add { shape: a.dims().to_vec() }, &[a, b])
}

struct Add {
    shape: Vec<usize>,
}

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn saves(&self) -> (bool, bool) {
        (false, false)
    }

    fn forward<T: Real>(&self, inputs: &[&[T]]) -> Result<Vec<T>> {
        Ok(copy::add(inputs[0], inputs[1]))
    }

    fn backward<T: Real>(&self, _: &Saved<T>) -> Result<Vec<Passed<T>>> {
        Ok(vec![Passed::Whole, Passed::Whole])
    }

    fn maps(&self) -> usize {
        2
    }

    fn forward_bf16(&self, inputs: &[Operand]) -> Result<Vec<bf16>> {
        Ok(pointwise::add(inputs[0].map(), inputs[1].map()))
    }

    fn backward_bf16(&self, _: &Saved<bf16, Operand>) -> Result<Vec<Passed<bf16>>> {
        Ok(vec![Passed::Whole, Passed::Whole])
    }

    fn fallback(&self, inputs: &[Tensor]) -> Result<Tensor> {
        &inputs[0] + &inputs[1]
    }
}

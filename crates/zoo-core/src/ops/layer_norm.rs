//! Layer normalisation: Ba, Kiros and Hinton 2016, "Layer Normalization" (arXiv:1607.06450).

use super::{Real, fallback};
use crate::kernels::layer_norm as kernel;
use crate::op::{Op, Operand, Passed, Saved, apply};
use candle_core::{Result, Tensor, bail};
use half::bf16;

/// y = (x - μ) / √(σ² + eps) · weight + bias, with mean and biased variance over the last dimensions, those of
/// `weight`: as `torch.nn.functional.layer_norm`. Input (…, *weight's shape), bias of weight's shape.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// let (ones, zeros) = (Tensor::ones(4, DType::F32, &Device::Cpu)?, Tensor::zeros(4, DType::F32, &Device::Cpu)?);
/// let xs = Tensor::new(&[[1f32, 1., 3., 3.]], &Device::Cpu)?;
/// let ys = zoo_core::ops::layer_norm(&xs, &ones, &zeros, 0.0)?;
/// assert_eq!(ys.to_vec2::<f32>()?, [[-1., -1., 1., 1.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Shapes that do not fit together, naming them.
pub fn layer_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let (n, rank) = (weight.elem_count(), weight.rank());
    if rank == 0 || !xs.dims().ends_with(weight.dims()) || bias.dims() != weight.dims() || xs.elem_count() == 0 {
        bail!(
            "layer_norm: input {:?} wants to end with weight {:?} and bias {:?}, both alike",
            xs.dims(),
            weight.dims(),
            bias.dims()
        )
    }
    let op = LayerNorm { n, eps, shape: xs.dims().to_vec() };
    apply(op, &[xs, &weight.flatten_all()?, &bias.flatten_all()?])
}

struct LayerNorm {
    /// Elements of a row, over which a mean is taken.
    n: usize,
    eps: f64,
    shape: Vec<usize>,
}

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn forward<T: Real>(&self, inputs: &[&[T]]) -> Result<Vec<T>> {
        Ok(kernel::normalized(inputs[0], inputs[1], inputs[2], self.eps))
    }

    /// With x̂ = (x - μ) / std and g = dy · weight over n elements: dx = (g - (Σ g + x̂ · Σ g·x̂) / n) / std,
    /// d weight = Σ dy·x̂ and d bias = Σ dy over the rows.
    fn backward<T: Real>(&self, saved: &Saved<T>) -> Result<Vec<Passed<T>>> {
        let (xs, weight) = (saved.inputs[0], saved.inputs[1]);
        let mut dx = kernel::gradients(xs, saved.grad, weight, self.eps);
        let mut dw = dx.split_off(xs.len());
        let db = dw.split_off(self.n);
        Ok(vec![saved.want(0, || dx), saved.want(1, || dw), saved.want(2, || db)])
    }

    /// A map (b, c, h, w) has its channels innermost, and not what ends its shape.
    fn maps(&self) -> usize {
        usize::from(self.shape.len() != 4)
    }

    fn forward_bf16(&self, inputs: &[Operand]) -> Result<Vec<bf16>> {
        Ok(kernel::normalized(inputs[0].map(), inputs[1].weight(), inputs[2].weight(), self.eps))
    }

    fn backward_bf16(&self, saved: &Saved<bf16, Operand>) -> Result<Vec<Passed<bf16>>> {
        let (xs, weight) = (saved.inputs[0].map(), saved.inputs[1].weight());
        let (dx, [dw, db]) = kernel::mixed_gradients(xs, saved.grad, weight, self.eps);
        Ok(vec![saved.want(0, || dx), saved.want_weight(1, || dw), saved.want_weight(2, || db)])
    }

    fn fallback(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let rows = inputs[0].reshape(((), self.n))?;
        fallback::layer_norm(&rows, &inputs[1], &inputs[2], self.eps)?.reshape(self.shape.as_slice())
    }
}

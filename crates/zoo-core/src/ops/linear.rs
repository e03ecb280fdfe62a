//! The affine map of a fully connected layer.

use super::{Real, fallback, fits_type};
use crate::kernels::bf16::{Finish, bias, conv};
use crate::kernels::linear::{self as kernel, Sizes};
use crate::op::{Op, Operand, Passed, Saved, apply};
use crate::trace;
use candle_core::{Result, Tensor, bail};
use half::bf16;

/// y = x · weightᵀ + bias over the last dimension, as `torch.nn.functional.linear`.
///
/// Input (…, in), weight (out, in), bias (out); output (…, out).
///
/// ```
/// use candle_core::{Device, Tensor};
/// let weight = Tensor::new(&[[1f32, 2.], [0., 1.], [3., 0.]], &Device::Cpu)?;
/// let ys = zoo_core::ops::linear(&Tensor::new(&[[1f32, 10.]], &Device::Cpu)?, &weight, None)?;
/// assert_eq!(ys.to_vec2::<f32>()?, [[21., 10., 3.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Shapes or element types that do not fit together, naming them.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (x, w) = (xs.dims(), weight.dims());
    let (&[ref lead @ .., c_in], &[c_out, w_in]) = (x, w) else {
        bail!("linear: wants input (…, in) and weight (out, in), got {x:?} and {w:?}")
    };
    if c_in != w_in || xs.elem_count() == 0 || c_out == 0 {
        bail!("linear: weight {w:?} does not fit input {x:?}")
    }
    if let Some(bias) = bias
        && bias.dims() != [c_out]
    {
        bail!("linear: bias {:?} does not fit weight {w:?}", bias.dims())
    }
    if let Some(other) = [Some(weight), bias].into_iter().flatten().find(|t| !fits_type(xs, t)) {
        bail!("linear: input is {:?}, weight or bias {:?}", xs.dtype(), other.dtype())
    }
    let sizes = Sizes { rows: lead.iter().product(), c_in, c_out };
    trace::count_macs((sizes.rows * c_in * c_out) as u64);
    let op = Linear { sizes, shape: [lead, &[c_out]].concat() };
    match bias {
        Some(bias) => apply(op, &[xs, weight, bias]),
        None => apply(op, &[xs, weight]),
    }
}

struct Linear {
    sizes: Sizes,
    /// Of the output: (…, out).
    shape: Vec<usize>,
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn forward<T: Real>(&self, inputs: &[&[T]]) -> Result<Vec<T>> {
        Ok(kernel::forward(self.sizes, inputs[0], inputs[1], inputs.get(2).copied()))
    }

    /// dx = dy · W, dW = dyᵀ · x, and the gradient of the bias is the column sums of dy.
    fn backward<T: Real>(&self, saved: &Saved<T>) -> Result<Vec<Passed<T>>> {
        let (xs, weight, grad) = (saved.inputs[0], saved.inputs[1], saved.grad);
        let mut all = vec![
            saved.want(0, || kernel::input_grad(self.sizes, grad, weight)),
            saved.want(1, || kernel::weight_grad(self.sizes, xs, grad)),
        ];
        if saved.inputs.len() > 2 {
            all.push(saved.want(2, || kernel::bias_grad(self.sizes, grad)));
        }
        Ok(all)
    }

    fn maps(&self) -> usize {
        1
    }

    fn forward_bf16(&self, inputs: &[Operand]) -> Result<Vec<bf16>> {
        let finish = Finish::bias(inputs.get(2).map(|bias| bias.weight()));
        Ok(conv::forward(&self.sizes.as_conv(), inputs[0].map(), inputs[1].weight(), &finish))
    }

    fn backward_bf16(&self, saved: &Saved<bf16, Operand>) -> Result<Vec<Passed<bf16>>> {
        let (g, xs, weight, grad) =
            (&self.sizes.as_conv(), saved.inputs[0].map(), saved.inputs[1].weight(), saved.grad);
        let mut all = vec![
            saved.want(0, || conv::input_grad(g, grad, weight)),
            saved.want_weight(1, || conv::weight_grad(g, xs, grad)),
        ];
        if saved.inputs.len() > 2 {
            all.push(saved.want_weight(2, || bias::gradient(grad, g.c_out)));
        }
        Ok(all)
    }

    fn fallback(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let rows = inputs[0].reshape((self.sizes.rows, self.sizes.c_in))?;
        fallback::linear(&rows, &inputs[1], inputs.get(2))?.reshape(self.shape.as_slice())
    }
}

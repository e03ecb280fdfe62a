//! 2-d convolution (cross-correlation, as every framework calls it) with groups, stride, padding and dilation.

use super::{Real, fallback, fits_type};
use crate::kernels::bf16::{Finish, bias, conv as mixed};
use crate::kernels::conv::{self as kernel, Conv2dParams, Epilogue, Geometry};
use crate::op::{Op, Operand, Passed, Saved, apply};
use crate::{pass, trace};
use candle_core::{Error, Result, Tensor, bail};
use half::bf16;

/// y\[n, o\] = bias\[o\] + Σ over i in o's group of weight\[o, i\] ⋆ x\[n, i\], where ⋆ is 2-d cross-correlation.
///
/// Input (b, c_in, h, w), weight (c_out, c_in / groups, kh, kw), bias (c_out); output (b, c_out, oh, ow) with
/// oh = ⌊(h + 2·padding - dilation·(kh - 1) - 1) / stride⌋ + 1, as `torch.nn.functional.conv2d`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use zoo_core::ops::{conv2d, Conv2dParams};
/// let image = Tensor::ones((1, 1, 3, 3), candle_core::DType::F32, &Device::Cpu)?;
/// let params = Conv2dParams { padding: (1, 1), ..Default::default() };
/// let ys = conv2d(&image, &image, None, params)?;
/// // Each output counts the taps that fall inside the image.
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [4., 6., 4., 6., 9., 6., 4., 6., 4.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Shapes or element types that do not fit together, naming them.
pub fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, params: Conv2dParams) -> Result<Tensor> {
    let geometry = geometry(xs, weight, bias, params)?;
    trace::count_macs(geometry.macs());
    let is_plain = ![Some(xs), Some(weight), bias].into_iter().flatten().any(pass::tracks);
    let op = Conv2d { geometry, params, is_plain };
    match bias {
        Some(bias) => apply(op, &[xs, weight, bias]),
        None => apply(op, &[xs, weight]),
    }
}

/// The sizes of a convolution of these tensors, checked.
pub(crate) fn geometry(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, params: Conv2dParams) -> Result<Geometry> {
    let geometry = Geometry::new(xs.dims(), weight.dims(), params).map_err(Error::msg)?;
    if let Some(bias) = bias
        && bias.dims() != [geometry.c_out]
    {
        bail!("conv2d: bias {:?} does not fit weight {:?}", bias.dims(), weight.dims())
    }
    if let Some(other) = [Some(weight), bias].into_iter().flatten().find(|t| !fits_type(xs, t)) {
        bail!("conv2d: input is {:?}, weight or bias {:?}", xs.dtype(), other.dtype())
    }
    Ok(geometry)
}

struct Conv2d {
    geometry: Geometry,
    params: Conv2dParams,
    /// Whether no gradient will follow.
    is_plain: bool,
}

impl Op for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn shape(&self) -> Vec<usize> {
        let Geometry { b, c_out, oh, ow, .. } = self.geometry;
        vec![b, c_out, oh, ow]
    }

    fn forward<T: Real>(&self, inputs: &[&[T]]) -> Result<Vec<T>> {
        let epilogue = Epilogue::bias(inputs.get(2).copied()).allow_winograd(self.is_plain);
        Ok(kernel::forward(&self.geometry, inputs[0], inputs[1], &epilogue))
    }

    fn backward<T: Real>(&self, saved: &Saved<T>) -> Result<Vec<Passed<T>>> {
        let (g, xs, weight, grad) = (&self.geometry, saved.inputs[0], saved.inputs[1], saved.grad);
        let mut all = vec![
            saved.want(0, || kernel::input_grad(g, grad, weight)),
            saved.want(1, || kernel::weight_grad(g, xs, grad)),
        ];
        if saved.inputs.len() > 2 {
            all.push(saved.want(2, || kernel::bias_grad(g, grad)));
        }
        Ok(all)
    }

    fn maps(&self) -> usize {
        1
    }

    fn forward_bf16(&self, inputs: &[Operand]) -> Result<Vec<bf16>> {
        let finish = Finish::bias(inputs.get(2).map(|bias| bias.weight()));
        Ok(mixed::forward(&self.geometry, inputs[0].map(), inputs[1].weight(), &finish))
    }

    fn backward_bf16(&self, saved: &Saved<bf16, Operand>) -> Result<Vec<Passed<bf16>>> {
        let (g, xs, weight, grad) = (&self.geometry, saved.inputs[0].map(), saved.inputs[1].weight(), saved.grad);
        let mut all = vec![
            saved.want(0, || mixed::input_grad(g, grad, weight)),
            saved.want_weight(1, || mixed::weight_grad(g, xs, grad)),
        ];
        if saved.inputs.len() > 2 {
            all.push(saved.want_weight(2, || bias::gradient(grad, g.c_out)));
        }
        Ok(all)
    }

    fn fallback(&self, inputs: &[Tensor]) -> Result<Tensor> {
        fallback::conv2d(&inputs[0], &inputs[1], inputs.get(2), self.params)
    }
}

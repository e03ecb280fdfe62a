//! Softmax over the last dimension.

use super::{Path, elements, for_real, path};
use crate::kernels::softmax as kernel;
use crate::{tape, trace};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, DType, Layout, Result, Shape, Tensor, WithDType, bail};

/// yₖ = exp(xₖ - max x) / Σⱼ exp(xⱼ - max x) over the last dimension, as `torch.softmax(x, -1)`: any shape, the same shape.
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
    match path(xs) {
        Path::Shape => trace::shape_only(xs.dims(), xs.dtype(), xs.device()),
        Path::Compose => candle_nn::ops::softmax(xs, D::Minus1),
        Path::KernelInF32 => tape::apply1(&xs.to_dtype(DType::F32)?.contiguous()?, Softmax)?.to_dtype(xs.dtype()),
        Path::Kernel => tape::apply1(&tape::contiguous(xs)?, Softmax),
    }
}

struct Softmax;

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        let n = xl.dims()[xl.dims().len() - 1];
        for_real!("softmax", x, T => {
            let xs = elements::<T>("softmax", x, xl)?;
            Ok((T::to_cpu_storage_owned(kernel::forward(n, xs)), xl.shape().clone()))
        })
    }

    /// dx = y · (dy - Σ dy·y)
    fn bwd(&self, _: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        ys.apply_op2_no_bwd(&grad.contiguous()?, &SoftmaxGrad).map(Some)
    }
}

/// (output, gradient of the output) -> gradient of the input.
struct SoftmaxGrad;

impl CustomOp2 for SoftmaxGrad {
    fn name(&self) -> &'static str {
        "softmax gradient"
    }

    fn cpu_fwd(&self, y: &CpuStorage, yl: &Layout, g: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (op, n) = (self.name(), yl.dims()[yl.dims().len() - 1]);
        for_real!(op, y, T => {
            let (ys, grad) = (elements::<T>(op, y, yl)?, elements::<T>(op, g, gl)?);
            Ok((T::to_cpu_storage_owned(kernel::backward(n, ys, grad)), yl.shape().clone()))
        })
    }
}

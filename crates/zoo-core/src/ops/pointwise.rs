//! Activation functions, element by element, each with the derivative that PyTorch uses at the kinks.

use super::{Path, compose, elements, for_real, path};
use crate::kernels::pointwise::{self as kernel, Pointwise};
use crate::{tape, trace};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType};

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
    match path(xs) {
        Path::Shape => trace::shape_only(xs.dims(), xs.dtype(), xs.device()),
        Path::Compose => compose::pointwise(xs, function),
        Path::KernelInF32 => tape::apply1(&xs.to_dtype(DType::F32)?.contiguous()?, function)?.to_dtype(xs.dtype()),
        Path::Kernel => tape::apply1(&tape::contiguous(xs)?, function),
    }
}

impl CustomOp1 for Pointwise {
    fn name(&self) -> &'static str {
        "pointwise"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!("pointwise", x, T => {
            let xs = elements::<T>("pointwise", x, xl)?;
            Ok((T::to_cpu_storage_owned(kernel::forward(*self, xs)), xl.shape().clone()))
        })
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        xs.apply_op2_no_bwd(&grad.contiguous()?, self).map(Some)
    }
}

/// (input, gradient of the output) -> gradient of the input.
impl CustomOp2 for Pointwise {
    fn name(&self) -> &'static str {
        "pointwise gradient"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, g: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!("pointwise gradient", x, T => {
            let xs = elements::<T>("pointwise gradient", x, xl)?;
            let grad = elements::<T>("pointwise gradient", g, gl)?;
            Ok((T::to_cpu_storage_owned(kernel::backward(*self, xs, grad)), xl.shape().clone()))
        })
    }
}

//! Layer normalisation: Ba, Kiros and Hinton 2016, "Layer Normalization" (arXiv:1607.06450).

use super::cpu::layer_norm as kernel;
use super::{Path, compose, elements, for_real, path};
use crate::{tape, trace};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, WithDType, bail};

/// y = (x - μ) / √(σ² + eps) · weight + bias, with mean and biased variance over the last dimensions, those of `weight`: as
/// `torch.nn.functional.layer_norm`. Input (…, *weight's shape), bias of weight's shape.
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
    let flat = |t: &Tensor| t.flatten_all()?.contiguous();
    let rows = || xs.reshape((xs.elem_count() / n, n))?.contiguous();
    match path(xs) {
        Path::Shape => trace::shape_only(xs.dims(), xs.dtype(), xs.device()),
        Path::Compose => compose::layer_norm(&rows()?, &flat(weight)?, &flat(bias)?, eps)?.reshape(xs.shape()),
        Path::KernelInF32 => {
            let [rows, weight, bias] = [rows()?, flat(weight)?, flat(bias)?].map(|t| t.to_dtype(DType::F32));
            tape::apply3(&rows?, &weight?, &bias?, LayerNorm { eps })?.to_dtype(xs.dtype())?.reshape(xs.shape())
        }
        Path::Kernel => tape::apply3(&rows()?, &flat(weight)?, &flat(bias)?, LayerNorm { eps })?.reshape(xs.shape()),
    }
}

#[derive(Clone, Copy)]
struct LayerNorm {
    eps: f64,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let op = CustomOp3::name(self);
        for_real!(op, x, T => {
            let (weight, bias) = (elements::<T>(op, w, wl)?, elements::<T>(op, b, bl)?);
            let ys = kernel::forward(elements(op, x, xl)?, weight, bias, self.eps);
            Ok((T::to_cpu_storage_owned(ys), xl.shape().clone()))
        })
    }

    /// With x̂ = (x - μ) / std and g = dy · weight over n elements: dx = (g - (Σ g + x̂ · Σ g·x̂) / n) / std,
    /// d weight = Σ dy·x̂ and d bias = Σ dy over the rows.
    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let dx =
            tape::tracks(xs).then(|| xs.apply_op3_no_bwd(&grad, weight, &InputGrad { eps: self.eps })).transpose()?;
        if !tape::tracks(weight) && !tape::tracks(bias) {
            return Ok((dx, None, None));
        }
        let sums = xs.apply_op2_no_bwd(&grad, &WeightGrad { eps: self.eps })?;
        Ok((dx, Some(sums.get(0)?), Some(sums.get(1)?)))
    }
}

/// (input, gradient of the output, weight) -> gradient of the input.
struct InputGrad {
    eps: f64,
}

impl CustomOp3 for InputGrad {
    fn name(&self) -> &'static str {
        "layer_norm gradient"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        g: &CpuStorage,
        gl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let op = CustomOp3::name(self);
        for_real!(op, x, T => {
            let (grad, weight) = (elements::<T>(op, g, gl)?, elements::<T>(op, w, wl)?);
            let dx = kernel::input_grad(elements(op, x, xl)?, grad, weight, self.eps);
            Ok((T::to_cpu_storage_owned(dx), xl.shape().clone()))
        })
    }
}

/// (input, gradient of the output) -> (2, n): gradients of weight and bias.
struct WeightGrad {
    eps: f64,
}

impl CustomOp2 for WeightGrad {
    fn name(&self) -> &'static str {
        "layer_norm weight gradient"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, g: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (op, n) = (CustomOp2::name(self), xl.dims()[1]);
        for_real!(op, x, T => {
            let sums = kernel::weight_grad::<T>(n, elements(op, x, xl)?, elements(op, g, gl)?, self.eps);
            Ok((T::to_cpu_storage_owned(sums), (2, n).into()))
        })
    }
}

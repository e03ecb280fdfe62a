//! Layer normalisation: Ba, Kiros and Hinton 2016, "Layer Normalization" (arXiv:1607.06450).

use super::{Path, compose, elements, for_real, path};
use crate::kernels::layer_norm as kernel;
use crate::{tape, trace};
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, WithDType, bail};

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
    let rows = || tape::contiguous(&tape::reshape(xs, (xs.elem_count() / n, n))?);
    match path(xs) {
        Path::Shape => trace::shape_only(xs.dims(), xs.dtype(), xs.device()),
        Path::Compose => compose::layer_norm(&rows()?, &flat(weight)?, &flat(bias)?, eps)?.reshape(xs.shape()),
        Path::KernelInF32 => {
            let [rows, weight, bias] = [rows()?, flat(weight)?, flat(bias)?].map(|t| t.to_dtype(DType::F32));
            tape::apply3(&rows?, &weight?, &bias?, LayerNorm { eps })?.to_dtype(xs.dtype())?.reshape(xs.shape())
        }
        Path::Kernel => {
            let ys = tape::apply3(&rows()?, &flat(weight)?, &flat(bias)?, LayerNorm { eps })?;
            tape::reshape(&ys, xs.shape())
        }
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
            let xs = elements(op, x, xl)?;
            let ys = kernel::normalized(xs, weight, bias, self.eps);
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
        let (rows, n) = xs.dims2()?;
        let all = xs.apply_op3_no_bwd(&grad.contiguous()?, weight, &Gradients { eps: self.eps })?;
        let part = |row: usize, rows: usize| all.narrow(0, row, rows);
        let dx = tape::tracks(xs).then(|| part(0, rows)).transpose()?;
        let sum = |row: usize| part(row, 1)?.reshape(n)?.copy();
        let dw = tape::tracks(weight).then(|| sum(rows)).transpose()?;
        let db = tape::tracks(bias).then(|| sum(rows + 1)).transpose()?;
        Ok((dx, dw, db))
    }
}

/// (input, gradient of the output, weight) -> the gradients of input, weight and bias below each other: (rows + 2, n).
struct Gradients {
    eps: f64,
}

impl CustomOp3 for Gradients {
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
        let (op, (rows, n)) = (CustomOp3::name(self), xl.shape().dims2()?);
        for_real!(op, x, T => {
            let (xs, grad, weight) = (elements(op, x, xl)?, elements(op, g, gl)?, elements::<T>(op, w, wl)?);
            let all = kernel::gradients(xs, grad, weight, self.eps);
            Ok((T::to_cpu_storage_owned(all), (rows + 2, n).into()))
        })
    }
}

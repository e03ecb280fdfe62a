//! Batch normalisation: Ioffe and Szegedy 2015, "Batch Normalization: Accelerating Deep Network Training by Reducing
//! Internal Covariate Shift" (arXiv:1502.03167).

use super::cpu::batch_norm::{self as kernel, Dims};
use super::{Path, compose, elements, for_real, path};
use crate::trace;
use candle_core::{CpuStorage, CustomOp1, CustomOp3, DType, Layout, Result, Shape, Tensor, WithDType, bail};

/// Mean and biased variance of each channel over batch and pixels, both (c), off the graph.
#[derive(Debug, Clone)]
pub struct BatchStats {
    /// μ = Σ x / n
    pub mean: Tensor,
    /// σ² = Σ (x - μ)² / n
    pub var: Tensor,
    /// n = b · h · w, the number of values in each mean.
    pub count: usize,
}

fn dims(xs: &Tensor) -> Result<Dims> {
    match xs.dims() {
        &[b, c, ref rest @ ..] if xs.elem_count() > 0 => Ok((b, c, rest.iter().product())),
        other => bail!("batch_norm: wants a non-empty input (b, c, …), got {other:?}"),
    }
}

/// The statistics that training normalises with; input (b, c) or (b, c, …).
///
/// # Errors
/// An input of fewer than two dimensions, or an empty one.
pub fn batch_stats(xs: &Tensor) -> Result<BatchStats> {
    let (b, c, s) = dims(xs)?;
    let xs = xs.detach();
    let (mean, var) = match path(&xs) {
        Path::Shape => {
            let row = || trace::shape_only(&[c], xs.dtype(), xs.device());
            (row()?, row()?)
        }
        Path::Compose => compose::batch_stats(&xs.reshape((b, c, s))?)?,
        Path::KernelInF32 => {
            let stats = batch_stats(&xs.to_dtype(DType::F32)?)?;
            (stats.mean, stats.var)
        }
        Path::Kernel => {
            let stats = xs.contiguous()?.apply_op1_no_bwd(&Stats((b, c, s)))?;
            (stats.get(0)?, stats.get(1)?)
        }
    };
    Ok(BatchStats { mean, var, count: b * s })
}

/// y = (x - μ) / √(σ² + eps) · weight + bias, channel by channel; input (b, c) or (b, c, …), the rest (c).
///
/// With `through_stats` the gradient treats `mean` and `var` as the functions of x that [`batch_stats`] computes
/// (training); without, as constants (running statistics).
///
/// # Errors
/// Shapes that do not fit together, naming them.
pub fn batch_norm(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    (mean, var): (&Tensor, &Tensor),
    eps: f64,
    through_stats: bool,
) -> Result<Tensor> {
    let (b, c, s) = dims(xs)?;
    if let Some(t) = [weight, bias, mean, var].into_iter().find(|t| t.dims() != [c]) {
        bail!("batch_norm: input {:?} wants weight, bias and statistics of shape [{c}], got {:?}", xs.dims(), t.dims())
    }
    let scale = |dtype| -> Result<(Tensor, Tensor)> {
        Ok((mean.detach().to_dtype(dtype)?, (var.detach().to_dtype(dtype)? + eps)?.sqrt()?.recip()?))
    };
    match path(xs) {
        Path::Shape => trace::shape_only(xs.dims(), xs.dtype(), xs.device()),
        Path::Compose => {
            let ys = compose::batch_norm(&xs.reshape((b, c, s))?, weight, bias, (mean, var), eps, through_stats)?;
            ys.reshape(xs.shape())
        }
        Path::KernelInF32 => {
            let (mean, inv_std) = scale(DType::F32)?;
            let op = BatchNorm { dims: (b, c, s), mean, inv_std, through_stats };
            let [xs32, weight, bias] = [xs, weight, bias].map(|t| t.to_dtype(DType::F32));
            xs32?.contiguous()?.apply_op3(&weight?, &bias?, op)?.to_dtype(xs.dtype())
        }
        Path::Kernel => {
            let (mean, inv_std) = scale(xs.dtype())?;
            let op = BatchNorm { dims: (b, c, s), mean, inv_std, through_stats };
            xs.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
        }
    }
}

/// Input -> (2, c): mean and biased variance.
struct Stats(Dims);

impl CustomOp1 for Stats {
    fn name(&self) -> &'static str {
        "batch_norm statistics"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(self.name(), x, T => {
            let stats = kernel::stats::<T>(self.0, elements(self.name(), x, xl)?);
            Ok((T::to_cpu_storage_owned(stats), (2, self.0.1).into()))
        })
    }
}

struct BatchNorm {
    dims: Dims,
    mean: Tensor,
    /// 1 / √(σ² + eps)
    inv_std: Tensor,
    through_stats: bool,
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
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
        for_real!(self.name(), x, T => {
            let (weight, bias) = (elements::<T>(self.name(), w, wl)?, elements::<T>(self.name(), b, bl)?);
            let (mean, inv_std) = (self.mean.to_vec1::<T>()?, self.inv_std.to_vec1::<T>()?);
            let scale = weight.iter().zip(inv_std).map(|(&w, i)| w * i);
            let coefficients: Vec<T> = mean.iter().copied().chain(scale).chain(bias.iter().copied()).collect();
            let ys = kernel::affine(self.dims, elements(self.name(), x, xl)?, &coefficients);
            Ok((T::to_cpu_storage_owned(ys), xl.shape().clone()))
        })
    }

    /// With x̂ = (x - μ) / std and n values a channel:
    /// d bias = Σ dy, d weight = Σ dy·x̂, and dx = weight / std · (dy - (Σ dy + x̂ · Σ dy·x̂) / n);
    /// with constant statistics dx = weight / std · dy.
    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let sums = xs.apply_op3_no_bwd(&grad, &self.mean, &GradSums(self.dims))?;
        let (dy_sum, dyx_sum) = (sums.get(0)?, (sums.get(1)? * &self.inv_std)?);
        let dx = if xs.track_op() {
            let count = (self.dims.0 * self.dims.2) as f64;
            let a = (weight.detach() * &self.inv_std)?;
            let (from_dyx, from_dy) = if self.through_stats {
                (((&a * &dyx_sum)? * (&self.inv_std / count)?)?, ((&a * &dy_sum)? / count)?)
            } else {
                (a.zeros_like()?, a.zeros_like()?)
            };
            let coefficients = Tensor::stack(&[&self.mean, &a, &from_dyx, &from_dy], 0)?;
            Some(xs.apply_op3_no_bwd(&grad, &coefficients, &InputGrad(self.dims))?)
        } else {
            None
        };
        Ok((dx, weight.track_op().then_some(dyx_sum), bias.track_op().then_some(dy_sum)))
    }
}

/// (input, gradient of the output, means) -> (2, c): Σ dy and Σ dy·(x - μ).
struct GradSums(Dims);

impl CustomOp3 for GradSums {
    fn name(&self) -> &'static str {
        "batch_norm gradient sums"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        g: &CpuStorage,
        gl: &Layout,
        m: &CpuStorage,
        ml: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let op = CustomOp3::name(self);
        for_real!(op, x, T => {
            let sums = kernel::grad_sums::<T>(self.0, elements(op, x, xl)?, elements(op, g, gl)?, elements(op, m, ml)?);
            Ok((T::to_cpu_storage_owned(sums), (2, self.0.1).into()))
        })
    }
}

/// (input, gradient of the output, coefficients (4, c)) -> gradient of the input.
struct InputGrad(Dims);

impl CustomOp3 for InputGrad {
    fn name(&self) -> &'static str {
        "batch_norm gradient"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        g: &CpuStorage,
        gl: &Layout,
        c: &CpuStorage,
        cl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let op = CustomOp3::name(self);
        for_real!(op, x, T => {
            let dx = kernel::input_grad::<T>(self.0, elements(op, x, xl)?, elements(op, g, gl)?, elements(op, c, cl)?);
            Ok((T::to_cpu_storage_owned(dx), xl.shape().clone()))
        })
    }
}

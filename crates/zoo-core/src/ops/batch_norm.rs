//! Batch normalisation: Ioffe and Szegedy 2015, "Batch Normalization: Accelerating Deep Network Training by Reducing
//! Internal Covariate Shift" (arXiv:1502.03167).

use super::{Path, Pointwise, Real, compose, elements, for_dtype, for_real, path, pointwise, read, tensor};
use crate::kernels::batch_norm::{self as kernel, Affine, CutBy, Dims, Window};
use crate::kernels::fused_activation::FusedActivation;
use crate::{tape, trace};
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
    batch_norm_act(xs, &Norm { weight, bias, mean, var, eps, through_stats }, None)
}

/// What a batch normalisation reads besides its input, each tensor (c).
pub(crate) struct Norm<'a> {
    pub weight: &'a Tensor,
    pub bias: &'a Tensor,
    pub mean: &'a Tensor,
    pub var: &'a Tensor,
    pub eps: f64,
    pub through_stats: bool,
}

impl Norm<'_> {
    pub(crate) fn check(&self, dims: &[usize]) -> Result<()> {
        let c = dims[1];
        match [self.weight, self.bias, self.mean, self.var].into_iter().find(|t| t.dims() != [c]) {
            Some(t) => {
                bail!("batch_norm: input {dims:?} wants weight, bias and statistics of shape [{c}], got {:?}", t.dims())
            }
            None => Ok(()),
        }
    }

    /// The numbers themselves.
    pub(crate) fn rows<T: Real>(&self) -> Result<Rows<T>> {
        let row = |t: &Tensor| t.detach().to_dtype(T::DTYPE)?.contiguous()?.to_vec1::<T>();
        let inv_std: Vec<T> =
            row(self.var)?.into_iter().map(|v| T::from_f64(1.0 / (v.to_f64() + self.eps).sqrt())).collect();
        let scale = row(self.weight)?.iter().zip(&inv_std).map(|(&w, &i)| w * i).collect();
        Ok(Rows { mean: row(self.mean)?, inv_std, scale, shift: row(self.bias)?, through_stats: self.through_stats })
    }
}

/// The coefficients of one normalisation: y = (x - mean) · scale + shift.
pub(crate) struct Rows<T> {
    pub mean: Vec<T>,
    /// 1 / √(σ² + eps)
    pub inv_std: Vec<T>,
    /// weight / √(σ² + eps)
    pub scale: Vec<T>,
    pub shift: Vec<T>,
    pub through_stats: bool,
}

/// Gradients of weight and bias, and the coefficients of dx = scale · g - b · (x - μ) - d.
pub(crate) struct Sums<T> {
    pub weight: Vec<T>,
    pub bias: Vec<T>,
    pub b: Vec<T>,
    pub d: Vec<T>,
}

/// Gradients of a normalisation.
pub(crate) struct NormGrads<T> {
    /// Of what was added behind it, if asked for and if it is another than the output's.
    pub skip: Option<Vec<T>>,
    pub weight: Vec<T>,
    pub bias: Vec<T>,
}

impl<T: Real> Rows<T> {
    pub(crate) fn affine(&self) -> Affine<'_, T> {
        Affine { mean: &self.mean, scale: &self.scale, shift: &self.shift }
    }

    /// With x̂ = (x - μ) / std, n values a channel and g the gradient of y behind the clamp:
    /// d bias = Σ g, d weight = Σ g·x̂, and dx = weight / std · (g - (Σ g + x̂ · Σ g·x̂) / n);
    /// with constant statistics dx = weight / std · g.
    ///
    /// `input` computes dx from x, of which it may be the owner, and the gradient that it is given.
    pub(crate) fn gradients<X: AsRef<[T]>, R>(
        &self,
        dims: Dims,
        xs: X,
        grad: &[T],
        (clamp, output): (FusedActivation, Option<&[T]>),
        wants_skip: bool,
        input: impl FnOnce(X, &[T], &kernel::InputGrad<T>, (FusedActivation, CutBy<T>)) -> R,
    ) -> (R, NormGrads<T>) {
        let cut = output.map_or(CutBy::Input(self.affine()), CutBy::Output);
        let keep = wants_skip && clamp != FusedActivation::None;
        let whole = (grad, Window::whole(dims));
        let (sums, kept) = kernel::grad_sums(dims, xs.as_ref(), whole, &self.mean, (clamp, cut), keep);
        let Sums { weight, bias, b, d } = self.sums(dims, 0, &sums);
        let rest = self.through_stats.then_some((&b[..], &d[..]));
        let by = kernel::InputGrad { mean: &self.mean, a: &self.scale, rest };
        let dx = match &kept {
            Some(kept) => input(xs, kept, &by, (FusedActivation::None, cut)),
            None => input(xs, grad, &by, (clamp, cut)),
        };
        (dx, NormGrads { skip: kept, weight, bias })
    }

    /// What follows from Σ g and Σ g·(x - μ), for the channels from `first` on that are of `dims`.
    pub(crate) fn sums(&self, dims: Dims, first: usize, sums: &[T]) -> Sums<T> {
        let (bias, dots) = sums.split_at(dims.1);
        let (scale, inv_std) = (&self.scale[first..], &self.inv_std[first..]);
        let weight: Vec<T> = dots.iter().zip(inv_std).map(|(&s, &i)| s * i).collect();
        let count = T::from_f64((dims.0 * dims.2) as f64);
        let (b, d) =
            (0..dims.1).map(|c| (scale[c] * weight[c] * inv_std[c] / count, scale[c] * bias[c] / count)).unzip();
        Sums { weight, bias: bias.to_vec(), b, d }
    }
}

/// Batch normalisation, then an activation, as one operation where that only cuts.
pub(crate) fn batch_norm_act(xs: &Tensor, norm: &Norm, activation: Option<Pointwise>) -> Result<Tensor> {
    let dims = dims(xs)?;
    norm.check(xs.dims())?;
    let (fused, clamp) = match FusedActivation::of(activation) {
        Some(clamp) => (true, clamp),
        None => (false, FusedActivation::None),
    };
    let (ys, is_done) = match path(xs) {
        Path::Shape => (trace::shape_only(xs.dims(), xs.dtype(), xs.device())?, false),
        Path::Compose => {
            let Norm { weight, bias, mean, var, eps, through_stats } = *norm;
            let rows = xs.reshape(dims)?;
            (compose::batch_norm(&rows, weight, bias, (mean, var), eps, through_stats)?.reshape(xs.shape())?, false)
        }
        Path::Kernel => (run(&tape::contiguous(xs)?, norm, dims, clamp)?, fused),
        Path::KernelInF32 => {
            let [weight, bias, mean, var] =
                [norm.weight, norm.bias, norm.mean, norm.var].map(|t| t.to_dtype(DType::F32));
            let norm = Norm { weight: &weight?, bias: &bias?, mean: &mean?, var: &var?, ..*norm };
            (run(&xs.to_dtype(DType::F32)?.contiguous()?, &norm, dims, clamp)?.to_dtype(xs.dtype())?, fused)
        }
    };
    match activation {
        Some(function) if !is_done => pointwise(&ys, function),
        _ => Ok(ys),
    }
}

fn run(xs: &Tensor, norm: &Norm, dims: Dims, clamp: FusedActivation) -> Result<Tensor> {
    for_dtype!("batch_norm", xs.dtype(), T => {
        let op = BatchNorm { dims, rows: norm.rows::<T>()?, clamp };
        tape::apply3(xs, &norm.weight.contiguous()?, &norm.bias.contiguous()?, op)
    })
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

/// (input, weight, bias) -> output; weight and bias are in the rows already.
struct BatchNorm<T> {
    dims: Dims,
    rows: Rows<T>,
    clamp: FusedActivation,
}

impl<T: Real> CustomOp3 for BatchNorm<T> {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ys = kernel::affine(self.dims, elements(self.name(), x, xl)?, self.rows.affine(), None, self.clamp);
        Ok((T::to_cpu_storage_owned(ys), xl.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let wants_input = tape::tracks(xs);
        let (dx, grads) = read::<T, _>(xs, |x| {
            read::<T, _>(&grad, |grad| {
                self.rows.gradients(self.dims, x, grad, (self.clamp, None), false, |x, grad, by, clamp| {
                    wants_input.then(|| kernel::input_grad(self.dims, x, (grad, Window::whole(self.dims)), by, clamp))
                })
            })
        })??;
        let dx = dx.map(|dx| tensor(dx, xs.shape())).transpose()?;
        let row = |wanted: &Tensor, row: Vec<T>| match tape::tracks(wanted) {
            true => tensor(row, self.dims.1).map(Some),
            false => Ok(None),
        };
        Ok((dx, row(weight, grads.weight)?, row(bias, grads.bias)?))
    }
}

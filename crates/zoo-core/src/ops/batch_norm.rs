//! Batch normalisation: Ioffe and Szegedy 2015, "Batch Normalization: Accelerating Deep Network Training by Reducing
//! Internal Covariate Shift" (arXiv:1502.03167).

use super::cpu::batch_norm::{self as kernel, Affine, CutBy, Dims};
use super::cpu::clamp::Clamp;
use super::{Path, Pointwise, Real, compose, elements, for_dtype, for_real, path, pointwise, read, tensor};
use crate::tape::{self, Gradient};
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
    batch_norm_act(xs, &Norm { weight, bias, mean, var, eps, through_stats }, None, None)
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
    /// `input` gets what computes dx, from the gradient that it is given.
    pub(crate) fn gradients<R>(
        &self,
        dims: Dims,
        xs: &mut Xs<T>,
        grad: &[T],
        (clamp, output): (Clamp, Option<&[T]>),
        wants_skip: bool,
        input: impl FnOnce(&mut Xs<T>, &[T], &kernel::InputGrad<T>, (Clamp, CutBy<T>)) -> R,
    ) -> (R, NormGrads<T>) {
        let cut = output.map_or(CutBy::Input(self.affine()), CutBy::Output);
        let keep = wants_skip && clamp != Clamp::None;
        let (sums, kept) = kernel::grad_sums(dims, xs.as_slice(), grad, &self.mean, (clamp, cut), keep);
        let (bias, dots) = sums.split_at(dims.1);
        let weight: Vec<T> = dots.iter().zip(&self.inv_std).map(|(&s, &i)| s * i).collect();
        let count = T::from_f64((dims.0 * dims.2) as f64);
        let (b, d): (Vec<T>, Vec<T>) = (0..dims.1)
            .map(|c| (self.scale[c] * weight[c] * self.inv_std[c] / count, self.scale[c] * bias[c] / count))
            .unzip();
        let rest = self.through_stats.then_some((&b[..], &d[..]));
        let by = kernel::InputGrad { mean: &self.mean, a: &self.scale, rest };
        let dx = match &kept {
            Some(kept) => input(xs, kept, &by, (Clamp::None, cut)),
            None => input(xs, grad, &by, (clamp, cut)),
        };
        (dx, NormGrads { skip: kept, weight, bias: bias.to_vec() })
    }
}

/// The input of a normalisation: somebody else's, or its own to write over.
pub(crate) enum Xs<'a, T> {
    Shared(&'a [T]),
    Own(Vec<T>),
}

impl<T: Real> Xs<'_, T> {
    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Self::Shared(xs) => xs,
            Self::Own(xs) => xs,
        }
    }
}

/// Batch normalisation, then the sum with `skip`, then an activation: y = act(norm(x) + skip).
pub(crate) fn batch_norm_act(
    xs: &Tensor,
    norm: &Norm,
    skip: Option<&Tensor>,
    activation: Option<Pointwise>,
) -> Result<Tensor> {
    let dims = dims(xs)?;
    norm.check(xs.dims())?;
    if let Some(skip) = skip
        && (skip.dims() != xs.dims() || skip.dtype() != xs.dtype())
    {
        bail!("batch_norm: {:?} cannot be added to input {:?}", skip.shape(), xs.shape())
    }
    match (path(xs), Clamp::of(activation)) {
        (Path::Kernel, Some(clamp)) if skip.is_none() || tape::is_recording() || !graph(xs, norm, skip) => {
            fused(&tape::contiguous(xs)?, norm, dims, skip, clamp)
        }
        (kind, _) => {
            let ys = match kind {
                Path::Shape => trace::shape_only(xs.dims(), xs.dtype(), xs.device())?,
                Path::Compose => {
                    let Norm { weight, bias, mean, var, eps, through_stats } = *norm;
                    let rows = xs.reshape(dims)?;
                    compose::batch_norm(&rows, weight, bias, (mean, var), eps, through_stats)?.reshape(xs.shape())?
                }
                Path::Kernel => fused(&tape::contiguous(xs)?, norm, dims, None, Clamp::None)?,
                Path::KernelInF32 => {
                    let [weight, bias, mean, var] =
                        [norm.weight, norm.bias, norm.mean, norm.var].map(|t| t.to_dtype(DType::F32));
                    let (weight, bias, mean, var) = (&weight?, &bias?, &mean?, &var?);
                    let norm = Norm { weight, bias, mean, var, ..*norm };
                    let xs32 = xs.to_dtype(DType::F32)?.contiguous()?;
                    fused(&xs32, &norm, dims, None, Clamp::None)?.to_dtype(xs.dtype())?
                }
            };
            let ys = match skip {
                Some(skip) => super::add(&ys, skip)?,
                None => ys,
            };
            activation.map_or(Ok(ys.clone()), |function| pointwise(&ys, function))
        }
    }
}

/// Whether candle has to know of the operation, which for four tensors it cannot.
fn graph(xs: &Tensor, norm: &Norm, skip: Option<&Tensor>) -> bool {
    [Some(xs), Some(norm.weight), Some(norm.bias), skip].into_iter().flatten().any(Tensor::track_op)
}

fn fused(xs: &Tensor, norm: &Norm, dims: Dims, skip: Option<&Tensor>, clamp: Clamp) -> Result<Tensor> {
    for_dtype!("batch_norm", xs.dtype(), T => {
        let rows = norm.rows::<T>()?;
        let Some(skip) = skip else {
            let op = BatchNorm { dims, rows, clamp };
            return tape::apply3(xs, &norm.weight.contiguous()?, &norm.bias.contiguous()?, op);
        };
        let skip = tape::contiguous(skip)?;
        let ys = read::<T, _>(xs, |x| read::<T, _>(&skip, |skip| kernel::affine(dims, x, rows.affine(), Some(skip), clamp)))??;
        let ys = tensor(ys, xs.shape())?;
        let (x, y) = (xs.clone(), ys.clone());
        tape::record("batch_norm", &[xs, norm.weight, norm.bias, &skip], &ys, move |grad| {
            let (dx, grads) = read::<T, _>(&x, |xs| {
                read::<T, _>(&y, |y| {
                    read::<T, _>(&grad.tensor, |grad| {
                        let mut xs = Xs::Shared(xs);
                        rows.gradients(dims, &mut xs, grad, (clamp, Some(y)), true, |xs, grad, by, clamp| {
                            kernel::input_grad(dims, xs.as_slice(), grad, by, clamp)
                        })
                    })
                })
            })???;
            let skip = match grads.skip {
                Some(skip) => Gradient::new(tensor(skip, x.shape())?),
                None => Gradient { owned: false, ..grad },
            };
            Ok(vec![
                Some(Gradient::new(tensor(dx, x.shape())?)),
                Some(Gradient::new(tensor(grads.weight, dims.1)?)),
                Some(Gradient::new(tensor(grads.bias, dims.1)?)),
                Some(skip),
            ])
        });
        Ok(ys)
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
    clamp: Clamp,
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
                let mut x = Xs::Shared(x);
                self.rows.gradients(self.dims, &mut x, grad, (self.clamp, None), false, |x, grad, by, clamp| {
                    wants_input.then(|| kernel::input_grad(self.dims, x.as_slice(), grad, by, clamp))
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

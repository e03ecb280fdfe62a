//! Batch normalisation: Ioffe and Szegedy 2015, "Batch Normalization: Accelerating Deep Network Training by Reducing
//! Internal Covariate Shift" (arXiv:1502.03167).

use super::{Pointwise, Real, fallback, for_dtype, pointwise, read, tensor};
use crate::kernels::batch_norm::{self as kernel, Coefficients, Dims, Window};
use crate::kernels::bf16::norm as mixed;
use crate::kernels::fused_activation::FusedActivation;
use crate::op::{Op, Operand, Passed, Saved, apply};
use crate::pass::{Backend, backend};
use crate::storage::with_rows;
use crate::trace::shape_only;
use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

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

/// Whether a bfloat16 map of these dimensions has its channels innermost.
fn has_rows(dims: &[usize]) -> bool {
    matches!(dims.len(), 2 | 4)
}

/// The statistics that training normalises with; input (b, c) or (b, c, …).
///
/// # Errors
/// An input of fewer than two dimensions, or an empty one.
pub fn batch_stats(xs: &Tensor) -> Result<BatchStats> {
    let (b, c, s) = dims(xs)?;
    let xs = xs.detach();
    let (mean, var) = match backend(&xs) {
        Backend::Shapes => {
            let row = || shape_only(&[c], xs.dtype(), xs.device());
            (row()?, row()?)
        }
        Backend::Fallback => fallback::batch_stats(&xs.reshape((b, c, s))?)?,
        Backend::Mixed if has_rows(xs.dims()) => {
            let (mean, var) = with_rows(&[&xs], |all| Ok(mixed::stats(all[0], c)))?;
            (tensor(mean, c)?, tensor(var, c)?)
        }
        Backend::Mixed | Backend::KernelInF32 => {
            let stats = batch_stats(&xs.to_dtype(DType::F32)?)?;
            (stats.mean, stats.var)
        }
        Backend::Kernel => for_dtype!("batch_norm", xs.dtype(), T => {
            let mut mean = read::<T, _>(&xs.contiguous()?, |xs| kernel::stats((b, c, s), xs))?;
            let var = mean.split_off(c);
            (tensor(mean, c)?, tensor(var, c)?)
        }),
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

    /// The numbers for kernels of mixed precision.
    pub(crate) fn mixed_coefficients(&self) -> Result<mixed::Coefficients> {
        let [weight, bias] = [row::<f32>(self.weight)?, row(self.bias)?];
        let stats = (row(self.mean)?, row(self.var)?);
        Ok(mixed::Coefficients::new(&weight, &bias, (&stats.0, &stats.1), self.eps, self.through_stats))
    }

    /// The numbers themselves.
    pub(crate) fn coefficients<T: Real>(&self) -> Result<Coefficients<T>> {
        let [weight, bias] = [row::<T>(self.weight)?, row(self.bias)?];
        Ok(Coefficients::new(&weight, &bias, (&row(self.mean)?, &row(self.var)?), self.eps, self.through_stats))
    }
}

/// The elements of a channel's tensor.
fn row<T: Real>(t: &Tensor) -> Result<Vec<T>> {
    t.detach().to_dtype(T::DTYPE)?.contiguous()?.to_vec1()
}

/// Batch normalisation, then an activation, as one operation where that only cuts.
pub(crate) fn batch_norm_act(xs: &Tensor, norm: &Norm, activation: Option<Pointwise>) -> Result<Tensor> {
    let dims = dims(xs)?;
    norm.check(xs.dims())?;
    let fused = match backend(xs) {
        Backend::Kernel | Backend::Mixed | Backend::KernelInF32 => FusedActivation::of(activation),
        Backend::Shapes | Backend::Fallback => None,
    };
    let &Norm { weight, bias, mean, var, eps, through_stats } = norm;
    let (stats, activated) = ((mean.clone(), var.clone()), fused.unwrap_or(FusedActivation::None));
    let op = BatchNorm { dims, stats, eps, through_stats, activation: activated, shape: xs.dims().to_vec() };
    let ys = apply(op, &[xs, weight, bias])?;
    match activation {
        Some(function) if fused.is_none() => pointwise(&ys, function),
        _ => Ok(ys),
    }
}

/// (input, weight, bias) -> output
struct BatchNorm {
    dims: Dims,
    stats: (Tensor, Tensor),
    eps: f64,
    through_stats: bool,
    activation: FusedActivation,
    shape: Vec<usize>,
}

impl BatchNorm {
    fn coefficients<T: Real>(&self, weight: &[T], bias: &[T]) -> Result<Coefficients<T>> {
        let (mean, var) = (row::<T>(&self.stats.0)?, row::<T>(&self.stats.1)?);
        Ok(Coefficients::new(weight, bias, (&mean, &var), self.eps, self.through_stats))
    }

    fn mixed_coefficients(&self, inputs: &[Operand]) -> Result<mixed::Coefficients> {
        let (mean, var) = (row::<f32>(&self.stats.0)?, row::<f32>(&self.stats.1)?);
        let (weight, bias) = (inputs[1].weight(), inputs[2].weight());
        Ok(mixed::Coefficients::new(weight, bias, (&mean, &var), self.eps, self.through_stats))
    }
}

impl Op for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn forward<T: Real>(&self, inputs: &[&[T]]) -> Result<Vec<T>> {
        let by = self.coefficients(inputs[1], inputs[2])?;
        Ok(kernel::affine(self.dims, inputs[0], by.affine(), None, self.activation))
    }

    fn backward<T: Real>(&self, saved: &Saved<T>) -> Result<Vec<Passed<T>>> {
        let by = self.coefficients(saved.inputs[1], saved.inputs[2])?;
        let input = |xs: &[T], grad: &[T], by: &kernel::InputGrad<T>, clamp: (FusedActivation, kernel::CutBy<T>)| {
            saved.want(0, || kernel::input_grad(self.dims, xs, (grad, Window::whole(self.dims)), by, clamp))
        };
        let (dx, grads) = by.gradients(self.dims, saved.inputs[0], saved.grad, (self.activation, None), false, input);
        Ok(vec![dx, saved.want(1, || grads.weight), saved.want(2, || grads.bias)])
    }

    fn maps(&self) -> usize {
        usize::from(has_rows(&self.shape))
    }

    fn forward_bf16(&self, inputs: &[Operand]) -> Result<Vec<bf16>> {
        let by = self.mixed_coefficients(inputs)?;
        Ok(mixed::affine(inputs[0].map(), self.dims.1, &by.scale, &by.shift, None, self.activation))
    }

    fn backward_bf16(&self, saved: &Saved<bf16, Operand>) -> Result<Vec<Passed<bf16>>> {
        let (by, xs) = (self.mixed_coefficients(&saved.inputs)?, saved.inputs[0].map());
        let (sums, _) = mixed::gradient_sums(xs, None, saved.grad, &by, self.activation, false);
        let pixels = self.dims.0 * self.dims.2;
        let input = || mixed::InputGrad::new(&by, &sums, pixels, self.activation).all(xs, None, saved.grad);
        let dx = saved.want(0, input);
        Ok(vec![dx, saved.want_weight(1, || sums.weight), saved.want_weight(2, || sums.bias)])
    }

    fn fallback(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (rows, (mean, var)) = (inputs[0].reshape(self.dims)?, &self.stats);
        let ys = fallback::batch_norm(&rows, &inputs[1], &inputs[2], (mean, var), self.eps, self.through_stats)?;
        ys.reshape(self.shape.as_slice())
    }
}

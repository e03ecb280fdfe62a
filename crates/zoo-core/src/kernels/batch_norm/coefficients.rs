//! The numbers of one batch normalisation, channel by channel, and the gradients that follow from sums.

use super::{Affine, CutBy, Dims, InputGrad, Window, grad_sums};
use crate::kernels::fused_activation::FusedActivation;
use crate::kernels::simd::Real;

/// The coefficients of one normalisation: y = (x - mean) · scale + shift.
pub(crate) struct Coefficients<T> {
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

impl<T: Real> Coefficients<T> {
    /// Those of weight, bias, mean and variance of each channel.
    pub fn new(weight: &[T], bias: &[T], (mean, var): (&[T], &[T]), eps: f64, through_stats: bool) -> Self {
        let inv_std: Vec<T> = var.iter().map(|v| T::from_f64(1.0 / (v.to_f64() + eps).sqrt())).collect();
        let scale = weight.iter().zip(&inv_std).map(|(&w, &i)| w * i).collect();
        Self { mean: mean.to_vec(), inv_std, scale, shift: bias.to_vec(), through_stats }
    }

    pub fn affine(&self) -> Affine<'_, T> {
        Affine { mean: &self.mean, scale: &self.scale, shift: &self.shift }
    }

    /// With x̂ = (x - μ) / std, n values a channel and g the gradient of y behind the clamp:
    /// d bias = Σ g, d weight = Σ g·x̂, and dx = weight / std · (g - (Σ g + x̂ · Σ g·x̂) / n);
    /// with constant statistics dx = weight / std · g.
    ///
    /// `input` computes dx from x, of which it may be the owner, and the gradient that it is given.
    pub fn gradients<X: AsRef<[T]>, R>(
        &self,
        dims: Dims,
        xs: X,
        grad: &[T],
        (clamp, output): (FusedActivation, Option<&[T]>),
        wants_skip: bool,
        input: impl FnOnce(X, &[T], &InputGrad<T>, (FusedActivation, CutBy<T>)) -> R,
    ) -> (R, NormGrads<T>) {
        let cut = output.map_or(CutBy::Input(self.affine()), CutBy::Output);
        let keep = wants_skip && clamp != FusedActivation::None;
        let whole = (grad, Window::whole(dims));
        let (sums, kept) = grad_sums(dims, xs.as_ref(), whole, &self.mean, (clamp, cut), keep);
        let Sums { weight, bias, b, d } = self.sums(dims, 0, &sums);
        let rest = self.through_stats.then_some((&b[..], &d[..]));
        let by = InputGrad { mean: &self.mean, a: &self.scale, rest };
        let dx = match &kept {
            Some(kept) => input(xs, kept, &by, (FusedActivation::None, cut)),
            None => input(xs, grad, &by, (clamp, cut)),
        };
        (dx, NormGrads { skip: kept, weight, bias })
    }

    /// What follows from Σ g and Σ g·(x - μ), for the channels from `first` on that are of `dims`.
    pub fn sums(&self, dims: Dims, first: usize, sums: &[T]) -> Sums<T> {
        let (bias, dots) = sums.split_at(dims.1);
        let (scale, inv_std) = (&self.scale[first..], &self.inv_std[first..]);
        let weight: Vec<T> = dots.iter().zip(inv_std).map(|(&s, &i)| s * i).collect();
        let count = T::from_f64((dims.0 * dims.2) as f64);
        let (b, d) =
            (0..dims.1).map(|c| (scale[c] * weight[c] * inv_std[c] / count, scale[c] * bias[c] / count)).unzip();
        Sums { weight, bias: bias.to_vec(), b, d }
    }
}

//! Batch normalisation on the host. Inputs are (b, c, s) with s pixels a plane; every loop is parallel over planes or
//! channels. Sums of f32 run in sixteen f32 lanes within a plane and in f64 across planes.

use super::{lanes, sum};
use crate::ops::Real;
use rayon::prelude::*;

/// (b, channels, pixels a plane)
pub(crate) type Dims = (usize, usize, usize);

/// For each channel, Σ over its planes of `f(plane index)`, in f64.
fn channel_sums(dims: Dims, f: impl Fn(usize) -> f64 + Sync) -> Vec<f64> {
    let (b, c, _) = dims;
    (0..c).into_par_iter().map(|ch| (0..b).map(|n| f(n * c + ch)).sum()).collect()
}

/// Mean and biased variance of each channel: 2·c numbers. Two passes, so that a large mean costs no digits.
pub(crate) fn stats<T: Real>(dims: Dims, xs: &[T]) -> Vec<T> {
    let (b, c, s) = dims;
    let count = (b * s) as f64;
    let plane = |i: usize| &xs[i * s..][..s];
    let means: Vec<f64> = channel_sums(dims, |i| sum(plane(i)).to_f64()).into_iter().map(|t| t / count).collect();
    let variances = channel_sums(dims, |i| {
        let (x, mean) = (plane(i), T::from_f64(means[i % c]));
        lanes(s, |j| (x[j] - mean) * (x[j] - mean)).to_f64()
    });
    means.iter().copied().chain(variances.into_iter().map(|t| t / count)).map(T::from_f64).collect()
}

/// y = (x - mean) · scale + shift with one row of each in `coefficients` (3, c).
pub(crate) fn affine<T: Real>(dims: Dims, xs: &[T], coefficients: &[T]) -> Vec<T> {
    let (_, c, s) = dims;
    let mut ys = vec![T::zero(); xs.len()];
    ys.par_chunks_exact_mut(s).zip(xs.par_chunks_exact(s)).enumerate().for_each(|(i, (y, x))| {
        let [mean, scale, shift] = [0, 1, 2].map(|row| coefficients[row * c + i % c]);
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - mean) * scale + shift);
    });
    ys
}

/// Σ dy and Σ dy · (x - mean) of each channel: 2·c numbers.
pub(crate) fn grad_sums<T: Real>(dims: Dims, xs: &[T], grad: &[T], means: &[T]) -> Vec<T> {
    let (_, c, s) = dims;
    let plane = |of: &'_ [T], i: usize| -> std::ops::Range<usize> {
        debug_assert!((i + 1) * s <= of.len());
        i * s..(i + 1) * s
    };
    let dy_sums = channel_sums(dims, |i| sum(&grad[plane(grad, i)]).to_f64());
    let dot_sums = channel_sums(dims, |i| {
        let (x, dy, mean) = (&xs[plane(xs, i)], &grad[plane(grad, i)], means[i % c]);
        lanes(s, |j| dy[j] * (x[j] - mean)).to_f64()
    });
    dy_sums.into_iter().chain(dot_sums).map(T::from_f64).collect()
}

/// dx = a · dy - b · (x - mean) - d with rows mean, a, b, d in `coefficients` (4, c).
pub(crate) fn input_grad<T: Real>(dims: Dims, xs: &[T], grad: &[T], coefficients: &[T]) -> Vec<T> {
    let (_, c, s) = dims;
    let mut dx = vec![T::zero(); xs.len()];
    let planes = dx.par_chunks_exact_mut(s).zip(xs.par_chunks_exact(s)).zip(grad.par_chunks_exact(s));
    planes.enumerate().for_each(|(i, ((dx, x), dy))| {
        let [mean, a, b, d] = [0, 1, 2, 3].map(|row| coefficients[row * c + i % c]);
        dx.iter_mut().zip(x).zip(dy).for_each(|((dx, &x), &dy)| *dx = a * dy - b * (x - mean) - d);
    });
    dx
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mean a thousand times the spread must not cost the variance its digits.
    #[test]
    fn variance_survives_a_large_mean() {
        let xs: Vec<f32> = (0..4096).map(|i| 1000.0 + (i % 2) as f32).collect();
        let stats = stats((4, 1, 1024), &xs);
        assert_eq!(stats, [1000.5, 0.25]);
    }
}

//! Layer normalisation on the host: rows of n elements, parallel over blocks of rows whose size does not depend on the
//! number of threads.

use super::{dot, lanes, sum};
use crate::ops::Real;
use rayon::prelude::*;

/// Rows that one task takes.
const ROWS: usize = 32;

/// Mean and 1 / √(σ² + eps) of a row, in two passes, so that a large mean costs no digits.
fn stats<T: Real>(row: &[T], eps: f64) -> (T, T) {
    let n = row.len() as f64;
    let mean = T::from_f64(sum(row).to_f64() / n);
    let variance = lanes(row.len(), |i| (row[i] - mean) * (row[i] - mean)).to_f64() / n;
    (mean, T::from_f64(1.0 / (variance + eps).sqrt()))
}

pub(crate) fn forward<T: Real>(xs: &[T], weight: &[T], bias: &[T], eps: f64) -> Vec<T> {
    let n = weight.len();
    let mut ys = vec![T::zero(); xs.len()];
    ys.par_chunks_mut(n * ROWS).zip(xs.par_chunks(n * ROWS)).for_each(|(ys, xs)| {
        for (y, x) in ys.chunks_exact_mut(n).zip(xs.chunks_exact(n)) {
            let (mean, inv_std) = stats(x, eps);
            let affine = y.iter_mut().zip(x).zip(weight.iter().zip(bias));
            affine.for_each(|((y, &x), (&w, &b))| *y = (x - mean) * inv_std * w + b);
        }
    });
    ys
}

pub(crate) fn input_grad<T: Real>(xs: &[T], grad: &[T], weight: &[T], eps: f64) -> Vec<T> {
    let n = weight.len();
    let mut dx = vec![T::zero(); xs.len()];
    let blocks = dx.par_chunks_mut(n * ROWS).zip(xs.par_chunks(n * ROWS)).zip(grad.par_chunks(n * ROWS));
    blocks.for_each(|((dx, xs), grad)| {
        for ((dx, x), dy) in dx.chunks_exact_mut(n).zip(xs.chunks_exact(n)).zip(grad.chunks_exact(n)) {
            let (mean, inv_std) = stats(x, eps);
            let count = T::from_f64(n as f64);
            let mean_g = dot(dy, weight) / count;
            let mean_gx = lanes(n, |i| dy[i] * weight[i] * (x[i] - mean) * inv_std) / count;
            let row = dx.iter_mut().zip(x).zip(dy.iter().zip(weight));
            row.for_each(|((dx, &x), (&dy, &w))| *dx = inv_std * (dy * w - mean_g - (x - mean) * inv_std * mean_gx));
        }
    });
    dx
}

/// Σ dy·x̂ and Σ dy over the rows: 2·n numbers. Each block sums its rows, then the blocks are added in order, in f64.
pub(crate) fn weight_grad<T: Real>(n: usize, xs: &[T], grad: &[T], eps: f64) -> Vec<T> {
    let blocks = xs.par_chunks(n * ROWS).zip(grad.par_chunks(n * ROWS)).map(|(xs, grad)| {
        let mut sums = vec![T::zero(); 2 * n];
        let (dw, db) = sums.split_at_mut(n);
        for (x, dy) in xs.chunks_exact(n).zip(grad.chunks_exact(n)) {
            let (mean, inv_std) = stats(x, eps);
            let row = dw.iter_mut().zip(db.iter_mut()).zip(x.iter().zip(dy));
            row.for_each(|((dw, db), (&x, &dy))| {
                *dw += dy * (x - mean) * inv_std;
                *db += dy;
            });
        }
        sums
    });
    let mut total = vec![0.0; 2 * n];
    for block in blocks.collect::<Vec<_>>() {
        total.iter_mut().zip(block).for_each(|(total, part)| *total += part.to_f64());
    }
    total.into_iter().map(T::from_f64).collect()
}

//! Scaled dot-product attention of one image on the host: the scores of a head stay in the cache.

use super::buffer::uninit;
use super::gemm::{Mat, Out, Threads::One as Alone, product};
use super::softmax;
use crate::ops::Real;
use candle_core::WithDType;

/// Tokens, heads, and the width of a head. Queries, keys and values stand side by side in rows of 3 · heads · d.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub n: usize,
    pub heads: usize,
    pub d: usize,
}

impl Sizes {
    pub fn width(self) -> usize {
        self.heads * self.d
    }

    /// The part-th third (0 queries, 1 keys, 2 values) of a head.
    fn at(self, part: usize, head: usize) -> usize {
        part * self.width() + head * self.d
    }

    fn scale(self) -> f64 {
        1.0 / (self.d as f64).sqrt()
    }

    /// softmax(q · kᵀ / √d) of one head.
    fn weights<T: Real>(self, qkv: &[T], head: usize, weights: &mut [T]) {
        let (Self { n, d, .. }, row) = (self, 3 * self.width());
        let q = Mat::rows(&qkv[self.at(0, head)..], row);
        let k = Mat::transposed(&qkv[self.at(1, head)..], row);
        let scale = <T as WithDType>::from_f64(self.scale());
        product((n, n, d), Out::Is(uninit(weights)), n, scale, q, k, Alone);
        softmax::in_place(n, weights);
    }
}

/// (n, 3 · heads · d) -> (n, heads · d); `scratch` holds n² numbers.
pub(crate) fn forward<T: Real>(sizes: Sizes, qkv: &[T], out: &mut [T], scratch: &mut [T]) {
    let Sizes { n, heads, d } = sizes;
    let (width, weights) = (sizes.width(), &mut scratch[..n * n]);
    for head in 0..heads {
        sizes.weights(qkv, head, weights);
        let v = Mat::rows(&qkv[sizes.at(2, head)..], 3 * width);
        let out = Out::Is(uninit(&mut out[head * d..]));
        product((n, d, n), out, width, T::one(), Mat::rows(weights, n), v, Alone);
    }
}

/// From `grad`, that of the output, `dqkv`; and the output once more, if `out` wants it. `scratch` holds 2 · n² numbers.
pub(crate) fn backward<T: Real>(
    sizes: Sizes,
    qkv: &[T],
    grad: &[T],
    dqkv: &mut [T],
    mut out: Option<&mut [T]>,
    scratch: &mut [T],
) {
    let (Sizes { n, heads, d }, one) = (sizes, T::one());
    let (width, row) = (sizes.width(), 3 * sizes.width());
    let (weights, dweights) = scratch[..2 * n * n].split_at_mut(n * n);
    for head in 0..heads {
        let [q, k, v] = [0, 1, 2].map(|part| &qkv[sizes.at(part, head)..]);
        sizes.weights(qkv, head, weights);
        let grad = Mat::rows(&grad[head * d..], width);
        if let Some(out) = &mut out {
            let out = Out::Is(uninit(&mut out[head * d..]));
            product((n, d, n), out, width, one, Mat::rows(weights, n), Mat::rows(v, row), Alone);
        }
        let mut into = |part: usize, lhs: Mat<T>, rhs: Mat<T>| {
            let out = Out::Is(uninit(&mut dqkv[sizes.at(part, head)..]));
            product((n, d, n), out, row, one, lhs, rhs, Alone);
        };
        into(2, Mat::transposed(weights, n), grad);
        let out = Out::Is(uninit(dweights));
        product((n, n, d), out, n, one, grad, Mat::transposed(v, row), Alone);
        softmax::backward_in_place(n, weights, dweights, sizes.scale());
        into(0, Mat::rows(dweights, n), Mat::rows(k, row));
        into(1, Mat::transposed(dweights, n), Mat::rows(q, row));
    }
}

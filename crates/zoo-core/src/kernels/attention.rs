//! Scaled dot-product attention of one image on the host: the scores of a head stay in the cache.

use super::buffer::{uninit, zeroed};
use super::gemm::{Mat, Out, Threads::One as Alone, product};
use super::simd::Real;
use super::softmax;
use candle_core::WithDType;
use std::mem::MaybeUninit;

/// Tokens, how many of them are queries (the first ones), heads, and the width of a head. Queries, keys and values
/// stand side by side in rows of 3 · heads · d.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub n: usize,
    pub queries: usize,
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
        let (Self { n, queries, d, .. }, row) = (self, 3 * self.width());
        let q = Mat::rows(&qkv[self.at(0, head)..], row);
        let k = Mat::transposed(&qkv[self.at(1, head)..], row);
        let scale = <T as WithDType>::from_f64(self.scale());
        product((queries, n, d), Out::Is(uninit(weights)), n, scale, q, k, Alone);
        softmax::in_place(n, weights);
    }
}

/// (n, 3 · heads · d) -> (queries, heads · d); `scratch` holds queries · n numbers.
pub(crate) fn forward<T: Real>(sizes: Sizes, qkv: &[T], out: &mut [MaybeUninit<T>], scratch: &mut [T]) {
    let Sizes { n, queries, heads, d } = sizes;
    let (width, weights) = (sizes.width(), &mut scratch[..queries * n]);
    for head in 0..heads {
        sizes.weights(qkv, head, weights);
        let v = Mat::rows(&qkv[sizes.at(2, head)..], 3 * width);
        let out = Out::Is(&mut out[head * d..]);
        product((queries, d, n), out, width, T::one(), Mat::rows(weights, n), v, Alone);
    }
}

/// The gradient of `qkv` from `grad`, that of the output, to `dqkv`; and the output once more, if `out` is given.
/// `scratch` holds 2 · queries · n numbers.
pub(crate) fn backward<T: Real>(
    sizes: Sizes,
    qkv: &[T],
    grad: &[T],
    dqkv: &mut [MaybeUninit<T>],
    mut out: Option<&mut [MaybeUninit<T>]>,
    scratch: &mut [T],
) {
    let (Sizes { n, queries, heads, d }, one) = (sizes, T::one());
    let (width, row) = (sizes.width(), 3 * sizes.width());
    let (weights, dweights) = scratch[..2 * queries * n].split_at_mut(queries * n);
    for row in dqkv.chunks_exact_mut(row).skip(queries) {
        zeroed(&mut row[..width]);
    }
    for head in 0..heads {
        let [q, k, v] = [0, 1, 2].map(|part| &qkv[sizes.at(part, head)..]);
        sizes.weights(qkv, head, weights);
        let grad = Mat::rows(&grad[head * d..], width);
        if let Some(out) = &mut out {
            let out = Out::Is(&mut out[head * d..]);
            product((queries, d, n), out, width, one, Mat::rows(weights, n), Mat::rows(v, row), Alone);
        }
        let mut into = |part: usize, (m, k): (usize, usize), lhs: Mat<T>, rhs: Mat<T>| {
            let out = Out::Is(&mut dqkv[sizes.at(part, head)..]);
            product((m, d, k), out, row, one, lhs, rhs, Alone);
        };
        into(2, (n, queries), Mat::transposed(weights, n), grad);
        let out = Out::Is(uninit(dweights));
        product((queries, n, d), out, n, one, grad, Mat::transposed(v, row), Alone);
        softmax::backward_in_place(n, weights, dweights, sizes.scale());
        into(0, (queries, n), Mat::rows(dweights, n), Mat::rows(k, row));
        into(1, (n, queries), Mat::transposed(dweights, n), Mat::rows(q, row));
    }
}

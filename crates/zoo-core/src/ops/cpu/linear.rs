//! The affine map of rows on the host: a chunk of rows at a time, whose outputs get the bias and then the product while they
//! are in the cache.

use super::buffer::{repeat, written, zeroed};
use super::gemm::{Mat, all_threads, gemm, threads_inside};
use super::rows::add_column_sums;
use crate::ops::Real;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Rows that one task takes: enough to be worth packing the weight.
const CHUNK: usize = 512;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub rows: usize,
    pub c_in: usize,
    pub c_out: usize,
}

/// x · weightᵀ + bias
pub(crate) fn forward<T: Real>(Sizes { rows, c_in, c_out }: Sizes, x: &[T], w: &[T], bias: Option<&[T]>) -> Vec<T> {
    assert!(x.len() == rows * c_in && bias.is_none_or(|bias| bias.len() == c_out));
    let p = threads_inside(rows.div_ceil(CHUNK));
    let fill = |ys: &mut [MaybeUninit<T>]| {
        ys.par_chunks_mut(CHUNK * c_out).zip(x.par_chunks(CHUNK * c_in)).for_each(|(y, x)| {
            let y = match bias {
                Some(bias) => repeat(y, bias),
                None => zeroed(y),
            };
            gemm((y.len() / c_out, c_out, c_in), y, true, Mat::rows(x, c_in), Mat::transposed(w, c_in), p);
        });
    };
    // SAFETY: every chunk of rows starts as the bias or zeros.
    unsafe { written(rows * c_out, fill) }
}

/// dy · weight
pub(crate) fn input_grad<T: Real>(Sizes { rows, c_in, c_out }: Sizes, grad: &[T], w: &[T]) -> Vec<T> {
    assert_eq!(grad.len(), rows * c_out);
    let p = threads_inside(rows.div_ceil(CHUNK));
    let fill = |dx: &mut [MaybeUninit<T>]| {
        dx.par_chunks_mut(CHUNK * c_in).zip(grad.par_chunks(CHUNK * c_out)).for_each(|(dx, grad)| {
            gemm((dx.len() / c_in, c_in, c_out), zeroed(dx), true, Mat::rows(grad, c_out), Mat::rows(w, c_in), p);
        });
    };
    // SAFETY: every chunk of rows starts as zeros.
    unsafe { written(rows * c_in, fill) }
}

/// dyᵀ · x
pub(crate) fn weight_grad<T: Real>(Sizes { rows, c_in, c_out }: Sizes, xs: &[T], grad: &[T]) -> Vec<T> {
    let mut dw = vec![T::zero(); c_out * c_in];
    let (grad, xs) = (Mat::transposed(grad, c_out), Mat::rows(xs, c_in));
    gemm((c_out, c_in, rows), &mut dw, false, grad, xs, all_threads());
    dw
}

/// The column sums of dy: each chunk sums its rows, then the chunks are added in order.
pub(crate) fn bias_grad<T: Real>(sizes: Sizes, grad: &[T]) -> Vec<T> {
    let chunks = grad.par_chunks(CHUNK * sizes.c_out).map(|rows| {
        let mut sums = vec![T::zero(); sizes.c_out];
        add_column_sums(rows, &mut sums);
        sums
    });
    let mut db = vec![T::zero(); sizes.c_out];
    chunks.collect::<Vec<_>>().iter().for_each(|sums| add_column_sums(sums, &mut db));
    db
}

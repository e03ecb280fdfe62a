//! The affine map of rows on the host.

use super::bias::add_column_sums;
use super::buffer::written;
use super::conv::{Conv2dParams, Geometry};
use super::gemm::{Mat, Out, Rhs, Threads, gemm};
use super::simd::Real;
use rayon::prelude::*;

/// Rows whose gradient one task adds up for the bias.
const CHUNK: usize = 512;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub rows: usize,
    pub c_in: usize,
    pub c_out: usize,
}

impl Sizes {
    /// The same as a convolution of single taps, over a column of pixels.
    pub fn as_conv(self) -> Geometry {
        let Self { rows, c_in, c_out } = self;
        let params = Conv2dParams::default();
        Geometry { b: 1, c_in, h: rows, w: 1, c_out, kh: 1, kw: 1, oh: rows, ow: 1, params }
    }
}

/// x · weightᵀ + bias
pub(crate) fn forward<T: Real>(Sizes { rows, c_in, c_out }: Sizes, x: &[T], w: &[T], bias: Option<&[T]>) -> Vec<T> {
    let weight = Rhs::new(Mat::transposed(w, c_in), (c_in, c_out), rows, Threads::All);
    // SAFETY: the product fills its rows.
    unsafe {
        written(rows * c_out, |ys| {
            let out = match bias {
                Some(bias) => Out::OntoRow(ys, bias),
                None => Out::Is(ys),
            };
            weight.multiply(rows, out, Mat::rows(x, c_in), Threads::All);
        })
    }
}

/// dy · weight
pub(crate) fn input_grad<T: Real>(Sizes { rows, c_in, c_out }: Sizes, grad: &[T], w: &[T]) -> Vec<T> {
    let sizes = (rows, c_in, c_out);
    // SAFETY: the product fills its rows.
    unsafe {
        written(rows * c_in, |dx| gemm(sizes, Out::Is(dx), Mat::rows(grad, c_out), Mat::rows(w, c_in), Threads::All))
    }
}

/// dyᵀ · x
pub(crate) fn weight_grad<T: Real>(Sizes { rows, c_in, c_out }: Sizes, xs: &[T], grad: &[T]) -> Vec<T> {
    let (grad, xs) = (Mat::transposed(grad, c_out), Mat::rows(xs, c_in));
    // SAFETY: the product fills its rows.
    unsafe { written(c_out * c_in, |dw| gemm((c_out, c_in, rows), Out::Is(dw), grad, xs, Threads::All)) }
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

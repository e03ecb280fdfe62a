//! Rows of channels times numbers: of an image's channels, of a mask.

use super::norm::{Affine, Coefficients, SumsOf};
use super::walk::{load, store};
use crate::kernels::buffer::written;
use crate::kernels::fused_activation::FusedActivation;
use crate::kernels::simd::{Kernel, Simd, dispatch};
use half::bf16;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Numbers of a task.
const TASK: usize = 1 << 14;

/// Every pixel of an image times the image's row of `gates`, each of c numbers.
pub(crate) fn by_image(rows: &[bf16], c: usize, gates: &[f32]) -> Vec<bf16> {
    let each = rows.len() * c / gates.len();
    assert!(gates.len().is_multiple_of(c) && rows.len() == gates.len() / c * each && each.is_multiple_of(c));
    let zeros = vec![0.0; c];
    let fill = |out: &mut [MaybeUninit<bf16>]| {
        let images = out.par_chunks_exact_mut(each).zip(rows.par_chunks_exact(each)).zip(gates.par_chunks_exact(c));
        images.with_min_len((TASK / each).max(1)).for_each(|((out, rows), gates)| {
            Affine::new(gates, &zeros, each, FusedActivation::None).block(rows, None, out);
        });
    };
    // SAFETY: every image is written.
    unsafe { written(rows.len(), fill) }
}

/// The gradient of the gates: Σ x · dy over each image's pixels.
pub(crate) fn by_image_backward(rows: &[bf16], grad: &[bf16], c: usize, images: usize) -> Vec<bf16> {
    let each = rows.len() / images;
    assert!(rows.len() == grad.len() && rows.len() == images * each && each.is_multiple_of(c));
    let ones = vec![1.0; c];
    let zeros = vec![0.0; c];
    let by = Coefficients::new(&ones, &zeros, (&zeros, &ones), 0.0, false);
    let sums = SumsOf::new(&by, each, FusedActivation::None);
    // Some thousand pixels at a time, which f32 sums bear.
    let block = super::walk::part(c, 1 << 15);
    let images = rows.par_chunks_exact(each).zip(grad.par_chunks_exact(each));
    let dots = images.map(|(rows, grad)| {
        // SAFETY: nothing is kept.
        let blocks = rows.chunks(block).zip(grad.chunks(block)).map(|(x, g)| unsafe { sums.block(x, None, g, None) });
        sums.of_blocks(&by, &blocks.collect::<Vec<_>>()).weight
    });
    dots.collect::<Vec<_>>().concat().into_iter().map(bf16::from_f32).collect()
}

/// x · `factor` where the mask is not zero, x · 0 elsewhere.
pub(crate) fn masked(xs: &[bf16], mask: &[bf16], factor: f32) -> Vec<bf16> {
    assert_eq!(xs.len(), mask.len());
    let fill = |out: &mut [MaybeUninit<bf16>]| {
        let parts = out.par_chunks_mut(TASK).zip(xs.par_chunks(TASK)).zip(mask.par_chunks(TASK));
        parts.for_each(|((out, xs), mask)| {
            dispatch(Masked { n: xs.len(), x: xs.as_ptr(), mask: mask.as_ptr(), factor, to: out.as_mut_ptr().cast() });
        });
    };
    // SAFETY: the tasks cover the output, and each writes its own.
    unsafe { written(xs.len(), fill) }
}

struct Masked {
    n: usize,
    x: *const bf16,
    mask: *const bf16,
    factor: f32,
    to: *mut bf16,
}

impl Kernel<f32> for Masked {
    const NARROWS: bool = true;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let Self { n, x, mask, factor, to } = self;
        // SAFETY: below `dispatch`; n numbers behind every pointer.
        unsafe {
            let factor = V::splat(factor);
            for i in (0..n).step_by(V::LANES) {
                let count = V::LANES.min(n - i);
                let by = load::<V>(mask, i, count).if_greater(V::zero(), factor, V::zero());
                store(load::<V>(x, i, count).mul(by), to, i, count);
            }
        }
    }
}

//! The mean of each row of a map, and its gradient.

use crate::kernels::buffer::{Shared, written};
use crate::kernels::simd::{Kernel, Simd, dispatch};
use half::bf16;
use rayon::prelude::*;

/// Numbers of one task.
const TASK: usize = 1 << 15;

/// The mean of each row of c numbers.
pub(crate) fn forward(c: usize, xs: &[bf16]) -> Vec<bf16> {
    let (rows, together) = (xs.len() / c, (TASK / c).max(1));
    // SAFETY: each task writes the means of its rows.
    unsafe {
        written(rows, |to| {
            let parts = to.par_chunks_mut(together).zip(xs.par_chunks(together * c));
            parts.for_each(|(to, xs)| dispatch(Means { c, xs, to: Shared::from_uninit(to) }));
        })
    }
}

/// The gradient of [`forward`]: a row's, divided by c, at every place of it.
pub(crate) fn backward(c: usize, grad: &[bf16]) -> Vec<bf16> {
    let together = (TASK / c).max(1);
    // SAFETY: every row is filled.
    unsafe {
        written(grad.len() * c, |to| {
            to.par_chunks_mut(together * c).zip(grad.par_chunks(together)).for_each(|(to, grad)| {
                for (to, grad) in to.chunks_exact_mut(c).zip(grad) {
                    let x = bf16::from_f32(grad.to_f32() / c as f32);
                    to.iter_mut().for_each(|to| _ = to.write(x));
                }
            });
        })
    }
}

struct Means<'a> {
    c: usize,
    xs: &'a [bf16],
    to: Shared<bf16>,
}

impl Kernel<f32> for Means<'_> {
    const NARROWS: bool = true;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let Self { c, xs, to } = self;
        for (i, row) in xs.chunks_exact(c).enumerate() {
            // SAFETY: run by `dispatch`; a mean for each row.
            unsafe { to.at(i).write(bf16::from_f32(sum::<V>(row) / c as f32)) };
        }
    }
}

/// Σ of a row.
///
/// # Safety
/// Below `dispatch`.
#[inline(always)]
pub(super) unsafe fn sum<V: Simd<Elem = f32>>(row: &[bf16]) -> f32 {
    let whole = row.len() - row.len() % V::LANES;
    // SAFETY: vectors are cut at the row's end.
    unsafe {
        let mut sum = V::zero();
        for i in (0..whole).step_by(V::LANES) {
            sum = sum.add(V::load_bf16(row.as_ptr().add(i)));
        }
        if whole < row.len() {
            sum = sum.add(V::load_first_bf16(row.as_ptr().add(whole), row.len() - whole));
        }
        sum.sum()
    }
}

//! The gradient of a bias: sums over the pixels.

use crate::kernels::buffer::Shared;
use crate::kernels::simd::{Kernel, Simd, dispatch};
use half::bf16;
use rayon::prelude::*;

/// Rows that a lane sums up in f32 before f64 takes over.
const ROWS: usize = 512;

/// Σ over rows of c channels, by channel.
pub(crate) fn gradient(grad: &[bf16], c: usize) -> Vec<f32> {
    assert!(grad.len().is_multiple_of(c));
    let tasks = grad.len().div_ceil(ROWS * c);
    let mut sums = vec![0f32; tasks * c];
    let to = Shared::new(&mut sums);
    grad.par_chunks(ROWS * c).enumerate().for_each(|(i, rows)| {
        // SAFETY: each task has its row.
        let to = unsafe { to.offset(i * c) };
        dispatch(Columns { rows, c, to });
    });
    let mut total = vec![0f64; c];
    for sums in sums.chunks_exact(c) {
        total.iter_mut().zip(sums).for_each(|(total, &sum)| *total += f64::from(sum));
    }
    total.into_iter().map(|sum| sum as f32).collect()
}

/// Vectors of channels that are summed up at once: their sums stay in registers.
const AT_ONCE: usize = 4;

struct Columns<'a> {
    rows: &'a [bf16],
    c: usize,
    to: Shared<f32>,
}

impl Kernel<f32> for Columns<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let (c, from) = (self.c, self.rows.as_ptr());
        let rows = self.rows.len() / c;
        let mut at = 0;
        // SAFETY: run by `dispatch`; columns are cut at c, and `to` holds c sums.
        unsafe {
            while at + AT_ONCE * V::LANES <= c {
                let mut sums = [V::zero(); AT_ONCE];
                for row in 0..rows {
                    for (i, sum) in sums.iter_mut().enumerate() {
                        *sum = sum.add(V::load_bf16(from.add(row * c + at + i * V::LANES)));
                    }
                }
                for (i, sum) in sums.into_iter().enumerate() {
                    sum.store(self.to.at(at + i * V::LANES));
                }
                at += AT_ONCE * V::LANES;
            }
            while at < c {
                let n = V::LANES.min(c - at);
                let mut sum = V::zero();
                for row in 0..rows {
                    let from = from.add(row * c + at);
                    sum = sum.add(if n == V::LANES { V::load_bf16(from) } else { V::load_first_bf16(from, n) });
                }
                sum.store_first(self.to.at(at), n);
                at += n;
            }
        }
    }
}

//! Sums over the pixels of bfloat16 maps.

use crate::kernels::simd::{Kernel, Simd, dispatch};
use half::bf16;
use rayon::prelude::*;

/// Rows whose f32 sums one task takes.
const ROWS: usize = 512;

/// Σ over all rows, by channel: f32 sums of a few hundred rows, those in f64 and in order.
pub(crate) fn column_sums(rows: &[bf16], channels: usize) -> Vec<f32> {
    let parts = rows.par_chunks(ROWS * channels).map(|rows| dispatch(Sums { rows, channels }));
    let mut total = vec![0f64; channels];
    for part in parts.collect::<Vec<_>>() {
        total.iter_mut().zip(part).for_each(|(total, part)| *total += f64::from(part));
    }
    total.into_iter().map(|total| total as f32).collect()
}

struct Sums<'a> {
    rows: &'a [bf16],
    channels: usize,
}

impl Kernel<f32> for Sums<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) -> Vec<f32> {
        let mut sums = vec![0f32; self.channels];
        for lane in (0..self.channels).step_by(V::LANES) {
            let n = V::LANES.min(self.channels - lane);
            // SAFETY: run by `dispatch`; n channels from `lane` on are inside every row and inside the sums.
            unsafe {
                let mut sum = V::zero();
                for row in self.rows.chunks_exact(self.channels) {
                    let from = row.as_ptr().add(lane);
                    sum = sum.add(if n == V::LANES { V::load_bf16(from) } else { V::load_first_bf16(from, n) });
                }
                sum.store_first(sums.as_mut_ptr().add(lane), n);
            }
        }
        sums
    }
}

//! Mean and variance of the channels.

use super::block;
use crate::kernels::bf16::walk::{self, Step, add_f32, fold, load, load_f32, spread, walk};
use crate::kernels::simd::{Kernel, Simd, dispatch};
use half::bf16;
use rayon::prelude::*;

/// Mean and biased variance of each of `c` channels. Two passes over each block, so that a large mean costs no digits.
pub(crate) fn stats(rows: &[bf16], c: usize) -> (Vec<f32>, Vec<f32>) {
    assert!(c > 0 && rows.len().is_multiple_of(c));
    let moments: Vec<Vec<[f64; 2]>> = rows.par_chunks(block(c)).map(|rows| moments(rows, c)).collect();
    let pixels = rows.len() / c;
    // Means first: every block's squares are then moved from its own mean to that of all.
    let mut mean = vec![0f64; c];
    let count = |i: usize| (block(c).min(rows.len() - i * block(c)) / c) as f64;
    for (i, block) in moments.iter().enumerate() {
        mean.iter_mut().zip(block).for_each(|(sum, of)| *sum += of[0] * count(i));
    }
    mean.iter_mut().for_each(|sum| *sum /= pixels as f64);
    let mut squares = vec![0f64; c];
    for (i, block) in moments.iter().enumerate() {
        for ((sum, mean), [own, part]) in squares.iter_mut().zip(&mean).zip(block) {
            *sum += part + count(i) * (own - mean) * (own - mean);
        }
    }
    // Roundings can leave less than nothing; NaN stays NaN.
    let var = |&sum: &f64| if sum < 0.0 { 0.0 } else { (sum / pixels as f64) as f32 };
    (mean.iter().map(|&mean| mean as f32).collect(), squares.iter().map(var).collect())
}

/// Mean and Σ (x - mean)² of each channel of a block.
fn moments(rows: &[bf16], c: usize) -> Vec<[f64; 2]> {
    /// Σ (x - center), or Σ (x - center)².
    struct Sum<const SQUARE: bool> {
        rows: *const bf16,
        center: *const f32,
        sums: *mut f32,
    }
    impl<V: Simd<Elem = f32>, const SQUARE: bool> Step<V> for Sum<SQUARE> {
        type State = (V, V);

        #[inline(always)]
        unsafe fn begin(&self, at: usize, count: usize) -> (V, V) {
            // SAFETY: below `dispatch`, inside the period.
            unsafe { (if SQUARE { load_f32(self.center, at, count) } else { V::zero() }, V::zero()) }
        }
        #[inline(always)]
        unsafe fn step(&self, (center, sum): &mut (V, V), i: usize, count: usize) {
            // SAFETY: below `dispatch`, inside the rows. Lanes behind the last number hold zeros in both.
            unsafe {
                let x = load::<V>(self.rows, i, count);
                if SQUARE {
                    let d = x.sub(*center);
                    *sum = d.mul_add(d, *sum);
                } else {
                    *sum = sum.add(x);
                }
            }
        }
        #[inline(always)]
        unsafe fn end(&self, (_, sum): (V, V), at: usize, count: usize) {
            // SAFETY: below `dispatch`, inside the period; this task's own sums.
            unsafe { add_f32(sum, self.sums, at, count) }
        }
    }
    struct Run<S>(S, usize, usize);
    impl<const SQUARE: bool> Kernel<f32> for Run<Sum<SQUARE>> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = f32>>(self) {
            // SAFETY: below `dispatch`; centers and sums are of a period, or of all numbers if they are fewer.
            unsafe { walk::<V, _>(&self.0, self.1, self.2) }
        }
    }
    let (n, period, pixels) = (rows.len(), walk::period(c), (rows.len() / c) as f64);
    let mut lanes = vec![0f32; period.min(n)];
    let folded = |lanes: &mut Vec<f32>| {
        let mut sums = vec![0f64; c];
        fold(lanes, &mut sums);
        lanes.fill(0.0);
        sums
    };
    let rows = rows.as_ptr();
    dispatch(Run(Sum::<false> { rows, center: std::ptr::null(), sums: lanes.as_mut_ptr() }, n, period));
    let means: Vec<f64> = folded(&mut lanes).iter().map(|sum| sum / pixels).collect();
    let rounded: Vec<f32> = means.iter().map(|&mean| mean as f32).collect();
    let center = spread(&rounded, n);
    dispatch(Run(Sum::<true> { rows, center: center.as_ptr(), sums: lanes.as_mut_ptr() }, n, period));
    let squares = folded(&mut lanes);
    let both = |((mean, &center), squares): ((f64, &f32), f64)| {
        // The mean was rounded to be subtracted: take back what that adds.
        let slip = mean - f64::from(center);
        [mean, squares - pixels * slip * slip]
    };
    means.into_iter().zip(&rounded).zip(squares).map(both).collect()
}

//! What becomes of a sum: epilogue, rounding, and the statistics of what is left.

use super::Pieces;
use crate::kernels::buffer::Shared;
use crate::kernels::fused_activation::FusedActivation;
use crate::kernels::simd::Simd;
use half::bf16;

/// Where outputs go, and how.
pub(super) struct Finish<'a> {
    pub ys: Shared<bf16>,
    pub skip: Option<&'a [bf16]>,
    pub activation: FusedActivation,
    pub stats: bool,
}

impl Finish<'_> {
    /// Stores the channels from number `at` on: a vector of them, or n.
    ///
    /// # Safety
    /// Below `dispatch`; the numbers lie in the map, and belong to the task.
    #[inline(always)]
    pub unsafe fn put<V: Simd<Elem = f32>, const WHOLE: bool>(
        &self,
        sum: V,
        at: usize,
        n: usize,
        stats: &mut Stats<V>,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let mut y = sum;
            if let Some(skip) = self.skip {
                y = y.add(load::<V, WHOLE>(skip.as_ptr().add(at), n));
            }
            y = self.activation.apply(y);
            let to = self.ys.at(at);
            if WHOLE {
                y.store_bf16(to)
            } else {
                y.store_first_bf16(to, n)
            }
            if self.stats {
                stats.take(load::<V, WHOLE>(to, n));
            }
        }
    }
}

/// A vector of channels, or n of them.
///
/// # Safety
/// Below `dispatch`; the pointer holds the numbers.
#[inline(always)]
pub(super) unsafe fn load<V: Simd, const WHOLE: bool>(from: *const bf16, n: usize) -> V {
    // SAFETY: the caller's.
    unsafe { if WHOLE { V::load_bf16(from) } else { V::load_first_bf16(from, n) } }
}

/// The same of f32 numbers.
///
/// # Safety
/// As [`load`].
#[inline(always)]
pub(super) unsafe fn load_f32<V: Simd, const WHOLE: bool>(from: *const V::Elem, n: usize) -> V {
    // SAFETY: the caller's.
    unsafe { if WHOLE { V::load(from) } else { V::load_first(from, n) } }
}

/// Sums over the outputs of a piece, by channel, of what they differ from the first one by: a mean that is large beside
/// the deviation costs no digits.
#[derive(Clone, Copy)]
pub(super) struct Stats<V> {
    is_empty: bool,
    center: V,
    sum: V,
    squares: V,
}

impl<V: Simd> Stats<V> {
    /// Of no output.
    ///
    /// # Safety
    /// Below `dispatch`.
    #[inline(always)]
    pub unsafe fn new() -> Self {
        // SAFETY: the caller's.
        let zero = unsafe { V::zero() };
        Self { is_empty: true, center: zero, sum: zero, squares: zero }
    }

    /// # Safety
    /// Below `dispatch`.
    #[inline(always)]
    unsafe fn take(&mut self, y: V) {
        // SAFETY: the caller's.
        unsafe {
            if self.is_empty {
                // An infinity less itself is no number: it would be none from the others, too.
                self.center = y.sub(y).if_nan(V::zero(), y);
                self.is_empty = false;
            }
            let d = y.sub(self.center);
            self.sum = self.sum.add(d);
            self.squares = d.mul_add(d, self.squares);
        }
    }

    /// Stores centers, sums and sums of squares of n channels, a row of c each.
    ///
    /// # Safety
    /// Below `dispatch`; three rows with these channels.
    #[inline(always)]
    pub unsafe fn store(&self, to: *mut V::Elem, c: usize, n: usize) {
        // SAFETY: the caller's.
        unsafe {
            self.center.store_first(to, n);
            self.sum.store_first(to.add(c), n);
            self.squares.store_first(to.add(2 * c), n);
        }
    }
}

/// Mean and biased variance of each channel from what the pieces have stored, in f64 and in their order.
pub(super) fn merge(c: usize, pieces: &Pieces, sums: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut mean, mut variance) = (vec![0f64; c], vec![0f64; c]);
    let count = |i: usize| pieces.pixels(i) as f64;
    let total: f64 = (0..pieces.count()).map(count).sum();
    let each = || sums.chunks_exact(3 * c).enumerate().map(|(i, sums)| (count(i), sums.split_at(c)));
    for (n, (center, sums)) in each() {
        for ((mean, &center), &sum) in mean.iter_mut().zip(center).zip(sums) {
            *mean += (f64::from(center) * n + f64::from(sum)) / total;
        }
    }
    for (n, (center, sums)) in each() {
        let (sums, squares) = sums.split_at(c);
        let channels = variance.iter_mut().zip(&mean).zip(center).zip(sums).zip(squares);
        for ((((variance, &mean), &center), &sum), &squares) in channels {
            // Σ (y - mean)² from Σ (y - center)².
            let slip = f64::from(center) - mean;
            *variance += (f64::from(squares) + slip * (2.0 * f64::from(sum) + slip * n)) / total;
        }
    }
    // Roundings can leave less than nothing; NaN stays NaN.
    let variance = variance.into_iter().map(|v| if v < 0.0 { 0.0 } else { v as f32 });
    (mean.into_iter().map(|mean| mean as f32).collect(), variance.collect())
}

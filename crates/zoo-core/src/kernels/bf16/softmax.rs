//! Softmax between two products of attention: f32 scores in, bfloat16 probabilities out, and back. The scores are those of
//! a head, and stay in its cache.

use super::tiles::SIDE;
use crate::kernels::math::{exp2_for_bf16, num};
use crate::kernels::simd::Simd;
use half::bf16;

/// Softmax of `scale` times rows of n scores. Rows are whole vectors long: what stands behind the n-th score does not count,
/// and has no probability and no gradient.
#[derive(Clone, Copy)]
pub(super) struct Softmax {
    n: usize,
    scale: f32,
    /// What is added to the last vector of 16 scores: -∞ behind the n-th.
    last: [f32; SIDE],
}

impl Softmax {
    pub fn new(n: usize, scale: f32) -> Self {
        let rest = n - (n - 1) / SIDE * SIDE;
        Self { n, scale, last: std::array::from_fn(|i| if i < rest { 0.0 } else { f32::NEG_INFINITY }) }
    }

    /// Numbers from a row of scores to the next one.
    pub fn stride(n: usize) -> usize {
        n.next_multiple_of(SIDE)
    }

    /// The probabilities of a row of scores, which are written over.
    ///
    /// # Safety
    /// Below `dispatch`; [`stride`](Self::stride) numbers behind both pointers.
    #[inline(always)]
    pub unsafe fn row<V: Simd<Elem = f32>>(&self, x: *mut f32, p: *mut bf16) {
        let all = Self::stride(self.n);
        // SAFETY: the caller's.
        unsafe {
            for lane in (0..SIDE).step_by(V::LANES) {
                let x = x.add(all - SIDE + lane);
                V::load(x).add(V::load(self.last.as_ptr().add(lane))).store(x);
            }
            // A NaN gets past the maximum, and from the exponential into the sum.
            let mut max = num::<V>(f64::NEG_INFINITY);
            for i in (0..all).step_by(V::LANES) {
                max = V::load(x.add(i)).max(max);
            }
            // In powers of 2.
            let scale = V::splat(self.scale * std::f32::consts::LOG2_E);
            let (max, mut total) = (V::splat(max.largest()), V::zero());
            for i in (0..all).step_by(V::LANES) {
                let e = exp2_for_bf16(V::load(x.add(i)).sub(max).mul(scale));
                e.store(x.add(i));
                total = total.add(e);
            }
            let share = V::splat(1.0 / total.sum());
            for i in (0..all).step_by(V::LANES) {
                V::load(x.add(i)).mul(share).store_bf16(p.add(i));
            }
        }
    }

    /// The gradient of the row's scores: scale · p · (dp - Σ p·dp), with the probabilities as they were rounded.
    ///
    /// # Safety
    /// As [`row`](Self::row).
    #[inline(always)]
    pub unsafe fn row_backward<V: Simd<Elem = f32>>(&self, (p, grad): (*const bf16, *const f32), to: *mut bf16) {
        let all = Self::stride(self.n);
        // SAFETY: the caller's.
        unsafe {
            let mut along = V::zero();
            for i in (0..all).step_by(V::LANES) {
                along = V::load_bf16(p.add(i)).mul_add(V::load(grad.add(i)), along);
            }
            let (along, scale) = (V::splat(along.sum()), V::splat(self.scale));
            for i in (0..all).step_by(V::LANES) {
                let p = V::load_bf16(p.add(i)).mul(scale);
                V::load(grad.add(i)).sub(along).mul(p).store_bf16(to.add(i));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::buffer::written;
    use crate::kernels::simd::{Kernel, Level, dispatch_at};
    use crate::testing::values;
    use std::mem::MaybeUninit;

    const WIDTHS: [usize; 9] = [1, 3, 5, 15, 16, 17, 33, 65, 197];

    struct Rows<'a> {
        n: usize,
        scores: &'a mut [f32],
        probabilities: &'a mut [MaybeUninit<bf16>],
    }

    impl Kernel<f32> for Rows<'_> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = f32>>(self) {
            let (softmax, stride) = (Softmax::new(self.n, 1.0), Softmax::stride(self.n));
            for (x, p) in self.scores.chunks_exact_mut(stride).zip(self.probabilities.chunks_exact_mut(stride)) {
                // SAFETY: run by `dispatch`, on rows of whole vectors.
                unsafe { softmax.row::<V>(x.as_mut_ptr(), p.as_mut_ptr().cast()) };
            }
        }
    }

    struct Gradient<'a> {
        n: usize,
        probabilities: &'a [bf16],
        grad: &'a [f32],
        scale: f32,
        to: &'a mut [MaybeUninit<bf16>],
    }

    impl Kernel<f32> for Gradient<'_> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = f32>>(self) {
            let (softmax, stride) = (Softmax::new(self.n, self.scale), Softmax::stride(self.n));
            let rows = self.probabilities.chunks_exact(stride).zip(self.grad.chunks_exact(stride));
            for ((p, grad), to) in rows.zip(self.to.chunks_exact_mut(stride)) {
                // SAFETY: run by `dispatch`, on rows of whole vectors.
                unsafe { softmax.row_backward::<V>((p.as_ptr(), grad.as_ptr()), to.as_mut_ptr().cast()) };
            }
        }
    }

    /// Rows of n numbers, with `behind` at their ends.
    fn spread<T: Copy>(n: usize, numbers: &[T], behind: T) -> Vec<T> {
        let rest = vec![behind; Softmax::stride(n) - n];
        numbers.chunks_exact(n).flat_map(|row| row.iter().chain(&rest).copied()).collect()
    }

    fn cut(n: usize, numbers: &[bf16]) -> Vec<bf16> {
        let (rows, zero) = (numbers.chunks_exact(Softmax::stride(n)), bf16::ZERO);
        assert!(rows.clone().all(|row| row[n..].iter().all(|x| *x == zero || row[0].is_nan())), "{n}: {numbers:?}");
        rows.flat_map(|row| &row[..n]).copied().collect()
    }

    fn forward(level: Level, n: usize, scores: &[f32]) -> Vec<bf16> {
        let scores = &mut spread(n, scores, 7.0)[..];
        let len = scores.len();
        // SAFETY: the rows cover the output.
        cut(n, &unsafe { written(len, |to| dispatch_at(level, Rows { n, scores, probabilities: to })) })
    }

    fn backward(level: Level, n: usize, probabilities: &[bf16], grad: &[f32], scale: f32) -> Vec<bf16> {
        let (probabilities, grad) = (&spread(n, probabilities, bf16::ZERO), &spread(n, grad, 7.0));
        // SAFETY: the rows cover the output.
        cut(n, &unsafe { written(grad.len(), |to| dispatch_at(level, Gradient { n, probabilities, grad, scale, to })) })
    }

    /// To one rounding of eight bits, and that of n sums in f32; the exponential is right to 2⁻¹⁸.
    #[test]
    fn rows_are_right_to_one_rounding_at_every_level() {
        for (n, level) in WIDTHS.into_iter().flat_map(|n| Level::supported().map(move |level| (n, level))) {
            for size in [1.0, 30.0] {
                let scores: Vec<f32> = values("scores", 3 * n).into_iter().map(|x| (x * size) as f32).collect();
                let got = forward(level, n, &scores);
                for (scores, got) in scores.chunks_exact(n).zip(got.chunks_exact(n)) {
                    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let exps: Vec<f64> = scores.iter().map(|x| (f64::from(*x) - f64::from(max)).exp()).collect();
                    let total: f64 = exps.iter().sum();
                    for (e, got) in exps.iter().zip(got) {
                        let want = e / total;
                        // A difference of scores is rounded as well: half a unit of its size.
                        let bound =
                            want * (2f64.powi(-8) + 2f64.powi(-17) + (n as f64 + 8.0 + 2.0 * size) * 2f64.powi(-23));
                        assert!((got.to_f64() - want).abs() <= bound, "{level:?} {n}: {got} for {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_are_right_to_one_rounding_at_every_level() {
        for (n, level) in WIDTHS.into_iter().flat_map(|n| Level::supported().map(move |level| (n, level))) {
            let scores: Vec<f32> = values("scores", 3 * n).into_iter().map(|x| (x * 3.0) as f32).collect();
            let (p, scale) = (forward(level, n, &scores), 0.125);
            let grad: Vec<f32> = values("grad", 3 * n).into_iter().map(|x| x as f32).collect();
            let got = backward(level, n, &p, &grad, scale);
            for ((p, grad), got) in p.chunks_exact(n).zip(grad.chunks_exact(n)).zip(got.chunks_exact(n)) {
                let products = || p.iter().zip(grad).map(|(p, grad)| p.to_f64() * f64::from(*grad));
                let (along, size): (f64, f64) = (products().sum(), products().map(f64::abs).sum());
                for ((p, grad), got) in p.iter().zip(grad).zip(got) {
                    let (p, grad) = (p.to_f64() * f64::from(scale), f64::from(*grad));
                    let want = p * (grad - along);
                    let sums = p * (grad.abs() + size) * (n + 2) as f64 * 2f64.powi(-23);
                    let bound = want.abs() * 2f64.powi(-8) + sums;
                    assert!((got.to_f64() - want).abs() <= bound, "{level:?} {n}: {got} for {want}");
                }
            }
        }
    }

    /// As attention calls them: a row of equal scores is uniform, and moves with no gradient of equal numbers.
    #[test]
    fn equal_scores_have_equal_shares() {
        let p = forward(Level::current(), 16, &[3.0; 32]);
        assert!(p.iter().all(|p| p.to_f32() == 1.0 / 16.0));
        let ds = backward(Level::current(), 16, &p, &[2.0; 32], 0.5);
        assert!(ds.iter().all(|ds| *ds == bf16::ZERO));
    }

    /// As in f32: a NaN spoils its row, minus infinity has no probability, and a row of nothing else is no number.
    #[test]
    fn special_values_stay_in_their_rows() {
        for (n, level) in [5, 17, 33].into_iter().flat_map(|n| Level::supported().map(move |level| (n, level))) {
            let mut scores = vec![0f32; 4 * n];
            scores[n - 1] = f32::NAN;
            scores[n] = f32::NEG_INFINITY;
            scores[2 * n..3 * n].fill(f32::NEG_INFINITY);
            let p = forward(level, n, &scores);
            assert!(p[..n].iter().chain(&p[2 * n..3 * n]).all(|p| p.is_nan()), "{level:?} {n}: {p:?}");
            assert!(p[n] == bf16::ZERO && p[n + 1..2 * n].iter().chain(&p[3 * n..]).all(|p| *p > bf16::ZERO));
            let grad = vec![1f32; 4 * n];
            let ds = backward(level, n, &p, &grad, 1.0);
            assert!(ds[..n].iter().all(|ds| ds.is_nan()) && ds[n..2 * n].iter().all(|ds| ds.is_finite()));
        }
    }
}

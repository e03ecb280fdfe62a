//! Mean and variance of the channels.

use super::small::{by_columns, has_small_planes, spread, sum_images};
use super::{Dims, by_channel};
use crate::kernels::simd::{Kernel, Real, Simd, dispatch};
use std::ops::Range;

/// Mean and biased variance of each channel: 2·c numbers.
pub(crate) fn stats<T: Real>(dims: Dims, xs: &[T]) -> Vec<T> {
    struct Plane<'a, T>(&'a [T]);
    impl<T: Real> Kernel<T> for Plane<'_, T> {
        type Output = [f64; 2];

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = T>>(self) -> [f64; 2] {
            // SAFETY: below `dispatch`.
            unsafe { plane_stats::<V>(self.0.as_ptr(), self.0.len()) }
        }
    }
    let (b, c, s) = dims;
    assert_eq!(xs.len(), b * c * s);
    if has_small_planes(dims) {
        return small_stats(dims, xs);
    }
    let channels = by_channel(dims, |plane| dispatch(Plane(&xs[plane * s..][..s])), |planes| channel_stats(planes, s));
    in_rows(&channels)
}

/// [`stats`] of small planes; two passes, as [`plane_stats`].
fn small_stats<T: Real>(dims: Dims, xs: &[T]) -> Vec<T> {
    /// Σ (x - center) and Σ (x - center)² over the images.
    struct Columns<'a, T> {
        xs: &'a [T],
        images: usize,
        center: &'a [T],
        columns: Range<usize>,
        sums: &'a mut [[f64; 2]],
    }
    impl<T: Real> Kernel<T> for Columns<'_, T> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = T>>(self) {
            let row = self.center.len();
            // SAFETY: below `dispatch`; an image has as many pixels as there are centers, and the columns are among
            // them.
            unsafe {
                for (sums, i) in self.sums.chunks_mut(V::LANES).zip(self.columns.step_by(V::LANES)) {
                    let count = sums.len();
                    let center = V::load_first(self.center.as_ptr().add(i), count);
                    sum_images::<V>(self.images, sums, |image| {
                        let d = V::load_first(self.xs.as_ptr().add(image * row + i), count).sub(center);
                        [d, d.mul(d)]
                    });
                }
            }
        }
    }
    let (b, c, s) = dims;
    let sums =
        |center: &[T]| by_columns(dims, |columns, sums| dispatch(Columns { xs, images: b, center, columns, sums }));
    let n = (b * s) as f64;
    let means: Vec<f64> = sums(&vec![T::zero(); c * s]).iter().map(|sum| sum[0] / n).collect();
    let rounded: Vec<T> = means.iter().map(|&mean| T::from_f64(mean)).collect();
    let squares = sums(&spread(&rounded, s));
    let channel = |((mean, center), [_, squares]): ((f64, &T), [f64; 2])| {
        // The mean was rounded to be subtracted: take back what that adds.
        let slip = mean - center.to_f64();
        let variance = squares / n - slip * slip;
        // Roundings can leave less than nothing; NaN stays NaN.
        (mean, if variance < 0.0 { 0.0 } else { variance })
    };
    in_rows(&means.into_iter().zip(&rounded).zip(squares).map(channel).collect::<Vec<_>>())
}

/// The same from each plane's [`plane_stats`], those of a channel side by side.
pub(crate) fn stats_of_planes<T: Real>((b, _, s): Dims, planes: &[[f64; 2]]) -> Vec<T> {
    in_rows(&planes.chunks_exact(b).map(|planes| channel_stats(planes, s)).collect::<Vec<_>>())
}

/// All first numbers, then all second ones.
fn in_rows<T: Real>(channels: &[(f64, f64)]) -> Vec<T> {
    channels.iter().map(|c| c.0).chain(channels.iter().map(|c| c.1)).map(T::from_f64).collect()
}

/// Mean and biased variance of a channel from those of its planes of `s` pixels.
fn channel_stats(planes: &[[f64; 2]], s: usize) -> (f64, f64) {
    let mean = planes.iter().map(|p| p[0]).sum::<f64>() / planes.len() as f64;
    let spread: f64 = planes.iter().map(|p| p[1] + s as f64 * (p[0] - mean) * (p[0] - mean)).sum();
    // Roundings can leave less than nothing; NaN stays NaN.
    (mean, if spread < 0.0 { 0.0 } else { spread / (planes.len() * s) as f64 })
}

/// Mean of n pixels, and Σ (x - mean)²: two passes, so that a large mean costs no digits.
///
/// # Safety
/// Below `dispatch`; `xs` holds n elements.
#[inline(always)]
pub(crate) unsafe fn plane_stats<V: Simd<Elem: Real>>(xs: *const V::Elem, n: usize) -> [f64; 2] {
    use candle_core::WithDType;
    // SAFETY: `sum_over` keeps inside 0..n.
    unsafe {
        let sum = sum_over::<V>(n, |i, count| V::load_first(xs.add(i), count), |i| V::load(xs.add(i)));
        let mean = sum / n as f64;
        let rounded = V::Elem::from_f64(mean);
        let center = V::splat(rounded);
        let square = |x: V| {
            let d = x.sub(center);
            d.mul(d)
        };
        let whole = n - n % V::LANES;
        let mut squares = sum_over::<V>(whole, |_, _| V::zero(), |i| square(V::load(xs.add(i))));
        for i in whole..n {
            let d = (*xs.add(i) - rounded).to_f64();
            squares += d * d;
        }
        // The mean was rounded to be subtracted: take back what that adds.
        let slip = mean - rounded.to_f64();
        [mean, squares - n as f64 * slip * slip]
    }
}

/// Σ over vectors of 0..n, in four chains of lanes.
///
/// # Safety
/// Below `dispatch`; `whole(i)` reads LANES elements from i on, `part(i, count)` the first `count`.
#[inline(always)]
pub(super) unsafe fn sum_over<V: Simd>(n: usize, part: impl Fn(usize, usize) -> V, whole: impl Fn(usize) -> V) -> f64 {
    use candle_core::WithDType;
    // SAFETY: the caller stands below `dispatch`.
    unsafe {
        let mut sums = [V::zero(); 4];
        let mut i = 0;
        while i + 4 * V::LANES <= n {
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = sum.add(whole(i + j * V::LANES));
            }
            i += 4 * V::LANES;
        }
        while i + V::LANES <= n {
            sums[0] = sums[0].add(whole(i));
            i += V::LANES;
        }
        if i < n {
            sums[1] = sums[1].add(part(i, n - i));
        }
        sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum().to_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mean a thousand times the spread must not cost the variance its digits.
    #[test]
    fn variance_survives_a_large_mean() {
        let xs: Vec<f32> = (0..4096).map(|i| 1000.0 + (i % 2) as f32).collect();
        let stats = stats((4, 1, 1024), &xs);
        assert_eq!(stats, [1000.5, 0.25]);
    }
}

//! Planes of a few pixels: one pass takes all planes of an image, sums go over the images element by element.

use super::Dims;
use crate::kernels::simd::{Real, Simd};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// Columns of a task where sums go over the images, some cache lines.
const COLUMNS: usize = 256;

/// Lanes of the widest vector.
const MOST_LANES: usize = 16;

/// Images whose values are added up in lanes, before these are added in f64.
const CHAIN: usize = 32;

/// Whether planes have too few pixels for a pass each, and are enough to gain by one pass an image.
pub(super) fn has_small_planes((b, c, s): Dims) -> bool {
    (1..32).contains(&s) && b >= 8 && c > 1
}

/// The channels' numbers, each repeated for every pixel of its plane.
pub(super) fn spread<T: Real>(values: &[T], s: usize) -> Cow<'_, [T]> {
    match s {
        1 => values.into(),
        _ => values.iter().flat_map(|&value| std::iter::repeat_n(value, s)).collect(),
    }
}

/// Two sums by channel: `f` sums a run of columns over the images, the columns of a channel are added here.
pub(super) fn by_columns((_, c, s): Dims, f: impl Fn(Range<usize>, &mut [[f64; 2]]) + Sync) -> Vec<[f64; 2]> {
    let mut columns = vec![[0.0; 2]; c * s];
    columns.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, sums)| {
        let first = i * COLUMNS;
        f(first..first + sums.len(), sums);
    });
    columns.chunks_exact(s).map(|pixels| pixels.iter().fold([0.0; 2], |[a, b], [c, d]| [a + c, b + d])).collect()
}

/// Σ of two vectors over `images`, added to `sums` lane by lane: in vectors over a chain of images, then in f64.
///
/// # Safety
/// Below `dispatch`; there are at most LANES `sums`.
#[inline(always)]
pub(super) unsafe fn sum_images<V: Simd<Elem: Real>>(
    images: usize,
    sums: &mut [[f64; 2]],
    mut at: impl FnMut(usize) -> [V; 2],
) {
    use candle_core::WithDType;
    const { assert!(V::LANES <= MOST_LANES) };
    let mut lanes = [[V::Elem::from_f64(0.0); MOST_LANES]; 2];
    for first in (0..images).step_by(CHAIN) {
        // SAFETY: below `dispatch`; a vector has at most MOST_LANES lanes.
        unsafe {
            let mut chain = [V::zero(); 2];
            for image in first..images.min(first + CHAIN) {
                let values = at(image);
                chain = [chain[0].add(values[0]), chain[1].add(values[1])];
            }
            chain[0].store_first(lanes[0].as_mut_ptr(), V::LANES);
            chain[1].store_first(lanes[1].as_mut_ptr(), V::LANES);
        }
        for (sum, (a, b)) in sums.iter_mut().zip(lanes[0].iter().zip(&lanes[1])) {
            *sum = [sum[0] + a.to_f64(), sum[1] + b.to_f64()];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Affine, CutBy, InputGrad, Window, add_input_grad, affine_into, grad_sums, input_grad, stats};
    use super::*;
    use crate::kernels::buffer::Shared;
    use crate::kernels::fused_activation::FusedActivation;
    use crate::testing::values;

    fn numbers(n: usize, name: &str) -> Vec<f32> {
        values(name, n).into_iter().map(|x| x as f32).collect()
    }

    /// Fewer than eight images are passed over plane by plane: what all give together is what their parts give, to the
    /// bit where no sum goes over the images.
    #[test]
    fn small_planes_together_are_what_they_are_one_by_one() {
        const PART: usize = 5;
        for (b, c, s) in [(8, 3, 1), (9, 5, 4), (40, 70, 4), (33, 300, 1), (70, 2, 31), (11, 33, 9)] {
            assert!(has_small_planes((b, c, s)) && !has_small_planes((PART, c, s)));
            let (row, window) = (c * s, Window { first: 2, of: c + 5 });
            let wide = window.of * s;
            let [xs, skip, out] = ["xs", "skip", "out"].map(|name| numbers(b * row, name));
            let grad = numbers(b * wide, "grad");
            let [mean, scale, shift, d] = ["mean", "scale", "shift", "d"].map(|name| numbers(c, name));
            let by = Affine { mean: &mean, scale: &scale, shift: &shift };
            let rest = InputGrad { mean: &mean, a: &scale, rest: Some((&shift, &d)) };
            let parts = || (0..b).step_by(PART).map(|first| (first, (b - first).min(PART)));
            for activation in [FusedActivation::None, FusedActivation::Relu, FusedActivation::Relu6] {
                let affine = |first: usize, n: usize, skip: Option<&[f32]>| {
                    let mut ys = vec![7.0; n * wide];
                    let skip = skip.map(|skip| &skip[first * row..][..n * row]);
                    let to = (Shared::new(&mut ys), window);
                    // SAFETY: the output holds the window's images.
                    unsafe { affine_into((n, c, s), &xs[first * row..][..n * row], by, skip, activation, to) };
                    ys
                };
                for skip in [None, Some(&skip[..])] {
                    let one_by_one: Vec<f32> = parts().flat_map(|(first, n)| affine(first, n, skip)).collect();
                    assert_eq!(affine(0, b, skip), one_by_one, "{b} {c} {s} {activation:?}");
                }

                for cut in [CutBy::Output(&out[..]), CutBy::Input(by)] {
                    let of = |first: usize, n: usize| {
                        let places = first * row..(first + n) * row;
                        let grad = (&grad[first * wide..][..n * wide], window);
                        (&xs[places.clone()], grad, (activation, cut.part(places)))
                    };
                    let added = |first: usize, n: usize| {
                        let (xs, grad, cut) = of(first, n);
                        let mut to = skip[first * row..][..n * row].to_vec();
                        add_input_grad((n, c, s), xs, &mut to, grad, &rest, cut);
                        [input_grad((n, c, s), xs, grad, &rest, cut), to].concat()
                    };
                    let all = added(0, b);
                    for (first, n) in parts() {
                        let part = added(first, n);
                        for (half, from) in [(0, 0), (1, b * row)] {
                            assert_eq!(part[half * n * row..][..n * row], all[from + first * row..][..n * row]);
                        }
                    }

                    let sums = |first: usize, n: usize| {
                        let (xs, grad, cut) = of(first, n);
                        let (sums, kept) = grad_sums((n, c, s), xs, grad, &mean, cut, true);
                        (sums, kept.unwrap())
                    };
                    let (together, kept) = sums(0, b);
                    let mut expected = vec![0f64; 2 * c];
                    for (first, n) in parts() {
                        let (part, part_kept) = sums(first, n);
                        assert_eq!(part_kept, kept[first * row..][..n * row]);
                        expected.iter_mut().zip(part).for_each(|(sum, x)| *sum += f64::from(x));
                    }
                    for (found, expected) in together.iter().zip(&expected) {
                        let error = (f64::from(*found) - expected).abs();
                        assert!(error < 1e-6 * (b * s) as f64, "{found} {expected}: {b} {c} {s} {activation:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn statistics_of_small_planes_are_those_of_the_definition() {
        for (b, c, s) in [(8, 3, 1), (9, 5, 4), (70, 300, 4), (33, 2, 31)] {
            let xs: Vec<f32> = numbers(b * c * s, "xs").iter().map(|x| 1000.0 + x).collect();
            let found = stats((b, c, s), &xs);
            for channel in 0..c {
                let own = (0..b * c * s).filter(|i| i / s % c == channel).map(|i| f64::from(xs[i]));
                let n = (b * s) as f64;
                let mean = own.clone().sum::<f64>() / n;
                let variance = own.map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
                assert!((f64::from(found[channel]) - mean).abs() < 1e-4, "{} {mean}", found[channel]);
                let error = (f64::from(found[c + channel]) - variance).abs();
                assert!(error < 1e-5 * variance, "{} {variance}: {b} {c} {s}", found[c + channel]);
            }
        }
        // As in every other form: a mean a thousand times the spread costs no digits, and constants have no variance
        // but the square of their mean's rounding.
        let xs: Vec<f32> = (0..64).map(|i| 1000.0 + (i / 2 % 2) as f32).collect();
        assert_eq!(stats((32, 2, 1), &xs), [1000.5, 1000.5, 0.25, 0.25]);
        assert_eq!(stats::<f32>((8, 2, 0), &[]).len(), 4);
        let constant = stats((8, 2, 1), &[0.1f32; 16]);
        assert!(constant[2..].iter().all(|&variance| (0.0..1e-15).contains(&variance)), "{constant:?}");
    }
}

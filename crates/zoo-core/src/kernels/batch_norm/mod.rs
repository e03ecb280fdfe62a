//! Batch normalisation on the host, with what usually follows it: y = clamp((x - mean) · scale + shift + skip).
//!
//! Inputs are (b, c, s) with s pixels a plane. Every pass runs over runs of planes in parallel; a plane's sums are made while
//! it is in the first-level cache, in vector lanes, and added up over the planes of a channel in f64, in their order:
//! no bit depends on the number of threads.
//!
//! Planes of a few pixels would leave most lanes of a vector empty, and the way to a kernel would take longer than its work. There
//! ([`are_small`]) a vector holds pixels of several channels: all of an image are passed over at once with every channel's
//! numbers spread over its pixels, and sums are made element by element over the images.

use crate::kernels::buffer::{Shared, written_by_tasks};
use crate::kernels::clamp::Clamp;
use crate::kernels::real::Real;
use crate::kernels::simd::{Kernel, Simd, dispatch, prefetch_to_write};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// (b, channels, pixels a plane)
pub(crate) type Dims = (usize, usize, usize);

/// How far ahead of its writing an output is asked for, in elements: memory is read before it is written, and two threads that
/// wait for it get two thirds of what the memory can do.
const AHEAD: usize = 512;

/// Elements of a task.
const TASK: usize = 1 << 15;

/// Columns of a task where sums go over the images, some cache lines.
const COLUMNS: usize = 256;

/// Lanes of the widest vector.
const MOST_LANES: usize = 16;

/// Images whose values are added up in lanes, before these are added in f64.
const CHAIN: usize = 32;

/// Whether planes have too few pixels to be passed over one by one, and there are enough of them to make that worth while.
fn are_small((b, c, s): Dims) -> bool {
    (1..32).contains(&s) && b >= 8 && c > 1
}

/// A number of every channel, as a kernel reads it: one channel's, or, with `EACH`, one for every pixel of an image.
#[derive(Clone, Copy)]
struct Number<'a, T> {
    one: T,
    each: &'a [T],
}

impl<'a, T: Real> Number<'a, T> {
    /// Of `channel`, or of the pixels from there on.
    fn of(values: &'a [T], channel: usize) -> Self {
        Self { one: values[channel], each: values }
    }

    #[inline(always)]
    unsafe fn lanes<V: Simd<Elem = T>, const EACH: bool>(self, i: usize, count: usize) -> V {
        debug_assert!(!EACH || i + count <= self.each.len());
        // SAFETY: below `dispatch`; with `EACH` there are as many values as pixels, and i + count of these.
        unsafe { if EACH { V::load_first(self.each.as_ptr().add(i), count) } else { V::splat(self.one) } }
    }
}

/// The channels' numbers, each once for every pixel of its plane.
fn spread<T: Real>(values: &[T], s: usize) -> Cow<'_, [T]> {
    match s {
        1 => values.into(),
        _ => values.iter().flat_map(|&value| std::iter::repeat_n(value, s)).collect(),
    }
}

/// Where the planes of a tensor of channels lie in a wider one, whose other channels stand before and behind them.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    /// The first of its channels there.
    pub first: usize,
    /// Channels there.
    pub of: usize,
}

impl Window {
    /// All of it.
    pub fn whole((_, c, _): Dims) -> Self {
        Self { first: 0, of: c }
    }

    /// Where a plane of the narrow tensor begins in the wide one.
    fn start(self, plane: usize, (_, c, s): Dims) -> usize {
        (plane / c * self.of + self.first + plane % c) * s
    }

    fn check(self, (b, c, s): Dims, wide: usize) {
        assert!(self.first + c <= self.of && wide == b * self.of * s);
    }
}

/// Runs `f` over runs of planes, in parallel.
fn for_planes((b, c, s): Dims, f: impl Fn(Range<usize>) + Sync) {
    let (planes, run) = (b * c, (TASK / s.max(1)).max(1));
    (0..planes.div_ceil(run)).into_par_iter().for_each(|i| f(i * run..planes.min((i + 1) * run)));
}

/// Two numbers of each plane, added up over the planes of each channel by `add`.
fn by_channel<R: Send>(
    dims: Dims,
    f: impl Fn(usize) -> [f64; 2] + Sync,
    add: impl Fn(&[[f64; 2]]) -> R + Sync + Send,
) -> Vec<R> {
    let (b, c, _) = dims;
    // A channel's planes side by side.
    let mut planes = vec![[0.0; 2]; b * c];
    let shared = Shared::new(&mut planes);
    for_planes(dims, |run| {
        for plane in run {
            let both = f(plane);
            // SAFETY: each plane has its place.
            unsafe { *shared.at(plane % c * b + plane / c) = both };
        }
    });
    planes.par_chunks_exact(b.max(1)).with_min_len(64).map(add).collect()
}

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
    if are_small(dims) {
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
            // SAFETY: below `dispatch`; an image has as many pixels as there are centers, and the columns are among them.
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
pub(super) unsafe fn plane_stats<V: Simd<Elem: Real>>(xs: *const V::Elem, n: usize) -> [f64; 2] {
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
unsafe fn sum_over<V: Simd>(n: usize, part: impl Fn(usize, usize) -> V, whole: impl Fn(usize) -> V) -> f64 {
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

/// Mean, scale and shift of each channel.
#[derive(Clone, Copy)]
pub(crate) struct Affine<'a, T> {
    pub mean: &'a [T],
    /// weight / std
    pub scale: &'a [T],
    pub shift: &'a [T],
}

impl<T: Real> Affine<'_, T> {
    fn check(&self, (_, c, _): Dims) {
        assert_eq!((self.mean.len(), self.scale.len(), self.shift.len()), (c, c, c));
    }
}

/// y = clamp((x - mean) · scale + shift + skip), into the window of a tensor of more channels.
///
/// # Safety
/// The output holds b · window.of · s elements.
pub(crate) unsafe fn affine_into<T: Real>(
    dims: Dims,
    xs: &[T],
    by: Affine<T>,
    skip: Option<&[T]>,
    clamp: Clamp,
    (ys, window): (Shared<T>, Window),
) {
    by.check(dims);
    let (b, c, s) = dims;
    assert!(xs.len() == b * c * s && skip.is_none_or(|skip| skip.len() == xs.len()) && window.first + c <= window.of);
    let to = |plane: usize| {
        // SAFETY: the caller's output holds the planes of all images and of the window's channels.
        unsafe { ys.at(window.start(plane, dims)) }
    };
    if are_small(dims) {
        let [mean, scale, shift] = [by.mean, by.scale, by.shift].map(|values| spread(values, s));
        let by = Affine { mean: &mean, scale: &scale, shift: &shift };
        for_planes((b, 1, c * s), |run| {
            for image in run {
                let part = image * c * s..(image + 1) * c * s;
                affine_plane::<T, true>(&xs[part.clone()], skip.map(|skip| &skip[part]), by, 0, clamp, to(image * c));
            }
        });
    } else {
        for_planes(dims, |run| {
            for plane in run {
                let part = plane * s..(plane + 1) * s;
                let skip = skip.map(|skip| &skip[part.clone()]);
                affine_plane::<T, false>(&xs[part], skip, by, plane % c, clamp, to(plane));
            }
        });
    }
}

/// A plane of `channel`, or with `EACH` the planes of an image.
#[inline]
fn affine_plane<T: Real, const EACH: bool>(
    xs: &[T],
    skip: Option<&[T]>,
    by: Affine<T>,
    channel: usize,
    clamp: Clamp,
    ys: *mut T,
) {
    struct Plane<'a, T, const EACH: bool> {
        xs: &'a [T],
        ys: *mut T,
        skip: Option<&'a [T]>,
        mean: Number<'a, T>,
        scale: Number<'a, T>,
        shift: Number<'a, T>,
        clamp: Clamp,
    }
    impl<T: Real, const EACH: bool> Kernel<T> for Plane<'_, T, EACH> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = T>>(self) {
            // SAFETY: below `dispatch`; `xs`, `ys` and `skip` have the same length, and with `EACH` the numbers too.
            unsafe {
                let n = self.xs.len();
                for i in (0..n).step_by(V::LANES) {
                    let count = V::LANES.min(n - i);
                    prefetch_to_write(self.ys.wrapping_add(i + AHEAD));
                    let (mean, scale) = (self.mean.lanes::<V, EACH>(i, count), self.scale.lanes::<V, EACH>(i, count));
                    let centered = V::load_first(self.xs.as_ptr().add(i), count).sub(mean);
                    let mut y = centered.mul_add(scale, self.shift.lanes::<V, EACH>(i, count));
                    if let Some(skip) = self.skip {
                        y = y.add(V::load_first(skip.as_ptr().add(i), count));
                    }
                    self.clamp.apply(y).store_first(self.ys.add(i), count);
                }
            }
        }
    }
    let [mean, scale, shift] = [by.mean, by.scale, by.shift].map(|values| Number::of(values, channel));
    dispatch(Plane::<T, EACH> { xs, ys, skip, mean, scale, shift, clamp });
}

/// y = clamp((x - mean) · scale + shift + skip)
pub(crate) fn affine<T: Real>(dims: Dims, xs: &[T], by: Affine<T>, skip: Option<&[T]>, clamp: Clamp) -> Vec<T> {
    // SAFETY: the planes cover the output.
    unsafe { written_by_tasks(xs.len(), |ys| affine_into(dims, xs, by, skip, clamp, (ys, Window::whole(dims)))) }
}

/// y ← clamp(y + skip), in place.
pub(crate) fn finish<T: Real>(ys: &mut [T], skip: Option<&[T]>, clamp: Clamp) {
    struct Run<'a, T>(&'a mut [T], Option<&'a [T]>, Clamp);
    impl<T: Real> Kernel<T> for Run<'_, T> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = T>>(self) {
            let n = self.0.len();
            // SAFETY: below `dispatch`; both slices have n elements.
            unsafe {
                for i in (0..n).step_by(V::LANES) {
                    let count = V::LANES.min(n - i);
                    let to = self.0.as_mut_ptr().add(i);
                    let mut y = V::load_first(to, count);
                    if let Some(skip) = self.1 {
                        y = y.add(V::load_first(skip.as_ptr().add(i), count));
                    }
                    self.2.apply(y).store_first(to, count);
                }
            }
        }
    }
    assert!(skip.is_none_or(|skip| skip.len() == ys.len()));
    ys.par_chunks_mut(TASK).enumerate().for_each(|(i, ys)| {
        let skip = skip.map(|skip| &skip[i * TASK..][..ys.len()]);
        dispatch(Run(ys, skip, clamp));
    });
}

/// to ← to + from
pub(crate) fn add_to<T: Real>(to: &mut [T], from: &[T]) {
    finish(to, Some(from), Clamp::None);
}

/// Where a clamp looks to know what it cut.
#[derive(Clone, Copy)]
pub(crate) enum CutBy<'a, T> {
    /// The clamp's output.
    Output(&'a [T]),
    /// Its input, computed again from x.
    Input(Affine<'a, T>),
}

impl<T: Copy> CutBy<'_, T> {
    /// For a part of the planes.
    pub fn part(&self, places: Range<usize>) -> Self {
        match *self {
            Self::Output(ys) => Self::Output(&ys[places]),
            Self::Input(by) => Self::Input(by),
        }
    }
}

/// A plane's view of the backward pass; with `EACH` the view of an image's planes.
struct Grads<'a, T, const EACH: bool> {
    xs: *const T,
    grad: *const T,
    n: usize,
    output: Option<*const T>,
    mean: Number<'a, T>,
    /// Of the clamp's input.
    affine: Option<(Number<'a, T>, Number<'a, T>)>,
    clamp: Clamp,
}

impl<T: Real, const EACH: bool> Grads<'_, T, EACH> {
    /// (gradient that passes the clamp, x - mean) of some lanes.
    #[inline(always)]
    unsafe fn at<V: Simd<Elem = T>>(&self, i: usize, count: usize) -> (V, V) {
        // SAFETY: below `dispatch`, i + count ≤ n.
        unsafe {
            let grad = V::load_first(self.grad.add(i), count);
            let centered = V::load_first(self.xs.add(i), count).sub(self.mean.lanes::<V, EACH>(i, count));
            let grad = match (self.clamp, self.output, self.affine) {
                (Clamp::None, ..) => grad,
                (clamp, Some(output), _) => clamp.gradient(V::load_first(output.add(i), count), grad),
                (clamp, None, Some((scale, shift))) => {
                    let (scale, shift) = (scale.lanes::<V, EACH>(i, count), shift.lanes::<V, EACH>(i, count));
                    clamp.gradient(centered.mul_add(scale, shift), grad)
                }
                (_, None, None) => grad,
            };
            (grad, centered)
        }
    }
}

/// `xs` and `grad` are the plane's own, or with `EACH` those of the image's `n` pixels that begin with this plane.
#[inline(always)]
fn grads<'a, T: Real, const EACH: bool>(
    (_, c, s): Dims,
    (plane, n): (usize, usize),
    (xs, grad): (*const T, *const T),
    mean: &'a [T],
    (clamp, cut): (Clamp, CutBy<'a, T>),
) -> Grads<'a, T, EACH> {
    let channel = if EACH { 0 } else { plane % c };
    let (output, affine) = match cut {
        CutBy::Output(ys) => (Some(ys[plane * s..][..n].as_ptr()), None),
        CutBy::Input(by) => (None, Some((Number::of(by.scale, channel), Number::of(by.shift, channel)))),
    };
    Grads { xs, grad, n, output, mean: Number::of(mean, channel), affine, clamp }
}

/// [`CutBy`] with the channels' numbers spread over their pixels.
struct SpreadCut<'a, T: Clone> {
    output: Option<&'a [T]>,
    affine: [Cow<'a, [T]>; 3],
}

impl<'a, T: Real> SpreadCut<'a, T> {
    fn of(cut: CutBy<'a, T>, dims: Dims) -> Self {
        let (_, _, s) = dims;
        match cut {
            CutBy::Output(ys) => Self { output: Some(ys), affine: [const { Cow::Borrowed(&[]) }; 3] },
            CutBy::Input(by) => {
                by.check(dims);
                Self { output: None, affine: [by.mean, by.scale, by.shift].map(|values| spread(values, s)) }
            }
        }
    }

    fn cut(&self) -> CutBy<'_, T> {
        let [mean, scale, shift] = &self.affine;
        match self.output {
            Some(ys) => CutBy::Output(ys),
            None => CutBy::Input(Affine { mean, scale, shift }),
        }
    }
}

/// Two numbers of each channel from the sums of its pixels over the images, which `f` makes for a run of columns.
fn by_columns((_, c, s): Dims, f: impl Fn(Range<usize>, &mut [[f64; 2]]) + Sync) -> Vec<[f64; 2]> {
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
unsafe fn sum_images<V: Simd<Elem: Real>>(images: usize, sums: &mut [[f64; 2]], mut at: impl FnMut(usize) -> [V; 2]) {
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

/// Σ g and Σ g · (x - mean) of each channel, 2·c numbers, where g is the gradient behind the clamp; with `keep`, g itself too.
/// The gradient is the window of a wider one.
pub(crate) fn grad_sums<T: Real>(
    dims: Dims,
    xs: &[T],
    (grad, window): (&[T], Window),
    mean: &[T],
    clamp: (Clamp, CutBy<T>),
    keep: bool,
) -> (Vec<T>, Option<Vec<T>>) {
    struct Plane<'a, T>(Grads<'a, T, false>, Option<*mut T>);
    impl<T: Real> Kernel<T> for Plane<'_, T> {
        type Output = [f64; 2];

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = T>>(self) -> [f64; 2] {
            let Self(plane, keep) = self;
            // SAFETY: below `dispatch`, inside the plane.
            unsafe {
                let mut sums = [V::zero(); 4];
                let mut i = 0;
                while i + 2 * V::LANES <= plane.n {
                    for j in 0..2 {
                        let at = i + j * V::LANES;
                        let (g, x) = plane.at::<V>(at, V::LANES);
                        if let Some(keep) = keep {
                            prefetch_to_write(keep.wrapping_add(at + AHEAD));
                            g.store(keep.add(at));
                        }
                        sums[j] = sums[j].add(g);
                        sums[2 + j] = g.mul_add(x, sums[2 + j]);
                    }
                    i += 2 * V::LANES;
                }
                while i < plane.n {
                    let count = V::LANES.min(plane.n - i);
                    // Lanes behind the last pixel hold g = 0; x - mean there is finite unless the mean is not.
                    let (g, x) = plane.at::<V>(i, count);
                    if let Some(keep) = keep {
                        g.store_first(keep.add(i), count);
                    }
                    sums[0] = sums[0].add(g);
                    sums[2] = g.mul_add(x, sums[2]);
                    i += V::LANES;
                }
                [sums[0].add(sums[1]).sum().to_f64(), sums[2].add(sums[3]).sum().to_f64()]
            }
        }
    }
    struct Columns<'s, F> {
        /// The view of an image, and where its gradient is kept.
        image: F,
        images: usize,
        columns: Range<usize>,
        sums: &'s mut [[f64; 2]],
    }
    impl<'a, T: Real, F: Fn(usize) -> (Grads<'a, T, true>, Option<*mut T>)> Kernel<T> for Columns<'_, F> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = T>>(self) {
            let Self { image, images, columns, sums } = self;
            // SAFETY: below `dispatch`, inside the images' columns; no other task has these.
            unsafe {
                for (sums, i) in sums.chunks_mut(V::LANES).zip(columns.step_by(V::LANES)) {
                    let count = sums.len();
                    sum_images::<V>(images, sums, |n| {
                        let (plane, keep) = image(n);
                        let (g, x) = plane.at::<V>(i, count);
                        if let Some(keep) = keep {
                            g.store_first(keep.add(i), count);
                        }
                        [g, g.mul(x)]
                    });
                }
            }
        }
    }
    assert!(xs.len() == dims.0 * dims.1 * dims.2 && mean.len() == dims.1);
    window.check(dims, grad.len());
    if let CutBy::Output(ys) = clamp.1 {
        assert_eq!(ys.len(), xs.len());
    }
    let mut kept = keep.then(|| Vec::with_capacity(xs.len()));
    let place = kept.as_mut().map(|kept: &mut Vec<T>| Shared::from_spare(kept));
    let (x, g) = (Shared::reading(xs), Shared::reading(grad));
    let (b, c, s) = dims;
    // SAFETY: planes lie inside the slices, whose lengths were checked; each has its place.
    let places = |plane: usize| unsafe { (x.at(plane * s).cast_const(), g.at(window.start(plane, dims)).cast_const()) };
    // SAFETY: as above.
    let keeps = |plane: usize| place.map(|place| unsafe { place.at(plane * s) });
    let sums = if are_small(dims) {
        let (mean, cut) = (spread(mean, s), SpreadCut::of(clamp.1, dims));
        by_columns(dims, |columns, sums| {
            let image = |i: usize| {
                let plane = i * c;
                (grads(dims, (plane, c * s), places(plane), &mean, (clamp.0, cut.cut())), keeps(plane))
            };
            dispatch(Columns { image, images: b, columns, sums });
        })
    } else {
        by_channel(
            dims,
            |plane| dispatch(Plane(grads(dims, (plane, s), places(plane), mean, clamp), keeps(plane))),
            |planes| planes.iter().fold([0.0; 2], |[a, b], [c, d]| [a + c, b + d]),
        )
    };
    if let Some(kept) = &mut kept {
        // SAFETY: every plane was written, and they are the whole capacity asked for.
        unsafe { kept.set_len(xs.len()) };
    }
    let sums = sums.iter().map(|s| s[0]).chain(sums.iter().map(|s| s[1])).map(T::from_f64).collect();
    (sums, kept)
}

/// dx = a · g - b · (x - mean) - d with a, b, d by channel; without b and d, which no gradient passes through, dx = a · g.
pub(crate) struct InputGrad<'a, T> {
    pub mean: &'a [T],
    pub a: &'a [T],
    pub rest: Option<(&'a [T], &'a [T])>,
}

/// What becomes of what stands where a gradient goes.
#[derive(Clone, Copy, PartialEq)]
enum Before {
    WrittenOver,
    AddedTo,
}

/// The gradient of x to `to`, which may be `xs` itself.
fn input_grad_into<T: Real>(
    dims: Dims,
    xs: Shared<T>,
    (to, before): (Shared<T>, Before),
    (grad, window): (&[T], Window),
    by: &InputGrad<T>,
    clamp: (Clamp, CutBy<T>),
) {
    let (b, c, s) = dims;
    let g = Shared::reading(grad);
    // SAFETY: the callers have checked that all have the dims' length.
    let at = |plane: usize| unsafe {
        ((xs.at(plane * s).cast_const(), g.at(window.start(plane, dims)).cast_const()), to.at(plane * s))
    };
    if are_small(dims) {
        let [mean, a] = [by.mean, by.a].map(|values| spread(values, s));
        let rest = by.rest.map(|(b, d)| (spread(b, s), spread(d, s)));
        let rest = rest.as_ref().map(|(b, d)| (&b[..], &d[..]));
        let (by, cut) = (InputGrad { mean: &mean, a: &a, rest }, SpreadCut::of(clamp.1, dims));
        for_planes((b, 1, c * s), |run| {
            for image in run {
                let (places, to) = at(image * c);
                let grads = grads(dims, (image * c, c * s), places, by.mean, (clamp.0, cut.cut()));
                input_grad_plane::<T, true>(grads, &by, 0, (to, before));
            }
        });
    } else {
        for_planes(dims, |run| {
            for plane in run {
                let (places, to) = at(plane);
                let grads = grads(dims, (plane, s), places, by.mean, clamp);
                input_grad_plane::<T, false>(grads, by, plane % c, (to, before));
            }
        });
    }
}

/// A plane of `channel`, or with `EACH` the planes of an image.
#[inline]
fn input_grad_plane<T: Real, const EACH: bool>(
    grads: Grads<T, EACH>,
    by: &InputGrad<T>,
    channel: usize,
    (to, before): (*mut T, Before),
) {
    struct Plane<'a, T, const EACH: bool> {
        grads: Grads<'a, T, EACH>,
        to: *mut T,
        before: Before,
        a: Number<'a, T>,
        rest: Option<(Number<'a, T>, Number<'a, T>)>,
    }
    impl<T: Real, const EACH: bool> Kernel<T> for Plane<'_, T, EACH> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = T>>(self) {
            // SAFETY: below `dispatch`, inside the plane; a place is read before it is written.
            unsafe {
                for i in (0..self.grads.n).step_by(V::LANES) {
                    let count = V::LANES.min(self.grads.n - i);
                    let (g, x) = self.grads.at::<V>(i, count);
                    let mut dx = self.a.lanes::<V, EACH>(i, count).mul(g);
                    if let Some((b, d)) = self.rest {
                        let (b, d) = (b.lanes::<V, EACH>(i, count), d.lanes::<V, EACH>(i, count));
                        dx = dx.sub(b.mul_add(x, d));
                    }
                    if self.before == Before::AddedTo {
                        dx = dx.add(V::load_first(self.to.add(i), count));
                    }
                    dx.store_first(self.to.add(i), count);
                }
            }
        }
    }
    let number = |values| Number::of(values, channel);
    let rest = by.rest.map(|(b, d)| (number(b), number(d)));
    dispatch(Plane { grads, to, before, a: Number::of(by.a, channel), rest });
}

impl<T: Real> InputGrad<'_, T> {
    fn check(&self, dims: Dims, xs: &[T], (grad, window): (&[T], Window), cut: CutBy<T>) {
        let (b, c, s) = dims;
        assert!(xs.len() == b * c * s);
        window.check(dims, grad.len());
        assert!(self.mean.len() == c && self.a.len() == c);
        assert!(self.rest.is_none_or(|(b, d)| b.len() == c && d.len() == c));
        if let CutBy::Output(ys) = cut {
            assert_eq!(ys.len(), xs.len());
        }
    }
}

/// The gradient of x, from the window of a wider one.
pub(crate) fn input_grad<T: Real>(
    dims: Dims,
    xs: &[T],
    grad: (&[T], Window),
    by: &InputGrad<T>,
    clamp: (Clamp, CutBy<T>),
) -> Vec<T> {
    by.check(dims, xs, grad, clamp.1);
    let from = Shared::reading(xs);
    // SAFETY: the planes cover the output.
    unsafe { written_by_tasks(xs.len(), |to| input_grad_into(dims, from, (to, Before::WrittenOver), grad, by, clamp)) }
}

/// The gradient of x, added to what another reader of x has sent.
pub(crate) fn add_input_grad<T: Real>(
    dims: Dims,
    xs: &[T],
    to: &mut [T],
    grad: (&[T], Window),
    by: &InputGrad<T>,
    clamp: (Clamp, CutBy<T>),
) {
    by.check(dims, xs, grad, clamp.1);
    assert_eq!(to.len(), xs.len());
    input_grad_into(dims, Shared::reading(xs), (Shared::new(to), Before::AddedTo), grad, by, clamp);
}

/// The gradient of x, written over x.
pub(crate) fn input_grad_over<T: Real>(
    dims: Dims,
    xs: &mut [T],
    grad: &[T],
    by: &InputGrad<T>,
    clamp: (Clamp, CutBy<T>),
) {
    let grad = (grad, Window::whole(dims));
    by.check(dims, xs, grad, clamp.1);
    let xs = Shared::new(xs);
    input_grad_into(dims, xs, (xs, Before::WrittenOver), grad, by, clamp);
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

    /// Numbers from -1 to 1.
    fn numbers(n: usize, name: &str) -> Vec<f32> {
        let mut rng = crate::rng::Rng::new(5, name);
        (0..n).map(|_| (rng.below(2001) as f32 - 1000.0) / 1000.0).collect()
    }

    /// Fewer than eight images are passed over plane by plane: what all give together is what their parts give, to the bit where no
    /// sum goes over the images.
    #[test]
    fn small_planes_together_are_what_they_are_one_by_one() {
        const PART: usize = 5;
        for (b, c, s) in [(8, 3, 1), (9, 5, 4), (40, 70, 4), (33, 300, 1), (70, 2, 31), (11, 33, 9)] {
            assert!(are_small((b, c, s)) && !are_small((PART, c, s)));
            let (row, window) = (c * s, Window { first: 2, of: c + 5 });
            let wide = window.of * s;
            let [xs, skip, out] = ["xs", "skip", "out"].map(|name| numbers(b * row, name));
            let grad = numbers(b * wide, "grad");
            let [mean, scale, shift, d] = ["mean", "scale", "shift", "d"].map(|name| numbers(c, name));
            let by = Affine { mean: &mean, scale: &scale, shift: &shift };
            let rest = InputGrad { mean: &mean, a: &scale, rest: Some((&shift, &d)) };
            let parts = || (0..b).step_by(PART).map(|first| (first, (b - first).min(PART)));
            for clamp in [Clamp::None, Clamp::Relu, Clamp::Relu6] {
                let affine = |first: usize, n: usize, skip: Option<&[f32]>| {
                    let mut ys = vec![7.0; n * wide];
                    let skip = skip.map(|skip| &skip[first * row..][..n * row]);
                    let to = (Shared::new(&mut ys), window);
                    // SAFETY: the output holds the window's images.
                    unsafe { affine_into((n, c, s), &xs[first * row..][..n * row], by, skip, clamp, to) };
                    ys
                };
                for skip in [None, Some(&skip[..])] {
                    let one_by_one: Vec<f32> = parts().flat_map(|(first, n)| affine(first, n, skip)).collect();
                    assert_eq!(affine(0, b, skip), one_by_one, "{b} {c} {s} {clamp:?}");
                }

                for cut in [CutBy::Output(&out[..]), CutBy::Input(by)] {
                    let of = |first: usize, n: usize| {
                        let places = first * row..(first + n) * row;
                        let grad = (&grad[first * wide..][..n * wide], window);
                        (&xs[places.clone()], grad, (clamp, cut.part(places)))
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
                        assert!(error < 1e-6 * (b * s) as f64, "{found} {expected}: {b} {c} {s} {clamp:?}");
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
        // As in every other form: a mean a thousand times the spread costs no digits, and constants have no variance but
        // the square of their mean's rounding.
        let xs: Vec<f32> = (0..64).map(|i| 1000.0 + (i / 2 % 2) as f32).collect();
        assert_eq!(stats((32, 2, 1), &xs), [1000.5, 1000.5, 0.25, 0.25]);
        assert_eq!(stats::<f32>((8, 2, 0), &[]).len(), 4);
        let constant = stats((8, 2, 1), &[0.1f32; 16]);
        assert!(constant[2..].iter().all(|&variance| (0.0..1e-15).contains(&variance)), "{constant:?}");
    }
}

//! Batch normalisation on the host, with what usually follows it: y = clamp((x - mean) · scale + shift + skip).
//!
//! Inputs are (b, c, s) with s pixels a plane. Every pass runs over runs of planes in parallel; a plane's sums are made while
//! it is in the first-level cache, in vector lanes, and added up over the planes of a channel in f64, in their order:
//! no bit depends on the number of threads.

use super::buffer::{Shared, written_by_tasks};
use super::clamp::Clamp;
use super::simd::{Kernel, Simd, dispatch, prefetch_to_write};
use crate::ops::Real;
use rayon::prelude::*;
use std::ops::Range;

/// (b, channels, pixels a plane)
pub(crate) type Dims = (usize, usize, usize);

/// How far ahead of its writing an output is asked for, in elements: memory is read before it is written, and two threads that
/// wait for it get two thirds of what the memory can do.
const AHEAD: usize = 512;

/// Elements of a task.
const TASK: usize = 1 << 15;

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
    let channels = by_channel(dims, |plane| dispatch(Plane(&xs[plane * s..][..s])), |planes| channel_stats(planes, s));
    in_rows(&channels)
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
    struct Plane<'a, T> {
        xs: &'a [T],
        ys: *mut T,
        skip: Option<&'a [T]>,
        mean: T,
        scale: T,
        shift: T,
        clamp: Clamp,
    }
    impl<T: Real> Kernel<T> for Plane<'_, T> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = T>>(self) {
            // SAFETY: below `dispatch`; `xs`, `ys` and `skip` have the same length.
            unsafe {
                let (mean, scale, shift) = (V::splat(self.mean), V::splat(self.scale), V::splat(self.shift));
                let n = self.xs.len();
                for i in (0..n).step_by(V::LANES) {
                    let count = V::LANES.min(n - i);
                    prefetch_to_write(self.ys.wrapping_add(i + AHEAD));
                    let mut y = V::load_first(self.xs.as_ptr().add(i), count).sub(mean).mul_add(scale, shift);
                    if let Some(skip) = self.skip {
                        y = y.add(V::load_first(skip.as_ptr().add(i), count));
                    }
                    self.clamp.apply(y).store_first(self.ys.add(i), count);
                }
            }
        }
    }
    let (b, c, s) = dims;
    by.check(dims);
    assert!(xs.len() == b * c * s && skip.is_none_or(|skip| skip.len() == xs.len()) && window.first + c <= window.of);
    for_planes(dims, |run| {
        for plane in run {
            let (start, channel) = (plane * s, plane % c);
            dispatch(Plane {
                xs: &xs[start..][..s],
                // SAFETY: the caller's output holds the planes of all images and of the window's channels.
                ys: unsafe { ys.at(window.start(plane, dims)) },
                skip: skip.map(|skip| &skip[start..][..s]),
                mean: by.mean[channel],
                scale: by.scale[channel],
                shift: by.shift[channel],
                clamp,
            });
        }
    });
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

/// A plane's view of the backward pass.
struct Grads<'a, T> {
    xs: *const T,
    grad: *const T,
    n: usize,
    output: Option<&'a [T]>,
    mean: T,
    scale: T,
    shift: T,
    clamp: Clamp,
}

impl<T: Real> Grads<'_, T> {
    /// (gradient that passes the clamp, x - mean) of some lanes.
    #[inline(always)]
    unsafe fn at<V: Simd<Elem = T>>(&self, i: usize, count: usize) -> (V, V) {
        // SAFETY: below `dispatch`, i + count ≤ n.
        unsafe {
            let grad = V::load_first(self.grad.add(i), count);
            let centered = V::load_first(self.xs.add(i), count).sub(V::splat(self.mean));
            let grad = match (self.clamp, self.output) {
                (Clamp::None, _) => grad,
                (clamp, Some(output)) => clamp.gradient(V::load_first(output.as_ptr().add(i), count), grad),
                (clamp, None) => clamp.gradient(centered.mul_add(V::splat(self.scale), V::splat(self.shift)), grad),
            };
            (grad, centered)
        }
    }
}

/// `xs` and `grad` are the plane's own.
fn grads<'a, T: Real>(
    (_, c, s): Dims,
    plane: usize,
    (xs, grad): (*const T, *const T),
    mean: &[T],
    (clamp, cut): (Clamp, CutBy<'a, T>),
) -> Grads<'a, T> {
    let (start, channel) = (plane * s, plane % c);
    let (output, scale, shift) = match cut {
        CutBy::Output(ys) => (Some(&ys[start..][..s]), T::zero(), T::zero()),
        CutBy::Input(by) => (None, by.scale[channel], by.shift[channel]),
    };
    Grads { xs, grad, n: s, output, mean: mean[channel], scale, shift, clamp }
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
    struct Plane<'a, T>(Grads<'a, T>, Option<*mut T>);
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
    assert!(xs.len() == dims.0 * dims.1 * dims.2 && mean.len() == dims.1);
    window.check(dims, grad.len());
    if let CutBy::Output(ys) = clamp.1 {
        assert_eq!(ys.len(), xs.len());
    }
    let mut kept = keep.then(|| Vec::with_capacity(xs.len()));
    let place = kept.as_mut().map(|kept: &mut Vec<T>| Shared::from_spare(kept));
    let (x, g) = (Shared::reading(xs), Shared::reading(grad));
    let sums = by_channel(
        dims,
        |plane| {
            // SAFETY: planes lie inside the slices, whose lengths were checked; each has its place.
            unsafe {
                let keep = place.map(|place| place.at(plane * dims.2));
                let places = (x.at(plane * dims.2).cast_const(), g.at(window.start(plane, dims)).cast_const());
                dispatch(Plane(grads(dims, plane, places, mean, clamp), keep))
            }
        },
        |planes| planes.iter().fold([0.0; 2], |[a, b], [c, d]| [a + c, b + d]),
    );
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
    struct Plane<'a, T> {
        grads: Grads<'a, T>,
        to: *mut T,
        before: Before,
        a: T,
        rest: Option<(T, T)>,
    }
    impl<T: Real> Kernel<T> for Plane<'_, T> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = T>>(self) {
            // SAFETY: below `dispatch`, inside the plane; a place is read before it is written.
            unsafe {
                let a = V::splat(self.a);
                let rest = self.rest.map(|(b, d)| (V::splat(b), V::splat(d)));
                for i in (0..self.grads.n).step_by(V::LANES) {
                    let count = V::LANES.min(self.grads.n - i);
                    let (g, x) = self.grads.at::<V>(i, count);
                    let mut dx = a.mul(g);
                    if let Some((b, d)) = rest {
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
    let (_, c, s) = dims;
    let g = Shared::reading(grad);
    for_planes(dims, |run| {
        for plane in run {
            let channel = plane % c;
            // SAFETY: the callers have checked that all have the dims' length.
            unsafe {
                dispatch(Plane {
                    grads: grads(dims, plane, (xs.at(plane * s), g.at(window.start(plane, dims))), by.mean, clamp),
                    to: to.at(plane * s),
                    before,
                    a: by.a[channel],
                    rest: by.rest.map(|(b, d)| (b[channel], d[channel])),
                });
            }
        }
    });
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
}

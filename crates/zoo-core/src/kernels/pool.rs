//! Pooling on the host, plane by plane.

use super::bf16::pool::Grid;
use super::blocking::PLANE_TASK;
use super::buffer::written;
use super::simd::{Kernel, Real, Simd, dispatch};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// The sizes of one pooling, checked once; pairs are (vertical, horizontal).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// b · c
    pub planes: usize,
    pub h: usize,
    pub w: usize,
    pub oh: usize,
    pub ow: usize,
    pub kernel: (usize, usize),
    pub stride: (usize, usize),
    pub padding: (usize, usize),
    /// (b, c, oh, ow)
    pub output: [usize; 4],
}

impl Window {
    /// Of an input with dimensions `x`; the error names `op` and the sizes.
    pub fn new(
        op: &str,
        x: &[usize],
        kernel: (usize, usize),
        stride: (usize, usize),
        padding: (usize, usize),
        ceil_mode: bool,
    ) -> Result<Self, String> {
        let &[b, c, h, w] = x else {
            return Err(format!("{op}: wants input (b, c, h, w), got {x:?}"));
        };
        if [b, c, h, w, kernel.0, kernel.1, stride.0, stride.1].contains(&0) {
            return Err(format!("{op}: input, kernel and stride must not be empty, got {x:?}, {kernel:?}, {stride:?}"));
        }
        if 2 * padding.0 > kernel.0 || 2 * padding.1 > kernel.1 {
            return Err(format!(
                "{op}: padding {padding:?} is more than half the kernel {kernel:?}: a window could hold only padding"
            ));
        }
        let size = |n: usize, k: usize, s: usize, p: usize| -> Option<usize> {
            let room = (n + 2 * p).checked_sub(k)?;
            let out = if ceil_mode { room.div_ceil(s) } else { room / s } + 1;
            // A last window that would start in the padding on the right is dropped.
            Some(if ceil_mode && (out - 1) * s >= n + p { out - 1 } else { out })
        };
        let (Some(oh), Some(ow)) = (size(h, kernel.0, stride.0, padding.0), size(w, kernel.1, stride.1, padding.1))
        else {
            return Err(format!("{op}: kernel {kernel:?} is larger than input {x:?} with padding {padding:?}"));
        };
        Ok(Self { planes: b * c, h, w, oh, ow, kernel, stride, padding, output: [b, c, oh, ow] })
    }
}

impl Window {
    /// The part of window `(oy, ox)` that lies inside the image.
    pub(crate) fn inside(&self, oy: usize, ox: usize) -> (Range<usize>, Range<usize>) {
        let clip = |o: usize, kernel: usize, stride: usize, padding: usize, n: usize| {
            (o * stride).saturating_sub(padding)..(o * stride + kernel).saturating_sub(padding).min(n)
        };
        (
            clip(oy, self.kernel.0, self.stride.0, self.padding.0, self.h),
            clip(ox, self.kernel.1, self.stride.1, self.padding.1, self.w),
        )
    }

    /// What rows and columns of windows cover, for rows of channels.
    pub(crate) fn grid(&self) -> Grid {
        let rows = (0..self.oh).map(|oy| self.inside(oy, 0).0).collect();
        Grid::new((self.h, self.w), rows, (0..self.ow).map(|ox| self.inside(0, ox).1).collect())
    }

    /// Whether windows of 2x2 tile the image and leave nothing out.
    fn is_two_by_two(&self) -> bool {
        (self.kernel, self.stride, self.padding) == ((2, 2), (2, 2), (0, 0))
            && (2 * self.oh, 2 * self.ow) == (self.h, self.w)
    }

    /// Length of a row with its padding, and room for a last vector of windows that reaches beyond.
    fn padded<V: Simd>(&self) -> usize {
        let read = (self.ow.next_multiple_of(V::LANES) + V::LANES) * self.stride.1 + self.kernel.1;
        read.max(self.padding.1 + self.w + V::LANES)
    }

    /// Planes that one task works on: some 64 KiB.
    fn planes_a_task<T>(&self) -> usize {
        (PLANE_TASK / (size_of::<T>() * self.plane_in())).max(1)
    }

    fn outputs(&self) -> impl Iterator<Item = (usize, usize)> {
        let ow = self.ow;
        (0..self.oh).flat_map(move |oy| (0..ow).map(move |ox| (oy, ox)))
    }

    /// What the sum over window `(oy, ox)` is divided by. Without the padding that is the pixels inside the image; with
    /// it, the pixels inside the padded image, since with `ceil_mode` a window may reach beyond even that.
    pub(crate) fn divisor(&self, oy: usize, ox: usize, count_include_pad: bool) -> usize {
        if !count_include_pad {
            let (rows, cols) = self.inside(oy, ox);
            return rows.len() * cols.len();
        }
        let span =
            |o: usize, k: usize, s: usize, p: usize, n: usize| (o * s + k).min(n + 2 * p) - (o * s).min(n + 2 * p);
        span(oy, self.kernel.0, self.stride.0, self.padding.0, self.h)
            * span(ox, self.kernel.1, self.stride.1, self.padding.1, self.w)
    }

    fn plane_in(&self) -> usize {
        self.h * self.w
    }

    fn plane_out(&self) -> usize {
        self.oh * self.ow
    }
}

/// The larger one of what is held and what comes next; a NaN wins over everything, as in PyTorch.
///
/// # Safety
/// Below `dispatch`.
#[inline(always)]
unsafe fn take<V: Simd>(next: V, held: V, taken: V, kept: V) -> V {
    // SAFETY: the caller's.
    unsafe { next.if_nan(taken, next.if_greater(held, taken, kept)) }
}

pub(crate) fn max_forward<T: Real>(w: &Window, xs: &[T]) -> Vec<T> {
    assert_eq!(xs.len(), w.planes * w.plane_in());
    let task = w.planes_a_task::<T>();
    let fill = |ys: &mut [MaybeUninit<T>]| {
        let tasks = ys.par_chunks_mut(task * w.plane_out()).zip(xs.par_chunks(task * w.plane_in()));
        tasks.for_each(|(ys, xs)| dispatch(MaxForward { w, xs, ys }));
    };
    // SAFETY: the kernel writes every output of every plane.
    unsafe { written(w.planes * w.plane_out(), fill) }
}

struct MaxForward<'a, T> {
    w: &'a Window,
    xs: &'a [T],
    ys: &'a mut [MaybeUninit<T>],
}

/// First the largest of each column under a row of windows, then the largest of those columns under each window.
impl<T: Real> Kernel<T> for MaxForward<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let w = self.w;
        let (step, padding) = (w.stride.1, w.padding.1);
        let mut columns = vec![T::from_f64(f64::NEG_INFINITY); w.padded::<V>()];
        for (x, y) in self.xs.chunks_exact(w.plane_in()).zip(self.ys.chunks_exact_mut(w.plane_out())) {
            let (x, y) = (x.as_ptr(), y.as_mut_ptr().cast::<T>());
            for oy in 0..w.oh {
                let (rows, _) = w.inside(oy, 0);
                // SAFETY: below `dispatch`; rows lie inside the plane, `columns` holds what the last vectors read.
                unsafe {
                    let columns = columns.as_mut_ptr();
                    for column in (0..w.w).step_by(V::LANES) {
                        let n = V::LANES.min(w.w - column);
                        let mut largest = V::load_first(x.add(rows.start * w.w + column), n);
                        for row in rows.start + 1..rows.end {
                            let next = V::load_first(x.add(row * w.w + column), n);
                            largest = take(next, largest, next, largest);
                        }
                        largest.store_first(columns.add(padding + column), n);
                    }
                    for ox in (0..w.ow).step_by(V::LANES) {
                        let mut largest = load_every::<V>(columns.add(ox * step), step);
                        for tap in 1..w.kernel.1 {
                            let next = load_every::<V>(columns.add(ox * step + tap), step);
                            largest = take(next, largest, next, largest);
                        }
                        largest.store_first(y.add(oy * w.ow + ox), V::LANES.min(w.ow - ox));
                    }
                }
            }
        }
    }
}

/// The elements at 0, `step`, 2·`step`, …
///
/// # Safety
/// Below `dispatch`; `from` holds `step` vectors.
#[inline(always)]
unsafe fn load_every<V: Simd>(from: *const V::Elem, step: usize) -> V {
    // SAFETY: the caller's.
    unsafe {
        match step {
            1 => V::load(from),
            2 => V::load(from).deinterleave(V::load(from.add(V::LANES))).0,
            _ => {
                let mut out = [*from; 16];
                for (lane, out) in out.iter_mut().enumerate().take(V::LANES) {
                    *out = *from.add(lane * step);
                }
                V::load(out.as_ptr())
            }
        }
    }
}

/// The whole gradient of an output goes to the one input that won.
pub(crate) fn max_backward<T: Real>(w: &Window, xs: &[T], grad: &[T]) -> Vec<T> {
    assert_eq!((xs.len(), grad.len()), (w.planes * w.plane_in(), w.planes * w.plane_out()));
    let task = w.planes_a_task::<T>();
    if w.is_two_by_two() {
        let fill = |dx: &mut [MaybeUninit<T>]| {
            let planes = dx.par_chunks_mut(task * w.plane_in()).zip(xs.par_chunks(task * w.plane_in()));
            planes
                .zip(grad.par_chunks(task * w.plane_out()))
                .for_each(|((dx, xs), dy)| dispatch(MaxBackwardTwo { w, xs, dy, dx }));
        };
        // SAFETY: the windows tile the plane, and each writes its four pixels.
        return unsafe { written(xs.len(), fill) };
    }
    assert!(w.kernel.0 * w.kernel.1 <= 1 << 24, "max_pool2d: an f32 counts the pixels of a window to 2^24 only");
    let fill = |dx: &mut [MaybeUninit<T>]| {
        let planes = dx.par_chunks_mut(task * w.plane_in()).zip(xs.par_chunks(task * w.plane_in()));
        planes
            .zip(grad.par_chunks(task * w.plane_out()))
            .for_each(|((dx, xs), dy)| dispatch(MaxBackward { w, xs, dy, dx }));
    };
    // SAFETY: the kernel fills each plane with zeros first.
    unsafe { written(xs.len(), fill) }
}

/// Windows of any kind. The winners of a vector of windows are found at once, without a branch that would be guessed
/// wrong.
struct MaxBackward<'a, T> {
    w: &'a Window,
    xs: &'a [T],
    dy: &'a [T],
    dx: &'a mut [MaybeUninit<T>],
}

impl<T: Real> Kernel<T> for MaxBackward<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let w = self.w;
        let (step, padding, lowest) = (w.stride.1, w.padding.1, T::from_f64(f64::NEG_INFINITY));
        let row = w.padded::<V>();
        let mut padded = vec![lowest; w.h * row];
        // The first tap of each window that lies inside the image wins where all is -inf: the padding never does.
        let taps = (0..w.ow.next_multiple_of(V::LANES)).map(|ox| T::from_f64(padding.saturating_sub(ox * step) as f64));
        let first_taps: Vec<T> = taps.collect();
        let planes = self.xs.chunks_exact(w.plane_in()).zip(self.dx.chunks_exact_mut(w.plane_in()));
        for ((x, dx), dy) in planes.zip(self.dy.chunks_exact(w.plane_out())) {
            for (to, x) in padded.chunks_exact_mut(row).zip(x.chunks_exact(w.w)) {
                to[padding..padding + w.w].copy_from_slice(x);
            }
            dx.fill(MaybeUninit::new(T::zero()));
            for oy in 0..w.oh {
                let (rows, _) = w.inside(oy, 0);
                for ox in (0..w.ow).step_by(V::LANES) {
                    // The winning tap, counted from the window's first row inside the image.
                    let mut places = [T::zero(); 16];
                    // SAFETY: below `dispatch`; the padded rows hold what the last vectors read.
                    unsafe {
                        let mut largest = V::splat(lowest);
                        let mut place = V::load(first_taps.as_ptr().add(ox));
                        for (down, row_in) in rows.clone().enumerate() {
                            let from = padded.as_ptr().add(row_in * row + ox * step);
                            for tap in 0..w.kernel.1 {
                                let next = load_every::<V>(from.add(tap), step);
                                let here = V::splat(T::from_f64((down * w.kernel.1 + tap) as f64));
                                place = take(next, largest, here, place);
                                largest = take(next, largest, next, largest);
                            }
                        }
                        place.store(places.as_mut_ptr());
                    }
                    let lanes = V::LANES.min(w.ow - ox);
                    for (lane, (&dy, place)) in dy[oy * w.ow + ox..][..lanes].iter().zip(places).enumerate() {
                        let place = place.to_f64() as u32 as usize;
                        let (down, tap) = (place / w.kernel.1, place % w.kernel.1);
                        let at = (rows.start + down) * w.w + (ox + lane) * step + tap - padding;
                        // SAFETY: filled with zeros above.
                        *unsafe { dx[at].assume_init_mut() } += dy;
                    }
                }
            }
        }
    }
}

/// 2x2 windows that tile the image.
struct MaxBackwardTwo<'a, T> {
    w: &'a Window,
    xs: &'a [T],
    dy: &'a [T],
    dx: &'a mut [MaybeUninit<T>],
}

impl<T: Real> Kernel<T> for MaxBackwardTwo<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let (width, ow) = (self.w.w, self.w.ow);
        // Rows of windows follow each other through all planes of the task.
        let rows = self.xs.chunks_exact(2 * width).zip(self.dx.chunks_exact_mut(2 * width));
        for ((x, dx), dy) in rows.zip(self.dy.chunks_exact(ow)) {
            for ox in (0..ow).step_by(V::LANES) {
                let n = V::LANES.min(ow - ox);
                let (first, second) = ((2 * n).min(V::LANES), (2 * n).saturating_sub(V::LANES));
                // SAFETY: below `dispatch`; n windows lie in the rows from here on.
                unsafe {
                    let (x, dx) = (x.as_ptr().add(2 * ox), dx.as_mut_ptr().cast::<T>().add(2 * ox));
                    let (zero, dy) = (V::zero(), V::load_first(dy.as_ptr().add(ox), n));
                    let beyond = if second > 0 { V::LANES } else { 0 };
                    let (a, b) = V::load_first(x, first).deinterleave(V::load_first(x.add(beyond), second));
                    let below = x.add(width);
                    let (c, d) = V::load_first(below, first).deinterleave(V::load_first(below.add(beyond), second));
                    // Who holds the largest so far holds the gradient.
                    let held = take(b, a, b, a);
                    let (mut da, mut db) = (take(b, a, zero, dy), take(b, a, dy, zero));
                    let mut dc = take(c, held, dy, zero);
                    (da, db) = (take(c, held, zero, da), take(c, held, zero, db));
                    let held = take(c, held, c, held);
                    let dd = take(d, held, dy, zero);
                    (da, db, dc) = (take(d, held, zero, da), take(d, held, zero, db), take(d, held, zero, dc));
                    for (left, right, to) in [(da, db, dx), (dc, dd, dx.add(width))] {
                        let (low, high) = left.interleave(right);
                        low.store_first(to, first);
                        if second > 0 {
                            high.store_first(to.add(V::LANES), second);
                        }
                    }
                }
            }
        }
    }
}

impl Window {
    /// The divisor of each window of a plane.
    fn divisors<T: Real>(&self, count_include_pad: bool) -> Vec<T> {
        self.outputs().map(|(oy, ox)| T::from_f64(self.divisor(oy, ox, count_include_pad) as f64)).collect()
    }

    fn is_global(&self) -> bool {
        self.plane_out() == 1 && self.inside(0, 0) == (0..self.h, 0..self.w)
    }
}

pub(crate) fn avg_forward<T: Real>(w: &Window, count_include_pad: bool, xs: &[T]) -> Vec<T> {
    assert_eq!(xs.len(), w.planes * w.plane_in());
    let divisors = w.divisors::<T>(count_include_pad);
    let task = w.planes_a_task::<T>();
    let fill = |ys: &mut [MaybeUninit<T>]| {
        let tasks = ys.par_chunks_mut(task * w.plane_out()).zip(xs.par_chunks(task * w.plane_in()));
        tasks.for_each(|(ys, xs)| {
            if w.is_global() {
                for (y, x) in ys.iter_mut().zip(xs.chunks_exact(w.plane_in())) {
                    y.write(super::sum(x) / divisors[0]);
                }
            } else {
                dispatch(AvgForward { w, divisors: &divisors, xs, ys });
            }
        });
    };
    // SAFETY: every output of every plane is written.
    unsafe { written(w.planes * w.plane_out(), fill) }
}

struct AvgForward<'a, T> {
    w: &'a Window,
    divisors: &'a [T],
    xs: &'a [T],
    ys: &'a mut [MaybeUninit<T>],
}

/// First the sum of each column under a row of windows, then the sum of those under each window.
impl<T: Real> Kernel<T> for AvgForward<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let w = self.w;
        let mut columns = vec![T::zero(); w.padded::<V>()];
        for (x, y) in self.xs.chunks_exact(w.plane_in()).zip(self.ys.chunks_exact_mut(w.plane_out())) {
            let (x, y) = (x.as_ptr(), y.as_mut_ptr().cast::<T>());
            for oy in 0..w.oh {
                let (rows, _) = w.inside(oy, 0);
                // SAFETY: below `dispatch`; rows lie inside the plane, `columns` holds what the last vectors read.
                unsafe {
                    let columns = columns.as_mut_ptr();
                    for column in (0..w.w).step_by(V::LANES) {
                        let n = V::LANES.min(w.w - column);
                        let mut sum = V::zero();
                        for row in rows.clone() {
                            sum = sum.add(V::load_first(x.add(row * w.w + column), n));
                        }
                        sum.store_first(columns.add(w.padding.1 + column), n);
                    }
                    for ox in (0..w.ow).step_by(V::LANES) {
                        let n = V::LANES.min(w.ow - ox);
                        let mut sum = V::zero();
                        for tap in 0..w.kernel.1 {
                            sum = sum.add(load_every::<V>(columns.add(ox * w.stride.1 + tap), w.stride.1));
                        }
                        let at = oy * w.ow + ox;
                        sum.div(V::load_first(self.divisors.as_ptr().add(at), n)).store_first(y.add(at), n);
                    }
                }
            }
        }
    }
}

pub(crate) fn avg_backward<T: Real>(w: &Window, count_include_pad: bool, grad: &[T]) -> Vec<T> {
    assert_eq!(grad.len(), w.planes * w.plane_out());
    let divisors = w.divisors::<T>(count_include_pad);
    let task = w.planes_a_task::<T>();
    let fill = |dx: &mut [MaybeUninit<T>]| {
        let tasks = dx.par_chunks_mut(task * w.plane_in()).zip(grad.par_chunks(task * w.plane_out()));
        tasks.for_each(|(dx, dy)| dispatch(AvgBackward { w, divisors: &divisors, dy, dx }));
    };
    // SAFETY: every plane is filled first.
    unsafe { written(w.planes * w.plane_in(), fill) }
}

struct AvgBackward<'a, T> {
    w: &'a Window,
    divisors: &'a [T],
    dy: &'a [T],
    dx: &'a mut [MaybeUninit<T>],
}

/// A row of shares is laid over the columns once, then added to each of the rows under its windows.
impl<T: Real> Kernel<T> for AvgBackward<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let (w, step) = (self.w, self.w.stride.1);
        let mut columns = vec![T::zero(); w.padded::<V>()];
        for (dx, dy) in self.dx.chunks_exact_mut(w.plane_in()).zip(self.dy.chunks_exact(w.plane_out())) {
            if w.is_global() {
                dx.fill(MaybeUninit::new(dy[0] / self.divisors[0]));
                continue;
            }
            dx.fill(MaybeUninit::new(T::zero()));
            for oy in 0..w.oh {
                columns.fill(T::zero());
                let row = oy * w.ow..(oy + 1) * w.ow;
                for (ox, (&dy, &divisor)) in dy[row.clone()].iter().zip(&self.divisors[row]).enumerate() {
                    let share = dy / divisor;
                    columns[ox * step..][..w.kernel.1].iter_mut().for_each(|column| *column += share);
                }
                for row in w.inside(oy, 0).0 {
                    for column in (0..w.w).step_by(V::LANES) {
                        let n = V::LANES.min(w.w - column);
                        // SAFETY: below `dispatch`; n columns of a row that is filled above.
                        unsafe {
                            let to = dx.as_mut_ptr().cast::<T>().add(row * w.w + column);
                            let share = V::load_first(columns.as_ptr().add(w.padding.1 + column), n);
                            V::load_first(to, n).add(share).store_first(to, n);
                        }
                    }
                }
            }
        }
    }
}

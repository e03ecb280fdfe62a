//! The gradient of the taps: nine sums of a vector of channels in registers, over the pixels of a piece; the pieces'
//! sums are added up in f64, in their order.

use super::finish::{load, load_f32};
use super::three::{Rows, column_at};
use super::{LINE, Pieces, Place, VECTORS, Way, Windows, fits, vectors};
use crate::kernels::buffer::Shared;
use crate::kernels::conv::Geometry;
use crate::kernels::simd::{Kernel, Level, Simd, dispatch_at};
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// Tasks that are enough for many threads; a map of few pixels is cut by channels as well.
const TASKS: usize = 16;

/// Of weights (c, 1, kh, kw), from the input and the gradient of the output.
pub(crate) fn weight_grad(g: &Geometry, xs: &[bf16], grad: &[bf16]) -> Vec<f32> {
    let (c, taps) = (g.c_in, g.kh * g.kw);
    assert!(fits(g) && xs.len() == g.b * g.input_image() && grad.len() == g.b * g.output_image());
    let windows = &Windows::forward(g);
    // The sums of all channels stay at hand for as many pixels as one lane may sum up.
    let pieces = &Pieces::new((g.b, g.oh, g.ow), 1);
    let parts = TASKS.div_ceil(pieces.count()).min(c / LINE).max(1);
    let each = (c / parts / LINE * LINE).max(LINE);
    // A part that is no line belongs to the one before it.
    let parts = (c / each).max(1);
    let mut sums = vec![0f32; pieces.count() * taps * c];
    let to = Shared::new(&mut sums);
    let level = Level::current();
    (0..pieces.count() * parts).into_par_iter().for_each(|task| {
        let (piece, part) = (task / parts, task % parts);
        let channels = part * each..if part + 1 == parts { c } else { (part + 1) * each };
        let (images, rows) = pieces.at(piece);
        // SAFETY: a piece has its rows of taps.
        let sums = unsafe { to.offset(piece * taps * c) };
        dispatch_at(level, Task { windows, xs, grad, images, rows, channels, sums });
    });
    let mut total = vec![0f64; taps * c];
    for sums in sums.chunks_exact(taps * c) {
        total.iter_mut().zip(sums).for_each(|(total, &sum)| *total += f64::from(sum));
    }
    let mut out = vec![0f32; taps * c];
    for (tap, row) in total.chunks_exact(c).enumerate() {
        row.iter().enumerate().for_each(|(channel, &sum)| out[channel * taps + tap] = sum as f32);
    }
    out
}

/// Some channels of the sums over one piece.
struct Task<'a> {
    windows: &'a Windows,
    xs: &'a [bf16],
    grad: &'a [bf16],
    images: Range<usize>,
    rows: Range<usize>,
    channels: Range<usize>,
    /// A row of c channels a tap.
    sums: Shared<f32>,
}

impl Kernel<f32> for Task<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let (w, count) = (self.windows, self.channels.len());
        // SAFETY: run by `dispatch_at`; images, rows and channels lie in the maps, and only this task writes its channels
        // of the sums.
        unsafe {
            for line in (0..count).step_by(LINE) {
                let places = || vectors::<V>(line, count).map(|at| self.channels.start + at);
                if w.way == Way::Any || count < V::LANES {
                    for channel in places() {
                        if count < V::LANES {
                            self.any::<V, false>(channel, count);
                        } else {
                            self.any::<V, true>(channel, V::LANES);
                        }
                    }
                    continue;
                }
                let mut all = [[[V::zero(); 3]; 3]; VECTORS];
                for image in self.images.clone() {
                    let mut row = self.rows.start;
                    while row < self.rows.end {
                        let step = w.step(row, self.rows.end - row);
                        for (channel, sums) in places().zip(&mut all) {
                            let from = Place { image, row, channel };
                            match (w.way, step) {
                                (Way::ThreeByOne, 4) => self.by_one::<V, 4>(from, sums),
                                (Way::ThreeByOne, 2) => self.by_one::<V, 2>(from, sums),
                                (Way::ThreeByOne, _) => self.by_one::<V, 1>(from, sums),
                                (_, 2) => self.by_two::<V, 2>(from, sums),
                                _ => self.by_two::<V, 1>(from, sums),
                            }
                        }
                        row += step;
                    }
                }
                for (channel, sums) in places().zip(&all) {
                    for (tap, sum) in sums.as_flattened().iter().enumerate() {
                        sum.store(self.sums.at(tap * w.c + channel));
                    }
                }
            }
        }
    }
}

/// sums\[·\]\[kx\] += one column of the input · the column of the gradient that sees it as its kx-th.
///
/// # Safety
/// Below `dispatch`; the column lies in the image.
#[inline(always)]
unsafe fn column<V: Simd, const R: usize, const S: usize>(
    rows: &Rows,
    offset: usize,
    grad: &[[V; R]; 3],
    sums: &mut [[V; 3]; 3],
    wanted: [bool; 3],
) {
    for r in 0..(R - 1) * S + 3 {
        // SAFETY: the caller's.
        unsafe {
            let Some(x) = rows.load::<V>(r, offset) else { continue };
            for q in 0..R {
                if r >= q * S && r - q * S < 3 {
                    for kx in 0..3 {
                        if wanted[kx] {
                            sums[r - q * S][kx] = x.mul_add(grad[kx][q], sums[r - q * S][kx]);
                        }
                    }
                }
            }
        }
    }
}

impl Task<'_> {
    /// A column of the gradient, R rows of it.
    ///
    /// # Safety
    /// Below `dispatch`; rows and column lie in the map.
    #[inline(always)]
    unsafe fn gradient<V: Simd<Elem = f32>, const R: usize>(&self, from: Place, column: usize) -> [V; R] {
        let w = self.windows;
        // SAFETY: the caller's.
        unsafe {
            let mut grad = [V::zero(); R];
            for (q, grad) in grad.iter_mut().enumerate() {
                let at = ((from.image * w.output.0 + from.row + q) * w.output.1 + column) * w.c + from.channel;
                *grad = V::load_bf16(self.grad.as_ptr().add(at));
            }
            grad
        }
    }

    /// R rows of outputs at stride 1.
    ///
    /// # Safety
    /// Below `dispatch`; the rows lie in the piece, with a vector of channels from the place on.
    #[inline(always)]
    unsafe fn by_one<V: Simd<Elem = f32>, const R: usize>(&self, from: Place, to: &mut [[V; 3]; 3]) {
        let (w, mut sums) = (self.windows, *to);
        let width = w.output.1;
        // SAFETY: columns are cut at the edges of both maps.
        unsafe {
            let rows = Rows::new(w, self.xs.as_ptr(), from, 1, R + 2);
            // Columns i, i - 1 and i - 2. What does not exist is left out: zero times a NaN would be one.
            let mut grad = [[V::zero(); R]; 3];
            for i in 0..width + 2 {
                if i < width {
                    grad[0] = self.gradient(from, i);
                }
                if let Some(at) = column_at(i, w.padding.1, w.input.1) {
                    if i >= 2 && i < width {
                        column::<V, R, 1>(&rows, at * w.c, &grad, &mut sums, [true; 3]);
                    } else {
                        let there = [i < width, i >= 1 && i <= width, i >= 2];
                        column::<V, R, 1>(&rows, at * w.c, &grad, &mut sums, there);
                    }
                }
                grad = [grad[0], grad[0], grad[1]];
            }
        }
        *to = sums;
    }

    /// R rows of outputs at stride 2.
    ///
    /// # Safety
    /// As [`by_one`](Self::by_one).
    #[inline(always)]
    unsafe fn by_two<V: Simd<Elem = f32>, const R: usize>(&self, from: Place, to: &mut [[V; 3]; 3]) {
        let (w, mut sums) = (self.windows, *to);
        let width = w.output.1;
        // SAFETY: as above.
        unsafe {
            let rows = Rows::new(w, self.xs.as_ptr(), from, 2, 2 * R + 1);
            let mut before = [V::zero(); R];
            for j in 0..=width {
                let here = if j < width { self.gradient(from, j) } else { before };
                let grad = [here, here, before];
                if let Some(at) = column_at(2 * j, w.padding.1, w.input.1) {
                    if j > 0 && j < width {
                        column::<V, R, 2>(&rows, at * w.c, &grad, &mut sums, [true, false, true]);
                    } else {
                        column::<V, R, 2>(&rows, at * w.c, &grad, &mut sums, [j < width, false, j > 0]);
                    }
                }
                if j < width
                    && let Some(at) = column_at(2 * j + 1, w.padding.1, w.input.1)
                {
                    column::<V, R, 2>(&rows, at * w.c, &grad, &mut sums, [false, true, false]);
                }
                before = here;
            }
        }
        *to = sums;
    }

    /// A vector of channels, or n, of any kernel; the sums lie in memory.
    ///
    /// # Safety
    /// Below `dispatch`; the channels lie in the task.
    #[inline(always)]
    unsafe fn any<V: Simd<Elem = f32>, const WHOLE: bool>(&self, channel: usize, n: usize) {
        let w = self.windows;
        // SAFETY: what reaches an output lies in the input; a row of sums holds the channels.
        unsafe {
            let sum_at = |tap: usize| self.sums.at(tap * w.c + channel);
            // The vector may begin among channels that are done: it makes them anew.
            for tap in 0..w.kernel.0 * w.kernel.1 {
                V::zero().store_first(sum_at(tap), n);
            }
            let (x, grad) = (self.xs.as_ptr().add(channel), self.grad.as_ptr().add(channel));
            for (image, row) in self.images.clone().flat_map(|image| self.rows.clone().map(move |row| (image, row))) {
                for column in 0..w.output.1 {
                    let at = ((image * w.output.0 + row) * w.output.1 + column) * w.c;
                    let grad = load::<V, WHOLE>(grad.add(at), n);
                    for &(ky, y) in w.reach.0.at(row) {
                        for &(kx, at) in w.reach.1.at(column) {
                            let x = load::<V, WHOLE>(x.add(((image * w.input.0 + y) * w.input.1 + at) * w.c), n);
                            let to = sum_at(ky * w.kernel.1 + kx);
                            x.mul_add(grad, load_f32::<V, WHOLE>(to, n)).store_first(to, n);
                        }
                    }
                }
            }
        }
    }
}

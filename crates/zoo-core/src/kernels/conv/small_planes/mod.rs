//! Convolution on small planes, as matrix products with channels innermost: the images are the rows.
//!
//! Where tap t of output pixel p reads input pixel q, the outputs of all images get x\[q\] · W\[t\]. Taps that
//! fall outside the plane cost nothing: on a plane of 2x2 pixels a 3x3 kernel has 16 such products, not 36. A 1x1
//! kernel is one product, with the pixels of all images as rows.
//!
//! The sums are those of the plain loops, in another order.

mod pack;
mod weight_grad;

pub(super) use weight_grad::weight_grad;

use super::epilogue::Epilogue;
use super::geometry::Geometry;
use crate::kernels::blocking::{SMALL_PLANES_INPUT, odd_lines};
use crate::kernels::buffer::{Shared, with_scratch, written_by_tasks};
use crate::kernels::microkernel::microkernel_of_rows;
use crate::kernels::simd::{Kernel, Real, Simd, dispatch_at, prefetch};
use pack::{ChannelsLast, Planes, TapPanels};
use rayon::prelude::*;
use std::ops::Range;

/// Pixels of a plane, at the most.
const PIXELS: usize = 64;
/// Images, at the least, where they alone are the rows.
const IMAGES: usize = 8;
/// Channels of a group, at the least: two vectors' lanes.
const CHANNELS: usize = 32;

/// Whether a convolution is faster this way.
pub(super) fn suits(g: &Geometry) -> bool {
    let pixels = g.output_plane().max(g.input_plane() / (g.params.stride.0 * g.params.stride.1));
    let is_small = match is_pointwise(g) {
        true => pixels <= 16 || pixels <= PIXELS && !pixels.is_multiple_of(16),
        false => pixels <= PIXELS && g.b >= IMAGES,
    };
    is_small && g.group_in().min(g.group_out()) >= CHANNELS
}

fn is_pointwise(g: &Geometry) -> bool {
    (g.kh, g.kw, g.params.stride, g.params.padding) == (1, 1, (1, 1), (0, 0))
}

/// All products: tap, output pixel, input pixel.
fn tap_pairs(g: &Geometry) -> Vec<(usize, usize, usize)> {
    let p = g.params;
    let inside = |at: usize, tap: usize, stride: usize, dilation: usize, padding: usize, n: usize| {
        (at * stride + tap * dilation).checked_sub(padding).filter(|&at| at < n)
    };
    let mut tap_pairs = Vec::new();
    for (tap, out) in (0..g.kh * g.kw).flat_map(|tap| (0..g.output_plane()).map(move |out| (tap, out))) {
        let y = inside(out / g.ow, tap / g.kw, p.stride.0, p.dilation.0, p.padding.0, g.h);
        let x = inside(out % g.ow, tap % g.kw, p.stride.1, p.dilation.1, p.padding.1, g.w);
        tap_pairs.extend(y.zip(x).map(|(y, x)| (tap, out, y * g.w + x)));
    }
    tap_pairs
}

pub(super) fn forward<T: Real>(g: &Geometry, xs: &[T], weight: &[T], epilogue: &Epilogue<T>) -> Vec<T> {
    let plan = Plan::new(g, false);
    plan.run(xs, &TapPanels::new(weight, &plan, g.kh * g.kw, false), epilogue)
}

pub(super) fn input_grad<T: Real>(g: &Geometry, grad: &[T], weight: &[T]) -> Vec<T> {
    let plan = Plan::new(g, true);
    plan.run(grad, &TapPanels::new(weight, &plan, g.kh * g.kw, true), &Epilogue::bias(None))
}

/// What the rows of the products are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// The images; for each pixel a matrix.
    Images,
    /// The pixels of all images, in one matrix.
    Pixels,
}

impl Rows {
    fn of(g: &Geometry) -> Self {
        if is_pointwise(g) { Self::Pixels } else { Self::Images }
    }

    /// The row of a pixel of an image, of so many images and pixels.
    fn at(self, (image, images): (usize, usize), (pixel, pixels): (usize, usize)) -> usize {
        match self {
            Self::Images => pixel * images + image,
            Self::Pixels => image * pixels + pixel,
        }
    }
}

/// y\[p\] = Σ x\[q\] · W\[t\] over the terms (t, q) of p.
struct Plan {
    images: usize,
    groups: usize,
    /// Channels of a group, and pixels of a plane: of the input, of the output.
    channels: (usize, usize),
    pixels: (usize, usize),
    terms: Vec<Vec<(usize, usize)>>,
    rows: Rows,
}

impl Plan {
    /// The forward pass, or the input gradient if `transposed`.
    fn new(g: &Geometry, transposed: bool) -> Self {
        let (mut channels, mut pixels) = ((g.group_in(), g.group_out()), (g.input_plane(), g.output_plane()));
        if transposed {
            channels = (channels.1, channels.0);
            pixels = (pixels.1, pixels.0);
        }
        let mut terms = vec![Vec::new(); pixels.1];
        for (tap, out, at) in tap_pairs(g) {
            let (from, to) = if transposed { (out, at) } else { (at, out) };
            terms[to].push((tap, from));
        }
        Self { images: g.b, groups: g.params.groups, channels, pixels, terms, rows: Rows::of(g) }
    }

    fn run<T: Real>(&self, input: &[T], weights: &TapPanels<T>, epilogue: &Epilogue<T>) -> Vec<T> {
        let ((c, o), (from, to)) = (self.channels, self.pixels);
        assert_eq!(input.len(), self.images * self.groups * c * from);
        let outputs = self.images * self.groups * o * to;
        assert!(epilogue.skip.is_none_or(|skip| skip.len() == outputs));
        for by_channel in [epilogue.scale, epilogue.bias].into_iter().flatten() {
            assert_eq!(by_channel.len(), self.groups * o);
        }
        let shape = weights.shape;
        let (width, threads) = (2 * shape.lanes, rayon::current_num_threads());
        let panels = o.div_ceil(width);
        let pitch = odd_lines(c);
        let room = (SMALL_PLANES_INPUT / (from * pitch * size_of::<T>())).max(shape.rows);
        let chunks = self.images.div_ceil(room).max(threads.min(self.images * to / 64)).max(1);
        let images = self.images.div_ceil(chunks);
        let images = if images > shape.rows { images.next_multiple_of(shape.rows) } else { images };
        let chunks = self.images.div_ceil(images);
        let parts = (2 * threads).div_ceil(chunks * self.groups).min(panels);
        let panels_each = panels.div_ceil(parts);
        let parts = panels.div_ceil(panels_each);
        let packed = images * from * pitch;
        let staged = images * to.next_multiple_of(shape.lanes) * width + shape.lanes * width;
        let fill = |out: Shared<T>| {
            (0..chunks * self.groups * parts).into_par_iter().for_each(|task| {
                let (rest, part) = (task / parts, task % parts);
                let (chunk, group) = (rest / self.groups, rest % self.groups);
                let images = chunk * images..self.images.min((chunk + 1) * images);
                let panels = part * panels_each..panels.min((part + 1) * panels_each);
                with_scratch::<T, _>(packed + staged, |scratch| {
                    // SAFETY: the scratch holds the staged outputs behind the packed input.
                    let staged = unsafe { scratch.add(packed) };
                    let source = Planes { input, groups: self.groups, channels: c, pixels: from };
                    let (of, rows) = (images.len(), self.rows);
                    let (all, slot, piece, step, to) = (images.clone(), 0, pitch, 0, scratch);
                    let turn = ChannelsLast { source, images: all, group, slot, rows, of, piece, step, to };
                    dispatch_at(shape.level, turn);
                    let job =
                        Products { plan: self, weights, epilogue, out, images, group, panels, pitch, scratch, staged };
                    dispatch_at(shape.level, job);
                });
            });
        };
        // SAFETY: the tasks cover images, groups and channels, and each fills the planes that it has.
        unsafe { written_by_tasks(outputs, fill) }
    }
}

/// The products of some images and panels.
struct Products<'a, T> {
    plan: &'a Plan,
    weights: &'a TapPanels<T>,
    epilogue: &'a Epilogue<'a, T>,
    out: Shared<T>,
    images: Range<usize>,
    group: usize,
    panels: Range<usize>,
    pitch: usize,
    scratch: *const T,
    staged: *mut T,
}

impl<T: Real> Kernel<T> for Products<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        // SAFETY: below `dispatch`; `Plan::run` has made the scratch large enough, and `ChannelsLast` filled it.
        unsafe {
            for panel in self.panels.clone() {
                match V::ROWS {
                    8 => self.multiply::<V, 8, 4, 2>(panel),
                    _ => self.multiply::<V, 4, 2, 1>(panel),
                }
                self.store::<V>(panel);
            }
        }
    }
}

impl<T: Real> Products<'_, T> {
    #[inline(always)]
    unsafe fn multiply<V: Simd<Elem = T>, const M: usize, const HALF: usize, const QUARTER: usize>(
        &self,
        panel: usize,
    ) {
        let (plan, images) = (self.plan, self.images.len());
        let (matrices, rows) = match plan.rows {
            Rows::Images => (plan.pixels.1, images),
            Rows::Pixels => (1, images * plan.pixels.1),
        };
        let weights = self.weights.panel(self.group, panel);
        // The next panel comes from memory while the rows run over this one.
        let next = weights.as_ptr_range().end;
        let share = (size_of_val(weights) / 64).div_ceil(matrices * rows.div_ceil(M));
        let mut line = 0;
        for pixel in 0..matrices {
            let mut row = 0;
            while row < rows {
                for line in line..line + share {
                    prefetch(next.wrapping_byte_add(64 * line));
                }
                line += share;
                let count = M.min(rows - row);
                // SAFETY: the caller's.
                unsafe {
                    if count > HALF {
                        self.tile::<V, M>(weights, pixel, row, count, images);
                    } else if count > QUARTER {
                        self.tile::<V, HALF>(weights, pixel, row, count, images);
                    } else {
                        self.tile::<V, QUARTER>(weights, pixel, row, count, images);
                    }
                }
                row += count;
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<V: Simd<Elem = T>, const M: usize>(
        &self,
        weights: &[T],
        pixel: usize,
        row: usize,
        count: usize,
        images: usize,
    ) {
        let (c, width) = (self.plan.channels.0, 2 * V::LANES);
        // SAFETY: the caller's; the rows behind the last one read that one again.
        unsafe {
            let mut sums = [[V::zero(); 2]; M];
            for &(tap, at) in &self.plan.terms[pixel] {
                let first = if self.plan.rows == Rows::Pixels { row } else { at * images + row };
                let a = std::array::from_fn(|i| self.scratch.add((first + i.min(count - 1)) * self.pitch));
                sums = microkernel_of_rows::<V, M, 2>(c, a, 1, weights.as_ptr().add(tap * c * width), width, sums);
            }
            for (i, sums) in sums.into_iter().enumerate().take(count) {
                let to = self.staged.add((pixel * images + row + i) * width);
                sums[0].store(to);
                sums[1].store(to.add(V::LANES));
            }
        }
    }

    /// Takes a panel's staged outputs to their planes.
    #[inline(always)]
    unsafe fn store<V: Simd<Elem = T>>(&self, panel: usize) {
        let (plan, epilogue) = (self.plan, self.epilogue);
        let ((_, channels), (_, pixels)) = (plan.channels, plan.pixels);
        let (images, width) = (self.images.len(), 2 * V::LANES);
        let mut block = [T::zero(); 256];
        for (slot, image) in self.images.clone().enumerate() {
            for first in (panel * width..channels.min((panel + 1) * width)).step_by(V::LANES) {
                for pixel in (0..pixels).step_by(V::LANES) {
                    let (row, next) =
                        [pixel, pixel + 1].map(|pixel| plan.rows.at((slot, images), (pixel, pixels))).into();
                    let count = V::LANES.min(pixels - pixel);
                    // SAFETY: the staged rows go on for a vector of pixels; those behind the last are not stored.
                    unsafe {
                        let from = self.staged.add(row * width + first % width);
                        V::transpose(from, (next - row) * width, block.as_mut_ptr(), V::LANES);
                        for i in 0..V::LANES.min(channels - first) {
                            let channel = self.group * channels + first + i;
                            let place = (image * plan.groups * channels + channel) * pixels + pixel;
                            let mut y = V::load(block.as_ptr().add(i * V::LANES));
                            if let Some(scale) = epilogue.scale {
                                y = y.mul(V::splat(*scale.get_unchecked(channel)));
                            }
                            if let Some(bias) = epilogue.bias {
                                y = y.add(V::splat(*bias.get_unchecked(channel)));
                            }
                            if let Some(skip) = epilogue.skip {
                                y = y.add(V::load_first(skip.as_ptr().add(place), count));
                            }
                            epilogue.activation.apply(y).store_first(self.out.at(place), count);
                        }
                    }
                }
            }
        }
    }
}

//! Convolution on small planes, as matrix products with channels innermost: the images are the rows.
//!
//! For an output pixel p and a tap t that meets input pixel q the outputs of all images get x\[q\] · W\[t\]. Taps that fall
//! outside the plane cost nothing: on a plane of 2x2 pixels a 3x3 kernel has 16 such products, not 36. A 1x1 kernel is
//! one product, with the pixels of all images as rows.
//!
//! The sums are those of the plain loops, in another order.

use super::geometry::Geometry;
use super::{Finish, odd_lines};
use crate::kernels::buffer::{Shared, with_scratch, written, written_by_tasks};
use crate::kernels::microkernel::{TileShape, tile_of_rows};
use crate::kernels::real::Real;
use crate::kernels::simd::{Kernel, Simd, dispatch_at, prefetch};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// What the input of a task may take of the second-level cache, in bytes.
const CACHE: usize = 1 << 20;
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

/// Tap, output pixel and input pixel of every product.
fn meetings(g: &Geometry) -> Vec<(usize, usize, usize)> {
    let p = g.params;
    let inside = |at: usize, tap: usize, stride: usize, dilation: usize, padding: usize, n: usize| {
        (at * stride + tap * dilation).checked_sub(padding).filter(|&at| at < n)
    };
    let mut meetings = Vec::new();
    for (tap, out) in (0..g.kh * g.kw).flat_map(|tap| (0..g.output_plane()).map(move |out| (tap, out))) {
        let y = inside(out / g.ow, tap / g.kw, p.stride.0, p.dilation.0, p.padding.0, g.h);
        let x = inside(out % g.ow, tap % g.kw, p.stride.1, p.dilation.1, p.padding.1, g.w);
        meetings.extend(y.zip(x).map(|(y, x)| (tap, out, y * g.w + x)));
    }
    meetings
}

pub(super) fn forward<T: Real>(g: &Geometry, xs: &[T], weight: &[T], finish: &Finish<T>) -> Vec<T> {
    let walk = Walk::new(g, false);
    walk.run(xs, &TapPanels::new(weight, &walk, g.kh * g.kw, false), finish)
}

pub(super) fn input_grad<T: Real>(g: &Geometry, grad: &[T], weight: &[T]) -> Vec<T> {
    let walk = Walk::new(g, true);
    walk.run(grad, &TapPanels::new(weight, &walk, g.kh * g.kw, true), &Finish::bias(None))
}

pub(super) fn weight_grad<T: Real>(g: &Geometry, xs: &[T], grad: &[T]) -> Vec<T> {
    let (groups, c, o, taps) = (g.params.groups, g.group_in(), g.group_out(), g.kh * g.kw);
    let (from, to) = (g.input_plane(), g.output_plane());
    let shape = TileShape::now::<T>();
    let width = 2 * shape.lanes;
    let panels = c.div_ceil(width);
    // Outputs of a task, whole tiles; fewer where there are not many tasks.
    let block = if groups * panels * o >= 16 * 32 { 32 } else { 8 };
    let blocks = o.div_ceil(block);
    let rows = Rows::of(g);
    // As many images at a time as leave a panel in the second-level cache.
    let images = (CACHE / (from.max(to) * width * size_of::<T>())).clamp(1, g.b);
    let fill = |out: Shared<T>| {
        for first in (0..g.b).step_by(images) {
            let images = first..g.b.min(first + images);
            let turn = |input: &[T], channels: usize, pixels: usize, piece: usize| {
                let rows_all = images.len() * pixels;
                let group_size = channels.next_multiple_of(shape.lanes).next_multiple_of(piece) * rows_all;
                let fill = |to: Shared<T>| {
                    (0..groups * images.len()).into_par_iter().for_each(|task| {
                        let (group, slot) = (task / images.len(), task % images.len());
                        let source = Planes { input, groups, channels, pixels };
                        let image = images.start + slot..images.start + slot + 1;
                        // SAFETY: the group's rows.
                        let to = unsafe { to.at(group * group_size) };
                        let step = rows_all * piece;
                        let of = images.len();
                        let turn = Turn { source, images: image, group, slot, rows, of, piece, step, to };
                        dispatch_at(shape.level, turn);
                    });
                };
                // SAFETY: each image's pixels get their rows, and they are all.
                unsafe { written_by_tasks(groups * group_size, fill) }
            };
            let xs = turn(xs, c, from, width);
            let grad = turn(grad, o, to, shape.rows);
            let mut pairs = vec![Vec::new(); taps];
            // Rows of one product, and the first rows of each.
            let count = match rows {
                Rows::Pixels => {
                    pairs[0].push((0, 0));
                    images.len() * to
                }
                Rows::Images => {
                    let n = images.len();
                    meetings(g).into_iter().for_each(|(tap, out, at)| pairs[tap].push((out * n, at * n)));
                    n
                }
            };
            let all_rows = (images.len() * from, images.len() * to);
            (0..groups * panels * blocks).into_par_iter().for_each(|task| {
                let (rest, first) = (task / blocks, task % blocks * block);
                let (group, panel) = (rest / panels, rest % panels);
                let panel_size = all_rows.0 * width;
                let tile_size = all_rows.1 * shape.rows;
                let tiles = o.next_multiple_of(shape.lanes).div_ceil(shape.rows);
                let sum = PairSums {
                    pairs: &pairs,
                    count,
                    xs: &xs[(group * panels + panel) * panel_size..][..panel_size],
                    grad: &grad[group * tiles * tile_size..][..tiles * tile_size],
                    tile_size,
                    channels: (c, o),
                    column: panel * width,
                    add: images.start > 0,
                    outputs: first..o.min(first + block),
                    // SAFETY: the group's sums.
                    sums: unsafe { out.at(group * taps * o * c) },
                };
                dispatch_at(shape.level, sum);
            });
        }
    };
    // SAFETY: the first images' tasks write every sum, the others add to them.
    let sums = unsafe { written_by_tasks(groups * taps * o * c, fill) };
    if taps == 1 {
        return sums;
    }
    let interleave = |dw: &mut [MaybeUninit<T>]| {
        dw.par_chunks_mut(c * taps).enumerate().for_each(|(row, dw)| {
            let (group, o_at) = (row / o, row % o);
            for tap in 0..taps {
                let from = &sums[((group * taps + tap) * o + o_at) * c..][..c];
                dw[tap..].iter_mut().step_by(taps).zip(from).for_each(|(dw, &sum)| _ = dw.write(sum));
            }
        });
    };
    // SAFETY: every channel of every tap.
    unsafe { written(groups * o * c * taps, interleave) }
}

/// Adds to the gradients of all taps, for a panel of inputs and some outputs, the products of a group's packed pixels.
struct PairSums<'a, T> {
    /// For each tap the first rows of the gradient and of the input of every product of `count` rows.
    pairs: &'a [Vec<(usize, usize)>],
    count: usize,
    /// (row, input of the panel)
    xs: &'a [T],
    /// (tile of outputs, row, output of the tile)
    grad: &'a [T],
    tile_size: usize,
    channels: (usize, usize),
    column: usize,
    /// Whether there are sums already.
    add: bool,
    outputs: Range<usize>,
    /// (tap, output, input)
    sums: *mut T,
}

impl<T: Real> Kernel<T> for PairSums<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        // SAFETY: below `dispatch`; the packed pixels are as long as `weight_grad` has cut them.
        unsafe {
            match V::ROWS {
                8 => self.add::<V, 8>(),
                _ => self.add::<V, 4>(),
            }
        }
    }
}

impl<T: Real> PairSums<'_, T> {
    #[inline(always)]
    unsafe fn add<V: Simd<Elem = T>, const M: usize>(&self) {
        let (c, o) = self.channels;
        for output in self.outputs.clone().step_by(M) {
            for (tap, pairs) in self.pairs.iter().enumerate() {
                // SAFETY: the caller's; rows and columns that are stored exist.
                unsafe {
                    let tile = self.grad.as_ptr().add(output / M * self.tile_size);
                    let mut sums = [[V::zero(); 2]; M];
                    for &(row, at) in pairs {
                        let a = std::array::from_fn(|i| tile.add(row * M + i));
                        let b = self.xs.as_ptr().add(at * 2 * V::LANES);
                        sums = tile_of_rows::<V, M, 2>(self.count, a, M, b, 2 * V::LANES, sums);
                    }
                    for (i, sums) in sums.into_iter().enumerate().take(o - output) {
                        let to = self.sums.add((tap * o + output + i) * c + self.column);
                        for (j, sum) in sums.into_iter().enumerate() {
                            let count = (c - self.column).saturating_sub(j * V::LANES).min(V::LANES);
                            let to = to.wrapping_add(j * V::LANES);
                            let sum = if self.add { V::load_first(to, count).add(sum) } else { sum };
                            sum.store_first(to, count);
                        }
                    }
                }
            }
        }
    }
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
struct Walk {
    images: usize,
    groups: usize,
    /// Channels of a group, and pixels of a plane: of the input, of the output.
    channels: (usize, usize),
    pixels: (usize, usize),
    terms: Vec<Vec<(usize, usize)>>,
    rows: Rows,
}

impl Walk {
    /// From the convolution's input to its output, or the way back if `turned`.
    fn new(g: &Geometry, turned: bool) -> Self {
        let (mut channels, mut pixels) = ((g.group_in(), g.group_out()), (g.input_plane(), g.output_plane()));
        if turned {
            channels = (channels.1, channels.0);
            pixels = (pixels.1, pixels.0);
        }
        let mut terms = vec![Vec::new(); pixels.1];
        for (tap, out, at) in meetings(g) {
            let (from, to) = if turned { (out, at) } else { (at, out) };
            terms[to].push((tap, from));
        }
        Self { images: g.b, groups: g.params.groups, channels, pixels, terms, rows: Rows::of(g) }
    }

    fn run<T: Real>(&self, input: &[T], weights: &TapPanels<T>, finish: &Finish<T>) -> Vec<T> {
        let ((c, o), (from, to)) = (self.channels, self.pixels);
        assert_eq!(input.len(), self.images * self.groups * c * from);
        let outputs = self.images * self.groups * o * to;
        assert!(finish.skip.is_none_or(|skip| skip.len() == outputs));
        for by_channel in [finish.scale, finish.bias].into_iter().flatten() {
            assert_eq!(by_channel.len(), self.groups * o);
        }
        let shape = weights.shape;
        let (width, threads) = (2 * shape.lanes, rayon::current_num_threads());
        let panels = o.div_ceil(width);
        let pitch = odd_lines(c);
        let room = (CACHE / (from * pitch * size_of::<T>())).max(shape.rows);
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
                    let turn = Turn { source, images: all, group, slot, rows, of, piece, step, to };
                    dispatch_at(shape.level, turn);
                    let job =
                        Products { walk: self, weights, finish, out, images, group, panels, pitch, scratch, staged };
                    dispatch_at(shape.level, job);
                });
            });
        };
        // SAFETY: the tasks cover images, groups and channels, and each fills the planes that it has.
        unsafe { written_by_tasks(outputs, fill) }
    }
}

/// Images (image, group, channel, pixel).
#[derive(Clone, Copy)]
struct Planes<'a, T> {
    input: &'a [T],
    groups: usize,
    channels: usize,
    pixels: usize,
}

/// Lays a group's channels innermost, in pieces: (piece, row, channel of the piece), zeros behind the last channel up to
/// the end of its vector and of its piece, if there are several. The rows are those of `of` images, of which these are the
/// ones from `slot` on.
struct Turn<'a, T> {
    source: Planes<'a, T>,
    images: Range<usize>,
    group: usize,
    slot: usize,
    rows: Rows,
    of: usize,
    /// Channels of a piece: a vector's, or several, or a part of them that divides them.
    piece: usize,
    /// From a piece to the next.
    step: usize,
    to: *mut T,
}

impl<T: Real> Kernel<T> for Turn<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let Planes { input, groups, channels, pixels } = self.source;
        let part = self.piece.min(V::LANES);
        let mut block = [T::zero(); 256];
        for (slot, image) in self.images.enumerate() {
            let plane = (image * groups + self.group) * channels * pixels;
            let end = if self.step > 0 { channels.next_multiple_of(self.piece) } else { channels };
            for c in (0..end).step_by(V::LANES) {
                let rows = channels.saturating_sub(c).min(V::LANES);
                for first in (0..pixels).step_by(V::LANES) {
                    let start = plane + c * pixels + first;
                    let count = V::LANES.min(pixels - first);
                    // SAFETY: below `dispatch`; a block is read whole only where the input goes on, and written to rows of
                    // the caller's room.
                    unsafe {
                        if rows == V::LANES && start + (V::LANES - 1) * pixels + V::LANES <= input.len() {
                            V::transpose(input.as_ptr().add(start), pixels, block.as_mut_ptr(), V::LANES);
                        } else {
                            for (i, j) in (0..V::LANES).flat_map(|i| (0..count).map(move |j| (i, j))) {
                                block[j * V::LANES + i] =
                                    if i < rows { input[start + i * pixels + j] } else { T::zero() };
                            }
                        }
                        for j in 0..count {
                            let row = self.rows.at((self.slot + slot, self.of), (first + j, pixels));
                            let from = block.as_ptr().add(j * V::LANES);
                            for lane in (0..V::LANES).step_by(part) {
                                let (piece, within) = ((c + lane) / self.piece, (c + lane) % self.piece);
                                let to = self.to.add(piece * self.step + row * self.piece + within);
                                if part == V::LANES {
                                    V::load(from).store(to);
                                } else {
                                    V::load_first(from.add(lane), part).store_first(to, part);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The products of some images and panels.
struct Products<'a, T> {
    walk: &'a Walk,
    weights: &'a TapPanels<T>,
    finish: &'a Finish<'a, T>,
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
        // SAFETY: below `dispatch`; `Walk::run` has made the scratch large enough, and `Turn` filled it.
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
        let (walk, images) = (self.walk, self.images.len());
        let (matrices, rows) = match walk.rows {
            Rows::Images => (walk.pixels.1, images),
            Rows::Pixels => (1, images * walk.pixels.1),
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
        let (c, width) = (self.walk.channels.0, 2 * V::LANES);
        // SAFETY: the caller's; the rows behind the last one read that one again.
        unsafe {
            let mut sums = [[V::zero(); 2]; M];
            for &(tap, at) in &self.walk.terms[pixel] {
                let first = if self.walk.rows == Rows::Pixels { row } else { at * images + row };
                let a = std::array::from_fn(|i| self.scratch.add((first + i.min(count - 1)) * self.pitch));
                sums = tile_of_rows::<V, M, 2>(c, a, 1, weights.as_ptr().add(tap * c * width), width, sums);
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
        let (walk, finish) = (self.walk, self.finish);
        let ((_, channels), (_, pixels)) = (walk.channels, walk.pixels);
        let (images, width) = (self.images.len(), 2 * V::LANES);
        let mut block = [T::zero(); 256];
        for (slot, image) in self.images.clone().enumerate() {
            for first in (panel * width..channels.min((panel + 1) * width)).step_by(V::LANES) {
                for pixel in (0..pixels).step_by(V::LANES) {
                    let (row, next) =
                        [pixel, pixel + 1].map(|pixel| walk.rows.at((slot, images), (pixel, pixels))).into();
                    let count = V::LANES.min(pixels - pixel);
                    // SAFETY: the staged rows go on for a vector of pixels; those behind the last are not stored.
                    unsafe {
                        let from = self.staged.add(row * width + first % width);
                        V::transpose(from, (next - row) * width, block.as_mut_ptr(), V::LANES);
                        for i in 0..V::LANES.min(channels - first) {
                            let channel = self.group * channels + first + i;
                            let place = (image * walk.groups * channels + channel) * pixels + pixel;
                            let mut y = V::load(block.as_ptr().add(i * V::LANES));
                            if let Some(scale) = finish.scale {
                                y = y.mul(V::splat(*scale.get_unchecked(channel)));
                            }
                            if let Some(bias) = finish.bias {
                                y = y.add(V::splat(*bias.get_unchecked(channel)));
                            }
                            if let Some(skip) = finish.skip {
                                y = y.add(V::load_first(skip.as_ptr().add(place), count));
                            }
                            finish.clamp.apply(y).store_first(self.out.at(place), count);
                        }
                    }
                }
            }
        }
    }
}

/// Weights of the taps, packed: (group, panel of outputs, tap, input, output of the panel), zeros behind the last output.
struct TapPanels<T> {
    data: Vec<T>,
    panels: usize,
    size: usize,
    shape: TileShape,
}

impl<T: Real> TapPanels<T> {
    /// Packs (group, out, in, tap); with the roles of out and in exchanged if `turned`.
    fn new(weight: &[T], walk: &Walk, taps: usize, turned: bool) -> Self {
        let (k, n) = walk.channels;
        assert_eq!(weight.len(), walk.groups * k * n * taps);
        let shape = TileShape::now::<T>();
        let width = 2 * shape.lanes;
        let (panels, size) = (n.div_ceil(width), taps * k * width);
        let fill = |data: Shared<T>| {
            (0..walk.groups * panels).into_par_iter().for_each(|task| {
                // SAFETY: a panel for each task.
                let to = unsafe { data.at(task * size) };
                let weight = &weight[task / panels * k * n * taps..][..k * n * taps];
                let first = task % panels * width;
                dispatch_at(shape.level, PackTaps { weight, k, n, taps, turned, first, to });
            });
        };
        // SAFETY: `PackTaps` fills its panel.
        let data = unsafe { written_by_tasks(walk.groups * panels * size, fill) };
        Self { data, panels, size, shape }
    }

    fn panel(&self, group: usize, panel: usize) -> &[T] {
        &self.data[(group * self.panels + panel) * self.size..][..self.size]
    }
}

struct PackTaps<'a, T> {
    weight: &'a [T],
    k: usize,
    n: usize,
    taps: usize,
    turned: bool,
    first: usize,
    to: *mut T,
}

impl<T: Real> Kernel<T> for PackTaps<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let Self { weight, k, n, taps, turned, first, to } = self;
        let width = 2 * V::LANES;
        // Output j, input i and tap t are at j · of_output + i · of_input + t.
        let (of_output, of_input) = if turned { (taps, n * taps) } else { (k * taps, taps) };
        // Runs of consecutive numbers of one output: all its inputs' taps, or those of one input.
        let (runs, run) = if turned { (k, taps) } else { (1, k * taps) };
        let mut block = [T::zero(); 256];
        for half in 0..2 {
            let output = first + half * V::LANES;
            for (start, at) in (0..runs).flat_map(|i| (0..run).step_by(V::LANES).map(move |at| (i, at))) {
                let count = V::LANES.min(run - at);
                let from = output * of_output + start * of_input + at;
                let rows = n.saturating_sub(output).min(V::LANES);
                // SAFETY: below `dispatch`; whole blocks are read only where the weights go on, and the panel has a place for
                // each input and tap.
                unsafe {
                    if rows == V::LANES && from + (V::LANES - 1) * of_output + V::LANES <= weight.len() {
                        V::transpose(weight.as_ptr().add(from), of_output, block.as_mut_ptr(), V::LANES);
                    } else {
                        for (i, j) in (0..count).flat_map(|i| (0..V::LANES).map(move |j| (i, j))) {
                            block[i * V::LANES + j] =
                                if j < rows { weight[from + j * of_output + i] } else { T::zero() };
                        }
                    }
                    for i in 0..count {
                        let (input, tap) = if turned { (start, at + i) } else { ((at + i) / taps, (at + i) % taps) };
                        let to = to.add((tap * k + input) * width + half * V::LANES);
                        V::load(block.as_ptr().add(i * V::LANES)).store(to);
                    }
                }
            }
        }
    }
}

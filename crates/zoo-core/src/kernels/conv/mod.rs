//! Convolution on the host, as one inner loop ([`tile`]) over packed operands.
//!
//! Layouts are row-major: images (b, c, h, w), weights (c_out, c_in / groups, kh, kw).
//!
//! **Forward.** A task takes a band of output rows (or some whole images) of one group and copies the input that it needs into
//! scratch that stays in the second-level cache. Where rows are whole vectors and the stride is 1, that is one copy with zeros
//! between the rows, and every tap reads its vectors from it, aligned or not. Elsewhere it is for every horizontal tap a shifted
//! copy of each row, without the columns
//! that a stride skips, and the rows sorted by their remainder modulo the vertical stride. Then for any tap the inputs
//! of consecutive output pixels are consecutive, across rows too: vectors run over the flattened output plane, on aligned
//! memory, and the copy is kw times the image, not kh · kw times as im2col's. Planes that do not fill a vector are
//! unfolded instead, the pixels of several images side by side.
//!
//! **Input gradient.** The same sum on the gradient of the output with turned weights, once for each remainder of the input's
//! pixels modulo the stride.
//!
//! **Weight gradient.** A sum over pixels: both operands are transposed so that channels are innermost.
//!
//! Outputs of the first two do not depend on how the work is cut; the weight gradient is cut by shape alone, and its parts
//! are added in their order: the bits never depend on the number of threads.

mod depthwise;
mod geometry;
mod small_planes;
mod winograd;

pub use geometry::Conv2dParams;
pub(crate) use geometry::Geometry;

use crate::kernels::batch_norm;
use crate::kernels::buffer::{Shared, with_scratch, written_by_tasks};
use crate::kernels::clamp::Clamp;
use crate::kernels::microkernel::{TileShape, tile};
use crate::kernels::real::Real;
use crate::kernels::simd::{Kernel, Simd, dispatch_at, prefetch, prefetch_to_write};
use crate::kernels::sum;
use geometry::valid_outputs;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// What a task's packed input may take of the second-level cache, in bytes.
const CACHE: usize = 1 << 20;

/// What several images of a task may take together, packed: their inputs and outputs go through the same cache. Measured on
/// cifar_resnet56: with `CACHE` here and in the weight gradient training is 4 % slower.
const BUNCH: usize = CACHE / 4;

/// Room for `n` elements in an odd number of cache lines: rows that far apart spread over all sets of a cache.
pub(super) fn odd_lines(n: usize) -> usize {
    (n.div_ceil(LINE) | 1) * LINE
}

/// The packed rows are cut off at a multiple of this many elements, a cache line of f32.
const LINE: usize = 16;

impl Geometry {
    /// Factors of one output: the taps of all channels of a group.
    fn depth(&self) -> usize {
        self.group_in() * self.kh * self.kw
    }

    /// One input channel a group: no sum over channels, so a matrix product would be all overhead.
    fn is_depthwise(&self) -> bool {
        self.group_in() == 1 && self.params.groups > 1
    }

    pub(super) fn input_image(&self) -> usize {
        self.c_in * self.input_plane()
    }

    pub(super) fn output_image(&self) -> usize {
        self.c_out * self.output_plane()
    }
}

/// What happens to the outputs before they are stored: y = clamp(scale · sum + bias + skip), scale and bias by channel.
pub(crate) struct Finish<'a, T> {
    pub scale: Option<&'a [T]>,
    pub bias: Option<&'a [T]>,
    pub skip: Option<&'a [T]>,
    pub clamp: Clamp,
    /// Whether the sums may be rounded as Winograd's algorithm rounds them. Not where a gradient follows: two or three times
    /// the roundings turn the winners of poolings and the signs before ReLUs more often than PyTorch's do.
    pub by_tiles: bool,
    /// Where each plane's [`batch_norm::plane_stats`] go, those of a channel side by side; see [`forward_with_stats`].
    stats: Option<Shared<[f64; 2]>>,
}

impl<'a, T> Finish<'a, T> {
    pub fn bias(bias: Option<&'a [T]>) -> Self {
        Self::folded(None, bias, None, Clamp::None)
    }

    pub fn folded(scale: Option<&'a [T]>, bias: Option<&'a [T]>, skip: Option<&'a [T]>, clamp: Clamp) -> Self {
        Self { scale, bias, skip, clamp, by_tiles: false, stats: None }
    }

    pub fn by_tiles(self, by_tiles: bool) -> Self {
        Self { by_tiles, ..self }
    }
}

/// The outputs, and mean and biased variance of each channel ([`batch_norm::stats`]): made plane by plane while they are in the cache,
/// where tasks take whole planes.
pub(crate) fn forward_with_stats<T: Real>(
    g: &Geometry,
    xs: &[T],
    weight: &[T],
    bias: Option<&[T]>,
) -> (Vec<T>, Vec<T>) {
    let dims = (g.b, g.c_out, g.output_plane());
    let mut planes = vec![[0.0; 2]; g.b * g.c_out];
    let finish = Finish { stats: Some(Shared::new(&mut planes)), ..Finish::bias(bias) };
    let (ys, has_stats) = forward_noting(g, xs, weight, &finish);
    let stats = if has_stats { batch_norm::stats_of_planes(dims, &planes) } else { batch_norm::stats(dims, &ys) };
    (ys, stats)
}

pub(crate) fn forward<T: Real>(g: &Geometry, xs: &[T], weight: &[T], finish: &Finish<T>) -> Vec<T> {
    forward_noting(g, xs, weight, finish).0
}

/// [`forward`], and whether it has made the statistics asked for.
fn forward_noting<T: Real>(g: &Geometry, xs: &[T], weight: &[T], finish: &Finish<T>) -> (Vec<T>, bool) {
    if g.is_depthwise() {
        let scaled = finish.scale.map(|scale| -> Vec<T> {
            let taps = weight.chunks_exact(g.depth()).zip(scale);
            taps.flat_map(|(taps, &scale)| taps.iter().map(move |&w| w * scale)).collect()
        });
        let mut ys = depthwise::forward(g, xs, scaled.as_deref().unwrap_or(weight), finish.bias);
        if finish.skip.is_some() || finish.clamp != Clamp::None {
            batch_norm::finish(&mut ys, finish.skip, finish.clamp);
        }
        return (ys, false);
    }
    assert_eq!(weight.len(), g.c_out * g.depth());
    if small_planes::suits(g) {
        return (small_planes::forward(g, xs, weight, finish), false);
    }
    let p = g.params;
    let offset = |tap: usize, dilation: usize, padding: usize| (tap * dilation) as isize - padding as isize;
    let gather = Gather {
        images: g.b,
        groups: p.groups,
        channels: g.group_in(),
        plane: (g.h, g.w),
        rows: (0..g.kh).map(|t| offset(t, p.dilation.0, p.padding.0)).collect(),
        cols: (0..g.kw).map(|t| offset(t, p.dilation.1, p.padding.1)).collect(),
        stride: p.stride,
        out_channels: g.group_out(),
        out: (g.oh, g.ow),
        out_plane: (g.oh, g.ow),
        out_start: (0, 0),
        out_stride: (1, 1),
        tiles: None,
    };
    if finish.by_tiles && winograd::suits(g, (g.group_in(), g.group_out()), (g.oh, g.ow), weight) {
        let at =
            |group: usize, row: usize, channel: usize| ((group * g.group_out() + row) * g.group_in() + channel) * 9;
        let turned = winograd::weights(weight, (p.groups, g.group_out(), g.group_in()), at, |tap| tap, finish.scale);
        let sizes = (16 * p.groups, g.group_out(), g.group_in(), 1);
        let place = |group: usize, channel: usize, _| (group * g.group_out() * g.group_in() + channel, g.group_in());
        let weights = PackedRows::new(&turned, sizes, place, None);
        let tiles = gather.by_tiles();
        // SAFETY: as below.
        let ys = unsafe { written_by_tasks(g.b * g.output_image(), |ys| _ = tiles.run(xs, &weights, finish, ys)) };
        if !tiles.is_poisoned() {
            return (ys, false);
        }
    }
    let (depth, taps) = (g.depth(), g.kh * g.kw);
    let place =
        |group: usize, channel: usize, tap: usize| (group * g.group_out() * depth + channel * taps + tap, depth);
    let sizes = (p.groups, g.group_out(), g.group_in(), taps);
    let weights = PackedRows::new(weight, sizes, place, finish.scale);
    let mut has_stats = false;
    let run = |ys| has_stats = gather.run(xs, &weights, finish, ys);
    // SAFETY: the output's pixels are those of `gather`, each written by the task that has it.
    (unsafe { written_by_tasks(g.b * g.output_image(), run) }, has_stats)
}

pub(crate) fn input_grad<T: Real>(g: &Geometry, grad: &[T], weight: &[T]) -> Vec<T> {
    if g.is_depthwise() {
        return depthwise::input_grad(g, grad, weight);
    }
    assert_eq!(weight.len(), g.c_out * g.depth());
    if small_planes::suits(g) {
        return small_planes::input_grad(g, grad, weight);
    }
    assert_eq!(grad.len(), g.b * g.output_image());
    // SAFETY: the remainders modulo the stride cover every input pixel once.
    unsafe { written_by_tasks(g.b * g.input_image(), |dx| input_grad_to(g, grad, weight, dx)) }
}

/// Bytes of gradient that go through all of its readers at once. Measured on cifar_resnet20: half and twice as much are slower.
const PART: usize = 1 << 20;

/// How many images' gradients go together through [`gradients_by_images`], if that is faster than all through one reader after
/// the other: where the planes are large and the weights small.
pub(crate) fn images_at_once<T: Real>(g: &Geometry, weight: &[T]) -> Option<usize> {
    let images = (PART / (g.output_image() * size_of::<T>())).max(1);
    let is_other = g.is_depthwise() || small_planes::suits(g);
    let by_tiles = || winograd::suits(g, (g.group_out(), g.group_in()), (g.h, g.w), weight);
    (!is_other && g.b >= 2 * images && weight.len() <= PART / 8 / size_of::<T>() && !by_tiles()).then_some(images)
}

/// The gradients of input (if `wants_input`) and weight, `images` images at a time: `finish` turns their part of `grad` into
/// the gradient of the output, which both then find in the cache. The weight's is summed part by part.
pub(crate) fn gradients_by_images<T: Real>(
    g: &Geometry,
    (xs, weight): (&[T], &[T]),
    grad: &mut [T],
    (images, wants_input): (usize, bool),
    finish: impl Fn(Range<usize>, &mut [T]) + Sync,
) -> (Option<Vec<T>>, Vec<T>) {
    assert_eq!((xs.len(), grad.len()), (g.b * g.input_image(), g.b * g.output_image()));
    assert_eq!(weight.len(), g.c_out * g.depth());
    let mut sums = Vec::new();
    let mut run = |dx: Option<Shared<T>>| {
        let parts = grad.par_chunks_mut(images * g.output_image()).zip(xs.par_chunks(images * g.input_image()));
        let parts = parts.enumerate().with_max_len(1).map(|(part, (grad, xs))| {
            let first = part * images;
            let g = Geometry { b: xs.len() / g.input_image(), ..*g };
            finish(first..first + g.b, grad);
            if let Some(dx) = dx {
                // SAFETY: each part has its images' place.
                unsafe { input_grad_to(&g, grad, weight, dx.offset(first * g.input_image())) };
            }
            weight_grad(&g, xs, grad)
        });
        sums = parts.collect();
    };
    let dx = if wants_input {
        // SAFETY: the parts cover the images.
        Some(unsafe { written_by_tasks(g.b * g.input_image(), |dx| run(Some(dx))) })
    } else {
        run(None);
        None
    };
    let mut sums = sums.into_iter();
    let mut dw: Vec<T> = sums.next().unwrap_or_default();
    sums.for_each(|part: Vec<T>| dw.iter_mut().zip(part).for_each(|(sum, x)| *sum += x));
    (dx, dw)
}

/// [`input_grad`] where neither depthwise convolutions nor small planes have a way of their own.
///
/// # Safety
/// `dx` must hold the images' input.
unsafe fn input_grad_to<T: Real>(g: &Geometry, grad: &[T], weight: &[T], dx: Shared<T>) {
    let p = g.params;
    for start in (0..p.stride.0).flat_map(|y| (0..p.stride.1).map(move |x| (y, x))) {
        // Input pixels start, start + stride, …: pixel start + stride·i meets tap t where the output
        // i + (start + padding - t·dilation) / stride exists, a whole number.
        let taps = |start: usize, k: usize, stride: usize, padding: usize, dilation: usize| -> Vec<(usize, isize)> {
            let shift = |t: usize| (start + padding) as isize - (t * dilation) as isize;
            (0..k).filter(|&t| shift(t) % stride as isize == 0).map(|t| (t, shift(t) / stride as isize)).collect()
        };
        let rows = taps(start.0, g.kh, p.stride.0, p.padding.0, p.dilation.0);
        let cols = taps(start.1, g.kw, p.stride.1, p.padding.1, p.dilation.1);
        let out = (g.h.saturating_sub(start.0).div_ceil(p.stride.0), g.w.saturating_sub(start.1).div_ceil(p.stride.1));
        if out.0 == 0 || out.1 == 0 {
            continue;
        }
        let gather = Gather {
            images: g.b,
            groups: p.groups,
            channels: g.group_out(),
            plane: (g.oh, g.ow),
            rows: rows.iter().map(|&(_, offset)| offset).collect(),
            cols: cols.iter().map(|&(_, offset)| offset).collect(),
            stride: (1, 1),
            out_channels: g.group_in(),
            out,
            out_plane: (g.h, g.w),
            out_start: start,
            out_stride: p.stride,
            tiles: None,
        };
        if winograd::suits(g, (g.group_out(), g.group_in()), (g.h, g.w), weight) {
            let at =
                |group: usize, row: usize, channel: usize| ((group * g.group_out() + channel) * g.group_in() + row) * 9;
            let sizes = (p.groups, g.group_in(), g.group_out());
            let turned = winograd::weights(weight, sizes, at, |tap| 8 - tap, None);
            let place =
                |group: usize, channel: usize, _| (group * g.group_in() * g.group_out() + channel, g.group_out());
            let weights = PackedRows::new(&turned, (16 * p.groups, g.group_in(), g.group_out(), 1), place, None);
            let tiles = gather.by_tiles();
            _ = tiles.run(grad, &weights, &Finish::bias(None), dx);
            if !tiles.is_poisoned() {
                continue;
            }
        }
        let place = |group: usize, channel: usize, tap: usize| {
            let (ky, kx) = (rows[tap / cols.len()].0, cols[tap % cols.len()].0);
            let row = (group * g.group_out() + channel) * g.group_in();
            ((row * g.kh + ky) * g.kw + kx, g.kh * g.kw)
        };
        let sizes = (p.groups, g.group_in(), g.group_out(), rows.len() * cols.len());
        let weights = PackedRows::new(weight, sizes, place, None);
        _ = gather.run(grad, &weights, &Finish::bias(None), dx);
    }
}

/// out\[n, o, y, x\] = bias\[o\] + Σ over c and taps of w\[o, c, tap\] · in\[n, c, y·stride + row(tap), x·stride + col(tap)\]
/// for each group, 0 where the input ends.
struct Gather {
    images: usize,
    groups: usize,
    /// Input channels of a group.
    channels: usize,
    /// Height and width of an input plane.
    plane: (usize, usize),
    rows: Vec<isize>,
    cols: Vec<isize>,
    stride: (usize, usize),
    /// Output channels of a group.
    out_channels: usize,
    /// Rows and columns of outputs.
    out: (usize, usize),
    /// Height and width of the plane that they are written to, where they stand from `out_start` on, `out_stride` apart.
    out_plane: (usize, usize),
    out_start: (usize, usize),
    out_stride: (usize, usize),
    /// The outputs are tiles of 2x2 pixels, computed by Winograd's algorithm; `rows`, `cols` and `stride` are a tile's. Whether
    /// a task has met an input that is not finite.
    tiles: Option<AtomicBool>,
}

/// How a [`Gather`] is cut into tasks, and where its packed input lies.
struct Cut {
    /// Images of a task: more than one only if a task takes whole images.
    images: usize,
    /// Output rows of a task.
    rows: usize,
    /// Parts of the output channels.
    parts: usize,
    /// Row-blocks of weights in a part.
    blocks: usize,
    /// Pixels of several images stand side by side, unfolded.
    unfolded: bool,
    /// One copy of the input serves all horizontal taps: the elements from a packed row to the next, of which the last `LINE` are
    /// zeros.
    pitch: Option<usize>,
    /// Packed elements of one channel, of one image (all of them if unfolded).
    channel: usize,
    image: usize,
    /// Where the inputs of each factor start.
    offsets: Vec<u32>,
    /// The input row of the topmost tap of output row 0, and the packed rows of each remainder modulo the vertical stride.
    first_row: isize,
    remainder_rows: Vec<usize>,
    /// Where the channels of a pair of vectors of transformed tiles start.
    steps: Vec<u32>,
    /// Of every vector of output pixels of a task.
    places: Vec<Place>,
}

/// A vector of output pixels in its task.
#[derive(Clone, Copy)]
struct Place {
    /// The packed image that it is of, and its first pixel there.
    image: usize,
    pixel: usize,
    /// Where its inputs start in the packed input, and its outputs behind the first of a channel.
    from: usize,
    to: usize,
}

impl Gather {
    /// The same outputs, from tiles: each reads four rows and columns, two apart.
    fn by_tiles(&self) -> Self {
        let four = |taps: &[isize]| {
            let first = taps.iter().copied().min().unwrap_or(0);
            (0..4).map(|i| first + i).collect::<Vec<_>>()
        };
        Self {
            rows: four(&self.rows),
            cols: four(&self.cols),
            stride: (2, 2),
            out: (self.out.0.div_ceil(2), self.out.1.div_ceil(2)),
            tiles: Some(AtomicBool::new(false)),
            ..*self
        }
    }

    fn is_poisoned(&self) -> bool {
        self.tiles.as_ref().is_some_and(|poisoned| poisoned.load(Relaxed))
    }

    fn taps(&self) -> usize {
        self.rows.len() * self.cols.len()
    }

    fn depth(&self) -> usize {
        self.channels * self.taps()
    }

    /// Whether the outputs of a band are consecutive where they are written.
    fn is_dense(&self) -> bool {
        self.out_stride == (1, 1) && self.out_start == (0, 0) && self.out == self.out_plane
    }

    /// Rows between the first and the last that one output needs.
    fn span(&self) -> usize {
        let (first, last) = (self.rows.iter().min(), self.rows.iter().max());
        first.zip(last).map_or(0, |(&first, &last)| (last - first) as usize)
    }

    fn cut<T: Real>(&self, TileShape { lanes, rows: row_block, .. }: TileShape) -> Cut {
        let threads = rayon::current_num_threads();
        let pixels = self.out.0 * self.out.1;
        let budget = CACHE / size_of::<T>();
        let all_blocks = self.out_channels.div_ceil(row_block);
        let unfolded = pixels < lanes;
        let pitch = (!unfolded && self.shares_rows(lanes)).then_some(self.plane.1 + LINE);
        let (images, rows) = if unfolded {
            let room = budget / (self.depth() * pixels).max(1);
            // Enough pixels to hide the traffic of the weights, and a task for each thread.
            (
                room.clamp(1, 256).min(self.images.div_ceil(threads)).max(lanes.div_ceil(pixels)).min(self.images),
                self.out.0,
            )
        } else {
            let per_row = self.channels * pitch.unwrap_or(self.cols.len().max(1) * self.out.1);
            let room = (budget / per_row.max(1)).saturating_sub(self.span() / self.stride.0 + self.stride.0).max(1);
            if room < self.out.0 || self.images < 2 * threads {
                // Bands of equal height, two vectors of pixels at the least; enough of them for all threads.
                let bands = self.out.0.div_ceil(room).max((2 * threads).div_ceil(self.images * self.groups));
                let least = (2 * lanes).div_ceil(self.out.1).min(self.out.0);
                (1, self.out.0.div_ceil(bands).max(least))
            } else {
                let fair = self.images.div_ceil(4 * threads);
                let image = per_row * (self.out.0 + self.span()) * size_of::<T>();
                let images = (BUNCH / image.max(1)).clamp(1, 16).min(fair);
                // Vectors go in pairs.
                (if images > 1 { images & !1 } else { 1 }, self.out.0)
            }
        };
        let tasks = self.images.div_ceil(images) * self.out.0.div_ceil(rows) * self.groups;
        let parts = if tasks >= 2 * threads { 1 } else { (2 * threads).div_ceil(tasks).min(all_blocks) };
        let blocks = all_blocks.div_ceil(parts);

        // Rows of the input by their remainder modulo the stride: those of one remainder stand one behind the other.
        let first = self.rows.iter().copied().min().unwrap_or(0);
        let relative = |row: isize| (row - first) as usize;
        let remainder_rows: Vec<usize> = (0..self.stride.0).map(|r| self.remainder_rows(r, rows)).collect();
        let (mut starts, mut packed_rows) = (vec![0; self.stride.0], 0);
        for (start, rows) in starts.iter_mut().zip(&remainder_rows) {
            *start = packed_rows;
            packed_rows += rows;
        }
        let row_starts: Vec<usize> = self
            .rows
            .iter()
            .map(|&row| starts[relative(row) % self.stride.0] + relative(row) / self.stride.0)
            .collect();
        let steps = (0..self.channels * usize::from(self.tiles.is_some())).map(|c| (c * 2 * lanes) as u32).collect();
        let (channel, image, offsets);
        if unfolded {
            let width = odd_lines(images * pixels);
            channel = self.taps() * width;
            image = self.depth() * width;
            offsets = (0..self.depth()).map(|k| (k * width) as u32).collect();
        } else {
            channel = match pitch {
                Some(pitch) => odd_lines(LINE + packed_rows * pitch),
                None => odd_lines(self.cols.len() * packed_rows * self.out.1),
            };
            image = self.channels * channel;
            offsets = (0..self.depth())
                .map(|k| {
                    let (c, tap) = (k / self.taps(), k % self.taps());
                    let (row, col) = (row_starts[tap / self.cols.len()], tap % self.cols.len());
                    let within = match pitch {
                        Some(pitch) => (LINE + row * pitch).strict_add_signed(self.cols[col]),
                        None => (col * packed_rows + row) * self.out.1,
                    };
                    (c * channel + within) as u32
                })
                .collect();
        }
        let first_row = first;
        let (packed_images, pixels) = if unfolded { (1, images * pixels) } else { (images, rows * self.out.1) };
        let places = (0..packed_images).flat_map(|at| (0..pixels).step_by(lanes).map(move |pixel| (at, pixel)));
        let place = |(at, pixel): (usize, usize)| {
            let packed = pitch.map_or(pixel, |pitch| pixel / self.out.1 * pitch + pixel % self.out.1);
            let whole = at * self.groups * self.out_channels * self.out.0 * self.out.1;
            Place { image: at, pixel, from: at * image + packed, to: whole + pixel }
        };
        let places = places.map(place).collect();
        Cut {
            images,
            rows,
            parts,
            blocks,
            unfolded,
            pitch,
            channel,
            image,
            offsets,
            first_row,
            remainder_rows,
            steps,
            places,
        }
    }

    /// Whether every vector of outputs reads consecutive inputs of a single row, for any tap: the rows need no shifted copies
    /// then, only zeros between them.
    fn shares_rows(&self, lanes: usize) -> bool {
        let least = self.cols.iter().copied().min().unwrap_or(0);
        let most = self.cols.iter().copied().max().unwrap_or(0) + self.out.1 as isize - self.plane.1 as isize;
        let is_whole = self.out.1.is_multiple_of(lanes) && self.plane.1.is_multiple_of(lanes);
        let (margin, taps) = (LINE as isize, self.cols.len());
        is_whole && self.stride == (1, 1) && self.tiles.is_none() && taps > 1 && least >= -margin && most <= margin
    }

    /// Packed rows of one remainder modulo the vertical stride, for a band of `rows` outputs.
    fn remainder_rows(&self, remainder: usize, rows: usize) -> usize {
        let first = self.rows.iter().copied().min().unwrap_or(0);
        let steps = self.rows.iter().map(|&row| (row - first) as usize);
        let of_it = steps.filter(|step| step % self.stride.0 == remainder);
        of_it.map(|step| step / self.stride.0 + rows).max().unwrap_or(0)
    }

    /// Computes every output, and the statistics that `finish` asks for if the tasks take whole planes: then true. `out` must have
    /// room for `images · groups · out_channels` planes of `out_plane`, and the statistics a place for each.
    fn run<T: Real>(&self, input: &[T], weights: &PackedRows<T>, finish: &Finish<T>, out: Shared<T>) -> bool {
        assert_eq!(input.len(), self.images * self.groups * self.channels * self.plane.0 * self.plane.1);
        let depth = if self.tiles.is_some() { self.channels } else { self.depth() };
        assert_eq!((weights.rows, weights.depth), (self.out_channels, depth));
        assert!(finish.bias.is_none_or(|bias| bias.len() == self.groups * self.out_channels));
        let outputs = self.images * self.groups * self.out_channels * self.out_plane.0 * self.out_plane.1;
        assert!(finish.skip.is_none_or(|skip| skip.len() == outputs));
        let cut = self.cut::<T>(weights.shape);
        let is_direct = self.is_dense() && !cut.unfolded;
        let slack = 4 * weights.shape.lanes;
        let packed = if cut.unfolded { cut.image } else { cut.images * cut.image } + slack;
        let staged = if self.tiles.is_some() {
            winograd::scratch::<T>(self.channels, weights.shape.lanes, weights.block)
        } else if is_direct {
            0
        } else {
            (cut.blocks * weights.block) * (cut.images * (cut.rows * self.out.1).next_multiple_of(LINE) + LINE)
        };
        let stats = finish.stats.filter(|_| is_direct && self.tiles.is_none() && cut.rows >= self.out.0);
        let bands = self.out.0.div_ceil(cut.rows);
        let bunches = self.images.div_ceil(cut.images);
        (0..bunches * bands * self.groups * cut.parts).into_par_iter().for_each(|task| {
            let (rest, part) = (task / cut.parts, task % cut.parts);
            let (rest, group) = (rest / self.groups, rest % self.groups);
            let (bunch, band) = (rest / bands, rest % bands);
            let images = bunch * cut.images..self.images.min((bunch + 1) * cut.images);
            let rows = band * cut.rows..self.out.0.min((band + 1) * cut.rows);
            let blocks = part * cut.blocks..weights.blocks.min((part + 1) * cut.blocks);
            if blocks.is_empty() {
                return;
            }
            with_scratch::<T, _>(packed + staged, |scratch| {
                // SAFETY: the scratch holds the packed input and the staged output behind it.
                let staged = unsafe { scratch.add(packed) };
                let band = Band {
                    gather: self,
                    cut: &cut,
                    input,
                    weights,
                    finish,
                    stats,
                    out,
                    images,
                    rows,
                    group,
                    blocks,
                    scratch,
                    staged,
                };
                dispatch_at(weights.shape.level, band);
            });
        });
        stats.is_some()
    }
}

/// A task of a [`Gather`]: some images, or some rows of one.
struct Band<'a, T> {
    gather: &'a Gather,
    cut: &'a Cut,
    input: &'a [T],
    weights: &'a PackedRows<T>,
    finish: &'a Finish<'a, T>,
    /// Where the statistics of the task's planes go.
    stats: Option<Shared<[f64; 2]>>,
    out: Shared<T>,
    images: Range<usize>,
    rows: Range<usize>,
    group: usize,
    blocks: Range<usize>,
    scratch: *mut T,
    staged: *mut T,
}

impl<T: Real> Kernel<T> for Band<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        // SAFETY: below `dispatch`; `Gather::run` has checked the lengths that the parts rely on.
        unsafe {
            if self.cut.unfolded {
                self.unfold();
            } else {
                for (slot, image) in self.images.clone().enumerate() {
                    for channel in 0..self.gather.channels {
                        self.pack::<V>(slot, image, channel);
                    }
                }
            }
            if self.gather.tiles.is_some() {
                return match V::ROWS {
                    8 => self.multiply_tiles::<V, 8>(),
                    _ => self.multiply_tiles::<V, 4>(),
                };
            }
            match V::ROWS {
                8 => self.multiply::<V, 8>(),
                _ => self.multiply::<V, 4>(),
            }
            if !self.is_direct() {
                self.scatter();
            }
            if let Some(stats) = self.stats {
                self.note_stats::<V>(stats);
            }
        }
    }
}

impl<T: Real> Band<'_, T> {
    fn is_direct(&self) -> bool {
        self.gather.is_dense() && !self.cut.unfolded
    }

    /// Winograd's algorithm on the packed input, a few pairs of vectors of tiles at a time.
    #[inline(always)]
    unsafe fn multiply_tiles<V: Simd<Elem = T>, const M: usize>(&self) {
        let g = self.gather;
        let (images, tiles, per_image) = self.vectors(V::LANES);
        let vectors = images * per_image;
        let (channels, pairs) = (g.channels, winograd::pairs::<T>(g.channels, V::LANES));
        let pair_size = 16 * channels * 2 * V::LANES;
        let at = |v: usize| (v / per_image, v % per_image * V::LANES);
        let offsets = self.cut.offsets.as_ptr();
        // SAFETY: the scratch behind the packed input is as large as `winograd::scratch` says; blocks and pixels as in `pair`.
        unsafe {
            let product = self.staged.add(pairs * pair_size);
            let rows = product.add(16 * M * 2 * V::LANES);
            let mut poison = V::zero();
            for first in (0..vectors).step_by(2 * pairs) {
                let last = vectors.min(first + 2 * pairs);
                for v in first..last {
                    let (image, pixel) = at(v);
                    let count = V::LANES.min(tiles - pixel);
                    let from = self.scratch.add(image * self.cut.image + pixel);
                    let to = self.staged.add((v - first) / 2 * pair_size + (v - first) % 2 * V::LANES);
                    for c in 0..channels {
                        let mut d = [V::zero(); 16];
                        for (i, d) in d.iter_mut().enumerate() {
                            *d = V::load(from.add(*offsets.add(16 * c + i) as usize));
                        }
                        // The inner pixels of all tiles are all pixels.
                        for i in [5, 6, 9, 10] {
                            let inner = match count == V::LANES {
                                true => d[i],
                                false => V::load_first(from.add(*offsets.add(16 * c + i) as usize), count),
                            };
                            poison = inner.mul_add(V::zero(), poison);
                        }
                        let turned = winograd::input(d);
                        for (i, turned) in turned.into_iter().enumerate() {
                            turned.store(to.add((i * channels + c) * 2 * V::LANES));
                        }
                    }
                }
                for block in self.blocks.clone() {
                    for v in (first..last).step_by(2) {
                        let b = self.staged.add((v - first) / 2 * pair_size).cast_const();
                        for i in 0..16 {
                            let a = self.weights.block_of(16 * self.group + i, block).as_ptr();
                            let b = b.add(i * channels * 2 * V::LANES);
                            let sums = tile::<V, M, 2>(channels, a, M, [b, b.add(V::LANES)], self.cut.steps.as_ptr());
                            for (row, sums) in sums.into_iter().enumerate() {
                                sums[0].store(product.add((i * M + row) * 2 * V::LANES));
                                sums[1].store(product.add((i * M + row) * 2 * V::LANES + V::LANES));
                            }
                        }
                        for v in v..last.min(v + 2) {
                            let (image, pixel) = at(v);
                            for row in 0..M.min(g.out_channels - block * M) {
                                let from = product.add(row * 2 * V::LANES + v % 2 * V::LANES);
                                let mut m = [V::zero(); 16];
                                for (i, m) in m.iter_mut().enumerate() {
                                    *m = V::load(from.add(i * M * 2 * V::LANES));
                                }
                                let [a, b, c, d] = winograd::output(m);
                                for (line, (even, odd)) in [(a, b), (c, d)].into_iter().enumerate() {
                                    let (low, high) = even.interleave(odd);
                                    low.store(rows.add(2 * line * V::LANES));
                                    high.store(rows.add((2 * line + 1) * V::LANES));
                                }
                                self.store_tiles::<V>(image, block * M + row, pixel, rows);
                            }
                        }
                    }
                }
            }
            if !winograd::is_finite(poison.sum())
                && let Some(poisoned) = &g.tiles
            {
                poisoned.store(true, Relaxed);
            }
        }
    }

    /// Stores a vector of tiles of an output channel, which lie in `rows` as the upper and the lower pixels side by side.
    #[inline(always)]
    unsafe fn store_tiles<V: Simd<Elem = T>>(&self, image: usize, channel: usize, first: usize, rows: *const T) {
        let (g, finish) = (self.gather, self.finish);
        let ((h, w), width) = (g.out_plane, g.out.1);
        let tiles = V::LANES.min(self.rows.len() * width - first);
        let channel = self.group * g.out_channels + channel;
        let plane = ((self.images.start + image) * g.groups * g.out_channels + channel) * h * w;
        // SAFETY: the pixels are cut at the plane's edges; `finish` has been checked.
        unsafe {
            let bias = finish.bias.map(|bias| V::splat(*bias.get_unchecked(channel)));
            let mut done = 0;
            while done < tiles {
                let (ty, tx) = (self.rows.start + (first + done) / width, (first + done) % width);
                let run = (width - tx).min(tiles - done);
                let pixels = (2 * run).min(w - 2 * tx);
                for line in 0..2.min(h - 2 * ty) {
                    let place = plane + (2 * ty + line) * w + 2 * tx;
                    let from = rows.add(2 * line * V::LANES + 2 * done);
                    for x in (0..pixels).step_by(V::LANES) {
                        let count = V::LANES.min(pixels - x);
                        let mut y = V::load_first(from.add(x), count);
                        if let Some(bias) = bias {
                            y = y.add(bias);
                        }
                        if let Some(skip) = finish.skip {
                            y = y.add(V::load_first(skip.as_ptr().add(place + x), count));
                        }
                        finish.clamp.apply(y).store_first(self.out.at(place + x), count);
                    }
                }
                done += run;
            }
        }
    }

    /// Where the input plane starts.
    fn plane(&self, image: usize, channel: usize) -> usize {
        let g = self.gather;
        ((image * g.groups + self.group) * g.channels + channel) * g.plane.0 * g.plane.1
    }

    /// Copies one channel of one image: each horizontal tap's shifted rows.
    #[inline(always)]
    unsafe fn pack<V: Simd<Elem = T>>(&self, slot: usize, image: usize, channel: usize) {
        let (g, cut) = (self.gather, self.cut);
        let start = self.plane(image, channel);
        let width = g.out.1;
        if let Some(pitch) = cut.pitch {
            // SAFETY: the same.
            return unsafe { self.pack_once::<V>(start, pitch, slot * cut.image + channel * cut.channel) };
        }
        // SAFETY: the scratch holds `cut.images` images of `cut.image` elements and four vectors more; the source is read
        // inside the input alone, which every branch checks for itself.
        unsafe {
            let mut to = self.scratch.add(slot * cut.image + channel * cut.channel);
            for &col in &g.cols {
                let reach = valid_outputs(width, g.plane.1, g.stride.1, col);
                for remainder in 0..g.stride.0 {
                    let first = (self.rows.start * g.stride.0 + remainder) as isize + cut.first_row;
                    let rows = cut.remainder_rows[remainder];
                    if g.stride == (1, 1) && width == g.plane.1 {
                        self.pack_block::<V>(start, first, rows, col, &reach, to);
                    } else {
                        for step in 0..rows {
                            let row = first + (step * g.stride.0) as isize;
                            self.pack_row::<V>(start, row, col, &reach, to.add(step * width));
                        }
                    }
                    to = to.add(rows * width);
                }
            }
        }
    }

    /// Copies a channel's rows, `pitch` apart, with zeros before, between and behind them.
    #[inline(always)]
    unsafe fn pack_once<V: Simd<Elem = T>>(&self, start: usize, pitch: usize, to: usize) {
        let (h, w) = self.gather.plane;
        let first = self.rows.start as isize + self.cut.first_row;
        // SAFETY: a channel has room for `LINE` elements and its rows of `pitch`; w and `LINE` are whole vectors.
        unsafe {
            let zeros = |to: *mut T, count: usize| {
                for i in (0..count).step_by(V::LANES) {
                    V::zero().store(to.add(i));
                }
            };
            let mut to = self.scratch.add(to);
            zeros(to, LINE);
            to = to.add(LINE);
            for step in 0..self.cut.remainder_rows[0] {
                let row = first + step as isize;
                if row < 0 || row >= h as isize {
                    zeros(to, pitch);
                } else {
                    let from = self.input[start + row as usize * w..][..w].as_ptr();
                    for x in (0..w).step_by(V::LANES) {
                        V::load(from.add(x)).store(to.add(x));
                    }
                    zeros(to.add(w), LINE);
                }
                to = to.add(pitch);
            }
        }
    }

    /// Rows as wide as the input's, one behind the other there as here: one run of memory, and zeros where the shift has
    /// brought the neighbouring row's pixels.
    #[inline(always)]
    unsafe fn pack_block<V: Simd<Elem = T>>(
        &self,
        start: usize,
        first: isize,
        rows: usize,
        col: isize,
        reach: &Range<usize>,
        to: *mut T,
    ) {
        let (h, w) = self.gather.plane;
        let above = (-first).clamp(0, rows as isize) as usize;
        let end = (h as isize - first).clamp(above as isize, rows as isize) as usize;
        // SAFETY: as in `pack`; whole vectors are written in the order of their addresses, so what runs over the end is
        // overwritten by what comes next, or lies in the slack.
        unsafe {
            let zeros = |from: usize, until: usize| {
                for i in (from * w..until * w).step_by(V::LANES) {
                    V::zero().store(to.add(i));
                }
            };
            zeros(0, above);
            let from = start as isize + (first + above as isize) * w as isize + col;
            let count = (end - above) * w;
            if from >= 0 && from as usize + count.next_multiple_of(V::LANES) <= self.input.len() {
                let from = self.input.as_ptr().add(from as usize);
                let to = to.add(above * w);
                for i in (0..count).step_by(V::LANES) {
                    V::load(from.add(i)).store(to.add(i));
                }
                for row in 0..end - above {
                    for x in 0..reach.start {
                        *to.add(row * w + x) = T::zero();
                    }
                    for x in reach.end..w {
                        *to.add(row * w + x) = T::zero();
                    }
                }
            } else {
                for row in above..end {
                    self.pack_row::<V>(start, first + row as isize, col, reach, to.add(row * w));
                }
            }
            zeros(end, rows);
        }
    }

    #[inline(always)]
    unsafe fn pack_row<V: Simd<Elem = T>>(
        &self,
        start: usize,
        row: isize,
        col: isize,
        reach: &Range<usize>,
        to: *mut T,
    ) {
        let (stride, width, (h, w)) = (self.gather.stride.1, self.gather.out.1, self.gather.plane);
        // SAFETY: as in `pack_block`.
        unsafe {
            if row < 0 || row >= h as isize || reach.is_empty() {
                for x in (0..width).step_by(V::LANES) {
                    V::zero().store(to.add(x));
                }
                return;
            }
            let from = (start + row as usize * w) as isize + col;
            let vectors = stride * width.next_multiple_of(V::LANES);
            if stride <= 2 && from >= 0 && from as usize + vectors <= self.input.len() {
                let from = self.input.as_ptr().add(from as usize);
                for x in (0..width).step_by(V::LANES) {
                    if stride == 1 {
                        V::load(from.add(x)).store(to.add(x));
                    } else {
                        let (a, b) = (V::load(from.add(2 * x)), V::load(from.add(2 * x + V::LANES)));
                        a.deinterleave(b).0.store(to.add(x));
                    }
                }
            } else {
                for x in reach.clone() {
                    *to.add(x) = *self.input.get_unchecked((from + (x * stride) as isize) as usize);
                }
            }
            for x in (0..reach.start).chain(reach.end..width) {
                *to.add(x) = T::zero();
            }
        }
    }

    /// Unfolds small planes: factor by factor, the pixels of all images side by side.
    unsafe fn unfold(&self) {
        let (g, cut) = (self.gather, self.cut);
        let pixels = g.out.0 * g.out.1;
        // The input pixel of each tap and output pixel.
        let mut sources: Vec<Option<usize>> = Vec::with_capacity(g.taps() * pixels);
        for (&row, &col) in g.rows.iter().flat_map(|row| g.cols.iter().map(move |col| (row, col))) {
            for (y, x) in (0..g.out.0).flat_map(|y| (0..g.out.1).map(move |x| (y, x))) {
                let (y, x) = ((y * g.stride.0) as isize + row, (x * g.stride.1) as isize + col);
                let is_inside = y >= 0 && x >= 0 && (y as usize) < g.plane.0 && (x as usize) < g.plane.1;
                sources.push(is_inside.then(|| y as usize * g.plane.1 + x as usize));
            }
        }
        for channel in 0..g.channels {
            for tap in 0..g.taps() {
                let sources = &sources[tap * pixels..][..pixels];
                // SAFETY: factor k has its row of images · pixels elements, rounded up, in the scratch.
                let row = unsafe { self.scratch.add(cut.offsets[channel * g.taps() + tap] as usize) };
                for (slot, image) in self.images.clone().enumerate() {
                    let plane = &self.input[self.plane(image, channel)..][..g.plane.0 * g.plane.1];
                    for (pixel, source) in sources.iter().enumerate() {
                        let value = source.map_or(T::zero(), |source| plane[source]);
                        // SAFETY: as above.
                        unsafe { *row.add(slot * pixels + pixel) = value };
                    }
                }
            }
        }
    }

    /// Vectors of output pixels: (packed image, first pixel, pixels).
    fn vectors(&self, lanes: usize) -> (usize, usize, usize) {
        let (images, pixels) = if self.cut.unfolded {
            (1, self.images.len() * self.gather.out.0 * self.gather.out.1)
        } else {
            (self.images.len(), self.rows.len() * self.gather.out.1)
        };
        (images, pixels, pixels.div_ceil(lanes))
    }

    #[inline(always)]
    unsafe fn multiply<V: Simd<Elem = T>, const M: usize>(&self) {
        let (images, _, per_image) = self.vectors(V::LANES);
        let vectors = images * per_image;
        debug_assert!(vectors <= self.cut.places.len());
        let weights_bytes = self.blocks.len() * M * self.weights.depth * size_of::<T>();
        // The next task's input comes from memory while this one multiplies: a share of it with each pair of vectors.
        let ahead = self.ahead();
        let lines = size_of_val(ahead).div_ceil(64);
        let share = lines.div_ceil(self.blocks.len() * vectors.div_ceil(2));
        let mut done = 0;
        let mut fetch = || {
            for line in done..(done + share).min(lines) {
                prefetch(ahead.as_ptr().wrapping_byte_add(64 * line));
            }
            done += share;
        };
        // SAFETY: each pair (block, vectors) writes outputs of its own.
        unsafe {
            if weights_bytes <= 128 << 10 {
                // The weights stay in the cache: run over them for each pair of vectors.
                for v in (0..vectors).step_by(2) {
                    for block in self.blocks.clone() {
                        fetch();
                        self.pair::<V, M>(block, v, vectors);
                    }
                }
            } else {
                for block in self.blocks.clone() {
                    for v in (0..vectors).step_by(2) {
                        fetch();
                        self.pair::<V, M>(block, v, vectors);
                    }
                }
            }
        }
    }

    /// Input of the images behind this task's, as many; nothing where a task takes less than whole images.
    fn ahead(&self) -> &[T] {
        let g = self.gather;
        if self.rows.len() < g.out.0 || g.groups > 1 {
            return &[];
        }
        let image = g.channels * g.plane.0 * g.plane.1;
        let end = self.images.end * image;
        &self.input[end..(end + self.images.len() * image).min(self.input.len())]
    }

    #[inline(always)]
    unsafe fn pair<V: Simd<Elem = T>, const M: usize>(&self, block: usize, v: usize, vectors: usize) {
        let a = self.weights.block_of(self.group, block).as_ptr();
        let offsets = self.cut.offsets.as_ptr();
        let depth = self.weights.depth;
        // SAFETY: the packed input holds every factor's pixels, rounded up to vectors; `block_of` is one whole block, and there
        // is a place for every vector.
        unsafe {
            let from = |v: usize| self.scratch.add(self.cut.places.get_unchecked(v).from).cast_const();
            if self.is_direct() {
                for v in v..vectors.min(v + 2) {
                    let (to, step) = self.place(block * M, v);
                    (0..M).for_each(|i| prefetch_to_write(self.out.at(0).wrapping_add(to + i * step)));
                }
            }
            if v + 1 < vectors {
                let sums = tile::<V, M, 2>(depth, a, M, [from(v), from(v + 1)], offsets);
                self.store::<V, M, 2>(block, v, sums);
            } else {
                let sums = tile::<V, M, 1>(depth, a, M, [from(v)], offsets);
                self.store::<V, M, 1>(block, v, sums);
            }
        }
    }

    /// Where a vector of an output channel's pixels is written to, and how far behind it the next channel's.
    #[inline(always)]
    unsafe fn place(&self, channel: usize, v: usize) -> (usize, usize) {
        let g = self.gather;
        let plane = g.out.0 * g.out.1;
        let channel = (self.images.start * g.groups + self.group) * g.out_channels + channel;
        // SAFETY: the caller's v has a place.
        let within = unsafe { self.cut.places.get_unchecked(v).to };
        (channel * plane + self.rows.start * g.out.1 + within, plane)
    }

    /// Adds the bias and stores N vectors of pixels of the rows of a block.
    #[inline(always)]
    unsafe fn store<V: Simd<Elem = T>, const M: usize, const N: usize>(
        &self,
        block: usize,
        v: usize,
        sums: [[V; N]; M],
    ) {
        let (g, first) = (self.gather, block * M);
        let (_, pixels, _) = self.vectors(V::LANES);
        let rows = M.min(g.out_channels - first);
        // SAFETY: the rows stop at the group's channels, the lanes at the pixels of the band; each v has a place.
        unsafe {
            let places: [&Place; N] = std::array::from_fn(|j| self.cut.places.get_unchecked(v + j));
            let bias = self.finish.bias.map(|bias| bias.as_ptr().add(self.group * g.out_channels + first));
            let finished = |i: usize, sum: V| match bias {
                Some(bias) if i < rows => sum.add(V::splat(*bias.add(i))),
                _ => sum,
            };
            if !self.is_direct() {
                let step = pixels.next_multiple_of(LINE);
                for (j, place) in places.into_iter().enumerate() {
                    let row = place.image * self.blocks.len() * M + (first - self.blocks.start * M);
                    let to = self.staged.add(row * step + place.pixel);
                    let count = V::LANES.min(pixels - place.pixel);
                    for (i, sums) in sums.iter().enumerate() {
                        if i < rows {
                            finished(i, sums[j]).store_first(to.add(i * step), count);
                        }
                    }
                }
                return;
            }
            let is_plain = self.finish.skip.is_none() && self.finish.clamp == Clamp::None;
            for (j, place) in places.into_iter().enumerate() {
                let (at, step) = self.place(first, v + j);
                let to = self.out.at(at);
                let count = V::LANES.min(pixels - place.pixel);
                if is_plain && count == V::LANES && rows == M {
                    for (i, sums) in sums.iter().enumerate() {
                        finished(i, sums[j]).store(to.add(i * step));
                    }
                    continue;
                }
                for (i, sums) in sums.iter().enumerate() {
                    if i < rows {
                        let mut sum = finished(i, sums[j]);
                        if let Some(skip) = self.finish.skip {
                            sum = sum.add(V::load_first(skip.as_ptr().add(at + i * step), count));
                        }
                        self.finish.clamp.apply(sum).store_first(to.add(i * step), count);
                    }
                }
            }
        }
    }

    /// Mean and squares of the planes that the task has just written.
    #[inline(always)]
    unsafe fn note_stats<V: Simd<Elem = T>>(&self, stats: Shared<[f64; 2]>) {
        let g = self.gather;
        let pixels = g.out.0 * g.out.1;
        let channels = self.blocks.start * self.weights.block..g.out_channels.min(self.blocks.end * self.weights.block);
        for image in self.images.clone() {
            for channel in channels.clone() {
                let channel = self.group * g.out_channels + channel;
                let plane = (image * g.groups * g.out_channels + channel) * pixels;
                // SAFETY: below `dispatch`; the plane was written whole, by this task, and has its place.
                unsafe {
                    *stats.at(channel * g.images + image) = batch_norm::plane_stats::<V>(self.out.at(plane), pixels);
                }
            }
        }
    }

    /// Takes staged outputs to their places.
    unsafe fn scatter(&self) {
        let g = self.gather;
        let (_, pixels, _) = self.vectors(1);
        let step = pixels.next_multiple_of(LINE);
        let plane = g.out_plane.0 * g.out_plane.1;
        let first = self.blocks.start * self.weights.block;
        let channels = first..g.out_channels.min(self.blocks.end * self.weights.block);
        let staged_rows = self.blocks.len() * self.weights.block;
        for (slot, image) in self.images.clone().enumerate() {
            for channel in channels.clone() {
                let row = if self.cut.unfolded { channel - first } else { slot * staged_rows + channel - first };
                let left_out = if self.cut.unfolded { slot * g.out.0 * g.out.1 } else { 0 };
                let to = ((image * g.groups + self.group) * g.out_channels + channel) * plane;
                for (i, y) in self.rows.clone().enumerate() {
                    let line = to + (g.out_start.0 + y * g.out_stride.0) * g.out_plane.1 + g.out_start.1;
                    if self.finish.skip.is_none() && self.finish.clamp == Clamp::None {
                        let from = row * step + left_out + i * g.out.1;
                        for x in 0..g.out.1 {
                            // SAFETY: as below.
                            unsafe { *self.out.at(line + x * g.out_stride.1) = *self.staged.add(from + x) };
                        }
                        continue;
                    }
                    for x in 0..g.out.1 {
                        let place = line + x * g.out_stride.1;
                        // SAFETY: `staged` holds the band's outputs.
                        let mut value = unsafe { *self.staged.add(row * step + left_out + i * g.out.1 + x) };
                        if let Some(skip) = self.finish.skip {
                            value += skip[place];
                        }
                        // SAFETY: the output plane has these pixels.
                        unsafe { *self.out.at(place) = self.finish.clamp.apply_to(value) };
                    }
                }
            }
        }
    }
}

/// A matrix for each group, packed in blocks of rows: `[group][block][k][row of the block]`, zeros behind the last row.
struct PackedRows<T> {
    data: Vec<T>,
    rows: usize,
    depth: usize,
    block: usize,
    blocks: usize,
    shape: TileShape,
}

impl<T: Real> PackedRows<T> {
    /// Factor `channel · taps + tap` of row r of a group is element `start + r · step` of `weight`, with
    /// `(start, step) = place(group, channel, tap)`; `scale`, if given, has a factor for each row of each group.
    fn new(
        weight: &[T],
        (groups, rows, channels, taps): (usize, usize, usize, usize),
        place: impl Fn(usize, usize, usize) -> (usize, usize) + Sync,
        scale: Option<&[T]>,
    ) -> Self {
        let shape = TileShape::now::<T>();
        let (block, depth) = (shape.rows, channels * taps);
        let blocks = rows.div_ceil(block);
        let mut data = vec![T::zero(); groups * blocks * block * depth];
        if depth > 0 {
            data.par_chunks_exact_mut(block * depth).enumerate().for_each(|(i, data)| {
                let (group, first) = (i / blocks, i % blocks * block);
                let count = block.min(rows - first);
                let factors = (0..channels).flat_map(|channel| (0..taps).map(move |tap| (channel, tap)));
                for (to, (channel, tap)) in data.chunks_exact_mut(block).zip(factors) {
                    let (start, step) = place(group, channel, tap);
                    for (r, to) in to.iter_mut().take(count).enumerate() {
                        *to = weight[start + (first + r) * step];
                    }
                }
                if let Some(scale) = scale {
                    let scale = &scale[group * rows + first..][..count];
                    data.chunks_exact_mut(block).for_each(|to| to.iter_mut().zip(scale).for_each(|(w, &s)| *w *= s));
                }
            });
        }
        Self { data, rows, depth, block, blocks, shape }
    }

    fn block_of(&self, group: usize, block: usize) -> &[T] {
        let size = self.block * self.depth;
        &self.data[(group * self.blocks + block) * size..][..size]
    }
}

/// Output channels of one task of the weight gradient.
const CHUNK: usize = 64;

/// Pixels that the inner loops take at a time: their operands fit into the first-level cache.
const PIXELS: usize = 256;

/// Tasks of the weight gradient at the least, if the images suffice. A constant, so that the sum's order is one.
const TASKS: usize = 16;

pub(crate) fn weight_grad<T: Real>(g: &Geometry, xs: &[T], grad: &[T]) -> Vec<T> {
    if g.is_depthwise() {
        return depthwise::weight_grad(g, xs, grad);
    }
    assert_eq!((xs.len(), grad.len()), (g.b * g.input_image(), g.b * g.output_image()));
    if small_planes::suits(g) {
        return small_planes::weight_grad(g, xs, grad);
    }
    let shape = TileShape::now::<T>();
    let walk = PixelSum::new::<T>(g, shape);
    let chunks = g.group_out().div_ceil(CHUNK);
    let parts = TASKS.div_ceil(chunks * g.params.groups).clamp(1, g.b);
    let images = g.b.div_ceil(parts);
    let parts = g.b.div_ceil(images);
    let partial: Vec<Vec<T>> = (0..parts * g.params.groups * chunks)
        .into_par_iter()
        .map(|task| {
            let (part, rest) = (task / (g.params.groups * chunks), task % (g.params.groups * chunks));
            let (group, chunk) = (rest / chunks, rest % chunks);
            let channels = chunk * CHUNK..g.group_out().min((chunk + 1) * CHUNK);
            let images = part * images..g.b.min((part + 1) * images);
            let mut sums = vec![T::zero(); channels.len().next_multiple_of(shape.lanes) * walk.row];
            let input = walk.input_elements(shape.lanes);
            let outputs = channels.len().next_multiple_of(shape.lanes) * walk.offsets.len();
            with_scratch(input + outputs, |scratch: *mut T| {
                // SAFETY: the scratch holds the packed gradient behind the packed input.
                let outputs = unsafe { scratch.add(input) };
                let sums = &mut sums;
                dispatch_at(
                    shape.level,
                    PixelTask { g, walk: &walk, xs, grad, group, channels, images, input: scratch, outputs, sums },
                );
            });
            sums
        })
        .collect();
    let taps = g.kh * g.kw;
    let mut dw = vec![T::zero(); g.c_out * g.depth()];
    dw.par_chunks_exact_mut(g.depth()).enumerate().for_each(|(o, dw)| {
        let (group, channel) = (o / g.group_out(), o % g.group_out());
        for part in 0..parts {
            let sums = &partial[(part * g.params.groups + group) * chunks + channel / CHUNK];
            let row = &sums[channel % CHUNK * walk.row..][..walk.row];
            for tap in 0..taps {
                let (run, within) = (tap / walk.merged, tap % walk.merged);
                let from = &row[run * walk.run_padded + within * g.group_in()..][..g.group_in()];
                dw[tap..].iter_mut().step_by(taps).zip(from).for_each(|(dw, &sum)| *dw += sum);
            }
        }
    });
    dw
}

/// How the weight gradient walks over the pixels of some images at a time.
struct PixelSum {
    /// Images, or rows of one image, that are packed at a time.
    images: usize,
    rows: usize,
    /// Packed rows and columns of an input image, pixels with all channels of a group.
    packed: (usize, usize),
    /// Elements from a packed pixel to the next.
    pitch: usize,
    /// Horizontal taps whose inputs are consecutive, taken together where one tap's channels fill no pair of vectors.
    merged: usize,
    /// Start of each run of `merged` taps behind an output pixel's first input.
    runs: Vec<usize>,
    /// Elements of a run in the sums, whole vectors.
    run_padded: usize,
    /// Elements of an output channel in the sums.
    row: usize,
    /// Where the first input of each packed output pixel starts.
    offsets: Vec<u32>,
}

impl PixelSum {
    fn new<T: Real>(g: &Geometry, shape: TileShape) -> Self {
        let (p, channels) = (g.params, g.group_in());
        let fills = channels.is_multiple_of(2 * shape.lanes);
        let pitch = if fills { odd_lines(channels) } else { channels };
        let merged = if p.dilation.1 == 1 && !fills { g.kw } else { 1 };
        let width = (g.ow - 1) * p.stride.1 + (g.kw - 1) * p.dilation.1 + 1;
        let height = |rows: usize| (rows - 1) * p.stride.0 + (g.kh - 1) * p.dilation.0 + 1;
        let budget = BUNCH / size_of::<T>();
        let whole = height(g.oh) * width * pitch;
        let (images, rows) = if whole <= budget {
            ((budget / whole).clamp(1, (4 * PIXELS).div_ceil(g.output_plane())), g.oh)
        } else {
            let rows = (1..=g.oh).rev().find(|&rows| height(rows) * width * pitch <= budget);
            (1, rows.unwrap_or(1))
        };
        let packed = (height(rows), width);
        let runs = (0..g.kh * g.kw / merged)
            .map(|run| {
                let (ky, kx) = (run * merged / g.kw, run * merged % g.kw);
                (ky * p.dilation.0 * width + kx * p.dilation.1) * pitch
            })
            .collect::<Vec<_>>();
        let run_padded = (merged * channels).next_multiple_of(shape.lanes);
        let mut offsets = Vec::with_capacity(images * rows * g.ow);
        for image in 0..images {
            for (y, x) in (0..rows).flat_map(|y| (0..g.ow).map(move |x| (y, x))) {
                let pixel = (image * packed.0 + y * p.stride.0) * width + x * p.stride.1;
                offsets.push((pixel * pitch) as u32);
            }
        }
        Self { images, rows, packed, pitch, merged, row: runs.len() * run_padded, runs, run_padded, offsets }
    }

    /// Elements of the packed input; vectors may run over its end.
    fn input_elements(&self, lanes: usize) -> usize {
        (self.images * self.packed.0 * self.packed.1 * self.pitch + 2 * lanes).next_multiple_of(LINE)
    }
}

/// A task of the weight gradient: some images and some output channels of one group.
struct PixelTask<'a, T> {
    g: &'a Geometry,
    walk: &'a PixelSum,
    xs: &'a [T],
    grad: &'a [T],
    group: usize,
    channels: Range<usize>,
    images: Range<usize>,
    /// Packed input (image, row, column, channel).
    input: *mut T,
    /// Packed gradient: blocks of LANES channels, (block, pixel, channel of the block).
    outputs: *mut T,
    /// (output channel, run, channel of the run)
    sums: &'a mut [T],
}

impl<T: Real> Kernel<T> for PixelTask<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let (g, walk) = (self.g, self.walk);
        let mut this = self;
        let images = this.images.clone();
        for first in images.clone().step_by(walk.images) {
            let bunch = first..images.end.min(first + walk.images);
            for top in (0..g.oh).step_by(walk.rows) {
                let rows = top..g.oh.min(top + walk.rows);
                // SAFETY: below `dispatch`; `weight_grad` has checked the lengths and made the scratch large enough for
                // `walk.images` images of `walk.rows` output rows.
                unsafe {
                    for (slot, image) in bunch.clone().enumerate() {
                        this.pack_input::<V>(slot, image, top);
                        this.pack_outputs::<V>(slot, image, &rows, bunch.len());
                    }
                    let pixels = bunch.len() * rows.len() * g.ow;
                    match V::ROWS {
                        8 => this.multiply::<V, 8>(pixels),
                        _ => this.multiply::<V, 4>(pixels),
                    }
                }
            }
        }
    }
}

impl<T: Real> PixelTask<'_, T> {
    /// Lays the rows of an image that the outputs from row `top` on need behind each other, channels innermost.
    #[inline(always)]
    unsafe fn pack_input<V: Simd<Elem = T>>(&self, slot: usize, image: usize, top: usize) {
        let (g, channels) = (self.g, self.g.group_in());
        let ((height, width), pitch) = (self.walk.packed, self.walk.pitch);
        let padding = g.params.padding;
        let plane = g.input_plane();
        let first = (top * g.params.stride.0) as isize - padding.0 as isize;
        let xs = &self.xs[(image * g.c_in + self.group * channels) * plane..][..channels * plane];
        let valid = padding.1.min(width)..(padding.1 + g.w).min(width);
        let rows = (-first).max(0) as usize..((g.h as isize - first).max(0) as usize).min(height);
        // SAFETY: the packed image is `height · width · channels` elements, its rows and columns bounded above; the planes are
        // `xs`, read in whole vectors only where they hold them.
        unsafe {
            let to = self.input.add(slot * height * width * pitch);
            for row in 0..height {
                let line = to.add(row * width * pitch);
                if rows.contains(&row) {
                    std::ptr::write_bytes(line, 0, valid.start * pitch);
                    std::ptr::write_bytes(line.add(valid.end * pitch), 0, (width - valid.end) * pitch);
                } else {
                    std::ptr::write_bytes(line, 0, width * pitch);
                }
            }
            if rows.is_empty() || valid.is_empty() {
                return;
            }
            // Pixels of the plane that are wanted, as one run; some of its columns may not be.
            let from = (rows.start as isize + first) as usize * g.w;
            let pixels = rows.len() * g.w;
            let place = |pixel: usize| {
                let (row, col) = (rows.start + pixel / g.w, padding.1 + pixel % g.w);
                (col < width).then(|| (row * width + col) * pitch)
            };
            if channels < V::LANES || pixels < V::LANES {
                for channel in 0..channels {
                    for pixel in 0..pixels {
                        if let Some(place) = place(pixel) {
                            *to.add(place + channel) = *xs.get_unchecked(channel * plane + from + pixel);
                        }
                    }
                }
                return;
            }
            let mut block = [T::zero(); 256];
            let mut pixel = 0;
            loop {
                // The last blocks overlap those before them.
                let start = pixel.min(pixels - V::LANES);
                let mut channel = 0;
                loop {
                    let c = channel.min(channels - V::LANES);
                    V::transpose(xs.as_ptr().add(c * plane + from + start), plane, block.as_mut_ptr(), V::LANES);
                    let (mut row, mut col) = (rows.start + start / g.w, padding.1 + start % g.w);
                    for i in 0..V::LANES {
                        if col < width {
                            V::load(block.as_ptr().add(i * V::LANES)).store(to.add((row * width + col) * pitch + c));
                        }
                        col += 1;
                        if col == padding.1 + g.w {
                            (row, col) = (row + 1, padding.1);
                        }
                    }
                    channel += V::LANES;
                    if channel >= channels {
                        break;
                    }
                }
                pixel += V::LANES;
                if pixel >= pixels {
                    break;
                }
            }
        }
    }

    /// Lays the gradient of some output rows down in blocks of LANES channels, channels innermost.
    #[inline(always)]
    unsafe fn pack_outputs<V: Simd<Elem = T>>(&self, slot: usize, image: usize, rows: &Range<usize>, images: usize) {
        let g = self.g;
        let plane = g.output_plane();
        let pixels = rows.len() * g.ow;
        let all = images * pixels;
        let first = (image * g.c_out + self.group * g.group_out() + self.channels.start) * plane + rows.start * g.ow;
        // SAFETY: block `b` of the packed gradient starts at b · LANES · all; channels and pixels stay inside the gradient, whole
        // vectors too.
        unsafe {
            let from = self.grad.as_ptr().add(first);
            for block in 0..self.channels.len().div_ceil(V::LANES) {
                let channels = V::LANES.min(self.channels.len() - block * V::LANES);
                let from = from.add(block * V::LANES * plane);
                let to = self.outputs.add((block * all + slot * pixels) * V::LANES);
                if channels == V::LANES && pixels >= V::LANES {
                    let mut pixel = 0;
                    while pixel < pixels {
                        let start = pixel.min(pixels - V::LANES);
                        V::transpose(from.add(start), plane, to.add(start * V::LANES), V::LANES);
                        pixel += V::LANES;
                    }
                } else {
                    for pixel in 0..pixels {
                        for channel in 0..V::LANES {
                            let value = if channel < channels { *from.add(channel * plane + pixel) } else { T::zero() };
                            *to.add(pixel * V::LANES + channel) = value;
                        }
                    }
                }
            }
        }
    }

    /// Adds the packed pixels' products to the sums.
    #[inline(always)]
    unsafe fn multiply<V: Simd<Elem = T>, const M: usize>(&mut self, pixels: usize) {
        let walk = self.walk;
        let blocks = self.channels.len().div_ceil(M);
        // SAFETY: the sums have a row for each channel, rounded up to LANES ≥ M, of `runs · run_padded` elements; packed
        // pixels and channels are as `pack_input` and `pack_outputs` have laid them.
        unsafe {
            for start in (0..pixels).step_by(PIXELS) {
                let depth = PIXELS.min(pixels - start);
                let offsets = walk.offsets.as_ptr().add(start);
                for (run, &run_start) in walk.runs.iter().enumerate() {
                    let mut column = 0;
                    while column < walk.run_padded {
                        let vectors = match (walk.run_padded - column) / V::LANES {
                            odd @ (1 | 3) => odd,
                            _ => 2,
                        };
                        let b = self.input.add(run_start + column).cast_const();
                        for block in 0..blocks {
                            let (outer, inner) = (block * M / V::LANES, block * M % V::LANES);
                            let a = self.outputs.add((outer * pixels + start) * V::LANES + inner).cast_const();
                            let to = self.sums.as_mut_ptr().add(block * M * walk.row + run * walk.run_padded + column);
                            match vectors {
                                3 => add_tile::<V, M, 3>(depth, a, b, offsets, (to, walk.row)),
                                2 => add_tile::<V, M, 2>(depth, a, b, offsets, (to, walk.row)),
                                _ => add_tile::<V, M, 1>(depth, a, b, offsets, (to, walk.row)),
                            }
                        }
                        column += vectors * V::LANES;
                    }
                }
            }
        }
    }
}

/// Adds a [`tile`] of N neighbouring vectors to sums whose rows are `step` apart.
///
/// # Safety
/// As `tile`'s, with M packed rows side by side; the sums hold M rows of N vectors.
#[inline(always)]
unsafe fn add_tile<V: Simd, const M: usize, const N: usize>(
    depth: usize,
    a: *const V::Elem,
    b: *const V::Elem,
    offsets: *const u32,
    (sums, step): (*mut V::Elem, usize),
) {
    // SAFETY: the caller's.
    unsafe {
        let tile = tile::<V, M, N>(depth, a, V::LANES, std::array::from_fn(|j| b.add(j * V::LANES)), offsets);
        for (i, row) in tile.into_iter().enumerate() {
            for (j, sum) in row.into_iter().enumerate() {
                let to = sums.add(i * step + j * V::LANES);
                V::load(to).add(sum).store(to);
            }
        }
    }
}

pub(crate) fn bias_grad<T: Real>(g: &Geometry, grad: &[T]) -> Vec<T> {
    let plane = g.output_plane();
    (0..g.c_out)
        .into_par_iter()
        .map(|c| {
            let planes = (0..g.b).map(|n| &grad[(n * g.c_out + c) * plane..][..plane]);
            planes.fold(T::zero(), |total, plane| total + sum(plane))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole planes in one task, bands of large ones, planes that are unfolded, groups, strides: the statistics made on the way are those
    /// of the outputs, bit by bit.
    #[test]
    fn statistics_on_the_way_are_the_outputs() -> Result<(), String> {
        // b, input channels, side, output channels, kernel, stride, padding, groups
        let cases = [
            [8, 16, 32, 16, 3, 1, 1, 1],
            [8, 6, 16, 20, 3, 1, 1, 2],
            [8, 16, 32, 24, 3, 2, 1, 1],
            [8, 5, 15, 7, 1, 1, 0, 1],
            [1, 300, 64, 9, 5, 1, 2, 1],
            [9, 4, 3, 8, 3, 1, 1, 1],
            [8, 12, 9, 12, 3, 1, 1, 12],
        ];
        let mut made = 0;
        for case @ [b, c_in, side, c_out, k, stride, padding, groups] in cases {
            let values = |n: usize| (0..n).map(|i| ((i * 37 + i / 7) % 101) as f32 / 50.0 - 1.0).collect::<Vec<_>>();
            let (xs, w) = (values(b * c_in * side * side), values(c_out * c_in / groups * k * k));
            let params = Conv2dParams {
                stride: (stride, stride),
                padding: (padding, padding),
                groups,
                ..Conv2dParams::default()
            };
            let g = Geometry::new(&[b, c_in, side, side], &[c_out, c_in / groups, k, k], params)?;
            let bias = values(c_out);
            let mut planes = vec![[0.0; 2]; b * c_out];
            let finish = Finish { stats: Some(Shared::new(&mut planes)), ..Finish::bias(Some(&bias)) };
            made += usize::from(forward_noting(&g, &xs, &w, &finish).1);
            let (ys, stats) = forward_with_stats(&g, &xs, &w, Some(&bias));
            assert_eq!(ys, forward(&g, &xs, &w, &Finish::bias(Some(&bias))), "{case:?}");
            assert_eq!(stats, batch_norm::stats((b, c_out, g.output_plane()), &ys), "{case:?}");
        }
        assert!((3..cases.len()).contains(&made), "{made} of {} made them on the way", cases.len());
        Ok(())
    }
}

//! The gradient of a convolution's weights in mixed precision: f32 sums of bfloat16 products over all pixels.
//!
//! dw\[o, i, tap\] = Σ over outputs q of dy\[q, o\] · x\[q + tap, i\]
//!
//! A product's left rows are input channels, its steps run over pixels. So a task turns its pixels: those of x to rows of
//! one channel each, those of dy to the packed columns of `tiles.rs`, pairs of pixels side by side. Where windows do not
//! jump, x lies in a frame of zeros as in `frame.rs`, and a tap is a distance along its rows; else each tap has rows of its
//! own.

use super::sizes::{NOWHERE, Tap, period, window};
use super::tiles::{BLOCK, Block, DEPTH, Product, SIDE, Tiles};
use crate::kernels::buffer::{Shared, with_scratch};
use crate::kernels::conv::Geometry;
use crate::kernels::simd::{Kernel, Level, Simd, dispatch_at};
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// Bytes of a task's turned pixels: they stay in the second-level cache.
const ROOM: usize = 640 << 10;
/// Pairs of a tap and 16 input channels of one task, at the most: their sums are written once for every chunk.
const ROWS_OF_TILES: usize = 36;
/// Tasks that a gradient is cut into at least, and at the most, if there are pixels enough: its sums depend on it. Each part
/// of the pixels has sums of its own, which should stay small.
const TASKS: (usize, usize) = (8, 32);
/// Bytes of the sums of all parts.
const SUMS: usize = 4 << 20;
/// A frame is worth it while this part of it are outputs.
const LEAST_SHARE: f64 = 0.6;

/// dw, in the order of the weights, of dy and x.
pub(crate) fn weight_grad(g: &Geometry, x: &[bf16], grad: &[bf16]) -> Vec<f32> {
    assert_eq!((x.len(), grad.len()), (g.b * g.input_image(), g.b * g.output_image()));
    let (each, outputs, taps) = (g.group_in(), g.group_out(), g.kh * g.kw);
    let mut all = vec![0f32; g.c_out * each * taps];
    let level = Level::current();
    for (group, all) in all.chunks_exact_mut(outputs * each * taps).enumerate() {
        let turn = Turn::new(g, group);
        let (tiles, blocks) = (each.div_ceil(SIDE), outputs.div_ceil(SIDE));
        let together = (ROWS_OF_TILES / taps).clamp(1, tiles);
        let groups: Vec<Range<usize>> =
            (0..tiles).step_by(together).map(|first| first..(first + together).min(tiles)).collect();
        let chunks = turn.chunks(together * SIDE);
        let tasks = (SUMS / (outputs * each * taps * size_of::<f32>())).clamp(TASKS.0, TASKS.1);
        let each_part = chunks.len().div_ceil(tasks.div_ceil(groups.len()));
        let parts: Vec<&[Chunk]> = chunks.chunks(each_part).collect();
        let tasks: Vec<(usize, usize)> =
            (0..groups.len()).flat_map(|group| (0..parts.len()).map(move |part| (group, part))).collect();
        let run = |&(group, part): &(usize, usize)| {
            let (tiles, chunks): (Range<usize>, _) = (groups[group].clone(), parts[part]);
            Task { turn: &turn, level, x, grad, tiles, chunks }.run()
        };
        // A group of channels that one task has alone goes to its place at once; else the parts are added in their order.
        if parts.len() == 1 {
            let all = Shared::new(all);
            // SAFETY: each task has its own channels.
            tasks.par_iter().for_each(|task| unsafe { turn.put(&groups[task.0], &[run(task)], 0..blocks, all) });
        } else {
            let sums: Vec<Vec<f32>> = tasks.par_iter().map(run).collect();
            let all = Shared::new(all);
            (0..blocks).into_par_iter().for_each(|block| {
                for (group, sums) in groups.iter().zip(sums.chunks_exact(parts.len())) {
                    // SAFETY: each task has its own outputs.
                    unsafe { turn.put(group, sums, block..block + 1, all) };
                }
            });
        }
    }
    all
}

/// Outputs whose products one pass over the steps sums.
#[derive(Debug, Clone)]
struct Chunk {
    images: Range<usize>,
    ys: Range<usize>,
}

/// How pixels are turned.
struct Turn<'a> {
    g: &'a Geometry,
    taps: Vec<Tap>,
    /// Channels of x and of dy: the first one of the group, and how many.
    from: (usize, usize),
    to: (usize, usize),
    frame: Option<Frame>,
}

/// Rows of pixels with zeros beside them; see `frame.rs`.
#[derive(Debug, Clone, Copy)]
struct Frame {
    pitch: usize,
    left: usize,
    /// From an image's first row to the next one's: the zeros below an image are those above the next.
    period: usize,
    above: isize,
    span: usize,
}

impl Frame {
    fn new(g: &Geometry, taps: &[Tap]) -> Option<Self> {
        if g.params.stride != (1, 1) {
            return None;
        }
        let (above, below) = (taps.iter().map(|tap| tap.dy).min()?, taps.iter().map(|tap| tap.dy).max()?);
        let left = (-taps.iter().map(|tap| tap.dx).min()?).max(0) as usize;
        let reach = g.ow as isize - 1 + taps.iter().map(|tap| tap.dx).max()? - (g.w as isize - 1);
        let pitch = (g.w + left.max(reach.max(0) as usize)).max(g.ow);
        let span = (below - above) as usize;
        let period = period(g.oh, g.h, (above, below));
        let share = g.output_plane() as f64 / (period * pitch) as f64;
        (share >= LEAST_SHARE).then_some(Self { pitch, left, period, above, span })
    }

    fn offset(&self, tap: &Tap) -> usize {
        (tap.dy - self.above) as usize * self.pitch + (tap.dx + self.left as isize) as usize
    }
}

impl<'a> Turn<'a> {
    fn new(g: &'a Geometry, group: usize) -> Self {
        let taps = window(g);
        let (each, outputs) = (g.group_in(), g.group_out());
        let frame = Frame::new(g, &taps);
        Self { g, taps, from: (group * each, each), to: (group * outputs, outputs), frame }
    }

    /// The sums of parts, for input channels by sixteens and outputs by sixteens, in the places of the group's weights: a
    /// cache line of each part at a time.
    ///
    /// # Safety
    /// `all` has the group's weights, of which nobody else writes these.
    unsafe fn put(&self, tiles: &Range<usize>, parts: &[Vec<f32>], blocks: Range<usize>, all: Shared<f32>) {
        let (taps, each, outputs) = (self.taps.len(), self.from.1, self.to.1);
        let width = outputs.next_multiple_of(SIDE);
        for block in blocks {
            let count = SIDE.min(outputs - block * SIDE);
            for channel in tiles.start * SIDE..(tiles.end * SIDE).min(each) {
                let row = channel - tiles.start * SIDE;
                for tap in 0..taps {
                    let row = (row / SIDE * taps + tap) * SIDE + row % SIDE;
                    let mut total = [0f32; SIDE];
                    for sums in parts {
                        let from = &sums[row * width + block * SIDE..][..SIDE];
                        total.iter_mut().zip(from).for_each(|(total, from)| *total += from);
                    }
                    for (i, total) in total.into_iter().enumerate().take(count) {
                        let at = ((block * SIDE + i) * each + channel) * taps + tap;
                        // SAFETY: inside the group's weights.
                        unsafe { all.at(at).write(total) };
                    }
                }
            }
        }
    }

    /// Copies of x's rows: one for all taps, or one for each.
    fn copies(&self) -> usize {
        if self.frame.is_some() { 1 } else { self.taps.len() }
    }

    /// Pixels of a row of outputs in the turned order, rows from an image to the next, and rows beyond the outputs of the
    /// last one.
    fn line(&self) -> (usize, usize, usize) {
        self.frame.map_or((self.g.ow, self.g.oh, 0), |frame| (frame.pitch, frame.period, frame.span))
    }

    /// The parts of all outputs that fit into a task's cache, with `channels` of x.
    fn chunks(&self, channels: usize) -> Vec<Chunk> {
        let (line, period, span) = self.line();
        let bytes = (self.copies() * channels + self.to.1.next_multiple_of(SIDE)) * size_of::<bf16>();
        let pixels = (ROOM / bytes).max(8 * DEPTH);
        let (b, oh) = (self.g.b, self.g.oh);
        let image = (oh + span) * line;
        if image > pixels {
            let fits = (pixels / line).saturating_sub(span).max(1);
            let band = oh.div_ceil(oh.div_ceil(fits));
            let bands = |image: usize| {
                (0..oh).step_by(band).map(move |y| Chunk { images: image..image + 1, ys: y..(y + band).min(oh) })
            };
            return (0..b).flat_map(bands).collect();
        }
        let together = (pixels / (period * line)).max(1);
        (0..b).step_by(together).map(|first| Chunk { images: first..(first + together).min(b), ys: 0..oh }).collect()
    }

    /// The pixel of dy at each place of the turned order, a whole number of steps.
    fn outputs(&self, chunk: &Chunk) -> Vec<u32> {
        let (line, period, _) = self.line();
        let count = ((chunk.images.len() - 1) * period + chunk.ys.len()) * line;
        let mut places = vec![NOWHERE; count.next_multiple_of(DEPTH)];
        for (i, image) in chunk.images.clone().enumerate() {
            for (at, y) in chunk.ys.clone().enumerate() {
                let first = (i * period + at) * line;
                for (x, place) in places[first..][..self.g.ow].iter_mut().enumerate() {
                    *place = ((image * self.g.oh + y) * self.g.ow + x) as u32;
                }
            }
        }
        places
    }

    /// The pixel of x at each place of copy `copy`, for `outputs` places and what the taps reach beyond.
    fn inputs(&self, chunk: &Chunk, copy: usize, outputs: usize) -> Vec<u32> {
        let g = self.g;
        let pixel = |image: usize, y: isize, x: isize| {
            let inside = (0..g.h as isize).contains(&y) && (0..g.w as isize).contains(&x);
            if inside { ((image * g.h + y as usize) * g.w + x as usize) as u32 } else { NOWHERE }
        };
        if let Some(frame) = &self.frame {
            let reach = self.taps.iter().map(|tap| frame.offset(tap)).max().unwrap_or(0);
            let mut places = vec![NOWHERE; (outputs + reach).next_multiple_of(DEPTH)];
            let lines = chunk.ys.len() + frame.span;
            for (i, image) in chunk.images.clone().enumerate() {
                for line in 0..lines {
                    let y = (chunk.ys.start + line) as isize + frame.above;
                    let first = (i * frame.period + line) * frame.pitch + frame.left;
                    for (x, place) in places.iter_mut().skip(first).take(g.w).enumerate() {
                        *place = pixel(image, y, x as isize);
                    }
                }
            }
            return places;
        }
        let (tap, stride) = (self.taps[copy], g.params.stride);
        let mut places = Vec::with_capacity(outputs);
        for image in chunk.images.clone() {
            for y in chunk.ys.clone() {
                let row = |x: usize| pixel(image, (y * stride.0) as isize + tap.dy, (x * stride.1) as isize + tap.dx);
                places.extend((0..g.ow).map(row));
            }
        }
        places.resize(outputs, NOWHERE);
        places
    }
}

struct Task<'a> {
    turn: &'a Turn<'a>,
    level: Level,
    x: &'a [bf16],
    grad: &'a [bf16],
    /// Input channels, by sixteens.
    tiles: Range<usize>,
    chunks: &'a [Chunk],
}

impl Task<'_> {
    /// Adds the chunks' products: \[tile\]\[tap\]\[16\]\[outputs\].
    fn run(&self) -> Vec<f32> {
        let Self { turn, level, x, grad, tiles, chunks } = self;
        let columns = turn.to.1.div_ceil(SIDE);
        let mut sums = vec![0f32; tiles.len() * turn.taps.len() * SIDE * columns * SIDE];
        for chunk in *chunks {
            let outputs = turn.outputs(chunk);
            let inputs: Vec<Vec<u32>> =
                (0..turn.copies()).map(|copy| turn.inputs(chunk, copy, outputs.len())).collect();
            // Rows an odd number of cache lines apart spread over all sets of a cache.
            let stride = ((inputs[0].len() / DEPTH) | 1) * DEPTH;
            let steps: Vec<usize> = (0..outputs.len()).step_by(DEPTH).collect();
            let (copy, column) = (tiles.len() * SIDE * stride, outputs.len() * SIDE);
            let room = copy * inputs.len() + columns * column;
            with_scratch::<f32, _>(room.div_ceil(2), |scratch| {
                let rows = scratch.cast::<bf16>();
                // SAFETY: the room is that of all copies, then that of all columns.
                let right = unsafe { rows.add(copy * inputs.len()) };
                let (inputs, outputs, steps) = (&inputs, &outputs, &steps);
                let sums = &mut sums;
                let tiles = tiles.clone();
                let product = Product { level: *level, depth: DEPTH, stride, steps };
                dispatch_at(
                    *level,
                    Pass { turn, product, maps: (x, grad), tiles, inputs, outputs, rows, right, copy, column, sums },
                );
            });
        }
        sums
    }
}

/// One chunk of a task.
struct Pass<'a> {
    turn: &'a Turn<'a>,
    product: Product<'a>,
    /// x and dy
    maps: (&'a [bf16], &'a [bf16]),
    tiles: Range<usize>,
    /// The pixels of x in each copy of its rows, and those of dy.
    inputs: &'a [Vec<u32>],
    outputs: &'a [u32],
    /// Where the rows and the columns go, with the numbers of a copy and of a column.
    rows: *mut bf16,
    right: *mut bf16,
    copy: usize,
    column: usize,
    sums: &'a mut [f32],
}

impl Kernel<f32> for Pass<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let Self { turn, product, maps: (x, grad), tiles, inputs, outputs, rows, right, copy, column, sums } = self;
        let (stride, taps, columns) = (product.stride, turn.taps.len(), turn.to.1.div_ceil(SIDE));
        let width = columns * SIDE;
        // SAFETY: run by `dispatch`. The room holds the copies of x and the columns of dy, each written before it is read;
        // a row's steps and its tap's distance stay inside the row.
        unsafe {
            for (i, places) in inputs.iter().enumerate() {
                for tile in tiles.clone() {
                    let to = rows.add(i * copy + (tile - tiles.start) * SIDE * stride);
                    let first = tile * SIDE;
                    let from = (x, turn.g.c_in, turn.from.0 + first, SIDE.min(turn.from.1 - first));
                    turned::<V>(from, places, (to, stride));
                }
            }
            for tile in 0..columns {
                let first = tile * SIDE;
                let from = (grad, turn.g.c_out, turn.to.0 + first, SIDE.min(turn.to.1 - first));
                paired::<V>(from, outputs, right.add(tile * column));
            }
            let _tiles = Tiles::new(product.level, DEPTH);
            let mut block = Block::new();
            let left = |row: usize| {
                let (tile, tap) = (row / taps, row % taps);
                let tile = tile * SIDE * stride;
                match &turn.frame {
                    Some(frame) => rows.add(tile + frame.offset(&turn.taps[tap])).cast_const(),
                    None => rows.add(tap * copy + tile).cast_const(),
                }
            };
            let count = tiles.len() * taps;
            for first in (0..columns).step_by(2) {
                let b = right.add(first * column).cast_const();
                let b = (b, (first + 1 < columns).then(|| b.add(column)));
                let wide = if b.1.is_some() { BLOCK } else { SIDE };
                for row in (0..count).step_by(2) {
                    product.multiply::<V>([left(row), left((row + 1).min(count - 1))], b, &mut block);
                    let to = &mut sums[row * SIDE * width..];
                    for (to, from) in to.chunks_exact_mut(width).zip(block.0.chunks_exact(BLOCK)) {
                        for lane in (0..wide).step_by(V::LANES) {
                            let to = to[first * SIDE..].as_mut_ptr().add(lane);
                            V::load(to).add(V::load(from.as_ptr().add(lane))).store(to);
                        }
                    }
                }
            }
        }
    }
}

const ZEROS: [bf16; SIDE] = [bf16::ZERO; SIDE];

/// A map, its channels, the first one of a tile, and how many the tile has.
pub(super) type From<'a> = (&'a [bf16], usize, usize, usize);

/// The tile's channels of a pair of pixels, interleaved.
///
/// # Safety
/// Below `dispatch`; `to` has room for 32 numbers.
#[inline(always)]
unsafe fn pair<V: Simd<Elem = f32>>((map, channels, first, n): From, places: &[u32], to: *mut bf16) {
    let mut short = [ZEROS; 2];
    let rows: [*const bf16; 2] = std::array::from_fn(|i| {
        if places[i] == NOWHERE {
            return ZEROS.as_ptr();
        }
        let row = &map[places[i] as usize * channels + first..][..n];
        if n == SIDE {
            return row.as_ptr();
        }
        short[i][..n].copy_from_slice(row);
        short[i].as_ptr()
    });
    for lane in (0..SIDE).step_by(V::LANES) {
        // SAFETY: sixteen numbers in each row, 32 in `to`.
        unsafe { V::interleave_bf16(rows[0].add(lane), rows[1].add(lane), to.add(2 * lane)) };
    }
}

/// Columns of pairs of pixels.
///
/// # Safety
/// Below `dispatch`; `to` has room for 16 numbers a place.
#[inline(always)]
pub(super) unsafe fn paired<V: Simd<Elem = f32>>(from: From, places: &[u32], to: *mut bf16) {
    for (i, two) in places.chunks_exact(2).enumerate() {
        // SAFETY: the caller's.
        unsafe { pair::<V>(from, two, to.add(2 * SIDE * i)) };
    }
}

/// Rows of one channel each.
///
/// # Safety
/// Below `dispatch`; sixteen rows of `to`, a stride apart, have room for a number a place.
#[inline(always)]
pub(super) unsafe fn turned<V: Simd<Elem = f32>>(from: From, places: &[u32], (to, stride): (*mut bf16, usize)) {
    let mut pairs = Pairs([bf16::ZERO; SIDE * DEPTH]);
    for (step, places) in places.chunks_exact(DEPTH).enumerate() {
        // SAFETY: sixteen pairs of sixteen channels are a square of 32-bit numbers, which are moved and not looked at.
        unsafe {
            paired::<V>(from, places, pairs.0.as_mut_ptr());
            let (pairs, to) = (pairs.0.as_ptr().cast::<f32>(), to.add(step * DEPTH).cast::<f32>());
            for row in (0..SIDE).step_by(V::LANES) {
                for column in (0..SIDE).step_by(V::LANES) {
                    V::transpose(pairs.add(row * SIDE + column), SIDE, to.add(column * (stride / 2) + row), stride / 2);
                }
            }
        }
    }
}

#[repr(C, align(64))]
struct Pairs([bf16; SIDE * DEPTH]);

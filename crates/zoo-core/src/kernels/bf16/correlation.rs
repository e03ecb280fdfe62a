//! A cross-correlation of bfloat16 maps: what the forward pass of a convolution is, the gradient of its input, and a matrix
//! product.
//!
//! out\[y, x\] = Σ over taps of source\[y · stride + dy, x · stride + dx\] · weight\[tap\]
//!
//! An output is a row of the products in `tiles.rs`, its taps are their steps. Three ways lead to such rows. A single tap
//! at the pixel itself reads the source where it lies. Else a task copies its images into a frame of zeros in the
//! second-level cache, where a tap is a fixed distance, across the ends of image rows too. Where windows jump, or the frame
//! would be most of it, a task copies every window out.

use super::frame::{Frame, Windows};
use super::pack::{Depths, Weights, pack};
use super::sizes::{Correlation, NOWHERE, Part};
use super::store::{Finish, Sums, store};
use super::tiles::{BLOCK, Block, DEPTH, Product, SIDE, Tiles};
use crate::kernels::buffer::{Shared, with_scratch, written};
use crate::kernels::simd::{Kernel, Level, Simd, dispatch_at};
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a task that reads the source where it lies, or copies windows: at the most, and at the least.
const TASK_ROWS: (usize, usize) = (1024, 64);
/// Tasks of those rows, if there are enough.
const TASKS: usize = 8;
/// Bytes of a task's windows: they stay in the second-level cache, while the weights run over them.
const WINDOWS: usize = 1 << 20;

/// How rows come about.
enum Way {
    /// They lie in the source.
    InPlace,
    Framed(Frame),
    Copied(Windows),
}

/// A correlation, prepared.
pub(super) struct Plan {
    sizes: Correlation,
    way: Way,
    level: Level,
    depth: usize,
    stride: usize,
    steps: Vec<usize>,
    /// \[column of 16 outputs\]\[step\]\[pair\]\[16\]\[2\]
    weights: Vec<bf16>,
}

impl Plan {
    /// With weights that begin with those of the group.
    pub fn new(sizes: Correlation, weights: Weights) -> Self {
        let (way, depth, stride, steps, depths) = rows_of(&sizes);
        let weights = pack(sizes.to.used, &depths, &sizes.taps, weights);
        Self { sizes, way, level: Level::current(), depth, stride, steps, weights }
    }

    /// The parts that tasks take: images of a frame, or rows.
    fn tasks(&self) -> Vec<Part> {
        match &self.way {
            Way::Framed(frame) => frame.parts(self.sizes.images, self.sizes.out),
            Way::InPlace | Way::Copied(_) => {
                let rows = self.sizes.images * self.sizes.out.0 * self.sizes.out.1;
                let fit = match self.way {
                    Way::Copied(_) => WINDOWS / (self.stride * size_of::<bf16>()),
                    _ => TASK_ROWS.0,
                };
                let each = rows.div_ceil(TASKS).clamp(TASK_ROWS.1, TASK_ROWS.0).min(fit.max(BLOCK));
                let each = each.next_multiple_of(BLOCK);
                (0..rows).step_by(each).map(|first| Part::Rows(first..(first + each).min(rows))).collect()
            }
        }
    }

    /// Writes its places of `out`, a whole map, and returns the sums that `finish` asks for.
    ///
    /// # Safety
    /// `out` has room for the target map, whose places of this correlation no other task writes.
    pub unsafe fn run(&self, source: &[bf16], out: Shared<bf16>, finish: &Finish) -> Vec<[f64; 2]> {
        let sizes = &self.sizes;
        assert_eq!(source.len(), sizes.images * sizes.source.0 * sizes.source.1 * sizes.from.all);
        finish.check(sizes.to, sizes.images * sizes.target.0 * sizes.target.1);
        let tasks = self.tasks();
        let run = |part: &Part| {
            let (numbers, places) = self.bring(part);
            // Outside of `dispatch`: what a closure holds does not take on the features of the function around it.
            with_scratch::<f32, _>(numbers.div_ceil(2), |room| {
                // SAFETY: the scratch has room for as many 16-bit numbers, and any bits are such.
                let room = unsafe { std::slice::from_raw_parts_mut(room.cast::<bf16>(), numbers) };
                match (&self.way, part) {
                    (Way::Framed(frame), Part::Images(images, ys)) => frame.fill(sizes, source, (images, ys), room),
                    (Way::Copied(windows), Part::Rows(rows)) => windows.copy(sizes, source, rows.clone(), room),
                    _ => {}
                }
                dispatch_at(self.level, Task { plan: self, part, source, room, places: &places, out, finish })
            })
        };
        let parts: Vec<Sums> = tasks.par_iter().map(run).collect();
        let mut total = vec![[0.0; 2]; if finish.with_sums { sizes.to.used } else { 0 }];
        for part in &parts {
            for (total, part) in total.iter_mut().zip(part) {
                *total = [total[0] + part[0], total[1] + part[1]];
            }
        }
        total
    }

    /// The numbers that a task copies, and the pixel of the target that each of its rows is: a whole number of blocks.
    fn bring(&self, part: &Part) -> (usize, Vec<u32>) {
        match (&self.way, part) {
            (Way::Framed(frame), Part::Images(images, ys)) => {
                let (rows, numbers) = frame.room(images, ys);
                (numbers, frame.places(&self.sizes, (images, ys), rows))
            }
            (way, Part::Rows(rows)) => {
                let mut places = self.places(rows.clone());
                let count = rows.len().next_multiple_of(BLOCK);
                let nowhere = std::iter::repeat_n(NOWHERE, count - rows.len());
                if let Way::Copied(windows) = way {
                    places.extend(nowhere);
                    return (count * windows.row, places);
                }
                // The last block is moved up to end with the rows; what it computes once more is not stored.
                let rest = rows.len() - rows.len() % BLOCK;
                places.splice(rest..rest, nowhere);
                (0, places)
            }
            (_, Part::Images(..)) => unreachable!("images are a frame's"),
        }
    }

    /// The pixels of the target that rows are.
    fn places(&self, rows: Range<usize>) -> Vec<u32> {
        let (height, width) = self.sizes.out;
        let lines = rows.start / width..rows.end.div_ceil(width);
        let line = |line: usize| {
            let first = self.sizes.place(line / height, line % height, 0);
            let own = rows.start.max(line * width)..rows.end.min((line + 1) * width);
            own.map(move |row| (first + (row - line * width) * self.sizes.step.1) as u32)
        };
        lines.flat_map(line).collect()
    }
}

/// How the rows of a correlation are taken, the numbers of a step, from one row to the next, where the steps begin, and what
/// they hold.
fn rows_of(sizes: &Correlation) -> (Way, usize, usize, Vec<usize>, Depths) {
    let channels = sizes.from.used;
    let rows = sizes.images * sizes.out.0 * sizes.out.1;
    // The same for few rows as for many: a row's sums are in one order.
    let divisor = sizes.is_in_place().then(|| divisor(channels)).flatten();
    if let Some(depth) = divisor.filter(|_| rows >= BLOCK) {
        let steps = (0..channels).step_by(depth).map(|step| sizes.from.first + step).collect();
        let depths = Depths { numbers: channels, channels, starts: vec![0] };
        return (Way::InPlace, depth, sizes.from.all, steps, depths);
    }
    let frame = if sizes.is_in_place() { None } else { Frame::new(sizes) };
    if let Some((frame, depth, steps, depths)) = frame {
        let stride = frame.channels;
        return (Way::Framed(frame), depth, stride, steps, depths);
    }
    let numbers = sizes.taps.len() * channels;
    let depth = divisor.unwrap_or_else(|| numbers.div_ceil(numbers.div_ceil(DEPTH)).next_multiple_of(2));
    let steps: Vec<usize> = (0..numbers).step_by(depth).collect();
    let stride = steps.len() * depth;
    let starts = (0..sizes.taps.len()).map(|tap| tap * channels).collect();
    let depths = Depths { numbers: stride, channels, starts };
    (Way::Copied(Windows { row: stride }), depth, stride, steps, depths)
}

/// The numbers of a step that cut channels into steps without a rest, if those are hardly more than the fewest.
fn divisor(channels: usize) -> Option<usize> {
    let depth = (1..=DEPTH / 2).rev().map(|half| 2 * half).find(|&depth| channels.is_multiple_of(depth))?;
    (channels / depth <= channels.div_ceil(DEPTH) * 4 / 3).then_some(depth)
}

struct Task<'a> {
    plan: &'a Plan,
    part: &'a Part,
    source: &'a [bf16],
    /// The copied rows, if any are.
    room: &'a [bf16],
    places: &'a [u32],
    out: Shared<bf16>,
    finish: &'a Finish<'a>,
}

impl Kernel<f32> for Task<'_> {
    const NARROWS: bool = true;
    type Output = Sums;

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) -> Sums {
        let stride = self.plan.stride;
        // SAFETY: run by `dispatch`; each way gives rows with all of their steps behind them.
        unsafe {
            match (&self.plan.way, self.part) {
                (Way::InPlace, Part::Rows(rows)) => {
                    let start = |block: usize| (rows.start + block * BLOCK).min(rows.end - BLOCK);
                    self.blocks::<V>(|block| self.source.as_ptr().add(start(block) * stride))
                }
                _ => self.blocks::<V>(|block| self.room.as_ptr().add(block * BLOCK * stride)),
            }
        }
    }
}

impl Task<'_> {
    /// # Safety
    /// As [`Product::multiply`], for every block of rows, which begins at `rows` of it; one row for each place.
    #[inline(always)]
    unsafe fn blocks<V: Simd<Elem = f32>>(&self, rows: impl Fn(usize) -> *const bf16) -> Sums {
        let Self { plan, places, out, finish, .. } = self;
        let product = Product { level: plan.level, depth: plan.depth, stride: plan.stride, steps: &plan.steps };
        let (outputs, column) = (plan.sizes.to.used, product.column());
        let _tiles = Tiles::new(plan.level, plan.depth);
        let mut sums = Block::new();
        let mut totals = vec![[0.0; 2]; if finish.with_sums { outputs } else { 0 }];
        for first in (0..outputs).step_by(BLOCK) {
            let width = BLOCK.min(outputs - first);
            let mut own = [[0f32; BLOCK]; 2];
            for (block, places) in places.chunks_exact(BLOCK).enumerate() {
                // SAFETY: the caller's rows; two columns of weights or the last one; the places are the target's.
                unsafe {
                    let a = rows(block);
                    let b = plan.weights.as_ptr().add(first / SIDE * column);
                    let b = (b, (width > SIDE).then(|| b.add(column)));
                    product.multiply::<V>([a, a.add(SIDE * plan.stride)], b, &mut sums);
                    store::<V>(&sums, places, (plan.sizes.to, first, width), *out, finish, &mut own);
                }
                // f32 sums stay short.
                if finish.with_sums && (block % 32 == 31 || (block + 1) * BLOCK == self.places.len()) {
                    for (i, total) in totals[first..first + width].iter_mut().enumerate() {
                        *total = [total[0] + f64::from(own[0][i]), total[1] + f64::from(own[1][i])];
                    }
                    own = [[0.0; BLOCK]; 2];
                }
            }
        }
        totals
    }
}

/// The places of `outputs` maps that several correlations fill, zeros where none does.
pub(super) fn zeroed(n: usize) -> Vec<bf16> {
    vec![bf16::ZERO; n]
}

/// A map that correlations write in every place.
///
/// # Safety
/// `fill` writes all.
pub(super) unsafe fn map_of(n: usize, fill: impl FnOnce(Shared<bf16>)) -> Vec<bf16> {
    // SAFETY: the caller's.
    unsafe { written(n, |out| fill(Shared::from_uninit(out))) }
}

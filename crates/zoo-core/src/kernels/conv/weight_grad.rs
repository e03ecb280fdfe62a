//! The gradient of a convolution's weight: a sum over pixels, with channels innermost in both packed operands.
//!
//! It is cut by shape alone, and its parts are added in their order: no bit depends on the number of threads.

use super::geometry::Geometry;
use crate::kernels::blocking::{CONV_IMAGES, LINE, WEIGHT_GRAD_PIXELS, odd_lines};
use crate::kernels::buffer::with_scratch;
use crate::kernels::microkernel::{RegisterTile, microkernel};
use crate::kernels::simd::{Kernel, Real, Simd, dispatch_at};
use rayon::prelude::*;
use std::ops::Range;

/// Output channels of one task of the weight gradient.
const CHUNK: usize = 64;

/// Tasks of the weight gradient at the least, if the images suffice. A constant, so that the sum's order is one.
const TASKS: usize = 16;

pub(super) fn weight_grad<T: Real>(g: &Geometry, xs: &[T], grad: &[T]) -> Vec<T> {
    let shape = RegisterTile::current::<T>();
    let plan = WeightGradPlan::new::<T>(g, shape);
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
            let mut sums = vec![T::zero(); channels.len().next_multiple_of(shape.lanes) * plan.row];
            let input = plan.input_elements(shape.lanes);
            let outputs = channels.len().next_multiple_of(shape.lanes) * plan.offsets.len();
            with_scratch(input + outputs, |scratch: *mut T| {
                // SAFETY: the scratch holds the packed gradient behind the packed input.
                let outputs = unsafe { scratch.add(input) };
                let sums = &mut sums;
                dispatch_at(
                    shape.level,
                    WeightGradTile { g, plan: &plan, xs, grad, group, channels, images, input: scratch, outputs, sums },
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
            let row = &sums[channel % CHUNK * plan.row..][..plan.row];
            for tap in 0..taps {
                let (run, within) = (tap / plan.merged, tap % plan.merged);
                let from = &row[run * plan.run_padded + within * g.group_in()..][..g.group_in()];
                dw[tap..].iter_mut().step_by(taps).zip(from).for_each(|(dw, &sum)| *dw += sum);
            }
        }
    });
    dw
}

/// How the weight gradient walks over the pixels of some images at a time.
struct WeightGradPlan {
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

impl WeightGradPlan {
    fn new<T: Real>(g: &Geometry, shape: RegisterTile) -> Self {
        let (p, channels) = (g.params, g.group_in());
        let fills = channels.is_multiple_of(2 * shape.lanes);
        let pitch = if fills { odd_lines(channels) } else { channels };
        let merged = if p.dilation.1 == 1 && !fills { g.kw } else { 1 };
        let width = (g.ow - 1) * p.stride.1 + (g.kw - 1) * p.dilation.1 + 1;
        let height = |rows: usize| (rows - 1) * p.stride.0 + (g.kh - 1) * p.dilation.0 + 1;
        let budget = CONV_IMAGES / size_of::<T>();
        let whole = height(g.oh) * width * pitch;
        let (images, rows) = if whole <= budget {
            ((budget / whole).clamp(1, (4 * WEIGHT_GRAD_PIXELS).div_ceil(g.output_plane())), g.oh)
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
struct WeightGradTile<'a, T> {
    g: &'a Geometry,
    plan: &'a WeightGradPlan,
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

impl<T: Real> Kernel<T> for WeightGradTile<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let (g, plan) = (self.g, self.plan);
        let mut this = self;
        let images = this.images.clone();
        for first in images.clone().step_by(plan.images) {
            let bunch = first..images.end.min(first + plan.images);
            for top in (0..g.oh).step_by(plan.rows) {
                let rows = top..g.oh.min(top + plan.rows);
                // SAFETY: below `dispatch`; `weight_grad` has checked the lengths and made the scratch large enough for
                // `plan.images` images of `plan.rows` output rows.
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

impl<T: Real> WeightGradTile<'_, T> {
    /// Lays the rows of an image that the outputs from row `top` on need behind each other, channels innermost.
    #[inline(always)]
    unsafe fn pack_input<V: Simd<Elem = T>>(&self, slot: usize, image: usize, top: usize) {
        let (g, channels) = (self.g, self.g.group_in());
        let ((height, width), pitch) = (self.plan.packed, self.plan.pitch);
        let padding = g.params.padding;
        let plane = g.input_plane();
        let first = (top * g.params.stride.0) as isize - padding.0 as isize;
        let xs = &self.xs[(image * g.c_in + self.group * channels) * plane..][..channels * plane];
        let valid = padding.1.min(width)..(padding.1 + g.w).min(width);
        let rows = (-first).max(0) as usize..((g.h as isize - first).max(0) as usize).min(height);
        // SAFETY: the packed image is `height · width · channels` elements, its rows and columns bounded above; the
        // planes are `xs`, read in whole vectors only where they hold them.
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
        // SAFETY: block `b` of the packed gradient starts at b · LANES · all; channels and pixels stay inside the
        // gradient, whole vectors too.
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
        let plan = self.plan;
        let blocks = self.channels.len().div_ceil(M);
        // SAFETY: the sums have a row for each channel, rounded up to LANES ≥ M, of `runs · run_padded` elements;
        // packed pixels and channels are as `pack_input` and `pack_outputs` have laid them.
        unsafe {
            for start in (0..pixels).step_by(WEIGHT_GRAD_PIXELS) {
                let depth = WEIGHT_GRAD_PIXELS.min(pixels - start);
                let offsets = plan.offsets.as_ptr().add(start);
                for (run, &run_start) in plan.runs.iter().enumerate() {
                    let mut column = 0;
                    while column < plan.run_padded {
                        let vectors = match (plan.run_padded - column) / V::LANES {
                            odd @ (1 | 3) => odd,
                            _ => 2,
                        };
                        let b = self.input.add(run_start + column).cast_const();
                        for block in 0..blocks {
                            let (outer, inner) = (block * M / V::LANES, block * M % V::LANES);
                            let a = self.outputs.add((outer * pixels + start) * V::LANES + inner).cast_const();
                            let to = self.sums.as_mut_ptr().add(block * M * plan.row + run * plan.run_padded + column);
                            match vectors {
                                3 => add_tile::<V, M, 3>(depth, a, b, offsets, (to, plan.row)),
                                2 => add_tile::<V, M, 2>(depth, a, b, offsets, (to, plan.row)),
                                _ => add_tile::<V, M, 1>(depth, a, b, offsets, (to, plan.row)),
                            }
                        }
                        column += vectors * V::LANES;
                    }
                }
            }
        }
    }
}

/// Adds a register tile of N neighbouring vectors to sums whose rows are `step` apart.
///
/// # Safety
/// As [`microkernel`]'s, with M packed rows side by side; the sums hold M rows of N vectors.
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
        let products =
            microkernel::<V, M, N>(depth, a, V::LANES, std::array::from_fn(|j| b.add(j * V::LANES)), offsets);
        for (i, row) in products.into_iter().enumerate() {
            for (j, sum) in row.into_iter().enumerate() {
                let to = sums.add(i * step + j * V::LANES);
                V::load(to).add(sum).store(to);
            }
        }
    }
}

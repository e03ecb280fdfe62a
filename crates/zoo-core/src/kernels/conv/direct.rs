//! Direct convolution: the register tile over packed rows of the input, whatever stride, padding and groups.
//!
//! Outputs do not depend on how the work is cut: a sum's order is that of its factors.

use super::epilogue::Epilogue;
use super::geometry::Geometry;
use super::packed_weights::PackedWeights;
use super::plan::{DirectConv, PixelVector};
use super::tile::{Operands, Tile};
use super::winograd::{Inputs, Winograd};
use crate::kernels::batch_norm;
use crate::kernels::blocking::{CONV_WEIGHTS, LINE};
use crate::kernels::buffer::{Shared, written_by_tasks};
use crate::kernels::fused_activation::FusedActivation;
use crate::kernels::microkernel::microkernel;
use crate::kernels::simd::{Kernel, Real, Simd, dispatch_at, prefetch, prefetch_to_write};

/// The outputs, and whether the statistics that `epilogue` asks for have been made.
pub(super) fn forward<T: Real>(g: &Geometry, xs: &[T], weight: &[T], epilogue: &Epilogue<T>) -> (Vec<T>, bool) {
    let conv = DirectConv::forward(g);
    if epilogue.allow_winograd
        && let Some(winograd) = Winograd::forward(g, &conv, weight, epilogue.scale)
    {
        let mut inputs = Inputs::Finite;
        let run = |ys| inputs = winograd.run(xs, epilogue, ys);
        // SAFETY: as below.
        let ys = unsafe { written_by_tasks(g.b * g.output_image(), run) };
        if inputs == Inputs::Finite {
            return (ys, false);
        }
    }
    let (depth, taps) = (g.depth(), g.kh * g.kw);
    let factor =
        |group: usize, channel: usize, tap: usize| (group * g.group_out() * depth + channel * taps + tap, depth);
    let sizes = (g.params.groups, g.group_out(), g.group_in(), taps);
    let weights = PackedWeights::new(weight, sizes, factor, epilogue.scale);
    let mut has_stats = false;
    let run = |ys| has_stats = conv.run(xs, &weights, epilogue, ys);
    // SAFETY: the output's pixels are those of `conv`, each written by the task that has it.
    (unsafe { written_by_tasks(g.b * g.output_image(), run) }, has_stats)
}

/// The gradient of the input, to `dx`.
///
/// # Safety
/// `dx` must hold the images' input.
pub(super) unsafe fn input_grad<T: Real>(g: &Geometry, grad: &[T], weight: &[T], dx: Shared<T>) {
    let stride = g.params.stride;
    // The remainders modulo the stride cover every input pixel once.
    for start in (0..stride.0).flat_map(|y| (0..stride.1).map(move |x| (y, x))) {
        let Some((conv, rows, cols)) = DirectConv::input_grad(g, start) else { continue };
        if let Some(winograd) = Winograd::input_grad(g, &conv, weight)
            && winograd.run(grad, &Epilogue::bias(None), dx) == Inputs::Finite
        {
            continue;
        }
        let factor = |group: usize, channel: usize, tap: usize| {
            let (ky, kx) = (rows[tap / cols.len()], cols[tap % cols.len()]);
            let row = (group * g.group_out() + channel) * g.group_in();
            ((row * g.kh + ky) * g.kw + kx, g.kh * g.kw)
        };
        let sizes = (g.params.groups, g.group_in(), g.group_out(), rows.len() * cols.len());
        let weights = PackedWeights::new(weight, sizes, factor, None);
        _ = conv.run(grad, &weights, &Epilogue::bias(None), dx);
    }
}

impl DirectConv {
    /// Computes every output, and the statistics that `epilogue` asks for if the tiles take whole planes: then true.
    /// `out` must have room for `images · groups · out_channels` planes of `out_plane`, and the statistics a place for
    /// each.
    fn run<T: Real>(&self, input: &[T], weights: &PackedWeights<T>, epilogue: &Epilogue<T>, out: Shared<T>) -> bool {
        assert_eq!(weights.depth, self.depth());
        let tiling = self.tiling::<T>(weights);
        let staged = match tiling.is_direct {
            true => 0,
            false => {
                let row = tiling.images * (tiling.rows * self.out.1).next_multiple_of(LINE) + LINE;
                tiling.blocks * weights.block * row
            }
        };
        let plane_stats = epilogue.plane_stats.filter(|_| tiling.is_direct && tiling.rows >= self.out.0);
        self.for_tiles(&tiling, Operands { input, weights, epilogue, out }, staged, |tile| {
            dispatch_at(weights.shape.level, Multiply { tile, plane_stats });
        });
        plane_stats.is_some()
    }
}

/// A tile's outputs, and its planes' statistics where they are asked for.
struct Multiply<'a, T> {
    tile: Tile<'a, T>,
    plane_stats: Option<Shared<[f64; 2]>>,
}

impl<T: Real> Kernel<T> for Multiply<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let tile = self.tile;
        // SAFETY: below `dispatch`; `for_tiles` has checked the lengths that the parts rely on.
        unsafe {
            tile.pack_input::<V>();
            match V::ROWS {
                8 => tile.multiply::<V, 8>(),
                _ => tile.multiply::<V, 4>(),
            }
            if !tile.tiling.is_direct {
                tile.scatter();
            }
            if let Some(stats) = self.plane_stats {
                tile.write_plane_stats::<V>(stats);
            }
        }
    }
}

impl<T: Real> Tile<'_, T> {
    #[inline(always)]
    unsafe fn multiply<V: Simd<Elem = T>, const M: usize>(&self) {
        let (images, _, per_image) = self.vectors(V::LANES);
        let vectors = images * per_image;
        debug_assert!(vectors <= self.tiling.vectors.len());
        let weights_bytes = self.blocks.len() * M * self.operands.weights.depth * size_of::<T>();
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
            if weights_bytes <= CONV_WEIGHTS {
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
        let conv = self.conv;
        if self.rows.len() < conv.out.0 || conv.groups > 1 {
            return &[];
        }
        let image = conv.channels * conv.plane.0 * conv.plane.1;
        let end = self.images.end * image;
        &self.operands.input[end..(end + self.images.len() * image).min(self.operands.input.len())]
    }

    #[inline(always)]
    unsafe fn pair<V: Simd<Elem = T>, const M: usize>(&self, block: usize, v: usize, vectors: usize) {
        let a = self.operands.weights.block_of(self.group, block).as_ptr();
        let offsets = self.tiling.offsets.as_ptr();
        let depth = self.operands.weights.depth;
        // SAFETY: the packed input holds every factor's pixels, rounded up to vectors; `block_of` is one whole block,
        // and there is a place for every vector.
        unsafe {
            let from = |v: usize| self.scratch.add(self.tiling.vectors.get_unchecked(v).from).cast_const();
            if self.tiling.is_direct {
                for v in v..vectors.min(v + 2) {
                    let (to, step) = self.destination(block * M, v);
                    (0..M).for_each(|i| prefetch_to_write(self.operands.out.at(0).wrapping_add(to + i * step)));
                }
            }
            if v + 1 < vectors {
                let sums = microkernel::<V, M, 2>(depth, a, M, [from(v), from(v + 1)], offsets);
                self.store::<V, M, 2>(block, v, sums);
            } else {
                let sums = microkernel::<V, M, 1>(depth, a, M, [from(v)], offsets);
                self.store::<V, M, 1>(block, v, sums);
            }
        }
    }

    /// Where a vector of an output channel's pixels is written to, and how far behind it the next channel's.
    #[inline(always)]
    unsafe fn destination(&self, channel: usize, v: usize) -> (usize, usize) {
        let conv = self.conv;
        let plane = conv.out.0 * conv.out.1;
        let channel = (self.images.start * conv.groups + self.group) * conv.out_channels + channel;
        // SAFETY: the caller's v has a place.
        let within = unsafe { self.tiling.vectors.get_unchecked(v).to };
        (channel * plane + self.rows.start * conv.out.1 + within, plane)
    }

    /// Adds the bias and stores N vectors of pixels of the rows of a block.
    #[inline(always)]
    unsafe fn store<V: Simd<Elem = T>, const M: usize, const N: usize>(
        &self,
        block: usize,
        v: usize,
        sums: [[V; N]; M],
    ) {
        let (conv, first) = (self.conv, block * M);
        let (_, pixels, _) = self.vectors(V::LANES);
        let rows = M.min(conv.out_channels - first);
        // SAFETY: the rows stop at the group's channels, the lanes at the pixels of the band; each v has a place.
        unsafe {
            let places: [&PixelVector; N] = std::array::from_fn(|j| self.tiling.vectors.get_unchecked(v + j));
            let bias =
                self.operands.epilogue.bias.map(|bias| bias.as_ptr().add(self.group * conv.out_channels + first));
            let finished = |i: usize, sum: V| match bias {
                Some(bias) if i < rows => sum.add(V::splat(*bias.add(i))),
                _ => sum,
            };
            if !self.tiling.is_direct {
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
            let is_plain =
                self.operands.epilogue.skip.is_none() && self.operands.epilogue.activation == FusedActivation::None;
            for (j, place) in places.into_iter().enumerate() {
                let (at, step) = self.destination(first, v + j);
                let to = self.operands.out.at(at);
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
                        if let Some(skip) = self.operands.epilogue.skip {
                            sum = sum.add(V::load_first(skip.as_ptr().add(at + i * step), count));
                        }
                        self.operands.epilogue.activation.apply(sum).store_first(to.add(i * step), count);
                    }
                }
            }
        }
    }

    /// Mean and squares of the planes that the task has just written.
    #[inline(always)]
    unsafe fn write_plane_stats<V: Simd<Elem = T>>(&self, stats: Shared<[f64; 2]>) {
        let conv = self.conv;
        let pixels = conv.out.0 * conv.out.1;
        let channels = self.blocks.start * self.operands.weights.block
            ..conv.out_channels.min(self.blocks.end * self.operands.weights.block);
        for image in self.images.clone() {
            for channel in channels.clone() {
                let channel = self.group * conv.out_channels + channel;
                let plane = (image * conv.groups * conv.out_channels + channel) * pixels;
                // SAFETY: below `dispatch`; the plane was written whole, by this task, and has its place.
                unsafe {
                    *stats.at(channel * conv.images + image) =
                        batch_norm::plane_stats::<V>(self.operands.out.at(plane), pixels);
                }
            }
        }
    }

    /// Takes staged outputs to their places.
    unsafe fn scatter(&self) {
        let conv = self.conv;
        let (_, pixels, _) = self.vectors(1);
        let step = pixels.next_multiple_of(LINE);
        let plane = conv.out_plane.0 * conv.out_plane.1;
        let first = self.blocks.start * self.operands.weights.block;
        let channels = first..conv.out_channels.min(self.blocks.end * self.operands.weights.block);
        let staged_rows = self.blocks.len() * self.operands.weights.block;
        for (slot, image) in self.images.clone().enumerate() {
            for channel in channels.clone() {
                let row = if self.tiling.is_unfolded { channel - first } else { slot * staged_rows + channel - first };
                let left_out = if self.tiling.is_unfolded { slot * conv.out.0 * conv.out.1 } else { 0 };
                let to = ((image * conv.groups + self.group) * conv.out_channels + channel) * plane;
                for (i, y) in self.rows.clone().enumerate() {
                    let line = to + (conv.out_start.0 + y * conv.out_stride.0) * conv.out_plane.1 + conv.out_start.1;
                    if self.operands.epilogue.skip.is_none()
                        && self.operands.epilogue.activation == FusedActivation::None
                    {
                        let from = row * step + left_out + i * conv.out.1;
                        for x in 0..conv.out.1 {
                            // SAFETY: as below.
                            unsafe { *self.operands.out.at(line + x * conv.out_stride.1) = *self.staged.add(from + x) };
                        }
                        continue;
                    }
                    for x in 0..conv.out.1 {
                        let place = line + x * conv.out_stride.1;
                        // SAFETY: `staged` holds the band's outputs.
                        let mut value = unsafe { *self.staged.add(row * step + left_out + i * conv.out.1 + x) };
                        if let Some(skip) = self.operands.epilogue.skip {
                            value += skip[place];
                        }
                        // SAFETY: the output plane has these pixels.
                        unsafe { *self.operands.out.at(place) = self.operands.epilogue.activation.apply_to(value) };
                    }
                }
            }
        }
    }
}

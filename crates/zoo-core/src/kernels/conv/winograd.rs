//! Winograd's algorithm F(2x2, 3x3): sixteen multiplications for the four pixels of a tile instead of thirty-six
//! (Lavin and Gray 2015, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308).
//!
//! y = Aᵀ · \[(G · w · Gᵀ) ⊙ (Bᵀ · x · B)\] · A for a tile of 4x4 inputs; the sum over channels stands before the last
//! step, and is sixteen matrix products.
//!
//! Its roundings are those of the tile's sums, not of one window's: the error of a pixel scales with the largest Σ
//! |w|·|x| of the four windows of its tile. A number that is not finite would reach pixels of its tile that no window
//! brings it to: weights that hold one are refused beforehand, and inputs that hold one are told afterwards
//! ([`Inputs`]), for the direct way to compute these outputs again. The forward pass of training takes the direct way
//! too, see [`Epilogue::allow_winograd`].

use super::epilogue::Epilogue;
use super::geometry::Geometry;
use super::packed_weights::PackedWeights;
use super::plan::DirectConv;
use super::tile::{Operands, Tile};
use crate::kernels::blocking::WINOGRAD_INPUT;
use crate::kernels::buffer::Shared;
use crate::kernels::microkernel::microkernel;
use crate::kernels::simd::{Kernel, Real, Simd, dispatch_at};
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A convolution of 3x3 taps by Winograd's algorithm.
pub(super) struct Winograd<T> {
    /// The convolution whose outputs are tiles of 2x2 pixels.
    tiles: DirectConv,
    /// The transformed weights: sixteen matrices a group.
    weights: PackedWeights<T>,
}

/// What a run of the algorithm saw: its outputs hold only for finite inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Inputs {
    Finite,
    NotFinite,
}

/// Whether the input gradient of a convolution is faster this way.
pub(super) fn suits_input_grad<T: Real>(g: &Geometry, weight: &[T]) -> bool {
    suits(g, (g.group_out(), g.group_in()), (g.h, g.w), weight)
}

/// Whether a layer of `channels` (in, out) of a group is faster this way.
fn suits<T: Real>(g: &Geometry, channels: (usize, usize), out: (usize, usize), weight: &[T]) -> bool {
    let p = g.params;
    let is_plain = (g.kh, g.kw, p.stride, p.padding, p.dilation) == (3, 3, (1, 1), (1, 1), (1, 1));
    // Below, transforming costs what multiplying saves; above, transformed weights would stream from memory.
    let fits = channels.0.min(channels.1) >= 64 && channels.0 * channels.1 <= 1 << 16;
    is_plain && fits && out.0.div_ceil(2) * out.1.div_ceil(2) >= 64 && weight.iter().all(|w| is_finite(*w))
}

fn is_finite<T: Real>(x: T) -> bool {
    x.to_f64().is_finite()
}

impl<T: Real> Winograd<T> {
    /// For the forward pass, if it is faster; `scale` has a factor for each output channel.
    pub fn forward(g: &Geometry, conv: &DirectConv, weight: &[T], scale: Option<&[T]>) -> Option<Self> {
        if !suits(g, (g.group_in(), g.group_out()), (g.oh, g.ow), weight) {
            return None;
        }
        let kernel =
            |group: usize, row: usize, channel: usize| ((group * g.group_out() + row) * g.group_in() + channel) * 9;
        Some(Self::new(conv, weight, kernel, |tap| tap, scale))
    }

    /// For the input gradient, if it is faster.
    pub fn input_grad(g: &Geometry, conv: &DirectConv, weight: &[T]) -> Option<Self> {
        if !suits_input_grad(g, weight) {
            return None;
        }
        let kernel =
            |group: usize, row: usize, channel: usize| ((group * g.group_out() + channel) * g.group_in() + row) * 9;
        Some(Self::new(conv, weight, kernel, |tap| 8 - tap, None))
    }

    fn new(
        conv: &DirectConv,
        weight: &[T],
        kernel: impl Fn(usize, usize, usize) -> usize + Sync,
        tap: impl Fn(usize) -> usize + Sync,
        scale: Option<&[T]>,
    ) -> Self {
        let (groups, out, channels) = (conv.groups, conv.out_channels, conv.channels);
        let transformed = transform_weights(weight, (groups, out, channels), kernel, tap, scale);
        let factor = |group: usize, channel: usize, _| (group * out * channels + channel, channels);
        let weights = PackedWeights::new(&transformed, (16 * groups, out, channels, 1), factor, None);
        Self { tiles: conv.in_tiles_of_two(), weights }
    }

    /// Computes every output, to be used only if the inputs were finite.
    pub fn run(&self, input: &[T], epilogue: &Epilogue<T>, out: Shared<T>) -> Inputs {
        let (tiles, weights) = (&self.tiles, &self.weights);
        assert_eq!(weights.depth, tiles.channels);
        let lanes = weights.shape.lanes;
        let channels: Vec<u32> = (0..tiles.channels).map(|c| (c * 2 * lanes) as u32).collect();
        let met_not_finite = AtomicBool::new(false);
        let staged = scratch::<T>(tiles.channels, lanes, weights.block);
        let operands = Operands { input, weights, epilogue, out };
        tiles.for_tiles(&tiles.tiling::<T>(weights), operands, staged, |tile| {
            let task = WinogradTile { tile, channels: &channels, met_not_finite: &met_not_finite };
            dispatch_at(weights.shape.level, task);
        });
        if met_not_finite.into_inner() { Inputs::NotFinite } else { Inputs::Finite }
    }
}

/// Pairs of vectors of tiles that are transformed at a time.
fn pairs<T: Real>(channels: usize, lanes: usize) -> usize {
    (WINOGRAD_INPUT / (16 * channels * 2 * lanes * size_of::<T>())).clamp(1, 16)
}

/// Scratch of a task besides the packed input: transformed input, products, and a vector of finished tiles.
fn scratch<T: Real>(channels: usize, lanes: usize, block: usize) -> usize {
    (pairs::<T>(channels, lanes) * 16 * channels + 16 * block + 4) * 2 * lanes
}

/// Some vectors of tiles.
struct WinogradTile<'a, T> {
    tile: Tile<'a, T>,
    /// Where the channels of a pair of vectors of transformed tiles start.
    channels: &'a [u32],
    met_not_finite: &'a AtomicBool,
}

impl<T: Real> Kernel<T> for WinogradTile<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        // SAFETY: below `dispatch`; `for_tiles` has checked the lengths that the parts rely on.
        unsafe {
            self.tile.pack_input::<V>();
            match V::ROWS {
                8 => self.multiply::<V, 8>(),
                _ => self.multiply::<V, 4>(),
            }
        }
    }
}

impl<T: Real> WinogradTile<'_, T> {
    /// Transforms, multiplies and stores a few pairs of vectors of tiles at a time.
    #[inline(always)]
    unsafe fn multiply<V: Simd<Elem = T>, const M: usize>(&self) {
        let tile = &self.tile;
        let conv = tile.conv;
        let (images, tiles, per_image) = tile.vectors(V::LANES);
        let vectors = images * per_image;
        let (channels, pairs) = (conv.channels, pairs::<T>(conv.channels, V::LANES));
        let pair_size = 16 * channels * 2 * V::LANES;
        let at = |v: usize| (v / per_image, v % per_image * V::LANES);
        let offsets = tile.tiling.offsets.as_ptr();
        // SAFETY: the scratch behind the packed input is as large as `scratch` says; blocks and pixels as the tile has
        // them.
        unsafe {
            let product = tile.staged.add(pairs * pair_size);
            let rows = product.add(16 * M * 2 * V::LANES);
            let mut poison = V::zero();
            for first in (0..vectors).step_by(2 * pairs) {
                let last = vectors.min(first + 2 * pairs);
                for v in first..last {
                    let (image, pixel) = at(v);
                    let count = V::LANES.min(tiles - pixel);
                    let from = tile.scratch.add(image * tile.tiling.image + pixel);
                    let to = tile.staged.add((v - first) / 2 * pair_size + (v - first) % 2 * V::LANES);
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
                        let transformed = transform_input(d);
                        for (i, transformed) in transformed.into_iter().enumerate() {
                            transformed.store(to.add((i * channels + c) * 2 * V::LANES));
                        }
                    }
                }
                for block in tile.blocks.clone() {
                    for v in (first..last).step_by(2) {
                        let b = tile.staged.add((v - first) / 2 * pair_size).cast_const();
                        for i in 0..16 {
                            let a = tile.operands.weights.block_of(16 * tile.group + i, block).as_ptr();
                            let b = b.add(i * channels * 2 * V::LANES);
                            let sums =
                                microkernel::<V, M, 2>(channels, a, M, [b, b.add(V::LANES)], self.channels.as_ptr());
                            for (row, sums) in sums.into_iter().enumerate() {
                                sums[0].store(product.add((i * M + row) * 2 * V::LANES));
                                sums[1].store(product.add((i * M + row) * 2 * V::LANES + V::LANES));
                            }
                        }
                        for v in v..last.min(v + 2) {
                            let (image, pixel) = at(v);
                            for row in 0..M.min(conv.out_channels - block * M) {
                                let from = product.add(row * 2 * V::LANES + v % 2 * V::LANES);
                                let mut m = [V::zero(); 16];
                                for (i, m) in m.iter_mut().enumerate() {
                                    *m = V::load(from.add(i * M * 2 * V::LANES));
                                }
                                let [a, b, c, d] = transform_output(m);
                                for (line, (even, odd)) in [(a, b), (c, d)].into_iter().enumerate() {
                                    let (low, high) = even.interleave(odd);
                                    low.store(rows.add(2 * line * V::LANES));
                                    high.store(rows.add((2 * line + 1) * V::LANES));
                                }
                                self.store::<V>(image, block * M + row, pixel, rows);
                            }
                        }
                    }
                }
            }
            if !is_finite(poison.sum()) {
                self.met_not_finite.store(true, Relaxed);
            }
        }
    }

    /// Stores a vector of tiles of an output channel, which lie in `rows` as the upper and the lower pixels side by
    /// side.
    #[inline(always)]
    unsafe fn store<V: Simd<Elem = T>>(&self, image: usize, channel: usize, first: usize, rows: *const T) {
        let tile = &self.tile;
        let (conv, epilogue) = (tile.conv, tile.operands.epilogue);
        let ((h, w), width) = (conv.out_plane, conv.out.1);
        let tiles = V::LANES.min(tile.rows.len() * width - first);
        let channel = tile.group * conv.out_channels + channel;
        let plane = ((tile.images.start + image) * conv.groups * conv.out_channels + channel) * h * w;
        // SAFETY: the pixels are cut at the plane's edges; `epilogue` has been checked.
        unsafe {
            let bias = epilogue.bias.map(|bias| V::splat(*bias.get_unchecked(channel)));
            let mut done = 0;
            while done < tiles {
                let (ty, tx) = (tile.rows.start + (first + done) / width, (first + done) % width);
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
                        if let Some(skip) = epilogue.skip {
                            y = y.add(V::load_first(skip.as_ptr().add(place + x), count));
                        }
                        epilogue.activation.apply(y).store_first(tile.operands.out.at(place + x), count);
                    }
                }
                done += run;
            }
        }
    }
}

/// G · w · Gᵀ of every kernel: (group, 16, out, in). The kernel of (group, out, in) starts at `at` of `weight`, its
/// taps in the order that `tap` gives them; `scale` has a factor for each output.
fn transform_weights<T: Real>(
    weight: &[T],
    (groups, out, channels): (usize, usize, usize),
    at: impl Fn(usize, usize, usize) -> usize + Sync,
    tap: impl Fn(usize) -> usize + Sync,
    scale: Option<&[T]>,
) -> Vec<T> {
    let half = T::from_f64(0.5);
    let each = |a: T, b: T, c: T| [a, half * (a + b + c), half * (a - b + c), c];
    let mut transformed = vec![T::zero(); groups * 16 * out * channels];
    transformed.par_chunks_exact_mut(16 * out * channels).enumerate().for_each(|(group, transformed)| {
        for row in 0..out {
            let factor = scale.map_or(T::one(), |scale| scale[group * out + row]);
            for channel in 0..channels {
                let kernel = &weight[at(group, row, channel)..][..9];
                let w = |i: usize| kernel[tap(i)] * factor;
                let rows: [[T; 4]; 3] = std::array::from_fn(|x| each(w(x), w(3 + x), w(6 + x)));
                for y in 0..4 {
                    for (x, value) in each(rows[0][y], rows[1][y], rows[2][y]).into_iter().enumerate() {
                        transformed[((4 * y + x) * out + row) * channels + channel] = value;
                    }
                }
            }
        }
    });
    transformed
}

/// Bᵀ · x · B
///
/// # Safety
/// Below `dispatch`.
#[inline(always)]
unsafe fn transform_input<V: Simd>(x: [V; 16]) -> [V; 16] {
    // SAFETY: the caller's.
    unsafe {
        let mut t = [V::zero(); 16];
        for i in 0..4 {
            let (a, b, c, d) = (x[i], x[4 + i], x[8 + i], x[12 + i]);
            (t[i], t[4 + i], t[8 + i], t[12 + i]) = (a.sub(c), b.add(c), c.sub(b), b.sub(d));
        }
        let mut u = [V::zero(); 16];
        for i in 0..4 {
            let (a, b, c, d) = (t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]);
            (u[4 * i], u[4 * i + 1], u[4 * i + 2], u[4 * i + 3]) = (a.sub(c), b.add(c), c.sub(b), b.sub(d));
        }
        u
    }
}

/// Aᵀ · m · A: the upper left, upper right, lower left and lower right pixels.
///
/// # Safety
/// Below `dispatch`.
#[inline(always)]
unsafe fn transform_output<V: Simd>(m: [V; 16]) -> [V; 4] {
    // SAFETY: the caller's.
    unsafe {
        let mut t = [V::zero(); 8];
        for i in 0..4 {
            t[i] = m[i].add(m[4 + i]).add(m[8 + i]);
            t[4 + i] = m[4 + i].sub(m[8 + i]).sub(m[12 + i]);
        }
        [t[0].add(t[1]).add(t[2]), t[1].sub(t[2]).sub(t[3]), t[4].add(t[5]).add(t[6]), t[5].sub(t[6]).sub(t[7])]
    }
}

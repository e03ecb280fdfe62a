//! The gradient of the weight on small planes: for every tap the sum of its pairs' products.

use super::pack::{ChannelsLast, Planes};
use super::{Rows, tap_pairs};
use crate::kernels::blocking::SMALL_PLANES_INPUT;
use crate::kernels::buffer::{Shared, written, written_by_tasks};
use crate::kernels::conv::geometry::Geometry;
use crate::kernels::microkernel::{RegisterTile, microkernel_of_rows};
use crate::kernels::simd::{Kernel, Real, Simd, dispatch_at};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;

pub(in crate::kernels::conv) fn weight_grad<T: Real>(g: &Geometry, xs: &[T], grad: &[T]) -> Vec<T> {
    let (groups, c, o, taps) = (g.params.groups, g.group_in(), g.group_out(), g.kh * g.kw);
    let (from, to) = (g.input_plane(), g.output_plane());
    let shape = RegisterTile::current::<T>();
    let width = 2 * shape.lanes;
    let panels = c.div_ceil(width);
    // Outputs of a task, whole tiles; fewer where there are not many tasks.
    let block = if groups * panels * o >= 16 * 32 { 32 } else { 8 };
    let blocks = o.div_ceil(block);
    let rows = Rows::of(g);
    // As many images at a time as leave a panel in the second-level cache.
    let images = (SMALL_PLANES_INPUT / (from.max(to) * width * size_of::<T>())).clamp(1, g.b);
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
                        let turn = ChannelsLast { source, images: image, group, slot, rows, of, piece, step, to };
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
                    tap_pairs(g).into_iter().for_each(|(tap, out, at)| pairs[tap].push((out * n, at * n)));
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
                let sum = TapGemm {
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
struct TapGemm<'a, T> {
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

impl<T: Real> Kernel<T> for TapGemm<'_, T> {
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

impl<T: Real> TapGemm<'_, T> {
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
                        sums = microkernel_of_rows::<V, M, 2>(self.count, a, M, b, 2 * V::LANES, sums);
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

//! Operands of small planes, packed: images with channels innermost, weights in panels of outputs.

use super::{Plan, Rows};
use crate::kernels::buffer::{Shared, written_by_tasks};
use crate::kernels::microkernel::RegisterTile;
use crate::kernels::simd::{Kernel, Real, Simd, dispatch_at};
use rayon::prelude::*;
use std::ops::Range;

/// Images (image, group, channel, pixel).
#[derive(Clone, Copy)]
pub(super) struct Planes<'a, T> {
    pub input: &'a [T],
    pub groups: usize,
    pub channels: usize,
    pub pixels: usize,
}

/// A group's channels laid innermost, in pieces: (piece, row, channel of the piece). Zeros fill the last channel's
/// vector, and its piece if there are several. The rows are those of `of` images, these from image `slot` on.
pub(super) struct ChannelsLast<'a, T> {
    pub source: Planes<'a, T>,
    pub images: Range<usize>,
    pub group: usize,
    pub slot: usize,
    pub rows: Rows,
    pub of: usize,
    /// Channels of a piece: a vector's, or several, or a part of them that divides them.
    pub piece: usize,
    /// From a piece to the next.
    pub step: usize,
    pub to: *mut T,
}

impl<T: Real> Kernel<T> for ChannelsLast<'_, T> {
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
                    // SAFETY: below `dispatch`; a block is read whole only where the input goes on, and written to rows
                    // of the caller's room.
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

/// Weights of the taps, packed: (group, panel of outputs, tap, input, output of the panel), zeros behind the last
/// output.
pub(super) struct TapPanels<T> {
    data: Vec<T>,
    panels: usize,
    size: usize,
    pub shape: RegisterTile,
}

impl<T: Real> TapPanels<T> {
    /// Packs (group, out, in, tap); with the roles of out and in exchanged if `transposed`.
    pub fn new(weight: &[T], plan: &Plan, taps: usize, transposed: bool) -> Self {
        let (k, n) = plan.channels;
        assert_eq!(weight.len(), plan.groups * k * n * taps);
        let shape = RegisterTile::current::<T>();
        let width = 2 * shape.lanes;
        let (panels, size) = (n.div_ceil(width), taps * k * width);
        let fill = |data: Shared<T>| {
            (0..plan.groups * panels).into_par_iter().for_each(|task| {
                // SAFETY: a panel for each task.
                let to = unsafe { data.at(task * size) };
                let weight = &weight[task / panels * k * n * taps..][..k * n * taps];
                let first = task % panels * width;
                dispatch_at(shape.level, PackTaps { weight, k, n, taps, transposed, first, to });
            });
        };
        // SAFETY: `PackTaps` fills its panel.
        let data = unsafe { written_by_tasks(plan.groups * panels * size, fill) };
        Self { data, panels, size, shape }
    }

    pub fn panel(&self, group: usize, panel: usize) -> &[T] {
        &self.data[(group * self.panels + panel) * self.size..][..self.size]
    }
}

struct PackTaps<'a, T> {
    weight: &'a [T],
    k: usize,
    n: usize,
    taps: usize,
    transposed: bool,
    first: usize,
    to: *mut T,
}

impl<T: Real> Kernel<T> for PackTaps<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let Self { weight, k, n, taps, transposed, first, to } = self;
        let width = 2 * V::LANES;
        // Output j, input i and tap t are at j · of_output + i · of_input + t.
        let (of_output, of_input) = if transposed { (taps, n * taps) } else { (k * taps, taps) };
        // Runs of consecutive numbers of one output: all its inputs' taps, or those of one input.
        let (runs, run) = if transposed { (k, taps) } else { (1, k * taps) };
        let mut block = [T::zero(); 256];
        for half in 0..2 {
            let output = first + half * V::LANES;
            for (start, at) in (0..runs).flat_map(|i| (0..run).step_by(V::LANES).map(move |at| (i, at))) {
                let count = V::LANES.min(run - at);
                let from = output * of_output + start * of_input + at;
                let rows = n.saturating_sub(output).min(V::LANES);
                // SAFETY: below `dispatch`; whole blocks are read only where the weights go on, and the panel has a
                // place for each input and tap.
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
                        let (input, tap) =
                            if transposed { (start, at + i) } else { ((at + i) / taps, (at + i) % taps) };
                        let to = to.add((tap * k + input) * width + half * V::LANES);
                        V::load(block.as_ptr().add(i * V::LANES)).store(to);
                    }
                }
            }
        }
    }
}

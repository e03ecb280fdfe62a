//! The tasks of a direct convolution, and what each works on.

use super::epilogue::Epilogue;
use super::packed_weights::PackedWeights;
use super::plan::{DirectConv, Tiling};
use crate::kernels::buffer::{Shared, with_scratch};
use crate::kernels::simd::Real;
use rayon::prelude::*;
use std::ops::Range;

/// What a [`DirectConv`] reads and writes.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a, T> {
    pub input: &'a [T],
    pub weights: &'a PackedWeights<T>,
    pub epilogue: &'a Epilogue<'a, T>,
    pub out: Shared<T>,
}

impl DirectConv {
    pub(super) fn tiling<T: Real>(&self, weights: &PackedWeights<T>) -> Tiling {
        Tiling::new(self, weights.shape, size_of::<T>(), rayon::current_num_threads())
    }

    /// Runs `f` for every tile, in parallel, each with scratch for its packed input and `staged` elements more. The
    /// lengths that a tile relies on are checked here.
    pub(super) fn for_tiles<T: Real>(
        &self,
        tiling: &Tiling,
        operands: Operands<T>,
        staged: usize,
        f: impl Fn(Tile<T>) + Sync,
    ) {
        let Operands { input, weights, epilogue, .. } = operands;
        let (inputs, outputs) = self.elements();
        assert_eq!(input.len(), inputs);
        assert_eq!(weights.rows, self.out_channels);
        assert!(epilogue.bias.is_none_or(|bias| bias.len() == self.groups * self.out_channels));
        assert!(epilogue.skip.is_none_or(|skip| skip.len() == outputs));
        let packed = tiling.packed(weights.shape.lanes);
        let bands = self.out.0.div_ceil(tiling.rows);
        let bunches = self.images.div_ceil(tiling.images);
        (0..bunches * bands * self.groups * tiling.parts).into_par_iter().for_each(|task| {
            let (rest, part) = (task / tiling.parts, task % tiling.parts);
            let (rest, group) = (rest / self.groups, rest % self.groups);
            let (bunch, band) = (rest / bands, rest % bands);
            let images = bunch * tiling.images..self.images.min((bunch + 1) * tiling.images);
            let rows = band * tiling.rows..self.out.0.min((band + 1) * tiling.rows);
            let blocks = part * tiling.blocks..weights.blocks.min((part + 1) * tiling.blocks);
            if blocks.is_empty() {
                return;
            }
            with_scratch::<T, _>(packed + staged, |scratch| {
                // SAFETY: the scratch holds the packed input and what is staged behind it.
                let staged = unsafe { scratch.add(packed) };
                f(Tile { conv: self, tiling, operands, images, rows, group, blocks, scratch, staged });
            });
        });
    }
}

/// A task of a [`DirectConv`]: some images, or some rows of one, and some output channels of a group.
pub(super) struct Tile<'a, T> {
    pub conv: &'a DirectConv,
    pub tiling: &'a Tiling,
    pub operands: Operands<'a, T>,
    pub images: Range<usize>,
    pub rows: Range<usize>,
    pub group: usize,
    /// Row-blocks of the weights.
    pub blocks: Range<usize>,
    /// Room for the packed input, and for what is staged.
    pub scratch: *mut T,
    pub staged: *mut T,
}

impl<T: Real> Tile<'_, T> {
    /// Packed images, output pixels of each, and vectors of these.
    #[inline(always)]
    pub fn vectors(&self, lanes: usize) -> (usize, usize, usize) {
        let (images, pixels) = if self.tiling.is_unfolded {
            (1, self.images.len() * self.conv.out.0 * self.conv.out.1)
        } else {
            (self.images.len(), self.rows.len() * self.conv.out.1)
        };
        (images, pixels, pixels.div_ceil(lanes))
    }
}

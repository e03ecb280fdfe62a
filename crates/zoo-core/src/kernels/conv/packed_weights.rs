//! Weights in the order in which the register tile reads them.

use crate::kernels::microkernel::RegisterTile;
use crate::kernels::simd::Real;
use rayon::prelude::*;

/// A matrix for each group, packed in blocks of rows: `[group][block][k][row of the block]`, zeros behind the last row.
pub(super) struct PackedWeights<T> {
    data: Vec<T>,
    pub rows: usize,
    pub depth: usize,
    pub block: usize,
    pub blocks: usize,
    pub shape: RegisterTile,
}

impl<T: Real> PackedWeights<T> {
    /// Factor `channel · taps + tap` of row r of a group is element `start + r · step` of `weight`, with
    /// `(start, step) = place(group, channel, tap)`; `scale`, if given, has a factor for each row of each group.
    pub fn new(
        weight: &[T],
        (groups, rows, channels, taps): (usize, usize, usize, usize),
        place: impl Fn(usize, usize, usize) -> (usize, usize) + Sync,
        scale: Option<&[T]>,
    ) -> Self {
        let shape = RegisterTile::current::<T>();
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

    pub fn block_of(&self, group: usize, block: usize) -> &[T] {
        let size = self.block * self.depth;
        &self.data[(group * self.blocks + block) * size..][..size]
    }
}

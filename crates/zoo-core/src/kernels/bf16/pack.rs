//! f32 weights as columns of bfloat16 tiles: \[column of 16 outputs\]\[step\]\[pair\]\[16\]\[2\].

use super::sizes::Tap;
use super::tiles::SIDE;
use crate::kernels::buffer::{with_scratch, written};
use crate::kernels::simd::{Kernel, Simd, dispatch};
use half::bf16;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// f32 weights, those of all taps side by side.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    pub all: &'a [f32],
    /// From an output channel's weights to the next one's, and from a channel's.
    pub output: usize,
    pub channel: usize,
    /// Taps of a kernel.
    pub taps: usize,
    /// What each output channel's weights are multiplied by before they are rounded.
    pub scale: Option<&'a [f32]>,
}

/// Where a correlation's numbers stand in a column: those of one tap side by side, from `starts` on.
pub(super) struct Depths {
    /// Numbers of a column's row, zeros where no tap's are.
    pub numbers: usize,
    pub channels: usize,
    pub starts: Vec<usize>,
}

/// The weights as columns of tiles. They are read in the order in which they lie.
pub(super) fn pack(outputs: usize, depths: &Depths, taps: &[Tap], weights: Weights) -> Vec<bf16> {
    let column = depths.numbers * SIDE;
    let fill = |packed: &mut [MaybeUninit<bf16>]| {
        packed.par_chunks_exact_mut(column).enumerate().for_each(|(block, to)| {
            let outputs = block * SIDE..outputs.min((block + 1) * SIDE);
            // Rows of the column's outputs, and the weights that lie side by side, rounded.
            let narrow = if weights.output > weights.channel { depths.channels } else { outputs.len() } * weights.taps;
            with_scratch::<f32, _>((column + narrow).div_ceil(2), |room| {
                // SAFETY: the scratch has room for as many 16-bit numbers, and any bits are such.
                let room = unsafe { std::slice::from_raw_parts_mut(room.cast::<bf16>(), column + narrow) };
                let (rows, narrow) = room.split_at_mut(column);
                rows.fill(bf16::ZERO);
                spread(outputs, depths, taps, weights, rows, narrow);
                dispatch(Turn { rows, pairs: depths.numbers / 2, to });
            });
        });
    };
    // SAFETY: every column is turned whole.
    unsafe { written(outputs.div_ceil(SIDE) * column, fill) }
}

/// Rounds weights into the rows of their outputs. Those that are read input by input have no scale.
fn spread(
    outputs: std::ops::Range<usize>,
    depths: &Depths,
    taps: &[Tap],
    weights: Weights,
    rows: &mut [bf16],
    narrow: &mut [bf16],
) {
    let (channels, each) = (depths.channels, depths.numbers);
    let mut round = |at: usize, scale: f32| -> *const bf16 {
        let from = &weights.all[at..][..narrow.len()];
        dispatch(Round { from, scale, to: narrow });
        narrow.as_ptr()
    };
    let first = outputs.start;
    if weights.output > weights.channel {
        for output in outputs {
            let narrow = round(output * weights.output, weights.scale.map_or(1.0, |scale| scale[output]));
            let row = &mut rows[(output - first) * each..][..each];
            for (tap, &start) in taps.iter().zip(&depths.starts) {
                for (channel, to) in row[start..][..channels].iter_mut().enumerate() {
                    // SAFETY: the rounded numbers are the taps of all channels.
                    *to = unsafe { *narrow.add(channel * weights.taps + tap.index) };
                }
            }
        }
        return;
    }
    debug_assert!(weights.scale.is_none());
    for channel in 0..channels {
        let narrow = round(first * weights.output + channel * weights.channel, 1.0);
        for (output, row) in rows.chunks_exact_mut(each).take(outputs.len()).enumerate() {
            for (tap, &start) in taps.iter().zip(&depths.starts) {
                // SAFETY: the rounded numbers are the taps of the column's outputs.
                row[start + channel] = unsafe { *narrow.add(output * weights.taps + tap.index) };
            }
        }
    }
}

struct Round<'a> {
    from: &'a [f32],
    scale: f32,
    to: &'a mut [bf16],
}

impl Kernel<f32> for Round<'_> {
    const NARROWS: bool = true;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let (n, from, to) = (self.from.len(), self.from.as_ptr(), self.to.as_mut_ptr());
        let whole = n - n % V::LANES;
        // SAFETY: run by `dispatch`; both slices have n numbers.
        unsafe {
            let scale = V::splat(self.scale);
            for i in (0..whole).step_by(V::LANES) {
                V::load(from.add(i)).mul(scale).store_bf16(to.add(i));
            }
            V::load_first(from.add(whole), n - whole).mul(scale).store_first_bf16(to.add(whole), n - whole);
        }
    }
}

/// Sixteen rows of pairs, turned.
struct Turn<'a> {
    rows: &'a [bf16],
    pairs: usize,
    to: &'a mut [MaybeUninit<bf16>],
}

impl Kernel<f32> for Turn<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let Self { rows, pairs, to } = self;
        debug_assert!(rows.len() == 2 * SIDE * pairs && to.len() == rows.len());
        let (from, to) = (rows.as_ptr().cast::<f32>(), to.as_mut_ptr().cast::<f32>());
        let whole = pairs - pairs % V::LANES;
        // SAFETY: run by `dispatch`; pairs are 32-bit numbers that are moved and not looked at, in sixteen rows.
        unsafe {
            for row in (0..SIDE).step_by(V::LANES) {
                for pair in (0..whole).step_by(V::LANES) {
                    V::transpose(from.add(row * pairs + pair), pairs, to.add(pair * SIDE + row), SIDE);
                }
            }
            let (from, to) = (from.cast::<u32>(), to.cast::<u32>());
            for pair in whole..pairs {
                for row in 0..SIDE {
                    to.add(pair * SIDE + row).write_unaligned(from.add(row * pairs + pair).read_unaligned());
                }
            }
        }
    }
}

//! Any kernel, stride, padding and dilation, forwards and backwards: pixel by pixel, over the taps that reach it.

use super::finish::{Stats, load, load_f32};
use super::{Piece, Place};
use crate::kernels::simd::Simd;

/// For each place along one dimension of an output: the taps that reach it, and the places of the input where they lie.
pub(super) struct Reach {
    /// Where the pairs of a place begin; one more at the end.
    first: Vec<usize>,
    /// (tap, place)
    pairs: Vec<(usize, usize)>,
}

impl Reach {
    /// Of a convolution's outputs: place o·stride + tap·dilation - padding.
    pub fn forward((out, n): (usize, usize), kernel: usize, stride: usize, padding: usize, dilation: usize) -> Self {
        Self::new(out, kernel, |o, tap| (o * stride + tap * dilation).checked_sub(padding).filter(|place| *place < n))
    }

    /// Of its inputs: the outputs whose tap lies there.
    pub fn backward((n, out): (usize, usize), kernel: usize, stride: usize, padding: usize, dilation: usize) -> Self {
        Self::new(n, kernel, |i, tap| {
            let steps = (i + padding).checked_sub(tap * dilation).filter(|steps| steps.is_multiple_of(stride))?;
            Some(steps / stride).filter(|place| *place < out)
        })
    }

    fn new(places: usize, kernel: usize, place: impl Fn(usize, usize) -> Option<usize>) -> Self {
        let (mut first, mut pairs) = (vec![0], Vec::new());
        for to in 0..places {
            pairs.extend((0..kernel).filter_map(|tap| Some((tap, place(to, tap)?))));
            first.push(pairs.len());
        }
        Self { first, pairs }
    }

    /// (tap, place) of each tap that reaches `to`.
    #[inline(always)]
    pub fn at(&self, to: usize) -> &[(usize, usize)] {
        &self.pairs[self.first[to]..self.first[to + 1]]
    }
}

/// A row of outputs.
///
/// # Safety
/// Below `dispatch`; the place lies in the piece, with a vector of channels behind it unless all of them are less.
#[inline(always)]
pub(super) unsafe fn row<V: Simd<Elem = f32>, const WHOLE: bool>(p: &Piece, to: Place, stats: &mut Stats<V>) {
    let Place { image, row, channel } = to;
    let w = p.windows;
    let (c, n) = (w.c, V::LANES.min(w.c));
    let rows = w.reach.0.at(row);
    // SAFETY: what reaches an output lies in the input.
    unsafe {
        let shift = match p.shift {
            Some(shift) => load_f32::<V, WHOLE>(shift.as_ptr().add(channel), n),
            None => V::zero(),
        };
        let (x, taps) = (p.xs.as_ptr().add(channel), p.taps.as_ptr().add(channel));
        for column in 0..w.output.1 {
            let mut sum = shift;
            for &(ky, y) in rows {
                for &(kx, at) in w.reach.1.at(column) {
                    let x = load::<V, WHOLE>(x.add(((image * w.input.0 + y) * w.input.1 + at) * c), n);
                    sum = x.mul_add(load_f32::<V, WHOLE>(taps.add((ky * w.kernel.1 + kx) * c), n), sum);
                }
            }
            let to = ((image * w.output.0 + row) * w.output.1 + column) * c + channel;
            p.finish.put::<V, WHOLE>(sum, to, n, stats);
        }
    }
}

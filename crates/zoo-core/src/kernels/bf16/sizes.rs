//! The sizes of a cross-correlation, and the parts that tasks take of it.

use crate::kernels::conv::{Conv2dParams, Geometry};
use std::ops::Range;

/// Where one tap stands, from the output's place in the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tap {
    pub dy: isize,
    pub dx: isize,
    /// Its place in the kernel.
    pub index: usize,
}

/// Channels of a map that a group reads or writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Channels {
    pub all: usize,
    pub first: usize,
    pub used: usize,
}

/// The sizes of a correlation.
#[derive(Debug, Clone)]
pub(super) struct Correlation {
    pub images: usize,
    /// Height and width of the source, and of the outputs that are computed.
    pub source: (usize, usize),
    pub out: (usize, usize),
    pub stride: (usize, usize),
    /// Row by row, from left to right.
    pub taps: Vec<Tap>,
    pub from: Channels,
    pub to: Channels,
    /// Height and width of the map that is written, and the place of the first output in it and the step to the next.
    pub target: (usize, usize),
    pub start: (usize, usize),
    pub step: (usize, usize),
}

impl Correlation {
    pub fn place(&self, image: usize, y: usize, x: usize) -> usize {
        (image * self.target.0 + self.start.0 + y * self.step.0) * self.target.1 + self.start.1 + x * self.step.1
    }

    /// Whether rows and outputs are pixels of one map, and nothing lies between.
    pub fn is_in_place(&self) -> bool {
        self.stride == (1, 1) && self.out == self.source && matches!(self.taps[..], [Tap { dy: 0, dx: 0, .. }])
    }
}

/// What one task computes.
#[derive(Debug, Clone)]
pub(super) enum Part {
    Rows(Range<usize>),
    /// Images, and rows of their outputs.
    Images(Range<usize>, Range<usize>),
}

/// A row that is no output.
pub(super) const NOWHERE: u32 = u32::MAX;

/// Rows from an image to the next one in a frame where the zeros below an image are those above the next: behind the last
/// row that holds pixels, and so far that the last output's taps reach no pixel of the next image. `out` and `source` are
/// rows of outputs and of pixels; taps reach from `top` to `bottom` of an output's own row.
pub(super) fn period(out: usize, source: usize, (top, bottom): (isize, isize)) -> usize {
    let whole = out + (bottom - top) as usize;
    let needed = (out as isize).max(out as isize + bottom).max(source as isize - top);
    whole.min(needed as usize)
}

/// The taps of the forward pass.
pub(super) fn window(g: &Geometry) -> Vec<Tap> {
    let Conv2dParams { padding, dilation, .. } = g.params;
    let places = (0..g.kh).flat_map(|ky| (0..g.kw).map(move |kx| (ky, kx)));
    let tap = |(ky, kx): (usize, usize)| Tap {
        dy: (ky * dilation.0) as isize - padding.0 as isize,
        dx: (kx * dilation.1) as isize - padding.1 as isize,
        index: ky * g.kw + kx,
    };
    places.map(tap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row r of an image's part of a frame is its pixels' row r + top. Where two images' rows meet, both are zeros.
    #[test]
    fn images_of_a_frame_meet_in_zeros() {
        for (out, source) in (1..7usize).flat_map(|out| (1..9usize).map(move |source| (out, source))) {
            for (top, bottom) in (-4..4isize).flat_map(|top| (top..4).map(move |bottom| (top, bottom))) {
                let period = period(out, source, (top, bottom));
                let rows = out + (bottom - top) as usize;
                assert!(period >= out && period <= rows, "outputs are rows of their own");
                let is_zero = |row: usize| !(0..source as isize).contains(&(row as isize + top));
                let shared = period..rows;
                let meets = |row: usize| is_zero(row) && is_zero(row - period);
                assert!(shared.clone().all(meets), "{out} of {source}, taps {top} to {bottom}: {period}");
            }
        }
    }
}

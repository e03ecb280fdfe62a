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

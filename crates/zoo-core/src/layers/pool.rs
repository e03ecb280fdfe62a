//! Pooling layers.

use crate::ops::{adaptive_avg_pool2d as adaptive, avg_pool2d, max_pool2d};
use crate::tape;
use crate::trace::{self, Step};
use candle_core::{Module, Result, Tensor};

/// The largest element under each window, see [`max_pool2d`].
#[derive(Debug, Clone, Copy)]
pub struct MaxPool2d {
    /// Side of the window.
    pub kernel: usize,
    /// Step of the window.
    pub stride: usize,
    /// Padding on every side, which never wins.
    pub padding: usize,
    /// Whether a last window may reach over the edge.
    pub ceil_mode: bool,
}

impl MaxPool2d {
    /// No padding, no `ceil_mode`.
    pub const fn new(kernel: usize, stride: usize) -> Self {
        Self { kernel, stride, padding: 0, ceil_mode: false }
    }
}

impl Module for MaxPool2d {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let pair = |n| (n, n);
        let run = || max_pool2d(xs, pair(self.kernel), pair(self.stride), pair(self.padding), self.ceil_mode);
        let Self { kernel, stride, padding, ceil_mode } = *self;
        trace::op(Step::MaxPool { kernel, stride, padding, ceil_mode }, &[xs], run)
    }
}

/// The mean under each window, see [`avg_pool2d`].
#[derive(Debug, Clone, Copy)]
pub struct AvgPool2d {
    /// Side of the window.
    pub kernel: usize,
    /// Step of the window.
    pub stride: usize,
    /// Zeros on every side.
    pub padding: usize,
    /// Whether a last window may reach over the edge.
    pub ceil_mode: bool,
    /// Whether the padding's zeros count in the mean.
    pub count_include_pad: bool,
}

impl AvgPool2d {
    /// No padding, no `ceil_mode`.
    pub const fn new(kernel: usize, stride: usize) -> Self {
        Self { kernel, stride, padding: 0, ceil_mode: false, count_include_pad: true }
    }
}

impl Module for AvgPool2d {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let pair = |n| (n, n);
        let Self { kernel, stride, padding, ceil_mode, count_include_pad } = *self;
        let run = || avg_pool2d(xs, pair(kernel), pair(stride), pair(padding), ceil_mode, count_include_pad);
        trace::op(Step::AvgPool { kernel, stride, padding, ceil_mode, count_include_pad }, &[xs], run)
    }
}

/// The mean over all pixels of each channel: (b, c, h, w) -> (b, c).
///
/// # Errors
/// An input that is not (b, c, h, w).
pub fn global_avg_pool2d(xs: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = xs.dims4()?;
    let mean = || tape::reshape(&avg_pool2d(xs, (h, w), (1, 1), (0, 0), false, false)?, (b, c));
    trace::op(Step::GlobalAvgPool, &[xs], mean)
}

/// The mean over each cell of a grid of `size` laid over the image, see [`crate::ops::adaptive_avg_pool2d`]:
/// (b, c, h, w) -> (b, c, size.0, size.1).
///
/// # Errors
/// An input that is not (b, c, h, w).
pub fn adaptive_avg_pool2d(xs: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    trace::op(Step::AdaptiveAvgPool { size }, &[xs], || adaptive(xs, size))
}

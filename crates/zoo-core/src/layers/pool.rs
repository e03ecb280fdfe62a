//! Pooling layers.

use crate::ops::{adaptive_avg_pool2d as adaptive, avg_pool2d, max_pool2d};
use crate::{tape, trace};
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
        // A window of one pixel only leaves pixels out.
        let kind = if self.kernel == 1 { "Subsample" } else { "MaxPool" };
        trace::op(kind, || window(self.kernel, self.stride), &[xs], run)
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
        let (kernel, stride, padding) = (pair(self.kernel), pair(self.stride), pair(self.padding));
        let run = || avg_pool2d(xs, kernel, stride, padding, self.ceil_mode, self.count_include_pad);
        trace::op("AvgPool", || window(self.kernel, self.stride), &[xs], run)
    }
}

fn window(kernel: usize, stride: usize) -> String {
    if stride == 1 { format!("{kernel}x{kernel}") } else { format!("{kernel}x{kernel}, stride {stride}") }
}

/// The mean over all pixels of each channel: (b, c, h, w) -> (b, c).
///
/// # Errors
/// An input that is not (b, c, h, w).
pub fn global_avg_pool2d(xs: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = xs.dims4()?;
    trace::op(
        "AvgPool",
        || "global".to_string(),
        &[xs],
        || tape::reshape(&avg_pool2d(xs, (h, w), (1, 1), (0, 0), false, false)?, (b, c)),
    )
}

/// The mean over each cell of a grid of `size` laid over the image, see [`crate::ops::adaptive_avg_pool2d`]:
/// (b, c, h, w) -> (b, c, size.0, size.1).
///
/// # Errors
/// An input that is not (b, c, h, w).
pub fn adaptive_avg_pool2d(xs: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    trace::op("AvgPool", || format!("to {}x{}", size.0, size.1), &[xs], || adaptive(xs, size))
}

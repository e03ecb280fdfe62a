//! Steps without weights that join or rearrange tensors: what shortcuts, dense connections and grouped convolutions
//! need.

use crate::trace::{self, Step};
use crate::{ops, tape};
use candle_core::{Module, Result, Tensor};

/// a + b, element by element: where a shortcut meets its branch.
///
/// # Errors
/// Shapes that differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    trace::op(Step::Add, &[a, b], || ops::add(a, b))
}

/// Tensors one behind the other along `dim`: where branches meet.
///
/// # Errors
/// Shapes that differ elsewhere, or nothing to join.
pub fn concat(parts: &[&Tensor], dim: usize) -> Result<Tensor> {
    trace::op(Step::Concat { dim }, parts, || ops::concat(parts, dim))
}

/// (b, s, c) -> (b, c, s): channels as rows.
///
/// # Errors
/// An input of fewer than three dimensions.
pub fn transpose(xs: &Tensor) -> Result<Tensor> {
    trace::op(Step::Transpose, &[xs], || ops::transpose(xs))
}

/// [`transpose`] as a layer.
#[derive(Debug, Clone, Copy)]
pub struct Transpose;

impl Module for Transpose {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        transpose(xs)
    }
}

/// All dimensions but the first as one: (b, …) -> (b, n).
///
/// # Errors
/// A scalar.
pub fn flatten(xs: &Tensor) -> Result<Tensor> {
    let rest: usize = xs.dims().iter().skip(1).product();
    // A view.
    trace::fused(None, || trace::op(Step::Flatten, &[xs], || tape::reshape(xs, (xs.dim(0)?, rest))))
}

/// Zero channels below and above: (b, c, h, w) -> (b, below + c + above, h, w).
///
/// # Errors
/// An input of fewer than two dimensions.
pub fn pad_channels(xs: &Tensor, below: usize, above: usize) -> Result<Tensor> {
    trace::op(Step::PadChannels { below, above }, &[xs], || ops::pad_channels(xs, below, above))
}

/// [`pad_channels`] as a layer.
#[derive(Debug, Clone, Copy)]
pub struct PadChannels {
    /// Zero channels in front of the others.
    pub below: usize,
    /// Zero channels behind them.
    pub above: usize,
}

impl Module for PadChannels {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        pad_channels(xs, self.below, self.above)
    }
}

/// Deals the channels out: channel j of group i becomes channel i of group j (Zhang et al. 2017, arXiv:1707.01083,
/// figure 1), so that the next grouped convolution sees every group. (b, c, h, w) -> (b, c, h, w)
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::arange(0f32, 6., &Device::Cpu)?.reshape((1, 6, 1, 1))?;
/// let ys = zoo_core::channel_shuffle(&xs, 2)?.flatten_all()?;
/// assert_eq!(ys.to_vec1::<f32>()?, [0., 3., 1., 4., 2., 5.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// An input that is not (b, c, h, w), or channels that the groups do not divide.
pub fn channel_shuffle(xs: &Tensor, groups: usize) -> Result<Tensor> {
    let run = || ops::channel_shuffle(xs, groups);
    trace::op(Step::ChannelShuffle { groups }, &[xs], run)
}

/// [`channel_shuffle`] as a layer, with this number of groups.
#[derive(Debug, Clone, Copy)]
pub struct ChannelShuffle(pub usize);

impl Module for ChannelShuffle {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        channel_shuffle(xs, self.0)
    }
}

//! Steps without weights that join or rearrange tensors: what shortcuts, dense connections and grouped convolutions need.

use crate::ops::BatchStats;
use crate::ops::joined::can_stay_apart;
use crate::{ops, tape, trace};
use candle_core::{Result, Tensor};

/// a + b, element by element: where a shortcut meets its branch.
///
/// # Errors
/// Shapes that differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    trace::op("Add", String::new, &[a, b], || ops::add(a, b))
}

/// Tensors one behind the other along `dim`: where branches meet.
///
/// # Errors
/// Shapes that differ elsewhere, or nothing to join.
pub fn concat(parts: &[&Tensor], dim: usize) -> Result<Tensor> {
    trace::op("Concat", String::new, parts, || ops::concat(parts, dim))
}

/// Maps one behind the other along the channels, of which a dense block's layers read more and more: (b, Σ cᵢ, h, w).
///
/// [`concat()`] copies all of them for every layer. Where a kernel can read them from where they are, they stay apart, and each one's
/// statistics are made once; elsewhere, and for a tracer, this is [`concat()`].
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::Joined;
/// let map = |channels: usize| Tensor::ones((2, channels, 4, 4), DType::F32, &Device::Cpu);
/// let mut maps = Joined::new(map(8)?, false)?;
/// maps.push(map(3)?)?;
/// assert_eq!(maps.whole()?.dims(), &[2, 11, 4, 4]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Joined {
    /// One alone unless they stay apart; in training with its statistics.
    maps: Vec<(Tensor, Option<BatchStats>)>,
    is_apart: bool,
    train: bool,
}

impl Joined {
    /// One map, others to come.
    ///
    /// # Errors
    /// What its statistics refuse.
    pub fn new(map: Tensor, train: bool) -> Result<Self> {
        let is_apart = !trace::is_watched() && can_stay_apart(&map, train);
        let mut joined = Self { maps: Vec::new(), is_apart, train };
        joined.push(map)?;
        Ok(joined)
    }

    /// Puts one more behind the others.
    ///
    /// # Errors
    /// Shapes that do not fit together.
    pub fn push(&mut self, map: Tensor) -> Result<()> {
        match self.maps.as_mut_slice() {
            [(whole, _)] if !self.is_apart => *whole = concat(&[whole, &map], 1)?,
            _ => {
                let stats = (self.is_apart && self.train).then(|| ops::batch_stats(&map)).transpose()?;
                self.maps.push((map, stats));
            }
        }
        Ok(())
    }

    /// All in one tensor.
    ///
    /// # Errors
    /// Shapes that do not fit together.
    pub fn whole(&self) -> Result<Tensor> {
        match self.maps.as_slice() {
            [(whole, _)] => Ok(whole.clone()),
            maps => concat(&maps.iter().map(|(map, _)| map).collect::<Vec<_>>(), 1),
        }
    }

    /// The maps with their statistics, if they stay apart.
    pub(crate) fn parts(&self) -> Option<&[(Tensor, Option<BatchStats>)]> {
        self.is_apart.then_some(&self.maps)
    }
}

/// (b, s, c) -> (b, c, s): channels as rows.
///
/// # Errors
/// An input of fewer than three dimensions.
pub fn transpose(xs: &Tensor) -> Result<Tensor> {
    trace::op("Transpose", String::new, &[xs], || tape::candle(&[xs], |xs| xs[0].transpose(1, 2)?.contiguous()))
}

/// All dimensions but the first as one: (b, …) -> (b, n).
///
/// # Errors
/// A scalar.
pub fn flatten(xs: &Tensor) -> Result<Tensor> {
    trace::op("Flatten", String::new, &[xs], || {
        let rest: usize = xs.dims().iter().skip(1).product();
        tape::reshape(xs, (xs.dim(0)?, rest))
    })
}

/// Zero channels below and above: (b, c, h, w) -> (b, below + c + above, h, w).
///
/// # Errors
/// An input of fewer than two dimensions.
pub fn pad_channels(xs: &Tensor, below: usize, above: usize) -> Result<Tensor> {
    trace::op("PadChannels", || format!("{below} + {above}"), &[xs], || ops::pad_channels(xs, below, above))
}

/// Deals the channels out: channel j of group i becomes channel i of group j (Zhang et al. 2017, arXiv:1707.01083, figure
/// 1), so that the next grouped convolution sees every group. (b, c, h, w) -> (b, c, h, w)
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
    trace::op("ChannelShuffle", || format!("{groups} groups"), &[xs], run)
}

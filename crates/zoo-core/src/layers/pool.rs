//! Pooling layers.

use crate::layers::Dropout;
use crate::ops::{adaptive_avg_pool2d as adaptive, avg_pool2d, max_pool2d};
use crate::tape;
use crate::trace::{self, Step};
use crate::vars::VarBuilder;
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::ModuleT;
use std::fmt;
use std::str::FromStr;

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

/// How a network's last features become one vector an image, by timm's names of `global_pool`.
///
/// ```
/// use zoo_core::GlobalPool;
/// assert_eq!("avgmax".parse(), Ok(GlobalPool::AvgMax));
/// assert_eq!(GlobalPool::Token.to_string(), "token");
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum GlobalPool {
    /// The mean over all pixels, or over all tokens but the class token.
    #[default]
    Avg,
    /// The largest value of each channel.
    Max,
    /// Half the mean and half the largest value.
    AvgMax,
    /// The class token.
    Token,
}

impl GlobalPool {
    /// Those of networks whose features are maps.
    pub const OF_MAPS: &[Self] = &[Self::Avg, Self::Max, Self::AvgMax];

    /// timm's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Avg => "avg",
            Self::Max => "max",
            Self::AvgMax => "avgmax",
            Self::Token => "token",
        }
    }
}

impl fmt::Display for GlobalPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for GlobalPool {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let all = [Self::Avg, Self::Max, Self::AvgMax, Self::Token];
        let found = all.into_iter().find(|pool| pool.name() == name);
        found.ok_or_else(|| format!("`{name}` is no global pooling: avg, max, avgmax and token are"))
    }
}

/// What stands between a network's last map and its classifier: a global pooling, then dropout.
/// (b, c, h, w) -> (b, c)
#[derive(Debug, Clone)]
pub struct PooledMap {
    pool: GlobalPool,
    dropout: Dropout,
}

impl PooledMap {
    /// `dropout` draws from the stream at `vb`.
    ///
    /// # Errors
    /// A pooling that maps do not have, a rate outside 0..1.
    pub fn new(pool: GlobalPool, dropout: f64, vb: &VarBuilder) -> Result<Self> {
        if !GlobalPool::OF_MAPS.contains(&pool) {
            bail!("{}: a map has no class token to pool by: avg, max and avgmax are there", vb.path())
        }
        Ok(Self { pool, dropout: Dropout::new(dropout, vb)? })
    }
}

impl ModuleT for PooledMap {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let (b, c, h, w) = xs.dims4()?;
        let max = || {
            let largest = || tape::reshape(&max_pool2d(xs, (h, w), (h, w), (0, 0), false)?, (b, c));
            trace::op(Step::GlobalMaxPool, &[xs], largest)
        };
        let pooled = match self.pool {
            GlobalPool::Max => max()?,
            GlobalPool::AvgMax => {
                let (avg, max) = (global_avg_pool2d(xs)?, max()?);
                let half = || tape::foreign_op(&[&avg, &max], |two| (&two[0] + &two[1])? * 0.5);
                trace::op(Step::Mean, &[&avg, &max], half)?
            }
            GlobalPool::Avg | GlobalPool::Token => global_avg_pool2d(xs)?,
        };
        self.dropout.forward_t(&pooled, train)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vars::VarStore;
    use candle_core::{DType, Device};

    /// With a tie, the first of the largest is the one, as in PyTorch's `AdaptiveMaxPool2d`.
    #[test]
    fn global_pools_are_what_they_are_called_and_so_are_their_gradients() -> Result<()> {
        let xs = Tensor::new(&[[[[1f64, 5., 5.], [-2., 0., 3.]], [[-1., -4., -3.], [-1., -2., -7.]]]], &Device::Cpu)?;
        let (third, zero) = (1.0 / 6.0, 0.0);
        let first = [zero, 1.0, zero, zero, zero, zero, 1.0, zero, zero, zero, zero, zero];
        for (pool, want, gradient) in [
            (GlobalPool::Avg, [2.0, -3.0], [third; 12]),
            (GlobalPool::Max, [5.0, -1.0], first),
            (GlobalPool::AvgMax, [3.5, -2.0], first.map(|g| 0.5 * (g + third))),
        ] {
            let store = VarStore::new(0, DType::F64, &Device::Cpu);
            let layer = PooledMap::new(pool, 0.0, &store.root())?;
            assert_eq!(layer.forward_t(&xs, false)?.to_vec2::<f64>()?, [want]);
            let var = candle_core::Var::from_tensor(&xs)?;
            let sum = crate::tape::recorded(var.as_tensor(), true, |xs| layer.forward_t(xs, true))?.sum_all()?;
            let found = sum.backward()?.get(&var).expect("a gradient").flatten_all()?.to_vec1::<f64>()?;
            assert!(found.iter().zip(gradient).all(|(a, b)| (a - b).abs() < 1e-15), "{pool}: {found:?}");
        }
        assert!(PooledMap::new(GlobalPool::Token, 0.0, &VarStore::shapes_only().root()).is_err());
        Ok(())
    }
}

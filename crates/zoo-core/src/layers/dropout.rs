//! Layers that drop at random in training, from seeded streams: the same masks on every device.

use crate::ops::scale;
use crate::rng::Rng;
use crate::trace::{self, Step};
use crate::vars::{DropoutStream, VarBuilder};
use candle_core::{Device, Result, Tensor, bail};
use candle_nn::ModuleT;

/// What is dropped together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Element,
    Channel,
    Sample,
}

/// In training, zeroes at random with probability `p` and scales the rest by 1 / (1 - p); in evaluation the identity.
///
/// Three kinds: elements ([`Dropout::new`], Srivastava et al. 2014), whole channels ([`Dropout::channels`], Tompson et
/// al. 2015, `Dropout2d`) and whole samples ([`Dropout::path`], Huang et al. 2016, arXiv:1603.09382: on a residual
/// branch this is stochastic depth, timm's `DropPath`).
#[derive(Debug, Clone)]
pub struct Dropout {
    p: f64,
    unit: Unit,
    stream: DropoutStream,
}

impl Dropout {
    fn with(p: f64, unit: Unit, vb: &VarBuilder) -> Result<Self> {
        if !(0.0..1.0).contains(&p) {
            bail!("{}: a dropout rate must lie in 0..1, got {p}", vb.path())
        }
        Ok(Self { p, unit, stream: vb.dropout_stream() })
    }

    /// Drops single elements with probability `p`.
    ///
    /// # Errors
    /// A `p` outside 0..1.
    pub fn new(p: f64, vb: &VarBuilder) -> Result<Self> {
        Self::with(p, Unit::Element, vb)
    }

    /// Drops whole channels of (b, c, …).
    ///
    /// # Errors
    /// A `p` outside 0..1.
    pub fn channels(p: f64, vb: &VarBuilder) -> Result<Self> {
        Self::with(p, Unit::Channel, vb)
    }

    /// Drops whole samples of (b, …): stochastic depth on a residual branch.
    ///
    /// # Errors
    /// A `p` outside 0..1.
    pub fn path(p: f64, vb: &VarBuilder) -> Result<Self> {
        Self::with(p, Unit::Sample, vb)
    }

    /// The rate of block `index` of `blocks` where stochastic depth rises evenly from 0 at the first to `rate` at the last.
    ///
    /// ```
    /// use zoo_core::Dropout;
    /// assert_eq!([0, 1, 4].map(|block| Dropout::rising(0.2, block, 5)), [0.0, 0.05, 0.2]);
    /// ```
    pub fn rising(rate: f64, index: usize, blocks: usize) -> f64 {
        rate * index as f64 / blocks.saturating_sub(1).max(1) as f64
    }

    /// Whether it drops anything, or hands its input on.
    pub(crate) fn drops(&self, train: bool) -> bool {
        train && self.p > 0.0 && !self.stream.is_off()
    }
}

/// What is not dropped is multiplied by this.
fn kept(p: f64) -> f32 {
    (1.0 / (1.0 - p)) as f32
}

/// `count` values that are 0 with probability `p` and 1 / (1 - p) otherwise.
fn mask(rng: &mut Rng, p: f64, count: usize) -> Vec<f32> {
    let (threshold, kept) = ((p * 2f64.powi(32)) as u64, kept(p));
    (0..count).map(|_| if u64::from(rng.next_u32()) < threshold { 0.0 } else { kept }).collect()
}

impl ModuleT for Dropout {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        if !self.drops(train) {
            return Ok(xs.clone());
        }
        let together = match self.unit {
            Unit::Element => xs.rank(),
            Unit::Channel => 2,
            Unit::Sample => 1,
        };
        let dims: Vec<usize> = xs.dims().iter().enumerate().map(|(i, &n)| if i < together { n } else { 1 }).collect();
        let values = mask(&mut self.stream.next_mask(), self.p, dims.iter().product());
        let mask = Tensor::from_vec(values, dims, &Device::Cpu)?.to_device(xs.device())?;
        trace::op(Step::Dropout { p: self.p }, &[xs], || scale::mask(xs, &mask, kept(self.p)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vars::VarStore;
    use candle_core::DType;

    fn drop(unit: fn(f64, &VarBuilder) -> Result<Dropout>, seed: u64, train: bool) -> Vec<f32> {
        let layer = unit(0.25, &VarStore::new(seed, DType::F32, &Device::Cpu).root().pp("drop")).unwrap();
        let xs = Tensor::ones((8, 16, 10, 10), DType::F32, &Device::Cpu).unwrap();
        layer.forward_t(&xs, train).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn rate_and_scale() {
        let ys = drop(Dropout::new, 0, true);
        let dropped = ys.iter().filter(|&&y| y == 0.0).count() as f64 / ys.len() as f64;
        // Four standard errors of a share of 0.25 among 12,800.
        assert!((dropped - 0.25).abs() < 0.016, "{dropped}");
        assert!(ys.iter().all(|&y| y == 0.0 || (y - 4.0 / 3.0).abs() < 1e-6));
    }

    #[test]
    fn evaluation_is_the_identity_and_the_seed_fixes_the_mask() {
        assert!(drop(Dropout::new, 0, false).iter().all(|&y| y == 1.0));
        assert_eq!(drop(Dropout::new, 1, true), drop(Dropout::new, 1, true));
        assert_ne!(drop(Dropout::new, 1, true), drop(Dropout::new, 2, true));
    }

    #[test]
    fn channels_and_samples_go_together() {
        let channels = drop(Dropout::channels, 0, true);
        assert!(channels.chunks(100).all(|c| c.iter().all(|&y| y == c[0])));
        let dropped = channels.chunks(100).filter(|c| c[0] == 0.0).count();
        assert!((10..55).contains(&dropped), "{dropped} of 128 channels");
        assert!(drop(Dropout::path, 0, true).chunks(1600).all(|s| s.iter().all(|&y| y == s[0])));
    }

    #[test]
    fn a_rate_outside_its_range_is_an_error() {
        let vb = VarStore::new(0, DType::F32, &Device::Cpu).root();
        assert!(Dropout::new(1.0, &vb).is_err() && Dropout::new(-0.1, &vb).is_err());
    }
}

//! How a parameter starts: the field's rules, drawn from the zoo's own seeded generator.
//!
//! Shapes are PyTorch's: a linear weight is (out, in), a convolution's (out, in / groups, kh, kw). With r = kh·kw
//! (1 for a linear layer), fan_in = in / groups · r and fan_out = out · r.

use crate::rng::Rng;
use candle_core::{Result, WithDType, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Which side of a layer the variance is kept on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fan {
    /// Keeps the variance of activations on the way forward.
    In,
    /// Keeps the variance of gradients on the way back.
    Out,
}

/// Whose rules fill a network's layers: its own, or PyTorch's defaults, whatever the network says.
///
/// Code in PyTorch that states no initial values starts by its defaults, and a published figure from such code is met from
/// the same start alone: [`VarStore::set_init`](crate::VarStore::set_init).
///
/// ```
/// use zoo_core::InitRule;
/// assert_eq!("torch".parse(), Ok(InitRule::Torch));
/// assert_eq!(InitRule::default().to_string(), "model");
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum InitRule {
    /// Each layer as the network's config says.
    #[default]
    Model,
    /// Convolutions, linear layers and patch embeddings by [`Init::TORCH_WEIGHT`], their biases by [`Init::torch_bias`], and
    /// norms at 1. Parameters that are no layer's, a class token or position embeddings, start as the network says.
    Torch,
}

impl InitRule {
    /// Its name in recipes and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Torch => "torch",
        }
    }
}

impl fmt::Display for InitRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for InitRule {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let found = [Self::Model, Self::Torch].into_iter().find(|rule| rule.name() == name);
        found.ok_or_else(|| format!("`{name}` is no initialisation: model and torch are"))
    }
}

/// The rule that fills a new parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Every element the same.
    Const(f64),
    /// U(lo, hi).
    Uniform {
        /// Lower end, included.
        lo: f64,
        /// Upper end, excluded.
        hi: f64,
    },
    /// N(mean, std²).
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        std: f64,
    },
    /// N(0, std²) cut at ±2, in absolute units (timm's `trunc_normal_`).
    TruncatedNormal {
        /// Standard deviation before the cut.
        std: f64,
    },
    /// N(0, 1 / fan_in), cut at two standard deviations of the normal that is cut: LeCun et al. 1998, as JAX and timm's
    /// `lecun_normal_` draw it.
    LecunNormal,
    /// N(0, gain² / fan): He et al. 2015 with gain √2 for ReLU.
    KaimingNormal {
        /// The side whose variance is kept.
        fan: Fan,
        /// √2 for ReLU, 1 for linear.
        gain: f64,
    },
    /// U(-b, b) with b = gain · √(3 / fan): He et al. 2015.
    KaimingUniform {
        /// The side whose variance is kept.
        fan: Fan,
        /// √2 for ReLU, 1 for linear.
        gain: f64,
    },
    /// N(0, gain² · 2 / (fan_in + fan_out)): Glorot and Bengio 2010.
    XavierNormal {
        /// 1 for linear, sigmoid-like layers.
        gain: f64,
    },
    /// U(-b, b) with b = gain · √(6 / (fan_in + fan_out)): Glorot and Bengio 2010.
    XavierUniform {
        /// 1 for linear, sigmoid-like layers.
        gain: f64,
    },
}

impl Init {
    /// All zeros.
    pub const ZEROS: Self = Self::Const(0.0);
    /// All ones.
    pub const ONES: Self = Self::Const(1.0);
    /// He et al.'s normal rule for layers followed by ReLU, on fan-out: what torchvision gives its convolutions.
    pub const HE_FAN_OUT: Self = Self::KaimingNormal { fan: Fan::Out, gain: std::f64::consts::SQRT_2 };
    /// The same on fan-in: the rule as the ResNet paper states it.
    pub const HE_FAN_IN: Self = Self::KaimingNormal { fan: Fan::In, gain: std::f64::consts::SQRT_2 };
    /// PyTorch's own default for the weights of linear and convolution layers: U(-b, b) with b = 1 / √fan_in
    /// (`kaiming_uniform_` with a = √5).
    // gain = √(2 / (1 + 5)) = 1/√3.
    pub const TORCH_WEIGHT: Self = Self::KaimingUniform { fan: Fan::In, gain: 0.577_350_269_189_625_8 };

    /// PyTorch's default for a bias beside a weight of `fan_in`: U(-1/√fan_in, 1/√fan_in).
    pub fn torch_bias(fan_in: usize) -> Self {
        let bound = 1.0 / (fan_in.max(1) as f64).sqrt();
        Self::Uniform { lo: -bound, hi: bound }
    }

    /// Draws the elements of a parameter of shape `dims`, in row-major order: in f64, rounded once.
    ///
    /// # Errors
    /// A rule that needs fans on a shape of fewer than two dimensions.
    pub fn sample<T: WithDType>(&self, dims: &[usize], rng: &mut Rng) -> Result<Vec<T>> {
        let count = dims.iter().product();
        let normal = |rng: &mut Rng, std: f64| draw(count, 4, rng, |rng, _| std * rng.normal());
        let symmetric = |rng: &mut Rng, bound: f64| draw(count, 2, rng, |rng, _| rng.uniform_in(-bound, bound));
        let one_fan = |fan: Fan| -> Result<f64> {
            let (fan_in, fan_out) = fans(dims)?;
            Ok(if fan == Fan::In { fan_in } else { fan_out })
        };
        let both_fans = || fans(dims).map(|(i, o)| i + o);
        Ok(match *self {
            Self::Const(value) => vec![T::from_f64(value); count],
            Self::Uniform { lo, hi } => draw(count, 2, rng, |rng, _| rng.uniform_in(lo, hi)),
            Self::Normal { mean, std } => draw(count, 4, rng, |rng, _| mean + std * rng.normal()),
            Self::TruncatedNormal { std } => truncated(count, rng, std, 2.0),
            Self::LecunNormal => {
                // What the cut leaves of a standard normal's deviation; dividing by it keeps the variance at 1 /
                // fan_in.
                const LEFT: f64 = 0.879_625_661_034_239_8;
                let std = 1.0 / (one_fan(Fan::In)?.sqrt() * LEFT);
                truncated(count, rng, std, 2.0 * std)
            }
            Self::KaimingNormal { fan, gain } => normal(rng, gain / one_fan(fan)?.sqrt()),
            Self::KaimingUniform { fan, gain } => symmetric(rng, gain * (3.0 / one_fan(fan)?).sqrt()),
            Self::XavierNormal { gain } => normal(rng, gain * (2.0 / both_fans()?).sqrt()),
            Self::XavierUniform { gain } => symmetric(rng, gain * (6.0 / both_fans()?).sqrt()),
        })
    }
}

/// Elements that one task draws.
const BLOCK: usize = 1 << 14;

/// `count` values, value i from the `words` words of the stream that begin at i · words: the same in any number of
/// threads.
fn draw<T: WithDType>(count: usize, words: u64, rng: &mut Rng, value: impl Fn(&mut Rng, u64) -> f64 + Sync) -> Vec<T> {
    let start = rng.position();
    let mut values = vec![T::zero(); count];
    values.par_chunks_mut(BLOCK).enumerate().for_each(|(block, values)| {
        let (first, mut rng) = ((block * BLOCK) as u64, rng.clone());
        rng.seek(start + words * first);
        values.iter_mut().zip(first..).for_each(|(x, i)| *x = T::from_f64(value(&mut rng, i)));
    });
    rng.seek(start + words * count as u64);
    values
}

/// N(0, std²) cut at ±limit, by rejection instead of the inverse CDF that timm and PyTorch use: the same distribution.
/// The interval must hold a fair share of the mass. A value that falls outside is drawn again from words behind those
/// of all first tries.
fn truncated<T: WithDType>(count: usize, rng: &mut Rng, std: f64, limit: f64) -> Vec<T> {
    let start = rng.position();
    draw(count, 4, rng, |rng, i| {
        let mut round = 0;
        loop {
            rng.seek(start + 4 * (i + round * count as u64));
            let x = std * rng.normal();
            if x.abs() <= limit {
                rng.seek(start + 4 * (i + 1));
                return x;
            }
            round += 1;
        }
    })
}

/// (fan_in, fan_out) of a weight in PyTorch's layout.
fn fans(dims: &[usize]) -> Result<(f64, f64)> {
    let [out, inp, kernel @ ..] = dims else {
        bail!("init: fan-in and fan-out need a weight of at least 2 dimensions, got shape {dims:?}")
    };
    let r: usize = kernel.iter().product();
    Ok(((inp * r).max(1) as f64, (out * r).max(1) as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn std_of(init: Init, dims: &[usize]) -> f64 {
        let xs = init.sample::<f64>(dims, &mut Rng::new(5, "init")).unwrap();
        (xs.iter().map(|x| x * x).sum::<f64>() / xs.len() as f64).sqrt()
    }

    /// Standard deviations that the formulas of PyTorch's `torch.nn.init` documentation give for these shapes.
    #[test]
    fn spread_is_the_published_one() {
        let conv: &[usize] = &[64, 32, 3, 3]; // fan_in 288, fan_out 576
        let cases = [
            (Init::HE_FAN_OUT, (2.0f64 / 576.0).sqrt()),
            (Init::HE_FAN_IN, (2.0f64 / 288.0).sqrt()),
            (Init::KaimingUniform { fan: Fan::In, gain: 2f64.sqrt() }, (2.0f64 / 288.0).sqrt()),
            (Init::TORCH_WEIGHT, (1.0f64 / (3.0 * 288.0)).sqrt()),
            (Init::torch_bias(288), (1.0f64 / (3.0 * 288.0)).sqrt()),
            (Init::XavierNormal { gain: 1.0 }, (2.0f64 / 864.0).sqrt()),
            (Init::XavierUniform { gain: 1.0 }, (2.0f64 / 864.0).sqrt()),
            (Init::TruncatedNormal { std: 0.02 }, 0.02),
            (Init::LecunNormal, (1.0f64 / 288.0).sqrt()),
            (Init::Normal { mean: 0.0, std: 0.3 }, 0.3),
        ];
        for (init, expected) in cases {
            let got = std_of(init, conv);
            assert!((got / expected - 1.0).abs() < 0.02, "{init:?}: {got} against {expected}");
        }
    }

    /// What one task after the other would draw: the number of tasks and threads changes nothing.
    #[test]
    fn blocks_do_not_show() {
        let dims: &[usize] = &[3, BLOCK];
        for (init, one) in [
            (Init::Normal { mean: 1.0, std: 2.0 }, (|rng: &mut Rng| 1.0 + 2.0 * rng.normal()) as fn(&mut Rng) -> f64),
            (Init::Uniform { lo: -1.0, hi: 3.0 }, |rng: &mut Rng| rng.uniform_in(-1.0, 3.0)),
        ] {
            let (mut rng, mut other) = (Rng::new(3, "blocks"), Rng::new(3, "blocks"));
            let xs = init.sample::<f64>(dims, &mut rng).unwrap();
            assert!(xs.iter().all(|&x| x == one(&mut other)), "{init:?}");
            assert_eq!(rng.position(), other.position());
        }
    }

    /// Four standard errors of each estimate, at 1e5 draws.
    #[test]
    fn a_cut_normal_has_its_moments() {
        let xs = Init::TruncatedNormal { std: 1.0 }.sample::<f64>(&[100_000], &mut Rng::new(0, "moments")).unwrap();
        let mean = xs.iter().sum::<f64>() / xs.len() as f64;
        let var = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / xs.len() as f64;
        assert!(mean.abs() < 0.012 && (var - 0.7737).abs() < 0.012, "{mean} {var}");
    }

    /// A fifth of these fall outside at the first try.
    #[test]
    fn values_drawn_again_are_new() {
        let mut xs = Init::TruncatedNormal { std: 1.6 }.sample::<f64>(&[2, BLOCK], &mut Rng::new(3, "again")).unwrap();
        assert!(xs.iter().all(|x| x.abs() <= 2.0));
        xs.sort_by(f64::total_cmp);
        assert!(xs.windows(2).all(|pair| pair[0] < pair[1]), "a value came twice");
    }

    #[test]
    fn bounds_hold_and_vectors_have_no_fans() {
        let bound = 1.0 / 288f64.sqrt();
        let xs = Init::TORCH_WEIGHT.sample::<f64>(&[64, 32, 3, 3], &mut Rng::new(0, "b")).unwrap();
        assert!(xs.iter().all(|x| x.abs() <= bound));
        let error = Init::HE_FAN_IN.sample::<f64>(&[7], &mut Rng::new(0, "b")).unwrap_err().to_string();
        assert!(error.contains("[7]"), "{error}");
    }
}

//! Policies: which operations an image goes through, and how strong they are.
//!
//! Tables and strengths are torchvision's for TrivialAugment and AutoAugment, with its defaults: the nearest pixel, and
//! black outside.

use super::geometry::Sampling;
use super::ops::{Kind, Op};
use super::pixels::Pixels;
use super::rand_augment::RandAugment;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use zoo_core::rng::Rng;

/// A policy by its name, which is also how a recipe writes it.
///
/// ```
/// use zoo_train::augment::Policy;
/// let policy: Policy = "rand-m9-n2-mstd0.5-inc1".parse()?;
/// assert_eq!(policy.to_string(), "rand-m9-n2-mstd0.5-inc1");
/// assert_eq!("trivial-augment-wide".parse::<Policy>()?, Policy::TrivialAugmentWide);
/// assert!("rand-m9-x3".parse::<Policy>().is_err());
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Policy {
    /// `trivial-augment-wide`: one operation of any strength (Müller and Hutter 2021, arXiv 2103.10158).
    TrivialAugmentWide,
    /// `rand-m9-n2-…`, timm's spelling (Cubuk et al. 2019, arXiv 1909.13719).
    RandAugment(RandAugment),
    /// `autoaugment-cifar10`: one of 25 searched pairs (Cubuk et al. 2018, arXiv 1805.09501).
    AutoAugmentCifar10,
}

const TRIVIAL: &str = "trivial-augment-wide";
const AUTO: &str = "autoaugment-cifar10";

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TrivialAugmentWide => f.write_str(TRIVIAL),
            Self::RandAugment(rand) => rand.fmt(f),
            Self::AutoAugmentCifar10 => f.write_str(AUTO),
        }
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            TRIVIAL => Ok(Self::TrivialAugmentWide),
            AUTO => Ok(Self::AutoAugmentCifar10),
            _ if text == "rand" || text.starts_with("rand-") => text.parse().map(Self::RandAugment),
            _ => Err(format!("`{text}` is none of {TRIVIAL}, {AUTO} and rand-…, such as rand-m9-n2-mstd0.5-inc1")),
        }
    }
}

impl TryFrom<String> for Policy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Policy> for String {
    fn from(policy: Policy) -> Self {
        policy.to_string()
    }
}

impl Policy {
    /// The image after operations drawn from `rng`.
    pub fn apply(&self, image: Pixels, rng: &mut Rng) -> Pixels {
        let [_, height, width] = image.shape();
        let steps = self.sample([height, width], rng);
        steps.into_iter().fold(image, |image, (op, sampling)| op.apply(image, sampling))
    }

    /// The operations that an image of `size`, (height, width), goes through.
    fn sample(&self, size: [usize; 2], rng: &mut Rng) -> Vec<(Op, Sampling)> {
        match self {
            Self::TrivialAugmentWide => vec![(trivial_augment_wide(rng), Sampling::NEAREST)],
            Self::RandAugment(rand) => rand.sample(size, rng),
            Self::AutoAugmentCifar10 => {
                auto_augment(size, rng).into_iter().flatten().map(|op| (op, Sampling::NEAREST)).collect()
            }
        }
    }
}

/// How strong an operation may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Strength {
    /// It has no strength.
    None,
    /// Even steps between two values, in either direction.
    Signed(f32, f32),
    /// Even steps between two values.
    Unsigned(f32, f32),
    /// So many of eight bits are dropped at most, in even steps.
    Bits(f32),
}

impl Strength {
    /// The strength number `bin` of `bins`, before its sign.
    pub(super) fn at(self, bin: usize, bins: usize) -> f64 {
        match self {
            Self::None => 0.0,
            Self::Signed(from, to) | Self::Unsigned(from, to) => f64::from(linspace(from, to, bin, bins)),
            Self::Bits(most) => f64::from(8.0 - (bin as f32 / ((bins - 1) as f32 / most)).round_ties_even()),
        }
    }
}

/// Number `bin` of `torch.linspace(from, to, bins)`, which counts in f32 from the end that is nearer. Every product is
/// rounded together with its sum, as torch does on processors that multiply and add at once: without it, TrivialAugment
/// would move images by 16 pixels where torchvision cuts 15.999999 to 15.
fn linspace(from: f32, to: f32, bin: usize, bins: usize) -> f32 {
    let step = f64::from((to - from) / (bins - 1) as f32);
    let value = if bin < bins / 2 {
        f64::from(from) + step * bin as f64
    } else {
        f64::from(to) - step * (bins - 1 - bin) as f64
    };
    value as f32
}

/// torchvision's operation of a signed strength.
pub(super) fn torchvision_op(kind: Kind, strength: f64) -> Op {
    // An angle there and back, as torchvision goes: it costs the last digit, which may cost a level.
    let angle = || strength.atan().to_degrees().to_radians();
    match kind {
        Kind::Identity => Op::Identity,
        Kind::ShearX => Op::ShearX(angle().tan()),
        Kind::ShearY => Op::ShearY(angle().sin() / angle().cos()),
        Kind::TranslateX => Op::TranslateX(strength.trunc()),
        Kind::TranslateY => Op::TranslateY(strength.trunc()),
        Kind::Rotate => Op::Rotate(strength),
        Kind::Brightness => Op::Brightness(1.0 + strength),
        Kind::Color => Op::Color(1.0 + strength),
        Kind::Contrast => Op::Contrast(1.0 + strength),
        Kind::Sharpness => Op::Sharpness(1.0 + strength),
        Kind::Posterize => Op::Posterize(strength as u8),
        Kind::Solarize => Op::Solarize(strength),
        Kind::SolarizeAdd => Op::SolarizeAdd(strength as u8),
        Kind::AutoContrast => Op::AutoContrast,
        Kind::Equalize => Op::Equalize,
        Kind::Invert => Op::Invert,
    }
}

/// torchvision's `TrivialAugmentWide`: every operation with its widest range.
pub(super) const WIDE: [(Kind, Strength); 14] = [
    (Kind::Identity, Strength::None),
    (Kind::ShearX, Strength::Signed(0.0, 0.99)),
    (Kind::ShearY, Strength::Signed(0.0, 0.99)),
    (Kind::TranslateX, Strength::Signed(0.0, 32.0)),
    (Kind::TranslateY, Strength::Signed(0.0, 32.0)),
    (Kind::Rotate, Strength::Signed(0.0, 135.0)),
    (Kind::Brightness, Strength::Signed(0.0, 0.99)),
    (Kind::Color, Strength::Signed(0.0, 0.99)),
    (Kind::Contrast, Strength::Signed(0.0, 0.99)),
    (Kind::Sharpness, Strength::Signed(0.0, 0.99)),
    (Kind::Posterize, Strength::Bits(6.0)),
    (Kind::Solarize, Strength::Unsigned(255.0, 0.0)),
    (Kind::AutoContrast, Strength::None),
    (Kind::Equalize, Strength::None),
];

/// Steps of a strength in TrivialAugment.
pub(super) const WIDE_BINS: usize = 31;

fn trivial_augment_wide(rng: &mut Rng) -> Op {
    let (kind, range) = WIDE[rng.below(WIDE.len())];
    let strength = range.at(rng.below(WIDE_BINS), WIDE_BINS);
    let negative = matches!(range, Strength::Signed(..)) && rng.bernoulli(0.5);
    torchvision_op(kind, if negative { -strength } else { strength })
}

/// An operation of AutoAugment: how likely it is, and the number of its strength.
pub(super) type Searched = (Kind, f64, usize);

/// The policy that AutoAugment found on CIFAR-10 (Cubuk et al. 2018, table 7). Where there is no strength, the paper's
/// number is left out.
#[rustfmt::skip]
pub(super) const CIFAR10: [[Searched; 2]; 25] = [
    [(Kind::Invert, 0.1, 0), (Kind::Contrast, 0.2, 6)],
    [(Kind::Rotate, 0.7, 2), (Kind::TranslateX, 0.3, 9)],
    [(Kind::Sharpness, 0.8, 1), (Kind::Sharpness, 0.9, 3)],
    [(Kind::ShearY, 0.5, 8), (Kind::TranslateY, 0.7, 9)],
    [(Kind::AutoContrast, 0.5, 0), (Kind::Equalize, 0.9, 0)],
    [(Kind::ShearY, 0.2, 7), (Kind::Posterize, 0.3, 7)],
    [(Kind::Color, 0.4, 3), (Kind::Brightness, 0.6, 7)],
    [(Kind::Sharpness, 0.3, 9), (Kind::Brightness, 0.7, 9)],
    [(Kind::Equalize, 0.6, 0), (Kind::Equalize, 0.5, 0)],
    [(Kind::Contrast, 0.6, 7), (Kind::Sharpness, 0.6, 5)],
    [(Kind::Color, 0.7, 7), (Kind::TranslateX, 0.5, 8)],
    [(Kind::Equalize, 0.3, 0), (Kind::AutoContrast, 0.4, 0)],
    [(Kind::TranslateY, 0.4, 3), (Kind::Sharpness, 0.2, 6)],
    [(Kind::Brightness, 0.9, 6), (Kind::Color, 0.2, 8)],
    [(Kind::Solarize, 0.5, 2), (Kind::Invert, 0.0, 0)],
    [(Kind::Equalize, 0.2, 0), (Kind::AutoContrast, 0.6, 0)],
    [(Kind::Equalize, 0.2, 0), (Kind::Equalize, 0.6, 0)],
    [(Kind::Color, 0.9, 9), (Kind::Equalize, 0.6, 0)],
    [(Kind::AutoContrast, 0.8, 0), (Kind::Solarize, 0.2, 8)],
    [(Kind::Brightness, 0.1, 3), (Kind::Color, 0.7, 0)],
    [(Kind::Solarize, 0.4, 5), (Kind::AutoContrast, 0.9, 0)],
    [(Kind::TranslateY, 0.9, 9), (Kind::TranslateY, 0.7, 9)],
    [(Kind::AutoContrast, 0.9, 0), (Kind::Solarize, 0.8, 3)],
    [(Kind::Equalize, 0.8, 0), (Kind::Invert, 0.1, 0)],
    [(Kind::TranslateY, 0.7, 9), (Kind::AutoContrast, 0.9, 0)],
];

/// Steps of a strength in AutoAugment.
pub(super) const AUTO_BINS: usize = 10;

/// AutoAugment's range of an operation on images of `size`, (height, width).
pub(super) fn searched_range(kind: Kind, [height, width]: [usize; 2]) -> Strength {
    // The search was done on images of 331 pixels and moved them by up to 150.
    let share = |side: usize| (150.0 / 331.0 * side as f64) as f32;
    match kind {
        Kind::ShearX | Kind::ShearY => Strength::Signed(0.0, 0.3),
        Kind::TranslateX => Strength::Signed(0.0, share(width)),
        Kind::TranslateY => Strength::Signed(0.0, share(height)),
        Kind::Rotate => Strength::Signed(0.0, 30.0),
        Kind::Brightness | Kind::Color | Kind::Contrast | Kind::Sharpness => Strength::Signed(0.0, 0.9),
        Kind::Posterize => Strength::Bits(4.0),
        Kind::Solarize => Strength::Unsigned(255.0, 0.0),
        Kind::Identity | Kind::SolarizeAdd | Kind::AutoContrast | Kind::Equalize | Kind::Invert => Strength::None,
    }
}

fn auto_augment(size: [usize; 2], rng: &mut Rng) -> [Option<Op>; 2] {
    let pair = CIFAR10[rng.below(CIFAR10.len())];
    pair.map(|(kind, probability, bin)| {
        // Drawn whether or not they are needed: what one operation draws does not move the other.
        let (happens, negative) = (rng.bernoulli(probability), rng.bernoulli(0.5));
        let range = searched_range(kind, size);
        let strength = range.at(bin, AUTO_BINS);
        let negative = negative && matches!(range, Strength::Signed(..));
        happens.then(|| torchvision_op(kind, if negative { -strength } else { strength }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_strings() {
        for name in [TRIVIAL, AUTO, "rand-m9-n2-mstd0.5-inc1", "rand-m10-n2"] {
            let policy: Policy = name.parse().unwrap();
            let json = serde_json::to_string(&policy).unwrap();
            assert_eq!(json, format!("\"{name}\""));
            assert_eq!(serde_json::from_str::<Policy>(&json).unwrap(), policy);
        }
        let error = "augmix-m3".parse::<Policy>().unwrap_err();
        assert!(error.starts_with("`augmix-m3` is none of trivial-augment-wide"), "{error}");
        assert!(serde_json::from_str::<Policy>("\"rand-m9-tweights\"").is_err());
    }

    #[test]
    fn all_operations_are_drawn_and_evenly() {
        let mut rng = Rng::new(3, "policy");
        let mut counts = std::collections::HashMap::<String, usize>::new();
        for _ in 0..14_000 {
            let op = format!("{:?}", trivial_augment_wide(&mut rng));
            *counts.entry(op.split('(').next().unwrap().to_owned()).or_default() += 1;
        }
        // 1,000 expected, four standard deviations are 122.
        assert!(counts.len() == 14 && counts.values().all(|n| n.abs_diff(1000) < 125), "{counts:?}");
    }

    #[test]
    fn operations_of_auto_augment_are_as_likely_as_the_table_says() {
        let mut rng = Rng::new(4, "policy");
        let n = 20_000;
        let drawn: usize = (0..n).map(|_| auto_augment([32, 32], &mut rng).iter().flatten().count()).sum();
        let expected: f64 = CIFAR10.iter().flatten().map(|(_, p, _)| p).sum::<f64>() / 25.0;
        assert!((drawn as f64 / n as f64 - expected).abs() < 0.02, "{drawn} {expected}");
    }
}

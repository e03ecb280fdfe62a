//! RandAugment (Cubuk et al. 2019, arXiv 1909.13719) in timm's spelling, with timm's strengths.

use super::geometry::{Interpolation, Sampling};
use super::ops::{Kind, Op};
use std::fmt;
use std::str::FromStr;
use zoo_core::rng::Rng;

/// The strength from which on timm's arguments go beyond their usual range.
const LEVELS: f64 = 10.0;
/// A deviation above it means: any strength from 0 to the magnitude, all alike.
const UNIFORM: f64 = 100.0;

/// `rand-m9-n2-p0.5-mstd0.5-mmax10-inc1`: parts in any order, each of which may be left out.
///
/// | part | what it is | without |
/// |---|---|---|
/// | `m` | strength, a whole number | 10 |
/// | `n` | operations an image, drawn with repetition | 2 |
/// | `p` | how likely each of them happens | 0.5 |
/// | `mstd` | deviation of the strength; over 100: even from 0 to `m` | 0 |
/// | `mmax` | the highest strength | 10 |
/// | `inc` | 1: a higher strength always means a larger change | 0 |
///
/// As timm's transform without further settings, what is outside the image is grey (128), and pixels between pixels are
/// found bilinearly or bicubically by chance. timm's sets of operations (`t…`) are not known here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RandAugment {
    /// Strength.
    pub magnitude: u32,
    /// Operations an image.
    pub num_layers: usize,
    /// How likely each of them happens.
    pub prob: f64,
    /// Deviation of the strength.
    pub magnitude_std: f64,
    /// The highest strength.
    pub magnitude_max: u32,
    /// A higher strength always means a larger change.
    pub increasing: bool,
}

impl Default for RandAugment {
    fn default() -> Self {
        Self { magnitude: 10, num_layers: 2, prob: 0.5, magnitude_std: 0.0, magnitude_max: 10, increasing: false }
    }
}

impl fmt::Display for RandAugment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usual = Self::default();
        write!(f, "rand-m{}-n{}", self.magnitude, self.num_layers)?;
        if self.prob != usual.prob {
            write!(f, "-p{}", self.prob)?;
        }
        if self.magnitude_std != usual.magnitude_std {
            write!(f, "-mstd{}", self.magnitude_std)?;
        }
        if self.magnitude_max != usual.magnitude_max {
            write!(f, "-mmax{}", self.magnitude_max)?;
        }
        if self.increasing { f.write_str("-inc1") } else { Ok(()) }
    }
}

impl FromStr for RandAugment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('-');
        if parts.next() != Some("rand") {
            return Err(format!("`{text}` does not start with `rand`"));
        }
        let mut rand = Self::default();
        for part in parts {
            let wrong = || format!("`{text}`: `{part}` is none of m9, n2, p0.5, mstd0.5, mmax10 and inc1");
            let digits = part.find(|c: char| c.is_ascii_digit()).ok_or_else(wrong)?;
            let (key, value) = part.split_at(digits);
            let whole = || value.parse::<u32>().map_err(|_| wrong());
            let number = || value.parse::<f64>().ok().filter(|value| value.is_finite()).ok_or_else(wrong);
            match key {
                // More would take the longer the stronger they are asked for, and change nothing that is left.
                "m" => rand.magnitude = whole()?.min(1000),
                "n" => rand.num_layers = whole()?.min(1000) as usize,
                "p" => rand.prob = Some(number()?).filter(|p| *p <= 1.0).ok_or_else(wrong)?,
                "mstd" => rand.magnitude_std = number()?,
                "mmax" => rand.magnitude_max = Some(whole()?).filter(|most| *most > 0).ok_or_else(wrong)?,
                "inc" => rand.increasing = whole()? != 0,
                _ => return Err(wrong()),
            }
        }
        Ok(rand)
    }
}

/// timm's operations.
pub(super) const KINDS: [Kind; 15] = [
    Kind::AutoContrast,
    Kind::Equalize,
    Kind::Invert,
    Kind::Rotate,
    Kind::Posterize,
    Kind::Solarize,
    Kind::SolarizeAdd,
    Kind::Color,
    Kind::Contrast,
    Kind::Brightness,
    Kind::Sharpness,
    Kind::ShearX,
    Kind::ShearY,
    Kind::TranslateX,
    Kind::TranslateY,
];

impl RandAugment {
    /// The operations that an image of `size`, (height, width), goes through.
    pub(super) fn sample(&self, size: [usize; 2], rng: &mut Rng) -> Vec<(Op, Sampling)> {
        let one = |_| {
            let kind = KINDS[rng.below(KINDS.len())];
            let happens = rng.bernoulli(self.prob);
            let (level, negative) = (self.level(rng), rng.bernoulli(0.5));
            let interpolation = if rng.bernoulli(0.5) { Interpolation::Bilinear } else { Interpolation::Bicubic };
            let sampling = Sampling { interpolation, fill: [128; 3] };
            happens.then(|| (op(kind, level, self.increasing, negative, size), sampling))
        };
        (0..self.num_layers).filter_map(one).collect()
    }

    /// The strength of one operation. Every draw takes the same words, whatever the settings.
    fn level(&self, rng: &mut Rng) -> f64 {
        let (share, normal) = (rng.uniform(), rng.normal());
        let magnitude = f64::from(self.magnitude);
        let level = match self.magnitude_std {
            std if std > UNIFORM => magnitude * share,
            std => magnitude + std * normal,
        };
        level.clamp(0.0, f64::from(self.magnitude_max))
    }
}

/// timm's operation of a strength on an image of `size`, (height, width).
pub(super) fn op(kind: Kind, level: f64, increasing: bool, negative: bool, [height, width]: [usize; 2]) -> Op {
    let share = level / LEVELS;
    let signed = |value: f64| if negative { -value } else { value };
    // Without change at 1; or from nearly nothing to nearly twice as much.
    let factor = || if increasing { (1.0 + signed(share * 0.9)).max(0.1) } else { share * 1.8 + 0.1 };
    match kind {
        Kind::AutoContrast => Op::AutoContrast,
        Kind::Equalize => Op::Equalize,
        Kind::Invert => Op::Invert,
        Kind::Rotate => Op::Rotate(signed(share * 30.0)),
        Kind::Posterize => {
            let bits = (share * 4.0) as u8;
            Op::Posterize(if increasing { 4u8.saturating_sub(bits) } else { bits })
        }
        Kind::Solarize => {
            let threshold = (share * 256.0).trunc().min(256.0);
            Op::Solarize(if increasing { 256.0 - threshold } else { threshold })
        }
        Kind::SolarizeAdd => Op::SolarizeAdd((share * 110.0).min(128.0) as u8),
        Kind::Color => Op::Color(factor()),
        Kind::Contrast => Op::Contrast(factor()),
        Kind::Brightness => Op::Brightness(factor()),
        Kind::Sharpness => Op::Sharpness(factor()),
        Kind::ShearX => Op::ShearX(signed(share * 0.3)),
        Kind::ShearY => Op::ShearY(signed(share * 0.3)),
        // timm says how far the place is that a pixel comes from, so that its sign is the other one.
        Kind::TranslateX => Op::TranslateX(-(signed(share * 0.45) * width as f64)),
        Kind::TranslateY => Op::TranslateY(-(signed(share * 0.45) * height as f64)),
        Kind::Identity => Op::Identity,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timms_spelling_is_read_and_written() {
        let read = |text: &str| text.parse::<RandAugment>();
        let usual = RandAugment::default();
        let expected = RandAugment { magnitude: 9, magnitude_std: 0.5, increasing: true, ..usual };
        assert_eq!(read("rand-m9-mstd0.5-inc1").unwrap(), expected);
        assert_eq!(read("rand-inc1-mstd0.5-n2-m9").unwrap(), expected);
        assert_eq!(expected.to_string(), "rand-m9-n2-mstd0.5-inc1");
        assert_eq!((read("rand").unwrap(), usual.to_string()), (usual, "rand-m10-n2".into()));
        for text in ["rand-m15-n3-p0.7-mstd101-mmax20", "rand-m0-n0", "rand-m7-n1-mstd0.25"] {
            assert_eq!(read(text).unwrap().to_string(), text);
        }
        for text in ["rand-m", "rand-m9.5", "rand-tweights", "rand-w0", "rand-", "rand-p2", "rand-mmax0", "rand-m9-m"] {
            let error = read(text).unwrap_err();
            assert!(error.contains("is none of m9"), "{text}: {error}");
        }
        assert!(read("randm9").is_err());
    }

    #[test]
    fn strengths_follow_their_settings() {
        let levels = |text: &str| {
            let rand: RandAugment = text.parse().unwrap();
            let mut rng = Rng::new(1, text);
            (0..4000).map(|_| rand.level(&mut rng)).collect::<Vec<_>>()
        };
        assert!(levels("rand-m7").iter().all(|&level| level == 7.0));
        assert!(levels("rand-m15").iter().all(|&level| level == 10.0));
        assert!(levels("rand-m15-mmax20").iter().all(|&level| level == 15.0));
        let mean = |levels: &[f64]| levels.iter().sum::<f64>() / levels.len() as f64;
        let normal = levels("rand-m5-mstd0.5");
        assert!((mean(&normal) - 5.0).abs() < 0.05 && normal.iter().any(|&level| level > 6.0));
        let uniform = levels("rand-m8-mstd101");
        assert!((mean(&uniform) - 4.0).abs() < 0.2 && uniform.iter().all(|&level| level < 8.0));
    }

    #[test]
    fn operations_happen_as_often_as_asked() {
        let rand: RandAugment = "rand-m9-n4-p0.25".parse().unwrap();
        let mut rng = Rng::new(2, "rand");
        let happened: usize = (0..5000).map(|_| rand.sample([32, 32], &mut rng).len()).sum();
        assert!(happened.abs_diff(5000) < 250, "{happened}");
    }
}

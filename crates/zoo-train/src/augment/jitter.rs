//! Random changes of brightness, contrast, saturation and hue: torchvision's `ColorJitter`.

use super::geometry::Sampling;
use super::ops::Op;
use super::pixels::Pixels;
use serde::{Deserialize, Serialize};
use zoo_core::rng::Rng;

/// How far each may be changed; 0: not at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColorJitter {
    /// The factor is drawn from 1 less to 1 more than this, and not below 0.
    pub brightness: f64,
    /// As brightness.
    pub contrast: f64,
    /// As brightness.
    pub saturation: f64,
    /// Either way by up to this share of the colour circle, at most 0.5.
    pub hue: f64,
}

impl ColorJitter {
    /// The operations in the order in which they are drawn.
    fn sample(&self, rng: &mut Rng) -> Vec<Op> {
        // All of them are drawn, so that what one setting is does not move another's draw.
        let mut factor = |by: f64| rng.uniform_in((1.0 - by).max(0.0), 1.0 + by);
        let factors = [self.brightness, self.contrast, self.saturation].map(&mut factor);
        let hue = rng.uniform_in(-self.hue, self.hue);
        let mut ops = [
            (self.brightness, Op::Brightness(factors[0])),
            (self.contrast, Op::Contrast(factors[1])),
            (self.saturation, Op::Color(factors[2])),
            (self.hue, Op::Hue(hue)),
        ];
        rng.shuffle(&mut ops);
        ops.into_iter().filter(|(by, _)| *by != 0.0).map(|(_, op)| op).collect()
    }

    /// The image after changes drawn from `rng`.
    pub fn apply(&self, image: Pixels, rng: &mut Rng) -> Pixels {
        self.sample(rng).into_iter().fold(image, |image, op| op.apply(image, Sampling::NEAREST))
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let amounts = [self.brightness, self.contrast, self.saturation, self.hue];
        match amounts.iter().all(|by| *by >= 0.0 && by.is_finite()) && self.hue <= 0.5 {
            true => Ok(()),
            false => Err(format!("color jitter must be four numbers from 0, hue up to 0.5, got {amounts:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_keep_torchvisions_ranges_and_every_order_comes() {
        let jitter = ColorJitter { brightness: 0.4, contrast: 1.5, saturation: 0.2, hue: 0.1 };
        let mut rng = Rng::new(1, "jitter");
        let mut firsts = std::collections::HashSet::new();
        for _ in 0..500 {
            let ops = jitter.sample(&mut rng);
            firsts.insert(std::mem::discriminant(&ops[0]));
            assert_eq!(ops.len(), 4);
            for op in ops {
                assert!(match op {
                    Op::Brightness(factor) => (0.6..1.4).contains(&factor),
                    Op::Contrast(factor) => (0.0..2.5).contains(&factor),
                    Op::Color(factor) => (0.8..1.2).contains(&factor),
                    Op::Hue(factor) => (-0.1..0.1).contains(&factor),
                    _ => false,
                });
            }
        }
        assert_eq!(firsts.len(), 4);
        assert_eq!(ColorJitter { hue: 0.5, ..ColorJitter::default() }.sample(&mut rng).len(), 1);
        assert!(ColorJitter::default().sample(&mut rng).is_empty());
    }

    #[test]
    fn what_is_left_out_is_no_change() {
        let jitter: ColorJitter = serde_json::from_str(r#"{"brightness":0.4}"#).unwrap();
        assert_eq!(jitter, ColorJitter { brightness: 0.4, ..ColorJitter::default() });
        assert!(jitter.check().is_ok());
        assert!(ColorJitter { hue: 0.6, ..jitter }.check().is_err());
        assert!(ColorJitter { contrast: -0.1, ..jitter }.check().is_err());
    }
}

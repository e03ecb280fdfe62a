//! A random part of a picture, resized to the network's side (Szegedy et al. 2014, arXiv 1409.4842): torchvision's
//! `RandomResizedCrop`.

use super::geometry::Interpolation;
use super::pixels::{Pixels, Region};
use serde::{Deserialize, Serialize};
use zoo_core::rng::Rng;

/// What part is cut, and how it is resized.
///
/// ```
/// use zoo_core::rng::Rng;
/// use zoo_train::augment::{Pixels, ResizedCrop};
/// let picture = Pixels::new(vec![7; 3 * 40 * 60], [3, 40, 60])?;
/// let crop = ResizedCrop::default().apply(&picture, 32, &mut Rng::new(1, "crop"));
/// assert_eq!(crop.shape(), [3, 32, 32]);
/// # Ok::<(), zoo_train::data::DataError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResizedCrop {
    /// The least and the largest share of the picture's pixels.
    pub scale: [f64; 2],
    /// The least and the largest width over height.
    pub ratio: [f64; 2],
    /// How pixels between pixels are found, with antialiasing.
    pub interpolation: Interpolation,
}

impl Default for ResizedCrop {
    /// torchvision's.
    fn default() -> Self {
        Self { scale: [0.08, 1.0], ratio: [3.0 / 4.0, 4.0 / 3.0], interpolation: Interpolation::Bilinear }
    }
}

/// Height and width of a region of `area` pixels whose width is `ratio` times its height. Python rounds halves to the
/// even number.
pub(super) fn sides(area: f64, ratio: f64) -> [usize; 2] {
    [(area / ratio).sqrt(), (area * ratio).sqrt()].map(|side| side.round_ties_even() as usize)
}

/// Between two ratios, so that a ratio is as likely as its inverse.
pub(super) fn ratio_in([least, most]: [f64; 2], rng: &mut Rng) -> f64 {
    rng.uniform_in(least.ln(), most.ln()).exp()
}

/// How often a region is drawn that does not fit before it is given up.
pub(super) const TRIES: usize = 10;

impl ResizedCrop {
    /// The part of an image of `size`, (height, width), that is kept.
    pub fn region(&self, [height, width]: [usize; 2], rng: &mut Rng) -> Region {
        for _ in 0..TRIES {
            let area = (height * width) as f64 * rng.uniform_in(self.scale[0], self.scale[1]);
            let [h, w] = sides(area, ratio_in(self.ratio, rng));
            if (1..=height).contains(&h) && (1..=width).contains(&w) {
                let (top, left) = (rng.below(height - h + 1), rng.below(width - w + 1));
                return Region { top, left, height: h, width: w };
            }
        }
        self.central([height, width])
    }

    /// The largest part in the middle whose proportions are allowed.
    pub(super) fn central(&self, [height, width]: [usize; 2]) -> Region {
        let [least, most] = self.ratio;
        let ratio = width as f64 / height as f64;
        // At least one pixel, of however long and narrow a picture.
        let rounded = |side: f64, most: usize| (side.round_ties_even() as usize).clamp(1, most);
        let (h, w) = if ratio < least {
            (rounded(width as f64 / least, height), width)
        } else if ratio > most {
            (height, rounded(height as f64 * most, width))
        } else {
            (height, width)
        };
        Region { top: (height - h) / 2, left: (width - w) / 2, height: h, width: w }
    }

    /// The part of `picture` in `region`, resized to `side` x `side`.
    pub fn resize(&self, picture: &Pixels, region: Region, side: usize) -> Pixels {
        let part = picture.crop(region);
        let [channels, ..] = part.shape();
        let data = zoo_image::resize(part.data(), part.shape(), [side, side], self.interpolation.into());
        Pixels::of(data, [channels, side, side])
    }

    /// A part drawn from `rng`, resized to `side` x `side`.
    pub fn apply(&self, picture: &Pixels, side: usize, rng: &mut Rng) -> Pixels {
        let [_, height, width] = picture.shape();
        self.resize(picture, self.region([height, width], rng), side)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        check_range("scale", self.scale, 1.0)?;
        check_range("ratio", self.ratio, f64::INFINITY)
    }
}

/// A range of positive numbers.
pub(super) fn check_range(name: &str, [least, most]: [f64; 2], limit: f64) -> Result<(), String> {
    match least > 0.0 && least <= most && most <= limit && most.is_finite() {
        true => Ok(()),
        false => Err(format!("{name} must be two positive numbers, the smaller one first, got {least} and {most}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_keep_their_limits_and_cover_them() {
        let crop = ResizedCrop::default();
        let mut rng = Rng::new(5, "crop");
        let (height, width) = (120, 160);
        let regions: Vec<Region> = (0..4000).map(|_| crop.region([height, width], &mut rng)).collect();
        let share = |r: &Region| r.area() as f64 / (height * width) as f64;
        let ratio = |r: &Region| r.width as f64 / r.height as f64;
        // A pixel more or less is a few hundredths of a small region's side.
        assert!(regions.iter().all(|r| (0.075..=1.0).contains(&share(r)) && (0.72..=1.37).contains(&ratio(r))));
        assert!(regions.iter().all(|r| r.top + r.height <= height && r.left + r.width <= width));
        assert!(regions.iter().any(|r| share(r) < 0.1) && regions.iter().any(|r| share(r) > 0.9));
        // Of torchvision's 20,000 draws for this size; large parts often do not fit and are drawn anew.
        let mean = regions.iter().map(share).sum::<f64>() / 4000.0;
        assert!((mean - 0.4336).abs() < 0.02, "{mean}");
    }

    #[test]
    fn a_picture_too_narrow_keeps_its_middle() {
        let crop = ResizedCrop { scale: [1.0, 1.0], ..ResizedCrop::default() };
        let region = |size| crop.region(size, &mut Rng::new(1, "narrow"));
        assert_eq!(region([100, 10]), Region { top: 43, left: 0, height: 13, width: 10 });
        assert_eq!(region([10, 100]), Region { top: 0, left: 43, height: 10, width: 13 });
        assert_eq!(region([1, 1]), Region { top: 0, left: 0, height: 1, width: 1 });
    }

    #[test]
    fn settings_have_defaults_and_limits() {
        let crop: ResizedCrop = serde_json::from_str(r#"{"scale":[0.5,1.0],"interpolation":"bicubic"}"#).unwrap();
        let expected =
            ResizedCrop { scale: [0.5, 1.0], interpolation: Interpolation::Bicubic, ..ResizedCrop::default() };
        assert_eq!(crop, expected);
        assert!(crop.check().is_ok());
        for wrong in [[0.0, 1.0], [0.9, 0.5], [0.5, 1.5], [f64::NAN, 1.0]] {
            assert!(ResizedCrop { scale: wrong, ..crop }.check().unwrap_err().contains("scale"));
        }
    }
}

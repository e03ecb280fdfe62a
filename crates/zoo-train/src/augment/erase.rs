//! Rectangles that are taken out of the normalised image: random erasing and cutout.

use super::crop::{TRIES, check_range, ratio_in, sides};
use super::pixels::Region;
use serde::{Deserialize, Serialize};
use zoo_core::rng::Rng;

/// What stands in the place of what is erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Erased {
    /// 0, which is the mean of the images: timm's `const`.
    #[default]
    Zero,
    /// Standard normal noise in every pixel and channel: timm's `pixel`.
    Pixel,
}

/// Erases a rectangle at random (Zhong et al. 2017, arXiv 1708.04896), as timm's and torchvision's `RandomErasing`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandomErasing {
    /// How likely it is for an image.
    pub probability: f64,
    /// The least and the largest share of the image's pixels.
    pub scale: [f64; 2],
    /// The least and the largest height over width.
    pub ratio: [f64; 2],
    /// What stands in their place.
    pub value: Erased,
}

impl Default for RandomErasing {
    /// timm's.
    fn default() -> Self {
        Self { probability: 0.5, scale: [0.02, 1.0 / 3.0], ratio: [0.3, 1.0 / 0.3], value: Erased::Zero }
    }
}

impl RandomErasing {
    /// What is erased of an image of `size`, (height, width), if anything is.
    fn region(&self, [height, width]: [usize; 2], rng: &mut Rng) -> Option<Region> {
        if !rng.bernoulli(self.probability) {
            return None;
        }
        (0..TRIES).find_map(|_| {
            let area = (height * width) as f64 * rng.uniform_in(self.scale[0], self.scale[1]);
            // Here the ratio is height over width.
            let [w, h] = sides(area, ratio_in(self.ratio, rng));
            (h < height && w < width).then(|| {
                let (top, left) = (rng.below(height - h + 1), rng.below(width - w + 1));
                Region { top, left, height: h, width: w }
            })
        })
    }

    /// Erases in `image`, of `shape` (channels, height, width), what is drawn from `rng`.
    pub fn apply(&self, image: &mut [f32], shape: [usize; 3], rng: &mut Rng) {
        let Some(region) = self.region([shape[1], shape[2]], rng) else { return };
        for row in rows(image, shape, region) {
            match self.value {
                Erased::Zero => row.fill(0.0),
                Erased::Pixel => row.iter_mut().for_each(|value| *value = rng.normal() as f32),
            }
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.probability) {
            return Err(format!("the probability of erasing must lie in 0..=1, got {}", self.probability));
        }
        check_range("the scale of erasing", self.scale, 1.0)?;
        check_range("the ratio of erasing", self.ratio, f64::INFINITY)
    }
}

/// The parts of rows that lie in `region`, channel by channel.
fn rows(image: &mut [f32], [_, height, width]: [usize; 3], region: Region) -> impl Iterator<Item = &mut [f32]> {
    let lines = image.chunks_exact_mut(width).enumerate();
    let inside = region.top..region.top + region.height;
    lines
        .filter(move |(line, _)| inside.contains(&(line % height)))
        .map(move |(_, row)| &mut row[region.left..region.left + region.width])
}

/// The square of `side` pixels around (`row`, `column`), cut at the border. Of an even side, the centre is the first
/// pixel of its second half.
fn square(side: usize, [row, column]: [usize; 2], [height, width]: [usize; 2]) -> Region {
    let span = |centre: usize, most: usize| {
        let end = (centre + side - side / 2).min(most);
        let start = centre.saturating_sub(side / 2).min(end);
        (start, end - start)
    };
    let ((top, height), (left, width)) = (span(row, height), span(column, width));
    Region { top, left, height, width }
}

/// Cutout (DeVries and Taylor 2017, arXiv 1708.04552): a square of `side` pixels around any pixel of the normalised
/// image becomes 0; what of it lies outside is lost.
pub(super) fn cutout(side: usize, image: &mut [f32], shape: [usize; 3], rng: &mut Rng) {
    let size = [shape[1], shape[2]];
    let centre = size.map(|side| rng.below(side));
    rows(image, shape, square(side, centre, size)).for_each(|row| row.fill(0.0));
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: [usize; 3] = [3, 16, 20];

    /// The erased region's pixels in each channel, if there is one.
    fn erased(image: &[f32]) -> Vec<usize> {
        image.chunks_exact(320).map(|plane| plane.iter().filter(|value| **value != 7.0).count()).collect()
    }

    #[test]
    fn a_rectangle_is_erased_in_every_channel() {
        let erasing = RandomErasing { probability: 1.0, ..RandomErasing::default() };
        let mut rng = Rng::new(1, "erase");
        let mut shares = vec![];
        for _ in 0..500 {
            let mut image = [7.0; 960];
            erasing.apply(&mut image, SHAPE, &mut rng);
            let counts = erased(&image);
            assert!(counts[0] > 0 && counts.iter().all(|count| *count == counts[0]), "{counts:?}");
            assert!(image.iter().all(|value| *value == 7.0 || *value == 0.0));
            shares.push(counts[0] as f64 / 320.0);
        }
        assert!(shares.iter().all(|share| (0.01..0.37).contains(share)), "{shares:?}");
        let mut image = [7.0; 960];
        RandomErasing { value: Erased::Pixel, ..erasing }.apply(&mut image, SHAPE, &mut rng);
        let mut noise: Vec<f32> = image.iter().copied().filter(|value| *value != 7.0).collect();
        let count = noise.len();
        noise.sort_by(f32::total_cmp);
        noise.dedup();
        assert!(count > 9 && noise.len() == count, "{noise:?}");
    }

    #[test]
    fn erasing_is_as_likely_as_asked() {
        let erasing = RandomErasing { probability: 0.25, ..RandomErasing::default() };
        let mut rng = Rng::new(2, "erase");
        let happened = (0..4000).filter(|_| erasing.region([32, 32], &mut rng).is_some()).count();
        assert!(happened.abs_diff(1000) < 110, "{happened}");
        // Nothing is smaller than a single pixel.
        let always = RandomErasing { probability: 1.0, scale: [1.0, 1.0], ..erasing };
        assert_eq!(always.region([1, 1], &mut rng), None);
    }

    #[test]
    fn cutout_is_cut_at_the_border() {
        let region = |top, left, height, width| Region { top, left, height, width };
        assert_eq!(square(8, [10, 10], [32, 32]), region(6, 6, 8, 8));
        assert_eq!(square(8, [0, 31], [32, 32]), region(0, 27, 4, 5));
        assert_eq!(square(3, [5, 0], [32, 32]), region(4, 0, 3, 2));
        assert_eq!(square(99, [5, 0], [32, 20]), region(0, 0, 32, 20));
        assert_eq!(square(0, [5, 7], [32, 32]).area(), 0);
        let mut rng = Rng::new(3, "cutout");
        for _ in 0..100 {
            let mut image = [7.0; 960];
            cutout(6, &mut image, SHAPE, &mut rng);
            let counts = erased(&image);
            assert!((9..=36).contains(&counts[0]) && counts.iter().all(|count| *count == counts[0]), "{counts:?}");
        }
    }

    #[test]
    fn settings_have_defaults_and_limits() {
        let erasing: RandomErasing = serde_json::from_str(r#"{"probability":0.25,"value":"pixel"}"#).unwrap();
        let expected = RandomErasing { probability: 0.25, value: Erased::Pixel, ..RandomErasing::default() };
        assert_eq!(erasing, expected);
        assert!(erasing.check().is_ok());
        assert!(RandomErasing { probability: 1.5, ..erasing }.check().is_err());
        assert!(RandomErasing { ratio: [3.0, 0.3], ..erasing }.check().is_err());
    }
}

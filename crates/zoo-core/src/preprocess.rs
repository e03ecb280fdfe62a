//! How a photograph becomes the image that a network was trained on.

use std::fmt;
use std::str::FromStr;

/// How pixels between pixels are found when an image is resized. But for [`Nearest`](Self::Nearest) all are stretched
/// where the image becomes smaller, as Pillow does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpolation {
    /// The pixel that is nearest.
    Nearest,
    /// From the 2x2 neighbours.
    Bilinear,
    /// From the 4x4 neighbours.
    Bicubic,
    /// From the 6x6 neighbours, by Lanczos's window.
    Lanczos,
}

impl Interpolation {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Nearest, Self::Bilinear, Self::Bicubic, Self::Lanczos];

    /// Its name: Pillow's, in small letters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::Bilinear => "bilinear",
            Self::Bicubic => "bicubic",
            Self::Lanczos => "lanczos",
        }
    }
}

impl fmt::Display for Interpolation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Interpolation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.iter().copied().find(|known| known.name() == text);
        known.ok_or_else(|| format!("`{text}` is none of nearest, bilinear, bicubic and lanczos"))
    }
}

/// The order in which a network reads the colours of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChannelOrder {
    /// Red, green, blue: nearly every network.
    #[default]
    Rgb,
    /// Blue, green, red: what was trained on OpenCV's images.
    Bgr,
}

/// How a photograph becomes a network's image: resize the shorter side to `size / crop`, cut the central `size` x `size`,
/// scale to 0..1, then (x - mean) / std channel by channel. With `squash`, both sides are resized to `size / crop`.
///
/// It belongs to the weights and not to the network: torchvision's and timm's files of one ViT want different images.
///
/// ```
/// use zoo_core::{Interpolation, Preprocess};
/// let larger = Preprocess::IMAGENET.size(288).crop(0.95).interpolation(Interpolation::Bicubic);
/// assert_eq!(larger.to_string(), "288x288 cut from 303 (bicubic), ImageNet's mean and deviation");
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preprocess {
    /// Side of the square image in pixels.
    pub size: usize,
    /// The share of the resized image's side that is kept, over 0 and at most 1.
    pub crop: f64,
    /// How the photograph is resized.
    pub interpolation: Interpolation,
    /// Whether the whole photograph becomes a square, whatever its proportions.
    pub squash: bool,
    /// Of red, green and blue, on the scale 0 to 1.
    pub mean: [f64; 3],
    /// Of red, green and blue.
    pub std: [f64; 3],
    /// In which order the network reads them.
    pub channel_order: ChannelOrder,
}

impl Preprocess {
    /// 224 pixels, cut from 256, with ImageNet's mean and deviation: torchvision's.
    pub const IMAGENET: Self = Self {
        size: 224,
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
        interpolation: Interpolation::Bilinear,
        crop: 0.875,
        squash: false,
        channel_order: ChannelOrder::Rgb,
    };
    /// 32 pixels, whole, with CIFAR-10's mean and deviation.
    pub const CIFAR10: Self =
        Self { size: 32, mean: [0.4914, 0.4822, 0.4465], std: [0.2470, 0.2435, 0.2616], crop: 1.0, ..Self::IMAGENET };

    /// 224 pixels, bicubic, from -1 to 1, keeping `crop`: what timm's ViT and Mixer checkpoints were trained with.
    pub const fn inception(crop: f64) -> Self {
        Self { mean: [0.5; 3], std: [0.5; 3], interpolation: Interpolation::Bicubic, crop, ..Self::IMAGENET }
    }

    /// With images of so many pixels.
    pub const fn size(self, size: usize) -> Self {
        Self { size, ..self }
    }

    /// With this share of the resized side kept.
    pub const fn crop(self, crop: f64) -> Self {
        Self { crop, ..self }
    }

    /// Resized this way.
    pub const fn interpolation(self, interpolation: Interpolation) -> Self {
        Self { interpolation, ..self }
    }

    /// With the photograph made a square as a whole, or not.
    pub const fn squash(self, squash: bool) -> Self {
        Self { squash, ..self }
    }

    /// With this mean taken off red, green and blue.
    pub const fn mean(self, mean: [f64; 3]) -> Self {
        Self { mean, ..self }
    }

    /// With red, green and blue divided by this deviation.
    pub const fn std(self, std: [f64; 3]) -> Self {
        Self { std, ..self }
    }

    /// With the colours in this order.
    pub const fn channel_order(self, channel_order: ChannelOrder) -> Self {
        Self { channel_order, ..self }
    }

    /// The side that the photograph's shorter one is resized to before the square is cut: `size / crop`, rounded down.
    pub fn resized(&self) -> usize {
        ((self.size as f64 / self.crop) as usize).max(self.size)
    }

    /// What is wrong with it, if anything is: a size or crop out of range, numbers that are not finite, a deviation of 0.
    pub fn fault(&self) -> Option<String> {
        let &Self { size, crop, mean, std, .. } = self;
        if !(1..=MOST_PIXELS).contains(&size) {
            return Some(format!("images of 1 to {MOST_PIXELS} pixels a side, not {size}"));
        }
        // Of what is smaller than a tenth nothing is left of a photograph.
        if !(0.1..=1.0).contains(&crop) {
            return Some(format!("a crop of 0.1 to 1, not {crop}"));
        }
        if mean.iter().any(|x| !x.is_finite()) || std.iter().any(|x| !x.is_finite() || *x <= 0.0) {
            return Some(format!("finite means and deviations over 0, not {mean:?} and {std:?}"));
        }
        None
    }
}

/// The largest side of an image, in pixels.
const MOST_PIXELS: usize = 4096;

impl fmt::Display for Preprocess {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let &Self { size, interpolation, squash, mean, std, channel_order, .. } = self;
        write!(f, "{size}x{size}")?;
        let (resized, whole) = (self.resized(), if squash { " whatever their proportions" } else { "" });
        match resized > size {
            true if squash => write!(f, " cut from {resized}x{resized}{whole} ({interpolation})")?,
            true => write!(f, " cut from {resized} ({interpolation})")?,
            false => write!(f, "{whole} ({interpolation})")?,
        }
        // As networks compute with them: a file may have them in fewer digits than the constants.
        let [mean, std] = [mean, std].map(|values| values.map(|value| value as f32));
        let same = |known: &Self| known.mean.map(|x| x as f32) == mean && known.std.map(|x| x as f32) == std;
        match [Self::IMAGENET, Self::CIFAR10, Self::inception(1.0)].iter().position(same) {
            Some(0) => write!(f, ", ImageNet's mean and deviation")?,
            Some(1) => write!(f, ", CIFAR-10's mean and deviation")?,
            Some(_) => write!(f, ", pixels from -1 to 1")?,
            None => write!(f, ", mean {mean:?} and deviation {std:?}")?,
        }
        match channel_order {
            ChannelOrder::Rgb => Ok(()),
            ChannelOrder::Bgr => write!(f, ", blue before red"),
        }
    }
}

/// Parts of a [`Preprocess`] that somebody states: a configuration beside the weights, a user. The others stay.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PreprocessParts {
    /// See [`Preprocess::size`].
    pub size: Option<usize>,
    /// See [`Preprocess::crop`].
    pub crop: Option<f64>,
    /// See [`Preprocess::interpolation`].
    pub interpolation: Option<Interpolation>,
    /// See [`Preprocess::squash`].
    pub squash: Option<bool>,
    /// See [`Preprocess::mean`].
    pub mean: Option<[f64; 3]>,
    /// See [`Preprocess::std`].
    pub std: Option<[f64; 3]>,
    /// See [`Preprocess::channel_order`].
    pub channel_order: Option<ChannelOrder>,
}

impl PreprocessParts {
    /// `other` with these parts in place of its own.
    pub fn over(&self, other: Preprocess) -> Preprocess {
        Preprocess {
            size: self.size.unwrap_or(other.size),
            crop: self.crop.unwrap_or(other.crop),
            interpolation: self.interpolation.unwrap_or(other.interpolation),
            squash: self.squash.unwrap_or(other.squash),
            mean: self.mean.unwrap_or(other.mean),
            std: self.std.unwrap_or(other.std),
            channel_order: self.channel_order.unwrap_or(other.channel_order),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_it_does() {
        let imagenet = Preprocess::IMAGENET;
        for (preprocess, text) in [
            (imagenet, "224x224 cut from 256 (bilinear), ImageNet's mean and deviation"),
            (Preprocess::CIFAR10, "32x32 (bilinear), CIFAR-10's mean and deviation"),
            (Preprocess::inception(0.9), "224x224 cut from 248 (bicubic), pixels from -1 to 1"),
            (
                Preprocess::inception(1.0).squash(true).interpolation(Interpolation::Lanczos),
                "224x224 whatever their proportions (lanczos), pixels from -1 to 1",
            ),
            (
                imagenet.squash(true).mean([0.0; 3]).std([1.0; 3]).channel_order(ChannelOrder::Bgr),
                "224x224 cut from 256x256 whatever their proportions (bilinear), mean [0.0, 0.0, 0.0] and deviation [1.0, 1.0, 1.0], \
                 blue before red",
            ),
        ] {
            assert_eq!(preprocess.to_string(), text);
            assert_eq!(preprocess.fault(), None);
        }
        for &other in Interpolation::ALL {
            assert_eq!(other.name().parse(), Ok(other));
        }
        assert!("cubic".parse::<Interpolation>().is_err());
    }

    #[test]
    fn parts_change_what_they_state_and_faults_are_found() {
        let parts = PreprocessParts { crop: Some(0.95), size: Some(288), ..PreprocessParts::default() };
        assert_eq!(parts.over(Preprocess::IMAGENET), Preprocess::IMAGENET.size(288).crop(0.95));
        assert_eq!(PreprocessParts::default().over(Preprocess::CIFAR10), Preprocess::CIFAR10);
        let good = Preprocess::IMAGENET;
        for (bad, word) in [
            (good.size(0), "pixels"),
            (good.size(1 << 20), "pixels"),
            (good.crop(0.0), "crop"),
            (good.crop(f64::NAN), "crop"),
            (good.crop(1.1), "crop"),
            (good.std([0.2, 0.0, 0.2]), "over 0"),
            (good.mean([0.2, f64::INFINITY, 0.2]), "finite"),
        ] {
            assert!(bad.fault().is_some_and(|fault| fault.contains(word)), "{bad:?}");
        }
    }
}

//! The image that a network was made for.

/// How pixels between pixels are found when an image is resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpolation {
    /// From the 2x2 neighbours.
    Bilinear,
    /// From the 4x4 neighbours.
    Bicubic,
}

/// The image that a network was made for, and how a photograph becomes one: resize the shorter side to `size / crop`,
/// cut the central `size` x `size`, scale to 0..1, then (x - mean) / std channel by channel. With `squash`, resize both
/// sides to `size`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Input {
    /// Side of the square image in pixels.
    pub size: usize,
    /// Of red, green and blue.
    pub mean: [f64; 3],
    /// Of red, green and blue.
    pub std: [f64; 3],
    /// How the photograph is resized.
    pub interpolation: Interpolation,
    /// The share of the resized image's side that is kept.
    pub crop: f64,
    /// Whether the whole photograph becomes the square, whatever its proportions, and nothing is cut.
    pub squash: bool,
}

impl Input {
    /// 224 pixels, cut from 256, with ImageNet's mean and deviation: torchvision's.
    pub const IMAGENET: Self = Self {
        size: 224,
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
        interpolation: Interpolation::Bilinear,
        crop: 0.875,
        squash: false,
    };
    /// 32 pixels, whole, with CIFAR-10's mean and deviation.
    pub const CIFAR10: Self = Self {
        size: 32,
        mean: [0.4914, 0.4822, 0.4465],
        std: [0.2470, 0.2435, 0.2616],
        interpolation: Interpolation::Bilinear,
        crop: 1.0,
        squash: false,
    };

    /// 224 pixels, bicubic, from -1 to 1, keeping `crop`: what timm's ViT and Mixer checkpoints were trained with.
    pub const fn inception(crop: f64) -> Self {
        Self { mean: [0.5; 3], std: [0.5; 3], interpolation: Interpolation::Bicubic, crop, ..Self::IMAGENET }
    }
}

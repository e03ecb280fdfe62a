//! Single operations on an image of bytes, as Pillow computes them.
//!
//! torchvision's functions on Pillow images and timm's augmentations both call Pillow, so that an operation with the
//! same argument makes the same bytes in all three. [`policy`](super::policy) has how each library comes to arguments.

use super::colour;
use super::geometry::{Sampling, affine, rotate};
use super::pixels::Pixels;

/// One operation with its argument.
///
/// ```
/// use zoo_train::augment::{Op, Pixels, Sampling};
/// let image = Pixels::new(vec![10, 20, 30, 40], [1, 2, 2])?;
/// assert_eq!(Op::Invert.apply(image.clone(), Sampling::NEAREST).data(), [245, 235, 225, 215]);
/// assert_eq!(Op::TranslateX(1.0).apply(image, Sampling::NEAREST).data(), [0, 10, 0, 30]);
/// # Ok::<(), zoo_train::data::DataError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// The image as it is.
    Identity,
    /// A row is moved to the left by this share of its distance from the upper edge.
    ShearX(f64),
    /// A column is moved up by this share of its distance from the left edge.
    ShearY(f64),
    /// Moves by pixels to the right.
    TranslateX(f64),
    /// Moves by pixels down.
    TranslateY(f64),
    /// Turns by degrees, counter-clockwise.
    Rotate(f64),
    /// From black, at 0, to the image, at 1, and beyond.
    Brightness(f64),
    /// From grey, at 0, to the image's colours, at 1, and beyond: the saturation.
    Color(f64),
    /// From the image's mean grey, at 0, to the image, at 1, and beyond.
    Contrast(f64),
    /// From a smoothed image, at 0, to the image, at 1, and beyond.
    Sharpness(f64),
    /// Turns the hue by a share of the circle, from -0.5 to 0.5.
    Hue(f64),
    /// Keeps this many upper bits of every byte, at most 8. With 0 the image is black; Pillow refuses that today.
    Posterize(u8),
    /// Inverts the bytes from this one on.
    Solarize(f64),
    /// Adds to the bytes below 128.
    SolarizeAdd(u8),
    /// Stretches every channel from its darkest to its lightest value.
    AutoContrast,
    /// Spreads every channel's values evenly.
    Equalize,
    /// Black for white.
    Invert,
}

impl Op {
    /// The image after the operation; `sampling` is for those that move pixels.
    pub fn apply(&self, mut image: Pixels, sampling: Sampling) -> Pixels {
        match *self {
            Self::Identity => {}
            Self::ShearX(factor) => return affine(&image, [1.0, factor, 0.0, 0.0, 1.0, 0.0], sampling),
            Self::ShearY(factor) => return affine(&image, [1.0, 0.0, 0.0, factor, 1.0, 0.0], sampling),
            Self::TranslateX(pixels) => return affine(&image, [1.0, 0.0, -pixels, 0.0, 1.0, 0.0], sampling),
            Self::TranslateY(pixels) => return affine(&image, [1.0, 0.0, 0.0, 0.0, 1.0, -pixels], sampling),
            Self::Rotate(degrees) => return rotate(&image, degrees, sampling),
            Self::Brightness(factor) => colour::brightness(&mut image, factor),
            Self::Color(factor) => colour::saturation(&mut image, factor),
            Self::Contrast(factor) => colour::contrast(&mut image, factor),
            Self::Sharpness(factor) => colour::sharpness(&mut image, factor),
            Self::Hue(factor) => colour::hue(&mut image, factor),
            Self::Posterize(bits) => {
                // A mask of as many upper bits.
                let mask = (0xFF00u16 >> bits.min(8)) as u8;
                colour::point(&mut image, |byte| byte & mask);
            }
            Self::Solarize(threshold) => {
                colour::point(&mut image, |byte| if f64::from(byte) < threshold { byte } else { 255 - byte });
            }
            Self::SolarizeAdd(more) => {
                colour::point(&mut image, |byte| if byte < 128 { byte.saturating_add(more) } else { byte });
            }
            Self::AutoContrast => colour::autocontrast(&mut image),
            Self::Equalize => colour::equalize(&mut image),
            Self::Invert => colour::point(&mut image, |byte| 255 - byte),
        }
        image
    }
}

/// The operations that policies choose from, by the names that torchvision and timm share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    SolarizeAdd,
    AutoContrast,
    Equalize,
    Invert,
}

#[cfg(test)]
mod tests {
    use super::super::geometry::Interpolation;
    use super::*;

    pub(super) const ALL: [Op; 17] = [
        Op::Identity,
        Op::ShearX(0.3),
        Op::ShearY(-0.3),
        Op::TranslateX(2.5),
        Op::TranslateY(-1.0),
        Op::Rotate(33.0),
        Op::Brightness(1.5),
        Op::Color(0.2),
        Op::Contrast(2.0),
        Op::Sharpness(1.9),
        Op::Hue(0.25),
        Op::Posterize(3),
        Op::Solarize(100.0),
        Op::SolarizeAdd(40),
        Op::AutoContrast,
        Op::Equalize,
        Op::Invert,
    ];

    #[test]
    fn shapes_stay_however_small_the_image() {
        for shape in [[1, 1, 1], [3, 1, 1], [1, 1, 7], [3, 5, 1], [3, 2, 2], [1, 4, 6]] {
            let bytes: Vec<u8> = (0..shape.iter().product::<usize>()).map(|i| (i * 53 % 256) as u8).collect();
            let image = Pixels::new(bytes, shape).unwrap();
            for op in ALL {
                for interpolation in [Interpolation::Nearest, Interpolation::Bilinear, Interpolation::Bicubic] {
                    let seen = op.apply(image.clone(), Sampling { interpolation, fill: [9; 3] });
                    assert_eq!((seen.shape(), seen.data().len()), (shape, image.data().len()), "{op:?}");
                }
            }
        }
    }

    #[test]
    fn what_changes_nothing_changes_nothing() {
        let image = Pixels::new((0..75).map(|i| (i * 89 % 256) as u8).collect(), [3, 5, 5]).unwrap();
        let neutral = [
            Op::Identity,
            Op::ShearX(0.0),
            Op::ShearY(0.0),
            Op::TranslateX(0.0),
            Op::TranslateY(0.0),
            Op::Rotate(-360.0),
            Op::Brightness(1.0),
            Op::Color(1.0),
            Op::Contrast(1.0),
            Op::Sharpness(1.0),
            Op::Posterize(8),
            Op::Posterize(200),
            Op::Solarize(256.0),
            Op::SolarizeAdd(0),
        ];
        for op in neutral {
            for interpolation in [Interpolation::Nearest, Interpolation::Bilinear, Interpolation::Bicubic] {
                let sampling = Sampling { interpolation, fill: [7; 3] };
                assert_eq!(op.apply(image.clone(), sampling), image, "{op:?} {interpolation:?}");
            }
        }
        assert!(Op::Posterize(0).apply(image, Sampling::NEAREST).data().iter().all(|&byte| byte == 0));
    }
}

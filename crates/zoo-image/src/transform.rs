//! From an image's bytes to what a network reads: normalisation, straight into the batch's buffer.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use zoo_core::{ChannelOrder, Preprocess};

/// How pixels become network input.
///
/// As data: `{"channels":{"mean":[…],"std":[…]}}` or `"pixel_mean"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Normalize {
    /// (pixel / 255 - mean\[c\]) / std\[c\] for channel c.
    Channels {
        /// The mean that is subtracted from red, green and blue, on the scale 0 to 1.
        mean: [f32; 3],
        /// The deviation that they are then divided by.
        std: [f32; 3],
    },
    /// pixel / 255 minus the training split's mean at that pixel and channel (He et al. 2015, section 4.2). The mean
    /// belongs to the image, not to the window: it is taken off first, then the image is padded with 0 and cropped.
    PixelMean,
}

impl Normalize {
    /// Mean and standard deviation of CIFAR-10's training pixels.
    pub const CIFAR10: Self = Self::Channels { mean: [0.4914, 0.4822, 0.4465], std: [0.2470, 0.2435, 0.2616] };
    /// What torchvision's and most published checkpoints expect.
    pub const IMAGENET: Self = Self::Channels { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
    /// To -1..=1.
    pub const HALF: Self = Self::Channels { mean: [0.5; 3], std: [0.5; 3] };

    /// What a network's published checkpoints were trained with.
    ///
    /// ```
    /// use zoo_image::Normalize;
    /// assert_eq!(Normalize::of(&zoo::find("resnet18")?.preprocess), Normalize::IMAGENET);
    /// assert_eq!(Normalize::of(&zoo::find("cifar_resnet20")?.preprocess), Normalize::CIFAR10);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn of(input: &Preprocess) -> Self {
        let [mean, std] = [input.mean, input.std].map(|values| values.map(|value| value as f32));
        Self::Channels { mean, std }
    }
}

impl fmt::Display for Normalize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PixelMean => f.write_str("less the mean image of the training images"),
            _ if *self == Self::CIFAR10 => f.write_str("CIFAR-10's mean and deviation"),
            _ if *self == Self::IMAGENET => f.write_str("ImageNet's mean and deviation"),
            _ if *self == Self::HALF => f.write_str("pixels from -1 to 1"),
            Self::Channels { mean, std } => write!(f, "mean {mean:?} and deviation {std:?}"),
        }
    }
}

/// A window of the image's own size onto the padded image, and whether it is mirrored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct View {
    /// Rows that the window is moved down.
    pub down: isize,
    /// Columns that the window is moved to the right.
    pub right: isize,
    /// Mirror the window left and right, after the move.
    pub flip: bool,
}

/// [`Normalize`] made ready for images of one shape: u8 in, f32 out.
///
/// ```
/// use zoo_image::{Normalize, Transform, View};
/// // One image of 1 x 2 pixels: red 255 and 0, no green, no blue.
/// let transform = Transform::of_channels([0.5; 3], [0.5; 3], [3, 1, 2])?;
/// let mut out = [0.0; 6];
/// transform.write(&[255, 0, 0, 0, 0, 0], View { flip: true, ..View::default() }, &mut out);
/// assert_eq!(out, [-1.0, 1.0, -1.0, -1.0, -1.0, -1.0]);
/// # Ok::<(), zoo_image::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Transform {
    shape: [usize; 3],
    table: Table,
    channel_order: ChannelOrder,
}

#[derive(Debug, Clone)]
enum Table {
    /// The value of every byte, channel by channel.
    Channels(Box<[[f32; 256]; 3]>),
    /// The mean that is subtracted from each pixel.
    PixelMean(Vec<f32>),
}

impl Transform {
    /// `normalize` for images of `shape`, (channels, height, width); `mean_image` is asked for their mean, see
    /// [`of_pixel_mean`](Self::of_pixel_mean), if that is taken off.
    ///
    /// # Errors
    /// As [`of_channels`](Self::of_channels) and [`of_pixel_mean`](Self::of_pixel_mean).
    pub fn new(normalize: &Normalize, shape: [usize; 3], mean_image: impl FnOnce() -> Vec<f32>) -> Result<Self> {
        match normalize {
            Normalize::Channels { mean, std } => Self::of_channels(*mean, *std, shape),
            Normalize::PixelMean => Self::of_pixel_mean(mean_image(), shape),
        }
    }

    /// (pixel / 255 - mean\[c\]) / std\[c\] for channel c of images of `shape`; a single channel takes the average of
    /// the three figures.
    ///
    /// # Errors
    /// Images of neither three channels nor one.
    pub fn of_channels(mean: [f32; 3], std: [f32; 3], shape: [usize; 3]) -> Result<Self> {
        let (mean, std) = match shape[0] {
            3 => (mean, std),
            1 => (grey(mean), grey(std)),
            n => return Err(Error::Input(format!("3 channel means for images of {n} channels"))),
        };
        let table = [0, 1, 2].map(|c| std::array::from_fn(|byte| (byte as f32 / 255.0 - mean[c]) / std[c]));
        Ok(Self { shape, table: Table::Channels(Box::new(table)), channel_order: ChannelOrder::Rgb })
    }

    /// pixel / 255 minus `mean` at that pixel and channel, of images of `shape`.
    ///
    /// # Errors
    /// A mean of another size.
    pub fn of_pixel_mean(mean: Vec<f32>, shape: [usize; 3]) -> Result<Self> {
        if mean.len() != shape.iter().product::<usize>() {
            return Err(Error::Input(format!("a mean image of {} values for images {shape:?}", mean.len())));
        }
        Ok(Self { shape, table: Table::PixelMean(mean), channel_order: ChannelOrder::Rgb })
    }

    /// With the three colours handed on in this order. Mean and deviation go with their colours.
    pub fn with_channel_order(self, channel_order: ChannelOrder) -> Self {
        Self { channel_order, ..self }
    }

    /// The mean that is subtracted from each pixel, where it is not one figure a channel.
    pub fn pixel_mean(&self) -> Option<&[f32]> {
        match &self.table {
            Table::PixelMean(mean) => Some(mean),
            Table::Channels(_) => None,
        }
    }

    /// (channels, height, width) of the images it takes.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Writes `image`, as `view` shows it, to `out`: c·h·w values, channel by channel, row by row.
    ///
    /// # Panics
    /// If `image` or `out` has another length.
    pub fn write(&self, image: &[u8], view: View, out: &mut [f32]) {
        let [c, h, w] = self.shape;
        assert!(image.len() == c * h * w && out.len() == c * h * w, "an image is {c}x{h}x{w}");
        // The columns of a row that lie inside the image, before the flip.
        let [first, last] = [-view.right, w as isize - view.right].map(|x| x.clamp(0, w as isize) as usize);
        let inside = first..last;
        for (line, row) in out.chunks_exact_mut(w).enumerate() {
            let (channel, y) = (line / h, (line % h) as isize + view.down);
            let channel = match self.channel_order {
                ChannelOrder::Bgr if c == 3 => 2 - channel,
                _ => channel,
            };
            row.fill(match &self.table {
                Table::Channels(values) => values[channel][0],
                Table::PixelMean(_) => 0.0,
            });
            if (0..h as isize).contains(&y) && !inside.is_empty() {
                let start = (channel * h + y as usize) * w + inside.start.wrapping_add_signed(view.right);
                let source = start..start + inside.len();
                let seen = row[inside.clone()].iter_mut().zip(&image[source.clone()]);
                match &self.table {
                    Table::Channels(values) => {
                        seen.for_each(|(value, &byte)| *value = values[channel][usize::from(byte)])
                    }
                    Table::PixelMean(mean) => {
                        seen.zip(&mean[source])
                            .for_each(|((value, &byte), mean)| *value = f32::from(byte) / 255.0 - mean);
                    }
                }
            }
            if view.flip {
                row.reverse();
            }
        }
    }
}

/// A figure for the grey of three colours.
fn grey(figures: [f32; 3]) -> [f32; 3] {
    [figures.iter().sum::<f32>() / 3.0; 3]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: [usize; 3] = [3, 3, 4];

    /// A 3 x 4 image that is unlike itself under any flip, turn or shift.
    fn image() -> Vec<u8> {
        let red = [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120];
        red.into_iter().chain(red.map(|v| v + 1)).chain(red.map(|v| v + 2)).collect()
    }

    /// `normalize` for images whose mean is not taken off.
    fn of(normalize: &Normalize, shape: [usize; 3]) -> Transform {
        Transform::new(normalize, shape, || unreachable!("no mean image is taken off")).unwrap()
    }

    /// Values as bytes again, so that an expectation reads like the image. Black padding comes out as 0.
    fn seen(view: View) -> Vec<u8> {
        let identity = Normalize::Channels { mean: [0.0; 3], std: [1.0; 3] };
        let mut out = vec![f32::NAN; 36];
        of(&identity, SHAPE).write(&image(), view, &mut out);
        out.into_iter().map(|value| (value * 255.0).round() as u8).collect()
    }

    #[test]
    fn colours_come_in_the_order_that_is_asked_for() {
        let transform = of(&Normalize::Channels { mean: [0.0, 0.5, 1.0], std: [1.0, 2.0, 4.0] }, SHAPE);
        let (mut rgb, mut bgr) = (vec![f32::NAN; 36], vec![f32::NAN; 36]);
        transform.write(&image(), View::default(), &mut rgb);
        transform.with_channel_order(ChannelOrder::Bgr).write(&image(), View::default(), &mut bgr);
        assert_eq!(bgr, [&rgb[24..], &rgb[12..24], &rgb[..12]].concat());
    }

    #[test]
    fn crops_and_flips_as_drawn_by_hand() {
        assert_eq!(seen(View::default()), image());
        let view = View { down: 1, right: -2, flip: false };
        #[rustfmt::skip]
        assert_eq!(seen(view), [
            0, 0, 50, 60,   0, 0, 90, 100,   0, 0, 0, 0,
            0, 0, 51, 61,   0, 0, 91, 101,   0, 0, 0, 0,
            0, 0, 52, 62,   0, 0, 92, 102,   0, 0, 0, 0,
        ]);
        let view = View { down: -1, right: 1, flip: true };
        #[rustfmt::skip]
        assert_eq!(seen(view), [
            0, 0, 0, 0,   0, 40, 30, 20,   0, 80, 70, 60,
            0, 0, 0, 0,   0, 41, 31, 21,   0, 81, 71, 61,
            0, 0, 0, 0,   0, 42, 32, 22,   0, 82, 72, 62,
        ]);
        // A padding wider than the image leaves nothing of it.
        for (down, right) in [(3, 0), (-3, 0), (0, 4), (0, -4), (9, -9)] {
            assert_eq!(seen(View { down, right, flip: true }), [0; 36]);
        }
    }

    /// Expected values from torchvision 0.29: `normalize(to_tensor(pixel), mean, std)`.
    #[test]
    fn normalises_as_torchvision() {
        for (normalize, expected) in [
            (
                Normalize::CIFAR10,
                [
                    -1.9894737, 0.04275632, 2.0591094, -1.9802876, 0.08115326, 2.1264887, -1.7068044, 0.21200617,
                    2.115826,
                ],
            ),
            (
                Normalize::IMAGENET,
                [-2.117904, 0.07406463, 2.2489083, -2.0357141, 0.2051822, 2.4285715, -1.8044444, 0.42649257, 2.64],
            ),
            (Normalize::HALF, [-1.0, 0.003921628, 1.0, -1.0, 0.003921628, 1.0, -1.0, 0.003921628, 1.0]),
        ] {
            let mut out = [0.0; 9];
            of(&normalize, [3, 1, 3]).write(&[0, 128, 255].repeat(3), View::default(), &mut out);
            assert_eq!(out, expected, "{normalize:?}");
        }
    }

    /// The mean is the image's, wherever the window stands, and the padding is the mean: zero.
    #[test]
    fn pixel_means_move_with_the_image() {
        let means = |bytes: &[u16]| bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect::<Vec<_>>();
        let of_means = |bytes: &[u16], shape| Transform::new(&Normalize::PixelMean, shape, || means(bytes)).unwrap();
        let mut out = [f32::NAN; 3];
        of_means(&[77, 25, 102], [3, 1, 1]).write(&[0, 50, 102], View::default(), &mut out);
        assert_eq!(out.map(|v| (v * 255.0).round()), [-77.0, 25.0, 0.0]);

        let mut out = [f32::NAN; 9];
        let view = View { down: 0, right: 1, flip: true };
        let transform = of_means(&[15, 30, 45, 5, 10, 15, 0, 0, 0], [3, 1, 3]);
        transform.write(&[30, 60, 90, 10, 20, 30, 0, 0, 0], view, &mut out);
        assert_eq!(out.map(|v| (v * 255.0).round()), [0.0, 45.0, 30.0, 0.0, 15.0, 10.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn grey_images_take_the_average_of_the_channels_figures() {
        let normalize = Normalize::Channels { mean: [0.1, 0.2, 0.3], std: [0.2, 0.4, 0.6] };
        let mut out = [f32::NAN; 4];
        of(&normalize, [1, 2, 2]).write(&[51; 4], View::default(), &mut out);
        assert!(out.iter().all(|value| value.abs() < 1e-6), "{out:?}");
        let two = |normalize| Transform::new(normalize, [2, 2, 2], || vec![0.0; 8]);
        assert_eq!(two(&Normalize::CIFAR10).unwrap_err().to_string(), "3 channel means for images of 2 channels");
        assert!(two(&Normalize::PixelMean).is_ok());
        let other = Transform::of_pixel_mean(vec![0.5], SHAPE).unwrap_err().to_string();
        assert_eq!(other, "a mean image of 1 values for images [3, 3, 4]");
    }

    #[test]
    fn settings_are_data() {
        let json = serde_json::to_string(&(Normalize::HALF, Normalize::PixelMean)).unwrap();
        assert_eq!(json, r#"[{"channels":{"mean":[0.5,0.5,0.5],"std":[0.5,0.5,0.5]}},"pixel_mean"]"#);
        let back: (Normalize, Normalize) = serde_json::from_str(&json).unwrap();
        assert_eq!(back, (Normalize::HALF, Normalize::PixelMean));
    }
}

//! From u8 images to what a network reads: random crop and flip, then normalisation, straight into the batch's buffer.
//!
//! The order is torchvision's, `RandomCrop(size, padding)`, `RandomHorizontalFlip`, `ToTensor`, `Normalize`: the
//! padding is black *before* normalisation. Every image's randomness is a function of (seed, epoch, index of the image
//! in its split) alone, whatever the batch size and the number of threads.

use crate::data::{DataError, Split};
use serde::{Deserialize, Serialize};
use std::fmt;
use zoo_core::rng::Rng;
use zoo_core::{ChannelOrder, Preprocess};

/// How pixels become network input.
///
/// As data: `{"channels":{"mean":[…],"std":[…]}}` or `"pixel_mean"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
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
    /// use zoo_train::augment::Normalize;
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

/// Random crop and flip of training images.
///
/// ```
/// use zoo_train::augment::{Augment, View};
/// assert_eq!(Augment::NONE.view(1, 0, 42), View::default());
/// // The same image in the same epoch under the same seed is always seen alike.
/// assert_eq!(Augment::STANDARD.view(1, 0, 42), Augment::STANDARD.view(1, 0, 42));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augment {
    /// Black pixels added on every side before a window of the image's own size is cut at random; 0: no crop.
    pub crop_padding: usize,
    /// Mirror left and right in half of the cases.
    pub flip: bool,
}

impl Augment {
    /// The image as it is.
    pub const NONE: Self = Self { crop_padding: 0, flip: false };
    /// Pad 4 and flip: what nearly every CIFAR-10 recipe does.
    pub const STANDARD: Self = Self { crop_padding: 4, flip: true };

    /// How image `index` of its split is seen in `epoch` under `seed`.
    pub fn view(&self, seed: u64, epoch: u64, index: usize) -> View {
        /// Every image owns this many words of the epoch's stream; three draws take six.
        const WORDS: u64 = 16;
        let mut rng = Rng::new(seed, &format!("augment/epoch-{epoch}"));
        rng.seek(index as u64 * WORDS);
        let padding = self.crop_padding as isize;
        let mut shift = || rng.below(2 * self.crop_padding + 1) as isize - padding;
        let (down, right) = (shift(), shift());
        View { down, right, flip: rng.bernoulli(0.5) && self.flip }
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

/// [`Normalize`] made ready for one data set: u8 in, f32 out.
///
/// ```
/// use zoo_train::{augment::{Normalize, Transform, View}, data::Split};
/// // One image of 1 x 2 pixels: red 255 and 0, no green, no blue.
/// let split = Split::new(vec![255, 0, 0, 0, 0, 0], vec![0], [3, 1, 2])?;
/// let mut out = [0.0; 6];
/// Transform::new(&Normalize::HALF, &split)?.write(split.image(0), View { flip: true, ..View::default() }, &mut out);
/// assert_eq!(out, [-1.0, 1.0, -1.0, -1.0, -1.0, -1.0]);
/// # Ok::<(), zoo_train::data::DataError>(())
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
    /// `train` gives the images' shape and, for [`Normalize::PixelMean`], their mean. The test images of a run go
    /// through the transform of its *training* split.
    ///
    /// # Errors
    /// As [`of_channels`](Self::of_channels).
    pub fn new(normalize: &Normalize, train: &Split) -> Result<Self, DataError> {
        let shape = train.shape();
        match normalize {
            Normalize::Channels { mean, std } => Self::of_channels(*mean, *std, shape),
            Normalize::PixelMean => Self::of_pixel_mean(train.mean_image(), shape),
        }
    }

    /// (pixel / 255 - mean\[c\]) / std\[c\] for channel c of images of `shape`; a single channel takes the average of
    /// the three figures.
    ///
    /// # Errors
    /// Images of neither three channels nor one.
    pub fn of_channels(mean: [f32; 3], std: [f32; 3], shape: [usize; 3]) -> Result<Self, DataError> {
        let (mean, std) = match shape[0] {
            3 => (mean, std),
            1 => (grey(mean), grey(std)),
            n => return Err(DataError::Mismatch(format!("3 channel means for images of {n} channels"))),
        };
        let table = [0, 1, 2].map(|c| std::array::from_fn(|byte| (byte as f32 / 255.0 - mean[c]) / std[c]));
        Ok(Self { shape, table: Table::Channels(Box::new(table)), channel_order: ChannelOrder::Rgb })
    }

    /// pixel / 255 minus `mean` at that pixel and channel, of images of `shape`.
    ///
    /// # Errors
    /// A mean of another size.
    pub fn of_pixel_mean(mean: Vec<f32>, shape: [usize; 3]) -> Result<Self, DataError> {
        if mean.len() != shape.iter().product::<usize>() {
            return Err(DataError::Mismatch(format!("a mean image of {} values for images {shape:?}", mean.len())));
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

    /// A 3 x 4 image that is unlike itself under any flip, turn or shift.
    fn image() -> Split {
        let red = [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120];
        let pixels = red.into_iter().chain(red.map(|v| v + 1)).chain(red.map(|v| v + 2)).collect();
        Split::new(pixels, vec![0], [3, 3, 4]).unwrap()
    }

    /// Values as bytes again, so that an expectation reads like the image. Black padding comes out as 0.
    fn seen(view: View) -> Vec<u8> {
        let split = image();
        let identity = Normalize::Channels { mean: [0.0; 3], std: [1.0; 3] };
        let mut out = vec![f32::NAN; 36];
        Transform::new(&identity, &split).unwrap().write(split.image(0), view, &mut out);
        out.into_iter().map(|value| (value * 255.0).round() as u8).collect()
    }

    #[test]
    fn colours_come_in_the_order_that_is_asked_for() {
        let split = image();
        let normalize = Normalize::Channels { mean: [0.0, 0.5, 1.0], std: [1.0, 2.0, 4.0] };
        let transform = Transform::new(&normalize, &split).unwrap();
        let (mut rgb, mut bgr) = (vec![f32::NAN; 36], vec![f32::NAN; 36]);
        transform.write(split.image(0), View::default(), &mut rgb);
        transform.with_channel_order(ChannelOrder::Bgr).write(split.image(0), View::default(), &mut bgr);
        assert_eq!(bgr, [&rgb[24..], &rgb[12..24], &rgb[..12]].concat());
    }

    #[test]
    fn crops_and_flips_as_drawn_by_hand() {
        assert_eq!(seen(View::default()), image().image(0));
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
        let split = Split::new(vec![0, 128, 255, 0, 128, 255, 0, 128, 255], vec![0], [3, 1, 3]).unwrap();
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
            Transform::new(&normalize, &split).unwrap().write(split.image(0), View::default(), &mut out);
            assert_eq!(out, expected, "{normalize:?}");
        }
    }

    /// The mean is the image's, wherever the window stands, and the padding is the mean: zero.
    #[test]
    fn pixel_means_move_with_the_image() {
        let split = Split::new(vec![0, 50, 102, 154, 0, 102], vec![0, 0], [3, 1, 1]).unwrap();
        let transform = Transform::new(&Normalize::PixelMean, &split).unwrap();
        let mut out = [f32::NAN; 3];
        transform.write(split.image(0), View::default(), &mut out);
        assert_eq!(out.map(|v| (v * 255.0).round()), [-77.0, 25.0, 0.0]);

        let row = Split::new([&[30, 60, 90][..], &[10, 20, 30], &[0, 0, 0], &[0; 9]].concat(), vec![0, 1], [3, 1, 3]);
        let row = row.unwrap();
        let mut out = [f32::NAN; 9];
        let view = View { down: 0, right: 1, flip: true };
        Transform::new(&Normalize::PixelMean, &row).unwrap().write(row.image(0), view, &mut out);
        assert_eq!(out.map(|v| (v * 255.0).round()), [0.0, 45.0, 30.0, 0.0, 15.0, 10.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn grey_images_take_the_average_of_the_channels_figures() {
        let split = |channels| Split::new(vec![51; 4 * channels], vec![0], [channels, 2, 2]).unwrap();
        let normalize = Normalize::Channels { mean: [0.1, 0.2, 0.3], std: [0.2, 0.4, 0.6] };
        let mut out = [f32::NAN; 4];
        Transform::new(&normalize, &split(1)).unwrap().write(split(1).image(0), View::default(), &mut out);
        assert!(out.iter().all(|value| value.abs() < 1e-6), "{out:?}");
        let error = Transform::new(&Normalize::CIFAR10, &split(2)).unwrap_err().to_string();
        assert_eq!(error, "3 channel means for images of 2 channels");
        assert!(Transform::new(&Normalize::PixelMean, &split(2)).is_ok());
    }

    #[test]
    fn views_are_even_and_differ_by_image_epoch_and_seed() {
        let n = 81_000;
        let views: Vec<View> = (0..n).map(|i| Augment::STANDARD.view(3, 1, i)).collect();
        let mut counts = [[0usize; 9]; 9];
        views.iter().for_each(|v| counts[(v.down + 4) as usize][(v.right + 4) as usize] += 1);
        // 1,000 expected in each of the 81 places, four standard deviations are 126.
        assert!(counts.iter().flatten().all(|n| n.abs_diff(1000) < 130), "{counts:?}");
        let flips = views.iter().filter(|v| v.flip).count();
        assert!(flips.abs_diff(n / 2) < 600, "{flips}");

        let differ = |other: &dyn Fn(usize) -> View| (0..100).filter(|&i| other(i) != views[i]).count();
        assert!(differ(&|i| Augment::STANDARD.view(4, 1, i)) > 90);
        assert!(differ(&|i| Augment::STANDARD.view(3, 2, i)) > 90);
        assert!(differ(&|i| Augment::STANDARD.view(3, 1, i + 1)) > 90);
    }

    #[test]
    fn settings_are_data() {
        let json = serde_json::to_string(&(Augment::STANDARD, Normalize::HALF, Normalize::PixelMean)).unwrap();
        assert_eq!(
            json,
            r#"[{"crop_padding":4,"flip":true},{"channels":{"mean":[0.5,0.5,0.5],"std":[0.5,0.5,0.5]}},"pixel_mean"]"#
        );
        let back: (Augment, Normalize, Normalize) = serde_json::from_str(&json).unwrap();
        assert_eq!(back, (Augment::STANDARD, Normalize::HALF, Normalize::PixelMean));
    }
}

//! Photographs of any size as the square images that networks take.

use super::DataError;
use anyhow::{Result, ensure};
use fast_image_resize::images::Image;
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use std::fmt::Display;
use std::path::Path;
use zoo_core::{Input, Interpolation};

/// Pixels that an image may have when its shorter side is resized; only a very long and narrow one has more.
const MOST_PIXELS: u64 = 1 << 27;

/// How a photograph becomes a square image of bytes: its shorter side is resized to `size / crop` pixels, rounded down (with
/// antialiasing), and the central `size` x `size` cut out. That is torchvision's `Resize` and `CenterCrop` on a Pillow image, whose bytes
/// it meets to one level in 255.
///
/// ```
/// use zoo_train::data::photo::Framing;
/// let framing = Framing::of(&zoo::find("resnet50")?.input);
/// assert_eq!((framing.size, framing.crop), (224, 0.875));
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Framing {
    /// Side of the square in pixels.
    pub size: usize,
    /// The share of the resized image's shorter side that is kept, over 0 and at most 1.
    pub crop: f64,
    /// How pixels between pixels are found.
    pub interpolation: Interpolation,
    /// Whether both sides are resized to `size`, whatever the photograph's proportions, and nothing is cut.
    pub squash: bool,
}

impl Framing {
    /// All of the shorter side, bilinear: what training on a folder of images sees.
    pub const fn whole(size: usize) -> Self {
        Self { size, crop: 1.0, interpolation: Interpolation::Bilinear, squash: false }
    }

    /// What a network's published checkpoints are evaluated with.
    pub const fn of(input: &Input) -> Self {
        let &Input { size, crop, interpolation, squash, .. } = input;
        Self { size, crop, interpolation, squash }
    }

    /// The PNG or JPEG file at `path` as 3·size² bytes: red, green, blue, each row by row. What a file is, its first bytes tell, not
    /// its name.
    ///
    /// # Errors
    /// A file that cannot be read or is no image; the error names it.
    pub fn read(&self, path: &Path) -> Result<Vec<u8>, DataError> {
        let problem =
            |e: &dyn Display| DataError::Layout { path: path.into(), problem: format!("expected an image: {e}") };
        let image = image::ImageReader::open(path)
            .and_then(image::ImageReader::with_guessed_format)
            .map_err(|source| DataError::Io { path: path.into(), source })?
            .decode()
            .map_err(|error| problem(&error))?;
        self.apply(image.into_rgb8()).map_err(|error| problem(&error))
    }

    fn apply(&self, image: RgbImage) -> Result<Vec<u8>> {
        let (w, h) = image.dimensions();
        let size = self.size as u32;
        let short = ((self.size as f64 / self.crop) as u32).max(size);
        let scaled = |long: u32, by: u32| (u64::from(long) * u64::from(short) / u64::from(by.max(1))).max(1) as u32;
        let (new_w, new_h) = match self.squash {
            true => (size, size),
            false if w < h => (short, scaled(h, w)),
            false => (scaled(w, h), short),
        };
        let pixels = u64::from(new_w) * u64::from(new_h);
        ensure!(pixels <= MOST_PIXELS, "its {w}x{h} pixels would become {new_w}x{new_h}");
        let filter = match self.interpolation {
            Interpolation::Bilinear => FilterType::Bilinear,
            Interpolation::Bicubic => FilterType::CatmullRom,
        };
        // Python rounds halves to the even number.
        let margin = |side: u32| (f64::from(side - size) / 2.0).round_ties_even() as usize;
        let (left, top) = (margin(new_w), margin(new_h));
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter));
        let mut resizer = Resizer::new();
        let mut resize = |image: &Image, w, h| {
            let mut resized = Image::new(w, h, PixelType::U8x3);
            resizer.resize(image, &mut resized, &options).map(|()| resized)
        };
        // Pillow's order: first each row, rounded to bytes, then each column.
        let narrow = resize(&Image::from_vec_u8(w, h, image.into_raw(), PixelType::U8x3)?, new_w, h)?;
        let resized = resize(&narrow, new_w, new_h)?;
        let rows = || resized.buffer().chunks_exact(3 * new_w as usize).skip(top).take(self.size);
        let mut bytes = Vec::with_capacity(3 * self.size * self.size);
        for channel in 0..3 {
            for row in rows() {
                bytes.extend(row[3 * left..3 * (left + self.size)].iter().skip(channel).step_by(3));
            }
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    /// The photograph of `photos()` in tests/golden/generate.py.
    fn photo(width: u32, height: u32) -> RgbImage {
        let byte = |x: u32, y: u32, c: u32| 64 + (3 * x + 5 * y + 40 * c) % 96 + 90 * u32::from(x > y);
        RgbImage::from_fn(width, height, |x, y| Rgb([0, 1, 2].map(|c| byte(x, y, c) as u8)))
    }

    #[test]
    fn photographs_come_out_as_torchvision_cuts_them() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/photos.json");
        let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 15);
        for case in cases {
            let number = |value: &serde_json::Value| value.as_u64().unwrap() as u32;
            let interpolation = match case["interpolation"].as_str().unwrap() {
                "bicubic" => Interpolation::Bicubic,
                _ => Interpolation::Bilinear,
            };
            let (size, crop) = (number(&case["size"]) as usize, case["crop"].as_f64().unwrap());
            let photo = photo(number(&case["photo"][0]), number(&case["photo"][1]));
            let ours = Framing { size, crop, interpolation, squash: false }.apply(photo).unwrap();
            let theirs: Vec<u8> = case["bytes"].as_array().unwrap().iter().map(|v| number(v) as u8).collect();
            assert_eq!(ours.len(), theirs.len());
            // Weights of the pixels have fewer bits than Pillow's: now and then a byte is rounded to its neighbour.
            let furthest = ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(furthest <= 1, "{furthest} off in {} {crop} {interpolation:?}", case["photo"]);
            let equal = ours.iter().zip(&theirs).filter(|(a, b)| a == b).count();
            assert!(equal * 5 >= ours.len() * 4, "{equal} equal in {} {crop} {interpolation:?}", case["photo"]);
        }
    }

    #[test]
    fn the_centre_is_kept() {
        // 16x8: the left half red, the right half green.
        let image = RgbImage::from_fn(16, 8, |x, _| if x < 8 { Rgb([255, 0, 0]) } else { Rgb([0, 255, 0]) });
        let bytes = Framing::whole(8).apply(image.clone()).unwrap();
        assert_eq!(
            (&bytes[..8], &bytes[64..72]),
            (&[255, 255, 255, 255, 0, 0, 0, 0][..], &[0, 0, 0, 0, 255, 255, 255, 255][..])
        );
        // Resized to 16, then cut.
        let half = Framing { crop: 0.5, ..Framing::whole(8) }.apply(image).unwrap();
        assert_eq!((half.len(), half[0], half[7]), (192, 255, 0));
    }

    /// Expected values from Pillow 13: `photo.resize((4, 4), Image.Resampling.BILINEAR)`, channel by channel.
    #[test]
    fn a_photograph_is_squashed_as_pillow_resizes_it() {
        #[rustfmt::skip]
        let expected: [u8; 48] = [
            143, 178, 193, 207, 122, 184, 200, 214, 105, 183, 210, 224, 101, 174, 217, 231, 183, 218, 232, 214, 162, 224, 232, 182,
            145, 223, 198, 169, 141, 200, 175, 175, 207, 175, 177, 191, 140, 169, 184, 198, 93, 167, 194, 208, 85, 158, 201, 215,
        ];
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("photo.png");
        photo(20, 7).save(&path).unwrap();
        let bytes = Framing { squash: true, ..Framing::whole(4) }.read(&path).unwrap();
        let furthest = bytes.iter().zip(&expected).map(|(ours, theirs)| ours.abs_diff(*theirs)).max();
        assert!(bytes.len() == 48 && furthest <= Some(1), "{bytes:?}");
    }

    #[test]
    fn what_is_no_image_is_named() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("cat.png");
        let message = || Framing::whole(8).read(&path).unwrap_err().to_string();
        assert!(message().contains("cat.png"), "{}", message());
        std::fs::write(&path, "no image").unwrap();
        assert!(message().contains("cat.png: expected an image"), "{}", message());
        // A PNG under another name is one still.
        let png = root.path().join("cat.jpg");
        photo(8, 8).save_with_format(&png, image::ImageFormat::Png).unwrap();
        assert_eq!(Framing::whole(8).read(&png).unwrap().len(), 192);
        // Nothing is resized without end.
        let thread = Framing::whole(224).apply(photo(1, 60_000)).unwrap_err().to_string();
        assert_eq!(thread, "its 1x60000 pixels would become 224x13440000");
    }
}

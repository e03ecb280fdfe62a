//! Photographs of any size as the square images that networks take.

use crate::error::{Error, Result};
use crate::picture::{Limits, Picture};
use crate::resample::{Axis, resample};
use image::metadata::Orientation;
use std::path::Path;
use zoo_core::{Interpolation, Preprocess};

/// How a photograph becomes a square image of bytes: its shorter side is resized to `size / crop` pixels, rounded down
/// (with antialiasing), and the central `size` x `size` cut out. That is torchvision's `Resize` and `CenterCrop` on a
/// Pillow image, byte for byte where Pillow resizes the rows first (up to version 12 always, from 13 on where that costs
/// less), else to one level in 255. A photograph that was taken with the camera held otherwise
/// is turned upright before, as Pillow's `exif_transpose` does.
///
/// ```
/// use zoo_image::Framing;
/// let framing = Framing::of(&zoo::find("resnet50")?.preprocess);
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
    /// Whether both sides are resized to `size / crop`, whatever the photograph's proportions.
    pub squash: bool,
}

impl Framing {
    /// All of the shorter side, bilinear: what training on a folder of images sees.
    pub const fn whole(size: usize) -> Self {
        Self { size, crop: 1.0, interpolation: Interpolation::Bilinear, squash: false }
    }

    /// What a network's published checkpoints are evaluated with.
    pub const fn of(preprocess: &Preprocess) -> Self {
        let &Preprocess { size, crop, interpolation, squash, .. } = preprocess;
        Self { size, crop, interpolation, squash }
    }

    /// `preprocess` with its photographs cut this way.
    pub const fn over(self, preprocess: Preprocess) -> Preprocess {
        let Self { size, crop, interpolation, squash } = self;
        preprocess.size(size).crop(crop).interpolation(interpolation).squash(squash)
    }

    /// The picture in the file at `path` as 3·size² bytes: red, green, blue, each row by row.
    ///
    /// # Errors
    /// What [`Picture::open`] refuses with its default limits.
    pub fn read(&self, path: &Path) -> Result<Vec<u8>> {
        self.read_within(path, Limits::default())
    }

    /// As [`read`](Self::read), with limits of one's own.
    ///
    /// # Errors
    /// What [`Picture::open`] refuses.
    pub fn read_within(&self, path: &Path, limits: Limits) -> Result<Vec<u8>> {
        self.apply(&Picture::open(path, limits)?).map_err(|error| named(error, path))
    }

    /// The picture in the bytes of a file, such as a request's body, as [`read`](Self::read) gives it.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_bytes(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let name = Path::new("picture");
        self.apply(&Picture::from_bytes(bytes, name, Limits::default())?).map_err(|error| named(error, name))
    }

    /// A decoded picture as [`read`](Self::read) gives it. However long and narrow it is, only what is kept is
    /// computed.
    ///
    /// # Errors
    /// A picture whose bytes are not those of its size.
    pub fn apply(&self, picture: &Picture) -> Result<Vec<u8>> {
        let &Picture { width, height, ref rgb, orientation } = picture;
        let (swapped, mirrored) = turn(orientation);
        let size = self.size as u32;
        // Upright.
        let (w, h) = if swapped { (height, width) } else { (width, height) };
        let short = ((self.size as f64 / self.crop) as u32).max(size);
        let scaled = |long: u32, by: u32| (u64::from(long) * u64::from(short) / u64::from(by.max(1))).max(1);
        let (new_w, new_h) = match self.squash {
            true => (short.into(), short.into()),
            false if w < h => (short.into(), scaled(h, w)),
            false => (scaled(w, h), short.into()),
        };
        // Python rounds halves to the even number.
        let margin = |side: u64| ((side - u64::from(size)) as f64 / 2.0).round_ties_even() as u64;
        let (mut resized, mut margins) = ([new_w, new_h], [margin(new_w), margin(new_h)]);

        // As the file has it.
        if swapped {
            resized.reverse();
            margins.reverse();
        }
        let sides = [width, height];
        let pixels = 3 * width as usize * height as usize;
        if rgb.len() != pixels || pixels == 0 {
            return Err(Error::Input(format!("{} bytes for {width}x{height} pixels", rgb.len())));
        }
        let axes = [0, 1].map(|axis| {
            let kept = margins[axis]..margins[axis] + u64::from(size);
            Axis::new(sides[axis] as usize, resized[axis], kept, mirrored[axis], self.interpolation)
        });
        // Pillow's order: first each row, rounded to bytes, then each column; of the upright picture.
        let square = resample(rgb, width as usize, &axes, !swapped);

        // The square's planes, upright.
        let mut bytes = Vec::with_capacity(3 * self.size * self.size);
        for channel in 0..3 {
            for y in 0..self.size {
                bytes.extend((0..self.size).map(|x| {
                    let (x, y) = if swapped { (y, x) } else { (x, y) };
                    square[3 * (y * self.size + x) + channel]
                }));
            }
        }
        Ok(bytes)
    }
}

impl Picture {
    /// The whole picture, upright: its height and width, and its planes, red, green and blue, each row by row.
    ///
    /// ```
    /// use zoo_image::Picture;
    /// let picture = Picture::from(&image::RgbImage::from_raw(2, 1, vec![1, 2, 3, 4, 5, 6]).ok_or("six bytes")?);
    /// assert_eq!(picture.planes()?, ([1, 2], vec![1, 4, 2, 5, 3, 6]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// A picture whose bytes are not those of its size.
    pub fn planes(&self) -> Result<([usize; 2], Vec<u8>)> {
        let (swapped, mirrored) = turn(self.orientation);
        let [w, h] = [self.width as usize, self.height as usize];
        if self.rgb.len() != 3 * w * h || self.rgb.is_empty() {
            return Err(Error::Input(format!("{} bytes for {w}x{h} pixels", self.rgb.len())));
        }
        let [height, width] = if swapped { [w, h] } else { [h, w] };
        let mut planes = Vec::with_capacity(self.rgb.len());
        for channel in 0..3 {
            for y in 0..height {
                planes.extend((0..width).map(|x| {
                    let (x, y) = if swapped { (y, x) } else { (x, y) };
                    let x = if mirrored[0] { w - 1 - x } else { x };
                    let y = if mirrored[1] { h - 1 - y } else { y };
                    self.rgb[3 * (y * w + x) + channel]
                }));
            }
        }
        Ok(([height, width], planes))
    }
}

/// An error of [`Framing::apply`] with the picture's name.
fn named(error: Error, path: &Path) -> Error {
    Error::Picture { path: path.into(), problem: format!("cannot be resized: {error}") }
}

/// The turn that brings a picture upright: whether its sides swap, and along which of the file's own axes it is
/// mirrored.
fn turn(orientation: Orientation) -> (bool, [bool; 2]) {
    match orientation {
        Orientation::NoTransforms => (false, [false, false]),
        Orientation::FlipHorizontal => (false, [true, false]),
        Orientation::Rotate180 => (false, [true, true]),
        Orientation::FlipVertical => (false, [false, true]),
        Orientation::Rotate90FlipH => (true, [false, false]),
        Orientation::Rotate90 => (true, [false, true]),
        Orientation::Rotate270FlipH => (true, [true, true]),
        Orientation::Rotate270 => (true, [true, false]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{DynamicImage, Rgb, RgbImage};

    fn picture(image: RgbImage, orientation: Orientation) -> Picture {
        Picture { width: image.width(), height: image.height(), rgb: image.into_raw(), orientation }
    }

    fn apply(framing: Framing, image: RgbImage) -> Vec<u8> {
        framing.apply(&picture(image, Orientation::NoTransforms)).unwrap()
    }

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
            let ours = apply(Framing { size, crop, interpolation, squash: false }, photo);
            let theirs: Vec<u8> = case["bytes"].as_array().unwrap().iter().map(|v| number(v) as u8).collect();
            // Pillow 13 takes the columns of an upright photograph first, where that costs less; up to 12 it took the rows.
            let furthest = ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            let most = u8::from(number(&case["photo"][1]) > number(&case["photo"][0]));
            assert!(furthest <= most, "{furthest} off in {} {crop} {interpolation:?}", case["photo"]);
        }
    }

    #[test]
    fn the_centre_is_kept() {
        // 16x8: the left half red, the right half green.
        let image = RgbImage::from_fn(16, 8, |x, _| if x < 8 { Rgb([255, 0, 0]) } else { Rgb([0, 255, 0]) });
        let bytes = apply(Framing::whole(8), image.clone());
        assert_eq!(
            (&bytes[..8], &bytes[64..72]),
            (&[255, 255, 255, 255, 0, 0, 0, 0][..], &[0, 0, 0, 0, 255, 255, 255, 255][..])
        );
        // Resized to 16, then cut.
        let half = apply(Framing { crop: 0.5, ..Framing::whole(8) }, image);
        assert_eq!((half.len(), half[0], half[7]), (192, 255, 0));
    }

    /// Expected values from Pillow 13: `photo.resize((4, 4), …)`, channel by channel; the last one resized to 5x5, of which
    /// torchvision's `center_crop` keeps 4x4.
    #[test]
    fn a_photograph_is_squashed_as_pillow_resizes_it() {
        #[rustfmt::skip]
        let cases: [(Interpolation, f64, [u8; 48]); 4] = [
            (Interpolation::Bilinear, 1.0, [
                143, 178, 193, 207, 122, 184, 200, 214, 105, 183, 210, 224, 101, 174, 217, 231, 183, 218, 232, 214, 162, 224, 232, 182,
                145, 223, 198, 169, 141, 200, 175, 175, 207, 175, 177, 191, 140, 169, 184, 198, 93, 167, 194, 208, 85, 158, 201, 215,
            ]),
            (Interpolation::Lanczos, 1.0, [
                141, 180, 191, 207, 118, 190, 199, 215, 97, 188, 211, 224, 92, 172, 224, 232, 181, 219, 236, 216, 157, 230, 238, 175,
                136, 235, 200, 160, 135, 203, 173, 174, 215, 175, 173, 191, 136, 168, 185, 199, 82, 171, 196, 209, 76, 157, 208, 216,
            ]),
            (Interpolation::Nearest, 1.0, [
                160, 175, 190, 205, 80, 185, 200, 215, 90, 195, 210, 225, 100, 205, 220, 235, 200, 215, 230, 245, 120, 225, 240, 159,
                130, 235, 154, 169, 140, 245, 164, 179, 240, 159, 174, 189, 64, 169, 184, 199, 74, 179, 194, 209, 84, 189, 204, 219,
            ]),
            (Interpolation::Bilinear, 0.8, [
                138, 173, 185, 197, 117, 177, 191, 203, 99, 173, 198, 210, 94, 159, 205, 217, 178, 213, 225, 236, 157, 217, 231, 235,
                139, 213, 236, 202, 134, 199, 227, 169, 213, 193, 169, 181, 160, 166, 175, 187, 101, 157, 182, 194, 78, 143, 189, 201,
            ]),
        ];
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("photo.png");
        photo(20, 7).save(&path).unwrap();
        for (interpolation, crop, expected) in cases {
            let framing = Framing { squash: true, interpolation, crop, ..Framing::whole(4) };
            let bytes = framing.read(&path).unwrap();
            assert_eq!(bytes, expected, "{framing:?}");
        }
        // Smaller pictures become larger ones.
        let nearest = Framing { squash: true, interpolation: Interpolation::Nearest, ..Framing::whole(4) };
        let expected = [64, 157, 157, 160, 64, 157, 157, 160, 69, 72, 72, 165, 69, 72, 72, 165];
        assert_eq!(apply(nearest, photo(3, 2))[..16], expected);
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
    }

    #[test]
    fn a_photograph_is_cut_upright_however_the_camera_was_held() {
        for (w, h) in [(50, 37), (33, 80), (11, 11), (9, 7), (3, 200)] {
            for exif in 1..=8 {
                let orientation = Orientation::from_exif(exif).unwrap();
                let mut upright = DynamicImage::from(photo(w, h));
                upright.apply_orientation(orientation);
                for framing in [
                    Framing::whole(12),
                    Framing { crop: 0.9, interpolation: Interpolation::Bicubic, ..Framing::whole(12) },
                ] {
                    let expected = apply(framing, upright.to_rgb8());
                    let ours = framing.apply(&picture(photo(w, h), orientation)).unwrap();
                    assert!(ours == expected, "other bytes in {w}x{h} held {exif}");
                }
            }
        }
    }

    #[test]
    fn the_whole_picture_is_upright_however_the_camera_was_held() {
        for exif in 1..=8 {
            let orientation = Orientation::from_exif(exif).unwrap();
            let mut upright = DynamicImage::from(photo(7, 4));
            upright.apply_orientation(orientation);
            let upright = upright.to_rgb8();
            let ([height, width], planes) = picture(photo(7, 4), orientation).planes().unwrap();
            assert_eq!((width as u32, height as u32), upright.dimensions(), "held {exif}");
            for (x, y, Rgb(colour)) in upright.enumerate_pixels() {
                let at = y as usize * width + x as usize;
                assert_eq!([0, 1, 2].map(|c| planes[c * width * height + at]), *colour, "held {exif}");
            }
        }
    }

    #[test]
    fn a_thread_of_pixels_has_a_middle_as_torchvision_finds_it() {
        // Two shades that meet in the middle; so narrow that the square lies between one pixel of each.
        for (long, middle) in [(5_000u32, 2_500), (60_000, 30_000)] {
            let shade = |at: u32| Rgb([if at < middle { 10 } else { 200 }, 50, 90]);
            for (image, rows) in [
                (RgbImage::from_fn(1, long, |_, y| shade(y)), true),
                (RgbImage::from_fn(long, 1, |x, _| shade(x)), false),
            ] {
                let bytes = apply(Framing { crop: 0.875, ..Framing::whole(224) }, image);
                let at = |x: usize, y: usize| if rows { bytes[224 * y + x] } else { bytes[224 * x + y] };
                // From one pixel's colour to the next one's, 256 of ours to one of theirs.
                let line: Vec<u8> = (0..224).map(|y| at(100, y)).collect();
                assert!(line.is_sorted() && (20..24).contains(&line[0]) && (185..190).contains(&line[223]), "{line:?}");
                assert!(
                    (0..224).all(|x| at(x, 7) == at(0, 7)) && bytes[224 * 224..].iter().all(|&b| b == 50 || b == 90)
                );
            }
        }
    }
}

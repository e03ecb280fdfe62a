//! Training images as the network sees them, on one sheet: whether an augmentation does what it is meant to is seen at once.

use crate::augment::Augment;
use crate::data::Split;
use crate::loader::Loader;
use anyhow::{Context, Result};
use candle_core::Device;
use image::{ImageFormat, Rgb, RgbImage, imageops};
use std::io::Cursor;
use std::sync::Arc;
use zoo_image::Transform;

/// The file of a run's folder that holds its sheet.
pub const SAMPLES_FILE: &str = "samples.png";
/// The longest side of a tile, in pixels.
const TILE: u32 = 112;

/// A sheet of a split's first `images` images, a row each: on the left as evaluation sees it, then as `epochs` epochs of
/// training see it under `seed`. What is mixed is mixed among these. As PNG; nothing for an empty split.
///
/// ```
/// use zoo_train::augment::Augment;
/// use zoo_train::data::Synthetic;
/// use zoo_train::samples::sheet;
/// let data = Synthetic { train: 40, test: 0, seed: 0 }.generate();
/// let png = sheet(&data.train, Augment::STANDARD, 1, 4, 3)?;
/// let sheet = image::load_from_memory(&png)?;
/// assert_eq!((sheet.width(), sheet.height()), (32 * 4, 32 * 4));
/// # Ok::<(), anyhow::Error>(())
/// ```
///
/// # Errors
/// Images that can neither be read nor shown.
pub fn sheet(split: &Arc<Split>, augment: Augment, seed: u64, images: usize, epochs: u64) -> Result<Vec<u8>> {
    let shape = split.shape();
    let [channels, height, width] = shape;
    // As they are: 0 to 1.
    let transform = Arc::new(Transform::of_channels([0.0; 3], [1.0; 3], shape)?);
    let places: Vec<usize> = (0..split.len().min(images)).collect();
    let first = Arc::new(split.select(&places));
    let plain = Loader::eval(first.clone(), transform.clone(), places.len().max(1), &Device::Cpu)?;
    let seen = Loader::train(first, transform, augment, places.len().max(1), seed, &Device::Cpu)?;

    let longest = height.max(width) as u32;
    let scaled = |side: usize| if longest > TILE { (side as u32 * TILE / longest).max(1) } else { side as u32 };
    let (tile_w, tile_h) = (scaled(width), scaled(height));
    let mut sheet = RgbImage::new(tile_w * (epochs as u32 + 1), tile_h * places.len() as u32);
    for column in 0..=epochs {
        let pixels = match column {
            0 => plain.look(0, &places)?,
            epoch => seen.look(epoch, &places)?,
        };
        for (row, image) in pixels.chunks_exact(channels * height * width).enumerate() {
            let byte = |channel: usize, x: u32, y: u32| {
                let plane = if channels == 3 { channel * height * width } else { 0 };
                (image[plane + y as usize * width + x as usize] * 255.0).round().clamp(0.0, 255.0) as u8
            };
            let mut tile =
                RgbImage::from_fn(
                    width as u32,
                    height as u32,
                    |x, y| Rgb([0, 1, 2].map(|channel| byte(channel, x, y))),
                );
            if longest > TILE {
                tile = imageops::resize(&tile, tile_w, tile_h, imageops::FilterType::Triangle);
            }
            imageops::replace(&mut sheet, &tile, i64::from(tile_w) * column as i64, i64::from(tile_h) * row as i64);
        }
    }
    let mut png = Cursor::new(Vec::new());
    if !places.is_empty() {
        sheet.write_to(&mut png, ImageFormat::Png).context("cannot encode the sheet of training images as PNG")?;
    }
    Ok(png.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Synthetic;

    #[test]
    fn a_sheet_shows_images_plain_and_as_every_epoch_sees_them() {
        let data = Synthetic { train: 6, test: 0, seed: 0 }.generate();
        let png = sheet(&data.train, Augment { crop_padding: 0, ..Augment::STANDARD }, 3, 4, 8).unwrap();
        let sheet = image::load_from_memory(&png).unwrap().to_rgb8();
        assert_eq!(sheet.dimensions(), (9 * 32, 4 * 32));
        for row in 0..4 {
            let tile = |column: u32| imageops::crop_imm(&sheet, column * 32, row * 32, 32, 32).to_image();
            let bytes = data.train.image(row as usize).unwrap();
            let plain = RgbImage::from_fn(32, 32, |x, y| {
                Rgb([0, 1, 2].map(|channel| bytes[(channel * 32 + y as usize) * 32 + x as usize]))
            });
            assert!(tile(0) == plain, "row {row}");
            let flipped = imageops::flip_horizontal(&plain);
            let mirrored = (1..9).filter(|&column| tile(column) == flipped).count();
            let same = (1..9).filter(|&column| tile(column) == plain).count();
            assert!(mirrored > 0 && same > 0 && mirrored + same >= 8, "{mirrored} {same}");
        }
        assert!(super::sheet(&Arc::new(data.train.select(&[])), Augment::NONE, 1, 4, 1).unwrap().is_empty());
    }
}

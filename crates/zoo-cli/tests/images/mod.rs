//! Images made here: a folder of plain colours, and files in CIFAR-10's format.

use image::{Rgb, RgbImage};
use std::path::Path;
use tempfile::TempDir;

const COLOURS: [(&str, [u8; 3]); 3] = [("red", [220, 30, 30]), ("green", [30, 220, 30]), ("blue", [30, 30, 220])];

/// A folder with `photos`, an image folder of three colours: 12 training and 4 validation images each, 40x36, in
/// shades.
pub fn colours() -> TempDir {
    let root = TempDir::new().unwrap();
    for (split, count) in [("train", 12), ("val", 4)] {
        for (name, colour) in COLOURS {
            let dir = root.path().join("photos").join(split).join(name);
            std::fs::create_dir_all(&dir).unwrap();
            for i in 0..count {
                let shade = |x: u32| Rgb(colour.map(|c| c.saturating_sub((3 * i + x) as u8)));
                RgbImage::from_fn(40, 36, |x, _| shade(x)).save(dir.join(format!("{i}.png"))).unwrap();
            }
        }
    }
    root
}

/// Adds `cifar`: 40 training and 10 test records of ten classes, an even grey each.
pub fn add_cifar(root: &Path) {
    let dir = root.join("cifar");
    std::fs::create_dir(&dir).unwrap();
    let records =
        |n: u8| -> Vec<u8> { (0..n).flat_map(|i| [vec![i % 10], vec![25 * (i % 10); 3072]].concat()).collect() };
    std::fs::write(dir.join("data_batch_1.bin"), records(40)).unwrap();
    std::fs::write(dir.join("test_batch.bin"), records(10)).unwrap();
}

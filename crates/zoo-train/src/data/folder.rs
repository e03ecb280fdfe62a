//! A folder of images: `train/CLASS/*.{png,jpg,jpeg}` and `val/CLASS/*` (or `test/CLASS/*`), one folder a class.

use super::photo::Framing;
use super::{DataError, DataSource, Dataset, Split};
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// Loads the folder at `dir` as RGB images of `side`x`side`, each seen through [`Framing::whole`]. Classes are the names of the folders under `train`, in alphabetical order; files are
/// taken in the order of their names, so that the same folder gives the same data set. Training images stand with the classes
/// mixed evenly, so that the first or last part of them, which [`Dataset::limit`] and a recipe's hold-out take, is of all classes.
///
/// All images are kept in memory: 3·side² bytes each.
///
/// # Errors
/// A folder that lacks `train` or both `val` and `test`, a class without images or unknown in training, a file that is no
/// image: each names the path.
pub fn load(dir: &Path, side: usize) -> Result<Dataset, DataError> {
    let train_dir = dir.join("train");
    let (true, Some(test_dir)) = (train_dir.is_dir(), test_folder(dir)) else {
        return Err(layout(dir, "expected an image folder: train/CLASS/* and val/CLASS/* (or test/CLASS/*)"));
    };
    let classes = subfolders(&train_dir)?;
    if classes.len() < 2 {
        return Err(layout(
            &train_dir,
            &format!("expected at least two folders, one a class, found {}", classes.len()),
        ));
    }
    if let Some(unknown) = subfolders(&test_dir)?.into_iter().find(|name| !classes.contains(name)) {
        return Err(layout(&test_dir.join(unknown), "this class has no training images"));
    }
    let framing = Framing::whole(side);
    let train = read(&files(&train_dir, &classes, true)?, framing)?;
    let test = read(&files(&test_dir, &classes, false)?, framing)?;
    Dataset::new(train, test, classes, DataSource::Other { label: format!("image folder, {}", dir.display()) })
}

/// A labelled file.
pub(super) type File = (PathBuf, u32);

/// The test images of the folder at `dir`, which may lack `train`, with the names of their classes: `known` ones, in that order, or
/// those of the folders under `train` or else under the test folder.
///
/// # Errors
/// As [`load`].
pub(super) fn test_files(dir: &Path, known: Option<&[String]>) -> Result<(Vec<File>, Vec<String>), DataError> {
    let Some(test_dir) = test_folder(dir) else {
        return Err(layout(dir, "expected an image folder: val/CLASS/* (or test/CLASS/*)"));
    };
    let train_dir = dir.join("train");
    let classes = match known {
        Some(known) => known.to_vec(),
        None => subfolders(if train_dir.is_dir() { &train_dir } else { &test_dir })?,
    };
    if let Some(unknown) = subfolders(&test_dir)?.into_iter().find(|name| !classes.contains(name)) {
        let problem = match known {
            Some(known) => format!("the network knows no class of this name, but {}", listed(known)),
            None => "this class has no training images".into(),
        };
        return Err(layout(&test_dir.join(unknown), &problem));
    }
    Ok((files(&test_dir, &classes, false)?, classes))
}

/// The first of some names, for a message.
pub(super) fn listed(names: &[String]) -> String {
    let shown = names.iter().take(10).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > 10 { format!("{shown}, … ({} in all)", names.len()) } else { shown }
}

/// The files as one split, in their order.
pub(super) fn read(files: &[File], framing: Framing) -> Result<Split, DataError> {
    let images: Vec<Vec<u8>> = files.par_iter().map(|(path, _)| framing.read(path)).collect::<Result<_, _>>()?;
    Split::new(images.concat(), files.iter().map(|&(_, label)| label).collect(), [3, framing.size, framing.size])
}

fn test_folder(dir: &Path) -> Option<PathBuf> {
    ["val", "test"].map(|name| dir.join(name)).into_iter().find(|path| path.is_dir())
}

/// Whether `dir` holds a folder of either split.
pub(super) fn is_in(dir: &Path) -> bool {
    ["train", "val", "test"].iter().any(|name| dir.join(name).is_dir())
}

fn layout(path: &Path, problem: &str) -> DataError {
    DataError::Layout { path: path.into(), problem: problem.into() }
}

/// What stands in a folder, in the order of names; hidden files, which systems leave behind, do not count.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let io = |source| DataError::Io { path: dir.into(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn subfolders(dir: &Path) -> Result<Vec<String>, DataError> {
    let folders = entries(dir)?.into_iter().filter(|path| path.is_dir());
    Ok(folders.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    extension.is_some_and(|e| ["png", "jpg", "jpeg"].contains(&e.as_str()))
}

/// The images under `dir`, each with the place of its class among `classes`.
fn files(dir: &Path, classes: &[String], training: bool) -> Result<Vec<File>, DataError> {
    let mut files = Vec::new();
    for (label, class) in (0u32..).zip(classes) {
        let folder = dir.join(class);
        let mut paths = if folder.is_dir() { entries(&folder)? } else { Vec::new() };
        paths.retain(|path| is_image(path));
        if training && paths.is_empty() {
            return Err(layout(&folder, "expected images of the kinds png, jpg or jpeg, found none"));
        }
        // The share of its class that comes before the middle of the image: what mixes large classes with small ones.
        let n = paths.len() as f64;
        files.extend(paths.into_iter().enumerate().map(|(i, path)| ((i as f64 + 0.5) / n, (path, label))));
    }
    if training {
        // Equal shares stay in the order of their classes, for the sort is stable.
        files.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    }
    if files.is_empty() {
        return Err(layout(dir, "expected images of the kinds png, jpg or jpeg, found none"));
    }
    Ok(files.into_iter().map(|(_, file)| file).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgb, RgbImage};

    /// Two classes; the left half of every image is red, the right half the class's colour.
    fn folder() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (split, class, colour) in
            [("train", "b", [0, 0, 255]), ("train", "a", [0, 255, 0]), ("val", "b", [0, 0, 255])]
        {
            let dir = root.path().join(split).join(class);
            std::fs::create_dir_all(&dir).unwrap();
            let image = RgbImage::from_fn(16, 8, |x, _| if x < 8 { Rgb([255, 0, 0]) } else { Rgb(colour) });
            image.save(dir.join("one.png")).unwrap();
            std::fs::write(dir.join(".hidden"), "").unwrap();
        }
        root
    }

    #[test]
    fn classes_are_sorted_and_images_cut_at_the_centre() {
        let root = folder();
        let data = load(root.path(), 8).unwrap();
        assert_eq!(
            (data.classes.as_slice(), data.train.labels()),
            (&["a".to_string(), "b".to_string()][..], &[0, 1][..])
        );
        assert_eq!((data.test.labels(), data.test.shape()), (&[1][..], [3, 8, 8]));
        // 16x8 keeps its size; columns 4 to 11 remain: four red, four green. Channels come one after the other.
        let image = data.train.image(0);
        assert_eq!(image[..8], [255, 255, 255, 255, 0, 0, 0, 0]);
        assert_eq!(image[64..72], [0, 0, 0, 0, 255, 255, 255, 255]);
    }

    #[test]
    fn larger_images_are_scaled_down() {
        let root = folder();
        let data = load(root.path(), 4).unwrap();
        let image = data.train.image(0);
        assert_eq!((image[0], image[3]), (255, 0));
    }

    #[test]
    fn any_part_of_the_training_images_is_of_all_classes() {
        let root = folder();
        for (class, copies) in [("a", 5), ("b", 2)] {
            let dir = root.path().join("train").join(class);
            for i in 0..copies {
                std::fs::copy(dir.join("one.png"), dir.join(format!("two{i}.png"))).unwrap();
            }
        }
        // Six of one class and three of the other.
        assert_eq!(load(root.path(), 4).unwrap().train.labels(), [0, 1, 0, 0, 1, 0, 0, 1, 0]);
    }

    #[test]
    fn what_is_no_image_folder_is_an_error_that_names_the_path() {
        let root = folder();
        let message = |root: &Path| load(root, 8).unwrap_err().to_string();
        assert!(message(&root.path().join("train")).contains("train/CLASS"));
        std::fs::write(root.path().join("train/a/two.jpg"), "no image").unwrap();
        assert!(message(root.path()).contains("two.jpg"), "{}", message(root.path()));
        std::fs::remove_file(root.path().join("train/a/two.jpg")).unwrap();
        std::fs::create_dir(root.path().join("val/c")).unwrap();
        assert!(message(root.path()).contains("no training images"));
        std::fs::remove_dir(root.path().join("val/c")).unwrap();
        std::fs::remove_file(root.path().join("train/a/one.png")).unwrap();
        assert!(message(root.path()).contains("found none"));
    }
}

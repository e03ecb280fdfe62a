//! A folder of images: `train/CLASS/**` and `val/CLASS/**` (or `test/CLASS/**`), one folder a class, as torchvision's
//! `ImageFolder`.

use super::files::{Files, KEPT_BYTES};
use super::left_out::{self, LeftOut, pictures};
use super::list;
use super::{DataError, DataSource, Dataset, Reading, Split};
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zoo_image::picture::KINDS;
use zoo_image::{Framing, Limits};

/// Loads the folder at `dir` as RGB images of `reading.side` pixels, each seen through [`Framing::whole`].
///
/// Classes are the names of the folders under `train`, in alphabetical order; the pictures of a class stand in its
/// folder and in those below it, and are taken in the order of their names, so that the same folder gives the same data
/// set. Training images stand with the classes mixed evenly, so that the first or last part of them, which
/// [`Dataset::limit`] and a recipe's hold-out take, is of all classes. Where there is no `train`, and a part is to be held
/// out, the classes are the folders in `dir` itself.
///
/// Files that are no pictures are left out and listed in [`Dataset::left_out`]. Where the images of a split fit into
/// [`KEPT_BYTES`] they are decoded here, and those that cannot be within `reading.limits` are left out too;
/// more of them, and all whose whole picture is wanted, are decoded when they are read.
///
/// # Errors
/// A folder that lacks `train` or both `val` and `test`, a class without images or unknown in training: each names the
/// path.
pub fn load(dir: &Path, reading: &Reading) -> Result<Dataset, DataError> {
    let listing = list(dir, reading.hold_out.is_some())?;
    listing.read(dir, format!("image folder, {}", dir.display()), reading)
}

/// The pictures in the folder at `dir`; `alone` where it may be one folder a class and nothing else.
fn list(dir: &Path, alone: bool) -> Result<Listing, DataError> {
    let (named, [val, test]) = (dir.join("train"), ["val", "test"].map(|name| dir.join(name)));
    let has = [&val, &test].map(|dir| dir.is_dir());
    let train = match (named.is_dir(), has) {
        (true, [false, false]) if !alone => {
            let wanted = "expected val/CLASS/* or test/CLASS/* beside train/CLASS/*, or a share of the training images to hold \
                          out (--val-split 0.1)";
            return Err(layout(dir, wanted));
        }
        (true, _) => named,
        (false, [false, false]) if alone => dir.to_path_buf(),
        _ => return Err(layout(dir, "expected an image folder: train/CLASS/* and val/CLASS/* (or test/CLASS/*)")),
    };
    let mut left_out = LeftOut::default();
    let classes = subfolders(&train, &mut left_out)?;
    if classes.len() < 2 {
        return Err(layout(&train, &format!("expected at least two folders, one a class, found {}", classes.len())));
    }
    let mut of = |dir: &Path, is_there: bool| -> Result<Option<Vec<File>>, DataError> {
        if !is_there {
            return Ok(None);
        }
        known(dir, &classes, &mut left_out, "this class has no training images")?;
        files(dir, &classes, false, &mut left_out).map(Some)
    };
    let (val, test) = (of(&val, has[0])?, of(&test, has[1])?);
    let train = files(&train, &classes, true, &mut left_out)?;
    Ok(Listing { classes, train, val, test, left_out })
}

/// Pictures with their labels, by what they are for.
pub(super) struct Listing {
    pub classes: Vec<String>,
    pub train: Vec<File>,
    pub val: Option<Vec<File>>,
    pub test: Option<Vec<File>>,
    pub left_out: LeftOut,
}

impl Listing {
    /// The data set of these pictures, which stand below `root`.
    pub fn read(self, root: &Path, label: String, reading: &Reading) -> Result<Dataset, DataError> {
        let Self { classes, train, val, test, mut left_out } = self;
        let framing = Framing::whole(reading.side);
        let mut split = |files: Vec<File>, training: bool| -> Result<Split, DataError> {
            let bytes = files.len().saturating_mul(3 * reading.side * reading.side);
            if bytes > KEPT_BYTES || (training && reading.pictures) {
                let labels = files.iter().map(|(_, label)| *label).collect();
                return Split::of(Arc::new(Files::new(root, &files, framing, reading.limits)), labels);
            }
            let split = read(&files, framing, reading.limits, &mut left_out)?;
            let empty = (0..classes.len() as u32).find(|label| training && !split.labels().contains(label));
            // The folder that holds them all: a class's is the one that its first file stands in.
            let folder = |files: &[File], label: Option<u32>| {
                let file = files.iter().find(|(_, of)| label.is_none_or(|label| label == *of));
                file.and_then(|(path, _)| path.parent()).unwrap_or(root).to_path_buf()
            };
            match empty {
                Some(label) => Err(none_found(&folder(&files, Some(label)), &left_out)),
                None if split.is_empty() => Err(none_found(&folder(&files, None), &left_out)),
                None => Ok(split),
            }
        };
        let train = split(train, true)?;
        let val = val.map(|files| split(files, false)).transpose()?;
        let test = test.map(|files| split(files, false)).transpose()?;
        let source = DataSource::Other { label };
        let data = Dataset::of_splits([Some(train), val, test], reading.hold_out, classes, source)?;
        Ok(Dataset { left_out, ..data })
    }
}

/// A labelled file.
pub(super) type File = (PathBuf, u32);

/// The test images of the folder at `dir`, those in `val`, else in `test`, unless `split` names one, which may lack `train`, the names of their classes, and what is left out.
/// Classes are those in `known`, in that order, else the folders under `train`, else those under the test folder.
///
/// # Errors
/// As [`load`].
pub(super) fn test_files(
    dir: &Path,
    split: Option<&str>,
    known_classes: Option<&[String]>,
) -> Result<(Vec<File>, Vec<String>, LeftOut), DataError> {
    let found = match split {
        Some(name) => Some(dir.join(name)).filter(|folder| folder.is_dir()),
        None => test_folder(dir),
    };
    let Some(test_dir) = found else {
        let wanted = split.map_or("val/CLASS/* (or test/CLASS/*)".to_owned(), |name| format!("{name}/CLASS/*"));
        return Err(layout(dir, &format!("expected an image folder: {wanted}")));
    };
    let train_dir = dir.join("train");
    let classes = match known_classes {
        Some(known) => known.to_vec(),
        None => subfolders(if train_dir.is_dir() { &train_dir } else { &test_dir }, &mut LeftOut::default())?,
    };
    let mut left_out = LeftOut::default();
    let problem = match known_classes {
        Some(known) => format!("the network knows no class of this name, but {}", listed(known)),
        None => "this class has no training images".into(),
    };
    known(&test_dir, &classes, &mut left_out, &problem)?;
    let files = files(&test_dir, &classes, false, &mut left_out)?;
    Ok((files, classes, left_out))
}

/// Refuses a folder of a class that is not among `classes`.
fn known(dir: &Path, classes: &[String], left_out: &mut LeftOut, problem: &str) -> Result<(), DataError> {
    match subfolders(dir, left_out)?.into_iter().find(|name| !classes.contains(name)) {
        Some(unknown) => Err(layout(&dir.join(unknown), problem)),
        None => Ok(()),
    }
}

/// The first of some names, for a message; of a long one its beginning.
pub(super) fn listed(names: &[String]) -> String {
    let short = |name: &String| match name.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.clone(),
    };
    let shown = names.iter().take(10).map(short).collect::<Vec<_>>().join(", ");
    if names.len() > 10 { format!("{shown}, … ({} in all)", names.len()) } else { shown }
}

/// The files as one split, in their order, without those that are left out.
pub(super) fn read(
    files: &[File],
    framing: Framing,
    limits: Limits,
    left_out: &mut LeftOut,
) -> Result<Split, DataError> {
    let decoded: Vec<zoo_image::Result<Vec<u8>>> =
        files.par_iter().map(|(path, _)| framing.read_within(path, limits)).collect();
    let (mut images, mut labels) = (Vec::with_capacity(files.len() * 3 * framing.size * framing.size), Vec::new());
    for (image, (path, label)) in decoded.into_iter().zip(files) {
        match image {
            Ok(image) => {
                images.extend(image);
                labels.push(*label);
            }
            Err(error) => left_out.add_unreadable(path, &error),
        }
    }
    Split::new(images, labels, [3, framing.size, framing.size])
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

/// The error that there is no picture in `dir`. It names the last file that was left out there, a damaged one if there
/// is one.
fn none_found(dir: &Path, left_out: &LeftOut) -> DataError {
    let there: Vec<_> = left_out.iter().filter(|(path, _)| path.starts_with(dir)).collect();
    let told =
        there.last().map(|(path, reason)| format!(", but {} left out: {}: {reason}", there.len(), path.display()));
    layout(dir, &format!("expected images ({KINDS}), found none{}", told.unwrap_or_default()))
}

/// The names of the folders in `dir`, in their order: those of the classes. Files beside them have no class.
fn subfolders(dir: &Path, left_out: &mut LeftOut) -> Result<Vec<String>, DataError> {
    let io = |source| DataError::Io { path: dir.into(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).map_err(io)?;
        if let Some(reason) = left_out::system(&name) {
            left_out.add(path, reason);
        } else if !path.is_dir() {
            left_out.add(path, "in no class's folder");
        } else {
            let problem = match name.to_str() {
                None => "is not UTF-8",
                // A line break would make two names of it in a list of one a line.
                Some(name) if name.contains(char::is_control) => "holds a line break or another control character",
                Some(name) => {
                    names.push(name.to_owned());
                    continue;
                }
            };
            return Err(layout(dir, &format!("the name of the class's folder {name:?} {problem}: rename it")));
        }
    }
    names.sort();
    Ok(names)
}

/// The images under `dir`, each with the place of its class among `classes`.
fn files(dir: &Path, classes: &[String], training: bool, left_out: &mut LeftOut) -> Result<Vec<File>, DataError> {
    let mut files = Vec::new();
    for (label, class) in (0u32..).zip(classes) {
        let folder = dir.join(class);
        let (paths, others) = if folder.is_dir() { pictures(&folder)? } else { Default::default() };
        left_out.extend(others);
        if training && paths.is_empty() {
            return Err(none_found(&folder, left_out));
        }
        files.extend(paths.into_iter().map(|path| (path, label)));
    }
    if files.is_empty() {
        return Err(none_found(dir, left_out));
    }
    Ok(if training { list::mixed(files, classes.len()) } else { files })
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
        let data = load(root.path(), &Reading::of(8)).unwrap();
        assert_eq!(
            (data.classes.as_slice(), data.train.labels()),
            (&["a".to_string(), "b".to_string()][..], &[0, 1][..])
        );
        assert_eq!((data.test.labels(), data.test.shape()), (&[1][..], [3, 8, 8]));
        // 16x8 keeps its size; columns 4 to 11 remain: four red, four green. Channels come one after the other.
        let image = data.train.image(0).unwrap();
        assert_eq!(image[..8], [255, 255, 255, 255, 0, 0, 0, 0]);
        assert_eq!(image[64..72], [0, 0, 0, 0, 255, 255, 255, 255]);
    }

    #[test]
    fn larger_images_are_scaled_down() {
        let root = folder();
        let data = load(root.path(), &Reading::of(4)).unwrap();
        let image = data.train.image(0).unwrap();
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
        assert_eq!(load(root.path(), &Reading::of(4)).unwrap().train.labels(), [0, 1, 0, 0, 1, 0, 0, 1, 0]);
    }

    #[test]
    fn what_is_no_image_folder_is_an_error_that_names_the_path() {
        let root = folder();
        let message = |root: &Path| load(root, &Reading::of(8)).unwrap_err().to_string();
        assert!(message(&root.path().join("train")).contains("train/CLASS"));
        std::fs::create_dir(root.path().join("val/c")).unwrap();
        assert!(message(root.path()).contains("no training images"));
        std::fs::remove_dir(root.path().join("val/c")).unwrap();
        std::fs::remove_file(root.path().join("train/a/one.png")).unwrap();
        let none = message(root.path());
        assert!(
            none.contains("train/a: expected images (JPEG, PNG, ") && none.contains("found none, but 1 left out"),
            "{none}"
        );
        std::fs::write(root.path().join("train/a/two.jpg"), "no image").unwrap();
        assert!(message(root.path()).contains("found none, but 2 left out: "), "{}", message(root.path()));
    }

    #[test]
    fn damaged_pictures_and_other_files_are_left_out_and_named() {
        let root = folder();
        let at = |name: &str| root.path().join(name);
        let jpeg = || {
            let mut bytes = std::io::Cursor::new(Vec::new());
            RgbImage::new(64, 64).write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
            bytes.into_inner()
        };
        std::fs::create_dir(at("train/a/deeper")).unwrap();
        std::fs::write(at("train/a/deeper/whole.jfif"), jpeg()).unwrap();
        std::fs::write(at("train/a/half.jpg"), &jpeg()[..400]).unwrap();
        std::fs::write(at("val/b/half.jpg"), &jpeg()[..500]).unwrap();
        std::fs::write(at("train/a/notes.txt"), "x").unwrap();
        std::fs::write(at("train/loose.jpg"), jpeg()).unwrap();
        let data = load(root.path(), &Reading::of(8)).unwrap();
        assert_eq!((data.train.len(), data.test.len()), (3, 1));
        let told = data.left_out.to_string();
        for (name, reason) in [
            ("train/a/half.jpg", "truncated: the JPEG ends at byte 400, before all of it is there"),
            ("val/b/half.jpg", "truncated: the JPEG ends at byte 500, before all of it is there"),
            ("train/a/notes.txt", "expected an image (JPEG, PNG, WebP, BMP, GIF or TIFF)"),
            ("train/loose.jpg", "in no class's folder"),
        ] {
            assert!(told.contains(&format!("{}: {reason}", at(name).display())), "{told}");
        }
        // Those and the three hidden files.
        assert!(told.starts_with("7 files left out:"), "{told}");

        let (files, classes, others) = test_files(root.path(), None, None).unwrap();
        assert_eq!((files.len(), classes.len(), others.len()), (2, 2, 1));
        let mut left_out = others;
        assert_eq!(read(&files, Framing::whole(8), Limits::default(), &mut left_out).unwrap().labels(), [1]);
        assert_eq!(left_out.len(), 2);
        // No picture of a class within the limits.
        let error =
            load(root.path(), &Reading { limits: Limits { pixels: 100 }, ..Reading::of(8) }).unwrap_err().to_string();
        assert!(error.contains("found none") && error.contains("more than 100 are not decoded"), "{error}");
    }

    #[test]
    #[cfg(unix)]
    fn a_class_whose_name_cannot_be_kept_is_said() {
        use std::os::unix::ffi::OsStrExt;
        for (name, complaint) in [
            (&b"caf\xE9"[..], "the name of the class's folder \"caf\\xE9\" is not UTF-8: rename it"),
            (b"a\nb", "the name of the class's folder \"a\\nb\" holds a line break"),
        ] {
            let root = folder();
            std::fs::create_dir(root.path().join("train").join(std::ffi::OsStr::from_bytes(name))).unwrap();
            let error = load(root.path(), &Reading::of(8)).unwrap_err().to_string();
            assert!(error.contains(complaint), "{error}");
        }
        // Names are short in a message, however long they are.
        assert!(listed(&["x".repeat(10_000), "<b>&".into()]).len() < 200);
    }
}

//! Pictures in files, decoded when they are wanted.

use super::folder::File;
use super::{DataError, ImageSet};
use crate::augment::Pixels;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use zoo_image::{Framing, Limits, Picture};

/// Bytes of decoded pictures that one split keeps: what fits is decoded once. Where all of a data set fits into as much
/// as that, it is decoded before training begins.
pub const KEPT_BYTES: usize = 1 << 30;

/// The pictures of a split, in files below one folder.
#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    paths: Vec<PathBuf>,
    framing: Framing,
    limits: Limits,
    /// Bytes that may still be kept.
    room: AtomicUsize,
    /// What has been decoded and kept: the image, or the picture that it is cut from.
    images: Vec<OnceLock<Box<[u8]>>>,
    pictures: Vec<OnceLock<Arc<Pixels>>>,
}

impl Files {
    pub fn new(root: &Path, files: &[File], framing: Framing, limits: Limits) -> Self {
        let slots = files.len();
        Self {
            root: root.into(),
            paths: files.iter().map(|(path, _)| path.clone()).collect(),
            framing,
            limits,
            room: AtomicUsize::new(KEPT_BYTES),
            images: (0..slots).map(|_| OnceLock::new()).collect(),
            pictures: (0..slots).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Takes room for so many bytes, if there is.
    fn take_room(&self, bytes: usize) -> bool {
        let less = |room: usize| room.checked_sub(bytes);
        self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

impl ImageSet for Files {
    fn len(&self) -> usize {
        self.paths.len()
    }

    fn shape(&self) -> [usize; 3] {
        [3, self.framing.size, self.framing.size]
    }

    fn read(&self, index: usize) -> Result<Cow<'_, [u8]>, DataError> {
        let slot = &self.images[index];
        if let Some(image) = slot.get() {
            return Ok((&**image).into());
        }
        let image = self.framing.read_within(&self.paths[index], self.limits)?;
        if !self.take_room(image.len()) {
            return Ok(image.into());
        }
        // Another thread may have been first: it has decoded the same.
        Ok((&**slot.get_or_init(|| image.into())).into())
    }

    fn picture(&self, index: usize) -> Result<Pixels, DataError> {
        let slot = &self.pictures[index];
        if let Some(picture) = slot.get() {
            return Ok(Pixels::clone(picture));
        }
        let ([height, width], planes) = Picture::open(&self.paths[index], self.limits)?.planes()?;
        let picture = Pixels::new(planes, [3, height, width])?;
        if self.take_room(picture.data().len()) {
            slot.get_or_init(|| Arc::new(picture.clone()));
        }
        Ok(picture)
    }

    /// Its name below the folder and its length: reading tens of thousands of files whole would take minutes.
    fn fingerprint(&self, index: usize) -> Result<Cow<'_, [u8]>, DataError> {
        let path = &self.paths[index];
        let length = std::fs::metadata(path).map_err(|source| DataError::Io { path: path.clone(), source })?.len();
        // With slashes on every system: a run may go on elsewhere.
        let parts = path.strip_prefix(&self.root).unwrap_or(path).iter().map(|part| part.to_string_lossy());
        Ok(format!("{}\n{length}\n", parts.collect::<Vec<_>>().join("/")).into_bytes().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgb, RgbImage};

    /// Three pictures of 6x4, each of one colour; the last one is damaged.
    fn files(root: &Path) -> Files {
        let paths = ["a", "b", "c"].map(|name| root.join(name).with_extension("png"));
        for (shade, path) in [10, 20, 30].into_iter().zip(&paths) {
            RgbImage::from_pixel(6, 4, Rgb([shade, 0, 255])).save(path).unwrap();
        }
        std::fs::write(&paths[2], &std::fs::read(&paths[2]).unwrap()[..40]).unwrap();
        let files: Vec<File> = paths.into_iter().map(|path| (path, 0)).collect();
        Files::new(root, &files, Framing::whole(2), Limits::default())
    }

    #[test]
    fn pictures_are_decoded_when_they_are_wanted_and_kept_while_there_is_room() {
        let root = tempfile::tempdir().unwrap();
        let files = files(root.path());
        assert_eq!((files.len(), files.shape()), (3, [3, 2, 2]));
        assert_eq!(*files.read(1).unwrap(), [20, 20, 20, 20, 0, 0, 0, 0, 255, 255, 255, 255]);
        assert_eq!(files.picture(0).unwrap().shape(), [3, 4, 6]);
        let kept = 12 + 72;
        assert_eq!(files.room.load(Ordering::Relaxed), KEPT_BYTES - kept);
        // What is kept is not read again.
        std::fs::remove_file(root.path().join("b.png")).unwrap();
        assert!(files.read(1).is_ok() && files.picture(1).is_err());

        files.room.store(71, Ordering::Relaxed);
        assert_eq!(files.picture(0).unwrap().shape(), [3, 4, 6]);
        let error = files.read(2).unwrap_err().to_string();
        assert!(error.contains("c.png"), "{error}");
        assert_eq!(files.room.load(Ordering::Relaxed), 71);
    }

    #[test]
    fn a_file_is_told_from_others_by_its_name_and_length() {
        let root = tempfile::tempdir().unwrap();
        let files = files(root.path());
        assert_eq!(*files.fingerprint(2).unwrap(), *b"c.png\n40\n");
        let gone = std::fs::remove_file(root.path().join("c.png")).map(|()| files.fingerprint(2).unwrap_err());
        assert!(gone.unwrap().to_string().contains("c.png"));
    }
}

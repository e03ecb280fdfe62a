//! Labelled images in memory, and where they come from.
//!
//! A [`Dataset`] is two [`Split`]s of u8 images with the names of the classes and a [`DataSource`] that every report
//! repeats. [`Dataset::load`] follows a [`DataSpec`], the `--data download|DIR|hub|synthetic` of the commands.

pub mod cifar10;
pub mod download;
pub mod folder;
mod grey;
pub mod hub;
pub mod idx;
mod left_out;
pub mod synthetic;
mod test_images;

use download::URL_VARIABLE;
pub use left_out::{LeftOut, pictures};
pub use synthetic::Synthetic;
pub use test_images::TestImages;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use zoo_image::{Limits, Normalize, Transform};

/// The environment variable that names a directory of CIFAR-10 binary files.
pub const CIFAR10_DIR: &str = "CIFAR10_DIR";

/// Why data could not be loaded or delivered; `Display` is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A directory or file that is not what it should be.
    #[error("{}: {problem}", path.display())]
    Layout {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A damaged record in a binary file.
    #[error("{}: byte {offset} (record {record}): {problem}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Bytes before the damage.
        offset: u64,
        /// Index of the record that holds it, from 0.
        record: u64,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// The hub copy is neither cached nor reachable.
    #[error(
        "CIFAR-10 from the hub: {0}; three ways out: `--data DIR` with the binary files (or {CIFAR10_DIR}=DIR), \
         `--data synthetic` for the embedded procedural data, or copy the hub cache from a networked machine where \
         this command ran once"
    )]
    Hub(String),
    /// CIFAR-10's archive cannot be downloaded.
    #[error(
        "CIFAR-10 cannot be downloaded: {0}; other ways: `--data DIR` with its binary files (or {CIFAR10_DIR}=DIR), \
         {URL_VARIABLE}=ADDRESS for a mirror, `--data synthetic` for the embedded procedural data"
    )]
    Download(String),
    /// A picture that cannot be read.
    #[error(transparent)]
    Picture(#[from] zoo_image::Error),
    /// Images, labels, classes or settings that do not fit each other.
    #[error("{0}")]
    Mismatch(String),
    /// The thread that prepares batches ended early.
    #[error("the data loader's thread failed: {0}")]
    Worker(String),
    /// Candle refused a tensor.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Where images came from: what a report says about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataSource {
    /// CIFAR-10's binary files.
    Cifar10Files {
        /// The directory that holds them.
        dir: PathBuf,
    },
    /// CIFAR-10's images in its binary files, but not as they were published: coded with loss, resized, relabelled.
    Altered {
        /// What reports call the data: `CIFAR-10, JPEG q75 copy`.
        name: String,
        /// The directory that holds them.
        dir: PathBuf,
    },
    /// CIFAR-10 as the Hugging Face Hub keeps it.
    Cifar10Hub,
    /// The embedded procedural images.
    Synthetic {
        /// The seed of [`Synthetic`].
        seed: u64,
    },
    /// A data set of the caller's own.
    Other {
        /// What reports call it.
        label: String,
    },
}

impl DataSource {
    /// One line for reports. Synthetic images are called so, and are never called CIFAR-10.
    ///
    /// ```
    /// use zoo_train::data::DataSource;
    /// assert_eq!(DataSource::Synthetic { seed: 0 }.label(), "synthetic (procedural, seed 0), not CIFAR-10");
    /// ```
    pub fn label(&self) -> String {
        match self {
            Self::Cifar10Files { dir } => format!("CIFAR-10 binary files, {}", dir.display()),
            Self::Altered { name, dir } => format!("{name}, {}", dir.display()),
            Self::Cifar10Hub => "CIFAR-10 from the hub".into(),
            Self::Synthetic { seed } => format!("synthetic (procedural, seed {seed}), not CIFAR-10"),
            Self::Other { label } => label.clone(),
        }
    }

    /// Whether the images are CIFAR-10's.
    pub fn is_cifar10(&self) -> bool {
        matches!(self, Self::Cifar10Files { .. } | Self::Cifar10Hub)
    }

    /// Whether the images are procedural.
    pub fn is_synthetic(&self) -> bool {
        matches!(self, Self::Synthetic { .. })
    }
}

impl fmt::Display for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label())
    }
}

/// What to load: the argument of `--data`.
///
/// ```
/// use zoo_train::data::{DataSpec, Synthetic};
/// assert_eq!("hub".parse(), Ok(DataSpec::Hub));
/// assert_eq!("download".parse(), Ok(DataSpec::Download));
/// assert_eq!("synthetic".parse(), Ok(DataSpec::Synthetic(Synthetic::default())));
/// assert_eq!("./hub".parse(), Ok(DataSpec::Dir("./hub".into())));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DataSpec {
    /// CIFAR-10 from wherever it is: `$CIFAR10_DIR` if it is set, else what was downloaded before, else the hub's local
    /// cache, in a build with the feature `hub`, else downloaded now.
    #[default]
    Auto,
    /// CIFAR-10's own archive: what was downloaded before, else downloaded now. See [`download`].
    Download,
    /// A directory of CIFAR-10 binary files.
    Dir(PathBuf),
    /// The hub copy: from the local cache, else downloaded.
    Hub,
    /// The embedded procedural data set.
    Synthetic(Synthetic),
}

impl FromStr for DataSpec {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "download" => Self::Download,
            "hub" => Self::Hub,
            "synthetic" => Self::Synthetic(Synthetic::default()),
            dir => Self::Dir(dir.into()),
        })
    }
}

/// Images of one shape with their labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    images: Vec<u8>,
    labels: Vec<u32>,
    shape: [usize; 3],
}

impl Split {
    /// `images` holds `labels.len()` images of `shape` (channels, height, width) one after the other, each channel by
    /// channel and row by row.
    ///
    /// # Errors
    /// A buffer of another length.
    pub fn new(images: Vec<u8>, labels: Vec<u32>, shape: [usize; 3]) -> Result<Self, DataError> {
        let expected = labels.len() * shape.iter().product::<usize>();
        if images.len() != expected {
            let (bytes, n) = (images.len(), labels.len());
            return Err(DataError::Mismatch(format!(
                "{n} images of shape {shape:?} take {expected} bytes, got {bytes}"
            )));
        }
        Ok(Self { images, labels, shape })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// (channels, height, width) of every image.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// The bytes of image `index`, channel by channel, row by row.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len).
    pub fn image(&self, index: usize) -> &[u8] {
        let size = self.shape.iter().product::<usize>();
        &self.images[index * size..(index + 1) * size]
    }

    /// The class of every image.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The mean image over the split, as the network sees it before any other normalisation: c·h·w values in 0..=1.
    /// Zeros for an empty split.
    pub fn mean_image(&self) -> Vec<f32> {
        let mut sums = vec![0u64; self.shape.iter().product()];
        for index in 0..self.len() {
            sums.iter_mut().zip(self.image(index)).for_each(|(sum, &byte)| *sum += u64::from(byte));
        }
        let scale = 255.0 * self.len().max(1) as f64;
        sums.into_iter().map(|sum| (sum as f64 / scale) as f32).collect()
    }

    /// How these images become what a network reads. The test images of a run go through the transform of its
    /// *training* split, whose mean [`Normalize::PixelMean`] takes off.
    ///
    /// # Errors
    /// Images of neither three channels nor one, where three means are taken off.
    pub fn transform(&self, normalize: &Normalize) -> Result<Transform, DataError> {
        Ok(Transform::new(normalize, self.shape, || self.mean_image())?)
    }

    fn truncate(&mut self, n: usize) {
        self.labels.truncate(n);
        self.images.truncate(n * self.shape.iter().product::<usize>());
    }
}

/// A training and a test split of the same classes.
///
/// ```
/// use zoo_train::data::{Dataset, DataSpec, Synthetic};
/// let spec = DataSpec::Synthetic(Synthetic { train: 100, test: 20, seed: 0 });
/// let data = Dataset::load(&spec)?.limit(60);
/// assert_eq!((data.train.len(), data.test.len()), (60, 20));
/// assert_eq!(data.train.shape(), [3, 32, 32]);
/// assert_eq!(data.classes[0], "disc");
/// # Ok::<(), zoo_train::data::DataError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Dataset {
    /// What networks learn from.
    pub train: Arc<Split>,
    /// What they are measured on.
    pub test: Arc<Split>,
    /// Names of the classes; the position is the label.
    pub classes: Vec<String>,
    /// Where the images came from.
    pub source: DataSource,
    /// What stood beside the images or was none of them.
    pub left_out: LeftOut,
}

impl Dataset {
    /// Puts two splits together.
    ///
    /// # Errors
    /// Splits of different shapes, or a label without a class.
    pub fn new(train: Split, test: Split, classes: Vec<String>, source: DataSource) -> Result<Self, DataError> {
        if train.shape != test.shape {
            let (a, b) = (train.shape, test.shape);
            return Err(DataError::Mismatch(format!("training images have the shape {a:?}, test images {b:?}")));
        }
        for (name, split) in [("training", &train), ("test", &test)] {
            if let Some(i) = split.labels.iter().position(|&label| label as usize >= classes.len()) {
                let (label, n) = (split.labels[i], classes.len());
                return Err(DataError::Mismatch(format!(
                    "{name} image {i} has the label {label}, but there are {n} classes"
                )));
            }
        }
        Ok(Self { train: train.into(), test: test.into(), classes, source, left_out: LeftOut::default() })
    }

    /// Loads what `spec` names.
    ///
    /// # Errors
    /// Files that are missing or damaged, with the place and what was expected; a hub or an archive that is neither
    /// cached nor reachable, with the ways out.
    pub fn load(spec: &DataSpec) -> Result<Self, DataError> {
        match spec {
            DataSpec::Auto => Self::load_auto(std::env::var_os(CIFAR10_DIR)),
            DataSpec::Download => cifar10::load(&download::cifar10()?),
            DataSpec::Dir(dir) => cifar10::load(dir),
            DataSpec::Hub => hub::load(),
            DataSpec::Synthetic(synthetic) => Ok(synthetic.generate()),
        }
    }

    /// Loads what lies in `dir`: binary files of CIFAR-10 or CIFAR-100 ([`cifar10::load_any`]), MNIST's or
    /// Fashion-MNIST's files ([`idx::load`]), or an image folder, its images cut to `side`x`side` ([`folder::load`]).
    ///
    /// # Errors
    /// A folder that is none, with all layouts, or two; what the loaders refuse.
    pub fn open(dir: &Path, side: usize) -> Result<Self, DataError> {
        Self::open_within(dir, side, Limits::default())
    }

    /// As [`open`](Self::open), with limits of one's own for the pictures of a folder.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_within(dir: &Path, side: usize, limits: Limits) -> Result<Self, DataError> {
        let problem = match (cifar10::is_in(dir), idx::is_in(dir), folder::is_in(dir)) {
            (true, false, false) => return cifar10::load_any(dir),
            (false, true, false) => return idx::load(dir),
            (false, false, true) => return folder::load(dir, side, limits),
            (true, ..) | (_, true, _) => "holds two data sets, where one was expected",
            _ if dir.is_dir() => "holds no data set",
            _ if dir.exists() => "not a directory",
            _ => "no such directory",
        };
        let layouts = "CIFAR-10 binary files (data_batch_*.bin and test_batch.bin, or train.bin and test.bin), MNIST's \
                       files (train-images-idx3-ubyte, …) or an image folder (train/CLASS/* and val/CLASS/* or test/CLASS/*)";
        Err(DataError::Layout { path: dir.into(), problem: format!("{problem}: expected {layouts}") })
    }

    fn load_auto(cifar10_dir: Option<OsString>) -> Result<Self, DataError> {
        match cifar10_dir {
            Some(dir) if !dir.is_empty() => cifar10::load(Path::new(&dir)),
            _ => match download::found() {
                Some(dir) => cifar10::load(&dir),
                None if hub::is_cached() => hub::load(),
                None => Self::load(&DataSpec::Download),
            },
        }
    }

    /// Keeps the first `n` training images; all if there are no more.
    #[must_use]
    pub fn limit(mut self, n: usize) -> Self {
        if n < self.train.len() {
            Arc::make_mut(&mut self.train).truncate(n);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_checks_its_length_and_a_dataset_its_labels() {
        let error = Split::new(vec![0; 11], vec![0], [3, 2, 2]).unwrap_err().to_string();
        assert_eq!(error, "1 images of shape [3, 2, 2] take 12 bytes, got 11");
        let split = |label, side: usize| Split::new(vec![0; 3 * side * side], vec![label], [3, side, side]).unwrap();
        let other = || DataSource::Other { label: "mine".into() };
        let error = Dataset::new(split(0, 2), split(1, 2), vec!["a".into()], other()).unwrap_err().to_string();
        assert_eq!(error, "test image 0 has the label 1, but there are 1 classes");
        let error = Dataset::new(split(0, 2), split(0, 4), vec!["a".into()], other()).unwrap_err().to_string();
        assert_eq!(error, "training images have the shape [3, 2, 2], test images [3, 4, 4]");
    }

    #[test]
    fn limit_keeps_the_first_training_images() {
        let data = Synthetic { train: 30, test: 10, seed: 0 }.generate();
        let limited = data.clone().limit(7);
        assert_eq!((limited.train.len(), limited.test.len()), (7, 10));
        assert_eq!(limited.train.image(6), data.train.image(6));
        assert_eq!(data.clone().limit(99).train, data.train);
    }

    #[test]
    fn the_mean_image_averages_pixel_by_pixel() {
        let split = Split::new(vec![0, 51, 255, 0, 153, 0], vec![0, 0], [3, 1, 1]).unwrap();
        assert_eq!(split.mean_image(), [0.0, 0.4, 0.5]);
    }

    #[test]
    fn what_lies_in_a_folder_decides_how_it_is_read() {
        let root = tempfile::tempdir().unwrap();
        let message = || {
            let error = Dataset::open(root.path(), 8).unwrap_err().to_string();
            error.replace(root.path().to_str().unwrap(), "DIR")
        };
        let neither = message();
        assert!(neither.starts_with("DIR: holds no data set: expected CIFAR-10 binary files"), "{neither}");
        assert!(neither.contains("data_batch_*.bin") && neither.contains("train/CLASS"), "{neither}");
        assert_eq!(neither.lines().count(), 1);

        // Half of a layout is that layout: its own loader says what is missing.
        std::fs::write(root.path().join("train.bin"), [7; 3073]).unwrap();
        assert_eq!(message(), "DIR/test.bin: missing, but DIR/train.bin is there");
        std::fs::write(root.path().join("test.bin"), [7; 3073]).unwrap();
        assert_eq!(Dataset::open(root.path(), 8).unwrap().train.shape(), [3, 32, 32]);
        std::fs::create_dir_all(root.path().join("train/a")).unwrap();
        assert!(message().contains("two data sets"), "{}", message());
        std::fs::remove_file(root.path().join("train.bin")).unwrap();
        std::fs::remove_file(root.path().join("test.bin")).unwrap();
        assert!(message().starts_with("DIR: expected an image folder"), "{}", message());

        let absent = Dataset::open(&root.path().join("absent"), 8).unwrap_err().to_string();
        assert!(absent.contains("absent: no such directory: expected CIFAR-10"), "{absent}");
    }

    #[test]
    fn the_environment_comes_before_the_hub() {
        let error = Dataset::load_auto(Some("/no/such/dir".into())).unwrap_err().to_string();
        assert_eq!(error, "/no/such/dir: no such directory: expected CIFAR-10 binary files in it");
    }

    #[test]
    #[cfg(not(feature = "hub"))]
    fn a_build_without_the_hub_names_the_ways_out() {
        let error = Dataset::load(&DataSpec::Hub).unwrap_err().to_string();
        assert!(error.starts_with("CIFAR-10 from the hub: this build has no hub access"), "{error}");
        assert!(["--features hub", "--data DIR", "CIFAR10_DIR", "--data synthetic"].iter().all(|w| error.contains(w)));
        assert_eq!(error.lines().count(), 1);
    }
}

//! Labelled images in memory, and where they come from.
//!
//! A [`Dataset`] is two [`Split`]s of u8 images with the names of the classes and a [`DataSource`] that every report
//! repeats. [`Dataset::load`] follows a [`DataSpec`], the `--data download|DIR|hub|synthetic` of the commands.

pub mod cifar10;
pub mod download;
mod files;
pub mod folder;
mod hold_out;
pub mod hub;
pub mod idx;
mod left_out;
pub mod list;
mod split;
pub mod synthetic;
mod test_images;

use download::URL_VARIABLE;
pub use files::KEPT_BYTES;
pub use hold_out::HoldOut;
pub use left_out::{LeftOut, pictures};
pub use split::{ImageSet, Split};
pub use synthetic::Synthetic;
pub use test_images::TestImages;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use zoo_image::Limits;

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

/// How pictures in files are read.
///
/// ```
/// use zoo_train::data::{HoldOut, Reading};
/// let reading = Reading { hold_out: Some(HoldOut { share: 0.1, seed: 1 }), ..Reading::of(224) };
/// assert!(!reading.pictures);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// The side that images are cut to.
    pub side: usize,
    /// The largest pictures that are decoded.
    pub limits: Limits,
    /// Keep the training pictures whole, as a random resized crop wants them.
    pub pictures: bool,
    /// The part of the training images that is taken to choose an epoch by.
    pub hold_out: Option<HoldOut>,
}

impl Reading {
    /// At `side`x`side`, with nothing held out.
    pub fn of(side: usize) -> Self {
        Self { side, limits: Limits::default(), pictures: false, hold_out: None }
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
    /// What they are measured on after every epoch, where that is not `test`: images to choose an epoch by.
    pub val: Option<Arc<Split>>,
    /// What they are measured on: once at the end where there are validation images, else after every epoch.
    pub test: Arc<Split>,
    /// Whether `test` is itself made of validation images, a folder's `val` or a part of the training images, so that an
    /// epoch may be chosen by it.
    pub is_validation: bool,
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
        Self::of_splits([Some(train), None, Some(test)], None, classes, source)
    }

    /// Puts a training, a validation and a test split together, of which the last two may lack. Images that are `hold_out`
    /// are taken from the training images to choose by; where there are validation images already and no test images, those
    /// are measured at the end.
    fn of_splits(
        [train, val, test]: [Option<Split>; 3],
        hold_out: Option<HoldOut>,
        classes: Vec<String>,
        source: DataSource,
    ) -> Result<Self, DataError> {
        let lacking = |what: &str| DataError::Mismatch(format!("{source}: there are no {what} images"));
        let train = train.ok_or_else(|| lacking("training"))?;
        for (name, split) in [("training", Some(&train)), ("validation", val.as_ref()), ("test", test.as_ref())] {
            let Some(split) = split else { continue };
            if train.shape() != split.shape() {
                let (a, b) = (train.shape(), split.shape());
                return Err(DataError::Mismatch(format!("training images have the shape {a:?}, {name} images {b:?}")));
            }
            if let Some(i) = split.labels().iter().position(|&label| label as usize >= classes.len()) {
                let (label, n) = (split.labels()[i], classes.len());
                return Err(DataError::Mismatch(format!(
                    "{name} image {i} has the label {label}, but there are {n} classes"
                )));
            }
        }
        let (train, held_out) = match hold_out {
            Some(hold_out) => hold_out.part(&train, classes.len()).map(|(train, held_out)| (train, Some(held_out)))?,
            None => (train, None),
        };
        let (val, test, is_validation) = match (held_out, val, test) {
            (Some(_), Some(_), Some(_)) => {
                let problem = format!("{source}: there are validation images already, no others can be held out");
                return Err(DataError::Mismatch(problem));
            }
            (held_out, val, Some(test)) => (held_out.or(val), test, false),
            (Some(held_out), Some(val), None) => (Some(held_out), val, false),
            (Some(images), None, None) | (None, Some(images), None) => (None, images, true),
            (None, None, None) => return Err(lacking("test")),
        };
        let left_out = LeftOut::default();
        Ok(Self {
            train: train.into(),
            val: val.map(Arc::new),
            test: test.into(),
            is_validation,
            classes,
            source,
            left_out,
        })
    }

    /// With a part of the training images to choose an epoch by.
    ///
    /// ```
    /// use zoo_train::data::{HoldOut, Synthetic};
    /// let data = Synthetic { train: 100, test: 20, seed: 0 }.generate().hold_out(HoldOut { share: 0.1, seed: 1 })?;
    /// assert_eq!((data.train.len(), data.val.map(|val| val.len()), data.test.len()), (90, Some(10), 20));
    /// # Ok::<(), zoo_train::data::DataError>(())
    /// ```
    ///
    /// # Errors
    /// Validation images that are there already, a share outside 0..1, or one that leaves a class without images.
    pub fn hold_out(self, hold_out: HoldOut) -> Result<Self, DataError> {
        let Self { train, val, test, is_validation, classes, source, left_out } = self;
        let [train, test] = [train, test].map(Arc::unwrap_or_clone);
        let val = val.map(Arc::unwrap_or_clone);
        // A folder's `val` becomes what is measured at the end.
        let (val, test) = if is_validation { (Some(test), None) } else { (val, Some(test)) };
        let data = Self::of_splits([Some(train), val, test], Some(hold_out), classes, source)?;
        Ok(Self { left_out, ..data })
    }

    /// The images that every epoch is measured on, and what they are called.
    pub fn measured(&self) -> (&Arc<Split>, &'static str) {
        match &self.val {
            Some(val) => (val, "validation"),
            None if self.is_validation => (&self.test, "validation"),
            None => (&self.test, "test"),
        }
    }

    /// All splits in `channels` channels: as they are, or grey.
    ///
    /// # Errors
    /// As [`Split::with_channels`].
    pub fn with_channels(self, channels: usize) -> Result<Self, DataError> {
        let converted = |split: Arc<Split>| Arc::unwrap_or_clone(split).with_channels(channels).map(Arc::new);
        let Self { train, val, test, .. } = self;
        Ok(Self { train: converted(train)?, val: val.map(converted).transpose()?, test: converted(test)?, ..self })
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
    /// Fashion-MNIST's files ([`idx::load`]), an image folder, its images cut to `side`x`side` ([`folder::load`]), or a list
    /// of pictures ([`list::load`]).
    ///
    /// # Errors
    /// A folder that is none, with all layouts, or two; what the loaders refuse.
    pub fn open(dir: &Path, side: usize) -> Result<Self, DataError> {
        Self::open_as(dir, &Reading::of(side))
    }

    /// As [`open`](Self::open), with all that can be said of how the pictures of a folder are read.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_as(dir: &Path, reading: &Reading) -> Result<Self, DataError> {
        if dir.is_file() {
            return list::load(dir, reading);
        }
        let held_out = |data: Self| match reading.hold_out {
            Some(hold_out) => data.hold_out(hold_out),
            None => Ok(data),
        };
        let problem = match (cifar10::is_in(dir), idx::is_in(dir), folder::is_in(dir)) {
            (true, false, false) => return held_out(cifar10::load_any(dir)?),
            (false, true, false) => return held_out(idx::load(dir)?),
            (false, false, true) => return folder::load(dir, reading),
            (false, false, false) if reading.hold_out.is_some() && dir.is_dir() => return folder::load(dir, reading),
            (true, ..) | (_, true, _) => "holds two data sets, where one was expected",
            _ if dir.is_dir() => "holds no data set",
            _ if dir.exists() => "not a directory",
            _ => "no such directory",
        };
        let layouts = "CIFAR-10 binary files (data_batch_*.bin and test_batch.bin, or train.bin and test.bin), MNIST's \
                       files (train-images-idx3-ubyte, …), an image folder (train/CLASS/* and val/CLASS/* or test/CLASS/*; \
                       CLASS/* alone with --val-split) or a list (a CSV file)";
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
    fn a_dataset_checks_its_labels() {
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
        assert_eq!(limited.train.image(6).unwrap(), data.train.image(6).unwrap());
        assert_eq!(data.clone().limit(99).train, data.train);
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
        assert!(
            message().starts_with("DIR: expected val/CLASS/* or test/CLASS/* beside train/CLASS/*"),
            "{}",
            message()
        );

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

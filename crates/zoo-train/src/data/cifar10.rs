//! CIFAR-10's binary files, of any number of records, and CIFAR-100's.
//!
//! A record is one label byte (0 to 9) and 3 x 32 x 32 pixel bytes: red, green, blue, each row by row. The files come
//! from <https://www.cs.toronto.edu/~kriz/cifar.html> (`cifar-10-binary.tar.gz`) or follow that layout. In CIFAR-100's
//! (`cifar-100-binary.tar.gz`) there are two label bytes: one of 20 coarse classes, which is passed over, and one of
//! 100.

use super::{DataError, DataSource, Dataset, Split};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use zoo_core::weights::open_regular;

/// Names of the ten classes; the position is the label.
pub const CLASSES: &[&str] =
    &["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// (channels, height, width) of an image.
pub const SHAPE: [usize; 3] = [3, 32, 32];
const IMAGE: usize = SHAPE[0] * SHAPE[1] * SHAPE[2];

/// The directories that the tarballs unpack to; a directory that holds one of them is accepted in its place.
const UNPACKED: [&str; 2] = ["cifar-10-batches-bin", "cifar-100-binary"];

/// The largest file that is read, in bytes: a hundred times the original.
const MOST_BYTES: u64 = 16 << 30;

/// Test images, and the sum of the CRC-32 of their records, of copies that are not what was published.
const ALTERED: &[((usize, u64), &str)] = &[((10_000, 21_338_553_653_608), "CIFAR-10, JPEG q75 copy")];

/// One of the two layouts of a record.
struct Format {
    name: &'static str,
    /// Bytes before the pixels; the last of them is the label.
    labels: usize,
    classes: usize,
    /// The file of the classes' names.
    names: &'static str,
}

const CIFAR10: Format = Format { name: "CIFAR-10", labels: 1, classes: 10, names: "batches.meta.txt" };
const CIFAR100: Format = Format { name: "CIFAR-100", labels: 2, classes: 100, names: "fine_label_names.txt" };

impl Format {
    fn record(&self) -> usize {
        self.labels + IMAGE
    }

    /// The layout of the files by their lengths or, where those fit both, by the files of names beside them.
    fn of(files: &Files) -> Result<&'static Self, DataError> {
        let mut fits = [true, true];
        for path in files.train.iter().chain([&files.test]) {
            let length = fs::metadata(path).map_err(|e| io(path, e))?.len();
            for (fits, format) in fits.iter_mut().zip([&CIFAR10, &CIFAR100]) {
                *fits &= length % format.record() as u64 == 0;
            }
        }
        let named = files.test.with_file_name(CIFAR100.names).exists();
        Ok(if fits[1] && (!fits[0] || named) { &CIFAR100 } else { &CIFAR10 })
    }
}

/// Loads `data_batch_*.bin` and `test_batch.bin` (these first, where both layouts stand), or `train.bin` and
/// `test.bin`, from `dir` or from `dir/cifar-10-batches-bin`. Class names come from `batches.meta.txt` where it exists.
///
/// # Errors
/// A directory or file that is missing, empty or unreadable; a file that ends inside a record; a label over 9;
/// CIFAR-100's files. Each names the file, the byte, the record and what was expected.
pub fn load(dir: &Path) -> Result<Dataset, DataError> {
    let (files, format) = find(dir)?;
    if format.name != CIFAR10.name {
        let problem =
            format!("{}'s files (records of {} bytes), where CIFAR-10's are expected", format.name, format.record());
        return Err(layout(dir, problem));
    }
    read(dir, &files, format)
}

/// Loads what [`load`] does, or CIFAR-100's `train.bin` and `test.bin` from `dir` or `dir/cifar-100-binary`, told apart
/// by the length of their records. Class names come from `fine_label_names.txt` where it exists.
///
/// # Errors
/// As [`load`].
pub fn load_any(dir: &Path) -> Result<Dataset, DataError> {
    let (files, format) = find(dir)?;
    read(dir, &files, format)
}

fn find(dir: &Path) -> Result<(Files, &'static Format), DataError> {
    if !dir.is_dir() {
        let problem = if dir.exists() { "not a directory" } else { "no such directory" };
        return Err(layout(dir, format!("{problem}: expected CIFAR-10 binary files in it")));
    }
    let mut found = find_files(dir)?;
    for unpacked in UNPACKED.map(|name| dir.join(name)) {
        if found.is_none() && unpacked.is_dir() {
            found = find_files(&unpacked)?;
        }
    }
    let Some(files) = found else {
        let problem =
            "no CIFAR-10 binary files: expected data_batch_*.bin and test_batch.bin, or train.bin and test.bin";
        return Err(layout(dir, problem.into()));
    };
    let format = Format::of(&files)?;
    Ok((files, format))
}

fn read(dir: &Path, files: &Files, format: &Format) -> Result<Dataset, DataError> {
    let classes = read_classes(&files.test, format)?;
    let train = read_split(&files.train, format)?;
    let test = read_split(std::slice::from_ref(&files.test), format)?;
    let source = match altered(&test) {
        Some(name) => DataSource::Altered { name: name.into(), dir: dir.into() },
        None if format.name == CIFAR10.name => DataSource::Cifar10Files { dir: dir.into() },
        None => DataSource::Other { label: format!("{} binary files, {}", format.name, dir.display()) },
    };
    Dataset::new(train, test, classes, source)
}

/// The name of a known altered copy of CIFAR-10, recognised by its test images in any order: results on it are not
/// results on CIFAR-10, even where the user does not say so.
fn altered(test: &Split) -> Option<&'static str> {
    let found = fingerprint(test);
    ALTERED.iter().find(|(known, _)| *known == found).map(|(_, name)| *name)
}

/// The number of records and the sum of their checksums, which no order changes.
fn fingerprint(split: &Split) -> (usize, u64) {
    let record = |index: usize| {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&[split.labels()[index] as u8]);
        hasher.update(&split.image(index).unwrap_or_default());
        u64::from(hasher.finalize())
    };
    (split.len(), (0..split.len()).map(record).fold(0, u64::wrapping_add))
}

/// Whether `dir` or `dir/cifar-10-batches-bin` holds files of either layout, be it half of one.
pub(super) fn is_in(dir: &Path) -> bool {
    let unpacked = UNPACKED.map(|name| dir.join(name));
    [dir]
        .into_iter()
        .chain(unpacked.iter().map(PathBuf::as_path))
        .any(|dir| dir.is_dir() && !matches!(find_files(dir), Ok(None)))
}

struct Files {
    train: Vec<PathBuf>,
    test: PathBuf,
}

/// `None` if `dir` holds no file of either layout; an error if it holds half of one.
fn find_files(dir: &Path) -> Result<Option<Files>, DataError> {
    let mut batches = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| io(dir, e))? {
        let name = entry.map_err(|e| io(dir, e))?.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("data_batch_") && name.ends_with(".bin")) {
            batches.push(name);
        }
    }
    // Shorter names first, so that batch 10 follows batch 9.
    batches.sort_by_key(|name| (name.len(), name.clone()));
    let batches: Vec<PathBuf> = batches.iter().map(|name| dir.join(name)).collect();

    let mut half = None;
    for (train, expected, test) in [
        (batches, "data_batch_*.bin", dir.join("test_batch.bin")),
        (Vec::from_iter(Some(dir.join("train.bin")).filter(|path| path.exists())), "train.bin", dir.join("test.bin")),
    ] {
        match (train.first(), test.exists()) {
            (Some(_), true) => return Ok(Some(Files { train, test })),
            (Some(present), false) => half = half.or(Some((test, present.clone()))),
            (None, true) => half = half.or(Some((dir.join(expected), test))),
            (None, false) => {}
        }
    }
    match half {
        Some((missing, present)) => Err(layout(&missing, format!("missing, but {} is there", present.display()))),
        None => Ok(None),
    }
}

/// All of a regular file.
fn bytes_of(path: &Path) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    let read = open_regular(path).and_then(|file| match file.metadata()?.len() {
        length if length > MOST_BYTES => Err(io::Error::other(format!("{length} bytes are no data set of this kind"))),
        length => {
            bytes.try_reserve_exact(length as usize)?;
            (&file).read_to_end(&mut bytes)
        }
    });
    read.map_err(|e| io(path, e))?;
    Ok(bytes)
}

fn read_classes(beside: &Path, format: &Format) -> Result<Vec<String>, DataError> {
    let path = &beside.with_file_name(format.names);
    if !path.exists() {
        return Ok((0..format.classes)
            .map(|class| match format.name == CIFAR10.name {
                true => CLASSES[class].to_owned(),
                false => format!("class {class}"),
            })
            .collect());
    }
    let text = String::from_utf8(bytes_of(path)?).map_err(|_| layout(path, "class names that are not UTF-8".into()))?;
    let names: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect();
    if names.len() != format.classes {
        return Err(layout(path, format!("{} class names: expected {}, one a line", names.len(), format.classes)));
    }
    Ok(names)
}

fn read_split(paths: &[PathBuf], format: &Format) -> Result<Split, DataError> {
    let (size, before) = (format.record(), format.labels);
    let (mut images, mut labels) = (Vec::new(), Vec::new());
    for path in paths {
        let bytes = bytes_of(path)?;
        if bytes.is_empty() {
            return Err(layout(path, format!("empty: expected records of {size} bytes")));
        }
        let records = bytes.chunks_exact(size);
        let rest = records.remainder().len();
        images.reserve(records.len() * IMAGE);
        let problem = |offset: usize, problem: String| DataError::Record {
            path: path.into(),
            offset: offset as u64,
            record: (offset / size) as u64,
            problem,
        };
        for (i, record) in records.enumerate() {
            let (label, pixels) = (record[before - 1], &record[before..]);
            if usize::from(label) >= format.classes {
                return Err(problem(i * size, format!("label {label}: expected 0 to {}", format.classes - 1)));
            }
            labels.push(u32::from(label));
            images.extend_from_slice(pixels);
        }
        if rest > 0 {
            let before = if before == 1 { "a label" } else { "two labels" };
            let expected = format!("expected records of {size} bytes ({before}, then 3x32x32 pixels)");
            return Err(problem(bytes.len(), format!("the file ends {rest} bytes into a record: {expected}")));
        }
    }
    Split::new(images, labels, SHAPE)
}

fn io(path: &Path, source: std::io::Error) -> DataError {
    DataError::Io { path: path.into(), source }
}

fn layout(path: &Path, problem: String) -> DataError {
    DataError::Layout { path: path.into(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// A directory with the given files.
    fn dir(files: &[(&str, Vec<u8>)]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        dir
    }

    /// Records whose pixels count up from their label.
    fn records(labels: &[u8]) -> Vec<u8> {
        let pixels = |label: u8| (0..IMAGE).map(move |i| label.wrapping_add(i as u8));
        labels.iter().flat_map(|&label| std::iter::once(label).chain(pixels(label))).collect()
    }

    /// The message without the temporary directory's name.
    fn message(files: &[(&str, Vec<u8>)]) -> String {
        let dir = dir(files);
        let error = load(dir.path()).unwrap_err().to_string();
        error.replace(dir.path().to_str().unwrap(), "DIR")
    }

    #[test]
    fn both_layouts_and_any_number_of_records() {
        for files in [
            vec![("train.bin", records(&[3, 1, 4, 1])), ("test.bin", records(&[5]))],
            vec![
                // Read in the order of their numbers, not of their letters.
                ("data_batch_10.bin", records(&[1])),
                ("data_batch_2.bin", records(&[1, 4])),
                ("data_batch_1.bin", records(&[3])),
                ("test_batch.bin", records(&[5])),
            ],
            vec![
                ("cifar-10-batches-bin/data_batch_1.bin", records(&[3, 1, 4, 1])),
                ("cifar-10-batches-bin/test_batch.bin", records(&[5])),
            ],
        ] {
            let dir = dir(&files);
            let data = load(dir.path()).unwrap();
            assert_eq!(data.train.labels(), [3, 1, 4, 1]);
            assert_eq!(data.test.labels(), [5]);
            assert_eq!(data.train.image(2).unwrap()[..4], [4, 5, 6, 7]);
            assert_eq!(data.train.shape(), SHAPE);
            assert_eq!(data.classes, CLASSES);
            assert_eq!(data.source.label(), format!("CIFAR-10 binary files, {}", dir.path().display()));
            assert!(!data.source.is_synthetic());
        }
    }

    #[test]
    fn class_names_come_from_the_meta_file() {
        let names = "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n";
        let mut files = vec![("train.bin", records(&[0])), ("test.bin", records(&[0]))];
        files.push(("batches.meta.txt", names.into()));
        assert_eq!(load(dir(&files).path()).unwrap().classes.concat(), "abcdefghij");
        files[2].1.truncate(6);
        assert_eq!(message(&files), "DIR/batches.meta.txt: 3 class names: expected 10, one a line");
    }

    #[test]
    fn every_malformed_input_has_its_own_line() {
        let good = || records(&[0, 9]);
        let expected = "expected records of 3073 bytes";
        let cut = |n: usize| good()[..n].to_vec();
        type Files<'a> = &'a [(&'a str, Vec<u8>)];
        let cases: &[(Files, String)] = &[
            (
                &[],
                "DIR: no CIFAR-10 binary files: expected data_batch_*.bin and test_batch.bin, or train.bin and test.bin"
                    .into(),
            ),
            (&[("train.bin", good())], "DIR/test.bin: missing, but DIR/train.bin is there".into()),
            (&[("test.bin", good())], "DIR/train.bin: missing, but DIR/test.bin is there".into()),
            (
                &[("data_batch_1.bin", good())],
                "DIR/test_batch.bin: missing, but DIR/data_batch_1.bin is there".into(),
            ),
            (
                &[("test_batch.bin", good())],
                "DIR/data_batch_*.bin: missing, but DIR/test_batch.bin is there".into(),
            ),
            (&[("train.bin", vec![]), ("test.bin", good())], format!("DIR/train.bin: empty: {expected}")),
            (&[("train.bin", good()), ("test.bin", vec![])], format!("DIR/test.bin: empty: {expected}")),
            (
                &[("train.bin", cut(5000)), ("test.bin", good())],
                format!(
                    "DIR/train.bin: byte 5000 (record 1): the file ends 1927 bytes into a record: {expected} (a label, \
                     then 3x32x32 pixels)"
                ),
            ),
            (
                &[("train.bin", good()), ("test.bin", cut(1))],
                format!(
                    "DIR/test.bin: byte 1 (record 0): the file ends 1 bytes into a record: {expected} (a label, then \
                     3x32x32 pixels)"
                ),
            ),
            (
                &[("train.bin", records(&[1, 2, 10])), ("test.bin", good())],
                "DIR/train.bin: byte 6146 (record 2): label 10: expected 0 to 9".into(),
            ),
        ];
        for (files, expected) in cases {
            assert_eq!(&message(files), expected);
        }
        let dir = dir(&[("file", vec![])]);
        let error = load(&dir.path().join("file")).unwrap_err().to_string();
        assert!(error.ends_with("/file: not a directory: expected CIFAR-10 binary files in it"), "{error}");
    }

    #[test]
    fn cifar_100_is_known_by_the_length_of_its_records() {
        let records = |labels: &[[u8; 2]]| -> Vec<u8> {
            labels.iter().flat_map(|label| [&label[..], &vec![label[1]; IMAGE]].concat()).collect()
        };
        let mut files = vec![
            ("cifar-100-binary/train.bin", records(&[[3, 44], [0, 99]])),
            ("cifar-100-binary/test.bin", records(&[[19, 7]])),
        ];
        let unnamed = load_any(dir(&files).path()).unwrap();
        assert_eq!((unnamed.train.labels(), unnamed.test.labels()), (&[44, 99][..], &[7][..]));
        assert_eq!((unnamed.train.image(1).unwrap()[0], unnamed.classes[44].as_str()), (99, "class 44"));
        assert!(unnamed.source.label().starts_with("CIFAR-100 binary files, ") && !unnamed.source.is_cifar10());
        let names: String = (0..100).map(|class| format!("name{class}\n")).collect();
        files.push(("cifar-100-binary/fine_label_names.txt", names.into()));
        assert_eq!(load_any(dir(&files).path()).unwrap().classes[99], "name99");
        assert_eq!(message(&files), "DIR: CIFAR-100's files (records of 3074 bytes), where CIFAR-10's are expected");
        // This many records of one layout are as long as some number of the other: the files of names decide.
        let both = vec![1u8; 3073 * 3074];
        let mut files = vec![("train.bin", both.clone()), ("test.bin", both)];
        assert_eq!(load_any(dir(&files).path()).unwrap().train.len(), 3074);
        files.push(("fine_label_names.txt", (0..100).map(|class| format!("{class}\n")).collect::<String>().into()));
        assert_eq!(load_any(dir(&files).path()).unwrap().train.len(), 3073);
        // A damaged record says what was expected of its kind.
        let files = [("train.bin", records(&[[0, 100]])), ("test.bin", records(&[[0, 1]]))];
        let error = load_any(dir(&files).path()).unwrap_err().to_string();
        assert!(error.ends_with("byte 0 (record 0): label 100: expected 0 to 99"), "{error}");
    }

    #[test]
    fn names_of_any_length_are_kept() {
        let long = "<b>&\"".to_owned() + &"x".repeat(10_000);
        let names = format!("{long}\nb\nc\nd\ne\nf\ng\nh\ni\nj\n");
        let files = [("train.bin", records(&[0])), ("test.bin", records(&[0])), ("batches.meta.txt", names.into())];
        assert_eq!(load(dir(&files).path()).unwrap().classes[0], long);
    }

    #[test]
    #[cfg(unix)]
    fn what_is_no_file_is_refused_at_once() {
        let dir = dir(&[("train.bin", records(&[0]))]);
        let _listener = std::os::unix::net::UnixListener::bind(dir.path().join("test.bin")).unwrap();
        let error = load(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("test.bin: it is a socket, not a regular file"), "{error}");
    }

    /// The first 4,000 training and 1,000 test images of the real thing, where they are at hand.
    #[test]
    fn the_real_sample_has_its_labels() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/cifar10-sample");
        if !dir.is_dir() {
            crate::progress::say(format_args!("skipped: the_real_sample_has_its_labels: no {}", dir.display()));
            return;
        }
        let data = load(&dir).unwrap();
        let counts = |split: &Split| {
            let mut counts = [0; 10];
            split.labels().iter().for_each(|&label| counts[label as usize] += 1);
            counts
        };
        assert_eq!((data.train.len(), data.test.len()), (4000, 1000));
        assert_eq!(counts(&data.train), [396, 366, 420, 384, 422, 393, 414, 385, 407, 413]);
        assert_eq!(counts(&data.test), [103, 89, 100, 103, 90, 86, 112, 102, 106, 109]);
        // The first training image is the frog, the first test image the cat that open every CIFAR-10 tutorial.
        assert_eq!(data.classes[data.train.labels()[0] as usize], "frog");
        assert_eq!(data.classes[data.test.labels()[0] as usize], "cat");
    }

    #[test]
    fn a_fingerprint_is_of_the_records_whatever_their_order() {
        let of = |records: &[(u8, u8)]| {
            let images = records.iter().flat_map(|&(_, pixel)| vec![pixel; IMAGE]).collect();
            fingerprint(&Split::new(images, records.iter().map(|&(l, _)| l.into()).collect(), SHAPE).unwrap())
        };
        assert_eq!(of(&[(1, 7), (2, 8)]), of(&[(2, 8), (1, 7)]));
        assert_ne!(of(&[(1, 7), (2, 8)]), of(&[(1, 8), (2, 7)]));
        assert_ne!(of(&[(1, 7), (2, 8)]), of(&[(1, 7), (2, 9)]));
    }
}

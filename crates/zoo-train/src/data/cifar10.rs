//! CIFAR-10's binary files, of any number of records.
//!
//! A record is one label byte (0 to 9) and 3 x 32 x 32 pixel bytes: red, green, blue, each row by row. The files come
//! from <https://www.cs.toronto.edu/~kriz/cifar.html> (`cifar-10-binary.tar.gz`) or follow that layout.

use super::{DataError, DataSource, Dataset, Split};
use std::fs;
use std::path::{Path, PathBuf};

/// Names of the ten classes; the position is the label.
pub const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// (channels, height, width) of an image.
pub const SHAPE: [usize; 3] = [3, 32, 32];
const IMAGE: usize = SHAPE[0] * SHAPE[1] * SHAPE[2];
const RECORD: usize = 1 + IMAGE;

/// What the tarball unpacks to: a directory that holds it is accepted for it.
const UNPACKED: &str = "cifar-10-batches-bin";

/// Test images, and the sum of the CRC-32 of their records, of copies that are not what was published.
const ALTERED: &[((usize, u64), &str)] = &[((10_000, 21_338_553_653_608), "CIFAR-10, JPEG q75 copy")];

/// Loads `data_batch_*.bin` and `test_batch.bin` (these first, where both layouts stand), or `train.bin` and
/// `test.bin`, from `dir` or from `dir/cifar-10-batches-bin`. Class names come from `batches.meta.txt` where it exists.
///
/// # Errors
/// A directory or file that is missing, empty or unreadable; a file that ends inside a record; a label over 9. Each
/// names the file, the byte, the record and what was expected.
pub fn load(dir: &Path) -> Result<Dataset, DataError> {
    if !dir.is_dir() {
        let problem = if dir.exists() { "not a directory" } else { "no such directory" };
        return Err(layout(dir, format!("{problem}: expected CIFAR-10 binary files in it")));
    }
    let unpacked = dir.join(UNPACKED);
    let files = match find_files(dir)? {
        None if unpacked.is_dir() => find_files(&unpacked)?,
        found => found,
    };
    let Some(files) = files else {
        let problem =
            "no CIFAR-10 binary files: expected data_batch_*.bin and test_batch.bin, or train.bin and test.bin";
        return Err(layout(dir, problem.into()));
    };
    let classes = read_classes(&files.test.with_file_name("batches.meta.txt"))?;
    let train = read_split(&files.train)?;
    let test = read_split(&[files.test])?;
    let dir = dir.to_path_buf();
    let source = match altered(&test) {
        Some(name) => DataSource::Altered { name: name.into(), dir },
        None => DataSource::Cifar10Files { dir },
    };
    Dataset::new(train, test, classes, source)
}

/// The name of a known altered copy of CIFAR-10, by its test images in any order: results on it are not results on CIFAR-10, also
/// where nobody says so.
fn altered(test: &Split) -> Option<&'static str> {
    let found = fingerprint(test);
    ALTERED.iter().find(|(known, _)| *known == found).map(|(_, name)| *name)
}

/// The number of records and the sum of their checksums, which no order changes.
fn fingerprint(split: &Split) -> (usize, u64) {
    let record = |index: usize| {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&[split.labels()[index] as u8]);
        hasher.update(split.image(index));
        u64::from(hasher.finalize())
    };
    (split.len(), (0..split.len()).map(record).fold(0, u64::wrapping_add))
}

/// Whether `dir` or `dir/cifar-10-batches-bin` holds files of either layout, be it half of one.
pub(super) fn is_in(dir: &Path) -> bool {
    [dir, &dir.join(UNPACKED)].iter().any(|dir| dir.is_dir() && !matches!(find_files(dir), Ok(None)))
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

fn read_classes(path: &Path) -> Result<Vec<String>, DataError> {
    if !path.exists() {
        return Ok(CLASSES.map(String::from).to_vec());
    }
    let text = fs::read_to_string(path).map_err(|e| io(path, e))?;
    let names: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect();
    if names.len() != CLASSES.len() {
        return Err(layout(path, format!("{} class names: expected {}, one a line", names.len(), CLASSES.len())));
    }
    Ok(names)
}

fn read_split(paths: &[PathBuf]) -> Result<Split, DataError> {
    let (mut images, mut labels) = (Vec::new(), Vec::new());
    for path in paths {
        let bytes = fs::read(path).map_err(|e| io(path, e))?;
        if bytes.is_empty() {
            return Err(layout(path, format!("empty: expected records of {RECORD} bytes")));
        }
        let (records, rest) = bytes.as_chunks::<RECORD>();
        images.reserve(records.len() * IMAGE);
        for (i, [label, pixels @ ..]) in records.iter().enumerate() {
            if usize::from(*label) >= CLASSES.len() {
                let problem = format!("label {label}: expected 0 to {}", CLASSES.len() - 1);
                return Err(record(path, i * RECORD, problem));
            }
            labels.push(u32::from(*label));
            images.extend_from_slice(pixels);
        }
        if !rest.is_empty() {
            let problem = format!(
                "the file ends {} bytes into a record: expected records of {RECORD} bytes (a label, then 3x32x32 pixels)",
                rest.len()
            );
            return Err(record(path, bytes.len(), problem));
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

fn record(path: &Path, offset: usize, problem: String) -> DataError {
    DataError::Record { path: path.into(), offset: offset as u64, record: (offset / RECORD) as u64, problem }
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
            assert_eq!(data.train.image(2)[..4], [4, 5, 6, 7]);
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

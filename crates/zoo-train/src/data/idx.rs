//! MNIST's and Fashion-MNIST's files, and others of their layout: grey images in IDX files.
//!
//! A file of images begins with the bytes 0, 0, 8 (unsigned bytes) and 3 (dimensions), then their number, rows and
//! columns, four bytes each, the highest first; the pixels follow row by row. A file of labels begins with 0, 0, 8 and 1
//! and their number. Each may be packed by gzip, as it is published: <https://github.com/zalandoresearch/fashion-mnist>.
//!
//! Nothing in the files tells one data set from another: classes have the names of Fashion-MNIST's if the folder's name
//! contains `fashion` (of a folder `raw`, which torchvision makes, the name of that around it), else `0` to `9`.

use super::{DataError, DataSource, Dataset, Split};
use flate2::read::GzDecoder;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use zoo_core::weights::open_regular;

/// Names of Fashion-MNIST's classes; the position is the label.
pub const FASHION: &[&str] =
    &["t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"];

/// Of either data set.
const CLASSES: usize = 10;
/// Training images and labels, test images and labels.
const FILES: [&str; 4] =
    ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];
/// The folder that torchvision keeps them in.
const RAW: &str = "raw";
/// The largest content that is read, in bytes: some hundred times the original.
const MOST_BYTES: u64 = 8 << 30;
/// Bytes before the images.
const HEADER: usize = 16;
/// The largest side of an image in pixels.
const MOST_PIXELS: usize = 4096;

/// Loads `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`,
/// each perhaps with `.gz`, from `dir` or from `dir/raw`, as images of one channel.
///
/// # Errors
/// A file that is missing or unreadable, of another kind, or of another length than it says; images and labels of
/// different numbers; a label over 9. Each names the file, and the byte of its (unpacked) content.
pub fn load(dir: &Path) -> Result<Dataset, DataError> {
    let [train_images, train_labels, test_images, test_labels] = find(dir)?;
    let train = split(&train_images, &train_labels)?;
    let test = split(&test_images, &test_labels)?;
    let is_fashion = is_fashion(dir);
    let classes = match is_fashion {
        true => FASHION.iter().copied().map(String::from).collect(),
        false => (0..CLASSES).map(|class| class.to_string()).collect(),
    };
    let name = if is_fashion { "Fashion-MNIST" } else { "MNIST" };
    let source = DataSource::Other { label: format!("IDX files as of {name}, {}", dir.display()) };
    Dataset::new(train, test, classes, source)
}

/// Whether `dir` or `dir/raw` holds one of the files.
pub(super) fn is_in(dir: &Path) -> bool {
    [dir, &dir.join(RAW)].into_iter().any(|dir| FILES.iter().any(|name| found(dir, name).is_some()))
}

/// The side of the test images in `dir`, where there are some.
pub(super) fn side(dir: &Path) -> Option<usize> {
    let path = [dir, &dir.join(RAW)].into_iter().find_map(|dir| found(dir, FILES[2]))?;
    let mut header = [0; HEADER];
    reader(&path).ok()?.read_exact(&mut header).ok()?;
    Some(number(&header, 8))
}

/// The file of this name, packed or not.
fn found(dir: &Path, name: &str) -> Option<PathBuf> {
    [dir.join(name), dir.join(format!("{name}.gz"))].into_iter().find(|path| path.exists())
}

/// All four files, from the folder that holds one of them.
fn find(dir: &Path) -> Result<[PathBuf; 4], DataError> {
    let raw = dir.join(RAW);
    let dir = if FILES.iter().any(|name| found(dir, name).is_some()) { dir } else { &raw };
    let present = FILES.iter().find_map(|name| found(dir, name));
    let mut paths = FILES.map(|name| found(dir, name).ok_or(name)).into_iter();
    let mut next = || match paths.next() {
        Some(Ok(path)) => Ok(path),
        missing => {
            let name = missing.and_then(Result::err).unwrap_or_default();
            let beside = present.as_ref().map_or(String::new(), |path| format!(", but {} is there", path.display()));
            Err(layout(&dir.join(name), format!("missing, and with .gz too{beside}")))
        }
    };
    Ok([next()?, next()?, next()?, next()?])
}

/// Whether the folder is called so: there is no mark in the files.
fn is_fashion(dir: &Path) -> bool {
    // `.` has no name of its own.
    let path = dir.canonicalize().unwrap_or_else(|_| dir.into());
    let named = if path.ends_with(RAW) { path.parent().unwrap_or(&path) } else { &path };
    named.file_name().is_some_and(|name| name.to_string_lossy().to_lowercase().contains("fashion"))
}

fn reader(path: &Path) -> io::Result<Box<dyn Read>> {
    let file: File = open_regular(path)?;
    Ok(match path.extension().is_some_and(|end| end == "gz") {
        true => Box::new(GzDecoder::new(io::BufReader::new(file))),
        false => Box::new(file),
    })
}

/// The content of a file, unpacked.
fn content(path: &Path) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    let read = reader(path).and_then(|reader| reader.take(MOST_BYTES + 1).read_to_end(&mut bytes));
    match read {
        Err(source) => Err(DataError::Io { path: path.into(), source }),
        Ok(_) if bytes.len() as u64 > MOST_BYTES => {
            Err(layout(path, format!("more than {MOST_BYTES} bytes are no data set of this kind")))
        }
        Ok(_) => Ok(bytes),
    }
}

/// The number that four bytes from `at` on state.
fn number(bytes: &[u8], at: usize) -> usize {
    bytes.iter().skip(at).take(4).fold(0, |number, &byte| number << 8 | usize::from(byte))
}

/// The content behind a header of so many dimensions, and these.
fn read(path: &Path, dimensions: usize, what: &str) -> Result<(Vec<usize>, Vec<u8>), DataError> {
    let mut bytes = content(path)?;
    let header = 4 + 4 * dimensions;
    let magic = [0, 0, 8, dimensions as u8];
    // What begins otherwise is another file, however short it is.
    let begins = bytes.len().min(4);
    if let Some(at) = (0..begins).find(|&at| bytes[at] != magic[at]) {
        let (found, of) = (&bytes[..begins], format!("{what} begin with the bytes {magic:?}"));
        return Err(layout(path, format!("byte {at}: {found:?}: {of}")));
    }
    if bytes.len() < header {
        let end = bytes.len();
        return Err(layout(path, format!("byte {end}: the file ends within its header of {header} bytes")));
    }
    let sizes: Vec<usize> = (0..dimensions).map(|i| number(&bytes, 4 + 4 * i)).collect();
    if let Some(i) = (1..dimensions).find(|&i| !(1..=MOST_PIXELS).contains(&sizes[i]) || sizes[i] != sizes[1]) {
        let problem = format!("images of {}x{} pixels: expected square ones", sizes[1], sizes[2]);
        return Err(layout(path, format!("byte {}: {problem} of at most {MOST_PIXELS}", 4 + 4 * i)));
    }
    if sizes[0] == 0 {
        return Err(layout(path, format!("byte 4: no {what}")));
    }
    // Four bytes of a number and two small sides: no product overflows.
    let size = sizes[1..].iter().product::<usize>();
    let (expected, end) = (header as u64 + sizes[0] as u64 * size as u64, bytes.len() as u64);
    if end < expected {
        let record = (bytes.len() - header) / size;
        let problem = format!("the file ends here, of {expected} bytes that its header promises ({} {what})", sizes[0]);
        return Err(DataError::Record { path: path.into(), offset: end, record: record as u64, problem });
    }
    if end > expected {
        let more = end - expected;
        return Err(layout(
            path,
            format!("byte {expected}: {more} bytes more than its header promises ({} {what})", sizes[0]),
        ));
    }
    bytes.drain(..header);
    Ok((sizes, bytes))
}

fn split(images: &Path, labels: &Path) -> Result<Split, DataError> {
    let (sizes, pixels) = read(images, 3, "images")?;
    let (counts, classes) = read(labels, 1, "labels")?;
    if sizes[0] != counts[0] {
        let problem = format!("byte 4: {} labels, but {} has {} images", counts[0], images.display(), sizes[0]);
        return Err(layout(labels, problem));
    }
    if let Some(record) = classes.iter().position(|&label| usize::from(label) >= CLASSES) {
        let problem = format!("label {}: expected 0 to {}", classes[record], CLASSES - 1);
        return Err(DataError::Record {
            path: labels.into(),
            offset: 8 + record as u64,
            record: record as u64,
            problem,
        });
    }
    Split::new(pixels, classes.into_iter().map(u32::from).collect(), [1, sizes[1], sizes[2]])
}

fn layout(path: &Path, problem: String) -> DataError {
    DataError::Layout { path: path.into(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::fs;
    use std::io::Write;

    fn header(magic: u8, sizes: &[u32]) -> Vec<u8> {
        [0, 0, 8, magic].into_iter().chain(sizes.iter().flat_map(|size| size.to_be_bytes())).collect()
    }

    /// Images of two pixels by two, which count up.
    fn images(n: u32) -> Vec<u8> {
        header(3, &[n, 2, 2]).into_iter().chain((0..4 * n).map(|pixel| pixel as u8)).collect()
    }

    fn labels(labels: &[u8]) -> Vec<u8> {
        [header(1, &[labels.len() as u32]), labels.to_vec()].concat()
    }

    fn contents() -> [Vec<u8>; 4] {
        [images(3), labels(&[7, 0, 9]), images(1), labels(&[2])]
    }

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut out = GzEncoder::new(Vec::new(), Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn files_are_read_packed_or_not_here_or_in_raw() {
        let root = tempfile::tempdir().unwrap();
        for (folder, gz, class) in
            [("mnist", false, "7"), ("Fashion-MNIST", true, "sneaker"), ("FashionMNIST/raw", false, "sneaker")]
        {
            let dir = root.path().join(folder);
            fs::create_dir_all(&dir).unwrap();
            for (name, bytes) in FILES.into_iter().zip(contents()) {
                match gz {
                    true => fs::write(dir.join(format!("{name}.gz")), packed(&bytes)).unwrap(),
                    false => fs::write(dir.join(name), bytes).unwrap(),
                }
            }
            // The folder itself, and where it is `raw`, the one around it.
            for dir in [Some(dir.as_path()), dir.ends_with(RAW).then(|| dir.parent().unwrap())].into_iter().flatten() {
                assert!(is_in(dir) && side(dir) == Some(2), "{}", dir.display());
                let data = Dataset::open(dir, 32).unwrap();
                assert_eq!(
                    (data.train.shape(), data.train.labels(), data.test.labels()),
                    ([1, 2, 2], &[7, 0, 9][..], &[2][..])
                );
                assert_eq!((&*data.train.image(2).unwrap(), data.classes[7].as_str()), (&[8, 9, 10, 11][..], class));
                assert!(data.source.label().contains("IDX files as of") && !data.source.is_cifar10());
            }
        }
        assert!(!is_in(root.path()) && side(root.path()).is_none());
    }

    #[test]
    fn every_damaged_file_has_its_own_line() {
        let [train, train_labels, test, _] = FILES;
        let with = |at: usize, byte: u8| {
            let mut bytes = images(3);
            bytes[at] = byte;
            bytes
        };
        for (name, bytes, told) in [
            (train, vec![], "byte 0: the file ends within its header of 16 bytes"),
            (train, images(3)[..15].to_vec(), "byte 15: the file ends within its header of 16 bytes"),
            (train, with(2, 9), "byte 2: [0, 0, 9, 3]: images begin with the bytes [0, 0, 8, 3]"),
            (train, labels(&[7, 0, 9]), "byte 3: [0, 0, 8, 1]: images begin with the bytes [0, 0, 8, 3]"),
            (
                train,
                images(3)[..21].to_vec(),
                "byte 21 (record 1): the file ends here, of 28 bytes that its header promises (3 images)",
            ),
            (train, [images(3), vec![0; 2]].concat(), "byte 28: 2 bytes more than its header promises (3 images)"),
            (train, with(4, 255), "byte 28 (record 3): the file ends here, of 17112760348 bytes"),
            (train, header(3, &[0, 2, 2]), "byte 4: no images"),
            (train, header(3, &[1, 2, 3]), "byte 12: images of 2x3 pixels: expected square ones of at most 4096"),
            (train, header(3, &[1, 0, 0]), "byte 8: images of 0x0 pixels"),
            (train_labels, labels(&[7, 0]), "byte 4: 2 labels, but DIR/train-images-idx3-ubyte has 3 images"),
            (train_labels, labels(&[7, 0, 10]), "byte 10 (record 2): label 10: expected 0 to 9"),
            (train_labels, images(3), "byte 3: [0, 0, 8, 3]: labels begin with the bytes [0, 0, 8, 1]"),
            (test, header(3, &[1, 1, 1]).into_iter().chain([5]).collect(), ""),
        ] {
            let dir = tempfile::tempdir().unwrap();
            FILES
                .into_iter()
                .zip(contents())
                .for_each(|(name, bytes)| fs::write(dir.path().join(name), bytes).unwrap());
            fs::write(dir.path().join(name), bytes).unwrap();
            let error = load(dir.path()).unwrap_err().to_string().replace(dir.path().to_str().unwrap(), "DIR");
            let expected = if told.is_empty() {
                "training images have the shape [1, 2, 2]".into()
            } else {
                format!("DIR/{name}: {told}")
            };
            assert!(error.starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn what_is_missing_or_badly_packed_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        FILES.into_iter().zip(contents()).for_each(|(name, bytes)| fs::write(at(name), bytes).unwrap());
        fs::remove_file(at(FILES[3])).unwrap();
        let error = Dataset::open(dir.path(), 32).unwrap_err().to_string();
        assert!(
            error.contains("t10k-labels-idx1-ubyte: missing, and with .gz too, but ") && error.contains("train-images"),
            "{error}"
        );
        let whole = packed(&labels(&[2]));
        fs::write(at("t10k-labels-idx1-ubyte.gz"), &whole[..whole.len() - 6]).unwrap();
        let error = load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("t10k-labels-idx1-ubyte.gz: "), "{error}");
        fs::write(at("t10k-labels-idx1-ubyte.gz"), "no gzip at all").unwrap();
        assert!(load(dir.path()).unwrap_err().to_string().contains("t10k-labels-idx1-ubyte.gz: "));
    }
}

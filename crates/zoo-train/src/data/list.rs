//! A list of pictures: a CSV file with the columns `path`, `class` and, where a row says what it is for, `split`.

use super::folder::{File, Listing};
use super::left_out::LeftOut;
use super::{DataError, Dataset, Reading};
use std::path::Path;
use zoo_image::picture;

/// What a column may be called.
const PATH: [&str; 4] = ["path", "file", "filename", "image"];
const CLASS: [&str; 2] = ["class", "label"];
const SPLIT: &str = "split";

/// Loads the pictures that the CSV file at `path` lists, as [`folder::load`](super::folder::load) loads those of a folder.
///
/// ```text
/// path,class,split
/// cats/1.jpg,cat,train
/// dogs/7.jpg,dog,val
/// ```
///
/// Paths are relative to the file's folder. `split` is `train`, `val` or `test`; without the column all rows are to train on,
/// and a part of them must be held out. Classes are in alphabetical order, or 0, 1, 2 … where all are numbers; training images
/// stand with the classes mixed evenly. Rows whose file is no picture are left out and listed.
///
/// # Errors
/// A file that is no such table, with the line; no training images; fewer than two classes; a class that has no training
/// images.
pub fn load(path: &Path, reading: &Reading) -> Result<Dataset, DataError> {
    let root = path.parent().filter(|root| !root.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let listing = list(path, root)?;
    listing.read(root, format!("list of images, {}", path.display()), reading)
}

fn list(path: &Path, root: &Path) -> Result<Listing, DataError> {
    let layout = |problem: String| DataError::Layout { path: path.into(), problem };
    let file = std::fs::File::open(path).map_err(|source| DataError::Io { path: path.into(), source })?;
    let mut table = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(std::io::BufReader::new(file));
    let unreadable = |error: csv::Error| layout(format!("expected a table with commas between columns: {error}"));
    let header = table.headers().map_err(unreadable)?.clone();
    let column = |names: &[&str]| {
        let is = |cell: &str| names.iter().any(|name| cell.trim_start_matches('\u{feff}').eq_ignore_ascii_case(name));
        header.iter().position(is)
    };
    let (Some(at_path), Some(at_class)) = (column(&PATH), column(&CLASS)) else {
        let found = header.iter().collect::<Vec<_>>().join(",");
        return Err(layout(format!("expected a first line with the columns path and class, got `{found}`")));
    };
    let at_split = column(&[SPLIT]);

    let mut left_out = LeftOut::default();
    let mut rows: [Vec<(std::path::PathBuf, String)>; 3] = Default::default();
    let (mut has_val, mut has_test) = (false, false);
    for row in table.records() {
        let row = row.map_err(unreadable)?;
        let line = row.position().map_or(0, csv::Position::line);
        let cell = |at: usize| row.get(at).unwrap_or_default();
        let part = match at_split.map(|at| cell(at).to_lowercase()).as_deref() {
            None | Some("train") => 0,
            Some("val" | "valid" | "validation") => 1,
            Some("test") => 2,
            Some(other) => {
                return Err(layout(format!("line {line}: split `{other}`: expected train, val or test")));
            }
        };
        has_val |= part == 1;
        has_test |= part == 2;
        let (name, class) = (cell(at_path), cell(at_class));
        if name.is_empty() || class.is_empty() || class.contains(char::is_control) {
            return Err(layout(format!("line {line}: expected a path and the name of a class")));
        }
        let picture = root.join(name);
        match picture::is_picture(&picture) {
            Ok(()) => rows[part].push((picture, class.to_owned())),
            Err(reason) => left_out.add(picture, reason),
        }
    }

    let mut classes: Vec<String> = rows[0].iter().map(|(_, class)| class.clone()).collect();
    classes.sort();
    classes.dedup();
    if classes.iter().all(|class| class.parse::<u32>().is_ok()) {
        classes.sort_by_key(|class| class.parse::<u32>().unwrap_or(0));
    }
    if classes.len() < 2 {
        return Err(layout(format!("expected pictures of at least two classes to train on, found {}", classes.len())));
    }
    let label = |class: &str| classes.iter().zip(0u32..).find(|(known, _)| *known == class).map(|(_, label)| label);
    let labelled = |rows: Vec<(std::path::PathBuf, String)>| -> Result<Vec<File>, DataError> {
        let of = |(path, class): (std::path::PathBuf, String)| match label(&class) {
            Some(label) => Ok((path, label)),
            None => Err(layout(format!("class `{class}` has no training images"))),
        };
        rows.into_iter().map(of).collect()
    };
    let [train, val, test] = rows;
    let [train, val, test] = [labelled(train)?, labelled(val)?, labelled(test)?];
    Ok(Listing {
        train: mixed(train, classes.len()),
        val: has_val.then_some(val),
        test: has_test.then_some(test),
        classes,
        left_out,
    })
}

/// With the classes mixed evenly, each class's files in their order.
pub(super) fn mixed(files: Vec<File>, classes: usize) -> Vec<File> {
    let (mut counts, mut seen) = (vec![0usize; classes], vec![0usize; classes]);
    files.iter().for_each(|(_, label)| counts[*label as usize] += 1);
    // The file's place within its class, as a share: sorting by it mixes large classes with small ones.
    let mut placed: Vec<(f64, File)> = Vec::with_capacity(files.len());
    for file in files {
        let class = file.1 as usize;
        placed.push(((seen[class] as f64 + 0.5) / counts[class] as f64, file));
        seen[class] += 1;
    }
    // Equal shares stay in the order of their classes, for the sort is stable.
    placed.sort_by(|(a, (_, x)), (b, (_, y))| a.total_cmp(b).then(x.cmp(y)));
    placed.into_iter().map(|(_, file)| file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::HoldOut;
    use image::{Rgb, RgbImage};

    /// Six pictures `0.png` to `5.png`, and a list with these lines.
    fn list_of(lines: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("deeper")).unwrap();
        for shade in 0..6 {
            let name = if shade < 3 { format!("{shade}.png") } else { format!("deeper/{shade}.png") };
            RgbImage::from_pixel(4, 4, Rgb([shade, 0, 0])).save(root.path().join(name)).unwrap();
        }
        let path = root.path().join("list.csv");
        std::fs::write(&path, lines).unwrap();
        (root, path)
    }

    #[test]
    fn a_list_says_what_each_picture_is_for() {
        let lines = "Path,note,Class,split\n0.png,,dog,train\n1.png,\"a, b\",cat,train\n deeper/3.png ,,cat,train\n\
                     2.png,,cat,val\ndeeper/4.png,,dog,test\ngone.png,,dog,train\n";
        let (root, path) = list_of(lines);
        let data = Dataset::open(&path, 2).unwrap();
        assert_eq!(data.classes, ["cat", "dog"]);
        // One dog between two cats.
        assert_eq!(data.train.labels(), [0, 1, 0]);
        let shades: Vec<u8> = (0..3).map(|i| data.train.image(i).unwrap()[0]).collect();
        assert_eq!(shades, [1, 0, 3]);
        assert_eq!((data.val.unwrap().labels(), data.test.labels()), (&[0][..], &[1][..]));
        let told = data.left_out.to_string();
        assert!(told.contains(&root.path().join("gone.png").display().to_string()), "{told}");
    }

    #[test]
    fn a_list_without_splits_holds_a_part_out() {
        let (_root, path) = list_of("file,label\n0.png,10\n1.png,9\n2.png,10\ndeeper/3.png,9\ndeeper/4.png,10\n");
        let error = Dataset::open(&path, 2).unwrap_err().to_string();
        assert!(error.contains("there are no test images"), "{error}");
        let hold_out = Some(HoldOut { share: 0.3, seed: 1 });
        let data = Dataset::open_as(&path, &Reading { hold_out, ..Reading::of(2) }).unwrap();
        assert_eq!(data.classes, ["9", "10"]);
        assert_eq!((data.train.counts(2), data.test.counts(2), data.is_validation), (vec![1, 2], vec![1, 1], true));
    }

    #[test]
    fn what_is_no_list_is_an_error_that_names_the_line() {
        let error = |lines: &str| {
            let (_root, path) = list_of(lines);
            Dataset::open(&path, 2).unwrap_err().to_string()
        };
        for (lines, complaint) in [
            ("", "expected a first line with the columns path and class"),
            ("a,b\n", "got `a,b`"),
            ("path,class\n0.png\n", "expected a table with commas"),
            ("path,class,split\n0.png,a,best\n", "line 2: split `best`: expected train, val or test"),
            ("path,class\n0.png,a\n,b\n", "line 3: expected a path and the name of a class"),
            ("path,class\n0.png,a\n1.png,a\n", "expected pictures of at least two classes to train on, found 1"),
            ("path,class,split\n0.png,a,train\n1.png,b,train\n2.png,c,val\n", "class `c` has no training images"),
        ] {
            let told = error(lines);
            assert!(told.contains(complaint) && told.contains("list.csv") && told.lines().count() == 1, "{told}");
        }
    }
}

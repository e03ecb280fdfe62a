//! Pictures in a folder and its subfolders, and the files there that are left out.

use super::DataError;
use rayon::prelude::*;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use walkdir::{DirEntry, WalkDir};
use zoo_image::{Error, picture};

/// The most lines of a summary.
const LINES: usize = 10;
/// The most files that one line names.
const NAMED: usize = 3;

/// Files that are not used, each with the reason: no data set should lose files silently.
///
/// `Display` counts them and names the first of each kind, in a few lines however many there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut {
    files: Vec<(PathBuf, String)>,
}

impl LeftOut {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The files, each with its reason.
    pub fn iter(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.files.iter().map(|(path, reason)| (path.as_path(), reason.as_str()))
    }

    pub(super) fn add(&mut self, path: impl Into<PathBuf>, reason: impl Into<String>) {
        self.files.push((path.into(), reason.into()));
    }

    /// Adds a file by the error that names it.
    pub(super) fn add_unreadable(&mut self, path: &Path, error: &Error) {
        let reason = match error {
            Error::Io { source, .. } => source.to_string(),
            Error::Picture { problem, .. } => problem.clone(),
            Error::TooLarge { problem, .. } => format!("{problem}: --max-pixels raises that"),
            other => other.to_string(),
        };
        self.add(path, reason);
    }

    /// Adds what another list has.
    pub fn extend(&mut self, other: Self) {
        self.files.extend(other.files);
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds: Vec<(&str, Vec<&Path>)> = Vec::new();
        for (path, reason) in self.iter() {
            match kinds.iter_mut().find(|(kind, _)| *kind == reason) {
                Some((_, paths)) => paths.push(path),
                None => kinds.push((reason, vec![path])),
            }
        }
        write!(f, "{} left out:", if self.len() == 1 { "1 file".into() } else { format!("{} files", self.len()) })?;
        for (reason, paths) in kinds.iter().take(LINES) {
            // Names may hold what would end the line.
            let named = paths.iter().take(NAMED).map(|path| path.display().to_string().replace(char::is_control, "?"));
            let named = named.collect::<Vec<_>>().join(", ");
            match paths.len() {
                1 => write!(f, "\n  {named}: {reason}")?,
                n if n <= NAMED => write!(f, "\n  {n} files: {reason} ({named})")?,
                n => write!(f, "\n  {n} files: {reason} ({named}, …)")?,
            }
        }
        match kinds.get(LINES..) {
            Some(rest) if !rest.is_empty() => {
                write!(f, "\n  … and {} more", rest.iter().map(|(_, paths)| paths.len()).sum::<usize>())
            }
            _ => Ok(()),
        }
    }
}

/// The reason to leave out a file by its name alone, whatever it holds: operating systems leave such files behind.
pub(super) fn system(name: &OsStr) -> Option<&'static str> {
    let name = name.to_string_lossy();
    let of_a_system = ["thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"];
    match name.starts_with('.') {
        true => Some("hidden"),
        false => of_a_system.contains(&name.to_lowercase().as_str()).then_some("a system's own"),
    }
}

/// The pictures in `dir` and in the folders below it, also behind links, in the order of torchvision's `ImageFolder`:
/// folder by folder, by name.
///
/// # Errors
/// A folder that cannot be read. Files in it that cannot be read are left out.
pub fn pictures(dir: &Path) -> Result<(Vec<PathBuf>, LeftOut), DataError> {
    let mut left_out = LeftOut::default();
    let mut paths = Vec::new();
    let mut walk = WalkDir::new(dir).follow_links(true).into_iter();
    while let Some(entry) = walk.next() {
        match entry {
            Ok(entry) if entry.depth() == 0 => {}
            Ok(entry) => match system(entry.file_name()) {
                Some(reason) => {
                    if entry.file_type().is_dir() {
                        walk.skip_current_dir();
                    }
                    left_out.add(entry.path(), reason);
                }
                None if entry.file_type().is_dir() => {}
                None => paths.push(DirEntry::into_path(entry)),
            },
            Err(error) if error.depth() == 0 => {
                return Err(DataError::Io { path: dir.into(), source: error.into() });
            }
            Err(error) => {
                let path = error.path().unwrap_or(dir).to_path_buf();
                match error.loop_ancestor() {
                    Some(_) => left_out.add(path, "a link to a folder that it is in"),
                    None => {
                        let reason = error.into_io_error().map(|error| error.to_string());
                        left_out.add(path, reason.unwrap_or_else(|| "cannot be read".into()));
                    }
                }
            }
        }
    }
    // As text, where `a-b/` comes before `a/`.
    paths.sort_by_cached_key(|path| {
        [path.parent().map(Path::as_os_str), path.file_name()].map(|part| part.map(OsStr::to_owned))
    });
    let reasons: Vec<Option<String>> = paths.par_iter().map(|path| picture::is_picture(path).err()).collect();
    let mut kept = Vec::with_capacity(paths.len());
    for (path, reason) in paths.into_iter().zip(reasons) {
        match reason {
            None => kept.push(path),
            Some(reason) => left_out.add(path, reason),
        }
    }
    Ok((kept, left_out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageFormat, RgbImage};
    use std::fs;

    #[test]
    fn pictures_are_found_by_content_in_folders_of_folders_and_the_rest_is_counted() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        for folder in ["b", "a/deep", "a-b", ".ipynb_checkpoints", "__MACOSX"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        let kinds = [
            ("z.PNG", ImageFormat::Png),
            ("b/1.webp", ImageFormat::WebP),
            ("b/2.bmp", ImageFormat::Bmp),
            ("b/3.gif", ImageFormat::Gif),
            ("b/4.TIF", ImageFormat::Tiff),
            ("a/deep/5.jfif", ImageFormat::Jpeg),
            ("a/6.png", ImageFormat::Jpeg),
            ("a-b/no extension", ImageFormat::Jpeg),
            (".ipynb_checkpoints/7.png", ImageFormat::Png),
            (".8.png", ImageFormat::Png),
            ("__MACOSX/9.png", ImageFormat::Png),
        ];
        for (name, kind) in kinds {
            RgbImage::new(4, 4).save_with_format(dir.join(name), kind).unwrap();
        }
        for (name, text) in
            [("Thumbs.db", "x"), (".DS_Store", "x"), ("notes.txt", "x"), ("a/list.jpg", "x"), ("b/empty.png", "")]
        {
            fs::write(dir.join(name), text).unwrap();
        }
        let (found, left_out) = pictures(dir).unwrap();
        let names: Vec<_> = found.iter().map(|path| path.strip_prefix(dir).unwrap().to_str().unwrap()).collect();
        // Python's sorted(os.walk(...)).
        let expected =
            ["z.PNG", "a/6.png", "a-b/no extension", "a/deep/5.jfif", "b/1.webp", "b/2.bmp", "b/3.gif", "b/4.TIF"];
        assert_eq!(names, expected);
        let mut others: Vec<_> =
            left_out.iter().map(|(path, reason)| (path.strip_prefix(dir).unwrap().to_str().unwrap(), reason)).collect();
        others.sort();
        let none = "expected an image (JPEG, PNG, WebP, BMP, GIF or TIFF)";
        assert_eq!(
            others,
            [
                (".8.png", "hidden"),
                (".DS_Store", "hidden"),
                (".ipynb_checkpoints", "hidden"),
                ("Thumbs.db", "a system's own"),
                ("__MACOSX", "a system's own"),
                ("a/list.jpg", none),
                ("b/empty.png", "expected an image, found an empty file"),
                ("notes.txt", none),
            ]
        );
        let told = left_out.to_string().replace(&format!("{}/", dir.display()), "");
        assert!(told.starts_with("8 files left out:\n") && told.lines().count() == 5, "{told}");
        assert!(told.contains("\n  b/empty.png: expected an image, found an empty file"), "{told}");
    }

    #[test]
    #[cfg(unix)]
    fn links_are_followed_but_not_in_circles_and_nothing_is_waited_for() {
        use std::os::unix::fs::symlink;
        let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let dir = root.path();
        fs::create_dir(dir.join("in")).unwrap();
        RgbImage::new(4, 4).save(other.path().join("x.png")).unwrap();
        symlink(other.path(), dir.join("in/elsewhere")).unwrap();
        symlink(dir, dir.join("in/back")).unwrap();
        symlink("nothing", dir.join("broken.png")).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(dir.join("socket.png")).unwrap();
        let (found, left_out) = pictures(dir).unwrap();
        assert_eq!(found, [dir.join("in/elsewhere/x.png")]);
        let told = left_out.to_string();
        assert!(told.starts_with("3 files left out:"), "{told}");
        for reason in
            ["back: a link to a folder that it is in", "broken.png: ", "socket.png: it is a socket, not a regular file"]
        {
            assert!(told.contains(reason), "{told}");
        }
    }

    #[test]
    fn a_summary_is_short_however_much_is_left_out() {
        let mut left_out = LeftOut::default();
        (0..1000).for_each(|i| left_out.add(format!("{i}.txt"), "no picture"));
        (0..40).for_each(|i| left_out.add(format!("cut\n{i}"), format!("ends at byte {i}")));
        let told = left_out.to_string();
        assert!(
            told.starts_with("1040 files left out:\n  1000 files: no picture (0.txt, 1.txt, 2.txt, …)\n  cut?0: "),
            "{told}"
        );
        assert!(told.ends_with("\n  … and 31 more") && told.lines().count() == 12, "{told}");
    }
}

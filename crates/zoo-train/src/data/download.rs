//! CIFAR-10's own archive: downloaded once, unpacked, and found again without network.
//!
//! The archive comes from <https://www.cs.toronto.edu/~kriz/cifar.html>, or from the address in [`URL_VARIABLE`], and must
//! have the hash that is published in either case. Its files lie in [`folder`].

use super::DataError;
use std::env;
use std::path::PathBuf;

/// The environment variable that names another address for the archive: a mirror's.
pub const URL_VARIABLE: &str = "ZOO_CIFAR10_URL";
/// The environment variable that names the folder of downloaded data.
pub const FOLDER_VARIABLE: &str = "ZOO_DATA";

/// The folder that the archive unpacks to.
const UNPACKED: &str = "cifar-10-batches-bin";

/// Where downloaded data lies: `$ZOO_DATA`, else `candle-zoo` in `$XDG_CACHE_HOME` or in `~/.cache`; `None` where no
/// variable says whose home it is.
pub fn folder() -> Option<PathBuf> {
    let path = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || Some(path("HOME").or_else(|| path("USERPROFILE"))?.join(".cache"));
    path(FOLDER_VARIABLE).or_else(|| Some(path("XDG_CACHE_HOME").or_else(home)?.join("candle-zoo")))
}

/// The folder of CIFAR-10's binary files, if they were downloaded.
pub fn found() -> Option<PathBuf> {
    // It gets this name once it is complete.
    Some(folder()?.join(UNPACKED)).filter(|path| path.is_dir())
}

/// The folder of CIFAR-10's binary files, downloaded (170 MB) if they are not there.
///
/// # Errors
/// No network, an address without the file, a file of another hash, a folder that cannot be written, and a build without
/// the feature `download`: each with the ways out.
pub fn cifar10() -> Result<PathBuf, DataError> {
    match found() {
        Some(path) => Ok(path),
        None => fetch(),
    }
}

#[cfg(not(feature = "download"))]
fn fetch() -> Result<PathBuf, DataError> {
    Err(DataError::Download("this build cannot download (add `--features download`)".into()))
}

#[cfg(feature = "download")]
fn fetch() -> Result<PathBuf, DataError> {
    let folder = folder().ok_or_else(|| {
        DataError::Download(format!("no home directory to keep it in: set HOME, or {FOLDER_VARIABLE} to a folder"))
    })?;
    let client = zoo_hub::Client::from_environment();
    if client.is_offline() {
        return Err(DataError::Download("HF_HUB_OFFLINE says that nothing is to be asked for".into()));
    }
    let url = env::var(URL_VARIABLE).ok().filter(|url| !url.is_empty());
    let archive = Archive { url: url.as_deref().unwrap_or(archive::CIFAR10.url), ..archive::CIFAR10 };
    let mut bar = crate::progress::Download::default();
    archive.fetch_into(&folder, &client, &mut |part| bar.show(part.file, part.done, part.total))
}

#[cfg(feature = "download")]
use archive::Archive;

#[cfg(feature = "download")]
mod archive {
    use super::{DataError, UNPACKED};
    use flate2::read::GzDecoder;
    use std::fs::{self, File};
    use std::io::{self, BufReader};
    use std::path::{Component, Path, PathBuf};
    use tar::EntryType;
    use zoo_hub::{Client, Progress, UrlFile};

    /// The largest content that is unpacked, in bytes: some ten times the original's.
    const MOST_BYTES: u64 = 2 << 30;

    /// A packed folder on a server.
    #[derive(Debug, Clone, Copy)]
    pub struct Archive<'a> {
        pub url: &'a str,
        /// In hexadecimal.
        pub sha256: &'a str,
        /// The folder in it.
        pub folder: &'a str,
    }

    /// The hash is that of the file of 170,052,171 bytes whose MD5, c32a1d4ab5d03f1284b67883e8d87530, stands on its page.
    pub const CIFAR10: Archive = Archive {
        url: "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        sha256: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        folder: UNPACKED,
    };

    impl Archive<'_> {
        /// Downloads the archive into `cache` and unpacks it there: its folder.
        pub fn fetch_into(
            &self,
            cache: &Path,
            client: &Client,
            progress: &mut dyn FnMut(Progress),
        ) -> Result<PathBuf, DataError> {
            let path = cache.join(self.folder);
            fs::create_dir_all(cache).map_err(io(cache))?;
            // Two programs that want the same data: the second waits, and finds it.
            let lock = cache.join(format!(".{}.lock", self.folder));
            let held = File::create(&lock).map_err(io(&lock))?;
            held.lock().map_err(io(&lock))?;
            if path.is_dir() {
                return Ok(path);
            }
            let refused = |error: zoo_hub::Error| DataError::Download(error.to_string());
            let file: UrlFile = self.url.parse().map_err(refused)?;
            let archive = cache.join(file.file_name());
            if !archive.is_file() {
                file.fetch_exactly_into(self.sha256, cache, client, progress).map_err(refused)?;
            }
            // What an earlier try left half done.
            let aside = cache.join(format!(".{}.incomplete", self.folder));
            remove(&aside)?;
            let unpacked = unpack(&archive, &aside).and_then(|()| {
                let folder = aside.join(self.folder);
                match folder.is_dir() {
                    true => fs::rename(&folder, &path).map_err(io(&path)),
                    false => Err(layout(&archive, format!("no folder {} in it", self.folder))),
                }
            });
            remove(&aside)?;
            // An archive that cannot be unpacked is not tried again either.
            if !matches!(unpacked, Err(DataError::Io { .. })) {
                fs::remove_file(&archive).map_err(io(&archive))?;
            }
            unpacked.map(|()| path)
        }
    }

    /// Unpacks a `.tar.gz` into a new folder: files and folders, and none that would lie elsewhere.
    fn unpack(archive: &Path, into: &Path) -> Result<(), DataError> {
        let damaged = |error: io::Error| layout(archive, format!("not unpacked: {error}"));
        let file = File::open(archive).map_err(io(archive))?;
        let mut tar = tar::Archive::new(GzDecoder::new(BufReader::new(file)));
        fs::create_dir(into).map_err(io(into))?;
        let mut total = 0;
        for entry in tar.entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let name = entry.path().map_err(damaged)?.into_owned();
            let leaves = name.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir));
            if leaves {
                return Err(layout(
                    archive,
                    format!("not unpacked: `{}` in it leads out of its folder", name.display()),
                ));
            }
            total += entry.size();
            if total > MOST_BYTES {
                return Err(layout(archive, format!("not unpacked: it holds more than {MOST_BYTES} bytes")));
            }
            let path = into.join(&name);
            match entry.header().entry_type() {
                EntryType::Directory => fs::create_dir_all(&path).map_err(io(&path))?,
                EntryType::Regular | EntryType::Continuous => {
                    let parent = path.parent().unwrap_or(into);
                    fs::create_dir_all(parent).map_err(io(parent))?;
                    let mut out = File::create_new(&path).map_err(io(&path))?;
                    copy(&mut entry, &mut out).map_err(|error| match error {
                        Copy::Read(error) => damaged(error),
                        Copy::Write(error) => io(&path)(error),
                    })?;
                }
                EntryType::XGlobalHeader => {}
                _ => {
                    let problem = format!("not unpacked: `{}` in it is neither file nor folder", name.display());
                    return Err(layout(archive, problem));
                }
            }
        }
        Ok(())
    }

    /// Which side of a copy failed: a damaged archive is another matter than a full disk.
    enum Copy {
        Read(io::Error),
        Write(io::Error),
    }

    fn copy(from: &mut impl io::Read, to: &mut impl io::Write) -> Result<(), Copy> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match from.read(&mut buffer).map_err(Copy::Read)? {
                0 => return Ok(()),
                n => to.write_all(&buffer[..n]).map_err(Copy::Write)?,
            }
        }
    }

    fn remove(folder: &Path) -> Result<(), DataError> {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io(folder)(error)),
            _ => Ok(()),
        }
    }

    fn io(path: &Path) -> impl FnOnce(io::Error) -> DataError {
        let path = path.to_owned();
        move |source| DataError::Io { path, source }
    }

    fn layout(path: &Path, problem: String) -> DataError {
        DataError::Layout { path: path.into(), problem }
    }
}

#[cfg(all(test, feature = "download"))]
mod tests;

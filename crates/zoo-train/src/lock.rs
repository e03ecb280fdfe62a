//! One writer a folder: two commands that train into the same one would tear each other's files apart.

use crate::checkpoint::Unwritable;
use anyhow::{Context, Result, bail};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// The file that is locked; it holds the number of the process that did.
const FILE: &str = ".lock";

/// A lock on a folder, held by this process until the value is dropped. The system releases it too when the process
/// ends, however it ends.
#[derive(Debug)]
pub struct FolderLock {
    path: PathBuf,
    /// The lock is released with the file.
    _file: File,
}

impl FolderLock {
    /// Locks a folder that exists.
    ///
    /// # Errors
    /// A folder that another process has locked, whose number is in the message; or [`Unwritable`].
    pub fn of(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        loop {
            // Not truncated: another process may hold it.
            let mut options = OpenOptions::new();
            let opened = options.read(true).write(true).create(true).truncate(false).open(&path);
            let mut file = opened.with_context(|| format!("{}", path.display())).context(Unwritable(folder.into()))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    file.read_to_string(&mut holder).ok();
                    let holder = match holder.trim() {
                        "" => "another process".to_owned(),
                        id => format!("process {id}"),
                    };
                    bail!(
                        "{} is in use: {holder} trains into it; wait for it, or choose another folder",
                        folder.display()
                    );
                }
                // Some network file systems have no locks: only this check is lost then.
                Err(TryLockError::Error(_)) => return Ok(Self { path, _file: file }),
            }
            if !is_at(&file, &path) {
                // The last holder has removed the file in between: this lock is on a file without a name.
                continue;
            }
            let noted =
                file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "{}", std::process::id()));
            noted.with_context(|| format!("{}", path.display())).context(Unwritable(folder.into()))?;
            return Ok(Self { path, _file: file });
        }
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Still locked, so that it is this process's own.
        fs::remove_file(&self.path).ok();
    }
}

/// Whether `path` is the name of `file`.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let same = |a: fs::Metadata, b: fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        file.metadata().is_ok_and(|a| fs::metadata(path).is_ok_and(|b| same(a, b)))
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_writer_who_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let lock = FolderLock::of(folder.path()).unwrap();
        let error = FolderLock::of(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("in use: process {} ", std::process::id())), "{error}");
        drop(lock);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        // The file that a killed process leaves behind is not locked.
        fs::write(folder.path().join(FILE), "1").unwrap();
        drop(FolderLock::of(folder.path()).unwrap());
        let absent = FolderLock::of(&folder.path().join("absent")).unwrap_err();
        assert!(absent.downcast_ref::<Unwritable>().is_some(), "{absent:#}");
    }
}

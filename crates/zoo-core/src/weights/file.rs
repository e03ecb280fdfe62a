//! Opening files that may be anything: only a regular file has an end, and answers at once. And writing them: whole or
//! not at all.

use std::ffi::OsString;
use std::fs::{self, File, FileType, OpenOptions};
use std::io::{BufWriter, Error, ErrorKind, Result, Write};
use std::path::{Path, PathBuf};

/// Opens a regular file for reading, and refuses everything else that may stand under a name.
///
/// A named pipe would make the reader wait for a writer that never comes, a device need have no end, and neither can be
/// mapped into memory or sought in. None of them is waited for here.
///
/// ```
/// use zoo_core::weights::open_regular;
/// let error = open_regular(std::env::temp_dir()).unwrap_err();
/// assert_eq!(error.to_string(), "it is a directory, not a regular file");
/// ```
///
/// # Errors
/// What the system says of a file that cannot be opened; what else it is, where it is no regular file. Neither names
/// the path.
pub fn open_regular(path: impl AsRef<Path>) -> Result<File> {
    let path = path.as_ref();
    // Before opening: that alone can start a device.
    ensure_regular(std::fs::metadata(path)?.file_type())?;
    let mut options = OpenOptions::new();
    options.read(true);
    // The name may belong to something else by now. A pipe opens without a writer then, and is refused below.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path)?;
    ensure_regular(file.metadata()?.file_type())?;
    Ok(file)
}

/// Writes a file whole or not at all: `write` fills one beside it, which gets the name `path` once it is complete and
/// on the disk, in place of what stood there. A reader, a crash or a full disk meets the old file or the new one. A
/// link stays, and what it points to is replaced; a pipe or a device is written to as it stands.
///
/// ```
/// use std::io::Write;
/// let path = std::env::temp_dir().join(format!("zoo-doc-{}.txt", std::process::id()));
/// zoo_core::weights::write_whole(&path, |file| writeln!(file, "all of it"))?;
/// assert_eq!(std::fs::read_to_string(&path)?, "all of it\n");
/// # std::fs::remove_file(path)?;
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// What `write` or the system refuses, without the path. Then nothing is left behind.
pub fn write_whole(path: impl AsRef<Path>, write: impl FnOnce(&mut BufWriter<&File>) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    if let Ok(there) = fs::metadata(path)
        && !there.is_file()
    {
        if there.is_dir() {
            return ensure_regular(there.file_type());
        }
        let file = OpenOptions::new().write(true).open(path)?;
        let mut out = BufWriter::new(&file);
        return write(&mut out).and_then(|()| out.flush());
    }
    // Where it is a link, what it points to; where there is nothing yet, the path itself.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (aside, file) = create_beside(path)?;
    let mut out = BufWriter::new(&file);
    let mut written = write(&mut out).and_then(|()| out.flush());
    // What the buffer still holds after an error is not to be tried again.
    drop(out.into_parts());
    written = written.and_then(|()| file.sync_all()).and_then(|()| fs::rename(&aside, path));
    if written.is_err() {
        // The write's own error says more than a failure to tidy up after it.
        fs::remove_file(&aside).ok();
    }
    written?;
    // The new name has to reach the disk too. Some systems cannot sync a directory; the data is safe without.
    if let Some(directory) = aside.parent().and_then(|directory| File::open(directory).ok()) {
        directory.sync_all().ok();
    }
    Ok(())
}

/// A new file in `path`'s directory, under a name that no other writer has.
fn create_beside(path: &Path) -> Result<(PathBuf, File)> {
    let Some(name) = path.file_name() else {
        return Err(Error::new(ErrorKind::InvalidInput, "not a file's name"));
    };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut attempt = 0;
    loop {
        let mut aside = OsString::from(".");
        aside.push(name);
        aside.push(format!(".{}-{attempt}.tmp", std::process::id()));
        let aside = directory.join(aside);
        match File::create_new(&aside) {
            Ok(file) => return Ok((aside, file)),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => attempt += 1,
            Err(e) => return Err(e),
        }
    }
}

fn ensure_regular(kind: FileType) -> Result<()> {
    match kind.is_file() {
        true => Ok(()),
        false => Err(Error::other(format!("it is {}, not a regular file", name(kind)))),
    }
}

fn name(kind: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        match () {
            () if kind.is_fifo() => return "a pipe",
            () if kind.is_socket() => return "a socket",
            () if kind.is_char_device() || kind.is_block_device() => return "a device",
            () => {}
        }
    }
    if kind.is_dir() { "a directory" } else { "something else" }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    fn refused(path: &Path) -> String {
        open_regular(path).unwrap_err().to_string()
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_write_that_fails_leaves_what_stood_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net.svg");
        write_whole(&path, |file| file.write_all(b"old")).unwrap();
        let full = write_whole(&path, |file| {
            file.write_all(&[0; 100_000])?;
            Err(ErrorKind::StorageFull.into())
        });
        assert_eq!(full.unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!((fs::read(&path).unwrap(), names(folder.path())), (b"old".to_vec(), vec!["net.svg".to_string()]));
        assert!(write_whole(folder.path(), |_| Ok(())).unwrap_err().to_string().contains("a directory"));
    }

    #[test]
    fn a_link_stays_and_a_device_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link, null] = ["file", "link", "null"].map(|name| folder.path().join(name));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        std::os::unix::fs::symlink("/dev/null", &null).unwrap();
        for path in [&link, &null] {
            write_whole(path, |file| file.write_all(b"new")).unwrap();
            assert!(path.is_symlink());
        }
        assert_eq!((fs::read(&file).unwrap(), names(folder.path()).len()), (b"new".to_vec(), 3));
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn only_a_regular_file_opens_and_nothing_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link, pipe, socket] = ["file", "link", "pipe", "socket"].map(|name| folder.path().join(name));
        std::fs::write(&file, "12").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for path in [&file, &link] {
            assert_eq!(std::io::read_to_string(open_regular(path).unwrap()).unwrap(), "12");
        }
        let name = std::ffi::CString::new(pipe.as_os_str().as_bytes()).unwrap();
        // SAFETY: the name is a string that ends in zero and outlives the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(refused(&pipe), "it is a pipe, not a regular file");
        assert_eq!(refused(&socket), "it is a socket, not a regular file");
        assert_eq!(refused(Path::new("/dev/zero")), "it is a device, not a regular file");
        assert_eq!(refused(folder.path()), "it is a directory, not a regular file");
        assert!(refused(&folder.path().join("absent")).contains("No such file"));
    }
}

//! Opening files that may be anything: only a regular file has an end, and answers at once.

use std::fs::{File, FileType, OpenOptions};
use std::io::{Error, Result};
use std::path::Path;

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
/// What the system says of a file that cannot be opened; what else it is, where it is no regular file. Neither names the path.
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

//! What can be wrong with a name, a server or a file.

use std::path::PathBuf;

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that is none.
    #[error("`{name}` {problem}")]
    Name {
        /// As it was given.
        name: String,
        /// What was expected.
        problem: &'static str,
    },
    /// No variable says where this user's files are.
    #[error("no home directory to look for downloaded files in: set HOME, or HF_HOME and TORCH_HOME")]
    NoHome,
    /// Not on this machine.
    #[error("{name}: no {wanted} in {}; fetch it with `{command}`", folder.display())]
    NotHere {
        /// What was asked for.
        name: String,
        /// The files that would do.
        wanted: String,
        /// Where they were looked for.
        folder: PathBuf,
        /// What fetches it.
        command: String,
    },
    /// The server does not have the file.
    #[error("{name}: {why}")]
    Absent {
        /// What was asked for.
        name: String,
        /// Whether it is the file or perhaps the whole repository.
        why: &'static str,
    },
    /// An answer that is no file.
    #[error("{name}: {why}")]
    Refused {
        /// What was asked for.
        name: String,
        /// The status of HTTP.
        status: u16,
        /// What that means, and what to do.
        why: String,
    },
    /// No answer.
    #[error(
        "{name}: {host} cannot be reached: {why}; what is there of the file is kept, the same command goes on from it"
    )]
    Network {
        /// What was asked for.
        name: String,
        /// Who was asked.
        host: String,
        /// What is in the way.
        why: String,
    },
    /// A file that is not what was promised.
    #[error("{name}: {what} was promised and {found} came: it is not kept")]
    Damaged {
        /// What was asked for.
        name: String,
        /// Its size or hash, as the server or its name says.
        what: String,
        /// What came.
        found: String,
    },
    /// A file whose name says another hash than it has.
    #[error("{}: its name says that its SHA-256 begins with {expected}, and it begins with {found}: fetch it again, or call it otherwise if that is no hash", path.display())]
    NamedHash {
        /// The file.
        path: PathBuf,
        /// What the name says.
        expected: String,
        /// The same digits of what it is.
        found: String,
    },
    /// What the file system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What.
        source: std::io::Error,
    },
}

/// An error of the file system at `path`.
pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Io { path: path.into(), source }
}

//! What can go wrong between a picture and its names.

use std::io;
use std::path::{Path, PathBuf};

/// Why there is no answer. `Display` is one line that names the file and says what was expected.
///
/// A server tells a client's fault, which is [`Picture`](Self::Picture), [`TooLarge`](Self::TooLarge) or
/// [`Input`](Self::Input), from its own:
///
/// ```
/// use zoo_image::{Error, Framing};
/// let status = match Framing::whole(32).read_bytes(b"no picture") {
///     Ok(_) => 200,
///     Err(Error::TooLarge { .. }) => 413,
///     Err(Error::Picture { .. } | Error::Input(_)) => 400,
///     Err(_) => 500,
/// };
/// assert_eq!(status, 400);
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or bytes that are no picture, are damaged, or are larger than the limits.
    #[error("{}: {problem}", path.display())]
    Picture {
        /// The file, or what the caller calls the bytes.
        path: PathBuf,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A picture of more pixels or bytes than [`Limits`](crate::Limits) allow.
    #[error("{}: {problem}", path.display())]
    TooLarge {
        /// The file, or what the caller calls the bytes.
        path: PathBuf,
        /// How large it is, and what is allowed.
        problem: String,
    },
    /// A file of weights that does not fit the network, or contradicts itself.
    #[error("{}: {problem}", path.display())]
    Weights {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A name that is no network's, or of one without published weights.
    #[error("{0}")]
    Name(String),
    /// Weights that are looked up by name are not there, or cannot be downloaded.
    #[error(transparent)]
    Hub(#[from] zoo_hub::Error),
    /// An argument that does not fit the network: an image of another shape, another number of class names.
    #[error("{0}")]
    Input(String),
    /// The network's output is not finite: a weight, or a tensor that was given, holds NaN or an infinity.
    #[error("the network's output is not finite: a weight, or a tensor that was given, holds NaN or an infinity")]
    NotFinite,
    /// A network that another library's files cannot describe.
    #[error("{0}")]
    Export(String),
    /// Candle or a network refused, which includes files of weights that cannot be read.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn weights(path: &Path, problem: impl Into<String>) -> Self {
        Self::Weights { path: path.into(), problem: problem.into() }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}

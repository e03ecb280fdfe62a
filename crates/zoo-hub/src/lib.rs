//! Weights by name: files of the Hugging Face hub and of PyTorch's server, where Python keeps them on this machine.
//!
//! | name | where it lies |
//! |---|---|
//! | `hf:ORG/NAME[@REVISION][:FILE]` | `huggingface_hub`'s cache: `$HF_HUB_CACHE`, `$HF_HOME/hub` or `~/.cache/huggingface/hub` |
//! | `https://…/NAME.pth` | `torch.hub`'s: `$TORCH_HOME/hub/checkpoints` or `~/.cache/torch/hub/checkpoints` |
//!
//! What Python has downloaded is used as it is, and what is downloaded here, with the feature `download`, Python finds. A
//! file is written aside, goes on where a broken connection left it, and takes its name once its size and hash are what
//! the server said. `HF_TOKEN` (or the file that `hf auth login` writes) opens what is not public, `HF_ENDPOINT` names
//! another server, and with `HF_HUB_OFFLINE=1` nothing is asked for.
//!
//! ```
//! use zoo_hub::Name;
//! let name: Name = "hf:timm/resnet50.a1_in1k".parse()?;
//! match name.find() {
//!     Ok(path) => println!("{}", path.display()),
//!     Err(error) => println!("{error}"), // … fetch it with `hf download timm/resnet50.a1_in1k model.safetensors`
//! }
//! # Ok::<(), zoo_hub::Error>(())
//! ```
#![deny(missing_docs)]

#[cfg(feature = "download")]
mod client;
#[cfg(feature = "download")]
mod download;
mod error;
mod hash;
mod hub_file;
mod url_file;

#[cfg(feature = "download")]
pub use client::Client;
pub use error::Error;
pub use hash::check_name;
pub use hub_file::HubFile;
pub use url_file::UrlFile;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// How far a download is.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The file.
    pub file: &'a str,
    /// Bytes that are there.
    pub done: u64,
    /// Bytes that it has in the end, where the server says so.
    pub total: Option<u64>,
}

/// The name of a file that may have to be downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Name {
    /// `hf:…`
    Hub(HubFile),
    /// `https://…`
    Url(UrlFile),
}

impl Name {
    /// Whether a text is such a name, and not a path.
    pub fn is_one(text: &str) -> bool {
        ["hf:", "https://", "http://"].iter().any(|start| text.starts_with(start))
    }

    /// The file on this machine.
    ///
    /// # Errors
    /// A file that is not there: where it was looked for, and the command that fetches it.
    pub fn find(&self) -> Result<PathBuf, Error> {
        match self {
            Self::Hub(file) => file.find(),
            Self::Url(file) => file.find(),
        }
    }

    /// The file on this machine, downloaded if it is not there and the crate is built with the feature `download`;
    /// `progress` is told how far that is.
    ///
    /// # Errors
    /// What the server refuses, a network that is not there, and a file that is not what the server said.
    #[cfg(not(feature = "download"))]
    pub fn fetch(&self, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf, Error> {
        _ = progress;
        self.find()
    }

    /// The file on this machine, downloaded if it is not there; `progress` is told how far that is.
    ///
    /// # Errors
    /// What the server refuses, a network that is not there, and a file that is not what the server said.
    #[cfg(feature = "download")]
    pub fn fetch(&self, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf, Error> {
        let missing = match self.find() {
            Err(error @ Error::NotHere { .. }) => error,
            found => return found,
        };
        let client = Client::from_environment();
        if client.is_offline() {
            return Err(missing);
        }
        match self {
            Self::Hub(file) => file.fetch_into(&hub_file::cache()?, &client, progress),
            Self::Url(file) => file.fetch_into(&url_file::folder()?, &client, progress),
        }
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.strip_prefix("hf:") {
            Some(name) => Ok(Self::Hub(name.parse()?)),
            None => Ok(Self::Url(text.parse()?)),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Hub(file) => write!(f, "hf:{file}"),
            Self::Url(file) => write!(f, "{file}"),
        }
    }
}

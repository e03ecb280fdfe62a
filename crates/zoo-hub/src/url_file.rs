//! Files of PyTorch's server, where `torch.hub` keeps them.

use crate::error::Error;
use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A file by its address: `https://download.pytorch.org/models/alexnet-owt-7be5be79.pth`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlFile {
    url: String,
}

impl FromStr for UrlFile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |problem| Error::Name { name: text.chars().take(200).collect(), problem };
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let path = rest.and_then(|rest| Some(rest.split_once('/')?.1)).filter(|path| !path.is_empty());
        let file = Self { url: text.into() };
        let name = file.file_name();
        if path.is_none() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(wrong("is no address of a file: expected https://HOST/…/NAME.pth"));
        }
        if name.is_empty() || name.starts_with('.') || name.contains('\\') {
            return Err(wrong("does not end in a file's name"));
        }
        Ok(file)
    }
}

impl fmt::Display for UrlFile {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl UrlFile {
    /// The address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What the file is called: the last part of the address, without a query.
    pub fn file_name(&self) -> &str {
        let path = self.url.split(['?', '#']).next().unwrap_or_default();
        path.rsplit('/').next().unwrap_or_default()
    }

    /// The file where `torch.hub` keeps it.
    ///
    /// # Errors
    /// A file that is not there.
    pub fn find(&self) -> Result<PathBuf, Error> {
        self.find_in(&folder()?)
    }

    pub(crate) fn find_in(&self, folder: &Path) -> Result<PathBuf, Error> {
        let path = folder.join(self.file_name());
        if path.is_file() {
            return Ok(path);
        }
        Err(Error::NotHere {
            name: self.url.clone(),
            wanted: self.file_name().into(),
            folder: folder.into(),
            command: format!("curl -L --create-dirs -o {} {}", path.display(), self.url),
        })
    }
}

/// Where `torch.hub` keeps files.
pub(crate) fn folder() -> Result<PathBuf, Error> {
    let path = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = path("TORCH_HOME").or_else(|| Some(path("XDG_CACHE_HOME")?.join("torch")));
    let home = home.or_else(|| Some(path("HOME").or_else(|| path("USERPROFILE"))?.join(".cache/torch")));
    Ok(home.ok_or(Error::NoHome)?.join("hub/checkpoints"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_end_in_a_files_name() {
        let file: UrlFile = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth?x=1".parse().unwrap();
        assert_eq!(file.file_name(), "alexnet-owt-7be5be79.pth");
        for text in
            ["https://host", "https://host/", "https://host/a/..", "ftp://host/a", "https://host/a b", "https://h/a\\b"]
        {
            assert!(text.parse::<UrlFile>().is_err(), "{text}");
        }
    }
}

//! Files of the Hugging Face hub, as they lie in its cache on this machine.
//!
//! The cache is that of Python's `huggingface_hub`: a folder `models--ORG--NAME` for each repository, in which `refs` has
//! the commit of a revision and `snapshots/COMMIT` its files. A file that Python has downloaded is found here, and what
//! lies beside it in its snapshot too.

use crate::error::Error;
use std::ffi::OsString;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

/// A file of a repository on the hub: `ORG/NAME[@REVISION][:FILE]`.
///
/// ```
/// use zoo_hub::HubFile;
/// let name: HubFile = "timm/resnet50.a1_in1k@v1.0:model.safetensors".parse()?;
/// assert_eq!(name.to_string(), "timm/resnet50.a1_in1k@v1.0:model.safetensors");
/// assert!("timm/../../etc".parse::<HubFile>().is_err());
/// # Ok::<(), zoo_hub::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFile {
    repository: String,
    revision: Option<String>,
    file: Option<String>,
}

/// What a name without a revision means.
const MAIN: &str = "main";
/// The files that hold a network's weights, the first that is there.
pub(crate) const WEIGHTS: [&str; 3] = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"];

impl FromStr for HubFile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (rest, file) = match text.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (text, None),
        };
        let (repository, revision) = match rest.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (rest, None),
        };
        let plain = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && part.chars().all(allowed) && !part.starts_with(['.', '-']) && !part.contains("..")
        };
        let parts: Vec<&str> = repository.split('/').collect();
        let is_path = |text: &str| {
            let mut components = Path::new(text).components();
            !text.is_empty() && !text.contains('\\') && components.all(|part| matches!(part, Component::Normal(_)))
        };
        let fits = (1..=2).contains(&parts.len())
            && parts.iter().all(|part| plain(part))
            && revision.is_none_or(is_path)
            && file.is_none_or(is_path);
        if !fits {
            let name = format!("hf:{}", text.chars().take(200).collect::<String>());
            let problem = "names no file of the hub: expected hf:ORG/NAME, hf:ORG/NAME@REVISION or hf:ORG/NAME:FILE";
            return Err(Error::Name { name, problem });
        }
        Ok(Self {
            repository: repository.to_owned(),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        })
    }
}

impl fmt::Display for HubFile {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.repository)?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))?;
        self.file.iter().try_for_each(|file| write!(f, ":{file}"))
    }
}

impl HubFile {
    /// `ORG/NAME`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// A branch, a tag or a commit; `main` where none is named.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// The file, if it is named; else it is the first there of those that usually hold weights.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// The files that would do, the first first.
    pub(crate) fn wanted(&self) -> Vec<&str> {
        self.file().map_or(WEIGHTS.to_vec(), |file| vec![file])
    }

    /// The file in the cache that the environment names.
    ///
    /// # Errors
    /// A file that is not in it: where it was looked for, and the command that fetches it.
    pub fn find(&self) -> Result<PathBuf, Error> {
        self.find_in(&cache()?)
    }

    /// The repository's folder in a cache.
    pub(crate) fn folder_in(&self, cache: &Path) -> PathBuf {
        cache.join(format!("models--{}", self.repository.replace('/', "--")))
    }

    pub(crate) fn find_in(&self, cache: &Path) -> Result<PathBuf, Error> {
        let folder = self.folder_in(cache);
        // A commit by its name, or what stands for one.
        let commit = match std::fs::read_to_string(folder.join("refs").join(self.revision())) {
            Ok(commit) if is_commit(commit.trim()) => commit.trim().to_owned(),
            _ => self.revision().to_owned(),
        };
        let snapshot = folder.join("snapshots").join(commit);
        let wanted = self.wanted();
        let found = wanted.iter().map(|file| snapshot.join(file)).find(|file| file.is_file());
        found.ok_or_else(|| Error::NotHere {
            name: format!("hf:{self}"),
            wanted: wanted.join(", "),
            folder: cache.into(),
            command: format!("hf download {} {}", self.repository, self.command_line(wanted[0])),
        })
    }

    fn command_line(&self, file: &str) -> String {
        let configuration = if self.file.is_none() { " config.json" } else { "" };
        let revision = self.revision.as_ref().map_or(String::new(), |revision| format!(" --revision {revision}"));
        format!("{file}{configuration}{revision}")
    }
}

pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Where the cache is.
pub(crate) fn cache() -> Result<PathBuf, Error> {
    home(|name| std::env::var_os(name)).map(|home| home.cache).ok_or(Error::NoHome)
}

/// The file that holds the token of who has logged in.
#[cfg(feature = "download")]
pub(crate) fn token_file() -> Option<PathBuf> {
    home(|name| std::env::var_os(name)).map(|home| home.token)
}

/// The hub's places on this machine.
struct Home {
    cache: PathBuf,
    #[cfg_attr(not(feature = "download"), allow(dead_code))]
    token: PathBuf,
}

/// By the variables that `huggingface_hub` reads.
fn home(variable: impl Fn(&str) -> Option<OsString>) -> Option<Home> {
    let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = path("HF_HOME").or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")));
    let home = home.or_else(|| Some(path("HOME").or_else(|| path("USERPROFILE"))?.join(".cache/huggingface")));
    let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
    let cache = cache.or_else(|| Some(home.as_ref()?.join("hub")))?;
    let token = path("HF_TOKEN_PATH").or_else(|| Some(home?.join("token"))).unwrap_or_default();
    Some(Home { cache, token })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn names_are_read_and_nothing_leads_out_of_the_cache() {
        for name in ["timm/resnet50.a1_in1k", "gpt2", "a/b@main", "a/b@refs/pr/1:sub/net.pth", "a/b:pytorch_model.bin"]
        {
            assert_eq!(name.parse::<HubFile>().unwrap().to_string(), name);
        }
        for name in [
            "",
            "/",
            "a/b/c",
            "../b",
            "a/..",
            "a/b:",
            "a/b@",
            "a/b:../x",
            "a/b:/etc/passwd",
            "a/b@../../x",
            "a b",
            "a/b:x\\y",
            "-a/b",
        ] {
            assert!(name.parse::<HubFile>().is_err(), "{name}");
        }
    }

    #[test]
    fn the_variables_are_followed_in_pythons_order() {
        let cache = |set: &[(&str, &str)]| {
            let found = home(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()));
            found.map(|home| home.cache.to_string_lossy().into_owned())
        };
        let home = ("HOME", "/home/me");
        assert_eq!(cache(&[home]).as_deref(), Some("/home/me/.cache/huggingface/hub"));
        assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/c")]).as_deref(), Some("/c/huggingface/hub"));
        assert_eq!(cache(&[home, ("HF_HOME", "/hf"), ("XDG_CACHE_HOME", "/c")]).as_deref(), Some("/hf/hub"));
        assert_eq!(cache(&[("HF_HUB_CACHE", "/hub"), ("HF_HOME", "/hf")]).as_deref(), Some("/hub"));
        assert_eq!(cache(&[home, ("HF_HOME", "")]).as_deref(), Some("/home/me/.cache/huggingface/hub"));
        assert_eq!(cache(&[]), None);
    }

    #[test]
    fn a_file_is_found_where_python_leaves_it() {
        let root = tempfile::tempdir().unwrap();
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let folder = root.path().join("models--timm--net");
        let snapshot = folder.join("snapshots").join(commit);
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(folder.join("refs")).unwrap();
        fs::write(folder.join("refs/main"), commit).unwrap();
        let find = |name: &str| name.parse::<HubFile>().unwrap().find_in(root.path());
        let error = find("timm/net").unwrap_err().to_string();
        assert!(error.ends_with("fetch it with `hf download timm/net model.safetensors config.json`"), "{error}");
        let error = find("timm/net@v2:x.pth").unwrap_err().to_string();
        assert!(error.ends_with("`hf download timm/net x.pth --revision v2`"), "{error}");

        fs::write(snapshot.join("pytorch_model.bin"), "old").unwrap();
        assert_eq!(find("timm/net").unwrap(), snapshot.join("pytorch_model.bin"));
        fs::write(snapshot.join("model.safetensors"), "new").unwrap();
        for name in ["timm/net", "timm/net@main", &format!("timm/net@{commit}")] {
            assert_eq!(find(name).unwrap(), snapshot.join("model.safetensors"), "{name}");
        }
        assert_eq!(find("timm/net:pytorch_model.bin").unwrap(), snapshot.join("pytorch_model.bin"));
        assert!(find("timm/net@v2").is_err() && find("timm/other").is_err());
    }
}

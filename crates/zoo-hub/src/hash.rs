//! Hashes of files, and names that state them.

use crate::error::{Error, io};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> Result<String, Error> {
    let mut hash = Sha256::new();
    each_part(path, |part| hash.update(part))?;
    Ok(hex(&hash.finalize()))
}

/// What git calls a file's content: the SHA-1 of `blob`, its length, and itself.
#[cfg(feature = "download")]
pub(crate) fn git_blob(path: &Path, length: u64) -> Result<String, Error> {
    use sha1::Sha1;
    let mut hash = Sha1::new();
    sha1::Digest::update(&mut hash, format!("blob {length}\0"));
    each_part(path, |part| sha1::Digest::update(&mut hash, part))?;
    Ok(hex(&sha1::Digest::finalize(hash)))
}

fn each_part(path: &Path, mut take: impl FnMut(&[u8])) -> Result<(), Error> {
    let mut file = File::open(path).map_err(io(path))?;
    let mut part = vec![0; 1 << 20];
    loop {
        match file.read(&mut part).map_err(io(path))? {
            0 => return Ok(()),
            n => take(&part[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The digits of a hash that a file's name states, as PyTorch writes them: `resnet18-f37072fd.pth`.
pub(crate) fn stated_in(name: &str) -> Option<&str> {
    let (_, digits) = name.strip_suffix(".pth").or_else(|| name.strip_suffix(".pt"))?.rsplit_once('-')?;
    let is_letter = |b: u8| (b'a'..=b'f').contains(&b);
    let is_hash = digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit() || is_letter(b));
    // Digits alone are a date or a number of steps far more often than a hash.
    (is_hash && digits.bytes().any(is_letter)).then_some(digits)
}

/// Compares a file with the beginning of its SHA-256 that its name states, if it states one: whether it does.
///
/// ```
/// # let folder = std::env::temp_dir();
/// let path = folder.join(format!("empty{}-e3b0c442.pth", std::process::id()));
/// std::fs::write(&path, "")?;
/// assert!(zoo_hub::check_name(&path)?);
/// std::fs::write(&path, "damaged")?;
/// assert!(zoo_hub::check_name(&path).is_err());
/// # std::fs::remove_file(path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Another hash, and a file that cannot be read.
pub fn check_name(path: &Path) -> Result<bool, Error> {
    let Some(expected) = path.file_name().and_then(|name| name.to_str()).and_then(stated_in) else { return Ok(false) };
    let found = sha256(path)?;
    if found.starts_with(expected) {
        return Ok(true);
    }
    let found = found[..expected.len().min(found.len())].to_owned();
    Err(Error::NamedHash { path: path.into(), expected: expected.into(), found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_state_a_hash_do() {
        for (name, hash) in [
            ("resnet18-f37072fd.pth", Some("f37072fd")),
            ("alexnet-owt-7be5be79.pth", Some("7be5be79")),
            ("resnet18-5c106cde.pt", Some("5c106cde")),
            ("resnet18.pth", None),
            ("my-decade.pth", None),
            ("net-F37072FD.pth", None),
            ("resnet18-f37072fd.safetensors", None),
            ("checkpoint-20261129.pth", None),
        ] {
            assert_eq!(stated_in(name), hash, "{name}");
        }
    }
}

//! Picture arguments, shared by the commands that read pictures: how large they may be, where they are, and which are
//! left out.

use anyhow::{Context, Result, bail, ensure};
use std::io;
use std::path::{Path, PathBuf};
use zoo_image::{Framing, Limits, Picture};
use zoo_train::data::{LeftOut, pictures};
use zoo_train::errors;
use zoo_train::progress::say;

/// Images that go through a network together.
const BATCH: usize = 16;
/// The name of standard input among files.
const STANDARD_INPUT: &str = "-";

/// The argument that says how large pictures may be.
#[derive(clap::Args)]
pub struct Size {
    /// Pixels of the largest picture that is decoded: what is larger is refused before it takes memory
    #[arg(long, value_name = "N", default_value_t = Limits::default().pixels, value_parser = clap::value_parser!(u64).range(1..))]
    max_pixels: u64,
}

impl Size {
    /// As the decoders want it.
    pub fn limits(&self) -> Limits {
        Limits { pixels: self.max_pixels }
    }
}

/// The pictures that arguments name: files, `-`, and those in folders. Files in folders that are left out are listed on
/// standard error.
pub fn listed(arguments: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let inputs = arguments.iter().filter(|path| is_standard_input(path)).count();
    ensure!(inputs <= 1, "`-` stands for standard input, which can be read once");
    let (mut all, mut left_out) = (Vec::new(), LeftOut::default());
    for path in arguments {
        if is_standard_input(path) || !path.is_dir() {
            all.push(path.clone());
            continue;
        }
        let (found, others) = pictures(path)?;
        ensure!(!found.is_empty() || !others.is_empty(), "{}: no pictures in this folder", path.display());
        all.extend(found);
        left_out.extend(others);
    }
    tell(&left_out);
    ensure!(!all.is_empty(), "no pictures in the folders");
    Ok(all)
}

/// Reads pictures `BATCH` at a time and hands them to `f`, the files' names and the images. Those that cannot be read are
/// left out, told about, and make an error at the end.
///
/// # Errors
/// What `f` refuses, at once; pictures that cannot be read, when all others are done.
pub fn in_batches(
    paths: &[PathBuf],
    framing: Framing,
    limits: Limits,
    mut f: impl FnMut(&[&Path], &[Vec<u8>]) -> Result<()>,
) -> Result<()> {
    let mut unreadable = Vec::new();
    for paths in paths.chunks(BATCH) {
        let (mut readable, mut images) = (Vec::new(), Vec::new());
        for path in paths {
            match read(path, framing, limits) {
                Ok(image) => {
                    readable.push(path.as_path());
                    images.push(image);
                }
                Err(error) => unreadable.push(errors::line(&error)),
            }
        }
        if !images.is_empty() {
            f(&readable, &images)?;
        }
    }
    match &unreadable[..] {
        [] => Ok(()),
        [only] => bail!("{only}"),
        [first, rest @ ..] => {
            rest.iter().for_each(say);
            bail!("{} of {} images could not be read, the first: {first}", unreadable.len(), paths.len())
        }
    }
}

/// One picture, from a file or from standard input.
///
/// # Errors
/// What cannot be decoded: one line that begins with the file's name.
pub fn read(path: &Path, framing: Framing, limits: Limits) -> Result<Vec<u8>> {
    if is_standard_input(path) {
        let picture = Picture::from_reader(io::stdin().lock(), "standard input".as_ref(), limits)?;
        return framing.apply(&picture).context("standard input");
    }
    let hint = match is_pipe(path) {
        true => "; from a pipe a picture is read as `-`: `… | zoo predict … -`",
        false => "",
    };
    framing.read_within(path, limits).map_err(|error| anyhow::anyhow!("{}{hint}", error.to_string().replace('\n', " ")))
}

fn is_standard_input(path: &Path) -> bool {
    path == Path::new(STANDARD_INPUT)
}

fn is_pipe(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        std::fs::metadata(path).is_ok_and(|data| data.file_type().is_fifo())
    }
    #[cfg(not(unix))]
    {
        _ = path;
        false
    }
}

/// Lists the files that are left out, on standard error.
pub fn tell(left_out: &LeftOut) {
    if !left_out.is_empty() {
        say(left_out);
    }
}

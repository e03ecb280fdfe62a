//! Picture arguments, shared by the commands that read pictures: how large they may be, where they are, and which are
//! left out.

use anyhow::{Context, Result, bail, ensure};
use std::io;
use std::path::{Path, PathBuf};
use zoo_image::{Framing, Limits, Picture, picture};
use zoo_train::data::{LeftOut, pictures};
use zoo_train::errors;
use zoo_train::progress::say;

/// Images that go through a network together.
const BATCH: usize = 16;
/// The name of standard input among files, and in messages.
const STANDARD_INPUT: &str = "-";
const STANDARD_INPUT_NAME: &str = "standard input";

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

/// A picture that is to be read.
pub struct Source {
    /// Its file, or `-`.
    name: PathBuf,
    /// What standard input held.
    bytes: Option<Vec<u8>>,
}

impl From<PathBuf> for Source {
    fn from(name: PathBuf) -> Self {
        Self { name, bytes: None }
    }
}

/// The pictures that arguments name: files, those in folders, and for `-` what is on standard input: a picture, or a list
/// of files and folders, a line each. Files in folders that are left out are listed on standard error.
pub fn listed(arguments: &[PathBuf], limits: Limits) -> Result<Vec<Source>> {
    let inputs = arguments.iter().filter(|path| is_standard_input(path)).count();
    ensure!(inputs <= 1, "`-` stands for standard input, which can be read once");
    let (mut all, mut left_out) = (Vec::new(), LeftOut::default());
    for path in arguments {
        if !is_standard_input(path) {
            all.extend(expanded(path, &mut left_out)?);
            continue;
        }
        let bytes = picture::read_whole(io::stdin().lock(), STANDARD_INPUT_NAME.as_ref(), limits)?;
        match list(&bytes)? {
            Some(paths) => {
                for path in &paths {
                    all.extend(expanded(path, &mut left_out)?);
                }
            }
            None => all.push(Source { name: path.clone(), bytes: Some(bytes) }),
        }
    }
    tell(&left_out);
    ensure!(!all.is_empty(), "no pictures in the folders");
    Ok(all)
}

/// A file, or the pictures in a folder.
fn expanded(path: &Path, left_out: &mut LeftOut) -> Result<Vec<Source>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf().into()]);
    }
    let (found, others) = pictures(path)?;
    ensure!(!found.is_empty() || !others.is_empty(), "{}: no pictures in this folder", path.display());
    left_out.extend(others);
    Ok(found.into_iter().map(Source::from).collect())
}

/// The paths in a text, a line each, or with a zero byte behind each as `find -print0` writes them; `None` where the bytes
/// begin as a picture does.
///
/// # Errors
/// What is neither a picture nor a list of files that are there.
fn list(bytes: &[u8]) -> Result<Option<Vec<PathBuf>>> {
    let Err(problem) = picture::begins_as_picture(bytes) else { return Ok(None) };
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.trim().is_empty());
    let Some(text) = text else { bail!("{STANDARD_INPUT_NAME}: {problem}") };
    let separator = if text.contains('\0') { '\0' } else { '\n' };
    let lines = text.split(separator).map(|line| line.trim_end_matches('\r')).filter(|line| !line.is_empty());
    let paths: Vec<PathBuf> = lines.map(PathBuf::from).collect();
    if !paths.iter().any(|path| path.exists()) {
        let first: String = text.lines().next().unwrap_or_default().chars().take(60).collect();
        bail!("{STANDARD_INPUT_NAME}: {problem}, or a list of files, a line each; there is no file `{first}`")
    }
    Ok(Some(paths))
}

/// Reads pictures `BATCH` at a time and hands them to `f`, the files' names and the images. Those that cannot be read are
/// left out, told about, and make an error at the end.
///
/// # Errors
/// What `f` refuses, at once; pictures that cannot be read, when all others are done.
pub fn in_batches(
    sources: &[Source],
    framing: Framing,
    limits: Limits,
    mut f: impl FnMut(&[&Path], &[Vec<u8>]) -> Result<()>,
) -> Result<()> {
    let mut unreadable = Vec::new();
    for sources in sources.chunks(BATCH) {
        let (mut readable, mut images) = (Vec::new(), Vec::new());
        for source in sources {
            match read(source, framing, limits) {
                Ok(image) => {
                    readable.push(source.name.as_path());
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
            bail!("{} of {} images could not be read, the first: {first}", unreadable.len(), sources.len())
        }
    }
}

/// One picture, from a file or from standard input.
///
/// # Errors
/// What cannot be decoded: one line that begins with the file's name.
fn read(source: &Source, framing: Framing, limits: Limits) -> Result<Vec<u8>> {
    if let Some(bytes) = &source.bytes {
        let picture = Picture::from_bytes(bytes, STANDARD_INPUT_NAME.as_ref(), limits);
        let picture = picture.map_err(|error| anyhow::anyhow!("{error}{}", raised(&error)))?;
        return framing.apply(&picture).context(STANDARD_INPUT_NAME);
    }
    let path = &source.name;
    let hint = match is_pipe(path) {
        true => "; from a pipe a picture is read as `-`: `… | zoo predict … -`",
        false => "",
    };
    framing
        .read_within(path, limits)
        .map_err(|error| anyhow::anyhow!("{}{}{hint}", error.to_string().replace('\n', " "), raised(&error)))
}

/// What to do about a picture that is too large.
fn raised(error: &zoo_image::Error) -> &'static str {
    if matches!(error, zoo_image::Error::TooLarge { .. }) { ": --max-pixels raises that" } else { "" }
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

//! Where weights are: a file, a run's folder, or a name that is looked up and, if need be, downloaded.

use super::config;
use super::metadata::FileMetadata;
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use zoo::ModelInfo;
use zoo_core::weights::Selection;

/// The file of a run's folder that holds the trained network.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// The word for the published weights of a network ([`ModelInfo::weights`]), in place of a path.
pub const DEFAULT_WEIGHTS: &str = "default";

/// The file of weights that `path` means: a file, the one in a run's folder, a name of [`zoo_hub`]'s (`hf:…`, `https://…`),
/// or [`DEFAULT_WEIGHTS`] of `model`. What is not on this machine is downloaded, with the feature `download`. A file whose
/// name states a hash, as torchvision's do, is held to it.
///
/// # Errors
/// A folder without one; a file that is nowhere, or not what its name says.
pub fn weights_file(path: &Path, model: Option<&ModelInfo>) -> Result<PathBuf> {
    let named = match (path.to_str(), model) {
        (Some(DEFAULT_WEIGHTS), Some(model)) => Some(model.weights.with_context(|| {
            format!("{}: there are no published weights of it: train it, or name a file", model.name)
        })?),
        (Some(DEFAULT_WEIGHTS), None) => bail!("`default` means the published weights of a network: name that first"),
        (text, _) => text.filter(|text| zoo_hub::Name::is_one(text)),
    };
    if let Some(name) = named {
        return fetched(&name.parse()?);
    }
    if !path.is_dir() {
        if path.is_file() {
            zoo_hub::check_name(path)?;
        }
        return Ok(path.into());
    }
    let others = ["model.safetensors.index.json", "pytorch_model.bin"];
    let files: Vec<PathBuf> = [WEIGHTS_FILE].iter().chain(&others).map(|name| path.join(name)).collect();
    let file = files.iter().find(|file| file.exists()).unwrap_or(&files[0]).clone();
    ensure!(
        file.exists(),
        "{}: a folder without {WEIGHTS_FILE}, where a file of weights or a run's folder was expected",
        path.display()
    );
    Ok(file)
}

#[cfg(feature = "download")]
fn fetched(name: &zoo_hub::Name) -> Result<PathBuf> {
    let mut bar = crate::progress::Download::default();
    Ok(name.fetch(&mut |progress| bar.show(progress.file, progress.done, progress.total))?)
}

#[cfg(not(feature = "download"))]
fn fetched(name: &zoo_hub::Name) -> Result<PathBuf> {
    Ok(name.find()?)
}

/// The network that a file of weights says it holds: what `zoo train` writes into it, or the `architecture` in timm's
/// config.json beside it where that is one of the zoo's names.
///
/// # Errors
/// As [`Trained::open`](super::Trained::open).
pub fn model_of(file: &Path, selection: &Selection) -> Result<Option<&'static ModelInfo>> {
    let file = weights_file(file, None)?;
    let stated = FileMetadata::of(&selection.open(&file)?)?.0.model.or_else(|| config::beside(&file).architecture);
    let named = |name: String| {
        let by_timm = |info: &&ModelInfo| info.timm.is_some_and(|timm| timm.architecture == name);
        zoo::find(&name).ok().or_else(|| zoo::all().find(by_timm))
    };
    Ok(stated.and_then(named))
}

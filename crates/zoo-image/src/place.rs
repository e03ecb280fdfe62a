//! Where weights are: a file, a run's folder, or a name that is looked up and, if need be, downloaded.

use crate::config;
use crate::error::{Error, Result};
use crate::metadata::Metadata;
use std::path::{Path, PathBuf};
use zoo::ModelInfo;
use zoo_core::weights::Selection;
use zoo_hub::Progress;

/// The file of a run's folder that holds the trained network.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// The word for the published weights of a network ([`ModelInfo::weights`]), in place of a path.
pub const DEFAULT_WEIGHTS: &str = "default";

/// The file of weights that `path` means: a file, the one in a run's folder, a name of [`zoo_hub`]'s (`hf:…`, `https://…`),
/// or [`DEFAULT_WEIGHTS`] of `model`. What is not on this machine is downloaded, with the feature `download`, and
/// `progress` is told how far that is. A file whose name states a hash, as torchvision's do, is held to it.
///
/// # Errors
/// A folder without one; a file that is nowhere, or not what its name says.
pub fn weights_file(path: &Path, model: Option<&ModelInfo>, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf> {
    let named = match path.to_str() {
        Some(DEFAULT_WEIGHTS) => {
            let model = model.ok_or_else(|| {
                Error::Name("`default` means the published weights of a network: name that first".into())
            })?;
            Some(model.weights.ok_or_else(|| {
                Error::Name(format!("{}: there are no published weights of it: train it, or name a file", model.name))
            })?)
        }
        text => text.filter(|text| zoo_hub::Name::is_one(text)),
    };
    if let Some(name) = named {
        return Ok(name.parse::<zoo_hub::Name>()?.fetch(progress)?);
    }
    if !path.is_dir() {
        if path.is_file() {
            zoo_hub::check_name(path)?;
        }
        return Ok(path.into());
    }
    let known = [WEIGHTS_FILE, "model.safetensors.index.json", "pytorch_model.bin"];
    known.iter().map(|name| path.join(name)).find(|file| file.exists()).ok_or_else(|| {
        let problem =
            format!("a folder without {WEIGHTS_FILE}, where a file of weights or a run's folder was expected");
        Error::weights(path, problem)
    })
}

/// The network that a file of weights says it holds: what `zoo train` writes into it, or the `architecture` in timm's
/// config.json beside it where that is one of the zoo's names.
///
/// # Errors
/// A file that is no checkpoint; metadata under the zoo's keys that the zoo did not write.
pub fn model_of(file: &Path, selection: &Selection) -> Result<Option<&'static ModelInfo>> {
    let stated = Metadata::of(&selection.open(file)?)?.0.model.or_else(|| config::beside(file).architecture);
    let named = |name: String| {
        let by_timm = |info: &&ModelInfo| info.timm.is_some_and(|timm| timm.architecture == name);
        zoo::find(&name).ok().or_else(|| zoo::all().find(by_timm))
    };
    Ok(stated.and_then(named))
}

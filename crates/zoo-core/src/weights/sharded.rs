//! Checkpoints in several safetensors files, by the index that says which file holds which tensor.

use super::{Weights, complaint, shown};
use candle_core::Result;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};
use std::sync::Arc;

/// The largest index, in bytes: those of networks of a trillion numbers have a megabyte.
const MOST_BYTES: u64 = 64 << 20;
/// More files than any network is cut into.
const MOST_FILES: usize = 1024;

/// `model.safetensors.index.json`, as Hugging Face's libraries write it.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Whether the name is that of an index.
pub(super) fn is_index(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".index.json"))
}

/// The tensors that the index in `file` names, from the files beside it.
pub(super) fn open(path: &Path, file: File, entry: Option<&str>) -> Result<Weights> {
    let name = path.display().to_string();
    let fault = |what: String| complaint(format!("{name}: {what}"));
    if let Some(entry) = entry {
        bail!("{name}: safetensors files have no entries, such as `{}`", shown(entry))
    }
    let mut text = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut text).map_err(|e| fault(e.to_string()))?;
    if text.len() as u64 > MOST_BYTES {
        bail!("{name}: an index of over {MOST_BYTES} bytes")
    }
    let index: Index =
        serde_json::from_slice(&text).map_err(|e| fault(format!("no index of safetensors files: {e}")))?;
    let files: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
    if files.len() > MOST_FILES {
        bail!("{name}: it names {} files, more than {MOST_FILES}", files.len())
    }
    let mut parts = BTreeMap::new();
    let mut whole =
        Weights { name: name.clone(), bytes: Arc::default(), contents: Default::default(), wrapper: String::new() };
    let mut bytes = Vec::new();
    for (i, part) in files.into_iter().enumerate() {
        if !matches!(Path::new(part).components().collect::<Vec<_>>()[..], [Component::Normal(_)]) {
            bail!("{name}: `{}` is no file beside it", shown(part))
        }
        let at = path.with_file_name(part);
        let file = super::open_regular(&at).map_err(|e| fault(format!("its part {}: {e}", at.display())))?;
        let opened = Weights::mapped(at.display().to_string(), &file, None)?;
        whole.contents.metadata.extend(opened.contents.metadata);
        bytes.extend(Arc::into_inner(opened.bytes).unwrap_or_default());
        parts.insert(part, (i, opened.contents.entries));
    }
    whole.bytes = bytes.into();
    for (key, part) in &index.weight_map {
        let Some((i, entry)) = parts.get(part.as_str()).and_then(|(i, entries)| Some((*i, entries.get(key)?))) else {
            bail!("{name}: `{}` is not in `{}`, where it says it is", shown(key), shown(part))
        };
        let mut entry = entry.clone();
        entry.part = i;
        whole.contents.entries.insert(key.clone(), entry);
    }
    Ok(whole)
}

//! Where a run stands, on disk: from its last checkpoint an interrupted run goes on to the same weights, bit by bit.
//!
//! A checkpoint is one safetensors file: the network's tensors under `model.KEY`, the optimizer's under
//! `optimizer.KEY`, and in the file's metadata a [`Position`] as JSON with a checksum over all of it. Nothing else is
//! random or remembered: the images' order and augmentation are functions of (seed, epoch, index), and a dropout mask
//! of (seed, place, call).
//!
//! A file is written aside, synced, and renamed; the two newest are kept. Whenever a crash comes, one of them is whole:
//! a damaged one is recognised by its checksum and passed over.

use crate::average::WeightAverage;
use crate::errors;
use crate::optim::Optimizer;
use crate::record::EpochMetrics;
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zoo_core::VarStore;
use zoo_core::weights::{LoadOptions, Weights, load, save_tensors};

/// Files are called `resume-000001234.safetensors`, by the steps done.
const PREFIX: &str = "resume-";
const SUFFIX: &str = ".safetensors";
/// Checkpoints that stay: the newest, and the one before in case the newest is damaged.
const KEPT: usize = 2;
/// What stands before the keys of the network's tensors.
const MODEL: &str = "model.";
/// What stands before the keys of the optimizer's tensors.
const OPTIMIZER: &str = "optimizer.";
/// What stands before the keys of the averages of the weights.
const AVERAGE: &str = "average.";
const POSITION: &str = "position";
const CHECKSUM: &str = "checksum";

/// When a run writes checkpoints, and whether it goes on from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoints {
    /// Time between two of them; one is written after every epoch and when a run is stopped in any case. Where writing
    /// is slow, the time is stretched so that it takes no more than a fiftieth of the run.
    pub every: Duration,
    /// Go on from the newest checkpoint in the run's folder, if there is one.
    pub resume: bool,
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self { every: Duration::from_secs(60), resume: false }
    }
}

/// What an epoch came to so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// Sum of the images' training losses.
    pub loss: f64,
    /// Images classified right.
    pub correct: usize,
    /// Images seen.
    pub images: usize,
    /// Seconds that steps waited for data.
    pub wait_seconds: f64,
    /// Seconds of training, checkpoints not counted.
    pub train_seconds: f64,
    /// Seconds in all.
    pub seconds: f64,
}

/// Where a run stands: everything that the next step depends on but the tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// What is trained on what, and how: a checkpoint goes on in the same run only.
    pub identity: Value,
    /// The epoch in hand, counted from 1; behind the last one when all is done.
    pub epoch: usize,
    /// Batches of this epoch that are done.
    pub batches: usize,
    /// Optimizer steps done.
    pub steps: u64,
    /// What this epoch came to so far.
    pub sums: Sums,
    /// Every completed epoch, the best so far among them.
    pub epochs: Vec<EpochMetrics>,
    /// Wall-clock seconds of the run so far.
    pub seconds: f64,
    /// How often each dropout layer has drawn a mask.
    pub dropout: BTreeMap<String, u64>,
}

/// The tensors of a run.
#[derive(Debug, Clone, Default)]
pub struct Tensors {
    /// Parameters and running statistics, by key.
    pub model: BTreeMap<String, Tensor>,
    /// The optimizer's state, see [`Optimizer::state`].
    pub optimizer: BTreeMap<String, Tensor>,
    /// Averages of the weights, see [`WeightAverage::state`].
    pub average: BTreeMap<String, Tensor>,
}

impl Tensors {
    /// All of them under the names that they have in a file.
    fn named(&self) -> BTreeMap<String, &Tensor> {
        let parts = [(MODEL, &self.model), (OPTIMIZER, &self.optimizer), (AVERAGE, &self.average)];
        let mut named = BTreeMap::new();
        for (prefix, tensors) in parts {
            named.extend(tensors.iter().map(|(key, tensor)| (format!("{prefix}{key}"), tensor)));
        }
        named
    }
}

/// A checkpoint's file, read and found whole.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where the run stood.
    pub position: Position,
    weights: Weights,
}

impl Checkpoint {
    /// Puts the run's tensors back into `store`, `optimizer` and `average`, and counts dropout masks from where the run stood.
    ///
    /// The network's tensors go through [`zoo_core::weights::load`]: every key must be there, none may be over, and
    /// each must have its shape. What that converts, another element type, is an error here: the bits would not be the
    /// run's.
    ///
    /// # Errors
    /// Tensors that are not those of this network or this optimizer; the error names them.
    pub fn restore(
        &self,
        store: &VarStore,
        optimizer: &mut dyn Optimizer,
        average: Option<&mut WeightAverage>,
    ) -> Result<()> {
        let wanted = store.dtype();
        for key in self.weights.keys().filter(|key| key.starts_with(MODEL)) {
            let found = self.weights.dtype(key).unwrap_or(wanted);
            ensure!(found == wanted, "`{key}` is {}, and the network computes in {}", found.as_str(), wanted.as_str());
        }
        load(store, &self.weights, &LoadOptions { prefix: Some(MODEL), ..LoadOptions::default() })?;
        let state = |prefix: &str| -> Result<BTreeMap<String, Tensor>> {
            let keys = self.weights.keys().filter_map(|key| Some((key, key.strip_prefix(prefix)?)));
            keys.map(|(key, own)| Ok((own.to_owned(), self.weights.tensor(key, &Device::Cpu)?))).collect()
        };
        optimizer.load_state(&state(OPTIMIZER)?)?;
        if let Some(average) = average {
            average.load_state(&state(AVERAGE)?)?;
        }
        store.set_dropout_state(&self.position.dropout);
        Ok(())
    }
}

/// A folder of a run that cannot be written: its disk is full, or it is read-only or gone. The next run would fail in
/// the same way, so a suite stops here; what was written before is whole.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to {}", .0.display())]
pub struct Unwritable(pub PathBuf);

/// Makes sure that the disk of `folder` has room for a run whose checkpoint takes `bytes`: the two that stay, the one
/// being written, and the final weights. A disk that does not tell its room is taken at its word.
///
/// # Errors
/// [`Unwritable`] with how much is missing.
pub fn ensure_room(folder: &Path, bytes: u64) -> Result<()> {
    let Ok(room) = fs4::available_space(folder) else { return Ok(()) };
    let needed = bytes.saturating_mul(KEPT as u64 + 2).saturating_add(1 << 20);
    if room < needed {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let missing = format!("{:.1} MB are free and the run needs {:.1} MB for its checkpoints", mb(room), mb(needed));
        return Err(anyhow::anyhow!("{missing}: make room, or choose another disk").context(Unwritable(folder.into())));
    }
    Ok(())
}

/// Writes a checkpoint into `folder` and removes all but the two newest.
///
/// # Errors
/// [`Unwritable`] where the file system refuses.
pub fn save(folder: &Path, position: &Position, tensors: &Tensors) -> Result<()> {
    let position_json = serde_json::to_string(position).context("cannot write a run's position as JSON")?;
    let named = tensors.named();
    let checksum = checksum(&position_json, named.iter().map(|(key, &tensor)| Ok((key.as_str(), tensor.clone()))))?;
    let metadata = BTreeMap::from([
        ("format".to_owned(), "zoo-resume-1".to_owned()),
        (POSITION.to_owned(), position_json),
        (CHECKSUM.to_owned(), format!("{checksum:08x}")),
    ]);
    let path = folder.join(format!("{PREFIX}{:09}{SUFFIX}", position.steps));
    save_tensors(named.iter().map(|(key, tensor)| (key.as_str(), *tensor)), &path, &metadata)
        .map_err(|error| anyhow::Error::from(error).context(Unwritable(folder.into())))?;
    let files = files(folder)?;
    for old in files.iter().rev().skip(KEPT) {
        fs::remove_file(old).with_context(|| format!("cannot remove {}", old.display()))?;
    }
    Ok(())
}

/// A checkpoint that was read, or none, and what the user should know about it.
#[derive(Debug, Default)]
pub struct Found {
    /// The newest checkpoint that is whole.
    pub checkpoint: Option<Checkpoint>,
    /// What was passed over, and why.
    pub notes: Vec<String>,
}

/// The newest whole checkpoint in `folder`. A damaged one is passed over for the one before it, with a note. Leftovers
/// of writes that were cut off are removed.
///
/// # Errors
/// A folder that cannot be read.
pub fn newest(folder: &Path) -> Result<Found> {
    sweep(folder)?;
    let mut found = Found::default();
    let files = files(folder)?;
    for path in files.iter().rev() {
        match read(path) {
            Ok(checkpoint) => {
                found.checkpoint = Some(checkpoint);
                return Ok(found);
            }
            Err(error) => found.notes.push(format!("passed over a damaged checkpoint: {}", errors::line(&error))),
        }
    }
    if !files.is_empty() {
        found.notes.push("no checkpoint is whole: starting from the beginning, which leads to the same weights".into());
    }
    Ok(found)
}

/// Whether `folder` holds a checkpoint, whole or not.
pub fn is_in(folder: &Path) -> bool {
    files(folder).is_ok_and(|files| !files.is_empty())
}

/// Removes the checkpoints of a run that is done and recorded.
///
/// # Errors
/// A file that cannot be removed.
pub fn remove(folder: &Path) -> Result<()> {
    for path in files(folder)? {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// The differences between two values, as `recipe.lr: 0.1 there, 0.05 here`; empty where they are equal.
pub fn differences(theirs: &Value, ours: &Value) -> Vec<String> {
    fn walk(path: &str, theirs: &Value, ours: &Value, out: &mut Vec<String>) {
        if let (Value::Object(a), Value::Object(b)) = (theirs, ours) {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                walk(&path, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null), out);
            }
        } else if theirs != ours {
            out.push(format!("{path}: {theirs} there, {ours} here"));
        }
    }
    let mut out = Vec::new();
    walk("", theirs, ours, &mut out);
    out
}

/// The checkpoints in `folder`, the oldest first.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = entries(folder)?
        .into_iter()
        .filter(|path| name(path).is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX)))
        .collect();
    files.sort();
    Ok(files)
}

/// Removes the leftovers of writes that were cut off: hidden files that were never renamed.
fn sweep(folder: &Path) -> Result<()> {
    for path in entries(folder)? {
        if name(&path).is_some_and(|name| name.starts_with('.') && name.ends_with(".tmp")) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = || fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>();
    list().with_context(|| format!("cannot read the folder {}", folder.display()))
}

fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

fn read(path: &Path) -> Result<Checkpoint> {
    let weights = Weights::open(path)?;
    let of = |key: &str| weights.metadata().get(key).with_context(|| format!("{}: no {key}", path.display()));
    let (json, expected) = (of(POSITION)?, of(CHECKSUM)?);
    // One tensor at a time: all of them would be in memory beside the network's own.
    let tensors = weights.keys().map(|key| {
        let is_known = [MODEL, OPTIMIZER, AVERAGE].iter().any(|part| key.starts_with(part));
        ensure!(is_known, "{}: `{key}` belongs to no part of a checkpoint", path.display());
        Ok((key, weights.tensor(key, &Device::Cpu)?))
    });
    let found = format!("{:08x}", checksum(json, tensors)?);
    ensure!(found == *expected, "{}: its checksum is {found}, not {expected}", path.display());
    let position = serde_json::from_str(json).with_context(|| format!("{}: its position", path.display()))?;
    Ok(Checkpoint { position, weights })
}

/// CRC-32 over the position and every tensor's name, shape and bytes, in the order of their names.
fn checksum<'a>(position: &str, tensors: impl Iterator<Item = Result<(&'a str, Tensor)>>) -> Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(position.as_bytes());
    for entry in tensors {
        let (key, tensor) = entry?;
        hasher.update(format!("{key} {:?} {:?}", tensor.dtype(), tensor.dims()).as_bytes());
        let flat = tensor.flatten_all()?;
        let bytes: Vec<u8> = match tensor.dtype() {
            DType::F32 => flat.to_vec1::<f32>()?.into_iter().flat_map(f32::to_le_bytes).collect(),
            DType::F64 => flat.to_vec1::<f64>()?.into_iter().flat_map(f64::to_le_bytes).collect(),
            DType::I64 => flat.to_vec1::<i64>()?.into_iter().flat_map(i64::to_le_bytes).collect(),
            other => bail!("a checkpoint cannot hold `{key}` of type {}", other.as_str()),
        };
        hasher.update(&bytes);
    }
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::{Group, Sgd};
    use zoo_core::Init;

    fn store(keys: &[&str]) -> VarStore {
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        keys.iter().for_each(|key| drop(store.root().param(2, key, Init::ZEROS).unwrap()));
        store
    }

    fn sgd(store: &VarStore) -> Sgd {
        Sgd::new(vec![Group::new(store.parameters(), 0.0)], 0.1).momentum(0.9)
    }

    fn position() -> Position {
        let (identity, sums, dropout) = (Value::Null, Sums::default(), BTreeMap::new());
        Position { identity, epoch: 1, batches: 0, steps: 7, sums, epochs: Vec::new(), seconds: 0.0, dropout }
    }

    /// What the strict loader says when these tensors are to go into a network of `a` and `b`; both stay as they are.
    fn refusal(tensors: &[(&str, Tensor)]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let model = tensors.iter().map(|(key, tensor)| ((*key).to_owned(), tensor.clone())).collect();
        save(folder.path(), &position(), &Tensors { model, ..Tensors::default() }).unwrap();
        let checkpoint = newest(folder.path()).unwrap().checkpoint.unwrap();
        let store = store(&["a", "b"]);
        let error = checkpoint.restore(&store, &mut sgd(&store), None).unwrap_err();
        assert!(store.parameters().iter().all(|(_, var)| var.to_vec1::<f32>().unwrap() == [0.0; 2]));
        format!("{error:#}")
    }

    #[test]
    fn tensors_of_another_network_are_refused_by_their_names() {
        let ones = |n: usize| Tensor::ones(n, DType::F32, &Device::Cpu).unwrap();
        let missing = refusal(&[("a", ones(2))]);
        assert!(missing.contains("missing") && missing.contains('b'), "{missing}");
        let over = refusal(&[("a", ones(2)), ("b", ones(2)), ("elsewhere", ones(2))]);
        assert!(over.contains("elsewhere"), "{over}");
        let shape = refusal(&[("a", ones(2)), ("b", ones(3))]);
        assert!(shape.contains('b') && shape.contains("[3]"), "{shape}");
        let wide = refusal(&[("a", ones(2)), ("b", ones(2).to_dtype(DType::F64).unwrap())]);
        assert!(wide.contains("`model.b` is f64"), "{wide}");
    }

    #[test]
    fn a_checkpoint_brings_back_network_and_optimizer() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (store(&["a", "b"]), store(&["a", "b"]));
        let mut optimizer = sgd(&from);
        let loss = from.parameters().iter().map(|(_, var)| var.sum_all().unwrap()).reduce(|a, b| (a + b).unwrap());
        optimizer.step(&loss.unwrap().backward().unwrap()).unwrap();
        let model = from.parameters().into_iter().map(|(key, var)| (key, var.as_detached_tensor())).collect();
        save(
            folder.path(),
            &position(),
            &Tensors { model, optimizer: optimizer.state().unwrap(), ..Tensors::default() },
        )
        .unwrap();

        let checkpoint = newest(folder.path()).unwrap().checkpoint.unwrap();
        assert_eq!(checkpoint.position, position());
        let mut restored = sgd(&to);
        checkpoint.restore(&to, &mut restored, None).unwrap();
        let values = |store: &VarStore| -> Vec<Vec<f32>> {
            store.parameters().iter().map(|(_, var)| var.to_vec1().unwrap()).collect()
        };
        assert_eq!((values(&to), values(&to)[0][0]), (values(&from), -0.1));
        let (theirs, ours) = (optimizer.state().unwrap(), restored.state().unwrap());
        assert!(ours.len() == 4 && ours.keys().eq(theirs.keys()));
    }
}

//! Which run a folder holds: everything that changes a run's numbers, so that only the same run goes on in it.

use super::{Job, Start};
use crate::checkpoint;
use crate::data::{Dataset, Split};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;
use zoo_core::Precision;
use zoo_core::weights::{Selection, open_regular};

/// File of a run's folder that says which run it is: everything that changes its numbers.
pub const RUN_FILE: &str = "run.json";

/// The differences between the run in `folder` and `job` on `data`, as `seed: 1 there, 2 here`; empty where there are
/// none, and where the folder does not say which run it holds. Threads are left out, since they change no bit of a
/// result.
///
/// # Errors
/// A file that cannot be read, or does not say which run it is.
pub fn differences(job: &Job, data: &Dataset, folder: &Path) -> Result<Vec<String>> {
    differences_to(&identity(job, data)?, folder)
}

pub(super) fn differences_to(identity: &Value, folder: &Path) -> Result<Vec<String>> {
    let path = folder.join(RUN_FILE);
    let theirs: Value = match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .with_context(|| format!("{} does not say which run it is: remove it, or train afresh", path.display()))?,
        // A folder from before the file was added: its checkpoints say it.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    Ok(differences_between(&theirs, identity))
}

/// The differences between two identities. f32 is not written in a recipe, to read it is.
pub(super) fn differences_between(theirs: &Value, ours: &Value) -> Vec<String> {
    let told = |identity: &Value| {
        let mut identity = identity.clone();
        if let Some(recipe) = identity.get_mut("recipe").and_then(Value::as_object_mut) {
            recipe.entry("precision").or_insert_with(|| Precision::default().name().into());
        }
        identity
    };
    checkpoint::differences(&told(theirs), &told(ours))
}

pub(super) fn ensure_same(differences: &[String], folder: &Path) -> Result<()> {
    ensure!(
        differences.is_empty(),
        "{} holds another run, which this one cannot go on from ({}); ask for the same run, or for another folder",
        folder.display(),
        differences.join("; ")
    );
    Ok(())
}

/// The identity of a run: everything that changes its numbers. A run goes on from the checkpoint of the same run only.
pub(super) fn identity(job: &Job, data: &Dataset) -> Result<Value> {
    with_data(of_job(job)?, data)
}

/// What a job says of it.
pub(super) fn of_job(job: &Job) -> Result<Value> {
    let start = |Start { file, may_differ, selection }: &Start| -> Result<Value> {
        // The file's contents count, not its path.
        let checksum = checksum_of(file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut start = json!({"checksum": checksum, "may_differ": may_differ});
        if *selection != Selection::default() {
            let Selection { entry, prefix, ignore } = selection;
            start["selection"] = json!({"entry": entry, "prefix": prefix, "ignore": ignore});
        }
        Ok(start)
    };
    Ok(json!({
        "model": job.model.name,
        "recipe": job.recipe,
        "seed": job.seed,
        "device": format!("{:?}", job.device.location()),
        "start": job.start.as_ref().map(start).transpose()?,
    }))
}

/// With what the data says of it.
pub(super) fn with_data(mut identity: Value, data: &Dataset) -> Result<Value> {
    let checksum = |split: &Split| {
        let mut hasher = crc32fast::Hasher::new();
        for (index, label) in split.labels().iter().enumerate() {
            hasher.update(&label.to_le_bytes());
            // One that cannot be read is not among what tells data sets apart: training does without it.
            hasher.update(&split.fingerprint(index).unwrap_or_default());
        }
        format!("{} images of {:?}, checksum {:08x}", split.len(), split.shape(), hasher.finalize())
    };
    let all = identity.as_object_mut().context("a run's identity is no table")?;
    all.insert("training".into(), checksum(&data.train).into());
    if let Some(val) = &data.val {
        all.insert("validation".into(), checksum(val).into());
    }
    all.insert("test".into(), checksum(&data.test).into());
    all.insert("classes".into(), json!(data.classes));
    Ok(identity)
}

fn checksum_of(file: &Path) -> std::io::Result<String> {
    let (mut file, mut hasher, mut buffer) = (open_regular(file)?, crc32fast::Hasher::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(format!("{:08x}", hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

//! Files of one JSON object a line, appended to and synced, so that a crash costs at most the line that was being
//! written.

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use zoo_core::weights::write_whole;

/// Appends `value` as one JSON line and waits until the disk has it. Creates the file if need be.
///
/// A line that an earlier crash cut off is removed first; a complete one that only lacks its newline gets it.
pub fn append_jsonl<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut line = serde_json::to_vec(value).with_context(|| format!("cannot write {} as JSON", path.display()))?;
    line.push(b'\n');
    let append = || -> std::io::Result<()> {
        // Read as well, for the tail; `append(true)` would not let the torn line be cut off on every system.
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        mend_tail(&mut file)?;
        file.seek(SeekFrom::End(0))?;
        file.write_all(&line)?;
        file.sync_data()
    };
    append().with_context(|| format!("cannot append to {}", path.display()))
}

/// Writes `values` as a JSON-lines file in place of what stood there: aside, synced and renamed, so that whoever reads
/// it, also after a crash, meets the old file or the new one.
pub fn write_jsonl<T: Serialize>(path: &Path, values: &[T]) -> Result<()> {
    let mut lines = Vec::new();
    for value in values {
        serde_json::to_writer(&mut lines, value).with_context(|| format!("cannot write {} as JSON", path.display()))?;
        lines.push(b'\n');
    }
    replace_file(path, &lines)
}

/// Makes the file end in a newline, or be empty.
fn mend_tail(file: &mut File) -> std::io::Result<()> {
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let tail = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
    if tail == text.len() {
        Ok(())
    } else if serde_json::from_slice::<serde::de::IgnoredAny>(&text[tail..]).is_ok() {
        file.write_all(b"\n")
    } else {
        file.set_len(tail as u64)
    }
}

/// The lines of a JSON-lines file.
#[derive(Debug, Clone, PartialEq)]
pub struct Lines<T> {
    /// Its values, in the file's order.
    pub values: Vec<T>,
    /// Set when the last line was cut off, as a crash leaves it: such a line is skipped.
    pub warning: Option<String>,
}

/// Reads a JSON-lines file; empty lines are skipped. A malformed line is an error that names file and line, except a
/// cut-off last one.
pub fn read_jsonl<T: DeserializeOwned>(path: &Path) -> Result<Lines<T>> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut lines = Lines { values: Vec::new(), warning: None };
    for (index, line) in text.split_inclusive(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice(line) {
            Ok(value) => lines.values.push(value),
            Err(_) if !line.ends_with(b"\n") => {
                lines.warning = Some(format!("{}:{}: the last line is cut off; skipped", path.display(), index + 1));
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("{}:{}: malformed line; remove it to go on", path.display(), index + 1));
            }
        }
    }
    Ok(lines)
}

/// Gives the file at `path` new contents, by [`write_whole`]: whoever looks, also after a crash or where the disk is
/// full, sees the old file or the new one.
pub fn replace_file(path: &Path, contents: &[u8]) -> Result<()> {
    write_whole(path, |file| file.write_all(contents)).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{epoch, record};
    use crate::record::{EpochMetrics, METRICS_FILE, RESULTS_FILE, Status};

    #[test]
    fn lines_come_back_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(RESULTS_FILE);
        let mut failed = record("mlp", "fast", 2, 0.1);
        failed.status = Status::Failed { message: "loss is NaN in epoch 3".into() };
        let mut interrupted = record("mlp", "fast", 3, 0.1);
        (interrupted.status, interrupted.macs, interrupted.peak_rss_mb) = (Status::Interrupted, None, None);
        let records = vec![record("mlp", "fast", u64::MAX, 0.123_456_789_012_345_68), failed, interrupted];
        for record in &records {
            append_jsonl(&path, record).unwrap();
        }
        assert_eq!(read_jsonl(&path).unwrap(), Lines { values: records, warning: None });

        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert!(text.contains(r#""status":"failed","message":"loss is NaN in epoch 3""#), "{text}");
    }

    #[test]
    fn a_diverged_epoch_stays_readable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(METRICS_FILE);
        append_jsonl(&path, &EpochMetrics { train_loss: f64::NAN, test_loss: f64::INFINITY, ..epoch(1, 0.1) }).unwrap();
        append_jsonl(&path, &epoch(2, 0.2)).unwrap();
        let lines: Lines<EpochMetrics> = read_jsonl(&path).unwrap();
        assert!(lines.values[0].train_loss.is_nan() && lines.values[0].test_loss.is_nan());
        assert_eq!(lines.values[0].test_acc, 0.1);
        assert_eq!(lines.values[1], epoch(2, 0.2));
    }

    #[test]
    fn a_torn_last_line_is_skipped_and_then_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(METRICS_FILE);
        append_jsonl(&path, &epoch(1, 0.1)).unwrap();
        let whole = fs::read(&path).unwrap();
        for cut in 1..whole.len() - 1 {
            fs::write(&path, [&whole[..], &whole[..cut]].concat()).unwrap();
            let lines: Lines<EpochMetrics> = read_jsonl(&path).unwrap();
            assert_eq!(lines.values, [epoch(1, 0.1)]);
            assert!(lines.warning.unwrap().ends_with("metrics.jsonl:2: the last line is cut off; skipped"));

            append_jsonl(&path, &epoch(2, 0.2)).unwrap();
            let lines = read_jsonl(&path).unwrap();
            assert_eq!(lines, Lines { values: vec![epoch(1, 0.1), epoch(2, 0.2)], warning: None });
        }
    }

    #[test]
    fn a_line_that_only_lacks_its_newline_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(METRICS_FILE);
        fs::write(&path, serde_json::to_string(&epoch(1, 0.1)).unwrap()).unwrap();
        assert_eq!(read_jsonl(&path).unwrap(), Lines { values: vec![epoch(1, 0.1)], warning: None });
        append_jsonl(&path, &epoch(2, 0.2)).unwrap();
        assert_eq!(read_jsonl(&path).unwrap(), Lines { values: vec![epoch(1, 0.1), epoch(2, 0.2)], warning: None });
    }

    #[test]
    fn a_malformed_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(METRICS_FILE);
        append_jsonl(&path, &epoch(1, 0.1)).unwrap();
        fs::write(&path, [&fs::read(&path).unwrap()[..], b"\n{\"epoch\": 2}\n"].concat()).unwrap();
        let error = format!("{:#}", read_jsonl::<EpochMetrics>(&path).unwrap_err());
        assert!(error.contains("metrics.jsonl:3: malformed line; remove it to go on: missing field `step`"), "{error}");

        let absent = format!("{:#}", read_jsonl::<EpochMetrics>(&dir.path().join("absent.jsonl")).unwrap_err());
        assert!(absent.contains("absent.jsonl"), "{absent}");
    }
}

//! Figures for TensorBoard: its event files, to look at runs beside those of other programs.
//!
//! A file is a list of records: the length of the message as eight bytes and its checksum as four, the message and its
//! checksum, all lowest byte first. Messages are TensorFlow's `Event`, as far as scalars need it. Behind the cargo
//! feature `tensorboard`.

use anyhow::{Context, Result};
use prost::Message;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file that grows.
///
/// ```
/// use zoo_train::tensorboard::Events;
/// let folder = std::env::temp_dir().join(format!("events-{}", std::process::id()));
/// let mut events = Events::create(&folder)?;
/// events.scalar("train/loss", 100, 0.25)?;
/// assert!(events.path().starts_with(&folder));
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Debug)]
pub struct Events {
    file: File,
    path: PathBuf,
}

impl Events {
    /// Starts a file in `dir`, which is made if it is not there; `tensorboard --logdir` takes it or a folder around it.
    /// Files of before stay: TensorBoard shows all of a folder as one run.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
        let (seconds, process) = (seconds() as u64, std::process::id());
        let mut number = 0;
        let (file, path) = loop {
            // TensorBoard takes any file with `tfevents` in its name, and reads them in the order of their names.
            let path = dir.join(format!("events.out.tfevents.{seconds:010}.zoo.{process}.{number}"));
            match OpenOptions::new().append(true).create_new(true).open(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
                file => break (file.with_context(|| format!("cannot make {}", path.display()))?, path),
            }
        };
        let mut events = Self { file, path };
        events.write(0, What::FileVersion("brain.Event:2".into()))?;
        Ok(events)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a figure: the point `value` at `step` of the curve `tag`, whose part before a `/` is its group. It is in the
    /// file when this returns.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f64) -> Result<()> {
        // As TensorBoard's own writers: it keeps no more digits.
        let value = Value { tag: tag.into(), simple_value: Some(value as f32) };
        self.write(i64::try_from(step).unwrap_or(i64::MAX), What::Summary(Summary { value: vec![value] }))
    }

    fn write(&mut self, step: i64, what: What) -> Result<()> {
        let event = Event { wall_time: seconds(), step, what: Some(what) };
        // In one piece, so that a reader never finds a record without its end where there is room for it.
        self.file
            .write_all(&framed(&event.encode_to_vec()))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Seconds since 1970.
fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    // One of several kinds there, so that a 0 is written, too.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// A message as a record.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), message, &masked(message).to_le_bytes()].concat()
}

/// The checksum of a record's part: turned by 15 bits and moved, so that checksums of what holds checksums are good ones.
fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C, Castagnoli's polynomial, lowest bit first.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let (mut crc, mut bit) = (byte as u32, 0);
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc: u32, byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of a file, every checksum compared.
    fn read(mut bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            assert_eq!(number(8), masked(&bytes[..8]));
            assert_eq!(number(12 + length), masked(&bytes[12..12 + length]));
            events.push(Event::decode(&bytes[12..12 + length]).unwrap());
            bytes = &bytes[16 + length..];
        }
        events
    }

    /// The values of RFC 3720, appendix B.4.
    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&std::array::from_fn::<u8, 32, _>(|i| i as u8)), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn what_is_written_is_there_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::create(&folder.path().join("a/b")).unwrap();
        let points =
            [("train/loss", 1, 2.5), ("test/acc", 1, 0.0), ("train/loss", 2, f64::NAN), ("lr", u64::MAX, 1e-9)];
        for (written, (tag, step, value)) in points.into_iter().enumerate() {
            events.scalar(tag, step, value).unwrap();
            let found = read(&fs::read(events.path()).unwrap());
            assert_eq!((found.len(), &found[0].what), (written + 2, &Some(What::FileVersion("brain.Event:2".into()))));
            let last = found.last().unwrap();
            let Some(What::Summary(summary)) = &last.what else { panic!("{last:?}") };
            let [Value { tag: found, simple_value }] = &summary.value[..] else { panic!("{summary:?}") };
            assert_eq!((found.as_str(), simple_value.unwrap().to_bits()), (tag, (value as f32).to_bits()));
            assert!(last.step == step.min(i64::MAX as u64) as i64 && last.wall_time > 1.7e9);
        }
        // A second one in the same folder, within the same second.
        let other = Events::create(&folder.path().join("a/b")).unwrap();
        assert_ne!(other.path(), events.path());
        assert_eq!(read(&fs::read(events.path()).unwrap()).len(), 5);
        fs::write(folder.path().join("file"), "").unwrap();
        let error = Events::create(&folder.path().join("file")).unwrap_err().to_string();
        assert!(error.starts_with("cannot make the folder ") && error.ends_with("file"), "{error}");
    }
}

//! Weights in and out: the world's checkpoint files, read without trust; safetensors, written safely.
//!
//! [`Weights::open`] reads `.safetensors` and both formats of `torch.save` (`.pth`, `.pt`, `.th`), told apart by what is
//! in the file. The file is mapped into memory, its description is checked in full, and a tensor's bytes are touched when
//! the tensor is asked for. [`load`] puts the tensors into a [`VarStore`](crate::VarStore), [`check`] says what would
//! happen, [`save_safetensors`] writes a store.
//!
//! A file is a claim, not a fact. Whatever it says, opening it returns an error that names file, offset and reason, or a
//! listing that holds: no code of a pickle runs, nothing recurses along the file's nesting, and memory stays within a
//! fixed multiple of the file's size.

mod bytes;
mod entry;
mod file;
mod load;
mod pickle;
mod safetensors;
mod torch;
mod zip;

pub use file::open_regular;
pub use load::{
    KeyMap, KeyReport, LoadOptions, LoadReport, MisShaped, Rename, Source, check, load, save_safetensors, translate,
};
pub use safetensors::save_tensors;

use bytes::{Parsed, fail, shown};
use candle_core::{DType, Device, Error, Result, Shape, Tensor, bail};
use entry::Entry;
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::path::Path;

/// The tensors of a checkpoint file, by key, in the order of their keys.
///
/// ```no_run
/// use candle_core::Device;
/// use zoo_core::weights::Weights;
/// let weights = Weights::open("resnet20.th")?;
/// for key in weights.keys() {
///     println!("{key}: {:?} {:?}", weights.shape(key), weights.dtype(key));
/// }
/// let stem = weights.tensor("conv1.weight", &Device::Cpu)?;
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Weights {
    name: String,
    bytes: Bytes,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// What training in parallel or compiling a module puts before every key.
const WRAPPER_PREFIXES: [&str; 2] = ["module.", "_orig_mod."];

impl Weights {
    /// Opens a checkpoint: safetensors, or a state dict that `torch.save` wrote, in its zip format or the older one.
    ///
    /// A state dict may lie under `state_dict`, `model_state_dict`, `model` or `net`; what lies beside it is ignored. A
    /// leading `module.` (or `_orig_mod.`) that all keys share is dropped.
    ///
    /// # Errors
    /// A file that cannot be read, is of another kind, or does not hold what it says; the message names file and offset.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let named = |e: std::io::Error| complaint(format!("{name}: {e}"));
        let file = open_regular(path).map_err(named)?;
        // SAFETY: the map is read-only and lives as long as the slices into it. A file that another process changes in
        // place meanwhile would change under it: as with every mapped file, the user must not do that. `save_tensors`
        // never does, it replaces files.
        let map = unsafe { Mmap::map(&file) }.map_err(named)?;
        Self::from(name, Bytes::Mapped(map))
    }

    /// Reads a checkpoint that is in memory already; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub fn from_bytes(name: impl Into<String>, bytes: Vec<u8>) -> Result<Self> {
        Self::from(name.into(), Bytes::Owned(bytes))
    }

    fn from(name: String, bytes: Bytes) -> Result<Self> {
        match read(&bytes) {
            Ok((entries, metadata)) => Ok(Self { name, bytes, entries: without_wrapper(entries), metadata }),
            Err(fault) => Err(complaint(format!("{name}: {} (at byte {})", fault.what, fault.at))),
        }
    }

    /// The file's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no tensor at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A tensor's shape, without reading the tensor.
    pub fn shape(&self, key: &str) -> Option<&Shape> {
        self.entries.get(key).map(|entry| &entry.shape)
    }

    /// The type that [`Weights::tensor`] returns, without reading the tensor: the file's own, except that booleans come
    /// as `u8`, `i8` as `i16` and `u16` as `u32`, since Candle lacks them.
    pub fn dtype(&self, key: &str) -> Option<DType> {
        self.entries.get(key).map(|entry| entry.element.dtype())
    }

    /// What a safetensors file says about itself; empty for the other formats.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// A key that the file does not hold, and what the device refuses.
    pub fn tensor(&self, key: &str, device: &Device) -> Result<Tensor> {
        match self.entries.get(key) {
            Some(entry) => entry.read(&self.bytes, device),
            None => bail!("{}: no tensor called `{key}` among its {}", self.name, self.len()),
        }
    }
}

/// An error without a backtrace: it is the file that is wrong, and no line of this program.
fn complaint(what: String) -> Error {
    Error::Msg(what)
}

/// Tells the formats apart by their first bytes: extensions are too often wrong.
fn read(file: &[u8]) -> Parsed<safetensors::Contents> {
    match file {
        [] => fail(0, "the file is empty"),
        [b'P', b'K', 3 | 5, ..] => Ok((torch::read_zip(file)?, BTreeMap::new())),
        // Behind a length of eight bytes begins a JSON object. The old pickles have a fixed byte there, and not this one.
        [_, _, _, _, _, _, _, _, b'{', ..] => safetensors::read(file),
        [0x80, 0..=5, ..] => Ok((torch::read_legacy(file)?, BTreeMap::new())),
        _ if file.get(257..262) == Some(b"ustar") => {
            fail(0, "a tar archive, as PyTorch wrote before 0.2: load it there and save it again")
        }
        _ => {
            let first = shown(&file[..file.len().min(16)]);
            fail(0, format!("neither safetensors nor a checkpoint of torch.save's; it begins with `{first}`"))
        }
    }
}

fn without_wrapper(mut entries: BTreeMap<String, Entry>) -> BTreeMap<String, Entry> {
    // Only a prefix of all keys is a wrapper; a network may well have one part that is called `module`.
    while let Some(prefix) = WRAPPER_PREFIXES.iter().find(|prefix| is_wrapper(&entries, prefix)) {
        entries = entries.into_iter().map(|(key, entry)| (key[prefix.len()..].to_string(), entry)).collect();
    }
    entries
}

fn is_wrapper(entries: &BTreeMap<String, Entry>, prefix: &str) -> bool {
    !entries.is_empty() && entries.keys().all(|key| key.len() > prefix.len() && key.starts_with(prefix))
}

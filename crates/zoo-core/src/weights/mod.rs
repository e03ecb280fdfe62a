//! Weights in and out: the world's checkpoint files, read without trust; safetensors, written safely.
//!
//! [`Weights::open`] reads `.safetensors` and both formats of `torch.save` (`.pth`, `.pt`, `.th`), told apart by what
//! is in the file. The file is mapped into memory, its description is checked in full, and a tensor's bytes are touched
//! when the tensor is asked for. [`load`] puts the tensors into a [`VarStore`](crate::VarStore), [`check`] says what
//! would happen, [`save_safetensors`] writes a store. A [`Layout`] is another project's way to call a network's
//! tensors, with the image that its files want; a [`Selection`] is what a user wants of a file that holds more than a
//! network.
//!
//! A file is a claim, not a fact. Whatever it says, opening it returns an error that names file, offset and reason, or
//! a listing that holds: no code of a pickle runs, nothing recurses along the file's nesting, and memory stays within a
//! fixed multiple of the file's size.

/// Ends a function with a [`complaint`]: candle's own `bail!` would add a backtrace.
macro_rules! bail {
    ($($what:tt)*) => { return Err($crate::weights::complaint(format!($($what)*))) };
}

mod adapt;
mod bytes;
mod candle;
mod entry;
mod file;
mod layout;
mod load;
mod pickle;
mod report;
mod safetensors;
mod sharded;
mod torch;
mod zip;

pub use bytes::shown;
pub use candle::{from_candle, to_candle};
pub use file::{open_regular, write_whole};
pub use layout::{KeyMap, Layout, Rename, Source};
pub use load::{LoadOptions, Selection, check, ensure_fit, load, save_safetensors, translate};
pub use report::{KeyReport, LoadReport, MisShaped};
pub use safetensors::save_tensors;

use bytes::{Fault, Parsed, fail};
use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use entry::Entry;
use memmap2::Mmap;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

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
#[derive(Debug, Clone)]
pub struct Weights {
    name: String,
    /// Of each of its parts: one, unless an index names several.
    bytes: Arc<Vec<Bytes>>,
    contents: Contents,
    /// What all keys had before them.
    wrapper: String,
}

/// What a file turned out to hold.
#[derive(Debug, Clone, Default)]
struct Contents {
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
    /// The entry of a training state that holds the tensors.
    entry: Option<String>,
    /// Entries that hold tensors too.
    other_entries: Vec<String>,
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

/// What training in parallel puts before every key.
const WRAPPER: &str = "module.";
/// More of them than anybody nests.
const MOST_WRAPPERS: usize = 8;
/// What compiling, checkpointing or sharding a module puts into keys, between any two parts. No network has such names.
const WRAPPER_PARTS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

impl Weights {
    /// Opens a checkpoint: safetensors, also in several files by their index (`model.safetensors.index.json`), or a state
    /// dict that `torch.save` wrote, in its zip format or the older one.
    ///
    /// A state dict may lie in an entry: `state_dict`, `model_state_dict`, `model`, `net`, or the only one that holds
    /// tensors; what lies beside it is ignored. A leading `module.` that all keys share is dropped, and `_orig_mod.`
    /// anywhere.
    ///
    /// # Errors
    /// A file that cannot be read, is of another kind, or does not hold what it says; the message names file and
    /// offset.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_entry(path, None)
    }

    /// [`Weights::open`] for a training state that holds several networks: the tensors in its entry of this name, such
    /// as `state_dict_ema`. A name with dots goes down: `checkpoint.teacher`.
    ///
    /// # Errors
    /// As [`Weights::open`]; no such entry, and which there are.
    pub fn open_entry(path: impl AsRef<Path>, entry: Option<&str>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let named = |e: std::io::Error| complaint(format!("{name}: {e}"));
        let file = open_regular(path).map_err(named)?;
        if sharded::is_index(path) {
            return sharded::open(path, file, entry).map(Self::unwrapped);
        }
        Self::mapped(name, &file, entry).map(Self::unwrapped)
    }

    fn mapped(name: String, file: &File, entry: Option<&str>) -> Result<Self> {
        // SAFETY: the map is read-only and lives as long as the slices into it. A file that another process changes in
        // place meanwhile would change under it: as with every mapped file, the user must not do that. `save_tensors`
        // never does, it replaces files.
        let map = unsafe { Mmap::map(file) }.map_err(|e| complaint(format!("{name}: {e}")))?;
        Self::from(name, Bytes::Mapped(map), entry)
    }

    /// Reads a checkpoint that is in memory already; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub fn from_bytes(name: impl Into<String>, bytes: Vec<u8>) -> Result<Self> {
        Self::from(name.into(), Bytes::Owned(bytes), None).map(Self::unwrapped)
    }

    fn from(name: String, bytes: Bytes, entry: Option<&str>) -> Result<Self> {
        match read(&bytes, entry) {
            Ok(contents) => Ok(Self { name, bytes: vec![bytes].into(), contents, wrapper: String::new() }),
            Err(Fault { at, what }) => bail!("{name}: {what} (at byte {at})"),
        }
    }

    /// The file's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.contents.entries.keys().map(String::as_str)
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.contents.entries.len()
    }

    /// Whether there is no tensor at all.
    pub fn is_empty(&self) -> bool {
        self.contents.entries.is_empty()
    }

    /// A tensor's shape, without reading the tensor.
    pub fn shape(&self, key: &str) -> Option<&Shape> {
        self.contents.entries.get(key).map(|entry| &entry.shape)
    }

    /// The type that [`Weights::tensor`] returns, without reading the tensor: the file's own, except that booleans come
    /// as `u8`, `i8` as `i16` and `u16` as `u32`, since Candle lacks them.
    pub fn dtype(&self, key: &str) -> Option<DType> {
        self.contents.entries.get(key).map(|entry| entry.element.dtype())
    }

    /// Bytes that all tensors take once they are read.
    pub fn size_in_memory(&self) -> u64 {
        self.contents.entries.values().fold(0, |sum: u64, entry| sum.saturating_add(entry.size_in_memory() as u64))
    }

    /// What a safetensors file says about itself; empty for the other formats.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.contents.metadata
    }

    /// The entry of a training state that the tensors were taken from, if it is one.
    pub fn entry(&self) -> Option<&str> {
        self.contents.entry.as_deref()
    }

    /// The entries of a training state that hold tensors and were not taken, such as averaged weights:
    /// [`Weights::open_entry`] takes one.
    pub fn other_entries(&self) -> &[String] {
        &self.contents.other_entries
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// A key that the file does not hold, and what the device refuses.
    pub fn tensor(&self, key: &str, device: &Device) -> Result<Tensor> {
        match self.contents.entries.get(key) {
            Some(entry) => entry.read(&self.bytes[entry.part], device),
            None => bail!("{}: no tensor called `{}` among its {}", self.name, shown(key), self.len()),
        }
    }

    /// What all keys had before them and was dropped.
    fn wrapper(&self) -> &str {
        &self.wrapper
    }

    /// Without what wrappers put into the keys.
    fn unwrapped(mut self) -> Self {
        for part in WRAPPER_PARTS {
            self = self.without_part(part, 0);
        }
        // Only a prefix of all keys is a wrapper; a network may well have one part that is called `module`.
        for _ in 0..MOST_WRAPPERS {
            if self.is_empty() || !self.keys().all(|key| key.len() > WRAPPER.len() && key.starts_with(WRAPPER)) {
                break;
            }
            self.contents.entries = self.behind(WRAPPER).contents.entries;
            self.wrapper += WRAPPER;
        }
        self
    }

    /// With every part of this name dropped from the keys, but for their first `kept` parts, unless two keys would
    /// become the same.
    fn without_part(self, part: &str, kept: usize) -> Self {
        let stays = |&(i, other): &(usize, &str)| i < kept || other != part;
        let shortened = |key: &str| {
            let parts = key.split('.').enumerate().filter(stays).map(|(_, part)| part);
            parts.collect::<Vec<_>>().join(".")
        };
        if self.keys().all(|key| key.split('.').enumerate().all(|other| stays(&other))) {
            return self;
        }
        let entries: BTreeMap<String, Entry> =
            self.contents.entries.iter().map(|(key, entry)| (shortened(key), entry.clone())).collect();
        if entries.len() < self.len() || entries.contains_key("") {
            return self;
        }
        Self { contents: Contents { entries, ..self.contents }, ..self }
    }

    /// The part whose keys begin with `prefix`, without it, and without what the file says of itself.
    fn behind(&self, prefix: &str) -> Self {
        let all = self.contents.entries.range(prefix.to_string()..);
        let behind = all.map_while(|(key, entry)| Some((key.strip_prefix(prefix)?.to_string(), entry.clone())));
        let contents = Contents { entries: behind.collect(), ..Contents::default() };
        Self { name: self.name.clone(), bytes: self.bytes.clone(), contents, wrapper: String::new() }
    }

    /// What a user called the prefix, as the keys have it: with the dot at its end, and without what was dropped
    /// already.
    fn as_prefix(&self, named: &str) -> Result<String> {
        let named = named.trim_end_matches('.');
        let parts = named.split('.').filter(|part| !WRAPPER_PARTS.contains(part) && !part.is_empty());
        let prefix: String = parts.flat_map(|part| [part, "."]).collect();
        for prefix in [prefix.as_str(), prefix.strip_prefix(&self.wrapper).unwrap_or(&prefix)] {
            if self.keys().any(|key| key.starts_with(prefix)) {
                return Ok(prefix.to_string());
            }
        }
        let firsts: BTreeSet<&str> = self.keys().filter_map(|key| key.split('.').next()).collect();
        let firsts: Vec<String> = firsts.into_iter().take(6).map(|first| format!("`{}`", shown(first))).collect();
        bail!("{}: no key begins with `{}`; they begin with {}", self.name, shown(prefix), firsts.join(", "))
    }

    /// Every prefix, up to a dot, that at least `least` keys have; the shorter ones first.
    fn prefixes(&self, least: usize) -> Vec<String> {
        /// Deeper than any file keeps its network. A limit, because every dot of a key makes a prefix.
        const DEEPEST: usize = 8;
        let at_depth = |depth: usize| {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            let dots = self.keys().filter_map(|key| Some(&key[..=key.match_indices('.').nth(depth)?.0]));
            dots.for_each(|prefix| *counts.entry(prefix).or_default() += 1);
            counts.into_iter().filter(|&(_, count)| count >= least.max(1)).map(|(prefix, _)| prefix.to_string())
        };
        (0..DEEPEST).flat_map(at_depth).collect()
    }
}

/// An error without a backtrace: it is the file that is wrong, and no line of this program.
fn complaint(what: String) -> Error {
    Error::Msg(what)
}

/// Tells the formats apart by their first bytes: extensions are too often wrong.
fn read(file: &[u8], entry: Option<&str>) -> Parsed<Contents> {
    match file {
        [] => fail(0, "the file is empty"),
        [b'P', b'K', 3 | 5, ..] => torch::read_zip(file, entry),
        // Behind a length of eight bytes begins a JSON object. The old pickles have a fixed byte there, and not this
        // one.
        [_, _, _, _, _, _, _, _, b'{', ..] => match entry {
            None => safetensors::read(file),
            Some(entry) => fail(0, format!("a safetensors file has no entries, such as `{}`", shown(entry))),
        },
        [0x80, 0..=5, ..] => torch::read_legacy(file, entry),
        _ => fail(0, foreign(file)),
    }
}

/// What else a file is that people take for weights, and what to do.
fn foreign(file: &[u8]) -> String {
    const KINDS: [(&[u8], &str); 9] = [
        (
            b"version https://git-lfs.github.com/spec/",
            "a Git LFS pointer, which stands for the file itself: fetch that with `git lfs pull`, or download it anew",
        ),
        (b"<", "a web page or another text in angle brackets: the download went wrong, get the file itself"),
        (b"\x89HDF", "an HDF5 file, as Keras writes: load it there and save the tensors as safetensors"),
        (b"\x93NUMPY", "an array of NumPy's: save the tensors by their keys as safetensors"),
        (b"GGUF", "a GGUF file, which holds quantized weights of a language model"),
        (b"\x1F\x8B", "a gzip archive: unpack it first"),
        (b"7z\xBC\xAF", "a 7z archive: unpack it first"),
        (b"\x89PNG", "a picture (PNG), no weights"),
        (b"\xFF\xD8\xFF", "a picture (JPEG), no weights"),
    ];
    if let Some((_, what)) = KINDS.iter().find(|(first, _)| file.starts_with(first)) {
        return (*what).to_string();
    }
    if file.get(257..262) == Some(b"ustar") {
        return "a tar archive, as PyTorch wrote before 0.2: load it there and save it again".to_string();
    }
    if file.first() == Some(&b'{') {
        return safetensors::json(file);
    }
    let first = shown(&file[..file.len().min(16)]);
    format!("neither safetensors nor a checkpoint of torch.save's; it begins with `{first}`")
}

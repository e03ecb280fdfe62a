//! From a file's keys to a network's: what fits, what does not, and loading.

use super::{Weights, complaint, save_tensors};
use crate::vars::VarStore;
use candle_core::{Device, Result, Shape, Tensor, Var, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

/// One rule that turns a file's key into the network's, with the reason why the two differ.
///
/// Patterns are matched against the whole key, part by part between the dots. A `*` stands for one or more characters of
/// a part, a final `**` for all parts that remain; what they matched goes where the same sign stands in `to`. The first
/// rule of a list that matches a key is the one that is applied.
///
/// ```
/// use zoo_core::weights::Rename;
/// const RENAMES: &[Rename] = &[
///     Rename { from: "fc.*", to: "linear.*", reason: "some CIFAR code calls the head as ImageNet code does" },
///     Rename {
///         from: "features.*.*.norm.*.*",
///         to: "features.*.*.norm*.*",
///         reason: "DenseNet checkpoints of before torchvision 0.2 put a dot there",
///     },
/// ];
/// assert_eq!(RENAMES[0].apply("fc.weight").as_deref(), Some("linear.weight"));
/// let old = "features.denseblock1.denselayer2.norm.1.bias";
/// assert_eq!(RENAMES[1].apply(old).as_deref(), Some("features.denseblock1.denselayer2.norm1.bias"));
/// assert_eq!(RENAMES[0].apply("fc1.weight"), None);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Rename {
    /// Pattern of the file's key.
    pub from: &'static str,
    /// Pattern of the network's key, with as many stars; empty for a tensor that the network leaves out.
    pub to: &'static str,
    /// Why the two differ.
    pub reason: &'static str,
}

impl Rename {
    /// The network's key, if the rule matches `key`.
    pub fn apply(&self, key: &str) -> Option<String> {
        let mut captures = captures(self.from, key)?.into_iter();
        let mut renamed = String::with_capacity(key.len());
        let mut rest = self.to;
        while let Some(star) = rest.find('*') {
            renamed.push_str(&rest[..star]);
            renamed.push_str(captures.next().unwrap_or_default());
            rest = rest[star..].trim_start_matches('*');
        }
        renamed.push_str(rest);
        Some(renamed)
    }

    fn is_balanced(&self) -> bool {
        let stars = |pattern: &str| pattern.replace("**", "*").matches('*').count();
        self.to.is_empty() || stars(self.from) == stars(self.to)
    }
}

/// What the stars of `pattern` stand for in `key`, if it matches.
fn captures<'k>(pattern: &str, key: &'k str) -> Option<Vec<&'k str>> {
    let mut captures = Vec::new();
    let mut rest = Some(key);
    for part in pattern.split('.') {
        let key = rest?;
        if part == "**" {
            captures.push(key);
            return Some(captures);
        }
        let (head, tail) = match key.split_once('.') {
            Some((head, tail)) => (head, Some(tail)),
            None => (key, None),
        };
        match part.split_once('*') {
            Some((before, after)) => {
                captures.push(head.strip_prefix(before)?.strip_suffix(after).filter(|middle| !middle.is_empty())?)
            }
            None if part == head => {}
            None => return None,
        }
        rest = tail;
    }
    rest.is_none().then_some(captures)
}

/// How a tensor of the network comes from tensors of a file, where names alone do not tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The file's tensor of this key.
    Key(String),
    /// Several of the file's tensors, one behind the other: three projections that the network keeps as one.
    Concat {
        /// The file's keys, in order.
        keys: Vec<String>,
        /// The axis along which they follow each other.
        dim: usize,
    },
    /// A part of one of the file's tensors: one projection of three that the file keeps as one.
    Narrow {
        /// The file's key.
        key: String,
        /// The axis that is cut.
        dim: usize,
        /// Where the part begins on that axis.
        start: usize,
        /// How long it is there.
        len: usize,
    },
}

impl Source {
    fn keys(&self) -> &[String] {
        match self {
            Self::Key(key) | Self::Narrow { key, .. } => std::slice::from_ref(key),
            Self::Concat { keys, .. } => keys,
        }
    }

    fn shape(&self, weights: &Weights) -> Result<Shape> {
        let shape_of = |key: &String| match weights.shape(key) {
            Some(shape) => Ok(shape.clone()),
            None => bail!("{}: the key map asks for `{key}`, which the file does not hold", weights.name()),
        };
        let (dim, len) = match self {
            Self::Key(key) => return shape_of(key),
            Self::Concat { keys, dim } => {
                let shapes: Vec<_> = keys.iter().map(shape_of).collect::<Result<_>>()?;
                (*dim, shapes.iter().map(|shape| shape.dims().get(*dim).copied().unwrap_or(0)).sum())
            }
            Self::Narrow { dim, len, .. } => (*dim, *len),
        };
        let Some(first) = self.keys().first() else { bail!("the key map makes a tensor of nothing") };
        let mut dims = shape_of(first)?.into_dims();
        match dims.get_mut(dim) {
            Some(axis) => *axis = len,
            None => bail!("{}: the key map works on axis {dim} of `{first}`, which has {}", weights.name(), dims.len()),
        }
        Ok(dims.into())
    }

    fn read(&self, weights: &Weights) -> Result<Tensor> {
        match self {
            Self::Key(key) => weights.tensor(key, &Device::Cpu),
            Self::Concat { keys, dim } => {
                let parts: Vec<_> = keys.iter().map(|key| weights.tensor(key, &Device::Cpu)).collect::<Result<_>>()?;
                Tensor::cat(&parts, *dim)
            }
            Self::Narrow { key, dim, start, len } => {
                weights.tensor(key, &Device::Cpu)?.narrow(*dim, *start, *len)?.contiguous()
            }
        }
    }
}

/// A model's own translation of a layout that renames cannot express: it looks at a file's keys and shapes and says,
/// for each tensor of the network, where it comes from. A file's tensor that nothing comes from counts as unexpected.
pub type KeyMap = fn(&Weights) -> Result<Vec<(String, Source)>>;

/// How to load; the default is: every tensor of the network from the tensor of the same key, nothing missing, nothing over.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions<'a> {
    /// The model's list of renames, applied to what `key_map` returns, or to the file's keys where there is none.
    pub renames: &'a [Rename],
    /// The model's translation of a foreign layout.
    pub key_map: Option<KeyMap>,
    /// The parts that need not fit, as key prefixes: `["fc"]` for a new head, `["conv1"]` for another number of input
    /// channels. A part with a missing or mis-shaped tensor stays at its initial values as a whole (a fresh weight with
    /// an old bias would be neither), and whatever the file holds under it beyond the network is passed over. Parts that
    /// fit are loaded.
    pub may_differ: &'a [&'a str],
}

impl LoadOptions<'_> {
    fn part_of(&self, key: &str) -> Option<&str> {
        self.may_differ.iter().copied().find(|part| match key.strip_prefix(part) {
            Some(rest) => rest.is_empty() || rest.starts_with('.'),
            None => false,
        })
    }
}

/// A tensor whose shape in the file is not the network's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MisShaped {
    /// The network's key.
    pub key: String,
    /// The shape in the file.
    pub file: Shape,
    /// The shape in the network.
    pub network: Shape,
}

/// How a file's keys stand to a network's; every list is sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyReport {
    /// In both, with one shape.
    pub matching: Vec<String>,
    /// In the network only, with the shape it has there.
    pub missing: Vec<(String, Shape)>,
    /// In the file only, with the shape it has there; by the name that the network would know it under.
    pub unexpected: Vec<(String, Shape)>,
    /// In both, with two shapes.
    pub mis_shaped: Vec<MisShaped>,
    /// In the file only, and left out by a rename that says so; no mismatch.
    pub left_out: Vec<String>,
}

impl KeyReport {
    /// Whether all keys match, but for those that are left out knowingly.
    pub fn is_exact(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mis_shaped.is_empty()
    }
}

/// The counts, then the first keys of each list.
impl fmt::Display for KeyReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { matching, missing, unexpected, mis_shaped, left_out } = self;
        write!(f, "{} matching, {} missing, ", matching.len(), missing.len())?;
        write!(f, "{} unexpected, {} mis-shaped", unexpected.len(), mis_shaped.len())?;
        let with_shape = |(key, shape): &(String, Shape)| format!("{key} {shape:?}");
        write_list(f, "missing (in the network only)", missing, with_shape)?;
        write_list(f, "unexpected (in the file only)", unexpected, with_shape)?;
        write_list(f, "mis-shaped", mis_shaped, |m| {
            format!("{}: {:?} in the file, {:?} in the network", m.key, m.file, m.network)
        })?;
        write_list(f, "left out (the network does without)", left_out, String::clone)
    }
}

fn write_list<T>(f: &mut fmt::Formatter, title: &str, list: &[T], line: impl Fn(&T) -> String) -> fmt::Result {
    /// A whole network may be missing; the first keys show which.
    const SHOWN: usize = 12;
    if list.is_empty() {
        return Ok(());
    }
    write!(f, "\n{title}:")?;
    for item in list.iter().take(SHOWN) {
        write!(f, "\n  {}", line(item))?;
    }
    if list.len() > SHOWN {
        write!(f, "\n  … and {} more", list.len() - SHOWN)?;
    }
    Ok(())
}

/// What [`load`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// The network's keys that got the file's values.
    pub loaded: Vec<String>,
    /// The network's keys that kept their initial values.
    pub initial: Vec<String>,
    /// The file's tensors that were passed over, by the name that the network would know them under.
    pub passed_over: Vec<String>,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} tensors loaded", self.loaded.len())?;
        write_list(f, "left at their initial values", &self.initial, String::clone)?;
        write_list(f, "passed over in the file", &self.passed_over, String::clone)
    }
}

/// For each tensor that the file offers: the network's key, where it comes from, its shape.
#[derive(Default)]
struct Offers {
    by_key: BTreeMap<String, (Source, Shape)>,
    left_out: Vec<String>,
}

fn offers(store: &VarStore, weights: &Weights, options: &LoadOptions) -> Result<Offers> {
    if let Some(rule) = options.renames.iter().find(|rule| !rule.is_balanced()) {
        bail!("the rename `{}` to `{}` has different numbers of stars on its sides", rule.from, rule.to)
    }
    let mut sources: Vec<(String, Source)> = match options.key_map {
        Some(map) => map(weights)?,
        None => weights.keys().map(|key| (key.to_string(), Source::Key(key.to_string()))).collect(),
    };
    let used: BTreeSet<&str> = sources.iter().flat_map(|(_, source)| source.keys()).map(String::as_str).collect();
    let unused: Vec<_> = weights.keys().filter(|&key| !used.contains(key)).map(str::to_string).collect();
    sources.extend(unused.into_iter().map(|key| (key.clone(), Source::Key(key))));

    let mut offers = Offers::default();
    for (key, source) in sources {
        let key = match options.renames.iter().find_map(|rule| rule.apply(&key)) {
            Some(renamed) if renamed.is_empty() => {
                offers.left_out.push(key);
                continue;
            }
            Some(renamed) => renamed,
            None => key,
        };
        // PyTorch's BatchNorm counts batches for a mode that nobody uses; the count is no weight.
        if key.rsplit('.').next() == Some("num_batches_tracked") && store.get(&key).is_none() {
            continue;
        }
        let shape = source.shape(weights)?;
        if let Some((first, _)) = offers.by_key.insert(key.clone(), (source.clone(), shape)) {
            let (first, second) = (first.keys().join("`, `"), source.keys().join("`, `"));
            let what = format!("both `{first}` and `{second}` would be the network's `{key}`");
            return Err(complaint(format!("{}: {what}", weights.name())));
        }
    }
    Ok(offers)
}

fn compare(store: &VarStore, offers: &Offers) -> KeyReport {
    let mut report = KeyReport { left_out: offers.left_out.clone(), ..Default::default() };
    let offers = &offers.by_key;
    let network: BTreeMap<_, _> = store.slots().into_iter().map(|slot| (slot.key, slot.shape)).collect();
    for (key, (_, shape)) in offers.iter().filter(|(key, _)| !network.contains_key(*key)) {
        report.unexpected.push((key.clone(), shape.clone()));
    }
    for (key, shape) in network {
        match offers.get(&key) {
            Some((_, file)) if *file == shape => report.matching.push(key),
            Some((_, file)) => report.mis_shaped.push(MisShaped { key, file: file.clone(), network: shape }),
            None => report.missing.push((key, shape)),
        }
    }
    report
}

/// Says how a file's keys stand to a network's, without reading a tensor; the store may be one of shapes only.
///
/// ```
/// use candle_core::{DType, Device};
/// use zoo_core::weights::{self, LoadOptions, Weights};
/// use zoo_core::{Init, VarStore};
/// let saved = VarStore::new(0, DType::F32, &Device::Cpu);
/// saved.root().pp("fc").param((10, 64), "weight", Init::ZEROS)?;
/// let path = std::env::temp_dir().join(format!("zoo-check-{}.safetensors", std::process::id()));
/// weights::save_safetensors(&saved, &path, &Default::default())?;
///
/// let network = VarStore::shapes_only();
/// network.root().pp("fc").param((100, 64), "weight", Init::ZEROS)?;
/// let report = weights::check(&network, &Weights::open(&path)?, &LoadOptions::default())?;
/// assert_eq!(report.mis_shaped[0].key, "fc.weight");
/// # std::fs::remove_file(path).ok();
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// A key map that fails, and two tensors of the file that would be one of the network's.
pub fn check(store: &VarStore, weights: &Weights, options: &LoadOptions) -> Result<KeyReport> {
    Ok(compare(store, &offers(store, weights, options)?))
}

/// Fills a network from a file, converted to the store's element type and device.
///
/// All or nothing: if anything does not fit, beyond the parts that [`LoadOptions::may_differ`] names, nothing in the store
/// changes and the error lists every missing, unexpected and mis-shaped key. So the tensors are held twice for a moment.
///
/// ```no_run
/// # use candle_core::{DType, Device};
/// # use zoo_core::{Init, VarStore};
/// use zoo_core::weights::{self, LoadOptions, Weights};
/// # let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// // Fine-tuning: everything from the file but the head, if that has another number of classes.
/// let options = LoadOptions { may_differ: &["fc"], ..Default::default() };
/// println!("{}", weights::load(&store, &Weights::open("resnet18.pth")?, &options)?);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Keys or shapes that do not fit, a store of shapes only, and what the device refuses.
pub fn load(store: &VarStore, weights: &Weights, options: &LoadOptions) -> Result<LoadReport> {
    let offers = offers(store, weights, options)?;
    let mut report = compare(store, &offers);
    let differing: BTreeSet<String> = (report.missing.iter().map(|(key, _)| key))
        .chain(report.mis_shaped.iter().map(|m| &m.key))
        .filter_map(|key| options.part_of(key))
        .map(str::to_string)
        .collect();
    let allowed = |key: &str| options.part_of(key).is_some();
    let mut passed_over: Vec<String> =
        report.unexpected.extract_if(.., |(key, _)| allowed(key)).map(|(key, _)| key).collect();
    passed_over.extend(std::mem::take(&mut report.left_out));
    report.missing.retain(|(key, _)| !allowed(key));
    report.mis_shaped.retain(|m| !allowed(&m.key));
    if !report.is_exact() {
        return Err(complaint(format!("{} does not fit the network: {report}", weights.name())));
    }

    let mut done = LoadReport { passed_over, ..Default::default() };
    let mut values: Vec<(Var, Tensor)> = Vec::new();
    for slot in store.slots() {
        let Some(var) = slot.var else { bail!("a store of shapes only has nothing to load `{}` into", slot.key) };
        if options.part_of(&slot.key).is_some_and(|part| differing.contains(part)) {
            if offers.by_key.contains_key(&slot.key) {
                done.passed_over.push(slot.key.clone());
            }
            done.initial.push(slot.key);
        } else if let Some((source, _)) = offers.by_key.get(&slot.key) {
            values.push((var, source.read(weights)?.to_dtype(store.dtype())?.to_device(store.device())?));
            done.loaded.push(slot.key);
        }
    }
    // Shapes, types and devices agree by now: from here on nothing can fail half-way.
    values.iter().try_for_each(|(var, value)| var.set(value))?;
    done.loaded.sort_unstable();
    done.initial.sort_unstable();
    done.passed_over.sort_unstable();
    Ok(done)
}

/// The tensors of a file under the network's keys, in the network's order and in the file's own element types: what a file
/// converted to this network's layout holds.
///
/// # Errors
/// Keys or shapes that do not fit, beyond the parts that [`LoadOptions::may_differ`] names.
pub fn translate(store: &VarStore, weights: &Weights, options: &LoadOptions) -> Result<Vec<(String, Tensor)>> {
    let offers = offers(store, weights, options)?;
    let mut report = compare(store, &offers);
    report.missing.retain(|(key, _)| options.part_of(key).is_none());
    report.unexpected.retain(|(key, _)| options.part_of(key).is_none());
    report.mis_shaped.retain(|m| options.part_of(&m.key).is_none());
    if !report.is_exact() {
        return Err(complaint(format!("{} does not fit the network: {report}", weights.name())));
    }
    let slots = store.slots().into_iter().filter_map(|slot| Some((slot.key.clone(), offers.by_key.get(&slot.key)?)));
    slots.map(|(key, (source, _))| Ok((key, source.read(weights)?))).collect()
}

/// Writes every tensor of a store, parameters and buffers, as a safetensors file; see [`save_tensors`] for how.
///
/// # Errors
/// A store of shapes only, and what the file system refuses.
pub fn save_safetensors(store: &VarStore, path: impl AsRef<Path>, metadata: &BTreeMap<String, String>) -> Result<()> {
    let slots = store.slots();
    let tensors = slots.iter().map(|slot| match &slot.var {
        Some(var) => Ok((slot.key.as_str(), var.as_tensor())),
        None => bail!("a store of shapes only has no values to save, such as `{}`'s", slot.key),
    });
    save_tensors(tensors.collect::<Result<Vec<_>>>()?, path, metadata)
}

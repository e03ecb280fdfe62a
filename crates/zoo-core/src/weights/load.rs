//! From a file's keys to a network's: what fits, what does not, and loading.

use super::adapt::{Adaptation, adaptation};
use super::layout::{Layout, Rename, Source};
use super::report::{KeyReport, LoadReport, MisShaped};
use super::{Weights, complaint, save_tensors, shown};
use crate::vars::VarStore;
use candle_core::{Result, Shape, Tensor, Var};
use glob::Pattern;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What of a file is wanted, where it holds more than a network: what a user may have to say.
///
/// ```no_run
/// # use candle_core::{DType, Device};
/// # use zoo_core::VarStore;
/// use zoo_core::weights::{self, LoadOptions, Selection};
/// # let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// // The teacher of a file of DINO's, without its projection head.
/// let selection = Selection { entry: Some("teacher".into()), prefix: None, ignore: vec!["head.*".into()] };
/// let weights = selection.open("dino.pth")?;
/// weights::load(&store, &weights, &selection.of(LoadOptions::default()))?;
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// The entry of a training state that holds the tensors, such as `state_dict_ema` or `teacher`.
    pub entry: Option<String>,
    /// What stands before the wanted keys.
    pub prefix: Option<String>,
    /// Patterns of keys to pass over, with `*` for any text.
    pub ignore: Vec<String>,
}

impl Selection {
    /// Opens the file at `path`, or the entry of it that is wanted.
    ///
    /// # Errors
    /// As [`Weights::open_entry`].
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Weights> {
        Weights::open_entry(path, self.entry.as_deref())
    }

    /// `options` with what is wanted.
    pub fn of<'a>(&'a self, options: LoadOptions<'a>) -> LoadOptions<'a> {
        LoadOptions { prefix: self.prefix.as_deref(), ignore: &self.ignore, ..options }
    }
}

/// How to load; the default is: every tensor of the network from the tensor of the same key, nothing missing, nothing
/// over.
///
/// Where the network's keys are not there as they are, but all of them behind one prefix, they are taken from there,
/// and what stands beside it is left out.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions<'a> {
    /// The model's list of renames, whatever the layout.
    pub renames: &'a [Rename],
    /// The foreign layouts that the model knows.
    pub layouts: &'a [Layout],
    /// The parts that need not fit, as key prefixes: `["fc"]` for a new head, `["conv1"]` for another number of input
    /// channels. A part with a missing or mis-shaped tensor stays at its initial values as a whole (a fresh weight with
    /// an old bias would be neither), and whatever the file holds under it beyond the network is passed over. Parts
    /// that fit are loaded.
    pub may_differ: &'a [&'a str],
    /// What stands before the network's keys; an empty text for nothing. `None` finds out.
    pub prefix: Option<&'a str>,
    /// Patterns of the file's keys, or of the network's names for them, that are left out; `*` stands for any text.
    pub ignore: &'a [String],
    /// Whether tensors are adapted to another image than the file's, as timm does it: the first convolution to other
    /// channels than red, green and blue, position embeddings to another grid of patches.
    pub adapt: bool,
}

impl LoadOptions<'_> {
    fn part_of(&self, key: &str) -> Option<&str> {
        self.may_differ.iter().copied().find(|part| match key.strip_prefix(part) {
            Some(rest) => rest.is_empty() || rest.starts_with('.'),
            None => false,
        })
    }
}

/// The keys that a network wants, with their shapes.
type Wanted = BTreeMap<String, Shape>;

/// For each tensor that the file offers: the network's key, where it comes from, its shape.
#[derive(Default)]
struct Offers {
    by_key: BTreeMap<String, (Source, Shape)>,
    left_out: Vec<String>,
}

/// A file, or the part of it behind a prefix, understood in one layout.
struct Reading {
    weights: Weights,
    prefix: String,
    offers: Offers,
    report: KeyReport,
}

/// What all readings of a file share.
struct Question<'a> {
    wanted: Wanted,
    options: &'a LoadOptions<'a>,
    ignore: Vec<Pattern>,
}

impl<'a> Question<'a> {
    fn new(store: &VarStore, options: &'a LoadOptions) -> Result<Self> {
        let rules = options.layouts.iter().flat_map(|layout| layout.renames).chain(options.renames);
        if let Some(rule) = rules.into_iter().find(|rule| !rule.is_balanced()) {
            bail!("the rename `{}` to `{}` has different numbers of stars on its sides", rule.from, rule.to)
        }
        let pattern = |text: &String| match Pattern::new(text) {
            Ok(pattern) => Ok(pattern),
            Err(error) => Err(complaint(format!("`{}` is no pattern of keys: {}", shown(text), error.msg))),
        };
        Ok(Self {
            wanted: store.slots().into_iter().map(|slot| (slot.key, slot.shape)).collect(),
            options,
            ignore: options.ignore.iter().map(pattern).collect::<Result<_>>()?,
        })
    }

    /// The reading that fits best: the file's keys as they are, or behind the one prefix that has all that is wanted.
    fn answer(&self, file: &Weights) -> Result<Reading> {
        let mut reading = self.best(file)?;
        let prefix = format!("{}{}", file.wrapper(), reading.prefix);
        let beside = file.keys().filter(|key| !key.starts_with(&reading.prefix));
        reading.report.left_out.extend(beside.map(|key| format!("{}{key}", file.wrapper())));
        reading.report.left_out.sort_unstable();
        reading.report.prefix = Some(prefix).filter(|prefix| !prefix.is_empty());
        Ok(reading)
    }

    fn best(&self, file: &Weights) -> Result<Reading> {
        if let Some(prefix) = self.options.prefix {
            let prefix = file.as_prefix(prefix)?;
            return self.behind(file, &prefix);
        }
        let top = self.behind(file, "");
        if top.as_ref().is_ok_and(|reading| self.is_complete(&reading.report)) {
            return top;
        }
        let (mut best, mut found, mut complete) = (top, None, Vec::new());
        // A file may keep three tensors where the network has one, or the other way round; never many more.
        let required = self.wanted.keys().filter(|key| self.options.part_of(key).is_none()).count();
        for prefix in file.prefixes(required.div_ceil(4)) {
            // What cannot be read at all behind a prefix is not the network.
            let Ok(reading) = self.behind(file, &prefix) else { continue };
            if self.is_complete(&reading.report) {
                complete.push(format!("`{}{}`", file.wrapper(), shown(prefix)));
                found = Some(reading);
            } else if best.as_ref().is_ok_and(|best| reading.report.matching.len() > best.report.matching.len()) {
                best = Ok(reading);
            }
        }
        match found {
            Some(_) if complete.len() > 1 => {
                let (name, n) = (file.name(), complete.len());
                complete.truncate(6);
                let what = format!("{name} holds what the network wants behind {n} prefixes: {}", complete.join(", "));
                Err(complaint(format!("{what}: choose one (--prefix)")))
            }
            Some(found) => Ok(found),
            None => best,
        }
    }

    /// Whether there is a tensor for every key that is wanted, of whatever shape.
    fn is_complete(&self, report: &KeyReport) -> bool {
        report.missing.iter().all(|(key, _)| self.options.part_of(key).is_some())
    }

    /// The part of the file behind `prefix` in the layout that fits best; of equals the network's own.
    fn behind(&self, file: &Weights, prefix: &str) -> Result<Reading> {
        let mut part = file.behind(prefix);
        if !self.wanted.keys().any(|key| key.split('.').any(|part| part == "module")) {
            // Data parallel around a part of the network. In front it is a prefix like others.
            part = part.without_part("module", 1);
        }
        let layouts = self.options.layouts.iter().filter(|layout| layout.is_of(&part));
        let mut best = self.reading(part.clone(), None);
        for layout in layouts {
            let reading = self.reading(part.clone(), Some(layout));
            // The sign says whose file it is: why it cannot be read as such is what the user wants to know.
            let missing =
                |reading: &Result<Reading>| reading.as_ref().map_or(0, |reading| reading.report.missing.len());
            if best.is_err() || missing(&reading) < missing(&best) {
                best = reading;
            }
        }
        best.map(|best| Reading { prefix: prefix.to_string(), ..best })
    }

    fn reading(&self, weights: Weights, layout: Option<&Layout>) -> Result<Reading> {
        let offers = self.offers(&weights, layout)?;
        let mut report = KeyReport {
            left_out: offers.left_out.clone(),
            layout: layout.map(|layout| layout.name),
            ..KeyReport::default()
        };
        for (key, (_, shape)) in offers.by_key.iter().filter(|(key, _)| !self.wanted.contains_key(*key)) {
            report.unexpected.push((key.clone(), shape.clone()));
        }
        for (key, shape) in &self.wanted {
            let key = key.clone();
            match offers.by_key.get(&key) {
                Some((_, file)) if file == shape => report.matching.push(key),
                Some((_, file))
                    if self.options.adapt
                        && let Some(how) = adaptation(&key, file, shape) =>
                {
                    report.adapted.push((key.clone(), how.to_string()));
                    report.matching.push(key);
                }
                Some((_, file)) => {
                    report.mis_shaped.push(MisShaped { key, file: file.clone(), network: shape.clone() })
                }
                None => report.missing.push((key, shape.clone())),
            }
        }
        Ok(Reading { weights, prefix: String::new(), offers, report })
    }

    fn offers(&self, weights: &Weights, layout: Option<&Layout>) -> Result<Offers> {
        let mut sources: Vec<(String, Source)> = match layout.and_then(|layout| layout.key_map) {
            Some(map) => map(weights)?,
            None => weights.keys().map(|key| (key.to_string(), Source::Key(key.to_string()))).collect(),
        };
        let used: BTreeSet<&str> = sources.iter().flat_map(|(_, source)| source.keys()).map(String::as_str).collect();
        let unused: Vec<_> = weights.keys().filter(|&key| !used.contains(key)).map(str::to_string).collect();
        sources.extend(unused.into_iter().map(|key| (key.clone(), Source::Key(key))));

        let rules = || layout.into_iter().flat_map(|layout| layout.renames).chain(self.options.renames);
        let ignored = |key: &str| self.ignore.iter().any(|pattern| pattern.matches(key));
        let mut offers = Offers::default();
        for (key, source) in sources {
            let renamed = rules().find_map(|rule| rule.apply(&key));
            let name = renamed.as_ref().unwrap_or(&key);
            let is_unwanted = renamed.as_ref().is_some_and(String::is_empty);
            if is_unwanted || ignored(name) || source.keys().iter().all(|key| ignored(key)) {
                offers.left_out.push(key);
                continue;
            }
            // PyTorch's BatchNorm counts batches for a mode that nobody uses; the count is no weight.
            if name.rsplit('.').next() == Some("num_batches_tracked") && !self.wanted.contains_key(name) {
                continue;
            }
            let shape = source.shape(weights)?;
            if let Some((first, _)) = offers.by_key.insert(name.clone(), (source.clone(), shape)) {
                let listed = |source: &Source| source.keys().iter().map(shown).collect::<Vec<_>>().join("`, `");
                let (first, second, name) = (listed(&first), listed(&source), shown(name));
                let what = format!("both `{first}` and `{second}` would be the network's `{name}`");
                return Err(complaint(format!("{}: {what}", weights.name())));
            }
        }
        Ok(offers)
    }
}

impl Reading {
    /// Refuses what fits by its shape and is not what it seems: the whole numbers that quantization leaves of weights.
    fn ensure_real(&self) -> Result<()> {
        let sources = self.report.matching.iter().filter_map(|key| Some((key, &self.offers.by_key.get(key)?.0)));
        for (name, source) in sources {
            let dtype = source.keys().iter().filter_map(|key| self.weights.dtype(key)).find(|dtype| dtype.is_int());
            if let Some(dtype) = dtype {
                let what =
                    format!("`{}` holds whole numbers ({}), as quantized weights do", shown(name), dtype.as_str());
                return Err(complaint(format!("{}: {what}: {DEQUANTIZE}", self.weights.name())));
            }
        }
        Ok(())
    }

    /// The report without what may differ, if nothing else does.
    fn ensure_fit(&self, options: &LoadOptions) -> Result<KeyReport> {
        let mut report = self.report.clone();
        let allowed = |key: &str| options.part_of(key).is_some();
        report.missing.retain(|(key, _)| !allowed(key));
        report.unexpected.retain(|(key, _)| !allowed(key));
        report.mis_shaped.retain(|m| !allowed(&m.key));
        if !report.is_exact() {
            bail!("{} does not fit the network: {report}", self.weights.name())
        }
        self.ensure_real()?;
        Ok(report)
    }
}

/// What to do with a quantized network.
pub(super) const DEQUANTIZE: &str = "load it where it was quantized and save the state_dict() of the float model";

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
/// assert_eq!(report.other_outputs(), Some(("fc", 10, 100)));
/// # std::fs::remove_file(path).ok();
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// A key map that fails, two tensors of the file that would be one of the network's, several prefixes that have all
/// that the network wants, whole numbers for weights.
pub fn check(store: &VarStore, weights: &Weights, options: &LoadOptions) -> Result<KeyReport> {
    let reading = Question::new(store, options)?.answer(weights)?;
    reading.ensure_real()?;
    Ok(reading.report)
}

/// [`check`] for a file that is going to be loaded: what [`load`] would refuse is an error here, without reading a
/// tensor. The parts that may differ are not in the report.
///
/// # Errors
/// Keys or shapes that do not fit, beyond the parts that [`LoadOptions::may_differ`] names; what [`check`] refuses.
pub fn ensure_fit(store: &VarStore, weights: &Weights, options: &LoadOptions) -> Result<KeyReport> {
    Question::new(store, options)?.answer(weights)?.ensure_fit(options)
}

/// Fills a network from a file, converted to the store's element type and device.
///
/// All or nothing: if anything does not fit, beyond the parts that [`LoadOptions::may_differ`] names, nothing in the
/// store changes and the error lists missing, unexpected and mis-shaped keys. So the tensors are held twice for a
/// moment.
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
/// Keys or shapes that do not fit, what [`check`] refuses, a store of shapes only, and what the device refuses.
pub fn load(store: &VarStore, weights: &Weights, options: &LoadOptions) -> Result<LoadReport> {
    let reading = Question::new(store, options)?.answer(weights)?;
    let KeyReport { prefix, layout, left_out, .. } = reading.ensure_fit(options)?;
    let report = &reading.report;
    let differing: BTreeSet<&str> = (report.missing.iter().map(|(key, _)| key))
        .chain(report.mis_shaped.iter().map(|m| &m.key))
        .filter_map(|key| options.part_of(key))
        .collect();
    let beyond = report.unexpected.iter().map(|(key, _)| key.clone());
    let passed_over = left_out.into_iter().chain(beyond).collect();

    let adapted_keys = report.adapted.clone();
    let mut done = LoadReport { passed_over, prefix, layout, adapted: adapted_keys, ..LoadReport::default() };
    let mut values: Vec<(Var, Tensor)> = Vec::new();
    for slot in store.slots() {
        let Some(var) = slot.var else { bail!("a store of shapes only has nothing to load `{}` into", slot.key) };
        if options.part_of(&slot.key).is_some_and(|part| differing.contains(part)) {
            if reading.offers.by_key.contains_key(&slot.key) {
                done.passed_over.push(slot.key.clone());
            }
            done.initial.push(slot.key);
        } else if let Some((source, _)) = reading.offers.by_key.get(&slot.key) {
            let value = adapted(source.read(&reading.weights)?, &slot.key, &slot.shape)?;
            values.push((var, value.to_dtype(store.dtype())?.to_device(store.device())?));
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

/// A tensor in the network's shape. That of another one has passed [`adaptation`] by now.
fn adapted(tensor: Tensor, key: &str, shape: &Shape) -> Result<Tensor> {
    match adaptation(key, tensor.shape(), shape) {
        Some(how) if tensor.shape() != shape => Adaptation::of(how, &tensor),
        _ => Ok(tensor),
    }
}

/// The tensors of a file under the network's keys, in the network's order and in the file's own element types, and how
/// the file's keys stand to them: what a file converted to this network's layout holds.
///
/// # Errors
/// Keys or shapes that do not fit, beyond the parts that [`LoadOptions::may_differ`] names; what [`check`] refuses.
pub fn translate(
    store: &VarStore,
    weights: &Weights,
    options: &LoadOptions,
) -> Result<(Vec<(String, Tensor)>, KeyReport)> {
    let reading = Question::new(store, options)?.answer(weights)?;
    let report = reading.ensure_fit(options)?;
    let offers = &reading.offers.by_key;
    let slots = store.slots();
    let offered = slots.iter().filter_map(|slot| Some((slot, &offers.get(&slot.key)?.0)));
    let tensors = offered
        .map(|(slot, source)| Ok((slot.key.clone(), adapted(source.read(&reading.weights)?, &slot.key, &slot.shape)?)));
    Ok((tensors.collect::<Result<_>>()?, report))
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

//! `torch.save`'s two containers: the zip archive (since PyTorch 1.6) and the chain of pickles before it.

use super::Contents;
use super::bytes::{Fault, Parsed, Reader, fail, shown};
use super::entry::{Element, Entry};
use super::load::DEQUANTIZE;
use super::pickle::{Pickle, Storage, TensorView, Value, kind};
use super::zip;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Entries that training scripts keep the weights under, beside the epoch and the optimizer's state.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model", "net"];

/// 0x1950a86a20f9469cfc6c as a pickle holds it: the mark of the format before 1.6.
const MAGIC: [u8; 10] = [0x6C, 0xFC, 0x9C, 0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19];

/// Views may share storage and repeat elements, so a small file can unfold to a large network, or to an attack. Tied
/// weights double a file; eight times it is beyond any honest reason.
const MAX_UNFOLDING: usize = 8;

/// The zip container: `NAME/data.pkl` and, for storage K, `NAME/data/K`.
pub(super) fn read_zip(file: &[u8], entry: Option<&str>) -> Parsed<Contents> {
    let archive = zip::entries(file)?;
    let mut roots = archive.iter().filter_map(|(name, data)| Some((name.strip_suffix("/data.pkl")?, data)));
    let Some((root, program)) = roots.find(|(root, _)| !root.contains('/')) else {
        let what = match archive.keys().any(|name| name.ends_with(".npy")) {
            true => "an archive of NumPy's (.npz): save its arrays by their keys as safetensors",
            false => "a zip archive, but not of torch.save's: it holds no NAME/data.pkl",
        };
        return fail(0, what);
    };
    let member = |name: &str| archive.get(format!("{root}/{name}").as_str());
    // Its program's text is compressed.
    if member("constants.pkl").is_some() || archive.keys().any(|name| name.starts_with(&format!("{root}/code/"))) {
        let what = "a TorchScript archive holds a program: load it with torch.jit.load in PyTorch, and save its state_dict() with \
                    torch.save";
        return fail(program.range.start, what);
    }
    let stored = |name: &str, member: &zip::Member| {
        if member.compressed {
            let what =
                "is compressed; torch.save only stores. Unpack the archive, or load it in PyTorch and save it again";
            return fail(member.range.start, format!("the entry `{}` {what}", shown(name)));
        }
        Ok(member.range.clone())
    };
    if let Some(order) = member("byteorder") {
        let order = stored("byteorder", order)?;
        if &file[order.clone()] != b"little" {
            return fail(order.start, format!("the file's byte order is `{}`, not little", shown(&file[order])));
        }
    }
    let program = stored("data.pkl", program)?;
    let pickle = Pickle::run(file, program.start, program.end)?;
    state_dict(&pickle, (program.start, file.len()), entry, |storage, at| {
        let key = pickle.bytes(storage.key);
        match std::str::from_utf8(key).ok().and_then(|key| member(&format!("data/{key}"))) {
            Some(data) => stored(&format!("data/{}", shown(key)), data),
            None => fail(at, format!("the archive has no storage `{}`", shown(key))),
        }
    })
}

/// The old container: pickles of a magic number, a version, facts about the system, the object and the storages' keys,
/// then the storages, each behind its number of elements.
pub(super) fn read_legacy(file: &[u8], entry: Option<&str>) -> Parsed<Contents> {
    let magic = Pickle::run(file, 0, file.len())?;
    if !matches!(magic.root, Value::Bytes(span) if magic.bytes(span) == MAGIC) {
        return fail(0, "a pickle, but not of torch.save's: it does not begin with the magic number");
    }
    let version = Pickle::run(file, magic.end, file.len())?;
    if !matches!(version.root, Value::Int(1001)) {
        return fail(magic.end, "the version of torch.save's format is not 1001");
    }
    let system = Pickle::run(file, version.end, file.len())?;
    let facts = system.dict(system.root).unwrap_or_default();
    let is_big_endian = |&(key, value): &(Value, Value)| match (key, value) {
        (Value::Bytes(key), Value::Bool(false)) => system.bytes(key) == b"little_endian",
        _ => false,
    };
    if facts.iter().any(is_big_endian) {
        return fail(version.end, "the file was written on a big-endian machine");
    }
    let pickle = Pickle::run(file, system.end, file.len())?;
    let storages = legacy_storages(file, &pickle)?;
    state_dict(&pickle, (system.end, file.len()), entry, |storage, at| {
        let key = pickle.bytes(storage.key);
        match storages.get(key) {
            Some(data) => Ok(data.clone()),
            None => fail(at, format!("the file has no storage `{}`", shown(key))),
        }
    })
}

/// Where each storage's bytes lie: their lengths are known only by walking over them.
fn legacy_storages<'a>(file: &'a [u8], pickle: &Pickle<'a>) -> Parsed<BTreeMap<&'a [u8], Range<usize>>> {
    // The first mention of a storage decides its type, as it does for the writer.
    let mut sizes = BTreeMap::new();
    for storage in &pickle.storages {
        let size = element_size(pickle.bytes(storage.class));
        sizes.entry(pickle.bytes(storage.key)).or_insert((size, pickle.bytes(storage.class)));
    }
    let keys = Pickle::run(file, pickle.end, file.len())?;
    let Value::List(list) = keys.root else {
        return fail(pickle.end, format!("a list of storages should follow, and {} does", kind(keys.root)));
    };
    let mut reader = Reader::new(file, keys.end, file.len());
    let mut storages = BTreeMap::new();
    for item in keys.items(list) {
        let at = reader.at();
        let Value::Bytes(key) = item.value else {
            return fail(pickle.end, format!("a storage is named by {}", kind(item.value)));
        };
        let key = keys.bytes(key);
        let size = match sizes.get(key) {
            Some((Some(size), _)) => *size,
            Some((None, class)) => {
                let what = format!("storage `{}` is a `{}`, of unknown size", shown(key), shown(class));
                return fail(at, what);
            }
            None => return fail(at, format!("storage `{}` belongs to no tensor", shown(key))),
        };
        let count = reader.u64()?;
        let start = reader.at();
        // A product beyond 64 bits is beyond the file, which is what saturation makes it.
        reader.take_u64(count.saturating_mul(size as u64))?;
        if storages.insert(key, start..reader.at()).is_some() {
            return fail(at, format!("storage `{}` occurs twice", shown(key)));
        }
    }
    Ok(storages)
}

fn element(class: &[u8]) -> Option<Element> {
    Some(match class {
        b"DoubleStorage" => Element::F64,
        b"FloatStorage" => Element::F32,
        b"HalfStorage" => Element::F16,
        b"BFloat16Storage" => Element::BF16,
        b"LongStorage" => Element::I64,
        b"IntStorage" => Element::I32,
        b"ShortStorage" => Element::I16,
        b"CharStorage" => Element::I8,
        b"ByteStorage" => Element::U8,
        b"BoolStorage" => Element::Bool,
        _ => return None,
    })
}

/// Also of types that cannot be read: in the old format they have to be stepped over.
fn element_size(class: &[u8]) -> Option<usize> {
    match class {
        b"ComplexDoubleStorage" => Some(16),
        b"ComplexFloatStorage" => Some(8),
        b"UntypedStorage" | b"QInt8Storage" | b"QUInt8Storage" => Some(1),
        b"QInt32Storage" => Some(4),
        _ => element(class).map(Element::size),
    }
}

type Dict = Vec<(Value, Value)>;

/// Finds the state dict in what the pickle made, and its tensors in the file. The pickle begins at `at` of `file_len`
/// bytes.
fn state_dict<'a>(
    pickle: &'a Pickle,
    (at, file_len): (usize, usize),
    wanted: Option<&str>,
    locate: impl Fn(&'a Storage, usize) -> Parsed<Range<usize>>,
) -> Parsed<Contents> {
    let Some(root) = pickle.dict(pickle.root) else {
        return fail(
            at,
            match pickle.root {
                Value::Opaque(name) => refusal(pickle, name),
                Value::Global(name) => refusal(pickle, Some(name)),
                other => format!("the file holds {}, not a state dict", kind(other)),
            },
        );
    };
    let candidates = candidates(pickle, &root);
    let (name, dict) = chosen(pickle, at, &root, &candidates, wanted)?;

    let mut entries = BTreeMap::new();
    let mut unfolded = 0usize;
    for &(key, value) in &dict {
        let name = match key {
            Value::Bytes(key) => shown(pickle.bytes(key)),
            other => kind(other).to_string(),
        };
        let tensor = match value {
            Value::Tensor(tensor) => &pickle.tensors[tensor as usize],
            Value::Opaque(class) => return fail(at, format!("`{name}`: {}", refusal(pickle, class))),
            Value::Global(class) => return fail(at, format!("`{name}`: {}", refusal(pickle, Some(class)))),
            // A number or a text beside the tensors, such as the epoch.
            _ => continue,
        };
        let key = match key {
            Value::Bytes(key) => std::str::from_utf8(pickle.bytes(key)).ok(),
            _ => None,
        };
        let Some(key) = key else {
            return fail(tensor.at, format!("a tensor's key, `{name}`, is not a text"));
        };
        let storage = &pickle.storages[tensor.storage as usize];
        let entry = entry(pickle, key, tensor, storage, locate(storage, tensor.at)?)?;
        unfolded = unfolded.saturating_add(entry.size_in_memory());
        if unfolded > file_len.saturating_mul(MAX_UNFOLDING) {
            let what = format!("the file's {file_len} bytes unfold to {unfolded} and more: its views overlap");
            return fail(tensor.at, format!("`{name}`: {what}"));
        }
        if entries.insert(key.to_string(), entry).is_some() {
            return fail(tensor.at, format!("two tensors are called `{name}`"));
        }
    }
    if entries.is_empty() {
        let keys = root.iter().take(8).map(|&(key, value)| match key {
            Value::Bytes(key) => format!("`{}`: {}", shown(pickle.bytes(key)), kind(value)),
            other => kind(other).to_string(),
        });
        let keys: Vec<_> = keys.collect();
        let wrappers = WRAPPERS.join("`, `");
        let what = format!("no tensor at the top or under `{wrappers}`; at the top there are: {}", keys.join(", "));
        // A whole module was saved: say whose class it is.
        let class = WRAPPERS.iter().find_map(|name| match value_of(pickle, &root, name) {
            Some(Value::Opaque(class)) => Some(refusal(pickle, class)),
            _ => None,
        });
        return fail(at, class.map_or(what.clone(), |class| format!("{what}; {class}")));
    }
    let mut other_entries: Vec<String> = candidates.into_iter().map(|(other, _)| other).collect();
    other_entries.retain(|other| Some(other) != name.as_ref());
    Ok(Contents { entries, entry: name, other_entries, ..Contents::default() })
}

/// The value under a text in a dictionary.
fn value_of(pickle: &Pickle, dict: &Dict, name: &str) -> Option<Value> {
    let named = |&&(key, _): &&(Value, Value)| matches!(key, Value::Bytes(k) if pickle.bytes(k) == name.as_bytes());
    dict.iter().find(named).map(|&(_, value)| value)
}

fn holds_tensors(dict: &Dict) -> bool {
    dict.iter().any(|(_, value)| matches!(value, Value::Tensor(_)))
}

/// The entries of a training state that are dictionaries of tensors, up to two levels below the top, by name.
fn candidates(pickle: &Pickle, root: &Dict) -> Vec<(String, Dict)> {
    // Entries may be one and the same dictionary, thousands of times: each is looked into once.
    let mut seen = BTreeSet::new();
    let mut inside = |dict: &Dict| -> Vec<(String, Dict)> {
        let dictionary = |&(key, value): &(Value, Value)| match (key, value) {
            (Value::Bytes(key), Value::Dict(id) | Value::Pairs(id)) if seen.insert(id) => {
                Some((shown(pickle.bytes(key)), pickle.dict(value)?))
            }
            _ => None,
        };
        dict.iter().filter_map(dictionary).collect()
    };
    let mut found = Vec::new();
    for (name, dict) in inside(root) {
        if holds_tensors(&dict) {
            found.push((name, dict));
            continue;
        }
        let below = inside(&dict).into_iter().filter(|(_, dict)| holds_tensors(dict));
        found.extend(below.map(|(inner, dict)| (format!("{name}.{inner}"), dict)));
    }
    found
}

/// The dictionary that holds the network's tensors, with the name of its entry if it is not the top itself.
fn chosen(
    pickle: &Pickle,
    at: usize,
    root: &Dict,
    candidates: &[(String, Dict)],
    wanted: Option<&str>,
) -> Parsed<(Option<String>, Dict)> {
    let listed = || {
        let named = |(name, dict): &(String, Dict)| {
            let tensors = dict.iter().filter(|(_, value)| matches!(value, Value::Tensor(_))).count();
            format!("`{name}` ({tensors} tensors)")
        };
        candidates.iter().take(8).map(named).collect::<Vec<_>>().join(", ")
    };
    if let Some(wanted) = wanted {
        let whole = value_of(pickle, root, wanted).and_then(|value| pickle.dict(value));
        let below = || {
            let (outer, inner) = wanted.split_once('.')?;
            pickle.dict(value_of(pickle, &pickle.dict(value_of(pickle, root, outer)?)?, inner)?)
        };
        return match whole.or_else(below) {
            Some(dict) => Ok((Some(wanted.to_string()), dict)),
            None if candidates.is_empty() => fail(at, format!("no entry `{}`: none holds tensors", shown(wanted))),
            None => fail(at, format!("no entry `{}`; those with tensors are {}", shown(wanted), listed())),
        };
    }
    let usual = WRAPPERS.iter().find_map(|name| candidates.iter().find(|(candidate, _)| candidate == name));
    match candidates {
        _ if let Some((name, dict)) = usual => Ok((Some(name.clone()), dict.clone())),
        [] => {
            // Whatever stands there instead of tensors is what the reader complains of.
            let usual = |name: &&str| Some((name.to_string(), pickle.dict(value_of(pickle, root, name)?)?));
            match WRAPPERS.iter().find_map(usual).filter(|_| !holds_tensors(root)) {
                Some((name, dict)) => Ok((Some(name), dict)),
                None => Ok((None, root.clone())),
            }
        }
        _ if holds_tensors(root) => Ok((None, root.clone())),
        [(name, dict)] => Ok((Some(name.clone()), dict.clone())),
        _ => fail(at, format!("the file holds several sets of tensors: {}; choose one (--entry)", listed())),
    }
}

/// Why a value is not taken that is no tensor as the reader knows them.
fn refusal(pickle: &Pickle, class: Option<u32>) -> String {
    let name = pickle.global_name(class);
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_quantized = last == "_rebuild_qtensor" || last.starts_with("qint") || last.starts_with("quint");
    if is_quantized || name.starts_with("torchao.") || name.starts_with("torch.ao.") || name.contains("quantized") {
        return format!("it is quantized (`{name}`): {DEQUANTIZE}");
    }
    if name.starts_with("torch.float8") || name.starts_with("torch.float4") {
        return format!(
            "its type `{name}` is not read: convert it to torch.float32 where it was made, with its scales"
        );
    }
    if name.starts_with("torch.") && ["uint", "int", "float", "complex", "bits"].iter().any(|p| last.starts_with(p)) {
        return format!("its type `{name}` is not read: convert it to torch.float32 in PyTorch and save it again");
    }
    if last.starts_with("_rebuild_sparse") || last.starts_with("_rebuild_nested") {
        return format!("it is no dense tensor (`{name}`): make it one in PyTorch, by to_dense(), and save it again");
    }
    let advice = "a checkpoint is data: save a module's state_dict() instead of the module";
    format!("refuses to run code: `{name}` ({advice})")
}

fn entry(pickle: &Pickle, key: &str, view: &TensorView, storage: &Storage, bytes: Range<usize>) -> Parsed<Entry> {
    let at = view.at;
    let class = pickle.bytes(storage.class);
    let Some(element) = element(class) else {
        let what = match class.starts_with(b"Q") {
            true => format!("it is quantized (`{}`): {DEQUANTIZE}", shown(class)),
            false => format!("a `{}` has no equivalent here", shown(class)),
        };
        return fail(at, format!("`{}`: {what}", shown(key)));
    };
    let bytes = part(storage, element, &bytes).ok_or_else(|| {
        let what = format!("its storage is said to hold {} elements and has {} bytes", storage.len, bytes.len());
        Fault { at, what: format!("`{}`: {what}", shown(key)) }
    })?;
    let numbers = |value: Value| -> Parsed<Vec<usize>> {
        let items = match value {
            Value::Tuple(span) => pickle.tuple(span),
            _ => &[],
        };
        // A tuple in the file may stand for many tensors: look at no more of it than one honest tensor has.
        let number = |&item: &Value| match item {
            Value::Int(n) => usize::try_from(n).ok(),
            _ => None,
        };
        match items.iter().take(Entry::MAX_AXES + 1).map(number).collect() {
            Some(numbers) => Ok(numbers),
            None => fail(at, format!("`{}`: a length or stride is not a number of elements", shown(key))),
        }
    };
    let Ok(offset) = usize::try_from(view.offset) else {
        return fail(at, format!("`{}`: offset {} into its storage", shown(key), view.offset));
    };
    Entry::view(key, element, (numbers(view.shape)?, numbers(view.strides)?, offset), bytes, at)
}

/// The bytes of what the pickle says the storage is: `None` if the file has fewer.
fn part(storage: &Storage, element: Element, bytes: &Range<usize>) -> Option<Range<usize>> {
    let (first, len) = storage.view.unwrap_or((0, storage.len));
    let first = usize::try_from(first).ok()?.checked_mul(element.size())?;
    let len = usize::try_from(len).ok()?.checked_mul(element.size())?;
    let end = first.checked_add(len).filter(|&end| end <= bytes.len())?;
    Some(bytes.start + first..bytes.start + end)
}

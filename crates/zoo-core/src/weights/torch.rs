//! `torch.save`'s two containers: the zip archive (since PyTorch 1.6) and the chain of pickles before it.

use super::bytes::{Fault, Parsed, Reader, fail, shown};
use super::entry::{Element, Entry};
use super::pickle::{Pickle, Storage, TensorView, Value, kind};
use super::zip;
use std::collections::BTreeMap;
use std::ops::Range;

/// Entries that training scripts keep the weights under, beside the epoch and the optimizer's state.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model", "net"];

/// 0x1950a86a20f9469cfc6c as a pickle holds it: the mark of the format before 1.6.
const MAGIC: [u8; 10] = [0x6C, 0xFC, 0x9C, 0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19];

/// Views may share storage and repeat elements, so a small file can unfold to a large network, or to an attack. Tied
/// weights double a file; eight times it is beyond any honest reason.
const MAX_UNFOLDING: usize = 8;

type Entries = BTreeMap<String, Entry>;

/// The zip container: `NAME/data.pkl` and, for storage K, `NAME/data/K`.
pub(super) fn read_zip(file: &[u8]) -> Parsed<Entries> {
    let archive = zip::entries(file)?;
    let mut roots = archive.iter().filter_map(|(name, data)| Some((name.strip_suffix("/data.pkl")?, data)));
    let Some((root, program)) = roots.find(|(root, _)| !root.contains('/')) else {
        return fail(0, "a zip archive, but not of torch.save's: it holds no NAME/data.pkl");
    };
    let member = |name: &str| archive.get(format!("{root}/{name}").as_str()).cloned();
    if member("constants.pkl").is_some() {
        let what = "a TorchScript archive holds a program; save the module's state_dict() with torch.save instead";
        return fail(program.start, what);
    }
    match member("byteorder") {
        Some(order) if &file[order.clone()] != b"little" => {
            return fail(order.start, format!("the file's byte order is `{}`, not little", shown(&file[order])));
        }
        _ => {}
    }
    let pickle = Pickle::run(file, program.start, program.end)?;
    state_dict(&pickle, program.start, file.len(), |storage, at| {
        let key = pickle.bytes(storage.key);
        match std::str::from_utf8(key).ok().and_then(|key| member(&format!("data/{key}"))) {
            Some(data) => Ok(data),
            None => fail(at, format!("the archive has no storage `{}`", shown(key))),
        }
    })
}

/// The old container: pickles of a magic number, a version, facts about the system, the object and the storages' keys,
/// then the storages, each behind its number of elements.
pub(super) fn read_legacy(file: &[u8]) -> Parsed<Entries> {
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
    state_dict(&pickle, system.end, file.len(), |storage, at| {
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

/// Finds the state dict in what the pickle made, and its tensors in the file.
fn state_dict<'a>(
    pickle: &'a Pickle,
    at: usize,
    file_len: usize,
    locate: impl Fn(&'a Storage, usize) -> Parsed<Range<usize>>,
) -> Parsed<Entries> {
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
    let wrapped = |name: &&str| {
        let named = |&&(key, _): &&(Value, Value)| matches!(key, Value::Bytes(k) if pickle.bytes(k) == name.as_bytes());
        root.iter().find(named).map(|&(_, value)| value)
    };
    let found = WRAPPERS.iter().filter_map(wrapped).find_map(|value| pickle.dict(value));
    let dict = found.as_ref().unwrap_or(&root);

    let mut entries = Entries::new();
    let mut unfolded = 0usize;
    for &(key, value) in dict {
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
        let class = WRAPPERS.iter().filter_map(wrapped).find_map(|value| match value {
            Value::Opaque(class) => Some(refusal(pickle, class)),
            _ => None,
        });
        return fail(at, class.map_or(what.clone(), |class| format!("{what}; {class}")));
    }
    Ok(entries)
}

fn refusal(pickle: &Pickle, class: Option<u32>) -> String {
    let advice = "a checkpoint is data: save a module's state_dict() instead of the module";
    format!("refuses to run code: `{}` ({advice})", pickle.global_name(class))
}

fn entry(pickle: &Pickle, key: &str, view: &TensorView, storage: &Storage, bytes: Range<usize>) -> Parsed<Entry> {
    let at = view.at;
    let class = pickle.bytes(storage.class);
    let Some(element) = element(class) else {
        return fail(at, format!("`{}`: a `{}` has no equivalent here", shown(key), shown(class)));
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

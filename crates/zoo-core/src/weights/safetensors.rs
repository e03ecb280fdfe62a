//! The safetensors format: a JSON header of names, shapes and offsets, then the bytes.
//!
//! The `safetensors` crate gives the format's types; its reader is not used, for three reasons that tests hold: it
//! takes the last of two tensors of one name, it says neither which tensor is wrong nor where, and it keeps the whole
//! header in memory twice. Its writer is not used either, since it puts metadata in an order that changes from run to
//! run.

use super::bytes::{Fault, Parsed, fail, shown};
use super::entry::{Element, Entry};
use super::file::write_whole;
use super::{Contents, complaint};
use ::safetensors::Dtype;
use ::safetensors::tensor::TensorInfo;
use candle_core::{DType, Result, Tensor, WithDType};
use half::{bf16, f16};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Write;
use std::path::Path;

/// The header's length, in the first eight bytes.
const LENGTH: usize = 8;
const METADATA: &str = "__metadata__";

pub(super) fn read(file: &[u8]) -> Parsed<Contents> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH>() else {
        return fail(0, "the file is too short to hold the header's length");
    };
    let length = u64::from_le_bytes(*length);
    let Some((header, data)) = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length)) else {
        return fail(0, format!("the header is said to be {length} bytes, and {} follow", rest.len()));
    };
    let header: Header = serde_json::from_slice(header).map_err(|e| json_fault(header, &e))?;
    let mut infos = header.tensors;
    infos.sort_by_key(|(_, info)| info.data_offsets);

    let base = file.len() - data.len();
    let mut entries = BTreeMap::new();
    let mut end_of_last = 0;
    for (key, info) in infos {
        let (begin, end) = info.data_offsets;
        let wrong = |what: &str| {
            let what = format!("`{}` is said to take bytes {begin}..{end} of the data: {what}", shown(&key));
            fail(base.saturating_add(begin), what)
        };
        if begin > end {
            return wrong("they end before they begin");
        }
        if end > data.len() {
            return wrong(&format!("the file has {}", data.len()));
        }
        if begin < end_of_last {
            return wrong("they overlap another tensor's");
        }
        if begin > end_of_last {
            return wrong(&format!("{} bytes before them belong to nothing", begin - end_of_last));
        }
        end_of_last = end;
        let at = base + begin;
        let Some(element) = element(info.dtype) else {
            return fail(
                at,
                format!("`{}`: type {} has no equivalent here: {}", shown(&key), info.dtype, advice(info.dtype)),
            );
        };
        let entry = Entry::contiguous(&key, element, info.shape, at..base + end, at)?;
        if entries.contains_key(&key) {
            return fail(at, format!("two tensors are called `{}`", shown(key)));
        }
        entries.insert(key, entry);
    }
    if end_of_last < data.len() {
        let what = format!("{} bytes behind the last tensor belong to nothing", data.len() - end_of_last);
        return fail(base + end_of_last, what);
    }
    Ok(Contents { entries, metadata: header.metadata, ..Contents::default() })
}

/// What to do with tensors of a type that cannot be read.
fn advice(dtype: Dtype) -> &'static str {
    match dtype.bitsize() {
        0..=8 => "the weights are quantized; load them where they were made and save them as float32",
        _ => "load the file where it was made and save its tensors as float32",
    }
}

/// What a text is that begins as a JSON object does, and is taken for weights.
pub(super) fn json(text: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let Ok(Index { weight_map }) = serde_json::from_slice(text) else {
        return "a JSON text, as a config.json is: the weights are in another file".to_string();
    };
    let shards: BTreeSet<&String> = weight_map.values().collect();
    let first = shards.first().map(|name| format!(", `{}` the first", shown(name))).unwrap_or_default();
    let what = format!(
        "the index of a sharded checkpoint, whose {} tensors lie in {} files{first}",
        weight_map.len(),
        shards.len()
    );
    format!("{what}: put them into one (load them in Python, and safetensors.torch.save_file of all together)")
}

/// Where in the file the JSON is wrong.
fn json_fault(header: &[u8], error: &serde_json::Error) -> Fault {
    let lines = header.split_inclusive(|&b| b == b'\n').take(error.line().saturating_sub(1));
    let at = LENGTH + lines.map(<[u8]>::len).sum::<usize>() + error.column().saturating_sub(1);
    Fault { at, what: format!("the header is not what it should be: {}", shown(error.to_string())) }
}

#[derive(Default)]
struct Header {
    tensors: Vec<(String, TensorInfo)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let mut header = Header::default();
                while let Some(key) = map.next_key::<String>()? {
                    if key == METADATA {
                        header.metadata = map.next_value()?;
                    } else {
                        header.tensors.push((key, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

fn element(dtype: Dtype) -> Option<Element> {
    Some(match dtype {
        Dtype::F64 => Element::F64,
        Dtype::F32 => Element::F32,
        Dtype::F16 => Element::F16,
        Dtype::BF16 => Element::BF16,
        Dtype::I64 => Element::I64,
        Dtype::I32 => Element::I32,
        Dtype::I16 => Element::I16,
        Dtype::I8 => Element::I8,
        Dtype::U32 => Element::U32,
        Dtype::U16 => Element::U16,
        Dtype::U8 => Element::U8,
        Dtype::BOOL => Element::Bool,
        _ => return None,
    })
}

/// Writes tensors, and metadata if there is any, as a safetensors file.
///
/// The same tensors give the same bytes. The file appears under its name only when it is complete and on the disk, in
/// place of what stood there: a reader, or a crash, meets the old file or the new one.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::weights::{Weights, save_tensors};
/// let path = std::env::temp_dir().join(format!("zoo-doc-{}.safetensors", std::process::id()));
/// let logits = Tensor::ones((2, 10), DType::F32, &Device::Cpu)?;
/// save_tensors([("logits", &logits)], &path, &Default::default())?;
/// assert_eq!(Weights::open(&path)?.tensor("logits", &Device::Cpu)?.dims(), &[2, 10]);
/// # std::fs::remove_file(path).ok();
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Two tensors of one name, an element type that the format lacks, and what the file system refuses.
pub fn save_tensors<'a>(
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    path: impl AsRef<Path>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let path = path.as_ref();
    let mut tensors: Vec<_> = tensors.into_iter().collect();
    // Wide elements first, so that each tensor is aligned; then by name.
    tensors.sort_by_key(|&(key, tensor)| (std::cmp::Reverse(tensor.dtype().size_in_bytes()), key));
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert(METADATA.to_string(), json!(metadata));
    }
    let mut begin = 0;
    for &(key, tensor) in &tensors {
        let end = begin + tensor.elem_count() * tensor.dtype().size_in_bytes();
        let info = json!({"dtype": dtype_name(tensor.dtype())?, "shape": tensor.dims(), "data_offsets": [begin, end]});
        begin = end;
        if key == METADATA || header.insert(key.to_string(), info).is_some() {
            bail!("{}: cannot write a tensor called `{}`, the name is taken", path.display(), shown(key))
        }
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(LENGTH), b' ');

    let written = write_whole(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        tensors.iter().try_for_each(|(_, tensor)| write_elements(tensor, file).map_err(std::io::Error::other))
    });
    written.map_err(|e| complaint(format!("{}: {e}", path.display())))
}

fn dtype_name(dtype: DType) -> Result<&'static str> {
    Ok(match dtype {
        DType::F64 => "F64",
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::I64 => "I64",
        DType::I32 => "I32",
        DType::I16 => "I16",
        DType::U32 => "U32",
        DType::U8 => "U8",
        other => bail!("a tensor of {} cannot be written", other.as_str()),
    })
}

fn write_elements(tensor: &Tensor, out: &mut impl Write) -> Result<()> {
    match tensor.dtype() {
        DType::F64 => write_as(tensor, out, f64::to_le_bytes),
        DType::F32 => write_as(tensor, out, f32::to_le_bytes),
        DType::F16 => write_as(tensor, out, f16::to_le_bytes),
        DType::BF16 => write_as(tensor, out, bf16::to_le_bytes),
        DType::I64 => write_as(tensor, out, i64::to_le_bytes),
        DType::I32 => write_as(tensor, out, i32::to_le_bytes),
        DType::I16 => write_as(tensor, out, i16::to_le_bytes),
        DType::U32 => write_as(tensor, out, u32::to_le_bytes),
        DType::U8 => write_as(tensor, out, u8::to_le_bytes),
        other => bail!("a tensor of {} cannot be written", other.as_str()),
    }
}

fn write_as<const N: usize, T: WithDType>(
    tensor: &Tensor,
    out: &mut impl Write,
    bytes: fn(T) -> [u8; N],
) -> Result<()> {
    let values: Vec<T> = tensor.flatten_all()?.to_vec1()?;
    Ok(values.into_iter().try_for_each(|value| out.write_all(&bytes(value)))?)
}

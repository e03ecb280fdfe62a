//! A pickle machine that only makes data.
//!
//! Python's pickle is a little program that may import anything and call it. This machine runs the same program with
//! nothing behind it: a name that would be imported stays a name, and of all calls it understands the few that stand
//! for data (tensors, parameters, ordered dictionaries). The result of any other call is an [`Value::Opaque`] that
//! remembers the name; whoever needs that value refuses it, and in entries that nobody reads it does no harm.
//!
//! Everything lies in flat lists and refers by index. So no nesting, however deep, can exhaust the stack,
//! self-containing values are harmless, and an instruction costs a few dozen bytes at most, of which there is a limited
//! number.

mod calls;
mod machine;

use super::bytes::{Parsed, Reader, fail, shown};
use machine::Machine;
use std::collections::BTreeMap;

/// A state dict of a thousand tensors takes about thirty thousand instructions; an optimizer's state, three times that.
const MAX_INSTRUCTIONS: usize = 1 << 22;

/// PyTorch numbers storages, or names them by their address. Thousands of tensors may refer to one storage, so a long
/// key would make looking them up slow.
const MAX_STORAGE_KEY: u32 = 64;

/// What a pickle makes. Small and `Copy`: the contents lie in the [`Pickle`].
#[derive(Debug, Clone, Copy)]
pub(super) enum Value {
    /// Something of no use here: `None`, a float, a frozen set.
    Plain,
    Bool(bool),
    Int(i64),
    /// Text, bytes, or an integer of more than 64 bits.
    Bytes(Span),
    /// A place in the list of tuples' items.
    Tuple(Span),
    /// A list or set.
    List(u32),
    Dict(u32),
    /// An ordered dictionary made from the list of pairs with this number, as Python 2 wrote it.
    Pairs(u32),
    /// A class or function: the number of its name.
    Global(u32),
    Storage(u32),
    Tensor(u32),
    /// What a call that was not made would have returned: the number of the callable's name, if it has one.
    Opaque(Option<u32>),
}

/// A range, in 32 bits a side so that a [`Value`] stays small.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    start: u32,
    len: u32,
}

impl Span {
    fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}

/// An element of a list (without a key) or of a dictionary.
#[derive(Debug)]
pub(super) struct Item {
    container: u32,
    pub key: Value,
    pub value: Value,
}

/// A reference to a storage, as `torch.save` writes it into the pickle.
#[derive(Debug)]
pub(super) struct Storage {
    /// The class's name, for example `FloatStorage`.
    pub class: Span,
    pub key: Span,
    /// Elements.
    pub len: i64,
    /// A view into a storage, as PyTorch saved them up to 0.4: first element and length.
    pub view: Option<(i64, i64)>,
}

/// A tensor: a strided view of a storage.
#[derive(Debug)]
pub(super) struct TensorView {
    pub storage: u32,
    pub offset: i64,
    /// Tuples of integers.
    pub shape: Value,
    pub strides: Value,
    /// Where in the file it was made.
    pub at: usize,
}

/// A pickle that has run.
pub(super) struct Pickle<'a> {
    data: &'a [u8],
    /// What the program returned.
    pub root: Value,
    /// Where the file goes on behind it.
    pub end: usize,
    tuples: Vec<Value>,
    items: Vec<Item>,
    containers: u32,
    globals: Vec<(Span, Span)>,
    pub storages: Vec<Storage>,
    pub tensors: Vec<TensorView>,
}

impl<'a> Pickle<'a> {
    /// Runs the pickle that begins at `start` of the file and ends before `end`.
    pub fn run(file: &'a [u8], start: usize, end: usize) -> Parsed<Self> {
        let end = end.min(file.len()).min(start.saturating_add(u32::MAX as usize));
        let data = file.get(start..end).unwrap_or_default();
        let out = Pickle {
            data,
            root: Value::Plain,
            end: start,
            tuples: Vec::new(),
            items: Vec::new(),
            containers: 0,
            globals: Vec::new(),
            storages: Vec::new(),
            tensors: Vec::new(),
        };
        let reader = Reader::new(file, start, end);
        let mut machine =
            Machine { reader, start, stack: Vec::new(), marks: Vec::new(), memo: BTreeMap::new(), at: start, out };
        for _ in 0..MAX_INSTRUCTIONS {
            machine.at = machine.reader.at();
            if let Some(root) = machine.step()? {
                let end = machine.reader.at();
                let mut pickle = machine.out;
                (pickle.root, pickle.end) = (root, end);
                // Stable: what was added first stays first.
                pickle.items.sort_by_key(|item| item.container);
                return Ok(pickle);
            }
        }
        fail(machine.at, format!("more than {MAX_INSTRUCTIONS} pickle instructions: no state dict needs so many"))
    }

    /// The bytes of text.
    pub fn bytes(&self, span: Span) -> &'a [u8] {
        &self.data[span.range()]
    }

    /// A tuple's items.
    pub fn tuple(&self, span: Span) -> &[Value] {
        &self.tuples[span.range()]
    }

    /// The items of the list or dictionary with this number.
    pub fn items(&self, container: u32) -> &[Item] {
        let first = self.items.partition_point(|item| item.container < container);
        let rest = &self.items[first..];
        &rest[..rest.partition_point(|item| item.container == container)]
    }

    /// Keys and values, if `value` is a dictionary.
    pub fn dict(&self, value: Value) -> Option<Vec<(Value, Value)>> {
        match value {
            Value::Dict(id) => Some(self.items(id).iter().map(|item| (item.key, item.value)).collect()),
            Value::Pairs(id) => self.items(id).iter().map(|item| self.pair(item.value)).collect(),
            _ => None,
        }
    }

    fn pair(&self, value: Value) -> Option<(Value, Value)> {
        match value {
            Value::Tuple(span) => match self.tuple(span) {
                &[key, value] => Some((key, value)),
                _ => None,
            },
            Value::List(id) => match self.items(id) {
                [key, value] => Some((key.value, value.value)),
                _ => None,
            },
            _ => None,
        }
    }

    /// `module.name` of a class or function, to be shown.
    pub fn global_name(&self, global: Option<u32>) -> String {
        match global.and_then(|number| self.globals.get(number as usize)) {
            Some(&(module, name)) => format!("{}.{}", shown(self.bytes(module)), shown(self.bytes(name))),
            None => "a value made by code".to_string(),
        }
    }
}

/// What a value is, in words.
pub(super) fn kind(value: Value) -> &'static str {
    match value {
        Value::Plain => "a plain value",
        Value::Bool(_) => "a boolean",
        Value::Int(_) => "an integer",
        Value::Bytes(_) => "a text",
        Value::Tuple(_) => "a tuple",
        Value::List(_) => "a list",
        Value::Dict(_) | Value::Pairs(_) => "a dictionary",
        Value::Global(_) => "a class or function",
        Value::Storage(_) => "a storage",
        Value::Tensor(_) => "a tensor",
        Value::Opaque(_) => "an object",
    }
}

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

use super::bytes::{Parsed, Reader, fail, shown};
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

struct Machine<'a> {
    reader: Reader<'a>,
    /// Where the pickle begins in the file.
    start: usize,
    stack: Vec<Value>,
    /// Heights of the stack.
    marks: Vec<u32>,
    /// A map and not a list: the numbers are the file's to choose.
    memo: BTreeMap<u32, Value>,
    /// Where the current instruction begins in the file.
    at: usize,
    out: Pickle<'a>,
}

impl Machine<'_> {
    /// Runs one instruction; the last one returns the pickle's value.
    fn step(&mut self) -> Parsed<Option<Value>> {
        match self.reader.u8()? {
            // Framing: protocol and frame length.
            0x80 => match self.reader.u8()? {
                0..=5 => {}
                protocol => return self.fail(format!("pickle protocol {protocol} is not known")),
            },
            0x95 => {
                let length = self.reader.u64()?;
                if length > self.reader.remaining() as u64 {
                    return self.fail(format!("a frame of {length} bytes, and {} follow", self.reader.remaining()));
                }
            }
            b'.' => return self.pop().map(Some),

            // Values.
            b'N' => self.stack.push(Value::Plain),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'J' => {
                let value = self.reader.u32()? as i32;
                self.stack.push(Value::Int(value.into()));
            }
            b'K' => {
                let value = self.reader.u8()?;
                self.stack.push(Value::Int(value.into()));
            }
            b'M' => {
                let value = self.reader.u16()?;
                self.stack.push(Value::Int(value.into()));
            }
            0x8a => {
                let len = self.reader.u8()?;
                self.push_long(len.into())?;
            }
            0x8b => {
                let len = self.reader.u32()?;
                self.push_long(len.into())?;
            }
            b'G' => {
                self.reader.take(8)?;
                self.stack.push(Value::Plain);
            }
            // Text and bytes, with a length of 8, 32 or 64 bits.
            0x8c | b'U' | b'C' => {
                let len = self.reader.u8()?;
                self.push_bytes(len.into())?;
            }
            b'X' | b'T' | b'B' => {
                let len = self.reader.u32()?;
                self.push_bytes(len.into())?;
            }
            0x8d | 0x8e | 0x96 => {
                let len = self.reader.u64()?;
                self.push_bytes(len)?;
            }

            // Containers.
            b'(' => {
                let height = self.height()?;
                self.marks.push(height);
            }
            b')' => self.push_tuple(0)?,
            0x85 => self.push_tuple(1)?,
            0x86 => self.push_tuple(2)?,
            0x87 => self.push_tuple(3)?,
            b't' => {
                let height = self.pop_mark()?;
                self.push_tuple(self.stack.len() - height)?;
            }
            b']' | 0x8f => {
                let id = self.new_container();
                self.stack.push(Value::List(id));
            }
            b'}' => {
                let id = self.new_container();
                self.stack.push(Value::Dict(id));
            }
            b'l' => self.close_container(false)?,
            b'd' => self.close_container(true)?,
            0x91 => {
                let height = self.pop_mark()?;
                self.stack.truncate(height);
                self.stack.push(Value::Plain);
            }
            b'a' => self.append(self.stack.len().saturating_sub(1))?,
            b'e' | 0x90 => {
                let height = self.pop_mark()?;
                self.append(height)?;
            }
            b's' => self.set_items(self.stack.len().saturating_sub(2))?,
            b'u' => {
                let height = self.pop_mark()?;
                self.set_items(height)?;
            }

            // The stack and the memo.
            b'0' => {
                // Also takes back a mark, if that is what is on top.
                if self.marks.last().is_some_and(|&mark| mark as usize == self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => {
                let height = self.pop_mark()?;
                self.stack.truncate(height);
            }
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'h' => {
                let index = self.reader.u8()?;
                self.recall(index.into())?;
            }
            b'j' => {
                let index = self.reader.u32()?;
                self.recall(index)?;
            }
            b'q' => {
                let index = self.reader.u8()?;
                self.memorize(index.into())?;
            }
            b'r' => {
                let index = self.reader.u32()?;
                self.memorize(index)?;
            }
            0x94 => self.memorize(self.memo.len() as u32)?,

            // What would be code.
            b'c' => {
                let (module, name) = (self.reader.line()?, self.reader.line()?);
                let name_start = self.offset() - name.len() - 1;
                let module_start = name_start - module.len() - 1;
                let span = |start: usize, text: &[u8]| Span { start: start as u32, len: text.len() as u32 };
                self.push_global(span(module_start, module), span(name_start, name));
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Bytes(name), Value::Bytes(module)) => self.push_global(module, name),
                _ => return self.fail("a class is named by something that is not text"),
            },
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                let value = self.call(callable, arguments)?;
                self.stack.push(value);
            }
            0x92 => {
                let (_keywords, arguments, callable) = (self.pop()?, self.pop()?, self.pop()?);
                let value = self.call(callable, arguments)?;
                self.stack.push(value);
            }
            // BUILD sets attributes, of which data has none: `_metadata` of a state dict, the state of an object.
            b'b' => {
                self.pop()?;
                self.top()?;
            }
            b'Q' => {
                let reference = self.pop()?;
                let storage = self.storage(reference)?;
                self.stack.push(storage);
            }
            opcode => {
                let what = if opcode.is_ascii_graphic() { format!("`{}`", opcode as char) } else { String::new() };
                return self.fail(format!("pickle instruction {opcode:#04x} {what} has no place in a checkpoint"));
            }
        }
        Ok(None)
    }

    fn fail<T>(&self, what: impl Into<String>) -> Parsed<T> {
        fail(self.at, what)
    }

    /// The reader's place in the pickle; fits 32 bits since the pickle does.
    fn offset(&self) -> usize {
        self.reader.at() - self.start
    }

    fn height(&self) -> Parsed<u32> {
        // Cannot fail: an instruction pushes one value, and their number is limited.
        u32::try_from(self.stack.len()).or_else(|_| self.fail("the pickle's stack is too high"))
    }

    /// The lowest stack position that belongs to the innermost mark.
    fn floor(&self) -> usize {
        self.marks.last().map_or(0, |&mark| mark as usize)
    }

    fn top(&self) -> Parsed<Value> {
        match self.stack.last() {
            Some(&value) if self.stack.len() > self.floor() => Ok(value),
            _ => self.fail("the pickle takes a value that it has not made"),
        }
    }

    fn pop(&mut self) -> Parsed<Value> {
        let value = self.top()?;
        self.stack.pop();
        Ok(value)
    }

    fn pop_mark(&mut self) -> Parsed<usize> {
        match self.marks.pop() {
            Some(mark) => Ok(mark as usize),
            None => self.fail("the pickle goes back to a mark that it has not set"),
        }
    }

    fn recall(&mut self, index: u32) -> Parsed<()> {
        match self.memo.get(&index) {
            Some(&value) => {
                self.stack.push(value);
                Ok(())
            }
            None => self.fail(format!("the pickle recalls value {index}, which it has not stored")),
        }
    }

    fn memorize(&mut self, index: u32) -> Parsed<()> {
        let value = self.top()?;
        self.memo.insert(index, value);
        Ok(())
    }

    fn push_bytes(&mut self, len: u64) -> Parsed<()> {
        let start = self.offset() as u32;
        let bytes = self.reader.take_u64(len)?;
        self.stack.push(Value::Bytes(Span { start, len: bytes.len() as u32 }));
        Ok(())
    }

    fn push_long(&mut self, len: u64) -> Parsed<()> {
        self.push_bytes(len)?;
        if let Some(Value::Bytes(span)) = self.stack.last().copied()
            && span.len <= 8
        {
            // Two's complement, little-endian, as short as it gets.
            let bytes = self.out.bytes(span);
            let mut wide = if bytes.last().is_some_and(|&b| b >= 0x80) { [0xFF; 8] } else { [0; 8] };
            wide[..bytes.len()].copy_from_slice(bytes);
            self.stack.pop();
            self.stack.push(Value::Int(i64::from_le_bytes(wide)));
        }
        Ok(())
    }

    /// Makes a tuple of the topmost `len` values.
    fn push_tuple(&mut self, len: usize) -> Parsed<()> {
        let Some(first) = self.stack.len().checked_sub(len).filter(|&first| first >= self.floor()) else {
            return self.fail("the pickle takes a value that it has not made");
        };
        let start = self.out.tuples.len() as u32;
        self.out.tuples.extend(self.stack.drain(first..));
        self.stack.push(Value::Tuple(Span { start, len: len as u32 }));
        Ok(())
    }

    fn new_container(&mut self) -> u32 {
        self.out.containers += 1;
        self.out.containers
    }

    /// Makes a list or dictionary of everything above the mark.
    fn close_container(&mut self, dict: bool) -> Parsed<()> {
        let height = self.pop_mark()?;
        let id = self.new_container();
        self.stack.insert(height, if dict { Value::Dict(id) } else { Value::List(id) });
        if dict { self.set_items(height + 1) } else { self.append(height + 1) }
    }

    /// The container that the values from `first` on go into.
    fn target(&self, first: usize) -> Parsed<Value> {
        match first.checked_sub(1).filter(|&at| at >= self.floor()).and_then(|at| self.stack.get(at)) {
            Some(&container) => Ok(container),
            None => self.fail("the pickle fills a container that it has not made"),
        }
    }

    fn append(&mut self, first: usize) -> Parsed<()> {
        match self.target(first)? {
            Value::List(container) => {
                let items = self.stack[first..].iter();
                self.out.items.extend(items.map(|&value| Item { container, key: Value::Plain, value }));
            }
            Value::Opaque(_) => {}
            other => return self.fail(format!("{} is not a list", kind(other))),
        }
        self.stack.truncate(first);
        Ok(())
    }

    fn set_items(&mut self, first: usize) -> Parsed<()> {
        match self.target(first)? {
            Value::Dict(container) => {
                let (pairs, rest) = self.stack[first..].as_chunks::<2>();
                if !rest.is_empty() {
                    return self.fail("a dictionary gets a key without a value");
                }
                self.out.items.extend(pairs.iter().map(|&[key, value]| Item { container, key, value }));
            }
            Value::Opaque(_) => {}
            other => return self.fail(format!("{} is not a dictionary", kind(other))),
        }
        self.stack.truncate(first);
        Ok(())
    }

    fn push_global(&mut self, module: Span, name: Span) {
        self.out.globals.push((module, name));
        self.stack.push(Value::Global(self.out.globals.len() as u32 - 1));
    }

    /// Stands in for a call. Nothing is called.
    fn call(&mut self, callable: Value, arguments: Value) -> Parsed<Value> {
        let number = match callable {
            Value::Global(number) => number,
            Value::Opaque(number) => return Ok(Value::Opaque(number)),
            other => return self.fail(format!("{} is called like a function", kind(other))),
        };
        let Value::Tuple(span) = arguments else {
            return self.fail(format!("the arguments of a call are {}, not a tuple", kind(arguments)));
        };
        let (module, name) = self.out.globals[number as usize];
        let arguments = self.out.tuple(span);
        match (self.out.bytes(module), self.out.bytes(name), arguments) {
            (b"collections", b"OrderedDict", []) => Ok(Value::Dict(self.new_container())),
            (b"collections", b"OrderedDict", &[Value::List(pairs)]) => Ok(Value::Pairs(pairs)),
            (b"torch._utils", b"_rebuild_parameter" | b"_rebuild_parameter_with_state", &[data, ..]) => match data {
                Value::Tensor(_) | Value::Opaque(_) => Ok(data),
                other => self.fail(format!("a parameter is made of {}, not of a tensor", kind(other))),
            },
            (
                b"torch._utils",
                b"_rebuild_tensor" | b"_rebuild_tensor_v2",
                &[storage, Value::Int(offset), shape @ Value::Tuple(_), strides @ Value::Tuple(_), ..],
            ) => match storage {
                Value::Storage(storage) => {
                    self.out.tensors.push(TensorView { storage, offset, shape, strides, at: self.at });
                    Ok(Value::Tensor(self.out.tensors.len() as u32 - 1))
                }
                Value::Opaque(_) => Ok(storage),
                other => self.fail(format!("a tensor is made of {}, not of a storage", kind(other))),
            },
            (b"torch._utils", b"_rebuild_tensor" | b"_rebuild_tensor_v2", _) => {
                self.fail("a tensor is not made of storage, offset, shape and strides")
            }
            // A tensor of a type without a storage class of its own, whose name says more than the function's.
            (b"torch._utils", b"_rebuild_tensor_v3", &[_, _, _, _, _, _, Value::Global(dtype), ..]) => {
                Ok(Value::Opaque(Some(dtype)))
            }
            _ => Ok(Value::Opaque(Some(number))),
        }
    }

    /// A persistent reference: `("storage", class, key, device, elements[, view])`.
    fn storage(&mut self, reference: Value) -> Parsed<Value> {
        let parts = match reference {
            Value::Tuple(span) => self.out.tuple(span),
            _ => &[],
        };
        let (class, key, len, view) = match *parts {
            [Value::Bytes(tag), Value::Global(class), Value::Bytes(key), _, Value::Int(len)]
                if self.out.bytes(tag) == b"storage" =>
            {
                (class, key, len, None)
            }
            [Value::Bytes(tag), Value::Global(class), Value::Bytes(key), _, Value::Int(len), view]
                if self.out.bytes(tag) == b"storage" =>
            {
                let view = match view {
                    Value::Tuple(span) => match *self.out.tuple(span) {
                        [_, Value::Int(first), Value::Int(len)] => Some((first, len)),
                        _ => return self.fail("a view of a storage is not described by key, offset and length"),
                    },
                    _ => None,
                };
                (class, key, len, view)
            }
            _ => return self.fail("a reference to something that is not a storage of torch.save's"),
        };
        let (module, name) = self.out.globals[class as usize];
        if !matches!(self.out.bytes(module), b"torch" | b"torch.cuda" | b"torch.storage") {
            return Ok(Value::Opaque(Some(class)));
        }
        if key.len > MAX_STORAGE_KEY {
            return self.fail("a storage's key is longer than a number or an address can be");
        }
        self.out.storages.push(Storage { class: name, key, len, view });
        Ok(Value::Storage(self.out.storages.len() as u32 - 1))
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

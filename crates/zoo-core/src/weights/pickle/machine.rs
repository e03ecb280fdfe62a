//! The machine itself: a stack, a memo, and what each instruction does to them.

use super::{Item, Pickle, Span, Value, kind};
use crate::weights::bytes::{Parsed, Reader, fail};
use std::collections::BTreeMap;

pub(super) struct Machine<'a> {
    pub reader: Reader<'a>,
    /// Where the pickle begins in the file.
    pub start: usize,
    pub stack: Vec<Value>,
    /// Heights of the stack.
    pub marks: Vec<u32>,
    /// A map and not a list: the numbers are the file's to choose.
    pub memo: BTreeMap<u32, Value>,
    /// Where the current instruction begins in the file.
    pub at: usize,
    pub out: Pickle<'a>,
}

impl Machine<'_> {
    /// Runs one instruction; the last one returns the pickle's value.
    pub fn step(&mut self) -> Parsed<Option<Value>> {
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

    pub fn fail<T>(&self, what: impl Into<String>) -> Parsed<T> {
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

    pub fn new_container(&mut self) -> u32 {
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
}

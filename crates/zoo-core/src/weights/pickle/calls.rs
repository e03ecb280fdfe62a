//! What stands in for calls and references: the few that make data.

use super::machine::Machine;
use super::{MAX_STORAGE_KEY, Storage, TensorView, Value, kind};
use crate::weights::bytes::Parsed;

impl Machine<'_> {
    /// Stands in for a call. Nothing is called.
    pub fn call(&mut self, callable: Value, arguments: Value) -> Parsed<Value> {
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
    pub fn storage(&mut self, reference: Value) -> Parsed<Value> {
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

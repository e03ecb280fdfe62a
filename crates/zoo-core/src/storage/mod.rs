//! From tensors to the slices that the kernels work on, and back.

mod maps;

pub(crate) use maps::{add_maps, add_to_map, convert, map, planes, rows, with_rows};

use crate::kernels::Real;
use crate::kernels::batch_norm::add_to;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Result, Shape, Storage, Tensor, WithDType, bail};
use std::any::Any;

/// Runs a generic kernel for the element type that a storage holds.
macro_rules! for_real {
    ($op:expr, $storage:expr, $T:ident => $body:expr) => {
        match $storage {
            candle_core::CpuStorage::F32(_) => {
                type $T = f32;
                $body
            }
            candle_core::CpuStorage::F64(_) => {
                type $T = f64;
                $body
            }
            other => candle_core::bail!(
                "{}: no CPU kernel for {:?}",
                $op,
                candle_core::backend::BackendStorage::dtype(other)
            ),
        }
    };
}
pub(crate) use for_real;

/// The elements of a contiguous tensor, from its first.
pub(crate) fn elements<'a, T: WithDType>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&T::cpu_storage_as_slice(storage)?[start..end]),
        None => bail!("{op}: the kernel wants contiguous tensors, got strides {:?}", layout.stride()),
    }
}

/// The elements of a storage of this type, to write to.
pub(crate) fn elements_mut<T: Real>(storage: &mut CpuStorage) -> Option<&mut [T]> {
    let elements: &mut dyn Any = match storage {
        CpuStorage::F32(elements) => elements,
        CpuStorage::F64(elements) => elements,
        _ => return None,
    };
    elements.downcast_mut::<Vec<T>>().map(Vec::as_mut_slice)
}

/// Runs a generic body for an element type.
macro_rules! for_dtype {
    ($op:expr, $dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $T = f64;
                $body
            }
            other => candle_core::bail!("{}: no CPU kernel for {other:?}", $op),
        }
    };
}
pub(crate) use for_dtype;

/// Lends the elements of a contiguous tensor on the CPU.
pub(crate) fn read<T: Real, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> R) -> Result<R> {
    with_elements("read", &[tensor], |all| Ok(f(all[0])))
}

/// Runs `f` on the elements of contiguous tensors on the host.
pub(crate) fn with_elements<T: WithDType, R>(
    op: &str,
    tensors: &[&Tensor],
    f: impl FnOnce(&[&[T]]) -> Result<R>,
) -> Result<R> {
    let guards: Vec<_> = tensors.iter().map(|t| t.storage_and_layout()).collect();
    let mut slices = Vec::with_capacity(guards.len());
    for (storage, layout) in &guards {
        match &**storage {
            Storage::Cpu(storage) => slices.push(elements::<T>(op, storage, layout)?),
            _ => bail!("{op}: the kernel wants tensors on the host"),
        }
    }
    f(&slices)
}

/// A tensor of elements that a kernel has made.
pub(crate) fn tensor<T: Real>(elements: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(elements, shape.into(), &Device::Cpu)
}

/// Where a tensor lies: its place is nobody else's as long as it is held.
pub(crate) fn place(weight: &Tensor) -> usize {
    let (storage, layout) = weight.storage_and_layout();
    std::ptr::from_ref(&*storage).addr() + layout.start_offset()
}

/// Adds `from` to `to`, which is contiguous, in `to`'s memory; see [`has_whole_rows`].
pub(crate) fn add_in_place(to: &Tensor, from: &Tensor) -> Result<()> {
    to.inplace_op2(from, &AddTo)
}

/// The first tensor gets the second added.
struct AddTo;

impl InplaceOp2 for AddTo {
    fn name(&self) -> &'static str {
        "add in place"
    }

    fn cpu_fwd(&self, to: &mut CpuStorage, to_layout: &Layout, from: &CpuStorage, from_layout: &Layout) -> Result<()> {
        let Some((start, end)) = to_layout.contiguous_offsets() else {
            bail!("add in place: wants contiguous tensors, got strides {:?}", to_layout.stride())
        };
        match to {
            CpuStorage::F32(to) => add_rows(&mut to[start..end], from, from_layout),
            CpuStorage::F64(to) => add_rows(&mut to[start..end], from, from_layout),
            other => bail!("add in place: no CPU kernel for {:?}", other.dtype()),
        }
    }
}

/// Adds a tensor that is contiguous within its rows, as a slice of channels is.
fn add_rows<T: Real>(to: &mut [T], from: &CpuStorage, layout: &Layout) -> Result<()> {
    if layout.is_contiguous() {
        add_to(to, elements("add in place", from, layout)?);
        return Ok(());
    }
    let rows = layout.dims()[0];
    let from = &T::cpu_storage_as_slice(from)?[layout.start_offset()..];
    let (row, step) = (to.len() / rows, layout.stride()[0]);
    to.chunks_exact_mut(row).zip(from.chunks(step)).for_each(|(to, from)| add_to(to, &from[..row]));
    Ok(())
}

/// Whether [`add_in_place`] can read a tensor: contiguous within its rows, as a slice of channels is.
pub(crate) fn has_whole_rows(from: &Tensor) -> bool {
    let (dims, stride) = (from.dims(), from.stride());
    let mut each = 1;
    let rows = dims.iter().zip(stride).skip(1).rev().all(|(&n, &step)| {
        let fits = n == 1 || step == each;
        each *= n;
        fits
    });
    from.is_contiguous() || (rows && from.rank() > 1 && stride[0] >= each && from.elem_count() > 0)
}

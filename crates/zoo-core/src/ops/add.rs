//! The sum of two tensors: where a shortcut meets its branch, and where two gradients meet.

use super::{Path, Real, elements, for_real, path};
use crate::kernels::batch_norm::add_to;
use crate::kernels::copy;
use crate::{tape, trace};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, InplaceOp2, Layout, Result, Shape, Tensor, WithDType, bail};

/// a + b, element by element, of one shape and type.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let (a, b) = (Tensor::new(&[1f32, 2.], &Device::Cpu)?, Tensor::new(&[10f32, 20.], &Device::Cpu)?);
/// assert_eq!(zoo_core::ops::add(&a, &b)?.to_vec1::<f32>()?, [11., 22.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Shapes or types that differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() || a.dtype() != b.dtype() {
        bail!("add: {:?} {:?} and {:?} {:?} do not fit together", a.dims(), a.dtype(), b.dims(), b.dtype())
    }
    match path(a) {
        Path::Shape => trace::shape_only(a.dims(), a.dtype(), a.device()),
        Path::Kernel if a.elem_count() > 0 => tape::apply2(&tape::contiguous(a)?, &tape::contiguous(b)?, Add),
        _ => a + b,
    }
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, a: &CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!("add", a, T => {
            let ys = copy::add::<T>(elements("add", a, al)?, elements("add", b, bl)?);
            Ok((T::to_cpu_storage_owned(ys), al.shape().clone()))
        })
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((tape::tracks(a).then(|| grad.clone()), tape::tracks(b).then(|| grad.clone())))
    }
}

/// The first tensor gets the second added.
pub(crate) struct AddTo;

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

/// Whether [`AddTo`] can read a tensor.
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

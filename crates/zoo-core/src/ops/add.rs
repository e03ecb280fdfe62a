//! The sum of two tensors: where a shortcut meets its branch, and where two gradients meet.

use super::cpu::batch_norm::add_to;
use super::{Path, elements, for_dtype, path, read, tensor};
use crate::tape::{self, Gradient};
use crate::trace;
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, WithDType, bail};

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
        Path::Kernel if tape::is_recording() || !(a.track_op() || b.track_op()) => {
            let (a, b) = (tape::contiguous(a)?, tape::contiguous(b)?);
            let sum = for_dtype!("add", a.dtype(), T => {
                let sum = read::<T, _>(&a, |a| read::<T, _>(&b, |b| {
                    let mut sum = a.to_vec();
                    add_to(&mut sum, b);
                    sum
                }))??;
                tensor(sum, a.shape())?
            });
            tape::record("add", &[&a, &b], &sum, |grad| {
                let half = || Some(Gradient { tensor: grad.tensor.clone(), owned: false });
                Ok(vec![half(), half()])
            });
            Ok(sum)
        }
        _ => a + b,
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
            CpuStorage::F32(to) => add_to(&mut to[start..end], elements("add in place", from, from_layout)?),
            CpuStorage::F64(to) => add_to(&mut to[start..end], elements("add in place", from, from_layout)?),
            _ => bail!("add in place: no CPU kernel for {:?}", f32::DTYPE),
        }
        Ok(())
    }
}

//! Operations with their own forward and backward: the one seam between the layers and the machine.
//!
//! Each file holds one operation: its public function, which checks shapes and chooses the path, and the `CustomOp`s that
//! put it on candle's graph. The kernels stand below: `cpu/` for the host. On any other device, and for any element type
//! without a kernel, the operation is composed of candle's own ops (`compose.rs`) whose gradient is right: slower,
//! never an error. Metal has no kernels here and always takes the composition.
//!
//! Three rules hold throughout. An input that does not ask for its gradient costs none (`Tensor::track_op`). Tensors may
//! arrive strided or offset; they are made contiguous at the door. A malformed shape is an error that names the
//! operation and the shapes.

pub(crate) mod compose;
pub(crate) mod cpu;

mod add;
mod avg_pool;
mod batch_norm;
pub(crate) mod branch;
mod conv2d;
mod conv_bn;
mod cross_entropy;
mod join;
pub(crate) mod joined;
mod layer_norm;
mod linear;
mod matmul;
mod max_pool;
pub mod optim;
pub(crate) mod pointwise;
mod softmax;

pub use add::add;
pub(crate) use add::{AddTo, has_whole_rows};
pub use avg_pool::{adaptive_avg_pool2d, avg_pool2d};
pub use batch_norm::{BatchStats, batch_norm, batch_stats};
pub(crate) use batch_norm::{Norm, batch_norm_act};
pub(crate) use conv_bn::{Scale, conv_bn_eval, conv_bn_train};
pub use conv2d::{Conv2dParams, conv2d};
pub(crate) use cpu::clamp::Clamp;
pub use cpu::simd::{self, Level};
pub use cross_entropy::cross_entropy;
pub use join::{channel_shuffle, concat, pad_channels};
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use matmul::matmul;
pub use max_pool::max_pool2d;
pub use pointwise::{Pointwise, pointwise};
pub use softmax::softmax;

use crate::{tape, trace};
use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, WithDType, bail};
use cpu::simd::Simd;
use std::cell::Cell;

/// The element types that have kernels: f32 to work in, f64 to check gradients in.
pub(crate) trait Real: WithDType + std::ops::Neg<Output = Self> {
    /// The registers of each kind that hold it.
    #[cfg(target_arch = "x86_64")]
    type Avx512: Simd<Elem = Self>;
    #[cfg(target_arch = "x86_64")]
    type Avx2: Simd<Elem = Self>;
    type Portable: Simd<Elem = Self>;

    /// The elements of a storage of this type, to write to.
    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

impl Real for f32 {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = cpu::simd::x86::F32x16;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = cpu::simd::x86::F32x8;
    type Portable = cpu::simd::Lanes<f32, 8>;

    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::F32(elements) = storage { Some(elements) } else { None }
    }
}

impl Real for f64 {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = cpu::simd::x86::F64x8;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = cpu::simd::x86::F64x4;
    type Portable = cpu::simd::Lanes<f64, 4>;

    fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::F64(elements) = storage { Some(elements) } else { None }
    }
}

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
pub(crate) fn elements<'a, T: Real>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&T::cpu_storage_as_slice(storage)?[start..end]),
        None => bail!("{op}: the kernel wants contiguous tensors, got strides {:?}", layout.stride()),
    }
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
pub(crate) fn with_elements<T: Real, R>(
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

/// Where an operation runs.
pub(crate) enum Path {
    /// Nowhere: a tracer looks on, and only the output's shape is wanted.
    Shape,
    /// A kernel of ours, in the tensor's own type.
    Kernel,
    /// A kernel of ours, in f32, for the half types on the CPU.
    KernelInF32,
    /// A composition of candle's ops.
    Compose,
}

thread_local! {
    static COMPOSED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with every operation composed of candle's own ops, as on a device without kernels: the reference that the
/// kernels are tested against, and a way to tell whether a kernel is to blame. The backward pass of what `f` computed
/// stays composed, wherever it runs.
pub fn composed<R>(f: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            COMPOSED.set(self.0);
        }
    }
    let _restore = Restore(COMPOSED.replace(true));
    f()
}

/// Whether a tensor is for our kernels and asks for no gradient: an operation that fuses several may take it.
pub(crate) fn is_plain(xs: &Tensor) -> bool {
    matches!(path(xs), Path::Kernel) && !tape::tracks(xs)
}

/// Chooses the path from device and element type.
pub(crate) fn path(xs: &Tensor) -> Path {
    if trace::is_tracing() {
        return Path::Shape;
    }
    if COMPOSED.get() {
        return Path::Compose;
    }
    match (xs.device().is_cpu(), xs.dtype()) {
        (true, DType::F32 | DType::F64) => Path::Kernel,
        (true, DType::F16 | DType::BF16) => Path::KernelInF32,
        _ => Path::Compose,
    }
}

/// Output length of a convolution or pooling along one dimension:
/// ⌊(n + 2p - d(k - 1) - 1) / s⌋ + 1. `None` when no window fits.
pub(crate) fn output_size(n: usize, kernel: usize, stride: usize, padding: usize, dilation: usize) -> Option<usize> {
    let span = dilation * (kernel - 1) + 1;
    Some((n + 2 * padding).checked_sub(span)? / stride + 1)
}

/// The output positions `o` in `0..out` whose tap `o·stride + offset` lies inside `0..n`.
pub(crate) fn valid_outputs(out: usize, n: usize, stride: usize, offset: isize) -> std::ops::Range<usize> {
    let first = if offset >= 0 { 0 } else { (-offset as usize).div_ceil(stride) };
    let last = n as isize - 1 - offset;
    let end = if last < 0 { 0 } else { (last as usize / stride + 1).min(out) };
    first.min(end)..end
}

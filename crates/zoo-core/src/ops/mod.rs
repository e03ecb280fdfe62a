//! Operations with their own forward and backward: the one seam between the layers and the machine.
//!
//! Each file holds one operation: its public function, which checks shapes and chooses the path, and the `CustomOp`s that
//! put it on candle's graph. The kernels stand below, in `kernels/`. On any other device, and for any element type
//! without a kernel, the operation is composed of candle's own ops (`compose.rs`) whose gradient is right: slower,
//! never an error. Metal has no kernels here and always takes the composition.
//!
//! Three rules hold throughout. An input that does not ask for its gradient costs none (`Tensor::track_op`). Tensors may
//! arrive strided or offset; they are made contiguous at the door. A malformed shape is an error that names the
//! operation and the shapes.

pub(crate) mod compose;

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
pub use conv2d::conv2d;
pub use cross_entropy::cross_entropy;
pub use join::{channel_shuffle, concat, pad_channels};
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use matmul::matmul;
pub use max_pool::max_pool2d;
pub use pointwise::pointwise;
pub use softmax::softmax;

pub(crate) use crate::kernels::Real;
pub use crate::kernels::conv::Conv2dParams;
pub(crate) use crate::kernels::fused_activation::FusedActivation;
pub use crate::kernels::pointwise::Pointwise;
pub use crate::kernels::simd::{self, Level};
pub(crate) use crate::storage::{elements, elements_mut, for_dtype, for_real, read, tensor, with_elements};

use crate::{tape, trace};
use candle_core::{DType, Tensor};
use std::cell::Cell;

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

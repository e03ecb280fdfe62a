//! Operations with their own forward and backward: the one seam between the layers and the machine.
//!
//! Each file holds one operation: its public function, which checks shapes, and an `Op` (`op.rs`), which states
//! both passes on slices. The kernels stand below, in `kernels/`. On any other device, and for any element type without
//! a kernel, the operation is made of candle's own (`fallback.rs`) whose gradient is right: slower, never an error.
//! Metal has no kernels here and always takes the fallback. What is several layers at once stands in `fused/`.
//!
//! Three rules hold throughout. An input that does not ask for its gradient costs none (`Tensor::track_op`). Tensors
//! may arrive strided or offset; they are made contiguous at the door. A malformed shape is an error that names the
//! operation and the shapes.

pub(crate) mod fallback;

mod add;
mod attention;
mod avg_pool;
pub(crate) mod batch_norm;
mod concat;
pub(crate) mod conv2d;
mod cross_entropy;
pub(crate) mod fused;
mod layer_norm;
mod linear;
mod matmul;
mod max_pool;
pub mod optim;
pub(crate) mod pointwise;
pub(crate) mod scale;
mod softmax;
mod tokens;

pub use add::add;
pub use attention::self_attention;
pub use avg_pool::{adaptive_avg_pool2d, avg_pool2d};
pub use batch_norm::{BatchStats, batch_norm, batch_stats};
pub(crate) use batch_norm::{Norm, batch_norm_act};
pub use concat::{channel_shuffle, concat, pad_channels};
pub use conv2d::conv2d;
pub use cross_entropy::cross_entropy;
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use matmul::matmul;
pub use max_pool::max_pool2d;
pub use pointwise::pointwise;
pub use softmax::softmax;
pub use tokens::{add_positions, first_token, mean_channels, mean_tokens, prepend_token, tokens, transpose};

pub(crate) use crate::kernels::Real;
pub use crate::kernels::conv::Conv2dParams;
pub(crate) use crate::kernels::fused_activation::FusedActivation;
pub use crate::kernels::pointwise::Pointwise;
pub use crate::kernels::simd::{self, Level};
pub use crate::pass::with_fallback;
pub(crate) use crate::storage::{elements, elements_mut, for_dtype, read, tensor, with_elements};

use candle_core::{DType, Tensor};

/// Whether an operation on `xs` can read this weight: it is of the same type, or `xs` is a bfloat16 map and it f32.
pub(crate) fn fits_type(xs: &Tensor, weight: &Tensor) -> bool {
    weight.dtype() == xs.dtype() || (xs.dtype() == DType::BF16 && weight.dtype() == DType::F32)
}

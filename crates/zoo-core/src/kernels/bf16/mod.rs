//! Kernels of mixed precision: maps of bfloat16 numbers, channels innermost; weights, statistics and sums in f32.
//!
//! A map (b, c, h, w) lies in memory as rows of c channels, one row a pixel, image by image. Products of bfloat16 numbers
//! are exact in f32; sums are taken in f32, and what a kernel makes is rounded once, to nearest even.

pub(crate) mod bias;
pub(crate) mod channels;
pub(crate) mod concat_norm;
pub(crate) mod conv;
mod correlation;
pub(crate) mod depthwise;
mod frame;
pub(crate) mod layout;
pub(crate) mod norm;
mod pack;
pub(crate) mod pointwise;
pub(crate) mod pool;
pub(crate) mod scale;
mod sizes;
#[cfg_attr(not(test), expect(dead_code, reason = "attention takes it up next"))]
pub(crate) mod softmax;
mod store;
mod tiles;
pub(crate) mod walk;
mod weight_grad;

pub(crate) use store::Finish;

//! Kernels of mixed precision: maps of bfloat16 numbers, channels innermost; weights, statistics and sums in f32.
//!
//! A map (b, c, h, w) lies in memory as rows of c channels, one row a pixel, image by image. Products of bfloat16 numbers
//! are exact in f32; sums are taken in f32, and what a kernel makes is rounded once, to nearest even.

pub(crate) mod channels;
pub(crate) mod concat_norm;
pub(crate) mod layout;
pub(crate) mod norm;
pub(crate) mod pointwise;
pub(crate) mod pool;
#[expect(dead_code, reason = "the linear map takes it up next")]
mod product;
pub(crate) mod scale;
pub(crate) mod walk;

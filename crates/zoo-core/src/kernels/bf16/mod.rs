//! Kernels of mixed precision: maps of bfloat16 numbers, channels innermost; weights, statistics and sums in f32.
//!
//! A map (b, c, h, w) lies in memory as rows of c channels, one row a pixel, image by image. Products of bfloat16 numbers
//! are exact in f32; sums are taken in f32, and what a kernel makes is rounded once, to nearest even.

pub(crate) mod attention;
pub(crate) mod bias;
pub(crate) mod branch;
pub(crate) mod channels;
pub(crate) mod concat_norm;
pub(crate) mod conv;
mod correlation;
pub(crate) mod dense_unit;
pub(crate) mod depthwise;
mod frame;
pub(crate) mod layout;
mod matrix;
pub(crate) mod norm;
mod pack;
pub(crate) mod pointwise;
pub(crate) mod pool;
pub(crate) mod row_mean;
pub(crate) mod scale;
mod sizes;
mod softmax;
mod store;
mod tiles;
mod token_chunks;
mod token_mixing;
pub(crate) mod walk;
mod weight_grad;
mod weights;

pub(crate) use store::{Finish, mean_and_var};

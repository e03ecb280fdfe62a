//! Every operation against plain loops in f64: output and every gradient, over random shapes, layouts and values, with
//! every kind of vectors that this machine has, in f32 and in f64. And what the loops show besides: NaN and infinities
//! go where IEEE arithmetic sends them, the number of threads changes no bit, a malformed shape is an error that names
//! the shapes.
//!
//! # The rule of errors
//!
//! Rounding errors grow with what was summed, not with the sum. So the reference computes a second number beside each
//! value, its scale: of an input its absolute value, of a sum the sum of the scales, of a product their product, and of
//! f(x) the number `|f(x)| + |f'(x)| · scale(x)`. For a convolution the scale is the convolution of the absolute values.
//! The rule is
//!
//! |ours - reference| ≤ ε · scale, with ε = 1e-5 in f32 and 1e-12 in f64,
//!
//! plus the smallest normal number, for what underflows. Inputs are f32 numbers, so that both types read the same.
//!
//! `PROPTEST_CASES` and `PROPTEST_RNG_SEED` ask for other cases than the fixed ones.

mod bf16;
mod bf16_attention;
mod bf16_channels;
mod bf16_conv;
mod bf16_dense;
mod bf16_depthwise;
mod bf16_norm;
mod bf16_pointwise;
mod bf16_pool;
mod bfloat16;
mod compare;
mod input;
mod num;

mod convolution;
mod depthwise;
mod errors;
mod norm;
mod pointwise;
mod pool;
mod product;
mod softmax;
mod special_values;
mod threads;
mod winograd;

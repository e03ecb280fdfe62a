//! Attention of an image's tokens to each other, as one operation on bfloat16 maps.

use crate::kernels::attention::Sizes;
use crate::kernels::bf16::attention as kernel;
use crate::op::on_maps;
use candle_core::{Result, Tensor, bail};

/// softmax(q · kᵀ / √d) · v for each head, of queries, keys and values side by side: (b, n, 3 · heads · d) -> (b, n,
/// heads · d). `None` where the input is no bfloat16 map on the CPU: candle's operations and the products of
/// [`matmul`](super::matmul) have it.
///
/// # Errors
/// An input that is not (b, n, 3c), or heads that do not divide c.
pub fn self_attention(qkv: &Tensor, heads: usize) -> Result<Option<Tensor>> {
    let (b, n, row) = qkv.dims3()?;
    if heads == 0 || !row.is_multiple_of(3 * heads) {
        bail!("self_attention: {heads} heads do not divide rows of {row} queries, keys and values")
    }
    let sizes = Sizes { n, queries: n, heads, d: row / 3 / heads };
    on_maps(
        ("self_attention", &[b, n, row / 3], (true, false)),
        (&[qkv], 1),
        |inputs| Ok(kernel::forward(sizes, inputs[0].map())),
        move |saved| Ok(vec![saved.want(0, || kernel::backward(sizes, saved.inputs[0].map(), saved.grad).0)]),
    )
}

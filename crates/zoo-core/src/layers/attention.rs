//! Scaled dot-product attention.

use super::dropout::Dropout;
use super::linear::Linear;
use crate::init::Init;
use crate::ops::{matmul, self_attention, softmax};
use crate::tape;
use crate::trace::{self, Step};
use crate::vars::{Training, VarBuilder};
use candle_core::{D, Result, Tensor, bail};
use candle_nn::ModuleT;

/// softmax(q · kᵀ / √d + mask) · v for each head (Vaswani et al. 2017, arXiv:1706.03762, equation 1).
///
/// Queries (b, heads, n, d), keys and values (b, heads, m, d); output (b, heads, n, d). The mask is added to the scores
/// and must broadcast to (b, heads, n, m): 0 where a query may look, -∞ where it may not. A query that may look nowhere
/// gets NaN, as in PyTorch. `dropout` drops attention weights in training.
///
/// # Errors
/// Shapes that do not fit together.
pub fn scaled_dot_product_attention(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    mask: Option<&Tensor>,
    dropout: Option<&Dropout>,
    train: bool,
) -> Result<Tensor> {
    let d = q.dim(D::Minus1)?;
    let scores = matmul(&(q * (1.0 / (d as f64).sqrt()))?, &k.transpose(2, 3)?)?;
    let scores = match mask {
        Some(mask) => scores.broadcast_add(mask)?,
        None => scores,
    };
    let weights = softmax(&scores)?;
    let weights = match dropout {
        Some(dropout) => dropout.forward_t(&weights, train)?,
        None => weights,
    };
    matmul(&weights, v)
}

/// (b, n, heads · d) -> (b, heads, n, d)
///
/// # Errors
/// An input that is not (b, n, c), or heads that do not divide c.
pub fn split_heads(xs: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, n, c) = xs.dims3()?;
    if heads == 0 || !c.is_multiple_of(heads) {
        bail!("attention: {heads} heads do not divide a width of {c}")
    }
    xs.reshape((b, n, heads, c / heads))?.transpose(1, 2)?.contiguous()
}

/// (b, heads, n, d) -> (b, n, heads · d)
///
/// # Errors
/// An input that is not (b, heads, n, d).
pub fn merge_heads(xs: &Tensor) -> Result<Tensor> {
    let (b, heads, n, d) = xs.dims4()?;
    xs.transpose(1, 2)?.contiguous()?.reshape((b, n, heads * d))
}

/// Multi-head self-attention: queries, keys and values from one linear layer, and one behind. (b, n, dim) -> (b, n,
/// dim)
///
/// Keys: `qkv` (3 · dim, dim), rows in the order q, k, v, and `proj`, as timm has them.
#[derive(Debug, Clone)]
pub struct SelfAttention {
    qkv: Linear,
    proj: Linear,
    heads: usize,
    attention_dropout: Dropout,
    dropout: Dropout,
}

impl SelfAttention {
    /// `dropout` is (of attention weights, of the output); weights start by `init`, biases at 0.
    ///
    /// # Errors
    /// Heads that do not divide `dim`, or a dropout rate outside 0..1.
    pub fn new(dim: usize, heads: usize, dropout: (f64, f64), init: Init, vb: VarBuilder) -> Result<Self> {
        if heads == 0 || !dim.is_multiple_of(heads) {
            bail!("{}: {heads} heads do not divide a width of {dim}", vb.path())
        }
        Ok(Self {
            qkv: Linear::with_bias(dim, 3 * dim, init, Some(Init::ZEROS), vb.pp("qkv"))?,
            proj: Linear::with_bias(dim, dim, init, Some(Init::ZEROS), vb.pp("proj"))?,
            heads,
            attention_dropout: Dropout::new(dropout.0, &vb)?,
            dropout: Dropout::new(dropout.1, &vb)?,
        })
    }

    /// What of it is trained.
    pub(crate) fn training(&self) -> Training {
        self.qkv.training().and(self.proj.training())
    }

    /// Heads, and weights and biases of the two linear layers, where nothing is dropped.
    pub(crate) fn parts(&self, train: bool) -> Option<(usize, [(Tensor, Tensor); 2])> {
        let is_plain = !self.attention_dropout.drops(train) && !self.dropout.drops(train);
        is_plain.then(|| Some((self.heads, [self.qkv.parts(train)?, self.proj.parts(train)?]))).flatten()
    }
}

impl ModuleT for SelfAttention {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let qkv = self.qkv.forward_t(xs, train)?;
        let mixed = trace::op(Step::Attention { heads: self.heads, masked: false }, &[&qkv], || {
            let dim = xs.dim(2)?;
            if !self.attention_dropout.drops(train)
                && let Some(mixed) = self_attention(&qkv, self.heads)?
            {
                return Ok(mixed);
            }
            tape::foreign_op(&[&qkv], |qkv| {
                let part = |i: usize| split_heads(&qkv[0].narrow(2, i * dim, dim)?, self.heads);
                let (q, k, v) = (part(0)?, part(1)?, part(2)?);
                let dropout = Some(&self.attention_dropout);
                merge_heads(&scaled_dot_product_attention((&q, &k, &v), None, dropout, train)?)
            })
        })?;
        self.dropout.forward_t(&self.proj.forward_t(&mixed, train)?, train)
    }
}

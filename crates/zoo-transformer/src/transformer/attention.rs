//! Attention in several heads, and who may look where.

use super::{Config, XAVIER};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::ops::Range;
use zoo_core::trace::Step;
use zoo_core::{
    Dropout, Init, Linear, ModuleT, VarBuilder, merge_heads, ops, scaled_dot_product_attention, split_heads, tape,
    trace, weight_for,
};

/// Who may look where: added to the scores of an attention, 0 where a query may look and -∞ where it may not. Each
/// broadcasts to (b, heads, queries, keys); none lets everyone look everywhere, as in PyTorch.
#[derive(Debug, Clone, Default)]
pub struct Masks {
    /// Of the encoder's self-attention.
    pub source: Option<Tensor>,
    /// Of the decoder's self-attention: [`causal_mask`], where it learns to write.
    pub target: Option<Tensor>,
    /// Of the decoder's attention to the encoder's output: the source's padding.
    pub memory: Option<Tensor>,
}

/// Lets the last `queries` of `keys` places look at themselves and back, never ahead: (queries, keys).
///
/// ```
/// use candle_core::{DType, Device};
/// let mask = zoo_transformer::transformer::causal_mask(2, 3, DType::F32, &Device::Cpu)?;
/// assert_eq!(mask.to_vec2::<f32>()?, [[0., 0., f32::NEG_INFINITY], [0., 0., 0.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// More queries than keys.
pub fn causal_mask(queries: usize, keys: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let Some(before) = keys.checked_sub(queries) else {
        bail!("causal_mask: {queries} queries cannot be among {keys} keys")
    };
    let value = |i: usize, j: usize| if j <= before + i { 0f32 } else { f32::NEG_INFINITY };
    let values = (0..queries).flat_map(|i| (0..keys).map(move |j| value(i, j))).collect();
    Tensor::from_vec(values, (queries, keys), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
}

/// Lets nobody look at padding: tokens (b, n) -> (b, 1, 1, n). A sequence of padding alone leaves nowhere to look, and
/// NaN.
///
/// # Errors
/// Tokens that are not (b, n) of u32.
pub fn padding_mask(tokens: &Tensor, pad: u32, dtype: DType) -> Result<Tensor> {
    let (b, n) = tokens.dims2()?;
    let value = |&token: &u32| if token == pad { f32::NEG_INFINITY } else { 0.0 };
    let values: Vec<f32> = tokens.flatten_all()?.to_vec1::<u32>()?.iter().map(value).collect();
    Tensor::from_vec(values, (b, 1, 1, n), &Device::Cpu)?.to_dtype(dtype)?.to_device(tokens.device())
}

/// Keys and values of an attention, each (b, heads, m, d).
pub(super) type KeyValues = (Tensor, Tensor);

/// Section 3.2.2: attention in several heads, between sequences of one width.
///
/// Keys: `in_proj_weight` (3 · d, d) and `in_proj_bias`, rows in the order q, k, v, and `out_proj`.
#[derive(Debug, Clone)]
pub(super) struct MultiheadAttention {
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    out_proj: Linear,
    heads: usize,
    dropout: Dropout,
    place: String,
}

impl MultiheadAttention {
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let d = config.d_model;
        Ok(Self {
            in_proj_weight: vb.param((3 * d, d), "in_proj_weight", XAVIER)?,
            in_proj_bias: vb.param(3 * d, "in_proj_bias", Init::ZEROS)?,
            out_proj: Linear::with_bias(d, d, XAVIER, Some(Init::ZEROS), vb.pp("out_proj"))?,
            heads: config.heads,
            dropout: Dropout::new(config.dropout, &vb)?,
            place: vb.path().to_string(),
        })
    }

    /// Some of queries (0), keys (1) and values (2), side by side: (b, n, d) -> (b, n, parts · d)
    fn project(&self, xs: &Tensor, parts: Range<usize>, train: bool) -> Result<Tensor> {
        let d = self.in_proj_weight.dim(1)?;
        let rows = |t: &Tensor| weight_for(t, train).narrow(0, parts.start * d, parts.len() * d);
        let (weight, bias) = (rows(&self.in_proj_weight)?, rows(&self.in_proj_bias)?);
        let place = format!("{}.in_proj", self.place);
        let step = Step::InProjection { features: (d, parts.len() * d), first: parts.start * d };
        trace::layer(step, &place, &[Some(&weight), Some(&bias)], &[xs], || ops::linear(xs, &weight, Some(&bias)))
    }

    /// Part `i` of a projection, head by head: (b, n, parts · d) -> (b, heads, n, d / heads)
    fn heads_of(&self, projected: &Tensor, i: usize) -> Result<Tensor> {
        let d = self.in_proj_weight.dim(1)?;
        split_heads(&projected.narrow(2, i * d, d)?, self.heads)
    }

    /// Attends with what `parts` makes of the projections `read`, and joins the heads: (b, n, d).
    fn attend(
        &self,
        read: &[&Tensor],
        mask: Option<&Tensor>,
        train: bool,
        parts: impl FnOnce(&[Tensor]) -> Result<(Tensor, KeyValues)>,
    ) -> Result<Tensor> {
        let mixed = trace::op(Step::Attention { heads: self.heads, masked: mask.is_some() }, read, || {
            tape::foreign_op(read, |read| {
                let (q, (k, v)) = parts(read)?;
                merge_heads(&scaled_dot_product_attention((&q, &k, &v), mask, Some(&self.dropout), train)?)
            })
        })?;
        self.out_proj.forward_t(&mixed, train)
    }

    /// Of `xs` to itself, and to what `cache` holds of the places before it, which then holds `xs` as well.
    pub fn to_itself(
        &self,
        xs: &Tensor,
        mask: Option<&Tensor>,
        cache: Option<&mut Option<KeyValues>>,
        train: bool,
    ) -> Result<Tensor> {
        let qkv = self.project(xs, 0..3, train)?;
        self.attend(&[&qkv], mask, train, |read| {
            let part = |i| self.heads_of(&read[0], i);
            let (q, mut kv) = (part(0)?, (part(1)?, part(2)?));
            if let Some(cache) = cache {
                if let Some((k, v)) = cache.take() {
                    kv = (Tensor::cat(&[&k, &kv.0], 2)?, Tensor::cat(&[&v, &kv.1], 2)?);
                }
                *cache = Some(kv.clone());
            }
            Ok((q, kv))
        })
    }

    /// Of `xs` to `memory`, whose keys and values `cache` keeps from the first time on.
    pub fn to_memory(
        &self,
        xs: &Tensor,
        memory: &Tensor,
        mask: Option<&Tensor>,
        cache: Option<&mut Option<KeyValues>>,
        train: bool,
    ) -> Result<Tensor> {
        let q = self.project(xs, 0..1, train)?;
        if let Some(Some(kv)) = &cache {
            return self.attend(&[&q], mask, train, |read| Ok((self.heads_of(&read[0], 0)?, kv.clone())));
        }
        let kv = self.project(memory, 1..3, train)?;
        self.attend(&[&q, &kv], mask, train, |read| {
            let kv = (self.heads_of(&read[1], 0)?, self.heads_of(&read[1], 1)?);
            if let Some(cache) = cache {
                *cache = Some(kv.clone());
            }
            Ok((self.heads_of(&read[0], 0)?, kv))
        })
    }
}

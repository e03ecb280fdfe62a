//! A. Vaswani et al. (2017), "Attention Is All You Need", arXiv:1706.03762: the encoder and the decoder, on sequences
//! that are embedded already. What makes a translator of them, token embeddings, positions and the generator, stands in
//! [`seq2seq`], its loss and schedule in [`training`], and how it writes in [`decode`].
//!
//! Checkpoint keys: those of `torch.nn.Transformer`: `encoder.layers.{i}` with `self_attn.{in_proj_weight,in_proj_bias,
//! out_proj}`, `linear1`, `linear2`, `norm1` and `norm2`, `decoder.layers.{i}` with `multihead_attn` and `norm3`
//! besides, `encoder.norm` and `decoder.norm`.
//!
//! | variant | width | layers | heads | feed-forward | parameters, without embeddings |
//! |---|---|---|---|---|---|
//! | `transformer_base` | 512 | 6 + 6 | 8 | 2048 | 44,140,544 |
//!
//! The last norms of encoder and decoder are PyTorch's addition; without them ([`Config::final_norms`]) it is the
//! paper's network of 44,138,496.

mod attention;
pub mod decode;
pub mod seq2seq;
pub mod training;

use attention::{KeyValues, MultiheadAttention};
pub use attention::{Masks, causal_mask, padding_mask};

use candle_core::{Result, Tensor, bail};
use zoo_core::{
    Dropout, Init, LayerNorm, Linear, ModuleT, Pointwise, SequenceInfo, SequenceModel, VarBuilder, activate, add, tape,
    trace,
};

/// An encoder and a decoder; the options are `torch.nn.Transformer`'s.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Width of the sequences' elements.
    pub d_model: usize,
    /// Heads of every attention, which must divide the width.
    pub heads: usize,
    /// Layers of the encoder.
    pub encoder_layers: usize,
    /// Layers of the decoder.
    pub decoder_layers: usize,
    /// Hidden width of the feed-forward networks.
    pub feed_forward: usize,
    /// Of every branch's output, of attention weights, and of the feed-forward networks' hidden layer, all three as in
    /// PyTorch.
    pub dropout: f64,
    /// Of the feed-forward networks.
    pub activation: Pointwise,
    /// Whether a branch normalises its input (pre-norm: R. Xiong et al. 2020, arXiv:2002.04745), instead of the sum
    /// behind it.
    pub norm_first: bool,
    /// Whether a norm stands behind the last layer of the encoder, and one behind the decoder's.
    pub final_norms: bool,
    /// Added to the variance in every norm.
    pub eps: f64,
}

impl Config {
    /// The paper's base model (table 3), with PyTorch's last norms.
    pub fn base() -> Self {
        Self {
            d_model: 512,
            heads: 8,
            encoder_layers: 6,
            decoder_layers: 6,
            feed_forward: 2048,
            dropout: 0.1,
            activation: Pointwise::Relu,
            norm_first: false,
            final_norms: true,
            eps: 1e-5,
        }
    }

    /// The paper's big model (table 3), with PyTorch's last norms.
    pub fn big() -> Self {
        Self { d_model: 1024, heads: 16, feed_forward: 4096, dropout: 0.3, ..Self::base() }
    }

    fn check(&self) -> Result<()> {
        let Self { d_model, heads, encoder_layers, decoder_layers, feed_forward, .. } = *self;
        if heads == 0 || d_model == 0 || !d_model.is_multiple_of(heads) {
            bail!("transformer: {heads} heads do not divide a width of {d_model}")
        }
        if encoder_layers == 0 || decoder_layers == 0 || feed_forward == 0 {
            bail!(
                "transformer: wants a layer on each side and a hidden width of at least 1, got {encoder_layers} and \
                 {decoder_layers} layers of hidden width {feed_forward}"
            )
        }
        Ok(())
    }
}

/// What `torch.nn.Transformer` fills every matrix with.
const XAVIER: Init = Init::XavierUniform { gain: 1.0 };

/// Section 3.3: two linear layers with an activation between. (b, n, d) -> (b, n, d)
#[derive(Debug, Clone)]
struct FeedForward {
    linear1: Linear,
    linear2: Linear,
    activation: Pointwise,
    dropout: Dropout,
}

impl FeedForward {
    /// Makes `linear1` and `linear2` at the layer's own place.
    fn new(config: &Config, vb: &VarBuilder) -> Result<Self> {
        let linear = |i, o, name| Linear::with_bias(i, o, XAVIER, Some(Init::torch_bias(i)), vb.pp(name));
        Ok(Self {
            linear1: linear(config.d_model, config.feed_forward, "linear1")?,
            linear2: linear(config.feed_forward, config.d_model, "linear2")?,
            activation: config.activation,
            dropout: Dropout::new(config.dropout, vb)?,
        })
    }
}

impl ModuleT for FeedForward {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let hidden = activate(&self.linear1.forward_t(xs, train)?, self.activation)?;
        self.linear2.forward_t(&self.dropout.forward_t(&hidden, train)?, train)
    }
}

/// A skip around a branch, with the norm before the branch or behind the sum.
#[derive(Debug, Clone)]
struct Residual {
    norm: LayerNorm,
    dropout: Dropout,
    norm_first: bool,
}

impl Residual {
    fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let norm = LayerNorm::new(config.d_model, config.eps, vb.clone())?;
        Ok(Self { norm, dropout: Dropout::new(config.dropout, &vb)?, norm_first: config.norm_first })
    }

    fn around(&self, xs: &Tensor, train: bool, branch: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        if self.norm_first {
            let ys = branch(&self.norm.forward_t(xs, train)?)?;
            return add(xs, &self.dropout.forward_t(&ys, train)?);
        }
        let ys = branch(xs)?;
        self.norm.forward_t(&add(xs, &self.dropout.forward_t(&ys, train)?)?, train)
    }
}

/// Figure 1, left.
#[derive(Debug, Clone)]
struct EncoderLayer {
    self_attn: MultiheadAttention,
    feed_forward: FeedForward,
    residuals: [Residual; 2],
    place: String,
}

impl EncoderLayer {
    fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            self_attn: MultiheadAttention::new(config, vb.pp("self_attn"))?,
            feed_forward: FeedForward::new(config, &vb)?,
            residuals: [Residual::new(config, vb.pp("norm1"))?, Residual::new(config, vb.pp("norm2"))?],
            place: vb.path().to_string(),
        })
    }

    fn forward(&self, xs: &Tensor, mask: Option<&Tensor>, train: bool) -> Result<Tensor> {
        let [around_attn, around_ff] = &self.residuals;
        trace::block("EncoderLayer", &self.place, || {
            let xs = around_attn.around(xs, train, |xs| self.self_attn.to_itself(xs, mask, None, train))?;
            around_ff.around(&xs, train, |xs| self.feed_forward.forward_t(xs, train))
        })
    }
}

/// Figure 1, right.
#[derive(Debug, Clone)]
struct DecoderLayer {
    self_attn: MultiheadAttention,
    multihead_attn: MultiheadAttention,
    feed_forward: FeedForward,
    residuals: [Residual; 3],
    place: String,
}

impl DecoderLayer {
    fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let residual = |name| Residual::new(config, vb.pp(name));
        Ok(Self {
            self_attn: MultiheadAttention::new(config, vb.pp("self_attn"))?,
            multihead_attn: MultiheadAttention::new(config, vb.pp("multihead_attn"))?,
            feed_forward: FeedForward::new(config, &vb)?,
            residuals: [residual("norm1")?, residual("norm2")?, residual("norm3")?],
            place: vb.path().to_string(),
        })
    }

    fn forward(
        &self,
        xs: &Tensor,
        memory: &Tensor,
        masks: &Masks,
        cache: Option<&mut LayerCache>,
        train: bool,
    ) -> Result<Tensor> {
        let [around_self, around_memory, around_ff] = &self.residuals;
        let (own, other) = cache.map(|cache| (&mut cache.own, &mut cache.memory)).unzip();
        trace::block("DecoderLayer", &self.place, || {
            let xs = around_self.around(xs, train, |xs| {
                self.self_attn.to_itself(xs, masks.target.as_ref(), own, train) //
            })?;
            let xs = around_memory.around(&xs, train, |xs| {
                self.multihead_attn.to_memory(xs, memory, masks.memory.as_ref(), other, train)
            })?;
            around_ff.around(&xs, train, |xs| self.feed_forward.forward_t(xs, train))
        })
    }
}

#[derive(Debug, Clone, Default)]
struct LayerCache {
    own: Option<KeyValues>,
    memory: Option<KeyValues>,
}

/// What the decoder keeps of the places it has been through, so that each new one costs one place and not all again:
/// keys and values, layer by layer. One cache goes with one memory.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    layers: Vec<LayerCache>,
    len: usize,
}

impl Cache {
    /// How many places it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is new.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The cache of a batch made of these rows of its batch; a row may stand several times, or not at all.
    ///
    /// # Errors
    /// A row that there is not.
    pub fn select(&self, rows: &Tensor) -> Result<Self> {
        let pick = |kv: &Option<KeyValues>| -> Result<Option<KeyValues>> {
            let Some((k, v)) = kv else { return Ok(None) };
            Ok(Some((k.index_select(rows, 0)?, v.index_select(rows, 0)?)))
        };
        let layer = |layer: &LayerCache| -> Result<LayerCache> {
            Ok(LayerCache { own: pick(&layer.own)?, memory: pick(&layer.memory)? })
        };
        Ok(Self { layers: self.layers.iter().map(layer).collect::<Result<_>>()?, len: self.len })
    }
}

/// Encoder and decoder: source (b, n, d_model) and target (b, m, d_model) -> (b, m, d_model).
///
/// As a [`SequenceModel`] it is `torch.nn.Transformer` called with two arguments: **no mask**, so the decoder sees the
/// whole target. To train one that writes, hand [`Transformer::forward`] a [`causal_mask`], or use
/// [`seq2seq::Seq2Seq`], which does.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::VarStore;
/// use zoo_transformer::transformer::{Config, Masks, Transformer, causal_mask};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let config = Config { d_model: 32, heads: 4, encoder_layers: 2, decoder_layers: 2, ..Config::base() };
/// let net = Transformer::new(&config, store.root())?;
/// let source = Tensor::zeros((1, 7, 32), DType::F32, &Device::Cpu)?;
/// let target = Tensor::zeros((1, 5, 32), DType::F32, &Device::Cpu)?;
/// let masks = Masks { target: Some(causal_mask(5, 5, DType::F32, &Device::Cpu)?), ..Masks::default() };
/// assert_eq!(net.forward(&source, &target, &masks, false)?.dims(), &[1, 5, 32]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Transformer {
    encoder: Vec<EncoderLayer>,
    encoder_norm: Option<LayerNorm>,
    decoder: Vec<DecoderLayer>,
    decoder_norm: Option<LayerNorm>,
    d_model: usize,
}

impl Transformer {
    /// Makes the network at `vb`.
    ///
    /// # Errors
    /// Heads that do not divide the width, no layer, a dropout rate outside 0..1.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        let norm = |vb: &VarBuilder| {
            let norm = || LayerNorm::new(config.d_model, config.eps, vb.pp("norm"));
            config.final_norms.then(norm).transpose()
        };
        let (encoder, decoder) = (vb.pp("encoder"), vb.pp("decoder"));
        let encoder_layer = |i| EncoderLayer::new(config, encoder.pp("layers").pp(i));
        let decoder_layer = |i| DecoderLayer::new(config, decoder.pp("layers").pp(i));
        Ok(Self {
            encoder: (0..config.encoder_layers).map(encoder_layer).collect::<Result<_>>()?,
            encoder_norm: norm(&encoder)?,
            decoder: (0..config.decoder_layers).map(decoder_layer).collect::<Result<_>>()?,
            decoder_norm: norm(&decoder)?,
            d_model: config.d_model,
        })
    }

    /// Width of the sequences' elements.
    pub fn d_model(&self) -> usize {
        self.d_model
    }

    fn check(&self, what: &str, xs: &Tensor) -> Result<()> {
        match xs.dims() {
            [_, _, d] if *d == self.d_model => Ok(()),
            dims => bail!("transformer: the {what} must be (b, length, {}), got {dims:?}", self.d_model),
        }
    }

    /// The source as the decoder reads it, its memory: (b, n, d_model) -> (b, n, d_model).
    ///
    /// # Errors
    /// A source of another width.
    pub fn encode(&self, source: &Tensor, mask: Option<&Tensor>, train: bool) -> Result<Tensor> {
        self.check("source", source)?;
        let mut xs = source.clone();
        for layer in &self.encoder {
            xs = layer.forward(&xs, mask, train)?;
        }
        normalize(self.encoder_norm.as_ref(), xs, train)
    }

    /// The decoder's output for every place of the target: (b, m, d_model), with memory (b, n, d_model) -> (b, m,
    /// d_model).
    ///
    /// # Errors
    /// Target and memory that do not fit the network or each other.
    pub fn decode(&self, target: &Tensor, memory: &Tensor, masks: &Masks, train: bool) -> Result<Tensor> {
        self.run_decoder(target, memory, masks, None, train)
    }

    /// As [`Transformer::decode`] with a causal mask, for the next places only, in evaluation: `cache` holds those
    /// before and then these as well. The results are those of decoding all places at once, but for the rounding of
    /// sums in another order.
    ///
    /// # Errors
    /// As [`Transformer::decode`], and a cache of another batch or network; the cache is of no use then.
    pub fn decode_next(
        &self,
        target: &Tensor,
        memory: &Tensor,
        memory_mask: Option<&Tensor>,
        cache: &mut Cache,
    ) -> Result<Tensor> {
        self.check("target", target)?;
        let new = target.dim(1)?;
        // One place may look at all before it.
        let mask = || causal_mask(new, cache.len + new, target.dtype(), target.device());
        let mask = (new > 1).then(mask).transpose()?;
        let masks = Masks { source: None, target: mask, memory: memory_mask.cloned() };
        cache.layers.resize_with(self.decoder.len(), LayerCache::default);
        let ys = self.run_decoder(target, memory, &masks, Some(&mut cache.layers), false)?;
        cache.len += new;
        Ok(ys)
    }

    fn run_decoder(
        &self,
        target: &Tensor,
        memory: &Tensor,
        masks: &Masks,
        cache: Option<&mut [LayerCache]>,
        train: bool,
    ) -> Result<Tensor> {
        self.check("target", target)?;
        self.check("memory", memory)?;
        if target.dim(0)? != memory.dim(0)? {
            bail!("transformer: a batch of {} targets for {} sources", target.dim(0)?, memory.dim(0)?)
        }
        let mut caches = cache.into_iter().flatten();
        let mut xs = target.clone();
        for layer in &self.decoder {
            xs = layer.forward(&xs, memory, masks, caches.next(), train)?;
        }
        normalize(self.decoder_norm.as_ref(), xs, train)
    }

    /// Encodes, then decodes.
    ///
    /// # Errors
    /// Sequences or masks that do not fit the network or each other.
    pub fn forward(&self, source: &Tensor, target: &Tensor, masks: &Masks, train: bool) -> Result<Tensor> {
        self.recorded(source, target, train, |source, target| {
            let memory = self.encode(source, masks.source.as_ref(), train)?;
            self.decode(target, &memory, masks, train)
        })
    }

    /// Runs a training pass on source and target on one tape.
    fn recorded(
        &self,
        source: &Tensor,
        target: &Tensor,
        train: bool,
        pass: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut outputs =
            tape::recorded_all(&[source, target], train, |inputs| Ok(vec![pass(&inputs[0], &inputs[1])?]))?;
        outputs.pop().map_or_else(|| bail!("transformer: a pass without an output"), Ok)
    }
}

fn normalize(norm: Option<&LayerNorm>, xs: Tensor, train: bool) -> Result<Tensor> {
    match norm {
        Some(norm) => norm.forward_t(&xs, train),
        None => Ok(xs),
    }
}

impl SequenceModel for Transformer {
    fn forward_t(&self, source: &Tensor, target: &Tensor, train: bool) -> Result<Tensor> {
        self.forward(source, target, &Masks::default(), train)
    }
}

/// The registered variants.
pub const MODELS: &[SequenceInfo] = &[SequenceInfo {
    name: "transformer_base",
    family: "transformer",
    parameters: 44_140_544,
    d_model: 512,
    keys: "torch.nn.Transformer",
    paper: "Vaswani et al. 2017, arXiv:1706.03762",
    renames: &[],
    builder: |vb| Ok(Box::new(Transformer::new(&Config::base(), vb)?)),
}];

#[cfg(test)]
mod tests;

//! The Transformer on tokens: embeddings, positions, encoder and decoder, generator (Vaswani et al. 2017,
//! arXiv:1706.03762, figure 1 as a whole).
//!
//! Checkpoint keys: those of PyTorch's own tutorial on translation with `nn.Transformer`: `transformer` (see
//! [`super`]), `generator`, `src_tok_emb.embedding` and `tgt_tok_emb.embedding`. Embeddings that are shared have one
//! tensor, under the first of these keys; [`Sharing::renames`] says what becomes of the others.

use super::training::sequence_loss;
use super::{Cache, Masks, Transformer, causal_mask, padding_mask};
use candle_core::{DType, Device, Result, Tensor, bail};
use zoo_core::trace::{self, Step};
use zoo_core::weights::Rename;
use zoo_core::{Dropout, Init, Linear, ModuleT, VarBuilder, weight_for};

/// Which matrices are one and the same (section 3.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// None.
    None,
    /// The target's embedding and the generator.
    Target,
    /// Both embeddings and the generator, over one vocabulary: the paper's.
    All,
}

const POSITIONS: Rename =
    Rename { from: "positional_encoding.pos_embedding", to: "", reason: "the positions are computed, not learned" };

const SHARED: &str = "PyTorch writes a shared matrix under each of its names; `generator.weight` is read";
const TARGET: Rename = Rename { from: "tgt_tok_emb.**", to: "", reason: SHARED };
const SOURCE: Rename = Rename { from: "src_tok_emb.**", to: "", reason: SHARED };

impl Sharing {
    /// What to leave out of a checkpoint in PyTorch's layout.
    pub const fn renames(self) -> &'static [Rename] {
        match self {
            Self::None => &[POSITIONS],
            Self::Target => &[POSITIONS, TARGET],
            Self::All => &[POSITIONS, TARGET, SOURCE],
        }
    }
}

/// A translator.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Encoder and decoder; its dropout is that of the embeddings too.
    pub transformer: super::Config,
    /// Tokens of the source's vocabulary.
    pub source_vocab: usize,
    /// Tokens of the target's vocabulary.
    pub target_vocab: usize,
    /// Which matrices are one and the same.
    pub sharing: Sharing,
    /// The token, in both vocabularies, that fills a sequence up to its batch's length, at its end.
    pub pad: u32,
}

impl Config {
    /// The paper's base model over one vocabulary, all embeddings shared.
    pub fn base(vocab: usize, pad: u32) -> Self {
        let transformer = super::Config::base();
        Self { transformer, source_vocab: vocab, target_vocab: vocab, sharing: Sharing::All, pad }
    }

    fn check(&self) -> Result<()> {
        let Self { source_vocab, target_vocab, pad, .. } = *self;
        if source_vocab.min(target_vocab) <= pad as usize {
            bail!("seq2seq: vocabularies of {source_vocab} and {target_vocab} tokens do not hold the padding, {pad}")
        }
        if self.sharing == Sharing::All && source_vocab != target_vocab {
            bail!("seq2seq: one embedding cannot serve vocabularies of {source_vocab} and {target_vocab} tokens")
        }
        Ok(())
    }
}

/// Section 3.5: PE(p, 2i) = sin(p / 10000^(2i/d)) and PE(p, 2i+1) = cos of the same, for the positions from `first` on:
/// (n, d).
///
/// # Errors
/// What the device reports.
pub fn sinusoidal_positions(first: usize, n: usize, d: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let value = |p: usize, j: usize| {
        let angle = p as f64 / 10_000f64.powf((j - j % 2) as f64 / d as f64);
        if j.is_multiple_of(2) { angle.sin() } else { angle.cos() }
    };
    let values: Vec<f64> = (first..first + n).flat_map(|p| (0..d).map(move |j| value(p, j))).collect();
    Tensor::from_vec(values, (n, d), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
}

/// A source as the decoder reads it.
#[derive(Debug, Clone)]
pub struct Memory {
    /// (b, n, d_model)
    pub states: Tensor,
    /// Which of them are padding: (b, 1, 1, n), added to scores.
    pub mask: Tensor,
}

impl Memory {
    /// The memory of a batch made of these rows of its batch.
    ///
    /// # Errors
    /// A row that there is not.
    pub fn select(&self, rows: &Tensor) -> Result<Self> {
        Ok(Self { states: self.states.index_select(rows, 0)?, mask: self.mask.index_select(rows, 0)? })
    }
}

/// The network: source (b, n) and target (b, m) of u32 tokens -> logits (b, m, target_vocab), where those at place i
/// tell token i + 1 of the target from those before it.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::VarStore;
/// use zoo_transformer::transformer::seq2seq::{Config, Seq2Seq};
/// use zoo_transformer::transformer;
/// let small = transformer::Config { d_model: 32, encoder_layers: 1, decoder_layers: 1, ..transformer::Config::base() };
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let net = Seq2Seq::new(&Config { transformer: small, ..Config::base(100, 0) }, store.root())?;
/// let source = Tensor::new(&[[17u32, 4, 9], [3, 3, 0]], &Device::Cpu)?; // 0 is padding
/// let target = Tensor::new(&[[1u32, 8, 2], [1, 5, 2]], &Device::Cpu)?; // from begin (1) to end (2)
/// let loss = net.loss(&source, &target, 0.1, true)?;
/// let gradients = loss.backward()?;
/// assert!(store.parameters().iter().all(|(_, var)| gradients.get(var).is_some()));
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Seq2Seq {
    transformer: Transformer,
    generator: Linear,
    source_embedding: Tensor,
    target_embedding: Tensor,
    dropout: Dropout,
    pad: u32,
    place: VarBuilder,
}

impl Seq2Seq {
    /// Makes the network at `vb`. Embeddings start as N(0, 1 / d_model), so that scaled by √d_model they are as large
    /// as the positions, and as generator they give logits of size 1.
    ///
    /// # Errors
    /// What [`Transformer::new`] refuses, a padding outside the vocabularies, shared embeddings over two vocabularies.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        let d = config.transformer.d_model;
        let transformer = Transformer::new(&config.transformer, vb.pp("transformer"))?;
        let normal = Init::Normal { mean: 0.0, std: (d as f64).powf(-0.5) };
        let init = if config.sharing == Sharing::None { super::XAVIER } else { normal };
        let bias = Some(Init::torch_bias(d));
        let generator = Linear::with_bias(d, config.target_vocab, init, bias, vb.pp("generator"))?;
        let weight = generator.weight();
        let embedding = |vocab, name, shared| {
            if shared { Ok(weight.clone()) } else { vb.pp(name).pp("embedding").param((vocab, d), "weight", normal) }
        };
        let source_embedding = embedding(config.source_vocab, "src_tok_emb", config.sharing == Sharing::All)?;
        let target_embedding = embedding(config.target_vocab, "tgt_tok_emb", config.sharing != Sharing::None)?;
        let dropout = Dropout::new(config.transformer.dropout, &vb)?;
        Ok(Self { transformer, generator, source_embedding, target_embedding, dropout, pad: config.pad, place: vb })
    }

    /// The token that fills up.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// Tokens scaled by √d_model, plus positions from `first` on: (b, n) -> (b, n, d_model).
    fn embed(&self, table: &Tensor, name: &str, tokens: &Tensor, first: usize, train: bool) -> Result<Tensor> {
        let ((b, n), d) = (tokens.dims2()?, self.transformer.d_model());
        let embedded = trace::layer(Step::Embedding, self.place.pp(name).path(), &[Some(table)], &[tokens], || {
            let rows = weight_for(table, train).index_select(&tokens.flatten_all()?, 0)?;
            let positions = sinusoidal_positions(first, n, d, table.dtype(), table.device())?;
            (rows.reshape((b, n, d))? * (d as f64).sqrt())?.broadcast_add(&positions)
        })?;
        self.dropout.forward_t(&embedded, train)
    }

    /// Reads a source, (b, n).
    ///
    /// # Errors
    /// Tokens outside the vocabulary.
    pub fn encode(&self, source: &Tensor, train: bool) -> Result<Memory> {
        self.encode_embedded(&self.embed(&self.source_embedding, "src_tok_emb", source, 0, train)?, source, train)
    }

    /// Logits for every place of a target, (b, m) -> (b, m, target_vocab). Padding stands at the end of a target, where
    /// the causal mask hides it from all tokens before; it needs no mask of its own.
    ///
    /// # Errors
    /// Tokens outside the vocabulary, a memory of another batch.
    pub fn decode(&self, target: &Tensor, memory: &Memory, train: bool) -> Result<Tensor> {
        self.decode_embedded(&self.embed(&self.target_embedding, "tgt_tok_emb", target, 0, train)?, memory, train)
    }

    fn encode_embedded(&self, xs: &Tensor, source: &Tensor, train: bool) -> Result<Memory> {
        let mask = padding_mask(source, self.pad, xs.dtype())?;
        Ok(Memory { states: self.transformer.encode(xs, Some(&mask), train)?, mask })
    }

    fn decode_embedded(&self, xs: &Tensor, memory: &Memory, train: bool) -> Result<Tensor> {
        let causal = causal_mask(xs.dim(1)?, xs.dim(1)?, xs.dtype(), xs.device())?;
        let masks = Masks { source: None, target: Some(causal), memory: Some(memory.mask.clone()) };
        self.generator.forward_t(&self.transformer.decode(xs, &memory.states, &masks, train)?, train)
    }

    /// As [`Seq2Seq::decode`], for the next places only, in evaluation; see [`Transformer::decode_next`].
    ///
    /// # Errors
    /// As [`Transformer::decode_next`].
    pub fn decode_next(&self, target: &Tensor, memory: &Memory, cache: &mut Cache) -> Result<Tensor> {
        let xs = self.embed(&self.target_embedding, "tgt_tok_emb", target, cache.len(), false)?;
        let ys = self.transformer.decode_next(&xs, &memory.states, Some(&memory.mask), cache)?;
        self.generator.forward_t(&ys, false)
    }

    /// Logits for every place of the target, in training on one tape.
    ///
    /// # Errors
    /// As [`Seq2Seq::encode`] and [`Seq2Seq::decode`].
    pub fn forward(&self, source: &Tensor, target: &Tensor, train: bool) -> Result<Tensor> {
        let xs = self.embed(&self.source_embedding, "src_tok_emb", source, 0, train)?;
        let ys = self.embed(&self.target_embedding, "tgt_tok_emb", target, 0, train)?;
        let pass =
            |xs: &Tensor, ys: &Tensor| self.decode_embedded(ys, &self.encode_embedded(xs, source, train)?, train);
        self.transformer.recorded(&xs, &ys, train, pass)
    }

    /// The loss of telling each token of `target`, (b, m) from begin to end, from those before it: see
    /// [`sequence_loss`].
    ///
    /// # Errors
    /// A target of fewer than two tokens, and as [`Seq2Seq::forward`].
    pub fn loss(&self, source: &Tensor, target: &Tensor, label_smoothing: f64, train: bool) -> Result<Tensor> {
        let (_, m) = target.dims2()?;
        if m < 2 {
            bail!("seq2seq: a target goes from its begin to its end, that is two tokens at least; got {m}")
        }
        let logits = self.forward(source, &target.narrow(1, 0, m - 1)?, train)?;
        sequence_loss(&logits, &target.narrow(1, 1, m - 1)?, self.pad, label_smoothing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zoo_core::VarStore;

    fn config(sharing: Sharing) -> Config {
        let transformer = super::super::Config {
            d_model: 8,
            heads: 2,
            encoder_layers: 1,
            decoder_layers: 1,
            feed_forward: 16,
            ..super::super::Config::base()
        };
        Config { transformer, sharing, ..Config::base(11, 0) }
    }

    #[test]
    fn shared_matrices_are_one_tensor_with_one_key() {
        let (vocab, d) = (11, 8);
        let mut counts = Vec::new();
        for sharing in [Sharing::None, Sharing::Target, Sharing::All] {
            let store = VarStore::shapes_only();
            Seq2Seq::new(&config(sharing), store.root()).unwrap();
            counts.push(store.parameter_count());
            let keys = store.slots().into_iter().filter(|slot| !slot.key.starts_with("transformer."));
            let wanted =
                ["generator.weight", "generator.bias", "src_tok_emb.embedding.weight", "tgt_tok_emb.embedding.weight"];
            let keys: Vec<String> = keys.map(|slot| slot.key).collect();
            assert_eq!(keys, wanted[..keys.len()]);
            // Every key that PyTorch writes is either here or left out knowingly.
            for key in wanted {
                let left_out = sharing.renames().iter().any(|rename| rename.apply(key).is_some_and(|to| to.is_empty()));
                assert_ne!(keys.iter().any(|k| k == key), left_out, "{sharing:?}: {key}");
            }
        }
        assert_eq!([counts[0] - counts[1], counts[1] - counts[2]], [vocab * d; 2]);
    }

    #[test]
    fn what_cannot_be_built_or_read_says_why() {
        let refused = |config: Config| Seq2Seq::new(&config, VarStore::shapes_only().root()).unwrap_err().to_string();
        assert!(refused(Config { target_vocab: 12, ..config(Sharing::All) }).contains("11 and 12"));
        assert!(refused(Config { pad: 11, ..config(Sharing::None) }).contains("padding, 11"));
        let net = Seq2Seq::new(&config(Sharing::All), VarStore::new(0, DType::F32, &Device::Cpu).root()).unwrap();
        let tokens = |t: &[u32]| Tensor::new(t, &Device::Cpu).unwrap().reshape((1, t.len())).unwrap();
        assert!(net.loss(&tokens(&[3]), &tokens(&[1]), 0.1, false).unwrap_err().to_string().contains("two tokens"));
        assert!(net.encode(&tokens(&[11]), false).is_err(), "a token outside the vocabulary");
    }

    #[test]
    fn positions_are_the_papers_and_start_anywhere() {
        let rows =
            |first, n| sinusoidal_positions(first, n, 4, DType::F64, &Device::Cpu).unwrap().to_vec2::<f64>().unwrap();
        assert_eq!(rows(0, 1), [[0.0, 1.0, 0.0, 1.0]]);
        assert_eq!(rows(0, 5)[3], [3f64.sin(), 3f64.cos(), 0.03f64.sin(), 0.03f64.cos()]);
        assert_eq!(rows(0, 5)[2..], rows(2, 3));
        assert_eq!(sinusoidal_positions(1, 1, 3, DType::F32, &Device::Cpu).unwrap().dims(), &[1, 3]);
    }
}

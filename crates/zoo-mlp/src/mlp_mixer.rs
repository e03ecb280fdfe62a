//! I. Tolstikhin, N. Houlsby, A. Kolesnikov, L. Beyer et al. (2021), "MLP-Mixer: An all-MLP Architecture for Vision",
//! arXiv:2105.01601.
//!
//! Patches become tokens; each layer mixes the tokens channel by channel with one perceptron, then the channels token
//! by token with another. The token-mixing weights count the patches: a network is made for one size of image.
//!
//! Checkpoint keys are timm's: `stem.proj`, `blocks.{i}.{norm1,mlp_tokens.{fc1,fc2},norm2,mlp_channels.{fc1,fc2}}`,
//! `norm`, `head`.
//!
//! | variant | patch | layers | channels C | D_S | D_C | parameters |
//! |---|---|---|---|---|---|---|
//! | `mixer_s32_224` | 32 | 8 | 512 | 256 | 2048 | 19,104,624 |
//! | `mixer_s16_224` | 16 | 8 | 512 | 256 | 2048 | 18,528,264 |
//! | `mixer_b32_224` | 32 | 12 | 768 | 384 | 3072 | 60,293,428 |
//! | `mixer_b16_224` | 16 | 12 | 768 | 384 | 3072 | 59,880,472 |
//! | `mixer_l16_224` | 16 | 24 | 1024 | 512 | 4096 | 208,196,168 |
//!
//! D_S and D_C are the hidden widths of token and channel mixing (table 1).

use candle_core::{Result, Tensor, bail};
use zoo_core::model::{Builder, Choices, Timm};
use zoo_core::trace::{self, Step};
use zoo_core::{
    Classifier, Dimensions, Dropout, Init, LayerNorm, MlpBlock, Model, ModelInfo, ModuleT, PatchEmbed, Preprocess,
    Residual, Sequential, Stages, Transpose, VarBuilder, seq,
};

/// A Mixer.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Side of a patch in pixels; divides `image_size`.
    pub patch: usize,
    /// Number of layers.
    pub depth: usize,
    /// C, the channels of a token.
    pub dim: usize,
    /// D_S, the hidden width of the token-mixing perceptron.
    pub tokens_dim: usize,
    /// D_C, the hidden width of the channel-mixing perceptron.
    pub channels_dim: usize,
    /// Side of the square input image.
    pub image_size: usize,
    /// Channels of the input image.
    pub in_chans: usize,
    /// Width of the classifier.
    pub num_classes: usize,
    /// Dropout inside the perceptrons, after the activation and at the end (timm's `proj_drop_rate`).
    pub dropout: f64,
    /// Dropout in front of the classifier.
    pub head_dropout: f64,
    /// Stochastic depth of the last perceptron; it grows linearly from 0 at the first (appendix B; timm's
    /// `drop_path_rate` is the same for all).
    pub drop_path: f64,
}

impl Config {
    /// A network for ImageNet with the widths that the paper's table 1 gives to `dim` channels: D_S = C / 2, D_C = 4 C.
    pub const fn new(patch: usize, depth: usize, dim: usize) -> Self {
        Self {
            patch,
            depth,
            dim,
            tokens_dim: dim / 2,
            channels_dim: 4 * dim,
            image_size: 224,
            in_chans: 3,
            num_classes: 1000,
            dropout: 0.0,
            head_dropout: 0.0,
            drop_path: 0.0,
        }
    }

    /// Mixer-S with patches of `patch` pixels (32 or 16 in the paper).
    pub const fn small(patch: usize) -> Self {
        Self::new(patch, 8, 512)
    }

    /// Mixer-B with patches of `patch` pixels (32 or 16 in the paper).
    pub const fn base(patch: usize) -> Self {
        Self::new(patch, 12, 768)
    }

    /// Mixer-L with patches of `patch` pixels (32 or 16 in the paper).
    pub const fn large(patch: usize) -> Self {
        Self::new(patch, 24, 1024)
    }

    /// Mixer-H with patches of `patch` pixels (14 in the paper).
    pub const fn huge(patch: usize) -> Self {
        Self::new(patch, 32, 1280)
    }

    /// S, the number of patches.
    fn tokens(&self) -> Result<usize> {
        let Self { patch, image_size, .. } = *self;
        if patch == 0 || image_size == 0 || !image_size.is_multiple_of(patch) {
            bail!("mixer: patches of {patch}x{patch} pixels do not divide an image of {image_size}x{image_size}")
        }
        if [self.depth, self.dim, self.tokens_dim, self.channels_dim].contains(&0) {
            bail!("mixer: depth and widths must be at least 1, got {self:?}")
        }
        Ok((image_size / patch).pow(2))
    }
}

/// timm's initialisation of a perceptron: Glorot's rule, biases next to 0.
fn mlp(width: usize, hidden: usize, dropout: f64, vb: VarBuilder) -> Result<MlpBlock> {
    let bias = Init::Normal { mean: 0.0, std: 1e-6 };
    MlpBlock::new((width, hidden, width), dropout, Init::XavierUniform { gain: 1.0 }, bias, vb)
}

const EPS: f64 = 1e-6;

/// Token mixing, then channel mixing (figure 1, "Mixer Layer"): x ← x + mlp(norm(x)ᵀ)ᵀ, x ← x + mlp(norm(x)).
fn mixer_block(config: &Config, tokens: usize, index: usize, vb: VarBuilder) -> Result<Sequential> {
    let norm = |name| LayerNorm::new(config.dim, EPS, vb.pp(name));
    let norm1 = norm("norm1")?;
    let mlp_tokens = mlp(tokens, config.tokens_dim, config.dropout, vb.pp("mlp_tokens"))?;
    let norm2 = norm("norm2")?;
    let mlp_channels = mlp(config.dim, config.channels_dim, config.dropout, vb.pp("mlp_channels"))?;
    // There are 2 · depth perceptrons; the first is never dropped, the last with the full rate.
    let drop_path = |i: usize| Dropout::path(Dropout::rising(config.drop_path, 2 * index + i, 2 * config.depth), &vb);
    let mix_tokens = Residual::new(seq![norm1, Transpose, mlp_tokens, Transpose]).drop_path(drop_path(0)?);
    let mix_channels = Residual::new(seq![norm2, mlp_channels]).drop_path(drop_path(1)?);
    Ok(seq![mix_tokens, mix_channels].block("MixerBlock", &vb))
}

/// The network: (b, in_chans, image_size, image_size) -> (b, num_classes).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{Model, VarStore};
/// use zoo_mlp::mlp_mixer::{Config, MlpMixer};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// // A Mixer for CIFAR-10: 64 tokens of 4x4 pixels.
/// let config = Config { image_size: 32, num_classes: 10, ..Config::new(4, 6, 128) };
/// let net = MlpMixer::new(&config, store.root())?;
/// let logits = net.forward_t(&Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu)?, false)?;
/// assert_eq!(logits.dims(), &[2, 10]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct MlpMixer {
    stem: PatchEmbed,
    blocks: Stages,
    norm: LayerNorm,
    head_dropout: Dropout,
    head: Classifier,
    image_size: usize,
}

impl MlpMixer {
    /// Makes the network at `vb`.
    ///
    /// # Errors
    /// A patch that does not divide the image, a depth or width of 0, a dropout rate outside 0..1.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let tokens = config.tokens()?;
        let Config { patch, dim, in_chans, image_size, num_classes, .. } = *config;
        let stem = PatchEmbed::with_bias(in_chans, dim, patch, Init::LecunNormal, Init::ZEROS, vb.pp("stem"))?;
        let mut blocks = Stages::default();
        for i in 0..config.depth {
            blocks.push(format!("blocks.{i}"), mixer_block(config, tokens, i, vb.pp("blocks").pp(i))?);
        }
        Ok(Self {
            stem,
            blocks,
            norm: LayerNorm::new(dim, EPS, vb.pp("norm"))?,
            head_dropout: Dropout::new(config.head_dropout, &vb.pp("head"))?,
            // At 0, so that every class starts equally likely: the paper's and timm's.
            head: Classifier::with(dim, num_classes, Init::ZEROS, Some(Init::ZEROS), vb.pp("head"))?,
            image_size,
        })
    }
}

impl Model for MlpMixer {
    /// (b, in_chans, image_size, image_size) -> (b, tokens, dim)
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let (_, _, h, w) = xs.dims4()?;
        if (h, w) != (self.image_size, self.image_size) {
            bail!("mixer: made for images of {0}x{0} pixels, got {h}x{w}; set `image_size`", self.image_size)
        }
        let tokens = self.blocks.forward_t(&self.stem.forward_t(xs, train)?, train)?;
        self.norm.forward_t(&tokens, train)
    }

    fn pre_logits(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        let mean = || zoo_core::ops::mean_tokens(features, 0);
        let mean = trace::op(Step::MeanTokens { first: 0 }, &[features], mean)?;
        self.head_dropout.forward_t(&mean, train)
    }

    fn classifier(&self) -> &Classifier {
        &self.head
    }

    fn classifier_mut(&mut self) -> &mut Classifier {
        &mut self.head
    }
}

const fn info(name: &'static str, parameters: usize, builder: Builder) -> ModelInfo {
    ModelInfo {
        family: "mlp",
        preprocess: Preprocess::inception(0.875),
        keys: "timm",
        paper: "Tolstikhin et al. 2021, arXiv:2105.01601",
        timm: Some(Timm::new(name, "stem.proj", "head").of_fixed_size()),
        choices: Choices { drop_rate: true, drop_path_rate: true, ..Choices::NONE },
        ..ModelInfo::new(name, parameters, builder)
    }
}

fn build(config: Config, dims: &Dimensions, vb: VarBuilder) -> Result<Box<dyn Model>> {
    let Dimensions { num_classes, in_chans, image_size, .. } = *dims;
    let config = Config {
        num_classes,
        in_chans,
        image_size,
        head_dropout: dims.drop_rate.unwrap_or(config.head_dropout),
        drop_path: dims.drop_path_rate.unwrap_or(config.drop_path),
        ..config
    };
    Ok(Box::new(MlpMixer::new(&config, vb)?))
}

/// The registered variants.
pub const MODELS: &[ModelInfo] = &[
    info("mixer_s32_224", 19_104_624, |d, vb| build(Config::small(32), d, vb)),
    info("mixer_s16_224", 18_528_264, |d, vb| build(Config::small(16), d, vb)),
    info("mixer_b32_224", 60_293_428, |d, vb| build(Config::base(32), d, vb)),
    info("mixer_b16_224", 59_880_472, |d, vb| build(Config::base(16), d, vb))
        .weights("hf:timm/mixer_b16_224.goog_in21k_ft_in1k"),
    info("mixer_l16_224", 208_196_168, |d, vb| build(Config::large(16), d, vb))
        .weights("hf:timm/mixer_l16_224.goog_in21k_ft_in1k"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use zoo_core::VarStore;

    const TINY: Config = Config { image_size: 16, num_classes: 5, ..Config::new(8, 2, 12) };

    /// Table 1 counts in millions and without the classifier. For two of its networks no name is registered.
    #[test]
    fn the_networks_have_the_size_that_the_paper_gives() {
        let (small, base, large) = (Config::small, Config::base, Config::large);
        let table =
            [(small(32), 19), (small(16), 18), (base(32), 60), (base(16), 59), (large(32), 206), (large(16), 207)];
        for (config, millions) in table.into_iter().chain([(Config::huge(14), 431)]) {
            let store = VarStore::shapes_only();
            MlpMixer::new(&config, store.root()).unwrap();
            let count = store.parameter_count() - (config.dim + 1) * config.num_classes;
            assert_eq!((count as f64 / 1e6).round(), f64::from(millions), "{config:?}");
        }
    }

    #[test]
    fn what_makes_no_network_is_said() {
        let error = |config: Config| MlpMixer::new(&config, VarStore::shapes_only().root()).unwrap_err().to_string();
        assert!(error(Config { patch: 7, ..TINY }).contains("7x7"));
        assert!(error(Config { patch: 0, ..TINY }).contains("0x0"));
        assert!(error(Config { depth: 0, ..TINY }).contains("at least 1"));
        let net = MlpMixer::new(&TINY, VarStore::new(0, DType::F32, &Device::Cpu).root()).unwrap();
        let wrong = Tensor::zeros((1, 3, 24, 24), DType::F32, &Device::Cpu).unwrap();
        let error = net.forward_t(&wrong, false).unwrap_err().to_string();
        assert!(error.contains("16x16") && error.contains("24x24"), "{error}");
    }

    #[test]
    fn every_kind_of_dropout_acts_in_training_only() {
        let xs = Tensor::rand(0f32, 1., (8, 3, 16, 16), &Device::Cpu).unwrap();
        let features = |config: Config, train| {
            let net = MlpMixer::new(&config, VarStore::new(0, DType::F32, &Device::Cpu).root()).unwrap();
            let features = net.forward_features(&xs, train).unwrap();
            net.pre_logits(&features, train).unwrap().to_vec2::<f32>().unwrap()
        };
        let plain = features(TINY, true);
        for config in
            [Config { dropout: 0.5, ..TINY }, Config { head_dropout: 0.5, ..TINY }, Config { drop_path: 0.9, ..TINY }]
        {
            assert_ne!(features(config, true), plain, "{config:?}");
            assert_eq!(features(config, false), features(TINY, false), "{config:?}");
        }
    }
}

//! The Mixers of the template suite: what its published table of parameters was counted on. They differ from the
//! paper's network, [`MlpMixer`](crate::mlp_mixer::MlpMixer), in four points:
//!
//! - a token is no patch of the image but a run of `in_chans · p · p` numbers as they lie in memory, channel by channel
//!   and row by row;
//! - the LayerNorm before token mixing runs over the tokens, and the perceptrons are as wide inside as outside;
//! - the last LayerNorm has a weight for each token and channel;
//! - the mean before the classifier is taken over the channels, so that the classifier reads one number a token.
//!
//! Checkpoint keys: `embed`, `layers.{i}.{norm1,mlp_tokens.{fc1,fc2},norm2,mlp_channels.{fc1,fc2}}`, `norm`, `head`.
//!
//! | variant | p | tokens S | channels C | layers N | parameters |
//! |---|---|---|---|---|---|
//! | `template_mixer_s4` | 4 | 64 | 128 | 6 | 273,674 |
//! | `template_mixer_s2` | 2 | 256 | 128 | 6 | 1,062,026 |
//! | `template_mixer_b4` | 4 | 64 | 192 | 8 | 698,186 |
//! | `template_mixer_b2` | 2 | 256 | 192 | 8 | 1,756,106 |

use candle_core::{Result, Tensor, bail};
use zoo_core::model::Builder;
use zoo_core::tape;
use zoo_core::trace::{self, Step};
use zoo_core::{
    Classifier, Dimensions, Init, LayerNorm, Linear, MlpBlock, Model, ModelInfo, ModuleT, Residual, Sequential, Stages,
    Transpose, VarBuilder, seq,
};

/// A Mixer of the template suite.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// p: a token holds as many numbers as a patch of p x p pixels would; p divides `image_size`.
    pub patch: usize,
    /// C, the channels of a token.
    pub dim: usize,
    /// N, the number of layers.
    pub depth: usize,
    /// Side of the square input image.
    pub image_size: usize,
    /// Channels of the input image.
    pub in_chans: usize,
    /// Width of the classifier.
    pub num_classes: usize,
}

impl Config {
    /// The small network, of 6 layers and 128 channels, for 32x32 images; `patch` is 4 or 2 in the suite.
    pub const fn small(patch: usize) -> Self {
        Self { patch, dim: 128, depth: 6, image_size: 32, in_chans: 3, num_classes: 10 }
    }

    /// The base network, of 8 layers and 192 channels.
    pub const fn base(patch: usize) -> Self {
        Self { dim: 192, depth: 8, ..Self::small(patch) }
    }
}

/// torch.nn.LayerNorm's default.
const EPS: f64 = 1e-5;

/// A perceptron that is as wide inside as outside, initialised as PyTorch does.
fn mlp(width: usize, vb: VarBuilder) -> Result<MlpBlock> {
    MlpBlock::new((width, width, width), 0.0, Init::TORCH_WEIGHT, Init::torch_bias(width), vb)
}

/// Token mixing, then channel mixing: x ← x + mlp(norm(xᵀ))ᵀ, x ← x + mlp(norm(x)).
fn layer(tokens: usize, dim: usize, vb: VarBuilder) -> Result<Sequential> {
    let (norm1, mlp_tokens) = (LayerNorm::new(tokens, EPS, vb.pp("norm1"))?, mlp(tokens, vb.pp("mlp_tokens"))?);
    let (norm2, mlp_channels) = (LayerNorm::new(dim, EPS, vb.pp("norm2"))?, mlp(dim, vb.pp("mlp_channels"))?);
    let mix_tokens = Residual::new(seq![Transpose, norm1, mlp_tokens, Transpose]);
    Ok(seq![mix_tokens, Residual::new(seq![norm2, mlp_channels])].block("Layer", &vb))
}

/// The network: (b, in_chans, image_size, image_size) -> (b, num_classes).
///
/// ```
/// use zoo_core::VarStore;
/// use zoo_mlp::template_mixer::{Config, TemplateMixer};
/// let store = VarStore::shapes_only();
/// TemplateMixer::new(&Config::small(4), store.root())?;
/// assert_eq!(store.parameter_count(), 273_674);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct TemplateMixer {
    embed: Linear,
    layers: Stages,
    norm: LayerNorm,
    head: Classifier,
    tokens: usize,
}

impl TemplateMixer {
    /// Makes the network at `vb`.
    ///
    /// # Errors
    /// A patch that does not divide the image, no layer or no channel.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let Config { patch, dim, depth, image_size, in_chans, num_classes } = *config;
        if patch == 0 || image_size == 0 || !image_size.is_multiple_of(patch) {
            bail!(
                "template_mixer: patches of {patch}x{patch} pixels do not divide an image of {image_size}x{image_size}"
            )
        }
        if dim == 0 || depth == 0 {
            bail!("template_mixer: needs at least one layer and one channel, got {config:?}")
        }
        let tokens = (image_size / patch).pow(2);
        let embed = Linear::new(in_chans * patch * patch, dim, vb.pp("embed"))?;
        let mut layers = Stages::default();
        for i in 0..depth {
            layers.push(format!("layers.{i}"), layer(tokens, dim, vb.pp("layers").pp(i))?);
        }
        Ok(Self {
            embed,
            layers,
            norm: LayerNorm::new((tokens, dim), EPS, vb.pp("norm"))?,
            head: Classifier::new(tokens, num_classes, vb.pp("head"))?,
            tokens,
        })
    }
}

impl Model for TemplateMixer {
    /// (b, in_chans, image_size, image_size) -> (b, tokens, dim)
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let (b, c, h, w) = xs.dims4()?;
        let rows = |xs: &Tensor| tape::reshape(xs, (b, self.tokens, c * h * w / self.tokens));
        let rows = trace::op(Step::Rows { tokens: self.tokens }, &[xs], || rows(xs))?;
        let xs = self.layers.forward_t(&self.embed.forward_t(&rows, train)?, train)?;
        self.norm.forward_t(&xs, train)
    }

    /// (b, tokens, dim) -> (b, tokens)
    fn pre_logits(&self, features: &Tensor, _: bool) -> Result<Tensor> {
        trace::op(Step::MeanChannels, &[features], || zoo_core::ops::mean_channels(features))
    }

    fn classifier(&self) -> &Classifier {
        &self.head
    }

    fn classifier_mut(&mut self) -> &mut Classifier {
        &mut self.head
    }
}

const fn info(name: &'static str, parameters: usize, builder: Builder) -> ModelInfo {
    ModelInfo { family: "mlp", paper: "template suite", ..ModelInfo::new(name, parameters, builder).cifar() }
}

fn build(config: Config, dims: &Dimensions, vb: VarBuilder) -> Result<Box<dyn Model>> {
    let Dimensions { num_classes, in_chans, image_size, .. } = *dims;
    Ok(Box::new(TemplateMixer::new(&Config { num_classes, in_chans, image_size, ..config }, vb)?))
}

/// The registered variants.
pub const MODELS: &[ModelInfo] = &[
    info("template_mixer_s4", 273_674, |d, vb| build(Config::small(4), d, vb)),
    info("template_mixer_s2", 1_062_026, |d, vb| build(Config::small(2), d, vb)),
    info("template_mixer_b4", 698_186, |d, vb| build(Config::base(4), d, vb)),
    info("template_mixer_b2", 1_756_106, |d, vb| build(Config::base(2), d, vb)),
];

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use zoo_core::VarStore;

    #[test]
    fn what_makes_no_network_is_said() {
        let error =
            |config: Config| TemplateMixer::new(&config, VarStore::shapes_only().root()).unwrap_err().to_string();
        assert!(error(Config::small(5)).contains("5x5"));
        assert!(error(Config { depth: 0, ..Config::small(4) }).contains("depth: 0"));
    }

    /// A change of one pixel reaches, without mixing, one token: the one whose run of memory holds the pixel.
    #[test]
    fn a_token_is_a_run_of_memory() {
        let config = Config { image_size: 8, dim: 5, depth: 1, ..Config::small(4) };
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        let net = TemplateMixer::new(&config, store.root()).unwrap();
        for (key, var) in store.parameters().iter().filter(|(key, _)| key.contains("fc2")) {
            var.set(&var.zeros_like().unwrap()).unwrap_or_else(|e| panic!("{key}: {e}"));
        }
        let mut pixels = vec![0f32; 3 * 8 * 8];
        let stage = |pixels: &[f32]| {
            let xs = Tensor::from_slice(pixels, (1, 3, 8, 8), &Device::Cpu).unwrap();
            let (_, map) = net.forward_intermediates(&xs, false).unwrap().swap_remove(0);
            map.squeeze(0).unwrap().to_vec2::<f32>().unwrap()
        };
        let before = stage(&pixels);
        pixels[100] = 1.0; // 4 tokens of 48 numbers: 100 lies in the third
        let changed: Vec<bool> = stage(&pixels).iter().zip(&before).map(|(a, b)| a != b).collect();
        assert_eq!(changed, [false, false, true, false]);
    }
}

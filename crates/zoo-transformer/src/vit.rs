//! A. Dosovitskiy et al. (2020), "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
//! arXiv:2010.11929, table 1; the widths of tiny and small are those of H. Touvron et al. (2020), "Training
//! data-efficient image transformers & distillation through attention", arXiv:2012.12877, table 1.
//!
//! Checkpoint keys: timm's `cls_token`, `pos_embed`, `patch_embed.proj`,
//! `blocks.{i}.{norm1,attn.qkv,attn.proj,norm2,mlp.fc1,mlp.fc2}`, `norm` and `head`; a network that pools the mean of
//! its tokens has `fc_norm` where the others have `norm`. torchvision's `vit_b_16` and its kin load through
//! [`TORCHVISION`], files of Hugging Face transformers through [`TRANSFORMERS`]; both want other images than timm's.
//!
//! | variant | patch | width | layers | heads | parameters |
//! |---|---|---|---|---|---|
//! | `vit_tiny_patch16_224` | 16 | 192 | 12 | 3 | 5,717,416 |
//! | `vit_small_patch16_224` | 16 | 384 | 12 | 6 | 22,050,664 |
//! | `vit_base_patch16_224` | 16 | 768 | 12 | 12 | 86,567,656 |
//! | `vit_base_patch32_224` | 32 | 768 | 12 | 12 | 88,224,232 |
//! | `cifar_vit_tiny_patch4` | 4, on 32x32 pixels | 192 | 12 | 3 | 5,362,762 |

mod layouts;

pub use layouts::{TORCHVISION, TRANSFORMERS, from_transformers};

use candle_core::{Result, Tensor, bail};
use zoo_core::model::{Choices, Timm};
use zoo_core::trace::Step;
use zoo_core::weights::Layout;
use zoo_core::{
    Classifier, Dimensions, Dropout, GlobalPool, Init, LayerNorm, MlpBlock, Model, ModelInfo, ModuleT, PatchEmbed,
    Preprocess, Residual, SelfAttention, VarBuilder, seq, tape, trace, weight_for,
};

/// What stands for the image before the classifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The class token, normalised with all others by `norm`: the paper's.
    ClassToken,
    /// The mean of the patches' tokens, normalised behind it by `fc_norm`: timm's `global_pool="avg"`.
    Mean,
}

/// A ViT.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Side of the square image in pixels; the number of positions follows from it.
    pub image_size: usize,
    /// Side of a patch in pixels, which must divide the image.
    pub patch: usize,
    /// Width of the tokens.
    pub dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Heads of the attention, which must divide the width.
    pub heads: usize,
    /// Hidden width of a block's MLP.
    pub mlp_dim: usize,
    /// Whether a learned token stands before the patches. Only mean pooling can do without.
    pub class_token: bool,
    /// What stands for the image before the classifier.
    pub pooling: Pooling,
    /// Of the tokens behind the position embeddings, and behind every linear layer of a block but the one that makes
    /// queries, keys and values: appendix B.1.
    pub dropout: f64,
    /// Of attention weights.
    pub attention_dropout: f64,
    /// Of the vector that the classifier reads: timm's `drop_rate`.
    pub head_dropout: f64,
    /// The share of images for which the last block's branches are left out; it rises evenly from 0 at the first block.
    pub drop_path: f64,
    /// Width of the classifier.
    pub num_classes: usize,
    /// Channels of the input image.
    pub in_chans: usize,
}

impl Config {
    /// A network of 12 blocks for 1000 classes, its MLPs four times as wide as its tokens, without any dropout.
    fn of(image_size: usize, patch: usize, dim: usize, heads: usize) -> Self {
        Self {
            image_size,
            patch,
            dim,
            depth: 12,
            heads,
            mlp_dim: 4 * dim,
            class_token: true,
            pooling: Pooling::ClassToken,
            dropout: 0.0,
            attention_dropout: 0.0,
            head_dropout: 0.0,
            drop_path: 0.0,
            num_classes: 1000,
            in_chans: 3,
        }
    }

    /// ViT-Ti/16.
    pub fn vit_tiny_patch16_224() -> Self {
        Self::of(224, 16, 192, 3)
    }

    /// ViT-S/16.
    pub fn vit_small_patch16_224() -> Self {
        Self::of(224, 16, 384, 6)
    }

    /// ViT-B/16.
    pub fn vit_base_patch16_224() -> Self {
        Self::of(224, 16, 768, 12)
    }

    /// ViT-B/32.
    pub fn vit_base_patch32_224() -> Self {
        Self::of(224, 32, 768, 12)
    }

    /// ViT-Ti on the 64 patches of 4x4 pixels of a CIFAR image, with 10 classes.
    pub fn cifar_vit_tiny_patch4() -> Self {
        Self { num_classes: 10, ..Self::of(32, 4, 192, 3) }
    }

    /// Patches of the image.
    fn patches(&self) -> usize {
        (self.image_size / self.patch).pow(2)
    }

    fn check(&self) -> Result<()> {
        let Self { image_size, patch, depth, dim, mlp_dim, .. } = *self;
        if patch == 0 || image_size == 0 || !image_size.is_multiple_of(patch) {
            bail!("vit: patches of {patch}x{patch} do not divide an image of {image_size}x{image_size}")
        }
        if depth == 0 || dim == 0 || mlp_dim == 0 {
            bail!(
                "vit: wants at least one block and widths of at least 1, got depth {depth}, widths {dim} and {mlp_dim}"
            )
        }
        if !self.class_token && self.pooling == Pooling::ClassToken {
            bail!("vit: pooling by the class token needs one; set `class_token`, or pool the mean")
        }
        Ok(())
    }
}

/// What timm fills every linear layer with.
const INIT: Init = Init::TruncatedNormal { std: 0.02 };
/// ε of every LayerNorm here, in timm's code as in torchvision's; PyTorch's own is 1e-5.
const EPS: f64 = 1e-6;

/// x ← x + attn(norm(x)), x ← x + mlp(norm(x)): equations 2 and 3. (b, n, dim) -> (b, n, dim)
#[derive(Debug, Clone)]
struct Block {
    attn: Residual,
    mlp: Residual,
    vb: VarBuilder,
}

impl Block {
    fn new(config: &Config, drop_path: f64, vb: VarBuilder) -> Result<Self> {
        let Config { dim, heads, mlp_dim, dropout, attention_dropout, .. } = *config;
        let norm1 = LayerNorm::new(dim, EPS, vb.pp("norm1"))?;
        let attn = SelfAttention::new(dim, heads, (attention_dropout, dropout), INIT, vb.pp("attn"))?;
        let norm2 = LayerNorm::new(dim, EPS, vb.pp("norm2"))?;
        let mlp = MlpBlock::new((dim, mlp_dim, dim), dropout, INIT, Init::ZEROS, vb.pp("mlp"))?;
        Ok(Self {
            attn: Residual::new(seq![norm1, attn]).drop_path(Dropout::path(drop_path, &vb)?),
            mlp: Residual::new(seq![norm2, mlp]).drop_path(Dropout::path(drop_path, &vb)?),
            vb,
        })
    }

    /// The first token of the output: (b, n, dim) -> (b, 1, dim)
    fn forward_first(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.mlp.forward_t(&self.attn.forward_first(xs, train)?, train)
    }
}

impl ModuleT for Block {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        trace::block("ViTBlock", self.vb.path(), || self.mlp.forward_t(&self.attn.forward_t(xs, train)?, train))
    }
}

/// The network: (b, in_chans, image_size, image_size) -> (b, num_classes).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{Model, VarStore};
/// use zoo_transformer::vit::{Config, VisionTransformer};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let config = Config { image_size: 32, patch: 8, dim: 48, depth: 2, ..Config::vit_tiny_patch16_224() };
/// let net = VisionTransformer::new(&config, store.root())?;
/// let images = Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu)?;
/// assert_eq!(net.forward_features(&images, false)?.dims(), &[2, 1 + 16, 48]);
/// assert_eq!(net.forward_t(&images, false)?.dims(), &[2, 1000]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct VisionTransformer {
    cls_token: Option<Tensor>,
    pos_embed: Tensor,
    patch_embed: PatchEmbed,
    dropout: Dropout,
    blocks: Vec<Block>,
    /// Before the pooling by the class token, behind the pooling of the mean.
    norm: LayerNorm,
    pooling: Pooling,
    head_dropout: Dropout,
    head: Classifier,
    image_size: usize,
    vb: VarBuilder,
}

impl VisionTransformer {
    /// Makes the network at `vb`.
    ///
    /// # Errors
    /// A patch that does not divide the image, heads that do not divide the width, a size of 0, class-token pooling
    /// without the token, a dropout rate outside 0..1.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        let &Config { dim, depth, patch, .. } = config;
        // N(0, 1e-6²), which is timm's: as good as zero.
        let nothing = Init::Normal { mean: 0.0, std: 1e-6 };
        let cls_token = config.class_token.then(|| vb.param((1, 1, dim), "cls_token", nothing)).transpose()?;
        let positions = config.patches() + usize::from(config.class_token);
        let pos_embed = vb.param((1, positions, dim), "pos_embed", INIT)?;
        let patch_embed = PatchEmbed::new(config.in_chans, dim, patch, Init::TORCH_WEIGHT, vb.pp("patch_embed"))?;
        let block = |i| Block::new(config, Dropout::rising(config.drop_path, i, depth), vb.pp("blocks").pp(i));
        let blocks = (0..depth).map(block).collect::<Result<_>>()?;
        let norm = if config.pooling == Pooling::Mean { "fc_norm" } else { "norm" };
        Ok(Self {
            cls_token,
            pos_embed,
            patch_embed,
            dropout: Dropout::new(config.dropout, &vb)?,
            blocks,
            norm: LayerNorm::new(dim, EPS, vb.pp(norm))?,
            pooling: config.pooling,
            head_dropout: Dropout::new(config.head_dropout, &vb)?,
            head: Classifier::with(dim, config.num_classes, INIT, Some(Init::ZEROS), vb.pp("head"))?,
            image_size: config.image_size,
            vb,
        })
    }

    /// Equation 1: the patches' tokens behind the class token, each with its position. (b, c, h, w) -> (b, n, dim)
    fn embed(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let (_, _, h, w) = xs.dims4()?;
        if (h, w) != (self.image_size, self.image_size) {
            bail!(
                "vit: the positions are those of an image of {0}x{0}, got {h}x{w}; set `image_size` to build it for another",
                self.image_size
            )
        }
        let mut tokens = self.patch_embed.forward_t(xs, train)?;
        if let Some(token) = &self.cls_token {
            tokens = trace::layer(Step::PrependToken, &self.path("cls_token"), &[Some(token)], &[&tokens], || {
                zoo_core::ops::prepend_token(&tokens, &weight_for(token, train))
            })?;
        }
        let (weights, path) = ([Some(&self.pos_embed)], self.path("pos_embed"));
        let placed = trace::layer(Step::PositionEmbedding, &path, &weights, &[&tokens], || {
            let positions = weight_for(&self.pos_embed, train);
            zoo_core::ops::add_positions(&tokens, &positions)
        })?;
        self.dropout.forward_t(&placed, train)
    }

    fn path(&self, name: &str) -> String {
        self.vb.pp(name).path().to_string()
    }

    /// [`Model::forward_features`] of the class token alone, (b, 1, dim): the other tokens of the last block reach no
    /// logit, so neither they nor gradients for them are computed. Dropout there draws masks for this token alone.
    fn class_token(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let mut xs = self.embed(xs, train)?;
        if let [blocks @ .., last] = self.blocks.as_slice() {
            for block in blocks {
                xs = block.forward_t(&xs, train)?;
            }
            xs = last.forward_first(&xs, train)?;
        }
        self.norm.forward_t(&xs, train)
    }
}

impl Model for VisionTransformer {
    /// The tokens behind the last norm, (b, n, dim), the class token first; with mean pooling, whose norm comes behind
    /// it, those behind the last block.
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let mut xs = self.embed(xs, train)?;
        for (i, block) in self.blocks.iter().enumerate() {
            xs = trace::stage(format!("blocks.{i}"), block.forward_t(&xs, train)?);
        }
        match self.pooling {
            Pooling::ClassToken => self.norm.forward_t(&xs, train),
            Pooling::Mean => Ok(xs),
        }
    }

    /// (b, n, dim) -> (b, dim)
    fn pre_logits(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        let pooled = match self.pooling {
            Pooling::ClassToken => trace::op(Step::FirstToken, &[features], || {
                tape::reshape(&zoo_core::ops::first_token(features)?, (features.dim(0)?, features.dim(2)?))
            })?,
            Pooling::Mean => {
                let first = usize::from(self.cls_token.is_some());
                let mean = || zoo_core::ops::mean_tokens(features, first);
                self.norm.forward_t(&trace::op(Step::MeanTokens { first }, &[features], mean)?, train)?
            }
        };
        self.head_dropout.forward_t(&pooled, train)
    }

    fn classifier(&self) -> &Classifier {
        &self.head
    }

    fn classifier_mut(&mut self) -> &mut Classifier {
        &mut self.head
    }

    fn evaluation_chunk(&self) -> Option<usize> {
        Some(32)
    }

    fn logits(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let features = match self.pooling {
            Pooling::ClassToken if !trace::is_watched() => self.class_token(xs, train)?,
            _ => self.forward_features(xs, train)?,
        };
        self.forward_head(&features, train)
    }
}

/// Of maps there are none: what is pooled are tokens.
const CHOICES: Choices =
    Choices { drop_rate: true, drop_path_rate: true, global_pool: &[GlobalPool::Token, GlobalPool::Avg] };

const fn info(
    name: &'static str,
    parameters: usize,
    builder: fn(&Dimensions, VarBuilder) -> Result<Box<dyn Model>>,
) -> ModelInfo {
    ModelInfo {
        family: "transformer",
        preprocess: Preprocess::inception(0.9),
        keys: "timm",
        paper: "Dosovitskiy et al. 2020, arXiv:2010.11929",
        layouts: &[TORCHVISION, TRANSFORMERS],
        timm: Some(Timm::new(name, "patch_embed.proj", "head").of_fixed_size()),
        choices: CHOICES,
        ..ModelInfo::new(name, parameters, builder)
    }
}

fn build(config: Config, dims: &Dimensions, vb: VarBuilder) -> Result<Box<dyn Model>> {
    let &Dimensions { num_classes, in_chans, image_size, .. } = dims;
    let pooling = match dims.global_pool {
        Some(GlobalPool::Token) => Pooling::ClassToken,
        Some(_) => Pooling::Mean,
        None => config.pooling,
    };
    let config = Config {
        num_classes,
        in_chans,
        image_size,
        pooling,
        head_dropout: dims.drop_rate.unwrap_or(config.head_dropout),
        drop_path: dims.drop_path_rate.unwrap_or(config.drop_path),
        ..config
    };
    Ok(Box::new(VisionTransformer::new(&config, vb)?))
}

/// The registered variants.
pub const MODELS: &[ModelInfo] = &[
    info("vit_tiny_patch16_224", 5_717_416, |d, vb| build(Config::vit_tiny_patch16_224(), d, vb))
        .weights("hf:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
    info("vit_small_patch16_224", 22_050_664, |d, vb| build(Config::vit_small_patch16_224(), d, vb))
        .weights("hf:timm/vit_small_patch16_224.augreg_in21k_ft_in1k"),
    info("vit_base_patch16_224", 86_567_656, |d, vb| build(Config::vit_base_patch16_224(), d, vb))
        .weights("hf:timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"),
    info("vit_base_patch32_224", 88_224_232, |d, vb| build(Config::vit_base_patch32_224(), d, vb))
        .weights("hf:timm/vit_base_patch32_224.augreg_in21k_ft_in1k"),
    ModelInfo {
        preprocess: Preprocess::CIFAR10,
        num_classes: 10,
        timm: None,
        layouts: &[Layout { preprocess: None, ..TORCHVISION }, Layout { preprocess: None, ..TRANSFORMERS }],
        ..info("cifar_vit_tiny_patch4", 5_362_762, |d, vb| build(Config::cifar_vit_tiny_patch4(), d, vb))
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use zoo_core::VarStore;

    fn small() -> Config {
        Config { image_size: 16, patch: 8, dim: 12, depth: 3, mlp_dim: 24, num_classes: 5, ..Config::of(16, 8, 12, 3) }
    }

    fn net(config: &Config) -> (VarStore, Result<VisionTransformer>) {
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        let net = VisionTransformer::new(config, store.root());
        (store, net)
    }

    fn images(side: usize) -> Tensor {
        let values = (0..2 * 3 * side * side).map(|i| (i % 17) as f32 / 17.0).collect();
        Tensor::from_vec(values, (2, 3, side, side), &Device::Cpu).unwrap()
    }

    /// What is left out of the last block reaches no logit and asks for no gradient.
    #[test]
    fn the_class_token_alone_gives_the_same_logits_and_gradients() {
        let store = VarStore::new(0, DType::F64, &Device::Cpu);
        let net = VisionTransformer::new(&small(), store.root()).unwrap();
        let images = images(16).to_dtype(DType::F64).unwrap();
        let whole = |train| net.forward_head(&net.forward_features(&images, train).unwrap(), train).unwrap();
        for train in [false, true] {
            let (ys, want) = (net.forward_t(&images, train).unwrap(), whole(train));
            let error = (&ys - &want).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(error < 1e-14, "{error}");
        }
        let gradients = |ys: Tensor| ys.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let (got, want) = (gradients(net.forward_t(&images, true).unwrap()), gradients(whole(true)));
        for (key, var) in store.parameters() {
            let (got, want) = (got.get(&var).expect(&key), want.get(&var).expect(&key));
            let error = (got - want).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(error < 1e-13, "{key}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_built_says_why() {
        let cases = [
            (Config { patch: 5, ..small() }, "patches of 5x5 do not divide an image of 16x16"),
            (Config { depth: 0, ..small() }, "at least one block"),
            (Config { heads: 5, ..small() }, "blocks.0.attn: 5 heads do not divide a width of 12"),
            (Config { class_token: false, ..small() }, "pool the mean"),
            (Config { drop_path: 1.0, ..small() }, "rate"),
        ];
        for (config, wanted) in cases {
            let error = net(&config).1.unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        let error = net(&small()).1.unwrap().forward_t(&images(24), false).unwrap_err().to_string();
        assert!(error.contains("16x16") && error.contains("24x24"), "{error}");
    }

    #[test]
    fn tokens_and_norm_follow_the_pooling() {
        let cases = [
            (small(), 5, "norm.weight"),
            (Config { pooling: Pooling::Mean, ..small() }, 5, "fc_norm.weight"),
            (Config { pooling: Pooling::Mean, class_token: false, ..small() }, 4, "fc_norm.weight"),
        ];
        for (config, tokens, norm) in cases {
            let (store, net) = net(&config);
            let net = net.unwrap();
            assert_eq!(net.forward_features(&images(16), false).unwrap().dims(), &[2, tokens, 12]);
            assert_eq!(store.get("pos_embed").unwrap().shape.dims(), &[1, tokens, 12]);
            let norms = store.slots().into_iter().filter(|s| ["norm.weight", "fc_norm.weight"].contains(&&*s.key));
            assert_eq!(norms.map(|s| s.key).collect::<Vec<_>>(), [norm]);
            assert_eq!(net.forward_t(&images(16), false).unwrap().dims(), &[2, 5]);
        }
    }

    /// Each of the four kinds of dropping changes a training pass by itself, and none an evaluation.
    #[test]
    fn dropping_is_for_training() {
        let logits = |config: &Config, train: bool| {
            let net = net(config).1.unwrap();
            net.forward_t(&images(16), train).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let plain = logits(&small(), true);
        assert_eq!(logits(&small(), false), plain);
        for config in [
            Config { dropout: 0.5, ..small() },
            Config { attention_dropout: 0.5, ..small() },
            Config { head_dropout: 0.5, ..small() },
            Config { drop_path: 0.9, ..small() },
        ] {
            assert_ne!(logits(&config, true), plain, "{config:?}");
            assert_eq!(logits(&config, false), plain, "{config:?}");
        }
    }

    /// The rates of stochastic depth rise evenly from 0 at the first block, as timm has them.
    #[test]
    fn the_first_block_never_drops() {
        let config = Config { drop_path: 0.999, depth: 1, ..small() };
        let net = net(&config).1.unwrap();
        let xs = images(16);
        let values = |train| net.forward_t(&xs, train).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(values(true), values(false));
    }
}

//! K. He, X. Zhang, S. Ren, J. Sun (2015), "Deep Residual Learning for Image Recognition", arXiv:1512.03385, table 1,
//! the plain networks that they are compared with, and the widths of table 1 on 32x32 images.
//!
//! A stem, four stages of blocks with 64, 128, 256 and 512 channels (four times as many out of a bottleneck), each but
//! the first halving the map, global average pooling and one linear layer. All stages are made of one [`block()`].
//!
//! Checkpoint keys: torchvision's `conv1 bn1 layer{1..4}.{i}.{conv1,bn1,conv2,bn2,conv3,bn3} fc`, and
//! `layer{n}.0.downsample.{0,1}` where a shortcut has weights; plain networks have none. As in torchvision ("version
//! 1.5") a bottleneck strides in its 3x3 convolution; the paper's stride in the first 1x1 is [`Config::stride_on_1x1`].
//! Files of Hugging Face transformers load too, see [`from_transformers`].
//!
//! | layers | block | blocks a stage | `resnet*` | `plain*` | `cifar_resnet*` |
//! |---|---|---|---|---|---|
//! | 18 | basic | 2 2 2 2 | 11,689,512 | 11,515,688 | 11,173,962 |
//! | 34 | basic | 3 4 6 3 | 21,797,672 | 21,623,848 | 21,282,122 |
//! | 50 | bottleneck | 3 4 6 3 | 25,557,032 | 22,780,456 | 23,520,842 |
//! | 101 | bottleneck | 3 4 23 3 | 44,549,160 | | 42,512,970 |
//! | 152 | bottleneck | 3 8 36 3 | 60,192,808 | | |

mod block;
mod layouts;

pub use block::{BlockConfig, Kind, Shortcut, block};
pub use layouts::{RENAMES, TRANSFORMERS, from_transformers};

use crate::se_resnet;
use candle_core::{Result, Tensor, bail};
use zoo_core::model::{Builder, Choices, Timm};
use zoo_core::weights::Layout;
use zoo_core::{
    BatchNormConfig, Classifier, Conv2dConfig, Dimensions, Dropout, GlobalPool, Init, MaxPool2d, Model, ModelInfo,
    ModuleT, Pointwise, PooledMap, Preprocess, Sequential, SqueezeExciteConfig, Stages, VarBuilder, conv_bn, seq,
};

/// The first layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stem {
    /// Convolution 7x7 and max pooling 3x3, each with stride 2: a quarter of the side is left.
    ImageNet,
    /// Convolution 3x3, stride 1, no pooling: 32x32 images stay whole.
    Cifar,
}

/// A residual network of four stages.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// What stands on the branches.
    pub kind: Kind,
    /// Blocks in each stage.
    pub blocks: [usize; 4],
    /// The first layers.
    pub stem: Stem,
    /// The way past the branches.
    pub shortcut: Shortcut,
    /// Whether bottlenecks stride in their first 1x1 convolution, as in the paper, instead of the 3x3.
    pub stride_on_1x1: bool,
    /// Groups of the bottlenecks' 3x3 convolutions; ResNeXt-50 (Xie et al. 2016, arXiv:1611.05431) has 32 ...
    pub groups: usize,
    /// ... of 4 channels in the first stage, and wide ResNet-50-2 one of 128. Doubles from stage to stage.
    pub width_per_group: usize,
    /// How many times narrower than the block squeeze and excitation is, if there is any; see [`crate::se_resnet`].
    pub se_reduction: Option<usize>,
    /// Whether every block starts as the identity, by a last norm of weight 0 (Goyal et al. 2017, arXiv:1706.02677).
    pub zero_init: bool,
    /// Every BatchNorm of the network.
    pub norm: BatchNormConfig,
    /// What makes a vector of the last map.
    pub global_pool: GlobalPool,
    /// Rate of the dropout in front of the classifier.
    pub dropout: f64,
    /// The share of images for which the last block's branch is left out in training; it rises evenly from 0 at the first.
    pub drop_path: f64,
    /// Width of the classifier.
    pub num_classes: usize,
    /// Channels of the input image.
    pub in_chans: usize,
}

/// The paper's table 1: layers, block, blocks in each stage.
const TABLE_1: [(usize, Kind, [usize; 4]); 5] = [
    (18, Kind::Basic, [2, 2, 2, 2]),
    (34, Kind::Basic, [3, 4, 6, 3]),
    (50, Kind::Bottleneck, [3, 4, 6, 3]),
    (101, Kind::Bottleneck, [3, 4, 23, 3]),
    (152, Kind::Bottleneck, [3, 8, 36, 3]),
];

impl Config {
    /// The network of 18, 34, 50, 101 or 152 layers for ImageNet.
    ///
    /// # Errors
    /// A number of layers that table 1 does not have.
    pub fn resnet(layers: usize) -> Result<Self> {
        let Some(&(_, kind, blocks)) = TABLE_1.iter().find(|row| row.0 == layers) else {
            bail!("resnet: the paper's table has 18, 34, 50, 101 and 152 layers, not {layers}; set `blocks` for others")
        };
        Ok(Self {
            kind,
            blocks,
            stem: Stem::ImageNet,
            shortcut: Shortcut::B,
            stride_on_1x1: false,
            groups: 1,
            width_per_group: 64,
            se_reduction: None,
            zero_init: false,
            norm: BatchNormConfig::default(),
            global_pool: GlobalPool::Avg,
            dropout: 0.0,
            drop_path: 0.0,
            num_classes: 1000,
            in_chans: 3,
        })
    }

    /// The same network without shortcuts.
    ///
    /// # Errors
    /// As [`Config::resnet`].
    pub fn plain(layers: usize) -> Result<Self> {
        Ok(Self { shortcut: Shortcut::None, ..Self::resnet(layers)? })
    }

    /// The same network with a stem for 32x32 images and ten classes.
    ///
    /// # Errors
    /// As [`Config::resnet`].
    pub fn cifar(layers: usize) -> Result<Self> {
        Ok(Self { stem: Stem::Cifar, num_classes: 10, ..Self::resnet(layers)? })
    }

    /// Block `index` of the network, the first of a stage of `planes` channels, or a later one.
    fn block(&self, index: usize, c_in: usize, planes: usize, stride: usize) -> BlockConfig {
        let c_out = planes * self.kind.expansion();
        let squeeze = |reduction| SqueezeExciteConfig {
            weight_init: Init::HE_FAN_OUT,
            ..SqueezeExciteConfig::new(se_resnet::make_divisible(c_out, reduction))
        };
        BlockConfig {
            kind: self.kind,
            width: planes * self.width_per_group / 64 * self.groups,
            stride,
            shortcut: self.shortcut,
            stride_on_1x1: self.stride_on_1x1,
            groups: self.groups,
            se: self.se_reduction.map(squeeze),
            zero_init: self.zero_init,
            norm: self.norm,
            drop_path: Dropout::rising(self.drop_path, index, self.blocks.iter().sum()),
            ..BlockConfig::basic(c_in, c_out)
        }
    }

    fn check(&self) -> Result<()> {
        if self.blocks.contains(&0) {
            bail!("resnet: every stage needs a block, got {:?}", self.blocks)
        }
        if self.kind == Kind::Basic && self.width_per_group != 64 {
            bail!("resnet: basic blocks have no width_per_group, got {}; use bottlenecks", self.width_per_group)
        }
        if self.width_per_group == 0 || self.se_reduction == Some(0) {
            bail!("resnet: width_per_group and se_reduction must be at least 1")
        }
        if self.zero_init && self.shortcut == Shortcut::None {
            bail!("resnet: with zero_init and no shortcut every block gives 0, and its ReLU lets no gradient back")
        }
        Ok(())
    }
}

/// The network: (b, in_chans, h, w) -> (b, num_classes).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{Model, VarStore};
/// use zoo_resnet::resnet::{Config, ResNet};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let net = ResNet::new(&Config::cifar(18)?, store.root())?;
/// assert_eq!(store.parameter_count(), 11_173_962);
/// let logits = net.forward_t(&Tensor::zeros((1, 3, 32, 32), DType::F32, &Device::Cpu)?, false)?;
/// assert_eq!(logits.dims(), &[1, 10]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct ResNet {
    stem: Sequential,
    stages: Stages,
    pool: PooledMap,
    fc: Classifier,
}

impl ResNet {
    /// Makes the network at `vb`.
    ///
    /// # Errors
    /// A stage without blocks, options that the kind of block does not have, groups that do not divide a width.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        let conv = match config.stem {
            Stem::ImageNet => Conv2dConfig::new(7).stride(2).padding(3),
            Stem::Cifar => Conv2dConfig::new(3).padding(1),
        };
        let (conv, at) = (conv.no_bias().init(Init::HE_FAN_OUT), (vb.pp("conv1"), vb.pp("bn1")));
        let mut stem = conv_bn((config.in_chans, 64), conv, config.norm, Some(Pointwise::Relu), at)?;
        if config.stem == Stem::ImageNet {
            stem = seq![stem, MaxPool2d { padding: 1, ..MaxPool2d::new(3, 2) }];
        }

        let (mut c_in, mut stages, mut index) = (64, Stages::default(), 0);
        for (stage, planes) in [64, 128, 256, 512].into_iter().enumerate() {
            let name = format!("layer{}", stage + 1);
            let mut blocks = Vec::with_capacity(config.blocks[stage]);
            for i in 0..config.blocks[stage] {
                let stride = if stage > 0 && i == 0 { 2 } else { 1 };
                blocks.push(block(&config.block(index, c_in, planes, stride), vb.pp(&name).pp(i))?);
                index += 1;
                c_in = planes * config.kind.expansion();
            }
            stages.push(name, blocks.into_iter().collect());
        }
        let pool = PooledMap::new(config.global_pool, config.dropout, &vb)?;
        Ok(Self { stem, stages, pool, fc: Classifier::new(c_in, config.num_classes, vb.pp("fc"))? })
    }
}

impl Model for ResNet {
    /// (b, in_chans, h, w) -> (b, 512 or 2048, h/32, w/32), with the stem for 32x32 images (…, h/8, w/8)
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.stages.forward_t(&self.stem.forward_t(xs, train)?, train)
    }

    fn pre_logits(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        self.pool.forward_t(features, train)
    }

    fn classifier(&self) -> &Classifier {
        &self.fc
    }

    fn classifier_mut(&mut self) -> &mut Classifier {
        &mut self.fc
    }
}

const fn info(name: &'static str, parameters: usize, builder: Builder) -> ModelInfo {
    ModelInfo {
        family: "resnet",
        keys: "torchvision",
        paper: "He et al. 2015, arXiv:1512.03385",
        layouts: &[TRANSFORMERS],
        choices: Choices::OF_RESIDUAL_MAPS,
        ..ModelInfo::new(name, parameters, builder)
    }
}

/// Without shortcuts there is no stochastic depth.
const fn plain(name: &'static str, parameters: usize, builder: Builder) -> ModelInfo {
    ModelInfo { choices: Choices::OF_MAPS, ..info(name, parameters, builder) }
}

const fn imagenet(name: &'static str, parameters: usize, builder: Builder) -> ModelInfo {
    ModelInfo { timm: Some(Timm::new(name, "conv1", "fc")), ..info(name, parameters, builder) }
}

const fn cifar(name: &'static str, parameters: usize, builder: Builder) -> ModelInfo {
    let layouts = &[Layout { preprocess: None, ..TRANSFORMERS }];
    ModelInfo {
        preprocess: Preprocess::CIFAR10,
        num_classes: 10,
        renames: RENAMES,
        layouts,
        ..info(name, parameters, builder)
    }
}

pub(crate) fn build(config: Config, dims: &Dimensions, vb: VarBuilder) -> Result<Box<dyn Model>> {
    let config = Config {
        num_classes: dims.num_classes,
        in_chans: dims.in_chans,
        global_pool: dims.global_pool.unwrap_or(config.global_pool),
        dropout: dims.drop_rate.unwrap_or(config.dropout),
        drop_path: dims.drop_path_rate.unwrap_or(config.drop_path),
        ..config
    };
    Ok(Box::new(ResNet::new(&config, vb)?))
}

/// The registered variants.
pub const MODELS: &[ModelInfo] = &[
    imagenet("resnet18", 11_689_512, |d, vb| build(Config::resnet(18)?, d, vb)).weights("hf:timm/resnet18.a1_in1k"),
    imagenet("resnet34", 21_797_672, |d, vb| build(Config::resnet(34)?, d, vb)).weights("hf:timm/resnet34.a1_in1k"),
    imagenet("resnet50", 25_557_032, |d, vb| build(Config::resnet(50)?, d, vb)).weights("hf:timm/resnet50.a1_in1k"),
    imagenet("resnet101", 44_549_160, |d, vb| build(Config::resnet(101)?, d, vb)).weights("hf:timm/resnet101.a1h_in1k"),
    imagenet("resnet152", 60_192_808, |d, vb| build(Config::resnet(152)?, d, vb)).weights("hf:timm/resnet152.a1h_in1k"),
    plain("plain18", 11_515_688, |d, vb| build(Config::plain(18)?, d, vb)),
    plain("plain34", 21_623_848, |d, vb| build(Config::plain(34)?, d, vb)),
    plain("plain50", 22_780_456, |d, vb| build(Config::plain(50)?, d, vb)),
    cifar("cifar_resnet18", 11_173_962, |d, vb| build(Config::cifar(18)?, d, vb)),
    cifar("cifar_resnet34", 21_282_122, |d, vb| build(Config::cifar(34)?, d, vb)),
    cifar("cifar_resnet50", 23_520_842, |d, vb| build(Config::cifar(50)?, d, vb)),
    cifar("cifar_resnet101", 42_512_970, |d, vb| build(Config::cifar(101)?, d, vb)),
];

#[cfg(test)]
mod tests {
    use super::*;
    use zoo_core::VarStore;

    /// Figures of torchvision 0.29 for `resnext50_32x4d` and `wide_resnet50_2`.
    #[test]
    fn groups_and_widths_make_the_published_networks() {
        let count = |groups, width_per_group| {
            let store = VarStore::shapes_only();
            let config = Config { groups, width_per_group, ..Config::resnet(50).unwrap() };
            ResNet::new(&config, store.root()).unwrap();
            store.parameter_count()
        };
        assert_eq!((count(32, 4), count(1, 128)), (25_028_904, 68_883_240));
    }

    #[test]
    fn batch_norm_is_configured_everywhere() {
        let norm = BatchNormConfig { affine: false, ..Default::default() };
        let store = VarStore::shapes_only();
        ResNet::new(&Config { norm, ..Config::resnet(50).unwrap() }, store.root()).unwrap();
        assert!(store.slots().iter().all(|s| s.key == "fc.bias" || !s.key.ends_with("bias")));
    }

    #[test]
    fn configs_that_make_no_network_are_errors() {
        let error = |config: Config| ResNet::new(&config, VarStore::shapes_only().root()).unwrap_err().to_string();
        let (basic, deep) = (Config::resnet(18).unwrap(), Config::resnet(50).unwrap());
        assert!(Config::resnet(20).unwrap_err().to_string().contains("not 20"));
        assert!(error(Config { blocks: [2, 0, 2, 2], ..basic }).contains("[2, 0, 2, 2]"));
        assert!(error(Config { groups: 2, ..basic }).contains("layer1.0"));
        assert!(error(Config { width_per_group: 4, ..basic }).contains("width_per_group"));
        assert!(error(Config { groups: 0, ..deep }).contains("groups (0)"));
        assert!(error(Config { zero_init: true, ..Config::plain(18).unwrap() }).contains("zero_init"));
        let narrower = BlockConfig { shortcut: Shortcut::A, ..BlockConfig::basic(4, 2) };
        let error = block(&narrower, VarStore::shapes_only().root()).unwrap_err().to_string();
        assert!(error.contains("from 4 to 2"), "{error}");
    }
}

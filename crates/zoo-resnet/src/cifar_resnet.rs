//! K. He, X. Zhang, S. Ren, J. Sun (2015), "Deep Residual Learning for Image Recognition", arXiv:1512.03385, section
//! 4.2: the narrow residual networks for 32x32 images, the plain networks that they are compared with, and the same
//! with squeeze and excitation (Hu et al. 2017, arXiv:1709.01507).
//!
//! A 3x3 stem of 16 channels, three stages of n blocks with 16, 32 and 64 channels on 32x32, 16x16 and 8x8 pixels,
//! global average pooling and one linear layer: 6n + 2 layers with weights.
//!
//! Checkpoint keys: `conv1 bn1 layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2} linear`, with option B also
//! `layer{2,3}.0.shortcut.{0,1}`; those of the widely used PyTorch implementation by Y. Idelbayev. See [`RENAMES`].
//! Squeeze and excitation adds `layer{n}.{i}.se.{fc1,fc2}`, 1x1 convolutions with bias; its reduction of 16 squeezes
//! the 16, 32 and 64 channels to 1, 2 and 4, not rounded up.
//!
//! | n | layers | shortcut A | shortcut B | plain | with SE |
//! |---|---|---|---|---|---|
//! | 3 | 20 | 269,722 | 272,474 | 269,722 | 272,095 |
//! | 5 | 32 | 464,154 | 466,906 | 464,154 | |
//! | 7 | 44 | 658,586 | 661,338 | 658,586 | |
//! | 9 | 56 | 853,018 | 855,770 | 853,018 | 860,137 |
//! | 18 | 110 | 1,727,962 | 1,730,714 | | 1,742,200 |

pub use crate::resnet::Shortcut;
use crate::resnet::{BlockConfig, block};
use candle_core::{Result, Tensor, bail};
use zoo_core::model::{Builder, Choices};
use zoo_core::weights::Rename;
use zoo_core::{
    BatchNormConfig, Classifier, Conv2dConfig, Dimensions, Dropout, GlobalPool, Init, Model, ModelInfo, ModuleT,
    Pointwise, PooledMap, Sequential, SqueezeExciteConfig, Stages, VarBuilder, conv_bn,
};

/// A CIFAR residual network of 6n + 2 layers.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// n, the number of blocks in each of the three stages.
    pub blocks: usize,
    /// The kind of shortcut.
    pub shortcut: Shortcut,
    /// How many times narrower than the block squeeze and excitation is, if there is any.
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

impl Config {
    /// The residual network with `layers` = 6n + 2 layers and option A, as the paper uses on CIFAR-10.
    ///
    /// # Errors
    /// A number of layers that is not 6n + 2 with n of at least 1.
    pub fn resnet(layers: usize) -> Result<Self> {
        if layers < 8 || !(layers - 2).is_multiple_of(6) {
            bail!("cifar_resnet: the number of layers must be 6n + 2 (8, 14, 20, 26, …), got {layers}")
        }
        Ok(Self {
            blocks: (layers - 2) / 6,
            shortcut: Shortcut::A,
            se_reduction: None,
            zero_init: false,
            norm: BatchNormConfig::default(),
            global_pool: GlobalPool::Avg,
            dropout: 0.0,
            drop_path: 0.0,
            num_classes: 10,
            in_chans: 3,
        })
    }

    /// The residual network with as many layers and option B.
    ///
    /// # Errors
    /// As [`Config::resnet`].
    pub fn resnet_b(layers: usize) -> Result<Self> {
        Ok(Self { shortcut: Shortcut::B, ..Self::resnet(layers)? })
    }

    /// The plain network with as many layers.
    ///
    /// # Errors
    /// As [`Config::resnet`].
    pub fn plain(layers: usize) -> Result<Self> {
        Ok(Self { shortcut: Shortcut::None, ..Self::resnet(layers)? })
    }

    /// The residual network with as many layers and squeeze and excitation, reduction 16.
    ///
    /// # Errors
    /// As [`Config::resnet`].
    pub fn seresnet(layers: usize) -> Result<Self> {
        Ok(Self { se_reduction: Some(16), ..Self::resnet(layers)? })
    }

    fn block(&self, index: usize, c_in: usize, c_out: usize, stride: usize) -> BlockConfig {
        let squeeze = |reduction: usize| SqueezeExciteConfig {
            weight_init: Init::HE_FAN_OUT,
            // A single squeezed channel whose bias starts below its inputs' reach would be dead from the start.
            bias_init: Some(Init::ZEROS),
            ..SqueezeExciteConfig::new((c_out / reduction).max(1))
        };
        BlockConfig {
            stride,
            shortcut: self.shortcut,
            shortcut_key: "shortcut",
            se: self.se_reduction.map(squeeze),
            zero_init: self.zero_init,
            norm: self.norm,
            drop_path: Dropout::rising(self.drop_path, index, 3 * self.blocks),
            ..BlockConfig::basic(c_in, c_out)
        }
    }
}

/// The network: (b, in_chans, h, w) -> (b, num_classes).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{Model, VarStore};
/// use zoo_resnet::cifar_resnet::{CifarResNet, Config};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let net = CifarResNet::new(&Config::resnet(20)?, store.root())?;
/// assert_eq!(store.parameter_count(), 269_722);
/// let logits = net.forward_t(&Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu)?, false)?;
/// assert_eq!(logits.dims(), &[2, 10]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct CifarResNet {
    conv1: Sequential,
    stages: Stages,
    pool: PooledMap,
    linear: Classifier,
}

impl CifarResNet {
    /// Makes the network at `vb`.
    ///
    /// # Errors
    /// No blocks, a reduction of 0, zero-init without shortcuts.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        if config.blocks == 0 || config.se_reduction == Some(0) {
            bail!("cifar_resnet: blocks and se_reduction must be at least 1")
        }
        if config.zero_init && config.shortcut == Shortcut::None {
            bail!(
                "cifar_resnet: with zero_init and no shortcut every block gives 0, and its ReLU lets no gradient back"
            )
        }
        let conv = Conv2dConfig::new(3).padding(1).no_bias().init(Init::HE_FAN_OUT);
        let at = (vb.pp("conv1"), vb.pp("bn1"));
        let conv1 = conv_bn((config.in_chans, 16), conv, config.norm, Some(Pointwise::Relu), at)?;
        let (mut c_in, mut stages) = (16, Stages::default());
        for (stage, (c_out, stride)) in [(16, 1), (32, 2), (64, 2)].into_iter().enumerate() {
            let name = format!("layer{}", stage + 1);
            let mut blocks = Vec::with_capacity(config.blocks);
            for i in 0..config.blocks {
                let stride = if i == 0 { stride } else { 1 };
                let index = stage * config.blocks + i;
                blocks.push(block(&config.block(index, c_in, c_out, stride), vb.pp(&name).pp(i))?);
                c_in = c_out;
            }
            stages.push(name, blocks.into_iter().collect());
        }
        let linear = Classifier::new(c_in, config.num_classes, vb.pp("linear"))?;
        let pool = PooledMap::new(config.global_pool, config.dropout, &vb)?;
        Ok(Self { conv1, stages, pool, linear })
    }
}

impl Model for CifarResNet {
    /// (b, in_chans, 32, 32) -> (b, 64, 8, 8)
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.stages.forward_t(&self.conv1.forward_t(xs, train)?, train)
    }

    fn pre_logits(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        self.pool.forward_t(features, train)
    }

    fn classifier(&self) -> &Classifier {
        &self.linear
    }

    fn classifier_mut(&mut self) -> &mut Classifier {
        &mut self.linear
    }

    fn evaluation_chunk(&self) -> Option<usize> {
        Some(16)
    }
}

/// What other files call this network's tensors.
pub const RENAMES: &[Rename] = &[Rename {
    from: "fc.*",
    to: "linear.*",
    reason: "torchvision's name for the classifier, which some checkpoints use",
}];

const fn info(name: &'static str, parameters: usize, builder: Builder) -> ModelInfo {
    ModelInfo {
        family: "resnet",
        paper: "He et al. 2015, arXiv:1512.03385, section 4.2",
        renames: RENAMES,
        choices: Choices::OF_RESIDUAL_MAPS,
        ..ModelInfo::new(name, parameters, builder).cifar()
    }
}

/// Without shortcuts there is no stochastic depth.
const fn plain(name: &'static str, parameters: usize, builder: Builder) -> ModelInfo {
    ModelInfo { choices: Choices::OF_MAPS, ..info(name, parameters, builder) }
}

const fn se(name: &'static str, parameters: usize, builder: Builder) -> ModelInfo {
    let paper = "Hu et al. 2017, arXiv:1709.01507, on He et al. 2015, arXiv:1512.03385, section 4.2";
    ModelInfo { paper, ..info(name, parameters, builder) }
}

fn build(config: Config, dims: &Dimensions, vb: VarBuilder) -> Result<Box<dyn Model>> {
    let config = Config {
        num_classes: dims.num_classes,
        in_chans: dims.in_chans,
        global_pool: dims.global_pool.unwrap_or(config.global_pool),
        dropout: dims.drop_rate.unwrap_or(config.dropout),
        drop_path: dims.drop_path_rate.unwrap_or(config.drop_path),
        ..config
    };
    Ok(Box::new(CifarResNet::new(&config, vb)?))
}

/// The registered variants.
pub const MODELS: &[ModelInfo] = &[
    info("cifar_resnet20", 269_722, |d, vb| build(Config::resnet(20)?, d, vb)),
    info("cifar_resnet32", 464_154, |d, vb| build(Config::resnet(32)?, d, vb)),
    info("cifar_resnet44", 658_586, |d, vb| build(Config::resnet(44)?, d, vb)),
    info("cifar_resnet56", 853_018, |d, vb| build(Config::resnet(56)?, d, vb)),
    info("cifar_resnet110", 1_727_962, |d, vb| build(Config::resnet(110)?, d, vb)),
    info("cifar_resnet20_b", 272_474, |d, vb| build(Config::resnet_b(20)?, d, vb)),
    info("cifar_resnet32_b", 466_906, |d, vb| build(Config::resnet_b(32)?, d, vb)),
    info("cifar_resnet44_b", 661_338, |d, vb| build(Config::resnet_b(44)?, d, vb)),
    info("cifar_resnet56_b", 855_770, |d, vb| build(Config::resnet_b(56)?, d, vb)),
    info("cifar_resnet110_b", 1_730_714, |d, vb| build(Config::resnet_b(110)?, d, vb)),
    plain("cifar_plain20", 269_722, |d, vb| build(Config::plain(20)?, d, vb)),
    plain("cifar_plain32", 464_154, |d, vb| build(Config::plain(32)?, d, vb)),
    plain("cifar_plain44", 658_586, |d, vb| build(Config::plain(44)?, d, vb)),
    plain("cifar_plain56", 853_018, |d, vb| build(Config::plain(56)?, d, vb)),
    se("cifar_seresnet20", 272_095, |d, vb| build(Config::seresnet(20)?, d, vb)),
    se("cifar_seresnet56", 860_137, |d, vb| build(Config::seresnet(56)?, d, vb)),
    se("cifar_seresnet110", 1_742_200, |d, vb| build(Config::seresnet(110)?, d, vb)),
];

#[cfg(test)]
mod tests {
    use super::*;
    use zoo_core::VarStore;

    #[test]
    fn only_6n_plus_2_layers_exist() {
        assert_eq!(Config::resnet(110).unwrap().blocks, 18);
        let error = Config::resnet(18).unwrap_err().to_string();
        assert!(error.contains("6n + 2") && error.contains("18"), "{error}");
    }

    #[test]
    fn configs_that_make_no_network_are_errors() {
        let error = |config: Config| CifarResNet::new(&config, VarStore::shapes_only().root()).unwrap_err().to_string();
        assert!(error(Config { blocks: 0, ..Config::resnet(20).unwrap() }).contains("blocks"));
        assert!(error(Config { se_reduction: Some(0), ..Config::resnet(20).unwrap() }).contains("se_reduction"));
        assert!(error(Config { zero_init: true, ..Config::plain(20).unwrap() }).contains("zero_init"));
    }

    #[test]
    fn torchvisions_name_for_the_head_is_known() {
        assert_eq!(RENAMES[0].apply("fc.bias").as_deref(), Some("linear.bias"));
    }
}

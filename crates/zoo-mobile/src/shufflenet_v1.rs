//! X. Zhang, X. Zhou, M. Lin, J. Sun (2017), "ShuffleNet: An Extremely Efficient Convolutional Neural Network for
//! Mobile Devices", arXiv:1707.01083, table 1.
//!
//! A bottleneck whose 1x1 convolutions are grouped, with a shuffle of the channels between them so that the groups see
//! each other. A unit that halves the map takes the shortcut through average pooling and puts it in front of its branch
//! instead of adding it. The first 1x1 of stage 2 is not grouped (section 3.2): its input has only 24 channels. Inside
//! a unit there are a quarter of its stage's channels.
//!
//! Checkpoint keys, this crate's own: `conv1 bn1`, `stage{2,3,4}.{i}.{conv1,bn1,conv2,bn2,conv3,bn3}` with the 1x1, the
//! depthwise 3x3 and the second 1x1 in this order, `fc`.
//!
//! | groups | channels of the stages | `shufflenet_v1_*` | `cifar_shufflenet_v1_*` |
//! |---|---|---|---|
//! | 1 | 144 288 576 | 1,531,936 | |
//! | 2 | 200 400 800 | 1,733,848 | 940,858 |
//! | 3 | 240 480 960 | 1,865,728 | 914,338 |
//! | 4 | 272 544 1088 | 1,968,344 | |
//! | 8 | 384 768 1536 | 2,434,768 | |

use crate::{check_width, make_divisible};
use candle_core::{Result, Tensor, bail};
use zoo_core::model::{Builder, Choices};
use zoo_core::{
    AvgPool2d, BatchNormConfig, ChannelShuffle, Classifier, Concat, Conv2dConfig, Dimensions, GlobalPool, Init,
    MaxPool2d, Model, ModelInfo, ModuleT, Pointwise, PooledMap, Residual, Sequential, Stages, VarBuilder, conv_bn, seq,
};

/// The first layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stem {
    /// Convolution 3x3 and max pooling 3x3, each with stride 2: a quarter of the side is left.
    ImageNet,
    /// Convolution 3x3, stride 1, no pooling: 32x32 images stay whole.
    Cifar,
}

/// A ShuffleNet v1.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Groups of the 1x1 convolutions.
    pub groups: usize,
    /// Channels of stage 2; each later stage has twice as many.
    pub channels: usize,
    /// The scale factor s of "ShuffleNet s×": every layer has s times the channels, rounded so that the groups divide
    /// them.
    pub width: f64,
    /// The first layers.
    pub stem: Stem,
    /// Every BatchNorm of the network.
    pub norm: BatchNormConfig,
    /// What makes a vector of the last map.
    pub global_pool: GlobalPool,
    /// Rate of the dropout in front of the classifier.
    pub dropout: f64,
    /// Width of the classifier.
    pub num_classes: usize,
    /// Channels of the input image.
    pub in_chans: usize,
}

/// Table 1: groups and the channels of stage 2, chosen for about the same cost.
const TABLE_1: [(usize, usize); 5] = [(1, 144), (2, 200), (3, 240), (4, 272), (8, 384)];
/// Units in stages 2, 3 and 4; the first of each halves the map.
const UNITS: [usize; 3] = [4, 8, 4];
/// Channels of the stem.
const STEM: usize = 24;

impl Config {
    /// The paper's network with 1, 2, 3, 4 or 8 groups.
    ///
    /// # Errors
    /// A number of groups that table 1 does not have.
    pub fn new(groups: usize) -> Result<Self> {
        let Some(&(_, channels)) = TABLE_1.iter().find(|row| row.0 == groups) else {
            bail!(
                "shufflenet_v1: the paper's table has 1, 2, 3, 4 and 8 groups, not {groups}; set `channels` for others"
            )
        };
        let norm = BatchNormConfig::default();
        Ok(Self {
            groups,
            channels,
            width: 1.0,
            stem: Stem::ImageNet,
            norm,
            global_pool: GlobalPool::Avg,
            dropout: 0.0,
            num_classes: 1000,
            in_chans: 3,
        })
    }

    /// The same network with a stem for 32x32 images and ten classes.
    ///
    /// # Errors
    /// As [`Config::new`].
    pub fn cifar(groups: usize) -> Result<Self> {
        Ok(Self { stem: Stem::Cifar, num_classes: 10, ..Self::new(groups)? })
    }
}

const POOL: AvgPool2d = AvgPool2d { padding: 1, ..AvgPool2d::new(3, 2) };

/// The ShuffleNet unit: relu(x + F(x)) (figure 2b), or, `halving`, relu of the pooled x in front of F(x) (figure 2c).
/// The branch F is 1x1, shuffle, 3x3 depthwise, 1x1. (b, c_in, h, w) -> (b, c_out, h, w) or (b, c_out, h/2, w/2)
fn unit(
    (c_in, c_out): (usize, usize),
    (first_groups, groups): (usize, usize),
    halving: bool,
    norm: BatchNormConfig,
    vb: VarBuilder,
) -> Result<Sequential> {
    let (stride, c_branch) = if halving { (2, c_out - c_in) } else { (1, c_out) };
    let inside = c_out / 4;
    // On fan-in, which alone knows of groups: each output reads only its own.
    let conv = |kernel| Conv2dConfig::new(kernel).no_bias().init(Init::HE_FAN_IN);
    let depthwise = conv(3).stride(stride).padding(1).groups(inside);
    let unit = |n, channels, conv, activation| {
        conv_bn(channels, conv, norm, activation, (vb.pp(format!("conv{n}")), vb.pp(format!("bn{n}"))))
    };
    let branch = seq![
        unit(1, (c_in, inside), conv(1).groups(first_groups), Some(Pointwise::Relu))?,
        ChannelShuffle(groups),
        unit(2, (inside, inside), depthwise, None)?,
        unit(3, (inside, c_branch), conv(1).groups(groups), None)?,
    ];
    let unit = match halving {
        true => seq![Concat::new(vec![seq![POOL], branch]), Pointwise::Relu],
        false => seq![Residual::new(branch).activation(Pointwise::Relu)],
    };
    Ok(unit.block("ShuffleUnit", &vb))
}

/// The network: (b, in_chans, h, w) -> (b, num_classes).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{Model, VarStore};
/// use zoo_mobile::shufflenet_v1::{Config, ShuffleNetV1};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let net = ShuffleNetV1::new(&Config::cifar(3)?, store.root())?;
/// assert_eq!(store.parameter_count(), 914_338);
/// let logits = net.forward_t(&Tensor::zeros((1, 3, 32, 32), DType::F32, &Device::Cpu)?, false)?;
/// assert_eq!(logits.dims(), &[1, 10]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct ShuffleNetV1 {
    stem: Sequential,
    stages: Stages,
    pool: PooledMap,
    fc: Classifier,
}

impl ShuffleNetV1 {
    /// Makes the network at `vb`.
    ///
    /// # Errors
    /// No groups, a width multiplier of 0 or less, a stage 2 that is not wider than the stem.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        check_width("shufflenet_v1", config.width)?;
        let groups = config.groups;
        if groups == 0 {
            bail!("shufflenet_v1: there must be at least 1 group")
        }
        let mut c_in = make_divisible(STEM, config.width, groups);
        // The groups divide a quarter of the channels as well.
        let channels = make_divisible(config.channels, config.width, 4 * groups);
        if channels <= c_in {
            bail!(
                "shufflenet_v1: stage 2 keeps the {c_in} channels of the stem and adds to them, it cannot have {channels}"
            )
        }
        let stride = if config.stem == Stem::ImageNet { 2 } else { 1 };
        let conv = Conv2dConfig::new(3).stride(stride).padding(1).no_bias().init(Init::HE_FAN_IN);
        let at = (vb.pp("conv1"), vb.pp("bn1"));
        let mut stem = conv_bn((config.in_chans, c_in), conv, config.norm, Some(Pointwise::Relu), at)?;
        if config.stem == Stem::ImageNet {
            stem = seq![stem, MaxPool2d { padding: 1, ..MaxPool2d::new(3, 2) }]; // (b, 24, h/4, w/4)
        }

        let mut stages = Stages::default();
        for (stage, units) in UNITS.into_iter().enumerate() {
            let (name, c_out) = (format!("stage{}", stage + 2), channels << stage);
            let mut list = Vec::with_capacity(units);
            for i in 0..units {
                let first_groups = if stage == 0 && i == 0 { 1 } else { groups };
                let (widths, groups) = ((c_in, c_out), (first_groups, groups));
                list.push(unit(widths, groups, i == 0, config.norm, vb.pp(&name).pp(i))?);
                c_in = c_out;
            }
            stages.push(name, list.into_iter().collect());
        }
        let pool = PooledMap::new(config.global_pool, config.dropout, &vb)?;
        Ok(Self { stem, stages, pool, fc: Classifier::new(c_in, config.num_classes, vb.pp("fc"))? })
    }
}

impl Model for ShuffleNetV1 {
    /// (b, in_chans, h, w) -> (b, channels of stage 4, h/32, w/32), with the stem for 32x32 images (…, h/8, w/8)
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

    fn evaluation_chunk(&self) -> Option<usize> {
        Some(16)
    }
}

const fn info(name: &'static str, parameters: usize, builder: Builder) -> ModelInfo {
    ModelInfo {
        family: "mobile",
        paper: "Zhang et al. 2017, arXiv:1707.01083",
        choices: Choices::OF_MAPS,
        ..ModelInfo::new(name, parameters, builder)
    }
}

const fn cifar(name: &'static str, parameters: usize, builder: Builder) -> ModelInfo {
    info(name, parameters, builder).cifar()
}

fn build(config: Config, dims: &Dimensions, vb: VarBuilder) -> Result<Box<dyn Model>> {
    let config = Config {
        num_classes: dims.num_classes,
        in_chans: dims.in_chans,
        global_pool: dims.global_pool.unwrap_or(config.global_pool),
        dropout: dims.drop_rate.unwrap_or(config.dropout),
        ..config
    };
    Ok(Box::new(ShuffleNetV1::new(&config, vb)?))
}

/// The registered variants.
pub const MODELS: &[ModelInfo] = &[
    info("shufflenet_v1_g1", 1_531_936, |d, vb| build(Config::new(1)?, d, vb)),
    info("shufflenet_v1_g2", 1_733_848, |d, vb| build(Config::new(2)?, d, vb)),
    info("shufflenet_v1_g3", 1_865_728, |d, vb| build(Config::new(3)?, d, vb)),
    info("shufflenet_v1_g4", 1_968_344, |d, vb| build(Config::new(4)?, d, vb)),
    info("shufflenet_v1_g8", 2_434_768, |d, vb| build(Config::new(8)?, d, vb)),
    cifar("cifar_shufflenet_v1_g2", 940_858, |d, vb| build(Config::cifar(2)?, d, vb)),
    cifar("cifar_shufflenet_v1_g3", 914_338, |d, vb| build(Config::cifar(3)?, d, vb)),
];

#[cfg(test)]
mod tests {
    use super::*;
    use zoo_core::inspect::model_macs;
    use zoo_core::trace::Graph;
    use zoo_core::{ModelOptions, VarStore};

    /// Table 1's last row, in millions. It leaves the classifier out, of which one class is the least there can be.
    #[test]
    fn multiply_adds_are_the_papers() {
        let one_class = ModelOptions { num_classes: Some(1), ..Default::default() };
        let millions = |info| (model_macs(info, &one_class).unwrap() as f64 / 1e6).round();
        let full: Vec<f64> = MODELS.iter().take(5).map(millions).collect();
        assert_eq!(full, [143.0, 140.0, 137.0, 133.0, 137.0]);
    }

    #[test]
    fn every_scale_of_the_paper_makes_a_network() {
        for groups in [1, 2, 3, 4, 8] {
            for width in [0.25, 0.5, 1.5, 2.0] {
                let config = Config { width, ..Config::new(groups).unwrap() };
                let net = ShuffleNetV1::new(&config, VarStore::shapes_only().root()).unwrap();
                let graph = Graph::of_model(&net, (3, 64, 64)).unwrap();
                assert_eq!(graph.nodes.last().unwrap().shape, [1, 1000], "{groups} groups, {width}x");
            }
        }
    }

    #[test]
    fn configs_that_make_no_network_are_errors() {
        let error =
            |config: Config| ShuffleNetV1::new(&config, VarStore::shapes_only().root()).unwrap_err().to_string();
        let three = Config::new(3).unwrap();
        assert!(Config::new(5).unwrap_err().to_string().contains("not 5"));
        assert!(error(Config { groups: 0, ..three }).contains("at least 1 group"));
        assert!(error(Config { width: 0.0, ..three }).contains("width multiplier"));
        assert!(error(Config { channels: 24, ..three }).contains("cannot have 24"));
    }
}

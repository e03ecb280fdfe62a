//! M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen (2018), "MobileNetV2: Inverted Residuals and Linear
//! Bottlenecks", arXiv:1801.04381, table 2.
//!
//! A block widens its narrow input by a 1x1 convolution, filters each channel on its own, and narrows again without an
//! activation; the shortcut joins the narrow ends. The width multiplier thins every layer but the last convolution,
//! which it only widens.
//!
//! Checkpoint keys: torchvision's. `features.0` is the stem, `features.{n}.conv` the n-th block and `features.18` the
//! last convolution, each convolution with its norm and activation as `{0,1}`; the narrowing convolution of a block and
//! its norm stand one step higher. `classifier.1` follows dropout. timm's `mobilenetv2_*` keys load as well, see
//! [`from_timm`].
//!
//! | variant | strides | parameters |
//! |---|---|---|
//! | `mobilenet_v2` | stem 2, second stage 2 | 3,504,872 |
//! | `cifar_mobilenet_v2` | stem 1, second stage 1 | 2,236,682 |

use crate::check_width;
use crate::mobilenet_v1::round_width;
use candle_core::{Result, Tensor, bail};
use std::collections::BTreeMap;
use zoo_core::model::{Builder, Choices, Interpolation, Timm};
use zoo_core::weights::{Layout, Source, Weights};
use zoo_core::{
    BatchNormConfig, Classifier, Conv2dConfig, Dimensions, GlobalPool, Init, Model, ModelInfo, ModuleT, Pointwise,
    PooledMap, Preprocess, Residual, Sequential, Stages, VarBuilder, conv_bn, seq,
};

/// One row of table 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// How many times wider than its input a block is inside.
    pub expansion: usize,
    /// Channels of the output.
    pub channels: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Stride of the first block.
    pub stride: usize,
}

/// A MobileNet v2.
#[derive(Debug, Clone)]
pub struct Config {
    /// The rows of table 2 between the stem and the last convolution.
    pub stages: Vec<Stage>,
    /// The width multiplier.
    pub width: f64,
    /// 2, or 1 for 32x32 images.
    pub stem_stride: usize,
    /// What makes a vector of the last map.
    pub global_pool: GlobalPool,
    /// Rate of the dropout in front of the classifier.
    pub dropout: f64,
    /// Every BatchNorm of the network.
    pub norm: BatchNormConfig,
    /// Width of the classifier.
    pub num_classes: usize,
    /// Channels of the input image.
    pub in_chans: usize,
}

/// Table 2: t, c, n, s.
const TABLE_2: [(usize, usize, usize, usize); 7] =
    [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)];
/// Channels of the stem and of the last convolution.
const ENDS: (usize, usize) = (32, 1280);

impl Config {
    /// The paper's network with width multiplier `width`.
    pub fn new(width: f64) -> Self {
        let stage = |(expansion, channels, blocks, stride)| Stage { expansion, channels, blocks, stride };
        Self {
            stages: TABLE_2.map(stage).to_vec(),
            width,
            stem_stride: 2,
            global_pool: GlobalPool::Avg,
            dropout: 0.2,
            norm: BatchNormConfig::default(),
            num_classes: 1000,
            in_chans: 3,
        }
    }

    /// For 32x32 images: neither the stem nor the second stage stride, so that 4x4 pixels reach the end, and ten
    /// classes.
    pub fn cifar() -> Self {
        let mut config = Self { stem_stride: 1, num_classes: 10, ..Self::new(1.0) };
        config.stages[1].stride = 1;
        config
    }
}

fn relu6(channels: (usize, usize), conv: Conv2dConfig, norm: BatchNormConfig, vb: VarBuilder) -> Result<Sequential> {
    let conv = conv.no_bias().init(Init::HE_FAN_OUT);
    conv_bn(channels, conv, norm, Some(Pointwise::Relu6), (vb.pp(0), vb.pp(1)))
}

/// The inverted residual (figure 4d): x + F(x) where the shapes agree, else F(x).
/// (b, c_in, h, w) -> (b, c_out, h / stride, w / stride)
fn inverted_residual(
    (c_in, c_out): (usize, usize),
    stride: usize,
    expansion: usize,
    norm: BatchNormConfig,
    vb: VarBuilder,
) -> Result<Sequential> {
    let (wide, conv) = (c_in * expansion, vb.pp("conv"));
    let (mut branch, mut n) = (seq![], 0);
    if expansion != 1 {
        branch = relu6((c_in, wide), Conv2dConfig::new(1), norm, conv.pp(0))?; // 1x1 wider
        n = 1;
    }
    let depthwise = Conv2dConfig::new(3).stride(stride).padding(1).groups(wide);
    let depthwise = relu6((wide, wide), depthwise, norm, conv.pp(n))?;
    // 1x1 narrower, linear: no activation behind it, and no step of its own in the keys.
    let linear = Conv2dConfig::new(1).no_bias().init(Init::HE_FAN_OUT);
    let linear = conv_bn((wide, c_out), linear, norm, None, (conv.pp(n + 1), conv.pp(n + 2)))?;
    let branch = seq![branch, depthwise, linear];
    let block = if stride == 1 && c_in == c_out { seq![Residual::new(branch)] } else { branch };
    Ok(block.block("InvertedResidual", &vb))
}

/// The network: (b, in_chans, h, w) -> (b, num_classes).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{Model, VarStore};
/// use zoo_mobile::mobilenet_v2::{Config, MobileNetV2};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let net = MobileNetV2::new(&Config::cifar(), store.root())?;
/// assert_eq!(store.parameter_count(), 2_236_682);
/// let logits = net.forward_t(&Tensor::zeros((1, 3, 32, 32), DType::F32, &Device::Cpu)?, false)?;
/// assert_eq!(logits.dims(), &[1, 10]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct MobileNetV2 {
    stem: Sequential,
    stages: Stages,
    last: Sequential,
    pool: PooledMap,
    classifier: Classifier,
}

impl MobileNetV2 {
    /// Makes the network at `vb`.
    ///
    /// # Errors
    /// A stage without blocks or with an expansion of 0, a width multiplier of 0 or less, a dropout rate outside 0..1.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        check_width("mobilenet_v2", config.width)?;
        if let Some(stage) = config.stages.iter().find(|stage| stage.blocks == 0 || stage.expansion == 0) {
            bail!("mobilenet_v2: blocks and expansion must be at least 1, got {stage:?}")
        }
        let (norm, features) = (config.norm, vb.pp("features"));
        let mut c_in = round_width(ENDS.0, config.width);
        let stem = Conv2dConfig::new(3).stride(config.stem_stride).padding(1);
        let stem = relu6((config.in_chans, c_in), stem, norm, features.pp(0))?;
        let (mut stages, mut n) = (Stages::default(), 1);
        for stage in &config.stages {
            let c_out = round_width(stage.channels, config.width);
            let mut blocks = Vec::with_capacity(stage.blocks);
            for i in 0..stage.blocks {
                let stride = if i == 0 { stage.stride } else { 1 };
                blocks.push(inverted_residual((c_in, c_out), stride, stage.expansion, norm, features.pp(n))?);
                n += 1;
                c_in = c_out;
            }
            stages.push(format!("features.{}", n - 1), blocks.into_iter().collect());
        }
        let c_last = round_width(ENDS.1, config.width.max(1.0));
        let last = relu6((c_in, c_last), Conv2dConfig::new(1), norm, features.pp(n))?;
        let place = vb.pp("classifier").pp(1);
        let init = Init::Normal { mean: 0.0, std: 0.01 };
        Ok(Self {
            stem,
            stages,
            last,
            pool: PooledMap::new(config.global_pool, config.dropout, &vb.pp("classifier").pp(0))?,
            classifier: Classifier::with(c_last, config.num_classes, init, Some(Init::ZEROS), place)?,
        })
    }
}

impl Model for MobileNetV2 {
    /// (b, in_chans, h, w) -> (b, 1280, h/32, w/32), for 32x32 images (…, h/8, w/8)
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let xs = self.stages.forward_t(&self.stem.forward_t(xs, train)?, train)?;
        self.last.forward_t(&xs, train)
    }

    fn pre_logits(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        self.pool.forward_t(features, train)
    }

    fn classifier(&self) -> &Classifier {
        &self.classifier
    }

    fn classifier_mut(&mut self) -> &mut Classifier {
        &mut self.classifier
    }

    fn evaluation_chunk(&self) -> Option<usize> {
        Some(16)
    }
}

/// timm's layers of a block that does not widen, and torchvision's place of each.
const SEPARABLE: [(&str, &str); 4] = [("conv_dw", "0.0"), ("bn1", "0.1"), ("conv_pw", "1"), ("bn2", "2")];
/// The same for a block that does.
const INVERTED: [(&str, &str); 6] =
    [("conv_pw", "0.0"), ("bn1", "0.1"), ("conv_dw", "1.0"), ("bn2", "1.1"), ("conv_pwl", "2"), ("bn3", "3")];

/// The translation of timm's layout, which counts blocks stage by stage (`blocks.2.0`) where torchvision numbers them
/// through (`features.4`): no rename can add up.
///
/// # Errors
/// None of its own: keys that are neither's are left for the loader to complain of.
pub fn from_timm(weights: &Weights) -> Result<Vec<(String, Source)>> {
    let keys: Vec<&str> = weights.keys().collect();
    Ok(translate(&keys).into_iter().map(|(ours, theirs)| (ours, Source::Key(theirs.to_string()))).collect())
}

/// (torchvision's key, timm's key) of every key of `keys` that is timm's.
fn translate<'k>(keys: &[&'k str]) -> Vec<(String, &'k str)> {
    // blocks.{stage}.{i}.{rest}
    let split = |key: &'k str| -> Option<((usize, usize), &'k str)> {
        let (stage, rest) = key.strip_prefix("blocks.")?.split_once('.')?;
        let (i, rest) = rest.split_once('.')?;
        Some(((stage.parse().ok()?, i.parse().ok()?), rest))
    };
    // Number of each block, and whether it widens.
    let mut blocks: BTreeMap<(usize, usize), (usize, bool)> = BTreeMap::new();
    for (block, rest) in keys.iter().filter_map(|key| split(key)) {
        blocks.entry(block).or_default().1 |= rest.starts_with("conv_pwl.");
    }
    for (n, block) in blocks.values_mut().enumerate() {
        block.0 = n + 1;
    }
    let last = blocks.len() + 1;

    let place = |layers: &[(&str, &'static str)], rest: &str| -> Option<String> {
        let (layer, tensor) = rest.split_once('.')?;
        let &(_, place) = layers.iter().find(|(name, _)| *name == layer)?;
        Some(format!("{place}.{tensor}"))
    };
    let ours = |key: &'k str| -> Option<String> {
        if let Some((block, rest)) = split(key) {
            let &(n, widens) = blocks.get(&block)?;
            return Some(format!("features.{n}.conv.{}", place(if widens { &INVERTED } else { &SEPARABLE }, rest)?));
        }
        match key.split_once('.')? {
            ("conv_stem", tensor) => Some(format!("features.0.0.{tensor}")),
            ("bn1", tensor) => Some(format!("features.0.1.{tensor}")),
            ("conv_head", tensor) => Some(format!("features.{last}.0.{tensor}")),
            ("bn2", tensor) => Some(format!("features.{last}.1.{tensor}")),
            ("classifier", tensor) => Some(format!("classifier.1.{tensor}")),
            _ => None,
        }
    };
    keys.iter().filter_map(|key| Some((ours(key)?, *key))).collect()
}

/// timm's key of a tensor of the published network; one that is not the network's stays as it is.
fn to_timm(key: &str) -> String {
    let own = |key: &str| -> Option<String> {
        if let Some(tensor) = key.strip_prefix("classifier.1.") {
            return Some(format!("classifier.{tensor}"));
        }
        let (n, rest) = key.strip_prefix("features.")?.split_once('.')?;
        let n: usize = n.parse().ok()?;
        let counts = TABLE_2.map(|(_, _, blocks, _)| blocks);
        let last = 1 + counts.iter().sum::<usize>();
        if n == 0 || n == last {
            let (layer, tensor) = rest.split_once('.')?;
            let [conv, norm] = if n == 0 { ["conv_stem", "bn1"] } else { ["conv_head", "bn2"] };
            return Some(format!("{}.{tensor}", if layer == "0" { conv } else { norm }));
        }
        let (mut stage, mut i) = (0, n - 1);
        while i >= counts[stage] {
            i -= counts[stage];
            stage += 1;
        }
        let layers: &[(&str, &str)] = if TABLE_2[stage].0 == 1 { &SEPARABLE } else { &INVERTED };
        let (place, tensor) = rest.strip_prefix("conv.")?.rsplit_once('.')?;
        let (name, _) = layers.iter().find(|(_, own)| *own == place)?;
        Some(format!("blocks.{stage}.{i}.{name}.{tensor}"))
    };
    own(key).unwrap_or_else(|| key.to_owned())
}

/// timm's files, whose images are as torchvision's but for how they are resized.
const TIMM: Layout = Layout {
    name: "timm",
    sign: "conv_stem.weight",
    renames: &[],
    key_map: Some(from_timm),
    preprocess: Some(Preprocess { interpolation: Interpolation::Bicubic, ..Preprocess::IMAGENET }),
};

const fn info(name: &'static str, parameters: usize, builder: Builder) -> ModelInfo {
    ModelInfo {
        family: "mobile",
        keys: "torchvision",
        paper: "Sandler et al. 2018, arXiv:1801.04381",
        layouts: &[TIMM],
        choices: Choices::OF_MAPS,
        ..ModelInfo::new(name, parameters, builder)
    }
}

fn build(config: Config, dims: &Dimensions, vb: VarBuilder) -> Result<Box<dyn Model>> {
    let config = Config {
        num_classes: dims.num_classes,
        in_chans: dims.in_chans,
        global_pool: dims.global_pool.unwrap_or(config.global_pool),
        dropout: dims.drop_rate.unwrap_or(config.dropout),
        ..config
    };
    Ok(Box::new(MobileNetV2::new(&config, vb)?))
}

/// The registered variants.
pub const MODELS: &[ModelInfo] = &[
    ModelInfo {
        weights: Some("hf:timm/mobilenetv2_100.ra_in1k"),
        timm: Some(Timm { key: to_timm, ..Timm::new("mobilenetv2_100", "conv_stem", "classifier") }),
        ..info("mobilenet_v2", 3_504_872, |d, vb| build(Config::new(1.0), d, vb))
    },
    ModelInfo {
        preprocess: Preprocess::CIFAR10,
        num_classes: 10,
        layouts: &[Layout { preprocess: None, ..TIMM }],
        ..info("cifar_mobilenet_v2", 2_236_682, |d, vb| build(Config::cifar(), d, vb))
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use zoo_core::inspect::model_macs;
    use zoo_core::{ModelOptions, VarStore};

    /// Table 4 of the paper, and the parameters of torchvision's network at other widths.
    #[test]
    fn multiply_adds_and_thinner_networks_are_the_published_ones() {
        let macs = model_macs(&MODELS[0], &ModelOptions::default()).unwrap() as f64 / 1e6;
        assert!((macs - 300.0).abs() <= 1.0, "{macs}");
        for (width, parameters) in [(0.35, 1_677_128), (0.5, 1_968_680), (1.4, 6_108_776)] {
            let store = VarStore::shapes_only();
            MobileNetV2::new(&Config::new(width), store.root()).unwrap();
            assert_eq!(store.parameter_count(), parameters, "width {width}");
        }
    }

    #[test]
    fn timms_keys_are_translated() {
        let pairs = [
            ("conv_stem.weight", "features.0.0.weight"),
            ("bn1.running_var", "features.0.1.running_var"),
            ("blocks.0.0.conv_dw.weight", "features.1.conv.0.0.weight"),
            ("blocks.0.0.conv_pw.weight", "features.1.conv.1.weight"),
            ("blocks.0.0.bn2.bias", "features.1.conv.2.bias"),
            ("blocks.1.0.conv_pw.weight", "features.2.conv.0.0.weight"),
            ("blocks.1.0.bn2.weight", "features.2.conv.1.1.weight"),
            ("blocks.1.0.conv_pwl.weight", "features.2.conv.2.weight"),
            ("blocks.1.1.conv_pwl.weight", "features.3.conv.2.weight"),
            ("blocks.2.0.bn3.num_batches_tracked", "features.4.conv.3.num_batches_tracked"),
            ("blocks.2.0.conv_pwl.weight", "features.4.conv.2.weight"),
            ("conv_head.weight", "features.5.0.weight"),
            ("bn2.weight", "features.5.1.weight"),
            ("classifier.bias", "classifier.1.bias"),
        ];
        let translated = translate(&pairs.map(|(theirs, _)| theirs));
        assert_eq!(translated, pairs.map(|(theirs, ours)| (ours.to_string(), theirs)));
        // A file of torchvision's never comes here: the layout's sign is a key that only timm has.
        assert!(
            pairs.iter().any(|(theirs, _)| *theirs == TIMM.sign) && pairs.iter().all(|(_, ours)| *ours != TIMM.sign)
        );
    }

    #[test]
    fn configs_that_make_no_network_are_errors() {
        let error = |config: Config| MobileNetV2::new(&config, VarStore::shapes_only().root()).unwrap_err().to_string();
        assert!(error(Config::new(-1.0)).contains("width multiplier"));
        let mut empty = Config::new(1.0);
        empty.stages[3].blocks = 0;
        assert!(error(empty).contains("channels: 64"));
    }
}

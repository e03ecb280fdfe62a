//! A. G. Howard, M. Zhu, B. Chen, D. Kalenichenko, W. Wang, T. Weyand, M. Andreetto, H. Adam (2017), "MobileNets:
//! Efficient Convolutional Neural Networks for Mobile Vision Applications", arXiv:1704.04861, table 1.
//!
//! A convolution is split in two: a depthwise 3x3 filters each channel on its own, a 1x1 mixes them. A strided 3x3 stem
//! and thirteen such pairs, global average pooling and one linear layer. The width multiplier (section 3.3) thins every
//! layer; the resolution multiplier (section 3.4) is the size of the image.
//!
//! Checkpoint keys: timm's `mobilenetv1_100`: `conv_stem bn1 blocks.{s}.{i}.{conv_dw,bn1,conv_pw,bn2} classifier`. As
//! there, the activation is ReLU6 (the paper draws ReLU), widths are rounded to multiples of 8, and there is no dropout
//! unless [`Config::dropout`] asks for it.
//!
//! | variant | width | layers | parameters |
//! |---|---|---|---|
//! | `mobilenet_v1` | 1 | 28 | 4,231,976 |
//! | `mobilenet_v1_075` | 0.75 | 28 | 2,585,560 |
//! | `mobilenet_v1_050` | 0.5 | 28 | 1,331,592 |
//! | `mobilenet_v1_025` | 0.25 | 28 | 470,072 |
//! | `cifar_mobilenet_v1`, stem stride 1 | 1 | 28 | 3,217,226 |

use crate::{check_width, make_divisible};
use candle_core::{Result, Tensor};
use zoo_core::model::{Builder, Choices, Timm};
use zoo_core::{
    BatchNormConfig, Classifier, Conv2dConfig, Dimensions, Fan, GlobalPool, Init, Model, ModelInfo, ModuleT, Pointwise,
    PooledMap, Preprocess, Sequential, Stages, VarBuilder, conv_bn, seq,
};

/// A MobileNet v1.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// The width multiplier α.
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

impl Config {
    /// The paper's network with width multiplier `width`: 1, 0.75, 0.5 or 0.25 there.
    pub fn new(width: f64) -> Self {
        Self {
            width,
            stem_stride: 2,
            global_pool: GlobalPool::Avg,
            dropout: 0.0,
            norm: BatchNormConfig::default(),
            num_classes: 1000,
            in_chans: 3,
        }
    }

    /// For 32x32 images: the stem does not stride, so that 2x2 pixels reach the end, and ten classes.
    pub fn cifar() -> Self {
        Self { stem_stride: 1, num_classes: 10, ..Self::new(1.0) }
    }
}

/// Channels of the stem.
const STEM: usize = 32;
/// Table 1: channels, blocks, stride of the first.
const STAGES: [(usize, usize, usize); 5] = [(64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2)];

/// `channels` · `width` as both MobileNets round it: to the nearest multiple of 8, but never down by more than a tenth.
pub fn round_width(channels: usize, width: f64) -> usize {
    let wanted = channels as f64 * width;
    let rounded = make_divisible(channels, width, 8);
    if (rounded as f64) < 0.9 * wanted { rounded + 8 } else { rounded }
}

/// The pair in place of a convolution (figure 3, right). (b, c_in, h, w) -> (b, c_out, h / stride, w / stride)
fn depthwise_separable(
    (c_in, c_out): (usize, usize),
    stride: usize,
    norm: BatchNormConfig,
    vb: VarBuilder,
) -> Result<Sequential> {
    // timm: N(0, 2 / fan-out), the fan-out counted within a group. In a depthwise layer that is its fan-in.
    let depthwise = Conv2dConfig::new(3).stride(stride).padding(1).groups(c_in).no_bias().init(Init::HE_FAN_IN);
    let pointwise = Conv2dConfig::new(1).no_bias().init(Init::HE_FAN_OUT);
    let unit = |channels, conv, at: [&str; 2]| conv_bn(channels, conv, norm, RELU6, (vb.pp(at[0]), vb.pp(at[1])));
    let depthwise = unit((c_in, c_in), depthwise, ["conv_dw", "bn1"])?; // (b, c_in, h / stride, w / stride)
    Ok(seq![depthwise, unit((c_in, c_out), pointwise, ["conv_pw", "bn2"])?].block("DepthwiseSeparable", &vb))
}

const RELU6: Option<Pointwise> = Some(Pointwise::Relu6);

/// The network: (b, in_chans, h, w) -> (b, num_classes).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{Model, VarStore};
/// use zoo_mobile::mobilenet_v1::{Config, MobileNetV1};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let net = MobileNetV1::new(&Config::new(0.25), store.root())?;
/// assert_eq!(store.parameter_count(), 470_072);
/// let logits = net.forward_t(&Tensor::zeros((1, 3, 64, 64), DType::F32, &Device::Cpu)?, false)?;
/// assert_eq!(logits.dims(), &[1, 1000]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct MobileNetV1 {
    stem: Sequential,
    stages: Stages,
    pool: PooledMap,
    classifier: Classifier,
}

impl MobileNetV1 {
    /// Makes the network at `vb`.
    ///
    /// # Errors
    /// A width multiplier of 0 or less, a dropout rate outside 0..1.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        check_width("mobilenet_v1", config.width)?;
        let mut c_in = round_width(STEM, config.width);
        let stem = Conv2dConfig::new(3).stride(config.stem_stride).padding(1).no_bias().init(Init::HE_FAN_OUT);
        let at = (vb.pp("conv_stem"), vb.pp("bn1"));
        let stem = conv_bn((config.in_chans, c_in), stem, config.norm, RELU6, at)?;
        let mut stages = Stages::default();
        for (s, (channels, count, stride)) in STAGES.into_iter().enumerate() {
            let c_out = round_width(channels, config.width);
            let mut stage = Vec::with_capacity(count);
            for i in 0..count {
                let (vb, stride) = (vb.pp("blocks").pp(s).pp(i), if i == 0 { stride } else { 1 });
                stage.push(depthwise_separable((c_in, c_out), stride, config.norm, vb)?);
                c_in = c_out;
            }
            stages.push(format!("blocks.{s}"), stage.into_iter().collect());
        }
        let pool = PooledMap::new(config.global_pool, config.dropout, &vb)?;
        // timm: U(-b, b) with b = 1 / √num_classes.
        let init = Init::KaimingUniform { fan: Fan::Out, gain: 1.0 / 3f64.sqrt() };
        let classifier = Classifier::with(c_in, config.num_classes, init, Some(Init::ZEROS), vb.pp("classifier"))?;
        Ok(Self { stem, stages, pool, classifier })
    }
}

impl Model for MobileNetV1 {
    /// (b, in_chans, h, w) -> (b, 1024 · width, h/32, w/32), with a stem of stride 1 (…, h/16, w/16)
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.stages.forward_t(&self.stem.forward_t(xs, train)?, train)
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

const fn info(name: &'static str, parameters: usize, builder: Builder) -> ModelInfo {
    ModelInfo {
        family: "mobile",
        preprocess: Preprocess::inception(0.875),
        keys: "timm",
        paper: "Howard et al. 2017, arXiv:1704.04861",
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
    Ok(Box::new(MobileNetV1::new(&config, vb)?))
}

/// The registered variants.
pub const MODELS: &[ModelInfo] = &[
    ModelInfo {
        weights: Some("hf:timm/mobilenetv1_100.ra4_e3600_r224_in1k"),
        timm: Some(Timm::new("mobilenetv1_100", "conv_stem", "classifier")),
        ..info("mobilenet_v1", 4_231_976, |d, vb| build(Config::new(1.0), d, vb))
    },
    info("mobilenet_v1_075", 2_585_560, |d, vb| build(Config::new(0.75), d, vb)),
    info("mobilenet_v1_050", 1_331_592, |d, vb| build(Config::new(0.5), d, vb)),
    info("mobilenet_v1_025", 470_072, |d, vb| build(Config::new(0.25), d, vb)),
    ModelInfo {
        preprocess: Preprocess::CIFAR10,
        num_classes: 10,
        ..info("cifar_mobilenet_v1", 3_217_226, |d, vb| build(Config::cifar(), d, vb))
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use zoo_core::inspect::model_macs;
    use zoo_core::{ModelOptions, VarStore};

    /// Tables 6 and 7 of the paper, in millions.
    #[test]
    fn multiply_adds_are_the_papers() {
        for (info, millions) in MODELS.iter().zip([569.0, 325.0, 149.0, 41.0]) {
            let macs = model_macs(info, &ModelOptions::default()).unwrap() as f64 / 1e6;
            assert!((macs - millions).abs() <= 1.0, "{}: {macs}", info.name);
        }
        let small = ModelOptions { image_size: Some(160), ..Default::default() };
        let macs = model_macs(&MODELS[0], &small).unwrap() as f64 / 1e6;
        assert!((macs - 290.0).abs() <= 1.0, "{macs}");
    }

    #[test]
    fn widths_round_to_eights_and_not_far_down() {
        // timm's make_divisible.
        let rounded =
            [(32, 0.1), (24, 0.5), (24, 0.75), (96, 0.35), (320, 1.4)].map(|(c, width)| round_width(c, width));
        assert_eq!(rounded, [8, 16, 24, 32, 448]);
    }

    #[test]
    fn configs_that_make_no_network_are_errors() {
        let error = |config: Config| MobileNetV1::new(&config, VarStore::shapes_only().root()).unwrap_err().to_string();
        assert!(error(Config::new(0.0)).contains("width multiplier"));
        assert!(error(Config::new(f64::NAN)).contains("NaN"));
        assert!(error(Config { dropout: 1.0, ..Config::new(1.0) }).contains("dropout"));
    }
}

//! K. He, X. Zhang, S. Ren, J. Sun (2015), "Deep Residual Learning for Image Recognition", arXiv:1512.03385, section 4.2:
//! the narrow residual networks for 32x32 images, and the plain networks that they are compared with.
//!
//! A 3x3 stem of 16 channels, three stages of n blocks with 16, 32 and 64 channels on 32x32, 16x16 and 8x8 pixels, global
//! average pooling and one linear layer: 6n + 2 layers with weights.
//!
//! Checkpoint keys: `conv1 bn1 layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2} linear`, with option B also
//! `layer{2,3}.0.shortcut.{0,1}`; those of the widely used PyTorch implementation by Y. Idelbayev. See [`RENAMES`].
//!
//! | n | layers | shortcut A | shortcut B | plain |
//! |---|---|---|---|---|
//! | 3 | 20 | 269,722 | 272,474 | 269,722 |
//! | 5 | 32 | 464,154 | 466,906 | 464,154 |
//! | 7 | 44 | 658,586 | 661,338 | 658,586 |
//! | 9 | 56 | 853,018 | 855,770 | 853,018 |
//! | 18 | 110 | 1,727,962 | 1,730,714 | |

use candle_core::{Module, Result, Tensor};
use zoo_core::weights::Rename;
use zoo_core::{
    BatchNorm, Classifier, Conv2d, Conv2dConfig, Dimensions, Init, Input, MaxPool2d, Model, ModelInfo, ModuleT,
    VarBuilder, add, global_avg_pool2d, pad_channels, relu, trace,
};

/// How a block whose output is smaller and wider than its input carries the input across (section 4.2, figure 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortcut {
    /// Option A: every second pixel, the new channels zero, half of them below and half above. No parameters.
    A,
    /// Option B: a strided 1x1 convolution with BatchNorm.
    B,
    /// No shortcut anywhere: the plain network of the degradation experiment.
    None,
}

/// A CIFAR residual network of 6n + 2 layers.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// n, the number of blocks in each of the three stages.
    pub blocks: usize,
    /// The kind of shortcut.
    pub shortcut: Shortcut,
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
            candle_core::bail!("cifar_resnet: the number of layers must be 6n + 2 (8, 14, 20, 26, …), got {layers}")
        }
        Ok(Self { blocks: (layers - 2) / 6, shortcut: Shortcut::A, num_classes: 10, in_chans: 3 })
    }

    /// The plain network with as many layers.
    ///
    /// # Errors
    /// As [`Config::resnet`].
    pub fn plain(layers: usize) -> Result<Self> {
        Ok(Self { shortcut: Shortcut::None, ..Self::resnet(layers)? })
    }
}

fn conv3x3(c_in: usize, c_out: usize, stride: usize, vb: VarBuilder) -> Result<Conv2d> {
    Conv2d::new(c_in, c_out, Conv2dConfig::new(3).stride(stride).padding(1).no_bias().init(Init::HE_FAN_OUT), vb)
}

#[derive(Debug)]
enum Skip {
    None,
    Identity,
    /// Zero channels below and above.
    Pad(usize, usize),
    Project(Conv2d, BatchNorm),
}

impl Skip {
    fn new(kind: Shortcut, c_in: usize, c_out: usize, stride: usize, vb: VarBuilder) -> Result<Self> {
        Ok(match kind {
            Shortcut::None => Self::None,
            _ if stride == 1 && c_in == c_out => Self::Identity,
            Shortcut::A => {
                let new = c_out - c_in;
                Self::Pad(new / 2, new - new / 2)
            }
            Shortcut::B => {
                let config = Conv2dConfig::new(1).stride(stride).no_bias().init(Init::HE_FAN_OUT);
                Self::Project(Conv2d::new(c_in, c_out, config, vb.pp(0))?, BatchNorm::new(c_out, vb.pp(1))?)
            }
        })
    }

    fn add_to(&self, ys: Tensor, xs: &Tensor, train: bool) -> Result<Tensor> {
        match self {
            Self::None => Ok(ys),
            Self::Identity => add(&ys, xs),
            Self::Pad(below, above) => add(&ys, &pad_channels(&every_second_pixel(xs)?, *below, *above)?),
            Self::Project(conv, bn) => add(&ys, &bn.forward_t(&conv.forward_t(xs, train)?, train)?),
        }
    }
}

/// Pixels (0, 0), (0, 2), … (2, 0), …: a pooling window of one pixel. (b, c, h, w) -> (b, c, ⌈h/2⌉, ⌈w/2⌉)
fn every_second_pixel(xs: &Tensor) -> Result<Tensor> {
    MaxPool2d::new(1, 2).forward(xs)
}

/// Two 3x3 convolutions and a shortcut (figure 2, left of figure 5).
#[derive(Debug)]
struct Block {
    conv1: Conv2d,
    bn1: BatchNorm,
    conv2: Conv2d,
    bn2: BatchNorm,
    skip: Skip,
    place: String,
}

impl Block {
    fn new(c_in: usize, c_out: usize, stride: usize, shortcut: Shortcut, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            conv1: conv3x3(c_in, c_out, stride, vb.pp("conv1"))?,
            bn1: BatchNorm::new(c_out, vb.pp("bn1"))?,
            conv2: conv3x3(c_out, c_out, 1, vb.pp("conv2"))?,
            bn2: BatchNorm::new(c_out, vb.pp("bn2"))?,
            skip: Skip::new(shortcut, c_in, c_out, stride, vb.pp("shortcut"))?,
            place: vb.path().to_string(),
        })
    }
}

impl ModuleT for Block {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        trace::block("Block", &self.place, || {
            let ys = relu(&self.bn1.forward_t(&self.conv1.forward_t(xs, train)?, train)?)?;
            let ys = self.bn2.forward_t(&self.conv2.forward_t(&ys, train)?, train)?;
            relu(&self.skip.add_to(ys, xs, train)?)
        })
    }
}

/// The network: (b, in_chans, h, w) -> (b, num_classes).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{ModuleT, VarStore};
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
    conv1: Conv2d,
    bn1: BatchNorm,
    stages: Vec<Vec<Block>>,
    linear: Classifier,
}

impl CifarResNet {
    /// Makes the network at `vb`.
    ///
    /// # Errors
    /// Keys that are taken already.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let conv1 = conv3x3(config.in_chans, 16, 1, vb.pp("conv1"))?;
        let bn1 = BatchNorm::new(16, vb.pp("bn1"))?;
        let mut c_in = 16;
        let mut stages = Vec::new();
        for (stage, (c_out, stride)) in [(16, 1), (32, 2), (64, 2)].into_iter().enumerate() {
            let vb = vb.pp(format!("layer{}", stage + 1));
            let mut blocks = Vec::with_capacity(config.blocks);
            for i in 0..config.blocks {
                let stride = if i == 0 { stride } else { 1 };
                blocks.push(Block::new(c_in, c_out, stride, config.shortcut, vb.pp(i))?);
                c_in = c_out;
            }
            stages.push(blocks);
        }
        let linear = Classifier::new(c_in, config.num_classes, vb.pp("linear"))?;
        Ok(Self { conv1, bn1, stages, linear })
    }
}

impl Model for CifarResNet {
    /// (b, in_chans, 32, 32) -> (b, 64, 8, 8)
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let mut xs = relu(&self.bn1.forward_t(&self.conv1.forward_t(xs, train)?, train)?)?; // (b, 16, 32, 32)
        for (i, stage) in self.stages.iter().enumerate() {
            xs = stage.iter().try_fold(xs, |xs, block| block.forward_t(&xs, train))?;
            xs = trace::stage(format!("layer{}", i + 1), xs);
        }
        Ok(xs)
    }

    fn pre_logits(&self, features: &Tensor, _: bool) -> Result<Tensor> {
        global_avg_pool2d(features)
    }

    fn classifier(&self) -> &Classifier {
        &self.linear
    }

    fn classifier_mut(&mut self) -> &mut Classifier {
        &mut self.linear
    }
}

impl ModuleT for CifarResNet {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_head(&self.forward_features(xs, train)?, train)
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
        name,
        family: "resnet",
        parameters,
        input: Input::CIFAR10,
        num_classes: 10,
        keys: "own",
        paper: "He et al. 2015, arXiv:1512.03385, section 4.2",
        renames: RENAMES,
        key_map: None,
        builder,
    }
}

type Builder = fn(&Dimensions, VarBuilder) -> Result<Box<dyn Model>>;

fn build(blocks: usize, shortcut: Shortcut, dims: &Dimensions, vb: VarBuilder) -> Result<Box<dyn Model>> {
    let config = Config { blocks, shortcut, num_classes: dims.num_classes, in_chans: dims.in_chans };
    Ok(Box::new(CifarResNet::new(&config, vb)?))
}

/// The registered variants.
pub const MODELS: &[ModelInfo] = &[
    info("cifar_resnet20", 269_722, |d, vb| build(3, Shortcut::A, d, vb)),
    info("cifar_resnet32", 464_154, |d, vb| build(5, Shortcut::A, d, vb)),
    info("cifar_resnet44", 658_586, |d, vb| build(7, Shortcut::A, d, vb)),
    info("cifar_resnet56", 853_018, |d, vb| build(9, Shortcut::A, d, vb)),
    info("cifar_resnet110", 1_727_962, |d, vb| build(18, Shortcut::A, d, vb)),
    info("cifar_resnet20_b", 272_474, |d, vb| build(3, Shortcut::B, d, vb)),
    info("cifar_resnet32_b", 466_906, |d, vb| build(5, Shortcut::B, d, vb)),
    info("cifar_resnet44_b", 661_338, |d, vb| build(7, Shortcut::B, d, vb)),
    info("cifar_resnet56_b", 855_770, |d, vb| build(9, Shortcut::B, d, vb)),
    info("cifar_resnet110_b", 1_730_714, |d, vb| build(18, Shortcut::B, d, vb)),
    info("cifar_plain20", 269_722, |d, vb| build(3, Shortcut::None, d, vb)),
    info("cifar_plain32", 464_154, |d, vb| build(5, Shortcut::None, d, vb)),
    info("cifar_plain44", 658_586, |d, vb| build(7, Shortcut::None, d, vb)),
    info("cifar_plain56", 853_018, |d, vb| build(9, Shortcut::None, d, vb)),
];

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn only_6n_plus_2_layers_exist() {
        assert_eq!(Config::resnet(110).unwrap().blocks, 18);
        let error = Config::resnet(18).unwrap_err().to_string();
        assert!(error.contains("6n + 2") && error.contains("18"), "{error}");
    }

    #[test]
    fn option_a_takes_every_second_pixel_and_centres_the_channels() {
        let xs = Tensor::arange(0f32, 18., &Device::Cpu).unwrap().reshape((1, 2, 3, 3)).unwrap();
        let skip = Skip::new(Shortcut::A, 2, 5, 2, zoo_core::VarStore::shapes_only().root()).unwrap();
        let zeros = Tensor::zeros((1, 5, 2, 2), xs.dtype(), xs.device()).unwrap();
        let ys = skip.add_to(zeros, &xs, true).unwrap().squeeze(0).unwrap().flatten_from(1).unwrap();
        let rows: [[f32; 4]; 5] = [[0.; 4], [0., 2., 6., 8.], [9., 11., 15., 17.], [0.; 4], [0.; 4]];
        assert_eq!(ys.to_vec2::<f32>().unwrap(), rows.map(|row| row.to_vec()));
    }
}

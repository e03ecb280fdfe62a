//! K. Simonyan, A. Zisserman (2014), "Very Deep Convolutional Networks for Large-Scale Image Recognition",
//! arXiv:1409.1556, table 1, in its CIFAR form: the convolutions with BatchNorm, and one linear layer on the 1x1 map that
//! five poolings leave of 32x32 pixels.
//!
//! Checkpoint keys: torchvision's `features.{n}`, where n counts convolutions, norms, activations and pools alike, and
//! `classifier`, a single linear layer.
//!
//! | variant | configuration in table 1 | layers | parameters |
//! |---|---|---|---|
//! | `cifar_vgg16_bn` | D | 14 | 14,728,266 |
//! | `cifar_vgg19_bn` | E | 17 | 20,040,522 |

use candle_core::{Module, Result, Tensor};
use zoo_core::{
    BatchNorm, Conv2d, Conv2dConfig, Dimensions, Init, Linear, MaxPool2d, Model, ModelInfo, ModuleT, VarBuilder, relu,
};

/// A VGG: the widths of the convolutions of each of the five stages, a pooling after every stage.
#[derive(Debug, Clone)]
pub struct Config {
    /// Width of every 3x3 convolution, stage by stage.
    pub stages: [&'static [usize]; 5],
    /// Width of the classifier.
    pub num_classes: usize,
    /// Channels of the input image.
    pub in_chans: usize,
}

impl Config {
    /// Configuration D of table 1 with BatchNorm and a single linear layer.
    pub fn cifar_vgg16_bn() -> Self {
        let stages: [&[usize]; 5] = [&[64, 64], &[128, 128], &[256; 3], &[512; 3], &[512; 3]];
        Self { stages, num_classes: 10, in_chans: 3 }
    }

    /// Configuration E of table 1 with BatchNorm and a single linear layer.
    pub fn cifar_vgg19_bn() -> Self {
        let stages: [&[usize]; 5] = [&[64, 64], &[128, 128], &[256; 4], &[512; 4], &[512; 4]];
        Self { stages, num_classes: 10, in_chans: 3 }
    }
}

/// Convolution 3x3, BatchNorm, ReLU.
#[derive(Debug)]
struct ConvBnRelu {
    conv: Conv2d,
    bn: BatchNorm,
}

impl ModuleT for ConvBnRelu {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        relu(&self.bn.forward_t(&self.conv.forward_t(xs, train)?, train)?)
    }
}

/// The network: (b, in_chans, 32, 32) -> (b, num_classes).
///
/// ```
/// use zoo_cnn::vgg::{Config, Vgg};
/// use zoo_core::VarStore;
/// let store = VarStore::shapes_only();
/// Vgg::new(&Config::cifar_vgg16_bn(), store.root())?;
/// assert_eq!(store.parameter_count(), 14_728_266);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Vgg {
    stages: Vec<Vec<ConvBnRelu>>,
    classifier: Linear,
}

impl Vgg {
    /// Makes the network at `vb`.
    ///
    /// # Errors
    /// Keys that are taken already.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let (features, mut n, mut c_in) = (vb.pp("features"), 0, config.in_chans);
        let mut stages = Vec::new();
        for widths in config.stages {
            let mut stage = Vec::new();
            for &c_out in widths {
                let conv = Conv2dConfig::new(3).padding(1).init(Init::HE_FAN_OUT);
                stage.push(ConvBnRelu {
                    conv: Conv2d::new(c_in, c_out, conv, features.pp(n))?,
                    bn: BatchNorm::new(c_out, features.pp(n + 1))?,
                });
                // In torchvision's sequence the activation has a number too, and so has the pool after the stage.
                n += 3;
                c_in = c_out;
            }
            n += 1;
            stages.push(stage);
        }
        Ok(Self { stages, classifier: Linear::new(c_in, config.num_classes, vb.pp("classifier"))? })
    }
}

impl Model for Vgg {
    /// (b, in_chans, 32, 32) -> (b, 512)
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let mut xs = xs.clone();
        for stage in &self.stages {
            for layer in stage {
                xs = layer.forward_t(&xs, train)?;
            }
            xs = MaxPool2d::new(2, 2).forward(&xs)?; // halves h and w
        }
        xs.flatten_from(1)
    }
}

impl ModuleT for Vgg {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.classifier.forward_t(&self.forward_features(xs, train)?, train)
    }
}

const fn info(
    name: &'static str,
    parameters: usize,
    builder: fn(&Dimensions, VarBuilder) -> Result<Box<dyn Model>>,
) -> ModelInfo {
    ModelInfo {
        name,
        family: "cnn",
        parameters,
        image_size: 32,
        num_classes: 10,
        keys: "torchvision",
        paper: "Simonyan and Zisserman 2014, arXiv:1409.1556",
        renames: &[],
        builder,
    }
}

fn build(config: Config, dims: &Dimensions, vb: VarBuilder) -> Result<Box<dyn Model>> {
    let config = Config { num_classes: dims.num_classes, in_chans: dims.in_chans, ..config };
    Ok(Box::new(Vgg::new(&config, vb)?))
}

/// The registered variants.
pub const MODELS: &[ModelInfo] = &[
    info("cifar_vgg16_bn", 14_728_266, |d, vb| build(Config::cifar_vgg16_bn(), d, vb)),
    info("cifar_vgg19_bn", 20_040_522, |d, vb| build(Config::cifar_vgg19_bn(), d, vb)),
];

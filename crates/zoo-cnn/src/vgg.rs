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
    BatchNorm, Classifier, Conv2d, Conv2dConfig, ConvBn, Dimensions, Init, Input, MaxPool2d, Model, ModelInfo, ModuleT,
    Pointwise, VarBuilder, flatten, trace,
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
    stages: Vec<Vec<ConvBn>>,
    classifier: Classifier,
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
                let conv = Conv2d::new(c_in, c_out, conv, features.pp(n))?;
                stage.push(ConvBn::new(conv, BatchNorm::new(c_out, features.pp(n + 1))?, Some(Pointwise::Relu)));
                // In torchvision's sequence the activation has a number too, and so has the pool after the stage.
                n += 3;
                c_in = c_out;
            }
            n += 1;
            stages.push(stage);
        }
        Ok(Self { stages, classifier: Classifier::new(c_in, config.num_classes, vb.pp("classifier"))? })
    }
}

impl Model for Vgg {
    /// (b, in_chans, 32, 32) -> (b, 512, 1, 1)
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let mut xs = xs.clone();
        for (i, stage) in self.stages.iter().enumerate() {
            for layer in stage {
                xs = layer.forward_t(&xs, train)?;
            }
            xs = MaxPool2d::new(2, 2).forward(&xs)?; // halves h and w
            xs = trace::stage(format!("stage{}", i + 1), xs);
        }
        Ok(xs)
    }

    fn pre_logits(&self, features: &Tensor, _: bool) -> Result<Tensor> {
        flatten(features)
    }

    fn classifier(&self) -> &Classifier {
        &self.classifier
    }

    fn classifier_mut(&mut self) -> &mut Classifier {
        &mut self.classifier
    }
}

impl ModuleT for Vgg {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_head(&self.forward_features(xs, train)?, train)
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
        input: Input::CIFAR10,
        num_classes: 10,
        keys: "torchvision",
        paper: "Simonyan and Zisserman 2014, arXiv:1409.1556",
        renames: &[],
        key_map: None,
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

//! The plain CNN of the template suite: a configurable list of convolutions and pools, then one linear layer.
//!
//! A number w stands for a 3x3 convolution of width w (stride 1, padding 1, bias), BatchNorm and ReLU (no ReLU after
//! the very last); `p` for max pooling 3x3 with stride 2 and no padding.
//!
//! Checkpoint keys: `features.{i}.conv`, `features.{i}.bn` for the i-th convolution (pools do not count), `classifier`.
//!
//! | variant | list | parameters |
//! |---|---|---|
//! | `template_cnn` | 16 16 p 32 32 p 64 64 p 128 128 p 256 256 | 1,183,322 |

use candle_core::{Result, Tensor, bail};
use zoo_core::{
    BatchNormConfig, Classifier, Conv2dConfig, Dimensions, MaxPool2d, Model, ModelInfo, ModuleT, Pointwise, Sequential,
    Stages, VarBuilder, conv_bn, flatten, seq, softmax,
};

/// One entry of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// Convolution 3x3 to this width, BatchNorm, ReLU.
    Conv(usize),
    /// Max pooling 3x3, stride 2, no padding.
    Pool,
}

/// A plain CNN.
#[derive(Debug, Clone)]
pub struct Config {
    /// The list, from the image upwards.
    pub layers: Vec<Layer>,
    /// Width of the classifier.
    pub num_classes: usize,
    /// Channels of the input image.
    pub in_chans: usize,
    /// Side of the square input image: the linear layer reads every pixel of the last map.
    pub image_size: usize,
    /// Whether a softmax follows. The loss wants logits: leave it off for training.
    pub softmax: bool,
}

impl Config {
    /// The list of the template suite, for 32x32 images.
    pub fn template() -> Self {
        let pairs = [16, 32, 64, 128, 256].map(|w| [Layer::Conv(w); 2]);
        let layers = pairs.join(&Layer::Pool);
        Self { layers, num_classes: 10, in_chans: 3, image_size: 32, softmax: false }
    }
}

const POOL: MaxPool2d = MaxPool2d::new(3, 2);

/// The network: (b, in_chans, image_size, image_size) -> (b, num_classes).
///
/// ```
/// use zoo_cnn::template_cnn::{Config, TemplateCnn};
/// use zoo_core::VarStore;
/// let store = VarStore::shapes_only();
/// TemplateCnn::new(&Config::template(), store.root())?;
/// assert_eq!(store.parameter_count(), 1_183_322);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct TemplateCnn {
    features: Stages,
    classifier: Classifier,
    softmax: bool,
}

impl TemplateCnn {
    /// Makes the network at `vb`.
    ///
    /// # Errors
    /// A list without a convolution, or with more pools than the image can take.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let convs = config.layers.iter().filter(|layer| matches!(layer, Layer::Conv(_))).count();
        if convs == 0 {
            bail!("template_cnn: the list holds no convolution: {:?}", config.layers)
        }
        let (mut c_in, mut side, mut i) = (config.in_chans, config.image_size, 0);
        let (mut stage, mut features) = (Sequential::default(), Stages::default());
        let mut stages = 1;
        for layer in &config.layers {
            match *layer {
                Layer::Pool if side < POOL.kernel => {
                    let image = config.image_size;
                    bail!("template_cnn: nothing is left to pool of a {image}x{image} image: {:?}", config.layers)
                }
                Layer::Pool => {
                    side = (side - POOL.kernel) / POOL.stride + 1;
                    // A stage begins with the pooling.
                    features.push(format!("stage{stages}"), std::mem::replace(&mut stage, seq![POOL]));
                    stages += 1;
                }
                Layer::Conv(width) => {
                    let vb = vb.pp("features").pp(i);
                    i += 1;
                    let relu = (i < convs).then_some(Pointwise::Relu);
                    let (conv, norm) = (Conv2dConfig::new(3).padding(1), BatchNormConfig::default());
                    let unit = conv_bn((c_in, width), conv, norm, relu, (vb.pp("conv"), vb.pp("bn")))?;
                    stage = seq![stage, unit];
                    c_in = width;
                }
            }
        }
        features.push(format!("stage{stages}"), stage);
        let classifier = Classifier::new(c_in * side * side, config.num_classes, vb.pp("classifier"))?;
        Ok(Self { features, classifier, softmax: config.softmax })
    }
}

impl Model for TemplateCnn {
    /// (b, in_chans, h, w) -> (b, last width, h', w')
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.features.forward_t(xs, train)
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

    fn forward_head(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        let logits = self.classifier.forward_t(&self.pre_logits(features, train)?, train)?;
        if self.softmax { softmax(&logits) } else { Ok(logits) }
    }
}

fn build(dims: &Dimensions, vb: VarBuilder) -> Result<Box<dyn Model>> {
    let Dimensions { num_classes, in_chans, image_size, .. } = *dims;
    Ok(Box::new(TemplateCnn::new(&Config { num_classes, in_chans, image_size, ..Config::template() }, vb)?))
}

/// The registered variants.
pub const MODELS: &[ModelInfo] =
    &[ModelInfo { family: "cnn", paper: "template suite", ..ModelInfo::new("template_cnn", 1_183_322, build).cifar() }];

#[cfg(test)]
mod tests {
    use super::*;
    use zoo_core::VarStore;

    #[test]
    fn lists_that_make_no_network_are_errors() {
        let error = |config: Config| TemplateCnn::new(&config, VarStore::shapes_only().root()).unwrap_err().to_string();
        assert!(error(Config { layers: vec![Layer::Pool], ..Config::template() }).contains("no convolution"));
        assert!(error(Config { image_size: 16, ..Config::template() }).contains("16x16"));
    }
}

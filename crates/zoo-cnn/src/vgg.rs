//! K. Simonyan, A. Zisserman (2014), "Very Deep Convolutional Networks for Large-Scale Image Recognition",
//! arXiv:1409.1556, table 1: stages of 3x3 convolutions, each ended by a pooling that halves the image, then linear
//! layers.
//!
//! Checkpoint keys: torchvision's `features.{n}` and `classifier.{n}`, where n counts the steps of a sequence:
//! convolutions, norms, activations, pools and dropouts alike. The CIFAR form, made for the 1x1 map that five poolings
//! leave of 32x32 pixels, has `classifier` alone, a single linear layer. timm's files load too, see [`from_timm`].
//!
//! | configuration in table 1 | layers | plain | with BatchNorm | CIFAR form, with BatchNorm |
//! |---|---|---|---|---|
//! | A | 11 | 132,863,336 | 132,868,840 | |
//! | B | 13 | 133,047,848 | 133,053,736 | |
//! | D | 16 | 138,357,544 | 138,365,992 | 14,728,266 |
//! | E | 19 | 143,667,240 | 143,678,248 | 20,040,522 |
//!
//! The CIFAR form keeps the number of its configuration in its name, though it has two layers fewer.

use crate::alexnet::Numbered;
use candle_core::{Result, Tensor, bail};
use zoo_core::model::{Builder, Choices, Timm};
use zoo_core::weights::{Layout, Rename, Source, Weights};
use zoo_core::{
    Classifier, Conv2dConfig, Dimensions, Init, MaxPool2d, Model, ModelInfo, ModuleT, Sequential, VarBuilder,
    adaptive_avg_pool2d, flatten,
};

/// Width of every 3x3 convolution, stage by stage.
pub type Stages = [&'static [usize]; 5];

/// Table 1 without its 1x1 convolutions: layers, and the configurations A, B, D and E.
const TABLE_1: [(usize, Stages); 4] = [
    (11, [&[64], &[128], &[256; 2], &[512; 2], &[512; 2]]),
    (13, [&[64; 2], &[128; 2], &[256; 2], &[512; 2], &[512; 2]]),
    (16, [&[64; 2], &[128; 2], &[256; 3], &[512; 3], &[512; 3]]),
    (19, [&[64; 2], &[128; 2], &[256; 4], &[512; 4], &[512; 4]]),
];

/// What stands between the last map and the classifier.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Head {
    /// Nothing: the classifier reads the map, averaged to a single pixel where it is larger.
    Linear,
    /// The map averaged to a grid, then two linear layers, each with ReLU and dropout.
    Hidden {
        /// Side of the grid.
        grid: usize,
        /// Width of both layers.
        width: usize,
        /// Rate of the dropouts.
        dropout: f64,
    },
}

/// A VGG.
#[derive(Debug, Clone)]
pub struct Config {
    /// The convolutions; a pooling follows every stage.
    pub stages: Stages,
    /// Whether a BatchNorm follows each convolution.
    pub batch_norm: bool,
    /// What the classifier reads.
    pub head: Head,
    /// Width of the classifier.
    pub num_classes: usize,
    /// Channels of the input image.
    pub in_chans: usize,
}

impl Config {
    /// The network of 11, 13, 16 or 19 layers for ImageNet.
    ///
    /// # Errors
    /// A number of layers that table 1 does not have.
    pub fn vgg(layers: usize) -> Result<Self> {
        let Some(&(_, stages)) = TABLE_1.iter().find(|row| row.0 == layers) else {
            bail!("vgg: the paper's table has 11, 13, 16 and 19 layers, not {layers}; set `stages` for others")
        };
        let head = Head::Hidden { grid: 7, width: 4096, dropout: 0.5 };
        Ok(Self { stages, batch_norm: false, head, num_classes: 1000, in_chans: 3 })
    }

    /// The same network with BatchNorm.
    ///
    /// # Errors
    /// As [`Config::vgg`].
    pub fn vgg_bn(layers: usize) -> Result<Self> {
        Ok(Self { batch_norm: true, ..Self::vgg(layers)? })
    }

    /// Its convolutions with BatchNorm and a single linear layer, for 32x32 images and ten classes.
    ///
    /// # Errors
    /// As [`Config::vgg`].
    pub fn cifar(layers: usize) -> Result<Self> {
        Ok(Self { head: Head::Linear, num_classes: 10, ..Self::vgg_bn(layers)? })
    }
}

/// The network: (b, in_chans, h, w) -> (b, num_classes), for images of 32 pixels and more.
///
/// ```
/// use zoo_cnn::vgg::{Config, Vgg};
/// use zoo_core::VarStore;
/// let store = VarStore::shapes_only();
/// Vgg::new(&Config::cifar(16)?, store.root())?;
/// assert_eq!(store.parameter_count(), 14_728_266);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Vgg {
    features: zoo_core::Stages,
    grid: usize,
    hidden: Sequential,
    classifier: Classifier,
}

/// torchvision's start of its linear layers.
const LINEAR: Init = Init::Normal { mean: 0.0, std: 0.01 };

impl Vgg {
    /// Makes the network at `vb`.
    ///
    /// # Errors
    /// A stage without convolutions, a grid or width of 0, a dropout rate outside 0..1.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let mut features = Numbered::new(vb.pp("features"));
        let mut c_in = config.in_chans;
        for widths in config.stages {
            if widths.is_empty() || widths.contains(&0) {
                bail!("vgg: every stage needs a convolution, and every convolution a width, got {:?}", config.stages)
            }
            for &c_out in widths {
                let conv = Conv2dConfig::new(3).padding(1).init(Init::HE_FAN_OUT).bias_init(Init::ZEROS);
                features.conv(c_in, c_out, conv, config.batch_norm)?;
                c_in = c_out;
            }
            features.pool(MaxPool2d::new(2, 2)); // halves h and w
        }

        let mut hidden = Numbered::new(vb.pp("classifier"));
        let (grid, classifier) = match config.head {
            Head::Linear => (1, Classifier::new(c_in, config.num_classes, vb.pp("classifier"))?),
            Head::Hidden { grid, width, .. } if grid == 0 || width == 0 => {
                bail!("vgg: the head needs a grid and a width of at least 1, got {:?}", config.head)
            }
            Head::Hidden { grid, width, dropout } => {
                for c_in in [c_in * grid * grid, width] {
                    hidden.linear((c_in, width), LINEAR, Init::ZEROS)?;
                    hidden.dropout(dropout)?;
                }
                (grid, Classifier::with(width, config.num_classes, LINEAR, Some(Init::ZEROS), hidden.next())?)
            }
        };
        Ok(Self { features: features.build().0, grid, hidden: hidden.build().1, classifier })
    }
}

impl Model for Vgg {
    /// (b, in_chans, h, w) -> (b, 512, h / 32, w / 32)
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.features.forward_t(xs, train)
    }

    fn pre_logits(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        let cells = adaptive_avg_pool2d(features, (self.grid, self.grid))?;
        self.hidden.forward_t(&flatten(&cells)?, train)
    }

    fn classifier(&self) -> &Classifier {
        &self.classifier
    }

    fn classifier_mut(&mut self) -> &mut Classifier {
        &mut self.classifier
    }
}

const fn timm(from: &'static str, to: &'static str) -> Rename {
    Rename { from, to, reason: "timm's name for a layer of the classifier" }
}

/// timm's files, whose images are torchvision's: so are the weights.
const TIMM: Layout = Layout {
    name: "timm",
    sign: "pre_logits.fc1.weight",
    renames: &[
        timm("pre_logits.fc1.*", "classifier.0.*"),
        timm("pre_logits.fc2.*", "classifier.3.*"),
        timm("head.fc.*", "classifier.6.*"),
    ],
    key_map: Some(from_timm),
    preprocess: None,
};

/// The translation of timm's layout, which keeps the linear layers behind the map as convolutions that cover it.
///
/// # Errors
/// None of its own: keys that are not timm's are left for the loader to complain of.
pub fn from_timm(weights: &Weights) -> Result<Vec<(String, Source)>> {
    let matrix = |key: &str| {
        let [width, inside @ ..] = weights.shape(key)?.dims() else { return None };
        let dims = vec![*width, inside.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim))?];
        Some((key.to_string(), Source::Reshape { key: key.to_string(), dims }))
    };
    Ok(["pre_logits.fc1.weight", "pre_logits.fc2.weight"].into_iter().filter_map(matrix).collect())
}

const fn imagenet(name: &'static str, parameters: usize, builder: Builder) -> ModelInfo {
    ModelInfo {
        family: "cnn",
        keys: "torchvision",
        paper: "Simonyan and Zisserman 2014, arXiv:1409.1556",
        layouts: &[TIMM],
        // timm turns torchvision's keys into its own when it reads a file.
        timm: Some(Timm::new(name, "features.0", "head.fc")),
        choices: Choices { drop_rate: true, ..Choices::NONE },
        ..ModelInfo::new(name, parameters, builder)
    }
}

const fn cifar(name: &'static str, parameters: usize, builder: Builder) -> ModelInfo {
    ModelInfo { layouts: &[], choices: Choices::NONE, ..imagenet(name, parameters, builder).cifar() }
}

fn build(config: Config, dims: &Dimensions, vb: VarBuilder) -> Result<Box<dyn Model>> {
    let mut config = Config { num_classes: dims.num_classes, in_chans: dims.in_chans, ..config };
    if let (Head::Hidden { dropout, .. }, Some(rate)) = (&mut config.head, dims.drop_rate) {
        *dropout = rate;
    }
    Ok(Box::new(Vgg::new(&config, vb)?))
}

/// The registered variants.
pub const MODELS: &[ModelInfo] = &[
    imagenet("vgg11", 132_863_336, |d, vb| build(Config::vgg(11)?, d, vb)).weights("hf:timm/vgg11.tv_in1k"),
    imagenet("vgg13", 133_047_848, |d, vb| build(Config::vgg(13)?, d, vb)).weights("hf:timm/vgg13.tv_in1k"),
    imagenet("vgg16", 138_357_544, |d, vb| build(Config::vgg(16)?, d, vb)).weights("hf:timm/vgg16.tv_in1k"),
    imagenet("vgg19", 143_667_240, |d, vb| build(Config::vgg(19)?, d, vb)).weights("hf:timm/vgg19.tv_in1k"),
    imagenet("vgg11_bn", 132_868_840, |d, vb| build(Config::vgg_bn(11)?, d, vb)).weights("hf:timm/vgg11_bn.tv_in1k"),
    imagenet("vgg13_bn", 133_053_736, |d, vb| build(Config::vgg_bn(13)?, d, vb)).weights("hf:timm/vgg13_bn.tv_in1k"),
    imagenet("vgg16_bn", 138_365_992, |d, vb| build(Config::vgg_bn(16)?, d, vb)).weights("hf:timm/vgg16_bn.tv_in1k"),
    imagenet("vgg19_bn", 143_678_248, |d, vb| build(Config::vgg_bn(19)?, d, vb)).weights("hf:timm/vgg19_bn.tv_in1k"),
    cifar("cifar_vgg16_bn", 14_728_266, |d, vb| build(Config::cifar(16)?, d, vb)),
    cifar("cifar_vgg19_bn", 20_040_522, |d, vb| build(Config::cifar(19)?, d, vb)),
];

#[cfg(test)]
mod tests {
    use super::*;
    use zoo_core::VarStore;
    use zoo_core::trace::Graph;

    #[test]
    fn a_config_that_makes_no_network_is_an_error() {
        let error = |config: Config| Vgg::new(&config, VarStore::shapes_only().root()).unwrap_err().to_string();
        let stages: Stages = [&[64], &[], &[64], &[64], &[64]];
        assert!(error(Config { stages, ..Config::vgg(11).unwrap() }).contains("[64], [], [64]"));
        let head = Head::Hidden { grid: 0, width: 16, dropout: 0.5 };
        assert!(error(Config { head, ..Config::vgg(11).unwrap() }).contains("grid: 0"));
    }

    #[test]
    fn a_larger_image_fits_either_head() {
        for config in [Config::cifar(16).unwrap(), Config::vgg(16).unwrap()] {
            let net = Vgg::new(&config, VarStore::shapes_only().root()).unwrap();
            let graph = Graph::of_model(&net, (3, 96, 96)).unwrap();
            assert_eq!(graph.nodes.last().unwrap().shape, [1, config.num_classes]);
        }
    }
}

//! A. Krizhevsky, I. Sutskever, G. Hinton (2012), "ImageNet Classification with Deep Convolutional Neural Networks",
//! NIPS 25, in the single-tower form of A. Krizhevsky (2014), "One weird trick for parallelizing convolutional neural
//! networks", arXiv:1404.5997: five convolutions, three max poolings of overlapping windows, two hidden layers with
//! dropout.
//!
//! Checkpoint keys: torchvision's `features.{n}` and `classifier.{n}`, where n counts the steps of a sequence, those
//! without tensors too: `features.{0,3,6,8,10}`, `classifier.{1,4,6}`.
//!
//! `cifar_alexnet` is the same network for 32x32 pixels, with keys of the same kind: a 5x5 stem of stride 1 in place of
//! the 11x11 one of stride 4, BatchNorm after each convolution (which then has no bias), and hidden layers of 1024.
//!
//! | variant | layers | stem | last map | parameters |
//! |---|---|---|---|---|
//! | `alexnet` | 8 | 11x11, stride 4 | 256 x 6 x 6 | 61,100,840 |
//! | `cifar_alexnet` | 8 | 5x5 | 256 x 3 x 3 | 5,872,586 |

use candle_core::{Result, Tensor, bail};
use std::sync::Arc;
use zoo_core::{
    BatchNorm, Choices, Classifier, Conv2d, Conv2dConfig, Dimensions, Dropout, Init, Layer, Linear, MaxPool2d, Model,
    ModelInfo, ModuleT, Pointwise, Sequential, Stages, VarBuilder, adaptive_avg_pool2d, flatten,
};

/// An AlexNet.
#[derive(Debug, Clone)]
pub struct Config {
    /// Kernel, stride and padding of the first convolution.
    pub stem: (usize, usize, usize),
    /// Whether a BatchNorm follows each convolution, which then has no bias.
    pub batch_norm: bool,
    /// Side of the grid that the last map is averaged to.
    pub grid: usize,
    /// Width of the two hidden layers.
    pub hidden: usize,
    /// Rate of the dropout in front of both hidden layers.
    pub dropout: f64,
    /// Width of the classifier.
    pub num_classes: usize,
    /// Channels of the input image.
    pub in_chans: usize,
}

impl Config {
    /// For ImageNet, as torchvision has it.
    pub fn alexnet() -> Self {
        let (stem, num_classes) = ((11, 4, 2), 1000);
        Self { stem, batch_norm: false, grid: 6, hidden: 4096, dropout: 0.5, num_classes, in_chans: 3 }
    }

    /// For 32x32 pixels.
    pub fn cifar_alexnet() -> Self {
        Self { stem: (5, 1, 2), batch_norm: true, grid: 3, hidden: 1024, num_classes: 10, ..Self::alexnet() }
    }
}

/// Layers one after another under running numbers, as torchvision's older networks are written down: an activation, a
/// pool and a dropout take a number too, though they have no tensors.
pub(crate) struct Numbered {
    layers: Vec<Arc<dyn Layer>>,
    number: usize,
    stages: Stages,
    ended: usize,
    vb: VarBuilder,
}

impl Numbered {
    pub fn new(vb: VarBuilder) -> Self {
        Self { layers: Vec::new(), number: 0, stages: Stages::default(), ended: 0, vb }
    }

    /// The place of the layer to come.
    pub fn next(&self) -> VarBuilder {
        self.vb.pp(self.number)
    }

    fn push(&mut self, layer: impl Layer) {
        self.layers.push(Arc::new(layer));
        self.number += 1;
    }

    /// Convolution, BatchNorm if wanted, ReLU.
    pub fn conv(&mut self, c_in: usize, c_out: usize, config: Conv2dConfig, batch_norm: bool) -> Result<()> {
        self.push(Conv2d::new(c_in, c_out, config, self.next())?);
        if batch_norm {
            self.push(BatchNorm::new(c_out, self.next())?);
        }
        self.push(Pointwise::Relu);
        Ok(())
    }

    /// A pooling, which ends a stage.
    pub fn pool(&mut self, pool: MaxPool2d) {
        self.push(pool);
        self.ended += 1;
        self.stages.push(format!("stage{}", self.ended), Sequential::new(std::mem::take(&mut self.layers)));
    }

    /// Linear layer, ReLU.
    pub fn linear(&mut self, widths: (usize, usize), weight: Init, bias: Init) -> Result<()> {
        self.push(Linear::with_bias(widths.0, widths.1, weight, Some(bias), self.next())?);
        self.push(Pointwise::Relu);
        Ok(())
    }

    pub fn dropout(&mut self, p: f64) -> Result<()> {
        self.push(Dropout::new(p, &self.next())?);
        Ok(())
    }

    /// The stages that have ended, and the layers behind the last.
    pub fn build(self) -> (Stages, Sequential) {
        (self.stages, Sequential::new(self.layers))
    }
}

/// The network: (b, in_chans, h, w) -> (b, num_classes), for images of 63 pixels and more (15 with the stem for 32x32).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_cnn::alexnet::{AlexNet, Config};
/// use zoo_core::{Model, VarStore};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let net = AlexNet::new(&Config { hidden: 64, ..Config::cifar_alexnet() }, store.root())?;
/// let images = Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu)?;
/// assert_eq!(net.forward_t(&images, false)?.dims(), &[2, 10]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct AlexNet {
    features: Stages,
    hidden: Sequential,
    classifier: Classifier,
    grid: usize,
}

impl AlexNet {
    /// Makes the network at `vb`.
    ///
    /// # Errors
    /// A kernel, stride, grid or width of 0, a dropout rate outside 0..1.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { stem: (kernel, stride, padding), batch_norm, grid, hidden: width, dropout, .. } = config;
        if [kernel, stride, grid, width].contains(&0) {
            bail!("alexnet: kernel and stride of the stem, grid and hidden width must be at least 1, got {config:?}")
        }
        const POOL: MaxPool2d = MaxPool2d::new(3, 2);
        // A norm would cancel the bias before it.
        let conv = |conv: Conv2dConfig| if batch_norm { conv.no_bias() } else { conv };
        let small = conv(Conv2dConfig::new(3).padding(1));
        let mut features = Numbered::new(vb.pp("features"));
        let stem = conv(Conv2dConfig::new(kernel).stride(stride).padding(padding));
        features.conv(config.in_chans, 64, stem, batch_norm)?;
        features.pool(POOL);
        features.conv(64, 192, conv(Conv2dConfig::new(5).padding(2)), batch_norm)?;
        features.pool(POOL);
        features.conv(192, 384, small, batch_norm)?;
        features.conv(384, 256, small, batch_norm)?;
        features.conv(256, 256, small, batch_norm)?;
        features.pool(POOL);

        let mut hidden = Numbered::new(vb.pp("classifier"));
        for c_in in [256 * grid * grid, width] {
            hidden.dropout(dropout)?;
            hidden.linear((c_in, width), Init::TORCH_WEIGHT, Init::torch_bias(c_in))?;
        }
        let classifier = Classifier::new(width, config.num_classes, hidden.next())?;
        Ok(Self { features: features.build().0, hidden: hidden.build().1, classifier, grid })
    }
}

impl Model for AlexNet {
    /// (b, in_chans, 224, 224) -> (b, 256, 6, 6)
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

/// The registered variants.
pub const MODELS: &[ModelInfo] = &[
    ModelInfo {
        family: "cnn",
        keys: "torchvision",
        paper: "Krizhevsky 2014, arXiv:1404.5997",
        choices: Choices { drop_rate: true, ..Choices::NONE },
        weights: Some("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"),
        ..ModelInfo::new("alexnet", 61_100_840, |dims, vb| build(Config::alexnet(), dims, vb))
    },
    ModelInfo {
        family: "cnn",
        paper: "Krizhevsky, Sutskever and Hinton 2012",
        choices: Choices { drop_rate: true, ..Choices::NONE },
        ..ModelInfo::new("cifar_alexnet", 5_872_586, |dims, vb| build(Config::cifar_alexnet(), dims, vb)).cifar()
    },
];

fn build(config: Config, dims: &Dimensions, vb: VarBuilder) -> Result<Box<dyn Model>> {
    let dropout = dims.drop_rate.unwrap_or(config.dropout);
    let config = Config { num_classes: dims.num_classes, in_chans: dims.in_chans, dropout, ..config };
    Ok(Box::new(AlexNet::new(&config, vb)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use zoo_core::VarStore;
    use zoo_core::trace::Graph;

    #[test]
    fn a_config_that_makes_no_network_is_an_error() {
        let error = |config: Config| AlexNet::new(&config, VarStore::shapes_only().root()).unwrap_err().to_string();
        assert!(error(Config { grid: 0, ..Config::alexnet() }).contains("grid: 0"));
        assert!(error(Config { dropout: 1.0, ..Config::alexnet() }).contains("classifier.0"));
    }

    #[test]
    fn dropout_is_an_option() {
        let train_twice = |dropout: f64| {
            let store = VarStore::new(1, DType::F32, &Device::Cpu);
            let config = Config { dropout, hidden: 64, ..Config::cifar_alexnet() };
            let net = AlexNet::new(&config, store.root()).unwrap();
            let xs = Tensor::ones((2, 256, 3, 3), DType::F32, &Device::Cpu).unwrap();
            let pass = || net.pre_logits(&xs, true).unwrap().to_vec2::<f32>().unwrap();
            (pass(), pass())
        };
        let (first, second) = train_twice(0.5);
        assert_ne!(first, second);
        let (first, second) = train_twice(0.0);
        assert_eq!(first, second);
    }

    /// The smallest image that each stem takes, and one pixel less.
    #[test]
    fn the_smallest_images() {
        for (config, side) in [(Config::alexnet(), 63), (Config::cifar_alexnet(), 15)] {
            let net = AlexNet::new(&config, VarStore::shapes_only().root()).unwrap();
            let at = |side| Graph::of_model(&net, (3, side, side));
            assert_eq!(at(side).unwrap().nodes.last().unwrap().shape, [1, config.num_classes]);
            assert!(at(side - 1).unwrap_err().to_string().contains("max_pool2d"));
        }
    }
}

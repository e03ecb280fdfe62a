//! G. Huang, Z. Liu, L. van der Maaten, K. Weinberger (2016), "Densely Connected Convolutional Networks",
//! arXiv:1608.06993: in a dense block every layer reads the maps of all layers before it and adds k channels of its own
//! (k is the growth rate); between blocks a transition halves the channels and the image.
//!
//! Checkpoint keys: torchvision's
//! `features.{conv0,norm0,denseblock{i}.denselayer{j}.{norm1,conv1,norm2,conv2},transition{i}.{norm,conv},norm5}` and
//! `classifier`, for every variant (the last norm is `norm5` after three blocks too). See [`RENAMES`].
//!
//! The ImageNet networks are those of table 1. `cifar_densenet121` is DenseNet-121 with a 3x3 stem of stride 1 and no
//! pooling behind it. `cifar_densenet_bc_100_12` is DenseNet-BC of table 2 with 100 layers and k = 12: three blocks of
//! 16 layers behind a convolution of 24 channels.
//!
//! | variant | layers in the blocks | k | parameters |
//! |---|---|---|---|
//! | `densenet121` | 6 12 24 16 | 32 | 7,978,856 |
//! | `densenet161` | 6 12 36 24 | 48 | 28,681,000 |
//! | `densenet169` | 6 12 32 32 | 32 | 14,149,480 |
//! | `densenet201` | 6 12 48 32 | 32 | 20,013,928 |
//! | `cifar_densenet121` | 6 12 24 16 | 32 | 6,956,426 |
//! | `cifar_densenet_bc_100_12` | 16 16 16 | 12 | 769,162 |

use candle_core::{Result, Tensor, bail};
use zoo_core::model::{Builder, Choices, Timm};
use zoo_core::weights::Rename;
use zoo_core::{
    AvgPool2d, BatchNorm, Classifier, Conv2d, Conv2dConfig, DenseBlock, Dimensions, Dropout, GlobalPool, Init,
    MaxPool2d, Model, ModelInfo, ModuleT, Pointwise, PooledMap, Sequential, Stages, VarBuilder, seq,
};

/// What stands in front of the first block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stem {
    /// Convolution 7x7 of stride 2, BatchNorm, ReLU, max pooling 3x3 of stride 2 (table 1): for ImageNet.
    Shrinking {
        /// Zeros around the image: 3 in the paper's network. One published CIFAR-10 comparison has none; the maps then
        /// get smaller, and four blocks need an image of at least 35 pixels instead of 29.
        padding: usize,
    },
    /// Convolution 3x3 of stride 1, BatchNorm, ReLU: an ImageNet network on 32x32 pixels.
    Small,
    /// Convolution 3x3 of stride 1, and nothing else: the paper's networks for 32x32 pixels (section 4.2).
    Bare,
}

/// A DenseNet.
#[derive(Debug, Clone)]
pub struct Config {
    /// k, the channels that each layer adds.
    pub growth: usize,
    /// Layers of each dense block.
    pub blocks: Vec<usize>,
    /// Channels of the stem.
    pub init_features: usize,
    /// What the stem is.
    pub stem: Stem,
    /// Width of a layer's 1x1 convolution as a multiple of k (4 in DenseNet-B). `None` leaves it out: a layer is one
    /// norm and one 3x3 convolution.
    pub bn_size: Option<usize>,
    /// θ, the share of the channels that a transition keeps (0.5 in DenseNet-C).
    pub compression: f64,
    /// Rate of the dropout behind each layer's last convolution. The paper has 0.2 on data without augmentation.
    pub drop_rate: f64,
    /// What makes a vector of the last map.
    pub global_pool: GlobalPool,
    /// Rate of the dropout in front of the classifier: timm's `drop_rate`.
    pub dropout: f64,
    /// Width of the classifier.
    pub num_classes: usize,
    /// Channels of the input image.
    pub in_chans: usize,
}

impl Config {
    fn imagenet(growth: usize, blocks: [usize; 4], init_features: usize) -> Self {
        Self {
            growth,
            blocks: blocks.to_vec(),
            init_features,
            stem: Stem::Shrinking { padding: 3 },
            bn_size: Some(4),
            compression: 0.5,
            drop_rate: 0.0,
            global_pool: GlobalPool::Avg,
            dropout: 0.0,
            num_classes: 1000,
            in_chans: 3,
        }
    }

    /// DenseNet-121 (table 1).
    pub fn densenet121() -> Self {
        Self::imagenet(32, [6, 12, 24, 16], 64)
    }

    /// DenseNet-161, with k = 48.
    pub fn densenet161() -> Self {
        Self::imagenet(48, [6, 12, 36, 24], 96)
    }

    /// DenseNet-169 (table 1).
    pub fn densenet169() -> Self {
        Self::imagenet(32, [6, 12, 32, 32], 64)
    }

    /// DenseNet-201 (table 1).
    pub fn densenet201() -> Self {
        Self::imagenet(32, [6, 12, 48, 32], 64)
    }

    /// DenseNet-121 for 32x32 pixels.
    pub fn cifar_densenet121() -> Self {
        Self { stem: Stem::Small, num_classes: 10, ..Self::densenet121() }
    }

    /// DenseNet-BC of `layers` = 6n + 4 layers for 32x32 pixels (table 2): three blocks of n layers, k = `growth`.
    ///
    /// # Errors
    /// A number of layers that is not 6n + 4 with n of at least 1.
    pub fn cifar_bc(layers: usize, growth: usize) -> Result<Self> {
        if layers < 10 || !(layers - 4).is_multiple_of(6) {
            bail!("densenet: DenseNet-BC with three blocks has 6n + 4 layers (10, 16, …, 40, 100, 190), got {layers}")
        }
        let (blocks, stem) = (vec![(layers - 4) / 6; 3], Stem::Bare);
        Ok(Self { growth, blocks, init_features: 2 * growth, stem, num_classes: 10, ..Self::densenet121() })
    }

    /// The plain DenseNet of `layers` = 3n + 4 layers for 32x32 pixels (table 2): no 1x1 convolutions in the layers, no
    /// compression, a stem of 16 channels.
    ///
    /// # Errors
    /// A number of layers that is not 3n + 4 with n of at least 1.
    pub fn cifar_plain(layers: usize, growth: usize) -> Result<Self> {
        if layers < 7 || !(layers - 4).is_multiple_of(3) {
            bail!("densenet: the plain DenseNet with three blocks has 3n + 4 layers (7, 10, …, 40, 100), got {layers}")
        }
        let blocks = vec![(layers - 4) / 3; 3];
        Ok(Self { blocks, init_features: 16, bn_size: None, compression: 1.0, ..Self::cifar_bc(10, growth)? })
    }

    /// Side of the smallest image of which every transition finds a pixel to keep.
    fn smallest_image(&self) -> usize {
        let map = 1 << (self.blocks.len() - 1);
        match self.stem {
            // A map of n pixels comes from 2n - 1 in front of the pool, and these from 2(2n - 1) + 5 in front of the
            // convolution.
            Stem::Shrinking { padding } => (4 * map + 3usize).saturating_sub(2 * padding).max(1),
            Stem::Small | Stem::Bare => map,
        }
    }

    fn check(&self) -> Result<()> {
        let widths = [self.growth, self.init_features, self.bn_size.unwrap_or(1), self.num_classes, self.in_chans];
        if widths.contains(&0) || self.blocks.is_empty() || self.blocks.contains(&0) {
            bail!("densenet: widths must be above 0 and every block needs a layer, got {self:?}")
        }
        if !(self.compression > 0.0 && self.compression <= 1.0) {
            bail!("densenet: the compression must lie above 0 and at most at 1, got {}", self.compression)
        }
        Ok(())
    }
}

/// BatchNorm, ReLU, convolution, with keys `norm{n}` and `conv{n}`: the paper's H (section 3), in this order since a
/// norm of its own suits each reader of a map.
fn norm_relu_conv((c_in, c_out): (usize, usize), kernel: usize, n: &str, vb: &VarBuilder) -> Result<Sequential> {
    let norm = BatchNorm::new(c_in, vb.pp(format!("norm{n}")))?;
    let conv = conv(Conv2dConfig::new(kernel).padding(kernel / 2));
    Ok(seq![norm, Pointwise::Relu, Conv2d::new(c_in, c_out, conv, vb.pp(format!("conv{n}")))?])
}

fn conv(config: Conv2dConfig) -> Conv2dConfig {
    config.no_bias().init(Init::HE_FAN_IN)
}

/// What a layer of a dense block makes of all maps before it, behind which they then stand: (b, c, h, w) -> (b, k, h,
/// w).
fn dense_layer(c_in: usize, config: &Config, vb: VarBuilder) -> Result<Sequential> {
    let h = match config.bn_size.map(|size| size * config.growth) {
        None => norm_relu_conv((c_in, config.growth), 3, "1", &vb)?,
        Some(width) => {
            let narrow = norm_relu_conv((c_in, width), 1, "1", &vb)?;
            seq![narrow, norm_relu_conv((width, config.growth), 3, "2", &vb)?]
        }
    };
    Ok(seq![h, Dropout::new(config.drop_rate, &vb)?].block("DenseLayer", &vb))
}

/// Between two blocks: (b, c, h, w) -> (b, θ · c, h / 2, w / 2).
fn transition(widths: (usize, usize), vb: VarBuilder) -> Result<Sequential> {
    Ok(seq![norm_relu_conv(widths, 1, "", &vb)?, AvgPool2d::new(2, 2)].block("Transition", &vb))
}

/// The network: (b, in_chans, h, w) -> (b, num_classes).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_cnn::densenet::{Config, DenseNet};
/// use zoo_core::{Model, VarStore};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let net = DenseNet::new(&Config::cifar_bc(22, 12)?, store.root())?;
/// let images = Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu)?;
/// assert_eq!(net.forward_t(&images, false)?.dims(), &[2, 10]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct DenseNet {
    stem: Stages,
    /// Each with what reads all of its maps: a transition, or the last norm.
    blocks: Vec<DenseBlock>,
    pool: PooledMap,
    classifier: Classifier,
    stem_kind: Stem,
    smallest_image: usize,
}

impl DenseNet {
    /// Makes the network at `vb`.
    ///
    /// # Errors
    /// A width of 0, no block or a block without layers, a compression outside 0..=1, a dropout rate outside 0..1.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        let features = vb.pp("features");
        let mut c = config.init_features;
        let first = match config.stem {
            Stem::Shrinking { padding } => Conv2dConfig::new(7).stride(2).padding(padding),
            Stem::Small | Stem::Bare => Conv2dConfig::new(3).padding(1),
        };
        let mut layers = seq![Conv2d::new(config.in_chans, c, conv(first), features.pp("conv0"))?];
        if config.stem != Stem::Bare {
            // Without one, the first layer's own norm is the first.
            layers = seq![layers, BatchNorm::new(c, features.pp("norm0"))?, Pointwise::Relu];
        }
        if let Stem::Shrinking { .. } = config.stem {
            layers = seq![layers, MaxPool2d { padding: 1, ..MaxPool2d::new(3, 2) }];
        }
        let mut stem = Stages::default();
        stem.push("stem", layers);

        let mut blocks = Vec::new();
        for (i, &layers) in config.blocks.iter().enumerate() {
            let name = format!("denseblock{}", i + 1);
            let mut block = Vec::with_capacity(layers);
            for j in 0..layers {
                block.push(dense_layer(c, config, features.pp(&name).pp(format!("denselayer{}", j + 1)))?);
                c += config.growth;
            }
            let reader = if i + 1 < config.blocks.len() {
                let kept = (c as f64 * config.compression) as usize;
                let widths = (std::mem::replace(&mut c, kept), kept);
                transition(widths, features.pp(format!("transition{}", i + 1)))?
            } else {
                seq![BatchNorm::new(c, features.pp("norm5"))?, Pointwise::Relu]
            };
            blocks.push(DenseBlock::new(block, reader, name));
        }
        let bias = Some(Init::ZEROS);
        let classifier = Classifier::with(c, config.num_classes, Init::TORCH_WEIGHT, bias, vb.pp("classifier"))?;
        let (stem_kind, smallest_image) = (config.stem, config.smallest_image());
        let pool = PooledMap::new(config.global_pool, config.dropout, &vb)?;
        Ok(Self { stem, blocks, pool, classifier, stem_kind, smallest_image })
    }
}

impl Model for DenseNet {
    /// (b, in_chans, 224, 224) -> (b, 1024, 7, 7) in DenseNet-121
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let ((_, _, h, w), smallest) = (xs.dims4()?, self.smallest_image);
        if h.min(w) < smallest {
            bail!(
                "densenet: behind the stem {:?} nothing is left of an image of {h}x{w} for the last of {} blocks: take one of \
                 {smallest}x{smallest} at least, a stem with more padding, or Stem::Small",
                self.stem_kind,
                self.blocks.len()
            )
        }
        let xs = self.stem.forward_t(xs, train)?; // (b, 64, 56, 56); without pooling, h and w stay
        self.blocks.iter().try_fold(xs, |xs, block| block.forward_t(&xs, train))
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

const DOTTED: &str = "torchvision's own checkpoints are of the time when a dot stood before the number";

/// What other files call this network's tensors.
pub const RENAMES: &[Rename] = &[
    Rename { from: "features.*.*.norm.*.*", to: "features.*.*.norm*.*", reason: DOTTED },
    Rename { from: "features.*.*.conv.*.*", to: "features.*.*.conv*.*", reason: DOTTED },
];

const fn imagenet(name: &'static str, parameters: usize, builder: Builder) -> ModelInfo {
    ModelInfo {
        family: "cnn",
        keys: "torchvision",
        paper: "Huang et al. 2016, arXiv:1608.06993",
        renames: RENAMES,
        timm: Some(Timm::new(name, "features.conv0", "classifier")),
        choices: Choices::OF_MAPS,
        ..ModelInfo::new(name, parameters, builder)
    }
}

const fn cifar(name: &'static str, parameters: usize, keys: &'static str, builder: Builder) -> ModelInfo {
    ModelInfo { keys, ..imagenet(name, parameters, builder).cifar() }
}

fn build(config: Config, dims: &Dimensions, vb: VarBuilder) -> Result<Box<dyn Model>> {
    let config = Config {
        num_classes: dims.num_classes,
        in_chans: dims.in_chans,
        global_pool: dims.global_pool.unwrap_or(config.global_pool),
        dropout: dims.drop_rate.unwrap_or(config.dropout),
        ..config
    };
    Ok(Box::new(DenseNet::new(&config, vb)?))
}

/// The registered variants.
pub const MODELS: &[ModelInfo] = &[
    imagenet("densenet121", 7_978_856, |d, vb| build(Config::densenet121(), d, vb))
        .weights("hf:timm/densenet121.ra_in1k"),
    imagenet("densenet161", 28_681_000, |d, vb| build(Config::densenet161(), d, vb))
        .weights("hf:timm/densenet161.tv_in1k"),
    imagenet("densenet169", 14_149_480, |d, vb| build(Config::densenet169(), d, vb))
        .weights("hf:timm/densenet169.tv_in1k"),
    imagenet("densenet201", 20_013_928, |d, vb| build(Config::densenet201(), d, vb))
        .weights("hf:timm/densenet201.tv_in1k"),
    cifar("cifar_densenet121", 6_956_426, "torchvision", |d, vb| build(Config::cifar_densenet121(), d, vb)),
    cifar("cifar_densenet_bc_100_12", 769_162, "own", |d, vb| build(Config::cifar_bc(100, 12)?, d, vb)),
];

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use zoo_core::VarStore;
    use zoo_core::trace::Graph;

    fn count(config: &Config) -> usize {
        let store = VarStore::shapes_only();
        DenseNet::new(config, store.root()).unwrap();
        store.parameter_count()
    }

    /// Networks of table 2 that are not registered, in the paper's rounding.
    #[test]
    fn the_other_networks_of_table_2() {
        let millions = |config: Result<Config>| format!("{:.1}M", count(&config.unwrap()) as f64 / 1e6);
        assert_eq!(millions(Config::cifar_plain(40, 12)), "1.0M");
        assert_eq!(millions(Config::cifar_plain(100, 12)), "7.0M");
        assert_eq!(millions(Config::cifar_plain(100, 24)), "27.2M");
        assert_eq!(millions(Config::cifar_bc(250, 24)), "15.3M");
        assert_eq!(millions(Config::cifar_bc(190, 40)), "25.6M");
    }

    #[test]
    fn configs_that_make_no_network_are_errors() {
        let error = |config: Config| DenseNet::new(&config, VarStore::shapes_only().root()).unwrap_err().to_string();
        assert!(error(Config { blocks: vec![6, 0], ..Config::densenet121() }).contains("[6, 0]"));
        assert!(error(Config { compression: 1.5, ..Config::densenet121() }).contains("1.5"));
        assert!(error(Config { drop_rate: 1.0, ..Config::densenet121() }).contains("denselayer1"));
        assert!(Config::cifar_bc(101, 12).unwrap_err().to_string().contains("6n + 4"));
        assert!(Config::cifar_plain(41, 12).unwrap_err().to_string().contains("3n + 4"));
    }

    /// The smallest image of each stem gives the last block one pixel, and one pixel less is an error that says so.
    #[test]
    fn the_unpadded_stem_wants_35_pixels() {
        let unpadded = Config { stem: Stem::Shrinking { padding: 0 }, ..Config::densenet121() };
        assert_eq!(count(&unpadded), 7_978_856);
        let three_blocks = Config { blocks: vec![1; 3], ..unpadded.clone() };
        for (config, side) in [
            (unpadded, 35),
            (three_blocks, 19),
            (Config::densenet121(), 29),
            (Config::cifar_densenet121(), 8),
            (Config::cifar_bc(10, 12).unwrap(), 4),
        ] {
            let net = DenseNet::new(&config, VarStore::shapes_only().root()).unwrap();
            let at = |side| Graph::of_model(&net, (3, side, side));
            let graph = at(side).unwrap();
            let last = graph.nodes.iter().rfind(|node| node.kind() == "Concat").unwrap();
            assert_eq!(last.shape[2..], [1, 1], "{side}: {:?}", config.stem);
            let error = at(side - 1).unwrap_err().to_string();
            let wants = format!("an image of {0}x{0}", side - 1);
            assert!(error.contains(&wants) && error.contains(&format!("{side}x{side} at least")), "{error}");
            assert!(error.contains(&format!("{:?}", config.stem)), "{error}");
        }
    }

    #[test]
    fn a_layer_drops_its_own_maps_only() {
        let config = Config { drop_rate: 0.5, ..Config::densenet121() };
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        let layer = dense_layer(8, &config, store.root()).unwrap();
        let block = DenseBlock::new(vec![layer], Sequential::default(), "block");
        let xs = Tensor::randn(0f32, 1., (2, 8, 6, 6), &Device::Cpu).unwrap();
        let channels = |ys: &Tensor, from, n| ys.narrow(1, from, n).unwrap().flatten_all().unwrap().to_vec1::<f32>();
        let run = || block.forward_t(&xs, true).unwrap();
        let (once, again) = (run(), run());
        assert_eq!(channels(&once, 0, 8).unwrap(), channels(&xs, 0, 8).unwrap());
        assert_ne!(channels(&once, 8, 32).unwrap(), channels(&again, 8, 32).unwrap());
    }
}

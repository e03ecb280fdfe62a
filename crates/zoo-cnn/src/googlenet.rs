//! C. Szegedy, W. Liu, Y. Jia, P. Sermanet, S. Reed, D. Anguelov, D. Erhan, V. Vanhoucke, A. Rabinovich (2014), "Going
//! Deeper with Convolutions", arXiv:1409.4842: a stem, nine Inception modules, global average pooling and one linear
//! layer, 22 layers with weights; two auxiliary classifiers in training.
//!
//! Checkpoint keys: torchvision's, `conv{1,2,3}`, `inception{3a…5b}.branch{1…4}`, `aux{1,2}` and `fc`, each convolution
//! a pair `conv`, `bn`. As in torchvision's network, a BatchNorm with eps 0.001 follows each convolution, and **the
//! branch that the paper draws 5x5 has a 3x3 kernel**, which its checkpoints need; [`Config::large_kernel`] gives the
//! paper's. See [`RENAMES`].
//!
//! `cifar_googlenet` is the same network for 32x32 pixels, under the same keys: the first convolution is 3x3 with
//! stride 1, and the two poolings of the stem are left out.
//!
//! | variant | parameters | with auxiliary classifiers |
//! |---|---|---|
//! | `googlenet` | 6,624,904 | 13,004,888 |
//! | `cifar_googlenet` | 5,602,474 | 9,952,958 |

use candle_core::{Device, Module, Result, Tensor, bail};
use zoo_core::model::{Auxiliary, Builder, Choices};
use zoo_core::tape::{self, recorded_all};
use zoo_core::trace::Step;
use zoo_core::weights::Rename;
use zoo_core::{
    BatchNormConfig, Classifier, Concat, Conv2dConfig, Dimensions, Dropout, GlobalPool, Init, Linear, MaxPool2d, Model,
    ModelInfo, ModuleT, Pointwise, PooledMap, Preprocess, Sequential, Stages, VarBuilder, adaptive_avg_pool2d, conv_bn,
    flatten, relu, seq, trace,
};

/// A GoogLeNet.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whether the stem shrinks the image to an eighth, as for ImageNet, or keeps its size, as for 32x32 pixels.
    pub shrinking_stem: bool,
    /// Side of the kernel of each module's third branch: 3 in torchvision's network, 5 in the paper's.
    pub large_kernel: usize,
    /// Whether the two auxiliary classifiers exist. They speak in [`Model::forward_auxiliary`] alone: with a training
    /// loss on the logits only, they stay as they are.
    pub auxiliary: bool,
    /// Whether an image normalised with ImageNet's mean and deviation is taken to the -1..1 that torchvision's
    /// checkpoint wants, as torchvision does when it loads it. The registered network leaves this to its [`Preprocess`].
    pub transform_input: bool,
    /// What makes a vector of the last map.
    pub global_pool: GlobalPool,
    /// Rate of the dropout in front of the classifier.
    pub dropout: f64,
    /// Rate of the dropouts in the auxiliary classifiers.
    pub auxiliary_dropout: f64,
    /// Width of the classifier.
    pub num_classes: usize,
    /// Channels of the input image.
    pub in_chans: usize,
}

impl Config {
    /// For ImageNet, as torchvision has it, without auxiliary classifiers.
    pub fn googlenet() -> Self {
        Self {
            shrinking_stem: true,
            large_kernel: 3,
            auxiliary: false,
            transform_input: false,
            global_pool: GlobalPool::Avg,
            dropout: 0.2,
            auxiliary_dropout: 0.7,
            num_classes: 1000,
            in_chans: 3,
        }
    }

    /// For 32x32 pixels.
    pub fn cifar_googlenet() -> Self {
        Self { shrinking_stem: false, num_classes: 10, ..Self::googlenet() }
    }
}

/// Start of every convolution and linear layer.
const START: Init = Init::TruncatedNormal { std: 0.01 };

/// Convolution without bias, BatchNorm, ReLU, at `conv` and `bn`; a stride of 1 keeps the size.
fn conv(c_in: usize, c_out: usize, kernel: usize, stride: usize, vb: VarBuilder) -> Result<Sequential> {
    let conv = Conv2dConfig::new(kernel).stride(stride).padding(kernel / 2).no_bias().init(START);
    let norm = BatchNormConfig { eps: 1e-3, ..Default::default() };
    conv_bn((c_in, c_out), conv, norm, Some(Pointwise::Relu), (vb.pp("conv"), vb.pp("bn")))
}

/// The widths that 1x1 convolutions take the input to, so that the larger kernels see fewer channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reduction {
    /// In front of the 3x3 convolution.
    pub three: usize,
    /// In front of the 5x5 convolution.
    pub five: usize,
    /// Behind the pooling.
    pub pool: usize,
}

/// An Inception module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InceptionConfig {
    /// Width of the 1x1 convolution.
    pub one: usize,
    /// Width of the 3x3 convolution.
    pub three: usize,
    /// Width of the 5x5 convolution.
    pub five: usize,
    /// `None` is the naive module of figure 2a, where the kernels read the whole input and the pooling hands all of its
    /// channels on; `Some` the module of figure 2b.
    pub reduction: Option<Reduction>,
    /// Side of the third branch's kernel.
    pub large_kernel: usize,
}

impl InceptionConfig {
    /// Figure 2a: 1x1, 3x3 and 5x5 convolutions of these widths and a pooling, side by side.
    pub fn naive(one: usize, three: usize, five: usize) -> Self {
        Self { one, three, five, reduction: None, large_kernel: 5 }
    }

    /// Figure 2b, in the order of the columns of table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
    pub fn reduced(columns: [usize; 6]) -> Self {
        let [one, three_reduce, three, five_reduce, five, pool] = columns;
        let reduction = Reduction { three: three_reduce, five: five_reduce, pool };
        Self { reduction: Some(reduction), ..Self::naive(one, three, five) }
    }
}

/// The Inception module (figure 2): four branches over the same map, joined along the channels. Each convolution is
/// followed by BatchNorm and ReLU. (b, c_in, h, w) -> (b, [`Inception::c_out`], h, w)
///
/// Keys: `branch1`; reduced `branch2.{0,1}`, `branch3.{0,1}`, `branch4.1`, naive `branch2`, `branch3`; in each `conv`
/// and `bn`.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_cnn::googlenet::{Inception, InceptionConfig};
/// use zoo_core::{ModuleT, VarStore};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let module = Inception::new(192, &InceptionConfig::reduced([64, 96, 128, 16, 32, 32]), store.root())?;
/// let xs = Tensor::zeros((1, 192, 14, 14), DType::F32, &Device::Cpu)?;
/// assert_eq!(module.forward_t(&xs, false)?.dims(), &[1, 256, 14, 14]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Inception {
    module: Sequential,
    c_out: usize,
}

impl Inception {
    /// Makes the module at `vb`.
    ///
    /// # Errors
    /// A width of 0, a kernel of even side, which no padding keeps the size under.
    pub fn new(c_in: usize, config: &InceptionConfig, vb: VarBuilder) -> Result<Self> {
        let &InceptionConfig { one, three, five, reduction, large_kernel } = config;
        let reduced = reduction.map_or([1; 3], |r| [r.three, r.five, r.pool]);
        if c_in == 0 || [one, three, five].contains(&0) || reduced.contains(&0) || large_kernel.is_multiple_of(2) {
            bail!("{}: an Inception module needs widths above 0 and an odd kernel, got {config:?}", vb.path())
        }
        // A convolution, with a 1x1 reduction in front if there is one.
        let branch = |name: &str, reduced: Option<usize>, c_out: usize, kernel: usize| -> Result<Sequential> {
            let vb = vb.pp(name);
            let Some(c) = reduced else { return conv(c_in, c_out, kernel, 1, vb) };
            Ok(seq![conv(c_in, c, 1, 1, vb.pp(0))?, conv(c, c_out, kernel, 1, vb.pp(1))?])
        };
        let pool = MaxPool2d { kernel: 3, stride: 1, padding: 1, ceil_mode: true };
        let mut branches = vec![
            branch("branch1", None, one, 1)?,
            branch("branch2", reduction.map(|r| r.three), three, 3)?,
            branch("branch3", reduction.map(|r| r.five), five, large_kernel)?,
        ];
        branches.push(match reduction {
            // torchvision's pooling has the number 0.
            Some(r) => seq![pool, conv(c_in, r.pool, 1, 1, vb.pp("branch4").pp(1))?],
            None => seq![pool],
        });
        let c_out = one + three + five + reduction.map_or(c_in, |r| r.pool);
        Ok(Self { module: seq![Concat::new(branches)].block("Inception", &vb), c_out })
    }

    /// Channels of the output.
    pub fn c_out(&self) -> usize {
        self.c_out
    }
}

impl ModuleT for Inception {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.module.forward_t(xs, train)
    }
}

/// The classifier beside the trunk (section 5): it reads a map from the middle, so that the loss reaches the lower
/// modules by a short way. (b, c, h, w) -> (b, num_classes)
#[derive(Debug)]
struct InceptionAux {
    conv: Sequential,
    fc1: Linear,
    dropout: Dropout,
    fc2: Classifier,
    vb: VarBuilder,
}

impl InceptionAux {
    fn new(c_in: usize, config: &Config, vb: VarBuilder) -> Result<Self> {
        let bias = |c_in| Some(Init::torch_bias(c_in));
        Ok(Self {
            conv: conv(c_in, 128, 1, 1, vb.pp("conv"))?,
            fc1: Linear::with_bias(2048, 1024, START, bias(2048), vb.pp("fc1"))?,
            dropout: Dropout::new(config.auxiliary_dropout, &vb)?,
            fc2: Classifier::with(1024, config.num_classes, START, bias(1024), vb.pp("fc2"))?,
            vb,
        })
    }
}

impl ModuleT for InceptionAux {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        trace::block("InceptionAux", self.vb.path(), || {
            let cells = adaptive_avg_pool2d(xs, (4, 4))?; // (b, c, 4, 4)
            let ys = flatten(&self.conv.forward_t(&cells, train)?)?; // (b, 128 * 4 * 4)
            let ys = relu(&self.fc1.forward_t(&ys, train)?)?;
            self.fc2.forward_t(&self.dropout.forward_t(&ys, train)?, train)
        })
    }
}

/// Each auxiliary classifier's loss counts this much (section 5).
const AUXILIARY_LOSS_WEIGHT: f64 = 0.3;

/// The modules of table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
const TABLE: [(&str, [usize; 6]); 9] = [
    ("3a", [64, 96, 128, 16, 32, 32]),
    ("3b", [128, 128, 192, 32, 96, 64]),
    ("4a", [192, 96, 208, 16, 48, 64]),
    ("4b", [160, 112, 224, 24, 64, 64]),
    ("4c", [128, 128, 256, 24, 64, 64]),
    ("4d", [112, 144, 288, 32, 64, 64]),
    ("4e", [256, 160, 320, 32, 128, 128]),
    ("5a", [256, 160, 320, 32, 128, 128]),
    ("5b", [384, 192, 384, 48, 128, 128]),
];

/// Max pooling whose last window may reach over the edge, so that an odd image is halved upwards.
const fn pool(kernel: usize) -> MaxPool2d {
    MaxPool2d { kernel, stride: 2, padding: 0, ceil_mode: true }
}

/// The network: (b, in_chans, h, w) -> (b, num_classes), for images of 15 pixels and more.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_cnn::googlenet::{Config, GoogLeNet};
/// use zoo_core::{Model, VarStore};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let config = Config { auxiliary: true, num_classes: 10, ..Config::googlenet() };
/// let net = GoogLeNet::new(&config, store.root())?;
/// let images = Tensor::zeros((2, 3, 64, 64), DType::F32, &Device::Cpu)?;
/// let (logits, auxiliary) = net.forward_auxiliary(&images, true)?;
/// assert_eq!((logits.dims(), auxiliary[1].logits.dims()), (&[2, 10][..], &[2, 10][..]));
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct GoogLeNet {
    transform_input: bool,
    stem: Stages,
    inception3: Stages,
    inception4: Vec<Inception>,
    inception5: Stages,
    /// Each with the index of the module in `inception4` that it reads.
    auxiliary: Vec<(usize, InceptionAux)>,
    pool: PooledMap,
    fc: Classifier,
}

impl GoogLeNet {
    /// Makes the network at `vb`.
    ///
    /// # Errors
    /// A kernel of even side, a dropout rate outside 0..1, `transform_input` on images that are not of three channels.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        if config.transform_input && config.in_chans != 3 {
            bail!("googlenet: transform_input wants images of 3 channels, not {}: turn it off", config.in_chans)
        }
        let transform_input = config.transform_input;
        let (kernel, stride) = if config.shrinking_stem { (7, 2) } else { (3, 1) };
        let conv1 = conv(config.in_chans, 64, kernel, stride, vb.pp("conv1"))?;
        let (conv2, conv3) = (conv(64, 64, 1, 1, vb.pp("conv2"))?, conv(64, 192, 3, 1, vb.pp("conv3"))?);
        let (mut stem, mut inception3, mut inception5) = Default::default();
        let first = match config.shrinking_stem {
            true => seq![conv1, pool(3), conv2, conv3, pool(3)], // (b, 192, 28, 28)
            false => seq![conv1, conv2, conv3],
        };
        Stages::push(&mut stem, "stem", first);

        let mut c_in = 192;
        let [mut modules3, mut inception4, mut modules5] = [Vec::new(), Vec::new(), Vec::new()];
        for (name, columns) in TABLE {
            let module = InceptionConfig { large_kernel: config.large_kernel, ..InceptionConfig::reduced(columns) };
            let module = Inception::new(c_in, &module, vb.pp(format!("inception{name}")))?;
            c_in = module.c_out();
            match &name[..1] {
                "3" => modules3.push(module),
                "4" => inception4.push(module),
                _ => modules5.push(module),
            }
        }
        Stages::push(&mut inception3, "inception3", modules3.into_iter().collect());
        Stages::push(&mut inception5, "inception5", modules5.into_iter().collect());
        let mut auxiliary = Vec::new();
        if config.auxiliary {
            for (name, after) in [("aux1", 0), ("aux2", 3)] {
                auxiliary.push((after, InceptionAux::new(inception4[after].c_out(), config, vb.pp(name))?));
            }
        }
        let fc = Classifier::with(c_in, config.num_classes, START, Some(Init::torch_bias(c_in)), vb.pp("fc"))?;
        let pool = PooledMap::new(config.global_pool, config.dropout, &vb)?;
        Ok(Self { transform_input, stem, inception3, inception4, inception5, auxiliary, pool, fc })
    }

    /// The last map, and the auxiliary logits if they are wanted.
    fn run(&self, xs: &Tensor, train: bool, auxiliary: bool) -> Result<(Tensor, Vec<Auxiliary>)> {
        let mut aux_logits = Vec::new();
        let xs = if self.transform_input { to_unit_range(xs)? } else { xs.clone() };
        let xs = self.stem.forward_t(&xs, train)?;
        let xs = self.inception3.forward_t(&xs, train)?; // (b, 480, 28, 28)
        let mut xs = pool(3).forward(&xs)?; // (b, 480, 14, 14)
        for (i, module) in self.inception4.iter().enumerate() {
            xs = module.forward_t(&xs, train)?;
            for (_, head) in self.auxiliary.iter().filter(|(after, _)| auxiliary && *after == i) {
                aux_logits.push(Auxiliary { logits: head.forward_t(&xs, train)?, loss_weight: AUXILIARY_LOSS_WEIGHT });
            }
        }
        let xs = pool(2).forward(&trace::stage("inception4", xs))?; // (b, 832, 7, 7)
        Ok((self.inception5.forward_t(&xs, train)?, aux_logits)) // (b, 1024, 7, 7)
    }
}

/// From pixels normalised with ImageNet's mean and deviation to pixels from -1 to 1.
fn to_unit_range(xs: &Tensor) -> Result<Tensor> {
    let Preprocess { mean, std, .. } = Preprocess::IMAGENET;
    let channels = |values: [f64; 3]| {
        Tensor::new(&values, &Device::Cpu)?.reshape((1, 3, 1, 1))?.to_dtype(xs.dtype())?.to_device(xs.device())
    };
    let (scale, shift) = (std.map(|s| s / 0.5), mean.map(|m| (m - 0.5) / 0.5));
    let (factors, summands) = (channels(scale)?, channels(shift)?);
    trace::op(Step::Normalize { scale, shift }, &[xs], || {
        tape::foreign_op(&[xs], |xs| xs[0].broadcast_mul(&factors)?.broadcast_add(&summands))
    })
}

impl Model for GoogLeNet {
    /// (b, in_chans, 224, 224) -> (b, 1024, 7, 7)
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        Ok(self.run(xs, train, false)?.0)
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

    /// In training with [`Config::auxiliary`], the logits of `aux1` and `aux2` too, each with a loss weight of 0.3.
    fn forward_auxiliary(&self, xs: &Tensor, train: bool) -> Result<(Tensor, Vec<Auxiliary>)> {
        let mut weights = Vec::new();
        let logits = recorded_all(&[xs], train, |inputs| {
            let (features, auxiliary) = self.run(&inputs[0], train, train)?;
            weights = auxiliary.iter().map(|head| head.loss_weight).collect();
            let main = self.forward_head(&features, train)?;
            Ok([main].into_iter().chain(auxiliary.into_iter().map(|head| head.logits)).collect())
        })?;
        let mut logits = logits.into_iter();
        let Some(main) = logits.next() else { bail!("googlenet: no logits") };
        let auxiliary = logits.zip(weights).map(|(logits, loss_weight)| Auxiliary { logits, loss_weight });
        Ok((main, auxiliary.collect()))
    }

    /// Replaces the auxiliary classifiers' last layers too.
    fn reset_classifier(&mut self, num_classes: usize) -> Result<()> {
        self.fc.reset(num_classes)?;
        self.auxiliary.iter_mut().try_for_each(|(_, head)| head.fc2.reset(num_classes))
    }
}

const NO_HEADS: &str = "the auxiliary classifiers, which the registered network does without";

/// What other files hold and the registered networks do not. A network with auxiliary classifiers needs no rename.
pub const RENAMES: &[Rename] =
    &[Rename { from: "aux1.**", to: "", reason: NO_HEADS }, Rename { from: "aux2.**", to: "", reason: NO_HEADS }];

const fn info(name: &'static str, parameters: usize, builder: Builder) -> ModelInfo {
    ModelInfo {
        family: "cnn",
        keys: "torchvision",
        paper: "Szegedy et al. 2014, arXiv:1409.4842",
        choices: Choices::OF_MAPS,
        renames: RENAMES,
        ..ModelInfo::new(name, parameters, builder)
    }
}

/// The registered variants.
pub const MODELS: &[ModelInfo] = &[
    ModelInfo {
        // Pixels from -1 to 1: what torchvision's checkpoint sees once its `transform_input` has run.
        preprocess: Preprocess { mean: [0.5; 3], std: [0.5; 3], ..Preprocess::IMAGENET },
        weights: Some("https://download.pytorch.org/models/googlenet-1378be20.pth"),
        ..info("googlenet", 6_624_904, |dims, vb| build(Config::googlenet(), dims, vb))
    },
    info("cifar_googlenet", 5_602_474, |dims, vb| build(Config::cifar_googlenet(), dims, vb)).cifar(),
];

fn build(config: Config, dims: &Dimensions, vb: VarBuilder) -> Result<Box<dyn Model>> {
    let config = Config {
        num_classes: dims.num_classes,
        in_chans: dims.in_chans,
        global_pool: dims.global_pool.unwrap_or(config.global_pool),
        dropout: dims.drop_rate.unwrap_or(config.dropout),
        ..config
    };
    Ok(Box::new(GoogLeNet::new(&config, vb)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;
    use zoo_core::VarStore;

    fn auxiliary(config: Config) -> (VarStore, GoogLeNet) {
        let store = VarStore::shapes_only();
        let net = GoogLeNet::new(&Config { auxiliary: true, ..config }, store.root()).unwrap();
        (store, net)
    }

    #[test]
    fn auxiliary_classifiers_have_the_published_size() {
        assert_eq!(auxiliary(Config::googlenet()).0.parameter_count(), 13_004_888);
        assert_eq!(auxiliary(Config::cifar_googlenet()).0.parameter_count(), 9_952_958);
    }

    #[test]
    fn auxiliary_classifiers_speak_in_training_only_and_are_replaced_with_the_head() {
        let (_, mut net) = auxiliary(Config::googlenet());
        net.reset_classifier(7).unwrap();
        let mut heads = Vec::new();
        trace::Graph::of(&[&[2, 3, 64, 64]], |inputs| {
            assert!(net.forward_auxiliary(&inputs[0], false)?.1.is_empty());
            let (logits, auxiliary) = net.forward_auxiliary(&inputs[0], true)?;
            heads = auxiliary;
            Ok(logits)
        })
        .unwrap();
        assert_eq!(heads.len(), 2);
        assert!(heads.iter().all(|head| head.logits.dims() == [2, 7] && head.loss_weight == 0.3));
    }

    #[test]
    fn transform_input_is_the_other_normalisation() {
        // A pixel of 0.2 in every channel.
        let Preprocess { mean, std, .. } = Preprocess::IMAGENET;
        let normalised: Vec<f64> = (0..3).map(|c| (0.2 - mean[c]) / std[c]).collect();
        let xs = Tensor::from_vec(normalised, (1, 3, 1, 1), &Device::Cpu).unwrap();
        let ys = to_unit_range(&xs).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert!(ys.iter().all(|y| (y - (0.2 - 0.5) / 0.5).abs() < 1e-12), "{ys:?}");

        let config = Config { transform_input: true, in_chans: 1, ..Config::googlenet() };
        let error = GoogLeNet::new(&config, VarStore::shapes_only().root()).unwrap_err().to_string();
        assert!(error.contains("3 channels") && error.contains("not 1"), "{error}");
    }

    #[test]
    fn the_naive_module_hands_the_pooled_input_on() {
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        let module = Inception::new(4, &InceptionConfig::naive(2, 3, 5), store.root()).unwrap();
        assert_eq!((module.c_out(), store.parameter_count()), (14, 4 * (2 + 9 * 3 + 25 * 5) + 2 * 10));
        let xs = Tensor::arange(0f32, 36., &Device::Cpu).unwrap().reshape((1, 4, 3, 3)).unwrap();
        let ys = module.forward_t(&xs, false).unwrap();
        let pooled = ys.narrow(1, 10, 4).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(pooled[..9], [4., 5., 5., 7., 8., 8., 7., 8., 8.]);
    }

    #[test]
    fn a_module_that_cannot_be_is_an_error() {
        let vb = || VarStore::shapes_only().root().pp("inception3a");
        let even = InceptionConfig { large_kernel: 4, ..InceptionConfig::naive(1, 1, 1) };
        let error = Inception::new(8, &even, vb()).unwrap_err().to_string();
        assert!(error.contains("inception3a") && error.contains("large_kernel: 4"), "{error}");
        assert!(Inception::new(8, &InceptionConfig::reduced([1, 1, 1, 1, 1, 0]), vb()).is_err());
    }
}

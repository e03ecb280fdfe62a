//! The residual CNN of the template suite: a list of widths walked by pairs, of residual blocks (He et al. 2015,
//! arXiv:1512.03385) and of poolings that pad the channels with zeros.
//!
//! The stem is a 7x7 convolution with bias (stride 2, padding 3) and max pooling 3x3 (stride 2, padding 1), with
//! neither norm nor activation. Then each entry of the list stands against the next: where they are equal, and behind
//! the last entry, a residual block of that width; where they are not, max pooling 3x3 (stride 2, no padding), and zero
//! channels behind the old ones up to the next width. All of the last map goes into one linear layer.
//!
//! The small block is two 3x3 convolutions, the big one 1x1 to a quarter of the channels, 3x3, and 1x1 back; every
//! convolution has a bias and BatchNorm, every one but the last ReLU, and ReLU follows the addition.
//!
//! Checkpoint keys: `stem`, `blocks.{i}.{conv1,bn1,conv2,bn2}` for the i-th block (pools do not count), with `conv3
//! bn3` in big ones, `classifier`.
//!
//! | variant | list | block | parameters |
//! |---|---|---|---|
//! | `template_residual_cnn` | 32 32 64 64 64 64 128 128 128 | small | 1,134,026 |

use crate::resnet::{BlockConfig, Kind, block};
use candle_core::{Result, Tensor, bail};
use zoo_core::{
    Classifier, Conv2d, Conv2dConfig, Dimensions, Init, MaxPool2d, Model, ModelInfo, ModuleT, PadChannels, Sequential,
    Stages, VarBuilder, flatten, seq,
};

/// A residual CNN.
#[derive(Debug, Clone)]
pub struct Config {
    /// The list.
    pub widths: Vec<usize>,
    /// The blocks: [`Kind::Basic`] for small ones, [`Kind::Bottleneck`] for big ones.
    pub block: Kind,
    /// Width of the classifier.
    pub num_classes: usize,
    /// Channels of the input image.
    pub in_chans: usize,
    /// Side of the square input image: the linear layer reads every pixel of the last map.
    pub image_size: usize,
}

impl Config {
    /// The list of the template suite with small blocks, for 32x32 images.
    pub fn template() -> Self {
        let widths = vec![32, 32, 64, 64, 64, 64, 128, 128, 128];
        Self { widths, block: Kind::Basic, num_classes: 10, in_chans: 3, image_size: 32 }
    }
}

const STEM_POOL: MaxPool2d = MaxPool2d { padding: 1, ..MaxPool2d::new(3, 2) };
const POOL: MaxPool2d = MaxPool2d::new(3, 2);

/// The network: (b, in_chans, image_size, image_size) -> (b, num_classes).
///
/// ```
/// use zoo_core::VarStore;
/// use zoo_resnet::template_residual_cnn::{Config, TemplateResidualCnn};
/// let store = VarStore::shapes_only();
/// TemplateResidualCnn::new(&Config::template(), store.root())?;
/// assert_eq!(store.parameter_count(), 1_134_026);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct TemplateResidualCnn {
    features: Stages,
    classifier: Classifier,
}

impl TemplateResidualCnn {
    /// Makes the network at `vb`.
    ///
    /// # Errors
    /// An empty list or one whose widths shrink, more pools than the image can take, a big block whose width is no
    /// multiple of 4.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let Some(&first) = config.widths.first() else { bail!("template_residual_cnn: the list of widths is empty") };
        let stem = Conv2d::new(config.in_chans, first, Conv2dConfig::new(7).stride(2).padding(3), vb.pp("stem"))?;
        let (mut stage, mut features) = (seq![stem, STEM_POOL], Stages::default());
        let mut stages = 1;
        // The side of the map behind the stem: each of its two layers halves, rounding up.
        let (mut side, mut i) = (config.image_size.div_ceil(2).div_ceil(2), 0);
        for (k, &width) in config.widths.iter().enumerate() {
            let next = config.widths.get(k + 1).copied().unwrap_or(width);
            if next == width {
                stage = seq![stage, template_block(config.block, width, vb.pp("blocks").pp(i))?];
                i += 1;
                continue;
            }
            if next < width {
                bail!(
                    "template_residual_cnn: zeros only widen, the list cannot go from {width} to {next}: {:?}",
                    config.widths
                )
            }
            if side < POOL.kernel {
                let image = config.image_size;
                bail!("template_residual_cnn: nothing is left to pool of a {image}x{image} image: {:?}", config.widths)
            }
            side = (side - POOL.kernel) / POOL.stride + 1;
            // A stage begins with the pooling.
            let pool = seq![POOL, PadChannels { below: 0, above: next - width }];
            features.push(format!("stage{stages}"), std::mem::replace(&mut stage, pool));
            stages += 1;
        }
        features.push(format!("stage{stages}"), stage);
        let width = config.widths[config.widths.len() - 1];
        let classifier = Classifier::new(width * side * side, config.num_classes, vb.pp("classifier"))?;
        Ok(Self { features, classifier })
    }
}

fn template_block(kind: Kind, width: usize, vb: VarBuilder) -> Result<Sequential> {
    if kind == Kind::Bottleneck && !width.is_multiple_of(4) {
        bail!("{}: a big block works on a quarter of its channels, {width} is no multiple of 4", vb.path())
    }
    let config = BlockConfig::bottleneck(width, width / 4, width);
    block(&BlockConfig { kind, bias: true, init: Init::TORCH_WEIGHT, ..config }, vb)
}

impl Model for TemplateResidualCnn {
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
}

fn build(dims: &Dimensions, vb: VarBuilder) -> Result<Box<dyn Model>> {
    let Dimensions { num_classes, in_chans, image_size, .. } = *dims;
    Ok(Box::new(TemplateResidualCnn::new(&Config { num_classes, in_chans, image_size, ..Config::template() }, vb)?))
}

/// The registered variants.
pub const MODELS: &[ModelInfo] = &[ModelInfo {
    family: "resnet",
    paper: "template suite",
    ..ModelInfo::new("template_residual_cnn", 1_134_026, build).cifar()
}];

#[cfg(test)]
mod tests {
    use super::*;
    use zoo_core::VarStore;

    #[test]
    fn lists_that_make_no_network_are_errors() {
        let error =
            |config: Config| TemplateResidualCnn::new(&config, VarStore::shapes_only().root()).unwrap_err().to_string();
        let template = Config::template;
        assert!(error(Config { widths: vec![], ..template() }).contains("empty"));
        assert!(error(Config { widths: vec![32, 16], ..template() }).contains("from 32 to 16"));
        assert!(error(Config { image_size: 16, ..template() }).contains("16x16"));
        assert!(error(Config { widths: vec![6], block: Kind::Bottleneck, ..template() }).contains("multiple of 4"));
    }
}

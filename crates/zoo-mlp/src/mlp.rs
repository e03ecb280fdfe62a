//! The multilayer perceptron (D. Rumelhart, G. Hinton, R. Williams 1986, "Learning representations by back-propagating
//! errors", Nature 323): linear layers with an activation in between, on the flattened image.
//!
//! Checkpoint keys: `layers.{i}.{weight,bias}` and, with BatchNorm, `norms.{i}`.
//!
//! | variant | widths | parameters |
//! |---|---|---|
//! | `mlp` | 3072 512 256 10 | 1,707,274 |

use candle_core::{Module, Result, Tensor};
use zoo_core::{
    BatchNorm, BatchNormConfig, Classifier, Dimensions, Init, Linear, Model, ModelInfo, ModuleT, Pointwise, Sequential,
    VarBuilder, flatten, seq, softmax,
};

/// What follows the last layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Last {
    /// Nothing: logits, which the loss wants.
    Logits,
    /// An element-wise function.
    Pointwise(Pointwise),
    /// Probabilities that sum to 1.
    Softmax,
}

/// A multilayer perceptron.
#[derive(Debug, Clone)]
pub struct Config {
    /// Inputs, hidden widths, outputs.
    pub widths: Vec<usize>,
    /// What follows every layer but the last.
    pub middle: Pointwise,
    /// What follows the last layer.
    pub last: Last,
    /// Whether a BatchNorm stands between a hidden layer and its activation.
    pub batch_norm: Option<BatchNormConfig>,
    /// Whether the linear layers have a bias.
    pub bias: bool,
}

impl Config {
    /// Layers of `widths` with bias and ReLU in between, no BatchNorm.
    pub fn new(widths: &[usize]) -> Self {
        Self { widths: widths.to_vec(), middle: Pointwise::Relu, last: Last::Logits, batch_norm: None, bias: true }
    }

    /// The perceptron of the template suite, `template_mlp`: linear layers without bias, BatchNorm without weight and
    /// bias, ReLU in between and a softmax at the end.
    ///
    /// The suite's choices are fields: no BatchNorm (`batch_norm: None`), a leaky ReLU (`middle:
    /// Pointwise::LeakyRelu(0.01)`), a sigmoid at the end (`last: Last::Pointwise(Pointwise::Sigmoid)`). To train on
    /// cross-entropy take `last: Last::Logits`: the loss has its own softmax.
    ///
    /// ```
    /// use zoo_core::VarStore;
    /// use zoo_mlp::mlp::{Config, Mlp};
    /// let store = VarStore::shapes_only();
    /// Mlp::new(&Config::template(&[3072, 512, 10]), store.root())?;
    /// assert_eq!(store.parameter_count(), 3072 * 512 + 512 * 10);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn template(widths: &[usize]) -> Self {
        Self {
            batch_norm: Some(BatchNormConfig { affine: false, ..BatchNormConfig::default() }),
            bias: false,
            last: Last::Softmax,
            ..Self::new(widths)
        }
    }
}

/// The network: (b, …) with as many elements a sample as the first width -> (b, last width).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{Model, VarStore};
/// use zoo_mlp::mlp::{Config, Mlp};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let net = Mlp::new(&Config::new(&[784, 100, 10]), store.root())?;
/// let digits = Tensor::zeros((5, 1, 28, 28), DType::F32, &Device::Cpu)?;
/// assert_eq!(net.forward_t(&digits, false)?.dims(), &[5, 10]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Mlp {
    hidden: Sequential,
    classifier: Classifier,
    last: Last,
}

impl Mlp {
    /// Makes the network at `vb`.
    ///
    /// # Errors
    /// Fewer than two widths, or a width of 0.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        if config.widths.len() < 2 || config.widths.contains(&0) {
            candle_core::bail!("mlp: wants at least two widths, none of them 0, got {:?}", config.widths)
        }
        let (last, widths) = (config.widths[config.widths.len() - 1], &config.widths[..config.widths.len() - 1]);
        let layer = |(i, w): (usize, &[usize])| {
            Linear::with(w[0], w[1], config.bias, Init::TORCH_WEIGHT, vb.pp("layers").pp(i))
        };
        let hidden = widths.windows(2).enumerate().map(layer).collect::<Result<Vec<_>>>()?;
        let (width, place) = (widths[widths.len() - 1], vb.pp("layers").pp(hidden.len()));
        let bias = config.bias.then(|| Init::torch_bias(width));
        let classifier = Classifier::with(width, last, Init::TORCH_WEIGHT, bias, place)?;
        let mut layers = seq![];
        for (i, linear) in hidden.into_iter().enumerate() {
            layers = seq![layers, linear];
            if let Some(norm) = config.batch_norm {
                layers = seq![layers, BatchNorm::with(widths[i + 1], norm, vb.pp("norms").pp(i))?];
            }
            layers = seq![layers, config.middle];
        }
        Ok(Self { hidden: layers, classifier, last: config.last })
    }
}

impl Model for Mlp {
    /// (b, …) -> (b, last hidden width)
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.hidden.forward_t(&flatten(xs)?, train)
    }

    fn pre_logits(&self, features: &Tensor, _: bool) -> Result<Tensor> {
        Ok(features.clone())
    }

    fn classifier(&self) -> &Classifier {
        &self.classifier
    }

    fn classifier_mut(&mut self) -> &mut Classifier {
        &mut self.classifier
    }

    fn forward_head(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        let ys = self.classifier.forward_t(features, train)?;
        match self.last {
            Last::Logits => Ok(ys),
            Last::Pointwise(function) => function.forward(&ys),
            Last::Softmax => softmax(&ys),
        }
    }
}

fn build(dims: &Dimensions, vb: VarBuilder) -> Result<Box<dyn Model>> {
    let inputs = dims.in_chans * dims.image_size * dims.image_size;
    Ok(Box::new(Mlp::new(&Config::new(&[inputs, 512, 256, dims.num_classes]), vb)?))
}

/// The registered variants.
pub const MODELS: &[ModelInfo] = &[ModelInfo {
    family: "mlp",
    paper: "Rumelhart, Hinton and Williams 1986",
    ..ModelInfo::new("mlp", 1_707_274, build).cifar()
}];

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use zoo_core::VarStore;

    #[test]
    fn norms_stand_between_hidden_layers_only() {
        let store = VarStore::shapes_only();
        let config = Config { batch_norm: Some(BatchNormConfig::default()), bias: false, ..Config::new(&[8, 5, 4, 3]) };
        Mlp::new(&config, store.root()).unwrap();
        let keys: Vec<String> = store.slots().into_iter().map(|slot| slot.key).collect();
        assert!(keys.contains(&"norms.1.running_var".to_string()) && !keys.iter().any(|k| k.starts_with("norms.2")));
        assert!(!keys.contains(&"layers.0.bias".to_string()), "{keys:?}");
    }

    #[test]
    fn the_template_ends_in_probabilities() {
        let xs = Tensor::rand(-1f32, 1., (6, 8), &Device::Cpu).unwrap();
        let run = |config: Config, train| {
            let net = Mlp::new(&config, VarStore::new(0, DType::F32, &Device::Cpu).root()).unwrap();
            net.forward_t(&xs, train).unwrap().to_vec2::<f32>().unwrap()
        };
        let template = Config::template(&[8, 5, 3]);
        let rows = run(template.clone(), true);
        assert!(rows.iter().all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-6), "{rows:?}");
        let sigmoid = Config { last: Last::Pointwise(Pointwise::Sigmoid), ..template.clone() };
        assert!(run(sigmoid, true).concat().iter().all(|y| (0.0..=1.0).contains(y)));
        let leaky = Config { middle: Pointwise::LeakyRelu(0.01), ..template.clone() };
        assert_ne!(run(leaky, true), rows);
        assert_ne!(run(Config { batch_norm: None, ..template }, true), rows);
    }

    #[test]
    fn one_width_is_no_network() {
        let error = Mlp::new(&Config::new(&[8]), VarStore::shapes_only().root()).unwrap_err().to_string();
        assert!(error.contains("[8]"), "{error}");
    }
}

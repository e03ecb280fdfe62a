//! Normalisation layers.

use crate::init::{Init, InitRule};
use crate::ops::{BatchStats, Norm, Pointwise, batch_norm_act, batch_stats, layer_norm};
use crate::trace::{self, Step};
use crate::vars::{BatchNormSettings, Training, VarBuilder, weight_for};
use candle_core::{Result, Shape, Tensor, Var, bail};
use candle_nn::ModuleT;

/// How a [`BatchNorm`] is made; the defaults are `torch.nn.BatchNorm2d`'s.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchNormConfig {
    /// Added to the variance before its root.
    pub eps: f64,
    /// Weight of the new batch in the running statistics, in PyTorch's sense (Keras calls 1 - this its momentum).
    pub momentum: f64,
    /// Whether a weight and a bias follow the normalisation.
    pub affine: bool,
    /// What the weight starts at; 0 for the last norm of a residual branch makes the block start as the identity.
    pub weight_init: Init,
}

impl Default for BatchNormConfig {
    fn default() -> Self {
        Self { eps: 1e-5, momentum: 0.1, affine: true, weight_init: Init::ONES }
    }
}

/// Batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167) over (b, c) or (b, c, h, w), channel by channel:
/// y = (x - μ) / √(σ² + eps) · weight + bias.
///
/// In training μ and σ² are the batch's, and the running statistics move: r ← (1 - momentum) · r + momentum · new, with
/// the **unbiased** variance, as in PyTorch. In evaluation they are the running ones. The store may change all of that:
/// see [`BatchNormSettings`].
///
/// Keys: `weight`, `bias` (if affine), `running_mean`, `running_var`, each (c).
#[derive(Debug, Clone)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_var: Var,
    /// Mean 0 and variance 1, which stand for all statistics where nothing is normalised.
    constants: Option<(Tensor, Tensor)>,
    config: BatchNormConfig,
    /// Its statistics do not move.
    frozen: bool,
    training: Training,
    path: String,
}

impl BatchNorm {
    /// With the default configuration.
    ///
    /// # Errors
    /// A key that is taken already.
    pub fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        Self::with(channels, BatchNormConfig::default(), vb)
    }

    /// With `config`, and what the store's [`BatchNormSettings`] put over it.
    ///
    /// # Errors
    /// A key that is taken already.
    pub fn with(channels: usize, config: BatchNormConfig, vb: VarBuilder) -> Result<Self> {
        let BatchNormSettings { momentum, eps, normalize } = vb.batch_norm();
        let mut config = config;
        config.momentum = momentum.unwrap_or(config.momentum);
        config.eps = eps.unwrap_or(config.eps);
        let mut constants = None;
        if !normalize {
            let zeros = Tensor::zeros(channels, vb.dtype(), vb.device())?;
            constants = Some((zeros.clone(), zeros.ones_like()?));
            config.eps = 0.0;
        }
        if vb.init_rule() == InitRule::Torch {
            config.weight_init = Init::ONES;
        }
        let (weight, bias) = if config.affine {
            (vb.param(channels, "weight", config.weight_init)?, vb.param(channels, "bias", Init::ZEROS)?)
        } else {
            let ones = Tensor::ones(channels, vb.dtype(), vb.device())?;
            (ones.clone(), ones.zeros_like()?)
        };
        let running_mean = vb.buffer(channels, "running_mean", Init::ZEROS)?;
        let running_var = vb.buffer(channels, "running_var", Init::ONES)?;
        let frozen = vb.is_frozen("running_mean");
        let training =
            vb.training_of(if config.affine { &["weight", "bias", "running_mean"] } else { &["running_mean"] });
        let path = vb.path().to_string();
        Ok(Self { weight, bias, running_mean, running_var, constants, config, frozen, training, path })
    }

    fn update(&self, running: &Var, batch: &Tensor) -> Result<()> {
        let momentum = self.config.momentum;
        let batch = batch.to_dtype(running.dtype())?;
        running.set(&((running.as_detached_tensor() * (1.0 - momentum))? + (batch * momentum)?)?)
    }
}

impl BatchNorm {
    /// What of it is trained; its statistics count as a part.
    pub(crate) fn training(&self) -> Training {
        self.training
    }

    /// Whether it computes with statistics at all.
    pub(crate) fn normalizes(&self) -> bool {
        self.constants.is_none()
    }

    /// The running statistics or what stands for them, and the weights as they are.
    pub(crate) fn running(&self) -> Norm<'_> {
        let (mean, var) = match &self.constants {
            Some((mean, var)) => (mean, var),
            None => (self.running_mean.as_tensor(), self.running_var.as_tensor()),
        };
        Norm { weight: &self.weight, bias: &self.bias, mean, var, eps: self.config.eps, through_stats: false }
    }

    /// Moves the running statistics towards those of a batch of shape `dims`: called when its output has been computed,
    /// so that a call that is refused leaves them where they were.
    pub(crate) fn update_running_stats(&self, stats: &BatchStats, dims: &[usize]) -> Result<()> {
        if stats.count < 2 {
            let path = if self.path.is_empty() { "batch_norm" } else { &self.path };
            bail!(
                "{path}: training needs more than one value per channel, got input {dims:?}; use a larger batch, or drop the \
                 last one of the epoch if it holds a single image"
            )
        }
        self.update(&self.running_mean, &stats.mean)?;
        let unbiased = stats.count as f64 / (stats.count - 1) as f64;
        self.update(&self.running_var, &(&stats.var * unbiased)?)
    }

    /// Weight and bias.
    pub(crate) fn weights(&self, train: bool) -> (Tensor, Tensor) {
        (weight_for(&self.weight, train), weight_for(&self.bias, train))
    }

    /// The normalisation by a batch's own statistics.
    pub(crate) fn of_batch<'a>(&self, weight: &'a Tensor, bias: &'a Tensor, stats: &'a BatchStats) -> Norm<'a> {
        Norm { weight, bias, mean: &stats.mean, var: &stats.var, eps: self.config.eps, through_stats: true }
    }

    /// The normalisation, then an activation.
    pub(crate) fn normalize(&self, xs: &Tensor, activation: Option<Pointwise>, train: bool) -> Result<Tensor> {
        let (weight, bias) = self.weights(train);
        if !train || self.frozen || !self.normalizes() {
            return batch_norm_act(xs, &Norm { weight: &weight, bias: &bias, ..self.running() }, activation);
        }
        let stats = batch_stats(xs)?;
        let ys = batch_norm_act(xs, &self.of_batch(&weight, &bias, &stats), activation)?;
        self.update_running_stats(&stats, xs.dims())?;
        Ok(ys)
    }
}

impl ModuleT for BatchNorm {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let weights = self.config.affine.then_some([Some(&self.weight), Some(&self.bias)]);
        let weights = weights.as_ref().map_or(&[][..], |weights| weights);
        let BatchNormConfig { eps, affine, .. } = self.config;
        let step = Step::BatchNorm { eps, affine, normalizes: self.normalizes() };
        trace::layer(step, &self.path, weights, &[xs], || self.normalize(xs, None, train))
    }
}

/// Layer normalisation (Ba, Kiros and Hinton 2016, arXiv:1607.06450) over the last dimensions, sample by sample and
/// place by place: y = (x - μ) / √(σ² + eps) · weight + bias, with the mean and the biased variance of those
/// dimensions.
///
/// Keys: `weight`, `bias`, of the normalised shape.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{LayerNorm, ModuleT, VarStore};
/// let norm = LayerNorm::new(2, 1e-5, VarStore::new(0, DType::F32, &Device::Cpu).root())?;
/// let ys = norm.forward_t(&Tensor::new(&[[1f32, 3.]], &Device::Cpu)?, false)?.to_vec2::<f32>()?;
/// assert!((ys[0][0] + 1.0).abs() < 1e-4 && (ys[0][1] - 1.0).abs() < 1e-4);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
    training: Training,
    path: String,
}

impl LayerNorm {
    /// Over the last dimensions, which have the shape `normalized`: a number for the last one, a tuple for several.
    ///
    /// # Errors
    /// A key that is taken already.
    pub fn new(normalized: impl Into<Shape>, eps: f64, vb: VarBuilder) -> Result<Self> {
        let shape = normalized.into();
        let weight = vb.param(shape.clone(), "weight", Init::ONES)?;
        let (bias, training) = (vb.param(shape, "bias", Init::ZEROS)?, vb.training_of(&["weight", "bias"]));
        Ok(Self { weight, bias, eps, training, path: vb.path().to_string() })
    }

    /// What of it is trained.
    pub(crate) fn training(&self) -> Training {
        self.training
    }

    /// Weight, bias and ε.
    pub(crate) fn parts(&self, train: bool) -> ((Tensor, Tensor), f64) {
        ((weight_for(&self.weight, train), weight_for(&self.bias, train)), self.eps)
    }
}

impl ModuleT for LayerNorm {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let step = Step::LayerNorm { eps: self.eps, dims: self.weight.rank() };
        trace::layer(step, &self.path, &[Some(&self.weight), Some(&self.bias)], &[xs], || {
            layer_norm(xs, &weight_for(&self.weight, train), &weight_for(&self.bias, train), self.eps)
        })
    }
}

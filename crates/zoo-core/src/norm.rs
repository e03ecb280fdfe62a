//! Normalisation layers.

use crate::activation::activate;
use crate::init::Init;
use crate::ops::{
    BatchStats, Clamp, Conv2dParams, Norm, Pointwise, Scale, batch_norm_act, batch_stats, conv_bn_train, layer_norm,
};
use crate::trace;
use crate::vars::{VarBuilder, weight_for};
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
/// the **unbiased** variance, as in PyTorch. In evaluation they are the running ones.
///
/// Keys: `weight`, `bias` (if affine), `running_mean`, `running_var`, each (c).
#[derive(Debug, Clone)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_var: Var,
    config: BatchNormConfig,
    place: String,
}

impl BatchNorm {
    /// With the default configuration.
    ///
    /// # Errors
    /// A key that is taken already.
    pub fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        Self::with(channels, BatchNormConfig::default(), vb)
    }

    /// With `config`.
    ///
    /// # Errors
    /// A key that is taken already.
    pub fn with(channels: usize, config: BatchNormConfig, vb: VarBuilder) -> Result<Self> {
        let (weight, bias) = if config.affine {
            (vb.param(channels, "weight", config.weight_init)?, vb.param(channels, "bias", Init::ZEROS)?)
        } else {
            let ones = Tensor::ones(channels, vb.dtype(), vb.device())?;
            (ones.clone(), ones.zeros_like()?)
        };
        let running_mean = vb.buffer(channels, "running_mean", Init::ZEROS)?;
        let running_var = vb.buffer(channels, "running_var", Init::ONES)?;
        Ok(Self { weight, bias, running_mean, running_var, config, place: vb.path().to_string() })
    }

    fn update(&self, running: &Var, batch: &Tensor) -> Result<()> {
        let momentum = self.config.momentum;
        let batch = batch.to_dtype(running.dtype())?;
        running.set(&((running.as_detached_tensor() * (1.0 - momentum))? + (batch * momentum)?)?)
    }
}

impl BatchNorm {
    /// The running statistics, and the weights as they are.
    pub(crate) fn running(&self) -> Norm<'_> {
        Norm {
            weight: &self.weight,
            bias: &self.bias,
            mean: self.running_mean.as_tensor(),
            var: self.running_var.as_tensor(),
            eps: self.config.eps,
            through_stats: false,
        }
    }

    /// Moves the running statistics towards the batch's.
    fn learn(&self, stats: &BatchStats, dims: &[usize]) -> Result<()> {
        if stats.count < 2 {
            bail!(
                "batch_norm: training needs more than one value per channel, got input {dims:?}; use a larger batch, or drop \
                 the last one of the epoch if it holds a single image"
            )
        }
        self.update(&self.running_mean, &stats.mean)?;
        let unbiased = stats.count as f64 / (stats.count - 1) as f64;
        self.update(&self.running_var, &(&stats.var * unbiased)?)
    }

    /// Training on the tape: act(norm(conv(xs)) + skip) as one operation.
    pub(crate) fn after_conv(
        &self,
        xs: &Tensor,
        (weight, bias): (&Tensor, Option<&Tensor>),
        params: Conv2dParams,
        skip: Option<&Tensor>,
        clamp: Clamp,
    ) -> Result<Tensor> {
        let scale = Scale { weight: &self.weight, bias: &self.bias, eps: self.config.eps };
        conv_bn_train(xs, (weight, bias), params, &scale, skip, clamp, |stats| self.learn(stats, xs.dims()))
    }

    /// The normalisation, then an activation, as one operation where there is a kernel for it.
    ///
    /// # Errors
    /// As the layer's forward pass.
    pub fn forward_act(&self, xs: &Tensor, activation: Option<Pointwise>, train: bool) -> Result<Tensor> {
        if trace::by_layers() {
            let ys = self.forward_t(xs, train)?;
            return activation.map_or(Ok(ys.clone()), |function| activate(&ys, function));
        }
        self.normalize(xs, activation, train)
    }

    fn normalize(&self, xs: &Tensor, activation: Option<Pointwise>, train: bool) -> Result<Tensor> {
        let (weight, bias) = (weight_for(&self.weight, train), weight_for(&self.bias, train));
        if !train {
            return batch_norm_act(xs, &Norm { weight: &weight, bias: &bias, ..self.running() }, activation);
        }
        let stats = batch_stats(xs)?;
        self.learn(&stats, xs.dims())?;
        let (mean, var, eps) = (&stats.mean, &stats.var, self.config.eps);
        let norm = Norm { weight: &weight, bias: &bias, mean, var, eps, through_stats: true };
        batch_norm_act(xs, &norm, activation)
    }
}

impl ModuleT for BatchNorm {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let weights = self.config.affine.then_some([Some(&self.weight), Some(&self.bias)]);
        let weights = weights.as_ref().map_or(&[][..], |weights| weights);
        trace::layer("BatchNorm", &self.place, weights, String::new, &[xs], || self.normalize(xs, None, train))
    }
}

/// Layer normalisation (Ba, Kiros and Hinton 2016, arXiv:1607.06450) over the last dimensions, sample by sample and place by
/// place: y = (x - μ) / √(σ² + eps) · weight + bias, with the mean and the biased variance of those dimensions.
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
    place: String,
}

impl LayerNorm {
    /// Over the last dimensions, which have the shape `normalized`: a number for the last one, a tuple for several.
    ///
    /// # Errors
    /// A key that is taken already.
    pub fn new(normalized: impl Into<Shape>, eps: f64, vb: VarBuilder) -> Result<Self> {
        let shape = normalized.into();
        let weight = vb.param(shape.clone(), "weight", Init::ONES)?;
        Ok(Self { weight, bias: vb.param(shape, "bias", Init::ZEROS)?, eps, place: vb.path().to_string() })
    }

    /// Weight, bias and ε.
    pub(crate) fn parts(&self, train: bool) -> ((Tensor, Tensor), f64) {
        ((weight_for(&self.weight, train), weight_for(&self.bias, train)), self.eps)
    }
}

impl ModuleT for LayerNorm {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        trace::layer("LayerNorm", &self.place, &[Some(&self.weight), Some(&self.bias)], String::new, &[xs], || {
            layer_norm(xs, &weight_for(&self.weight, train), &weight_for(&self.bias, train), self.eps)
        })
    }
}

//! Fully connected layers.

use crate::init::Init;
use crate::ops::linear;
use crate::trace::{self, Step};
use crate::vars::{Training, VarBuilder, weight_for};
use candle_core::{Result, Tensor, bail};
use candle_nn::ModuleT;

/// y = x · weightᵀ + bias over the last dimension: (…, in_features) -> (…, out_features), see [`linear`].
///
/// Keys: `weight` (out, in) and, with bias, `bias` (out).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{Linear, ModuleT, VarStore};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let fc = Linear::new(64, 10, store.root().pp("fc"))?;
/// let xs = Tensor::zeros((2, 64), DType::F32, &Device::Cpu)?;
/// assert_eq!(fc.forward_t(&xs, false)?.dims(), &[2, 10]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    training: Training,
    path: String,
}

impl Linear {
    /// With bias, initialised as PyTorch does.
    ///
    /// # Errors
    /// A key that is taken already.
    pub fn new(in_features: usize, out_features: usize, vb: VarBuilder) -> Result<Self> {
        Self::with(in_features, out_features, true, Init::TORCH_WEIGHT, vb)
    }

    /// With or without bias, the weight filled by `init`; the bias starts as PyTorch's.
    ///
    /// # Errors
    /// A key that is taken already.
    pub fn with(in_features: usize, out_features: usize, bias: bool, init: Init, vb: VarBuilder) -> Result<Self> {
        let bias = bias.then(|| Init::torch_bias(in_features));
        Self::with_bias(in_features, out_features, init, bias, vb)
    }

    /// The weight filled by `init`, the bias by `bias` if there is one.
    ///
    /// # Errors
    /// A key that is taken already.
    pub fn with_bias(
        in_features: usize,
        out_features: usize,
        init: Init,
        bias: Option<Init>,
        vb: VarBuilder,
    ) -> Result<Self> {
        let (weight, bias_init) = vb.layer_inits(init, bias.unwrap_or(Init::ZEROS), in_features);
        let weight = vb.param((out_features, in_features), "weight", weight)?;
        let bias = bias.map(|_| vb.param(out_features, "bias", bias_init)).transpose()?;
        let training = vb.training_of(if bias.is_some() { &["weight", "bias"] } else { &["weight"] });
        Ok(Self { weight, bias, training, path: vb.path().to_string() })
    }

    /// What of it is trained.
    pub(crate) fn training(&self) -> Training {
        self.training
    }

    /// The weight, (out, in): to share it, as a network does whose embedding is its generator's.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Weight and bias, where it has one.
    pub(crate) fn parts(&self, train: bool) -> Option<(Tensor, Tensor)> {
        Some((weight_for(&self.weight, train), weight_for(self.bias.as_ref()?, train)))
    }
}

impl ModuleT for Linear {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let weights = [Some(&self.weight), self.bias.as_ref()];
        let (c_out, c_in) = self.weight.dims2()?;
        trace::layer(Step::Linear { features: (c_in, c_out) }, &self.path, &weights, &[xs], || {
            let bias = self.bias.as_ref().map(|b| weight_for(b, train));
            linear(xs, &weight_for(&self.weight, train), bias.as_ref())
        })
    }
}

/// The last linear layer of a classifier, (b, in_features) -> (b, num_classes), which can be replaced by one of another
/// width: see [`Model::reset_classifier`](crate::Model::reset_classifier).
#[derive(Debug, Clone)]
pub struct Classifier {
    linear: Linear,
    in_features: usize,
    init: Init,
    bias: Option<Init>,
    vb: VarBuilder,
}

impl Classifier {
    /// Initialised as PyTorch does.
    ///
    /// # Errors
    /// A key that is taken already.
    pub fn new(in_features: usize, num_classes: usize, vb: VarBuilder) -> Result<Self> {
        Self::with(in_features, num_classes, Init::TORCH_WEIGHT, Some(Init::torch_bias(in_features)), vb)
    }

    /// The weight filled by `init`, the bias by `bias` if there is one.
    ///
    /// # Errors
    /// A key that is taken already.
    pub fn with(
        in_features: usize,
        num_classes: usize,
        init: Init,
        bias: Option<Init>,
        vb: VarBuilder,
    ) -> Result<Self> {
        let linear = Linear::with_bias(in_features, num_classes, init, bias, vb.clone())?;
        Ok(Self { linear, in_features, init, bias, vb })
    }

    /// Starts afresh with `num_classes`; the old tensors leave the store.
    ///
    /// # Errors
    /// No class.
    pub fn reset(&mut self, num_classes: usize) -> Result<()> {
        if num_classes == 0 {
            bail!("{}: a classifier needs at least one class", self.path())
        }
        let vb = self.vb.replacing();
        self.linear = Linear::with_bias(self.in_features, num_classes, self.init, self.bias, vb)?;
        Ok(())
    }

    /// Width of the features it reads.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Width of the logits.
    pub fn num_classes(&self) -> usize {
        self.linear.weight.dims()[0]
    }

    /// The key that its tensors begin with: the part of a checkpoint that another number of classes leaves out.
    pub fn path(&self) -> &str {
        self.vb.path()
    }
}

impl ModuleT for Classifier {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.linear.forward_t(xs, train)
    }
}

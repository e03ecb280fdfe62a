//! Fully connected layers.

use crate::activation::activate;
use crate::combine::{add, transpose};
use crate::drop::Dropout;
use crate::init::Init;
use crate::norm::LayerNorm;
use crate::ops::branch::{Inner, branch};
use crate::ops::{Pointwise, linear};
use crate::trace;
use crate::vars::{VarBuilder, weight_for};
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
    place: String,
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
        let weight = vb.param((out_features, in_features), "weight", init)?;
        let bias = bias.map(|init| vb.param(out_features, "bias", init)).transpose()?;
        Ok(Self { weight, bias, place: vb.path().to_string() })
    }

    /// Weight and bias, where it has one.
    pub(crate) fn parts(&self, train: bool) -> Option<(Tensor, Tensor)> {
        Some((weight_for(&self.weight, train), weight_for(self.bias.as_ref()?, train)))
    }
}

impl ModuleT for Linear {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let weights = [Some(&self.weight), self.bias.as_ref()];
        let detail = || format!("{} to {}", self.weight.dims()[1], self.weight.dims()[0]);
        trace::layer("Linear", &self.place, &weights, detail, &[xs], || {
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
            bail!("{}: a classifier needs at least one class", self.place())
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
    pub fn place(&self) -> &str {
        self.vb.path()
    }
}

impl ModuleT for Classifier {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.linear.forward_t(xs, train)
    }
}

/// The multilayer perceptron inside Transformer and Mixer blocks: linear, GELU, dropout, linear, dropout, over the last
/// dimension. (…, in) -> (…, out)
///
/// Keys: `fc1`, `fc2`, as timm has them.
#[derive(Debug, Clone)]
pub struct MlpBlock {
    fc1: Linear,
    fc2: Linear,
    activation: Pointwise,
    dropout: Dropout,
}

impl MlpBlock {
    /// Makes the layers at `vb`: `widths` are (in, hidden, out). Weights start by `init`, biases by `bias`.
    ///
    /// # Errors
    /// A dropout rate outside 0..1.
    pub fn new(widths: (usize, usize, usize), dropout: f64, init: Init, bias: Init, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            fc1: Linear::with_bias(widths.0, widths.1, init, Some(bias), vb.pp("fc1"))?,
            fc2: Linear::with_bias(widths.1, widths.2, init, Some(bias), vb.pp("fc2"))?,
            activation: Pointwise::Gelu,
            dropout: Dropout::new(dropout, &vb)?,
        })
    }

    /// xs + drop_path(mlp(norm(xs))): a block's residual branch, as one operation where nothing drops. (b, n, c) -> (b, n, c)
    ///
    /// # Errors
    /// Shapes that do not fit together.
    pub fn residual(&self, xs: &Tensor, norm: &LayerNorm, drop_path: Option<&Dropout>, train: bool) -> Result<Tensor> {
        if let Some(ys) = self.fused(Inner::Gelu, xs, norm, drop_path, train)? {
            return Ok(ys);
        }
        let ys = self.forward_t(&norm.forward_t(xs, train)?, train)?;
        add(xs, &drop(drop_path, ys, train)?)
    }

    /// As [`MlpBlock::residual`], but the perceptron mixes the tokens of a channel, not the channels of a token: xs +
    /// drop_path(mlp(norm(xs)ᵀ)ᵀ), or with a norm over the tokens as well, xs + drop_path(mlp(norm(xsᵀ))ᵀ).
    ///
    /// # Errors
    /// Shapes that do not fit together.
    pub fn residual_of_tokens(
        &self,
        xs: &Tensor,
        (norm, over_tokens): (&LayerNorm, bool),
        drop_path: Option<&Dropout>,
        train: bool,
    ) -> Result<Tensor> {
        if let Some(ys) = self.fused(Inner::GeluOfTokens(!over_tokens), xs, norm, drop_path, train)? {
            return Ok(ys);
        }
        let ys = match over_tokens {
            true => norm.forward_t(&transpose(xs)?, train)?,
            false => transpose(&norm.forward_t(xs, train)?)?,
        };
        let ys = transpose(&self.forward_t(&ys, train)?)?; // (b, c, n) -> (b, n, c)
        add(xs, &drop(drop_path, ys, train)?)
    }

    fn fused(
        &self,
        inner: Inner,
        xs: &Tensor,
        norm: &LayerNorm,
        drop_path: Option<&Dropout>,
        train: bool,
    ) -> Result<Option<Tensor>> {
        let drops = self.dropout.drops(train) || drop_path.is_some_and(|drop| drop.drops(train));
        if drops || self.activation != Pointwise::Gelu {
            return Ok(None);
        }
        residual_branch(xs, inner, norm, &self.fc1, &self.fc2, train)
    }
}

/// xs + second(inner(first(norm(xs)))) as one operation, where there is a kernel for it.
pub(crate) fn residual_branch(
    xs: &Tensor,
    inner: Inner,
    norm: &LayerNorm,
    first: &Linear,
    second: &Linear,
    train: bool,
) -> Result<Option<Tensor>> {
    let (Some(first), Some(second)) = (first.parts(train), second.parts(train)) else { return Ok(None) };
    let (norm, eps) = norm.parts(train);
    branch(xs, inner, ((&norm.0, &norm.1), eps), (&first.0, &first.1), (&second.0, &second.1))
}

pub(crate) fn drop(dropout: Option<&Dropout>, xs: Tensor, train: bool) -> Result<Tensor> {
    match dropout {
        Some(dropout) => dropout.forward_t(&xs, train),
        None => Ok(xs),
    }
}

impl ModuleT for MlpBlock {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let hidden = activate(&self.fc1.forward_t(xs, train)?, self.activation)?;
        let ys = self.fc2.forward_t(&self.dropout.forward_t(&hidden, train)?, train)?;
        self.dropout.forward_t(&ys, train)
    }
}

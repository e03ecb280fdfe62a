//! Convolution layers.

use crate::init::Init;
use crate::ops::{Conv2dParams, conv2d};
use crate::trace::{self, Step};
use crate::vars::{Training, VarBuilder, weight_for};
use candle_core::{Result, Tensor};
use candle_nn::ModuleT;

/// How a [`Conv2d`] is made; the defaults are `torch.nn.Conv2d`'s.
///
/// ```
/// use zoo_core::Conv2dConfig;
/// let stem = Conv2dConfig::new(7).stride(2).padding(3).no_bias();
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Conv2dConfig {
    kernel: (usize, usize),
    params: Conv2dParams,
    bias: bool,
    init: Init,
    /// `None`: PyTorch's rule, which needs the fan-in.
    bias_init: Option<Init>,
}

impl Conv2dConfig {
    /// A square kernel, stride 1, no padding, with bias, PyTorch's default initialisation.
    pub fn new(kernel: usize) -> Self {
        Self::rectangular((kernel, kernel))
    }

    /// A kernel of (height, width).
    pub fn rectangular(kernel: (usize, usize)) -> Self {
        Self { kernel, params: Conv2dParams::default(), bias: true, init: Init::TORCH_WEIGHT, bias_init: None }
    }

    /// The step of the window, in both directions.
    pub fn stride(mut self, stride: usize) -> Self {
        self.params.stride = (stride, stride);
        self
    }

    /// Zeros around the image, on every side.
    pub fn padding(mut self, padding: usize) -> Self {
        self.params.padding = (padding, padding);
        self
    }

    /// Distance between the kernel's taps, in both directions.
    pub fn dilation(mut self, dilation: usize) -> Self {
        self.params.dilation = (dilation, dilation);
        self
    }

    /// Splits the channels into independent groups; as many groups as input channels is a depthwise convolution.
    pub fn groups(mut self, groups: usize) -> Self {
        self.params.groups = groups;
        self
    }

    /// Stride, padding, dilation and groups at once, each direction on its own.
    pub fn params(mut self, params: Conv2dParams) -> Self {
        self.params = params;
        self
    }

    /// No bias: for a convolution in front of a normalisation, which would cancel it.
    pub fn no_bias(mut self) -> Self {
        self.bias = false;
        self
    }

    /// The rule that fills the weight.
    pub fn init(mut self, init: Init) -> Self {
        self.init = init;
        self
    }

    /// The rule that fills the bias, instead of PyTorch's.
    pub fn bias_init(mut self, init: Init) -> Self {
        self.bias_init = Some(init);
        self
    }
}

/// A 2-d convolution: (b, in_channels, h, w) -> (b, out_channels, oh, ow), see [`conv2d`].
///
/// Keys: `weight` (out, in / groups, kh, kw) and, with bias, `bias` (out).
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    params: Conv2dParams,
    training: Training,
    path: String,
}

impl Conv2d {
    /// Makes the layer at `vb`.
    ///
    /// # Errors
    /// Channels that the groups do not divide.
    pub fn new(in_channels: usize, out_channels: usize, config: Conv2dConfig, vb: VarBuilder) -> Result<Self> {
        let groups = config.params.groups;
        if groups == 0 || !in_channels.is_multiple_of(groups) || !out_channels.is_multiple_of(groups) {
            candle_core::bail!(
                "{}: groups ({groups}) must divide in_channels ({in_channels}) and out_channels ({out_channels})",
                vb.path()
            )
        }
        let (kh, kw) = config.kernel;
        let group_in = in_channels / groups;
        let fan_in = group_in * kh * kw;
        let bias_init = config.bias_init.unwrap_or_else(|| Init::torch_bias(fan_in));
        let (init, bias_init) = vb.layer_inits(config.init, bias_init, fan_in);
        let weight = vb.param((out_channels, group_in, kh, kw), "weight", init)?;
        let bias = config.bias.then(|| vb.param(out_channels, "bias", bias_init));
        let training = vb.training_of(if config.bias { &["weight", "bias"] } else { &["weight"] });
        Ok(Self { weight, bias: bias.transpose()?, params: config.params, training, path: vb.path().to_string() })
    }

    /// What of it is trained.
    pub(crate) fn training(&self) -> Training {
        self.training
    }
}

impl Conv2d {
    /// Weight, bias and geometry.
    pub(crate) fn parts(&self, train: bool) -> (Tensor, Option<Tensor>, Conv2dParams) {
        (weight_for(&self.weight, train), self.bias.as_ref().map(|bias| weight_for(bias, train)), self.params)
    }
}

impl ModuleT for Conv2d {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let weights = [Some(&self.weight), self.bias.as_ref()];
        let (c_out, group_in, kh, kw) = self.weight.dims4()?;
        let channels = (group_in * self.params.groups, c_out);
        let step = Step::Conv2d { channels, kernel: (kh, kw), params: self.params };
        trace::layer(step, &self.path, &weights, &[xs], || {
            let (weight, bias, params) = self.parts(train);
            conv2d(xs, &weight, bias.as_ref(), params)
        })
    }
}

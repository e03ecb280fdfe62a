//! Convolution layers.

use super::norm::{BatchNorm, BatchNormConfig};
use super::sequential::Sequential;
use crate::init::Init;
use crate::ops::{Conv2dParams, Pointwise, conv2d};
use crate::vars::{VarBuilder, weight_for};
use crate::{seq, trace};
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
        let weight = vb.param((out_channels, group_in, kh, kw), "weight", config.init)?;
        let bias_init = config.bias_init.unwrap_or_else(|| Init::torch_bias(group_in * kh * kw));
        let bias = config.bias.then(|| vb.param(out_channels, "bias", bias_init));
        Ok(Self { weight, bias: bias.transpose()?, params: config.params, path: vb.path().to_string() })
    }
}

impl Conv2d {
    /// Weight, bias and geometry.
    pub(crate) fn parts(&self, train: bool) -> (Tensor, Option<Tensor>, Conv2dParams) {
        (weight_for(&self.weight, train), self.bias.as_ref().map(|bias| weight_for(bias, train)), self.params)
    }

    /// For example `3x3, stride 2, 32 groups`.
    fn detail(&self) -> String {
        let Conv2dParams { stride, padding: _, dilation, groups } = self.params;
        let mut detail = format!("{}x{}", self.weight.dims()[2], self.weight.dims()[3]);
        let pair = |(a, b): (usize, usize)| if a == b { a.to_string() } else { format!("{a}x{b}") };
        if stride != (1, 1) {
            detail += &format!(", stride {}", pair(stride));
        }
        if dilation != (1, 1) {
            detail += &format!(", dilation {}", pair(dilation));
        }
        match groups {
            1 => {}
            _ if self.weight.dims()[..2] == [groups, 1] => detail += ", depthwise",
            _ => detail += &format!(", {groups} groups"),
        }
        detail
    }
}

impl ModuleT for Conv2d {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let weights = [Some(&self.weight), self.bias.as_ref()];
        trace::layer(
            "Conv2d",
            &self.path,
            &weights,
            || self.detail(),
            &[xs],
            || {
                let (weight, bias, params) = self.parts(train);
                conv2d(xs, &weight, bias.as_ref(), params)
            },
        )
    }
}

/// act(norm(conv(x))), the unit that most networks are made of: (b, channels.0, h, w) -> (b, channels.1, oh, ow). The keys are
/// those of its two layers, `at` the places of the convolution and of the norm. A bias in front of the norm would be
/// cancelled by it: see [`Conv2dConfig::no_bias`].
///
/// # Errors
/// Channels that the groups do not divide.
pub fn conv_bn(
    channels: (usize, usize),
    conv: Conv2dConfig,
    norm: BatchNormConfig,
    activation: Option<Pointwise>,
    at: (VarBuilder, VarBuilder),
) -> Result<Sequential> {
    let conv = Conv2d::new(channels.0, channels.1, conv, at.0)?;
    let norm = BatchNorm::with(channels.1, norm, at.1)?;
    Ok(match activation {
        Some(activation) => seq![conv, norm, activation],
        None => seq![conv, norm],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::with_fallback;
    use crate::{Residual, VarStore, tape};
    use crate::testing::numbers;
    use candle_core::{DType, Device, Var};

    /// A layer that gives a tensor, whatever it reads: a shortcut.
    #[derive(Debug)]
    struct Given(Tensor);

    impl ModuleT for Given {
        fn forward_t(&self, _: &Tensor, _: bool) -> Result<Tensor> {
            Ok(self.0.clone())
        }
    }

    /// Planes so large that their gradients go a few images at a time, the last part smaller, are those of the layers.
    #[test]
    fn gradients_by_images_are_those_of_the_layers() {
        for (stride, with_skip) in [(1, false), (1, true), (2, false), (2, true)] {
            let store = VarStore::new(1, DType::F64, &Device::Cpu);
            let config = Conv2dConfig::new(3).padding(1).stride(stride).no_bias();
            let conv = Conv2d::new(3, 8, config, store.root().pp("conv")).unwrap();
            let bn = BatchNorm::new(8, store.root().pp("bn")).unwrap();
            let side = 64;
            let xs = Var::from_tensor(&numbers("x", &[9, 3, side * stride, side * stride])).unwrap();
            let skip = Var::from_tensor(&numbers("skip", &[9, 8, side, side])).unwrap();
            let net = match with_skip {
                true => seq![
                    Residual::new(seq![conv, bn]).shortcut(seq![Given(skip.as_tensor().clone())]).activation(Pointwise::Relu)
                ],
                false => seq![conv, bn, Pointwise::Relu],
            };
            let run = || {
                let ys = tape::recorded(&xs, true, |xs| net.forward_t(xs, true)).unwrap();
                let loss = (&ys * numbers("upstream", ys.dims())).unwrap().sum_all().unwrap();
                (ys, loss.backward().unwrap())
            };
            let ((ys, got), (want_ys, want)) = (run(), with_fallback(run));
            let close = |name: &str, a: &Tensor, b: &Tensor| {
                let error = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
                let scale = b.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
                assert!(error <= 1e-12 * scale.max(1.0), "{name}, stride {stride}: {error} of {scale}");
            };
            close("y", &ys, &want_ys);
            let mut vars: Vec<(String, Tensor)> =
                store.parameters().into_iter().map(|(key, var)| (key, var.as_tensor().clone())).collect();
            vars.push(("x".into(), xs.as_tensor().clone()));
            vars.extend(with_skip.then(|| ("skip".into(), skip.as_tensor().clone())));
            for (key, var) in vars {
                close(&key, got.get(&var).expect(&key), want.get(&var).expect(&key));
            }
        }
    }
}

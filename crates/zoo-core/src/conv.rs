//! Convolution layers.

use crate::activation::activate;
use crate::combine::add;
use crate::init::Init;
use crate::norm::BatchNorm;
use crate::ops::{Conv2dParams, FusedActivation, Pointwise, conv_bn_eval, conv2d, is_plain};
use crate::vars::{VarBuilder, weight_for};
use crate::{tape, trace};
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
    place: String,
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
        Ok(Self { weight, bias: bias.transpose()?, params: config.params, place: vb.path().to_string() })
    }
}

impl Conv2d {
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
            &self.place,
            &weights,
            || self.detail(),
            &[xs],
            || {
                let bias = self.bias.as_ref().map(|b| weight_for(b, train));
                conv2d(xs, &weight_for(&self.weight, train), bias.as_ref(), self.params)
            },
        )
    }
}

/// Convolution, batch normalisation and, if there is one, an activation: the unit that most networks are made of. The keys
/// are those of its two layers, wherever a layout puts them.
#[derive(Debug, Clone)]
pub struct ConvBn {
    conv: Conv2d,
    bn: BatchNorm,
    activation: Option<Pointwise>,
}

impl ConvBn {
    /// Puts the layers behind each other.
    pub fn new(conv: Conv2d, bn: BatchNorm, activation: Option<Pointwise>) -> Self {
        Self { conv, bn, activation }
    }
}

impl ConvBn {
    /// act(bn(conv(xs)) + skip): where a shortcut, if there is one, meets its branch. The unit's own activation is not applied.
    ///
    /// # Errors
    /// Shapes that do not fit together.
    pub fn forward_add(
        &self,
        xs: &Tensor,
        skip: Option<&Tensor>,
        activation: Option<Pointwise>,
        train: bool,
    ) -> Result<Tensor> {
        let has_kernel = if train { tape::is_recorded(xs) && self.bn.normalizes() } else { is_plain(xs) };
        if let (Some(clamp), true) = (FusedActivation::of(activation), has_kernel && !trace::by_layers()) {
            let weight = weight_for(&self.conv.weight, train);
            let (bias, params) = (self.conv.bias.as_ref().map(|bias| weight_for(bias, train)), self.conv.params);
            return match train {
                true => self.bn.after_conv(xs, (&weight, bias.as_ref()), params, skip, clamp),
                false => conv_bn_eval(xs, &weight, bias.as_ref(), params, &self.bn.running(), skip, clamp),
            };
        }
        let mut ys = self.bn.forward_t(&self.conv.forward_t(xs, train)?, train)?;
        if let Some(skip) = skip {
            ys = add(&ys, skip)?;
        }
        activation.map_or(Ok(ys.clone()), |function| activate(&ys, function))
    }
}

impl ModuleT for ConvBn {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_add(xs, None, self.activation, train)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VarStore;
    use crate::ops::composed;
    use crate::testing::numbers;
    use candle_core::{DType, Device, Var};

    /// Planes so large that their gradients go a few images at a time, the last part smaller, are those of the layers.
    #[test]
    fn gradients_by_images_are_those_of_the_layers() {
        for (stride, with_skip) in [(1, false), (1, true), (2, false), (2, true)] {
            let store = VarStore::new(1, DType::F64, &Device::Cpu);
            let config = Conv2dConfig::new(3).padding(1).stride(stride).no_bias();
            let conv = Conv2d::new(3, 8, config, store.root().pp("conv")).unwrap();
            let bn = BatchNorm::new(8, store.root().pp("bn")).unwrap();
            let unit = ConvBn::new(conv, bn, None);
            let side = 64;
            let xs = Var::from_tensor(&numbers("x", &[9, 3, side * stride, side * stride])).unwrap();
            let skip = Var::from_tensor(&numbers("skip", &[9, 8, side, side])).unwrap();
            let run = || {
                let ys = tape::on_tape(&xs, true, |xs| {
                    unit.forward_add(xs, with_skip.then_some(skip.as_tensor()), Some(Pointwise::Relu), true)
                });
                let ys = ys.unwrap();
                let loss = (&ys * numbers("upstream", ys.dims())).unwrap().sum_all().unwrap();
                (ys, loss.backward().unwrap())
            };
            let ((ys, got), (want_ys, want)) = (run(), composed(run));
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

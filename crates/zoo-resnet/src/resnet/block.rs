//! The residual block, which every network of this crate is made of.

use candle_core::{Result, bail};
use zoo_core::{
    BatchNormConfig, Conv2dConfig, Dropout, Init, MaxPool2d, PadChannels, Pointwise, Residual, Sequential,
    SqueezeExcite, SqueezeExciteConfig, VarBuilder, conv_bn, seq,
};

/// What stands on the residual branch (figure 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Two 3x3 convolutions.
    Basic,
    /// 1x1 down to a quarter of the channels, 3x3 there, 1x1 back up.
    Bottleneck,
}

impl Kind {
    /// How many times wider the block's output is than its 3x3 convolutions.
    pub fn expansion(self) -> usize {
        if self == Self::Basic { 1 } else { 4 }
    }
}

/// How a block whose output is smaller or wider than its input carries the input across (section 3.3). Where the shapes
/// agree the shortcut of A and B is the identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortcut {
    /// Option A: every stride-th pixel, the new channels zero, half of them below and half above. No parameters.
    A,
    /// Option B: a strided 1x1 convolution with BatchNorm.
    B,
    /// No shortcut anywhere: the plain network of the degradation experiment.
    None,
}

/// How a [`block`] is made.
#[derive(Debug, Clone, Copy)]
pub struct BlockConfig {
    /// What stands on the branch.
    pub kind: Kind,
    /// Channels of the input.
    pub c_in: usize,
    /// Channels inside a bottleneck; a basic block has `c_out` of them.
    pub width: usize,
    /// Channels of the output.
    pub c_out: usize,
    /// 2 halves the map.
    pub stride: usize,
    /// The way past the branch.
    pub shortcut: Shortcut,
    /// What the checkpoint calls a shortcut with weights.
    pub shortcut_key: &'static str,
    /// Whether a bottleneck strides in its first 1x1 convolution, as in the paper, instead of the 3x3.
    pub stride_on_1x1: bool,
    /// Groups of a bottleneck's 3x3 convolution (Xie et al. 2016, arXiv:1611.05431).
    pub groups: usize,
    /// Whether the branch's convolutions have a bias, which their BatchNorm cancels.
    pub bias: bool,
    /// What the weights of the convolutions start at.
    pub init: Init,
    /// A gate on the branch's channels, in front of the addition (Hu et al. 2017, arXiv:1709.01507).
    pub se: Option<SqueezeExciteConfig>,
    /// Whether the last norm of the branch starts at weight 0, so that the block starts as the identity (Goyal et al.
    /// 2017, arXiv:1706.02677).
    pub zero_init: bool,
    /// Every BatchNorm of the block.
    pub norm: BatchNormConfig,
    /// The share of images for which the branch is left out in training (Huang et al. 2016, arXiv:1603.09382).
    pub drop_path: f64,
}

impl BlockConfig {
    /// Two 3x3 convolutions without bias, stride 1, shortcut B under torchvision's key, He's initialisation.
    pub fn basic(c_in: usize, c_out: usize) -> Self {
        Self {
            kind: Kind::Basic,
            c_in,
            width: c_out,
            c_out,
            stride: 1,
            shortcut: Shortcut::B,
            shortcut_key: "downsample",
            stride_on_1x1: false,
            groups: 1,
            bias: false,
            init: Init::HE_FAN_OUT,
            se: None,
            zero_init: false,
            norm: BatchNormConfig::default(),
            drop_path: 0.0,
        }
    }

    /// 1x1 to `width` channels, 3x3, 1x1 to `c_out`; the rest as in [`BlockConfig::basic`].
    pub fn bottleneck(c_in: usize, width: usize, c_out: usize) -> Self {
        Self { kind: Kind::Bottleneck, width, ..Self::basic(c_in, c_out) }
    }
}

/// What is added to the branch, where that is not the input itself.
fn shortcut(config: &BlockConfig, vb: VarBuilder) -> Result<Option<Sequential>> {
    let BlockConfig { c_in, c_out, stride, .. } = *config;
    match config.shortcut {
        Shortcut::None => Ok(None),
        _ if stride == 1 && c_in == c_out => Ok(None),
        Shortcut::A => {
            let Some(new) = c_out.checked_sub(c_in) else {
                bail!("{}: shortcut A adds channels, it cannot go from {c_in} to {c_out}; use B", vb.path())
            };
            let pad = PadChannels { below: new / 2, above: new - new / 2 };
            // A pooling window of one pixel takes, for a stride of 2, the pixels (0, 0), (0, 2), … (2, 0), ….
            Ok(Some(if stride == 1 { seq![pad] } else { seq![MaxPool2d::new(1, stride), pad] }))
        }
        Shortcut::B => {
            let conv = Conv2dConfig::new(1).stride(stride).no_bias().init(config.init);
            conv_bn((c_in, c_out), conv, config.norm, None, (vb.pp(0), vb.pp(1))).map(Some)
        }
    }
}

/// The residual block: relu(x + F(x)), where the branch F is two or three convolutions (figures 2 and 5).
/// (b, c_in, h, w) -> (b, c_out, h / stride, w / stride)
///
/// Keys: `conv{n} bn{n}`, `se` and the shortcut's.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{ModuleT, VarStore};
/// use zoo_resnet::resnet::{BlockConfig, block};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let block = block(&BlockConfig { stride: 2, ..BlockConfig::bottleneck(64, 16, 128) }, store.root())?;
/// let ys = block.forward_t(&Tensor::zeros((1, 64, 8, 8), DType::F32, &Device::Cpu)?, false)?;
/// assert_eq!(ys.dims(), &[1, 128, 4, 4]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Groups in a basic block or such as do not divide the width, a shortcut A that would take channels away, a rate outside
/// 0..1, or one above 0 without a shortcut.
pub fn block(config: &BlockConfig, vb: VarBuilder) -> Result<Sequential> {
    let BlockConfig { c_in, width, c_out, stride, groups, .. } = *config;
    if config.kind == Kind::Basic && groups != 1 {
        bail!("{}: a basic block has no groups, got {groups}; use a bottleneck", vb.path())
    }
    let (first, second) = if config.stride_on_1x1 { (stride, 1) } else { (1, stride) };
    // channels in, channels out, kernel, stride, groups
    let layers: &[(usize, usize, usize, usize, usize)] = match config.kind {
        Kind::Basic => &[(c_in, c_out, 3, stride, 1), (c_out, c_out, 3, 1, 1)],
        Kind::Bottleneck => &[(c_in, width, 1, first, 1), (width, width, 3, second, groups), (width, c_out, 1, 1, 1)],
    };
    let mut branch = seq![];
    for (i, &(c_in, c_out, kernel, stride, groups)) in layers.iter().enumerate() {
        let conv = Conv2dConfig::new(kernel).stride(stride).padding(kernel / 2).groups(groups).init(config.init);
        let conv = if config.bias { conv } else { conv.no_bias() };
        let is_last = i + 1 == layers.len();
        let mut norm = config.norm;
        if is_last && config.zero_init {
            norm.weight_init = Init::ZEROS;
        }
        let (relu, at) = ((!is_last).then_some(Pointwise::Relu), |name| vb.pp(format!("{name}{}", i + 1)));
        branch = seq![branch, conv_bn((c_in, c_out), conv, norm, relu, (at("conv"), at("bn")))?];
    }
    if let Some(se) = config.se {
        branch = seq![branch, SqueezeExcite::with(c_out, se, vb.pp("se"))?];
    }
    let shortcut = shortcut(config, vb.pp(config.shortcut_key))?;
    if config.shortcut == Shortcut::None && config.drop_path > 0.0 {
        bail!("{}: without a shortcut nothing is left where the branch is left out, so drop_path must be 0", vb.path())
    }
    let residual = |branch| -> Result<Residual> {
        let sum = Residual::new(branch).drop_path(Dropout::path(config.drop_path, &vb)?);
        Ok(sum.activation(Pointwise::Relu))
    };
    let block = match (config.shortcut, shortcut) {
        (Shortcut::None, _) => seq![branch, Pointwise::Relu],
        (_, None) => seq![residual(branch)?],
        (_, Some(shortcut)) => seq![residual(branch)?.shortcut(shortcut)],
    };
    let name = match config.kind {
        Kind::Basic => "BasicBlock",
        Kind::Bottleneck => "Bottleneck",
    };
    Ok(block.block(name, &vb))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Tensor};
    use zoo_core::{ModuleT, VarStore};

    #[test]
    fn option_a_takes_every_second_pixel_and_centres_the_channels() {
        let xs = Tensor::arange(0f32, 18., &Device::Cpu).unwrap().reshape((1, 2, 3, 3)).unwrap();
        let config = BlockConfig { stride: 2, shortcut: Shortcut::A, ..BlockConfig::basic(2, 5) };
        let shortcut = shortcut(&config, VarStore::shapes_only().root()).unwrap().unwrap();
        let ys = shortcut.forward_t(&xs, true).unwrap().squeeze(0).unwrap().flatten_from(1).unwrap();
        let rows: [[f32; 4]; 5] = [[0.; 4], [0., 2., 6., 8.], [9., 11., 15., 17.], [0.; 4], [0.; 4]];
        assert_eq!(ys.to_vec2::<f32>().unwrap(), rows.map(|row| row.to_vec()));
    }

    #[test]
    fn zero_init_starts_blocks_as_the_identity() {
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        let config = BlockConfig { zero_init: true, ..BlockConfig::bottleneck(8, 2, 8) };
        let net = block(&config, store.root()).unwrap();
        let xs = Tensor::arange(0f32, 256., &Device::Cpu).unwrap().reshape((2, 8, 4, 4)).unwrap();
        let ys = net.forward_t(&xs, true).unwrap();
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&ys), values(&xs));
    }
}

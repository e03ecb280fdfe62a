//! Images as sequences of patches.

use crate::init::Init;
use crate::ops::{Conv2dParams, conv2d, linear, tokens};
use crate::pass::{self, Mode};
use crate::tape::foreign_op;
use crate::trace::{self, Step};
use crate::vars::{VarBuilder, weight_for};
use candle_core::{DType, Result, Tensor, bail};
use candle_nn::ModuleT;

/// Cuts an image into patches and maps each linearly to a token (Dosovitskiy et al. 2020, arXiv:2010.11929, equation
/// 1): a convolution whose kernel is its stride. (b, in_chans, h, w) -> (b, h/p · w/p, dim), row by row.
///
/// Key: `proj`.
#[derive(Debug, Clone)]
pub struct PatchEmbed {
    /// (dim, in_chans, p, p): a convolution's.
    weight: Tensor,
    bias: Tensor,
    patch: usize,
    path: String,
}

impl PatchEmbed {
    /// Patches of `patch` x `patch` pixels; the convolution's weight starts by `init`, its bias as PyTorch's.
    ///
    /// # Errors
    /// A patch of 0 pixels.
    pub fn new(in_chans: usize, dim: usize, patch: usize, init: Init, vb: VarBuilder) -> Result<Self> {
        Self::with_bias(in_chans, dim, patch, init, Init::torch_bias(in_chans * patch * patch), vb)
    }

    /// The convolution's weight starts by `init`, its bias by `bias`.
    ///
    /// # Errors
    /// A patch of 0 pixels.
    pub fn with_bias(
        in_chans: usize,
        dim: usize,
        patch: usize,
        init: Init,
        bias: Init,
        vb: VarBuilder,
    ) -> Result<Self> {
        if patch == 0 {
            bail!("{}: a patch has at least one pixel", vb.path())
        }
        let vb = vb.pp("proj");
        let (init, bias) = vb.layer_inits(init, bias, in_chans * patch * patch);
        let weight = vb.param((dim, in_chans, patch, patch), "weight", init)?;
        Ok(Self { weight, bias: vb.param(dim, "bias", bias)?, patch, path: vb.path().to_string() })
    }
}

impl ModuleT for PatchEmbed {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let ((b, c, h, w), p) = (xs.dims4()?, self.patch);
        if !h.is_multiple_of(p) || !w.is_multiple_of(p) {
            bail!("patch_embed: patches of {p}x{p} do not divide an image of {h}x{w}")
        }
        let (weight, bias) = (weight_for(&self.weight, train), weight_for(&self.bias, train));
        let (dim, in_chans) = (weight.dim(0)?, weight.dim(1)?);
        // In mixed precision the convolution's map is the tokens as they lie.
        let on_rows = xs.dtype() != DType::BF16 && c == in_chans;
        if on_rows && matches!(pass::mode(xs, train), Mode::Tape | Mode::Inference) {
            // One matrix product on the patches as rows: (b, c, h, w) -> (b, h/p · w/p, c · p · p)
            let rows = foreign_op(&[xs], |xs| {
                let cells = xs[0].reshape(vec![b, c, h / p, p, w / p, p])?.permute([0, 2, 4, 1, 3, 5])?;
                cells.contiguous()?.reshape((b, (h / p) * (w / p), c * p * p))
            })?;
            return linear(&rows, &weight.reshape((dim, c * p * p))?, Some(&bias));
        }
        let params = Conv2dParams { stride: (p, p), ..Conv2dParams::default() };
        let weights = [Some(&self.weight), Some(&self.bias)];
        let step = Step::Conv2d { channels: (in_chans, dim), kernel: (p, p), params };
        // In training the map is never made: the tokens are a product with the patches.
        trace::fused(Some([&[], &[]]), || {
            let conv = || conv2d(xs, &weight, Some(&bias), params);
            let map = trace::layer(step, &self.path, &weights, &[xs], conv)?;
            // (b, dim, h/p, w/p) -> (b, h/p · w/p, dim)
            trace::op(Step::Tokens, &[&map], || tokens(&map))
        })
    }
}

//! Images as sequences of patches.

use crate::conv::{Conv2d, Conv2dConfig};
use crate::init::Init;
use crate::trace;
use crate::vars::VarBuilder;
use candle_core::{Result, Tensor, bail};
use candle_nn::ModuleT;

/// Cuts an image into patches and maps each linearly to a token (Dosovitskiy et al. 2020, arXiv:2010.11929, equation 1): a
/// convolution whose kernel is its stride. (b, in_chans, h, w) -> (b, h/p · w/p, dim), row by row.
///
/// Key: `proj`.
#[derive(Debug, Clone)]
pub struct PatchEmbed {
    proj: Conv2d,
    patch: usize,
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
        let config = Conv2dConfig::new(patch).stride(patch).init(init).bias_init(bias);
        Ok(Self { proj: Conv2d::new(in_chans, dim, config, vb.pp("proj"))?, patch })
    }
}

impl ModuleT for PatchEmbed {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let (_, _, h, w) = xs.dims4()?;
        if !h.is_multiple_of(self.patch) || !w.is_multiple_of(self.patch) {
            bail!("patch_embed: patches of {0}x{0} do not divide an image of {h}x{w}", self.patch)
        }
        let map = self.proj.forward_t(xs, train)?;
        // (b, dim, h/p, w/p) -> (b, h/p · w/p, dim)
        trace::op("Tokens", String::new, &[&map], || map.flatten_from(2)?.transpose(1, 2)?.contiguous())
    }
}

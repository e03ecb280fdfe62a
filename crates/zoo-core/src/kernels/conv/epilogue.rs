//! What happens to the sums of a convolution before they are stored.

use crate::kernels::buffer::Shared;
use crate::kernels::fused_activation::FusedActivation;

/// y = act(scale · sum + bias + skip), scale and bias by channel.
pub(crate) struct Epilogue<'a, T> {
    pub scale: Option<&'a [T]>,
    pub bias: Option<&'a [T]>,
    pub skip: Option<&'a [T]>,
    pub activation: FusedActivation,
    /// Whether the sums may be rounded as Winograd's algorithm rounds them. Not where a gradient follows: two or three
    /// times the roundings turn the winners of poolings and the signs before ReLUs more often than PyTorch's do.
    pub allow_winograd: bool,
    /// Where each plane's [`plane_stats`](crate::kernels::batch_norm::plane_stats) go, those of a channel side by side.
    pub(super) plane_stats: Option<Shared<[f64; 2]>>,
}

impl<'a, T> Epilogue<'a, T> {
    /// A bias alone.
    pub fn bias(bias: Option<&'a [T]>) -> Self {
        Self::fold_batch_norm(None, bias, None, FusedActivation::None)
    }

    /// A normalisation with constant statistics, what is added behind it, and its activation.
    pub fn fold_batch_norm(
        scale: Option<&'a [T]>,
        bias: Option<&'a [T]>,
        skip: Option<&'a [T]>,
        activation: FusedActivation,
    ) -> Self {
        Self { scale, bias, skip, activation, allow_winograd: false, plane_stats: None }
    }

    pub fn allow_winograd(self, allow_winograd: bool) -> Self {
        Self { allow_winograd, ..self }
    }
}

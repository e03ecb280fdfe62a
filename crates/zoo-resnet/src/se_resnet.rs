//! J. Hu, L. Shen, S. Albanie, G. Sun, E. Wu (2017), "Squeeze-and-Excitation Networks", arXiv:1709.01507: the residual
//! networks of [`crate::resnet`] with a gate on the channels of every branch, in front of the addition (figure 3).
//!
//! The gate squeezes c channels to c / 16, rounded to a multiple of 8 and at least 8, as timm does.
//!
//! Checkpoint keys: timm's, which are torchvision's and `layer{n}.{i}.se.{fc1,fc2}`, 1x1 convolutions with bias. timm
//! starts the last norm of each branch at 0; here that is the option [`Config::zero_init`], as for all residual
//! networks.
//!
//! | layers | parameters |
//! |---|---|
//! | 18 | 11,779,624 |
//! | 34 | 21,960,416 |
//! | 50 | 28,088,024 |
//! | 101 | 49,326,872 |
//! | 152 | 66,821,848 |

pub use crate::resnet::Config;
use crate::resnet::{ResNet, build};
use candle_core::Result;
use zoo_core::model::{Choices, Timm};
use zoo_core::{Dimensions, Interpolation, Model, ModelInfo, Preprocess, VarBuilder};

impl Config {
    /// The network of 18, 34, 50, 101 or 152 layers with squeeze and excitation, reduction 16.
    ///
    /// # Errors
    /// A number of layers that the residual networks do not have.
    pub fn seresnet(layers: usize) -> Result<Self> {
        Ok(Self { se_reduction: Some(16), ..Self::resnet(layers)? })
    }
}

/// What `channels` are squeezed to: `channels / reduction`, rounded to a multiple of 8, at least 8.
pub fn make_divisible(channels: usize, reduction: usize) -> usize {
    // timm adds 4 to the quotient as a real number and then cuts to whole eights: the quotient's fraction never counts.
    ((channels / reduction + 4) / 8 * 8).max(8)
}

/// The network: (b, in_chans, h, w) -> (b, num_classes), a [`ResNet`] whose config asks for gates.
///
/// ```
/// use zoo_core::VarStore;
/// use zoo_resnet::se_resnet::{Config, SeResNet};
/// let store = VarStore::shapes_only();
/// SeResNet::new(&Config::seresnet(50)?, store.root())?;
/// assert_eq!(store.parameter_count(), 28_088_024);
/// assert_eq!(store.get("layer1.0.se.fc1.weight").map(|slot| slot.shape.into_dims()), Some(vec![16, 256, 1, 1]));
/// # Ok::<(), candle_core::Error>(())
/// ```
pub type SeResNet = ResNet;

const fn info(
    name: &'static str,
    parameters: usize,
    crop: f64,
    builder: fn(&Dimensions, VarBuilder) -> Result<Box<dyn Model>>,
) -> ModelInfo {
    ModelInfo {
        family: "resnet",
        preprocess: Preprocess { interpolation: Interpolation::Bicubic, crop, ..Preprocess::IMAGENET },
        keys: "timm",
        paper: "Hu et al. 2017, arXiv:1709.01507",
        timm: Some(Timm::new(name, "conv1", "fc")),
        choices: Choices::OF_RESIDUAL_MAPS,
        ..ModelInfo::new(name, parameters, builder)
    }
}

/// The registered variants; the crop is that of timm's default weights.
pub const MODELS: &[ModelInfo] = &[
    info("seresnet18", 11_779_624, 0.875, |d, vb| build(Config::seresnet(18)?, d, vb)),
    info("seresnet34", 21_960_416, 0.875, |d, vb| build(Config::seresnet(34)?, d, vb)),
    info("seresnet50", 28_088_024, 0.95, |d, vb| build(Config::seresnet(50)?, d, vb))
        .weights("hf:timm/seresnet50.a1_in1k"),
    info("seresnet101", 49_326_872, 0.875, |d, vb| build(Config::seresnet(101)?, d, vb)),
    info("seresnet152", 66_821_848, 0.875, |d, vb| build(Config::seresnet(152)?, d, vb)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squeezed_widths_are_multiples_of_eight() {
        // timm's make_divisible for reduction 16.
        let widths = [16, 64, 128, 192, 200, 256, 512, 1024, 2048].map(|c| make_divisible(c, 16));
        assert_eq!(widths, [8, 8, 8, 16, 16, 16, 32, 64, 128]);
    }
}

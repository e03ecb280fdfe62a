//! What other libraries call a residual network's tensors, and how their files want images.

use candle_core::Result;
use zoo_core::weights::{Layout, Rename, Source, Weights};
use zoo_core::{Interpolation, Preprocess};

/// What other files call the tensors of the networks for 32x32 images.
pub const RENAMES: &[Rename] = &[
    Rename { from: "linear.*", to: "fc.*", reason: "the name for the classifier in most CIFAR code" },
    Rename {
        from: "layer*.*.shortcut.*.*",
        to: "layer*.*.downsample.*.*",
        reason: "the name for the projection in most CIFAR code",
    },
];

/// Hugging Face transformers' files, whose images are as torchvision's but for how they are resized.
pub const TRANSFORMERS: Layout = Layout {
    name: "transformers",
    sign: "embedder.embedder.convolution.weight",
    renames: &[],
    key_map: Some(from_transformers),
    preprocess: Some(Preprocess { interpolation: Interpolation::Bicubic, ..Preprocess::IMAGENET }),
};

/// The translation of `ResNetForImageClassification` in Hugging Face transformers, which counts stages and layers from
/// 0 where torchvision counts from 1.
///
/// # Errors
/// None of its own: keys that are not of this layout are left for the loader to complain of.
pub fn from_transformers(weights: &Weights) -> Result<Vec<(String, Source)>> {
    let ours = |key: &str| -> Option<String> {
        let rest = key.strip_prefix("resnet.").unwrap_or(key);
        if let Some(tensor) = rest.strip_prefix("classifier.1.") {
            return Some(format!("fc.{tensor}"));
        }
        let (place, tensor) = rest.rsplit_once('.')?;
        // Number of the convolution and its norm in their block, or what stands for it, from 0.
        let (place, kind) = place.rsplit_once('.')?;
        let convolution = kind == "convolution";
        if !convolution && kind != "normalization" {
            return None;
        }
        let numbered = |n: usize| format!("{}{n}.{tensor}", if convolution { "conv" } else { "bn" });
        if place == "embedder.embedder" {
            return Some(numbered(1));
        }
        let (stage, rest) = place.strip_prefix("encoder.stages.")?.split_once(".layers.")?;
        let (block, layer) = rest.split_once('.')?;
        let layer = match layer.strip_prefix("layer.") {
            Some(n) => numbered(n.parse::<usize>().ok()?.checked_add(1)?),
            None if layer == "shortcut" => format!("downsample.{}.{tensor}", usize::from(!convolution)),
            None => return None,
        };
        Some(format!("layer{}.{block}.{layer}", stage.parse::<usize>().ok()?.checked_add(1)?))
    };
    Ok(weights.keys().filter_map(|key| Some((ours(key)?, Source::Key(key.to_string())))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_cifar_code_are_known() {
        let renamed = |key: &str| RENAMES.iter().find_map(|rule| rule.apply(key));
        assert_eq!(renamed("linear.weight").as_deref(), Some("fc.weight"));
        let running = renamed("layer2.0.shortcut.1.running_mean");
        assert_eq!(running.as_deref(), Some("layer2.0.downsample.1.running_mean"));
    }
}

//! The lengths of the `fast` recipes: as many epochs as a network trains in some minutes of two cores.

use super::CIFAR_SIDE;
use anyhow::Result;
use zoo::{ModelInfo, ModelOptions, VarStore};
use zoo_core::trace::Graph;

/// Images a second in training, on two cores, as docs/performance.md had them at commit 258c281. They stay as they are
/// while the kernels get faster: a recipe that grew with them would not be the one of earlier records.
#[rustfmt::skip]
pub const MEASURED: [(&str, f64); 10] = [
    ("cifar_resnet20", 691.9), ("cifar_resnet56", 233.1), ("cifar_resnet18", 61.5), ("cifar_vgg16_bn", 144.0),
    ("cifar_densenet121", 25.1), ("cifar_mobilenet_v1", 352.4), ("cifar_mobilenet_v2", 141.7),
    ("cifar_shufflenet_v1_g3", 211.6), ("cifar_vit_tiny_patch4", 96.2), ("template_mixer_s4", 1265.8),
];
/// What the others are taken to reach, in operations a second: the slowest of the measured ones, of those with
/// depthwise convolutions and of the rest.
const DEPTHWISE: f64 = 54e9;
const DENSE: f64 = 134e9;
/// More images a second than this no network trains: reading them takes its time too.
const MOST: f64 = 5_000.0;
/// CIFAR-10's.
const IMAGES: f64 = 50_000.0;
/// Share of the time that is left for training; the rest is evaluation.
const TRAINING: f64 = 0.92;

/// The time that the recipe called `name` is cut to.
pub fn minutes(name: &str) -> Option<f64> {
    match name {
        "fast-5" => Some(5.0),
        "fast" | "fast-15" => Some(15.0),
        "fast-60" => Some(60.0),
        _ => None,
    }
}

/// As many whole epochs as fit, and one for those of which none does.
pub fn epochs(minutes: f64, model: &ModelInfo) -> usize {
    let images = minutes * 60.0 * TRAINING * images_per_s(model);
    ((images / IMAGES) as usize).max(1)
}

fn images_per_s(model: &ModelInfo) -> f64 {
    if let Some((_, measured)) = MEASURED.iter().find(|(name, _)| *name == model.name) {
        return *measured;
    }
    let speed = if model.family == "mobile" { DEPTHWISE } else { DENSE };
    // Two operations a multiply-add, and three times the forward pass. What cannot be traced gets one epoch.
    graph(model).map_or(0.0, |graph| (speed / (6.0 * graph.macs() as f64)).min(MOST))
}

/// Whether the network has a BatchNorm.
pub fn has_batch_norm(model: &ModelInfo) -> bool {
    graph(model).is_ok_and(|graph| graph.nodes.iter().any(|node| node.kind() == "BatchNorm"))
}

/// On an image of CIFAR-10 or, for networks that take none so small, of their own size.
fn graph(model: &ModelInfo) -> Result<Graph> {
    let on = |side: usize| -> Result<Graph> {
        let options = ModelOptions { image_size: Some(side), ..ModelOptions::default() };
        let net = model.build(&options, VarStore::shapes_only().root())?;
        Ok(Graph::of_model(net.as_ref(), (3, side, side))?)
    };
    on(CIFAR_SIDE).or_else(|_| on(model.preprocess.size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::OptimizerConfig;
    use crate::recipe::{Length, Overrides, Recipe};

    /// The lengths by hand: minutes · 60 s · 0.92 · images/s over 50,000.
    #[test]
    fn fast_recipes_fill_their_minutes() {
        assert!(MEASURED.iter().all(|(name, _)| zoo::find(name).is_ok()));
        let epochs =
            |recipe: &str, model: &str| Recipe::named(recipe).unwrap().adapted_to(model).epochs(50_000).unwrap();
        assert_eq!(["fast-5", "fast-15", "fast-60"].map(|name| epochs(name, "cifar_resnet20")), [3, 11, 45]);
        assert_eq!(["fast-5", "fast-15", "fast-60"].map(|name| epochs(name, "cifar_densenet121")), [1, 1, 1]);
        // 134 GFLOP/s and 69 million multiply-adds: 323 images/s.
        assert_eq!(epochs("fast", "cifar_resnet32"), 5);
        assert_eq!(epochs("fast", "mlp"), 82); // at 5,000 images/s
        // A network that takes no 32x32 image is counted at its own size: 31 images/s.
        assert_eq!(epochs("fast-60", "alexnet"), 2);

        let fast = |model: &str| Recipe { name: String::new(), ..Recipe::named("fast").unwrap().adapted_to(model) };
        let fifteen = Recipe { name: String::new(), ..Recipe::named("fast-15").unwrap() };
        assert_eq!(fast("cifar_resnet20"), fifteen);
        for model in ["cifar_vit_tiny_patch4", "template_mixer_b2", "mlp"] {
            let recipe = fast(model);
            assert!(matches!(recipe.optimizer, OptimizerConfig::AdamW { .. }) && recipe.lr <= 1e-3, "{model}");
        }
        for model in ["cifar_vgg16_bn", "cifar_alexnet", "template_cnn", "cifar_googlenet"] {
            assert!(matches!(fast(model).optimizer, OptimizerConfig::Sgd { nesterov: true, .. }), "{model}");
        }
        // Up, then down to nothing, step by step.
        let extent = fifteen.step_count(50_000).unwrap();
        let lr = fifteen.schedule.over(fifteen.lr, extent);
        let peak = extent.total_steps / 10;
        assert!(lr.at(0) < 0.001 && lr.at(peak) == 0.1 && lr.at(extent.total_steps - 1) < 0.0001);
        // A length of the user's own counts more.
        let short =
            Recipe::named("fast").unwrap().adapted_to("mlp").with(&Overrides { epochs: Some(2), ..Overrides::NONE });
        assert_eq!(short.unwrap().length, Length::Epochs(2));
    }
}

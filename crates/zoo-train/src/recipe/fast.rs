//! The lengths of the `fast` and `sprint` recipes: as many epochs as a network trains in some minutes of two cores, in f32 and
//! in bf16.

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
/// The same in bf16, on AMX, as docs/performance.md had them at commit d79df32.
#[rustfmt::skip]
const MEASURED_IN_BF16: [(&str, f64); 10] = [
    ("cifar_resnet20", 1977.0), ("cifar_resnet56", 695.0), ("cifar_resnet18", 284.0), ("cifar_vgg16_bn", 510.0),
    ("cifar_densenet121", 83.0), ("cifar_mobilenet_v1", 740.0), ("cifar_mobilenet_v2", 197.0),
    ("cifar_shufflenet_v1_g3", 304.0), ("cifar_vit_tiny_patch4", 261.0), ("template_mixer_s4", 2378.0),
];

/// How fast two cores train.
struct Speeds {
    measured: &'static [(&'static str, f64)],
    /// What networks with depthwise convolutions and the rest are taken to reach, in operations a second, where they were not
    /// measured: the slowest of those that were.
    depthwise: f64,
    dense: f64,
    /// Share of the time that is left for what was measured; the rest is evaluation and, of a `sprint`, Muon.
    training: f64,
}

const FAST: Speeds = Speeds { measured: &MEASURED, depthwise: 54e9, dense: 134e9, training: 0.92 };
const SPRINT: Speeds = Speeds { measured: &MEASURED_IN_BF16, depthwise: 78e9, dense: 275e9, training: 0.7 };

/// More images a second than this no network trains: reading them takes its time too.
const MOST: f64 = 5_000.0;
/// CIFAR-10's.
const IMAGES: f64 = 50_000.0;
/// The epochs of the recipe called `name`, if it is cut to a time: as many as fit, and one where none does.
pub fn epochs(name: &str, model: &ModelInfo) -> Option<usize> {
    let (minutes, speeds) = match name {
        "fast-5" => (5.0, FAST),
        "fast" | "fast-15" => (15.0, FAST),
        "fast-60" => (60.0, FAST),
        "sprint-5" => (5.0, SPRINT),
        "sprint-15" => (15.0, SPRINT),
        "sprint-60" => (60.0, SPRINT),
        _ => return None,
    };
    let images = minutes * 60.0 * speeds.training * images_per_s(model, &speeds);
    Some(((images / IMAGES) as usize).max(1))
}

fn images_per_s(model: &ModelInfo, speeds: &Speeds) -> f64 {
    if let Some((_, measured)) = speeds.measured.iter().find(|(name, _)| *name == model.name) {
        return *measured;
    }
    let speed = if model.family == "mobile" { speeds.depthwise } else { speeds.dense };
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
        // 0.7 · 1977 images/s.
        let sprints = ["sprint-5", "sprint-15", "sprint-60"];
        assert_eq!(sprints.map(|name| epochs(name, "cifar_resnet20")), [8, 24, 99]);
        assert_eq!(sprints.map(|name| epochs(name, "cifar_resnet18")), [1, 3, 14]);
        assert!(MEASURED_IN_BF16.iter().map(|(name, _)| name).eq(MEASURED.iter().map(|(name, _)| name)));
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
        let sprint = |model: &str| Recipe::named("sprint-15").unwrap().adapted_to(model);
        assert!(matches!(sprint("cifar_resnet18").optimizer, OptimizerConfig::Muon { .. }));
        assert!(matches!(sprint("cifar_vit_tiny_patch4").optimizer, OptimizerConfig::AdamW { .. }));
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

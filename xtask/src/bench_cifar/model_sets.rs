//! Sets of networks for one suite: those that were published under one recipe, and ablations, whose rows differ in one
//! thing.

use anyhow::{Result, anyhow, ensure};
use zoo::ModelInfo;
use zoo_core::InitRule;
use zoo_train::recipe::{Overrides, Recipe};

/// The set of every model for CIFAR-10's images.
const ALL: &str = "all";
/// Side of these images.
const CIFAR_SIDE: usize = 32;

/// Networks that belong together, and the recipe that they are trained under.
struct Set {
    name: &'static str,
    recipe: &'static str,
    rows: &'static [Row],
}

/// A network of a set, and what is changed in the recipe for it.
struct Row {
    model: &'static str,
    changes: Overrides,
}

const fn row(model: &'static str) -> Row {
    Row { model, changes: Overrides::NONE }
}

const fn epochs(model: &'static str, epochs: usize) -> Row {
    Row { model, changes: Overrides { epochs: Some(epochs), ..Overrides::NONE } }
}

const fn bn_momentum(model: &'static str, momentum: f64) -> Row {
    Row { model, changes: Overrides { bn_momentum: Some(momentum), ..Overrides::NONE } }
}

const fn bn_eps(model: &'static str, eps: f64) -> Row {
    Row { model, changes: Overrides { bn_eps: Some(eps), ..Overrides::NONE } }
}

const fn init(model: &'static str, rule: InitRule) -> Row {
    Row { model, changes: Overrides { init: Some(rule), ..Overrides::NONE } }
}

const fn without_batch_norm(model: &'static str) -> Row {
    Row { model, changes: Overrides { batch_norm: Some(false), ..Overrides::NONE } }
}

/// The published sets, then the ablations: rows that differ in one thing.
#[rustfmt::skip]
const SETS: &[Set] = &[
    Set { name: "review-20", recipe: "review-20", rows: &[
        row("cifar_alexnet"), row("cifar_vgg16_bn"), row("cifar_vgg19_bn"), row("resnet101"), row("seresnet101"),
        row("densenet121"), row("mobilenet_v1"), row("mobilenet_v2"), epochs("mobilenet_v2", 75), row("shufflenet_v1_g3"),
        // The same families with stems that keep 32x32, and the ViT, which the review trains but gives no figure for: its
        // own recipe is `vit-scratch`.
        row("cifar_resnet101"), row("cifar_densenet121"), row("cifar_mobilenet_v1"), row("cifar_mobilenet_v2"),
        row("cifar_shufflenet_v1_g3"), row("cifar_vit_tiny_patch4"),
    ] },
    Set { name: "resnet-paper", recipe: "resnet-paper", rows: &[
        row("cifar_resnet20"), row("cifar_resnet32"), row("cifar_resnet44"), row("cifar_resnet56"), row("cifar_resnet110"),
        row("cifar_plain20"), row("cifar_plain32"), row("cifar_plain44"), row("cifar_plain56"),
    ] },
    Set { name: "template-600", recipe: "template-600", rows: &[
        row("template_cnn"), row("template_residual_cnn"), row("template_mixer_s4"), row("template_mixer_s2"),
        row("template_mixer_b4"), row("template_mixer_b2"),
    ] },
    Set { name: "modern-200", recipe: "modern-200", rows: &[
        row("cifar_vgg16_bn"), row("cifar_resnet18"), row("cifar_densenet121"), row("cifar_mobilenet_v2"), row("cifar_resnet20"),
    ] },
    Set { name: "vit-scratch", recipe: "vit-scratch", rows: &[row("cifar_vit_tiny_patch4")] },
    // Deeper gets worse without shortcuts, and better with them (He et al. 2015, figure 6).
    Set { name: "ablation-depth", recipe: "resnet-paper", rows: &[
        row("cifar_plain20"), row("cifar_plain32"), row("cifar_plain44"), row("cifar_plain56"),
        row("cifar_resnet20"), row("cifar_resnet32"), row("cifar_resnet44"), row("cifar_resnet56"),
    ] },
    // Zeros against a projection where the width changes: options A and B of the same paper.
    Set { name: "ablation-shortcut", recipe: "resnet-paper", rows: &[
        row("cifar_resnet20"), row("cifar_resnet20_b"), row("cifar_resnet32"), row("cifar_resnet32_b"),
        row("cifar_resnet44"), row("cifar_resnet44_b"), row("cifar_resnet56"), row("cifar_resnet56_b"),
    ] },
    Set { name: "ablation-se", recipe: "resnet-paper", rows: &[
        row("cifar_resnet20"), row("cifar_seresnet20"), row("cifar_resnet56"), row("cifar_seresnet56"),
    ] },
    // `mlp-sgd` is made for nets without BatchNorm: at the 0.1 of the other recipes they go nowhere. And the nets are
    // such as can do without: plain ones that start by He's rule, which keeps the signal's size from layer to layer. A
    // sum with a shortcut would double its square at every block, and PyTorch's usual start, AlexNet's and
    // template_cnn's, lets it fade. In 150 steps on synthetic images these two leave a loss of 2.30 behind (1.60 and
    // 1.99), cifar_resnet20 and cifar_alexnet do not.
    Set { name: "ablation-batch-norm", recipe: "mlp-sgd", rows: &[
        row("cifar_vgg16_bn"), without_batch_norm("cifar_vgg16_bn"), row("cifar_plain20"), without_batch_norm("cifar_plain20"),
    ] },
    // Nobody has published these two: a quarter of an hour a row shows where it stops to matter.
    Set { name: "ablation-bn-momentum", recipe: "fast", rows: &[
        bn_momentum("cifar_resnet20", 0.01), bn_momentum("cifar_resnet20", 0.03), bn_momentum("cifar_resnet20", 0.1),
        bn_momentum("cifar_resnet20", 0.3), bn_momentum("cifar_resnet20", 1.0),
    ] },
    Set { name: "ablation-bn-eps", recipe: "fast", rows: &[
        bn_eps("cifar_resnet20", 1e-7), bn_eps("cifar_resnet20", 1e-5), bn_eps("cifar_resnet20", 1e-3),
        bn_eps("cifar_resnet20", 1e-1),
    ] },
    // The review's networks start as PyTorch's layers do. Under its constant rate of 0.001 He's start, which the networks'
    // papers have, learns more slowly: a figure of a paper is not met by its network and recipe alone.
    Set { name: "ablation-init", recipe: "review-20", rows: &[
        init("cifar_resnet20", InitRule::Torch), init("cifar_resnet20", InitRule::Model),
        init("mobilenet_v1", InitRule::Torch), init("mobilenet_v1", InitRule::Model),
    ] },
];

/// The names of all sets that [`choose`] knows.
fn sets() -> impl Iterator<Item = &'static str> {
    SETS.iter().map(|set| set.name).chain([ALL])
}

/// One network and how to train it.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The network.
    pub model: &'static ModelInfo,
    /// The recipe, adapted to it and changed as the set says.
    pub recipe: Recipe,
    /// What was changed in it: what tells a set's rows apart.
    pub overrides: Overrides,
}

/// What a list such as `review-20,mlp,cifar_resnet*` asks for, in its order, each once.
///
/// A name or glob brings models under `recipe`, or their default ones where it is `None`. The name of a set ([`sets`])
/// brings that set's models under its own recipe, unless `recipe` is given; what the set changes in it is changed in
/// either case. `all` brings every model for 32x32 images.
///
/// # Errors
/// A name or glob that fits no model and no set, or an unknown recipe.
pub fn choose(list: &str, recipe: Option<&str>) -> Result<Vec<Choice>> {
    let make = |model: &'static ModelInfo, own: Option<&str>, changes: &Overrides| -> Result<Choice> {
        let found = match recipe.or(own) {
            Some(name) => Recipe::named(name)?,
            None => Recipe::default_for(model)?,
        };
        let found = found.adapted_to(model.name);
        Ok(Choice { model, overrides: changes.that_change(&found), recipe: found.with(changes)? })
    };
    let mut chosen: Vec<Choice> = Vec::new();
    for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let found: Vec<Choice> = if let Some(set) = SETS.iter().find(|set| set.name == item) {
            let rows = set.rows.iter().map(|row| make(zoo::find(row.model)?, Some(set.recipe), &row.changes));
            rows.collect::<Result<_>>()?
        } else if item == ALL {
            let models = zoo::all().filter(|model| model.preprocess.size == CIFAR_SIDE);
            models.map(|model| make(model, None, &Overrides::NONE)).collect::<Result<_>>()?
        } else {
            let models = zoo::select_for(&[item], Some(CIFAR_SIDE)).map_err(|error| {
                let sets: Vec<&str> = sets().collect();
                anyhow!("{error}; the sets are {}", sets.join(", "))
            })?;
            models.into_iter().map(|model| make(model, None, &Overrides::NONE)).collect::<Result<_>>()?
        };
        for choice in found {
            if !chosen.iter().any(|c| c.model.name == choice.model.name && c.recipe == choice.recipe) {
                chosen.push(choice);
            }
        }
    }
    ensure!(!chosen.is_empty(), "`{list}` names no model");
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zoo_train::recipe::Length;

    fn names(list: &str, recipe: Option<&str>) -> Vec<(&'static str, String)> {
        choose(list, recipe).unwrap().into_iter().map(|c| (c.model.name, c.recipe.name)).collect()
    }

    #[test]
    fn ablations_differ_in_one_thing() {
        for set in SETS {
            assert!(Recipe::NAMES.contains(&set.recipe), "{}", set.name);
            assert_eq!(choose(set.name, None).unwrap().len(), set.rows.len(), "{}", set.name);
        }
        let rows = |list: &str, recipe| -> Vec<(&str, String)> {
            let choices = choose(list, recipe).unwrap().into_iter();
            choices.map(|c| (c.model.name, format!("{} {}", c.recipe.name, c.overrides.settings().join(" ")))).collect()
        };
        assert_eq!(
            rows("ablation-batch-norm", None)[..2],
            [("cifar_vgg16_bn", "mlp-sgd ".into()), ("cifar_vgg16_bn", "mlp-sgd batch_norm=off".into())]
        );
        let momenta = rows("ablation-bn-momentum", Some("modern-200"));
        assert_eq!(momenta.len(), 5);
        assert_eq!(momenta[0], ("cifar_resnet20", "modern-200 bn_momentum=0.01".into()));
        assert_eq!(rows("ablation-bn-eps", None)[0], ("cifar_resnet20", "fast bn_eps=0.0000001".into()));
        // What two sets share is one run.
        assert_eq!(rows("ablation-depth,resnet-paper,ablation-se", None).len(), 8 + 1 + 2);
        assert!(choose("review-20", None).unwrap().iter().any(|c| c.recipe.length == Length::Epochs(75)));
    }

    #[test]
    fn lists_name_models_globs_and_sets() {
        let pairs = |list: &[(&'static str, &str)]| list.iter().map(|&(m, r)| (m, r.to_owned())).collect::<Vec<_>>();
        assert_eq!(
            names("cifar_resnet20, template_cnn,mlp,cifar_resnet20", None),
            pairs(&[("cifar_resnet20", "modern-200"), ("template_cnn", "template-600"), ("mlp", "mlp-sgd")])
        );
        assert_eq!(names("mlp", Some("quick")), pairs(&[("mlp", "quick")]));
        // One model under two recipes is two runs.
        let both = names("modern-200,resnet-paper", None);
        assert_eq!(both.iter().filter(|(model, _)| *model == "cifar_resnet20").count(), 2);
        assert!(names("cifar_plain*", None).contains(&("cifar_plain20", "modern-200".into())));
        assert!(names("all", None).iter().any(|(model, _)| *model == "template_cnn"));
        for bad in ["cifar_resnet2o", "nothing*", "", " , "] {
            assert!(choose(bad, None).is_err(), "{bad:?}");
        }
        assert!(choose("mlp", Some("none")).is_err());
        let error = choose("ablation-dept", None).unwrap_err().to_string();
        assert!(error.contains("`ablation-dept`") && error.contains("review-20, resnet-paper"), "{error}");
        assert!(error.contains("ablation-depth") && error.ends_with("all"), "{error}");
    }
}

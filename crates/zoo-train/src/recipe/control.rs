//! What a recipe says beyond the optimizer and the images: what is trained, what is kept, what counts.

use super::Recipe;
use crate::data::Split;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use zoo::{ModelInfo, ModelOptions, VarStore};

/// Which epoch's weights a run keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// The last one's.
    #[default]
    Last,
    /// Those of the epoch with the highest accuracy on the images that epochs are measured on; the first of equals.
    Best,
    /// The best epoch's, and beside them the last one's.
    Both,
}

/// What training makes small.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossFunction {
    /// Of the classes against each other.
    #[default]
    CrossEntropy,
    /// Of every class by itself ([`binary_cross_entropy`](crate::loss::binary_cross_entropy)), as timm's `--bce-loss`.
    Bce,
}

/// What each class counts in the loss.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassWeights {
    /// All the same.
    #[default]
    Equal,
    /// Each the inverse of its share of the training images: n / (classes · n_class), scikit-learn's `balanced`.
    Balanced,
    /// These, in the order of the classes.
    Given(Vec<f32>),
}

impl FromStr for ClassWeights {
    type Err = String;

    /// `equal`, `balanced`, or numbers with commas between them.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "equal" => Ok(Self::Equal),
            "balanced" => Ok(Self::Balanced),
            list => {
                let number = |part: &str| part.trim().parse::<f32>().ok().filter(|w| *w >= 0.0 && w.is_finite());
                let weights: Option<Vec<f32>> = list.split(',').map(number).collect();
                let wanted = "expected `balanced`, `equal`, or a number a class with commas between them";
                weights.map(Self::Given).ok_or_else(|| format!("`{list}`: {wanted}"))
            }
        }
    }
}

impl ClassWeights {
    /// The weight of each class; none where all count the same.
    pub(crate) fn of(&self, split: &Split, classes: &[String]) -> Result<Vec<f32>> {
        match self {
            Self::Equal => Ok(Vec::new()),
            Self::Given(weights) => {
                let (found, n) = (weights.len(), classes.len());
                ensure!(found == n, "class weights: expected {n} numbers, one a class, got {found}");
                ensure!(weights.iter().any(|weight| *weight > 0.0), "class weights: no class counts");
                Ok(weights.clone())
            }
            Self::Balanced => {
                let counts = split.counts(classes.len());
                let missing = counts.iter().zip(classes).find(|(count, _)| **count == 0);
                ensure!(
                    missing.is_none(),
                    "class weights: `{}` has no training images to balance",
                    missing.map_or("", |(_, name)| name)
                );
                let scale = split.len() as f32 / classes.len() as f32;
                Ok(counts.into_iter().map(|count| scale / count as f32).collect())
            }
        }
    }
}

/// Which keys are frozen.
type IsFrozen = Box<dyn Fn(&str) -> bool + Send + Sync>;

impl Recipe {
    /// Whether a part of the network is frozen.
    pub fn freezes(&self) -> bool {
        self.freeze_all_but_head || !self.freeze.is_empty()
    }

    /// Which keys of a network of `model` the recipe freezes: what [`VarStore::set_frozen`] takes before the network is built.
    /// `None` where it freezes nothing.
    ///
    /// A pattern is a glob on the keys of parameters (`layer1.*`, `features.[0-4].*`), or the name of a part, which stands for
    /// all that is in it (`layer1`).
    ///
    /// # Errors
    /// A pattern that is none, or a network that cannot be built for these options.
    pub fn frozen(&self, model: &ModelInfo, options: &ModelOptions) -> Result<Option<IsFrozen>> {
        if !self.freezes() {
            return Ok(None);
        }
        let patterns = self.freeze.iter().flat_map(|pattern| [pattern.clone(), format!("{pattern}.*")]);
        let pattern = |text: String| glob::Pattern::new(&text).with_context(|| format!("freeze {text}"));
        let patterns = patterns.map(pattern).collect::<Result<Vec<_>>>()?;
        let head = match self.freeze_all_but_head {
            true => {
                let net = model.build(options, VarStore::shapes_only().root())?;
                Some(format!("{}.", net.classifier().path()))
            }
            false => None,
        };
        Ok(Some(Box::new(move |key| {
            let in_trunk = head.as_ref().is_some_and(|head| !key.starts_with(head.as_str()));
            in_trunk || patterns.iter().any(|pattern| pattern.matches(key))
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frozen(recipe: &Recipe) -> Vec<String> {
        let model = zoo::find("cifar_resnet20").unwrap();
        let is_frozen = recipe.frozen(model, &ModelOptions::default()).unwrap().unwrap();
        let store = VarStore::shapes_only();
        model.build(&ModelOptions::default(), store.root()).unwrap();
        store.slots().into_iter().map(|slot| slot.key).filter(|key| is_frozen(key)).collect()
    }

    #[test]
    fn patterns_name_parts_and_keys() {
        let recipe = |patterns: &[&str]| Recipe {
            freeze: patterns.iter().map(|&pattern| pattern.to_owned()).collect(),
            ..Recipe::named("finetune").unwrap()
        };
        let part = frozen(&recipe(&["layer1"]));
        assert!(part.len() == 36 - 6 && part.iter().all(|key| key.starts_with("layer1.")), "{part:?}");
        assert_eq!(part, frozen(&recipe(&["layer1.*"])));
        assert_eq!(frozen(&recipe(&["conv1.weight"])), ["conv1.weight"]);
        let norms = frozen(&recipe(&["*.bn?", "bn1"]));
        assert!(
            norms.iter().all(|key| key.contains("bn")) && norms.contains(&"bn1.running_mean".to_owned()),
            "{norms:?}"
        );
        let all = Recipe { freeze_all_but_head: true, ..Recipe::named("finetune").unwrap() };
        let trunk = frozen(&all);
        assert!(
            trunk.contains(&"layer3.2.conv2.weight".to_owned()) && !trunk.iter().any(|key| key.starts_with("linear"))
        );
        let model = zoo::find("cifar_resnet20").unwrap();
        let error = recipe(&["a[", "b"]).frozen(model, &ModelOptions::default()).err().unwrap();
        assert!(error.to_string().contains("freeze a["), "{error}");
        assert!(Recipe::named("finetune").unwrap().frozen(model, &ModelOptions::default()).unwrap().is_none());
    }

    #[test]
    fn class_weights_are_read_and_balanced() {
        assert_eq!("balanced".parse(), Ok(ClassWeights::Balanced));
        assert_eq!("1, 2.5".parse(), Ok(ClassWeights::Given(vec![1.0, 2.5])));
        for bad in ["", "1,-2", "1,x", "inf"] {
            assert!(bad.parse::<ClassWeights>().unwrap_err().contains("expected `balanced`"), "{bad}");
        }
        let names = ["a".to_owned(), "b".to_owned()];
        let split = Split::new(vec![0; 4], vec![0, 1, 0, 0], [1, 1, 1]).unwrap();
        // 4 / (2 · 3) and 4 / (2 · 1).
        assert_eq!(ClassWeights::Balanced.of(&split, &names).unwrap(), [2.0 / 3.0, 2.0]);
        let three = ClassWeights::Given(vec![1.0; 3]).of(&split, &names).unwrap_err().to_string();
        assert_eq!(three, "class weights: expected 2 numbers, one a class, got 3");
        let one = Split::new(vec![0; 1], vec![0], [1, 1, 1]).unwrap();
        assert!(
            ClassWeights::Balanced.of(&one, &names).unwrap_err().to_string().contains("`b` has no training images")
        );
    }
}

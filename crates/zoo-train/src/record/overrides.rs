//! What a run changed in its recipe.

use crate::recipe::Overrides;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

/// What a run changed in the recipe that its record names.
///
/// ```
/// use zoo_train::recipe::Overrides;
/// use zoo_train::record::RunOverrides;
/// let overrides = RunOverrides::from(Overrides { lr: Some(0.05), ..Overrides::NONE });
/// assert_eq!(serde_json::to_string(&overrides)?, r#"{"lr":0.05}"#);
/// assert_eq!(overrides.settings(), ["lr=0.05"]);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RunOverrides {
    /// Single values; epochs are not among them, for the record has a field of its own.
    #[serde(flatten)]
    pub recipe: Overrides,
    /// Any other settings, each as `KEY=VALUE` for [`Recipe::set`](crate::recipe::Recipe::set), in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<String>,
    /// Whose mean and deviation pixels were normalised by, as `zoo train --normalize` names them; `checkpoint` for
    /// those that the run's weights came with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalize: Option<String>,
    /// The checkpoint that the run started from, so that nobody takes it for one from scratch.
    // A path that is no UTF-8 has no form in JSON, and a run must not fail at its end for its record's sake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
}

impl From<Overrides> for RunOverrides {
    fn from(recipe: Overrides) -> Self {
        Self { recipe, ..Self::default() }
    }
}

impl RunOverrides {
    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// As `name=value`, for people to read.
    pub fn settings(&self) -> Vec<String> {
        let mut settings = self.recipe.settings();
        settings.extend(self.set.iter().cloned());
        settings.extend(self.normalize.as_ref().map(|normalize| format!("normalize={normalize}")));
        settings.extend(self.weights.as_ref().map(|weights| format!("weights={weights}")));
        settings
    }

    /// Takes one `name=value` over; `None` if it is none that was ever written.
    fn take(&mut self, setting: &str) -> Option<()> {
        let (name, value) = setting.split_once('=')?;
        match name {
            "batch" => self.recipe.batch = Some(value.parse().ok()?),
            "lr" => self.recipe.lr = Some(value.parse().ok()?),
            "bn_momentum" => self.recipe.bn_momentum = Some(value.parse().ok()?),
            "bn_eps" => self.recipe.bn_eps = Some(value.parse().ok()?),
            "init" => self.recipe.init = Some(value.parse().ok()?),
            "batch_norm" => self.recipe.batch_norm = Some(value == "on"),
            "normalize" => self.normalize = Some(value.into()),
            "weights" => self.weights = Some(value.into()),
            _ => return None,
        }
        Some(())
    }
}

/// Reads the overrides of a record. They were once written as a list, `["batch=6"]`; records last longer than programs,
/// and runs that took days are to stay in reports.
pub(super) fn fields_or_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RunOverrides, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Fields(RunOverrides),
        List(Vec<String>),
    }
    let list = match Written::deserialize(deserializer)? {
        Written::Fields(overrides) => return Ok(overrides),
        Written::List(list) => list,
    };
    let mut overrides = RunOverrides::default();
    for setting in list {
        // A setting that is passed over would make a changed run look like an unchanged one.
        overrides.take(&setting).ok_or_else(|| D::Error::custom(format!("`{setting}` is no override")))?;
    }
    Ok(overrides)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::RunRecord;
    use crate::record::tests::record;
    use serde_json::{Value, json};
    use zoo_core::InitRule;

    fn read(overrides: Value) -> serde_json::Result<RunOverrides> {
        let mut line = serde_json::to_value(record("mlp", "fast", 1, 0.5))?;
        line["overrides"] = overrides;
        Ok(serde_json::from_value::<RunRecord>(line)?.overrides)
    }

    fn all() -> RunOverrides {
        let recipe = Overrides {
            epochs: None,
            batch: Some(6),
            lr: Some(0.05),
            bn_momentum: Some(0.01),
            bn_eps: Some(1e-7),
            batch_norm: Some(false),
            init: Some(InitRule::Torch),
        };
        RunOverrides { recipe, set: Vec::new(), normalize: Some("half".into()), weights: Some("a=b.pth".into()) }
    }

    #[test]
    fn only_what_is_changed_is_written() {
        assert_eq!(serde_json::to_value(RunOverrides::default()).unwrap(), json!({}));
        let written = json!({
            "batch": 6, "lr": 0.05, "bn_momentum": 0.01, "bn_eps": 1e-7, "batch_norm": false, "init": "torch",
            "normalize": "half", "weights": "a=b.pth",
        });
        assert_eq!(serde_json::to_value(all()).unwrap(), written);
        assert_eq!(read(written).unwrap(), all());
        assert!(read(json!({})).unwrap().is_empty() && !all().is_empty());
        assert!(read(json!({"batch": "six"})).is_err());
    }

    #[test]
    fn settings_of_any_kind_are_listed() {
        let overrides =
            RunOverrides { set: vec!["optimizer.weight_decay=0.05".into(), "clip_norm=none".into()], ..all() };
        let written = serde_json::to_value(&overrides).unwrap();
        assert_eq!(written["set"], json!(["optimizer.weight_decay=0.05", "clip_norm=none"]));
        assert_eq!(read(written).unwrap(), overrides);
        assert_eq!(overrides.settings()[6..8], ["optimizer.weight_decay=0.05", "clip_norm=none"]);
        assert!(!RunOverrides { set: vec!["clip_norm=none".into()], ..RunOverrides::default() }.is_empty());
    }

    #[test]
    fn records_of_before_the_fields_are_read() {
        assert!(read(json!([])).unwrap().is_empty());
        let list = [
            "batch=6",
            "lr=0.05",
            "bn_momentum=0.01",
            "bn_eps=0.0000001",
            "batch_norm=off",
            "init=torch",
            "normalize=half",
            "weights=a=b.pth",
        ];
        assert_eq!(read(json!(list)).unwrap(), all());
        assert_eq!(all().settings(), list);
        for unknown in ["batch", "batch=six", "colour=red"] {
            let error = read(json!([unknown])).unwrap_err().to_string();
            assert!(error.contains(&format!("`{unknown}` is no override")), "{error}");
        }
    }
}

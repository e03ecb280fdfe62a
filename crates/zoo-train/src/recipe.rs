//! Recipes: everything that decides how a network is trained, as data with a name.
//!
//! [`Recipe::named`] knows the published ones and ours. [`RECIPES`] says of each whose it is and how it trains, in a
//! line; `zoo recipe list` prints them, `zoo recipe show NAME` every setting of one. [`Recipe::read`] reads one's own
//! from a file, [`Recipe::set`] changes single settings.

mod check;
mod control;
mod fast;
mod file;
mod named;
mod over;
mod words;

pub use control::{ClassWeights, Keep, LossFunction};
pub use file::{RecipeFile, RecipeSource};
pub use words::{About, RECIPES};

use crate::augment::Augment;
use crate::optim::OptimizerConfig;
use crate::schedule::{Schedule, StepCount};
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use zoo_core::{InitRule, Precision};
pub use zoo_image::{BatchNormOverride, Normalize};

/// Side of CIFAR-10's images.
const CIFAR_SIDE: usize = 32;

/// How long a run trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// Passes over the training images.
    Epochs(usize),
    /// Optimizer steps, rounded up to whole epochs.
    Steps(u64),
}

/// How a network is trained.
///
/// ```
/// use zoo_train::recipe::{Overrides, Recipe};
/// let recipe = Recipe::named("modern-200")?;
/// let short = recipe.with(&Overrides { epochs: Some(20), ..Overrides::default() })?;
/// let extent = short.step_count(4_000)?;
/// assert_eq!((extent.steps_per_epoch, extent.total_steps), (32, 640));
/// // The cosine spans the shortened run.
/// let lr = short.schedule.over(short.lr, extent);
/// assert!(lr.at(0) == 0.1 && lr.at(639) < 0.001);
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The name by which reports and the command line call it.
    pub name: String,
    /// The optimizer and its constants.
    pub optimizer: OptimizerConfig,
    /// Weight decay also on biases and normalisation scales, as PyTorch's optimizers do unless told otherwise.
    pub decay_all: bool,
    /// Base learning rate.
    pub lr: f64,
    /// Its course.
    pub schedule: Schedule,
    /// How long.
    pub length: Length,
    /// Images a step.
    pub batch: usize,
    /// Leaves out an epoch's last batch where it is smaller than the others.
    pub drop_last: bool,
    /// Random crop and flip.
    pub augment: Augment,
    /// From pixels to input.
    pub normalize: Normalize,
    /// What training makes small. The cross-entropy is not written, see [`precision`](Self::precision).
    #[serde(default, skip_serializing_if = "is_default")]
    pub loss: LossFunction,
    /// Of the binary cross-entropy: the share of a class above which it is asked for whole, as timm's option of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bce_target_thresh: Option<f64>,
    /// Share of the target that is spread over all classes.
    pub label_smoothing: f64,
    /// Largest L2 norm of all gradients together.
    pub clip_norm: Option<f64>,
    /// Share of the training images, from the end, that is set aside and not trained on.
    pub hold_out: f64,
    /// What is changed in the network's BatchNorm layers.
    #[serde(default, skip_serializing_if = "BatchNormOverride::is_none")]
    pub batch_norm: BatchNormOverride,
    /// Whose rules the initial values follow. The network's own are not written, see [`precision`](Self::precision).
    #[serde(default, skip_serializing_if = "is_default")]
    pub init: InitRule,
    /// What the network computes in, in training and in evaluation. f32 is not written: a recipe that says nothing, as
    /// none did before there was a choice, is the same one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub precision: Precision,
    /// Which epoch's weights are kept.
    #[serde(default, skip_serializing_if = "is_default")]
    pub keep: Keep,
    /// Ends the run when so many epochs in a row were no better than the best one before them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
    /// Batches whose gradients are added up for one step of the optimizer: the mean over all of their images.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub accumulate: usize,
    /// Decay of an exponential moving average of the weights and the running statistics, which is what is measured and kept.
    /// It follows faster at first ([`WeightAverage::warmup`](crate::average::WeightAverage::warmup)), so that a short run's
    /// is none of the first weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// Stochastic weight averaging (Izmailov et al. 2018): the share of the run, from its end, over whose epochs weights and
    /// running statistics are averaged. From its first epoch on the mean is what is measured and kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swa: Option<f64>,
    /// Parts of the network that are not trained, as [`Recipe::frozen`] reads them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<String>,
    /// Trains the classifier alone.
    #[serde(default, skip_serializing_if = "is_default")]
    pub freeze_all_but_head: bool,
    /// What the learning rate of a layer is to that of the layer above, from the classifier down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_decay: Option<f64>,
    /// What the learning rate of the classifier is multiplied with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_lr: Option<f64>,
    /// What each class counts in the loss.
    #[serde(default, skip_serializing_if = "is_default")]
    pub class_weights: ClassWeights,
}

fn one() -> usize {
    1
}

fn is_one(value: &usize) -> bool {
    *value == 1
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Single values put over a recipe.
///
/// What is relative follows: a cosine spans the new length and milestones stay at their share of it. What a recipe
/// states in epochs or steps, its warm-up, stays as long as it is, but never takes more than a tenth of the run. The
/// learning rate does not follow the batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Overrides {
    /// Epochs to train.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// Images a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Base learning rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Momentum of every BatchNorm's running statistics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bn_momentum: Option<f64>,
    /// ε of every BatchNorm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bn_eps: Option<f64>,
    /// Whether every BatchNorm normalises; with `false` it is its weight and bias alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_norm: Option<bool>,
    /// Whose rules the initial values follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<InitRule>,
}

impl Overrides {
    /// Nothing is changed.
    pub const NONE: Self =
        Self { epochs: None, batch: None, lr: None, bn_momentum: None, bn_eps: None, batch_norm: None, init: None };
}

impl Recipe {
    /// The recipe with single values put over it.
    ///
    /// # Errors
    /// What [`check`](Self::check) refuses.
    pub fn with(&self, overrides: &Overrides) -> Result<Self> {
        let mut recipe = self.clone();
        recipe.length = overrides.epochs.map_or(recipe.length, Length::Epochs);
        recipe.batch = overrides.batch.unwrap_or(recipe.batch);
        recipe.lr = overrides.lr.unwrap_or(recipe.lr);
        recipe.batch_norm.momentum = overrides.bn_momentum.or(recipe.batch_norm.momentum);
        recipe.batch_norm.eps = overrides.bn_eps.or(recipe.batch_norm.eps);
        recipe.batch_norm.off = overrides.batch_norm.map_or(recipe.batch_norm.off, |on| !on);
        recipe.init = overrides.init.unwrap_or(recipe.init);
        recipe.check()?;
        Ok(recipe)
    }

    /// How many of `images` training images are trained on; the rest is held out.
    pub fn train_images(&self, images: usize) -> usize {
        images - (images as f64 * self.hold_out).round() as usize
    }

    /// Whether an epoch over `images` images would end in a batch of a single one. BatchNorm on a 1x1 map has no
    /// variance then, so that such a batch is always left out.
    pub fn leaves_one_image(&self, images: usize) -> bool {
        !self.drop_last && images > self.batch && images % self.batch == 1
    }

    /// Steps of a run that trains on `images` images, held-out ones not counted. Runs end with a whole epoch.
    ///
    /// # Errors
    /// So few images that an epoch has no step.
    pub fn step_count(&self, images: usize) -> Result<StepCount> {
        let batches = if self.drop_last { images / self.batch } else { images.div_ceil(self.batch) };
        let per_epoch = batches.div_ceil(self.accumulate.max(1));
        ensure!(
            per_epoch > 0,
            "recipe {}: {images} training images make no batch of {}{}",
            self.name,
            self.batch,
            if self.drop_last { ", and smaller ones are dropped" } else { "" }
        );
        let steps_per_epoch = per_epoch as u64;
        let epochs = match self.length {
            Length::Epochs(epochs) => epochs as u64,
            Length::Steps(steps) => steps.div_ceil(steps_per_epoch),
        };
        Ok(StepCount { steps_per_epoch, total_steps: epochs * steps_per_epoch })
    }

    /// Epochs of a run over a data set of `images` training images, held-out ones among them.
    ///
    /// # Errors
    /// As [`Recipe::step_count`].
    pub fn epochs(&self, images: usize) -> Result<usize> {
        let extent = self.step_count(self.train_images(images))?;
        Ok((extent.total_steps / extent.steps_per_epoch) as usize)
    }
}

impl Overrides {
    /// Those that change `recipe`. Epochs are left out: records and reports state every run's epochs.
    pub fn that_change(&self, recipe: &Recipe) -> Self {
        let BatchNormOverride { momentum, eps, off } = recipe.batch_norm;
        Self {
            epochs: None,
            batch: self.batch.filter(|&batch| batch != recipe.batch),
            lr: self.lr.filter(|&lr| lr != recipe.lr),
            bn_momentum: self.bn_momentum.filter(|&own| Some(own) != momentum),
            bn_eps: self.bn_eps.filter(|&own| Some(own) != eps),
            batch_norm: self.batch_norm.filter(|&on| on == off),
            init: self.init.filter(|&init| init != recipe.init),
        }
    }

    /// These, and those of `others` for what is not set here.
    pub fn or(&self, others: &Self) -> Self {
        Self {
            epochs: self.epochs.or(others.epochs),
            batch: self.batch.or(others.batch),
            lr: self.lr.or(others.lr),
            bn_momentum: self.bn_momentum.or(others.bn_momentum),
            bn_eps: self.bn_eps.or(others.bn_eps),
            batch_norm: self.batch_norm.or(others.batch_norm),
            init: self.init.or(others.init),
        }
    }

    /// As `name=value`, for people to read. Epochs are left out, as in [`Overrides::that_change`].
    pub fn settings(&self) -> Vec<String> {
        let batch = self.batch.map(|batch| format!("batch={batch}"));
        let lr = self.lr.map(|lr| format!("lr={lr}"));
        let bn_momentum = self.bn_momentum.map(|momentum| format!("bn_momentum={momentum}"));
        let bn_eps = self.bn_eps.map(|eps| format!("bn_eps={eps}"));
        let batch_norm = self.batch_norm.map(|on| format!("batch_norm={}", if on { "on" } else { "off" }));
        let init = self.init.map(|init| format!("init={init}"));
        [batch, lr, bn_momentum, bn_eps, batch_norm, init].into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zoo_core::BatchNormSettings;

    /// Recipes are stored beside runs: one of before a field was added still reads, and no unknown field passes.
    #[test]
    fn what_is_changed_in_batch_norm_is_data() {
        let recipe = Recipe::named("modern-200").unwrap();
        let json = serde_json::to_string(&recipe).unwrap();
        assert!(!json.contains("batch_norm"), "{json}");
        let changed =
            Overrides { bn_momentum: Some(0.01), bn_eps: Some(1e-3), batch_norm: Some(false), ..Overrides::NONE };
        let changed = recipe.with(&changed).unwrap();
        let json = serde_json::to_string(&changed).unwrap();
        assert!(json.contains(r#""batch_norm":{"momentum":0.01,"eps":0.001,"off":true}"#), "{json}");
        assert_eq!(serde_json::from_str::<Recipe>(&json).unwrap(), changed);
        assert!(serde_json::from_str::<Recipe>(&json.replace("momentum\":0.01", "momentun\":0.01")).is_err());
        let settings = BatchNormSettings { momentum: Some(0.01), eps: Some(1e-3), normalize: false };
        assert_eq!(BatchNormSettings::from(changed.batch_norm), settings);
        assert_eq!(BatchNormSettings::from(recipe.batch_norm), BatchNormSettings::default());
    }

    #[test]
    fn precision_is_data_and_f32_the_default() {
        let recipe = Recipe::named("modern-200").unwrap();
        let json = serde_json::to_string(&recipe).unwrap();
        assert!(recipe.precision == Precision::F32 && !json.contains("precision"), "{json}");
        let mixed = Recipe { precision: Precision::Bf16, ..recipe.clone() };
        let json = serde_json::to_string(&mixed).unwrap();
        assert!(json.contains(r#""precision":"bf16""#), "{json}");
        assert_eq!(serde_json::from_str::<Recipe>(&json).unwrap(), mixed);
        assert_eq!(serde_json::from_str::<Recipe>(&json.replace("bf16", "f32")).unwrap(), recipe);
        let error = serde_json::from_str::<Recipe>(&json.replace("bf16", "f16")).unwrap_err().to_string();
        assert!(error.contains("f16") && error.contains("bf16"), "{error}");
        // What else is changed leaves it.
        assert_eq!(mixed.with(&Overrides { lr: Some(0.5), ..Overrides::NONE }).unwrap().precision, Precision::Bf16);
    }

    #[test]
    fn overrides_rescale_what_is_relative() {
        let overrides = Overrides { epochs: Some(20), batch: Some(100), lr: Some(0.05), ..Overrides::NONE };
        let recipe = Recipe::named("resnet-paper").unwrap();
        let short = recipe.with(&overrides).unwrap();
        let extent = short.step_count(3_600).unwrap();
        assert_eq!((extent.steps_per_epoch, extent.total_steps), (36, 720));
        let lr = short.schedule.over(short.lr, extent);
        assert!(lr.at(359) == 0.05 && lr.at(360) < 0.01 && lr.at(540) < 0.001);
        assert_eq!(overrides.that_change(&recipe), Overrides { epochs: None, ..overrides });
        assert_eq!(overrides.settings(), ["batch=100", "lr=0.05"]);
        let own = Overrides { init: Some(InitRule::Model), ..Overrides::NONE };
        let review = Recipe::named("review-20").unwrap();
        assert_eq!((review.init, review.with(&own).unwrap().init), (InitRule::Torch, InitRule::Model));
        assert_eq!((own.that_change(&review), own.that_change(&recipe)), (own, Overrides::NONE));
        let same = Overrides { lr: Some(0.1), ..Overrides::NONE };
        assert_eq!(same.that_change(&recipe), Overrides::NONE);

        // Two epochs of warm-up are a tenth of 20 epochs; of 5 epochs they would be too much.
        let template = Recipe::named("template-600").unwrap();
        for (epochs, steps) in [(20, 16), (5, 4)] {
            let recipe = template.with(&Overrides { epochs: Some(epochs), ..Overrides::default() }).unwrap();
            let lr = recipe.schedule.over(recipe.lr, recipe.step_count(4_000).unwrap());
            assert!(lr.at(steps - 2) < 1e-3 && lr.at(steps - 1) == 1e-3, "{epochs} epochs");
        }
    }

    #[test]
    fn overrides_say_what_they_change() {
        let recipe = Recipe::named("fast").unwrap();
        let all =
            Overrides { bn_momentum: Some(0.01), bn_eps: Some(0.001), batch_norm: Some(false), ..Overrides::NONE };
        assert_eq!(all.that_change(&recipe), all);
        assert_eq!(all.settings(), ["bn_momentum=0.01", "bn_eps=0.001", "batch_norm=off"]);
        let changed = recipe.with(&all).unwrap();
        assert_eq!(all.that_change(&changed), Overrides::NONE);
        let back = Overrides { batch_norm: Some(true), ..Overrides::NONE };
        assert_eq!((back.that_change(&changed), back.that_change(&recipe)), (back, Overrides::NONE));
        assert_eq!(back.settings(), ["batch_norm=on"]);
        assert_eq!(back.or(&all), Overrides { batch_norm: Some(true), ..all });
    }

    #[test]
    fn what_cannot_train_is_an_error() {
        let recipe = Recipe::named("template-600").unwrap();
        let error = recipe.step_count(499).unwrap_err().to_string();
        assert!(error.contains("499") && error.contains("500"), "{error}");
        assert!(Recipe::named("modern-200").unwrap().step_count(0).is_err());
        for bad in [
            Overrides { epochs: Some(0), ..Overrides::default() },
            Overrides { epochs: Some(usize::MAX), ..Overrides::default() },
            Overrides { batch: Some(0), ..Overrides::default() },
            Overrides { batch: Some(usize::MAX), ..Overrides::default() },
            Overrides { lr: Some(0.0), ..Overrides::default() },
            Overrides { lr: Some(f64::NAN), ..Overrides::default() },
            Overrides { bn_momentum: Some(1.1), ..Overrides::default() },
            Overrides { bn_momentum: Some(f64::NAN), ..Overrides::default() },
            Overrides { bn_eps: Some(0.0), ..Overrides::default() },
            Overrides { bn_eps: Some(f64::INFINITY), ..Overrides::default() },
        ] {
            assert!(recipe.with(&bad).is_err(), "{bad:?}");
        }
    }
}

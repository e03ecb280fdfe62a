//! Recipes: everything that decides how a network is trained, as data with a name; and the sets of models that were published
//! under them.
//!
//! | recipe | whose | in short |
//! |---|---|---|
//! | `review-20` | a review of networks on CIFAR-10 | 20 epochs, SGD at a constant 0.001; its batch is not stated, 128 here |
//! | `resnet-paper` | He et al. 2015, section 4.2 | 64,000 iterations, SGD 0.1, ÷10 at a half and three quarters, crop and flip |
//! | `template-600` | a template's published table | 600 epochs, Adam 0.001 with L2, batch 500, clipped, warm-up, no augmentation |
//! | `modern-200` | common PyTorch CIFAR-10 repositories | 200 epochs, SGD 0.1, cosine, crop and flip |
//! | `mlp-sgd` | ours | `modern-200` for nets without BatchNorm: SGD 0.01, no augmentation, 20 epochs |
//! | `finetune` | ours | from a checkpoint: 10 epochs, batch 16, SGD 0.01, clipped, warm-up, cosine, flip and crop of an eighth |
//! | `quick` | ours | a few epochs on the embedded data: shows the whole path |

use crate::augment::{Augment, Normalize};
use crate::optim::OptimizerConfig;
use crate::schedule::{Decay, Every, Extent, Schedule, Warmup, When};
use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use zoo::ModelInfo;

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
/// let extent = short.extent(4_000)?;
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
    /// Share of the target that is spread over all classes.
    pub label_smoothing: f64,
    /// Largest L2 norm of all gradients together.
    pub clip_norm: Option<f64>,
    /// Share of the training images, from the end, that is set aside and not trained on.
    pub hold_out: f64,
}

/// Single values put over a recipe.
///
/// What is relative follows: a cosine spans the new length and milestones stay at their share of it. What a recipe states in
/// epochs or steps, its warm-up, stays as long as it is, but never takes more than a tenth of the run. The learning rate does not
/// follow the batch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Overrides {
    /// Epochs to train.
    pub epochs: Option<usize>,
    /// Images a step.
    pub batch: Option<usize>,
    /// Base learning rate.
    pub lr: Option<f64>,
}

impl Recipe {
    /// All names, in the order of the table above.
    pub const NAMES: [&str; 7] =
        ["review-20", "resnet-paper", "template-600", "modern-200", "mlp-sgd", "finetune", "quick"];

    /// The recipe called `name`.
    ///
    /// # Errors
    /// No such name; the error lists those that exist.
    pub fn named(name: &str) -> Result<Self> {
        let sgd = |nesterov, weight_decay| OptimizerConfig::Sgd { momentum: 0.9, nesterov, weight_decay };
        let by_epoch = Schedule { decay: Decay::Cosine { every: Every::Epoch }, warmup: None };
        // The common base; every recipe states where it differs.
        let base = Self {
            name: name.to_owned(),
            optimizer: sgd(false, 5e-4),
            decay_all: true,
            lr: 0.1,
            schedule: Schedule::CONSTANT,
            length: Length::Epochs(200),
            batch: 128,
            drop_last: false,
            augment: Augment::NONE,
            normalize: Normalize::CIFAR10,
            label_smoothing: 0.0,
            clip_norm: None,
            hold_out: 0.0,
        };
        Ok(match name {
            "review-20" => Self { lr: 0.001, length: Length::Epochs(20), ..base },
            "resnet-paper" => Self {
                optimizer: sgd(false, 1e-4),
                // After 32,000 and 48,000 of 64,000 iterations.
                schedule: Schedule {
                    decay: Decay::MultiStep { milestones: vec![When::Fraction(0.5), When::Fraction(0.75)], gamma: 0.1 },
                    warmup: None,
                },
                length: Length::Steps(64_000),
                augment: Augment::STANDARD,
                normalize: Normalize::PixelMean,
                // 5,000 of 50,000.
                hold_out: 0.1,
                ..base
            },
            "template-600" => Self {
                optimizer: OptimizerConfig::Adam { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 1e-4 },
                lr: 1e-3,
                schedule: Schedule {
                    decay: Decay::Constant,
                    warmup: Some(Warmup { length: When::Epoch(2.0), factor: None }),
                },
                length: Length::Epochs(600),
                batch: 500,
                drop_last: true,
                normalize: Normalize::HALF,
                clip_norm: Some(1.0),
                ..base
            },
            "modern-200" => Self { schedule: by_epoch, augment: Augment::STANDARD, ..base },
            "mlp-sgd" => Self { lr: 0.01, schedule: by_epoch, length: Length::Epochs(20), ..base },
            // As the ViT's authors fine-tune (Dosovitskiy et al. 2020, appendix B.1.1), and as is usual for convolutions; the
            // clipping keeps networks without BatchNorm in bounds. Small batches make enough steps of some hundred images.
            "finetune" => Self {
                optimizer: sgd(false, 1e-4),
                decay_all: false,
                lr: 0.01,
                clip_norm: Some(1.0),
                schedule: Schedule {
                    decay: Decay::Cosine { every: Every::Step },
                    warmup: Some(Warmup { length: When::Fraction(0.1), factor: None }),
                },
                length: Length::Epochs(10),
                batch: 16,
                augment: Augment::STANDARD,
                ..base
            },
            "quick" => Self {
                optimizer: sgd(true, 5e-4),
                lr: 0.05,
                schedule: Schedule {
                    decay: Decay::Cosine { every: Every::Step },
                    warmup: Some(Warmup { length: When::Fraction(0.1), factor: None }),
                },
                length: Length::Epochs(4),
                ..base
            },
            _ => bail!("there is no recipe `{name}`; the recipes are {}", Self::NAMES.join(", ")),
        })
    }

    /// The recipe that a model is trained under when none is named: its published one where there is one.
    ///
    /// # Errors
    /// As [`Recipe::named`].
    pub fn default_for(model: &ModelInfo) -> Result<Self> {
        Self::named(match model.name {
            name if name.starts_with("template_") => "template-600",
            name if name == "mlp" || name.starts_with("mlp_") => "mlp-sgd",
            // A Transformer under a learning rate of 0.1 goes nowhere; the review trains it at 0.001.
            name if name.starts_with("cifar_vit") => "review-20",
            _ if model.input.size == CIFAR_SIDE => "modern-200",
            // The networks for ImageNet, as they are, on small images: only the review trained these.
            _ => "review-20",
        })
    }

    /// What the recipe's source did differently for one model: He et al. train 110 layers at a tenth of the rate until the error
    /// begins to fall, "about 400 iterations".
    #[must_use]
    pub fn adapted_to(mut self, model: &str) -> Self {
        if self.name == "resnet-paper" && model.ends_with("110") {
            self.schedule.warmup = Some(Warmup { length: When::Step(400), factor: Some(0.1) });
        }
        self
    }

    /// What the recipe does for images of `side` pixels: `finetune` moves them by up to an eighth, as the usual 4 are of 32.
    #[must_use]
    pub fn for_side(mut self, side: usize) -> Self {
        if self.name == "finetune" {
            self.augment.crop_padding = side / 8;
        }
        self
    }

    /// The recipe with single values put over it.
    ///
    /// # Errors
    /// No epochs, an empty batch, or a learning rate that is not a positive number.
    pub fn with(&self, overrides: &Overrides) -> Result<Self> {
        let mut recipe = self.clone();
        if let Some(epochs) = overrides.epochs {
            ensure!(epochs > 0, "epochs must be at least 1");
            recipe.length = Length::Epochs(epochs);
        }
        if let Some(batch) = overrides.batch {
            ensure!(batch > 0, "batch must be at least 1");
            recipe.batch = batch;
        }
        if let Some(lr) = overrides.lr {
            ensure!(lr > 0.0 && lr.is_finite(), "the learning rate must be a positive number, got {lr}");
            recipe.lr = lr;
        }
        Ok(recipe)
    }

    /// How many of `images` training images are trained on; the rest is held out.
    pub fn train_images(&self, images: usize) -> usize {
        images - (images as f64 * self.hold_out).round() as usize
    }

    /// Steps of a run that trains on `images` images, held-out ones not counted. Runs end with a whole epoch.
    ///
    /// # Errors
    /// So few images that an epoch has no step.
    pub fn extent(&self, images: usize) -> Result<Extent> {
        let per_epoch = if self.drop_last { images / self.batch } else { images.div_ceil(self.batch) };
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
        Ok(Extent { steps_per_epoch, total_steps: epochs * steps_per_epoch })
    }
}

impl Recipe {
    /// Epochs of a run over a data set of `images` training images, held-out ones among them.
    ///
    /// # Errors
    /// As [`Recipe::extent`].
    pub fn epochs(&self, images: usize) -> Result<usize> {
        let extent = self.extent(self.train_images(images))?;
        Ok((extent.total_steps / extent.steps_per_epoch) as usize)
    }
}

impl Overrides {
    /// What they change in `recipe`, as `name=value`. Epochs are no part of it: reports state every run's epochs.
    pub fn describe(&self, recipe: &Recipe) -> Vec<String> {
        let batch = self.batch.filter(|&batch| batch != recipe.batch).map(|batch| format!("batch={batch}"));
        let lr = self.lr.filter(|&lr| lr != recipe.lr).map(|lr| format!("lr={lr}"));
        batch.into_iter().chain(lr).collect()
    }
}

/// Side of CIFAR-10's images.
const CIFAR_SIDE: usize = 32;

/// A published set: the recipe's name, and models with the epochs that they were trained for where that is not the recipe's own.
type Set = (&'static str, &'static [(&'static str, Option<usize>)]);

#[rustfmt::skip]
const SETS: &[Set] = &[
    ("review-20", &[
        ("cifar_alexnet", None), ("cifar_vgg16_bn", None), ("cifar_vgg19_bn", None), ("resnet101", None), ("seresnet101", None),
        ("densenet121", None), ("mobilenet_v1", None), ("mobilenet_v2", None), ("mobilenet_v2", Some(75)),
        ("shufflenet_v1_g3", None),
        // The same families with stems that keep 32x32, and the ViT, which the review trains but gives no figure for.
        ("cifar_resnet101", None), ("cifar_densenet121", None), ("cifar_mobilenet_v1", None), ("cifar_mobilenet_v2", None),
        ("cifar_shufflenet_v1_g3", None), ("cifar_vit_tiny_patch4", None),
    ]),
    ("resnet-paper", &[
        ("cifar_resnet20", None), ("cifar_resnet32", None), ("cifar_resnet44", None), ("cifar_resnet56", None),
        ("cifar_resnet110", None),
        ("cifar_plain20", None), ("cifar_plain32", None), ("cifar_plain44", None), ("cifar_plain56", None),
    ]),
    ("template-600", &[
        ("template_cnn", None), ("template_residual_cnn", None), ("template_mixer_s4", None), ("template_mixer_s2", None),
        ("template_mixer_b4", None), ("template_mixer_b2", None),
    ]),
    ("modern-200", &[
        ("cifar_vgg16_bn", None), ("cifar_resnet18", None), ("cifar_densenet121", None), ("cifar_mobilenet_v2", None),
        ("cifar_resnet20", None),
    ]),
];

/// One network and how to train it.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The network.
    pub model: &'static ModelInfo,
    /// The recipe, adapted to it.
    pub recipe: Recipe,
}

/// What a list such as `review-20,mlp,cifar_resnet*` asks for, in its order, each once.
///
/// A name or glob brings models under `recipe`, or their default ones where it is `None`. The name of a published set (`review-20`,
/// `resnet-paper`, `template-600`, `modern-200`) brings that set's models under its own recipe, unless `recipe` is given; `all` brings
/// every model for 32x32 images.
///
/// # Errors
/// A name or glob that fits no model, or an unknown recipe.
pub fn choose(list: &str, recipe: Option<&str>) -> Result<Vec<Choice>> {
    let make = |model: &'static ModelInfo, own: Option<&str>, epochs: Option<usize>| -> Result<Choice> {
        let found = match recipe.or(own) {
            Some(name) => Recipe::named(name)?,
            None => Recipe::default_for(model)?,
        };
        let recipe = found.with(&Overrides { epochs, ..Overrides::default() })?.adapted_to(model.name);
        Ok(Choice { model, recipe })
    };
    let mut chosen: Vec<Choice> = Vec::new();
    for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let found: Vec<Choice> = if let Some((set, rows)) = SETS.iter().find(|(set, _)| *set == item) {
            let rows = rows.iter().filter_map(|(name, epochs)| Some((zoo::find(name).ok()?, *epochs)));
            rows.map(|(model, epochs)| make(model, Some(set), epochs)).collect::<Result<_>>()?
        } else if item == "all" {
            zoo::all().filter(|m| m.input.size == CIFAR_SIDE).map(|m| make(m, None, None)).collect::<Result<_>>()?
        } else {
            zoo::select(&[item])?.into_iter().map(|m| make(m, None, None)).collect::<Result<_>>()?
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

    fn names(list: &str, recipe: Option<&str>) -> Vec<(&'static str, String)> {
        choose(list, recipe).unwrap().into_iter().map(|c| (c.model.name, c.recipe.name)).collect()
    }

    #[test]
    fn every_recipe_has_its_name_and_survives_json() {
        for name in Recipe::NAMES {
            let recipe = Recipe::named(name).unwrap();
            assert_eq!(recipe.name, name);
            let json = serde_json::to_string(&recipe).unwrap();
            assert_eq!(serde_json::from_str::<Recipe>(&json).unwrap(), recipe, "{json}");
        }
        let error = Recipe::named("modern-20").unwrap_err().to_string();
        assert!(error.contains("`modern-20`") && error.contains("modern-200"), "{error}");
        assert!(SETS.iter().all(|(set, _)| Recipe::NAMES.contains(set)));
    }

    /// He et al. 2015, section 4.2: batch 128, 45,000 images, 32k, 48k and 64k iterations.
    #[test]
    fn the_papers_iterations_come_out() {
        let recipe = Recipe::named("resnet-paper").unwrap();
        assert_eq!(recipe.train_images(50_000), 45_000);
        let extent = recipe.extent(45_000).unwrap();
        assert_eq!((extent.steps_per_epoch, extent.total_steps), (352, 64_064)); // 182 whole epochs
        let lr = recipe.schedule.over(recipe.lr, extent);
        let drops: Vec<u64> = (1..64_064).filter(|&step| lr.at(step) < lr.at(step - 1)).collect();
        assert_eq!(drops, [32_032, 48_048]);

        let deep = recipe.clone().adapted_to("cifar_resnet110");
        let lr = deep.schedule.over(deep.lr, extent);
        assert_eq!([lr.at(0), lr.at(399), lr.at(400)], [0.1 * 0.1, 0.1 * 0.1, 0.1]);
        assert_eq!(recipe.clone().adapted_to("cifar_resnet56"), recipe);
    }

    #[test]
    fn finetuning_moves_images_by_an_eighth() {
        let recipe = Recipe::named("finetune").unwrap();
        assert_eq!(recipe.clone().for_side(224).augment, Augment { crop_padding: 28, flip: true });
        assert_eq!(recipe.clone().for_side(32), recipe);
        let paper = Recipe::named("resnet-paper").unwrap();
        assert_eq!(paper.clone().for_side(224), paper);
    }

    #[test]
    fn overrides_rescale_what_is_relative() {
        let overrides = Overrides { epochs: Some(20), batch: Some(100), lr: Some(0.05) };
        let recipe = Recipe::named("resnet-paper").unwrap();
        let short = recipe.with(&overrides).unwrap();
        let extent = short.extent(3_600).unwrap();
        assert_eq!((extent.steps_per_epoch, extent.total_steps), (36, 720));
        let lr = short.schedule.over(short.lr, extent);
        assert!(lr.at(359) == 0.05 && lr.at(360) < 0.01 && lr.at(540) < 0.001);
        assert_eq!(overrides.describe(&recipe), ["batch=100", "lr=0.05"]);
        assert!(Overrides { lr: Some(0.1), ..Overrides::default() }.describe(&recipe).is_empty());

        // Two epochs of warm-up are a tenth of 20 epochs; of 5 epochs they would be too much.
        let template = Recipe::named("template-600").unwrap();
        for (epochs, steps) in [(20, 16), (5, 4)] {
            let recipe = template.with(&Overrides { epochs: Some(epochs), ..Overrides::default() }).unwrap();
            let lr = recipe.schedule.over(recipe.lr, recipe.extent(4_000).unwrap());
            assert!(lr.at(steps - 2) < 1e-3 && lr.at(steps - 1) == 1e-3, "{epochs} epochs");
        }
    }

    #[test]
    fn what_cannot_train_is_an_error() {
        let recipe = Recipe::named("template-600").unwrap();
        let error = recipe.extent(499).unwrap_err().to_string();
        assert!(error.contains("499") && error.contains("500"), "{error}");
        assert!(Recipe::named("modern-200").unwrap().extent(0).is_err());
        for bad in [
            Overrides { epochs: Some(0), ..Overrides::default() },
            Overrides { batch: Some(0), ..Overrides::default() },
            Overrides { lr: Some(0.0), ..Overrides::default() },
            Overrides { lr: Some(f64::NAN), ..Overrides::default() },
        ] {
            assert!(recipe.with(&bad).is_err(), "{bad:?}");
        }
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
    }
}

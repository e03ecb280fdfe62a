//! The recipes that have a name: the published ones and our own, and what each changes for a network.

use super::{BatchNormOverride, CIFAR_SIDE, ClassWeights, Keep, Length, Recipe, fast};
use crate::augment::Augment;
use crate::optim::OptimizerConfig;
use crate::schedule::{Decay, Every, Schedule, Warmup, When};
use anyhow::{Result, bail};
use zoo::ModelInfo;
use zoo_core::{InitRule, Precision};
use zoo_image::Normalize;

impl Recipe {
    /// All names, in the order of [`RECIPES`](super::RECIPES).
    pub const NAMES: &[&str] = &[
        "review-20",
        "resnet-paper",
        "template-600",
        "modern-200",
        "mlp-sgd",
        "finetune",
        "fast",
        "fast-5",
        "fast-15",
        "fast-60",
        "quick",
    ];

    /// The recipe called `name`. What depends on the model is as for cifar_resnet20: see [`Recipe::adapted_to`].
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
            batch_norm: BatchNormOverride::default(),
            init: InitRule::Model,
            precision: Precision::F32,
            keep: Keep::Last,
            patience: None,
            accumulate: 1,
            ema: None,
            freeze: Vec::new(),
            freeze_all_but_head: false,
            layer_decay: None,
            head_lr: None,
            class_weights: ClassWeights::Equal,
        };
        let warmup = Some(Warmup { length: When::Fraction(0.1), factor: None });
        Ok(match name {
            // Its networks are PyTorch modules that state no initial values. Under a constant rate of 0.001 the start decides.
            "review-20" => Self { lr: 0.001, length: Length::Epochs(20), init: InitRule::Torch, ..base },
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
            // As the ViT's authors fine-tune (Dosovitskiy et al. 2020, appendix B.1.1), and as is usual for
            // convolutions; the clipping keeps networks without BatchNorm in bounds. Small batches make enough steps of
            // some hundred images.
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
            "fast" | "fast-5" | "fast-15" | "fast-60" => Self {
                optimizer: sgd(true, 5e-4),
                schedule: Schedule { decay: Decay::Linear { every: Every::Step }, warmup },
                augment: Augment::STANDARD,
                label_smoothing: 0.1,
                ..base
            }
            .adapted_to("cifar_resnet20"),
            "quick" => Self {
                optimizer: sgd(true, 5e-4),
                lr: 0.05,
                schedule: Schedule { decay: Decay::Cosine { every: Every::Step }, warmup },
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
            _ if model.preprocess.size == CIFAR_SIDE => "modern-200",
            // The networks for ImageNet, as they are, on small images: only the review trained these.
            _ => "review-20",
        })
    }

    /// What the recipe's source did differently for one model: He et al. train 110 layers at a tenth of the rate until
    /// the error begins to fall, "about 400 iterations". A `fast` recipe gets the model's number of epochs, and an
    /// optimizer that suits it. Single values ([`Recipe::with`]) are put over the adapted recipe, not before.
    #[must_use]
    pub fn adapted_to(mut self, model: &str) -> Self {
        if self.name == "resnet-paper" && model.ends_with("110") {
            self.schedule.warmup = Some(Warmup { length: When::Step(400), factor: Some(0.1) });
        }
        if let (Some(minutes), Ok(model)) = (fast::minutes(&self.name), zoo::find(model)) {
            self.length = Length::Epochs(fast::epochs(minutes, model));
            if !fast::has_batch_norm(model) {
                // What no norm rescales, and what LayerNorm does, wants a rate of its own for every parameter, and a
                // small one.
                self.optimizer = OptimizerConfig::AdamW { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.05 };
                (self.decay_all, self.lr, self.clip_norm) = (false, 1e-3, Some(1.0));
            }
        }
        self
    }

    /// What the recipe does for images of `side` pixels: `finetune` moves them by up to an eighth, as the usual 4 are
    /// of 32.
    #[must_use]
    pub fn for_side(mut self, side: usize) -> Self {
        if self.name == "finetune" {
            self.augment.crop_padding = side / 8;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_has_its_name_and_survives_json() {
        for &name in Recipe::NAMES {
            let recipe = Recipe::named(name).unwrap();
            assert_eq!(recipe.name, name);
            let json = serde_json::to_string(&recipe).unwrap();
            assert_eq!(serde_json::from_str::<Recipe>(&json).unwrap(), recipe, "{json}");
        }
        let error = Recipe::named("modern-20").unwrap_err().to_string();
        assert!(error.contains("`modern-20`") && error.contains("modern-200"), "{error}");
    }

    /// He et al. 2015, section 4.2: batch 128, 45,000 images, 32k, 48k and 64k iterations.
    #[test]
    fn the_papers_iterations_come_out() {
        let recipe = Recipe::named("resnet-paper").unwrap();
        assert_eq!(recipe.train_images(50_000), 45_000);
        let extent = recipe.step_count(45_000).unwrap();
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
        assert_eq!(recipe.clone().for_side(224).augment, Augment { crop_padding: 28, ..Augment::STANDARD });
        assert_eq!(recipe.clone().for_side(32), recipe);
        let paper = Recipe::named("resnet-paper").unwrap();
        assert_eq!(paper.clone().for_side(224), paper);
    }
}

//! The recipes that have a name: the published ones and our own, and what each changes for a network.

use super::{BatchNormOverride, CIFAR_SIDE, ClassWeights, Keep, Length, LossFunction, Recipe, fast};
use crate::augment::{Augment, Interpolation, Policy, RandAugment, RandomErasing, ResizedCrop};
use crate::optim::{AdjustLr, OptimizerConfig};
use crate::schedule::{Decay, Every, Schedule, Warmup, When};
use anyhow::{Result, bail};
use zoo::ModelInfo;
use zoo_core::{InitRule, Precision};
use zoo_image::Normalize;

/// Networks of `modern-200` whose published figures come from code that leaves the initial values to PyTorch.
const MODERN_FROM_TORCH: [&str; 4] = ["cifar_vgg16_bn", "cifar_resnet18", "cifar_densenet121", "cifar_mobilenet_v2"];

impl Recipe {
    /// All names, in the order of [`RECIPES`](super::RECIPES).
    pub const NAMES: &[&str] = &[
        "review-20",
        "resnet-paper",
        "template-600",
        "modern-200",
        "mlp-sgd",
        "finetune",
        "vit-scratch",
        "vit-finetune",
        "torchvision-v1",
        "torchvision-v2",
        "timm-a3",
        "fast",
        "fast-5",
        "fast-15",
        "fast-60",
        "sprint-5",
        "sprint-15",
        "sprint-60",
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
            loss: LossFunction::CrossEntropy,
            bce_target_thresh: None,
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
            swa: None,
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
                // The template's networks are PyTorch modules that state no initial values.
                init: InitRule::Torch,
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
            // The paper's decay is 1e-4 a step, whatever the rate; times this rate it is 0.1. Its 112,000 steps of 1,024
            // images would be 2,300 epochs of CIFAR-10: 200 of batch 128 are 78,000 steps.
            "vit-scratch" => Self {
                optimizer: OptimizerConfig::AdamW { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.1 },
                decay_all: false,
                lr: 1e-3,
                clip_norm: Some(1.0),
                // 10,000 of 112,000 steps.
                schedule: Schedule {
                    decay: Decay::Cosine { every: Every::Step },
                    warmup: Some(Warmup { length: When::Fraction(0.09), factor: None }),
                },
                augment: Augment {
                    policy: Some(Policy::RandAugment(RandAugment { prob: 1.0, ..RandAugment::default() })),
                    mixup: Some(0.2),
                    ..Augment::STANDARD
                },
                normalize: Normalize::HALF,
                ..base
            },
            "vit-finetune" => Self {
                // Of 0.001, 0.003, 0.01 and 0.03 the paper takes the best.
                optimizer: sgd(false, 0.0),
                lr: 0.01,
                schedule: Schedule {
                    decay: Decay::Cosine { every: Every::Step },
                    warmup: Some(Warmup { length: When::Step(500), factor: None }),
                },
                length: Length::Steps(10_000),
                batch: 512,
                clip_norm: Some(1.0),
                augment: Augment::STANDARD,
                normalize: Normalize::HALF,
                ..base
            },
            "torchvision-v1" => Self {
                optimizer: sgd(false, 1e-4),
                // Every 30 of 90 epochs.
                schedule: Schedule {
                    decay: Decay::MultiStep {
                        milestones: vec![When::Fraction(1.0 / 3.0), When::Fraction(2.0 / 3.0)],
                        gamma: 0.1,
                    },
                    warmup: None,
                },
                length: Length::Epochs(90),
                // 32 on each of eight.
                batch: 256,
                augment: Augment { resized_crop: Some(ResizedCrop::default()), flip: true, ..Augment::NONE },
                normalize: Normalize::IMAGENET,
                ..base
            },
            "torchvision-v2" => Self {
                optimizer: sgd(false, 2e-5),
                decay_all: false,
                lr: 0.5,
                schedule: Schedule {
                    decay: Decay::Cosine { every: Every::Epoch },
                    warmup: Some(Warmup { length: When::Epoch(5.0), factor: None }),
                },
                length: Length::Epochs(600),
                // 128 on each of eight.
                batch: 1024,
                augment: Augment {
                    resized_crop: Some(ResizedCrop::default()),
                    flip: true,
                    policy: Some(Policy::TrivialAugmentWide),
                    random_erasing: Some(RandomErasing {
                        probability: 0.1,
                        scale: [0.02, 0.33],
                        ratio: [0.3, 3.3],
                        ..RandomErasing::default()
                    }),
                    mixup: Some(0.2),
                    cutmix: Some(1.0),
                    ..Augment::NONE
                },
                normalize: Normalize::IMAGENET,
                label_smoothing: 0.1,
                // Every 32nd step the reference goes 1024 · 32 / 600 times 2e-5 of the way.
                ema: Some(0.999_966),
                ..base
            },
            "timm-a3" => Self {
                optimizer: OptimizerConfig::Lamb {
                    betas: [0.9, 0.999],
                    eps: 1e-6,
                    max_grad_norm: Some(1.0),
                    weight_decay: 0.02,
                },
                decay_all: false,
                lr: 8e-3,
                schedule: Schedule {
                    decay: Decay::Cosine { every: Every::Epoch },
                    warmup: Some(Warmup { length: When::Epoch(5.0), factor: None }),
                },
                length: Length::Epochs(100),
                batch: 2048,
                augment: Augment {
                    resized_crop: Some(ResizedCrop { interpolation: Interpolation::Bicubic, ..Default::default() }),
                    flip: true,
                    policy: Some(Policy::RandAugment(RandAugment {
                        magnitude: 6,
                        magnitude_std: 0.5,
                        increasing: true,
                        ..RandAugment::default()
                    })),
                    mixup: Some(0.1),
                    cutmix: Some(1.0),
                    ..Augment::NONE
                },
                normalize: Normalize::IMAGENET,
                loss: LossFunction::Bce,
                bce_target_thresh: Some(0.2),
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
            "sprint-5" | "sprint-15" | "sprint-60" => Self {
                optimizer: OptimizerConfig::Muon {
                    momentum: 0.95,
                    nesterov: true,
                    adjust_lr_fn: AdjustLr::MatchRmsAdamW,
                    weight_decay: 0.05,
                    adamw_lr_factor: 1.0,
                    betas: [0.9, 0.95],
                    eps: 1e-8,
                },
                decay_all: false,
                lr: 0.01,
                schedule: Schedule { decay: Decay::Linear { every: Every::Step }, warmup },
                augment: Augment { alternating_flip: true, ..Augment::STANDARD },
                label_smoothing: 0.1,
                ema: Some(0.995),
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
            // A Transformer under a learning rate of 0.1 goes nowhere. The review trains it at 0.001, and gives no figure.
            name if name.starts_with("cifar_vit") => "vit-scratch",
            _ if model.preprocess.size == CIFAR_SIDE => "modern-200",
            // The networks for ImageNet, as they are, on small images: only the review trained these.
            _ => "review-20",
        })
    }

    /// What the recipe's source did differently for one model: He et al. train 110 layers at a tenth of the rate until
    /// the error begins to fall, "about 400 iterations"; four networks of `modern-200` start as PyTorch's layers do; torchvision trains AlexNet, VGG and MobileNet v2 at rates of their
    /// own. A `fast` or `sprint` recipe gets the model's number of epochs, and an
    /// optimizer that suits it. Single values ([`Recipe::with`]) are put over the adapted recipe, not before.
    #[must_use]
    pub fn adapted_to(mut self, model: &str) -> Self {
        match self.name.as_str() {
            "resnet-paper" if model.ends_with("110") => {
                self.schedule.warmup = Some(Warmup { length: When::Step(400), factor: Some(0.1) });
            }
            // The code behind these figures states no initial values; that of the thin ResNets has He's.
            "modern-200" if MODERN_FROM_TORCH.contains(&model) => self.init = InitRule::Torch,
            "torchvision-v1" if model == "alexnet" || model.starts_with("vgg") => self.lr = 0.01,
            "torchvision-v1" if model == "mobilenet_v2" => {
                const EPOCHS: usize = 300;
                self.optimizer = OptimizerConfig::Sgd { momentum: 0.9, nesterov: false, weight_decay: 4e-5 };
                (self.lr, self.length) = (0.045, Length::Epochs(EPOCHS));
                let ends = (1..EPOCHS).map(|epoch| When::Fraction(epoch as f64 / EPOCHS as f64)).collect();
                self.schedule.decay = Decay::MultiStep { milestones: ends, gamma: 0.98 };
            }
            _ => {}
        }
        let model = zoo::find(model).ok();
        if let Some((model, epochs)) = model.and_then(|model| Some((model, fast::epochs(&self.name, model)?))) {
            self.length = Length::Epochs(epochs);
            if !fast::has_batch_norm(model) {
                // What no norm rescales, and what LayerNorm does, wants a rate of its own for every parameter, and a
                // small one.
                self.optimizer = OptimizerConfig::AdamW { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.05 };
                (self.decay_all, self.lr, self.clip_norm) = (false, 1e-3, Some(1.0));
            }
        }
        self
    }

    /// What the recipe does for images of `side` pixels: `finetune` and the ViT's recipes move them by up to an eighth,
    /// as the usual 4 are of 32.
    #[must_use]
    pub fn for_side(mut self, side: usize) -> Self {
        if matches!(self.name.as_str(), "finetune" | "vit-scratch" | "vit-finetune") {
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

    /// Of the references' README and of the paper's table 2.
    #[test]
    fn the_libraries_recipes_are_theirs() {
        let rates = |recipe: &Recipe, images: usize, epochs: &[u64]| -> Vec<f64> {
            let extent = recipe.step_count(images).unwrap();
            let lr = recipe.schedule.over(recipe.lr, extent);
            epochs.iter().map(|epoch| lr.at(epoch * extent.steps_per_epoch)).collect()
        };
        let close = |found: &[f64], wanted: &[f64]| found.iter().zip(wanted).all(|(a, b)| (a / b - 1.0).abs() < 1e-9);
        let v1 = Recipe::named("torchvision-v1").unwrap();
        assert!(close(&rates(&v1, 25_600, &[0, 29, 30, 59, 60, 89]), &[0.1, 0.1, 0.01, 0.01, 0.001, 0.001]));
        assert_eq!([v1.clone().adapted_to("vgg16").lr, v1.clone().adapted_to("resnet50").lr], [0.01, 0.1]);
        let mobile = v1.adapted_to("mobilenet_v2");
        assert_eq!((mobile.length, mobile.optimizer.weight_decay()), (Length::Epochs(300), 4e-5));
        let wanted = [0, 1, 2, 299].map(|epoch| 0.045 * 0.98f64.powi(epoch));
        assert!(close(&rates(&mobile, 25_600, &[0, 1, 2, 299]), &wanted));

        // One step of the way to the weights in 32, against 32 steps of a share each.
        let v2 = Recipe::named("torchvision-v2").unwrap();
        let theirs = 1.0 - 2e-5 * 1024.0 * 32.0 / 600.0;
        assert!((v2.ema.unwrap().powi(32) / theirs - 1.0).abs() < 1e-5);

        let a3 = Recipe::named("timm-a3").unwrap();
        assert_eq!(a3.augment.policy.unwrap().to_string(), "rand-m6-n2-mstd0.5-inc1");
        a3.check().unwrap();
        let vit = Recipe::named("vit-finetune").unwrap();
        assert_eq!(vit.step_count(50_000).unwrap().total_steps, 10_094); // 103 whole epochs

        let scratch = Recipe::named("vit-scratch").unwrap();
        assert_eq!(scratch.augment.policy.unwrap().to_string(), "rand-m10-n2-p1");
        let rates = rates(&scratch, 50_000, &[0, 9, 18, 109, 199]);
        assert!(rates[1] < rates[2] && rates[2] > 0.999e-3 && rates[3] < 0.51e-3 && rates[4] < 1e-7, "{rates:?}");
        let shorter = Recipe { loss: LossFunction::CrossEntropy, ..a3 };
        assert!(shorter.check().unwrap_err().to_string().contains("set loss=bce"));
    }

    #[test]
    fn initial_values_are_those_of_the_code_behind_a_figure() {
        let init = |recipe: &str, model: &str| Recipe::named(recipe).unwrap().adapted_to(model).init;
        assert_eq!([init("modern-200", "cifar_resnet18"), init("template-600", "template_cnn")], [InitRule::Torch; 2]);
        assert_eq!(
            [init("modern-200", "cifar_resnet20"), init("resnet-paper", "cifar_resnet20")],
            [InitRule::Model; 2]
        );
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

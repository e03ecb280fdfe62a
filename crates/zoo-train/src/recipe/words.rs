//! Recipes in words: what a person reads of one in a report, on the console and from `zoo recipe`.

use super::{BatchNormOverride, ClassWeights, Keep, Length, LossFunction, Recipe};
use crate::augment::{Augment, ColorJitter, Erased, RandomErasing, ResizedCrop};
use crate::format::thousands;
use crate::optim::{AdjustLr, OptimizerConfig};
use crate::schedule::{Decay, Every, Schedule, Warmup, When};
use zoo_core::{InitRule, Precision};

/// What a recipe is, in a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About {
    /// The recipe's name.
    pub name: &'static str,
    /// Who trained by it.
    pub whose: &'static str,
    /// How it trains.
    pub short: &'static str,
}

const fn about(name: &'static str, whose: &'static str, short: &'static str) -> About {
    About { name, whose, short }
}

/// All recipes, the published ones first.
#[rustfmt::skip]
pub const RECIPES: &[About] = &[
    about("review-20", "a review of networks on CIFAR-10",
        "20 epochs, SGD at a constant 0.001 from PyTorch's initial values; its batch is not stated, 128 here"),
    about("resnet-paper", "He et al. 2015, section 4.2",
        "64,000 iterations, SGD 0.1, divided by 10 at a half and three quarters, crop and flip"),
    about("template-600", "a template's published table",
        "600 epochs, Adam 0.001 with L2, batch 500, clipped, warm-up, no augmentation"),
    about("modern-200", "common PyTorch CIFAR-10 repositories",
        "200 epochs, SGD 0.1, cosine, crop and flip"),
    about("mlp-sgd", "ours",
        "modern-200 for nets without BatchNorm: SGD 0.01, no augmentation, 20 epochs"),
    about("finetune", "ours",
        "from a checkpoint: 10 epochs, batch 16, SGD 0.01, clipped, warm-up, cosine, flip and crop of an eighth"),
    about("vit-scratch", "after Beyer et al. 2022",
        "AdamW 0.001 with decay 0.1, clipped, warm-up, cosine, RandAugment, mixup; for small data sets 200 epochs, batch 128, crop and flip of our own"),
    about("vit-finetune", "Dosovitskiy et al. 2020, appendix B.1.1",
        "from a checkpoint: 10,000 steps, batch 512, SGD 0.01 without weight decay, clipped, warm-up, cosine; crop and flip of our own"),
    about("torchvision-v1", "torchvision's references, `IMAGENET1K_V1`",
        "90 epochs, batch 256, SGD 0.1 (AlexNet, VGG 0.01), divided by 10 every 30, resized crop and flip; MobileNet v2 its own"),
    about("torchvision-v2", "torchvision's references, `IMAGENET1K_V2`",
        "600 epochs, batch 1024, SGD 0.5, warm-up, cosine, TrivialAugmentWide, mixup, CutMix, erasing, EMA; without repeated augmentation; 176 pixels"),
    about("timm-a3", "Wightman et al. 2021, procedure A3",
        "100 epochs, batch 2048, LAMB 0.008, warm-up, cosine, binary cross-entropy, RandAugment, mixup, CutMix; 160 pixels"),
    about("fast", "ours",
        "the same as fast-15"),
    about("fast-5", "ours",
        "as many epochs as the model trains in 5 minutes on two cores, one cycle up to 0.1 and down, crop and flip, smoothed labels"),
    about("fast-15", "ours",
        "fast-5 for 15 minutes; all of them train nets without BatchNorm by AdamW"),
    about("fast-60", "ours",
        "fast-5 for an hour"),
    about("sprint-5", "ours",
        "as many epochs as the model trains in 5 minutes of two cores in bf16: Muon 0.01 up and down, EMA, alternating flip, smoothed labels"),
    about("sprint-15", "ours",
        "sprint-5 for 15 minutes; all of them train nets without BatchNorm by AdamW"),
    about("sprint-60", "ours",
        "sprint-5 for an hour"),
    about("quick", "ours",
        "a few epochs on the embedded data: shows the whole path"),
];

impl Recipe {
    /// What the recipe is, in a line; a recipe of one's own has none.
    pub fn about(&self) -> Option<&'static About> {
        RECIPES.iter().find(|about| about.name == self.name)
    }

    /// Every setting with its value, for people: always the same names in the same order.
    ///
    /// ```
    /// use zoo_train::recipe::Recipe;
    /// let settings = Recipe::named("modern-200")?.hyperparameters();
    /// assert!(settings.contains(&("Optimizer", "SGD with momentum 0.9".to_owned())));
    /// assert!(settings.contains(&("Its course", "a cosine down to 0, epoch by epoch".to_owned())));
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    pub fn hyperparameters(&self) -> Vec<(&'static str, String)> {
        vec![
            ("Length", length(self.length)),
            ("Batch", self.batch_in_words()),
            ("Optimizer", optimizer(&self.optimizer)),
            ("Learning rate", number(self.lr)),
            ("Its course", course(&self.schedule)),
            ("Weight decay", decay(&self.optimizer, self.decay_all)),
            ("Gradient clipping", self.clip_norm.map_or_else(none, |norm| format!("to a norm of {}", number(norm)))),
            ("Loss", self.loss_in_words()),
            ("Label smoothing", if self.label_smoothing == 0.0 { none() } else { number(self.label_smoothing) }),
            ("Augmentation", augmentation(&self.augment)),
            ("Normalisation", self.normalize.to_string()),
            ("Held out", self.held_out_in_words()),
            ("BatchNorm", batch_norm(self.batch_norm)),
            ("Initial values", init(self.init)),
            ("Precision", precision(self.precision)),
            ("Kept", self.kept_in_words()),
            ("Accumulated", accumulated(self.accumulate)),
            ("Averaged", self.averaged_in_words()),
            ("Frozen", self.frozen_in_words()),
            ("Rates of layers", self.rates_in_words()),
            ("Class weights", class_weights(&self.class_weights)),
        ]
    }

    /// How many images of a data set are trained on, held out and tested on: `45,000 images to train on, 5,000 held
    /// out, 10,000 to test on`.
    pub fn images_in_words(&self, train: usize, test: usize) -> String {
        let trained_on = self.train_images(train);
        let [trained, held_out, test] = [trained_on, train - trained_on, test].map(|images| thousands(images as u64));
        let held_out = if trained_on == train { String::new() } else { format!(" {held_out} held out,") };
        format!("{trained} images to train on,{held_out} {test} to test on")
    }

    fn batch_in_words(&self) -> String {
        let left_out = if self.drop_last { "; an epoch's last batch is left out where it is smaller" } else { "" };
        format!("{}{left_out}", self.batch)
    }

    fn kept_in_words(&self) -> String {
        let kept = match self.keep {
            Keep::Last => "the last epoch",
            Keep::Best => "the best epoch",
            Keep::Both => "the best epoch, and the last one",
        };
        let patience = self.patience.map(|epochs| format!("; ends after {epochs} epochs without a better one"));
        format!("{kept}{}", patience.unwrap_or_default())
    }

    fn loss_in_words(&self) -> String {
        match (self.loss, self.bce_target_thresh) {
            (LossFunction::CrossEntropy, _) => "cross-entropy".into(),
            (LossFunction::Bce, None) => "binary cross-entropy of each class".into(),
            (LossFunction::Bce, Some(share)) => {
                format!("binary cross-entropy of each class, whole from a share of {} on", number(share))
            }
        }
    }

    fn averaged_in_words(&self) -> String {
        match (self.ema, self.swa) {
            (Some(decay), _) => format!("moving, decay {}", number(decay)),
            (None, Some(share)) => format!("the mean over the epochs of the last {} of the run", percent(share)),
            (None, None) => none(),
        }
    }

    fn frozen_in_words(&self) -> String {
        let trunk = self.freeze_all_but_head.then(|| "all but the classifier".to_owned());
        let parts: Vec<String> = trunk.into_iter().chain(self.freeze.iter().cloned()).collect();
        if parts.is_empty() { none() } else { parts.join(", ") }
    }

    fn rates_in_words(&self) -> String {
        let decay =
            self.layer_decay.map(|decay| format!("times {} from layer to layer below the classifier", number(decay)));
        let head = self.head_lr.map(|factor| format!("times {} at the classifier", number(factor)));
        let parts: Vec<String> = decay.into_iter().chain(head).collect();
        if parts.is_empty() { "the same for all".into() } else { parts.join(", ") }
    }

    fn held_out_in_words(&self) -> String {
        match self.hold_out {
            0.0 => none(),
            share => format!("the last {} of the training images", percent(share)),
        }
    }
}

fn none() -> String {
    "none".into()
}

fn length(length: Length) -> String {
    match length {
        Length::Epochs(1) => "1 epoch".into(),
        Length::Epochs(epochs) => format!("{epochs} epochs"),
        Length::Steps(steps) => format!("{steps} steps, rounded up to whole epochs"),
    }
}

fn optimizer(config: &OptimizerConfig) -> String {
    let adam = |name: &str, [first, second]: [f64; 2], eps: f64| {
        format!("{name} with betas {} and {}, epsilon {}", number(first), number(second), number(eps))
    };
    match *config {
        OptimizerConfig::Sgd { momentum: 0.0, .. } => "SGD without momentum".into(),
        OptimizerConfig::Sgd { momentum, nesterov, .. } => {
            format!("SGD with {}momentum {}", if nesterov { "Nesterov's " } else { "" }, number(momentum))
        }
        OptimizerConfig::Adam { betas, eps, .. } => adam("Adam", betas, eps),
        OptimizerConfig::AdamW { betas, eps, .. } => adam("AdamW", betas, eps),
        OptimizerConfig::Rmsprop { alpha, eps, momentum, centered, .. } => {
            let centered = if centered { "centred " } else { "" };
            let momentum = if momentum == 0.0 { String::new() } else { format!(", momentum {}", number(momentum)) };
            format!("{centered}RMSprop with alpha {}, epsilon {}{momentum}", number(alpha), number(eps))
        }
        OptimizerConfig::Lamb { betas, eps, max_grad_norm, .. } => {
            let clip = max_grad_norm.map(|norm| format!(", gradients of a norm of {} at the most", number(norm)));
            format!("{}{}", adam("LAMB", betas, eps), clip.unwrap_or_default())
        }
        OptimizerConfig::Lion { betas: [first, second], .. } => {
            format!("Lion with betas {} and {}", number(first), number(second))
        }
        OptimizerConfig::Muon { momentum, nesterov, adjust_lr_fn, adamw_lr_factor, betas, eps, .. } => {
            let nesterov = if nesterov { "Nesterov's " } else { "" };
            let size = match adjust_lr_fn {
                AdjustLr::Original => "",
                AdjustLr::MatchRmsAdamW => ", its steps as large as AdamW's",
                AdjustLr::SpectralUnclamped => ", its steps of the same spectral size",
            };
            let rate = if adamw_lr_factor == 1.0 {
                String::new()
            } else {
                format!(" at {} times the learning rate", number(adamw_lr_factor))
            };
            let adamw = adam("AdamW", betas, eps);
            format!("Muon with {nesterov}momentum {} on matrices{size}, {adamw} on the rest{rate}", number(momentum))
        }
    }
}

fn decay(config: &OptimizerConfig, all: bool) -> String {
    let (decay, kind) = (
        config.weight_decay(),
        match config {
            OptimizerConfig::Sgd { .. } | OptimizerConfig::Adam { .. } | OptimizerConfig::Rmsprop { .. } => "L2",
            OptimizerConfig::AdamW { .. } | OptimizerConfig::Lion { .. } | OptimizerConfig::Muon { .. } => "decoupled",
            OptimizerConfig::Lamb { .. } => "in the update",
        },
    );
    match decay {
        0.0 => none(),
        _ if all => format!("{} ({kind}), on every parameter", number(decay)),
        _ => format!("{} ({kind}), not on biases and normalisations", number(decay)),
    }
}

fn course(Schedule { decay, warmup }: &Schedule) -> String {
    let often = |every: &Every| match every {
        Every::Step => "step by step",
        Every::Epoch => "epoch by epoch",
    };
    let decay = match decay {
        Decay::Constant => "constant".into(),
        Decay::MultiStep { milestones, gamma } => {
            format!("times {} after {}", number(*gamma), moments(milestones))
        }
        Decay::Cosine { every } => format!("a cosine down to 0, {}", often(every)),
        Decay::Linear { every } => format!("a straight line down to 0, {}", often(every)),
    };
    match warmup {
        None => decay,
        Some(Warmup { length, factor: None }) => format!("rises over the first {}, then {decay}", moment(*length)),
        Some(Warmup { length, factor: Some(factor) }) => {
            format!("{} times the rate for the first {}, then {decay}", number(*factor), moment(*length))
        }
    }
}

fn moment(when: When) -> String {
    match when {
        When::Fraction(share) => format!("{} of the run", percent(share)),
        When::Epoch(epochs) => format!("{} epochs", number(epochs)),
        When::Step(steps) => format!("{steps} steps"),
    }
}

/// Several moments; what all of them are shares of is said once.
fn moments(moments: &[When]) -> String {
    let texts: Vec<String> = moments.iter().copied().map(moment).collect();
    let texts = texts.join(" and ");
    match moments.iter().all(|when| matches!(when, When::Fraction(_))) {
        true => texts.replace(" of the run and ", " and "),
        false => texts,
    }
}

fn augmentation(augment: &Augment) -> String {
    let crop = match (augment.resized_crop, augment.crop_padding) {
        (Some(crop), _) => Some(resized_crop(&crop)),
        (None, 0) => None,
        (None, padding) => Some(format!("random crop after {padding} black pixels around")),
    };
    let parts = [
        crop,
        augment.flip.then(|| {
            let how = if augment.alternating_flip { "every other epoch's" } else { "random" };
            format!("{how} flip, left and right")
        }),
        augment.vertical_flip.then(|| "random flip, top and bottom".into()),
        augment.policy.map(|policy| policy.to_string()),
        augment.color_jitter.map(|jitter| color_jitter(&jitter)),
        augment.random_erasing.map(|erasing| random_erasing(&erasing)),
        augment.cutout.map(|side| format!("cutout of {side}x{side} pixels")),
        mixing(augment),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { none() } else { parts.join(", ") }
}

fn resized_crop(crop: &ResizedCrop) -> String {
    let ([least, most], [narrow, wide]) = (crop.scale, crop.ratio);
    let sampled = zoo_core::Interpolation::from(crop.interpolation);
    let ratio = format!("{} to {} times as wide as high", rounded(narrow), rounded(wide));
    format!("a random {} to {} of the picture, {ratio}, resized ({sampled})", percent(least), percent(most))
}

fn color_jitter(jitter: &ColorJitter) -> String {
    let ColorJitter { brightness, contrast, saturation, hue } = *jitter;
    let parts = [("brightness", brightness), ("contrast", contrast), ("saturation", saturation), ("hue", hue)];
    let parts: Vec<String> =
        parts.iter().filter(|(_, by)| *by != 0.0).map(|(name, by)| format!("{name} by {}", number(*by))).collect();
    if parts.is_empty() { "colours as they are".into() } else { format!("random {}", parts.join(" and ")) }
}

fn random_erasing(erasing: &RandomErasing) -> String {
    let ([least, most], value) = (erasing.scale, if erasing.value == Erased::Pixel { "noise" } else { "0" });
    let share = format!("{} to {} of it", percent(least), percent(most));
    format!("{share} replaced by {value} in {} of the images", percent(erasing.probability))
}

fn mixing(augment: &Augment) -> Option<String> {
    let named = |name: &str, alpha: f64| format!("{name} with alpha {}", number(alpha));
    let (text, switch) = match (augment.mixup, augment.cutmix) {
        (None, None) => return None,
        (Some(alpha), None) => (named("mixup", alpha), None),
        (None, Some(alpha)) => (named("CutMix", alpha), None),
        (Some(mixup), Some(cutmix)) => {
            let share = augment.mixup_switch_prob;
            (named("mixup", mixup), Some(format!(" or, in {} of them, {}", percent(share), named("CutMix", cutmix))))
        }
    };
    let batches = match augment.mixup_prob {
        1.0 => " on all batches".into(),
        share => format!(" on {} of the batches", percent(share)),
    };
    Some(text + &batches + &switch.unwrap_or_default())
}

/// With three digits behind the point at most.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

fn batch_norm(changed: BatchNormOverride) -> String {
    let BatchNormOverride { momentum, eps, off } = changed;
    if off {
        return "left out: its weight and bias alone".into();
    }
    let changes = [momentum.map(|m| format!("momentum {}", number(m))), eps.map(|e| format!("epsilon {}", number(e)))];
    let changes: Vec<String> = changes.into_iter().flatten().collect();
    if changes.is_empty() { "the network's own".into() } else { changes.join(", ") }
}

fn accumulated(batches: usize) -> String {
    if batches <= 1 { none() } else { format!("{batches} batches a step") }
}

fn class_weights(weights: &ClassWeights) -> String {
    match weights {
        ClassWeights::Equal => "all count the same".into(),
        ClassWeights::Balanced => "balanced by their numbers of images".into(),
        ClassWeights::Given(weights) => {
            let weights: Vec<String> = weights.iter().map(|&weight| number(f64::from(weight))).collect();
            weights.join(", ")
        }
    }
}

fn init(rule: InitRule) -> String {
    match rule {
        InitRule::Torch => "PyTorch's defaults, layer by layer".into(),
        _ => "the network's own".into(),
    }
}

fn precision(precision: Precision) -> String {
    match precision {
        Precision::F32 => "f32".into(),
        Precision::Bf16 => "bf16: bfloat16 between layers and in products, f32 weights, norms, sums and loss".into(),
    }
}

/// A number without a row of zeros: `0.0005`, `1e-8`.
fn number(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-4 { format!("{value:e}") } else { value.to_string() }
}

fn percent(share: f64) -> String {
    format!("{} %", (share * 1e6).round() / 1e4)
}

#[cfg(test)]
mod tests;

use super::*;
use crate::recipe::Overrides;

fn told(recipe: &Recipe) -> String {
    recipe.hyperparameters().iter().map(|(name, value)| format!("{name}: {value}\n")).collect()
}

#[test]
fn every_recipe_is_told_in_a_line() {
    assert!(RECIPES.iter().map(|about| about.name).eq(Recipe::NAMES.iter().copied()));
    for &name in Recipe::NAMES {
        assert_eq!(Recipe::named(name).unwrap().about().unwrap().name, name);
    }
    let fifteen = Recipe { name: "fast".into(), ..Recipe::named("fast-15").unwrap() };
    assert_eq!(fifteen, Recipe::named("fast").unwrap());
}

#[test]
fn the_papers_settings_are_said_in_words() {
    let paper = told(&Recipe::named("resnet-paper").unwrap().adapted_to("cifar_resnet110"));
    let expected = "Length: 64000 steps, rounded up to whole epochs\n\
        Batch: 128\n\
        Optimizer: SGD with momentum 0.9\n\
        Learning rate: 0.1\n\
        Its course: 0.1 times the rate for the first 400 steps, then times 0.1 after 50 % and 75 % of the run\n\
        Weight decay: 0.0001 (L2), on every parameter\n\
        Gradient clipping: none\n\
        Loss: cross-entropy\n\
        Label smoothing: none\n\
        Augmentation: random crop after 4 black pixels around, random flip, left and right\n\
        Normalisation: less the mean image of the training images\n\
        Held out: the last 10 % of the training images\n\
        BatchNorm: the network's own\n\
        Initial values: the network's own\n\
        Precision: f32\n\
        Kept: the last epoch\n\
        Accumulated: none\n\
        Averaged: none\n\
        Frozen: none\n\
        Rates of layers: the same for all\n\
        Class weights: all count the same\n";
    assert_eq!(paper, expected);
}

#[test]
fn every_augmentation_is_told() {
    let told = |augment: Augment| augmentation(&augment);
    assert_eq!(told(Augment::NONE), "none");
    assert_eq!(told(Augment { flip: true, ..Augment::NONE }), "random flip, left and right");
    assert_eq!(told(Augment { crop_padding: 2, ..Augment::NONE }), "random crop after 2 black pixels around");
    let all = Augment {
        resized_crop: Some(ResizedCrop::default()),
        vertical_flip: true,
        policy: "rand-m9-inc1".parse().ok(),
        color_jitter: Some(ColorJitter { brightness: 0.4, hue: 0.1, ..ColorJitter::default() }),
        random_erasing: Some(RandomErasing { probability: 0.25, value: Erased::Pixel, ..RandomErasing::default() }),
        cutout: Some(16),
        mixup: Some(0.8),
        cutmix: Some(1.0),
        ..Augment::STANDARD
    };
    let expected = "a random 8 % to 100 % of the picture, 0.75 to 1.333 times as wide as high, resized (bilinear), \
        random flip, left and right, random flip, top and bottom, rand-m9-n2-inc1, \
        random brightness by 0.4 and hue by 0.1, 2 % to 33.3333 % of it replaced by noise in 25 % of the images, \
        cutout of 16x16 pixels, mixup with alpha 0.8 on all batches or, in 50 % of them, CutMix with alpha 1";
    assert_eq!(told(all), expected);
    let mixed = told(Augment { cutmix: Some(0.5), mixup_prob: 0.5, ..Augment::NONE });
    assert_eq!(mixed, "CutMix with alpha 0.5 on 50 % of the batches");
}

#[test]
fn whatever_a_recipe_changes_is_said() {
    let fast = Recipe::named("fast").unwrap().adapted_to("mlp");
    let text = told(&fast);
    for part in [
        "Optimizer: AdamW with betas 0.9 and 0.999, epsilon 1e-8\n",
        "Weight decay: 0.05 (decoupled), not on biases and normalisations\n",
        "Its course: rises over the first 10 % of the run, then a straight line down to 0, step by step\n",
        "Gradient clipping: to a norm of 1\n",
        "Label smoothing: 0.1\n",
        "Normalisation: CIFAR-10's mean and deviation\n",
    ] {
        assert!(text.contains(part), "{part}{text}");
    }
    let changes = Overrides { bn_momentum: Some(0.01), bn_eps: Some(1e-7), epochs: Some(1), ..Overrides::NONE };
    let text = told(&fast.with(&changes).unwrap());
    assert!(text.contains("BatchNorm: momentum 0.01, epsilon 1e-7\n") && text.contains("Length: 1 epoch\n"), "{text}");
    let off = fast.with(&Overrides { batch_norm: Some(false), ..Overrides::NONE }).unwrap();
    assert!(told(&off).contains("BatchNorm: left out"));
    assert!(told(&Recipe { precision: Precision::Bf16, ..fast }).contains("Precision: bf16: "));
    assert!(told(&Recipe::named("template-600").unwrap()).contains("Batch: 500; an epoch's last batch is left out"));
}

#[test]
fn every_optimizer_is_said_in_words() {
    let (betas, eps, weight_decay, momentum) = ([0.9, 0.999], 1e-6, 0.02, 0.95);
    for (config, words, decay_in_words) in [
        (
            OptimizerConfig::Rmsprop { alpha: 0.99, eps, momentum, centered: true, weight_decay },
            "centred RMSprop with alpha 0.99, epsilon 1e-6, momentum 0.95",
            "0.02 (L2), on every parameter",
        ),
        (
            OptimizerConfig::Lamb { betas, eps, max_grad_norm: Some(1.0), weight_decay },
            "LAMB with betas 0.9 and 0.999, epsilon 1e-6, gradients of a norm of 1 at the most",
            "0.02 (in the update), on every parameter",
        ),
        (
            OptimizerConfig::Lion { betas, weight_decay },
            "Lion with betas 0.9 and 0.999",
            "0.02 (decoupled), on every parameter",
        ),
        (
            OptimizerConfig::Muon {
                momentum,
                nesterov: true,
                adjust_lr_fn: AdjustLr::MatchRmsAdamW,
                weight_decay,
                adamw_lr_factor: 0.5,
                betas,
                eps,
            },
            "Muon with Nesterov's momentum 0.95 on matrices, its steps as large as AdamW's, AdamW with betas 0.9 and \
             0.999, epsilon 1e-6 on the rest at 0.5 times the learning rate",
            "0.02 (decoupled), on every parameter",
        ),
    ] {
        assert_eq!((optimizer(&config).as_str(), decay(&config, true).as_str()), (words, decay_in_words));
    }
}

/// The names are the columns of a table: a value may be `none`, but none is missing.
#[test]
fn the_names_are_the_same_for_all() {
    let names = |recipe: Recipe| recipe.hyperparameters().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let first = names(Recipe::named("quick").unwrap());
    for &name in Recipe::NAMES {
        assert_eq!(names(Recipe::named(name).unwrap()), first, "{name}");
    }
}

#[test]
fn held_out_images_are_counted() {
    let paper = Recipe::named("resnet-paper").unwrap();
    assert_eq!(paper.images_in_words(50_000, 10_000), "45,000 images to train on, 5,000 held out, 10,000 to test on");
    let modern = Recipe::named("modern-200").unwrap();
    assert_eq!(modern.images_in_words(50_000, 10_000), "50,000 images to train on, 10,000 to test on");
}

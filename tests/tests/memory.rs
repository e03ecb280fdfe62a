//! The estimate of a training run's memory against what was measured.

use anyhow::{Result, ensure};
use zoo::ModelOptions;
use zoo_core::Precision;
use zoo_core::inspect::{TrainingPlan, training_memory};
use zoo_train::eval::eval_batch;
use zoo_train::recipe::Recipe;

/// Model, batch and the `peak_rss_mb` of `zoo bench MODEL --mode train --json`, 2 threads, images of 32x32: the
/// defaults of ten networks first, then other batches and kinds.
#[rustfmt::skip]
const IN_F32: &[(&str, usize, f64)] = &[
    ("cifar_resnet20", 128, 269.0), ("cifar_resnet56", 128, 629.0), ("cifar_resnet18", 64, 570.0),
    ("cifar_vgg16_bn", 128, 569.0), ("cifar_densenet121", 32, 1038.0), ("cifar_mobilenet_v1", 64, 287.0),
    ("cifar_mobilenet_v2", 64, 967.0), ("cifar_shufflenet_v1_g3", 64, 606.0), ("cifar_vit_tiny_patch4", 64, 452.0),
    ("template_mixer_s4", 128, 147.0),
    ("mlp", 128, 35.0), ("cifar_alexnet", 128, 376.0), ("cifar_seresnet20", 128, 516.0), ("template_cnn", 128, 117.0),
    ("cifar_resnet20", 16, 51.0), ("cifar_resnet18", 8, 210.0), ("cifar_resnet18", 128, 952.0),
    ("cifar_vgg16_bn", 16, 254.0), ("cifar_densenet121", 8, 327.0), ("cifar_vit_tiny_patch4", 16, 166.0),
];
/// The same with `--precision bf16`, on tiles.
#[rustfmt::skip]
const IN_BF16: &[(&str, usize, f64)] = &[
    ("cifar_resnet20", 128, 135.0), ("cifar_resnet56", 128, 318.0), ("cifar_resnet18", 64, 341.0),
    ("cifar_vgg16_bn", 128, 349.0), ("cifar_densenet121", 32, 391.0), ("cifar_mobilenet_v1", 64, 163.0),
    ("cifar_mobilenet_v2", 64, 473.0), ("cifar_shufflenet_v1_g3", 64, 309.0), ("cifar_vit_tiny_patch4", 64, 270.0),
    ("template_mixer_s4", 128, 80.0),
    ("mlp", 128, 44.0), ("cifar_alexnet", 128, 186.0), ("cifar_seresnet20", 128, 173.0), ("template_cnn", 128, 67.0),
    ("cifar_resnet20", 16, 33.0), ("cifar_resnet18", 8, 171.0), ("cifar_resnet18", 128, 530.0),
    ("cifar_vgg16_bn", 16, 214.0), ("cifar_densenet121", 8, 180.0), ("cifar_vit_tiny_patch4", 16, 134.0),
];

/// Model, precision and the peak in MB of `zoo train MODEL --freeze-all-but-head --batch 32` on 130 pictures of 224x224 in 10
/// classes, 2 threads, less the pictures and the five batches that wait for the network.
const FROZEN: [(&str, Precision, f64); 4] = [
    ("resnet18", Precision::F32, 249.0),
    ("mobilenet_v2", Precision::F32, 263.0),
    ("resnet18", Precision::Bf16, 207.0),
    ("mobilenet_v2", Precision::Bf16, 139.0),
];

/// Rather too much than too little, and not far from either: `cargo test -p tests --test memory -- --nocapture` prints
/// the table.
#[test]
fn the_estimate_is_near_what_was_measured() -> Result<()> {
    for (precision, table) in [(Precision::F32, IN_F32), (Precision::Bf16, IN_BF16)] {
        for &(name, batch, measured) in table {
            let needed =
                training_memory(zoo::find(name)?, &ModelOptions::default(), &TrainingPlan::new(precision, batch, 1))?;
            let estimate = needed as f64 / 1e6;
            let off = 100.0 * (estimate / measured - 1.0);
            println!("| {name} | {batch} | {} | {estimate:.0} | {measured:.0} | {off:+.0} % |", precision.name());
            ensure!((-15.0..=35.0).contains(&off), "{name} at {batch}: {estimate:.0} MB, measured {measured:.0}");
        }
    }
    // Adam keeps one tensor a parameter more.
    let bytes = |states| {
        let plan = TrainingPlan::new(Precision::F32, 1, states);
        training_memory(zoo::find("mlp")?, &ModelOptions::default(), &plan)
    };
    ensure!(bytes(2)? - bytes(1)? == 4 * zoo::find("mlp")?.parameters as u64);
    Ok(())
}

/// A frozen trunk sees a batch in parts, and keeps nothing of it.
#[test]
fn the_estimate_holds_for_a_frozen_trunk() -> Result<()> {
    for (name, precision, measured) in FROZEN {
        let (model, options) = (zoo::find(name)?, ModelOptions::for_data(10, 3, 224));
        let recipe = Recipe { freeze_all_but_head: true, ..Recipe::named("finetune")? };
        let frozen = recipe.frozen(model, &options)?;
        let is_frozen = frozen.as_ref().map(|is_frozen| is_frozen.as_ref() as &dyn Fn(&str) -> bool);
        let plan = TrainingPlan { is_frozen, ..TrainingPlan::new(precision, eval_batch(224), 1) };
        let estimate = training_memory(model, &options, &plan)? as f64 / 1e6;
        let off = 100.0 * (estimate / measured - 1.0);
        println!("| {name} | frozen | {} | {estimate:.0} | {measured:.0} | {off:+.0} % |", precision.name());
        ensure!((-35.0..=35.0).contains(&off), "{name}, frozen: {estimate:.0} MB, measured {measured:.0}");
    }
    Ok(())
}

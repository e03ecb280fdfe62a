//! The estimate of a training run's memory against what was measured.

use anyhow::{Result, ensure};
use zoo::ModelOptions;
use zoo_core::inspect::training_memory;

/// Model, batch and the `peak_rss_mb` of `zoo bench MODEL --mode train --json`, 2 threads, images of 32x32: the
/// defaults of ten networks first, then other batches and kinds.
#[rustfmt::skip]
const MEASURED: [(&str, usize, f64); 20] = [
    ("cifar_resnet20", 128, 279.0), ("cifar_resnet56", 128, 639.0), ("cifar_resnet18", 64, 638.0),
    ("cifar_vgg16_bn", 128, 652.0), ("cifar_densenet121", 32, 1456.0), ("cifar_mobilenet_v1", 64, 303.0),
    ("cifar_mobilenet_v2", 64, 1121.0), ("cifar_shufflenet_v1_g3", 64, 688.0), ("cifar_vit_tiny_patch4", 64, 459.0),
    ("template_mixer_s4", 128, 157.0),
    ("mlp", 128, 62.0), ("cifar_alexnet", 128, 448.0), ("cifar_seresnet20", 128, 573.0), ("template_cnn", 128, 129.0),
    ("cifar_resnet20", 16, 49.0), ("cifar_resnet18", 8, 266.0), ("cifar_resnet18", 128, 1029.0),
    ("cifar_vgg16_bn", 16, 304.0), ("cifar_densenet121", 8, 504.0), ("cifar_vit_tiny_patch4", 16, 179.0),
];

/// Rather too much than too little, and not far from either: `cargo test -p tests --test memory -- --nocapture` prints
/// the table.
#[test]
fn the_estimate_is_near_what_was_measured() -> Result<()> {
    for (name, batch, measured) in MEASURED {
        let estimate = training_memory(zoo::find(name)?, &ModelOptions::default(), batch, 1)? as f64 / 1e6;
        let off = 100.0 * (estimate / measured - 1.0);
        println!("| {name} | {batch} | {estimate:.0} | {measured:.0} | {off:+.0} % |");
        ensure!((-15.0..=35.0).contains(&off), "{name} at {batch}: {estimate:.0} MB, measured {measured:.0}");
    }
    // Adam keeps one tensor a parameter more.
    let bytes = |states| training_memory(zoo::find("mlp")?, &ModelOptions::default(), 1, states);
    ensure!(bytes(2)? - bytes(1)? == 4 * zoo::find("mlp")?.parameters as u64);
    Ok(())
}

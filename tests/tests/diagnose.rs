//! A network that has stopped giving numbers is told where it did, whatever its family.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use tests::values;
use zoo::{Model, ModelOptions, VarStore};
use zoo_core::inspect::{Diagnosis, diagnose, first_not_finite};
use zoo_core::rng::Rng;

/// A model, one of its tensors, and the layer that reads it.
const CASES: [(&str, &str, &str, &str); 14] = [
    ("mlp", "layers.1.weight", "layers.1", "Linear"),
    ("cifar_alexnet", "classifier.1.weight", "classifier.1", "Linear"),
    ("cifar_vgg16_bn", "features.4.bias", "features.4", "BatchNorm"),
    ("cifar_googlenet", "inception4a.branch2.0.conv.weight", "inception4a.branch2.0.conv", "Conv2d"),
    ("cifar_densenet_bc_100_12", "features.transition1.norm.weight", "features.transition1.norm", "BatchNorm"),
    ("cifar_resnet20", "layer2.0.conv1.weight", "layer2.0.conv1", "Conv2d"),
    ("cifar_resnet20", "layer3.1.bn2.weight", "layer3.1.bn2", "BatchNorm"),
    ("cifar_seresnet20", "layer2.1.se.fc2.bias", "layer2.1.se.fc2", "Conv2d"),
    ("cifar_mobilenet_v2", "features.5.conv.1.0.weight", "features.5.conv.1.0", "Conv2d"),
    ("cifar_shufflenet_v1_g3", "stage3.2.bn3.bias", "stage3.2.bn3", "BatchNorm"),
    ("cifar_vit_tiny_patch4", "patch_embed.proj.weight", "patch_embed.proj", "Conv2d"),
    ("cifar_vit_tiny_patch4", "blocks.3.attn.qkv.weight", "blocks.3.attn.qkv", "Linear"),
    ("mixer_s32_224", "stem.proj.weight", "stem.proj", "Conv2d"),
    ("template_mixer_s4", "layers.2.mlp_tokens.fc1.weight", "layers.2.mlp_tokens.fc1", "Linear"),
];

fn build(name: &str) -> Result<(VarStore, Box<dyn Model>, Tensor)> {
    let store = VarStore::new(1, DType::F32, &Device::Cpu);
    let net = zoo::create(name, &ModelOptions::default(), &store)?;
    let mut rng = Rng::new(3, "images");
    let side = zoo::find(name)?.preprocess.size;
    let pixels: Vec<f32> = (0..2 * 3 * side * side).map(|_| rng.normal() as f32).collect();
    Ok((store, net, Tensor::from_vec(pixels, (2, 3, side, side), &Device::Cpu)?))
}

/// Fills the tensor called `key` with `value`.
fn poison(store: &VarStore, key: &str, value: f32) -> Result<()> {
    let var = store.get(key).and_then(|slot| slot.var).with_context(|| format!("no `{key}`"))?;
    Ok(var.set(&Tensor::full(value, var.shape(), var.device())?)?)
}

fn state(store: &VarStore) -> Result<Vec<Vec<f64>>> {
    store.buffers().iter().map(|(_, var)| values(var)).collect()
}

#[test]
fn the_layer_that_reads_a_poisoned_tensor_is_named() -> Result<()> {
    for (model, key, place, kind) in CASES {
        let (store, net, images) = build(model)?;
        for train in [true, false] {
            let found = first_not_finite(|| net.forward_t(&images, train)).context(model)?;
            ensure!(found.is_none(), "{model}: {found:?}");
        }
        for value in [f32::NAN, f32::INFINITY] {
            poison(&store, key, value)?;
            for train in [true, false] {
                let found = first_not_finite(|| net.forward_t(&images, train))?.context("nothing found")?;
                ensure!((found.path.as_str(), found.kind()) == (place, kind), "{model}, {value}: {found:?}");
            }
            let diagnosis = diagnose(net.as_ref(), &store, &images)?;
            ensure!(diagnosis == Diagnosis::Parameter(key.into()), "{model}: {diagnosis}");
        }
    }
    Ok(())
}

/// Weights that are numbers, and so large that what they make is none; nothing is changed by looking.
#[test]
fn an_overflow_is_found_and_looking_changes_nothing() -> Result<()> {
    for (model, key, want) in [
        ("cifar_resnet20", "layer2.0.conv1.weight", "that of layer2.0.conv1 (Conv2d)"),
        ("cifar_mobilenet_v2", "features.18.0.weight", "that of features.18.0 (Conv2d)"),
        ("cifar_vit_tiny_patch4", "patch_embed.proj.weight", "that of patch_embed.proj (Conv2d)"),
        ("mixer_s32_224", "stem.proj.weight", "that of stem.proj (Conv2d)"),
        ("cifar_vit_tiny_patch4", "blocks.11.mlp.fc2.weight", "that of blocks.11.mlp.fc2 (Linear)"),
    ] {
        let (store, net, images) = build(model)?;
        let (buffers, dropout) = (state(&store)?, store.dropout_state());
        let healthy = diagnose(net.as_ref(), &store, &images)?;
        // Mixer's classifier starts at zero.
        let least = if model.starts_with("mixer") { 0.0 } else { f64::MIN_POSITIVE };
        ensure!(matches!(healthy, Diagnosis::Finite { largest_logit } if largest_logit >= least), "{model}: {healthy}");
        poison(&store, key, 3e38)?;
        let diagnosis = diagnose(net.as_ref(), &store, &images)?.to_string();
        ensure!(diagnosis == format!("the first output that is not finite is {want}"), "{model}: {diagnosis}");
        ensure!(
            state(&store)? == buffers && store.dropout_state() == dropout,
            "{model}: looking has changed its state"
        );
    }
    Ok(())
}

/// A sum has no tensors of its own: it is placed at its block.
#[test]
fn a_sum_is_placed_at_its_block() -> Result<()> {
    let (store, net, images) = build("cifar_resnet20")?;
    poison(&store, "layer1.0.bn2.bias", 3e38)?;
    poison(&store, "bn1.bias", 3e38)?;
    let found = first_not_finite(|| net.forward_t(&images, true))?.context("nothing found")?;
    // The stem's output of 3e38 overflows in the convolution behind it, which sums 144 such pixels; without
    // that weight, in the sum.
    ensure!(found.path == "layer1.0.conv1", "{found:?}");
    poison(&store, "layer1.0.conv1.weight", 0.0)?;
    let found = first_not_finite(|| net.forward_t(&images, true))?.context("nothing found")?;
    ensure!((found.path.as_str(), found.kind()) == ("layer1.0", "Add"), "{found:?}");
    Ok(())
}

#[test]
fn images_and_running_statistics_are_looked_at() -> Result<()> {
    let (store, net, images) = build("cifar_resnet20")?;
    let bad = (images.clone() * f64::INFINITY)?;
    ensure!(diagnose(net.as_ref(), &store, &bad)?.to_string() == "the input is not finite");
    poison(&store, "bn1.running_var", f32::NAN)?;
    // Training does not read them, so they are no reason for its loss.
    let diagnosis = diagnose(net.as_ref(), &store, &images)?;
    ensure!(diagnosis == Diagnosis::Statistic("bn1.running_var".into()), "{diagnosis}");
    let found = first_not_finite(|| net.forward_t(&images, false))?.context("nothing found")?;
    ensure!(found.path == "bn1", "{found:?}");
    Ok(())
}

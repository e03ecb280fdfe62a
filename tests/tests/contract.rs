//! The registry's contract: what holds for every model, whoever adds one.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use std::collections::HashSet;
use tests::{norm, values};
use zoo::{ModelInfo, ModelOptions, VarStore};
use zoo_core::loss::cross_entropy;
use zoo_core::rng::Rng;
use zoo_core::trace::Graph;

fn each(check: impl Fn(&'static ModelInfo) -> Result<()>) -> Result<()> {
    let mut count = 0;
    for info in zoo::all() {
        check(info).with_context(|| info.name)?;
        count += 1;
    }
    ensure!(count > 0, "the registry is empty");
    Ok(())
}

fn images(info: &ModelInfo, batch: usize) -> Result<Tensor> {
    let mut rng = Rng::new(11, "contract images");
    let dims = (batch, 3, info.input.size, info.input.size);
    let count = batch * 3 * info.input.size * info.input.size;
    Ok(Tensor::from_vec((0..count).map(|_| rng.normal() as f32).collect(), dims, &Device::Cpu)?)
}

fn build(info: &ModelInfo, seed: u64) -> Result<(VarStore, Box<dyn zoo::Model>)> {
    let store = VarStore::new(seed, DType::F32, &Device::Cpu);
    let net = info.build(&ModelOptions::default(), store.root())?;
    Ok((store, net))
}

#[test]
fn counts_are_exact_and_keys_unique() -> Result<()> {
    each(|info| {
        let count = info.count_parameters(&ModelOptions::default())?;
        ensure!(count == info.parameters, "{count} parameters, the registry says {}", info.parameters);
        let store = VarStore::shapes_only();
        info.build(&ModelOptions::default(), store.root())?;
        let keys: HashSet<String> = store.slots().into_iter().map(|slot| slot.key).collect();
        ensure!(keys.len() == store.slots().len(), "a key stands twice");
        Ok(())
    })
}

/// Every layer takes part in the trace: nothing hangs in the air, nothing is counted twice or not at all.
#[test]
fn the_graph_has_no_gap() -> Result<()> {
    each(|info| {
        let net = info.build(&ModelOptions::default(), VarStore::shapes_only().root())?;
        let side = info.input.size;
        let graph = Graph::of_model(net.as_ref(), (3, side, side))?;
        ensure!(
            graph.parameters() == info.parameters,
            "the layers sum to {} parameters, the network has {}",
            graph.parameters(),
            info.parameters
        );
        for node in &graph.nodes[1..] {
            ensure!(!node.inputs.is_empty(), "{} `{}` reads nothing that the trace knows", node.kind, node.place);
        }
        let read: HashSet<usize> = graph.nodes.iter().flat_map(|node| node.inputs.iter().copied()).collect();
        let unread: Vec<_> = (0..graph.nodes.len()).filter(|i| !read.contains(i)).map(|i| &graph.nodes[i]).collect();
        ensure!(unread.len() == 1, "more than the output is read by nothing: {unread:?}");
        ensure!(unread[0].shape == [1, info.num_classes], "the output is {:?}", unread[0].shape);
        Ok(())
    })
}

/// The head can be replaced, features come in three depths, and stages can be had.
#[test]
fn features_and_heads() -> Result<()> {
    each(|info| {
        let store = VarStore::new(3, DType::F32, &Device::Cpu);
        let mut net = info.build(&ModelOptions::default(), store.root())?;
        let xs = images(info, 1)?;
        let features = net.forward_features(&xs, false)?;
        let pre_logits = net.pre_logits(&features, false)?;
        ensure!(pre_logits.dims() == [1, net.classifier().in_features()], "pre_logits is {:?}", pre_logits.dims());
        let (whole, parts) = (net.forward_t(&xs, false)?, net.forward_head(&features, false)?);
        ensure!(values(&whole)? == values(&parts)?, "features and head do not make the whole");
        let stages = net.forward_intermediates(&xs, false)?;
        ensure!(!stages.is_empty() || info.family == "mlp", "a network without stages");
        ensure!(stages.iter().all(|(_, map)| map.rank() >= 3), "a stage that is no map");

        let keys = || -> Vec<String> { store.slots().into_iter().map(|slot| slot.key).collect() };
        let before = keys();
        ensure!(net.reset_classifier(0).is_err(), "a classifier of no class");
        net.reset_classifier(7)?;
        ensure!(net.forward_t(&xs, false)?.dims() == [1, 7] && net.classifier().num_classes() == 7, "a new head of 7");
        ensure!(keys() == before, "a new head changes the keys");
        Ok(())
    })
}

#[test]
fn num_classes_and_in_chans_are_followed() -> Result<()> {
    each(|info| {
        for classes in [1, 10, 1000] {
            let store = VarStore::new(0, DType::F32, &Device::Cpu);
            let net = info.build(
                &ModelOptions { num_classes: Some(classes), in_chans: Some(1), ..Default::default() },
                store.root(),
            )?;
            let logits = net.forward_t(&images(info, 2)?.narrow(1, 0, 1)?, false)?;
            ensure!(logits.dims() == [2, classes], "{:?} for {classes} classes", logits.dims());
        }
        Ok(())
    })
}

/// The rule for what mathematics cancels: the bias of a convolution or linear layer whose output goes straight into a
/// BatchNorm, which subtracts the mean and the bias with it. Such a layer and its norm differ in one step of their keys.
fn is_cancelled(key: &str, keys: &HashSet<String>) -> bool {
    let Some(layer) = key.strip_suffix(".bias") else { return false };
    let Some((place, name)) = layer.rsplit_once('.').or(Some(("", layer))) else { return false };
    let norm = match name {
        "conv" => "bn".to_string(),
        n if n.starts_with("conv") => n.replace("conv", "bn"),
        n => match n.parse::<usize>() {
            Ok(n) => (n + 1).to_string(),
            Err(_) => return false,
        },
    };
    let prefix = if place.is_empty() { norm } else { format!("{place}.{norm}") };
    !keys.contains(&format!("{layer}.running_mean")) && keys.contains(&format!("{prefix}.running_mean"))
}

#[test]
fn every_parameter_gets_a_gradient() -> Result<()> {
    each(|info| {
        let (store, net) = build(info, 1)?;
        // A head that starts at zero, as the Mixer's does, lets nothing through at the very first step.
        let head = format!("{}.weight", net.classifier().place());
        let head = store.get(&head).and_then(|slot| slot.var).with_context(|| format!("no `{head}`"))?;
        if norm(&values(&head)?) == 0.0 {
            let count = head.elem_count();
            let mut rng = Rng::new(1, "a head that is not zero");
            let drawn = (0..count).map(|_| rng.normal() as f32).collect();
            head.set(&Tensor::from_vec(drawn, head.dims(), &Device::Cpu)?)?;
        }
        let labels = Tensor::new(&[3u32, 1, 4, 1], &Device::Cpu)?;
        let grads = cross_entropy(&net.forward_t(&images(info, 4)?, true)?, &labels, 0.0)?.backward()?;
        let keys: HashSet<String> = store.slots().into_iter().map(|slot| slot.key).collect();
        for (key, var) in store.parameters() {
            let grad = values(grads.get(&var).with_context(|| format!("`{key}` has no gradient"))?)?;
            ensure!(grad.iter().all(|g| g.is_finite()), "`{key}` has a gradient that is not finite");
            ensure!(is_cancelled(&key, &keys) || norm(&grad) > 0.0, "`{key}` has a gradient of zero");
        }
        Ok(())
    })
}

#[test]
fn evaluation_is_deterministic_and_builds_no_graph() -> Result<()> {
    each(|info| {
        let (_, net) = build(info, 2)?;
        let xs = images(info, 3)?;
        let (a, b) = (net.forward_t(&xs, false)?, net.forward_t(&xs, false)?);
        ensure!(!a.track_op(), "evaluation builds a graph");
        ensure!(values(&a)? == values(&b)?, "two evaluations differ");
        // One image alone gives what it gives in a batch, to the rounding of another order of sums.
        let alone = values(&net.forward_t(&xs.narrow(0, 1, 1)?, false)?)?;
        let together = values(&a.get(1)?)?;
        let difference: Vec<f64> = alone.iter().zip(&together).map(|(x, y)| x - y).collect();
        ensure!(norm(&difference) <= 1e-4 * norm(&together), "an image depends on its batch in evaluation");
        Ok(())
    })
}

#[test]
fn a_seed_fixes_a_training_pass() -> Result<()> {
    each(|info| {
        let pass = || -> Result<Vec<f64>> {
            let (_, net) = build(info, 5)?;
            values(&net.forward_t(&images(info, 4)?, true)?)
        };
        ensure!(pass()? == pass()?, "the same seed gives other values");
        Ok(())
    })
}

//! The registry's contract: what holds for every model, whoever adds one.
//!
//! Two sweeps. The first runs every model on shapes alone, which costs milliseconds whatever its size. The second
//! computes: it trains, evaluates and stores every model on small images. The largest ones, which share all their code
//! with smaller ones, only do the part that has to see each of their tensors, and one model a file learns a batch by
//! heart: the smallest, since deep networks without shortcuts do not, as He et al. found.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use tests::{fill, norm, values};
use zoo::{Model, ModelInfo, ModelOptions, VarStore};
use zoo_core::GlobalPool;
use zoo_core::loss::cross_entropy;
use zoo_core::rng::Rng;
use zoo_core::trace::Graph;
use zoo_core::weights::{LoadOptions, Rename, Weights, load, save_safetensors};
use zoo_train::optim::{Adam, Group, Optimizer};

/// Parameters up to which a model is stored and loaded here.
const SMALL: usize = 30_000_000;

fn each(check: impl Fn(&'static ModelInfo) -> Result<()>) -> Result<()> {
    let mut count = 0;
    for info in zoo::all() {
        check(info).with_context(|| info.name)?;
        count += 1;
    }
    ensure!(count > 0, "the registry is empty");
    Ok(())
}

/// A model in a store of shapes, and its graph on one image of its own size.
fn trace(info: &ModelInfo, options: &ModelOptions) -> Result<(VarStore, Box<dyn Model>, Graph)> {
    let store = VarStore::shapes_only();
    let net = info.build(options, store.root())?;
    let dims = info.dimensions(options);
    let graph = Graph::of_model(net.as_ref(), (dims.in_chans, dims.image_size, dims.image_size))?;
    Ok((store, net, graph))
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

/// A rename leads to a key that some network has; one that matches nothing is a slip in its pattern.
#[test]
fn renames_lead_to_keys() -> Result<()> {
    let mut seen: BTreeMap<(&str, &str), bool> = BTreeMap::new();
    each(|info| {
        ensure!(info.renames.iter().all(|rule| !rule.reason.is_empty()), "a rename without a reason");
        Ok(())
    })?;
    for info in zoo::all() {
        let store = VarStore::shapes_only();
        info.build(&ModelOptions::default(), store.root())?;
        for rule in info.renames.iter().filter(|rule| !rule.to.is_empty()) {
            let back = Rename { from: rule.to, to: rule.from, reason: rule.reason };
            let leads = store.slots().iter().any(|slot| back.apply(&slot.key).is_some());
            *seen.entry((rule.from, rule.to)).or_default() |= leads;
        }
    }
    let astray: Vec<_> = seen.iter().filter(|(_, leads)| !**leads).map(|(rule, _)| rule).collect();
    ensure!(astray.is_empty(), "no network has what these renames lead to: {astray:?}");
    Ok(())
}

/// Every layer takes part in the trace: nothing hangs in the air, nothing is counted twice or not at all.
#[test]
fn the_graph_has_no_gap() -> Result<()> {
    each(|info| {
        let (_, _, graph) = trace(info, &ModelOptions::default())?;
        ensure!(
            graph.parameters() == info.parameters,
            "the layers sum to {} parameters, the network has {}",
            graph.parameters(),
            info.parameters
        );
        for node in &graph.nodes[1..] {
            ensure!(!node.inputs.is_empty(), "{} `{}` reads nothing that the trace knows", node.kind(), node.path);
        }
        let read: HashSet<usize> = graph.nodes.iter().flat_map(|node| node.inputs.iter().copied()).collect();
        let unread: Vec<_> = (0..graph.nodes.len()).filter(|i| !read.contains(i)).map(|i| &graph.nodes[i]).collect();
        ensure!(unread.len() == 1, "more than the output is read by nothing: {unread:?}");
        ensure!(unread[0].shape == [1, info.num_classes], "the output is {:?}", unread[0].shape);
        Ok(())
    })
}

/// The head can be replaced, features come in three depths, stages can be had, and classes and channels are followed.
#[test]
fn features_heads_classes_and_channels() -> Result<()> {
    each(|info| {
        for classes in [1, 10, 1000] {
            let options = ModelOptions { num_classes: Some(classes), in_chans: Some(1), ..Default::default() };
            let (store, mut net, graph) = trace(info, &options)?;
            let shape = |graph: &Graph| graph.nodes.last().map(|node| node.shape.clone()).unwrap_or_default();
            ensure!(shape(&graph) == [1, classes], "{:?} for {classes} classes", shape(&graph));

            let side = info.preprocess.size;
            Graph::of(&[&[2, 1, side, side]], |inputs| {
                let features = net.forward_features(&inputs[0], false)?;
                let pooled = net.pre_logits(&features, false)?;
                assert_eq!(pooled.dims(), [2, net.classifier().in_features()], "{}: pre_logits", info.name);
                let stages = net.forward_intermediates(&inputs[0], false)?;
                assert!(!stages.is_empty() || info.family == "mlp", "{}: a network without stages", info.name);
                assert!(stages.iter().all(|(_, map)| map.rank() >= 3), "{}: a stage that is no map", info.name);
                net.forward_head(&features, false)
            })?;

            let keys = || -> Vec<String> { store.slots().into_iter().map(|slot| slot.key).collect() };
            let before = keys();
            ensure!(net.reset_classifier(0).is_err(), "a classifier of no class");
            net.reset_classifier(7)?;
            let graph = Graph::of_model(net.as_ref(), (1, side, side))?;
            ensure!(shape(&graph) == [1, 7] && net.classifier().num_classes() == 7, "a new head of 7");
            ensure!(keys() == before, "a new head changes the keys");
        }
        Ok(())
    })
}

/// The options that a network says it has change it, and keep its parameters' number; those that it has not are refused.
#[test]
fn choices_are_followed_or_refused() -> Result<()> {
    each(|info| {
        let side = small_image(info);
        // The names and rates of what drops in training.
        let drops = |options: ModelOptions| -> Result<(usize, Vec<String>, Vec<usize>)> {
            let store = VarStore::shapes_only();
            let net = info.build(&ModelOptions { image_size: Some(side), ..options }, store.root())?;
            let graph = Graph::of(&[&[2, 3, side, side]], |inputs| net.logits(&inputs[0], true))?;
            let rates = graph.nodes.iter().filter(|node| node.kind() == "Dropout").map(|node| node.step.detail());
            let shape = graph.nodes.last().map(|node| node.shape.clone()).unwrap_or_default();
            Ok((store.parameter_count(), rates.collect(), shape))
        };
        let own = drops(ModelOptions::default())?;
        let rate = drops(ModelOptions { drop_rate: Some(0.375), ..Default::default() });
        let path = drops(ModelOptions { drop_path_rate: Some(0.375), ..Default::default() });
        let said = |result: Result<_>| result.err().map(|error| error.to_string()).unwrap_or_default();
        if info.choices.drop_rate {
            ensure!(rate?.1.contains(&"0.375".to_string()), "drop_rate is not followed");
        } else {
            ensure!(said(rate).contains("no drop_rate can be chosen"), "drop_rate is neither followed nor refused");
        }
        if info.choices.drop_path_rate {
            let (parameters, rates, _) = path?;
            let blocks = rates.len() - own.1.len();
            ensure!(parameters == own.0 && blocks > 0 && rates.contains(&"0.375".to_string()), "{rates:?}");
            // Evenly from 0, where nothing is dropped, to the rate.
            ensure!(rates.windows(2).all(|two| two[0].parse::<f64>().ok() <= two[1].parse().ok()), "{rates:?}");
        } else {
            ensure!(
                said(path).contains("no drop_path_rate can be chosen"),
                "drop_path_rate is neither followed nor refused"
            );
        }
        for pool in [GlobalPool::Avg, GlobalPool::Max, GlobalPool::AvgMax, GlobalPool::Token] {
            let pooled = drops(ModelOptions { global_pool: Some(pool), ..Default::default() });
            if info.choices.global_pool.contains(&pool) {
                ensure!(pooled?.2 == own.2, "global_pool {pool}");
            } else {
                let text = said(pooled);
                ensure!(text.contains(&format!("global_pool `{pool}` is none of its own")), "{text}");
            }
        }
        Ok(())
    })
}

/// The biases that mathematics cancels: those of a layer that nothing but BatchNorm reads, which takes the mean off,
/// and the bias with it.
fn cancelled(graph: &Graph) -> HashSet<String> {
    let mut readers: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
    for node in &graph.nodes {
        node.inputs.iter().for_each(|&input| {
            readers.entry(input).or_default().insert(node.kind());
        });
    }
    let only_norm = |i: &usize| readers.get(i).is_some_and(|kinds| kinds.iter().eq(["BatchNorm"].iter()));
    let layers = (0..graph.nodes.len()).filter(only_norm).map(|i| format!("{}.bias", graph.nodes[i].path));
    layers.collect()
}

/// The image that the second sweep runs on: 64 pixels instead of 224.
fn small_image(info: &ModelInfo) -> usize {
    info.preprocess.size.min(64)
}

fn images(info: &ModelInfo, batch: usize) -> Result<Tensor> {
    let (mut rng, side) = (Rng::new(11, "contract images"), small_image(info));
    let values = (0..batch * 3 * side * side).map(|_| rng.normal() as f32).collect();
    Ok(Tensor::from_vec(values, (batch, 3, side, side), &Device::Cpu)?)
}

fn build(info: &ModelInfo, seed: u64) -> Result<(VarStore, Box<dyn Model>)> {
    let store = VarStore::new(seed, DType::F32, &Device::Cpu);
    let options =
        ModelOptions { image_size: Some(small_image(info)), num_classes: Some(10), ..ModelOptions::default() };
    let net = info.build(&options, store.root())?;
    Ok((store, net))
}

const LABELS: [u32; 4] = [3, 1, 4, 1];

/// Every trainable variable gets a gradient, and a finite one. Returns the keys of those that are zero and not
/// cancelled.
fn zero_gradients(info: &ModelInfo, store: &VarStore, net: &dyn Model, xs: &Tensor) -> Result<HashSet<String>> {
    let labels = Tensor::new(&LABELS, &Device::Cpu)?;
    let logits = net.forward_t(xs, true)?;
    let grads = cross_entropy(&logits, &labels, 0.0)?.backward()?;
    let options =
        ModelOptions { image_size: Some(small_image(info)), num_classes: Some(10), ..ModelOptions::default() };
    let cancelled = cancelled(&trace(info, &options)?.2);
    let mut zero = HashSet::new();
    for (key, var) in store.parameters() {
        let grad = grads.get(&var).with_context(|| format!("`{key}` has no gradient"))?;
        let size = grad.abs()?.sum_all()?.to_scalar::<f32>()?;
        ensure!(size.is_finite(), "`{key}` has a gradient that is not finite");
        if size == 0.0 && !cancelled.contains(&key) {
            zero.insert(key);
        }
    }
    Ok(zero)
}

/// What starts as a constant, such as the last norm of a branch or a head at zero, would hide what stands behind it.
fn unhide(store: &VarStore) -> Result<()> {
    for (key, var) in &store.parameters() {
        let first: Vec<f32> = var.flatten_all()?.narrow(0, 0, var.elem_count().min(64))?.to_vec1()?;
        if first.iter().any(|x| *x != first[0]) {
            continue;
        }
        let values = Tensor::from_vec(fill(key, var.dims()), var.shape(), &Device::Cpu)?;
        var.set(&values.to_dtype(store.dtype())?)?;
    }
    Ok(())
}

fn evaluation(net: &dyn Model, xs: &Tensor) -> Result<Vec<f64>> {
    let (a, b) = (net.forward_t(xs, false)?, net.forward_t(xs, false)?);
    ensure!(!a.track_op(), "evaluation builds a graph");
    ensure!(values(&a)? == values(&b)?, "two evaluations differ");
    // One image alone gives what it gives in a batch, to the rounding of another order of sums.
    let alone = values(&net.forward_t(&xs.narrow(0, 1, 1)?, false)?)?;
    let together = values(&a.get(1)?)?;
    let difference: Vec<f64> = alone.iter().zip(&together).map(|(x, y)| x - y).collect();
    ensure!(norm(&difference) <= 1e-4 * norm(&together), "an image depends on its batch in evaluation");
    values(&a)
}

fn storage(info: &ModelInfo, store: &VarStore, xs: &Tensor, logits: &[f64]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("model.safetensors");
    save_safetensors(store, &path, &Default::default())?;
    let (other_store, other) = build(info, 99)?;
    load(&other_store, &Weights::open(&path)?, &LoadOptions::default())?;
    ensure!(values(&other.forward_t(xs, false)?)? == logits, "what is loaded differs from what was saved");
    Ok(())
}

/// Adam brings the loss of one batch, in training mode but without dropout, to a fifth; most need some ten steps.
fn overfitting(store: &VarStore, net: &dyn Model, xs: &Tensor) -> Result<()> {
    let labels = Tensor::new(&LABELS, &Device::Cpu)?;
    let mut optimizer = Adam::new(vec![Group::new(store.parameters(), 0.0)], 1e-3);
    let mut first = None;
    for _ in 0..300 {
        let loss = cross_entropy(&net.forward_t(xs, true)?, &labels, 0.0)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        if value < *first.get_or_insert(value) / 5.0 {
            return Ok(());
        }
        optimizer.step(&loss.backward()?)?;
    }
    anyhow::bail!("one batch cannot be learned by heart")
}

fn sweep(family: &str) -> Result<()> {
    for models in zoo::files().filter(|models| models.iter().any(|info| info.family == family)) {
        let smallest = models.iter().min_by_key(|info| info.parameters).map(|info| info.name);
        for info in models {
            check(info, smallest == Some(info.name)).with_context(|| info.name)?;
        }
    }
    Ok(())
}

fn check(info: &'static ModelInfo, smallest: bool) -> Result<()> {
    let (store, net) = build(info, 1)?;
    let xs = images(info, 4)?;
    let small = info.parameters <= SMALL;
    if small {
        // Dropout and all: the same seed gives the same bits.
        let (_, again) = build(info, 1)?;
        let same = values(&net.forward_t(&xs, true)?)? == values(&again.forward_t(&xs, true)?)?;
        ensure!(same, "the same seed gives other values");
    }
    store.set_dropout(false);
    unhide(&store)?;
    let mut zero = zero_gradients(info, &store, net.as_ref(), &xs)?;
    // Four images may leave a ReLU dead, where a gate has one unit only; but not those of every seed.
    for seed in 2..6 {
        if !zero.is_empty() {
            let (store, net) = build(info, seed)?;
            store.set_dropout(false);
            let again = zero_gradients(info, &store, net.as_ref(), &xs)?;
            zero.retain(|key| again.contains(key));
        }
    }
    ensure!(zero.is_empty(), "these have a gradient of zero: {zero:?}");
    let logits = evaluation(net.as_ref(), &xs)?;
    if small {
        storage(info, &store, &xs, &logits)?;
    }
    if smallest {
        overfitting(&store, net.as_ref(), &xs)?;
    }
    Ok(())
}

#[test]
fn cnn_computes() -> Result<()> {
    sweep("cnn")
}

#[test]
fn resnet_computes() -> Result<()> {
    sweep("resnet")
}

#[test]
fn mobile_computes() -> Result<()> {
    sweep("mobile")
}

#[test]
fn transformer_computes() -> Result<()> {
    sweep("transformer")
}

#[test]
fn mlp_computes() -> Result<()> {
    sweep("mlp")
}

//! Every registered network as an ONNX file, run by an engine that is not ours: its logits are the network's.
//!
//! The files are written from a trace of one image and run on two. `tests/reference/export.py` asks ONNX's own checker
//! and ONNX Runtime the same.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use rten::Value;
use rten_tensor::NdTensor;
use rten_tensor::prelude::*;
use tests::{fill_store, unit, values};
use zoo::{Model, ModelInfo, ModelOptions, VarStore};
use zoo_core::trace::{Graph, Step};
use zoo_core::{BatchNormSettings, ChannelOrder, GlobalPool, Preprocess, VarBuilder, trace};
use zoo_onnx::{Options, to_bytes};

/// How far logits may be off, as a part of the largest.
const TOLERANCE: f64 = 1e-4;

/// The engine's logits.
fn run(file: Vec<u8>, input: Value) -> Result<Vec<f64>> {
    let engine = rten::Model::load(file)?;
    let logits: NdTensor<f32, 2> = engine.run_one((&input).into(), None)?.try_into()?;
    Ok(logits.iter().map(|&x| f64::from(x)).collect())
}

/// The largest difference to `truth`, as a part of its largest number.
fn distance(truth: &[f64], other: &[f64]) -> Result<f64> {
    let largest = truth.iter().fold(0f64, |largest, x| largest.max(x.abs()));
    ensure!(largest > 0.0 && truth.len() == other.len(), "{} logits for {}", other.len(), truth.len());
    Ok(truth.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest)
}

fn images(name: &str, [n, c, side]: [usize; 3]) -> Result<(Value, Tensor)> {
    let numbers: Vec<f32> = unit(name, n * c * side * side).into_iter().map(|x| x as f32).collect();
    let theirs = Value::from(NdTensor::from_data([n, c, side, side], numbers.clone()));
    Ok((theirs, Tensor::from_vec(numbers, (n, c, side, side), &Device::Cpu)?))
}

/// Weights of every tensor, also of heads that start at zero, by He's rule: numbers that repeat after so many that no two
/// channels are alike. To draw them afresh for all networks would take most of the time.
fn start(store: &VarStore) -> Result<()> {
    let numbers: Vec<f32> = unit("weights", 65_521).into_iter().map(|x| x as f32).collect();
    for (i, slot) in store.slots().into_iter().enumerate() {
        let dims = slot.shape.dims();
        let (offset, scale) = match dims.len() {
            1 if slot.key.ends_with("bias") || slot.key.ends_with("mean") => (0.0, 0.125),
            1 => (1.0, 0.25),
            _ => (0.0, (6.0 / dims[1..].iter().product::<usize>() as f32).sqrt()),
        };
        let drawn: Vec<f32> = numbers.iter().cycle().skip(97 * i).take(slot.shape.elem_count()).copied().collect();
        let values = (Tensor::from_vec(drawn, dims, &Device::Cpu)? * f64::from(scale))? + offset;
        slot.var.context("no storage")?.set(&values?)?;
    }
    Ok(())
}

fn check(info: &ModelInfo, side: usize, in_chans: usize) -> Result<()> {
    let store = VarStore::for_loading(DType::F32, &Device::Cpu);
    store.set_batch_norm(BatchNormSettings { momentum: Some(1.0), ..BatchNormSettings::default() });
    let options = ModelOptions { image_size: Some(side), in_chans: Some(in_chans), ..ModelOptions::default() };
    let net = info.build(&options, store.root())?;
    start(&store)?;
    // The statistics of a batch, so that the layers do not grow the numbers.
    net.forward_t(&images("statistics", [8, in_chans, side])?.1, true)?;
    let graph = Graph::of_model(net.as_ref(), (in_chans, side, side))?;
    let file = to_bytes(&graph, &store, &Options::new(info.name))?;
    let (theirs, ours) = images(info.name, [2, in_chans, side])?;
    let (theirs, ours) = (run(file, theirs)?, (values(&net.forward_t(&ours, false)?)?, ours));
    if distance(&ours.0, &theirs)? <= TOLERANCE {
        return Ok(());
    }
    // A hundred layers of random weights grow the last bits of f32 to 1.4e-4 of the logits, in either engine: then it is
    // right where it is not much further from the network in f64 than the network in f32 is.
    let precise = VarStore::new(0, DType::F64, &Device::Cpu);
    let net = info.build(&options, precise.root())?;
    for slot in precise.slots() {
        let own = store.get(&slot.key).and_then(|slot| slot.var).context("no storage")?;
        slot.var.context("no storage")?.set(&own.to_dtype(DType::F64)?)?;
    }
    let truth = values(&net.forward_t(&ours.1.to_dtype(DType::F64)?, false)?)?;
    let (off, own) = (distance(&truth, &theirs)?, distance(&truth, &ours.0)?);
    ensure!(off <= 2.0 * own, "the engine's logits are off by {off:.2e}, the network's by {own:.2e}");
    Ok(())
}

/// The networks of a family, on images of 64 pixels at the most: AlexNet's and VGG's grids then have cells of two sizes.
fn sweep(family: &str) -> Result<()> {
    let mut count = 0;
    for info in zoo::all().filter(|info| info.family == family) {
        check(info, info.preprocess.size.min(64), 3).context(info.name)?;
        count += 1;
    }
    ensure!(count > 0, "no network of {family}");
    Ok(())
}

#[test]
fn cnn() -> Result<()> {
    sweep("cnn")
}

#[test]
fn resnet() -> Result<()> {
    sweep("resnet")
}

#[test]
fn mobile() -> Result<()> {
    sweep("mobile")
}

#[test]
fn transformer() -> Result<()> {
    sweep("transformer")
}

#[test]
fn mlp() -> Result<()> {
    sweep("mlp")
}

/// Images of their own size, of a size that no stride divides, and grey.
#[test]
fn other_images() -> Result<()> {
    for (name, side, in_chans) in
        [("googlenet", 97, 3), ("vgg11", 224, 3), ("mobilenet_v2", 225, 1), ("shufflenet_v1_g3", 65, 3)]
    {
        check(zoo::find(name)?, side, in_chans).with_context(|| format!("{name}, {in_chans}x{side}x{side}"))?;
    }
    Ok(())
}

/// Other global poolings than the mean.
#[test]
fn poolings() -> Result<()> {
    for (name, pool) in [
        ("resnet18", GlobalPool::Max),
        ("cifar_resnet20", GlobalPool::AvgMax),
        ("vit_tiny_patch16_224", GlobalPool::Avg),
    ] {
        let store = VarStore::for_loading(DType::F32, &Device::Cpu);
        let options = ModelOptions { image_size: Some(32), global_pool: Some(pool), ..ModelOptions::default() };
        let net = zoo::find(name)?.build(&options, store.root())?;
        start(&store)?;
        let file = to_bytes(&Graph::of_model(net.as_ref(), (3, 32, 32))?, &store, &Options::new(name))?;
        let (theirs, ours) = images(name, [2, 3, 32])?;
        let off = distance(&values(&net.forward_t(&ours, false)?)?, &run(file, theirs)?)?;
        ensure!(off <= TOLERANCE, "{name}, {pool}: {off:.2e}");
    }
    Ok(())
}

/// An encoder with its decoder, on sequences of other lengths than those of the trace, the norms in front and behind. A
/// mask of the caller's has no place in the file.
#[test]
fn sequences() -> Result<()> {
    use zoo::transformer::transformer::{Config, Masks, Transformer, causal_mask};
    for norm_first in [false, true] {
        let config = Config {
            d_model: 24,
            heads: 3,
            encoder_layers: 2,
            decoder_layers: 2,
            feed_forward: 40,
            norm_first,
            ..Config::base()
        };
        let store = VarStore::new(5, DType::F32, &Device::Cpu);
        let net = Transformer::new(&config, store.root())?;
        fill_store(&store)?;
        let trace = |masks: &Masks| {
            Graph::of(&[&[1, 5, 24], &[1, 4, 24]], |inputs| net.forward(&inputs[0], &inputs[1], masks, false))
        };
        let file = to_bytes(&trace(&Masks::default())?, &store, &Options::new("transformer"))?;
        let sequence = |name: &str, n: usize| -> Result<(Value, Tensor)> {
            let numbers: Vec<f32> = unit(name, 2 * n * 24).into_iter().map(|x| x as f32).collect();
            let ours = Tensor::from_slice(&numbers, (2, n, 24), &Device::Cpu)?;
            Ok((Value::from(NdTensor::from_data([2, n, 24], numbers)), ours))
        };
        let (source, target) = (sequence("source", 9)?, sequence("target", 3)?);
        let ours = values(&net.forward(&source.1, &target.1, &Masks::default(), false)?)?;
        let engine = rten::Model::load(file)?;
        let node = |name: &str| engine.find_node(name).context("an input is missing");
        let inputs = vec![(node("source")?, source.0.into()), (node("target")?, target.0.into())];
        let [output] = engine.run_n(inputs, [node("output")?], None)?;
        let output: NdTensor<f32, 3> = output.try_into()?;
        let theirs: Vec<f64> = output.iter().map(|&x| f64::from(x)).collect();
        let off = distance(&ours, &theirs)?;
        ensure!(off <= TOLERANCE, "norms first {norm_first}: {off:.2e}");

        let masks = Masks { target: Some(causal_mask(4, 4, DType::F32, &Device::Cpu)?), ..Masks::default() };
        let masked = to_bytes(&trace(&masks)?, &store, &Options::new("transformer")).unwrap_err().to_string();
        ensure!(masked.contains("its mask is the caller's"), "{masked}");
    }
    Ok(())
}

/// Bytes go in and are normalised inside, red or blue first.
#[test]
fn pixels() -> Result<()> {
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    let net = zoo::find("cifar_resnet20")?.build(&ModelOptions::default(), store.root())?;
    fill_store(&store)?;
    let graph = Graph::of_model(net.as_ref(), (3, 32, 32))?;
    let bytes: Vec<u8> = unit("pixels", 2 * 32 * 32 * 3).into_iter().map(|x| (127.5 + 127.5 * x) as u8).collect();
    for order in [ChannelOrder::Rgb, ChannelOrder::Bgr] {
        let preprocess = Preprocess::CIFAR10.channel_order(order);
        let options = Options { preprocess: Some(preprocess), pixels: true, ..Options::new("cifar_resnet20") };
        let theirs =
            run(to_bytes(&graph, &store, &options)?, Value::from(NdTensor::from_data([2, 32, 32, 3], bytes.clone())))?;
        let value = |i: usize| {
            let (image, place, channel) = (i / 3072, i % 1024, i % 3072 / 1024);
            let colour = if order == ChannelOrder::Bgr { 2 - channel } else { channel };
            let byte = bytes[(image * 1024 + place) * 3 + colour];
            ((f64::from(byte) / 255.0 - preprocess.mean[channel]) / preprocess.std[channel]) as f32
        };
        let ours = Tensor::from_vec((0..2 * 3072).map(value).collect(), (2, 3, 32, 32), &Device::Cpu)?;
        let off = distance(&values(&net.forward_t(&ours, false)?)?, &theirs)?;
        ensure!(off <= TOLERANCE, "{order:?}: {off:.2e}");
    }
    Ok(())
}

/// A network of steps that have no name is refused with the step's.
#[test]
fn a_step_without_an_operator_is_named() -> Result<()> {
    #[derive(Debug)]
    struct Roll(zoo_core::Classifier);
    impl Model for Roll {
        fn forward_features(&self, xs: &Tensor, _: bool) -> candle_core::Result<Tensor> {
            trace::op(Step::other("Roll", "by 1"), &[xs], || xs.roll(1, 3))
        }
        fn pre_logits(&self, features: &Tensor, _: bool) -> candle_core::Result<Tensor> {
            zoo_core::flatten(features)
        }
        fn classifier(&self) -> &zoo_core::Classifier {
            &self.0
        }
        fn classifier_mut(&mut self) -> &mut zoo_core::Classifier {
            &mut self.0
        }
    }
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    let vb: VarBuilder = store.root();
    let net = Roll(zoo_core::Classifier::new(48, 2, vb.pp("head"))?);
    let graph = Graph::of_model(&net, (3, 4, 4))?;
    let error = to_bytes(&graph, &store, &Options::new("roll")).unwrap_err().to_string();
    ensure!(error.contains("Roll") && error.contains("no operator"), "{error}");
    // The graph of one network, the store of another.
    let other = VarStore::new(0, DType::F32, &Device::Cpu);
    let error = to_bytes(&graph, &other, &Options::new("roll")).unwrap_err().to_string();
    ensure!(error.contains("Roll"), "{error}");
    Ok(())
}

//! Fine-tuning with a frozen trunk: a network that was trained on one task gets a new classifier for another, and
//! nothing but the classifier is trained.
//!
//! The trunk's features of an image never change then, so they are computed once, without a graph, and training is that
//! of one linear layer on stored vectors: epochs take milliseconds, whatever the size of the trunk.
//!
//! With a model's name, its weights and a folder of images (`train/CLASS/*.png`, `val/CLASS/*.png`):
//!
//! ```text
//! cargo run --release --example finetune_frozen -p zoo-train -- resnet18 resnet18.pth flowers/
//! ```
//!
//! Without arguments both tasks are **drawn images, not CIFAR-10**: a small ResNet looks at six figures for some
//! seconds, and its trunk then serves for four textures that it has never seen. It has barely begun to learn by then; a
//! checkpoint that was trained in earnest is the better trunk.

use anyhow::{Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use std::path::Path;
use std::sync::Arc;
use zoo::resnet::cifar_resnet::{CifarResNet, Config};
use zoo::{Model, ModelOptions, ModuleT, VarStore};
use zoo_core::loss::{cross_entropy, topk_correct};
use zoo_core::weights::{LoadOptions, Weights, load};
use zoo_image::{Limits, Normalize};
use zoo_train::augment::Augment;
use zoo_train::data::{DataSource, Dataset, Split, Synthetic, folder};
use zoo_train::eval::evaluate;
use zoo_train::loader::Loader;
use zoo_train::optim::{Group, Optimizer, Sgd};

/// Images a pass of the trunk.
const BATCH: usize = 50;
/// Passes over the stored features.
const EPOCHS: usize = 100;

/// A network with the store that its tensors live in, and how images are normalised for it.
struct Trained {
    net: Box<dyn Model>,
    store: VarStore,
    normalize: Normalize,
}

/// Every tensor of the network but the classifier's, as bits: the trunk's weights and its running statistics.
fn trunk_bits(trained: &Trained) -> Result<Vec<(String, Vec<u32>)>> {
    let head = format!("{}.", trained.net.classifier().path());
    let tensors = trained.store.parameters().into_iter().chain(trained.store.buffers());
    let trunk = tensors.filter(|(key, _)| !key.starts_with(&head));
    trunk
        .map(|(key, var)| {
            let values: Vec<f32> = var.flatten_all()?.to_vec1()?;
            Ok((key, values.into_iter().map(f32::to_bits).collect()))
        })
        .collect()
}

/// What the trunk makes of a split, once and for all: (n, features), and the labels (n).
fn features(trained: &Trained, split: &Arc<Split>) -> Result<(Tensor, Tensor)> {
    let transform = Arc::new(split.transform(&trained.normalize)?);
    let mut vectors = Vec::new();
    for batch in Loader::eval(split.clone(), transform, BATCH, &Device::Cpu)?.epoch(0)? {
        // With `train` false the weights enter detached: no graph is kept, no gradient can reach the trunk, and
        // BatchNorm reads its running statistics without moving them. With `train` true they would drift although no
        // optimizer runs.
        let map = trained.net.forward_features(&batch?.images, false)?;
        vectors.push(trained.net.pre_logits(&map, false)?);
    }
    Ok((Tensor::cat(&vectors, 0)?, Tensor::new(split.labels(), &Device::Cpu)?))
}

fn accuracy(net: &dyn Model, features: &Tensor, labels: &[u32]) -> Result<f64> {
    let logits = net.classifier().forward_t(features, false)?;
    Ok(topk_correct(&logits, labels, 1)? as f64 / labels.len() as f64)
}

/// Gives `trained` a classifier for the classes of `data` and trains that alone. Returns the test accuracies before and
/// after.
fn finetune(trained: &mut Trained, data: &Dataset) -> Result<(f64, f64)> {
    trained.net.reset_classifier(data.classes.len())?;
    let before = trunk_bits(trained)?;
    let (train, labels) = features(trained, &data.train)?;
    let (test, test_labels) = (features(trained, &data.test)?.0, data.test.labels());

    // Features of different trunks differ in size by orders of magnitude; scaled to a mean square of 1 they all learn
    // at the same rate. The scale is a constant in front of a linear layer, so the weights take it over at the end.
    let scale = f64::from(train.sqr()?.mean_all()?.to_scalar::<f32>()?).sqrt().max(1e-12);
    let (train, test) = ((train / scale)?, (test / scale)?);

    // The optimizer is given the classifier's parameters and no others. They are asked for after `reset_classifier`: it
    // put new variables in the old ones' place.
    let head = format!("{}.", trained.net.classifier().path());
    let parameters: Vec<_> = trained.store.parameters().into_iter().filter(|(key, _)| key.starts_with(&head)).collect();
    println!("trained: {}", parameters.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>().join(", "));
    let mut optimizer = Sgd::new(vec![Group::new(parameters.clone(), 1e-4)], 0.1).momentum(0.9);

    let first = accuracy(trained.net.as_ref(), &test, test_labels)?;
    println!("\nepoch    loss    test accuracy");
    println!("    0       -    {first:.3}");
    for epoch in 1..=EPOCHS {
        let logits = trained.net.classifier().forward_t(&train, true)?;
        let loss = cross_entropy(&logits, &labels, 0.0)?;
        optimizer.step(&loss.backward()?)?;
        if epoch % 20 == 0 {
            let test_accuracy = accuracy(trained.net.as_ref(), &test, test_labels)?;
            println!("{epoch:>5}  {:.4}    {test_accuracy:.3}", loss.to_scalar::<f32>()?);
        }
    }
    // weight · (x / scale) = (weight / scale) · x
    for (key, var) in &parameters {
        if key.ends_with("weight") {
            var.set(&(var.as_detached_tensor() / scale)?)?;
        }
    }

    ensure!(trunk_bits(trained)? == before, "the trunk has changed");
    println!("\nnot a bit of the {} tensors of the trunk has changed", before.len());

    // The whole network, from the images.
    let transform = Arc::new(data.train.transform(&trained.normalize)?);
    let loader = Loader::eval(data.test.clone(), transform, BATCH, &Device::Cpu)?;
    Ok((first, evaluate(trained.net.as_ref(), &loader)?.top1()))
}

/// The images of `split` whose label is in `classes`, numbered from 0.
fn only(split: &Split, classes: std::ops::Range<u32>) -> Result<Split> {
    let (mut images, mut labels) = (Vec::new(), Vec::new());
    for (i, label) in split.labels().iter().enumerate().filter(|(_, label)| classes.contains(label)) {
        images.extend_from_slice(split.image(i));
        labels.push(label - classes.start);
    }
    Ok(Split::new(images, labels, split.shape())?)
}

fn task(data: &Dataset, classes: std::ops::Range<u32>) -> Result<Dataset> {
    let names = data.classes[classes.start as usize..classes.end as usize].to_vec();
    let source = DataSource::Other { label: format!("drawn images of {}", names.join(", ")) };
    Ok(Dataset::new(only(&data.train, classes.clone())?, only(&data.test, classes)?, names, source)?)
}

/// A ResNet of eight layers that has seen the six figures for some seconds: the stand-in for a checkpoint.
fn pretrain(figures: &Dataset) -> Result<Trained> {
    let store = VarStore::new(1, DType::F32, &Device::Cpu);
    let net = CifarResNet::new(&Config { num_classes: figures.classes.len(), ..Config::resnet(8)? }, store.root())?;
    let transform = Arc::new(figures.train.transform(&Normalize::CIFAR10)?);
    let loader = Loader::train(figures.train.clone(), transform, Augment::STANDARD, BATCH, 1, &Device::Cpu)?;
    let mut optimizer = Sgd::new(vec![Group::new(store.parameters(), 5e-4)], 0.05).momentum(0.9);
    for epoch in 0..3 {
        let mut sum = 0.0;
        for batch in loader.epoch(epoch)? {
            let batch = batch?;
            let loss = cross_entropy(&net.forward_t(&batch.images, true)?, &batch.labels, 0.0)?;
            optimizer.step(&loss.backward()?)?;
            sum += loss.to_scalar::<f32>()?;
        }
        println!(
            "pretraining on {} figures, epoch {epoch}: loss {:.3}",
            figures.classes.len(),
            sum / loader.len() as f32
        );
    }
    Ok(Trained { net: Box::new(net), store, normalize: Normalize::CIFAR10 })
}

/// A registered network with the weights of a file, whatever number of classes the file was trained on.
fn from_file(model: &str, weights: &Path) -> Result<(Trained, usize)> {
    let info = zoo::find(model)?;
    let store = VarStore::new(1, DType::F32, &Device::Cpu);
    let net = info.build(&ModelOptions::default(), store.root())?;
    let head = [net.classifier().path()];
    let report = load(&store, &Weights::open(weights)?, &LoadOptions { may_differ: &head, ..info.load_options() })?;
    println!("{}: {report}", weights.display());
    // As the project whose names the file has normalises images.
    let input = info.preprocess_of(report.layout);
    Ok((Trained { net, store, normalize: Normalize::of(&input) }, input.size))
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (mut trained, data) = match arguments.as_slice() {
        [] => {
            println!("no arguments: a demonstration on drawn images, which are not CIFAR-10\n");
            let all = Synthetic { train: 800, test: 500, seed: 0 }.generate();
            (pretrain(&task(&all, 0..6)?)?, task(&all, 6..10)?)
        }
        [model, weights, images] => {
            let (trained, side) = from_file(model, Path::new(weights))?;
            (trained, folder::load(Path::new(images), side, Limits::default())?)
        }
        _ => bail!("usage: finetune_frozen [MODEL WEIGHTS FOLDER]"),
    };
    let classes = data.classes.len();
    println!("\nthe new task: {classes} classes, {} training images: {}", data.train.len(), data.source.label());
    let (before, after) = finetune(&mut trained, &data)?;
    println!("test accuracy {:.1} % before, {:.1} % after", 100.0 * before, 100.0 * after);
    ensure!(after > before, "the new classifier has learned nothing");
    Ok(())
}

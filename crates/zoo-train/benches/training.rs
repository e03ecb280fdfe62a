//! What stands around a network in training: batches, pixels, and a whole epoch. `cargo bench -p zoo-train`, or
//! `cargo bench -p zoo-train -- loader` for the lines that hold the word. `RAYON_NUM_THREADS` sets the threads.
//!
//! Figures are images a second. An epoch is every batch with augmentation, forward, loss, backward and the optimizer's
//! step, under the network's own recipe, without evaluation; its share of the machine's peak is counted as in `cargo
//! bench -p candle-zoo`. One thread makes the loader's batches, beside those that compute.

#[path = "../../zoo-core/benches/machine/mod.rs"]
mod machine;

use anyhow::Result;
use candle_core::{DType, Device};
use criterion::{Criterion, SamplingMode, Throughput};
use machine::{Counts, Machine};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;
use zoo::{ModelOptions, VarStore};
use zoo_core::inspect::model_macs;
use zoo_core::loss::cross_entropy;
use zoo_image::Normalize;
use zoo_train::augment::Augment;
use zoo_train::data::{Dataset, Synthetic};
use zoo_train::loader::Loader;
use zoo_train::optim::clip_grad_norm;
use zoo_train::recipe::Recipe;

/// As the commands do it, so that the figures are theirs.
#[global_allocator]
static ALLOCATOR: zoo_core::memory::CachingAllocator = zoo_core::memory::CachingAllocator;

/// Images of the loader's and of the networks' epochs.
const IMAGES: usize = 2_000;
/// Small networks: what surrounds them weighs the most.
const NETWORKS: [&str; 2] = ["mlp", "template_cnn"];

const NORMALIZATIONS: [(&str, Normalize); 2] =
    [("channel means", Normalize::CIFAR10), ("pixel mean", Normalize::PixelMean)];
const AUGMENTATIONS: [(&str, Augment); 3] = [
    ("as they are", Augment::NONE),
    ("flip", Augment { flip: true, ..Augment::NONE }),
    ("crop and flip", Augment::STANDARD),
];

/// One image after the other through augmentation and normalisation.
fn transform(c: &mut Criterion<Machine>, data: &Dataset) -> Result<()> {
    let mut group = c.benchmark_group("transform");
    group.throughput(Throughput::Elements(1));
    let split = &data.train;
    let mut out = vec![0.0; split.shape().iter().product()];
    for (means, normalize) in NORMALIZATIONS {
        let transform = split.transform(&normalize)?;
        for (name, augment) in AUGMENTATIONS {
            let mut images = (0..split.len()).cycle();
            group.bench_function(format!("{means}, {name}"), |b| {
                b.iter(|| {
                    let index = images.next().unwrap_or_default();
                    transform.write(&split.image(index).unwrap(), augment.view(1, 0, index), &mut out);
                    black_box(&out);
                });
            });
        }
    }
    group.finish();
    Ok(())
}

/// A whole epoch of batches that nobody computes with.
fn loader(c: &mut Criterion<Machine>, data: &Dataset) -> Result<()> {
    let mut group = c.benchmark_group("loader");
    group.throughput(Throughput::Elements(data.train.len() as u64));
    for (means, normalize) in NORMALIZATIONS {
        let transform = Arc::new(data.train.transform(&normalize)?);
        let loader = Loader::train(data.train.clone(), transform, Augment::STANDARD, 128, 1, &Device::Cpu)?;
        group.bench_function(format!("{means}, crop and flip, batch 128"), |b| {
            b.iter(|| loader.epoch(0).expect("a thread").for_each(|batch| drop(black_box(batch.expect("a batch")))));
        });
    }
    group.finish();
    Ok(())
}

/// Epochs of training under the network's recipe, its learning rate constant.
fn epoch(c: &mut Criterion<Machine>, counts: &Counts, data: &Dataset, name: &str) -> Result<()> {
    let info = zoo::find(name)?;
    let recipe = Recipe::default_for(info)?;
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    let net = info.build(&ModelOptions::default(), store.root())?;
    let transform = Arc::new(data.train.transform(&recipe.normalize)?);
    let loader = Loader::train(data.train.clone(), transform, recipe.augment, recipe.batch, 1, &Device::Cpu)?;
    let parameters = store.parameters();
    let mut optimizer = recipe.optimizer.build(parameters.clone(), recipe.lr, recipe.decay_all);

    let mut train = || -> Result<()> {
        for batch in loader.epoch(0)? {
            let batch = batch?;
            let mut grads = cross_entropy(&net.forward_t(&batch.images, true)?, &batch.labels, 0.0)?.backward()?;
            if let Some(norm) = recipe.clip_norm {
                clip_grad_norm(&parameters, &mut grads, norm)?;
            }
            optimizer.step(&grads)?;
        }
        Ok(())
    };

    let mut group = c.benchmark_group("epoch");
    // Each sample is as many epochs as every other: one takes up to seconds.
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(data.train.len() as u64));
    counts.flops_per_image.set(Some(3.0 * 2.0 * model_macs(info, &ModelOptions::default())? as f64));
    group.bench_function(format!("{name}, {}, batch {}", recipe.name, recipe.batch), |b| {
        b.iter(|| train().expect("the network trains"));
    });
    group.finish();
    Ok(())
}

fn main() -> Result<()> {
    let machine = Machine::measure();
    let counts = machine.counts();
    let mut c = Criterion::default()
        .with_measurement(machine)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    counts.flops_per_image.set(Some(0.0));
    let data = Synthetic { train: IMAGES, test: 0, seed: 0 }.generate();
    transform(&mut c, &data)?;
    loader(&mut c, &data)?;
    for name in NETWORKS {
        epoch(&mut c, &counts, &data, name)?;
    }
    c.final_summary();
    Ok(())
}

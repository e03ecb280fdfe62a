//! `zoo bench`: how many images a second a network trains and classifies here.

use crate::text::print_line;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use std::time::{Duration, Instant};
use zoo::{Model, ModelInfo, ModelOptions, VarStore};
use zoo_core::ops::Level;
use zoo_core::rng::Rng;
use zoo_core::tape::value_and_grad;
use zoo_core::threads::in_pool;
use zoo_core::{Precision, with_fixed_weights};
use zoo_train::machine::{device, set_threads};
use zoo_train::optim::{Group, Optimizer, Sgd};
use zoo_train::record::peak_rss_mb;

/// Arguments of `bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the network, see `zoo list`
    model: String,
    /// What to measure: training, classifying or both
    #[arg(long, value_enum, default_value_t = Mode::Both)]
    mode: Mode,
    /// Batch size: images that go through the network together. Default: what takes some 2 GB in training
    #[arg(long)]
    batch: Option<usize>,
    /// Width and height of the image in pixels. Default: the network's own
    #[arg(long)]
    image: Option<usize>,
    /// Seconds to measure training; classifying is measured half as long
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Threads to compute with. Default: one for each processor core
    #[arg(long)]
    threads: Option<usize>,
    /// What to compute in: f32, or bf16 for mixed precision (on the CPU)
    #[arg(long, value_name = "f32|bf16", default_value_t)]
    precision: Precision,
    /// Device to compute on: cpu, cuda:N or metal
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// Forward, loss, backward, step of SGD with momentum and weight decay
    Train,
    /// Forward in evaluation
    Infer,
    /// One after the other
    Both,
}

/// Images a step where none are asked for: what keeps the memory of a training step below two gigabytes or so.
fn default_batch(info: &ModelInfo) -> usize {
    match (info.preprocess.size, info.name) {
        (_, "cifar_densenet121") => 32,
        (_, "vgg16_bn" | "vit_base_patch16_224" | "mixer_b16_224") => 4,
        (_, "alexnet") => 16,
        (224, _) => 8,
        (_, name) if name.starts_with("cifar_resnet18") || name.contains("mobilenet") => 64,
        (_, name) if name.contains("shufflenet") || name.contains("vit") => 64,
        _ => 128,
    }
}

/// Prints the figures.
pub fn run(args: &Args) -> Result<()> {
    let threads = set_threads(args.threads)?;
    in_pool(|| measure(args, threads))
}

fn measure(args: &Args, threads: usize) -> Result<()> {
    let info = zoo::find(&args.model)?;
    let device = device(&args.device)?;
    args.precision.check(&device).context("--precision")?;
    let (batch, side) = (args.batch.unwrap_or_else(|| default_batch(info)), args.image.unwrap_or(info.preprocess.size));
    let sizes = 1..=100_000;
    ensure!(sizes.contains(&batch) && sizes.contains(&side), "--batch and --image must be from 1 to 100,000");
    ensure!(
        args.seconds > 0.0 && args.seconds <= 1e6,
        "--seconds must be above 0 and at most 1000000, got {}",
        args.seconds
    );
    let store = VarStore::new(0, DType::F32, &device);
    let options = ModelOptions { image_size: Some(side), ..ModelOptions::default() };
    let net = info.build(&options, store.root())?;
    let (mut rng, shape) = (Rng::new(0, "bench"), (batch, 3, side, side));
    let pixels: Vec<f32> = (0..batch * 3 * side * side).map(|_| rng.normal() as f32).collect();
    let images = Tensor::from_vec(pixels, shape, &Device::Cpu)?.to_device(&device)?;
    let labels: Vec<u32> = (0..batch).map(|_| rng.below(info.num_classes) as u32).collect();
    let labels = Tensor::new(labels, &device)?;

    let per_second = |step: &mut dyn FnMut() -> Result<()>, seconds: f64| -> Result<f64> {
        Ok(batch as f64 / median_time(step, Duration::from_secs_f64(seconds), &device)?.as_secs_f64())
    };
    let mut train = None;
    if args.mode != Mode::Infer {
        let groups = vec![Group::new(store.parameters(), 5e-4)];
        let mut optimizer = Sgd::new(groups, 0.01).momentum(0.9);
        let mut step = || training_step(net.as_ref(), &args.precision.cast(&images)?, &labels, &mut optimizer);
        train = Some(per_second(&mut step, args.seconds)?);
    }
    let mut infer = None;
    if args.mode != Mode::Train {
        let mut step = || Ok(net.forward_t(&args.precision.cast(&images)?, false).map(drop)?);
        infer = Some(with_fixed_weights(|| per_second(&mut step, args.seconds / 2.0))?);
    }
    let parameters = store.parameter_count();
    // Other devices run no kernel of ours.
    let simd = device.is_cpu().then(|| Level::current().name());
    if args.json {
        let rounded = |x: Option<f64>| x.map(|x| (x * 10.0).round() / 10.0);
        let object = serde_json::json!({
            "model": info.name, "parameters": parameters, "batch": batch, "image": side, "threads": threads,
            "device": args.device, "train_images_per_s": rounded(train), "infer_images_per_s": rounded(infer),
            "peak_rss_mb": peak_rss_mb().map(f64::round), "precision": args.precision, "simd": simd,
        });
        return print_line(object);
    }
    let on = [Some(args.device.as_str()), simd, Some(args.precision.name())].into_iter().flatten().collect::<Vec<_>>();
    print_line(format_args!("{}: batch {batch}, {side}x{side}, {}, {threads} threads", info.name, on.join(", ")))?;
    for (what, figure) in [("training", train), ("inference", infer)] {
        if let Some(figure) = figure {
            print_line(format_args!("{what:10} {figure:8.1} images/s"))?;
        }
    }
    if let Some(mb) = peak_rss_mb() {
        print_line(format_args!("{:10} {mb:8.0} MB at the most", "memory"))?;
    }
    Ok(())
}

fn training_step(net: &dyn Model, images: &Tensor, labels: &Tensor, optimizer: &mut Sgd) -> Result<()> {
    let (_, grads) = value_and_grad(images, |images| Ok(net.training_loss(images, labels, 0.0)?.0))?;
    Ok(optimizer.step(&grads)?)
}

/// The median of the steps that fit into `wanted` (three at the least), after one that warms up.
fn median_time(step: &mut dyn FnMut() -> Result<()>, wanted: Duration, device: &Device) -> Result<Duration> {
    step()?;
    device.synchronize()?;
    let (begin, mut times) = (Instant::now(), Vec::new());
    while begin.elapsed() < wanted || times.len() < 3 {
        let start = Instant::now();
        step()?;
        device.synchronize()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

//! Feature extraction: what a trained network sees in an image, as one vector, to search or cluster with.
//!
//! With a model's name, its weights and a folder of images, for each image those that are most like it:
//!
//! ```text
//! cargo run --release --example extract_features -p zoo-train -- resnet18 resnet18.pth photos/
//! ```
//!
//! Without arguments everything is made on the spot: a small ResNet is trained for some seconds on **drawn figures, not on
//! CIFAR-10**, saved, and loaded again.

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use zoo::{Model, ModelInfo, ModelOptions, VarStore};
use zoo_core::Input;
use zoo_core::weights::{LoadOptions, Weights, load};
use zoo_train::augment::{Normalize, Transform, View};
use zoo_train::checkpoint::Checkpoints;
use zoo_train::data::photo::Framing;
use zoo_train::data::{Dataset, Split, Synthetic};
use zoo_train::loader::Loader;
use zoo_train::recipe::{Overrides, Recipe};
use zoo_train::trainer::{Job, train};

/// Images a pass.
const BATCH: usize = 16;
/// Neighbours to print.
const NEAREST: usize = 3;

/// A network with the weights of a file, and the image that such files want.
fn open(info: &'static ModelInfo, weights: &Path) -> Result<(Box<dyn Model>, Input)> {
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    let net = info.build(&ModelOptions::default(), store.root())?;
    // The classifier is not needed here, so a file with another number of classes is as good. All else must fit: a key
    // that is missing or left over is an error, and not a network that is half at random.
    let head = [net.classifier().path()];
    let report = load(&store, &Weights::open(weights)?, &LoadOptions { may_differ: &head, ..info.load_options() })?;
    println!("{}: {report}", weights.display());
    Ok((net, info.input_of(report.layout)))
}

/// One vector an image: (n, c, h, w) -> (n, features).
fn embed(net: &dyn Model, images: &Tensor) -> Result<Tensor> {
    let n = images.dim(0)?;
    let mut vectors = Vec::new();
    for begin in (0..n).step_by(BATCH) {
        let batch = images.narrow(0, begin, BATCH.min(n - begin))?;
        // `train` is false: BatchNorm uses its running statistics, so that an image's vector does not depend on its batch,
        // and no graph is built.
        let features = net.forward_features(&batch, false)?;
        // The last map, pooled: what the classifier would read.
        vectors.push(net.pre_logits(&features, false)?);
    }
    Ok(Tensor::cat(&vectors, 0)?)
}

/// The cosine of the angle between any two rows: (n, features) -> (n, n). 1 for the same direction, 0 for a right angle.
fn cosines(vectors: &Tensor) -> Result<Vec<Vec<f32>>> {
    let lengths = vectors.sqr()?.sum_keepdim(1)?.sqrt()?;
    let unit = vectors.broadcast_div(&(lengths + 1e-12)?)?;
    Ok(unit.matmul(&unit.t()?)?.to_vec2()?)
}

/// The others, nearest first.
fn neighbours(of: usize, cosines: &[f32]) -> Vec<usize> {
    let mut others: Vec<usize> = (0..cosines.len()).filter(|&i| i != of).collect();
    others.sort_by(|&a, &b| cosines[b].total_cmp(&cosines[a]));
    others.truncate(NEAREST);
    others
}

/// A photograph as the network's own training saw photographs; see [`Input`]. (3, size, size)
fn read_image(path: &Path, input: &Input) -> Result<Tensor> {
    let shape = [3, input.size, input.size];
    let photo = Split::new(Framing::of(input).read(path)?, vec![0], shape)?;
    let mut pixels = vec![0.0; shape.iter().product()];
    Transform::new(&Normalize::of(input), &photo)?.write(photo.image(0), View::default(), &mut pixels);
    Ok(Tensor::from_vec(pixels, &shape, &Device::Cpu)?)
}

fn search(model: &str, weights: &Path, folder: &Path) -> Result<()> {
    let info = zoo::find(model)?;
    let is_image = |path: &PathBuf| {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        ["png", "jpg", "jpeg"].iter().any(|known| extension == *known)
    };
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    paths.retain(is_image);
    paths.sort();
    ensure!(paths.len() > 1, "{}: expected at least two images (png, jpg, jpeg)", folder.display());
    let (net, input) = open(info, weights)?;
    let images: Vec<Tensor> = paths.iter().map(|path| read_image(path, &input)).collect::<Result<_>>()?;
    let cosines = cosines(&embed(net.as_ref(), &Tensor::stack(&images, 0)?)?)?;
    for (i, row) in cosines.iter().enumerate() {
        println!("{}", paths[i].display());
        neighbours(i, row).iter().for_each(|&j| println!("    {:.3}  {}", row[j], paths[j].display()));
    }
    Ok(())
}

/// Trains `info` for some seconds and leaves `model.safetensors` in `folder`.
fn make_weights(info: &'static ModelInfo, data: &Dataset, folder: &Path) -> Result<PathBuf> {
    let short = Overrides { epochs: Some(3), batch: Some(25), ..Overrides::default() };
    let job = Job::new(info, Recipe::named("quick")?.with(&short)?, 1, Device::Cpu);
    train(&job, data, folder, &Checkpoints::default(), &AtomicBool::new(false))?;
    Ok(folder.join("model.safetensors"))
}

fn demonstrate() -> Result<()> {
    println!("no arguments: a demonstration on drawn figures, which are not CIFAR-10\n");
    let info = zoo::find("cifar_resnet20")?;
    let data = Synthetic { train: 300, test: 100, seed: 0 }.generate();
    let folder = tempfile::tempdir()?;
    let weights = make_weights(info, &data, folder.path())?;

    // The test images, normalised as in training.
    let transform = Arc::new(Transform::new(&Normalize::CIFAR10, &data.train)?);
    let batches = Loader::eval(data.test.clone(), transform, BATCH, &Device::Cpu)?.epoch(0)?;
    let images = batches.map(|batch| Ok(batch?.images)).collect::<Result<Vec<Tensor>>>()?;
    let (net, _) = open(info, &weights)?;
    let vectors = embed(net.as_ref(), &Tensor::cat(&images, 0)?)?;
    println!("{} images, {} numbers each\n", vectors.dim(0)?, vectors.dim(1)?);

    let (cosines, labels) = (cosines(&vectors)?, data.test.labels());
    let class = |i: usize| data.classes[labels[i] as usize].as_str();
    let (mut same, mut all) = (0, 0);
    for (i, row) in cosines.iter().enumerate() {
        let near = neighbours(i, row);
        all += near.len();
        same += near.iter().filter(|&&j| labels[j] == labels[i]).count();
        if i < data.classes.len() {
            let near: Vec<String> = near.iter().map(|&j| format!("{} ({:.3})", class(j), row[j])).collect();
            println!("{:<20} is most like  {}", class(i), near.join(", "));
        }
    }
    let (share, chance) = (same as f64 / all as f64, 1.0 / data.classes.len() as f64);
    println!(
        "\n{:.0} % of the neighbours are of the same class; by chance it would be {:.0} %",
        100. * share,
        100. * chance
    );
    ensure!(share > 2.0 * chance, "the vectors say no more than chance about the class");
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => demonstrate(),
        [model, weights, folder] => search(model, Path::new(weights), Path::new(folder)),
        _ => bail!("usage: extract_features [MODEL WEIGHTS FOLDER]"),
    }
}

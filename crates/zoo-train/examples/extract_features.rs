//! Feature extraction: what a trained network sees in an image, as one vector, to search or cluster with.
//!
//! With a model's name, its weights and a folder of images, for each image those that are most like it:
//!
//! ```text
//! cargo run --release --example extract_features -p zoo-train -- resnet18 resnet18.pth photos/
//! ```
//!
//! Without arguments everything is made on the spot: a small ResNet is trained for some seconds on **drawn figures, not
//! on CIFAR-10**, saved, and loaded again.

use anyhow::{Result, bail, ensure};
use candle_core::{Device, Tensor};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use zoo::ModelInfo;
use zoo_image::{ImageClassifier, Options};
use zoo_train::checkpoint::Checkpoints;
use zoo_train::data::{Dataset, Synthetic, pictures};
use zoo_train::recipe::{self, Recipe};
use zoo_train::trainer::{Job, train};

/// Images a pass.
const BATCH: usize = 16;
/// Neighbours to print.
const NEAREST: usize = 3;

/// A network with the weights of a file, of however many classes, and all that the file says of the images it wants. A
/// key that is missing or left over is an error, and not a network that is half at random.
fn open(info: &'static ModelInfo, weights: &Path) -> Result<ImageClassifier> {
    let trained = Options::new().model(info).open(weights)?;
    println!("{}: {}, {} classes", weights.display(), info.name, trained.num_classes());
    trained.notes().iter().for_each(|note| println!("{}: {note}", weights.display()));
    Ok(trained)
}

/// One vector an image, of images whose bytes are those that the network's framing cuts: (n, features).
fn embed(trained: &ImageClassifier, images: &[Vec<u8>]) -> Result<Tensor> {
    let mut vectors = Vec::new();
    for images in images.chunks(BATCH) {
        // The last map, pooled: what the classifier would read, in evaluation, so that an image's vector does not depend
        // on its batch.
        vectors.push(trained.embeddings(&trained.batch(images)?)?);
    }
    Ok(Tensor::cat(&vectors, 0)?)
}

/// The cosine of the angle between any two rows: (n, features) -> (n, n). 1 for the same direction, 0 for a right
/// angle.
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

fn search(model: &str, weights: &Path, folder: &Path) -> Result<()> {
    let (paths, left_out) = pictures(folder)?;
    if !left_out.is_empty() {
        println!("{left_out}");
    }
    ensure!(paths.len() > 1, "{}: expected at least two pictures", folder.display());
    let trained = open(zoo::find(model)?, weights)?;
    let framing = trained.framing();
    let images = paths.iter().map(|path| Ok(framing.read(path)?)).collect::<Result<Vec<_>>>()?;
    let cosines = cosines(&embed(&trained, &images)?)?;
    for (i, row) in cosines.iter().enumerate() {
        println!("{}", paths[i].display());
        neighbours(i, row).iter().for_each(|&j| println!("    {:.3}  {}", row[j], paths[j].display()));
    }
    Ok(())
}

/// Trains `info` for some seconds and leaves `model.safetensors` in `folder`.
fn make_weights(info: &'static ModelInfo, data: &Dataset, folder: &Path) -> Result<PathBuf> {
    let short = recipe::Overrides { epochs: Some(3), batch: Some(25), ..recipe::Overrides::NONE };
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

    let images: Vec<Vec<u8>> = (0..data.test.len()).map(|index| data.test.image(index).unwrap().to_vec()).collect();
    let vectors = embed(&open(info, &weights)?, &images)?;
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

//! Trains a small ViT on images of 32x32 pixels for a short run: on the embedded procedural images, which are **not
//! CIFAR-10**, or on CIFAR-10's binary files in a folder.
//!
//! ```text
//! cargo run --release --example vit_cifar [FOLDER] [EPOCHS]
//! ```
//!
//! The network is `cifar_vit_tiny_patch4` with larger patches, half its width and a third of its depth, so that it
//! takes seconds; for the whole one take `zoo::find("cifar_vit_tiny_patch4")?` as the job's model.

use anyhow::{Context, Result, bail};
use candle_core::Device;
use std::sync::atomic::AtomicBool;
use zoo::transformer::vit::{self, VisionTransformer};
use zoo_core::ModelInfo;
use zoo_train::checkpoint::Checkpoints;
use zoo_train::data::{DataSpec, Dataset, Synthetic};
use zoo_train::optim::OptimizerConfig;
use zoo_train::recipe::{Overrides, Recipe};
use zoo_train::record::Status;
use zoo_train::trainer::{Job, train};

/// A network of one's own beside the registry's: a row of the same kind is all that the training loop asks for.
static SMALL_VIT: ModelInfo = ModelInfo {
    family: "transformer",
    keys: "timm",
    paper: "Dosovitskiy et al. 2020, arXiv:2010.11929",
    ..ModelInfo::new("vit_cifar", 468_778, |dims, vb| {
        let config = vit::Config {
            patch: 8,
            dim: 96,
            depth: 4,
            mlp_dim: 4 * 96,
            num_classes: dims.num_classes,
            in_chans: dims.in_chans,
            image_size: dims.image_size,
            ..vit::Config::cifar_vit_tiny_patch4()
        };
        Ok(Box::new(VisionTransformer::new(&config, vb)?))
    })
    .cifar()
};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (spec, images) = match arguments.next() {
        Some(folder) => (DataSpec::Dir(folder.into()), 50_000),
        None => (DataSpec::Synthetic(Synthetic { train: 2_000, test: 500, seed: 0 }), 2_000),
    };
    let epochs =
        arguments.next().map_or(Ok(6), |arg| arg.parse()).context("the second argument is the number of epochs")?;
    let data = Dataset::load(&spec)?.limit(images);
    println!("data: {} ({} training and {} test images)", data.source, data.train.len(), data.test.len());

    // The quick recipe's course of the learning rate with the optimizer that Transformers want.
    let adamw = OptimizerConfig::AdamW { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.05 };
    let overrides = Overrides { epochs: Some(epochs), batch: Some(64), lr: Some(1e-3), ..Overrides::NONE };
    let recipe = Recipe { optimizer: adamw, decay_all: false, ..Recipe::named("quick")?.with(&overrides)? };
    let folder = std::env::temp_dir().join(format!("vit-cifar-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let job = Job::new(&SMALL_VIT, recipe, 0, Device::Cpu);
    let outcome = train(&job, &data, &folder, &Checkpoints::default(), &AtomicBool::new(false))?;
    if let Some(last) = outcome.epochs.last() {
        println!("test accuracy after {} epochs: {:.1} %, on {}", last.epoch, 100.0 * last.test_acc, data.source);
    }
    println!("weights: {}", folder.join("model.safetensors").display());
    match outcome.status {
        Status::Failed { message } => bail!(message),
        _ => Ok(()),
    }
}

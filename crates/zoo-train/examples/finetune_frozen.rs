//! Fine-tuning with a frozen trunk: a network that was trained on one task gets a classifier for another, and nothing but the
//! classifier is trained. The trunk runs as in evaluation and keeps every bit.
//!
//! ```text
//! cargo run --release --example finetune_frozen -p zoo-train -- resnet18 resnet18.pth my-images
//! ```

use anyhow::{Result, bail};
use candle_core::Device;
use std::sync::atomic::AtomicBool;
use zoo::{ModelOptions, VarStore};
use zoo_image::Normalize;
use zoo_train::checkpoint::Checkpoints;
use zoo_train::data::Dataset;
use zoo_train::recipe::{Keep, Recipe};
use zoo_train::trainer::{Job, train};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, weights, images] = &arguments[..] else { bail!("usage: finetune_frozen MODEL WEIGHTS FOLDER") };
    let model = zoo::find(model)?;
    let data = Dataset::open(images.as_ref(), model.preprocess.size)?;
    let recipe = Recipe {
        freeze_all_but_head: true,
        keep: Keep::Best,
        normalize: Normalize::of(&model.preprocess),
        ..Recipe::named("finetune")?.for_side(model.preprocess.size)
    };
    // The classifier may differ from the file: it starts afresh then.
    let head = model.build(&ModelOptions::default(), VarStore::shapes_only().root())?.classifier().path().to_string();
    let job = Job::new(model, recipe, 1, Device::Cpu).weights(weights, &[&head]);
    let folder = std::path::Path::new("frozen-run");
    std::fs::create_dir(folder)?;
    let outcome = train(&job, &data, folder, &Checkpoints::default(), &AtomicBool::new(false))?;
    println!("{:?}; frozen-run/model.safetensors knows the classes", outcome.kept);
    Ok(())
}

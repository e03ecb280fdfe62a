//! `zoo convert`: any checkpoint as safetensors.

use crate::network::Shapes;
use crate::text::{may_write, print_line};
use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use std::path::PathBuf;
use zoo_core::weights::{self, Weights};

/// Arguments of `convert`.
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint: .safetensors, .pth, .pt or .th
    input: PathBuf,
    /// The safetensors file to write
    output: PathBuf,
    /// Network under whose keys the tensors are written; every key must fit. Without it keys stay as they are
    #[arg(long)]
    model: Option<String>,
    /// Classes of the network, where they are not its default
    #[arg(long, requires = "model")]
    classes: Option<usize>,
    /// Channels of the network's input image, where they are not 3
    #[arg(long, requires = "model")]
    in_chans: Option<usize>,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
}

/// Writes the file; element types stay as they are.
pub fn run(args: &Args) -> Result<()> {
    let extension = args.output.extension().and_then(|e| e.to_str());
    ensure!(extension == Some("safetensors"), "{}: the output must end in .safetensors", args.output.display());
    may_write(&args.output, args.force)?;
    let weights = Weights::open(&args.input)?;
    // What the file says of itself goes along: how its images are normalised, what its classes are called.
    let mut metadata = weights.metadata().clone();
    metadata.insert("format".to_string(), "pt".to_string());
    let tensors: Vec<(String, Tensor)> = match &args.model {
        None => {
            let read = |key: &str| Ok((key.to_string(), weights.tensor(key, &Device::Cpu)?));
            weights.keys().map(read).collect::<Result<_>>()?
        }
        Some(model) => {
            let Shapes { store, options, .. } = Shapes::of(model, args.classes, args.in_chans)?;
            metadata.insert("model".to_string(), model.clone());
            weights::translate(&store, &weights, &options)?
        }
    };
    let named = tensors.iter().map(|(key, tensor)| (key.as_str(), tensor));
    weights::save_tensors(named.collect::<Vec<_>>(), &args.output, &metadata)?;
    print_line(format_args!("{}: {} tensors", args.output.display(), tensors.len()))
}

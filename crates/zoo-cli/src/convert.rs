//! `zoo convert`: any checkpoint as safetensors.

use crate::network::{Shapes, Wanted};
use crate::text::{may_write, print_line};
use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use clap::CommandFactory;
use clap::error::ErrorKind;
use std::path::PathBuf;
use zoo_core::weights;
use zoo_image::carried;
use zoo_train::machine::available_memory;
use zoo_train::progress::say;

/// Arguments of `convert`.
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint: .safetensors, .pth, .pt, .th, a run's folder, hf:ORG/NAME, an address, or `default`
    input: PathBuf,
    /// The safetensors file to write
    output: PathBuf,
    /// Network whose keys the tensors get; every one must fit. Default: keys stay as they are
    #[arg(long)]
    model: Option<String>,
    /// Number of classes. Default: the network's own (10 or 1000)
    #[arg(long, requires = "model")]
    classes: Option<usize>,
    /// Channels of the image: 1 for grey, 3 for colour. Default: 3
    #[arg(long, requires = "model")]
    in_chans: Option<usize>,
    #[command(flatten)]
    wanted: Wanted,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
}

/// Writes the file; element types stay as they are.
pub fn run(args: &Args) -> Result<()> {
    let extension = args.output.extension().and_then(|e| e.to_str());
    ensure!(extension == Some("safetensors"), "{}: the output must end in .safetensors", args.output.display());
    if args.model.is_none() && args.wanted.chooses_keys() {
        let what = "--prefix and --ignore need --model, whose keys they are chosen for";
        crate::Cli::command().error(ErrorKind::MissingRequiredArgument, what).exit();
    }
    may_write(&args.output, args.force)?;
    let weights = args.wanted.open(&args.input, args.model.as_deref())?;
    // What the file says of itself goes along: how its images are normalised, what its classes are called.
    let mut metadata = carried(&weights, args.model.as_deref())?;
    metadata.insert("format".to_string(), "pt".to_string());
    let tensors: Vec<(String, Tensor)> = match &args.model {
        None => {
            let (needed, gb) = (weights.size_in_memory(), |bytes: u64| bytes as f64 / 1e9);
            if let Some(available) = available_memory() {
                ensure!(
                    needed <= available,
                    "{}: its tensors take {:.1} GB, and {:.1} GB of memory are available",
                    args.input.display(),
                    gb(needed),
                    gb(available)
                );
            }
            let read = |key: &str| Ok((key.to_string(), weights.tensor(key, &Device::Cpu)?));
            weights.keys().map(read).collect::<Result<_>>()?
        }
        Some(model) => {
            let Shapes { store, options } = Shapes::of(model, args.classes, args.in_chans)?;
            let selection = args.wanted.selection();
            let (tensors, report) = weights::translate(&store, &weights, &selection.of(options))?;
            say(report);
            tensors
        }
    };
    let named = tensors.iter().map(|(key, tensor)| (key.as_str(), tensor));
    weights::save_tensors(named.collect::<Vec<_>>(), &args.output, &metadata)?;
    print_line(format_args!("{}: {} tensors", args.output.display(), tensors.len()))
}

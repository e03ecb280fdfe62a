//! `zoo embed`: what a trained network sees in images, as vectors to search, compare or cluster with.

use crate::{pictures, trained};
use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use zoo_core::weights::{save_tensors, write_whole};
use zoo_train::progress::say;

/// Arguments of `embed`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    targets: trained::Targets,
    #[command(flatten)]
    network: trained::Network,
    /// File for the vectors: .npy, which NumPy reads, beside a .txt with the images' names; or .safetensors, with the
    /// tensor `vectors` and the names as JSON in its metadata
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Overwrite the file if it is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    size: pictures::Size,
}

/// What the vectors are written as.
enum Format {
    Npy,
    Safetensors,
}

/// Writes a vector for each image, in their order: what the network's classifier reads.
pub fn run(args: &Args) -> Result<()> {
    let format = match args.output.extension().and_then(|extension| extension.to_str()) {
        Some("npy") => Format::Npy,
        Some("safetensors") => Format::Safetensors,
        _ => bail!("{}: expected a name that ends in .npy or .safetensors", args.output.display()),
    };
    let names = args.output.with_extension("txt");
    let written = match format {
        Format::Npy => vec![&args.output, &names],
        Format::Safetensors => vec![&args.output],
    };
    if let Some(there) = written.iter().find(|path| path.exists() && !args.force) {
        bail!("{} is there already: choose another name, or --force", there.display())
    }
    let (model, images) = args.targets.split(&args.network)?;
    let trained = args.network.open(model, None)?;
    let paths = pictures::listed(images, args.size.limits())?;
    let (mut seen, mut vectors) = (Vec::new(), Vec::new());
    let read = pictures::in_batches(&paths, trained.framing(), args.size.limits(), |paths, images| {
        seen.extend(paths.iter().map(|path| path.to_string_lossy().into_owned()));
        vectors.push(trained.embeddings(&trained.batch(images)?)?);
        Ok(())
    });
    ensure!(!vectors.is_empty(), "no image could be read{}", read.err().map_or(String::new(), |e| format!(": {e:#}")));
    let vectors = Tensor::cat(&vectors, 0)?;
    let (n, width) = vectors.dims2()?;
    match format {
        Format::Npy => {
            write_npy(&args.output, &vectors).with_context(|| args.output.display().to_string())?;
            let lines = seen.iter().fold(String::new(), |text, name| text + &name.replace('\n', " ") + "\n");
            write_whole(&names, |file| file.write_all(lines.as_bytes()))
                .with_context(|| names.display().to_string())?;
        }
        Format::Safetensors => {
            let metadata = BTreeMap::from([("images".to_owned(), serde_json::to_string(&seen)?)]);
            save_tensors([("vectors", &vectors)], &args.output, &metadata)?;
        }
    }
    say(format_args!("{}: {n} vectors of {width} numbers", args.output.display()));
    read
}

/// NumPy's format, version 1.0: a magic number, the header's length, the header, padded to 64 bytes, and the numbers.
fn write_npy(path: &Path, vectors: &Tensor) -> Result<()> {
    let (n, width) = vectors.dims2()?;
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n}, {width}), }}");
    let padding = 64 - (10 + header.len() + 1) % 64;
    header += &" ".repeat(padding);
    header.push('\n');
    let numbers = vectors.flatten_all()?.to_vec1::<f32>()?;
    write_whole(path, |file| {
        file.write_all(b"\x93NUMPY\x01\x00")?;
        file.write_all(&(header.len() as u16).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        numbers.iter().try_for_each(|x| file.write_all(&x.to_le_bytes()))
    })?;
    Ok(())
}

//! `zoo export`: a trained network in the files of other engines and libraries.

use crate::trained;
use anyhow::{Context, Result, ensure};
use candle_core::DType;
use std::io::Write;
use std::path::{Path, PathBuf};
use zoo::SequenceInfo;
use zoo_core::Precision;
use zoo_core::trace::Graph;
use zoo_core::weights::write_whole;
use zoo_image::{ImageClassifier, Normalize};
use zoo_onnx::Options;
use zoo_train::progress::say;

/// Arguments of `export`.
#[derive(clap::Args)]
pub struct Args {
    /// The network (see `zoo list`). Default: what the weights say
    model: Option<String>,
    /// What to write
    #[arg(long, value_enum)]
    to: Target,
    /// The file, or for timm the folder
    #[arg(long, short)]
    output: PathBuf,
    #[command(flatten)]
    network: trained::Network,
    /// File with the names of the classes, in place of those that the weights state
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// For ONNX: let pixels go in, (batch, height, width, 3) in u8, and normalise inside
    #[arg(long)]
    pixels: bool,
    /// For timm: what the numbers are stored as
    #[arg(long, value_enum, default_value_t)]
    dtype: Number,
    /// Overwrite what is there
    #[arg(long)]
    force: bool,
}

/// Whose files.
#[derive(Debug, Clone, Copy, PartialEq, clap::ValueEnum)]
enum Target {
    /// One file for ONNX Runtime, OpenVINO, TensorRT, browsers and phones: opset 17, any number of images at once
    Onnx,
    /// A folder for timm and the Hugging Face hub: model.safetensors, config.json and a model card
    Timm,
}

/// What a number is stored as.
#[derive(Debug, Clone, Copy, Default, PartialEq, clap::ValueEnum)]
enum Number {
    /// 32 bits
    #[default]
    F32,
    /// 16 bits, with the fewer of exponent
    F16,
    /// 16 bits, with f32's exponent
    Bf16,
}

/// Opens the network and writes it.
pub fn run(args: &Args) -> Result<()> {
    let wrong = |text: &str| clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, format!("{text}\n")).exit();
    match args.to {
        Target::Onnx if args.dtype != Number::F32 => wrong("--dtype is for --to timm: ONNX files are written in f32"),
        Target::Timm if args.pixels => wrong("--pixels is for --to onnx: timm normalises images itself"),
        _ => {}
    }
    if args.network.precision() != Precision::F32 {
        wrong("--precision says what to compute in, and nothing is computed here")
    }
    let sequences = zoo::sequence_models().find(|info| Some(info.name) == args.model.as_deref());
    if let Some(info) = sequences {
        return sequence(args, info);
    }
    let mut trained = args.network.open(args.model.as_deref(), None)?;
    if let Some(path) = &args.labels {
        trained = trained.with_classes(crate::labels::read(path)?).with_context(|| path.display().to_string())?;
    }
    match args.to {
        Target::Onnx => onnx(args, &trained),
        Target::Timm => {
            let dtype = match args.dtype {
                Number::F32 => DType::F32,
                Number::F16 => DType::F16,
                Number::Bf16 => DType::BF16,
            };
            trained.save_for_timm(&args.output, dtype, args.force)?;
            let folder = args.output.display();
            say(format_args!("{folder}: timm.create_model(\"local-dir:{folder}\", pretrained=True) reads it"));
            Ok(())
        }
    }
}

/// Lengths that a network on sequences is traced with; in the file they are open.
const LENGTHS: [usize; 2] = [5, 4];

/// Writes a network on sequences.
fn sequence(args: &Args, info: &SequenceInfo) -> Result<()> {
    let SequenceInfo { name, d_model, .. } = *info;
    ensure!(args.to == Target::Onnx, "{name}: timm has no networks on sequences: export it with --to onnx");
    ensure!(!args.pixels && args.labels.is_none(), "{name} maps sequences: it has no pixels and no classes");
    let path = onnx_path(args)?;
    let (store, net) = args.network.open_sequence(info)?;
    let shapes = LENGTHS.map(|length| [1, length, d_model]);
    let graph = Graph::of(&[&shapes[0], &shapes[1]], |inputs| net.forward_t(&inputs[0], &inputs[1], false))?;
    let file = zoo_onnx::to_bytes(&graph, &store, &Options::new(name))?;
    write_whole(path, |to| to.write_all(&file)).with_context(|| path.display().to_string())?;
    say(format_args!(
        "{}: source (batch, source_length, {d_model}) and target (batch, target_length, {d_model}) f32 in, output as the target out, no mask, {:.1} MB",
        path.display(),
        file.len() as f64 / 1e6
    ));
    Ok(())
}

/// The file to write, if it may be written.
fn onnx_path(args: &Args) -> Result<&Path> {
    let path = &args.output;
    ensure!(path.extension().is_some_and(|end| end == "onnx"), "{}: the name must end in .onnx", path.display());
    crate::text::may_write(path, args.force)?;
    Ok(path)
}

fn onnx(args: &Args, trained: &ImageClassifier) -> Result<()> {
    let path = onnx_path(args)?;
    let means_image = trained.normalize() == Normalize::PixelMean;
    ensure!(
        !(args.pixels && means_image),
        "{}: a mean image is taken off its images, which --pixels cannot do: leave it out and normalise before",
        trained.name()
    );
    if means_image {
        say("the mean image that is taken off before is not in the file");
    }
    let [c, h, w] = trained.image_shape();
    let graph = Graph::of_model(trained.model(), (c, h, w))?;
    let options = Options {
        classes: trained.labels().unwrap_or_default().into_iter().map(str::to_owned).collect(),
        preprocess: (!means_image).then(|| trained.preprocess()),
        pixels: args.pixels,
        ..Options::new(trained.name())
    };
    let file = zoo_onnx::to_bytes(&graph, trained.store(), &options)?;
    write_whole(path, |to| to.write_all(&file)).with_context(|| path.display().to_string())?;
    let input = match args.pixels {
        true => format!("pixels (batch, {h}, {w}, {c}) u8"),
        false => format!("images (batch, {c}, {h}, {w}) f32"),
    };
    say(format_args!(
        "{}: {input} in, logits (batch, {}) f32 out, {:.1} MB",
        path.display(),
        trained.num_classes(),
        file.len() as f64 / 1e6
    ));
    Ok(())
}

//! `zoo run`: a network on stored input, its results stored; the way to compare with a network elsewhere, number by
//! number.

use crate::network::Wanted;
use crate::text::{may_write, print_line};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use zoo::{ModelOptions, VarStore};
use zoo_core::Precision;
use zoo_core::loss::cross_entropy;
use zoo_core::tape::value_and_grad;
use zoo_core::weights::{self, Weights};

/// Arguments of `run`.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the network, see `zoo list`
    model: String,
    /// Checkpoint: .safetensors, .pth, .pt, .th, a run's folder, hf:ORG/NAME, an address, or `default`
    #[arg(long)]
    weights: PathBuf,
    #[command(flatten)]
    wanted: Wanted,
    /// Tensor file with `input` (b, c, h, w) and, for --grads, `target` (b): the classes
    #[arg(long)]
    input: PathBuf,
    /// The safetensors file to write: `logits`; with --grads also `loss`, `grad.KEY`, `stat.KEY`
    #[arg(long)]
    output: PathBuf,
    /// Run one forward and backward pass in training mode, without dropout and drop-path; the loss is the mean
    /// cross-entropy
    #[arg(long)]
    grads: bool,
    /// Number of classes. Default: the network's own (10 or 1000)
    #[arg(long)]
    classes: Option<usize>,
    /// Number type to compute and store in. Default: f32; with --grads f64, stored as f32, because in f32 a rounding
    /// now and then turns the sign before a ReLU or the winner of a pooling, and gradients jump
    #[arg(long, value_enum)]
    dtype: Option<Element>,
    /// What to compute in: f32, or bf16 for mixed precision. Results are stored as f32
    #[arg(long, conflicts_with = "dtype")]
    precision: Option<Precision>,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
}

/// An element type with kernels for every operation.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Element {
    F32,
    F64,
}

/// Runs the network once.
pub fn run(args: &Args) -> Result<()> {
    let info = zoo::find(&args.model)?;
    may_write(&args.output, args.force)?;
    let (dtype, stored) = match (args.dtype, args.grads) {
        _ if args.precision.is_some() => (DType::F32, DType::F32),
        (Some(Element::F32), _) | (None, false) => (DType::F32, DType::F32),
        (Some(Element::F64), _) => (DType::F64, DType::F64),
        (None, true) => (DType::F64, DType::F32),
    };
    let (input, target) = read_input(&args.input, dtype)?;
    let &[_, channels, height, width] = input.dims() else {
        bail!("{}: `input` must be (b, c, h, w), got {:?}", args.input.display(), input.dims())
    };
    let options = ModelOptions {
        num_classes: args.classes,
        in_chans: Some(channels),
        // Position embeddings and token mixing are as large as the image; other networks do not care.
        image_size: (height == width).then_some(height),
        ..ModelOptions::default()
    };
    let store = VarStore::new(0, dtype, &Device::Cpu);
    let net = info.build(&options, store.root())?;
    let selection = args.wanted.selection();
    weights::load(&store, &args.wanted.open(&args.weights, Some(&args.model))?, &selection.of(info.load_options()))?;
    let input = match args.precision {
        Some(precision) => precision.cast(&input)?,
        None => input,
    };

    let mut results: Vec<(String, Tensor)> = Vec::new();
    if args.grads {
        let Some(target) = target else { bail!("{}: --grads needs a tensor `target` (b)", args.input.display()) };
        store.set_dropout(false);
        let mut logits = None;
        // As training has them: straight from the tape.
        let (loss, grads) = value_and_grad(&input, |xs| {
            let ys = net.forward_t(xs, true)?;
            logits = Some(ys.clone());
            cross_entropy(&ys, &target, 0.0)
        })?;
        results.extend(logits.map(|logits| ("logits".into(), logits)));
        results.push(("loss".into(), loss));
        for (key, var) in store.parameters() {
            let grad = grads.get(&var).with_context(|| format!("`{key}` got no gradient"))?;
            results.push((format!("grad.{key}"), grad.clone()));
        }
        for (key, var) in store.buffers() {
            results.push((format!("stat.{key}"), var.as_tensor().clone()));
        }
    } else {
        results.push(("logits".into(), net.forward_t(&input, false)?));
    }
    for (_, tensor) in &mut results {
        *tensor = tensor.to_dtype(stored)?;
    }
    let named = results.iter().map(|(key, tensor)| (key.as_str(), tensor)).collect::<Vec<_>>();
    let metadata = BTreeMap::from([("zoo.model".to_string(), info.name.to_string())]);
    weights::save_tensors(named, &args.output, &metadata)?;
    print_line(format_args!("{}: logits {:?}, {} tensors", args.output.display(), results[0].1.dims(), results.len()))
}

/// `input` in `dtype` and, if the file has it, `target` as classes.
fn read_input(path: &Path, dtype: DType) -> Result<(Tensor, Option<Tensor>)> {
    let file = Weights::open(path)?;
    ensure!(file.shape("input").is_some(), "{}: there is no tensor `input`", path.display());
    let input = file.tensor("input", &Device::Cpu)?.to_dtype(dtype)?;
    if file.shape("target").is_none() {
        return Ok((input, None));
    }
    let classes: Vec<i64> = file.tensor("target", &Device::Cpu)?.to_dtype(DType::I64)?.flatten_all()?.to_vec1()?;
    let batch = input.dims().first().copied().unwrap_or(0);
    ensure!(classes.len() == batch, "{}: {} targets for {batch} images", path.display(), classes.len());
    let class = |c: &i64| u32::try_from(*c).with_context(|| format!("{}: target {c} is no class", path.display()));
    let classes = classes.iter().map(class).collect::<Result<Vec<_>>>()?;
    Ok((input, Some(Tensor::new(classes, &Device::Cpu)?)))
}

//! `zoo check`: how a checkpoint's keys stand to a network's.

use crate::network::Shapes;
use crate::text::{print_line, until_closed};
use anyhow::{Result, bail};
use candle_core::Shape;
use std::io::{self, Write};
use std::path::PathBuf;
use zoo_core::weights::{self, KeyReport, Weights};

/// Arguments of `check`.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the network
    model: String,
    /// Checkpoint: .safetensors, .pth, .pt or .th
    file: PathBuf,
    /// Classes of the network, where they are not its default
    #[arg(long)]
    classes: Option<usize>,
    /// Channels of the network's input image, where they are not 3
    #[arg(long)]
    in_chans: Option<usize>,
    /// One JSON object with the lists of keys
    #[arg(long)]
    json: bool,
}

/// Prints the comparison; an error unless all keys match.
pub fn run(args: &Args) -> Result<()> {
    let Shapes { store, options, classifier } = Shapes::of(&args.model, args.classes, args.in_chans)?;
    let report = weights::check(&store, &Weights::open(&args.file)?, &options)?;
    if args.json {
        print_line(json(&args.model, &report))?;
    } else {
        until_closed(print(&report, &mut io::stdout().lock()))?;
    }
    if report.is_exact() {
        return Ok(());
    }
    let hint =
        classifier.filter(|_| args.classes.is_none()).and_then(|place| hint(&report, &place)).unwrap_or_default();
    bail!(
        "{} does not fit {}: {} missing, {} unexpected, {} mis-shaped{hint}",
        args.file.display(),
        args.model,
        report.missing.len(),
        report.unexpected.len(),
        report.mis_shaped.len()
    )
}

/// Where only the classifier's width differs, the option that mends it.
fn hint(report: &KeyReport, classifier: &str) -> Option<String> {
    let head = report.mis_shaped.iter().find(|m| m.key == format!("{classifier}.weight"))?;
    let only_head = report.mis_shaped.iter().all(|m| m.key.starts_with(classifier));
    let classes = head.file.dims().first()?;
    only_head.then(|| format!("; the file has {classes} classes: try --classes {classes}"))
}

fn dims(shape: &Shape) -> Vec<usize> {
    shape.dims().to_vec()
}

fn json(model: &str, report: &KeyReport) -> serde_json::Value {
    let listed = |list: &[(String, Shape)]| -> Vec<_> {
        list.iter().map(|(key, shape)| serde_json::json!({ "key": key, "shape": dims(shape) })).collect()
    };
    let mis_shaped = report
        .mis_shaped
        .iter()
        .map(|m| serde_json::json!({ "key": m.key, "file": dims(&m.file), "network": dims(&m.network) }));
    serde_json::json!({
        "model": model,
        "fits": report.is_exact(),
        "matching": report.matching,
        "missing": listed(&report.missing),
        "unexpected": listed(&report.unexpected),
        "mis_shaped": mis_shaped.collect::<Vec<_>>(),
        "left_out": report.left_out,
    })
}

/// Every key that does not match; of those that do, the number.
fn print(report: &KeyReport, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{} keys match", report.matching.len())?;
    for (key, shape) in &report.missing {
        writeln!(out, "missing     {key} {:?}", dims(shape))?;
    }
    for (key, shape) in &report.unexpected {
        writeln!(out, "unexpected  {key} {:?}", dims(shape))?;
    }
    for m in &report.mis_shaped {
        writeln!(out, "mis-shaped  {}: {:?} in the file, {:?} in the network", m.key, dims(&m.file), dims(&m.network))?;
    }
    for key in &report.left_out {
        writeln!(out, "left out    {key}")?;
    }
    Ok(())
}

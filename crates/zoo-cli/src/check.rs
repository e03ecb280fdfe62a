//! `zoo check`: how a checkpoint's keys stand to a network's.

use crate::network::{Shapes, Wanted};
use crate::text::{print_line, until_closed};
use anyhow::{Result, bail};
use candle_core::Shape;
use std::io::{self, Write};
use std::path::PathBuf;
use zoo_core::weights::{self, KeyReport, shown};

/// Arguments of `check`.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the network, see `zoo list`
    model: String,
    /// Checkpoint: .safetensors, .pth, .pt, .th, a run's folder, hf:ORG/NAME, an address, or `default`
    file: PathBuf,
    #[command(flatten)]
    wanted: Wanted,
    /// Number of classes. Default: the network's own (10 or 1000)
    #[arg(long)]
    classes: Option<usize>,
    /// Channels of the image: 1 for grey, 3 for colour. Default: 3
    #[arg(long)]
    in_chans: Option<usize>,
    /// Print one JSON object with the lists of keys instead of text
    #[arg(long)]
    json: bool,
}

/// Prints the comparison; an error unless all keys match.
pub fn run(args: &Args) -> Result<()> {
    let Shapes { store, options } = Shapes::of(&args.model, args.classes, args.in_chans)?;
    let selection = args.wanted.selection();
    let report = weights::check(&store, &args.wanted.open(&args.file, Some(&args.model))?, &selection.of(options))?;
    if args.json {
        print_line(json(&args.model, &report))?;
    } else {
        until_closed(print(&report, &mut io::stdout().lock()))?;
    }
    match report.is_exact() {
        true => Ok(()),
        false => bail!("{} does not fit {}: {}", args.file.display(), args.model, report.summary()),
    }
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
        "prefix": report.prefix,
        "layout": report.layout,
    })
}

/// How many keys match, and every key that does not, under a heading for each way in which it does not.
fn print(report: &KeyReport, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}", report.summary())?;
    let with_shape = |(key, shape): &(String, Shape)| format!("{} {:?}", shown(key), dims(shape));
    list(out, "missing: in the network only", &report.missing, with_shape)?;
    list(out, "unexpected: in the file only", &report.unexpected, with_shape)?;
    list(out, "mis-shaped", &report.mis_shaped, |m| {
        format!("{} {:?} in the file, {:?} in the network", shown(&m.key), dims(&m.file), dims(&m.network))
    })?;
    list(out, "left out of the file", &report.left_out, |key| shown(key))
}

fn list<T>(out: &mut impl Write, title: &str, items: &[T], line: impl Fn(&T) -> String) -> io::Result<()> {
    if !items.is_empty() {
        writeln!(out, "\n{title} ({})", items.len())?;
    }
    items.iter().try_for_each(|item| writeln!(out, "  {}", line(item)))
}

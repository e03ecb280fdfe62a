//! `zoo predict`: what a trained network sees on images.

use crate::text::print_line;
use crate::{labels, pictures, trained};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::path::{Path, PathBuf};
use zoo_train::errors;
use zoo_train::progress::say;
use zoo_train::trained::Trained;

/// Images that go through the network together.
const BATCH: usize = 16;

/// Arguments of `predict`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    network: trained::Network,
    /// Pictures: JPEG, PNG, WebP, BMP, GIF (the first frame) or TIFF. Folders are looked through, `-` is standard input
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// How many classes are shown, the most probable first
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    top: u16,
    #[command(flatten)]
    size: pictures::Size,
    /// Names of the classes in the order of the network's outputs, where the weights' file does not hold them: one a
    /// line, or a list or map as JSON
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Print one JSON object a line instead of text: `image`, and `top` with `class`, `label` (null where no name is
    /// known) and `probability`
    #[arg(long)]
    json: bool,
}

/// Prints what is on each image. An image that cannot be read is reported, the others are classified, and the command
/// fails at the end.
pub fn run(args: &Args) -> Result<()> {
    let (_, mut trained) = args.network.open(None)?;
    if let Some(path) = &args.labels {
        trained = trained.with_classes(labels::read(path)?).with_context(|| path.display().to_string())?;
    }
    let paths = pictures::listed(&args.images)?;
    let mut unreadable = Vec::new();
    for paths in paths.chunks(BATCH) {
        let (mut readable, mut images) = (Vec::new(), Vec::new());
        for path in paths {
            match pictures::read(path, trained.framing(), args.size.limits()) {
                Ok(image) => {
                    readable.push(path);
                    images.push(image);
                }
                Err(error) => unreadable.push(errors::line(&error)),
            }
        }
        for (path, probabilities) in readable.into_iter().zip(trained.probabilities(&images)?) {
            print_line(shown(args, &trained, path, &probabilities))?;
        }
    }
    match &unreadable[..] {
        [] => Ok(()),
        [only] => bail!("{only}"),
        [first, rest @ ..] => {
            rest.iter().for_each(say);
            bail!("{} of {} images could not be read, the first: {first}", unreadable.len(), paths.len())
        }
    }
}

/// One image's classes: a JSON object, or lines under its name.
fn shown(args: &Args, trained: &Trained, path: &Path, probabilities: &[f64]) -> String {
    let largest = Trained::largest(probabilities, args.top.into());
    if args.json {
        let label = |class: usize| trained.classes().and_then(|names| names.get(class));
        let top = largest.iter().map(|&(class, p)| json!({ "class": class, "label": label(class), "probability": p }));
        return json!({ "image": path.to_string_lossy(), "top": top.collect::<Vec<_>>() }).to_string();
    }
    let line = |&(class, p): &(usize, f64)| format!("\n  {:5.1} %  {}", 100.0 * p, trained.class_name(class));
    path.display().to_string() + &largest.iter().map(line).collect::<String>()
}

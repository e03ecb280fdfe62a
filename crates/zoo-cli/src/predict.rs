//! `zoo predict`: what a trained network sees on images.

use crate::text::{csv_cell, print_line};
use crate::{labels, pictures, trained};
use anyhow::{Context, Result};
use serde_json::json;
use std::path::{Path, PathBuf};
use zoo_image::{Class, ImageClassifier, Prediction};

/// Arguments of `predict`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    targets: trained::Targets,
    #[command(flatten)]
    network: trained::Network,
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
    /// Print a table with commas instead of text, a line for each of an image's classes: image, rank, class, label,
    /// probability
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

/// Prints what is on each image. An image that cannot be read is reported, the others are classified, and the command
/// fails at the end.
pub fn run(args: &Args) -> Result<()> {
    let (model, images) = args.targets.split(&args.network)?;
    let mut trained = args.network.open(model, None)?;
    if let Some(path) = &args.labels {
        trained = trained.with_classes(labels::read(path)?).with_context(|| path.display().to_string())?;
    }
    let paths = pictures::listed(images, args.size.limits())?;
    if args.csv {
        print_line("image,rank,class,label,probability")?;
    }
    pictures::in_batches(&paths, trained.framing(), args.size.limits(), |paths, images| {
        for (path, prediction) in paths.iter().zip(trained.predict(&trained.batch(images)?)?) {
            print_line(shown(args, &trained, path, &prediction))?;
        }
        Ok(())
    })
}

/// One image's classes: a JSON object, lines of a table, or lines under its name.
fn shown(args: &Args, trained: &ImageClassifier, path: &Path, prediction: &Prediction) -> String {
    let top = prediction.top(args.top.into());
    if args.json {
        let of = |class: &Class| json!({ "class": class.index, "label": class.name, "probability": class.probability });
        let top = top.iter().map(of);
        return json!({ "image": path.to_string_lossy(), "top": top.collect::<Vec<_>>() }).to_string();
    }
    if args.csv {
        let image = csv_cell(&path.to_string_lossy());
        let line = |(i, class): (usize, &Class)| {
            let name = csv_cell(class.name.unwrap_or_default());
            format!("{image},{},{},{name},{}", i + 1, class.index, class.probability)
        };
        return top.iter().enumerate().map(line).collect::<Vec<_>>().join("\n");
    }
    let line = |class: &Class| format!("\n  {:5.1} %  {}", 100.0 * class.probability, trained.class_name(class.index));
    path.display().to_string() + &top.iter().map(line).collect::<String>()
}

//! `zoo plot`: a network as a picture.
//!
//! [`outline`] turns the traced graph into what is worth drawing: a convolution with its normalisation and activation
//! is one box, blocks are frames, and a block that follows itself is drawn once with a count. [`layout`] gives every
//! box a place, and [`svg`] draws; [`dot`] writes the same outline for Graphviz.

mod augmented;
mod dot;
mod layout;
mod outline;
mod svg;

use crate::info::{Image, Traced};
use crate::recipe::NameOrFile;
use crate::text::{may_write, print_line};
use anyhow::{Context, Result, bail};
use outline::Outline;
use std::path::PathBuf;
use zoo_train::record::replace_file;

/// Arguments of `plot`.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the network, see `zoo list`
    #[arg(required_unless_present = "augment")]
    model: Option<String>,
    /// Instead of a network: a sheet of training images from here, as evaluation sees them and as --recipe shows them
    #[arg(long, value_name = "DATA", conflicts_with_all = ["model", "image", "classes", "unfold"])]
    augment: Option<PathBuf>,
    /// Recipe whose augmentation is shown, or a file of one's own
    #[arg(long, value_name = "NAME|FILE.toml", value_parser = NameOrFile, default_value = "finetune", requires = "augment")]
    recipe: String,
    /// Change one setting of the recipe: `augment.policy=trivial-augment-wide`
    #[arg(long, value_name = "KEY=VALUE", requires = "augment")]
    set: Vec<String>,
    /// Side that pictures are cut to, in pixels
    #[arg(long, value_name = "N", default_value_t = 224, requires = "augment")]
    size: usize,
    /// Images to show
    #[arg(long, value_name = "N", default_value_t = 8, requires = "augment")]
    images: usize,
    /// Seed of what is random
    #[arg(long, default_value_t = 1, requires = "augment")]
    seed: u64,
    /// The file to write: .svg for a picture, .dot for Graphviz; .png for --augment
    #[arg(short, long)]
    output: PathBuf,
    /// Shape of the image as CHANNELSxHEIGHTxWIDTH, such as 3x224x224. Default: the network's own
    #[arg(long)]
    image: Option<Image>,
    /// Number of classes. Default: the network's own (10 or 1000)
    #[arg(long)]
    classes: Option<usize>,
    /// Draw every block, also those that repeat
    #[arg(long)]
    unfold: bool,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
}

/// Writes the picture.
pub fn run(args: &Args) -> Result<()> {
    if let Some(data) = &args.augment {
        return augmented::run(args, data);
    }
    let draw: fn(&Traced, &Outline) -> String = match args.output.extension().and_then(|e| e.to_str()) {
        Some("svg") => svg::draw,
        Some("dot" | "gv") => dot::write,
        _ => bail!("{}: the output must end in .svg or .dot", args.output.display()),
    };
    may_write(&args.output, args.force)?;
    let model = args.model.as_deref().context("a network's name is wanted")?;
    let traced = Traced::new(model, args.image, args.classes)?;
    let outline = Outline::new(&traced.graph, !args.unfold);
    replace_file(&args.output, draw(&traced, &outline).as_bytes())?;
    print_line(args.output.display())
}

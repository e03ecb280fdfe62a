//! `zoo plot`: a network as a picture.
//!
//! [`outline`] turns the traced graph into what is worth drawing: a convolution with its normalisation and activation
//! is one box, blocks are frames, and a block that follows itself is drawn once with a count. [`layout`] gives every
//! box a place, and [`svg`] draws; [`dot`] writes the same outline for Graphviz.

mod dot;
mod layout;
mod outline;
mod svg;

use crate::info::{Image, Traced};
use crate::text::{may_write, print_line};
use anyhow::{Result, bail};
use outline::Outline;
use std::path::PathBuf;
use zoo_train::record::replace_file;

/// Arguments of `plot`.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the network, see `zoo list`
    model: String,
    /// The file to write: .svg for a picture, .dot for Graphviz
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
    let draw: fn(&Traced, &Outline) -> String = match args.output.extension().and_then(|e| e.to_str()) {
        Some("svg") => svg::draw,
        Some("dot" | "gv") => dot::write,
        _ => bail!("{}: the output must end in .svg or .dot", args.output.display()),
    };
    may_write(&args.output, args.force)?;
    let traced = Traced::new(&args.model, args.image, args.classes)?;
    let outline = Outline::new(&traced.graph, !args.unfold);
    replace_file(&args.output, draw(&traced, &outline).as_bytes())?;
    print_line(args.output.display())
}

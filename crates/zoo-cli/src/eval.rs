//! `zoo eval`: how good a trained network is on test images.

use crate::text::print_line;
use crate::{pictures, trained};
use anyhow::{Result, bail, ensure};
use serde_json::json;
use std::path::PathBuf;
use zoo_train::data::TestImages;
use zoo_train::progress::{Images, say};

/// Arguments of `eval`.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the network, see `zoo list`; the weights may say it
    model: Option<String>,
    #[command(flatten)]
    network: trained::Network,
    /// CIFAR-10's or CIFAR-100's binary files, or an image folder: val/CLASS/* or test/CLASS/*. Its test images are
    /// looked at
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    #[command(flatten)]
    size: pictures::Size,
    /// Batch size: images that go through the network together. Default: 250 up to 32 pixels, 32 of larger ones
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Print one JSON object instead of text: images, correct, top1, top5, loss, images_per_s, left_out,
    /// precision
    #[arg(long)]
    json: bool,
}

/// Prints the share of images that are classified right.
pub fn run(args: &Args) -> Result<()> {
    ensure!(args.batch != Some(0), "--batch must be at least 1");
    let side = TestImages::side(&args.data);
    if let Some(side) = side.filter(|_| args.network.cuts_photographs()) {
        bail!(
            "{}: its images are {side}x{side} pixels as they are: --size, --crop, --crop-mode and --interpolation are for photographs",
            args.data.display()
        )
    }
    let trained = args.network.open(args.model.as_deref(), side)?;
    let images = TestImages::open(&args.data, trained.framing(), trained.classes(), args.size.limits())?;
    let batch = args.batch.unwrap_or(if trained.framing().size <= 32 { 250 } else { 32 });
    let mut progress = Images::new(trained.name(), images.len());
    let result = trained.evaluate(&images, batch, |n| progress.seen(n));
    drop(progress);
    pictures::tell(&images.left_out());
    let result = result?;
    if args.json {
        return print_line(json!({
            "images": result.images,
            "correct": result.correct,
            "top1": result.top1(),
            "top5": result.top5(),
            "loss": result.loss,
            "images_per_s": result.images_per_s(),
            "left_out": images.left_out().len(),
            "precision": trained.precision(),
        }));
    }
    say(format_args!("{:.1} s, {:.0} images/s", result.seconds, result.images_per_s()));
    print_line(format_args!(
        "{} of {} images right: top-1 {:.2} %, top-5 {:.2} %, loss {:.4}",
        result.correct,
        result.images,
        100.0 * result.top1(),
        100.0 * result.top5(),
        result.loss
    ))
}

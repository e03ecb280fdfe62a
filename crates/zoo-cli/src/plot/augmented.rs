//! A sheet of training images as a recipe shows them to a network.

use super::Args;
use crate::text::{may_write, print_line};
use anyhow::{Result, bail, ensure};
use std::path::Path;
use zoo_train::data::{Dataset, HoldOut, Reading};
use zoo_train::recipe::RecipeSource;
use zoo_train::record::replace_file;
use zoo_train::samples::sheet;

/// Epochs that are shown, beside the image as it is.
const EPOCHS: u64 = 7;

/// Writes the sheet of the images in `data`.
pub fn run(args: &Args, data: &Path) -> Result<()> {
    if args.output.extension().is_none_or(|extension| extension != "png") {
        bail!("{}: the output of --augment must end in .png", args.output.display());
    }
    may_write(&args.output, args.force)?;
    let mut recipe = RecipeSource::open(&args.recipe)?.recipe()?.for_side(args.size);
    recipe.set_all(&args.set)?;
    let pictures = recipe.augment.wants_picture();
    let reading = Reading { pictures, ..Reading::of(args.size) };
    // Only training images are looked at: a folder need not have others.
    let data = Dataset::open_as(data, &reading).or_else(|error| {
        let hold_out = Some(HoldOut { share: 0.1, seed: 1 });
        Dataset::open_as(data, &Reading { hold_out, ..reading }).map_err(|_| error)
    })?;
    ensure!(args.images > 0, "--images must be at least 1");
    let png = sheet(&data.train, recipe.augment, args.seed, args.images, EPOCHS)?;
    replace_file(&args.output, &png)?;
    print_line(args.output.display())
}

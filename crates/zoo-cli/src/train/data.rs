//! What `zoo train` trains on.

use super::Args;
use crate::pictures;
use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};
use zoo_train::data::{Dataset, HoldOut, Reading, download};
use zoo_train::recipe::Recipe;

/// Where the data lies.
pub fn folder(args: &Args) -> Result<PathBuf> {
    // A folder of that name is `./download`.
    match args.data.as_os_str() == "download" {
        true => Ok(download::cifar10()?),
        false => Ok(args.data.clone()),
    }
}

pub fn load(args: &Args, folder: &Path, recipe: &Recipe, side: usize) -> Result<Dataset> {
    ensure!(args.limit != Some(0), "--limit must be at least 1");
    let reading = Reading {
        limits: args.limits.limits(),
        pictures: recipe.augment.wants_picture(),
        hold_out: args.val_split.map(|share| HoldOut { share, seed: args.seed }),
        ..Reading::of(side)
    };
    let data = Dataset::open_as(folder, &reading)?;
    pictures::tell(&data.left_out);
    let data = match args.in_chans {
        Some(channels) => data.with_channels(channels)?,
        None => data,
    };
    if let Some(classes) = args.classes {
        let found = data.classes.len();
        ensure!(classes == found, "--classes {classes}, but {} has {found} classes", args.data.display());
    }
    Ok(match args.limit {
        Some(n) => data.limit(n),
        None => data,
    })
}

/// How many training images the classes have: `10 classes of 400 images each`.
pub fn balance(data: &Dataset) -> String {
    let counts = data.train.counts(data.classes.len());
    let name = |count: usize| counts.iter().position(|&c| c == count).map_or("", |class| &data.classes[class]);
    let n = counts.len();
    match (counts.iter().min(), counts.iter().max()) {
        (Some(&least), Some(&most)) if least != most => {
            let hint = if most >= 10 * least.max(1) { "; --class-weights balanced makes them count alike" } else { "" };
            format!("{n} classes of {least} ({}) to {most} ({}) images{hint}", name(least), name(most))
        }
        (Some(&each), _) => format!("{n} classes of {each} images each"),
        _ => "no classes".into(),
    }
}

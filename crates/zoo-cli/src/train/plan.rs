//! What `zoo train` trains, and by what: decided from the arguments before and after the data is read.

use super::{Args, Settings};
use crate::network::weights_file;
use anyhow::{Result, ensure};
use candle_core::Device;
use std::path::{Path, PathBuf};
use zoo::{ModelInfo, ModelOptions, VarStore};
use zoo_core::weights::{LoadOptions, ensure_fit};
use zoo_image::{Normalize, normalize_of};
use zoo_train::data::Dataset;
use zoo_train::progress::say;
use zoo_train::recipe::{Keep, Overrides, Recipe, RecipeSource};
use zoo_train::record::RunOverrides;
use zoo_train::trainer::Job;

/// Where the mean and deviation come from that pixels are normalised by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum NormalizeFrom {
    /// Those of the network's published checkpoints (torchvision's or timm's)
    Model,
    /// The recipe's, for a checkpoint that was trained by it
    Recipe,
    /// Those of CIFAR-10's images
    Cifar10,
    /// Those of ImageNet's images
    Imagenet,
    /// 0.5 and 0.5: pixels from -1 to 1
    Half,
}

impl NormalizeFrom {
    /// The mean and deviation, and what is recorded where they are not the recipe's own.
    fn figures(self, model: &ModelInfo, recipe: &Recipe) -> (Normalize, &'static str) {
        match self {
            Self::Model => (Normalize::of(&model.preprocess), "model"),
            Self::Recipe => (recipe.normalize.clone(), "recipe"),
            Self::Cifar10 => (Normalize::CIFAR10, "cifar10"),
            Self::Imagenet => (Normalize::IMAGENET, "imagenet"),
            Self::Half => (Normalize::HALF, "half"),
        }
    }
}

/// What is trained by, decided before the data is read: how pictures are read follows from it.
pub struct Plan {
    pub recipe: Recipe,
    overrides: RunOverrides,
    source: RecipeSource,
}

impl Plan {
    pub fn of(args: &Args, model: &'static ModelInfo, side: usize) -> Result<Self> {
        ensure!(
            side <= model.preprocess.size,
            "--size {side}: {} is made for images of {1}x{1}, and takes smaller ones",
            model.name,
            model.preprocess.size
        );
        let source = match &args.recipe {
            Some(text) => RecipeSource::open(text)?,
            // The networks' own recipes were made for training on CIFAR-10 from scratch.
            None if args.weights.is_some() || side > 32 => RecipeSource::Named(Recipe::named("finetune")?.into()),
            None => RecipeSource::Named(Recipe::default_for(model)?.into()),
        };
        let mut recipe = source.adapted(model.name, side)?;
        let others = [
            ("precision", "--precision", args.precision.is_some()),
            ("normalize", "--normalize", args.normalize.is_some()),
        ];
        let set = args.settings.put_over(&mut recipe, &others)?;
        let Settings { epochs, batch, lr, .. } = args.settings;
        let changes = Overrides { epochs, batch, lr, ..Overrides::NONE };
        let overrides = RunOverrides { set, ..changes.that_change(&recipe).into() };
        let precision = args.precision.unwrap_or(recipe.precision);
        let recipe = Recipe { precision, ..recipe.with(&changes)? };
        Ok(Self { recipe, overrides, source })
    }

    /// What is trained and how, with what differs from the named recipe.
    pub fn job(
        self,
        args: &Args,
        model: &'static ModelInfo,
        data: &Dataset,
        device: Device,
    ) -> Result<(Job, RunOverrides)> {
        let Self { mut recipe, mut overrides, source } = self;
        let is_said = args.settings.keep.is_some() || args.settings.sets("keep") || source.states("keep");
        if data.measured().1 == "validation" && !is_said {
            // Images that are there to choose by.
            recipe.keep = Keep::Best;
        }
        let start = args.weights.as_deref().map(|file| start(args, model, data, file)).transpose()?;
        let usual = if data.source.is_cifar10() { NormalizeFrom::Recipe } else { NormalizeFrom::Model };
        // What the user's own file or --set states is no less the user's wish than a flag.
        let is_stated = source.states("normalize") || args.settings.sets("normalize");
        let wished = args.normalize.or(is_stated.then_some(NormalizeFrom::Recipe));
        let (normalize, source) = match (wished, &start) {
            (None, Some(start)) => (start.normalize.clone(), "checkpoint"),
            (from, _) => from.unwrap_or(usual).figures(model, &recipe),
        };
        if recipe.normalize != normalize {
            recipe.normalize = normalize;
            overrides.normalize = Some(source.into());
        }
        let mut job = Job::new(model, recipe, args.seed, device);
        if let Some(start) = start {
            job = job.weights(start.file, &[&start.classifier]);
            job.start.iter_mut().for_each(|start| start.selection = args.wanted.selection());
        }
        Ok((job, overrides))
    }
}

/// A checkpoint to start from.
struct Start {
    file: PathBuf,
    /// The key of the network's classifier, which may differ.
    classifier: String,
    /// How pixels were normalised in its training.
    normalize: Normalize,
}

/// Opens the checkpoint in `file`, which must fit. Called before anything of an earlier run is removed.
fn start(args: &Args, model: &ModelInfo, data: &Dataset, file: &Path) -> Result<Start> {
    let file = weights_file(file, Some(model))?;
    let selection = args.wanted.selection();
    let weights = selection.open(&file)?;
    let [channels, side, _] = data.train.shape();
    let options = ModelOptions::for_data(data.classes.len(), channels, side);
    let shapes = VarStore::shapes_only();
    let classifier = model.build(&options, shapes.root())?.classifier().path().to_string();
    let options = LoadOptions { may_differ: &[&classifier], adapt: true, ..selection.of(model.load_options()) };
    let report = ensure_fit(&shapes, &weights, &options)?;
    for (key, how) in &report.adapted {
        say(format_args!("{}: `{key}` adapted: {how}", file.display()));
    }
    let (normalize, why) = normalize_of(model, &file, &weights, &report)?;
    if args.normalize.is_none() {
        say(format_args!("{}: {normalize}, {why}", file.display()));
    }
    Ok(Start { file, classifier, normalize })
}

//! Plan of a suite: which runs there are to come, and what the console says of them.

use super::Args;
use super::model_sets::{Choice, choose};
use anyhow::{Result, ensure};
use zoo_core::Precision;
use zoo_train::data::Dataset;
use zoo_train::recipe::{Overrides, Recipe};

/// The models of `--quick`: one of each kind, from seconds to a minute.
const QUICK_MODELS: &str = "mlp,template_cnn,cifar_resnet20";
/// The model of a suite that names none.
pub const DEFAULT_MODELS: &str = "cifar_resnet20";

/// How many images the runs train on, hold out and test on, as the report counts them; recipes that differ in it are
/// named.
pub fn images(runs: &[Planned], data: &Dataset) -> String {
    let mut told: Vec<(&str, String)> = Vec::new();
    for recipe in runs.iter().map(|run| &run.choice.recipe) {
        if told.iter().all(|(name, _)| *name != recipe.name) {
            told.push((&recipe.name, recipe.images_in_words(data.train.len(), data.test.len())));
        }
    }
    match &told[..] {
        [(_, first), rest @ ..] if rest.iter().all(|(_, other)| other == first) => first.clone(),
        _ => told.iter().map(|(recipe, images)| format!("{recipe}: {images}")).collect::<Vec<_>>().join("; "),
    }
}

/// One run to come.
pub struct Planned {
    pub choice: Choice,
    /// Where they are not the recipe's own.
    pub epochs: Option<usize>,
    pub seed: u64,
    /// Its own folder, relative to the suite's: a function of what is run, so that a suite that goes on finds it again.
    pub folder: String,
}

/// Every model under its recipe in every precision with every seed, seeds innermost: a model's row is complete before
/// the next begins.
/// Without `--models` they are `default`.
pub fn plan(args: &Args, default: &str, images: usize) -> Result<Vec<Planned>> {
    let models = match (&args.models, args.quick) {
        (Some(models), _) => models.as_str(),
        (None, true) => QUICK_MODELS,
        (None, false) => default,
    };
    let recipe = args.recipe.as_deref().or(if args.quick { Some("quick") } else { None });
    let overrides = Overrides {
        epochs: args.epochs,
        batch: args.batch,
        lr: args.lr,
        bn_momentum: args.bn_momentum,
        bn_eps: args.bn_eps,
        batch_norm: args.no_batch_norm.then_some(false),
        init: args.init,
    };
    let mut seeds = args.seeds.clone();
    seeds.sort_unstable();
    seeds.dedup();
    ensure!(!seeds.is_empty(), "--seeds names no seed");
    let precisions = Precision::ALL.iter().copied().filter(|precision| args.precision.contains(precision));
    let mut planned = Vec::new();
    for choice in choose(models, recipe)? {
        let changes = overrides.that_change(&choice.recipe);
        // A set's settings, then the user's: rows that the user has made the same still have folders of their own.
        let settings = [choice.overrides.settings(), changes.settings()].concat();
        let recipe = choice.recipe.with(&overrides)?;
        let choice = Choice { recipe, overrides: changes.or(&choice.overrides), ..choice };
        let own = Recipe::named(&choice.recipe.name)?.adapted_to(choice.model.name);
        let is_other = choice.recipe.length != own.length;
        let epochs = is_other.then(|| choice.recipe.epochs(images)).transpose()?;
        let mut name = format!("{}-{}", choice.model.name, choice.recipe.name);
        epochs.iter().for_each(|epochs| name += &format!("-{epochs}epochs"));
        settings.iter().for_each(|setting| name += &format!("-{setting}"));
        for precision in precisions.clone() {
            let own = precision.unusual().map_or_else(|| name.clone(), |precision| format!("{name}-{precision}"));
            let choice = Choice { recipe: Recipe { precision, ..choice.recipe.clone() }, ..choice };
            planned.extend(seeds.iter().map(|&seed| Planned {
                choice: choice.clone(),
                epochs,
                seed,
                folder: format!("runs/{own}-seed{seed}"),
            }));
        }
    }
    Ok(planned)
}

/// The flags that say how one run is trained, each with a space before it.
pub fn flags(planned: &Planned, args: &Args) -> String {
    let recipe = &planned.choice.recipe;
    // What a set has changed and what the user has, all the same: in the command it stands as flags.
    let Overrides { bn_momentum, bn_eps, batch_norm, init, .. } = planned.choice.overrides;
    let values = [
        ("recipe", Some(recipe.name.clone())),
        ("epochs", planned.epochs.map(|n| n.to_string())),
        ("batch", args.batch.map(|n| n.to_string())),
        ("lr", args.lr.map(|x| x.to_string())),
        ("bn-momentum", bn_momentum.map(|x| x.to_string())),
        ("bn-eps", bn_eps.map(|x| x.to_string())),
        ("init", init.map(|rule| rule.to_string())),
        ("no-batch-norm", (batch_norm == Some(false)).then(String::new)),
        ("precision", recipe.precision.unusual().map(str::to_owned)),
        ("seeds", Some(planned.seed.to_string())),
    ];
    let flag =
        |(name, value): (&str, Option<String>)| value.map(|value| format!(" --{name} {value}").trim_end().to_owned());
    values.into_iter().filter_map(flag).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench_cifar::testing::{Command, asked};
    use clap::Parser;
    use zoo_train::data::Synthetic;

    fn planned(arguments: &str) -> Vec<Planned> {
        plan(&asked(arguments), DEFAULT_MODELS, 50_000).unwrap()
    }

    /// A suite that goes on finds each run by its folder: f32 where it always was, bf16 beside it.
    #[test]
    fn precisions_are_runs_of_their_own() {
        let folders = |arguments: &str| planned(arguments).into_iter().map(|run| run.folder).collect::<Vec<_>>();
        let with = |precision: &str| format!("--models mlp --epochs 2 --lr 0.5 --seeds 1,2 {precision}");
        let f32 = folders(&with(""));
        assert_eq!(f32, ["runs/mlp-mlp-sgd-2epochs-lr=0.5-seed1", "runs/mlp-mlp-sgd-2epochs-lr=0.5-seed2"]);
        assert_eq!(folders(&with("--precision f32")), f32);
        let bf16 = folders(&with("--precision bf16"));
        assert_eq!(bf16, ["runs/mlp-mlp-sgd-2epochs-lr=0.5-bf16-seed1", "runs/mlp-mlp-sgd-2epochs-lr=0.5-bf16-seed2"]);
        for both in ["--precision f32,bf16", "--precision bf16,f32,bf16"] {
            assert_eq!(folders(&with(both)), [&f32[..], &bf16[..]].concat());
        }
        let runs = planned("--models mlp,cifar_resnet20 --precision f32,bf16");
        let told = runs.iter().map(|run| (run.choice.model.name, run.choice.recipe.precision.name()));
        let expected = ["mlp", "cifar_resnet20"].map(|model| [(model, "f32"), (model, "bf16")]);
        assert_eq!(told.collect::<Vec<_>>(), expected.concat());
        for unknown in ["f16", "F32", ""] {
            let wrong = Command::try_parse_from(["bench-cifar", "--precision", unknown]);
            let error = wrong.err().expect(unknown).to_string();
            assert!(error.contains("--precision") && error.contains("f32") && error.contains("bf16"), "{error}");
        }
    }

    /// The report's heading counts what was trained on: the console must not say more.
    #[test]
    fn held_out_images_are_counted_before_the_first_run() {
        let data = Synthetic { train: 100, test: 20, seed: 0 }.generate();
        let told = |models: &str, recipe: Option<&str>| {
            let planned = choose(models, recipe).unwrap().into_iter().map(|choice| Planned {
                choice,
                epochs: None,
                seed: 1,
                folder: String::new(),
            });
            images(&planned.collect::<Vec<_>>(), &data)
        };
        assert_eq!(told("mlp,template_cnn", None), "100 images to train on, 20 to test on");
        let paper = "90 images to train on, 10 held out, 20 to test on";
        assert_eq!(told("cifar_resnet20,cifar_resnet32", Some("resnet-paper")), paper);
        assert_eq!(
            told("resnet-paper,modern-200", None),
            format!("resnet-paper: {paper}; modern-200: 100 images to train on, 20 to test on")
        );
    }
}

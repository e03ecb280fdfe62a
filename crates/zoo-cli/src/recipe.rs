//! `zoo recipe`: how networks are trained, as the recipes say it.

use crate::text::until_closed;
use anyhow::Result;
use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use std::io::{self, Write};
use zoo_train::recipe::{RECIPES, Recipe};

/// Arguments of `recipe`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// List all recipes: whose each is and how it trains, in a line
    List {
        /// Print one JSON object a line: name, whose, short
        #[arg(long)]
        json: bool,
    },
    /// Show every setting of one recipe: length, batch, optimizer, learning rate and its course, augmentation and the
    /// rest
    Show {
        /// Name of the recipe
        #[arg(value_name = "NAME", value_parser = PossibleValuesParser::new(Recipe::NAMES))]
        name: String,
        /// Network that is trained: the `fast` recipes, `finetune` and `resnet-paper` depend on it. Default: as for
        /// cifar_resnet20
        #[arg(long, value_name = "MODEL")]
        model: Option<String>,
        /// Print one JSON object, as a run's record holds it under `hyperparameters`
        #[arg(long)]
        json: bool,
    },
}

/// Prints the list, or the settings.
pub fn run(args: &Args) -> Result<()> {
    let mut out = io::stdout().lock();
    match &args.what {
        What::List { json } => until_closed(list(*json, &mut out)),
        What::Show { name, model, json } => {
            let recipe = Recipe::named(name)?;
            let recipe = match model {
                Some(model) => {
                    let model = zoo::find(model)?;
                    recipe.adapted_to(model.name).for_side(model.preprocess.size)
                }
                None => recipe,
            };
            let object = serde_json::to_string(&recipe)?;
            until_closed(if *json { writeln!(out, "{object}") } else { show(&recipe, model.as_deref(), &mut out) })
        }
    }
}

fn list(json: bool, out: &mut impl Write) -> io::Result<()> {
    let width = |text: fn(usize) -> usize| (0..RECIPES.len()).map(text).max().unwrap_or(0);
    let (name, whose) = (width(|i| RECIPES[i].name.len()), width(|i| RECIPES[i].whose.len()));
    if !json {
        writeln!(out, "{:name$}  {:whose$}  in short", "name", "whose")?;
    }
    for about in RECIPES {
        if json {
            let object = serde_json::json!({ "name": about.name, "whose": about.whose, "short": about.short });
            writeln!(out, "{object}")?;
        } else {
            writeln!(out, "{:name$}  {:whose$}  {}", about.name, about.whose, about.short)?;
        }
    }
    Ok(())
}

fn show(recipe: &Recipe, model: Option<&str>, out: &mut impl Write) -> io::Result<()> {
    if let Some(about) = recipe.about() {
        writeln!(out, "{}: {}; {}\n", about.name, about.whose, about.short)?;
    }
    let settings = recipe.hyperparameters();
    let width = settings.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in settings {
        writeln!(out, "{name:width$}  {value}")?;
    }
    match model {
        Some(model) => writeln!(out, "\nAs it trains {model}."),
        None => {
            writeln!(out, "\nAs it trains cifar_resnet20 on images of 32 pixels; --model shows it for another network.")
        }
    }
}

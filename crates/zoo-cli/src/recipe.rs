//! `zoo recipe`: how networks are trained, as the recipes say it.

use crate::text::until_closed;
use anyhow::Result;
use clap::builder::{PossibleValue, PossibleValuesParser, StringValueParser, TypedValueParser};
use clap::{Arg, Command, Subcommand};
use std::ffi::OsStr;
use std::io::{self, Write};
use zoo_train::recipe::{RECIPES, Recipe, RecipeSource};

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
        /// Name of the recipe, or a file of one's own: `base = "finetune"` and what differs, in TOML
        #[arg(value_name = "NAME|FILE.toml", value_parser = NameOrFile)]
        name: String,
        /// Network that is trained: the `fast` recipes, `finetune` and `resnet-paper` depend on it. Default: as for
        /// cifar_resnet20
        #[arg(long, value_name = "MODEL")]
        model: Option<String>,
        /// Change one setting first: `lr=0.05`, `optimizer.weight_decay=0.05`
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,
        /// Print a file for `zoo train --recipe FILE.toml`: every setting, to change what should differ
        #[arg(long, conflicts_with = "json")]
        toml: bool,
        /// Print one JSON object, as a run's record holds it under `hyperparameters`
        #[arg(long)]
        json: bool,
    },
}

/// The argument of `--recipe`: a name, which shells complete, or a file.
#[derive(Clone)]
pub struct NameOrFile;

impl TypedValueParser for NameOrFile {
    type Value = String;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<String, clap::Error> {
        match value.to_str() {
            Some(text) if RecipeSource::is_file(text) => StringValueParser::new().parse_ref(command, arg, value),
            _ => PossibleValuesParser::new(Recipe::NAMES).parse_ref(command, arg, value),
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(Recipe::NAMES.iter().map(PossibleValue::new)))
    }
}

/// Prints the list, or the settings.
pub fn run(args: &Args) -> Result<()> {
    let mut out = io::stdout().lock();
    match &args.what {
        What::List { json } => until_closed(list(*json, &mut out)),
        What::Show { name, model, set, toml, json } => {
            let source = RecipeSource::open(name)?;
            let mut recipe = match model {
                Some(model) => {
                    let model = zoo::find(model)?;
                    source.adapted(model.name, model.preprocess.size)?
                }
                None => source.recipe()?,
            };
            recipe.set_all(set)?;
            let shown = match (toml, json) {
                (true, _) => write!(out, "{}", recipe.to_toml()?),
                (_, true) => writeln!(out, "{}", serde_json::to_string(&recipe)?),
                _ => show(&recipe, model.as_deref(), &mut out),
            };
            until_closed(shown)
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

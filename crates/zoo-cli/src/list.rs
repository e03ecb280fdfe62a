//! `zoo list`: the registry as a table, or as one JSON object a line.

use crate::text::{thousands, until_closed};
use anyhow::{Context, Result};
use glob::Pattern;
use std::io::{self, Write};
use zoo::{ModelInfo, SequenceInfo};

/// Arguments of `list`.
#[derive(clap::Args)]
pub struct Args {
    /// Names or patterns such as 'cifar_*'; all networks if none is given
    patterns: Vec<String>,
    /// Print one JSON object a line instead of a table
    #[arg(long)]
    json: bool,
}

/// One line of the list.
struct Row {
    name: &'static str,
    family: &'static str,
    parameters: usize,
    /// Side of the image and classes; a network on sequences has neither.
    image: Option<(usize, usize)>,
    keys: &'static str,
    paper: &'static str,
    /// The name of its published weights.
    weights: Option<&'static str>,
}

/// The networks that any of `patterns` names; all if there is no pattern.
fn rows(patterns: &[String]) -> Result<Vec<Row>> {
    let image = |m: &ModelInfo| Row {
        name: m.name,
        family: m.family,
        parameters: m.parameters,
        image: Some((m.preprocess.size, m.num_classes)),
        keys: m.keys,
        paper: m.paper,
        weights: m.weights,
    };
    let sequence = |m: &SequenceInfo| Row {
        name: m.name,
        family: m.family,
        parameters: m.parameters,
        image: None,
        keys: m.keys,
        paper: m.paper,
        weights: None,
    };
    if patterns.is_empty() {
        return Ok(zoo::all().map(image).chain(zoo::sequence_models().map(sequence)).collect());
    }
    let mut rows: Vec<Row> = Vec::new();
    for pattern in patterns {
        let glob = Pattern::new(pattern).with_context(|| format!("`{pattern}` is no valid pattern"))?;
        let sequences: Vec<Row> = zoo::sequence_models().filter(|m| glob.matches(m.name)).map(sequence).collect();
        let images = zoo::select(&[pattern]);
        let found = match (images, sequences.is_empty()) {
            (Err(error), true) => return Err(error.into()),
            (images, _) => images.into_iter().flatten().map(image).chain(sequences),
        };
        let new = found.filter(|row| !rows.iter().any(|r| r.name == row.name)).collect::<Vec<_>>();
        rows.extend(new);
    }
    Ok(rows)
}

/// Prints the list.
pub fn run(args: &Args) -> Result<()> {
    until_closed(print(&rows(&args.patterns)?, args.json, &mut io::stdout().lock()))
}

fn print(rows: &[Row], json: bool, out: &mut impl Write) -> io::Result<()> {
    if json {
        for row in rows {
            let object = serde_json::json!({
                "name": row.name,
                "family": row.family,
                "parameters": row.parameters,
                "image": row.image.map(|(side, _)| side),
                "num_classes": row.image.map(|(_, classes)| classes),
                "keys": row.keys,
                "paper": row.paper,
                "weights": row.weights,
            });
            writeln!(out, "{object}")?;
        }
        return Ok(());
    }
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let family = rows.iter().map(|row| row.family.len()).max().unwrap_or(0).max("family".len());
    writeln!(
        out,
        "{:width$}  {:family$}  {:>11}  {:>5}  {:18}  paper",
        "name", "family", "parameters", "image", "keys"
    )?;
    for row in rows {
        let (name, keys, paper) = (row.name, row.keys, row.paper);
        let image = row.image.map_or("-".to_string(), |(side, _)| side.to_string());
        let parameters = thousands(row.parameters as u64);
        writeln!(out, "{name:width$}  {:family$}  {parameters:>11}  {image:>5}  {keys:18}  {paper}", row.family)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(patterns: &[&str], json: bool) -> String {
        let mut out = Vec::new();
        let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        print(&rows(&patterns).unwrap(), json, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_table_has_a_row_a_model() {
        let table = text(&["cifar_resnet20", "mlp"], false);
        assert_eq!(table.lines().count(), 3);
        assert!(table.lines().nth(1).unwrap().contains("269,722"), "{table}");
    }

    #[test]
    fn json_has_the_contracts_fields() {
        let line: serde_json::Value = serde_json::from_str(&text(&["cifar_vgg16_bn"], true)).unwrap();
        for field in ["name", "family", "parameters", "image", "keys", "paper"] {
            assert!(!line[field].is_null(), "{field}");
        }
        assert_eq!(line["parameters"], 14_728_266);
    }

    #[test]
    fn sequence_models_are_listed_too() {
        let names = |patterns: &[&str]| -> Vec<&str> {
            let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
            rows(&patterns).unwrap().iter().map(|row| row.name).collect()
        };
        assert_eq!(names(&["transformer*", "mlp"]), ["transformer_base", "mlp"]);
        assert_eq!(names(&[]).len(), zoo::all().count() + zoo::sequence_models().count());
        assert!(rows(&["nothing*".to_string()]).is_err());
        let line: serde_json::Value = serde_json::from_str(&text(&["transformer_base"], true)).unwrap();
        assert!(line["image"].is_null() && line["parameters"] == 44_140_544);
    }
}

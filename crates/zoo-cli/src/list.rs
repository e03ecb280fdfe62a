//! `zoo list`: the registry as a table, or as one JSON object a line.

use crate::text::{thousands, until_closed};
use anyhow::Result;
use std::io::{self, Write};
use zoo::ModelInfo;

/// Arguments of `list`.
#[derive(clap::Args)]
pub struct Args {
    /// Names or patterns such as 'cifar_*'; all networks if none is given
    patterns: Vec<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// Prints the list.
pub fn run(args: &Args) -> Result<()> {
    let models = if args.patterns.is_empty() { zoo::all().collect() } else { zoo::select(&args.patterns)? };
    until_closed(print(&models, args.json, &mut io::stdout().lock()))
}

fn print(models: &[&ModelInfo], json: bool, out: &mut impl Write) -> io::Result<()> {
    if json {
        for m in models {
            let object = serde_json::json!({
                "name": m.name,
                "family": m.family,
                "parameters": m.parameters,
                "image": m.input.size,
                "num_classes": m.num_classes,
                "keys": m.keys,
                "paper": m.paper,
            });
            writeln!(out, "{object}")?;
        }
        return Ok(());
    }
    let width = models.iter().map(|m| m.name.len()).max().unwrap_or(0);
    writeln!(out, "{:width$}  {:11}  {:>11}  {:>5}  {:11}  paper", "name", "family", "parameters", "image", "keys")?;
    for m in models {
        let parameters = thousands(m.parameters as u64);
        let (name, image) = (m.name, m.input.size);
        writeln!(out, "{name:width$}  {:11}  {parameters:>11}  {image:>5}  {:11}  {}", m.family, m.keys, m.paper)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(patterns: &[&str], json: bool) -> String {
        let mut out = Vec::new();
        print(&zoo::select(patterns).unwrap(), json, &mut out).unwrap();
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
}

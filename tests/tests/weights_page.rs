//! `docs/weights.md`: its table of foreign names is the one that the networks read files by.

use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use zoo_core::weights::Rename;

/// Whose names, and the rule.
type Rule = (&'static str, &'static str, &'static str, &'static str);

fn rules() -> BTreeMap<Rule, BTreeSet<&'static str>> {
    let mut all: BTreeMap<Rule, BTreeSet<&'static str>> = BTreeMap::new();
    let mut add = |whose: &'static str, renames: &'static [Rename], name: &'static str| {
        for &Rename { from, to, reason } in renames {
            all.entry((whose, from, to, reason)).or_default().insert(name);
        }
    };
    for info in zoo::all() {
        add("", info.renames, info.name);
        info.layouts.iter().for_each(|layout| add(layout.name, layout.renames, info.name));
    }
    zoo::sequence_models().for_each(|info| add("", info.renames, info.name));
    all
}

/// The rules as lines of a table, with the networks that follow each.
fn table() -> String {
    let mut lines =
        vec!["| file | network | whose | why | networks |".to_string(), "|---|---|---|---|---|".to_string()];
    for ((whose, from, to, reason), names) in rules() {
        let network = if to.is_empty() { "left out".to_string() } else { format!("`{to}`") };
        let whose = if whose.is_empty() { "-" } else { whose };
        let mut listed: Vec<&str> = names.iter().copied().take(3).collect();
        let more = format!("and {} more", names.len().saturating_sub(3));
        if names.len() > 3 {
            listed.push(&more);
        }
        lines.push(format!("| `{from}` | {network} | {whose} | {reason} | {} |", listed.join(", ")));
    }
    lines.join("\n")
}

/// `UPDATE=1 cargo test -p tests --test weights_page` writes it anew.
#[test]
fn the_page_lists_every_name_that_is_read() -> Result<()> {
    const MARKS: [&str; 2] = ["<!-- names -->\n", "\n<!-- names end -->"];
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/weights.md");
    let page = std::fs::read_to_string(&path)?;
    let (before, rest) = page.split_once(MARKS[0]).context("a place for the table")?;
    let (listed, after) = rest.split_once(MARKS[1]).context("the table's end")?;
    let table = table();
    if std::env::var_os("UPDATE").is_some() {
        return Ok(std::fs::write(&path, [before, MARKS[0], &table, MARKS[1], after].concat())?);
    }
    ensure!(
        listed == table,
        "docs/weights.md is not what the networks do: UPDATE=1 cargo test -p tests --test weights_page"
    );
    Ok(())
}

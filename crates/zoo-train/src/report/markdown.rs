//! `report.md`: the table and the conditions, short enough for a README.

use std::collections::BTreeSet;

use super::columns::{Column, Kind, shown};
use super::conditions::conditions;
use super::rows::{Row, Section, sections};
use super::training::{Settings, settings};
use super::{Additions, Run, SYNTHETIC_BANNER};

/// The report as Markdown without HTML, with what a suite adds.
pub fn markdown(runs: &[Run], additions: &Additions) -> String {
    let sections = sections(runs);
    let mut text: String = sections.iter().map(|each| section(each, additions)).collect();
    text.push_str(&format!("{}\n\n### Conditions\n\n", additions.whole_protocol()));
    let conditions = conditions(&sections);
    for (name, fact) in &conditions.shared {
        text.push_str(&format!("- {name}: {}\n", escape(fact)));
    }
    for run in conditions.own.iter().filter(|run| !run.conditions.is_empty()) {
        let facts: Vec<String> =
            run.conditions.iter().map(|(name, fact)| format!("{}: {}", name.to_lowercase(), escape(fact))).collect();
        text.push_str(&format!("- {}: {}\n", escape(&run.title), facts.join("; ")));
    }
    // One command may have made several runs. Indented, so that no text in it can end the block.
    let mut commands: Vec<&str> = conditions.own.iter().map(|run| run.command).collect();
    let mut seen = BTreeSet::new();
    commands.retain(|command| seen.insert(*command));
    text.push_str("\nCommands that repeat the runs:\n\n");
    commands.iter().for_each(|command| text.push_str(&format!("    {}\n", command.replace(char::is_control, " "))));
    text
}

fn section(section: &Section, additions: &Additions) -> String {
    let columns = shown(section, additions.columns);
    let columns = || columns.iter().copied();
    let mut text = format!("### {}\n\n", escape(&section.heading()));
    if section.data.synthetic {
        text.push_str(&format!("> **Synthetic data.** {SYNTHETIC_BANNER}\n\n"));
    }
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    text.push_str(&line(columns().map(|column| column.title.to_owned()).collect()));
    text.push_str(&line(
        columns().map(|column| if column.kind == Kind::Words { "---" } else { "---:" }.to_owned()).collect(),
    ));
    for row in &section.rows {
        text.push_str(&line(cells(row, columns())));
    }
    for note in (additions.notes)(section) {
        text.push_str(&format!("\n{}\n", escape(&note)));
    }
    text + &trained(section) + "\n"
}

/// Every hyperparameter: what all rows share as a list, the rest as a table.
fn trained(section: &Section) -> String {
    let Settings { shared, names, own, notes } = settings(section);
    let mut text = "\nHow they were trained:\n\n".to_owned();
    shared.iter().for_each(|(name, value)| text.push_str(&format!("- {name}: {}\n", escape(value))));
    if !own.is_empty() {
        let line = |first: &str, rest: Vec<String>| format!("| {first} | {} |\n", rest.join(" | "));
        let dashes = names.iter().map(|_| "---".to_owned()).collect();
        text.push_str(&format!("\n{}", line("Model", names.iter().map(|&name| name.to_owned()).collect())));
        text.push_str(&line("---", dashes));
        for (_, label, values) in own {
            text.push_str(&line(&escape(label), values.iter().map(|value| escape(value)).collect()));
        }
    }
    notes.iter().for_each(|note| text.push_str(&format!("\n{}\n", escape(note))));
    text
}

fn cells(row: &Row, columns: impl Iterator<Item = &'static Column>) -> Vec<String> {
    let mut cells: Vec<String> = columns.map(|column| escape(&(column.cell)(row).text)).collect();
    cells[0] = code(&row.record().model);
    if row.record().data.synthetic {
        cells[0].push_str(" (synthetic)");
    }
    cells
}

/// Text that Markdown shows as it is, inside a table too.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        if "\\`*_[]<>|#".contains(letter) {
            escaped.push('\\');
        }
        escaped.push(if letter.is_control() { ' ' } else { letter });
    }
    escaped
}

/// Text as inline code; the fence is longer than any run of backticks inside it.
pub fn code(text: &str) -> String {
    let text = text.replace(char::is_control, " ").replace('|', "\\|");
    let longest = text.split(|letter| letter != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    let pad = if longest > 0 { " " } else { "" };
    format!("{fence}{pad}{text}{pad}{fence}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Status;
    use crate::report::tests::{run, synthetic};

    #[test]
    fn the_table_stands_in_markdown() {
        let text = markdown(
            &[run("cifar_alexnet", "review-20", 1, 0.66), run("cifar_alexnet", "review-20", 2, 0.67)],
            &Additions::NONE,
        );
        assert!(text.starts_with("### CIFAR-10: 50,000 images to train on, 10,000 to test on\n"), "{text}");
        let row = "| `cifar_alexnet` | review-20, 20 epochs | 1, 2 | 269,722 | 0.0408 | 66.50 ± 0.71 % \
                   | 67.50 ± 0.71 % | 1,000 | 17 min | 0.6 | 512 | finished |\n";
        assert!(text.contains(row), "{text}");
        assert!(
            text.contains("\n    cargo xtask bench-cifar --models cifar_alexnet --recipe review-20 --seeds 2\n"),
            "{text}"
        );
        assert_eq!(text.matches("0123456789ab").count(), 1, "{text}");
        assert!(!text.contains("ynthetic"), "{text}");
    }

    #[test]
    fn synthetic_data_is_called_so() {
        let text = markdown(&[synthetic(run("mlp", "fast", 1, 0.9))], &Additions::NONE);
        assert!(text.contains("### Synthetic data, not CIFAR-10"), "{text}");
        assert!(text.contains("> **Synthetic data.**") && text.contains("| `mlp` (synthetic) |"), "{text}");
    }

    #[test]
    fn text_cannot_break_out_of_its_cell() {
        let mut failed = run("mlp", "fast", 1, 0.1);
        failed.record.status = Status::Failed { message: "a | b\n<script>".into() };
        let text = markdown(&[failed], &Additions::NONE);
        assert!(text.contains("failed after 20 of 20 epochs: a \\| b \\<script\\> |\n"), "{text}");
        assert_eq!(code("a`b``c"), "``` a`b``c ```");
    }
}

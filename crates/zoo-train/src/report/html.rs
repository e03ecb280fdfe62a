//! `report.html`: one file that needs nothing else, on a wide screen or a phone, light or dark, with or without its
//! script.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html as markup};

use super::chart::{Style, theme_css};
use super::columns::{Column, Kind, shown};
use super::conditions::conditions;
use super::curves::{Charts, charts};
use super::mistakes::mistakes;
use super::rows::{Row, Section, sections};
use super::training::trained;
use super::{Additions, ChartGroup, Run, SYNTHETIC_BANNER};
use crate::format::count;
use crate::record::Status;

/// Seconds between two looks of a page at a run that is still training.
const EVERY: u32 = 15;
const CSS: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");
/// Forbids the page to load anything, whatever a record may hold; its pictures stand in itself.
const POLICY: &str = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

/// The report as one self-contained page, with what a suite adds.
pub fn html(runs: &[Run], additions: &Additions) -> String {
    let sections = sections(runs);
    let names: BTreeSet<String> = sections.iter().map(Section::name).collect();
    let title = match names.is_empty() {
        true => "The zoo: no run yet".to_owned(),
        false => format!("The zoo on {}", names.into_iter().collect::<Vec<_>>().join(" and ")),
    };
    let rows = sections.iter().map(|section| section.rows.len()).max().unwrap_or(0);
    let is_running = runs.iter().any(|run| run.record.status == Status::Running);
    let page = markup! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                @if is_running { meta http-equiv="refresh" content=(EVERY); }
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { (title) }
                style { (PreEscaped(CSS)) (PreEscaped(theme_css(rows))) }
            }
            body {
                header {
                    h1 { (title) }
                    p.lead { (overview(&sections)) }
                }
                main {
                    @for each in &sections { (section(each, additions)) }
                    (conditions_of(&sections, additions))
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    page.into_string()
}

/// How much there is, in one line.
fn overview(sections: &[Section]) -> String {
    let rows = || sections.iter().flat_map(|section| &section.rows);
    let models: BTreeSet<&str> = rows().map(|row| row.record().model.as_str()).collect();
    let runs: usize = rows().map(|row| row.runs.len()).sum();
    let days: BTreeSet<&str> =
        rows().flat_map(|row| &row.runs).filter_map(|run| run.record.started.split('T').next()).collect();
    let days = match (days.first(), days.last()) {
        (Some(first), Some(last)) if first == last => format!(" · {first}"),
        (Some(first), Some(last)) => format!(" · {first} to {last}"),
        _ => String::new(),
    };
    format!("{} · {}{days}", count(models.len(), "model"), count(runs, "run"))
}

fn section(section: &Section, additions: &Additions) -> Markup {
    let Charts { together, alone } = charts(section);
    markup! {
        section {
            h2 { (section.heading()) }
            @if section.data.synthetic {
                p.banner role="note" { strong { "Synthetic data." } " " (SYNTHETIC_BANNER) }
            }
            p.note.scrolls { "The table is wider than this screen: it scrolls sideways." }
            (table(section, additions.columns))
            @for note in (additions.notes)(section) { p.note.source { (note) } }
            @if !together.is_empty() {
                (legend(section))
                div.charts { @for chart in &together { (chart.figure()) } }
            }
            @if let Some(ChartGroup { heading, note, charts }) = (additions.charts)(section) {
                h3 { (heading) }
                p.note { (note) }
                div.charts.added { @for chart in &charts { (chart.figure()) } }
            }
            @if !alone.is_empty() {
                h3 { "Each model alone" }
                p.note {
                    "In the model's colour: accuracy on the " (section.measured_on().to_lowercase()) " images after each epoch. "
                    "In grey: on the training images, counted while it was learning from them."
                }
                div.charts.small { @for chart in &alone { (chart.figure()) } }
            }
            (trained(section))
            (samples(section))
            (mistakes(section))
        }
    }
}

/// The images as the networks saw them, of the first run of each row that has kept any.
fn samples(section: &Section) -> Markup {
    let kept: Vec<(&Row, &[u8])> = section
        .rows
        .iter()
        .filter_map(|row| Some((row, row.runs.iter().find_map(|run| run.samples.as_deref())?)))
        .collect();
    markup! {
        @if !kept.is_empty() {
            h3 { "What the network sees" }
            p.note { "A training image in every row: on the left as it is, then as one epoch after the other saw it." }
            @for (row, png) in kept {
                img.samples src={ "data:image/png;base64," (STANDARD.encode(png)) } alt={ "Training images of " (row.label) };
            }
        }
    }
}

fn table(section: &Section, added: &'static [Column]) -> Markup {
    let columns = shown(section, added);
    markup! {
        div.scroll tabindex="0" role="region" aria-label="Results" {
            table.results {
                thead { tr { @for column in &columns { (head(column)) } } }
                tbody {
                    @for (index, row) in section.rows.iter().enumerate() {
                        tr .unfinished[row.any_ended_early()] { (cells(row, Style::Series(index), &columns)) }
                    }
                }
            }
        }
    }
}

fn head(column: &Column) -> Markup {
    markup! { th scope="col" .number[column.kind != Kind::Words] { (column.title) } }
}

fn cells(row: &Row, style: Style, columns: &[&'static Column]) -> Markup {
    markup! {
        @for (index, column) in columns.iter().enumerate() {
            @let cell = (column.cell)(row);
            @if index == 0 {
                th scope="row" data-value=(cell.text) {
                    (style.swatch()) (cell.text)
                    @if row.record().data.synthetic { " " span.badge { "synthetic" } }
                }
            } @else {
                td .number[column.kind != Kind::Words] .remark[column.kind == Kind::Remark] data-value=[cell.value] {
                    @for (index, part) in cell.text.split(", ").enumerate() {
                        @if index > 0 { ", " }
                        span.part { (part) }
                    }
                }
            }
        }
    }
}

fn legend(section: &Section) -> Markup {
    markup! {
        ul.legend {
            @for (index, row) in section.rows.iter().enumerate() {
                li { (Style::Series(index).swatch()) (row.label) }
            }
            @if section.rows.iter().any(|row| row.runs.len() > 1) { li.note { "shade: range of the seeds" } }
            @if section.rows.iter().any(Row::any_ended_early) { li.note { "× run cut off" } }
        }
    }
}

fn conditions_of(sections: &[Section], additions: &Additions) -> Markup {
    let conditions = conditions(sections);
    markup! {
        section {
            h2 { "Conditions" }
            p { (additions.whole_protocol()) }
            (facts(conditions.shared.iter()))
            @for run in &conditions.own {
                details open[conditions.own.len() == 1] {
                    summary { (run.title) }
                    (facts(run.conditions.iter().chain(&run.course)))
                    pre { code { (run.command) } }
                }
            }
        }
    }
}

fn facts<'a>(facts: impl Iterator<Item = &'a (&'static str, String)>) -> Markup {
    markup! { dl { @for (name, fact) in facts { dt { (name) } dd { (fact) } } } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_analysis::tests::analysis;
    use crate::report::tests::{run, synthetic};

    fn drawn(runs: &[Run]) -> String {
        html(runs, &Additions::NONE)
    }

    #[test]
    fn the_page_needs_nothing_from_outside() {
        let mut seen = run("cifar_resnet20", "fast", 1, 0.9);
        seen.analysis = Some(analysis(&["cat", "dog", "truck"]));
        let page = drawn(&[seen, run("mlp", "fast", 1, 0.5)]);
        // Names of things, not addresses: what an SVG is, and the header that forbids to load anything.
        let outside = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "").replace("http-equiv", "");
        // A picture that stands in the page itself.
        let (before, rest) = outside.split_once("url(data:image/png;base64,").unwrap();
        let outside = format!("{before}{}", rest.split_once(')').unwrap().1);
        assert!(page.contains("default-src 'none'; img-src data:; style-src"), "{page}");
        for address in ["http", "://", "url(", "@import", "src=", "href="] {
            assert!(!outside.contains(address), "{address} in the page");
        }
        assert!(page.contains("<title>The zoo on CIFAR-10</title>"));
        assert!(page.contains("Test accuracy against parameters · CIFAR-10"));
        assert!(!page.contains("ynthetic"));
    }

    #[test]
    fn synthetic_data_is_called_so_everywhere() {
        let page = drawn(&[synthetic(run("mlp", "fast", 1, 0.9)), synthetic(run("template_cnn", "fast", 1, 0.9))]);
        assert!(page.contains("<title>The zoo on synthetic data</title>"));
        assert!(page.contains("Synthetic data, not CIFAR-10") && page.contains("class=\"banner\""));
        assert_eq!(page.matches("<span class=\"badge\">synthetic</span>").count(), 2);
        let captions: Vec<&str> =
            page.split("<figcaption>").skip(1).filter_map(|rest| rest.split('<').next()).collect();
        assert_eq!(captions.len(), 9);
        assert!(captions.iter().all(|caption| caption.ends_with(" · synthetic data")), "{captions:?}");
    }

    #[test]
    fn whatever_a_record_holds_stays_text() {
        let evil = "<img onerror=alert(1)>&\"'";
        let mut run = run(evil, evil, 1, 0.5);
        run.record.status = Status::Failed { message: evil.into() };
        run.record.command = "</code></pre><script>alert(1)</script>".into();
        (run.record.data.name, run.record.data.source) = (evil.into(), evil.into());
        run.record.platform.cpu = Some(evil.into());
        let page = drawn(&[run]);
        assert!(!page.contains("<img"));
        assert_eq!(page.matches("<script>").count(), 1);
        assert!(page.contains("&lt;img onerror=alert(1)&gt;&amp;&quot;"));
    }

    #[test]
    fn runs_that_were_cut_off_are_seen() {
        let mut failed = run("mlp", "fast", 1, 0.1);
        failed.epochs.truncate(3);
        failed.record.epochs_done = 3;
        failed.record.status = Status::Failed { message: "loss is NaN".into() };
        let mut early = run("template_cnn", "fast", 1, 0.1);
        (early.record.epochs_done, early.record.status) = (0, Status::Failed { message: "no memory".into() });
        early.epochs.clear();
        let page = drawn(&[failed, early]);
        assert!(
            page.contains("failed after 3 of 20 epochs: loss is NaN")
                && page.contains("failed after 0 of 20 epochs: no memory")
        );
        assert_eq!(page.matches("<tr class=\"unfinished\">").count(), 2);
        assert!(page.contains("× run cut off"));
        assert!(page.contains("mlp · seed 1 · epoch 3 · 8.55 % · failed"));
    }

    #[test]
    fn a_run_that_still_trains_is_not_cut_off() {
        let mut running = run("mlp", "fast", 1, 0.1);
        running.epochs.truncate(3);
        (running.record.epochs_done, running.record.status) = (3, Status::Running);
        let page = drawn(&[running]);
        assert!(page.contains("training: 3 of 20 epochs done") && page.contains("http-equiv=\"refresh\""), "{page}");
        assert!(!page.contains("class=\"unfinished\"") && !page.contains("run cut off"), "{page}");
    }

    #[test]
    fn a_single_epoch_and_no_run_at_all_make_a_page() {
        let mut short = run("mlp", "fast", 1, 0.5);
        short.epochs.truncate(1);
        let page = drawn(&[short]);
        assert!(page.contains("<title>mlp · epoch 1 · 25.64 %</title>"));
        assert!(page.contains("<circle"));
        let none = drawn(&[]);
        assert!(none.contains("<h1>The zoo: no run yet</h1>") && none.contains("0 runs"), "{none}");
    }
}

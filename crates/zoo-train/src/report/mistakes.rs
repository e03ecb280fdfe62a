//! "What it gets wrong": for each model which classes it takes for which, and the mistakes that it is surest of.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{Markup, html};

use super::chart::Style;
use super::rows::{Row, Section};
use crate::error_analysis::{ErrorAnalysis, Mistake};
use crate::format::{count, shortened, thousands};

/// With more classes than this a matrix is no picture any more: the most frequent confusions stand in its place.
const MATRIX_CLASSES: usize = 20;
/// Lines of a list that stands in a matrix's place.
const LINES: usize = 20;
/// A tile's longest side on the page, in CSS pixels; tiles are enlarged by whole numbers, so that every pixel of an
/// image is a square.
const TILE: u32 = 96;
/// The deepest shade in percent: the number on it must stay readable in both themes.
const DEEPEST: f64 = 45.0;

/// Names of the classes, cut to what a table has room for: they come from folders and files, and may be of any length.
fn names(analysis: &ErrorAnalysis) -> Vec<String> {
    /// Characters that are shown.
    const LENGTH: usize = 32;
    analysis.classes.iter().map(|name| shortened(name, LENGTH)).collect()
}

/// The section's models, each folded up but the first; nothing where no network was looked at.
pub(super) fn mistakes(section: &Section) -> Markup {
    let looked_at: Vec<(usize, &Row, &ErrorAnalysis)> = section
        .rows
        .iter()
        .enumerate()
        .filter_map(|(index, row)| Some((index, row, row.counted().first()?.analysis.as_ref()?)))
        .collect();
    html! {
        @if !looked_at.is_empty() {
            h3 { "What it gets wrong" }
            p.note {
                "On the images that the accuracies in the table are of, with the weights that each row's first run has kept. The images are the mistakes that the \
                 network was surest of: what is shown → what it was taken for, and with what probability."
            }
            @for (place, (index, row, analysis)) in looked_at.iter().enumerate() {
                details.wrong open[place == 0] {
                    summary {
                        (Style::Series(*index).swatch()) (row.label) " "
                        span.note { (wrong(analysis)) }
                    }
                    div.pair {
                        @if analysis.classes.len() <= MATRIX_CLASSES { (matrix(analysis)) } @else { (lists(analysis)) }
                        (sheet(analysis))
                    }
                }
            }
        }
    }
}

fn wrong(analysis: &ErrorAnalysis) -> String {
    let wrong = thousands((analysis.images - analysis.correct()) as u64);
    let unanswered: u32 = analysis.unanswered.iter().sum();
    let text = format!("{wrong} of {} wrong", count(analysis.images, "image"));
    if unanswered == 0 { text } else { format!("{text}, {} without an answer (NaN)", thousands(unanswered.into())) }
}

/// The counts, shaded by their share of the class: what is right in one colour, what is wrong in another that is scaled
/// to the most frequent confusion, for beside what is right it would hardly be seen.
fn matrix(analysis: &ErrorAnalysis) -> Markup {
    let classes = names(analysis);
    let share = |label: usize, predicted: usize| {
        f64::from(analysis.confusion[label][predicted]) / f64::from(analysis.images_of(label).max(1))
    };
    let pairs = || (0..classes.len()).flat_map(|label| (0..classes.len()).map(move |predicted| (label, predicted)));
    let most = pairs().filter(|(a, b)| a != b).map(|(a, b)| share(a, b)).fold(f64::MIN_POSITIVE, f64::max);
    let shade = |label: usize, predicted: usize| {
        let share = share(label, predicted);
        let depth = if label == predicted { share } else { share / most };
        format!("--shade:{:.1}%", depth * DEEPEST)
    };
    html! {
        div.scroll tabindex="0" role="region" aria-label="Confusion matrix" {
            table.confusion {
                caption { "Rows: what is shown. Columns: what it was taken for." }
                thead {
                    tr {
                        td {}
                        @for name in &classes { th scope="col" { span { (name) } } }
                        th scope="col" { span { "right" } }
                    }
                }
                tbody {
                    @for (label, name) in classes.iter().enumerate() {
                        tr {
                            th scope="row" { (name) }
                            @for (predicted, taken_for) in classes.iter().enumerate() {
                                @let images = analysis.confusion[label][predicted];
                                td .hit[label == predicted] .none[images == 0] style=(shade(label, predicted))
                                    title={ (name) " → " (taken_for) ": " (percent(share(label, predicted))) } {
                                    (thousands(images.into()))
                                }
                            }
                            td.share { (analysis.class_accuracy(label).map_or_else(|| "–".into(), percent)) }
                        }
                    }
                }
            }
        }
    }
}

/// Lists in place of a matrix that nobody could read: the most frequent confusions and the hardest classes.
fn lists(analysis: &ErrorAnalysis) -> Markup {
    let names = names(analysis);
    let name = |class: usize| names[class].as_str();
    let classes = 0..analysis.classes.len();
    let mut hardest: Vec<(usize, f64)> =
        classes.filter_map(|class| Some((class, analysis.class_accuracy(class)?))).collect();
    hardest.sort_by(|a, b| a.1.total_cmp(&b.1));
    html! {
        div.lists {
            table {
                caption { "The most frequent confusions" }
                thead { tr { th scope="col" { "Class" } th scope="col" { "taken for" } th.number scope="col" { "Images" } } }
                tbody {
                    @for confusion in analysis.confusions().iter().take(LINES) {
                        tr {
                            td { (name(confusion.label)) }
                            td { (name(confusion.predicted)) }
                            td.number {
                                (thousands(confusion.count.into())) " of " (thousands(analysis.images_of(confusion.label).into()))
                            }
                        }
                    }
                }
            }
            table {
                caption { "The hardest classes" }
                thead { tr { th scope="col" { "Class" } th.number scope="col" { "right" } th.number scope="col" { "Images" } } }
                tbody {
                    @for &(class, accuracy) in hardest.iter().take(LINES) {
                        tr {
                            td { (name(class)) }
                            td.number { (percent(accuracy)) }
                            td.number { (thousands(analysis.images_of(class).into())) }
                        }
                    }
                }
            }
        }
    }
}

/// The images of the mistakes. Their sheet stands in the page once; every tile shows its part of it.
fn sheet(analysis: &ErrorAnalysis) -> Markup {
    let Some(picture) = &analysis.picture else { return html! {} };
    let names = names(analysis);
    let [width, height] = analysis.tile;
    let factor = (TILE / width.max(height).max(1)).max(1);
    let style = format!(
        "--sheet:url(data:image/png;base64,{});--sheet-width:{}px;--tile-width:{}px;--tile-height:{}px",
        STANDARD.encode(picture),
        analysis.sheet[0] * factor,
        width * factor,
        height * factor
    );
    let place = |mistake: &Mistake| format!("background-position:-{}px -{}px", mistake.x * factor, mistake.y * factor);
    html! {
        ul.mistakes style=(style) {
            @for mistake in &analysis.mistakes {
                @let (class, taken_for) = (&names[mistake.label], &names[mistake.predicted]);
                li {
                    span.tile role="img" aria-label={ "image " (mistake.index) } style=(place(mistake))
                        title={ "image " (mistake.index) ", probability " (mistake.probability) } {}
                    (class) " → " (taken_for) " " span.part { (sureness(mistake.probability)) }
                }
            }
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// Whole percent, cut off: a network is never quite sure.
fn sureness(probability: f64) -> String {
    format!("{} %", (probability * 100.0).floor().min(99.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_analysis::tests::analysis;
    use crate::record::Status;
    use crate::report::rows::sections;
    use crate::report::tests::run;
    use crate::report::{Additions, Run, html};

    fn looked_at(model: &str, acc: f64, classes: &[&str]) -> Run {
        Run { analysis: Some(analysis(classes)), ..run(model, "fast", 1, acc) }
    }

    #[test]
    fn each_model_has_its_matrix_and_its_sheet() {
        let runs = [
            looked_at("mlp", 0.5, &["cat", "dog", "a <b>"]),
            looked_at("cifar_resnet20", 0.9, &["cat", "dog", "truck"]),
            run("template_cnn", "fast", 1, 0.7),
        ];
        let page = html(&runs, &Additions::NONE);
        assert_eq!(page.matches("<h3>What it gets wrong</h3>").count(), 1);
        assert_eq!(page.matches("<details class=\"wrong\" open>").count(), 1);
        assert_eq!(page.matches("<details class=\"wrong\">").count(), 1);
        assert!(page.contains("cifar_resnet20 <span class=\"note\">6 of 9 images wrong</span>"), "{page}");
        // Each row of the matrix holds a third of its class thrice, and what is right last.
        assert!(
            page.contains("<th scope=\"row\">cat</th>")
                && page.contains("<th scope=\"col\"><span>a &lt;b&gt;</span></th>")
        );
        assert!(
            page.contains("<td class=\"hit\" style=\"--shade:15.0%\" title=\"cat → cat: 33.3 %\">1</td>"),
            "{page}"
        );
        assert!(page.contains(" style=\"--shade:45.0%\" title=\"cat → dog: 33.3 %\">1</td>"), "{page}");
        assert_eq!(page.matches("<td class=\"share\">33.3 %</td>").count(), 6);
        // Two sheets of six mistakes: each once, each tile at its place, three times as large.
        assert_eq!(page.matches("url(data:image/png;base64,iVBOR").count(), 2);
        assert!(page.contains("--sheet-width:576px;--tile-width:96px;--tile-height:96px"), "{page}");
        assert_eq!(page.matches("<span class=\"tile\"").count(), 12);
        assert!(page.contains("background-position:-96px -0px"), "{page}");
        assert!(page.contains("truck → cat <span class=\"part\">99 %</span>"), "{page}");
    }

    /// Names come from folders: HTML in them is text, and one of any length keeps the page small.
    #[test]
    fn names_of_any_kind_keep_the_page_whole() {
        let long = "x".repeat(10_000);
        let run = looked_at("mlp", 0.5, &["<script>alert(1)</script>", "two\nlines\r\n", &long]);
        let page = html(&[run], &Additions::NONE);
        assert_eq!(page.matches("<script").count(), 1);
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && page.contains("two lines  "));
        assert!(!page.contains(&"x".repeat(40)) && page.contains("xxx…"));
        assert!(page.len() < 150_000, "{}", page.len());
    }

    #[test]
    fn many_classes_are_listed() {
        let names: Vec<String> = (0..21).map(|class| format!("class-{class:02}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let markup = mistakes(&sections(&[looked_at("mlp", 0.5, &names)])[0]).into_string();
        assert!(!markup.contains("class=\"confusion\""), "{markup}");
        assert!(markup.contains("<td>class-00</td><td>class-01</td><td class=\"number\">1 of 3</td>"), "{markup}");
        assert!(
            markup.contains("<td>class-00</td><td class=\"number\">33.3 %</td><td class=\"number\">3</td>"),
            "{markup}"
        );
        assert_eq!(markup.matches("<tr>").count(), 2 * (1 + LINES));
    }

    #[test]
    fn what_was_not_looked_at_is_no_error() {
        let mut without_sheet = looked_at("mlp", 0.5, &["cat", "dog", "truck"]);
        without_sheet.analysis.as_mut().unwrap().picture = None;
        without_sheet.analysis.as_mut().unwrap().unanswered[0] = 2;
        let mut failed = looked_at("mlp", 0.5, &["cat", "dog"]);
        failed.record.status = Status::Failed { message: "loss is NaN".into() };
        let markup = |run: Run| mistakes(&sections(&[run])[0]).into_string();
        let shown = markup(without_sheet);
        assert!(shown.contains("wrong, 2 without an answer (NaN)") && !shown.contains("tile"), "{shown}");
        assert_eq!(markup(failed), "");
        assert_eq!(markup(run("mlp", "fast", 1, 0.5)), "");
    }

    #[test]
    fn a_probability_is_cut_off() {
        assert_eq!([0.5, 0.876, 0.9999, 1.0].map(sureness), ["50 %", "87 %", "99 %", "99 %"]);
    }
}

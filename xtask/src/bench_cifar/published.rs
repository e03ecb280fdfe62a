//! Published figures on CIFAR-10, to stand beside our own in the report.
//!
//! A difference is stated only when recipe, length and data all agree with the published run; otherwise
//! [`Published::why_not`] says why not. A figure from synthetic images or from a part of the data is no result on
//! CIFAR-10.

use super::pytorch;
use std::cmp::Ordering;
use std::collections::BTreeMap;

use zoo_train::format::thousands;
use zoo_train::recipe::Length;
use zoo_train::record::{CIFAR10, RunRecord, Status};
use zoo_train::report::{Cell, Column, Kind, Row, Section};

/// One published figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Published {
    /// The model's name in the registry.
    pub model: &'static str,
    /// The recipe set that reproduces its training.
    pub recipe: &'static str,
    /// How long it was trained.
    pub length: Length,
    /// Images it was trained on.
    pub train_images: usize,
    /// The accuracy as a report shows it, in percent.
    pub text: &'static str,
    /// Lower end of the published range, 0 to 1; both ends are the same for a single figure.
    pub low: f64,
    /// Upper end of the published range, 0 to 1.
    pub high: f64,
    /// Where the figure comes from, in words that follow the recipe's name.
    pub note: &'static str,
    /// Why even a faithful run is not held against the figure, if it is not.
    pub caveat: Option<&'static str>,
}

const REVIEW: &str = "a review of networks on CIFAR-10, 20 epochs each; input and stems as for ImageNet";
const PAPER: &str = "He et al. 2015, table 6; 45,000 images trained on, 5,000 held out";
const TEMPLATE: &str = "read off the plots of a published template, 600 epochs; such values are out of reach for these \
    nets on images they have not seen, so only the order compares";
const MODERN: &str = "common PyTorch CIFAR-10 repositories, 200 epochs";
const ORDER_ONLY: &str = "out of reach on unseen images";

/// All published figures, one row a figure.
#[rustfmt::skip]
const TABLE: &[Published] = &[
    review(20, "cifar_alexnet",      "66.5 %", 0.665),
    review(20, "cifar_vgg16_bn",     "81.7 %", 0.817),
    review(20, "resnet101",          "69.1 %", 0.691),
    review(20, "seresnet101",        "73.7 %", 0.737),
    review(20, "densenet121",        "76.0 %", 0.760),
    review(20, "mobilenet_v1",       "55.3 %", 0.553),
    review(20, "mobilenet_v2",       "46.9 %", 0.469),
    review(75, "mobilenet_v2",       "60.4 %", 0.604),
    review(20, "shufflenet_v1_g3",   "63.8 %", 0.638),
    paper("cifar_resnet20",          "91.25 %", 0.9125),
    paper("cifar_resnet32",          "92.49 %", 0.9249),
    paper("cifar_resnet44",          "92.83 %", 0.9283),
    paper("cifar_resnet56",          "93.03 %", 0.9303),
    paper("cifar_resnet110",         "93.57 %", 0.9357),
    template("template_cnn",          "≈ 98 %",  0.98, 0.98),
    template("template_residual_cnn", "≈ 96 %",  0.96, 0.96),
    template("template_mixer_s4",     "91–96 %", 0.91, 0.96),
    template("template_mixer_s2",     "91–96 %", 0.91, 0.96),
    template("template_mixer_b4",     "91–96 %", 0.91, 0.96),
    template("template_mixer_b2",     "91–96 %", 0.91, 0.96),
    modern("cifar_vgg16_bn",     "92.6–94.2 %", 0.926, 0.942),
    modern("cifar_resnet18",     "95.5 %",      0.955, 0.955),
    modern("cifar_densenet121",  "95.0 %",      0.950, 0.950),
    modern("cifar_mobilenet_v2", "94.4 %",      0.944, 0.944),
    modern("cifar_resnet20",     "92.6 %",      0.926, 0.926),
];

const fn review(epochs: usize, model: &'static str, text: &'static str, acc: f64) -> Published {
    let (recipe, length) = ("review-20", Length::Epochs(epochs));
    Published { model, recipe, length, train_images: 50_000, text, low: acc, high: acc, note: REVIEW, caveat: None }
}

const fn paper(model: &'static str, text: &'static str, acc: f64) -> Published {
    let (recipe, length) = ("resnet-paper", Length::Steps(64_000));
    Published { model, recipe, length, train_images: 45_000, text, low: acc, high: acc, note: PAPER, caveat: None }
}

const fn template(model: &'static str, text: &'static str, low: f64, high: f64) -> Published {
    let (recipe, length, caveat) = ("template-600", Length::Epochs(600), Some(ORDER_ONLY));
    Published { model, recipe, length, train_images: 50_000, text, low, high, note: TEMPLATE, caveat }
}

const fn modern(model: &'static str, text: &'static str, low: f64, high: f64) -> Published {
    let (recipe, length) = ("modern-200", Length::Epochs(200));
    Published { model, recipe, length, train_images: 50_000, text, low, high, note: MODERN, caveat: None }
}

/// All published figures, the sets one after the other.
pub fn all() -> &'static [Published] {
    TABLE
}

/// The figures published for `model` under any recipe.
fn all_for(model: &str) -> Vec<&'static Published> {
    TABLE.iter().filter(|figure| figure.model == model).collect()
}

/// The figures to show beside `run`: those of its recipe and length, else of its recipe, else of any recipe.
pub fn beside(run: &RunRecord) -> Vec<&'static Published> {
    let mut figures = all_for(&run.model);
    if figures.iter().any(|figure| figure.recipe == run.recipe) {
        figures.retain(|figure| figure.recipe == run.recipe);
        if figures.iter().any(|figure| fits(figure.length, run)) {
            figures.retain(|figure| fits(figure.length, run));
        }
    }
    figures
}

/// Whether `run` was asked to train for `length`. Steps may differ by a hundredth, which is what whole epochs leave.
fn fits(length: Length, run: &RunRecord) -> bool {
    match length {
        Length::Epochs(epochs) => run.epochs == epochs,
        Length::Steps(steps) => run.steps.abs_diff(steps) * 100 <= steps,
    }
}

/// How long `run` was trained instead of `length`, if it was not trained that long.
fn other_length(length: Length, run: &RunRecord) -> Option<String> {
    let (ours, theirs, unit) = match length {
        Length::Epochs(epochs) => (run.epochs_done as u64, epochs as u64, "epochs"),
        Length::Steps(_) if fits(length, run) => return None,
        Length::Steps(steps) => (run.steps, steps, "iterations"),
    };
    match ours.cmp(&theirs) {
        Ordering::Equal => None,
        Ordering::Less => Some(format!("{} of {} {unit}", thousands(ours), thousands(theirs))),
        Ordering::Greater => Some(format!("{} {unit}, not {}", thousands(ours), thousands(theirs))),
    }
}

impl Published {
    /// Why `run` may not be held against this figure: every reason that the reader needs, none if it may.
    pub fn why_not(&self, run: &RunRecord) -> Vec<String> {
        if run.data.synthetic {
            return vec!["synthetic data".into()];
        }
        if run.data.name != CIFAR10 {
            return vec![format!("data: {}", run.data.name)];
        }
        let mut reasons = Vec::new();
        match run.status {
            Status::Finished => {}
            Status::Running => reasons.push("not finished".into()),
            Status::Interrupted => reasons.push("interrupted".into()),
            Status::Failed { .. } => reasons.push("failed".into()),
        }
        if run.recipe != self.recipe {
            // Another recipe has its own length; to hold that against it would say the same thing twice.
            reasons.push("other recipe".into());
        } else {
            reasons.extend(run.overrides.settings());
            reasons.extend(other_length(self.length, run));
        }
        let whole = if run.recipe == self.recipe { self.train_images } else { 50_000 };
        if run.data.train_images < whole {
            let (ours, theirs) = (thousands(run.data.train_images as u64), thousands(whole as u64));
            reasons.push(format!("{ours} of {theirs} images"));
        }
        if run.data.test_images != 10_000 {
            reasons.push(format!("{} of 10,000 test images", thousands(run.data.test_images as u64)));
        }
        if reasons.is_empty() {
            reasons.extend(self.caveat.map(str::to_owned));
        }
        reasons
    }

    /// How far the accuracy `acc` lies outside the published range: 0 within it.
    pub fn delta(&self, acc: f64) -> f64 {
        acc - acc.clamp(self.low, self.high)
    }
}

/// The columns that the report's table gets.
pub const COLUMNS: &[Column] = &[
    Column { title: "PyTorch, same images", kind: Kind::Remark, cell: pytorch::accuracy },
    Column { title: "Published", kind: Kind::Remark, cell: figures },
    Column { title: "Difference", kind: Kind::Remark, cell: difference },
];

/// How to read these columns.
pub const PROTOCOL: &str = "Published figures are set against ours only when recipe, length and data agree; a difference is \
    in percentage points from the nearer end of the published range. PyTorch's figures are of the same recipe on the same \
    images, where anybody has run it; their random numbers are others, so a part of a difference is chance.";

/// Where the figures come from that stand in a section's table.
pub fn sources(section: &Section) -> Vec<String> {
    let figures = section.rows.iter().flat_map(|row| beside(row.record()));
    let sources: BTreeMap<&str, &str> = figures.map(|figure| (figure.recipe, figure.note)).collect();
    sources.into_iter().map(|(recipe, source)| format!("Published, {recipe}: {source}.")).collect()
}

/// The figures beside a row, each with what it is of where that is not the row's own.
pub fn figures(row: &Row) -> Cell {
    let record = row.record();
    let figures = beside(record);
    let texts: Vec<String> = figures
        .iter()
        .map(|figure| match figure.length {
            _ if figure.recipe != record.recipe => format!("{} ({})", figure.text, figure.recipe),
            Length::Epochs(epochs) if figures.len() > 1 => format!("{} ({epochs} epochs)", figure.text),
            _ => figure.text.to_owned(),
        })
        .collect();
    Cell::new((!texts.is_empty()).then(|| texts.join(", ")), figures.first().map(|figure| figure.high))
}

/// The difference from the published figure, or why none may be stated.
pub fn difference(row: &Row) -> Cell {
    let run = row.counted().first().map_or(row.record(), |run| &run.record);
    let Some(figure) = beside(run).first().copied() else { return Cell::new(None, None) };
    let reasons = figure.why_not(run);
    let (Some(last), true) = (row.last(), reasons.is_empty()) else {
        return Cell::new(Some(format!("not comparable: {}", reasons.join(", "))), None);
    };
    let delta = figure.delta(last.mean);
    let text = match delta == 0.0 && figure.low < figure.high {
        true => "within".to_owned(),
        false => pytorch::points(delta, row.decimals()),
    };
    Cell::new(Some(text), Some(delta * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench_cifar::testing::{record, run, synthetic};
    use zoo_train::recipe::Overrides;
    use zoo_train::record::DataRecord;
    use zoo_train::report::{Run, sections};

    fn published(model: &str, recipe: &str) -> Vec<&'static Published> {
        all_for(model).into_iter().filter(|figure| figure.recipe == recipe).collect()
    }

    fn texts(figures: Vec<&Published>) -> Vec<&str> {
        figures.into_iter().map(|figure| figure.text).collect()
    }

    fn why_not(run: &RunRecord) -> Vec<String> {
        beside(run)[0].why_not(run)
    }

    #[test]
    fn the_table_holds_what_was_published() {
        assert_eq!(texts(published("cifar_vgg16_bn", "review-20")), ["81.7 %"]);
        assert_eq!(texts(published("cifar_vgg16_bn", "modern-200")), ["92.6–94.2 %"]);
        assert_eq!(texts(published("mobilenet_v2", "review-20")), ["46.9 %", "60.4 %"]);
        assert_eq!(texts(all_for("cifar_resnet20")), ["91.25 %", "92.6 %"]);
        assert_eq!(texts(published("cifar_plain20", "resnet-paper")), [""; 0]);
        // The text and the numbers of each row say the same.
        for figure in TABLE {
            let numbers = figure
                .text
                .trim_start_matches("≈ ")
                .trim_end_matches(" %")
                .split('–')
                .map(|n| n.parse::<f64>().unwrap());
            let numbers: Vec<f64> = numbers.collect();
            assert!((numbers[0] - figure.low * 100.0).abs() < 1e-9, "{figure:?}");
            assert!((numbers[numbers.len() - 1] - figure.high * 100.0).abs() < 1e-9, "{figure:?}");
        }
    }

    #[test]
    fn the_nearest_figures_stand_beside_a_run() {
        assert_eq!(texts(beside(&record("mobilenet_v2", "review-20", 1, 0.5))), ["46.9 %"]);
        let longer = RunRecord { epochs: 75, epochs_done: 75, ..record("mobilenet_v2", "review-20", 1, 0.5) };
        assert_eq!(texts(beside(&longer)), ["60.4 %"]);
        assert_eq!(why_not(&longer), [""; 0]);
        let shorter = RunRecord { epochs: 5, epochs_done: 5, ..longer };
        assert_eq!(texts(beside(&shorter)), ["46.9 %", "60.4 %"]);
        assert_eq!(texts(beside(&record("cifar_resnet20", "modern-200", 1, 0.9))), ["92.6 %"]);
        assert_eq!(texts(beside(&record("cifar_resnet20", "fast", 1, 0.9))), ["91.25 %", "92.6 %"]);
        assert_eq!(texts(beside(&record("mlp", "fast", 1, 0.5))), [""; 0]);
    }

    #[test]
    fn only_like_is_compared_with_like() {
        let run = record("cifar_alexnet", "review-20", 1, 0.665);
        assert_eq!(why_not(&run), [""; 0]);

        let mut synthetic = run.clone();
        synthetic.data = DataRecord::synthetic(0, 50_000, 10_000);
        assert_eq!(why_not(&synthetic), ["synthetic data"]);

        let mut copy = run.clone();
        copy.data.name = "CIFAR-10, JPEG q75 copy".into();
        assert_eq!(why_not(&copy), ["data: CIFAR-10, JPEG q75 copy"]);

        let mut short = run.clone();
        (short.epochs, short.epochs_done) = (10, 10);
        (short.data.train_images, short.data.test_images) = (4_000, 1_000);
        assert_eq!(why_not(&short), ["10 of 20 epochs", "4,000 of 50,000 images", "1,000 of 10,000 test images"]);

        let longer = RunRecord { epochs: 30, epochs_done: 30, ..run.clone() };
        assert_eq!(why_not(&longer), ["30 epochs, not 20"]);

        let cut = RunRecord { status: Status::Interrupted, epochs_done: 7, ..run.clone() };
        assert_eq!(why_not(&cut), ["interrupted", "7 of 20 epochs"]);

        let other = RunRecord { recipe: "fast".into(), ..run.clone() };
        assert_eq!(why_not(&other), ["other recipe"]);

        let altered = RunRecord { overrides: Overrides { lr: Some(0.05), ..Overrides::NONE }.into(), ..run };
        assert_eq!(why_not(&altered), ["lr=0.05"]);
    }

    #[test]
    fn the_paper_counts_iterations_and_holds_images_out() {
        let mut run = RunRecord {
            epochs: 182,
            epochs_done: 182,
            steps: 64_064,
            ..record("cifar_resnet56", "resnet-paper", 1, 0.93)
        };
        run.data.train_images = 45_000;
        assert_eq!(why_not(&run), [""; 0]);
        run.steps = 1_280;
        assert_eq!(why_not(&run), ["1,280 of 64,000 iterations"]);
    }

    #[test]
    fn a_template_is_compared_by_order_only() {
        let run = RunRecord { epochs: 600, epochs_done: 600, ..record("template_cnn", "template-600", 1, 0.8) };
        assert_eq!(why_not(&run), [ORDER_ONLY]);
    }

    #[test]
    fn the_delta_is_measured_from_the_nearer_end() {
        let figure = published("cifar_vgg16_bn", "modern-200")[0];
        assert_eq!(figure.delta(0.93), 0.0);
        assert!((figure.delta(0.95) - 0.008).abs() < 1e-12);
        assert!((figure.delta(0.92) + 0.006).abs() < 1e-12);
    }

    #[test]
    fn a_difference_is_stated_only_between_like_and_like() {
        let difference = |run: Run| super::difference(&sections(&[run])[0].rows[0]).text;
        assert_eq!(difference(run("cifar_alexnet", "review-20", 1, 0.675)), "+1.00");
        assert_eq!(difference(run("cifar_alexnet", "review-20", 1, 0.645)), "−2.00");
        assert_eq!(
            difference(synthetic(run("cifar_alexnet", "review-20", 1, 0.675))),
            "not comparable: synthetic data"
        );
        assert_eq!(difference(run("cifar_alexnet", "fast", 1, 0.675)), "not comparable: other recipe");
        assert_eq!(difference(run("mlp", "fast", 1, 0.5)), "–");
        let mut within = run("cifar_vgg16_bn", "modern-200", 1, 0.93);
        assert_eq!(difference(within.clone()), "not comparable: 20 of 200 epochs");
        (within.record.epochs, within.record.epochs_done) = (200, 200);
        assert_eq!(difference(within), "within");
    }

    #[test]
    fn published_figures_name_what_they_are_of() {
        let beside = |run: Run| figures(&sections(&[run])[0].rows[0]).text;
        assert_eq!(beside(run("cifar_alexnet", "review-20", 1, 0.6)), "66.5 %");
        assert_eq!(beside(run("cifar_resnet20", "fast", 1, 0.9)), "91.25 % (resnet-paper), 92.6 % (modern-200)");
        let mut short = run("mobilenet_v2", "review-20", 1, 0.4);
        short.record.epochs = 5;
        assert_eq!(beside(short), "46.9 % (20 epochs), 60.4 % (75 epochs)");
        assert_eq!(beside(run("mlp", "fast", 1, 0.5)), "–");
    }
}

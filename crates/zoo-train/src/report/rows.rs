//! Rows of a report: which runs belong together, and what they come to on average.

use super::Run;
use crate::format::{count, shortened, thousands};
use crate::record::{CIFAR10, DataRecord, RunOverrides, RunRecord, Status};
use zoo_core::Precision;

/// Characters of a name that are shown.
const NAME: usize = 48;
/// Characters of a message, or of whatever else a cell holds.
pub(super) const MESSAGE: usize = 300;

/// Mean and sample standard deviation; one value alone has no deviation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stat {
    /// The mean.
    pub mean: f64,
    /// The sample standard deviation, of at least two values.
    pub sd: Option<f64>,
}

impl Stat {
    /// Of the given values; `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().collect();
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        (!values.is_empty()).then(|| Self { mean, sd: (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt()) })
    }
}

/// Everything on one data set: results on different data are never set side by side.
pub struct Section<'a> {
    /// The data set.
    pub data: &'a DataRecord,
    /// Best last-epoch accuracy first; rows without one at the end.
    pub rows: Vec<Row<'a>>,
}

/// The runs that differ by nothing but their seed.
pub struct Row<'a> {
    /// The model's name and whatever else tells it from the section's other rows of that model.
    pub label: String,
    /// One a seed.
    pub runs: Vec<&'a Run>,
}

/// Whether results on `a` and on `b` may share a table. CIFAR-10 and its named copies are the same wherever they lie; of other
/// images it is their place that tells them apart.
fn is_same(a: &DataRecord, b: &DataRecord) -> bool {
    let is_known = !a.synthetic && a.name.starts_with(CIFAR10);
    let source = if is_known { &b.source } else { &a.source };
    *b == DataRecord { source: source.clone(), ..a.clone() }
}

/// Sorts runs into sections and rows. A later run of the same kind and seed takes an earlier one's place: it was
/// resumed or repeated.
pub fn sections(runs: &[Run]) -> Vec<Section<'_>> {
    let mut sections: Vec<Section> = Vec::new();
    for run in runs {
        let data = &run.record.data;
        let section = match sections.iter().position(|section| is_same(section.data, data)) {
            Some(index) => &mut sections[index],
            None => sections.push_mut(Section { data, rows: Vec::new() }),
        };
        let row = match section.rows.iter().position(|row| kind(row.record()) == kind(&run.record)) {
            Some(index) => &mut section.rows[index],
            None => section.rows.push_mut(Row { label: String::new(), runs: Vec::new() }),
        };
        match row.runs.iter().position(|earlier| earlier.record.seed == run.record.seed) {
            Some(index) => row.runs[index] = run,
            None => row.runs.push(run),
        }
    }
    for section in &mut sections {
        let rank = |row: &Row| row.last().map_or(f64::NEG_INFINITY, |last| last.mean);
        section.rows.sort_by(|a, b| rank(b).total_cmp(&rank(a)));
        let labels: Vec<String> = section.rows.iter().map(|row| label(row, &section.rows)).collect();
        section.rows.iter_mut().zip(labels).for_each(|(row, label)| row.label = label);
    }
    sections
}

/// What the runs of one row share.
fn kind(record: &RunRecord) -> (&str, &str, &RunOverrides, Precision, usize, usize, &str) {
    let RunRecord { model, recipe, overrides, precision, epochs, batch, device, .. } = record;
    (model, recipe, overrides, *precision, *epochs, *batch, device)
}

/// The model's name, whatever differs among the rows of that model, and always the overrides and a precision that is
/// not f32: a network without its BatchNorm must not pass for the network itself, even where that one is not in the
/// report.
fn label(row: &Row, rows: &[Row]) -> String {
    const OVERRIDES: usize = 2;
    const PRECISION: usize = 3;
    let details = |row: &Row| {
        let record = row.record();
        let (epochs, batch) = (format!("{} epochs", record.epochs), format!("batch {}", record.batch));
        let (overrides, precision) = (record.overrides.settings().join(" "), record.precision.to_string());
        [record.recipe.clone(), epochs, overrides, precision, batch, record.device.clone()]
    };
    let is_unusual = row.record().precision.unusual().is_some();
    let siblings: Vec<_> =
        rows.iter().filter(|other| other.record().model == row.record().model).map(details).collect();
    let mut label = shortened(&row.record().model, NAME);
    for (index, detail) in details(row).into_iter().enumerate() {
        let always = index == OVERRIDES || index == PRECISION && is_unusual;
        let tells = always || siblings.iter().any(|other| other[index] != detail);
        if tells && !detail.is_empty() {
            label = format!("{label} · {}", shortened(&detail, 2 * NAME));
        }
    }
    label
}

impl Section<'_> {
    /// What the section's results are on, for headings and the titles of charts.
    pub fn name(&self) -> String {
        let DataRecord { name, synthetic, train_images, .. } = self.data;
        match *train_images {
            _ if *synthetic => "synthetic data".into(),
            // The recipes that hold images out train on 45,000; fewer are only a part of the data.
            part @ ..45_000 if name == CIFAR10 => format!("{name}, {} images", thousands(part as u64)),
            _ => name.clone(),
        }
    }

    /// What the images are called that its epochs are measured on, as the first word of a title.
    pub fn measured_on(&self) -> &'static str {
        let runs = || self.rows.iter().flat_map(|row| &row.runs);
        let by_validation = |run: &&Run| run.record.kept.as_ref().is_some_and(|kept| kept.measured_on == "validation");
        match (runs().any(by_validation), runs().all(by_validation)) {
            (false, _) => "Test",
            (true, true) => "Validation",
            (true, false) => "Test or validation",
        }
    }

    /// The heading: the data and how much of it.
    pub fn heading(&self) -> String {
        let DataRecord { name, synthetic, train_images, test_images, .. } = self.data;
        let name = if *synthetic { "Synthetic data, not CIFAR-10" } else { name };
        let (train, test) = (thousands(*train_images as u64), thousands(*test_images as u64));
        format!("{name}: {train} images to train on, {test} to test on")
    }
}

impl<'a> Row<'a> {
    /// The first run's record: what it shares with the others may be read off it.
    pub fn record(&self) -> &'a RunRecord {
        &self.runs[0].record
    }

    /// The runs that the figures are made of: the finished ones, else the interrupted one that went furthest.
    pub fn counted(&self) -> Vec<&'a Run> {
        let with = |status: Status| self.runs.iter().copied().filter(move |run| run.record.status == status);
        let finished: Vec<_> = with(Status::Finished).collect();
        if finished.is_empty() {
            with(Status::Interrupted)
                .chain(with(Status::Running))
                .max_by_key(|run| run.record.epochs_done)
                .into_iter()
                .collect()
        } else {
            finished
        }
    }

    /// A value of the counted records: mean and deviation.
    pub fn stat(&self, value: impl Fn(&RunRecord) -> Option<f64>) -> Option<Stat> {
        Stat::of(self.counted().iter().filter_map(|run| value(&run.record)))
    }

    /// Test accuracy after the last epoch.
    pub fn last(&self) -> Option<Stat> {
        self.stat(|record| record.test_acc_last)
    }

    /// Wall-clock seconds of a run.
    pub fn seconds(&self) -> Option<Stat> {
        self.stat(|record| Some(record.seconds))
    }

    /// Whether every run of the row went to its end.
    pub fn finished(&self) -> bool {
        self.runs.iter().all(|run| run.record.status == Status::Finished)
    }

    /// Whether a run that the figures are made of was cut off.
    pub fn is_cut_off(&self) -> bool {
        self.counted().iter().any(|run| ended_early(run))
    }

    /// Whether any run of the row ended before its end; one that still trains has not.
    pub fn any_ended_early(&self) -> bool {
        self.runs.iter().any(|run| ended_early(run))
    }
}

fn ended_early(run: &Run) -> bool {
    !matches!(run.record.status, Status::Finished | Status::Running)
}

/// How a run ended, if not at its end.
pub(super) fn ending(record: &RunRecord) -> Option<String> {
    match &record.status {
        Status::Finished => None,
        Status::Running => Some(format!("training: {} of {} done", record.epochs_done, count(record.epochs, "epoch"))),
        Status::Interrupted => {
            Some(format!("interrupted after {} of {}", record.epochs_done, count(record.epochs, "epoch")))
        }
        Status::Failed { message } => {
            let message = shortened(message, MESSAGE);
            Some(format!("failed after {} of {}: {message}", record.epochs_done, count(record.epochs, "epoch")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Overrides;
    use crate::report::columns::tests::cell;
    use crate::report::tests::{run, synthetic};

    /// The same images are the same wherever they lie; of others only the place tells.
    #[test]
    fn results_on_the_same_images_share_a_section() {
        let on = |name: &str, source: &str, seed: u64| {
            let mut run = run("mlp", "fast", seed, 0.5);
            (run.record.data.name, run.record.data.source) = (name.into(), source.into());
            run
        };
        let count = |runs: &[Run]| sections(runs).len();
        assert_eq!(count(&[on("CIFAR-10, 40x40", "here", 1), on("CIFAR-10, 40x40", "there", 2)]), 1);
        assert_eq!(count(&[on("CIFAR-10, 40x40", "here", 1), on("CIFAR-10", "here", 2)]), 2);
        assert_eq!(count(&[on("photos", "here", 1), on("photos", "there", 2)]), 2);
    }

    #[test]
    fn mean_and_sample_deviation() {
        assert_eq!(Stat::of([]), None);
        assert_eq!(Stat::of([0.5]), Some(Stat { mean: 0.5, sd: None }));
        let stat = Stat::of([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
        assert_eq!(stat.mean, 5.0);
        assert!((stat.sd.unwrap() - (32.0f64 / 7.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn seeds_become_one_row_and_data_sets_stay_apart() {
        let runs = [
            run("mlp", "fast", 1, 0.50),
            run("cifar_resnet20", "fast", 1, 0.90),
            run("cifar_resnet20", "fast", 2, 0.92),
            synthetic(run("mlp", "fast", 1, 0.99)),
            run("cifar_resnet20", "modern-200", 1, 0.80),
        ];
        let sections = sections(&runs);
        assert_eq!(sections.len(), 2);
        let labels: Vec<_> = sections[0].rows.iter().map(|row| row.label.as_str()).collect();
        assert_eq!(labels, ["cifar_resnet20 · fast", "cifar_resnet20 · modern-200", "mlp"]);
        let row = &sections[0].rows[0];
        assert_eq!(cell(row, "Seeds"), "1, 2");
        assert_eq!(cell(row, "Accuracy, last epoch"), "91.00 ± 1.41 %");
        assert_eq!(cell(row, "Accuracy, best epoch"), "92.00 ± 1.41 %");
        assert_eq!(cell(row, "Status"), "finished");
        assert_eq!(sections[1].rows[0].label, "mlp");
        assert_eq!(cell(&sections[1].rows[0], "Accuracy, last epoch"), "99.0 %");
    }

    /// Neither in one mean nor under one name, and a lone bf16 run does not pass for f32.
    #[test]
    fn precisions_stay_apart() {
        let mixed = |model: &str, seed: u64, acc: f64| {
            let mut run = run(model, "fast", seed, acc);
            run.record.precision = Precision::Bf16;
            run
        };
        let runs = [
            run("mlp", "fast", 1, 0.50),
            mixed("mlp", 1, 0.60),
            mixed("mlp", 2, 0.70),
            run("mlp", "fast", 2, 0.52),
            mixed("vgg", 1, 0.4),
            run("lenet", "fast", 1, 0.3),
        ];
        let sections = sections(&runs);
        let told = |row: &Row| (row.label.clone(), cell(row, "Recipe"), cell(row, "Accuracy, last epoch"));
        let rows: Vec<_> = sections[0].rows.iter().map(told).collect();
        let expected = [
            ("mlp · bf16", "fast, 20 epochs, bf16", "65.00 ± 7.07 %"),
            ("mlp · f32", "fast, 20 epochs", "51.00 ± 1.41 %"),
            ("vgg · bf16", "fast, 20 epochs, bf16", "40.00 %"),
            ("lenet", "fast, 20 epochs", "30.00 %"),
        ];
        assert_eq!(rows, expected.map(|(label, recipe, acc)| (label.into(), recipe.into(), acc.into())));
        let conditions = crate::report::conditions::conditions(&sections);
        assert_eq!(conditions.own[0].title, "mlp · fast · bf16 · seed 1");
        let precision = ("Precision", "bf16".to_owned());
        assert!(conditions.own[0].conditions.contains(&precision), "{:?}", conditions.own[0].conditions);
    }

    #[test]
    fn a_row_of_an_ablation_is_told_apart() {
        let with = |model: &str, overrides: Overrides| {
            let mut run = run(model, "fast", 1, 0.5);
            run.record.overrides = overrides.into();
            run
        };
        let runs = [
            with("mlp", Overrides::NONE),
            with("mlp", Overrides { bn_eps: Some(0.001), ..Overrides::NONE }),
            with("vgg", Overrides { lr: Some(0.1), batch_norm: Some(false), ..Overrides::NONE }),
        ];
        let sections = sections(&runs);
        let labels: Vec<_> = sections[0].rows.iter().map(|row| row.label.as_str()).collect();
        assert_eq!(labels, ["mlp", "mlp · bn_eps=0.001", "vgg · lr=0.1 batch_norm=off"]);
        let titles: Vec<String> =
            crate::report::conditions::conditions(&sections).own.into_iter().map(|run| run.title).collect();
        assert_eq!(titles[2], "vgg · fast · lr=0.1 · batch_norm=off · seed 1");
    }

    #[test]
    fn a_resumed_run_replaces_its_interrupted_record() {
        let mut cut = run("mlp", "fast", 1, 0.3);
        (cut.record.status, cut.record.epochs_done) = (Status::Interrupted, 7);
        let runs = [cut.clone(), run("mlp", "fast", 1, 0.5)];
        let whole = sections(&runs);
        assert_eq!(whole[0].rows[0].runs, [&runs[1]]);

        let alone = [cut];
        let row = &sections(&alone)[0].rows[0];
        assert_eq!(cell(row, "Status"), "interrupted after 7 of 20 epochs");
        assert_eq!(cell(row, "Accuracy, last epoch"), "30.00 %");
    }
}

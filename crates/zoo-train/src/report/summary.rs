//! From runs to rows: which runs belong together, what they come to on average, and the columns that every form of
//! the report shows.

use std::collections::BTreeMap;

use super::Run;
use super::format::{duration, giga, shortened, thousands};
use crate::published;
use crate::recipe::Length;
use crate::record::{CIFAR10, DataRecord, EpochMetrics, RunRecord, Status};

/// Mean and sample standard deviation; one value alone has no deviation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Stat {
    pub(super) mean: f64,
    pub(super) sd: Option<f64>,
}

impl Stat {
    /// Of the given values; `None` if there are none.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().collect();
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        (!values.is_empty()).then(|| Self { mean, sd: (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt()) })
    }
}

/// Everything on one data set: results on different data are never set side by side.
pub(super) struct Section<'a> {
    pub(super) data: &'a DataRecord,
    /// Best last-epoch accuracy first; rows without one at the end.
    pub(super) rows: Vec<Row<'a>>,
}

/// The runs that differ by nothing but their seed.
pub(super) struct Row<'a> {
    /// The model's name and whatever else tells it from the section's other rows of that model.
    pub(super) label: String,
    pub(super) runs: Vec<&'a Run>,
}

/// Sorts runs into sections and rows. A later run of the same kind and seed takes an earlier one's place: it was
/// resumed or repeated.
pub(super) fn sections(runs: &[Run]) -> Vec<Section<'_>> {
    let mut sections: Vec<Section> = Vec::new();
    for run in runs {
        let data = &run.record.data;
        let section = match sections.iter().position(|section| section.data == data) {
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
fn kind(record: &RunRecord) -> (&str, &str, &[String], usize, usize, &str) {
    (&record.model, &record.recipe, &record.overrides, record.epochs, record.batch, &record.device)
}

/// The model's name, whatever differs among the rows of that model, and always the overrides: a network without its
/// BatchNorm must not pass for the network itself, even where that one is not in the report.
fn label(row: &Row, rows: &[Row]) -> String {
    const OVERRIDES: usize = 2;
    let details = |row: &Row| {
        let record = row.record();
        let (epochs, batch) = (format!("{} epochs", record.epochs), format!("batch {}", record.batch));
        [record.recipe.clone(), epochs, record.overrides.join(" "), batch, record.device.clone()]
    };
    let siblings: Vec<_> =
        rows.iter().filter(|other| other.record().model == row.record().model).map(details).collect();
    let mut label = shortened(&row.record().model, NAME);
    for (index, detail) in details(row).into_iter().enumerate() {
        let tells = index == OVERRIDES || siblings.iter().any(|other| other[index] != detail);
        if tells && !detail.is_empty() {
            label = format!("{label} · {}", shortened(&detail, 2 * NAME));
        }
    }
    label
}

/// Characters of a name that are shown.
pub(super) const NAME: usize = 48;
/// Characters of a message, or of whatever else a cell holds.
const MESSAGE: usize = 300;

impl Section<'_> {
    /// What the section's results are on, for headings and the titles of charts.
    pub(super) fn name(&self) -> String {
        let DataRecord { name, synthetic, train_images, .. } = self.data;
        match *train_images {
            _ if *synthetic => "synthetic data".into(),
            // The recipes that hold images out train on 45,000; fewer are only a part of the data.
            part @ ..45_000 if name == CIFAR10 => format!("{name}, {} images", thousands(part as u64)),
            _ => name.clone(),
        }
    }

    /// The heading: the data and how much of it.
    pub(super) fn heading(&self) -> String {
        let DataRecord { name, synthetic, train_images, test_images, .. } = self.data;
        let name = if *synthetic { "Synthetic data, not CIFAR-10" } else { name };
        let (train, test) = (thousands(*train_images as u64), thousands(*test_images as u64));
        format!("{name}: {train} images to train on, {test} to test on")
    }

    /// Where the published figures come from that stand in the section's table: recipe and source.
    pub(super) fn sources(&self) -> BTreeMap<&'static str, &'static str> {
        let figures = self.rows.iter().flat_map(|row| published::beside(row.record()));
        figures.map(|figure| (figure.recipe, figure.note)).collect()
    }
}

/// The line above everything that holds made-up images.
pub(super) const SYNTHETIC_BANNER: &str = "These images were made up by a program. The results show that the path from \
    data to report works; they say nothing about accuracy on CIFAR-10 and are not comparable with published figures.";

/// How to read the report.
pub(super) const PROTOCOL: &str = "Accuracy is the share of test images classified right after the last epoch, not the \
    best one; the best epoch's stands beside it. Several seeds: mean ± sample standard deviation. Published figures are \
    set against ours only when recipe, length and data agree; a difference is in percentage points from the nearer end \
    of the published range.";

impl<'a> Row<'a> {
    /// The first run's record: what it shares with the others may be read off it.
    pub(super) fn record(&self) -> &'a RunRecord {
        &self.runs[0].record
    }

    /// The runs that the figures are made of: the finished ones, else the interrupted one that went furthest.
    pub(super) fn counted(&self) -> Vec<&'a Run> {
        let with = |status: Status| self.runs.iter().copied().filter(move |run| run.record.status == status);
        let finished: Vec<_> = with(Status::Finished).collect();
        if finished.is_empty() {
            with(Status::Interrupted).max_by_key(|run| run.record.epochs_done).into_iter().collect()
        } else {
            finished
        }
    }

    pub(super) fn stat(&self, value: impl Fn(&RunRecord) -> Option<f64>) -> Option<Stat> {
        Stat::of(self.counted().iter().filter_map(|run| value(&run.record)))
    }

    /// Test accuracy after the last epoch.
    pub(super) fn last(&self) -> Option<Stat> {
        self.stat(|record| record.test_acc_last)
    }

    /// Wall-clock seconds of a run.
    pub(super) fn seconds(&self) -> Option<Stat> {
        self.stat(|record| Some(record.seconds))
    }

    /// An accuracy in percent, with as many decimals as the number of test images carries.
    pub(super) fn accuracy(&self, accuracy: f64) -> String {
        format!("{:.*} %", self.decimals(), accuracy * 100.0)
    }

    fn decimals(&self) -> usize {
        if self.record().data.test_images >= 10_000 { 2 } else { 1 }
    }

    pub(super) fn mean_and_sd(&self, stat: Option<Stat>) -> Cell {
        let decimals = self.decimals();
        let text = stat.map(|Stat { mean, sd }| match sd {
            Some(sd) => format!("{:.decimals$} ± {:.decimals$} %", mean * 100.0, sd * 100.0),
            None => self.accuracy(mean),
        });
        Cell::new(text, stat.map(|stat| stat.mean))
    }

    pub(super) fn recipe(&self) -> Cell {
        let record = self.record();
        let mut text = format!("{}, {}", record.recipe, count(record.epochs, "epoch"));
        record.overrides.iter().for_each(|setting| text = format!("{text}, {setting}"));
        Cell::new(Some(text), None)
    }

    fn seeds(&self) -> Cell {
        let seeds: Vec<String> = self.runs.iter().map(|run| run.record.seed.to_string()).collect();
        Cell::new(Some(seeds.join(", ")), Some(seeds.len() as f64))
    }

    pub(super) fn published(&self) -> Cell {
        let record = self.record();
        let figures = published::beside(record);
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
    pub(super) fn difference(&self) -> Cell {
        let run = self.counted().first().map_or(self.record(), |run| &run.record);
        let Some(figure) = published::beside(run).first().copied() else { return Cell::new(None, None) };
        let reasons = figure.why_not(run);
        let (Some(last), true) = (self.last(), reasons.is_empty()) else {
            return Cell::new(Some(format!("not comparable: {}", reasons.join(", "))), None);
        };
        let points = figure.delta(last.mean) * 100.0;
        let text = match format!("{points:+.*}", self.decimals()) {
            _ if points == 0.0 && figure.low < figure.high => "within".to_owned(),
            text => text.replace('-', "−"),
        };
        Cell::new(Some(text), Some(points))
    }

    pub(super) fn images_per_s(&self) -> Cell {
        let mean = self.stat(|record| record.images_per_s).map(|stat| stat.mean);
        Cell::new(
            mean.map(|rate| if rate < 100.0 { format!("{rate:.1}") } else { thousands(rate.round() as u64) }),
            mean,
        )
    }

    pub(super) fn time(&self) -> Cell {
        let mean = self.seconds().map(|stat| stat.mean);
        Cell::new(mean.map(duration), mean)
    }

    fn peak_mb(&self) -> Cell {
        let peak = self.counted().iter().filter_map(|run| run.record.peak_rss_mb).max_by(f64::total_cmp);
        Cell::new(peak.map(|mb| thousands(mb.round() as u64)), peak)
    }

    pub(super) fn status(&self) -> Cell {
        let mut parts = Vec::new();
        let finished = self.runs.iter().filter(|run| run.record.status == Status::Finished).count();
        if finished == self.runs.len() {
            parts.push("finished".to_owned());
        } else if finished > 0 {
            parts.push(format!("{finished} finished"));
        }
        for run in &self.runs {
            let ended = ending(&run.record);
            let seed = if self.runs.len() > 1 { format!("seed {} ", run.record.seed) } else { String::new() };
            parts.extend(ended.map(|ended| format!("{seed}{ended}")));
        }
        Cell::new(Some(parts.join("; ")), Some((self.runs.len() - finished) as f64))
    }

    /// Whether every run of the row went to its end.
    pub(super) fn finished(&self) -> bool {
        self.runs.iter().all(|run| run.record.status == Status::Finished)
    }
}

/// How a run ended, if not at its end.
pub(super) fn ending(record: &RunRecord) -> Option<String> {
    match &record.status {
        Status::Finished => None,
        Status::Interrupted => {
            Some(format!("interrupted after {} of {}", record.epochs_done, count(record.epochs, "epoch")))
        }
        Status::Failed { message } => {
            let message = shortened(message, MESSAGE);
            Some(format!("failed after {} of {}: {message}", record.epochs_done, count(record.epochs, "epoch")))
        }
    }
}

/// A number and its noun: `1 run`, `2 runs`.
pub(super) fn count(number: usize, noun: &str) -> String {
    format!("{} {noun}{}", thousands(number as u64), if number == 1 { "" } else { "s" })
}

/// One cell of the table.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cell {
    /// What it says; a dash where nothing is known.
    pub(super) text: String,
    /// What it sorts by, where that is a number.
    pub(super) value: Option<f64>,
}

impl Cell {
    fn new(text: Option<String>, value: Option<f64>) -> Self {
        Self { text: text.map_or_else(|| "–".into(), |text| shortened(&text, 2 * MESSAGE)), value }
    }
}

/// One column of the table.
pub(super) struct Column {
    pub(super) title: &'static str,
    pub(super) kind: Kind,
    pub(super) cell: fn(&Row) -> Cell,
}

/// What a column holds.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// Words: they stand to the left and sort from A on.
    Words,
    /// Numbers: they stand to the right and sort from the largest down.
    Number,
    /// Numbers, or words in their place.
    Remark,
}

/// The table's columns, the first of which names the row.
pub(super) const COLUMNS: &[Column] = &[
    Column { title: "Model", kind: Kind::Words, cell: |row| Cell::new(Some(row.record().model.clone()), None) },
    Column { title: "Recipe", kind: Kind::Words, cell: |row| row.recipe() },
    Column { title: "Seeds", kind: Kind::Words, cell: |row| row.seeds() },
    Column {
        title: "Parameters",
        kind: Kind::Number,
        cell: |row| {
            let parameters = row.record().parameters;
            Cell::new(Some(thousands(parameters)), Some(parameters as f64))
        },
    },
    Column {
        title: "GMACs",
        kind: Kind::Number,
        cell: |row| {
            let macs = row.record().macs.map(|macs| macs as f64);
            Cell::new(macs.map(giga), macs)
        },
    },
    Column { title: "Accuracy, last epoch", kind: Kind::Number, cell: |row| row.mean_and_sd(row.last()) },
    Column {
        title: "Accuracy, best epoch",
        kind: Kind::Number,
        cell: |row| row.mean_and_sd(row.stat(|record| record.test_acc_best)),
    },
    Column { title: "Published", kind: Kind::Remark, cell: |row| row.published() },
    Column { title: "Difference", kind: Kind::Remark, cell: |row| row.difference() },
    Column { title: "Images/s", kind: Kind::Number, cell: |row| row.images_per_s() },
    Column { title: "Time per run", kind: Kind::Number, cell: |row| row.time() },
    Column { title: "Peak MB", kind: Kind::Number, cell: |row| row.peak_mb() },
    Column { title: "Status", kind: Kind::Words, cell: |row| row.status() },
];

/// Under which conditions the runs ran: what all share, said once, and what is each one's own.
pub(super) struct Conditions<'a> {
    pub(super) shared: Vec<(&'static str, String)>,
    pub(super) own: Vec<RunConditions<'a>>,
}

/// One run's own conditions.
pub(super) struct RunConditions<'a> {
    pub(super) title: String,
    /// The conditions that not all runs share.
    pub(super) conditions: Vec<(&'static str, String)>,
    /// How it went.
    pub(super) course: Vec<(&'static str, String)>,
    /// The command that repeats the run.
    pub(super) command: &'a str,
}

type Fact = (&'static str, fn(&RunRecord) -> String);

/// The conditions that runs of a suite tend to share.
const FACTS: &[Fact] = &[
    ("Data", |record| {
        let DataRecord { source, train_images, test_images, .. } = &record.data;
        let (train, test) = (thousands(*train_images as u64), thousands(*test_images as u64));
        format!("{source}; {train} images to train on, {test} to test on")
    }),
    ("Batch", |record| record.batch.to_string()),
    ("Device", |record| format!("{}, {}", record.device, count(record.threads, "thread"))),
    ("Platform", |record| record.platform.to_string()),
    ("Versions", |record| {
        let versions: Vec<String> = record.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        versions.join(", ")
    }),
    ("Commit", |record| record.commit.clone().unwrap_or_else(|| "not known".into())),
];

/// The conditions of all runs that the report shows.
pub(super) fn conditions<'a>(sections: &[Section<'a>]) -> Conditions<'a> {
    let rows = || sections.iter().flat_map(|section| &section.rows);
    let runs: Vec<&RunRecord> = rows().flat_map(|row| &row.runs).map(|run| &run.record).collect();
    let (shared, own): (Vec<&Fact>, Vec<&Fact>) =
        FACTS.iter().partition(|(_, fact)| runs.windows(2).all(|pair| fact(pair[0]) == fact(pair[1])));
    let told = |facts: &[&Fact], record: &RunRecord| facts.iter().map(|(name, fact)| (*name, fact(record))).collect();
    let own = rows().flat_map(|row| {
        row.runs.iter().map(|run| {
            let record = &run.record;
            let time = format!("{} for {}", duration(record.seconds), count(record.epochs_done, "epoch"));
            let mut course = vec![("Started", record.started.clone()), ("Time", time)];
            let wait = Stat::of(run.epochs.iter().map(|epoch| epoch.wait_share).filter(|share| share.is_finite()));
            course.extend(
                wait.map(|wait| ("Waited for data", format!("{:.1} % of the training time", wait.mean * 100.0))),
            );
            course.extend(memory(run).map(|memory| ("Resident memory", memory)));
            course.extend(ending(record).map(|ended| ("Ended", ended)));
            let overrides: String = record.overrides.iter().map(|setting| format!(" · {setting}")).collect();
            let title = format!("{} · {}{overrides}", record.model, record.recipe);
            let title = format!("{} · seed {}", shortened(&title, MESSAGE), record.seed);
            RunConditions { title, conditions: told(&own, record), course, command: &record.command }
        })
    });
    Conditions { own: own.collect(), shared: runs.first().map_or_else(Vec::new, |record| told(&shared, record)) }
}

/// How the memory in use went from the first to the last epoch: a leak would show here, a peak would not tell.
fn memory(run: &Run) -> Option<String> {
    let mb = |epoch: Option<&EpochMetrics>| Some(format!("{} MB", thousands(epoch?.rss_mb?.round() as u64)));
    let (first, last) = (mb(run.epochs.first())?, mb(run.epochs.last())?);
    let epochs = count(run.epochs.len(), "epoch");
    Some(format!("{first} after the first epoch, {last} after the last ({epochs})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{run, synthetic};

    fn cell(row: &Row, title: &str) -> String {
        let column = COLUMNS.iter().find(|column| column.title == title).unwrap();
        (column.cell)(row).text
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

    #[test]
    fn a_row_of_an_ablation_is_told_apart() {
        let with = |model: &str, settings: &[&str]| {
            let mut run = run(model, "fast", 1, 0.5);
            run.record.overrides = settings.iter().map(|&setting| setting.to_owned()).collect();
            run
        };
        let runs = [with("mlp", &[]), with("mlp", &["bn_eps=0.001"]), with("vgg", &["lr=0.1", "batch_norm=off"])];
        let sections = sections(&runs);
        let labels: Vec<_> = sections[0].rows.iter().map(|row| row.label.as_str()).collect();
        assert_eq!(labels, ["mlp", "mlp · bn_eps=0.001", "vgg · lr=0.1 batch_norm=off"]);
        let titles: Vec<String> = conditions(&sections).own.into_iter().map(|run| run.title).collect();
        assert_eq!(titles[2], "vgg · fast · lr=0.1 · batch_norm=off · seed 1");
    }

    #[test]
    fn the_memory_is_told_at_both_ends() {
        let mut runs = [run("mlp", "fast", 1, 0.5), run("mlp", "fast", 2, 0.5), run("mlp", "fast", 3, 0.5)];
        runs[1].epochs[19].rss_mb = None;
        runs[2].epochs.clear();
        let sections = sections(&runs);
        let told = conditions(&sections)
            .own
            .into_iter()
            .map(|run| run.course.into_iter().find(|(name, _)| *name == "Resident memory").map(|(_, memory)| memory));
        let first = "501 MB after the first epoch, 520 MB after the last (20 epochs)".to_owned();
        assert_eq!(told.collect::<Vec<_>>(), [Some(first), None, None]);
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

    #[test]
    fn a_failed_seed_is_shown_and_not_averaged() {
        let mut failed = run("mlp", "fast", 2, 0.1);
        (failed.record.status, failed.record.epochs_done) = (Status::Failed { message: "loss is NaN".into() }, 3);
        let runs = [run("mlp", "fast", 1, 0.5), failed.clone()];
        let row = &sections(&runs)[0].rows[0];
        assert_eq!(cell(row, "Accuracy, last epoch"), "50.00 %");
        assert_eq!(cell(row, "Status"), "1 finished; seed 2 failed after 3 of 20 epochs: loss is NaN");
        assert!(!row.finished());

        let alone = [failed];
        let row = &sections(&alone)[0].rows[0];
        assert_eq!(cell(row, "Accuracy, last epoch"), "–");
        assert_eq!(cell(row, "Images/s"), "–");
    }

    #[test]
    fn a_difference_is_stated_only_between_like_and_like() {
        let difference = |run: Run| cell(&sections(&[run])[0].rows[0], "Difference");
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
        let published = |run: Run| cell(&sections(&[run])[0].rows[0], "Published");
        assert_eq!(published(run("cifar_alexnet", "review-20", 1, 0.6)), "66.5 %");
        assert_eq!(published(run("cifar_resnet20", "fast", 1, 0.9)), "91.25 % (resnet-paper), 92.6 % (modern-200)");
        let mut short = run("mobilenet_v2", "review-20", 1, 0.4);
        short.record.epochs = 5;
        assert_eq!(published(short), "46.9 % (20 epochs), 60.4 % (75 epochs)");
        assert_eq!(published(run("mlp", "fast", 1, 0.5)), "–");
    }

    #[test]
    fn shared_conditions_are_said_once() {
        let mut other = run("mlp", "fast", 2, 0.5);
        other.record.threads = 1;
        let runs = [run("mlp", "fast", 1, 0.5), other];
        let conditions = conditions(&sections(&runs));
        assert!(conditions.shared.contains(&("Commit", "0123456789ab".to_owned())), "{:?}", conditions.shared);
        let device = |index: usize| {
            conditions.own[index].conditions.iter().find(|(name, _)| *name == "Device").unwrap().1.as_str()
        };
        assert_eq!((device(0), device(1)), ("cpu, 2 threads", "cpu, 1 thread"));
        assert_eq!(conditions.own[1].title, "mlp · fast · seed 2");
        assert_eq!(conditions.own[1].command, runs[1].record.command);
    }
}

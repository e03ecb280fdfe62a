//! Columns of a report's table, in every form of it, and what they say of a row.

use super::rows::{MESSAGE, Row, Section, Stat, ending};
use crate::format::{count, duration, giga, shortened, thousands};
use crate::record::Status;

/// One cell of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// What it says; a dash where nothing is known.
    pub text: String,
    /// What it sorts by, where that is a number.
    pub value: Option<f64>,
}

impl Cell {
    /// A cell that says `text` and sorts by `value`.
    pub fn new(text: Option<String>, value: Option<f64>) -> Self {
        Self { text: text.map_or_else(|| "–".into(), |text| shortened(&text, 2 * MESSAGE)), value }
    }
}

/// One column of the table.
pub struct Column {
    /// Its heading.
    pub title: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// What it says of a row.
    pub cell: fn(&Row) -> Cell,
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Words: they stand to the left and sort from A on.
    Words,
    /// Numbers: they stand to the right and sort from the largest down.
    Number,
    /// Numbers, or words in their place.
    Remark,
}

/// The table's columns, the first of which names the row. What a suite adds stands between the results and their costs.
pub(super) fn columns(added: &'static [Column]) -> impl Iterator<Item = &'static Column> + Clone {
    RESULTS.iter().chain(added).chain(COSTS)
}

/// The columns of what was run, and of its results.
const RESULTS: &[Column] = &[
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
];

/// The columns of what the results cost, the table's last.
const COSTS: &[Column] = &[
    Column { title: "Images/s", kind: Kind::Number, cell: |row| row.images_per_s() },
    Column { title: "Time per run", kind: Kind::Number, cell: |row| row.time() },
    Column { title: "Core hours per run", kind: Kind::Number, cell: |row| row.core_hours() },
    Column { title: "Peak MB", kind: Kind::Number, cell: |row| row.peak_mb() },
    Column { title: "Status", kind: Kind::Words, cell: |row| row.status() },
];

/// The columns of a section's table: of those that are added, such as say something of a row.
pub(super) fn shown(section: &Section, added: &'static [Column]) -> Vec<&'static Column> {
    let is_empty = |column: &Column| section.rows.iter().all(|row| (column.cell)(row) == Cell::new(None, None));
    let is_added = |column: &Column| added.iter().any(|added| added.title == column.title);
    columns(added).filter(|column| !(is_added(column) && is_empty(column))).collect()
}

impl Row<'_> {
    /// An accuracy in percent, with as many decimals as the number of test images carries.
    pub fn accuracy(&self, accuracy: f64) -> String {
        format!("{:.*} %", self.decimals(), accuracy * 100.0)
    }

    /// The decimals that an accuracy carries: two of 10,000 test images, one of fewer.
    pub fn decimals(&self) -> usize {
        if self.record().data.test_images >= 10_000 { 2 } else { 1 }
    }

    /// An accuracy of several runs: `91.00 ± 1.41 %`.
    pub fn mean_and_sd(&self, stat: Option<Stat>) -> Cell {
        let decimals = self.decimals();
        let text = stat.map(|Stat { mean, sd }| match sd {
            Some(sd) => format!("{:.decimals$} ± {:.decimals$} %", mean * 100.0, sd * 100.0),
            None => self.accuracy(mean),
        });
        Cell::new(text, stat.map(|stat| stat.mean))
    }

    /// The recipe, its epochs, the precision where that is not f32, and what was changed in it.
    pub fn recipe(&self) -> Cell {
        let record = self.record();
        let mut text = format!("{}, {}", record.recipe, count(record.epochs, "epoch"));
        record.precision.unusual().iter().for_each(|precision| text = format!("{text}, {precision}"));
        record.overrides.settings().iter().for_each(|setting| text = format!("{text}, {setting}"));
        Cell::new(Some(text), None)
    }

    fn seeds(&self) -> Cell {
        let seeds: Vec<String> = self.runs.iter().map(|run| run.record.seed.to_string()).collect();
        Cell::new(Some(seeds.join(", ")), Some(seeds.len() as f64))
    }

    /// Images a second in training.
    pub fn images_per_s(&self) -> Cell {
        let mean = self.stat(|record| record.images_per_s).map(|stat| stat.mean);
        Cell::new(
            mean.map(|rate| if rate < 100.0 { format!("{rate:.1}") } else { thousands(rate.round() as u64) }),
            mean,
        )
    }

    /// How long a run took.
    pub fn time(&self) -> Cell {
        let mean = self.seconds().map(|stat| stat.mean);
        Cell::new(mean.map(duration), mean)
    }

    /// How long a run kept so many cores, in hours: what it costs on any machine. A run without images a second shared its
    /// machine, and its time is no less than the cost.
    pub fn core_hours(&self) -> Cell {
        let runs = self.counted();
        let shared = runs.iter().any(|run| run.record.images_per_s.is_none());
        let hours = runs.iter().map(|run| run.record.seconds * run.record.threads as f64 / 3600.0);
        let mean = Stat::of(hours).map(|stat| stat.mean);
        let text = mean.map(|hours| {
            let decimals = if hours < 0.095 { 2 } else { 1 };
            format!("{}{hours:.decimals$}", if shared { "≤ " } else { "" })
        });
        Cell::new(text, mean)
    }

    fn peak_mb(&self) -> Cell {
        let peak = self.counted().iter().filter_map(|run| run.record.peak_rss_mb).max_by(f64::total_cmp);
        Cell::new(peak.map(|mb| thousands(mb.round() as u64)), peak)
    }

    /// How the runs ended.
    pub fn status(&self) -> Cell {
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
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::report::rows::sections;
    use crate::report::tests::run;

    /// What the row says in the column called `title`.
    pub fn cell(row: &Row, title: &str) -> String {
        let column = columns(&[]).find(|column| column.title == title).unwrap();
        (column.cell)(row).text
    }

    #[test]
    fn the_time_on_a_shared_machine_is_an_upper_bound() {
        let mut run = run("mlp", "fast", 1, 0.5);
        (run.record.seconds, run.record.threads, run.record.images_per_s) = (3600.0, 2, Some(100.0));
        let hours =
            |run: &crate::report::Run| cell(&sections(std::slice::from_ref(run))[0].rows[0], "Core hours per run");
        assert_eq!(hours(&run), "2.0");
        run.record.images_per_s = None;
        assert_eq!(hours(&run), "≤ 2.0");
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
    fn what_is_added_stands_before_the_costs() {
        const ADDED: &[Column] = &[Column { title: "Added", kind: Kind::Words, cell: |_| Cell::new(None, None) }];
        let titles = |added| columns(added).map(|column| column.title).collect::<Vec<_>>();
        let place = titles(ADDED).iter().position(|&title| title == "Added").unwrap();
        assert_eq!(titles(ADDED)[place - 1..place + 2], ["Accuracy, best epoch", "Added", "Images/s"]);
        assert_eq!(titles(ADDED).len(), titles(&[]).len() + 1);
    }
}

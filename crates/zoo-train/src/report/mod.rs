//! The report of some runs: `report.md` for a README and `report.html` for the eye, from the records that they left.
//!
//! The headline is always the test accuracy after the **last** epoch, with the best epoch beside it: the best epoch
//! is chosen by its test accuracy and so flatters. Results on different data never share a table or a chart, and
//! synthetic data is called so wherever it appears.
//!
//! A suite of runs may add columns, notes and charts of its own ([`Additions`]): the benchmark suite adds the figures
//! that others published, and its ablations.

pub mod chart;
mod columns;
mod conditions;
mod curves;
mod html;
mod markdown;
mod mistakes;
mod rows;
mod training;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use zoo_core::Precision;

use crate::error_analysis::{self, ErrorAnalysis};
use crate::errors;
use crate::record::{
    EpochMetrics, Lines, METRICS_FILE, RECORD_FILE, RESULTS_FILE, RunOverrides, RunRecord, read_jsonl, replace_file,
};

use crate::samples::SAMPLES_FILE;

use chart::Chart;
pub use columns::{Cell, Column, Kind};
pub use curves::{Value, curve, test_acc};
pub use html::html;
pub use markdown::{code, escape, markdown};
pub use rows::{Row, Section, Stat, sections};

/// The page of a report in its folder.
pub const REPORT_FILE: &str = "report.html";

/// The line above everything that holds made-up images.
const SYNTHETIC_BANNER: &str = "These images were made up by a program. The results show that the path from \
    data to report works; they say nothing about accuracy on CIFAR-10 and are not comparable with published figures.";

/// How to read the report.
const PROTOCOL: &str = "Accuracy is the share of test images classified right after the last epoch, not the \
    best one; the best epoch's stands beside it. Several seeds: mean ± sample standard deviation.";

/// What a suite adds to the report of its runs.
#[derive(Clone, Copy)]
pub struct Additions {
    /// Columns of the table, behind the accuracies.
    pub columns: &'static [Column],
    /// Lines below the table of a section.
    pub notes: fn(&Section) -> Vec<String>,
    /// Charts of a section behind its curves, if it has runs for any.
    pub charts: fn(&Section) -> Option<ChartGroup>,
    /// How to read all this; stands at the end of what is said of the report as a whole.
    pub protocol: &'static str,
}

impl Additions {
    /// Nothing is added.
    pub const NONE: Self = Self { columns: &[], notes: |_| Vec::new(), charts: |_| None, protocol: "" };

    /// How to read the report.
    fn whole_protocol(&self) -> String {
        [PROTOCOL, self.protocol].join(" ").trim_end().to_owned()
    }
}

/// Charts under a heading of their own.
#[derive(Debug, Clone)]
pub struct ChartGroup {
    /// The heading.
    pub heading: &'static str,
    /// What the charts have in common.
    pub note: &'static str,
    /// The charts.
    pub charts: Vec<Chart>,
}

/// A run as a report sees it: its record and its epochs.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The run's line of `results.jsonl`.
    pub record: RunRecord,
    /// The run's `metrics.jsonl`, one entry an epoch in order; may be empty.
    pub epochs: Vec<EpochMetrics>,
    /// What the trained network does on the test images, if that was looked at.
    pub analysis: Option<ErrorAnalysis>,
    /// Its training images as the network saw them: a PNG of [`samples::sheet`](crate::samples::sheet).
    pub samples: Option<Vec<u8>>,
}

/// What tells the run of a record from others.
fn identity(record: &RunRecord) -> (&str, &str, &str, &RunOverrides, Precision, u64) {
    (&record.folder, &record.model, &record.recipe, &record.overrides, record.precision, record.seed)
}

/// Reads the runs of the suite in the folder `out`: `results.jsonl`, and from each run's own folder its `metrics.jsonl`
/// and what [`error_analysis::write`] left there. Returns them with what the reader should be warned of: lines that a
/// crash cut off, epochs that are missing, an evaluation that is damaged.
pub fn load(out: &Path) -> Result<(Vec<Run>, Vec<String>)> {
    let mut records = read_jsonl::<RunRecord>(&out.join(RESULTS_FILE))?;
    records.values = records.values.into_iter().map(RunRecord::told_today).collect();
    let mut warnings: Vec<String> = records.warning.into_iter().collect();
    // A run that was cut off and resumed has a line for each time it ended: the last one counts, in the place of the
    // first.
    let mut last: Vec<&RunRecord> = Vec::new();
    for record in &records.values {
        match last.iter_mut().find(|earlier| identity(earlier) == identity(record)) {
            Some(earlier) => *earlier = record,
            None => last.push(record),
        }
    }
    // Of different runs that name the same folder, its files are those of the last.
    let owners: BTreeMap<&str, &RunRecord> =
        records.values.iter().map(|record| (record.folder.as_str(), record)).collect();
    let mut runs = Vec::new();
    for record in last {
        let is_owner = owners.get(record.folder.as_str()).is_some_and(|owner| identity(owner) == identity(record));
        let record = record.clone();
        if !is_owner {
            warnings.push(format!(
                "{} holds a later run: the report shows no curve of the {} with seed {} that was there before",
                record.folder, record.model, record.seed
            ));
            runs.push(Run { record, epochs: Vec::new(), analysis: None, samples: None });
            continue;
        }
        let folder = out.join(&record.folder);
        runs.push(with_files(&folder, record, &mut warnings));
    }
    Ok((runs, warnings))
}

/// Reads a run that stands by itself, as `zoo train` leaves it: `record.json` in its folder, and what [`load`] reads there.
/// Returns it with what the reader should be warned of.
///
/// # Errors
/// A folder without a record.
pub fn load_run(folder: &Path) -> Result<(Run, Vec<String>)> {
    let path = folder.join(RECORD_FILE);
    let text = std::fs::read(&path).with_context(|| format!("{}: no record of a run", path.display()))?;
    let record: RunRecord =
        serde_json::from_slice(&text).with_context(|| format!("{}: no record of a run", path.display()))?;
    let record = record.told_today();
    let mut warnings = Vec::new();
    let run = with_files(folder, record, &mut warnings);
    Ok((run, warnings))
}

/// A run of this record, with the epochs and the evaluation in its folder.
fn with_files(folder: &Path, record: RunRecord, warnings: &mut Vec<String>) -> Run {
    let path = folder.join(METRICS_FILE);
    let mut epochs = Vec::new();
    if path.exists() {
        let lines = read_jsonl::<EpochMetrics>(&path).unwrap_or_else(|error| {
            let warning = format!("{}; the report shows no curve of {}", errors::line(&error), record.folder);
            Lines { values: Vec::new(), warning: Some(warning) }
        });
        // An epoch that a resumed run went through again counts as it went the last time.
        let by_epoch: BTreeMap<usize, EpochMetrics> = lines.values.into_iter().map(|line| (line.epoch, line)).collect();
        epochs = by_epoch.into_values().collect();
        warnings.extend(lines.warning);
    } else if record.epochs_done > 0 {
        warnings.push(format!("{} is missing: the report shows no curve of {}", path.display(), record.folder));
    }
    let analysis = error_analysis::read(folder).unwrap_or_else(|error| {
        warnings.push(format!("{}; the report leaves it out", errors::line(&error)));
        None
    });
    let samples = std::fs::read(folder.join(SAMPLES_FILE)).ok().filter(|png| !png.is_empty());
    Run { record, epochs, analysis, samples }
}

/// Writes `report.html` about the run in `folder` as far as it is, for a browser that follows it: the page asks for itself
/// again now and then until the run's record says that it has ended.
///
/// # Errors
/// A file that cannot be read or written.
pub fn write_page(folder: &Path, record: RunRecord) -> Result<()> {
    // What a run that has only begun cannot have yet is no reason to warn.
    let run = with_files(folder, record, &mut Vec::new());
    replace_file(&folder.join(REPORT_FILE), html(&[run], &Additions::NONE).as_bytes())
}

/// Writes `report.md` and `report.html` into the folder `out`, with what a suite adds. Each is written aside and
/// renamed: whoever looks at one while it is renewed sees the old or the new one, never half of it.
pub fn write(out: &Path, runs: &[Run], additions: &Additions) -> Result<()> {
    replace_file(&out.join("report.md"), markdown(runs, additions).as_bytes())?;
    replace_file(&out.join(REPORT_FILE), html(runs, additions).as_bytes())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;
    use crate::record::tests::{epoch, record};
    use crate::record::{DataRecord, Status, append_jsonl};

    /// A run of 20 epochs that ends at the accuracy `acc`.
    pub(crate) fn run(model: &str, recipe: &str, seed: u64, acc: f64) -> Run {
        let epochs = (1..=20).map(|n| epoch(n, acc * (1.0 - 0.5 / f64::from(n as u32)) / 0.975)).collect();
        Run { record: record(model, recipe, seed, acc), epochs, analysis: None, samples: None }
    }

    /// The same run on synthetic images.
    pub(crate) fn synthetic(mut run: Run) -> Run {
        run.record.data = DataRecord::synthetic(0, 2_000, 500);
        run
    }

    #[test]
    fn a_suite_comes_back_from_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let mut failed = run("mlp", "fast", 2, 0.5);
        (failed.record.status, failed.record.epochs_done) = (Status::Failed { message: "no memory".into() }, 0);
        failed.epochs.clear();
        let runs = vec![run("mlp", "fast", 1, 0.5), failed];
        for run in &runs {
            append_jsonl(&dir.path().join(RESULTS_FILE), &run.record).unwrap();
            for epoch in &run.epochs {
                fs::create_dir_all(dir.path().join(&run.record.folder)).unwrap();
                append_jsonl(&dir.path().join(&run.record.folder).join(METRICS_FILE), epoch).unwrap();
            }
        }
        assert_eq!(load(dir.path()).unwrap(), (runs.clone(), vec![]));
        // A run that was killed after epoch 20 and resumed from epoch 19 says epoch 20 twice.
        append_jsonl(&dir.path().join("mlp-fast-1").join(METRICS_FILE), &runs[0].epochs[19]).unwrap();
        assert_eq!(load(dir.path()).unwrap(), (runs.clone(), vec![]));

        // What was looked at beside a curve comes along; where it is damaged, the rest of the report still stands.
        let file = dir.path().join(&runs[0].record.folder).join(error_analysis::EVALUATION_FILE);
        let seen = error_analysis::tests::analysis(&["cat", "dog"]);
        fs::write(&file, serde_json::to_vec(&seen).unwrap()).unwrap();
        let (loaded, warnings) = load(dir.path()).unwrap();
        assert_eq!((&loaded[0].analysis, warnings), (&Some(ErrorAnalysis { picture: None, ..seen }), vec![]));
        fs::write(&file, "{").unwrap();
        let (loaded, warnings) = load(dir.path()).unwrap();
        assert_eq!(loaded, runs);
        assert!(warnings.len() == 1 && warnings[0].contains("evaluation.json is damaged"), "{warnings:?}");

        // So it does beside a curve that is.
        let curve = dir.path().join(&runs[1].record.folder).join(METRICS_FILE);
        fs::create_dir_all(curve.parent().unwrap()).unwrap();
        fs::write(&curve, "garbage\n{}\n").unwrap();
        let (loaded, warnings) = load(dir.path()).unwrap();
        assert!(
            loaded.len() == 2 && warnings.iter().any(|text| text.contains("metrics.jsonl:1: malformed")),
            "{warnings:?}"
        );
        fs::remove_file(&curve).unwrap();

        write(dir.path(), &runs, &Additions::NONE).unwrap();
        write(dir.path(), &runs, &Additions::NONE).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("report.md")).unwrap(), markdown(&runs, &Additions::NONE));
        assert_eq!(fs::read_to_string(dir.path().join("report.html")).unwrap(), html(&runs, &Additions::NONE));
        let aside = fs::read_dir(dir.path())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().path().extension() == Some("tmp".as_ref()));
        assert_eq!(aside.count(), 0);

        fs::remove_dir_all(dir.path().join(&runs[0].record.folder)).unwrap();
        let (_, warnings) = load(dir.path()).unwrap();
        assert!(warnings.len() == 1 && warnings[0].contains("mlp-fast-1"), "{warnings:?}");
    }

    #[test]
    fn two_runs_of_one_folder_are_both_shown() {
        let dir = tempfile::tempdir().unwrap();
        let mut runs = [run("mlp", "fast", 1, 0.5), run("template_cnn", "fast", 1, 0.6)];
        for run in &mut runs {
            run.record.folder = "runs/same".into();
            append_jsonl(&dir.path().join(RESULTS_FILE), &run.record).unwrap();
        }
        fs::create_dir_all(dir.path().join("runs/same")).unwrap();
        runs[1]
            .epochs
            .iter()
            .for_each(|epoch| append_jsonl(&dir.path().join("runs/same/metrics.jsonl"), epoch).unwrap());
        let (loaded, warnings) = load(dir.path()).unwrap();
        assert_eq!((loaded[0].record.model.as_str(), loaded[0].epochs.len()), ("mlp", 0));
        assert_eq!(loaded[1], runs[1]);
        assert!(warnings.len() == 1 && warnings[0].contains("runs/same holds a later run"), "{warnings:?}");
    }

    /// One model in both precisions: both curves of the loss, each with its name; and records of before the field read
    /// as f32.
    #[test]
    fn both_precisions_have_their_curves() {
        let dir = tempfile::tempdir().unwrap();
        let mut runs = [run("mlp", "fast", 1, 0.5), run("mlp", "fast", 1, 0.6)];
        runs[1].record.precision = Precision::Bf16;
        runs[1].record.folder = "mlp-fast-bf16-1".into();
        let lines = runs.iter().map(|run| serde_json::to_value(&run.record).unwrap());
        let mut lines: Vec<serde_json::Value> = lines.collect();
        lines[0].as_object_mut().unwrap().remove("precision");
        for (line, run) in lines.iter().zip(&runs) {
            append_jsonl(&dir.path().join(RESULTS_FILE), line).unwrap();
            fs::create_dir_all(dir.path().join(&run.record.folder)).unwrap();
            let path = dir.path().join(&run.record.folder).join(METRICS_FILE);
            run.epochs.iter().for_each(|epoch| append_jsonl(&path, epoch).unwrap());
        }
        let (loaded, warnings) = load(dir.path()).unwrap();
        assert_eq!((&loaded[..], warnings), (&runs[..], vec![]));
        let page = html(&loaded, &Additions::NONE);
        let legend = page.split("<ul class=\"legend\">").nth(1).unwrap().split("</ul>").next().unwrap();
        assert!(legend.contains("mlp · bf16</li>") && legend.contains("mlp · f32</li>"), "{legend}");
        for caption in ["Training loss · CIFAR-10", "Test loss · CIFAR-10"] {
            let figure = page.split(&format!("<figcaption>{caption}</figcaption>")).nth(1).unwrap();
            let figure = figure.split("</figure>").next().unwrap();
            let titles = |label: &str| figure.matches(&format!("<title>{label} · epoch ")).count();
            // On the wide and on the narrow drawing.
            assert_eq!([titles("mlp · f32"), titles("mlp · bf16")], [40, 40], "{caption}");
        }
        let text = markdown(&loaded, &Additions::NONE);
        for part in ["| fast, 20 epochs, bf16 |", "| fast, 20 epochs |", "precision: bf16", "precision: f32"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let error = format!(
            "{:#}",
            write(Path::new("absent/folder"), &[run("mlp", "fast", 1, 0.5)], &Additions::NONE).unwrap_err()
        );
        assert!(error.contains("report.md"), "{error}");
    }
}

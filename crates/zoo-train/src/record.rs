//! What a run leaves behind: one [`RunRecord`] a run in `results.jsonl`, one [`EpochMetrics`] an epoch in
//! `metrics.jsonl`.
//!
//! A reported number carries its model, recipe, seed, epochs, data source, device, threads, versions, commit and
//! command, so that anyone can get it again. Both files hold one JSON object a line: they are appended to and synced,
//! so that a crash costs at most the line that was being written.

mod jsonl;
mod overrides;

pub use jsonl::{Lines, append_jsonl, read_jsonl, replace_file, write_jsonl};
pub use overrides::RunOverrides;

use crate::recipe::Recipe;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;
use std::{fmt, fs};
use zoo_core::{InitRule, Precision};
use zoo_image::Kept;

/// File of the suite's folder that holds one [`RunRecord`] a line.
pub const RESULTS_FILE: &str = "results.jsonl";
/// The file in a run's folder that holds its record, where it is no run of a suite.
pub const RECORD_FILE: &str = "record.json";
/// File of a run's folder that holds one [`EpochMetrics`] a line.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// The same as a table, where a run leaves one: see [`metrics_csv`].
pub const METRICS_TABLE: &str = "metrics.csv";
/// The [`DataRecord::name`] of the unaltered CIFAR-10: the only data that is ever set against published figures.
pub const CIFAR10: &str = "CIFAR-10";

/// One run: what was asked, what came out, what it cost and under which conditions. One line of `results.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The model's name in the registry.
    pub model: String,
    /// The recipe's name.
    pub recipe: String,
    /// Settings that differ from the named recipe; epochs, precision and images have fields of their own.
    #[serde(default, deserialize_with = "overrides::fields_or_list")]
    pub overrides: RunOverrides,
    /// What the network computed in; records from before there was a choice are of f32.
    #[serde(default)]
    pub precision: Precision,
    /// The recipe as it was followed, every setting of it; records from before the field was added have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hyperparameters: Option<Recipe>,
    /// The seed that fixes initialisation, shuffling, augmentation and dropout.
    pub seed: u64,
    /// Epochs that were asked for.
    pub epochs: usize,
    /// Epochs that were completed.
    pub epochs_done: usize,
    /// Optimizer steps that were completed.
    pub steps: u64,
    /// How the run ended.
    #[serde(flatten)]
    pub status: Status,
    /// Test accuracy after the last completed epoch, 0 to 1: the headline. Where an epoch was chosen by validation images, that
    /// of the weights that are kept, measured once.
    pub test_acc_last: Option<f64>,
    /// The best test accuracy of all epochs. Choosing an epoch by its test accuracy flatters: never report it alone. None where
    /// test images are measured once.
    pub test_acc_best: Option<f64>,
    /// The epoch (from 1) with the best accuracy.
    pub best_epoch: Option<usize>,
    /// The best accuracy on validation images beside the test images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_acc_best: Option<f64>,
    /// Which epoch's weights the run's file holds, and what they came to; records from before the field was added have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
    /// Test loss, measured as `test_acc_last`.
    pub test_loss_last: Option<f64>,
    /// Mean training loss of the last completed epoch.
    pub train_loss: Option<f64>,
    /// Trainable parameters.
    pub parameters: u64,
    /// Multiply-accumulates of one image's forward pass, where they are known.
    pub macs: Option<u64>,
    /// Images a step.
    pub batch: usize,
    /// Training throughput, evaluation not counted.
    pub images_per_s: Option<f64>,
    /// Wall-clock time of the whole run, evaluation included.
    pub seconds: f64,
    /// Peak resident memory in MB (10^6 bytes), where the platform tells it.
    pub peak_rss_mb: Option<f64>,
    /// What it was trained and tested on.
    pub data: DataRecord,
    /// The device, as the user names it: `cpu`, `cuda:0`, `metal`.
    pub device: String,
    /// Threads that the run was given.
    pub threads: usize,
    /// Versions of what the program was built of, see [`versions`].
    pub versions: BTreeMap<String, String>,
    /// The source tree's commit, see [`git_commit`].
    pub commit: Option<String>,
    /// The command that repeats this run.
    pub command: String,
    /// When the run began: RFC 3339, UTC, see [`now_utc`].
    pub started: String,
    /// The machine.
    pub platform: Platform,
    /// The run's own folder, relative to the folder of `results.jsonl`.
    pub folder: String,
}

impl RunRecord {
    /// Whose initial values the run started from. Records from before recipes stated any are of the network's own.
    pub fn init(&self) -> InitRule {
        self.hyperparameters.as_ref().map_or(InitRule::Model, |recipe| recipe.init)
    }

    /// The record as it is read today: where its recipe has come to state other initial values than the run had, those are
    /// among its overrides.
    #[must_use]
    pub fn told_today(mut self) -> Self {
        let had = self.init();
        let today = Recipe::named(&self.recipe).map_or(had, |recipe| recipe.init);
        if had != today {
            self.overrides.recipe.init.get_or_insert(had);
        }
        self
    }
}

/// How a run ended. In JSON a field `status`, and for a failed run a field `message`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum Status {
    /// All epochs that were asked for, or as many as the recipe had patience for.
    #[default]
    Finished,
    /// Still at it: what a page says of a run while it trains. No record says so.
    Running,
    /// Stopped by the user or by the time budget; what was done is kept.
    Interrupted,
    /// Ended by an error.
    Failed {
        /// What went wrong, in one line.
        message: String,
    },
}

/// The data of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataRecord {
    /// What the data is, as a report names it: [`CIFAR10`], `synthetic`, `CIFAR-10, JPEG q75 copy`, …
    pub name: String,
    /// Where it came from.
    pub source: String,
    /// Whether the images were made up by a program. Such a result says nothing about CIFAR-10 and is labelled
    /// wherever it appears.
    pub synthetic: bool,
    /// Images trained on.
    pub train_images: usize,
    /// Images tested on.
    pub test_images: usize,
}

impl DataRecord {
    /// CIFAR-10's own images, or a part of them.
    pub fn cifar10(source: impl Into<String>, train_images: usize, test_images: usize) -> Self {
        Self { name: CIFAR10.into(), source: source.into(), synthetic: false, train_images, test_images }
    }

    /// The embedded procedural data set.
    pub fn synthetic(seed: u64, train_images: usize, test_images: usize) -> Self {
        let source = format!("synthetic (procedural, seed {seed})");
        Self { name: "synthetic".into(), source, synthetic: true, train_images, test_images }
    }
}

/// One epoch of a run: one line of `metrics.jsonl`.
///
/// A value that is not finite is written as `null` and read as NaN, for a run that diverges must still leave readable
/// lines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochMetrics {
    /// The epoch, counted from 1.
    pub epoch: usize,
    /// Optimizer steps done at its end.
    pub step: u64,
    /// Learning rate of its last step.
    #[serde(deserialize_with = "null_is_nan")]
    pub lr: f64,
    /// Mean training loss over the epoch's images, as they came by.
    #[serde(deserialize_with = "null_is_nan")]
    pub train_loss: f64,
    /// Training accuracy over the epoch's images, as they came by, 0 to 1.
    #[serde(deserialize_with = "null_is_nan")]
    pub train_acc: f64,
    /// Mean loss at the epoch's end on the images that epochs are measured on: validation images where there are any, else
    /// test images.
    #[serde(deserialize_with = "null_is_nan")]
    pub test_loss: f64,
    /// Accuracy at the epoch's end on the same images, 0 to 1.
    #[serde(deserialize_with = "null_is_nan")]
    pub test_acc: f64,
    /// Wall-clock time of this epoch, evaluation included.
    pub seconds: f64,
    /// Training throughput of this epoch, evaluation not counted.
    #[serde(deserialize_with = "null_is_nan")]
    pub images_per_s: f64,
    /// Share of the training time that the step waited for data, 0 to 1.
    #[serde(deserialize_with = "null_is_nan")]
    pub wait_share: f64,
    /// Resident memory at its end in MB, see [`rss_mb`]: the same after the first and the last epoch unless something
    /// leaks.
    #[serde(default)]
    pub rss_mb: Option<f64>,
}

/// The epochs as a table with commas between columns, for spreadsheets; `measured_on` are `test` or `validation` images.
///
/// ```
/// assert!(zoo_train::record::metrics_csv(&[], "test").starts_with("epoch,step,lr,train_loss,train_acc,test_loss,test_acc,"));
/// ```
pub fn metrics_csv(epochs: &[EpochMetrics], measured_on: &str) -> String {
    let mut table = format!(
        "epoch,step,lr,train_loss,train_acc,{measured_on}_loss,{measured_on}_acc,seconds,images_per_s,wait_share\n"
    );
    for e in epochs {
        let values =
            [e.lr, e.train_loss, e.train_acc, e.test_loss, e.test_acc, e.seconds, e.images_per_s, e.wait_share];
        let values = values.map(|value| value.to_string()).join(",");
        table.push_str(&format!("{},{},{values}\n", e.epoch, e.step));
    }
    table
}

fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// The machine that a run ran on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system, as Rust names it.
    pub os: String,
    /// Processor architecture, as Rust names it.
    pub arch: String,
    /// The processor's model, where the system tells it.
    pub cpu: Option<String>,
}

impl Platform {
    /// This machine.
    pub fn current() -> Self {
        let cpu = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        Self { os: std::env::consts::OS.into(), arch: std::env::consts::ARCH.into(), cpu }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.os, self.arch)?;
        self.cpu.iter().try_for_each(|cpu| write!(f, ", {cpu}"))
    }
}

/// Versions of what this program was built of: the zoo, candle and rustc.
pub fn versions() -> BTreeMap<String, String> {
    [("zoo", env!("CARGO_PKG_VERSION")), ("candle", env!("ZOO_CANDLE_VERSION")), ("rustc", env!("ZOO_RUSTC_VERSION"))]
        .map(|(name, version)| (name.to_owned(), version.to_owned()))
        .into()
}

/// The commit that the tree at `dir` stands on, with `-dirty` behind it when tracked files differ; `None` outside a
/// repository, before its first commit, or without git.
pub fn git_commit(dir: &Path) -> Option<String> {
    // `--exclude=*` keeps tags out, so that the answer is always the bare hash.
    let describe = ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"];
    let output = Command::new("git").arg("-C").arg(dir).args(describe).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// The time now: RFC 3339, UTC, to the second.
pub fn now_utc() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// This process's peak resident memory in MB (10^6 bytes), where `/proc` tells it.
pub fn peak_rss_mb() -> Option<f64> {
    status_mb("VmHWM:")
}

/// This process's resident memory now in MB (10^6 bytes), where `/proc` tells it.
pub fn rss_mb() -> Option<f64> {
    status_mb("VmRSS:")
}

/// A size that the kernel tells about this process, in MB.
fn status_mb(field: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

/// Starts [`peak_rss_mb`] afresh from the memory in use now, so that a run in a long process is not charged with what
/// runs before it took: memory that the process keeps for later use is given back first. Tells whether the platform let
/// it.
pub fn reset_peak_rss() -> bool {
    zoo_core::memory::give_back();
    // 5 is the kernel's code for "reset the peak", see proc(5).
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A finished run with round numbers, for the tests of this crate to alter.
    pub(crate) fn record(model: &str, recipe: &str, seed: u64, acc: f64) -> RunRecord {
        RunRecord {
            model: model.into(),
            recipe: recipe.into(),
            overrides: RunOverrides::default(),
            precision: Precision::F32,
            hyperparameters: None,
            seed,
            epochs: 20,
            epochs_done: 20,
            steps: 7820,
            status: Status::Finished,
            test_acc_last: Some(acc),
            test_acc_best: Some(acc + 0.01),
            best_epoch: Some(18),
            val_acc_best: None,
            kept: None,
            test_loss_last: Some(0.75),
            train_loss: Some(0.5),
            parameters: 269_722,
            macs: Some(40_813_184),
            batch: 128,
            images_per_s: Some(1000.0),
            seconds: 1000.0,
            peak_rss_mb: Some(512.0),
            data: DataRecord::cifar10("CIFAR-10 binary files, data", 50_000, 10_000),
            device: "cpu".into(),
            threads: 2,
            versions: versions(),
            commit: Some("0123456789ab".into()),
            command: format!("cargo xtask bench-cifar --models {model} --recipe {recipe} --seeds {seed}"),
            started: "2026-01-02T03:04:05Z".into(),
            platform: Platform { os: "linux".into(), arch: "x86_64".into(), cpu: None },
            folder: format!("{model}-{recipe}-{seed}"),
        }
    }

    /// One epoch with the given accuracy.
    pub(crate) fn epoch(epoch: usize, test_acc: f64) -> EpochMetrics {
        EpochMetrics {
            epoch,
            step: epoch as u64 * 391,
            lr: 0.1,
            train_loss: 2.3 / epoch as f64,
            train_acc: test_acc + 0.02,
            test_loss: 2.4 / epoch as f64,
            test_acc,
            seconds: 50.0,
            images_per_s: 1000.0,
            wait_share: 0.01,
            rss_mb: Some(500.0 + epoch as f64),
        }
    }

    #[test]
    fn an_epoch_that_was_written_without_its_memory_is_read() {
        let mut line = serde_json::to_value(epoch(1, 0.1)).unwrap();
        line.as_object_mut().unwrap().remove("rss_mb");
        let read: EpochMetrics = serde_json::from_value(line).unwrap();
        assert_eq!(read, EpochMetrics { rss_mb: None, ..epoch(1, 0.1) });
    }

    #[test]
    fn every_record_says_its_precision_and_older_ones_are_of_f32() {
        let whole = record("mlp", "fast", 1, 0.5);
        let mut line = serde_json::to_value(&whole).unwrap();
        assert_eq!(line["precision"], "f32");
        line.as_object_mut().unwrap().remove("precision");
        assert_eq!(serde_json::from_value::<RunRecord>(line).unwrap(), whole);
        let mixed = RunRecord { precision: Precision::Bf16, ..whole };
        let line = serde_json::to_value(&mixed).unwrap();
        assert_eq!(line["precision"], "bf16");
        assert_eq!(serde_json::from_value::<RunRecord>(line).unwrap(), mixed);
    }

    #[test]
    fn the_commit_says_when_the_tree_is_dirty() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(git_commit(&dir.path().join("absent")), None);
        let git = |args: &[&str]| {
            let identity = ["-c", "user.name=zoo", "-c", "user.email=zoo@example.org", "-c", "commit.gpgsign=false"];
            let status = Command::new("git").arg("-C").arg(dir.path()).args(identity).args(args).status();
            status.is_ok_and(|status| status.success())
        };
        if !git(&["init", "--quiet"]) {
            crate::progress::say("skipped: the_commit_says_when_the_tree_is_dirty: there is no git here");
            return;
        }
        fs::write(dir.path().join("file"), "one").unwrap();
        assert!(git(&["add", "file"]) && git(&["commit", "--quiet", "--message=one"]) && git(&["tag", "v1"]));
        let clean = git_commit(dir.path()).unwrap();
        assert!(clean.len() == 12 && clean.bytes().all(|byte| byte.is_ascii_hexdigit()), "{clean}");
        fs::write(dir.path().join("file"), "two").unwrap();
        assert_eq!(git_commit(dir.path()), Some(format!("{clean}-dirty")));
    }

    #[test]
    fn the_versions_are_those_of_this_build() {
        let versions = versions();
        assert_eq!(versions["zoo"], env!("CARGO_PKG_VERSION"));
        assert!(versions["candle"].starts_with("0.") && versions["rustc"].starts_with("1."), "{versions:?}");
    }

    #[cfg(target_os = "linux")]
    /// The recipe of the review has come to state PyTorch's initial values: a record of before had the network's own.
    #[test]
    fn a_record_from_before_initial_values_says_which_it_had() {
        let told = |record: RunRecord| record.told_today().overrides.settings();
        let old = record("mobilenet_v1", "review-20", 1, 0.4);
        assert_eq!(told(old.clone()), ["init=model"]);
        let today = RunRecord { hyperparameters: Recipe::named("review-20").ok(), ..old };
        assert!(told(today).is_empty() && told(record("cifar_resnet20", "modern-200", 1, 0.9)).is_empty());
    }

    #[test]
    fn the_peak_memory_grows_with_an_allocation() {
        let before = peak_rss_mb().unwrap();
        let block = std::hint::black_box(vec![1u8; 256_000_000]);
        let after = peak_rss_mb().unwrap();
        assert!(after > before.max(block.len() as f64 / 1e6), "{before} {after}");
        // Other tests of this process allocate and free meanwhile: only what the block alone takes is sure.
        assert!(rss_mb().unwrap() > block.len() as f64 / 1e6);
    }
}

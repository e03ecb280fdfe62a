//! `cargo xtask bench-cifar`: trains a list of models, each under its recipe and with every seed, and writes one report.

use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use zoo::ModelOptions;
use zoo_core::trace::model_macs;
use zoo_train::data::{DataSource, DataSpec, Dataset, Synthetic};
use zoo_train::machine::{device, set_threads};
use zoo_train::recipe::{Choice, Overrides, choose};
use zoo_train::record::{
    DataRecord, Platform, RESULTS_FILE, RunRecord, Status, append_jsonl, git_commit, now_utc, peak_rss_mb,
    reset_peak_rss, versions,
};
use zoo_train::report;
use zoo_train::trainer::{Job, Outcome, train};

/// The models of `--quick`: one of each kind, from seconds to a minute.
const QUICK_MODELS: &str = "mlp,template_cnn,cifar_resnet20";
/// The images of `--quick`: enough for cifar_resnet20 to pass 90 % in four epochs.
const QUICK_DATA: Synthetic = Synthetic { train: 5_000, test: 1_000, seed: 0 };
const DEFAULT_MODELS: &str = "cifar_resnet20";

/// Arguments of `bench-cifar`. A flag that is given twice counts the last time.
#[derive(clap::Args, Debug)]
#[command(args_override_self = true)]
pub struct Args {
    /// Show the whole path in about two minutes: embedded synthetic data, three small models, a few epochs
    #[arg(long)]
    quick: bool,
    /// Directory of CIFAR-10's binary files, `hub` or `synthetic`; by default $CIFAR10_DIR, else the hub
    #[arg(long, value_name = "DIR|hub|synthetic")]
    data: Option<DataSpec>,
    /// Names and globs of models, or a set: review-20, resnet-paper, template-600, modern-200, all
    #[arg(long, value_name = "LIST")]
    models: Option<String>,
    /// Recipe for all models instead of each model's own
    #[arg(long, value_name = "NAME")]
    recipe: Option<String>,
    /// Epochs instead of the recipe's
    #[arg(long, value_name = "N")]
    epochs: Option<usize>,
    /// Images a step instead of the recipe's
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Base learning rate instead of the recipe's
    #[arg(long, value_name = "RATE")]
    lr: Option<f64>,
    /// Seeds, one run of every model each
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1")]
    seeds: Vec<u64>,
    /// Train on the first N images only
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Where to run: cpu, cuda:N or metal
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: String,
    /// Threads; by default one a core
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Folder of the report and the runs
    #[arg(long, default_value = "target/bench-cifar", value_name = "DIR")]
    out: PathBuf,
    /// Replace what an earlier suite left in the folder
    #[arg(long)]
    force: bool,
}

/// Runs the suite.
pub fn run(args: &Args) -> Result<()> {
    let threads = set_threads(args.threads)?;
    let device = device(&args.device)?;
    let runs = plan(args)?;
    let data = load_data(args)?;
    let out = prepare_folder(&args.out, args.force)?;
    eprintln!(
        "{} on {}; {} training and {} test images; {}, {}; report in {}",
        count(runs.len(), "run"),
        data.source.label(),
        data.train.len(),
        data.test.len(),
        count(threads, "thread"),
        args.device,
        out.display()
    );

    let stop = Arc::new(AtomicBool::new(false));
    let handler = stop.clone();
    ctrlc::set_handler(move || {
        if handler.swap(true, Ordering::Relaxed) {
            // The second time the user means it.
            std::process::exit(130);
        }
        eprintln!("stopping after this step; press Ctrl-C again to stop at once");
    })
    .context("cannot watch for Ctrl-C")?;

    let suite = Suite { args, data: &data, device: &device, threads, out: &out, stop: &stop };
    let mut failures = Vec::new();
    for planned in &runs {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let record = suite.run(planned)?;
        if let Status::Failed { message } = &record.status {
            failures.push(format!("{} seed {}: {message}", record.model, record.seed));
        }
        append_jsonl(&out.join(RESULTS_FILE), &record)?;
        // After every run, so that there is a report to look at while the next one trains, and after a crash.
        suite.report()?;
    }
    eprintln!("report: {}", out.join("report.html").display());
    if stop.load(Ordering::Relaxed) {
        eprintln!("interrupted: the report holds what was done until then");
    }
    ensure!(failures.is_empty(), "{} failed: {}", count(failures.len(), "run"), failures.join("; "));
    Ok(())
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// One run to come.
struct Planned {
    choice: Choice,
    overrides: Vec<String>,
    seed: u64,
}

/// Every model under its recipe with every seed, seeds innermost: a model's row is complete before the next begins.
fn plan(args: &Args) -> Result<Vec<Planned>> {
    let (models, recipe) = match (&args.models, args.quick) {
        (Some(models), _) => (models.as_str(), None),
        (None, true) => (QUICK_MODELS, None),
        (None, false) => (DEFAULT_MODELS, None),
    };
    let recipe = args.recipe.as_deref().or(if args.quick { Some("quick") } else { recipe });
    let overrides = Overrides { epochs: args.epochs, batch: args.batch, lr: args.lr, ..Overrides::NONE };
    let mut seeds = args.seeds.clone();
    seeds.sort_unstable();
    seeds.dedup();
    ensure!(!seeds.is_empty(), "--seeds names no seed");
    let mut planned = Vec::new();
    for choice in choose(models, recipe)? {
        let described = overrides.describe(&choice.recipe);
        let choice = Choice { recipe: choice.recipe.with(&overrides)?, ..choice };
        planned.extend(seeds.iter().map(|&seed| Planned {
            choice: choice.clone(),
            overrides: described.clone(),
            seed,
        }));
    }
    Ok(planned)
}

fn load_data(args: &Args) -> Result<Dataset> {
    let spec = match (&args.data, args.quick) {
        (Some(spec), _) => spec.clone(),
        (None, true) => DataSpec::Synthetic(QUICK_DATA),
        (None, false) => DataSpec::Auto,
    };
    let data = Dataset::load(&spec)?;
    match args.limit {
        Some(0) => bail!("--limit must be at least 1"),
        Some(n) => Ok(data.limit(n)),
        None => Ok(data),
    }
}

/// Makes the folder, or empties it of an earlier suite if `force` says so.
fn prepare_folder(out: &Path, force: bool) -> Result<PathBuf> {
    if out.join(RESULTS_FILE).exists() || out.join("runs").exists() {
        ensure!(
            force,
            "{} holds an earlier suite: give --force to replace it, or --out for another folder",
            out.display()
        );
        for name in [RESULTS_FILE, "report.md", "report.html"] {
            let path = out.join(name);
            if path.exists() {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        let runs = out.join("runs");
        if runs.exists() {
            fs::remove_dir_all(&runs).with_context(|| format!("cannot remove {}", runs.display()))?;
        }
    }
    fs::create_dir_all(out.join("runs")).with_context(|| format!("cannot make the folder {}", out.display()))?;
    Ok(out.to_path_buf())
}

struct Suite<'a> {
    args: &'a Args,
    data: &'a Dataset,
    device: &'a Device,
    threads: usize,
    out: &'a Path,
    stop: &'a AtomicBool,
}

impl Suite<'_> {
    /// One run. An error of this model is a failed run, not the end of the suite.
    fn run(&self, planned: &Planned) -> Result<RunRecord> {
        let Planned { choice: Choice { model, recipe, .. }, overrides, seed } = planned;
        let folder = format!("runs/{}-{}-seed{seed}", model.name, recipe.name);
        let path = self.unused(&folder);
        fs::create_dir_all(self.out.join(&path)).with_context(|| format!("cannot make the folder {path}"))?;
        let started = now_utc();
        reset_peak_rss();
        let job = Job::new(model, recipe.clone(), *seed, self.device.clone());
        let outcome = train(&job, self.data, &self.out.join(&path), self.stop).unwrap_or_else(|error| {
            let message = format!("{error:#}").replace('\n', " ");
            eprintln!("{}: {message}", model.name);
            Outcome { status: Status::Failed { message }, epochs: Vec::new(), steps: 0, train_images: 0, seconds: 0.0 }
        });
        let options = ModelOptions { num_classes: Some(self.data.classes.len()), ..Default::default() };
        let epochs = &outcome.epochs;
        let last = epochs.last();
        // The first of equals: a later epoch must do better to be called the best.
        let best = epochs.iter().reduce(|best, e| if e.test_acc > best.test_acc { e } else { best });
        let mean = |f: fn(&zoo_train::record::EpochMetrics) -> f64| {
            (!epochs.is_empty()).then(|| epochs.iter().map(f).sum::<f64>() / epochs.len() as f64)
        };
        Ok(RunRecord {
            model: model.name.into(),
            recipe: recipe.name.clone(),
            overrides: overrides.clone(),
            seed: *seed,
            epochs: recipe.epochs(self.data.train.len())?,
            epochs_done: epochs.len(),
            steps: outcome.steps,
            status: outcome.status.clone(),
            test_acc_last: last.map(|e| e.test_acc),
            test_acc_best: best.map(|e| e.test_acc),
            best_epoch: best.map(|e| e.epoch),
            test_loss_last: last.map(|e| e.test_loss),
            train_loss: last.map(|e| e.train_loss),
            parameters: model.count_parameters(&options)? as u64,
            macs: model_macs(model, &options).ok(),
            batch: recipe.batch,
            images_per_s: mean(|e| e.images_per_s),
            seconds: outcome.seconds,
            peak_rss_mb: peak_rss_mb(),
            data: self.data_record(outcome.train_images),
            device: self.args.device.clone(),
            threads: self.threads,
            versions: versions(),
            commit: git_commit(Path::new(env!("CARGO_MANIFEST_DIR"))),
            command: self.command(planned),
            started,
            platform: Platform::current(),
            folder: path,
        })
    }

    /// `folder`, or with a number behind it if two planned runs share the name (one model for 20 and for 75 epochs).
    fn unused(&self, folder: &str) -> String {
        let mut numbered = std::iter::once(folder.to_string()).chain((2..).map(|n| format!("{folder}-{n}")));
        numbered.find(|name| !self.out.join(name).exists()).unwrap_or_else(|| folder.to_string())
    }

    fn data_record(&self, train_images: usize) -> DataRecord {
        let test_images = self.data.test.len();
        match &self.data.source {
            DataSource::Synthetic { seed } => DataRecord::synthetic(*seed, train_images, test_images),
            source @ (DataSource::Cifar10Files { .. } | DataSource::Cifar10Hub) => {
                DataRecord::cifar10(source.label(), train_images, test_images)
            }
            DataSource::Other { label } => {
                DataRecord { name: label.clone(), source: label.clone(), synthetic: false, train_images, test_images }
            }
        }
    }

    /// The command that repeats one run.
    fn command(&self, planned: &Planned) -> String {
        let (args, recipe) = (self.args, &planned.choice.recipe);
        let mut command = format!("cargo xtask bench-cifar --models {}", planned.choice.model.name);
        let mut add = |flag: &str, value: Option<String>| {
            if let Some(value) = value {
                command += &format!(" --{flag} {value}");
            }
        };
        let data = match (&args.data, args.quick, &self.data.source) {
            (_, true, DataSource::Synthetic { .. }) if args.data.is_none() => None,
            (_, _, DataSource::Cifar10Files { dir }) => Some(dir.display().to_string()),
            (_, _, DataSource::Cifar10Hub) => Some("hub".into()),
            (_, _, DataSource::Synthetic { .. }) => Some("synthetic".into()),
            (_, _, DataSource::Other { label }) => Some(label.clone()),
        };
        add("data", data);
        add("recipe", Some(recipe.name.clone()));
        add("epochs", args.epochs.map(|n| n.to_string()));
        add("batch", args.batch.map(|n| n.to_string()));
        add("lr", args.lr.map(|x| x.to_string()));
        add("seeds", Some(planned.seed.to_string()));
        add("limit", args.limit.map(|n| n.to_string()));
        add("device", (args.device != "cpu").then(|| args.device.clone()));
        add("threads", Some(self.threads.to_string()));
        if args.quick {
            command += " --quick";
        }
        command
    }

    fn report(&self) -> Result<()> {
        let (runs, warnings) = report::load(self.out)?;
        for warning in warnings {
            eprintln!("warning: {warning}");
        }
        report::write(self.out, &runs)
    }
}

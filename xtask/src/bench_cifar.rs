//! `cargo xtask bench-cifar`: trains a list of models, each under its recipe and with every seed, and writes one
//! report.

mod ablation_charts;
mod missing;
mod model_sets;
mod plan;
mod published;
mod pytorch;
mod readme;
#[cfg(test)]
mod testing;

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::Device;
use model_sets::Choice;
use plan::{DEFAULT_MODELS, Planned, flags, images, plan};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zoo_core::{InitRule, Precision};
use zoo_train::checkpoint::{self, Checkpoints, Unwritable};
use zoo_train::data::{DataError, DataSource, DataSpec, Dataset, Synthetic, download};
use zoo_train::errors::{self, Interrupted};
use zoo_train::format::count;
use zoo_train::lock::FolderLock;
use zoo_train::machine::{Stop, device, set_threads};
use zoo_train::progress::say;
use zoo_train::record::{
    RESULTS_FILE, RunRecord, Status, append_jsonl, now_utc, read_jsonl, replace_file, reset_peak_rss,
};
use zoo_train::report::{self, Additions};
use zoo_train::run_record::{RunContext, quoted, source_commit};
use zoo_train::trainer::{Job, Outcome, RUN_FILE, differences, train};

/// The images of `--quick`: enough for cifar_resnet20 to pass 90 % in four epochs.
const QUICK_DATA: Synthetic = Synthetic { train: 5_000, test: 1_000, seed: 0 };

/// What the report of this suite has beside that of any runs.
const ADDITIONS: Additions = Additions {
    columns: published::COLUMNS,
    notes: published::sources,
    charts: ablation_charts::group,
    protocol: published::PROTOCOL,
};

/// Arguments of `bench-cifar`. A flag that is given twice counts the last time.
#[derive(clap::Args, Debug)]
#[command(args_override_self = true)]
pub struct Args {
    /// Try everything out in about two minutes (once built): three small networks, a few epochs, synthetic images
    #[arg(long)]
    quick: bool,
    /// Directory of CIFAR-10's binary files, `download` (170 MB, once), `hub` or `synthetic`. Default: $CIFAR10_DIR, else
    /// what was downloaded before, else the hub's local cache, else `download`
    #[arg(long, value_name = "download|DIR|hub|synthetic")]
    data: Option<DataSpec>,
    /// Name of the data in the report, if it is not the original CIFAR-10: `CIFAR-10, 40x40`
    #[arg(long, value_name = "NAME")]
    data_name: Option<String>,
    /// Networks to train: names and globs such as 'cifar_*', or a set: review-20, resnet-paper, template-600,
    /// modern-200, ablation-depth, ablation-shortcut, ablation-se, ablation-batch-norm, ablation-bn-momentum,
    /// ablation-bn-eps, ablation-init, all
    #[arg(long, value_name = "LIST")]
    models: Option<String>,
    /// Recipe to train all networks by, see `zoo recipe list`. Default: each network's own
    #[arg(long, value_name = "NAME")]
    recipe: Option<String>,
    /// Epochs to train: passes over all training images. Default: the recipe's
    #[arg(long, value_name = "N")]
    epochs: Option<usize>,
    /// Batch size: images of one training step. Default: the recipe's
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Learning rate at its highest; its course is the recipe's. Default: the recipe's
    #[arg(long, value_name = "RATE")]
    lr: Option<f64>,
    /// Momentum of every BatchNorm's running statistics. Default: the network's
    #[arg(long, value_name = "SHARE")]
    bn_momentum: Option<f64>,
    /// Epsilon of every BatchNorm. Default: the network's
    #[arg(long, value_name = "EPS")]
    bn_eps: Option<f64>,
    /// Leave BatchNorm out: only its weight and bias stay
    #[arg(long)]
    no_batch_norm: bool,
    /// Whose initial values: the network's own, or PyTorch's defaults for every layer. Default: the recipe's
    #[arg(long, value_name = "model|torch")]
    init: Option<InitRule>,
    /// What to compute in: f32, or bf16 for mixed precision (on the CPU). With both, every network is trained in each
    #[arg(long, value_name = "f32|bf16", value_delimiter = ',', default_value = "f32")]
    precision: Vec<Precision>,
    /// Seeds: every network is trained once with each
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1")]
    seeds: Vec<u64>,
    /// Train on the first N images only
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Device to compute on: cpu, cuda:N or metal
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: String,
    /// Threads to compute with. Default: one for each processor core
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Folder for the report and the runs. Default: target/bench-cifar, with --quick target/bench-cifar-quick
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Stop cleanly after this long (`30m`, `2h`) and keep what is done
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    time_budget: Option<Duration>,
    /// Continue an interrupted suite: finished runs are not repeated, a cut-off one goes on from its last checkpoint
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Replace what an earlier suite left in the folder
    #[arg(long)]
    force: bool,
    /// Train nothing: rewrite the README's table of results from the records kept under `results/`
    #[arg(long)]
    readme: bool,
    /// Train nothing: list which rows of the published tables (or of --models) `results/` has no record of, how long each would
    /// take here by a few measured steps, and its command
    #[arg(long, conflicts_with_all = ["readme", "quick"])]
    plan: bool,
}

/// Runs the suite.
pub fn run(args: &Args) -> Result<()> {
    if args.readme {
        return rewrite_readme();
    }
    if args.plan {
        return missing::print(args);
    }
    let begin = Instant::now();
    let threads = set_threads(args.threads)?;
    let device = device(&args.device)?;
    args.precision.iter().try_for_each(|precision| precision.check(&device)).context("--precision")?;
    let data = load_data(args)?;
    let runs = plan(args, DEFAULT_MODELS, data.train.len())?;
    let (out, _lock) = prepare_folder(args)?;
    let finished = if args.resume { finished(&out)? } else { BTreeMap::new() };
    let job =
        |planned: &Planned| Job::new(planned.choice.model, planned.choice.recipe.clone(), planned.seed, device.clone());
    for planned in &runs {
        ensure_same(&out, &planned.folder, &job(planned), &data, finished.get(&planned.folder))?;
    }
    say(format_args!(
        "{} on {}; {}; {}, {}; report in {}",
        count(runs.len(), "run"),
        data.source.label(),
        images(&runs, &data),
        count(threads, "thread"),
        args.device,
        out.display()
    ));

    let stop = Stop::on_signals()?;
    if let Some(budget) = args.time_budget {
        let alarm = stop.clone();
        // It ends with the program.
        std::thread::spawn(move || {
            std::thread::sleep(budget.saturating_sub(begin.elapsed()));
            say(format_args!(
                "the time budget of {} is spent: stopping after this step",
                humantime::format_duration(budget)
            ));
            alarm.now();
        });
    }

    let suite = Suite { args, data: &data, device: &device, threads, out: &out, stop: &stop };
    let (mut failures, mut left) = (Vec::new(), 0);
    for planned in &runs {
        if finished.contains_key(&planned.folder) {
            say(format_args!("{}: finished already", planned.folder));
            continue;
        }
        if stop.is_wished() {
            left += 1;
            continue;
        }
        let record = suite.run(planned)?;
        append_jsonl(&out.join(RESULTS_FILE), &record)?;
        match record.status {
            Status::Finished => checkpoint::remove(&out.join(&planned.folder))?,
            Status::Interrupted | Status::Running => left += 1,
            Status::Failed { message } => {
                let precision = record.precision.unusual().map_or(String::new(), |precision| format!(" {precision}"));
                failures.push(format!("{}{precision} seed {}: {message}", record.model, record.seed));
            }
        }
        // After every run, so that there is a report to look at while the next one trains, and after a crash.
        suite.report()?;
    }
    say(format_args!("report: {}", out.join("report.html").display()));
    let failed = format!("{} failed: {}", count(failures.len(), "run"), failures.join("; "));
    let left_of = format!("{left} of {} left", count(runs.len(), "run"));
    let go_on = "the report holds what was done until then, and the same command with --resume goes on";
    // A budget that is spent was asked for. Whoever interrupts a script does not want the rest of it.
    if let Some(signal) = stop.signal().filter(|_| left > 0) {
        let failed = if failures.is_empty() { String::new() } else { format!("; {failed}") };
        return Err(Interrupted { signal, message: format!("interrupted, with {left_of}: {go_on}{failed}") }.into());
    }
    if left > 0 {
        say(format_args!("stopped early, with {left_of}: {go_on}"));
    }
    ensure!(failures.is_empty(), "{failed}");
    Ok(())
}

/// Where the records are kept.
fn results_folder() -> Result<PathBuf> {
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace's folder")?.join("results"))
}

/// The README's table, and `results/report.md` and `.html`, from the records kept in the tree.
fn rewrite_readme() -> Result<()> {
    let results = results_folder()?;
    let readme = results.with_file_name("README.md");
    let (runs, warnings) = report::load(&results)?;
    warnings.iter().for_each(|warning| say(format_args!("warning: {warning}")));
    let text = fs::read_to_string(&readme).with_context(|| format!("cannot read {}", readme.display()))?;
    let text = readme::splice(&text, &readme::table(&runs)).with_context(|| readme.display().to_string())?;
    replace_file(&readme, text.as_bytes())?;
    report::write(&results, &runs, &ADDITIONS)?;
    say(format_args!("{}: {} of {}", readme.display(), count(runs.len(), "run"), results.join(RESULTS_FILE).display()));
    Ok(())
}

/// The runs that the suite in `out` has finished, by their folders.
fn finished(out: &Path) -> Result<BTreeMap<String, RunRecord>> {
    let path = out.join(RESULTS_FILE);
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let records = read_jsonl::<RunRecord>(&path)?;
    records.warning.iter().for_each(|warning| say(format_args!("warning: {warning}")));
    let done = records.values.into_iter().filter(|record| record.status == Status::Finished);
    Ok(done.map(|record| (record.folder.clone(), record)).collect())
}

/// Refuses to take another run for the one that is asked for, as one on other data is, although its folder has the same
/// name.
fn ensure_same(out: &Path, folder: &str, job: &Job, data: &Dataset, finished: Option<&RunRecord>) -> Result<()> {
    let path = out.join(folder);
    let differences = match finished {
        Some(record) if !path.join(RUN_FILE).exists() => record.differences(job, data)?,
        _ => differences(job, data, &path)?,
    };
    ensure!(
        differences.is_empty(),
        "{} holds another run than is asked for ({}): give --out for another folder, or --force to replace the suite",
        path.display(),
        differences.join("; ")
    );
    Ok(())
}

fn load_data(args: &Args) -> Result<Dataset> {
    let spec = match (&args.data, args.quick) {
        (Some(spec), _) => spec.clone(),
        (None, true) => DataSpec::Synthetic(QUICK_DATA),
        (None, false) => DataSpec::Auto,
    };
    let mut data = Dataset::load(&spec).map_err(|error| match error {
        DataError::Hub(why) | DataError::Download(why) => anyhow!(no_data(&why)),
        error => error.into(),
    })?;
    if let Some(name) = &args.data_name {
        data.source = match data.source {
            DataSource::Cifar10Files { dir } | DataSource::Altered { dir, .. } => {
                DataSource::Altered { name: name.clone(), dir }
            }
            other => bail!("--data-name is for binary files; this is {other}"),
        };
    }
    match args.limit {
        Some(0) => bail!("--limit must be at least 1"),
        Some(n) => Ok(data.limit(n)),
        None => Ok(data),
    }
}

/// What to do where CIFAR-10 is nowhere and cannot be downloaded: the commands that get it and then run what was asked
/// for.
fn no_data(why: &str) -> String {
    let given = std::env::args().skip(2).map(|argument| " ".to_owned() + &quoted(&argument)).collect::<String>();
    let get = "curl -O https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz && tar xzf cifar-10-binary.tar.gz";
    format!(
        "CIFAR-10 is not on this machine; this gets it and starts: \
         `{get} && cargo xtask bench-cifar{given} --data cifar-10-batches-bin`; from a mirror: {}=ADDRESS before the \
         command; without network: `cargo xtask bench-cifar --quick`, or --data with the folder of its binary files; \
         what is in the way: {why}",
        download::URL_VARIABLE
    )
}

/// Makes the folder, for this process alone, goes on in it with `--resume`, or empties it of an earlier suite with
/// `--force`.
fn prepare_folder(args: &Args) -> Result<(PathBuf, FolderLock)> {
    let default = if args.quick { "target/bench-cifar-quick" } else { "target/bench-cifar" };
    let out = args.out.clone().unwrap_or_else(|| default.into());
    let is_used = || out.join(RESULTS_FILE).exists() || out.join("runs").exists();
    ensure!(
        args.resume || args.force || !is_used(),
        "{} holds an earlier suite: give --resume to go on with it, --force to replace it, or --out for another folder",
        out.display()
    );
    fs::create_dir_all(&out).with_context(|| format!("cannot make the folder {}", out.display()))?;
    let lock = FolderLock::of(&out)?;
    if args.force {
        for path in [RESULTS_FILE, "report.md", "report.html"].map(|name| out.join(name)) {
            if path.exists() {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        let runs = out.join("runs");
        if runs.exists() {
            fs::remove_dir_all(&runs).with_context(|| format!("cannot remove {}", runs.display()))?;
        }
    }
    if args.resume && !is_used() {
        say(format_args!("{} holds no suite to go on with: starting one", out.display()));
    }
    fs::create_dir_all(out.join("runs")).with_context(|| format!("cannot make the folder {}", out.display()))?;
    Ok((out, lock))
}

struct Suite<'a> {
    args: &'a Args,
    data: &'a Dataset,
    device: &'a Device,
    threads: usize,
    out: &'a Path,
    stop: &'a Stop,
}

impl Suite<'_> {
    /// One run. An error of this model is a failed run, not the end of the suite; a folder that cannot be written is
    /// both.
    fn run(&self, planned: &Planned) -> Result<RunRecord> {
        let Planned { choice: Choice { model, recipe, overrides }, seed, folder, .. } = planned;
        let path = self.out.join(folder);
        if !self.args.resume && path.exists() {
            bail!("{} is asked for twice: two runs of this suite are the same", path.display());
        }
        fs::create_dir_all(&path).with_context(|| format!("cannot make the folder {}", path.display()))?;
        let (started, commit) = (now_utc(), source_commit());
        reset_peak_rss();
        let job = Job::new(model, recipe.clone(), *seed, self.device.clone());
        let checkpoints = Checkpoints { resume: self.args.resume, ..Checkpoints::default() };
        let outcome = match train(&job, self.data, &path, &checkpoints, self.stop.flag()) {
            Ok(outcome) => outcome,
            Err(error) if error.downcast_ref::<Unwritable>().is_some() => {
                return Err(error.context(format!(
                    "{folder} stopped; what was written until then is whole, and the same command with --resume goes on from it"
                )));
            }
            Err(error) => {
                let outcome = Outcome::failed(&error);
                say(format_args!("{}: {}", model.name, errors::message(&error)));
                outcome
            }
        };
        let context = RunContext {
            overrides: (*overrides).into(),
            device: self.args.device.clone(),
            threads: self.threads,
            started,
            commit,
            command: self.command(planned),
            folder: folder.clone(),
        };
        RunRecord::of(&job, self.data, &outcome, context)
    }

    /// The command that repeats one run.
    fn command(&self, planned: &Planned) -> String {
        let args = self.args;
        let data = match (&args.data, args.quick, &self.data.source) {
            (Some(DataSpec::Download), ..) => Some("download".into()),
            (_, true, DataSource::Synthetic { .. }) if args.data.is_none() => None,
            (_, _, DataSource::Cifar10Files { dir } | DataSource::Altered { dir, .. }) => {
                Some(quoted(&dir.display().to_string()))
            }
            (_, _, DataSource::Cifar10Hub) => Some("hub".into()),
            (_, _, DataSource::Synthetic { .. }) => Some("synthetic".into()),
            (_, _, DataSource::Other { label }) => Some(label.clone()),
        };
        let flag =
            |name: &str, value: Option<String>| value.map_or(String::new(), |value| format!(" --{name} {value}"));
        let parts = [
            format!("cargo xtask bench-cifar --models {}", planned.choice.model.name),
            flag("data", data),
            flag("data-name", args.data_name.as_deref().map(quoted)),
            flags(planned, args),
            flag("limit", args.limit.map(|n| n.to_string())),
            flag("device", (args.device != "cpu").then(|| args.device.clone())),
            flag("threads", Some(self.threads.to_string())),
            if args.quick { " --quick".into() } else { String::new() },
        ];
        parts.concat()
    }

    fn report(&self) -> Result<()> {
        let (runs, warnings) = report::load(self.out)?;
        for warning in warnings {
            say(format_args!("warning: {warning}"));
        }
        report::write(self.out, &runs, &ADDITIONS)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::run;
    use super::*;
    use zoo_train::report::Run;

    #[test]
    fn published_figures_and_ablations_stand_in_the_report() {
        let mut runs = [run("cifar_plain20", "resnet-paper", 1, 0.9), run("cifar_resnet20", "resnet-paper", 1, 0.91)];
        let pages = |runs: &[Run]| [report::html(runs, &ADDITIONS), report::markdown(runs, &ADDITIONS)];
        for page in pages(&runs) {
            for text in ["Published, resnet-paper: He et al. 2015", "91.25 %", "Published figures are set against ours"]
            {
                assert!(page.contains(text), "{text}: {page}");
            }
            assert!(!page.contains("What one thing changes"));
        }
        runs[1].record.model = "cifar_plain56".into();
        let depth = "<figcaption>Plain networks: test error by depth · resnet-paper · CIFAR-10</figcaption>";
        assert!(pages(&runs)[0].contains(&format!("{depth}<ul class=\"legend\">")));
    }
}

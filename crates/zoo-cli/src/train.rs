//! `zoo train`: a network on a folder of images or on CIFAR-10, from scratch or from a checkpoint.

mod data;
mod follow;
mod plan;
mod settings;

use crate::network::Wanted;
use crate::pictures;
use crate::recipe::NameOrFile;
use crate::text::{print_line, quoted};
use anyhow::{Context, Result, bail, ensure};
use follow::EVENTS;
use plan::{NormalizeFrom, Plan};
use settings::Settings;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use zoo_core::Precision;
use zoo_image::WEIGHTS_FILE;
use zoo_train::checkpoint::{self, Checkpoints};
use zoo_train::data::{Dataset, TestImages};
use zoo_train::error_analysis::{EVALUATION_FILE, MISTAKES_FILE};
use zoo_train::errors::Interrupted;
use zoo_train::lock::FolderLock;
use zoo_train::machine::{Stop, device, set_threads};
use zoo_train::progress::say;
use zoo_train::record::{
    METRICS_FILE, METRICS_TABLE, RECORD_FILE, RunRecord, Status, now_utc, read_jsonl, replace_file, reset_peak_rss,
};
use zoo_train::report::{self, REPORT_FILE};
use zoo_train::run_record::{RunContext, source_commit};
use zoo_train::samples::{SAMPLES_FILE, sheet};
use zoo_train::trainer::{Job, LAST_FILE, RAW_FILE, RUN_FILE, differences, train};

/// The names of the classes, one a line, in the order of the network's outputs.
const CLASSES_FILE: &str = "classes.txt";
/// Everything that a run leaves in its folder.
const FILES: [&str; 12] = [
    WEIGHTS_FILE,
    LAST_FILE,
    RAW_FILE,
    METRICS_FILE,
    METRICS_TABLE,
    RECORD_FILE,
    CLASSES_FILE,
    EVALUATION_FILE,
    MISTAKES_FILE,
    SAMPLES_FILE,
    REPORT_FILE,
    RUN_FILE,
];
/// Images of the sheet that shows what the network sees, and epochs that it shows them in.
const SAMPLES: usize = 8;
const SAMPLE_EPOCHS: u64 = 7;

/// Arguments of `train`.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the network, see `zoo list`
    model: String,
    /// What to train on: CIFAR-10's binary files (data_batch_*.bin and test_batch.bin, or train.bin and test.bin), CIFAR-100's, MNIST's or
    /// Fashion-MNIST's (train-images-idx3-ubyte and the other three, also with .gz), or an image folder: train/CLASS/*
    /// and val/CLASS/* or test/CLASS/*, whose pictures (JPEG, PNG, WebP, BMP, GIF, TIFF, also in folders of the class's)
    /// are cut to the network's size; or a CSV file that lists pictures: path,class and, if there is more than what to train on,
    /// split. `download` is CIFAR-10: downloaded once (170 MB), and found again
    #[arg(long, value_name = "DIR|download")]
    data: PathBuf,
    #[command(flatten)]
    limits: pictures::Size,
    /// Side that the pictures of a folder are cut to, in pixels; at most the network's. Default: the network's
    #[arg(long, value_name = "N")]
    size: Option<usize>,
    /// Share of each class's training images to choose the best epoch by, drawn by --seed. The folder's val is measured at the
    /// end then, with the weights that are kept; one that is a folder a class and nothing else needs no other images
    #[arg(long, value_name = "SHARE")]
    val_split: Option<f64>,
    /// Folder for model.safetensors, classes.txt, metrics.jsonl (a line an epoch) and record.json
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Recipe to train by, see `zoo recipe list`, or a file of one's own: `base = "finetune"` and what differs, in
    /// TOML; `zoo recipe show NAME --toml` prints one to start from. Default: `finetune` with --weights and for images
    /// larger than 32 pixels, else the network's own
    #[arg(long, value_name = "NAME|FILE.toml", value_parser = NameOrFile)]
    recipe: Option<String>,
    #[command(flatten)]
    settings: Settings,
    /// Checkpoint to start from: .safetensors, .pth, .pt, .th, a run's folder, hf:ORG/NAME, an address, or `default`
    /// for the network's published weights. Where its classifier has another number of classes, the network's starts
    /// afresh
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    #[command(flatten)]
    wanted: Wanted,
    /// Channels that the network sees of its images: 1 turns them grey
    #[arg(long, value_name = "N")]
    in_chans: Option<usize>,
    /// Number of classes that the data must have: another number is an error
    #[arg(long, value_name = "N")]
    classes: Option<usize>,
    /// Mean and deviation that pixels are brought to zero and one with: those that the checkpoint was trained with.
    /// Default: the checkpoint's with --weights, else `model` for an image folder and `recipe` for CIFAR-10
    #[arg(long, value_enum, value_name = "FROM")]
    normalize: Option<NormalizeFrom>,
    /// Seed of everything random: first weights, order of the images, augmentation, dropout. The same seed makes the
    /// same run
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Train on the first N images only; the classes of an image folder are mixed before
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// What to compute in: f32, or bf16 for mixed precision (on the CPU). The weights that are left are f32 in either
    /// case. Default: the recipe's, f32 in all of the zoo's
    #[arg(long, value_name = "f32|bf16")]
    precision: Option<Precision>,
    /// Device to compute on: cpu, cuda:N or metal
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads to compute with. Default: one for each processor core
    #[arg(long)]
    threads: Option<usize>,
    /// Stop cleanly after this long (`30m`, `2h`) and keep what is done
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    time_budget: Option<Duration>,
    /// Go on with the run in --out from its last checkpoint; from the start if there is none
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Replace the run in --out
    #[arg(long)]
    force: bool,
    /// Write event files for TensorBoard into --out/tensorboard, where the program was built with them
    #[arg(long)]
    tensorboard: bool,
    /// Print one JSON object a line on standard output: every epoch's metrics as they come, the run's record at the end
    #[arg(long)]
    json: bool,
}

/// Trains, and leaves the run's files.
pub fn run(args: &Args) -> Result<()> {
    let threads = set_threads(args.threads)?;
    let device = device(&args.device)?;
    let begin = Instant::now();
    let model = zoo::find(&args.model)?;
    may_leave_a_run(args)?;
    follow::check(args)?;
    let folder = data::folder(args)?;
    let side = TestImages::side(&folder).unwrap_or(args.size.unwrap_or(model.preprocess.size));
    let plan = Plan::of(args, model, side)?;
    plan.recipe.precision.check(&device).context("--precision")?;
    let data = data::load(args, &folder, &plan.recipe, side)?;
    let (mut job, overrides) = plan.job(args, model, &data, device)?;
    if args.resume && is_finished(&args.out, &job, &data)? {
        say(format_args!("{}: this run is finished, there is nothing to go on with", args.out.display()));
        return Ok(());
    }
    let stop = Stop::on_signals()?;
    let is_spent = Arc::new(AtomicBool::new(false));
    if let Some(budget) = args.time_budget {
        let (alarm, is_spent) = (stop.clone(), is_spent.clone());
        // It ends with the program.
        std::thread::spawn(move || {
            std::thread::sleep(budget.saturating_sub(begin.elapsed()));
            let budget = humantime::format_duration(budget);
            say(format_args!("the time budget of {budget} is spent: stopping after this step"));
            is_spent.store(true, Ordering::Relaxed);
            alarm.now();
        });
    }
    say(format_args!(
        "{}: {}{}; {}; {}, recipe {}, batch {}; {}, {}, {threads} threads",
        args.data.display(),
        job.recipe.images_in_words(data.train.len(), data.test.len()),
        data.val.as_ref().map_or(String::new(), |val| format!(", {} to choose the best epoch by", val.len())),
        data::balance(&data),
        model.name,
        job.recipe.name,
        job.recipe.batch,
        job.recipe.precision,
        args.device
    ));

    let lock = make_folder(args)?;
    let (started, commit) = (now_utc(), source_commit());
    reset_peak_rss();
    let context = RunContext {
        overrides,
        device: args.device.clone(),
        threads,
        started,
        commit,
        command: command(),
        // The record lies in the run's own folder.
        folder: ".".into(),
    };
    job.on_epoch = Some(follow::follow(args, &job, &data, &context)?);
    // To look at; training does not need it.
    if let Ok(sheet) = sheet(&data.train, job.recipe.augment, args.seed, SAMPLES, SAMPLE_EPOCHS) {
        replace_file(&args.out.join(SAMPLES_FILE), &sheet)?;
    }
    let checkpoints = Checkpoints { resume: args.resume, ..Checkpoints::default() };
    let outcome = match train(&job, &data, &args.out, &checkpoints, stop.flag()) {
        Ok(outcome) => outcome,
        Err(error) => {
            // An empty folder is none of the run's files; one with anything in it stays.
            drop(lock);
            fs::remove_dir(&args.out).ok();
            return Err(error);
        }
    };
    let record = RunRecord::of(&job, &data, &outcome, context)?;
    let line = serde_json::to_string(&record).context("cannot write the record as JSON")?;
    replace_file(&args.out.join(RECORD_FILE), format!("{line}\n").as_bytes())?;
    replace_file(&args.out.join(CLASSES_FILE), format!("{}\n", data.classes.join("\n")).as_bytes())?;
    report::write_page(&args.out, record.clone())?;
    if record.status == Status::Finished {
        checkpoint::remove(&args.out)?;
    }
    if args.json {
        print_line(&line)?;
    }
    match record.status {
        Status::Finished | Status::Running => {
            summarise(args, &record);
            Ok(())
        }
        Status::Interrupted => {
            let message = format!(
                "interrupted after {} of {} epochs; {} holds what was done, to go on: {} --resume",
                record.epochs_done,
                record.epochs,
                args.out.display(),
                record.command
            );
            if is_spent.load(Ordering::Relaxed) {
                // It was asked for.
                say(message);
                return Ok(());
            }
            Err(Interrupted { signal: stop.signal().unwrap_or_default(), message }.into())
        }
        Status::Failed { message } => bail!("{}: {message}; try a smaller --lr", model.name),
    }
}

/// Refuses a folder that holds a run, unless the user says to resume or to replace it.
fn may_leave_a_run(args: &Args) -> Result<()> {
    let there = FILES.iter().any(|name| args.out.join(name).exists()) || checkpoint::is_in(&args.out);
    ensure!(
        !there || args.force || args.resume,
        "{} holds an earlier run: --resume goes on with it, --force replaces it",
        args.out.display()
    );
    Ok(())
}

/// Whether the run in the folder is finished and recorded, so that nothing is left to resume. It must be the run that
/// is asked for.
fn is_finished(folder: &Path, job: &Job, data: &Dataset) -> Result<bool> {
    let path = folder.join(RECORD_FILE);
    if !path.exists() {
        return Ok(false);
    }
    let records = read_jsonl::<RunRecord>(&path)?.values;
    let Some(record) = records.iter().find(|record| record.status == Status::Finished) else { return Ok(false) };
    let differences = match folder.join(RUN_FILE).exists() {
        true => differences(job, data, folder)?,
        false => record.differences(job, data)?,
    };
    ensure!(
        differences.is_empty(),
        "{} holds a finished run, and another one than is asked for ({}); --force replaces it, another --out keeps both, and \
         --weights {} starts from what it learnt",
        folder.display(),
        differences.join("; "),
        quoted(&folder.join(WEIGHTS_FILE).to_string_lossy())
    );
    Ok(true)
}

/// Makes and locks the folder, and removes the files of an earlier run that is to be replaced; other files in it stay.
fn make_folder(args: &Args) -> Result<FolderLock> {
    let out = &args.out;
    fs::create_dir_all(out).with_context(|| format!("cannot make the folder {}", out.display()))?;
    let lock = FolderLock::of(out)?;
    for path in FILES.iter().map(|name| out.join(name)).filter(|path| args.force && path.exists()) {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    if args.force {
        checkpoint::remove(out)?;
        let events = out.join(EVENTS);
        if events.is_dir() {
            fs::remove_dir_all(&events).with_context(|| format!("cannot remove {}", events.display()))?;
        }
    }
    Ok(lock)
}

/// The command that repeats this run: the user's own, without the arguments about earlier runs and output.
fn command() -> String {
    let passing = ["--force", "--resume", "--json"];
    let arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
    let kept = arguments.filter(|argument| !passing.contains(&argument.as_str()));
    kept.fold("zoo".to_string(), |line, argument| line + " " + &quoted(&argument))
}

/// Prints a summary for the user, on standard error.
fn summarise(args: &Args, record: &RunRecord) {
    let path = |name: &str| quoted(&args.out.join(name).to_string_lossy());
    let row = |name: &str, value: &str| say(format_args!("  {name:14} {value}"));
    say("");
    row("epochs", &format!("{} of {}, {:.1} s", record.epochs_done, record.epochs, record.seconds));
    row("accuracy", &accuracies(record));
    let left = FILES.into_iter().filter(|name| args.out.join(name).exists());
    row("left", &left.map(path).collect::<Vec<_>>().join(" "));
    let (model, weights) = (&record.model, path(WEIGHTS_FILE));
    row("to use it", &format!("zoo predict {model} --weights {weights} IMAGE..."));
}

/// The accuracies of a finished run, and which epoch the weights in its folder are from.
fn accuracies(record: &RunRecord) -> String {
    let percent = |accuracy: f64| format!("{:.1} %", 100.0 * accuracy);
    let Some(kept) = &record.kept else { return "no epoch was measured".into() };
    let mut text = format!(
        "{} on the {} images after epoch {}: this is what {WEIGHTS_FILE} holds",
        percent(kept.accuracy),
        kept.measured_on,
        kept.epoch
    );
    match (record.val_acc_best, record.test_acc_last, record.test_acc_best, record.best_epoch) {
        (Some(_), Some(test), ..) => text.push_str(&format!("; {} on the test images, measured once", percent(test))),
        (None, _, Some(best), Some(epoch)) if best > kept.accuracy => {
            text.push_str(&format!("; best {} after epoch {epoch}, not kept (--keep best)", percent(best)));
        }
        (None, Some(last), ..) if last < kept.accuracy => {
            text.push_str(&format!("; {} after the last epoch", percent(last)));
        }
        _ => {}
    }
    text
}

//! `zoo train`: a network on a folder of images or on CIFAR-10, from scratch or from a checkpoint.

use crate::network::{Wanted, weights_file};
use crate::pictures;
use crate::recipe::NameOrFile;
use crate::text::{print_line, quoted};
use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use std::fs;
use std::path::{Path, PathBuf};
use zoo::{ModelInfo, ModelOptions, VarStore};
use zoo_core::Precision;
use zoo_core::weights::{LoadOptions, ensure_fit};
use zoo_image::{Normalize, WEIGHTS_FILE, normalize_of};
use zoo_train::checkpoint::{self, Checkpoints};
use zoo_train::data::{Dataset, download};
use zoo_train::error_analysis::{EVALUATION_FILE, MISTAKES_FILE};
use zoo_train::errors::Interrupted;
use zoo_train::lock::FolderLock;
use zoo_train::machine::{Stop, device, set_threads};
use zoo_train::progress::say;
use zoo_train::recipe::{Overrides, Recipe, RecipeSource};
use zoo_train::record::{
    METRICS_FILE, RECORD_FILE, RunOverrides, RunRecord, Status, now_utc, read_jsonl, replace_file, reset_peak_rss,
};
use zoo_train::run_record::{RunContext, source_commit};
use zoo_train::trainer::{Job, RUN_FILE, differences, train};

/// The names of the classes, one a line, in the order of the network's outputs.
const CLASSES_FILE: &str = "classes.txt";
/// Everything that a run leaves in its folder.
const FILES: [&str; 7] =
    [WEIGHTS_FILE, METRICS_FILE, RECORD_FILE, CLASSES_FILE, EVALUATION_FILE, MISTAKES_FILE, RUN_FILE];

/// Arguments of `train`.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the network, see `zoo list`
    model: String,
    /// CIFAR-10's binary files (data_batch_*.bin and test_batch.bin, or train.bin and test.bin), CIFAR-100's, MNIST's or
    /// Fashion-MNIST's (train-images-idx3-ubyte and the other three, also with .gz), or an image folder: train/CLASS/*
    /// and val/CLASS/* or test/CLASS/*, whose pictures (JPEG, PNG, WebP, BMP, GIF, TIFF, also in folders of the class's)
    /// are cut to the network's size. `download` is CIFAR-10: downloaded once (170 MB), and found again
    #[arg(long, value_name = "DIR|download")]
    data: PathBuf,
    #[command(flatten)]
    size: pictures::Size,
    /// Folder for model.safetensors, classes.txt, metrics.jsonl (a line an epoch) and record.json
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Recipe to train by, see `zoo recipe list`, or a file of one's own: `base = "finetune"` and what differs, in
    /// TOML; `zoo recipe show NAME --toml` prints one to start from. Default: `finetune` with --weights and for images
    /// larger than 32 pixels, else the network's own
    #[arg(long, value_name = "NAME|FILE.toml", value_parser = NameOrFile)]
    recipe: Option<String>,
    /// Change one setting of the recipe, as often as wanted: `lr=0.05`, `optimizer.weight_decay=0.05`,
    /// `schedule.decay.cosine.every=step`, `clip_norm=none`; `zoo recipe show NAME --toml` shows them all
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
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
    /// Epochs to train: passes over all training images. Default: the recipe's
    #[arg(long, value_name = "N")]
    epochs: Option<usize>,
    /// Batch size: images of one training step. Default: the recipe's
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Learning rate at its highest; its course is the recipe's. Default: the recipe's
    #[arg(long, value_name = "RATE")]
    lr: Option<f64>,
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
    /// Go on with the run in --out from its last checkpoint; from the start if there is none
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Replace the run in --out
    #[arg(long)]
    force: bool,
    /// Print one JSON object a line on standard output: every epoch's metrics as they come, the run's record at the end
    #[arg(long)]
    json: bool,
}

/// Where the mean and deviation come from that pixels are normalised by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum NormalizeFrom {
    /// Those of the network's published checkpoints (torchvision's or timm's)
    Model,
    /// The recipe's, for a checkpoint that was trained by it
    Recipe,
    /// Those of CIFAR-10's images
    Cifar10,
    /// Those of ImageNet's images
    Imagenet,
    /// 0.5 and 0.5: pixels from -1 to 1
    Half,
}

impl NormalizeFrom {
    /// The mean and deviation, and what is recorded where they are not the recipe's own.
    fn figures(self, model: &ModelInfo, recipe: &Recipe) -> (Normalize, &'static str) {
        match self {
            Self::Model => (Normalize::of(&model.preprocess), "model"),
            Self::Recipe => (recipe.normalize.clone(), "recipe"),
            Self::Cifar10 => (Normalize::CIFAR10, "cifar10"),
            Self::Imagenet => (Normalize::IMAGENET, "imagenet"),
            Self::Half => (Normalize::HALF, "half"),
        }
    }
}

/// Trains, and leaves the run's files.
pub fn run(args: &Args) -> Result<()> {
    let threads = set_threads(args.threads)?;
    let device = device(&args.device)?;
    args.precision.map_or(Ok(()), |precision| precision.check(&device)).context("--precision")?;
    let model = zoo::find(&args.model)?;
    may_leave_a_run(args)?;
    let data = load_data(args, model)?;
    let (job, overrides) = plan(args, model, &data, device)?;
    if args.resume && is_finished(&args.out, &job, &data)? {
        say(format_args!("{}: this run is finished, there is nothing to go on with", args.out.display()));
        return Ok(());
    }
    let stop = Stop::on_signals()?;
    say(format_args!(
        "{}: {}, {} classes; {}, recipe {}, batch {}; {}, {}, {threads} threads",
        args.data.display(),
        job.recipe.images_in_words(data.train.len(), data.test.len()),
        data.classes.len(),
        model.name,
        job.recipe.name,
        job.recipe.batch,
        job.recipe.precision,
        args.device
    ));

    let lock = make_folder(args)?;
    let (started, commit) = (now_utc(), source_commit());
    reset_peak_rss();
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
    let record = RunRecord::of(&job, &data, &outcome, context)?;
    let line = serde_json::to_string(&record).context("cannot write the record as JSON")?;
    replace_file(&args.out.join(RECORD_FILE), format!("{line}\n").as_bytes())?;
    replace_file(&args.out.join(CLASSES_FILE), format!("{}\n", data.classes.join("\n")).as_bytes())?;
    if record.status == Status::Finished {
        checkpoint::remove(&args.out)?;
    }
    if args.json {
        print_line(&line)?;
    }
    match record.status {
        Status::Finished => {
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
    }
    Ok(lock)
}

fn load_data(args: &Args, model: &ModelInfo) -> Result<Dataset> {
    ensure!(args.limit != Some(0), "--limit must be at least 1");
    // A folder of that name is `./download`.
    let folder = match args.data.as_os_str() == "download" {
        true => download::cifar10()?,
        false => args.data.clone(),
    };
    let data = Dataset::open_within(&folder, model.preprocess.size, args.size.limits())?;
    pictures::tell(&data.left_out);
    let data = match args.in_chans {
        Some(channels) => data.with_channels(channels)?,
        None => data,
    };
    if let Some(classes) = args.classes {
        let found = data.classes.len();
        ensure!(classes == found, "--classes {classes}, but {} has {found} classes", args.data.display());
    }
    Ok(match args.limit {
        Some(n) => data.limit(n),
        None => data,
    })
}

/// Decides what is trained and how, and lists what differs from the named recipe.
fn plan(args: &Args, model: &'static ModelInfo, data: &Dataset, device: Device) -> Result<(Job, RunOverrides)> {
    let [_, side, _] = data.train.shape();
    let source = match &args.recipe {
        Some(text) => RecipeSource::open(text)?,
        // The networks' own recipes were made for training on CIFAR-10 from scratch.
        None if args.weights.is_some() || side > 32 => RecipeSource::Named(Recipe::named("finetune")?.into()),
        None => RecipeSource::Named(Recipe::default_for(model)?.into()),
    };
    let mut recipe = source.adapted(model.name, side)?;
    let set = set(args, &mut recipe)?;
    let changes = Overrides { epochs: args.epochs, batch: args.batch, lr: args.lr, ..Overrides::NONE };
    let mut overrides = RunOverrides { set, ..changes.that_change(&recipe).into() };
    let precision = args.precision.unwrap_or(recipe.precision);
    precision.check(&device)?;
    let mut recipe = Recipe { precision, ..recipe.with(&changes)? };

    let start = args.weights.as_deref().map(|file| start(args, model, data, file)).transpose()?;
    let usual = if data.source.is_cifar10() { NormalizeFrom::Recipe } else { NormalizeFrom::Model };
    // What the user's own file or --set states is no less the user's wish than a flag.
    let is_stated = source.states("normalize") || args.set.iter().any(|setting| is_of(setting, "normalize"));
    let wished = args.normalize.or(is_stated.then_some(NormalizeFrom::Recipe));
    let (normalize, source) = match (wished, &start) {
        (None, Some(start)) => (start.normalize.clone(), "checkpoint"),
        (from, _) => from.unwrap_or(usual).figures(model, &recipe),
    };
    if recipe.normalize != normalize {
        recipe.normalize = normalize;
        overrides.normalize = Some(source.into());
    }

    let mut job = Job::new(model, recipe, args.seed, device);
    if let Some(start) = start {
        job = job.weights(start.file, &[&start.classifier]);
        job.start.iter_mut().for_each(|start| start.selection = args.wanted.selection());
    }
    if args.json {
        // That standard output cannot be written to is no reason to end the training.
        job.on_epoch = Some(|metrics| _ = print_line(serde_json::to_string(metrics).unwrap_or_default()).ok());
    }
    Ok((job, overrides))
}

/// Whether `KEY=VALUE` sets something of the recipe's part `part`.
fn is_of(setting: &str, part: &str) -> bool {
    setting.split(['=', '.']).next().is_some_and(|key| key.trim() == part)
}

/// Puts what --set says over the recipe: those of the settings that change it.
fn set(args: &Args, recipe: &mut Recipe) -> Result<Vec<String>> {
    let flags = [
        ("length", "--epochs", args.epochs.is_some()),
        ("batch", "--batch", args.batch.is_some()),
        ("lr", "--lr", args.lr.is_some()),
        ("precision", "--precision", args.precision.is_some()),
        ("normalize", "--normalize", args.normalize.is_some()),
    ];
    for (part, flag, _) in flags.into_iter().filter(|(.., is_given)| *is_given) {
        if let Some(setting) = args.set.iter().find(|setting| is_of(setting, part)) {
            bail!("--set {} and {flag} say the same setting twice: leave one out", quoted(setting));
        }
    }
    recipe.set_all(&args.set).context("--set")
}

/// A checkpoint to start from.
struct Start {
    file: PathBuf,
    /// The key of the network's classifier, which may differ.
    classifier: String,
    /// How pixels were normalised in its training.
    normalize: Normalize,
}

/// Opens the checkpoint in `file`, which must fit. Called before anything of an earlier run is removed.
fn start(args: &Args, model: &ModelInfo, data: &Dataset, file: &Path) -> Result<Start> {
    let file = weights_file(file, Some(model))?;
    let selection = args.wanted.selection();
    let weights = selection.open(&file)?;
    let [channels, side, _] = data.train.shape();
    let options = ModelOptions::for_data(data.classes.len(), channels, side);
    let shapes = VarStore::shapes_only();
    let classifier = model.build(&options, shapes.root())?.classifier().path().to_string();
    let options = LoadOptions { may_differ: &[&classifier], adapt: true, ..selection.of(model.load_options()) };
    let report = ensure_fit(&shapes, &weights, &options)?;
    for (key, how) in &report.adapted {
        say(format_args!("{}: `{key}` adapted: {how}", file.display()));
    }
    let (normalize, why) = normalize_of(model, &file, &weights, &report)?;
    if args.normalize.is_none() {
        say(format_args!("{}: {normalize}, {why}", file.display()));
    }
    Ok(Start { file, classifier, normalize })
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
    row("test accuracy", &accuracies(record));
    let left = FILES.into_iter().filter(|name| args.out.join(name).exists());
    row("left", &left.map(path).collect::<Vec<_>>().join(" "));
    let (model, weights) = (&record.model, path(WEIGHTS_FILE));
    row("to use it", &format!("zoo predict {model} --weights {weights} IMAGE..."));
}

/// The test accuracies of a finished run, and which epoch the weights in its folder are from.
fn accuracies(record: &RunRecord) -> String {
    let percent = |accuracy: Option<f64>| accuracy.map_or("-".to_string(), |a| format!("{:.1} %", 100.0 * a));
    let last = format!("{} after the last epoch (this is what {WEIGHTS_FILE} holds)", percent(record.test_acc_last));
    match record.best_epoch {
        Some(epoch) if record.test_acc_best > record.test_acc_last => {
            format!("{last}; best {} after epoch {epoch}, not kept", percent(record.test_acc_best))
        }
        _ => format!("{last}; no epoch was better"),
    }
}

//! The training loop: one network, one recipe, one seed, from its first step to its record.

use crate::augment::Transform;
use crate::checkpoint::{self, Checkpoint, Checkpoints, Position, Sums, Tensors, Unwritable};
use crate::data::{Dataset, Split};
use crate::error_analysis::{self, ErrorAnalysis};
use crate::errors;
use crate::eval::{Evaluation, evaluate};
use crate::loader::{Batch, Loader};
use crate::machine::available_memory;
use crate::optim::{Optimizer, clip_grad_norm};
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::record::{EpochMetrics, METRICS_FILE, Status, append_jsonl, replace_file, rss_mb, write_jsonl};
use crate::schedule::LearningRate;
use crate::trained::{WEIGHTS_FILE, metadata, taken};
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Var};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use zoo::{Model, ModelInfo, ModelOptions, VarStore};
use zoo_core::loss::topk_correct;
use zoo_core::tape::value_and_grad;
use zoo_core::threads::in_pool;
use zoo_core::trace::{diagnose, first_damaged, training_memory};
use zoo_core::weights::{LoadOptions, Selection, load, open_regular, save_safetensors};

/// File of a run's folder that says which run it is: everything that changes its numbers.
pub const RUN_FILE: &str = "run.json";

/// Images a step of evaluation; it holds no graph, so it may be larger than a training step's.
const EVAL_BATCH: usize = 250;

/// What to train.
#[derive(Debug, Clone)]
pub struct Job {
    /// The network.
    pub model: &'static ModelInfo,
    /// How it is trained.
    pub recipe: Recipe,
    /// Fixes initialisation, order, augmentation and dropout.
    pub seed: u64,
    /// Where it runs.
    pub device: Device,
    /// The checkpoint that training starts from; from scratch without one.
    pub start: Option<Start>,
    /// Called after every epoch, once its metrics are in `metrics.jsonl`: for programs that follow a run as it goes.
    pub on_epoch: Option<fn(&EpochMetrics)>,
}

/// A checkpoint to start from.
#[derive(Debug, Clone)]
pub struct Start {
    /// A file of any kind that [`zoo_core::weights`] reads.
    pub file: PathBuf,
    /// Parts of the network, as key prefixes, that may differ from the file and then start afresh: the classifier.
    pub may_differ: Vec<String>,
    /// What of the file is wanted.
    pub selection: Selection,
}

impl Job {
    /// From scratch.
    pub fn new(model: &'static ModelInfo, recipe: Recipe, seed: u64, device: Device) -> Self {
        Self { model, recipe, seed, device, start: None, on_epoch: None }
    }

    /// From the weights in `file`; the parts named by `may_differ` start afresh where their shapes differ.
    #[must_use]
    pub fn weights(mut self, file: impl Into<PathBuf>, may_differ: &[&str]) -> Self {
        let may_differ = may_differ.iter().map(|&s| s.to_owned()).collect();
        self.start = Some(Start { file: file.into(), may_differ, selection: Selection::default() });
        self
    }
}

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Finished, interrupted, or failed with the reason.
    pub status: Status,
    /// Every completed epoch.
    pub epochs: Vec<EpochMetrics>,
    /// Optimizer steps completed.
    pub steps: u64,
    /// Images trained on, of each epoch.
    pub train_images: usize,
    /// Wall-clock time, evaluation included.
    pub seconds: f64,
}

/// How one pass over the training images ended.
enum Pass {
    Done,
    Stopped,
    Diverged(String),
}

struct Run<'a> {
    job: &'a Job,
    store: VarStore,
    net: Box<dyn Model>,
    parameters: Vec<(String, Var)>,
    optimizer: Box<dyn Optimizer>,
    lr: LearningRate,
    train: Loader,
    test: Loader,
    epochs: usize,
    /// What its weights say of themselves.
    metadata: BTreeMap<String, String>,
    /// Where it stands; its `seconds` are those of earlier sessions.
    at: Position,
    began: Instant,
    /// What the user should know before it starts.
    notes: Vec<String>,
    /// What the network gets wrong after the last epoch, once that is measured.
    error_analysis: Option<ErrorAnalysis>,
}

/// Writes a run's checkpoints, not too often.
struct Saver<'a> {
    folder: &'a Path,
    every: Duration,
    last: Instant,
}

/// Trains `job` on `data` and leaves `run.json` (which run it is), `metrics.jsonl` (a line after every epoch), `model.safetensors`
/// and what the trained network gets wrong ([`error_analysis`]) in `folder`, which must exist, with checkpoints beside them
/// ([`checkpoint::remove`] them once the run is recorded).
///
/// With [`Checkpoints::resume`] it goes on from the newest checkpoint in `folder`, whatever ended the run that wrote it, to the
/// weights and metrics that an uninterrupted run has, bit by bit. When `stop` turns true the run ends after the step in hand and
/// keeps what is done. A loss that is not finite ends the run as failed, naming epoch, batch, learning rate and the first layer
/// whose output is not finite. So do weights or running statistics that are not finite after an epoch, and a loss that is not after
/// the last one; then no weights are left. Neither is an error of this function.
///
/// # Errors
/// Data that does not fit the network or the recipe; a run that would not fit into memory; a folder that holds another run; a file
/// that cannot be written ([`Unwritable`]), which is tried before the first step.
pub fn train(
    job: &Job,
    data: &Dataset,
    folder: &Path,
    checkpoints: &Checkpoints,
    stop: &AtomicBool,
) -> Result<Outcome> {
    in_pool(|| train_here(job, data, folder, checkpoints, stop))
}

fn train_here(
    job: &Job,
    data: &Dataset,
    folder: &Path,
    checkpoints: &Checkpoints,
    stop: &AtomicBool,
) -> Result<Outcome> {
    let mut run = Run::new(job, data)?;
    run.enter(folder, checkpoints)?;
    let name = format!("{} {} seed {}", job.model.name, job.recipe.name, job.seed);
    let progress = Progress::new(&name, run.epochs, (run.epochs * run.train.len()) as u64);
    progress.resume(run.at.steps, run.at.seconds);
    run.notes.iter().for_each(|note| progress.say(&format!("{name}: {note}")));
    if run.at.steps == 0 {
        // A run that goes on has taken its room already.
        checkpoint::ensure_room(folder, run.checkpoint_bytes())?;
    }
    // The first one shows that the folder can be written before anything is computed.
    let mut saver = Saver { folder, every: checkpoints.every, last: Instant::now() };
    saver.save(&run)?;
    let unwritable = |error: anyhow::Error| error.context(Unwritable(folder.into()));
    let identity = serde_json::to_vec(&run.at.identity).context("cannot write a run's identity as JSON")?;
    replace_file(&folder.join(RUN_FILE), &[&identity[..], b"\n"].concat()).map_err(unwritable)?;
    let metrics_file = folder.join(METRICS_FILE);
    write_jsonl(&metrics_file, &run.at.epochs).map_err(unwritable)?;

    let (mut status, mut usable) = (Status::Finished, true);
    loop {
        // Also where a run goes on: its last step may have been the one.
        if let Some(message) = run.damage()? {
            progress.say(&format!("{name}: {message}"));
            (status, usable) = (Status::Failed { message }, false);
            break;
        }
        if run.at.epoch > run.epochs {
            break;
        }
        match run.pass(stop, &progress, &mut saver)? {
            Pass::Done => {}
            Pass::Stopped => {
                saver.save(&run)?;
                status = Status::Interrupted;
                break;
            }
            Pass::Diverged(message) => {
                progress.say(&format!("{name}: {message}"));
                status = Status::Failed { message };
                break;
            }
        }
        let metrics = run.end_epoch(data)?;
        append_jsonl(&metrics_file, &metrics).map_err(unwritable)?;
        saver.save(&run)?;
        progress.epoch(&metrics);
        job.on_epoch.inspect(|tell| tell(&metrics));
    }
    if usable {
        save_safetensors(&run.store, folder.join(WEIGHTS_FILE), &run.metadata)
            .map_err(|error| unwritable(error.into()))?;
    }
    if status == Status::Finished {
        let analysis = match run.error_analysis.take() {
            Some(analysis) => analysis,
            // The last epoch was measured by the session before this one, which did not come to write it.
            None => run.collect(data)?.1,
        };
        error_analysis::write(folder, &analysis).map_err(|error| {
            let is_disk = error.chain().any(|cause| cause.is::<std::io::Error>());
            if is_disk { unwritable(error) } else { error }
        })?;
    }
    let (steps, seconds) = (run.at.steps, run.seconds());
    let train_images = job.recipe.train_images(data.train.len());
    Ok(Outcome { status, epochs: run.at.epochs, steps, train_images, seconds })
}

impl Saver<'_> {
    /// The share of a run that writing checkpoints may take is one in this many.
    const SHARE: u32 = 50;

    fn is_due(&self) -> bool {
        self.last.elapsed() >= self.every
    }

    fn save(&mut self, run: &Run) -> Result<()> {
        let begin = Instant::now();
        checkpoint::save(self.folder, &run.position(), &run.tensors()?)?;
        if !self.every.is_zero() {
            self.every = self.every.max(begin.elapsed() * Self::SHARE);
        }
        self.last = Instant::now();
        Ok(())
    }
}

impl<'a> Run<'a> {
    fn new(job: &'a Job, data: &Dataset) -> Result<Self> {
        let began = Instant::now();
        let mut recipe = job.recipe.clone();
        let mut notes = Vec::new();
        let [channels, height, width] = data.train.shape();
        let side = job.model.input.size;
        // Networks for 224 pixels take smaller images too, as their published CIFAR-10 runs do; never larger ones.
        ensure!(
            height == width && height <= side,
            "{} is made for images of {side}x{side}, the data has {height}x{width}",
            job.model.name
        );
        let options = ModelOptions::for_data(data.classes.len(), channels, height);
        if let (Some(available), true) = (available_memory(), job.device.is_cpu()) {
            // A network of the caller's own may have a pass that cannot be traced: then nothing is known.
            if let Ok(needed) = training_memory(job.model, &options, recipe.batch, recipe.optimizer.states()) {
                notes.extend(ensure_memory(needed, available, recipe.batch)?);
            }
        }
        let store = VarStore::new(job.seed, DType::F32, &job.device);
        store.set_batch_norm(recipe.batch_norm.into());
        let net = job.model.build(&options, store.root())?;
        if let Some(start) = &job.start {
            let may_differ: Vec<&str> = start.may_differ.iter().map(String::as_str).collect();
            let options = LoadOptions { may_differ: &may_differ, ..start.selection.of(job.model.load_options()) };
            let weights = start.selection.open(&start.file)?;
            let report = load(&store, &weights, &options)?;
            notes.extend(taken(&weights));
            notes.push(format!("{}: {report}", start.file.display()));
        }
        let images = recipe.train_images(data.train.len());
        if recipe.leaves_one_image(images) {
            recipe.drop_last = true;
            notes.push(format!(
                "{images} images in batches of {} leave a last batch of one image: it is left out",
                recipe.batch
            ));
        }
        let identity = identity(job, data)?;
        let data = data.clone().limit(images);
        let transform = std::sync::Arc::new(Transform::new(&recipe.normalize, &data.train)?);
        let metadata = metadata(job.model, &recipe, &transform, &data.classes)?;
        let extent = recipe.extent(images)?;
        let train = Loader::train(data.train, transform.clone(), recipe.augment, recipe.batch, job.seed, &job.device)?
            .drop_last(recipe.drop_last);
        let test = Loader::eval(data.test, transform, EVAL_BATCH, &job.device)?;
        let parameters = store.parameters();
        let optimizer = recipe.optimizer.build(parameters.clone(), recipe.lr, recipe.decay_all);
        let lr = recipe.schedule.over(recipe.lr, extent);
        let epochs = (extent.total_steps / extent.steps_per_epoch) as usize;
        let at = Position {
            identity,
            epoch: 1,
            batches: 0,
            steps: 0,
            sums: Sums::default(),
            epochs: Vec::with_capacity(epochs),
            seconds: 0.0,
            dropout: BTreeMap::new(),
        };
        Ok(Self {
            job,
            store,
            net,
            parameters,
            optimizer,
            lr,
            train,
            test,
            epochs,
            metadata,
            at,
            began,
            notes,
            error_analysis: None,
        })
    }

    /// Goes to where the run in `folder` stands, or makes sure that there is none.
    fn enter(&mut self, folder: &Path, checkpoints: &Checkpoints) -> Result<()> {
        let metrics = folder.join(METRICS_FILE);
        if !checkpoints.resume {
            let is_used = checkpoint::is_in(folder) || metrics.metadata().is_ok_and(|file| file.len() > 0);
            ensure!(!is_used, "{} holds an earlier run: resume it, or choose another folder", folder.display());
            return Ok(());
        }
        ensure_same(&differences_to(&self.at.identity, folder)?, folder)?;
        let found = checkpoint::newest(folder)?;
        self.notes.extend(found.notes);
        let Some(checkpoint) = found.checkpoint else { return Ok(()) };
        ensure_same(&checkpoint::differences(&checkpoint.position.identity, &self.at.identity), folder)?;
        self.restore(checkpoint).with_context(|| format!("the checkpoint in {}", folder.display()))?;
        self.notes.push(match self.at.epoch {
            epoch if epoch > self.epochs => "all epochs are done already".to_owned(),
            epoch => format!("going on at epoch {epoch}, batch {} of {}", self.at.batches + 1, self.train.len()),
        });
        Ok(())
    }

    fn restore(&mut self, checkpoint: Checkpoint) -> Result<()> {
        checkpoint.restore(&self.store, self.optimizer.as_mut())?;
        self.at = checkpoint.position;
        Ok(())
    }

    /// Why the network as it stands is of no use to anybody, if it is not: a tensor, or at the end a loss, that is not finite.
    /// Between two epochs a loss may be infinite and come back; a tensor does not.
    fn damage(&self) -> Result<Option<String>> {
        let last = self.at.epochs.last();
        let when = match last {
            Some(last) => format!("after epoch {} of {}, learning rate {:.3e}", last.epoch, self.epochs, last.lr),
            None => "before the first epoch is done".to_owned(),
        };
        if let Some(key) = first_damaged(&self.store)? {
            return Ok(Some(format!("`{key}` is not finite {when}")));
        }
        let last = last.filter(|_| self.at.epoch > self.epochs);
        let losses = last.into_iter().flat_map(|m| [("training", m.train_loss), ("test", m.test_loss)]);
        let lost = losses.into_iter().find(|(_, loss)| !loss.is_finite());
        Ok(lost.map(|(which, loss)| format!("the {which} loss is {loss} {when}, though every weight is finite")))
    }

    /// Seconds of the run, earlier sessions' included.
    fn seconds(&self) -> f64 {
        self.at.seconds + self.began.elapsed().as_secs_f64()
    }

    fn position(&self) -> Position {
        Position { seconds: self.seconds(), dropout: self.store.dropout_state(), ..self.at.clone() }
    }

    fn tensors(&self) -> Result<Tensors> {
        let model = self.store.slots().into_iter().filter_map(|slot| Some((slot.key, slot.var?.as_detached_tensor())));
        Ok(Tensors { model: model.collect(), optimizer: self.optimizer.state()? })
    }

    /// About how large a checkpoint is, once the optimizer has its state.
    fn checkpoint_bytes(&self) -> u64 {
        let elements = |vars: Vec<(String, Var)>| vars.iter().map(|(_, var)| var.elem_count() as u64).sum::<u64>();
        let states = self.job.recipe.optimizer.states() as u64;
        4 * (elements(self.store.parameters()) * (1 + states) + elements(self.store.buffers()))
    }

    /// What is left of the epoch in hand.
    fn pass(&mut self, stop: &AtomicBool, progress: &Progress, saver: &mut Saver) -> Result<Pass> {
        let (epoch, before, began) = (self.at.epoch, self.at.sums, Instant::now());
        let mut saving = Duration::ZERO;
        let mut batches = self.train.epoch_from(epoch as u64, self.at.batches)?;
        loop {
            let batch = if stop.load(Ordering::Relaxed) { None } else { batches.next() };
            let elapsed = began.elapsed();
            let sums = &mut self.at.sums;
            sums.wait_seconds = before.wait_seconds + batches.wait_seconds();
            sums.train_seconds = before.train_seconds + (elapsed - saving).as_secs_f64();
            sums.seconds = before.seconds + elapsed.as_secs_f64();
            if self.at.batches > 0 && batch.is_some() && saver.is_due() {
                let begin = Instant::now();
                saver.save(self)?;
                saving += begin.elapsed();
            }
            let Some(batch) = batch else { break };
            let (lr, number) = (self.lr.at(self.at.steps), self.at.batches + 1);
            let batch = batch?;
            let (loss, hits) = self
                .step(&batch, lr)
                .with_context(|| format!("{} epoch {epoch} batch {number}", self.job.model.name))?;
            if !loss.is_finite() {
                let why = match diagnose(self.net.as_ref(), &self.store, &batch.images) {
                    Ok(diagnosis) => diagnosis.to_string(),
                    Err(error) => format!("looking for the cause failed: {}", errors::line(&error.into())),
                };
                return Ok(Pass::Diverged(format!(
                    "the loss became {loss} at epoch {epoch}, batch {number}, learning rate {lr:.3e}: {why}"
                )));
            }
            let sums = &mut self.at.sums;
            sums.loss += loss * batch.host_labels.len() as f64;
            sums.correct += hits;
            sums.images += batch.host_labels.len();
            self.at.batches += 1;
            self.at.steps += 1;
            progress.step(epoch, loss);
        }
        Ok(if self.at.batches == self.train.len() { Pass::Done } else { Pass::Stopped })
    }

    /// Measures the network on the test images, and what it gets wrong there.
    fn collect(&self, data: &Dataset) -> Result<(Evaluation, ErrorAnalysis)> {
        error_analysis::collect(self.net.as_ref(), &self.test, &data.test, &data.classes)
    }

    /// Measures the network after the epoch in hand, after the last one in detail, and goes to the next one.
    fn end_epoch(&mut self, data: &Dataset) -> Result<EpochMetrics> {
        let test = if self.at.epoch == self.epochs {
            let (test, analysis) = self.collect(data)?;
            self.error_analysis = Some(analysis);
            test
        } else {
            evaluate(self.net.as_ref(), &self.test)?
        };
        let sums = std::mem::take(&mut self.at.sums);
        let images = sums.images as f64;
        let metrics = EpochMetrics {
            epoch: self.at.epoch,
            step: self.at.steps,
            lr: self.lr.at(self.at.steps.saturating_sub(1)),
            train_loss: sums.loss / images,
            train_acc: sums.correct as f64 / images,
            test_loss: test.loss,
            test_acc: test.top1(),
            seconds: sums.seconds + test.seconds,
            images_per_s: images / sums.train_seconds,
            wait_share: sums.wait_seconds / sums.train_seconds,
            rss_mb: rss_mb(),
        };
        self.at.epochs.push(metrics.clone());
        self.at.epoch += 1;
        self.at.batches = 0;
        Ok(metrics)
    }

    /// One step of the optimizer; the loss and how many images were classified right before it. A loss that is not finite
    /// changes no weight.
    fn step(&mut self, batch: &Batch, lr: f64) -> Result<(f64, usize)> {
        let mut logits = None;
        let (loss, mut grads) = value_and_grad(&batch.images, |images| {
            let (loss, ys) = self.net.training_loss(images, &batch.labels, self.job.recipe.label_smoothing)?;
            logits = Some(ys);
            Ok(loss)
        })?;
        let logits = logits.context("a pass without logits")?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        if !value.is_finite() {
            return Ok((value, 0));
        }
        if let Some(max_norm) = self.job.recipe.clip_norm {
            clip_grad_norm(&self.parameters, &mut grads, max_norm)?;
        }
        self.optimizer.set_lr(lr);
        self.optimizer.step(&grads)?;
        Ok((value, topk_correct(&logits, &batch.host_labels, 1)?))
    }
}

/// Refuses a run that needs far more memory than there is, and gives a warning for one that may. The estimate may be a third too
/// high, see [`training_memory`].
fn ensure_memory(needed: u64, available: u64, batch: usize) -> Result<Option<String>> {
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let text = format!(
        "training with a batch of {batch} needs about {:.1} GB of memory, and {:.1} GB are available",
        gb(needed),
        gb(available)
    );
    ensure!(needed / 4 * 3 <= available, "{text}: take a smaller batch");
    Ok((needed > available).then(|| format!("{text}: it may be ended by the system; a smaller batch would fit")))
}

/// In what the run that `folder` holds differs from `job` on `data`, as `seed: 1 there, 2 here`; empty if in nothing, or if no run
/// in there says which it is. Threads are no part of it, since they change no bit of a result.
///
/// # Errors
/// A file that cannot be read, or does not say which run it is.
pub fn differences(job: &Job, data: &Dataset, folder: &Path) -> Result<Vec<String>> {
    differences_to(&identity(job, data)?, folder)
}

fn differences_to(identity: &Value, folder: &Path) -> Result<Vec<String>> {
    let path = folder.join(RUN_FILE);
    let theirs: Value = match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .with_context(|| format!("{} does not say which run it is: remove it, or train afresh", path.display()))?,
        // A folder from before the file was added: its checkpoints say it.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    Ok(checkpoint::differences(&theirs, identity))
}

fn ensure_same(differences: &[String], folder: &Path) -> Result<()> {
    ensure!(
        differences.is_empty(),
        "{} holds another run, which this one cannot go on from ({}); ask for the same run, or for another folder",
        folder.display(),
        differences.join("; ")
    );
    Ok(())
}

/// What makes a run the one that it is: it goes on in the same one only.
fn identity(job: &Job, data: &Dataset) -> Result<Value> {
    let checksum = |split: &Split| {
        let mut hasher = crc32fast::Hasher::new();
        for (index, label) in split.labels().iter().enumerate() {
            hasher.update(&label.to_le_bytes());
            hasher.update(split.image(index));
        }
        format!("{} images of {:?}, checksum {:08x}", split.len(), split.shape(), hasher.finalize())
    };
    let start = |Start { file, may_differ, selection }: &Start| -> Result<Value> {
        // What is in it counts, not where it lies.
        let checksum = checksum_of(file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut start = json!({"checksum": checksum, "may_differ": may_differ});
        if *selection != Selection::default() {
            let Selection { entry, prefix, ignore } = selection;
            start["selection"] = json!({"entry": entry, "prefix": prefix, "ignore": ignore});
        }
        Ok(start)
    };
    Ok(json!({
        "model": job.model.name,
        "recipe": job.recipe,
        "seed": job.seed,
        "device": format!("{:?}", job.device.location()),
        "training": checksum(&data.train),
        "test": checksum(&data.test),
        "classes": data.classes,
        "start": job.start.as_ref().map(start).transpose()?,
    }))
}

fn checksum_of(file: &Path) -> std::io::Result<String> {
    let (mut file, mut hasher, mut buffer) = (open_regular(file)?, crc32fast::Hasher::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(format!("{:08x}", hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Synthetic;
    use crate::recipe::Length;

    /// As f32 the rate is infinite. A tensor that is not finite ends the run wherever it turns up, and again where the run is resumed; no weights are left.
    #[test]
    fn weights_that_are_not_finite_are_no_result() -> Result<()> {
        let data = Synthetic { train: 64, test: 20, seed: 0 }.generate();
        let mut job = Job::new(zoo::find("mlp")?, Recipe::named("quick")?, 1, Device::Cpu);
        job.recipe.lr = 1e300;
        for length in [1, 3] {
            job.recipe.length = Length::Epochs(length);
            let folder = tempfile::tempdir()?;
            for resume in [false, true] {
                let checkpoints = Checkpoints { resume, ..Checkpoints::default() };
                let outcome = train(&job, &data, folder.path(), &checkpoints, &AtomicBool::new(false))?;
                let Status::Failed { message } = outcome.status else { panic!("{:?}", outcome.status) };
                assert!(
                    message.starts_with("`layers.") && message.contains("is not finite after epoch 1 of"),
                    "{message}"
                );
                assert!(outcome.epochs.len() == 1 && !folder.path().join(WEIGHTS_FILE).exists());
            }
        }
        Ok(())
    }

    #[test]
    fn a_run_that_would_not_fit_says_so_first() {
        let gb = 1_000_000_000;
        assert_eq!(ensure_memory(2 * gb, 8 * gb, 128).unwrap(), None);
        let warning = ensure_memory(9 * gb, 8 * gb, 128).unwrap().unwrap();
        assert!(warning.contains("a batch of 128 needs about 9.0 GB") && warning.contains("8.0 GB are"), "{warning}");
        let error = ensure_memory(80 * gb, 8 * gb, 128).unwrap_err().to_string();
        assert!(error.contains("80.0 GB") && error.contains("smaller batch"), "{error}");
    }
}

//! The training loop: one network, one recipe, one seed, from its first step to its record.
//!
//! A [`Job`] says what is trained; [`differences`] tells one run from another by what changes its numbers.

mod identity;
mod job;

pub use identity::{RUN_FILE, differences};
pub use job::{Job, Outcome, Start};

use crate::checkpoint::{self, Checkpoint, Checkpoints, Position, Sums, Tensors, Unwritable};
use crate::data::Dataset;
use crate::error_analysis::{self, ErrorAnalysis};
use crate::errors;
use crate::eval::{Evaluation, evaluate};
use crate::loader::{Batch, Loader};
use crate::machine::{available_memory, ensure_memory};
use crate::optim::{Optimizer, clip_grad_norm};
use crate::progress::Progress;
use crate::record::{EpochMetrics, METRICS_FILE, Status, append_jsonl, replace_file, rss_mb, write_jsonl};
use crate::schedule::LearningRate;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Var};
use identity::{differences_between, differences_to, ensure_same, identity};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use zoo::{Model, ModelOptions, VarStore};
use zoo_core::inspect::{diagnose, first_damaged, training_memory};
use zoo_core::loss::topk_correct;
use zoo_core::tape::value_and_grad;
use zoo_core::threads::in_pool;
use zoo_core::weights::{LoadOptions, load, save_safetensors};
use zoo_image::{WEIGHTS_FILE, taken};

/// Images a step of evaluation; it holds no graph, so it may be larger than a training step's.
const EVAL_BATCH: usize = 250;

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
    /// The metadata of its file of weights.
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

/// Trains `job` on `data` and leaves `run.json` (which run it is), `metrics.jsonl` (a line after every epoch),
/// `model.safetensors` and what the trained network gets wrong ([`error_analysis`]) in `folder`, which must exist, with
/// checkpoints beside them ([`checkpoint::remove`] them once the run is recorded).
///
/// With [`Checkpoints::resume`] it goes on from the newest checkpoint in `folder`, whatever ended the run that wrote
/// it, to the weights and metrics that an uninterrupted run has, bit by bit. When `stop` turns true the run ends after
/// the step in hand and keeps what is done. A loss that is not finite ends the run as failed, naming epoch, batch,
/// learning rate and the first layer whose output is not finite. So do weights or running statistics that are not
/// finite after an epoch, and a loss that is not after the last one; then no weights are left. Neither is an error of
/// this function.
///
/// # Errors
/// Data that does not fit the network or the recipe; a run that would not fit into memory; a folder that holds another
/// run; a file that cannot be written ([`Unwritable`]), which is tried before the first step.
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
    let precision = job.recipe.precision.unusual().map_or(String::new(), |precision| format!(" {precision}"));
    let name = format!("{} {}{precision} seed {}", job.model.name, job.recipe.name, job.seed);
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
        // Also before the first step of a resumed run: the last step before its checkpoint may have done it.
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
            // An earlier session measured the last epoch and ended before it could write this.
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
        recipe.precision.check(&job.device)?;
        let [channels, height, width] = data.train.shape();
        let side = job.model.preprocess.size;
        // Networks for 224 pixels take smaller images too, as their published CIFAR-10 runs do; never larger ones.
        ensure!(
            height == width && height <= side,
            "{} is made for images of {side}x{side}, the data has {height}x{width}",
            job.model.name
        );
        let options = ModelOptions::for_data(data.classes.len(), channels, height);
        if let (Some(available), true) = (available_memory(), job.device.is_cpu()) {
            // A network of the caller's own may have a pass that cannot be traced: then nothing is known.
            if let Ok(needed) =
                training_memory(job.model, &options, recipe.precision, recipe.batch, recipe.optimizer.states())
            {
                notes.extend(ensure_memory(needed, available, recipe.batch)?);
            }
        }
        let store = VarStore::new(job.seed, DType::F32, &job.device);
        store.set_batch_norm(recipe.batch_norm.into());
        store.set_init(recipe.init);
        let net = job.model.build(&options, store.root())?;
        if let Some(start) = &job.start {
            let may_differ: Vec<&str> = start.may_differ.iter().map(String::as_str).collect();
            let options =
                LoadOptions { may_differ: &may_differ, adapt: true, ..start.selection.of(job.model.load_options()) };
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
        let transform = std::sync::Arc::new(data.train.transform(&recipe.normalize)?);
        let metadata = job.metadata(&recipe, &transform, data.classes).to_map()?;
        let extent = recipe.step_count(images)?;
        let train = Loader::train(data.train, transform.clone(), recipe.augment, recipe.batch, job.seed, &job.device)?
            .drop_last(recipe.drop_last)
            .precision(recipe.precision);
        let test = Loader::eval(data.test, transform, EVAL_BATCH, &job.device)?.precision(recipe.precision);
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

    /// Continues the run in `folder` from its newest checkpoint or, without `resume`, makes sure that there is no run.
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
        ensure_same(&differences_between(&checkpoint.position.identity, &self.at.identity), folder)?;
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

    /// The damage that makes the network useless, if there is any: a tensor that is not finite or, after the last
    /// epoch, a loss that is not. Before that a loss may be infinite and recover; a tensor never does.
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

    /// Trains on the batches that are left of this epoch.
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

    /// Ends an epoch: measures the network, after the last epoch in detail, and moves on to the next.
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

    /// One step of the optimizer; the loss and how many images were classified right before it. A loss that is not
    /// finite changes no weight.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Synthetic;
    use crate::recipe::{Length, Recipe};
    use candle_core::Device;
    use zoo_core::Precision;

    /// The learning rate is infinite as f32, so that weights stop being finite in the first epoch. That ends the run,
    /// and ends it again when it is resumed; no weights are left.
    #[test]
    fn weights_that_are_not_finite_are_no_result() -> Result<()> {
        let data = Synthetic { train: 64, test: 20, seed: 0 }.generate();
        let mut job = Job::new(zoo::find("mlp")?, Recipe::named("quick")?, 1, Device::Cpu);
        job.recipe.lr = 1e300;
        for (length, precision) in [(1, Precision::F32), (3, Precision::F32), (2, Precision::Bf16)] {
            (job.recipe.length, job.recipe.precision) = (Length::Epochs(length), precision);
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
}

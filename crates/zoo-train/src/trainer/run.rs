//! A run: its epochs, its checkpoints, and what it leaves.

use super::identity::{differences_between, differences_to, ensure_same};
use super::{Loss, OnEpoch, OnStep, Outcome, RUN_FILE, StepMetrics, Trainer};
use crate::average::WeightAverage;
use crate::checkpoint::{self, Checkpoint, Checkpoints, Position, Tensors, Unwritable};
use crate::data::{Dataset, Split};
use crate::error_analysis::{self, ErrorAnalysis};
use crate::errors;
use crate::eval::{Evaluation, evaluate};
use crate::loader::Loader;
use crate::optim::Optimizer;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::record::{EpochMetrics, METRICS_FILE, Status, append_jsonl, replace_file, rss_mb, write_jsonl};
use crate::schedule::LearningRate;
use anyhow::{Context, Result, ensure};
use candle_core::Var;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use zoo::{Model, VarStore};
use zoo_core::inspect::{diagnose, first_damaged};
use zoo_image::Metadata;

/// How one pass over the training images ended.
enum Pass {
    Done,
    Stopped,
    Diverged(String),
}

pub(super) struct Run<'a> {
    pub net: &'a dyn Model,
    pub store: &'a VarStore,
    pub recipe: Recipe,
    pub loss: Option<&'a Loss<'a>>,
    pub on_step: Option<OnStep<'a>>,
    /// A hook has asked for the end.
    pub asked: bool,
    pub parameters: Vec<(String, Var)>,
    pub optimizer: Box<dyn Optimizer>,
    /// Of the weights, which is what is measured and kept.
    pub average: Option<WeightAverage>,
    pub lr: LearningRate,
    pub train: Loader,
    /// What every epoch is measured on, and what those images are called.
    pub measured: Measured,
    pub measured_on: &'static str,
    /// Test images that are measured once.
    pub at_the_end: Option<Measured>,
    pub epochs: usize,
    /// The metadata of its file of weights.
    pub metadata: Metadata,
    /// Where it stands; its `seconds` are those of earlier sessions.
    pub at: Position,
    pub began: Instant,
    /// What the user should know before it starts.
    pub notes: Vec<String>,
    /// What the network gets wrong after the last epoch, once that is measured.
    pub error_analysis: Option<ErrorAnalysis>,
}

/// Images to measure on.
pub(super) struct Measured {
    pub split: Arc<Split>,
    pub loader: Loader,
}

/// Writes a run's checkpoints, not too often.
struct Saver<'a> {
    folder: &'a Path,
    every: Duration,
    last: Instant,
}

/// Trains; see [`super::train`].
pub(super) fn fit(mut trainer: Trainer, data: &Dataset, folder: &Path) -> Result<Outcome> {
    let never = AtomicBool::new(false);
    let stop = trainer.stop.unwrap_or(&never);
    let mut on_epoch = trainer.on_epoch.take();
    let checkpoints = trainer.checkpoints;
    let name = {
        let Trainer { name, recipe, seed, .. } = &trainer;
        let precision = recipe.precision.unusual().map_or(String::new(), |precision| format!(" {precision}"));
        format!("{name} {}{precision} seed {seed}", recipe.name)
    };
    let classes = &data.classes;
    let mut run = Run::new(trainer, data)?;
    run.enter(folder, &checkpoints)?;
    let progress = Progress::new(&name, run.epochs, run.epochs as u64 * run.steps_per_epoch(), run.measured_on);
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
        if run.is_done() {
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
        let metrics = run.end_epoch(folder, classes)?;
        append_jsonl(&metrics_file, &metrics).map_err(unwritable)?;
        saver.save(&run)?;
        progress.epoch(&metrics);
        run.tell_unreadable(&progress, &name);
        if on_epoch.as_mut().is_some_and(|tell: &mut OnEpoch| tell(&metrics).is_break()) {
            progress.say(&format!("{name}: ended after epoch {} as it was asked to", metrics.epoch));
            break;
        }
    }
    if status == Status::Finished && !run.at.epochs.is_empty() && run.at.epoch <= run.epochs && run.is_patience_spent()
    {
        let best = run.kept().map_or(0, |kept| kept.epoch);
        progress.say(&format!("{name}: ended, since no epoch was better than epoch {best}"));
    }
    let is_last = run.kept().is_some_and(|kept| kept.epoch == run.at.epochs.len());
    run.keep(folder, usable)?;
    let mut test = None;
    if status == Status::Finished {
        let analysis = match run.error_analysis.take().filter(|_| is_last && run.at_the_end.is_none()) {
            Some(analysis) => analysis,
            // Of the weights that are kept; or an earlier session measured the last epoch and ended before it could write this.
            None => {
                let at_the_end = run.at_the_end.as_ref();
                let (evaluation, analysis) = run.collect(at_the_end.unwrap_or(&run.measured), classes)?;
                test = at_the_end.is_some().then_some(evaluation);
                analysis
            }
        };
        error_analysis::write(folder, &analysis).map_err(|error| {
            let is_disk = error.chain().any(|cause| cause.is::<std::io::Error>());
            if is_disk { unwritable(error) } else { error }
        })?;
    }
    Ok(Outcome {
        status,
        kept: run.kept(),
        test,
        unreadable: run.train.unreadable().len(),
        steps: run.at.steps,
        train_images: run.train.images(),
        seconds: run.seconds(),
        epochs: run.at.epochs,
    })
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

impl Run<'_> {
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
        self.ensure_best_is_there(folder)?;
        self.notes.push(match self.at.epoch {
            epoch if epoch > self.epochs => "all epochs are done already".to_owned(),
            epoch => format!("going on at epoch {epoch}, batch {} of {}", self.at.batches + 1, self.train.len()),
        });
        Ok(())
    }

    fn restore(&mut self, checkpoint: Checkpoint) -> Result<()> {
        checkpoint.restore(self.store, self.optimizer.as_mut(), self.average.as_mut())?;
        self.at = checkpoint.position;
        Ok(())
    }

    /// Whether all epochs are done, or no more are wanted.
    fn is_done(&self) -> bool {
        self.at.epoch > self.epochs || (self.at.batches == 0 && self.is_patience_spent())
    }

    /// The damage that makes the network useless, if there is any: a tensor that is not finite or, after the last
    /// epoch, a loss that is not. Before that a loss may be infinite and recover; a tensor never does.
    fn damage(&self) -> Result<Option<String>> {
        let last = self.at.epochs.last();
        let when = match last {
            Some(last) => format!("after epoch {} of {}, learning rate {:.3e}", last.epoch, self.epochs, last.lr),
            None => "before the first epoch is done".to_owned(),
        };
        if let Some(key) = first_damaged(self.store)? {
            return Ok(Some(format!("`{key}` is not finite {when}")));
        }
        let last = last.filter(|_| self.at.epoch > self.epochs);
        let losses = last.into_iter().flat_map(|m| [("training", m.train_loss), (self.measured_on, m.test_loss)]);
        let lost = losses.into_iter().find(|(_, loss)| !loss.is_finite());
        Ok(lost.map(|(which, loss)| format!("the {which} loss is {loss} {when}, though every weight is finite")))
    }

    /// Seconds of the run, earlier sessions' included.
    fn seconds(&self) -> f64 {
        self.at.seconds + self.began.elapsed().as_secs_f64()
    }

    fn steps_per_epoch(&self) -> u64 {
        self.train.len().div_ceil(self.recipe.accumulate.max(1)) as u64
    }

    fn position(&self) -> Position {
        Position { seconds: self.seconds(), dropout: self.store.dropout_state(), ..self.at.clone() }
    }

    fn tensors(&self) -> Result<Tensors> {
        let model = self.store.slots().into_iter().filter_map(|slot| Some((slot.key, slot.var?.as_detached_tensor())));
        let average = self.average.as_ref().map(WeightAverage::state).transpose()?.unwrap_or_default();
        Ok(Tensors { model: model.collect(), optimizer: self.optimizer.state()?, average })
    }

    /// About how large a checkpoint is, once the optimizer has its state.
    fn checkpoint_bytes(&self) -> u64 {
        let all: u64 = self.store.slots().iter().map(|slot| slot.shape.elem_count() as u64).sum();
        let trained: u64 = self.parameters.iter().map(|(_, var)| var.elem_count() as u64).sum();
        let averages = if self.average.is_some() { all } else { 0 };
        4 * (all + averages + trained * self.recipe.optimizer.states() as u64)
    }

    /// Trains on the batches that are left of this epoch.
    fn pass(&mut self, stop: &AtomicBool, progress: &Progress, saver: &mut Saver) -> Result<Pass> {
        let (epoch, before, began) = (self.at.epoch, self.at.sums, Instant::now());
        let mut saving = Duration::ZERO;
        let mut batches = self.train.epoch_from(epoch as u64, self.at.batches)?;
        loop {
            let batch = if self.asked || stop.load(Ordering::Relaxed) { None } else { batches.next() };
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
            let stepped = self
                .step(batch?, &mut batches, lr)
                .with_context(|| format!("{} epoch {epoch} batch {number}", self.recipe.name))?;
            if let Some(images) = &stepped.diverged {
                let why = match diagnose(self.net, self.store, images) {
                    Ok(diagnosis) => diagnosis.to_string(),
                    Err(error) => format!("looking for the cause failed: {}", errors::line(&error.into())),
                };
                return Ok(Pass::Diverged(format!(
                    "the loss became {} at epoch {epoch}, batch {number}, learning rate {lr:.3e}: {why}",
                    stepped.loss
                )));
            }
            let sums = &mut self.at.sums;
            sums.loss += stepped.loss * stepped.images as f64;
            sums.correct += stepped.correct;
            sums.images += stepped.images;
            self.at.batches += stepped.batches;
            self.at.steps += 1;
            let speed = sums.images as f64 / sums.train_seconds.max(1e-9);
            progress.step(epoch, stepped.loss, speed, sums.wait_seconds / sums.train_seconds.max(1e-9));
            if let Some(tell) = &mut self.on_step {
                let (loss, images) = (stepped.loss, stepped.images);
                let metrics = StepMetrics { epoch, step: self.at.steps, loss, lr, images };
                self.asked |= tell(&metrics) == ControlFlow::Break(());
            }
        }
        // Batches of which no image could be read are none of the iterator's.
        let is_whole = batches.size_hint().1 == Some(0);
        Ok(if is_whole { Pass::Done } else { Pass::Stopped })
    }

    /// Measures the network, and what it gets wrong.
    fn collect(&self, on: &Measured, classes: &[String]) -> Result<(Evaluation, ErrorAnalysis)> {
        error_analysis::collect(self.net, &on.loader, &on.split, classes)
    }

    /// Puts the averages of the weights in the network's place, or the weights back; where nothing is averaged yet, leaves
    /// the weights there.
    pub fn swap_average(&mut self) -> Result<()> {
        let average = self.average.as_mut().filter(|average| average.updates() > 0);
        average.map_or(Ok(()), |average| Ok(average.swap()?))
    }

    /// Takes the weights after an epoch into their mean, where the epoch is one of those that are averaged.
    fn average_epoch(&mut self) -> Result<()> {
        let (Some(share), Some(average)) = (self.recipe.swa, &mut self.average) else { return Ok(()) };
        let averaged = ((self.epochs as f64 * share).round() as usize).max(1);
        if self.at.epoch + averaged > self.epochs { Ok(average.update()?) } else { Ok(()) }
    }

    /// Ends an epoch: measures the network, after the last epoch in detail, keeps it if it is the best, and moves on to the
    /// next.
    fn end_epoch(&mut self, folder: &Path, classes: &[String]) -> Result<EpochMetrics> {
        self.average_epoch()?;
        self.swap_average()?;
        let measured = if self.at.epoch == self.epochs {
            let (measured, analysis) = self.collect(&self.measured, classes)?;
            self.error_analysis = Some(analysis);
            measured
        } else {
            evaluate(self.net, &self.measured.loader)?
        };
        let sums = std::mem::take(&mut self.at.sums);
        let images = sums.images as f64;
        let metrics = EpochMetrics {
            epoch: self.at.epoch,
            step: self.at.steps,
            lr: self.lr.at(self.at.steps.saturating_sub(1)),
            train_loss: sums.loss / images,
            train_acc: sums.correct as f64 / images,
            test_loss: measured.loss,
            test_acc: measured.top1(),
            seconds: sums.seconds + measured.seconds,
            images_per_s: images / sums.train_seconds,
            wait_share: sums.wait_seconds / sums.train_seconds,
            rss_mb: rss_mb(),
        };
        self.at.epochs.push(metrics.clone());
        self.at.epoch += 1;
        self.at.batches = 0;
        self.keep_if_best(folder)?;
        self.swap_average()?;
        Ok(metrics)
    }

    /// Says once which images could not be read.
    fn tell_unreadable(&mut self, progress: &Progress, name: &str) {
        if self.at.epochs.len() != 1 {
            return;
        }
        for (what, loader) in [("trained on", &self.train), ("measured on", &self.measured.loader)] {
            let unreadable = loader.unreadable();
            let Some(first) = unreadable.values().next() else { continue };
            let n = unreadable.len();
            let count = if n == 1 { "1 image".to_owned() } else { format!("{n} images") };
            progress.say(&format!("{name}: {count} could not be {what}: {first}"));
        }
    }
}

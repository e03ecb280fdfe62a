//! The training loop: one network, one recipe, one seed, from its first step to its record.

use crate::augment::Transform;
use crate::data::Dataset;
use crate::eval::evaluate;
use crate::loader::{Batch, Loader};
use crate::optim::{Optimizer, clip_grad_norm};
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::record::{EpochMetrics, METRICS_FILE, Status, append_jsonl};
use crate::schedule::LearningRate;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Var};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use zoo::{Model, ModelInfo, ModelOptions, VarStore};
use zoo_core::loss::{cross_entropy, topk_correct};
use zoo_core::weights::{LoadOptions, Weights, load, save_safetensors};

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
}

impl Job {
    /// From scratch.
    pub fn new(model: &'static ModelInfo, recipe: Recipe, seed: u64, device: Device) -> Self {
        Self { model, recipe, seed, device, start: None, on_epoch: None }
    }

    /// From the weights in `file`; the parts named by `may_differ` start afresh where their shapes differ.
    #[must_use]
    pub fn weights(mut self, file: impl Into<PathBuf>, may_differ: &[&str]) -> Self {
        self.start = Some(Start { file: file.into(), may_differ: may_differ.iter().map(|&s| s.to_owned()).collect() });
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
    Done { loss: f64, correct: usize, images: usize, wait: f64, lr: f64 },
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
    steps_done: u64,
    /// What the user should know before it starts.
    notes: Vec<String>,
}

/// Trains `job` on `data` and leaves `metrics.jsonl` (a line after every epoch) and `model.safetensors` in `folder`, which
/// must exist. When `stop` turns true the run ends after the step in hand and keeps what is done. A loss that is not finite
/// ends the run as failed, naming epoch, batch and learning rate; it is no error of this function.
///
/// # Errors
/// Data that does not fit the network or the recipe, or a file that cannot be written.
pub fn train(job: &Job, data: &Dataset, folder: &Path, stop: &AtomicBool) -> Result<Outcome> {
    let begin = Instant::now();
    let mut run = Run::new(job, data)?;
    let name = format!("{} {} seed {}", job.model.name, job.recipe.name, job.seed);
    let progress = Progress::new(&name, run.epochs, (run.epochs * run.train.len()) as u64);
    run.notes.iter().for_each(|note| progress.say(&format!("{name}: {note}")));
    let train_images = job.recipe.train_images(data.train.len());
    let (mut epochs, mut status) = (Vec::with_capacity(run.epochs), Status::Finished);
    for epoch in 1..=run.epochs {
        let began = Instant::now();
        let (loss, correct, images, wait, lr) = match run.pass(epoch, stop, &progress)? {
            Pass::Done { loss, correct, images, wait, lr } => (loss, correct, images, wait, lr),
            Pass::Stopped => {
                status = Status::Interrupted;
                break;
            }
            Pass::Diverged(message) => {
                progress.say(&format!("{name}: {message}"));
                status = Status::Failed { message };
                break;
            }
        };
        let seconds = began.elapsed().as_secs_f64();
        let test = evaluate(run.net.as_ref(), &run.test)?;
        let metrics = EpochMetrics {
            epoch,
            step: run.steps_done,
            lr,
            train_loss: loss / images as f64,
            train_acc: correct as f64 / images as f64,
            test_loss: test.loss,
            test_acc: test.top1(),
            seconds: began.elapsed().as_secs_f64(),
            images_per_s: images as f64 / seconds,
            wait_share: wait / seconds,
        };
        append_jsonl(&folder.join(METRICS_FILE), &metrics)?;
        progress.epoch(&metrics);
        job.on_epoch.inspect(|tell| tell(&metrics));
        epochs.push(metrics);
    }
    let metadata = BTreeMap::from([("model".to_owned(), job.model.name.to_owned())]);
    save_safetensors(&run.store, folder.join("model.safetensors"), &metadata)?;
    Ok(Outcome { status, epochs, steps: run.steps_done, train_images, seconds: begin.elapsed().as_secs_f64() })
}

impl<'a> Run<'a> {
    fn new(job: &'a Job, data: &Dataset) -> Result<Self> {
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
        let store = VarStore::new(job.seed, DType::F32, &job.device);
        let options =
            ModelOptions { num_classes: Some(data.classes.len()), in_chans: Some(channels), image_size: Some(height) };
        let net = job.model.build(&options, store.root())?;
        if let Some(start) = &job.start {
            let may_differ: Vec<&str> = start.may_differ.iter().map(String::as_str).collect();
            let options = LoadOptions { may_differ: &may_differ, ..job.model.load_options() };
            let report = load(&store, &Weights::open(&start.file)?, &options)?;
            notes.push(format!("{}: {report}", start.file.display()));
        }
        let images = recipe.train_images(data.train.len());
        if !recipe.drop_last && images > recipe.batch && images % recipe.batch == 1 {
            // BatchNorm on a 1x1 map has no variance then, and the run would end there.
            recipe.drop_last = true;
            notes.push(format!(
                "{images} images in batches of {} leave a last batch of one image: it is left out",
                recipe.batch
            ));
        }
        let data = data.clone().limit(images);
        let transform = std::sync::Arc::new(Transform::new(&recipe.normalize, &data.train)?);
        let extent = recipe.extent(images)?;
        let train = Loader::train(data.train, transform.clone(), recipe.augment, recipe.batch, job.seed, &job.device)?
            .drop_last(recipe.drop_last);
        let test = Loader::eval(data.test, transform, EVAL_BATCH, &job.device)?;
        let parameters = store.parameters();
        let optimizer = recipe.optimizer.build(parameters.clone(), recipe.lr, recipe.decay_all);
        let lr = recipe.schedule.over(recipe.lr, extent);
        let epochs = (extent.total_steps / extent.steps_per_epoch) as usize;
        Ok(Self { job, store, net, parameters, optimizer, lr, train, test, epochs, steps_done: 0, notes })
    }

    /// One epoch, counted from 1, over the training images.
    fn pass(&mut self, epoch: usize, stop: &AtomicBool, progress: &Progress) -> Result<Pass> {
        let (mut loss_sum, mut correct, mut images, mut lr) = (0.0, 0, 0, 0.0);
        let mut batches = self.train.epoch(epoch as u64)?;
        let mut number = 0;
        for batch in batches.by_ref() {
            if stop.load(Ordering::Relaxed) {
                return Ok(Pass::Stopped);
            }
            number += 1;
            lr = self.lr.at(self.steps_done);
            let batch = batch?;
            let (loss, hits) = self
                .step(&batch, lr)
                .with_context(|| format!("{} epoch {epoch} batch {number}", self.job.model.name))?;
            if !loss.is_finite() {
                return Ok(Pass::Diverged(format!(
                    "the loss became {loss} at epoch {epoch}, batch {number}, learning rate {lr:.3e}"
                )));
            }
            loss_sum += loss * batch.host_labels.len() as f64;
            correct += hits;
            images += batch.host_labels.len();
            self.steps_done += 1;
            progress.step(epoch, loss);
        }
        Ok(Pass::Done { loss: loss_sum, correct, images, wait: batches.wait_seconds(), lr })
    }

    /// One step of the optimizer; the loss and how many images were classified right before it. A loss that is not finite
    /// changes no weight.
    fn step(&mut self, batch: &Batch, lr: f64) -> Result<(f64, usize)> {
        let (logits, auxiliary) = self.net.forward_auxiliary(&batch.images, true)?;
        let smoothing = self.job.recipe.label_smoothing;
        let mut loss = cross_entropy(&logits, &batch.labels, smoothing)?;
        for head in auxiliary {
            loss = (loss + (cross_entropy(&head.logits, &batch.labels, smoothing)? * head.loss_weight)?)?;
        }
        let value = f64::from(loss.to_scalar::<f32>()?);
        if !value.is_finite() {
            return Ok((value, 0));
        }
        let mut grads = loss.backward()?;
        if let Some(max_norm) = self.job.recipe.clip_norm {
            clip_grad_norm(&self.parameters, &mut grads, max_norm)?;
        }
        self.optimizer.set_lr(lr);
        self.optimizer.step(&grads)?;
        Ok((value, topk_correct(&logits, &batch.host_labels, 1)?))
    }
}

//! The training loop: one network, one recipe, one seed, from its first step to its record.
//!
//! [`train`] takes a [`Job`]: a network of the registry by its name. [`Trainer`] takes any network with its store, any data, and
//! a loss and hooks of the caller's own. [`differences`] tells one run from another by what changes its numbers.

mod identity;
mod job;
mod keeper;
mod prepare;
mod run;
mod step;

pub use identity::{RUN_FILE, differences};
pub use job::{Hook, Job, Outcome, Start};
pub use keeper::{LAST_FILE, RAW_FILE};

use crate::checkpoint::Checkpoints;
use crate::data::Dataset;
use crate::eval::eval_batch;
use crate::loader::{Batch, Loader};
use crate::machine::{available_memory, ensure_memory};
use crate::recipe::Recipe;
use crate::record::EpochMetrics;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use serde_json::{Value, json};
use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use zoo::{Model, ModelOptions, VarStore};
use zoo_core::inspect::{TrainingPlan, training_memory};
use zoo_core::threads::in_pool;
use zoo_core::weights::{LoadOptions, load};
use zoo_image::{Metadata, taken};

/// What one step of the optimizer came to.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct StepMetrics {
    /// The epoch, counted from 1.
    pub epoch: usize,
    /// Steps done, this one included.
    pub step: u64,
    /// Mean loss of its images.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Images of the step.
    pub images: usize,
}

/// A loss of the caller's own: of the network, the images as the tape wants to see them, and their batch it makes what training
/// makes small, one number, and the logits (b, num_classes) that accuracy is counted by.
pub type Loss<'a> = dyn Fn(&dyn Model, &Tensor, &Batch) -> candle_core::Result<(Tensor, Tensor)> + Sync + 'a;
type OnStep<'a> = Box<dyn FnMut(&StepMetrics) -> ControlFlow<()> + Send + 'a>;
type OnEpoch<'a> = Box<dyn FnMut(&EpochMetrics) -> ControlFlow<()> + Send + 'a>;

/// Trains a network of the caller's: anything that is a [`Model`], with the store that it was built in.
///
/// ```
/// use candle_core::{DType, Device};
/// use zoo::{ModelOptions, VarStore};
/// use zoo_train::data::Synthetic;
/// use zoo_train::recipe::Recipe;
/// use zoo_train::trainer::Trainer;
///
/// let data = Synthetic { train: 256, test: 64, seed: 0 }.generate();
/// let store = VarStore::new(1, DType::F32, &Device::Cpu);
/// let net = zoo::find("mlp")?.build(&ModelOptions::for_data(10, 3, 32), store.root())?;
/// let folder = std::env::temp_dir().join(format!("zoo-trainer-doc-{}", std::process::id()));
///
/// let outcome = Trainer::new(net.as_ref(), &store, Recipe::named("quick")?).fit(&data, &folder)?;
/// assert_eq!(outcome.epochs.len(), 4);
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct Trainer<'a> {
    net: &'a dyn Model,
    store: &'a VarStore,
    recipe: Recipe,
    name: String,
    seed: u64,
    checkpoints: Checkpoints,
    stop: Option<&'a AtomicBool>,
    loss: Option<&'a Loss<'a>>,
    on_step: Option<OnStep<'a>>,
    on_epoch: Option<OnEpoch<'a>>,
    metadata: Metadata,
    /// What else tells this run from others.
    identity: Value,
    /// What the user should know before it starts.
    notes: Vec<String>,
}

impl fmt::Debug for Trainer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trainer").field("name", &self.name).field("recipe", &self.recipe).finish_non_exhaustive()
    }
}

impl<'a> Trainer<'a> {
    /// Of a network and the store that its tensors live in. What the recipe says of how a network is built, whose initial values
    /// it has, its BatchNorms and its frozen parts, is the caller's to do before: [`VarStore::set_init`],
    /// [`VarStore::set_batch_norm`], [`VarStore::set_frozen`].
    pub fn new(net: &'a dyn Model, store: &'a VarStore, recipe: Recipe) -> Self {
        Self {
            net,
            store,
            recipe,
            name: "network".into(),
            seed: 1,
            checkpoints: Checkpoints::default(),
            stop: None,
            loss: None,
            on_step: None,
            on_epoch: None,
            metadata: Metadata::default(),
            identity: Value::Null,
            notes: Vec::new(),
        }
    }

    /// What the network is called, in messages and in the file of its weights.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Fixes the order of the images and their augmentation; 1 unless it is set.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// When checkpoints are written, and whether the run goes on from one.
    #[must_use]
    pub fn checkpoints(mut self, checkpoints: Checkpoints) -> Self {
        self.checkpoints = checkpoints;
        self
    }

    /// The run ends after the step in hand when this turns true, and keeps what is done.
    #[must_use]
    pub fn stop(mut self, stop: &'a AtomicBool) -> Self {
        self.stop = Some(stop);
        self
    }

    /// A loss in place of the network's own [`training_loss`](Model::training_loss).
    ///
    /// ```
    /// # use candle_core::{DType, Device};
    /// # use zoo::{ModelOptions, VarStore};
    /// # use zoo_core::tape::foreign_op;
    /// # use zoo_train::recipe::Recipe;
    /// # use zoo_train::trainer::Trainer;
    /// # let store = VarStore::new(1, DType::F32, &Device::Cpu);
    /// # let net = zoo::find("mlp")?.build(&ModelOptions::for_data(10, 3, 32), store.root())?;
    /// # let recipe = Recipe::named("quick")?;
    /// // The cross-entropy, and a penalty on large logits.
    /// let trainer = Trainer::new(net.as_ref(), &store, recipe).loss(&|net, images, batch| {
    ///     let (loss, logits) = net.training_loss(images, &batch.labels, 0.0)?;
    ///     let penalty = foreign_op(&[&logits], |logits| logits[0].sqr()?.mean_all()? * 1e-3)?;
    ///     Ok((foreign_op(&[&loss, &penalty], |terms| &terms[0] + &terms[1])?, logits))
    /// });
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    #[must_use]
    pub fn loss(mut self, loss: &'a Loss<'a>) -> Self {
        self.loss = Some(loss);
        self
    }

    /// Called after every step of the optimizer. [`ControlFlow::Break`] interrupts the run as [`stop`](Self::stop) does.
    #[must_use]
    pub fn on_step(mut self, hook: impl FnMut(&StepMetrics) -> ControlFlow<()> + Send + 'a) -> Self {
        self.on_step = Some(Box::new(hook));
        self
    }

    /// Called after every epoch, once its metrics are in `metrics.jsonl`. [`ControlFlow::Break`] ends the run, which counts as
    /// finished.
    #[must_use]
    pub fn on_epoch(mut self, hook: impl FnMut(&EpochMetrics) -> ControlFlow<()> + Send + 'a) -> Self {
        self.on_epoch = Some(Box::new(hook));
        self
    }

    /// Trains on `data` and leaves the run's files in `folder`, which is made where it is not there: see [`train`].
    ///
    /// # Errors
    /// As [`train`].
    pub fn fit(self, data: &Dataset, folder: impl AsRef<Path>) -> Result<Outcome> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        in_pool(|| run::fit(self, data, folder))
    }
}

/// Trains `job` on `data` and leaves `run.json` (which run it is), `metrics.jsonl` (a line after every epoch),
/// `model.safetensors` and what the trained network gets wrong ([`error_analysis`](crate::error_analysis)) in `folder`, which
/// must exist, with checkpoints beside them ([`checkpoint::remove`](crate::checkpoint::remove) them once the run is recorded).
///
/// Every epoch is measured on the validation images, where the data has any, else on the test images. The recipe's
/// [`keep`](Recipe::keep) says which epoch's weights `model.safetensors` holds: the best one's are written as it happens. Test
/// images beside validation images are measured once, at the end, with the weights that are kept.
///
/// With [`Checkpoints::resume`] it goes on from the newest checkpoint in `folder`, whatever ended the run that wrote
/// it, to the weights and metrics that an uninterrupted run has, bit by bit. When `stop` turns true the run ends after
/// the step in hand and keeps what is done. A loss that is not finite ends the run as failed, naming epoch, batch,
/// learning rate and the first layer whose output is not finite. So do weights or running statistics that are not
/// finite after an epoch, and a loss that is not after the last one; then no weights are left but those of a better epoch.
/// Neither is an error of this function.
///
/// # Errors
/// Data that does not fit the network or the recipe; a run that would not fit into memory; a folder that holds another
/// run; a file that cannot be written ([`Unwritable`](crate::checkpoint::Unwritable)), which is tried before the first step.
pub fn train(
    job: &Job,
    data: &Dataset,
    folder: &Path,
    checkpoints: &Checkpoints,
    stop: &AtomicBool,
) -> Result<Outcome> {
    in_pool(|| {
        let mut notes = Vec::new();
        let (store, net) = build(job, data, &mut notes)?;
        let mut trainer = Trainer::new(net.as_ref(), &store, job.recipe.clone());
        trainer.name = job.model.name.into();
        trainer.seed = job.seed;
        trainer.checkpoints = *checkpoints;
        trainer.stop = Some(stop);
        trainer.identity = identity::of_job(job)?;
        trainer.notes = notes;
        trainer.on_epoch = job.on_epoch.as_ref().map(|hook| -> OnEpoch {
            Box::new(move |metrics| {
                hook.call(metrics);
                ControlFlow::Continue(())
            })
        });
        run::fit(trainer, data, folder)
    })
}

/// The network of a job, with its initial values.
fn build(job: &Job, data: &Dataset, notes: &mut Vec<String>) -> Result<(VarStore, Box<dyn Model>)> {
    let recipe = &job.recipe;
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
        let frozen = recipe.frozen(job.model, &options)?;
        // A classifier behind a frozen trunk sees its batch in parts.
        let at_once = if recipe.freeze_all_but_head { recipe.batch.min(eval_batch(height)) } else { recipe.batch };
        let plan = TrainingPlan {
            copies: usize::from(recipe.ema.is_some() || recipe.swa.is_some()),
            is_frozen: frozen.as_ref().map(|is_frozen| is_frozen.as_ref() as &dyn Fn(&str) -> bool),
            ..TrainingPlan::new(recipe.precision, at_once, recipe.optimizer.states())
        };
        if let Ok(needed) = training_memory(job.model, &options, &plan) {
            let waiting = Loader::most_in_memory() * recipe.batch * channels * height * width * size_of::<f32>();
            notes.extend(ensure_memory(needed + waiting as u64, available, recipe.batch)?);
        }
    }
    let store = VarStore::new(job.seed, DType::F32, &job.device);
    store.set_batch_norm(recipe.batch_norm.into());
    store.set_init(recipe.init);
    if let Some(is_frozen) = recipe.frozen(job.model, &options)? {
        store.set_frozen(is_frozen);
    }
    let net = job.model.build(&options, store.root())?;
    if recipe.freezes() {
        let frozen = store.slots().into_iter().filter(|slot| slot.frozen).count();
        let trained = store.parameters().len();
        ensure!(
            frozen > 0,
            "freeze: no parameter of {} has a name like {}",
            job.model.name,
            recipe.freeze.join(" or ")
        );
        ensure!(trained > 0, "freeze: leaves no parameter of {} to train", job.model.name);
        notes.push(format!("{trained} tensors are trained, {frozen} are frozen"));
    }
    if let Some(start) = &job.start {
        let may_differ: Vec<&str> = start.may_differ.iter().map(String::as_str).collect();
        let options =
            LoadOptions { may_differ: &may_differ, adapt: true, ..start.selection.of(job.model.load_options()) };
        let weights = start.selection.open(&start.file)?;
        let report = load(&store, &weights, &options)?;
        notes.extend(taken(&weights));
        notes.push(format!("{}: {report}", start.file.display()));
    }
    Ok((store, net))
}

impl Trainer<'_> {
    /// What tells this run on this data from others.
    fn identity(&self, data: &Dataset) -> Result<Value> {
        let own = match &self.identity {
            Value::Null => json!({
                "model": self.name,
                "recipe": self.recipe,
                "seed": self.seed,
                "device": format!("{:?}", self.store.device().location()),
                "start": Value::Null,
            }),
            given => given.clone(),
        };
        identity::with_data(own, data)
    }
}

#[cfg(test)]
mod tests;

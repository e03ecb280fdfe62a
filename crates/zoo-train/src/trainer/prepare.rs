//! What a run is made of before its first step: loaders, optimizer, schedule, averages.

use super::Trainer;
use super::run::{Measured, Run};
use crate::average::WeightAverage;
use crate::checkpoint::{Position, Sums};
use crate::data::{Dataset, Split};
use crate::eval::eval_batch;
use crate::loader::{Loader, Targets};
use crate::optim::{LayerDecay, layer_decay_groups};
use crate::recipe::{Keep, LossFunction, Recipe};
use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use zoo_image::{Metadata, Transform};

/// How fast a moving average follows at first, as timm's `--model-ema-warmup` does.
const EMA_GAMMA: f64 = 1.0;
const EMA_POWER: f64 = 2.0 / 3.0;

impl<'a> Run<'a> {
    /// A run of `trainer` on `data`, before its first step.
    pub fn new(trainer: Trainer<'a>, data: &Dataset) -> Result<Self> {
        let began = Instant::now();
        let identity = trainer.identity(data)?;
        let Trainer { net, store, mut recipe, seed, loss, on_step, mut metadata, mut notes, name, .. } = trainer;
        recipe.precision.check(store.device())?;
        let device = store.device().clone();
        let all = &data.train;
        let images = recipe.train_images(all.len());
        if recipe.leaves_one_image(images) {
            recipe.drop_last = true;
            notes.push(format!(
                "{images} images in batches of {} leave a last batch of one image: it is left out",
                recipe.batch
            ));
        }
        let train = all.select(&(0..images).collect::<Vec<_>>());
        // What the recipe holds out is what an epoch is chosen by, where one is chosen.
        let held_out =
            recipe.measures_held_out(data).then(|| Arc::new(all.select(&(images..all.len()).collect::<Vec<_>>())));
        let (measured, measured_on) = (held_out.as_ref().unwrap_or(data.measured().0), recipe.measured_on(data));
        let transform = Arc::new(train.transform(&recipe.normalize)?);
        metadata.model.get_or_insert(name);
        fill(&mut metadata, &recipe, &transform, &data.classes);
        let extent = recipe.step_count(images)?;
        let targets = Targets {
            classes: data.classes.len(),
            as_shares: recipe.loss == LossFunction::Bce,
            weights: recipe.class_weights.of(&train, &data.classes)?,
            label_smoothing: recipe.label_smoothing,
        };
        let eval = |split: &Arc<Split>| -> Result<Measured> {
            let loader = Loader::eval(split.clone(), transform.clone(), eval_batch(split.shape()[1]), &device)?;
            Ok(Measured { split: split.clone(), loader: loader.precision(recipe.precision) })
        };
        let measured = eval(measured)?;
        let at_the_end = (data.val.is_some() || held_out.is_some()).then(|| eval(&data.test)).transpose()?;
        let train = Loader::train(train.into(), transform.clone(), recipe.augment, recipe.batch, seed, &device)?
            .drop_last(recipe.drop_last)
            .targets(targets)
            .precision(recipe.precision);
        let is_frozen = store.slots().iter().any(|slot| slot.frozen);
        ensure!(
            is_frozen || !recipe.freezes(),
            "the recipe freezes a part of the network, and nothing of it is frozen: call VarStore::set_frozen with Recipe::frozen before \
             the network is built"
        );
        let parameters = store.parameters();
        ensure!(!parameters.is_empty(), "there is no parameter to train");
        let optimizer = match recipe.layer_decay.is_some() || recipe.head_lr.is_some() {
            true => {
                let settings = LayerDecay {
                    decay: recipe.layer_decay.unwrap_or(1.0),
                    head_lr: recipe.head_lr.unwrap_or(1.0),
                    weight_decay: recipe.optimizer.weight_decay(),
                    decay_all: recipe.decay_all,
                };
                let groups = layer_decay_groups(parameters.clone(), net.classifier().path(), settings);
                recipe.optimizer.build_groups(groups, recipe.lr)
            }
            false => recipe.optimizer.build(parameters.clone(), recipe.lr, recipe.decay_all),
        };
        let average = match (recipe.ema, recipe.swa) {
            (Some(decay), _) => Some(WeightAverage::ema(store, decay)?.warmup(EMA_GAMMA, EMA_POWER)),
            (None, Some(_)) => Some(WeightAverage::mean(store)?),
            (None, None) => None,
        };
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
            net,
            store,
            recipe,
            loss,
            on_step,
            asked: false,
            parameters,
            optimizer,
            average,
            lr,
            train,
            measured,
            measured_on,
            at_the_end,
            epochs,
            metadata,
            at,
            began,
            notes,
            error_analysis: None,
        })
    }
}

/// What the file of the trained weights says of them.
fn fill(metadata: &mut Metadata, recipe: &Recipe, transform: &Transform, classes: &[String]) {
    let [channels, side, _] = transform.shape();
    metadata.image_size = Some(side);
    metadata.in_chans = (channels != 3).then_some(channels);
    metadata.classes = Some(classes.to_vec());
    metadata.normalize = Some(recipe.normalize.clone());
    metadata.pixel_mean = transform.pixel_mean().map(<[f32]>::to_vec);
    metadata.batch_norm = Some(recipe.batch_norm).filter(|changed| !changed.is_none());
}

impl Recipe {
    /// What the images are called that a run on `data` measures every epoch on: `validation` or `test`. They are what the recipe
    /// holds out where an epoch is chosen by them and the data has no validation images of its own.
    pub fn measured_on(&self, data: &Dataset) -> &'static str {
        if self.measures_held_out(data) { "validation" } else { data.measured().1 }
    }

    fn measures_held_out(&self, data: &Dataset) -> bool {
        let chooses = self.keep != Keep::Last || self.patience.is_some();
        let images = data.train.len();
        chooses && self.train_images(images) < images && data.val.is_none() && !data.is_validation
    }
}

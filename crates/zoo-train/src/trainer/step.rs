//! One step of the optimizer.

use super::run::Run;
use crate::data::DataError;
use crate::eval::eval_batch;
use crate::loader::Batch;
use crate::loss::{of_logits, training_loss};
use crate::optim::{accumulate, clip_grad_norm, scale};
use anyhow::{Context, Result};
use candle_core::Tensor;
use candle_core::backprop::GradStore;
use zoo_core::loss::topk_correct;
use zoo_core::tape::value_and_grad;
use zoo_core::{ModuleT, with_fixed_weights};

/// What a step came to.
pub(super) struct Stepped {
    /// Mean loss of its images. One that is not finite has changed no weight.
    pub loss: f64,
    /// Images classified right before it.
    pub correct: usize,
    pub images: usize,
    /// Batches that it took.
    pub batches: usize,
    /// The images of the batch whose loss is not finite.
    pub diverged: Option<Tensor>,
}

impl Run<'_> {
    /// One step on `first` and as many more batches as the recipe accumulates.
    pub fn step(
        &mut self,
        first: Batch,
        more: &mut dyn Iterator<Item = Result<Batch, DataError>>,
        lr: f64,
    ) -> Result<Stepped> {
        let (wanted, mut batch) = (self.recipe.accumulate.max(1), first);
        let mut stepped = Stepped { loss: 0.0, correct: 0, images: 0, batches: 0, diverged: None };
        let mut sum: Option<GradStore> = None;
        loop {
            let images = batch.host_labels.len();
            let (loss, logits, mut grads) = self.gradients(&batch)?;
            stepped.batches += 1;
            if !loss.is_finite() {
                return Ok(Stepped { loss, diverged: Some(batch.images), ..stepped });
            }
            stepped.correct += topk_correct(&logits, &batch.host_labels, 1)?;
            stepped.loss += loss * images as f64;
            stepped.images += images;
            if wanted > 1 {
                // A mean over all images, whatever batch they are in.
                scale(&self.parameters, &mut grads, images as f64)?;
            }
            match &mut sum {
                Some(sum) => accumulate(&self.parameters, sum, grads)?,
                None => sum = Some(grads),
            }
            if stepped.batches == wanted {
                break;
            }
            match more.next() {
                Some(next) => batch = next?,
                None => break,
            }
        }
        stepped.loss /= stepped.images as f64;
        let mut grads = sum.context("a step without a batch")?;
        if wanted > 1 {
            scale(&self.parameters, &mut grads, 1.0 / stepped.images as f64)?;
        }
        if let Some(max_norm) = self.recipe.clip_norm {
            clip_grad_norm(&self.parameters, &mut grads, max_norm)?;
        }
        self.optimizer.set_lr(lr);
        self.optimizer.step(&grads)?;
        if let (Some(average), true) = (&mut self.average, self.recipe.ema.is_some()) {
            average.update()?;
        }
        Ok(stepped)
    }

    /// Whether the classifier is all that is trained, so that nothing of the trunk's pass is needed but what it comes to.
    fn trains_classifier_alone(&self) -> bool {
        let classifier = format!("{}.", self.net.classifier().path());
        self.recipe.freeze_all_but_head
            && self.loss.is_none()
            && self.parameters.iter().all(|(key, _)| key.starts_with(&classifier))
    }

    /// What the frozen trunk hands to the classifier, some images at a time: its maps take as much memory as theirs.
    fn pre_logits(&self, images: &Tensor) -> Result<Tensor> {
        let (batch, at_once) = (images.dim(0)?, eval_batch(images.dim(2)?));
        let vectors = with_fixed_weights(|| {
            let part = |start: usize| {
                let part = images.narrow(0, start, at_once.min(batch - start))?;
                self.net.pre_logits(&self.net.forward_features(&part, true)?, true)
            };
            (0..batch).step_by(at_once).map(part).collect::<candle_core::Result<Vec<_>>>()
        })?;
        Ok(Tensor::cat(&vectors, 0)?.detach())
    }

    /// The loss of a batch, its logits and the gradients.
    fn gradients(&self, batch: &Batch) -> Result<(f64, Tensor, GradStore)> {
        let mut logits = None;
        if self.trains_classifier_alone() {
            let classifier = self.net.classifier();
            let (loss, grads) = value_and_grad(&self.pre_logits(&batch.images)?, |features| {
                let ys = classifier.forward_t(features, true)?;
                let loss = of_logits(&ys, &batch.labels, &self.recipe)?;
                logits = Some(ys);
                Ok(loss)
            })?;
            let logits = logits.context("a pass without logits")?;
            return Ok((f64::from(loss.to_scalar::<f32>()?), logits, grads));
        }
        let (loss, grads) = value_and_grad(&batch.images, |images| {
            let (loss, ys) = match self.loss {
                Some(loss) => loss(self.net, images, batch)?,
                None => training_loss(self.net, images, &batch.labels, &self.recipe)?,
            };
            logits = Some(ys);
            Ok(loss)
        })?;
        let logits = logits.context("a pass without logits")?;
        Ok((f64::from(loss.to_scalar::<f32>()?), logits, grads))
    }
}

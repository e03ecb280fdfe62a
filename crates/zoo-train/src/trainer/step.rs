//! One step of the optimizer.

use super::run::Run;
use crate::data::DataError;
use crate::loader::Batch;
use crate::optim::{accumulate, clip_grad_norm, scale};
use anyhow::{Context, Result};
use candle_core::Tensor;
use candle_core::backprop::GradStore;
use zoo_core::loss::topk_correct;
use zoo_core::tape::value_and_grad;

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
        if let Some(average) = &mut self.average {
            average.update()?;
        }
        Ok(stepped)
    }

    /// The loss of a batch, its logits and the gradients.
    fn gradients(&self, batch: &Batch) -> Result<(f64, Tensor, GradStore)> {
        // Shares of classes have the smoothing in them.
        let smoothing = if batch.labels.rank() == 1 { self.recipe.label_smoothing } else { 0.0 };
        let mut logits = None;
        let (loss, grads) = value_and_grad(&batch.images, |images| {
            let (loss, ys) = match self.loss {
                Some(loss) => loss(self.net, images, batch)?,
                None => self.net.training_loss(images, &batch.labels, smoothing)?,
            };
            logits = Some(ys);
            Ok(loss)
        })?;
        let logits = logits.context("a pass without logits")?;
        Ok((f64::from(loss.to_scalar::<f32>()?), logits, grads))
    }
}

//! Measuring a network on images it was not trained on.

use crate::confusion::ConfusionMatrix;
use crate::data::{Split, TestImages};
use crate::loader::{Batch, Loader};
use anyhow::{Result, ensure};
use candle_core::Tensor;
use std::sync::Arc;
use std::time::Instant;
use zoo_core::loss::{cross_entropy, topk_correct};
use zoo_core::threads::in_pool;
use zoo_core::{Model, with_fixed_weights};
use zoo_image::ImageClassifier;

/// What a network does on a set of images.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Evaluation {
    /// Images looked at.
    pub images: usize,
    /// Images whose label got the largest logit.
    pub correct: usize,
    /// Images whose label was among the five largest logits.
    pub correct_top5: usize,
    /// Mean cross-entropy.
    pub loss: f64,
    /// Wall-clock time.
    pub seconds: f64,
}

impl Evaluation {
    /// Share of images classified right, 0 to 1.
    pub fn top1(&self) -> f64 {
        self.correct as f64 / self.images as f64
    }

    /// Share of images whose label was among the five largest logits, 0 to 1.
    pub fn top5(&self) -> f64 {
        self.correct_top5 as f64 / self.images as f64
    }

    /// Images looked at in a second.
    pub fn images_per_s(&self) -> f64 {
        self.images as f64 / self.seconds
    }
}

/// Images of `side` pixels that evaluation takes at a time: it holds no graph, so they may be more than a training step's, but not
/// so many that their maps would take more memory than training. Whoever takes as many gets the same loss to the last digit.
///
/// ```
/// assert_eq!([32, 224].map(zoo_train::eval::eval_batch), [250, 16]);
/// ```
pub fn eval_batch(side: usize) -> usize {
    if side <= 32 { 250 } else { 16 }
}

/// Runs `model` in evaluation over all batches of `loader`; no autograd graph is built.
///
/// # Errors
/// No images, or what the loader or the model refuses.
pub fn evaluate(model: &dyn Model, loader: &Loader) -> Result<Evaluation> {
    evaluate_parts(model, [Ok(loader.clone())], |_, _| Ok(()))
}

/// Runs `model` in evaluation over all batches of one loader after the other, and shows `look` each batch with its
/// logits: whoever wants more of the same pass than its sums need not run it again.
///
/// # Errors
/// As [`evaluate`], those among the loaders, and those of `look`.
pub fn evaluate_parts(
    model: &dyn Model,
    loaders: impl IntoIterator<Item = Result<Loader>>,
    mut look: impl FnMut(&Batch, &Tensor) -> Result<()>,
) -> Result<Evaluation> {
    let begin = Instant::now();
    let mut sum = Evaluation { images: 0, correct: 0, correct_top5: 0, loss: 0.0, seconds: 0.0 };
    with_fixed_weights(|| -> Result<()> {
        for loader in loaders {
            for batch in loader?.epoch(0)? {
                let batch = batch?;
                let n = batch.host_labels.len();
                let logits = model.forward_t(&batch.images, false)?;
                sum.images += n;
                sum.correct += topk_correct(&logits, &batch.host_labels, 1)?;
                sum.correct_top5 += topk_correct(&logits, &batch.host_labels, 5)?;
                sum.loss += f64::from(cross_entropy(&logits, &batch.labels, 0.0)?.to_scalar::<f32>()?) * n as f64;
                look(&batch, &logits)?;
            }
        }
        Ok(())
    })?;
    ensure!(sum.images > 0, "there are no images to evaluate on");
    Ok(Evaluation { loss: sum.loss / sum.images as f64, seconds: begin.elapsed().as_secs_f64(), ..sum })
}

/// Measures a classifier on test images, `batch` at a time, with which classes are taken for which, and tells `seen` after
/// each batch how many images that had.
///
/// # Errors
/// Images of another number of classes, files that cannot be read, or what the network refuses.
pub fn evaluate_classifier(
    classifier: &ImageClassifier,
    images: &TestImages,
    batch: usize,
    mut seen: impl FnMut(usize) + Send,
) -> Result<(Evaluation, ConfusionMatrix)> {
    let (n, expected) = (images.classes().len(), classifier.num_classes());
    ensure!(
        n == expected,
        "the network tells {expected} classes apart, the images are of {n}: train it for them first (`zoo train --weights`), which \
         gives it a new classifier"
    );
    let channels = classifier.image_shape()[0];
    let grey = |split: Arc<Split>| match split.shape()[0] == channels {
        true => Ok(split),
        false => Arc::unwrap_or_clone(split).with_channels(channels).map(Arc::new),
    };
    let loader = |split: Result<Arc<Split>, _>| {
        let loader = Loader::eval(grey(split?)?, classifier.transform().clone(), batch, classifier.device())?;
        Ok(loader.precision(classifier.precision()))
    };
    let mut matrix = ConfusionMatrix::new(n);
    let result = in_pool(|| {
        evaluate_parts(classifier.model(), images.parts().map(loader), |batch, logits| {
            seen(batch.host_labels.len());
            matrix.add_batch(batch, logits)
        })
    })?;
    Ok((result, matrix))
}

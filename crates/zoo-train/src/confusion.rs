//! Which classes a network takes for which.

use crate::loader::Batch;
use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};

/// Counts of images by their class and by the one that they were taken for.
///
/// ```
/// use zoo_train::confusion::ConfusionMatrix;
/// let mut matrix = ConfusionMatrix::new(2);
/// for (label, logits) in [(0, [2.0, 1.0]), (0, [0.0, 1.0]), (1, [0.0, 1.0])] {
///     matrix.add(label, &logits)?;
/// }
/// assert_eq!((matrix.recall(0), matrix.precision(1)), (Some(0.5), Some(0.5)));
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfusionMatrix {
    /// `counts[true][predicted]`
    counts: Vec<Vec<u32>>,
    /// Images of each class with a NaN among their logits: they are taken for nothing, and wrong.
    unanswered: Vec<u32>,
}

impl ConfusionMatrix {
    /// No image of so many classes yet.
    pub fn new(classes: usize) -> Self {
        Self { counts: vec![vec![0; classes]; classes], unanswered: vec![0; classes] }
    }

    /// Counts an image of the class `label`; of equal logits the lowest class is the answer.
    ///
    /// # Errors
    /// A label or a number of logits that is not of these classes.
    pub fn add(&mut self, label: usize, logits: &[f32]) -> Result<()> {
        let n = self.counts.len();
        ensure!(label < n && logits.len() == n, "label {label} and {} logits for {n} classes", logits.len());
        match answer(logits) {
            Some(predicted) => self.counts[label][predicted] += 1,
            None => self.unanswered[label] += 1,
        }
        Ok(())
    }

    /// Counts the images of a batch.
    pub(crate) fn add_batch(&mut self, batch: &Batch, logits: &Tensor) -> Result<()> {
        let logits = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        batch.host_labels.iter().zip(&logits).try_for_each(|(&label, logits)| self.add(label as usize, logits))
    }

    /// How many images of `label` were taken for `predicted`.
    ///
    /// # Panics
    /// If there is no such class.
    pub fn count(&self, label: usize, predicted: usize) -> u32 {
        self.counts[label][predicted]
    }

    /// Images of a class.
    ///
    /// # Panics
    /// If there is no such class.
    pub fn images(&self, class: usize) -> u32 {
        self.counts[class].iter().sum::<u32>() + self.unanswered[class]
    }

    /// The share of a class's images that are taken for it, 0 to 1; `None` without images.
    ///
    /// # Panics
    /// If there is no such class.
    pub fn recall(&self, class: usize) -> Option<f64> {
        share(self.counts[class][class], self.images(class))
    }

    /// The share of the images that are taken for a class which are of it, 0 to 1; `None` where none is.
    ///
    /// # Panics
    /// If there is no such class.
    pub fn precision(&self, class: usize) -> Option<f64> {
        share(self.counts[class][class], self.counts.iter().map(|row| row[class]).sum())
    }

    /// The harmonic mean of precision and recall, 2·p·r / (p + r).
    ///
    /// # Panics
    /// If there is no such class.
    pub fn f1(&self, class: usize) -> Option<f64> {
        let right = 2.0 * f64::from(self.counts[class][class]);
        let taken: u32 = self.counts.iter().map(|row| row[class]).sum();
        let all = self.images(class) + taken;
        (all > 0).then(|| right / f64::from(all))
    }

    /// The class that most of a class's images are wrongly taken for, and how many; of equals the lowest.
    ///
    /// # Panics
    /// If there is no such class.
    pub fn most_confused(&self, class: usize) -> Option<(usize, u32)> {
        let others =
            self.counts[class].iter().copied().enumerate().filter(|&(other, count)| other != class && count > 0);
        others.reduce(|most, other| if other.1 > most.1 { other } else { most })
    }
}

fn share(part: u32, whole: u32) -> Option<f64> {
    (whole > 0).then(|| f64::from(part) / f64::from(whole))
}

/// The class of the largest logit, of equals the lowest, as the accuracy counts; `None` with a NaN among them.
pub(crate) fn answer(logits: &[f32]) -> Option<usize> {
    if logits.iter().any(|logit| logit.is_nan()) {
        return None;
    }
    (0..logits.len()).reduce(|best, class| if logits[class] > logits[best] { class } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: class 0 has four images, class 1 three, class 2 none.
    #[test]
    fn shares_are_those_of_the_definitions() {
        let mut matrix = ConfusionMatrix::new(3);
        let mut add = |label, predicted: usize, times| {
            let logits: Vec<f32> = (0..3).map(|class| if class == predicted { 1.0 } else { 0.0 }).collect();
            (0..times).for_each(|_| matrix.add(label, &logits).unwrap());
        };
        add(0, 0, 2);
        add(0, 2, 1);
        add(1, 0, 2);
        add(1, 1, 1);
        matrix.add(0, &[1.0, f32::NAN, 0.0]).unwrap();
        assert_eq!((0..3).map(|class| matrix.images(class)).collect::<Vec<_>>(), [4, 3, 0]);
        assert_eq!((matrix.recall(0), matrix.precision(0), matrix.f1(0)), (Some(0.5), Some(0.5), Some(0.5)));
        assert_eq!((matrix.recall(1), matrix.precision(1), matrix.f1(1)), (Some(1.0 / 3.0), Some(1.0), Some(0.5)));
        assert_eq!((matrix.recall(2), matrix.precision(2), matrix.f1(2)), (None, Some(0.0), Some(0.0)));
        assert_eq!(
            (matrix.most_confused(0), matrix.most_confused(1), matrix.most_confused(2)),
            (Some((2, 1)), Some((0, 2)), None)
        );
        assert!(matrix.add(3, &[0.0; 3]).is_err() && matrix.add(0, &[0.0; 2]).is_err());
    }
}

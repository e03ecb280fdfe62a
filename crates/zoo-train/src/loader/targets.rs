//! What is asked of the network for each image.

use crate::augment::{Mix, targets};

/// What is asked of the network for each image, beyond its class.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Targets {
    /// How many classes there are.
    pub classes: usize,
    /// What each class counts in the loss, as PyTorch's `weight`; empty: all the same.
    pub weights: Vec<f32>,
    /// Share of the target that is spread over all classes.
    pub label_smoothing: f64,
    /// Whether the shares of all classes are asked for even where the class alone would say it.
    pub as_shares: bool,
}

impl Targets {
    /// The shares of all classes that are asked for, row by row; `None` where the classes alone say it.
    pub(super) fn of(&self, labels: &[u32], mix: Option<&Mix>) -> Option<Vec<f32>> {
        if mix.is_none() && self.weights.is_empty() && !self.as_shares {
            return None;
        }
        let n = self.classes;
        let mut shares = targets(mix, labels, n, self.label_smoothing);
        if !self.weights.is_empty() {
            // PyTorch's mean over a batch divides by what its images count.
            let counts = |label: u32| self.weights[label as usize];
            let of = |image: usize| {
                let own = counts(labels[image]);
                mix.map_or(own, |mix| mix.lambda * own + (1.0 - mix.lambda) * counts(labels[mix.partner[image]]))
            };
            let sum: f32 = (0..labels.len()).map(of).sum();
            // Where none of the images counts, nothing is asked for.
            let scale = if sum > 0.0 { labels.len() as f32 / sum } else { 0.0 };
            for row in shares.chunks_exact_mut(n) {
                row.iter_mut().zip(&self.weights).for_each(|(share, weight)| *share *= weight * scale);
            }
        }
        Some(shares)
    }
}

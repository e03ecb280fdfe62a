//! Softmax cross-entropy of rows, with its gradient.

use super::simd::Real;

/// The targets of a batch: a class for each row, of so many classes.
#[derive(Debug, Clone)]
pub(crate) struct Targets {
    pub targets: Vec<u32>,
    pub classes: usize,
    pub label_smoothing: f64,
}

/// (max x, log Σ exp(x - max x)) of one row; the sum in f64, since a thousand classes in f32 would lose digits.
fn log_sum_exp<T: Real>(row: &[T]) -> (f64, f64) {
    let max = row.iter().map(|x| x.to_f64()).fold(f64::NEG_INFINITY, f64::max);
    (max, row.iter().map(|x| (x.to_f64() - max).exp()).sum::<f64>().ln())
}

impl Targets {
    /// The smoothed target's weight on every class, and what the right class has on top.
    fn target_weights(&self) -> (f64, f64) {
        (self.label_smoothing / self.classes as f64, 1.0 - self.label_smoothing)
    }

    /// The mean over the rows of Σₖ qₖ (log Σ exp x - xₖ).
    pub fn forward<T: Real>(&self, logits: &[T]) -> T {
        let (everywhere, on_target) = self.target_weights();
        let rows = logits.chunks_exact(self.classes).zip(self.targets.iter());
        let total: f64 = rows
            .map(|(row, &target)| {
                let (max, log_sum) = log_sum_exp(row);
                let loss = |x: T| log_sum - (x.to_f64() - max);
                // Without smoothing the other classes must not enter: 0 · ∞ would make a NaN of a logit of -∞.
                let smooth = if everywhere > 0.0 { row.iter().map(|&x| everywhere * loss(x)).sum() } else { 0.0 };
                on_target * loss(row[target as usize]) + smooth
            })
            .sum();
        T::from_f64(total / self.targets.len() as f64)
    }

    /// d loss / dx = (softmax(x) - q) / b, times the scalar gradient that comes in.
    pub fn backward<T: Real>(&self, logits: &[T], grad: T) -> Vec<T> {
        let (everywhere, on_target) = self.target_weights();
        let scale = grad.to_f64() / self.targets.len() as f64;
        let mut dx = Vec::with_capacity(logits.len());
        for (row, &target) in logits.chunks_exact(self.classes).zip(self.targets.iter()) {
            let (max, log_sum) = log_sum_exp(row);
            dx.extend(row.iter().enumerate().map(|(k, x)| {
                let q = everywhere + if k == target as usize { on_target } else { 0.0 };
                T::from_f64(scale * ((x.to_f64() - max - log_sum).exp() - q))
            }));
        }
        dx
    }
}

/// Weights of the classes for each row of a batch, smoothed: what the mean negative log likelihood is taken with.
#[derive(Debug, Clone)]
pub(crate) struct SoftTargets {
    /// (b, classes)
    weights: Vec<f64>,
    classes: usize,
}

impl SoftTargets {
    /// Rows of `classes` weights, each moved by `label_smoothing` s towards 1 / classes: (1 - s) t + s / classes.
    pub fn new(mut weights: Vec<f64>, classes: usize, label_smoothing: f64) -> Self {
        if label_smoothing > 0.0 {
            let everywhere = label_smoothing / classes as f64;
            weights.iter_mut().for_each(|t| *t = *t * (1.0 - label_smoothing) + everywhere);
        }
        Self { weights, classes }
    }

    /// The weights, row by row.
    pub fn smoothed(&self) -> &[f64] {
        &self.weights
    }

    fn rows<'a, T: Real>(&'a self, logits: &'a [T]) -> impl Iterator<Item = (&'a [T], &'a [f64])> {
        logits.chunks_exact(self.classes).zip(self.weights.chunks_exact(self.classes))
    }

    fn batch(&self) -> f64 {
        (self.weights.len() / self.classes) as f64
    }

    /// The mean over the rows of Σₖ tₖ (log Σ exp x - xₖ).
    pub fn forward<T: Real>(&self, logits: &[T]) -> T {
        let total: f64 = self
            .rows(logits)
            .map(|(row, targets)| {
                let (max, log_sum) = log_sum_exp(row);
                let loss = |(&x, &t): (&T, &f64)| t * (log_sum - (x.to_f64() - max));
                // A class that is not wanted must not enter: 0 · ∞ would make a NaN of a logit of -∞.
                row.iter().zip(targets).filter(|(_, t)| **t != 0.0).map(loss).sum::<f64>()
            })
            .sum();
        T::from_f64(total / self.batch())
    }

    /// d loss / dx = (softmax(x) Σₖ tₖ - t) / b, times the scalar gradient that comes in.
    pub fn backward<T: Real>(&self, logits: &[T], grad: T) -> Vec<T> {
        let scale = grad.to_f64() / self.batch();
        let mut dx = Vec::with_capacity(logits.len());
        for (row, targets) in self.rows(logits) {
            let (max, log_sum) = log_sum_exp(row);
            let whole: f64 = targets.iter().sum();
            dx.extend(
                row.iter()
                    .zip(targets)
                    .map(|(x, t)| T::from_f64(scale * ((x.to_f64() - max - log_sum).exp() * whole - t))),
            );
        }
        dx
    }
}

//! Losses and the scores that go with them.

pub use crate::ops::cross_entropy;
use candle_core::{Result, Tensor};

/// How many rows of `logits` (b, classes) have their label (b) among the `k` largest; of equal logits the lower class
/// counts as the larger, so that a constant output does not score.
///
/// # Errors
/// Logits that cannot be read as f32.
pub fn topk_correct(logits: &Tensor, labels: &[u32], k: usize) -> Result<usize> {
    let rows = logits.to_dtype(candle_core::DType::F32)?.to_vec2::<f32>()?;
    let hit = |row: &[f32], label: usize| {
        let Some(&own) = row.get(label).filter(|x| !x.is_nan()) else { return false };
        let ahead = |(i, &x): (usize, &f32)| x > own || x.is_nan() || (x == own && i < label);
        row.iter().enumerate().filter(|&e| ahead(e)).count() < k
    };
    Ok(rows.iter().zip(labels).filter(|&(row, &label)| hit(row, label as usize)).count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn topk_counts_ties_and_nan_against_the_network() {
        let logits =
            Tensor::new(&[[1f32, 1., 1.], [0., 2., 1.], [f32::NAN, f32::NAN, f32::NAN]], &Device::Cpu).unwrap();
        assert_eq!(topk_correct(&logits, &[0, 1, 0], 1).unwrap(), 2);
        assert_eq!(topk_correct(&logits, &[2, 0, 1], 1).unwrap(), 0);
        assert_eq!(topk_correct(&logits, &[1, 2, 2], 2).unwrap(), 2);
    }
}

//! What the Transformer trains with: section 5.3 and 5.4 of Vaswani et al. 2017, arXiv:1706.03762.

use candle_core::{Result, Tensor, bail};
use zoo_core::loss::cross_entropy;

/// The paper's learning rate, also called Noam's: factor · d_model^-½ · min(step^-½, step · warmup^-³ᐟ²), which rises
/// evenly for `warmup` steps and then falls with the root of the step.
///
/// ```
/// use zoo_transformer::transformer::training::Noam;
/// let rate = Noam::new(512, 4000);
/// assert!((rate.at(3999) - (512.0f64 * 4000.0).powf(-0.5)).abs() < 1e-12);
/// assert!((rate.at(1999) / rate.at(3999) - 0.5).abs() < 1e-12);
/// assert!((rate.at(15_999) / rate.at(3999) - 0.5).abs() < 1e-12);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Noam {
    /// Width of the network.
    pub d_model: usize,
    /// Steps until the highest rate.
    pub warmup: u64,
    /// 1 in the paper.
    pub factor: f64,
}

impl Noam {
    /// With factor 1; the paper warms up for 4000 steps.
    pub fn new(d_model: usize, warmup: u64) -> Self {
        Self { d_model, warmup, factor: 1.0 }
    }

    /// The rate of optimizer step `step`, counted from 0 as everywhere in the zoo; the paper counts from 1.
    pub fn at(&self, step: u64) -> f64 {
        let (step, warmup) = ((step + 1) as f64, self.warmup.max(1) as f64);
        self.factor * (self.d_model as f64).powf(-0.5) * step.powf(-0.5).min(step * warmup.powf(-1.5))
    }
}

/// The label smoothing that the paper trains with.
pub const LABEL_SMOOTHING: f64 = 0.1;

/// Cross-entropy with label smoothing, the mean over all tokens that are not padding: PyTorch's
/// `CrossEntropyLoss(ignore_index=pad, label_smoothing=…)`. Logits (b, m, vocabulary), targets (b, m) of u32; a scalar.
///
/// # Errors
/// Shapes that do not fit together, a token outside the vocabulary, or nothing but padding.
pub fn sequence_loss(logits: &Tensor, targets: &Tensor, pad: u32, label_smoothing: f64) -> Result<Tensor> {
    let (b, m, vocabulary) = logits.dims3()?;
    if targets.dims() != [b, m] {
        bail!("sequence_loss: logits {:?} do not fit targets {:?}", logits.dims(), targets.dims())
    }
    let tokens = targets.flatten_all()?.to_vec1::<u32>()?;
    let (rows, kept): (Vec<u32>, Vec<u32>) = (0..).zip(tokens).filter(|&(_, token)| token != pad).unzip();
    if rows.is_empty() {
        bail!("sequence_loss: the targets are nothing but padding")
    }
    let device = logits.device();
    let logits = logits.reshape((b * m, vocabulary))?.index_select(&Tensor::new(rows, device)?, 0)?;
    cross_entropy(&logits, &Tensor::new(kept, device)?, label_smoothing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn padding_does_not_count() {
        let logits =
            Tensor::new(&[[[1f64, 2., 0.], [9., -9., 3.]], [[0., 1., 5.], [2., 2., 1.]]], &Device::Cpu).unwrap();
        let targets = Tensor::new(&[[1u32, 0], [2, 1]], &Device::Cpu).unwrap();
        let loss = sequence_loss(&logits, &targets, 0, 0.1).unwrap().to_scalar::<f64>().unwrap();
        let rows = Tensor::new(&[[1f64, 2., 0.], [0., 1., 5.], [2., 2., 1.]], &Device::Cpu).unwrap();
        let kept = Tensor::new(&[1u32, 2, 1], &Device::Cpu).unwrap();
        assert_eq!(loss, cross_entropy(&rows, &kept, 0.1).unwrap().to_scalar::<f64>().unwrap());

        let padding = targets.zeros_like().unwrap();
        assert!(sequence_loss(&logits, &padding, 0, 0.1).unwrap_err().to_string().contains("nothing but padding"));
        let short = Tensor::zeros((2, 1), DType::U32, &Device::Cpu).unwrap();
        assert!(sequence_loss(&logits, &short, 7, 0.1).is_err());
    }

    #[test]
    fn no_step_and_no_warmup_divides_by_zero() {
        for (warmup, step) in [(0, 0), (1, 0), (4, 0), (4, 1_000_000)] {
            let rate = Noam { factor: 2.0, ..Noam::new(64, warmup) }.at(step);
            assert!(rate.is_finite() && rate > 0.0, "{rate}");
        }
    }
}

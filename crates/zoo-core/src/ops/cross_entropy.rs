//! Softmax cross-entropy, fused and stable.

use super::{Path, Real, compose, elements, for_real, path};
use crate::{tape, trace};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType, bail};
use std::sync::Arc;

/// Mean over the batch of -Σₖ qₖ log softmax(x)ₖ, where q is 1 - s + s/K at the target and s/K elsewhere:
/// `torch.nn.functional.cross_entropy` with `label_smoothing` s (Szegedy et al. 2016, arXiv:1512.00567).
///
/// Logits (b, K), targets (b) u32; output a scalar.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// let logits = Tensor::zeros((2, 10), DType::F32, &Device::Cpu)?;
/// let loss = zoo_core::ops::cross_entropy(&logits, &Tensor::new(&[3u32, 7], &Device::Cpu)?, 0.1)?;
/// assert!((loss.to_scalar::<f32>()? - 10f32.ln()).abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Shapes that do not fit together, a target that is no class, a smoothing outside 0..=1.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, label_smoothing: f64) -> Result<Tensor> {
    let (&[b, classes], [n]) = (logits.dims(), targets.dims()) else {
        bail!(
            "cross_entropy: wants logits (b, classes) and targets (b), got {:?} and {:?}",
            logits.dims(),
            targets.dims()
        )
    };
    if b != *n || b == 0 || classes == 0 {
        bail!("cross_entropy: logits {:?} do not fit targets {:?}", logits.dims(), targets.dims())
    }
    if !(0.0..=1.0).contains(&label_smoothing) {
        bail!("cross_entropy: label_smoothing must lie in 0..=1, got {label_smoothing}")
    }
    let path = path(logits);
    if let Path::Shape = path {
        return trace::shape_only(&[], logits.dtype(), logits.device());
    }
    if let Path::Compose = path {
        // Reading the targets back to check them would stall a GPU; candle's gather checks its indices itself.
        return compose::cross_entropy(logits, targets, label_smoothing);
    }
    let targets: Arc<[u32]> = targets.to_dtype(DType::U32)?.to_vec1()?.into();
    if let Some((i, bad)) = targets.iter().enumerate().find(|&(_, &t)| t as usize >= classes) {
        bail!("cross_entropy: target {bad} of row {i} is no class of logits {:?}", logits.dims())
    }
    let op = CrossEntropy { targets, classes, label_smoothing };
    match path {
        Path::KernelInF32 => tape::apply1(&logits.to_dtype(DType::F32)?.contiguous()?, op)?.to_dtype(logits.dtype()),
        _ => tape::apply1(&tape::contiguous(logits)?, op),
    }
}

#[derive(Clone)]
struct CrossEntropy {
    targets: Arc<[u32]>,
    classes: usize,
    label_smoothing: f64,
}

/// (max x, log Σ exp(x - max x)) of one row; the sum in f64, since a thousand classes in f32 would lose digits.
fn log_sum_exp<T: Real>(row: &[T]) -> (f64, f64) {
    let max = row.iter().map(|x| x.to_f64()).fold(f64::NEG_INFINITY, f64::max);
    (max, row.iter().map(|x| (x.to_f64() - max).exp()).sum::<f64>().ln())
}

impl CrossEntropy {
    /// The smoothed target's weight on every class, and what the right class has on top.
    fn target_weights(&self) -> (f64, f64) {
        (self.label_smoothing / self.classes as f64, 1.0 - self.label_smoothing)
    }

    fn forward<T: Real>(&self, logits: &[T]) -> T {
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
    fn backward<T: Real>(&self, logits: &[T], grad: T) -> Vec<T> {
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

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!("cross_entropy", x, T => {
            let loss = self.forward::<T>(elements("cross_entropy", x, xl)?);
            Ok((T::to_cpu_storage_owned(vec![loss]), ().into()))
        })
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        logits.apply_op2_no_bwd(&grad.contiguous()?, self).map(Some)
    }
}

/// (logits, scalar gradient) -> gradient of the logits.
impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy gradient"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, g: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        let op = CustomOp2::name(self);
        for_real!(op, x, T => {
            let dx = self.backward::<T>(elements(op, x, xl)?, elements(op, g, gl)?[0]);
            Ok((T::to_cpu_storage_owned(dx), xl.shape().clone()))
        })
    }
}

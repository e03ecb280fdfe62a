//! Softmax cross-entropy, fused and stable.

use super::{Real, fallback};
use crate::kernels::cross_entropy::Targets;
use crate::op::{Op, Passed, Saved, apply};
use crate::pass::{Backend, backend};
use crate::tape::to_dtype;
use crate::trace::shape_only;
use candle_core::{DType, Result, Tensor, bail};

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
    match backend(logits) {
        Backend::Shapes => return shape_only(&[], logits.dtype(), logits.device()),
        // Reading the targets back to check them would stall a GPU; candle's gather checks its indices itself.
        Backend::Fallback => return fallback::cross_entropy(logits, targets, label_smoothing),
        // A loss is an f32 number.
        Backend::Mixed => return cross_entropy(&to_dtype(logits, DType::F32)?, targets, label_smoothing),
        Backend::Kernel | Backend::KernelInF32 => {}
    }
    let targets = targets.to_dtype(DType::U32)?.to_vec1::<u32>()?;
    if let Some((i, bad)) = targets.iter().enumerate().find(|&(_, &t)| t as usize >= classes) {
        bail!("cross_entropy: target {bad} of row {i} is no class of logits {:?}", logits.dims())
    }
    apply(CrossEntropy(Targets { targets, classes, label_smoothing }), &[logits])
}

struct CrossEntropy(Targets);

impl Op for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn shape(&self) -> Vec<usize> {
        Vec::new()
    }

    fn forward<T: Real>(&self, inputs: &[&[T]]) -> Result<Vec<T>> {
        Ok(vec![self.0.forward(inputs[0])])
    }

    fn backward<T: Real>(&self, saved: &Saved<T>) -> Result<Vec<Passed<T>>> {
        Ok(vec![Passed::Made(self.0.backward(saved.inputs[0], saved.grad[0]))])
    }

    fn fallback(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let Targets { targets, label_smoothing, .. } = &self.0;
        fallback::cross_entropy(&inputs[0], &Tensor::new(targets.as_slice(), inputs[0].device())?, *label_smoothing)
    }
}

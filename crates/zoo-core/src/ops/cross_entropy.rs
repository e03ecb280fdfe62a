//! Softmax cross-entropy, fused and stable.

use super::{Real, fallback};
use crate::kernels::cross_entropy::{SoftTargets, Targets};
use crate::op::{Op, Passed, Saved, apply};
use crate::pass::{Backend, backend};
use crate::tape::to_dtype;
use crate::trace::shape_only;
use candle_core::{DType, Result, Tensor, bail};

/// Mean over the batch of -Σₖ qₖ log softmax(x)ₖ: `torch.nn.functional.cross_entropy` with `label_smoothing` s (Szegedy
/// et al. 2016, arXiv:1512.00567).
///
/// Logits are (b, K); the output is a scalar. The targets are
/// - classes, (b): q is 1 - s + s/K at the target and s/K elsewhere; or
/// - weights of the classes t, (b, K), of any float type: q = (1 - s) t + s/K, as mixed images and distilled labels want
///   it. Rows need not sum to 1: whoever weighs the classes multiplies the weights in. They are constants: no gradient
///   passes to them. A class of weight 0 does not enter, not even by a logit of -∞, of which PyTorch makes a NaN.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// let logits = Tensor::zeros((2, 10), DType::F32, &Device::Cpu)?;
/// let loss = zoo_core::ops::cross_entropy(&logits, &Tensor::new(&[3u32, 7], &Device::Cpu)?, 0.1)?;
/// assert!((loss.to_scalar::<f32>()? - 10f32.ln()).abs() < 1e-6);
/// let halves = Tensor::full(0.1f32, (2, 10), &Device::Cpu)?;
/// let loss = zoo_core::ops::cross_entropy(&logits, &halves, 0.0)?;
/// assert!((loss.to_scalar::<f32>()? - 10f32.ln()).abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Shapes that do not fit together, a target that is no class, weights of classes that are integers, a smoothing outside
/// 0..=1.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, label_smoothing: f64) -> Result<Tensor> {
    let (&[b, classes], 1 | 2) = (logits.dims(), targets.rank()) else {
        bail!(
            "cross_entropy: wants logits (b, classes) and targets (b) or (b, classes), got {:?} and {:?}",
            logits.dims(),
            targets.dims()
        )
    };
    let soft = targets.rank() == 2;
    let fits = if soft { targets.dims() == [b, classes] } else { targets.dims() == [b] };
    if !fits || b == 0 || classes == 0 {
        bail!(
            "cross_entropy: logits {:?} do not fit targets {:?}, which are classes (b) or weights of them (b, classes)",
            logits.dims(),
            targets.dims()
        )
    }
    if soft && !targets.dtype().is_float() {
        bail!(
            "cross_entropy: targets {:?} are weights of the classes and want a float type, got {:?}",
            targets.dims(),
            targets.dtype()
        )
    }
    if !(0.0..=1.0).contains(&label_smoothing) {
        bail!("cross_entropy: label_smoothing must lie in 0..=1, got {label_smoothing}")
    }
    match backend(logits) {
        Backend::Shapes => return shape_only(&[], logits.dtype(), logits.device()),
        Backend::Fallback if soft => return fallback::soft_cross_entropy(logits, targets, label_smoothing),
        // Reading the targets back to check them would stall a GPU; candle's gather checks its indices itself.
        Backend::Fallback => return fallback::cross_entropy(logits, targets, label_smoothing),
        // A loss is an f32 number.
        Backend::Mixed => return cross_entropy(&to_dtype(logits, DType::F32)?, targets, label_smoothing),
        Backend::Kernel | Backend::KernelInF32 => {}
    }
    if soft {
        let weights = targets.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        return apply(SoftCrossEntropy(SoftTargets::new(weights, classes, label_smoothing)), &[logits]);
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

struct SoftCrossEntropy(SoftTargets);

impl Op for SoftCrossEntropy {
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
        let targets = Tensor::from_slice(self.0.smoothed(), inputs[0].dims(), inputs[0].device())?;
        fallback::soft_cross_entropy(&inputs[0], &targets, 0.0)
    }
}

//! Lion.

use super::{check, lerp, update, update_from};
use crate::kernels::optim::{self as kernel, Lerp, LionNumbers};
use crate::ops::Real;
use crate::pass::{Backend, backend};
use candle_core::{DType, Result, Tensor, Var};

/// The numbers of one Lion step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LionStep {
    /// Learning rate.
    pub lr: f64,
    /// Share of the momentum in the update.
    pub beta1: f64,
    /// Share of the momentum that is kept.
    pub beta2: f64,
    /// Weight decay, which shrinks the parameter itself.
    pub weight_decay: f64,
}

/// One Lion step on `param` (Chen et al. 2023, arXiv:2302.06675), in timm's form; the momentum starts at zero.
///
/// ```text
/// param   *= 1 - lr · weight_decay
/// param   -= lr · sign(beta1 · exp_avg + (1 - beta1) · grad)
/// exp_avg  = beta2 · exp_avg + (1 - beta2) · grad
/// ```
///
/// # Errors
/// Shapes, element types or devices that differ.
pub fn lion_step(param: &Var, grad: &Tensor, exp_avg: &Var, step: &LionStep) -> Result<()> {
    check("lion_step", param, [Some(grad), Some(exp_avg)])?;
    match (backend(param), param.dtype()) {
        (Backend::Kernel, DType::F32) => with_kernel::<f32>(param, &grad.contiguous()?, exp_avg, step),
        (Backend::Kernel, _) => with_kernel::<f64>(param, &grad.contiguous()?, exp_avg, step),
        _ => composed(param, grad, exp_avg, step),
    }
}

fn with_kernel<T: Real>(param: &Tensor, grad: &Tensor, exp_avg: &Tensor, step: &LionStep) -> Result<()> {
    let [lr, shrink] = [step.lr, 1.0 - step.lr * step.weight_decay].map(T::from_f64);
    let (to_update, to_kept) = (Lerp::new(1.0 - step.beta1), Lerp::new(1.0 - step.beta2));
    let numbers = LionNumbers { lr, shrink, to_update, to_kept };
    update_from(param, grad, |p: &mut [T], g: &[T]| {
        update(exp_avg, |m: &mut [T]| {
            kernel::lion(numbers, p, g, m);
            Ok(())
        })
    })
}

fn composed(param: &Var, grad: &Tensor, exp_avg: &Var, step: &LionStep) -> Result<()> {
    let (p, g, m) = (param.as_detached_tensor(), grad.detach(), exp_avg.as_detached_tensor());
    let update = lerp(&m, &g, 1.0 - step.beta1)?.sign()?;
    exp_avg.set(&lerp(&m, &g, 1.0 - step.beta2)?)?;
    param.set(&((p * (1.0 - step.lr * step.weight_decay))? - (update * step.lr)?)?)
}

#[cfg(test)]
mod tests {
    use super::super::tests::random;
    use super::*;
    use crate::testing::distance;
    use candle_core::Device;

    #[test]
    fn kernel_and_composition_agree() {
        let grad = random("grad").as_detached_tensor();
        for (beta1, beta2) in [(0.9, 0.99), (0.3, 0.2)] {
            let step = LionStep { lr: 0.1, beta1, beta2, weight_decay: 0.1 };
            let [(p, m), (q, n)] = [0, 1].map(|_| (random("p"), random("m")));
            lion_step(&p, &grad, &m, &step).unwrap();
            composed(&q, &grad, &n, &step).unwrap();
            assert!(distance(&p, &q).max(distance(&m, &n)) < 1e-14, "{step:?}");
        }
    }

    #[test]
    fn nothing_to_follow_is_no_step() {
        let zeros = || Var::zeros(3, DType::F32, &Device::Cpu).unwrap();
        let (param, momentum) = (zeros(), zeros());
        let step = LionStep { lr: 0.1, beta1: 0.9, beta2: 0.99, weight_decay: 0.0 };
        let grad = Tensor::new(&[0f32, 2.0, -0.001], &Device::Cpu).unwrap();
        lion_step(&param, &grad, &momentum, &step).unwrap();
        assert_eq!(param.to_vec1::<f32>().unwrap(), [0.0, -0.1, 0.1]);
    }
}

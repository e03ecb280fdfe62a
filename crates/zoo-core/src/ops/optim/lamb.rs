//! LAMB.

use super::{check, global_norm, lerp, update, update_from};
use crate::kernels::optim::{self as kernel, LambNumbers, Lerp};
use crate::ops::Real;
use crate::pass::{Backend, backend};
use candle_core::{DType, Result, Tensor, Var};

/// The numbers of one LAMB step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LambStep {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Keeps the division away from zero; outside the root.
    pub eps: f64,
    /// Weight decay, part of the update whose norm is taken.
    pub weight_decay: f64,
    /// What the gradient is divided by: how far the norm of all gradients is above the most that is wanted, at least 1.
    pub clip: f64,
    /// Adapts the size of the step to the parameter's norm without weight decay too.
    pub always_adapt: bool,
    /// How many steps have been taken, this one included: 1 at the first.
    pub step: u64,
}

impl LambStep {
    /// Both moments' bias corrections, of the second its root.
    fn corrections(&self) -> (f64, f64) {
        let t = self.step as f64;
        (1.0 - self.beta1.powf(t), (1.0 - self.beta2.powf(t)).sqrt())
    }

    fn adapts(&self) -> bool {
        self.weight_decay != 0.0 || self.always_adapt
    }
}

/// ‖param‖ / ‖update‖, and 1 where one of them is zero.
fn trust_ratio(param: f64, update: f64) -> f64 {
    if param > 0.0 && update > 0.0 { param / update } else { 1.0 }
}

/// One LAMB step on `param` (You et al. 2019, arXiv:1904.00962), in timm's form; both moments start at zero. With
/// t = `step.step`:
///
/// ```text
/// g        = grad / clip
/// exp_avg  = beta1 · exp_avg + (1 - beta1) · g
/// exp_avg_sq = beta2 · exp_avg_sq + (1 - beta2) · g²
/// update   = exp_avg / (1 - beta1ᵗ) / (√exp_avg_sq / √(1 - beta2ᵗ) + eps) + weight_decay · param
/// param   -= lr · ‖param‖ / ‖update‖ · update       the ratio 1 without weight decay, unless always_adapt
/// ```
///
/// # Errors
/// Shapes, element types or devices that differ.
pub fn lamb_step(param: &Var, grad: &Tensor, exp_avg: &Var, exp_avg_sq: &Var, step: &LambStep) -> Result<()> {
    check("lamb_step", param, [Some(grad), Some(exp_avg), Some(exp_avg_sq)])?;
    match (backend(param), param.dtype()) {
        (Backend::Kernel, DType::F32) => with_kernel::<f32>(param, &grad.contiguous()?, exp_avg, exp_avg_sq, step),
        (Backend::Kernel, _) => with_kernel::<f64>(param, &grad.contiguous()?, exp_avg, exp_avg_sq, step),
        _ => composed(param, grad, exp_avg, exp_avg_sq, step),
    }
}

fn with_kernel<T: Real>(
    param: &Tensor,
    grad: &Tensor,
    exp_avg: &Tensor,
    exp_avg_sq: &Tensor,
    step: &LambStep,
) -> Result<()> {
    let (correction, root) = step.corrections();
    let [clip, correction, root, eps, decay] =
        [step.clip, correction, root, step.eps, step.weight_decay].map(T::from_f64);
    let [beta2, rest2] = [step.beta2, 1.0 - step.beta2].map(T::from_f64);
    let to_mean = Lerp::new(1.0 - step.beta1);
    let numbers = LambNumbers { clip, to_mean, beta2, rest2, correction, root, eps, decay };
    update_from(param, grad, |p: &mut [T], g: &[T]| {
        update(exp_avg, |m: &mut [T]| {
            update(exp_avg_sq, |v: &mut [T]| {
                let [param, update] = kernel::lamb_moments(numbers, p, g, m, v);
                let ratio = if step.adapts() { trust_ratio(param.sqrt(), update.sqrt()) } else { 1.0 };
                kernel::lamb_step(numbers, T::from_f64(step.lr * ratio), p, m, v);
                Ok(())
            })
        })
    })
}

fn composed(param: &Var, grad: &Tensor, exp_avg: &Var, exp_avg_sq: &Var, step: &LambStep) -> Result<()> {
    let (correction, root) = step.corrections();
    let (p, g) = (param.as_detached_tensor(), (grad.detach() / step.clip)?);
    let m = lerp(&exp_avg.as_detached_tensor(), &g, 1.0 - step.beta1)?;
    let v = ((exp_avg_sq.as_detached_tensor() * step.beta2)? + (g.sqr()? * (1.0 - step.beta2))?)?;
    exp_avg.set(&m)?;
    exp_avg_sq.set(&v)?;
    let mut update = ((m / correction)? / ((v.sqrt()? / root)? + step.eps)?)?;
    if step.weight_decay != 0.0 {
        update = (update + (&p * step.weight_decay)?)?;
    }
    let ratio = if step.adapts() { trust_ratio(global_norm([&p])?, global_norm([&update])?) } else { 1.0 };
    param.set(&(p - (update * (step.lr * ratio))?)?)
}

#[cfg(test)]
mod tests {
    use super::super::tests::random;
    use super::*;
    use crate::testing::distance;

    #[test]
    fn kernel_and_composition_agree() {
        let grad = random("grad").as_detached_tensor();
        let (lr, beta1, beta2, eps, clip) = (0.1, 0.9, 0.999, 1e-6, 1.5);
        for (weight_decay, always_adapt, step) in [(0.0, false, 1), (0.0, true, 10), (0.1, false, 1), (0.1, true, 10)] {
            let step = LambStep { lr, beta1, beta2, eps, weight_decay, clip, always_adapt, step };
            let [(p, m, v), (q, n, w)] = [0, 1].map(|_| {
                let v = Var::from_tensor(&random("v").abs().unwrap().detach()).unwrap();
                (random("p"), random("m"), v)
            });
            lamb_step(&p, &grad, &m, &v, &step).unwrap();
            composed(&q, &grad, &n, &w, &step).unwrap();
            for (x, y) in [(&p, &q), (&m, &n), (&v, &w)] {
                assert!(distance(x, y) < 1e-13, "{step:?}");
            }
        }
    }
}

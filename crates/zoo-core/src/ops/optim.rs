//! Optimizer steps in place: one pass over parameter, gradient and state.
//!
//! The formulas and their order of operations are PyTorch's (`torch.optim`) and timm's, so that trajectories agree to
//! rounding. On the CPU a step allocates nothing, but for Muon's products of matrices; on any other device, and for half
//! types, it is composed of candle's ops.

mod lamb;
mod lion;
mod muon;
mod rmsprop;

pub use lamb::{LambStep, lamb_step};
pub use lion::{LionStep, lion_step};
pub use muon::{MuonStep, muon_step, newton_schulz};
pub use rmsprop::{RmspropStep, rmsprop_step};

use super::{Real, elements, read};
use crate::kernels::optim::{self as kernel, AdamNumbers, Lerp, SgdNumbers};
use crate::pass::{Backend, backend};
use crate::storage;
use candle_core::{CpuStorage, DType, InplaceOp1, InplaceOp2, Layout, Result, Tensor, Var, bail};
use std::cell::RefCell;
use std::marker::PhantomData;

/// The numbers of one SGD step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdStep {
    /// Learning rate.
    pub lr: f64,
    /// Share of the last update that goes on; read only where there is a momentum buffer.
    pub momentum: f64,
    /// Looks ahead along the momentum (Nesterov); read only where there is a momentum buffer.
    pub nesterov: bool,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
}

/// The numbers of one Adam or AdamW step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Keeps the division away from zero; outside the root.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Shrinks the parameter itself (AdamW) instead of adding to the gradient (Adam's L2).
    pub decoupled: bool,
    /// How many steps this parameter has taken, this one included: 1 at the first.
    pub step: u64,
}

impl AdamStep {
    /// lr over the first moment's bias correction, and the root of the second's.
    fn corrections(&self) -> (f64, f64) {
        let t = self.step as f64;
        (self.lr / (1.0 - self.beta1.powf(t)), (1.0 - self.beta2.powf(t)).sqrt())
    }
}

/// One SGD step on `param`, without momentum where there is no `buffer`. The buffer starts at zero.
///
/// ```text
/// d      = grad + weight_decay · param
/// buffer = momentum · buffer + d
/// param -= lr · (d + momentum · buffer if nesterov, else buffer)
/// ```
///
/// # Errors
/// Shapes, element types or devices that differ.
pub fn sgd_step(param: &Var, grad: &Tensor, buffer: Option<&Var>, step: &SgdStep) -> Result<()> {
    check("sgd_step", param, [Some(grad), buffer.map(|b| b.as_tensor())])?;
    match (backend(param), param.dtype()) {
        (Backend::Kernel, DType::F32) => sgd_kernel::<f32>(param, &grad.contiguous()?, buffer, step),
        (Backend::Kernel, _) => sgd_kernel::<f64>(param, &grad.contiguous()?, buffer, step),
        _ => sgd_fallback(param, grad, buffer, step),
    }
}

fn sgd_kernel<T: Real>(param: &Tensor, grad: &Tensor, buffer: Option<&Var>, step: &SgdStep) -> Result<()> {
    let [lr, momentum, decay] = [step.lr, step.momentum, step.weight_decay].map(T::from_f64);
    let numbers = SgdNumbers { lr, momentum, decay, nesterov: step.nesterov };
    update_from(param, grad, |p: &mut [T], g: &[T]| match buffer {
        None => {
            kernel::sgd(numbers, p, g, None);
            Ok(())
        }
        Some(buffer) => update(buffer, |b: &mut [T]| {
            kernel::sgd(numbers, p, g, Some(b));
            Ok(())
        }),
    })
}

fn sgd_fallback(param: &Var, grad: &Tensor, buffer: Option<&Var>, step: &SgdStep) -> Result<()> {
    let p = param.as_detached_tensor();
    let mut d = grad.detach();
    if step.weight_decay != 0.0 {
        d = (d + (&p * step.weight_decay)?)?;
    }
    if let Some(buffer) = buffer {
        let b = ((buffer.as_detached_tensor() * step.momentum)? + &d)?;
        buffer.set(&b)?;
        d = if step.nesterov { (d + (b * step.momentum)?)? } else { b };
    }
    param.set(&(p - (d * step.lr)?)?)
}

/// One Adam or AdamW step on `param`; both moments start at zero. With t = `step.step`:
///
/// ```text
/// param   *= 1 - lr · weight_decay                if decoupled
/// g        = grad + weight_decay · param          if not
/// exp_avg  = beta1 · exp_avg + (1 - beta1) · g
/// exp_avg_sq = beta2 · exp_avg_sq + (1 - beta2) · g²
/// param   -= lr / (1 - beta1ᵗ) · exp_avg / (√exp_avg_sq / √(1 - beta2ᵗ) + eps)
/// ```
///
/// # Errors
/// Shapes, element types or devices that differ.
pub fn adam_step(param: &Var, grad: &Tensor, exp_avg: &Var, exp_avg_sq: &Var, step: &AdamStep) -> Result<()> {
    check("adam_step", param, [Some(grad), Some(exp_avg), Some(exp_avg_sq)])?;
    match (backend(param), param.dtype()) {
        (Backend::Kernel, DType::F32) => adam_kernel::<f32>(param, &grad.contiguous()?, exp_avg, exp_avg_sq, step),
        (Backend::Kernel, _) => adam_kernel::<f64>(param, &grad.contiguous()?, exp_avg, exp_avg_sq, step),
        _ => adam_fallback(param, grad, exp_avg, exp_avg_sq, step),
    }
}

fn adam_kernel<T: Real>(
    param: &Tensor,
    grad: &Tensor,
    exp_avg: &Tensor,
    exp_avg_sq: &Tensor,
    step: &AdamStep,
) -> Result<()> {
    let (size, root) = step.corrections();
    let (shrink, l2) = if step.decoupled { (1.0 - step.lr * step.weight_decay, 0.0) } else { (1.0, step.weight_decay) };
    let [size, root, shrink, l2, eps] = [size, root, shrink, l2, step.eps].map(T::from_f64);
    let [rest1, beta2, rest2] = [1.0 - step.beta1, step.beta2, 1.0 - step.beta2].map(T::from_f64);
    let numbers = AdamNumbers { size, root, shrink, l2, eps, rest1, beta2, rest2 };
    update_from(param, grad, |p: &mut [T], g: &[T]| {
        update(exp_avg, |m: &mut [T]| {
            update(exp_avg_sq, |v: &mut [T]| {
                kernel::adam(numbers, p, g, m, v);
                Ok(())
            })
        })
    })
}

fn adam_fallback(param: &Var, grad: &Tensor, exp_avg: &Var, exp_avg_sq: &Var, step: &AdamStep) -> Result<()> {
    let (size, root) = step.corrections();
    let (mut p, mut g) = (param.as_detached_tensor(), grad.detach());
    match step.decoupled {
        _ if step.weight_decay == 0.0 => {}
        true => p = (p * (1.0 - step.lr * step.weight_decay))?,
        false => g = (g + (&p * step.weight_decay)?)?,
    }
    let m = ((exp_avg.as_detached_tensor() * step.beta1)? + (&g * (1.0 - step.beta1))?)?;
    let v = ((exp_avg_sq.as_detached_tensor() * step.beta2)? + (g.sqr()? * (1.0 - step.beta2))?)?;
    exp_avg.set(&m)?;
    exp_avg_sq.set(&v)?;
    let denominator = ((v.sqrt()? / root)? + step.eps)?;
    param.set(&(p - ((m / denominator)? * size)?)?)
}

/// Moves `target` by `weight` of the way to `end`: a step of a moving average.
///
/// ```text
/// target = target + weight · (end - target)
/// ```
///
/// # Errors
/// Shapes, element types or devices that differ.
pub fn lerp_step(target: &Var, end: &Tensor, weight: f64) -> Result<()> {
    check("lerp_step", target, [Some(end)])?;
    fn with_kernel<T: Real>(target: &Tensor, end: &Tensor, weight: f64) -> Result<()> {
        update_from(target, end, |xs: &mut [T], end: &[T]| {
            kernel::lerp(Lerp::new(weight), xs, end);
            Ok(())
        })
    }
    match (backend(target), target.dtype()) {
        (Backend::Kernel, DType::F32) => with_kernel::<f32>(target, &end.contiguous()?, weight),
        (Backend::Kernel, _) => with_kernel::<f64>(target, &end.contiguous()?, weight),
        _ => target.set(&lerp(&target.as_detached_tensor(), &end.detach(), weight)?),
    }
}

/// √Σ x² over all elements of all `tensors`, summed in f64 on the CPU (in f32 elsewhere), in an order that does not
/// depend on the number of threads.
///
/// # Errors
/// What the device reports.
pub fn global_norm<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<f64> {
    // On an accelerator every scalar fetched is a wait: add up there, fetch once a device.
    let (mut total, mut elsewhere) = (0.0, Vec::new());
    for tensor in tensors {
        match (backend(tensor), tensor.dtype()) {
            (Backend::Kernel, DType::F32) => total += read(&tensor.contiguous()?, kernel::sum_of_squares::<f32>)?,
            (Backend::Kernel, _) => total += read(&tensor.contiguous()?, kernel::sum_of_squares::<f64>)?,
            _ => elsewhere.push(tensor.detach().to_dtype(DType::F32)?.sqr()?.sum_all()?),
        }
    }
    if !elsewhere.is_empty() {
        total += f64::from(Tensor::stack(&elsewhere, 0)?.sum_all()?.to_scalar::<f32>()?);
    }
    Ok(total.sqrt())
}

fn check<'a>(op: &str, param: &Tensor, others: impl IntoIterator<Item = Option<&'a Tensor>>) -> Result<()> {
    for other in others.into_iter().flatten() {
        if other.shape() != param.shape() || other.dtype() != param.dtype() {
            bail!(
                "{op}: the parameter is {:?} {:?}, its gradient or state {:?} {:?}",
                param.shape(),
                param.dtype(),
                other.shape(),
                other.dtype()
            )
        }
    }
    Ok(())
}

fn elements_mut<'a, T: Real>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [T]> {
    match (storage::elements_mut(storage), layout.contiguous_offsets()) {
        (Some(xs), Some((start, end))) => Ok(&mut xs[start..end]),
        _ => bail!("optimizer step: a parameter or its state is not contiguous, or of another type than its gradient"),
    }
}

/// Hands a tensor's elements to a closure, to change in place. Candle lends one tensor mutably at a time; steps that
/// change several nest these.
struct Update<T, F>(RefCell<F>, PhantomData<T>);
/// The same, with the elements of a second tensor to read.
struct UpdateFrom<T, F>(RefCell<F>, PhantomData<T>);

fn update<T: Real>(target: &Tensor, f: impl FnMut(&mut [T]) -> Result<()>) -> Result<()> {
    target.inplace_op1(&Update(RefCell::new(f), PhantomData))
}

fn update_from<T: Real>(target: &Tensor, source: &Tensor, f: impl FnMut(&mut [T], &[T]) -> Result<()>) -> Result<()> {
    target.inplace_op2(source, &UpdateFrom(RefCell::new(f), PhantomData))
}

/// [`update`] of what may be missing.
fn update_any<T: Real>(target: Option<&Var>, mut f: impl FnMut(Option<&mut [T]>) -> Result<()>) -> Result<()> {
    match target {
        None => f(None),
        Some(target) => update(target, |xs| f(Some(xs))),
    }
}

/// `weight` of the way from `start` to `end`.
fn lerp(start: &Tensor, end: &Tensor, weight: f64) -> Result<Tensor> {
    (start * (1.0 - weight))? + (end * weight)?
}

impl<T: Real, F: FnMut(&mut [T]) -> Result<()>> InplaceOp1 for Update<T, F> {
    fn name(&self) -> &'static str {
        "optimizer-step"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        (self.0.borrow_mut())(elements_mut(storage, layout)?)
    }
}

impl<T: Real, F: FnMut(&mut [T], &[T]) -> Result<()>> InplaceOp2 for UpdateFrom<T, F> {
    fn name(&self) -> &'static str {
        "optimizer-step"
    }

    fn cpu_fwd(&self, target: &mut CpuStorage, tl: &Layout, source: &CpuStorage, sl: &Layout) -> Result<()> {
        (self.0.borrow_mut())(elements_mut(target, tl)?, elements("optimizer-step", source, sl)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::optim::CHUNK;
    use crate::testing::{distance, numbers};
    use candle_core::Device;

    /// Longer than two chunks and not a multiple of one, so that every path of the splitting is taken.
    const LEN: usize = 2 * CHUNK + 37;

    pub(super) fn random(name: &str) -> Var {
        Var::from_tensor(&numbers(name, &[LEN])).unwrap()
    }

    /// The composition and the kernel are two writings of one formula; a GPU runs the first.
    #[test]
    fn kernel_and_composition_agree() {
        let step = SgdStep { lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0.05 };
        let grad = random("grad").as_detached_tensor();
        for step in [step, SgdStep { nesterov: false, ..step }, SgdStep { weight_decay: 0.0, ..step }] {
            for momentum in [true, false] {
                let (p, q, a, b) = (random("p"), random("p"), random("buffer"), random("buffer"));
                sgd_step(&p, &grad, momentum.then_some(&a), &step).unwrap();
                sgd_fallback(&q, &grad, momentum.then_some(&b), &step).unwrap();
                assert!(distance(&p, &q).max(distance(&a, &b)) < 1e-14, "{step:?}");
            }
        }
        for (decoupled, step) in [(false, 1), (false, 10), (true, 1), (true, 10)] {
            let (lr, beta1, beta2, eps, weight_decay) = (0.1, 0.9, 0.999, 1e-8, 0.1);
            let step = AdamStep { lr, beta1, beta2, eps, weight_decay, decoupled, step };
            let [(p, m, v), (q, n, w)] = [0, 1].map(|_| {
                let v = Var::from_tensor(&random("v").abs().unwrap().detach()).unwrap();
                (random("p"), random("m"), v)
            });
            adam_step(&p, &grad, &m, &v, &step).unwrap();
            adam_fallback(&q, &grad, &n, &w, &step).unwrap();
            for (x, y) in [(&p, &q), (&m, &n), (&v, &w)] {
                assert!(distance(x, y) < 1e-13, "{step:?}");
            }
        }
    }

    #[test]
    fn norm_is_over_all_tensors_and_layouts() {
        let a = Tensor::new(&[[3f32, 0.0], [0.0, 0.0]], &Device::Cpu).unwrap();
        let b = Tensor::new(&[[0f64, 4.0], [0.0, 12.0]], &Device::Cpu).unwrap();
        let half = Tensor::new(&[84f32], &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
        assert_eq!(global_norm([&a, &b.t().unwrap()]).unwrap(), 13.0);
        assert_eq!(global_norm([&a, &b, &half]).unwrap(), 85.0);
        assert_eq!(global_norm([]).unwrap(), 0.0);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let step = SgdStep { lr: 0.1, momentum: 0.0, nesterov: false, weight_decay: 0.0 };
        let grad = Tensor::zeros(3, DType::F64, &Device::Cpu).unwrap();
        assert!(sgd_step(&random("p"), &grad, None, &step).unwrap_err().to_string().contains("sgd_step"));
        // A gradient that is the parameter itself: candle refuses, where taking both locks would wait forever.
        let p = random("p");
        assert!(sgd_step(&p, &p.as_detached_tensor(), None, &step).is_err());
    }
}

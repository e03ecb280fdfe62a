//! RMSprop.

use super::{check, lerp, update, update_any, update_from};
use crate::kernels::optim::{self as kernel, Lerp, RmspropNumbers};
use crate::ops::Real;
use crate::pass::{Backend, backend};
use candle_core::{DType, Result, Tensor, Var};

/// The numbers of one RMSprop step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmspropStep {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the mean square.
    pub alpha: f64,
    /// Keeps the division away from zero; outside the root.
    pub eps: f64,
    /// Share of the last update that goes on; read only where there is a momentum buffer.
    pub momentum: f64,
    /// L2 penalty, added to the gradient.
    pub weight_decay: f64,
}

/// One RMSprop step on `param` (Tieleman and Hinton 2012, lecture 6.5 of "Neural Networks for Machine Learning"; centred
/// by `grad_avg`: Graves 2013, arXiv:1308.0850), in PyTorch's form. All of the state starts at zero.
///
/// ```text
/// g          = grad + weight_decay · param
/// square_avg = alpha · square_avg + (1 - alpha) · g²
/// grad_avg   = grad_avg + (1 - alpha) · (g - grad_avg)         if there is one
/// d          = g / (√(square_avg - grad_avg²) + eps)
/// buffer     = momentum · buffer + d                           if there is one
/// param     -= lr · (buffer if there is one, else d)
/// ```
///
/// # Errors
/// Shapes, element types or devices that differ.
pub fn rmsprop_step(
    param: &Var,
    grad: &Tensor,
    square_avg: &Var,
    grad_avg: Option<&Var>,
    buffer: Option<&Var>,
    step: &RmspropStep,
) -> Result<()> {
    let optional = [grad_avg, buffer].map(|var| var.map(|var| var.as_tensor()));
    check("rmsprop_step", param, [Some(grad), Some(square_avg)].into_iter().chain(optional))?;
    let state = (square_avg, grad_avg, buffer);
    match (backend(param), param.dtype()) {
        (Backend::Kernel, DType::F32) => with_kernel::<f32>(param, &grad.contiguous()?, state, step),
        (Backend::Kernel, _) => with_kernel::<f64>(param, &grad.contiguous()?, state, step),
        _ => composed(param, grad, state, step),
    }
}

/// Mean square, mean, momentum.
type State<'a> = (&'a Var, Option<&'a Var>, Option<&'a Var>);

fn with_kernel<T: Real>(
    param: &Tensor,
    grad: &Tensor,
    (square, mean, buffer): State<'_>,
    step: &RmspropStep,
) -> Result<()> {
    let [lr, alpha, rest, eps, l2, momentum] =
        [step.lr, step.alpha, 1.0 - step.alpha, step.eps, step.weight_decay, step.momentum].map(T::from_f64);
    let numbers = RmspropNumbers { lr, alpha, rest, to_mean: Lerp::new(1.0 - step.alpha), eps, l2, momentum };
    update_from(param, grad, |p: &mut [T], g: &[T]| {
        update(square, |v: &mut [T]| {
            update_any(mean, |mut m: Option<&mut [T]>| {
                update_any(buffer, |b: Option<&mut [T]>| {
                    kernel::rmsprop(numbers, p, g, (&mut *v, (m.as_deref_mut(), b)));
                    Ok(())
                })
            })
        })
    })
}

fn composed(param: &Var, grad: &Tensor, (square, mean, buffer): State<'_>, step: &RmspropStep) -> Result<()> {
    let (p, mut g) = (param.as_detached_tensor(), grad.detach());
    if step.weight_decay != 0.0 {
        g = (g + (&p * step.weight_decay)?)?;
    }
    let mut v = ((square.as_detached_tensor() * step.alpha)? + (g.sqr()? * (1.0 - step.alpha))?)?;
    square.set(&v)?;
    if let Some(mean) = mean {
        let m = lerp(&mean.as_detached_tensor(), &g, 1.0 - step.alpha)?;
        mean.set(&m)?;
        v = (v - m.sqr()?)?;
    }
    let mut d = (g / (v.sqrt()? + step.eps)?)?;
    if let Some(buffer) = buffer {
        d = ((buffer.as_detached_tensor() * step.momentum)? + d)?;
        buffer.set(&d)?;
    }
    param.set(&(p - (d * step.lr)?)?)
}

#[cfg(test)]
mod tests {
    use super::super::tests::random;
    use super::*;
    use crate::testing::distance;

    /// The composition and the kernel are two writings of one formula; a GPU runs the first.
    #[test]
    fn kernel_and_composition_agree() {
        let grad = random("grad").as_detached_tensor();
        let step = RmspropStep { lr: 0.1, alpha: 0.9, eps: 1e-3, momentum: 0.9, weight_decay: 0.05 };
        for centered in [true, false] {
            for momentum in [true, false] {
                let state = || {
                    // A mean square is at least the square of the mean.
                    let square = (random("m").sqr().unwrap().detach() + 0.1).unwrap();
                    (random("p"), Var::from_tensor(&square).unwrap(), random("m"), random("buffer"))
                };
                let ((p, v, m, b), (q, w, n, c)) = (state(), state());
                let of = |m: &Var, b: &Var| (centered.then(|| m.clone()), momentum.then(|| b.clone()));
                let ((one, two), (three, four)) = (of(&m, &b), of(&n, &c));
                rmsprop_step(&p, &grad, &v, one.as_ref(), two.as_ref(), &step).unwrap();
                composed(&q, &grad, (&w, three.as_ref(), four.as_ref()), &step).unwrap();
                for (x, y) in [(&p, &q), (&v, &w), (&m, &n), (&b, &c)] {
                    assert!(distance(x, y) < 1e-13, "centered {centered}, momentum {momentum}");
                }
            }
        }
    }
}

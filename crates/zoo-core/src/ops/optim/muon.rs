//! Muon.

use super::{check, global_norm, lerp, update, update_from};
use crate::kernels::optim::{self as kernel, Lerp};
use crate::ops::{Real, matmul};
use crate::pass::{Backend, backend};
use candle_core::{DType, Result, Tensor, Var, bail};

/// Coefficients of the iteration: the steepest at zero that keep singular values near 1 (Jordan et al. 2024).
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];
/// A matrix of a norm below this is not blown up.
const SMALLEST_NORM: f64 = 1e-7;

/// The numbers of one Muon step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MuonStep {
    /// Learning rate, of the weight decay.
    pub lr: f64,
    /// What the orthogonal update is multiplied with: the learning rate, adjusted to the matrix's shape.
    pub size: f64,
    /// Share of the momentum that is kept.
    pub momentum: f64,
    /// Looks ahead along the momentum (Nesterov).
    pub nesterov: bool,
    /// Weight decay, which shrinks the parameter itself.
    pub weight_decay: f64,
    /// Steps of [`newton_schulz`].
    pub ns_steps: usize,
}

/// One Muon step on `param` (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"), in the form
/// of `torch.optim.Muon`; the momentum starts at zero. A weight of more than two dimensions is the matrix
/// (out, everything else).
///
/// ```text
/// buffer  = momentum · buffer + (1 - momentum) · grad
/// update  = (1 - momentum) · grad + momentum · buffer if nesterov, else buffer
/// param  *= 1 - lr · weight_decay
/// param  -= size · newton_schulz(update)
/// ```
///
/// PyTorch computes the iteration in bfloat16; here it has the parameter's type, f32 for half types.
///
/// # Errors
/// Shapes, element types or devices that differ, a parameter of less than two dimensions.
pub fn muon_step(param: &Var, grad: &Tensor, buffer: &Var, step: &MuonStep) -> Result<()> {
    check("muon_step", param, [Some(grad), Some(buffer)])?;
    if param.rank() < 2 {
        bail!("muon_step: wants a matrix, or a weight that is one once flattened, got {:?}", param.dims())
    }
    match (backend(param), param.dtype()) {
        (Backend::Kernel, DType::F32) => with_kernel::<f32>(param, grad, buffer, step),
        (Backend::Kernel, _) => with_kernel::<f64>(param, grad, buffer, step),
        _ => composed(param, grad, buffer, step),
    }
}

fn with_kernel<T: Real>(param: &Tensor, grad: &Tensor, buffer: &Tensor, step: &MuonStep) -> Result<()> {
    let (to_kept, nesterov) = (Lerp::<T>::new(1.0 - step.momentum), step.nesterov.then(|| Lerp::new(step.momentum)));
    // A copy of its own, which the kernel writes over.
    let direction = grad.detach().force_contiguous()?;
    update(buffer, |b: &mut [T]| {
        update(&direction, |u: &mut [T]| {
            kernel::muon_momentum(to_kept, nesterov, b, u);
            Ok(())
        })
    })?;
    let orthogonal = orthogonal(&direction, step.ns_steps)?.contiguous()?;
    let [shrink, size] = [1.0 - step.lr * step.weight_decay, step.size].map(T::from_f64);
    update_from(param, &orthogonal, |p: &mut [T], u: &[T]| {
        kernel::shrink_and_subtract(shrink, size, p, u);
        Ok(())
    })
}

fn composed(param: &Var, grad: &Tensor, buffer: &Var, step: &MuonStep) -> Result<()> {
    let (p, g) = (param.as_detached_tensor(), grad.detach());
    let b = lerp(&buffer.as_detached_tensor(), &g, 1.0 - step.momentum)?;
    buffer.set(&b)?;
    let direction = if step.nesterov { lerp(&g, &b, step.momentum)? } else { b };
    let update = orthogonal(&direction, step.ns_steps)?;
    param.set(&((p * (1.0 - step.lr * step.weight_decay))? - (update * step.size)?)?)
}

/// [`newton_schulz`] of a weight, in its shape and type.
fn orthogonal(direction: &Tensor, steps: usize) -> Result<Tensor> {
    let matrix = direction.flatten_from(1)?;
    let matrix = if direction.dtype() == DType::F64 { matrix } else { matrix.to_dtype(DType::F32)? };
    newton_schulz(&matrix, steps)?.reshape(direction.shape())?.to_dtype(direction.dtype())
}

/// A matrix of about the singular vectors of `matrix`, with singular values of about 1 (0.7 to 1.2 after five steps, where
/// they were not tiny): with X = matrix / ‖matrix‖, `steps` times
///
/// ```text
/// A = X · Xᵀ
/// X = 3.4445 · X + (-4.7750 · A + 2.0315 · A · A) · X
/// ```
///
/// on the transposed matrix if it has more rows than columns.
///
/// # Errors
/// What is no matrix, or what the device reports.
pub fn newton_schulz(matrix: &Tensor, steps: usize) -> Result<Tensor> {
    let [a, b, c] = COEFFICIENTS;
    let (rows, cols) = matrix.dims2()?;
    let matrix = matrix.detach();
    let wide = if rows > cols { matrix.t()? } else { matrix };
    let mut xs = (&wide / global_norm([&wide])?.max(SMALLEST_NORM))?.contiguous()?;
    for _ in 0..steps {
        let gram = matmul(&xs, &xs.t()?)?;
        let polynomial = ((&gram * b)? + (matmul(&gram, &gram)? * c)?)?;
        xs = ((&xs * a)? + matmul(&polynomial, &xs)?)?;
    }
    if rows > cols { xs.t() } else { Ok(xs) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{distance, numbers};

    #[test]
    fn kernel_and_composition_agree() {
        for dims in [&[7usize, 40][..], &[40, 7], &[6, 2, 3, 3]] {
            for nesterov in [true, false] {
                let (lr, size, momentum, weight_decay) = (0.1, 0.3, 0.95, 0.1);
                let step = MuonStep { lr, size, momentum, nesterov, weight_decay, ns_steps: 5 };
                let random = |name: &str| Var::from_tensor(&numbers(name, dims)).unwrap();
                let grad = random("grad").as_detached_tensor();
                let [(p, b), (q, c)] = [0, 1].map(|_| (random("p"), random("buffer")));
                muon_step(&p, &grad, &b, &step).unwrap();
                composed(&q, &grad, &c, &step).unwrap();
                assert!(distance(&p, &q).max(distance(&b, &c)) < 1e-12, "{dims:?}");
                assert!(distance(&grad, &numbers("grad", dims)) == 0.0, "the gradient stays as it is");
            }
        }
    }

    /// Of a matrix with known singular values: both ends come close to 1.
    #[test]
    fn singular_values_come_close_to_one() {
        let diagonal: Vec<f64> = vec![3.0, 0., 0., 0., 0., 0.5, 0., 0., 0., 0., 1.5, 0.];
        let matrix = Tensor::from_vec(diagonal, (3, 4), &candle_core::Device::Cpu).unwrap();
        let rows = newton_schulz(&matrix, 5).unwrap().to_vec2::<f64>().unwrap();
        for (i, row) in rows.iter().enumerate() {
            for (j, &x) in row.iter().enumerate() {
                assert!(if i == j { x > 0.6 && x < 1.3 } else { x == 0.0 }, "({i}, {j}): {x}");
            }
        }
    }

    #[test]
    fn a_vector_is_no_matrix() {
        let [p, b] = [0, 1].map(|_| Var::from_tensor(&numbers("p", &[3])).unwrap());
        let (lr, size, momentum, nesterov, weight_decay, ns_steps) = (0.1, 0.1, 0.9, true, 0.0, 5);
        let step = MuonStep { lr, size, momentum, nesterov, weight_decay, ns_steps };
        let error = muon_step(&p, &numbers("g", &[3]), &b, &step).unwrap_err().to_string();
        assert!(error.contains("muon_step") && error.contains("[3]"), "{error}");
    }
}

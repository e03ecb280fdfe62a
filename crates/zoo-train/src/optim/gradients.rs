//! What is done with gradients before a step: clipped, added up over several batches, scaled.

use candle_core::backprop::GradStore;
use candle_core::{Result, Var};
use zoo_core::ops::optim::global_norm;

/// Scales the gradients of `parameters` so that their common L2 norm is at most `max_norm`, and returns the norm that
/// they had (PyTorch's `clip_grad_norm_`: the factor is max_norm / (norm + 1e-6)). A norm that is not finite is
/// returned as it is.
///
/// # Errors
/// What the device reports.
pub fn clip_grad_norm(parameters: &[(String, Var)], grads: &mut GradStore, max_norm: f64) -> Result<f64> {
    let norm = grad_norm(parameters, grads)?;
    let factor = max_norm / (norm + 1e-6);
    if factor < 1.0 {
        scale(parameters, grads, factor)?;
    }
    Ok(norm)
}

/// The common L2 norm of the gradients of `parameters`.
///
/// # Errors
/// What the device reports.
pub fn grad_norm(parameters: &[(String, Var)], grads: &GradStore) -> Result<f64> {
    global_norm(parameters.iter().filter_map(|(_, var)| grads.get(var)))
}

/// Adds the gradients of `parameters` in `grads` to those in `into`: with the gradients of several small batches, of
/// which [`scale`] then takes the mean, a step is that of a large batch. A parameter without a gradient on one side has the
/// other's.
///
/// ```
/// use candle_core::{DType, Device};
/// use zoo_core::{Init, VarStore};
/// use zoo_train::optim::{accumulate, scale};
///
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let w = store.root().param(2, "w", Init::ONES)?;
/// let parameters = store.parameters();
/// let mut grads = w.sum_all()?.backward()?;
/// accumulate(&parameters, &mut grads, (w * 3.0)?.sum_all()?.backward()?)?;
/// scale(&parameters, &mut grads, 0.5)?;
/// assert_eq!(grads.get(&parameters[0].1).map(|grad| grad.to_vec1::<f32>()).transpose()?, Some(vec![2.0, 2.0]));
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Gradients of one parameter that differ in shape or type, or what the device reports.
pub fn accumulate(parameters: &[(String, Var)], into: &mut GradStore, mut grads: GradStore) -> Result<()> {
    for (_, var) in parameters {
        let Some(grad) = grads.remove(var) else { continue };
        let sum = match into.remove(var) {
            // A new tensor: the memory of a gradient may be that of another parameter's too.
            Some(sum) => (sum.detach() + grad.detach())?,
            None => grad.detach(),
        };
        into.insert(var, sum);
    }
    Ok(())
}

/// Multiplies the gradients of `parameters` by `factor`.
///
/// # Errors
/// What the device reports.
pub fn scale(parameters: &[(String, Var)], grads: &mut GradStore, factor: f64) -> Result<()> {
    for (_, var) in parameters {
        if let Some(grad) = grads.remove(var) {
            grads.insert(var, (grad.detach() * factor)?);
        }
    }
    Ok(())
}

//! The losses that a recipe can ask for.

use crate::recipe::{LossFunction, Recipe};
use candle_core::{DType, Result, Tensor, bail};
use zoo::Model;
use zoo_core::loss::cross_entropy;
use zoo_core::tape::{foreign_op, to_dtype};

/// The mean binary cross-entropy of every class by itself: of logits x and targets t, both (b, num_classes),
/// mean(max(x, 0) - x·t + ln(1 + e^-|x|)), as PyTorch's `binary_cross_entropy_with_logits`. With `threshold` a target is 1 where
/// it is above and 0 elsewhere, as timm's `--bce-target-thresh`.
///
/// Wightman et al. 2021 (arXiv 2110.00476) train ImageNet's classes so: of a mixture of two images, both are asked for.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use zoo_train::loss::binary_cross_entropy;
/// let logits = Tensor::new(&[[0f32, 2.0]], &Device::Cpu)?;
/// let targets = Tensor::new(&[[1f32, 0.0]], &Device::Cpu)?;
/// let loss = binary_cross_entropy(&logits, &targets, None)?.to_scalar::<f32>()?;
/// assert!((loss - 1.410038).abs() < 1e-6); // (ln 2 + 2 + ln(1 + e^-2)) / 2
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Targets of another shape than the logits'.
pub fn binary_cross_entropy(logits: &Tensor, targets: &Tensor, threshold: Option<f64>) -> Result<Tensor> {
    if logits.dims() != targets.dims() || logits.rank() != 2 {
        bail!(
            "binary_cross_entropy: wants logits and targets (b, num_classes), got {:?} and {:?}",
            logits.dims(),
            targets.dims()
        )
    }
    // A loss is an f32 number, whatever the network computes in.
    let logits = if logits.dtype() == DType::F64 { logits.clone() } else { to_dtype(logits, DType::F32)? };
    let targets = match threshold {
        Some(threshold) => targets.gt(threshold)?,
        None => targets.clone(),
    };
    let targets = targets.to_dtype(logits.dtype())?.detach();
    foreign_op(&[&logits], |logits| {
        let xs = &logits[0];
        let rest = (xs.abs()?.neg()?.exp()? + 1.0)?.log()?;
        ((xs.relu()? - (xs * &targets)?)? + rest)?.mean_all()
    })
}

/// What training by `recipe` makes small, with the logits (b, num_classes): the loss of the logits and, added to it, that of the
/// auxiliary classifiers, each times its weight, as [`Model::training_loss`].
pub(crate) fn training_loss(
    net: &dyn Model,
    images: &Tensor,
    labels: &Tensor,
    recipe: &Recipe,
) -> Result<(Tensor, Tensor)> {
    let (logits, auxiliary) = net.forward_auxiliary(images, true)?;
    let mut loss = of_logits(&logits, labels, recipe)?;
    for head in auxiliary {
        let own = of_logits(&head.logits, labels, recipe)?;
        loss = foreign_op(&[&loss, &own], |terms| &terms[0] + (&terms[1] * head.loss_weight)?)?;
    }
    Ok((loss, logits))
}

/// The recipe's loss of logits (b, num_classes); `labels` are classes (b) or shares of them (b, num_classes).
pub(crate) fn of_logits(logits: &Tensor, labels: &Tensor, recipe: &Recipe) -> Result<Tensor> {
    // Shares of classes have the smoothing in them.
    let smoothing = if labels.rank() == 1 { recipe.label_smoothing } else { 0.0 };
    match recipe.loss {
        LossFunction::CrossEntropy => cross_entropy(logits, labels, smoothing),
        LossFunction::Bce => binary_cross_entropy(logits, labels, recipe.bce_target_thresh),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use zoo_core::tape::value_and_grad;

    /// Loss and gradient of `torch.nn.functional.binary_cross_entropy_with_logits` in f64; the gradient is (σ(x) - t) / n.
    #[test]
    fn the_loss_is_pytorchs_and_so_is_its_gradient() {
        let xs = [[-3.5f64, 0.0, 2.25], [40.0, -40.0, 0.5]];
        let ts = [[0.0f64, 1.0, 0.3], [1.0, 0.1, 0.9]];
        for (threshold, cut) in [(None, false), (Some(0.2), true)] {
            let (logits, targets) = (Tensor::new(&xs, &Device::Cpu).unwrap(), Tensor::new(&ts, &Device::Cpu).unwrap());
            let var = candle_core::Var::from_tensor(&logits).unwrap();
            let (loss, grads) =
                value_and_grad(&var, |logits| binary_cross_entropy(logits, &targets, threshold)).unwrap();
            let (mut sum, mut far) = (0.0, 0.0f64);
            let grad = grads.get(&var).unwrap().to_vec2::<f64>().unwrap();
            for (i, (&x, &t)) in xs.as_flattened().iter().zip(ts.as_flattened()).enumerate() {
                let t = if cut { f64::from(t > 0.2) } else { t };
                // -t ln σ(x) - (1 - t) ln(1 - σ(x)), where ln(1 + e^x) is x for what is large.
                let log_of_one_and = |x: f64| if x > 30.0 { x } else { x.exp().ln_1p() };
                sum += t * log_of_one_and(-x) + (1.0 - t) * log_of_one_and(x);
                far = far.max((grad[i / 3][i % 3] - (1.0 / (1.0 + (-x).exp()) - t) / 6.0).abs());
            }
            let loss = loss.to_scalar::<f64>().unwrap();
            assert!((loss - sum / 6.0).abs() < 1e-14 && far < 1e-15, "{loss} for {}, {far}", sum / 6.0);
        }
        let wrong = Tensor::zeros((2, 4), DType::F64, &Device::Cpu).unwrap();
        let logits = Tensor::new(&xs, &Device::Cpu).unwrap();
        assert!(binary_cross_entropy(&logits, &wrong, None).unwrap_err().to_string().contains("[2, 3] and [2, 4]"));
    }
}

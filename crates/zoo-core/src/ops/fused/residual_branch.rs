//! A residual branch of a Transformer or Mixer as one operation.

use super::residual_branch_mixed;
pub(crate) use crate::kernels::residual_block::Inner;
use crate::kernels::residual_block::{Branch, Weights};
use crate::ops::{Real, fits_type, for_dtype, tensor, with_elements};
use crate::pass::{is_on_tape, tracks};
use crate::tape::{self, Gradient};
use candle_core::{DType, Result, Tensor, bail};

/// Weight and bias of a norm or of a linear map.
pub(crate) type Affine<'a> = (&'a Tensor, &'a Tensor);

/// x + second(inner(first(norm(x)))) for x of (b, n, c), or its first tokens (b, 1, c); `None` for shapes and types
/// that do not fit, whose error the layers give. On the tape, or without a graph.
pub(crate) fn residual_branch(
    xs: &Tensor,
    inner: Inner,
    (norm, eps): (Affine, f64),
    first: Affine,
    second: Affine,
) -> Result<Option<Tensor>> {
    let &[b, n, c] = xs.dims() else { return Ok(None) };
    let (&[mid, _], &[_, act]) = (first.0.dims(), second.0.dims()) else { return Ok(None) };
    let branch = Branch { inner, eps, n, c, mid, act };
    let params = [norm.0, norm.1, first.0, first.1, second.0, second.1];
    let fits = params.iter().zip(branch.lengths()).all(|(p, len)| p.elem_count() == len && fits_type(xs, p));
    let inner_fits = match inner {
        Inner::Attention(heads) | Inner::AttentionOfFirst(heads) => mid == 3 * c && act == c && c.is_multiple_of(heads),
        _ => mid == act,
    };
    if !fits || !inner_fits || [b, n, c, mid].contains(&0) {
        return Ok(None);
    }
    let xs = tape::contiguous(xs)?;
    let params = params.iter().map(|param| param.contiguous()).collect::<Result<Vec<_>>>()?;
    if xs.dtype() == DType::BF16 {
        return residual_branch_mixed::run(&xs, branch, params).map(Some);
    }
    for_dtype!("residual_branch", xs.dtype(), T => run::<T>(xs, branch, params)).map(Some)
}

fn weights<'a, T>(params: &[&'a [T]]) -> Weights<'a, T> {
    let pair = |i: usize| (params[i], params[i + 1]);
    Weights { norm: pair(0), first: pair(2), second: pair(4) }
}

/// `params` are weights and biases of norm, first and second map.
fn run<T: Real>(xs: Tensor, branch: Branch, params: Vec<Tensor>) -> Result<Tensor> {
    let name = "residual_branch";
    let inputs: Vec<Tensor> = [xs].into_iter().chain(params).collect();
    let all: Vec<&Tensor> = inputs.iter().collect();
    // What the first map makes stays for a backward pass that may follow.
    let keep = is_on_tape(&inputs[0]) && inputs.iter().any(tracks);
    let (ys, mid) = with_elements::<T, _>(name, &all, |all| Ok(branch.forward(all[0], weights(&all[1..]), keep)))?;
    let (tokens, c) = (branch.tokens(), branch.c);
    let ys = tensor(ys, (inputs[0].dim(0)?, tokens, c))?;
    let saved = inputs.clone();
    tape::push(name, &all, &ys, move |grad| {
        let Some(mid) = mid else { bail!("{name}: the forward pass kept nothing for a gradient") };
        let tensors: Vec<&Tensor> = [&grad.tensor].into_iter().chain(&saved).collect();
        let (dx, sums) =
            with_elements::<T, _>(name, &tensors, |all| Ok(branch.backward(all[1], &mid, all[0], weights(&all[2..]))))?;
        let gradient = |(elements, of): (Vec<T>, &Tensor)| -> Result<Option<Gradient>> {
            tracks(of).then(|| Ok(Gradient::new(tensor(elements, of.shape())?))).transpose()
        };
        [dx].into_iter().chain(sums).zip(&saved).map(gradient).collect()
    });
    Ok(ys)
}

//! A residual branch of a Transformer or Mixer as one operation on bfloat16 tokens.
//!
//! From one branch to the next the stream has 16 bits in training, forwards and backwards: what rounding cuts off from
//! tokens and gradients goes along beside them. It is added to the next sum and kept by nobody, so it costs no memory.

use crate::kernels::bf16::branch as kernel;
use crate::kernels::residual_block::{Branch, Inner, MixedKept, Weights};
use crate::ops::with_elements;
use crate::pass::{self, is_on_tape, tracks};
use crate::storage::{map, place, rows, with_rows};
use crate::tape::{self, Gradient};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::sync::Arc;

/// The branch of tokens (b, n, c); `params` are weights and biases of norm, first and second map.
pub(super) fn run(xs: &Tensor, branch: Branch, params: Vec<Tensor>) -> Result<Tensor> {
    let name = "residual_branch";
    let x = rows(xs)?;
    let numbers = |param: &Tensor| param.detach().to_dtype(DType::F32)?.contiguous();
    let held = params.iter().map(numbers).collect::<Result<Vec<_>>>()?;
    let inputs: Vec<&Tensor> = [xs].into_iter().chain(&params).collect();
    // What the first map makes stays for a backward pass that may follow.
    let keep = is_on_tape(xs) && inputs.iter().any(|xs| tracks(xs));
    let b = xs.dim(0)?;
    let made = || with_parts(&x, &held, |_, w| Ok(kernel::Operands::new(&branch, &w, b)));
    let operands = if is_on_tape(xs) {
        Arc::new(Prepared { operands: made()?, _read: params.clone() })
    } else {
        let over_tokens = usize::from(matches!(branch.inner, Inner::GeluOfTokens(_)));
        let key = [b, branch.n, branch.c, branch.mid, branch.tokens(), over_tokens, place(&params[4])];
        pass::prepared(place(&params[2]), &key, || Ok(Prepared { operands: made()?, _read: params.clone() }))?
    };
    let low = tape::take_low_part(xs);
    let (ys, kept) =
        with_parts(&x, &held, |x, w| Ok(kernel::forward(&branch, (x, low.as_deref()), w, &operands.operands, keep)))?;
    drop(low);
    let ys = map(ys, &(b, branch.tokens(), branch.c).into())?;
    let mid = kept.map(|MixedKept { mid, low }| {
        tape::leave_low_part(&ys, low);
        mid
    });
    let saved: Vec<Tensor> = inputs.iter().map(|&input| input.clone()).collect();
    tape::push(name, &inputs, &ys, move |grad| {
        let Some(mid) = mid else { bail!("{name}: the forward pass kept nothing for a gradient") };
        let ([dx, low], sums) = with_rows(&[&grad.tensor], |all| {
            with_parts(&x, &held, |x, w| Ok(kernel::backward(&branch, x, mid, (all[0], grad.low.as_deref()), w)))
        })?;
        let [of_x, of_params @ ..] = &saved[..] else { bail!("{name}: an operation of nothing") };
        let of_stream = || -> Result<_> { Ok(Gradient { low: Some(low), ..Gradient::new(map(dx, of_x.shape())?) }) };
        let mut all = vec![tracks(of_x).then(of_stream).transpose()?];
        for (sum, of) in sums.into_iter().zip(of_params) {
            let gradient = || Tensor::from_vec(sum, of.shape(), &Device::Cpu).map(Gradient::new);
            all.push(tracks(of).then(gradient).transpose()?);
        }
        Ok(all)
    });
    Ok(ys)
}

/// Operands of both maps.
struct Prepared {
    operands: kernel::Operands,
    /// Their places are theirs as long as these are kept.
    _read: Vec<Tensor>,
}

/// Lends the rows of the input, and the parameters.
fn with_parts<R>(
    xs: &Tensor,
    params: &[Tensor],
    f: impl FnOnce(&[half::bf16], Weights<f32>) -> Result<R>,
) -> Result<R> {
    let name = "residual_branch";
    with_elements::<half::bf16, _>(name, &[xs], |xs| {
        with_elements::<f32, _>(name, &params.iter().collect::<Vec<_>>(), |p| {
            f(xs[0], Weights { norm: (p[0], p[1]), first: (p[2], p[3]), second: (p[4], p[5]) })
        })
    })
}

//! Operations of candle's own on a tape.

use super::{Gradient, in_f32, push};
use crate::pass::{self, Backend, backend, is_on_tape, tracks};
use crate::trace;
use candle_core::{Result, Tensor, Var};

/// Runs operations of candle on tensors that may be on the tape. Off the tape it is `f(inputs)`. On it, `f` gets copies
/// that candle's graph starts from, and its backward pass is candle's: right for any operation, and no faster than
/// candle.
///
/// # Errors
/// What `f` refuses.
pub fn foreign_op(inputs: &[&Tensor], f: impl FnOnce(&[Tensor]) -> Result<Tensor>) -> Result<Tensor> {
    trace::mark_foreign();
    if inputs.iter().any(|xs| backend(xs) == Backend::Mixed) {
        return in_f32(inputs, |inputs| foreign_op(&inputs.iter().collect::<Vec<_>>(), f));
    }
    let owned = || inputs.iter().map(|&t| t.clone()).collect::<Vec<_>>();
    if !inputs.iter().any(|input| is_on_tape(input)) {
        return f(&owned());
    }
    let leaves: Vec<(Tensor, bool)> = inputs
        .iter()
        .map(|&t| match t.is_variable() {
            false if tracks(t) => Ok((Var::from_tensor(t)?.into_inner(), true)),
            is_variable => Ok((t.clone(), is_variable)),
        })
        .collect::<Result<_>>()?;
    // `f` may call operations of ours: for them, too, there is no tape now.
    let copies = leaves.iter().map(|(leaf, _)| leaf.clone()).collect::<Vec<_>>();
    let inner = pass::during(|pass| &mut pass.recording, None, || f(&copies)).0?;
    let ys = inner.detach().contiguous()?;
    push("foreign_op", inputs, &ys, move |grad| {
        let mut grads = (&inner * grad.tensor)?.sum_all()?.backward()?;
        Ok(leaves.iter().map(|(leaf, wanted)| grads.remove(leaf).filter(|_| *wanted).map(Gradient::new)).collect())
    });
    Ok(ys)
}

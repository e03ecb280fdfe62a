//! From f32 to bfloat16 and back, on the tape.

use super::{Gradient, push};
use crate::pass::{Backend, backend, is_on_tape};
use crate::storage::convert;
use crate::trace::shape_only;
use candle_core::{DType, Result, Tensor, bail};

/// A tensor in another type, on the tape as well. In memory f32 maps (b, c, h, w) have their pixels innermost, bfloat16
/// ones their channels.
///
/// # Errors
/// A type that candle cannot convert to.
pub fn to_dtype(xs: &Tensor, dtype: DType) -> Result<Tensor> {
    let from = xs.dtype();
    if from == dtype {
        return Ok(xs.clone());
    }
    match backend(xs) {
        Backend::Shapes => return shape_only(xs.dims(), dtype, xs.device()),
        Backend::Fallback => return xs.to_dtype(dtype),
        // Off the tape candle's graph has it.
        _ if !is_on_tape(xs) && xs.track_op() => return xs.to_dtype(dtype),
        _ => {}
    }
    let ys = convert(xs, dtype)?;
    push("to_dtype", &[xs], &ys, move |grad| Ok(vec![Some(Gradient::new(convert(&grad.tensor, from)?))]));
    Ok(ys)
}

/// Runs `f` on the inputs in f32, and rounds what it makes.
pub(crate) fn in_f32(inputs: &[&Tensor], f: impl FnOnce(&[Tensor]) -> Result<Tensor>) -> Result<Tensor> {
    let Some(first) = inputs.first() else { bail!("mixed precision: an operation of nothing") };
    let wide = inputs.iter().map(|xs| to_dtype(xs, DType::F32)).collect::<Result<Vec<_>>>()?;
    to_dtype(&f(&wide)?, first.dtype())
}

//! Mixed precision on the CPU: bfloat16 maps between the layers; weights, statistics and sums in f32.
//!
//! The type of the map decides: a network whose weights are f32 and whose input is [`DType::BF16`] runs in mixed
//! precision, forwards and backwards, and the gradients of its weights are f32. An operation without a kernel for it
//! runs in f32 at its place, and its output is rounded.

use super::{Op, Operand, Passed, Saved};
use crate::pass::{Backend, backend, is_on_tape, tracks};
use crate::storage::{map, rows, with_elements, with_rows};
use crate::tape::{self, Gradient, to_dtype};
use candle_core::{DType, Device, Result, Shape, Tensor};
use half::bf16;
use std::sync::Arc;

/// Runs an operation on bfloat16 maps and f32 weights, or hands it back: it has no kernel of mixed precision, or
/// candle's graph is to have its gradient.
pub(super) fn apply<O: Op>(op: O, inputs: &[&Tensor]) -> Result<std::result::Result<Tensor, O>> {
    let on_tape = inputs.iter().any(|xs| is_on_tape(xs));
    let on_graph = !on_tape && inputs.iter().any(|xs| xs.track_op());
    let maps = op.maps().min(inputs.len());
    if maps == 0 || on_graph {
        return Ok(Err(op));
    }
    let op = Arc::new(op);
    let (shape, ahead) = (op.shape(), op.clone());
    let (forward, backward) =
        (|inputs: &[Operand]| ahead.forward_bf16(inputs), move |saved: &Saved<bf16, Operand>| op.backward_bf16(saved));
    run((ahead.name(), &shape, ahead.saves()), (inputs, maps), forward, backward).map(Ok)
}

/// An operation that has kernels of mixed precision besides candle's own: `forward` makes the rows of an output of this
/// shape, `backward` the gradients; `saves` says what of inputs and output that reads. The first `maps` inputs are
/// bfloat16 maps, the others f32 weights. `None` where the first is no map on the CPU, or candle's graph is to have the
/// gradient.
pub(crate) fn on_maps(
    (name, shape, saves): (&'static str, &[usize], (bool, bool)),
    (inputs, maps): (&[&Tensor], usize),
    forward: impl FnOnce(&[Operand]) -> Result<Vec<bf16>>,
    backward: impl Fn(&Saved<bf16, Operand>) -> Result<Vec<Passed<bf16>>> + Send + 'static,
) -> Result<Option<Tensor>> {
    let on_tape = inputs.iter().any(|xs| is_on_tape(xs));
    let on_graph = !on_tape && inputs.iter().any(|xs| xs.track_op());
    let is_empty = inputs.iter().any(|xs| xs.elem_count() == 0);
    if on_graph || is_empty || !inputs.first().is_some_and(|xs| backend(xs) == Backend::Mixed) {
        return Ok(None);
    }
    run((name, shape, saves), (inputs, maps), forward, backward).map(Some)
}

fn run(
    (name, shape, (keep_inputs, keep_output)): (&'static str, &[usize], (bool, bool)),
    (inputs, maps): (&[&Tensor], usize),
    forward: impl FnOnce(&[Operand]) -> Result<Vec<bf16>>,
    backward: impl FnOnce(&Saved<bf16, Operand>) -> Result<Vec<Passed<bf16>>> + Send + 'static,
) -> Result<Tensor> {
    let mut held = Vec::with_capacity(inputs.len());
    for (i, xs) in inputs.iter().enumerate() {
        held.push(if i < maps { rows(&to_dtype(xs, DType::BF16)?)? } else { weight(xs)? });
    }
    let ys = map(with_operands(&held, maps, forward)?, &shape.into())?;
    if !inputs.iter().any(|xs| is_on_tape(xs)) {
        return Ok(ys);
    }
    let shapes: Vec<Shape> = inputs.iter().map(|xs| xs.shape().clone()).collect();
    let wanted: Vec<bool> = inputs.iter().map(|xs| tracks(xs)).collect();
    let saved = if keep_inputs { held } else { Vec::new() };
    let output = keep_output.then(|| ys.clone());
    tape::push(name, inputs, &ys, move |grad| {
        let grads = with_operands(&saved, maps, |inputs| {
            let tensors: Vec<&Tensor> = [&grad.tensor].into_iter().chain(output.as_ref()).collect();
            with_rows(&tensors, |all| {
                let output = all.get(1).copied().unwrap_or_default();
                backward(&Saved { inputs: inputs.to_vec(), output, grad: all[0], wanted: &wanted })
            })
        })?;
        // Memory that is handed on is its one receiver's, or nobody's.
        let received = wanted.iter().filter(|wanted| **wanted).count();
        let pass = |((passed, shape), wanted): ((Passed<bf16>, &Shape), &bool)| {
            let lent = |tensor: Tensor| Gradient::of(tensor, grad.owned && received == 1);
            Ok(match passed {
                _ if !wanted => None,
                Passed::Nothing => None,
                Passed::Made(rows) => Some(Gradient::new(map(rows, shape)?)),
                Passed::InF32(elements) => {
                    Some(Gradient::new(Tensor::from_vec(elements, shape.clone(), &Device::Cpu)?))
                }
                Passed::Whole => Some(lent(grad.tensor.clone())),
                Passed::Slice { dim, start, len } => {
                    Some(Gradient { owned: false, ..lent(grad.tensor.narrow(dim, start, len)?) })
                }
            })
        };
        grads.into_iter().zip(&shapes).zip(&wanted).map(pass).collect()
    });
    Ok(ys)
}

/// A weight's f32 elements. One of another type is candle's to convert: its gradient goes the same way back.
fn weight(xs: &Tensor) -> Result<Tensor> {
    xs.detach().to_dtype(DType::F32)?.contiguous()
}

/// Lends maps, the first `maps` tensors, and weights, the others.
fn with_operands<R>(held: &[Tensor], maps: usize, f: impl FnOnce(&[Operand]) -> Result<R>) -> Result<R> {
    if held.is_empty() {
        return f(&[]);
    }
    let all: Vec<&Tensor> = held.iter().collect();
    let (maps, weights) = all.split_at(maps);
    with_elements::<bf16, _>("mixed precision", maps, |maps| {
        with_elements::<f32, _>("mixed precision", weights, |weights| {
            let maps = maps.iter().map(|rows| Operand::Map(rows));
            f(&maps.chain(weights.iter().map(|elements| Operand::Weight(elements))).collect::<Vec<_>>())
        })
    })
}

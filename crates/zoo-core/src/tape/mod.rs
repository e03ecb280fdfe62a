//! A pass recorded by ourselves: candle's autograd as the interface, without its traffic.
//!
//! Candle's backward pass adds every gradient to a tensor of zeros that it makes first: four passes over memory for
//! each tensor of the graph, which take longer than many a convolution. And it keeps every activation until the loss is
//! dropped. So the networks of the zoo run inside [`recorded`]: there the operations of [`crate::ops`] go on a tape of
//! our own, and candle's graph sees the whole pass as one operation whose inputs are the variables. A gradient that
//! arrives first is moved, the next one is added in place, kernels may write over what they own, an activation is freed
//! when its gradient has passed.
//!
//! Nothing changes for a caller: `loss.backward()` walks candle's graph down to the tape's outputs, plays the tape
//! backwards once, and puts every variable's gradient into candle's `GradStore`. [`value_and_grad`] has the gradients
//! straight from the tape.
//!
//! Operations of candle do not know the tape. One that works on recorded tensors goes through [`foreign_op`], which
//! differentiates it by candle's own graph; an operation that does not is found out when the recording ends, and is an
//! error.

mod convert;
mod foreign;
mod on_graph;
mod play;
pub(crate) mod recording;

pub(crate) use convert::in_f32;
pub use convert::to_dtype;
pub use foreign::foreign_op;
pub use play::value_and_grad;
pub(crate) use recording::Gradient;

use crate::pass::{self, Mode, is_on_tape, takes_tape};
use crate::storage::planes;
use crate::trace;
use candle_core::{DType, Result, Shape, Tensor, TensorId, bail};
use half::bf16;
use rayon::prelude::*;
use recording::{Backward, Gradients, Recording};
use std::collections::HashSet;

/// Whether a pass on `inputs` goes on the tape that runs on this thread.
fn joins(inputs: &[&Tensor]) -> bool {
    pass::with(|pass| {
        let Some(tape) = &mut pass.recording else { return false };
        inputs.iter().any(|xs| {
            if tape.offered == Some(xs.id()) {
                tape.known.insert(xs.id());
            }
            tape.known.contains(&xs.id())
        })
    })
}

/// Puts an operation on the tape. `backward` maps the output's gradient to one for each input, `None` where there is
/// none.
pub(crate) fn push(
    name: &'static str,
    inputs: &[&Tensor],
    output: &Tensor,
    backward: impl FnOnce(Gradient) -> Result<Gradients> + Send + 'static,
) {
    record(name, inputs, output, Backward::Separate(Box::new(backward)));
}

/// [`push`] for an operation that adds to the gradients which other readers of its inputs have sent: `backward` gets
/// these too and returns the sums. It saves a tensor that many read, as those of a dense block are, a pass for each.
pub(crate) fn push_accumulating(
    name: &'static str,
    inputs: &[&Tensor],
    output: &Tensor,
    backward: impl FnOnce(Gradient, Gradients) -> Result<Gradients> + Send + 'static,
) {
    record(name, inputs, output, Backward::Accumulating(Box::new(backward)));
}

/// What an operation off the tape has made of tensors on it, as in evaluation where layers are frozen: a constant that the tape
/// knows, so that what reads it goes on the tape.
pub(crate) fn constant(ys: Tensor, inputs: &[&Tensor]) -> Tensor {
    pass::with(|pass| {
        let tape = pass.recording.as_mut().filter(|tape| inputs.iter().any(|xs| tape.known.contains(&xs.id())));
        tape.map(|tape| tape.known.insert(ys.id()))
    });
    ys
}

fn record(name: &'static str, inputs: &[&Tensor], output: &Tensor, backward: Backward) {
    pass::with(|pass| {
        if let Some(tape) = &mut pass.recording {
            tape.push(name, inputs, output, backward);
        }
    });
}

/// Leaves what rounding has cut off from the output of an operation on the tape for the one that reads it next.
pub(crate) fn leave_low_part(of: &Tensor, low: Vec<bf16>) {
    pass::with(|pass| {
        if let Some(tape) = &mut pass.recording {
            tape.low = Some((of.id(), low));
        }
    });
}

/// What was left of this tensor, if nothing was left since.
pub(crate) fn take_low_part(of: &Tensor) -> Option<Vec<bf16>> {
    pass::with(|pass| pass.recording.as_mut()?.low.take_if(|(id, _)| *id == of.id())).map(|(_, low)| low)
}

/// A tensor under another shape. A view, on the tape as well.
///
/// # Errors
/// A shape of another number of elements.
pub fn reshape(xs: &Tensor, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    if !is_on_tape(xs) {
        // Rows become planes by all threads, where no graph of candle's wants to know.
        let is_map = xs.dtype() == DType::BF16 && xs.device().is_cpu() && !xs.track_op();
        return if is_map { planes(xs)?.reshape(shape) } else { xs.reshape(shape) };
    }
    let ys = planes(xs)?.reshape(shape)?;
    if ys.id() != xs.id() {
        let shape = xs.shape().clone();
        push("reshape", &[xs], &ys, move |grad| {
            let tensor = planes(&grad.tensor)?.reshape(shape)?;
            Ok(vec![Some(Gradient { tensor, ..grad })])
        });
    }
    Ok(ys)
}

/// The same elements in row-major order, on the tape as well.
pub(crate) fn contiguous(xs: &Tensor) -> Result<Tensor> {
    let ys = xs.contiguous()?;
    if ys.id() != xs.id() {
        push("contiguous", &[xs], &ys, |grad| Ok(vec![Some(grad)]));
    }
    Ok(ys)
}

/// Runs a training pass on a tape: `f` gets `xs`, and what it returns is on candle's graph, an operation of the
/// variables that `f` has read, and of `xs` if that asks for its gradient. In evaluation, for an `xs` that is on a tape
/// already, while a graph is drawn, and where there are no kernels, this is `f(xs)`.
///
/// `f` must not keep tensors that it makes for later: outside they are constants.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{Linear, ModuleT, VarStore, relu, tape::recorded};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let (a, b) = (Linear::new(3, 8, store.root().pp("a"))?, Linear::new(8, 2, store.root().pp("b"))?);
/// let xs = Tensor::ones((4, 3), DType::F32, &Device::Cpu)?;
/// let ys = recorded(&xs, true, |xs| b.forward_t(&relu(&a.forward_t(xs, true)?)?, true))?;
/// let gradients = ys.sum_all()?.backward()?;
/// assert!(store.parameters().iter().all(|(_, var)| gradients.get(var).is_some()));
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// What `f` refuses, and an operation of candle's own on a recorded tensor that did not go through [`foreign_op`].
pub fn recorded(xs: &Tensor, train: bool, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let mut outputs = recorded_all(&[xs], train, |inputs| Ok(vec![f(&inputs[0])?]))?;
    match outputs.pop() {
        Some(output) => Ok(output),
        None => bail!("tape: a pass without an output"),
    }
}

/// [`recorded`] for a pass with several inputs or outputs.
///
/// # Errors
/// As [`recorded`].
pub fn recorded_all(
    inputs: &[&Tensor],
    train: bool,
    f: impl FnOnce(&[Tensor]) -> Result<Vec<Tensor>>,
) -> Result<Vec<Tensor>> {
    let has_kernels = inputs.iter().all(|xs| takes_tape(xs));
    if !train || inputs.is_empty() || !has_kernels || joins(inputs) {
        return f(&inputs.iter().map(|&xs| xs.clone()).collect::<Vec<_>>());
    }
    let run = Run::new(inputs, false, f)?;
    if run.recording.nodes.is_empty() { Ok(run.outputs) } else { on_graph::put(run) }
}

/// [`recorded`] in training; in evaluation `f` gets `images` images at a time, and every thread its own, so that what a
/// layer makes is still in the cache when the next one reads it. For networks whose weights are small beside their
/// activations: each call of `f` reads them all.
///
/// # Errors
/// As [`recorded`].
pub fn in_chunks(
    xs: &Tensor,
    train: bool,
    images: usize,
    f: impl Fn(&Tensor) -> Result<Tensor> + Sync,
) -> Result<Tensor> {
    let batch = xs.dims().first().copied().unwrap_or(0);
    // Who looks at the steps looks at this thread.
    let plain = pass::mode(xs, train) == Mode::Inference && !trace::is_watched();
    if !plain || is_on_tape(xs) || batch < 2 * images {
        return recorded(xs, train, f);
    }
    // All parts read the same weights.
    let prepared = pass::shared_preparations();
    let parts = (0..batch.div_ceil(images)).into_par_iter().map(|part| {
        let part = xs.narrow(0, part * images, images.min(batch - part * images))?;
        // This thread may be one that waits for an operation of a pass on a tape.
        let run = || pass::during(|pass| &mut pass.prepared, Some(prepared.clone()), || f(&part)).0;
        pass::isolated(run)
    });
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
}

/// A pass that has been recorded.
struct Run {
    /// What the caller gave, and what the pass read in its place.
    inputs: Vec<(Tensor, Tensor)>,
    outputs: Vec<Tensor>,
    recording: Recording,
}

impl Run {
    /// Records `f`, whose own operations on `inputs` go on the tape, or, if those are only `offered`, the operations of
    /// a network that runs [`recorded`].
    fn new(inputs: &[&Tensor], offered: bool, f: impl FnOnce(&[Tensor]) -> Result<Vec<Tensor>>) -> Result<Self> {
        let mut recording = Recording::default();
        let mut pairs = Vec::with_capacity(inputs.len());
        for xs in inputs {
            // bfloat16 maps are read as they lie.
            let source = if xs.dtype() == DType::BF16 { (*xs).clone() } else { xs.contiguous()? };
            // To candle's graph the input of a tape is a constant. An offered one that asks for its gradient may yet be
            // candle's.
            let input = if offered { source.clone() } else { source.detach() };
            match offered {
                true => recording.offered = Some(input.id()),
                false => _ = recording.known.insert(input.id()),
            }
            if source.track_op() {
                recording.tracked.insert(input.id());
            }
            pairs.push((source, input));
        }
        let read: Vec<Tensor> = pairs.iter().map(|(_, input)| input.clone()).collect();
        let (outputs, recording) = pass::during(|pass| &mut pass.recording, Some(recording), || f(&read));
        let run = Self { inputs: pairs, outputs: outputs?, recording: recording.flatten().unwrap_or_default() };
        run.check()?;
        Ok(run)
    }

    /// Whatever the tape has made is read by it, or is an output: else an operation of candle's own has read it.
    fn check(&self) -> Result<()> {
        let nodes = &self.recording.nodes;
        let inputs = nodes.iter().flat_map(|node| node.inputs.iter().flatten().copied());
        let read: HashSet<TensorId> = inputs.chain(self.outputs.iter().map(Tensor::id)).collect();
        if let Some(node) = nodes.iter().find(|node| !read.contains(&node.output)) {
            bail!(
                "tape: nothing on the tape reads what `{}` has made; if an operation of candle does, it must go through \
                 zoo_core::tape::foreign_op",
                node.name
            )
        }
        let is_lost = |(source, input): &(Tensor, Tensor)| source.track_op() && !read.contains(&input.id());
        if !nodes.is_empty() && self.inputs.iter().any(is_lost) {
            bail!("tape: nothing on the tape reads an input that asks for its gradient; see zoo_core::tape::foreign_op")
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use std::sync::{Mutex, PoisonError};

    /// Every image in its place, the rest that fills no part too; in training all together, with gradients.
    #[test]
    fn images_in_parts_are_all_images() -> Result<()> {
        let xs = Tensor::arange(0f32, 37.0 * 3.0, &Device::Cpu)?.reshape((37, 3))?;
        let weight = Var::from_tensor(&Tensor::new(&[[1f32, -2.0, 0.5], [0.25, 4.0, -1.0]], &Device::Cpu)?)?;
        let calls = Mutex::new(Vec::new());
        let run = |train: bool| {
            in_chunks(&xs, train, 5, |xs| {
                calls.lock().unwrap_or_else(PoisonError::into_inner).push(xs.dim(0)?);
                assert_eq!(is_on_tape(xs), train);
                crate::ops::linear(xs, &weight, None)
            })
        };
        let (parts, whole) = (run(false)?, run(true)?);
        assert_eq!(parts.to_vec2::<f32>()?, whole.to_vec2::<f32>()?);
        let mut calls = calls.into_inner().unwrap_or_else(PoisonError::into_inner);
        calls.sort_unstable();
        assert_eq!(calls, [2, 5, 5, 5, 5, 5, 5, 5, 37]);
        assert!(whole.sum_all()?.backward()?.get(&weight).is_some());
        Ok(())
    }

    #[test]
    fn an_error_of_one_part_is_the_error() -> Result<()> {
        let xs = Tensor::zeros((8, 1), DType::F32, &Device::Cpu)?;
        let failed = in_chunks(&xs, false, 2, |_| bail!("no such layer"));
        assert!(failed.is_err_and(|e| e.to_string().contains("no such layer")));
        Ok(())
    }
}

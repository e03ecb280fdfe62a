//! Looking at a network from outside: its layers with shapes, parameters and multiply-adds, and the graph they form.
//!
//! While a forward pass runs under [`Graph::of`], every layer of this crate tells its kind, its path, what it read and
//! what it made; no tensor is computed, only shapes are. The same pass without a tracer costs one look at a
//! thread-local. What is done with graphs stands in [`crate::inspect`].
//!
//! A model takes part by running its blocks inside [`block`], and whatever it does with candle's ops between the layers
//! inside [`op`] or [`layer`]. A test sweeps the registry and fails on a model whose graph has a gap.

pub(crate) mod graph;
pub(crate) mod step;

use crate::pass;
use candle_core::{DType, Device, Result, Tensor, bail};
pub(crate) use graph::Tracer;
pub use graph::{Block, Graph, Node};
pub use step::Step;

impl Graph {
    /// The graph of `forward` on inputs of the given shapes. Nothing is computed and nothing is allocated but shapes,
    /// so a network of any size in a store of shapes only is traced in milliseconds.
    ///
    /// ```
    /// use zoo_core::trace::Graph;
    /// use zoo_core::{Linear, ModuleT, VarStore};
    /// let fc = Linear::new(64, 10, VarStore::shapes_only().root().pp("fc"))?;
    /// let graph = Graph::of(&[&[1, 64]], |inputs| fc.forward_t(&inputs[0], false))?;
    /// assert_eq!((graph.nodes[1].path.as_str(), graph.parameters(), graph.macs()), ("fc", 650, 640));
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the forward pass refuses.
    pub fn of(shapes: &[&[usize]], forward: impl FnOnce(&[Tensor]) -> Result<Tensor>) -> Result<Self> {
        let mut tracer = Tracer::default();
        let input = |shape: &&[usize]| shape_only(shape, DType::F32, &Device::Cpu);
        let inputs = shapes.iter().map(input).collect::<Result<Vec<_>>>()?;
        inputs.iter().for_each(|xs| tracer.input(xs));
        let (result, tracer) = observe(tracer, || forward(&inputs));
        result.map(|_| tracer.graph)
    }
}

/// Whether no element is a NaN or an infinity.
pub(crate) fn is_finite(xs: &Tensor) -> Result<bool> {
    // 0 · x is 0 for a number and NaN for what is none; a sum of the elements themselves could overflow.
    let zero = (xs.detach().contiguous()? * 0.0)?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
    Ok(zero == 0.0)
}

fn with<R>(f: impl FnOnce(&mut Tracer) -> R) -> Option<R> {
    pass::with(|pass| pass.tracer.as_mut().map(f))
}

/// Runs `f` under a tracer, and takes it off again, also when `f` panics.
pub(crate) fn observe<R>(tracer: Tracer, f: impl FnOnce() -> R) -> (R, Tracer) {
    let (result, tracer) = pass::during(|pass| &mut pass.tracer, Some(tracer), f);
    (result, tracer.flatten().unwrap_or_default())
}

/// Whether somebody looks at the steps of the passes on this thread, a tracer or
/// [`Model::forward_intermediates`](crate::Model::forward_intermediates): then a network that can leave out what does
/// not reach its output runs whole.
pub fn is_watched() -> bool {
    pass::with(|pass| pass.tracer.is_some() || pass.stages.is_some())
}

/// A tensor of zeros that has a shape and no memory to speak of.
pub(crate) fn shape_only(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    Tensor::zeros((), dtype, device)?.broadcast_as(shape)
}

/// Says that the layer that runs on this thread goes through candle's own graph.
pub(crate) fn mark_foreign() {
    with(|tracer| tracer.foreign = true);
}

/// Runs steps that are one operation in training, which keeps the output of the last, and of those that `kept` counts
/// from the first, in f32 and in mixed precision; of a step whose output nobody makes, `kept` is `None`.
pub(crate) fn fused<R>(kept: Option<[&[usize]; 2]>, run: impl FnOnce() -> Result<R>) -> Result<R> {
    let first = with(|tracer| tracer.graph.nodes.len());
    let result = run()?;
    with(|tracer| {
        let first = first.unwrap_or(0);
        let steps = &mut tracer.graph.nodes[first..];
        let last = steps.len().wrapping_sub(1);
        for (i, node) in steps.iter_mut().enumerate() {
            let is_kept = |kept: &[usize]| usize::from(i == last || kept.contains(&i));
            [node.kept, node.kept_mixed] = kept.map_or([0; 2], |kept| kept.map(is_kept));
            node.operation = first;
        }
    });
    Ok(result)
}

/// Adds to the count of the layer that runs on this thread; called by the operations that multiply.
pub(crate) fn count_macs(n: u64) {
    with(|tracer| tracer.macs += n);
}

/// Runs `run`, one step of a forward pass that reads `inputs` and owns `weights` at `path`, and lists it if a tracer
/// looks on. Steps inside it are not listed on their own. A step that returns its input is none.
///
/// # Errors
/// Those of `run`.
pub fn layer(
    step: Step,
    path: &str,
    weights: &[Option<&Tensor>],
    inputs: &[&Tensor],
    run: impl FnOnce() -> Result<Tensor>,
) -> Result<Tensor> {
    let begin = |tracer: &mut Tracer| !std::mem::replace(&mut tracer.inside, true);
    if with(begin) != Some(true) {
        return run();
    }
    with(|tracer| (tracer.macs, tracer.foreign) = (0, false));
    let result = run();
    let kind = step.kind();
    let values = with(|tracer| {
        tracer.inside = false;
        if let Ok(output) = &result {
            tracer.list(step, path, weights, inputs, output);
        }
        tracer.values
    });
    let output = result?;
    if values == Some(true) && !is_finite(&output)? {
        with(|tracer| tracer.not_finite = true);
        bail!("{path} ({kind}): the output is not finite")
    }
    Ok(output)
}

/// [`layer`] for a step without tensors of its own: an addition, a pooling, a reshaping.
///
/// # Errors
/// Those of `run`.
pub fn op(step: Step, inputs: &[&Tensor], run: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
    layer(step, "", &[], inputs, run)
}

/// Runs `run` as a block: its steps are listed as belonging together.
///
/// # Errors
/// Those of `run`.
pub fn block<R>(kind: &'static str, path: &str, run: impl FnOnce() -> Result<R>) -> Result<R> {
    let entered = with(|tracer| {
        if !tracer.inside {
            let parent = tracer.blocks.last().copied();
            tracer.blocks.push(tracer.graph.blocks.len());
            tracer.graph.blocks.push(Block { path: path.to_string(), kind, parent });
        }
        !tracer.inside
    });
    let result = run();
    if entered == Some(true) {
        with(|tracer| tracer.blocks.pop());
    }
    result
}

/// Names `xs` as the output of a stage, for [`Model::forward_intermediates`](crate::Model::forward_intermediates), and
/// hands it on.
pub fn stage(name: impl std::fmt::Display, xs: Tensor) -> Tensor {
    pass::with(|pass| {
        if let Some(stages) = &mut pass.stages {
            stages.push((name.to_string(), xs.clone()));
        }
    });
    xs
}

/// Runs `forward` and returns what it named with [`stage`], in order.
pub(crate) fn stages(forward: impl FnOnce() -> Result<Tensor>) -> Result<Vec<(String, Tensor)>> {
    let (result, stages) = pass::during(|pass| &mut pass.stages, Some(Vec::new()), forward);
    result.map(|_| stages.flatten().unwrap_or_default())
}

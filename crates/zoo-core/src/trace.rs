//! Looking at a network from outside: its layers with shapes, parameters and multiply-adds, and the graph they form.
//!
//! While a forward pass runs under [`Graph::of`], every layer of this crate tells its kind, its place, what it read and what it
//! made; no tensor is computed, only shapes are. Under [`first_not_finite`] the tensors are computed, and the pass ends at the
//! first that holds a NaN or an infinity. The same pass without a tracer costs one look at a thread-local.
//!
//! A model takes part by running its blocks inside [`block`], and whatever it does with candle's ops between the layers
//! inside [`op`] or [`layer`]. A test sweeps the registry and fails on a model whose graph has a gap.

use crate::model::{Model, ModelInfo, ModelOptions};
use crate::vars::VarStore;
use candle_core::{DType, Result, Tensor, TensorId, bail};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

mod diagnose;
mod footprint;

pub use diagnose::{Diagnosis, diagnose, first_damaged};
pub use footprint::training_memory;

/// One step of a forward pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The key that the layer's tensors begin with, for example `layer1.0.conv1`; empty for a step without tensors.
    pub place: String,
    /// `Conv2d`, `ReLU`, `Add`, …
    pub kind: &'static str,
    /// What distinguishes it among its kind, for example `3x3, stride 2`.
    pub detail: String,
    /// The nodes whose outputs it reads, by index.
    pub inputs: Vec<usize>,
    /// Shape of the output, batch first.
    pub shape: Vec<usize>,
    /// Trainable elements that no earlier node counted.
    pub parameters: usize,
    /// Multiply-adds.
    pub macs: u64,
    /// The innermost block it runs in, by index.
    pub block: Option<usize>,
}

/// A named group of steps: one residual block, one stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The key that the block's tensors begin with.
    pub place: String,
    /// For example `Bottleneck`.
    pub kind: &'static str,
    /// The block around it, by index.
    pub parent: Option<usize>,
}

/// What one forward pass does, step by step. The first nodes are the inputs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Graph {
    /// The steps, in the order in which they ran.
    pub nodes: Vec<Node>,
    /// The blocks, in the order in which they began.
    pub blocks: Vec<Block>,
}

impl Graph {
    /// The graph of `forward` on inputs of the given shapes. Nothing is computed and nothing is allocated but shapes, so a
    /// network of any size in a store of shapes only is traced in milliseconds.
    ///
    /// ```
    /// use zoo_core::trace::Graph;
    /// use zoo_core::{Linear, ModuleT, VarStore};
    /// let fc = Linear::new(64, 10, VarStore::shapes_only().root().pp("fc"))?;
    /// let graph = Graph::of(&[&[1, 64]], |inputs| fc.forward_t(&inputs[0], false))?;
    /// assert_eq!((graph.nodes[1].place.as_str(), graph.parameters(), graph.macs()), ("fc", 650, 640));
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the forward pass refuses.
    pub fn of(shapes: &[&[usize]], forward: impl FnOnce(&[Tensor]) -> Result<Tensor>) -> Result<Self> {
        let mut tracer = Tracer::default();
        let mut inputs = Vec::with_capacity(shapes.len());
        for shape in shapes {
            let input = shape_only(shape, DType::F32, &candle_core::Device::Cpu)?;
            tracer.known.insert(input.id(), tracer.graph.nodes.len());
            tracer.graph.nodes.push(Node {
                place: String::new(),
                kind: "Input",
                detail: String::new(),
                inputs: Vec::new(),
                shape: shape.to_vec(),
                parameters: 0,
                macs: 0,
                block: None,
            });
            inputs.push(input);
        }
        let (result, tracer) = observe(tracer, || forward(&inputs));
        result.map(|_| tracer.graph)
    }

    /// The graph of an image classifier on one image (channels, height, width), in evaluation.
    ///
    /// # Errors
    /// What the forward pass refuses.
    pub fn of_model(model: &dyn Model, (c, h, w): (usize, usize, usize)) -> Result<Self> {
        Self::of(&[&[1, c, h, w]], |inputs| model.forward_t(&inputs[0], false))
    }

    /// Trainable elements of all nodes.
    pub fn parameters(&self) -> usize {
        self.nodes.iter().map(|node| node.parameters).sum()
    }

    /// Multiply-adds of all nodes: convolutions, linear layers and matrix products, as the published figures count them
    /// (FLOPs = 2 · MACs). Normalisation, activations and pooling are not counted.
    pub fn macs(&self) -> u64 {
        self.nodes.iter().map(|node| node.macs).sum()
    }
}

/// Runs a forward pass, in training or in evaluation, and looks at the output of each of its layers: the first that holds a NaN or
/// an infinity, where the pass ends; `None` if there is none. A step without tensors of its own is placed at its block.
///
/// The values are real and whatever the pass moves, such as running statistics, moves: see [`diagnose`], which puts it back.
/// What is one operation elsewhere runs layer by layer here.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{Linear, ModuleT, VarStore, trace::first_not_finite};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let (a, b) = (Linear::new(2, 3, store.root().pp("a"))?, Linear::new(3, 1, store.root().pp("b"))?);
/// store.parameters()[2].1.set(&Tensor::new(&[[f32::NAN, 0., 0.]], &Device::Cpu)?)?; // b.weight
/// let xs = Tensor::ones((1, 2), DType::F32, &Device::Cpu)?;
/// let found = first_not_finite(|| b.forward_t(&a.forward_t(&xs, true)?, true))?;
/// assert!(found.is_some_and(|node| node.place == "b" && node.kind == "Linear"));
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// What the forward pass refuses.
pub fn first_not_finite<R>(forward: impl FnOnce() -> Result<R>) -> Result<Option<Node>> {
    let (result, tracer) = observe(Tracer { values: true, ..Tracer::default() }, forward);
    if !tracer.not_finite {
        return result.map(|_| None);
    }
    let Graph { mut nodes, blocks } = tracer.graph;
    let mut found = nodes.pop();
    if let Some(node) = found.as_mut().filter(|node| node.place.is_empty()) {
        node.place = node.block.map_or(String::new(), |block| blocks[block].place.clone());
    }
    Ok(found)
}

/// Whether no element is a NaN or an infinity.
fn is_finite(xs: &Tensor) -> Result<bool> {
    // 0 · x is 0 for a number and NaN for what is none; a sum of the elements themselves could overflow.
    let zero = (xs.detach().contiguous()? * 0.0)?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
    Ok(zero == 0.0)
}

#[derive(Debug, Default)]
struct Tracer {
    graph: Graph,
    known: HashMap<TensorId, usize>,
    counted: HashSet<TensorId>,
    blocks: Vec<usize>,
    /// Multiply-adds of the layer that is running.
    macs: u64,
    /// Inside a layer: its own steps are not listed.
    inside: bool,
    /// Whether values are computed, and looked at.
    values: bool,
    /// Whether those of the last node are not finite.
    not_finite: bool,
}

impl Tracer {
    /// Lists a step, unless it returns what is known already.
    fn list(
        &mut self,
        (kind, place): (&'static str, &str),
        weights: &[Option<&Tensor>],
        detail: impl FnOnce() -> String,
        inputs: &[&Tensor],
        output: &Tensor,
    ) {
        if self.known.contains_key(&output.id()) {
            return;
        }
        let own = weights.iter().flatten().filter(|w| self.counted.insert(w.id()));
        let parameters = own.map(|w| w.elem_count()).sum();
        let inputs = inputs.iter().filter_map(|xs| self.known.get(&xs.id()).copied()).collect();
        self.known.insert(output.id(), self.graph.nodes.len());
        self.graph.nodes.push(Node {
            place: place.to_string(),
            kind,
            detail: detail(),
            inputs,
            shape: output.dims().to_vec(),
            parameters,
            macs: self.macs,
            block: self.blocks.last().copied(),
        });
    }
}

thread_local! {
    static TRACER: RefCell<Option<Tracer>> = const { RefCell::new(None) };
    static STAGES: RefCell<Option<Vec<(String, Tensor)>>> = const { RefCell::new(None) };
}

fn with<R>(f: impl FnOnce(&mut Tracer) -> R) -> Option<R> {
    TRACER.with_borrow_mut(|tracer| tracer.as_mut().map(f))
}

/// Runs `f` under a tracer, and takes it off again, also when `f` panics.
fn observe<R>(tracer: Tracer, f: impl FnOnce() -> R) -> (R, Tracer) {
    struct Restore(Option<Tracer>);
    impl Drop for Restore {
        fn drop(&mut self) {
            TRACER.set(self.0.take());
        }
    }
    let _restore = Restore(TRACER.replace(Some(tracer)));
    let result = f();
    (result, TRACER.take().unwrap_or_default())
}

/// Whether a tracer looks on for which shapes are wanted and values are not.
pub(crate) fn is_tracing() -> bool {
    TRACER.with_borrow(|tracer| tracer.as_ref().is_some_and(|tracer| !tracer.values))
}

/// Whether a tracer looks on, for which each layer runs on its own and nothing is fused.
pub(crate) fn by_layers() -> bool {
    TRACER.with_borrow(Option::is_some)
}

/// Whether somebody looks at the steps of the passes on this thread, a tracer or [`Model::forward_intermediates`]: then a
/// network that can leave out what does not reach its output runs whole.
pub fn is_watched() -> bool {
    by_layers() || STAGES.with_borrow(Option::is_some)
}

/// A tensor of zeros that has a shape and no memory to speak of.
pub(crate) fn shape_only(shape: &[usize], dtype: DType, device: &candle_core::Device) -> Result<Tensor> {
    Tensor::zeros((), dtype, device)?.broadcast_as(shape)
}

/// Adds to the count of the layer that runs on this thread; called by the operations that multiply.
pub(crate) fn count_macs(n: u64) {
    with(|tracer| tracer.macs += n);
}

/// Runs `run`, one step of a forward pass that reads `inputs` and owns `weights` at `place`, and lists it if a tracer looks
/// on. Steps inside it are not listed on their own. A step that returns its input is none.
///
/// # Errors
/// Those of `run`.
pub fn layer(
    kind: &'static str,
    place: &str,
    weights: &[Option<&Tensor>],
    detail: impl FnOnce() -> String,
    inputs: &[&Tensor],
    run: impl FnOnce() -> Result<Tensor>,
) -> Result<Tensor> {
    let begin = |tracer: &mut Tracer| !std::mem::replace(&mut tracer.inside, true);
    if with(begin) != Some(true) {
        return run();
    }
    with(|tracer| tracer.macs = 0);
    let result = run();
    let values = with(|tracer| {
        tracer.inside = false;
        if let Ok(output) = &result {
            tracer.list((kind, place), weights, detail, inputs, output);
        }
        tracer.values
    });
    let output = result?;
    if values == Some(true) && !is_finite(&output)? {
        with(|tracer| tracer.not_finite = true);
        bail!("{place} ({kind}): the output is not finite")
    }
    Ok(output)
}

/// [`layer`] for a step without tensors of its own: an addition, a pooling, a reshaping.
///
/// # Errors
/// Those of `run`.
pub fn op(
    kind: &'static str,
    detail: impl FnOnce() -> String,
    inputs: &[&Tensor],
    run: impl FnOnce() -> Result<Tensor>,
) -> Result<Tensor> {
    layer(kind, "", &[], detail, inputs, run)
}

/// Runs `run` as a block: its steps are listed as belonging together.
///
/// # Errors
/// Those of `run`.
pub fn block<R>(kind: &'static str, place: &str, run: impl FnOnce() -> Result<R>) -> Result<R> {
    let entered = with(|tracer| {
        if !tracer.inside {
            let parent = tracer.blocks.last().copied();
            tracer.blocks.push(tracer.graph.blocks.len());
            tracer.graph.blocks.push(Block { place: place.to_string(), kind, parent });
        }
        !tracer.inside
    });
    let result = run();
    if entered == Some(true) {
        with(|tracer| tracer.blocks.pop());
    }
    result
}

/// Names `xs` as the output of a stage, for [`Model::forward_intermediates`], and hands it on.
pub fn stage(name: impl std::fmt::Display, xs: Tensor) -> Tensor {
    STAGES.with_borrow_mut(|stages| {
        if let Some(stages) = stages {
            stages.push((name.to_string(), xs.clone()));
        }
    });
    xs
}

/// Runs `forward` and returns what it named with [`stage`], in order.
pub(crate) fn stages(forward: impl FnOnce() -> Result<Tensor>) -> Result<Vec<(String, Tensor)>> {
    let outer = STAGES.replace(Some(Vec::new()));
    let result = forward();
    let stages = STAGES.replace(outer).unwrap_or_default();
    result.map(|_| stages)
}

/// Multiply-adds of a registered model on one image of its default size, without allocating its weights.
///
/// # Errors
/// What building the model or its forward pass refuses.
pub fn model_macs(info: &ModelInfo, options: &ModelOptions) -> Result<u64> {
    let model = info.build(options, VarStore::shapes_only().root())?;
    let dims = info.dimensions(options);
    Ok(Graph::of_model(model.as_ref(), (dims.in_chans, dims.image_size, dims.image_size))?.macs())
}

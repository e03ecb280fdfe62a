//! How much memory training takes, told before it begins.

use crate::model::{ModelInfo, ModelOptions};
use crate::precision::Precision;
use crate::trace::{Graph, Node};
use crate::vars::{VarKind, VarStore};
use candle_core::Result;
use std::fmt;

/// The program, its threads and what they lay out for themselves.
const PROGRAM: u64 = 10 << 20;
/// How a network is trained, as far as its memory goes.
#[derive(Clone, Copy)]
pub struct TrainingPlan<'a> {
    /// What it computes in.
    pub precision: Precision,
    /// Images of one pass.
    pub batch: usize,
    /// Tensors a parameter that the optimizer keeps: 1 of SGD with momentum, 2 of Adam.
    pub optimizer_states: usize,
    /// Copies of all weights beside them, as moving averages are.
    pub copies: usize,
    /// Which keys are not trained, see [`VarStore::set_frozen`].
    pub is_frozen: Option<&'a dyn Fn(&str) -> bool>,
}

impl fmt::Debug for TrainingPlan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { precision, batch, optimizer_states, copies, .. } = self;
        write!(f, "batches of {batch} in {precision}, {optimizer_states} states, {copies} copies")
    }
}

impl TrainingPlan<'_> {
    /// Everything is trained, and nothing is averaged.
    pub fn new(precision: Precision, batch: usize, optimizer_states: usize) -> Self {
        Self { precision, batch, optimizer_states, copies: 0, is_frozen: None }
    }
}

/// Bytes that a process holds at the most while it trains a model as `plan` says. No data set is counted. Maps take 4
/// bytes an element in f32 and 2 in mixed precision, parameters and what belongs to them always 4.
///
/// It is the sum of
///
/// - the program: 10 MiB;
/// - parameters, their gradients, the optimizer's tensors, and once more what kernels lay out anew of the weights;
/// - what the forward pass keeps for the backward pass, as the network's graph tells it ([`Node::kept`]);
/// - a tenth of that, for blocks of other sizes that the allocator keeps waiting ([`crate::memory`]), and a tensor as
///   large as the largest, for a gradient on its way.
///
/// Against the peaks that `zoo bench MODEL --mode train` reports (2 threads, images of 32x32, SGD with momentum):
///
/// | model | batch | f32: estimate, MB | measured | | bf16: estimate, MB | measured | |
/// |---|---|---|---|---|---|---|---|
/// | cifar_resnet20 | 128 | 248 | 269 | -8 % | 131 | 135 | -3 % |
/// | cifar_resnet56 | 128 | 644 | 629 | +2 % | 334 | 318 | +5 % |
/// | cifar_resnet18 | 64 | 553 | 570 | -3 % | 371 | 341 | +9 % |
/// | cifar_vgg16_bn | 128 | 610 | 569 | +7 % | 428 | 349 | +23 % |
/// | cifar_densenet121 | 32 | 1146 | 1038 | +10 % | 425 | 391 | +9 % |
/// | cifar_mobilenet_v1 | 64 | 312 | 287 | +9 % | 187 | 163 | +15 % |
/// | cifar_mobilenet_v2 | 64 | 1009 | 967 | +4 % | 528 | 473 | +12 % |
/// | cifar_shufflenet_v1_g3 | 64 | 682 | 606 | +13 % | 354 | 309 | +14 % |
/// | cifar_vit_tiny_patch4 | 64 | 507 | 452 | +12 % | 302 | 270 | +12 % |
/// | template_mixer_s4 | 128 | 143 | 147 | -3 % | 79 | 80 | -2 % |
///
/// Ten more, of other batches and kinds, lie between -14 % and +33 %; `tests/tests/memory.rs` holds all of them true.
///
/// # Errors
/// What building the model or its forward pass refuses.
pub fn training_memory(info: &ModelInfo, options: &ModelOptions, plan: &TrainingPlan) -> Result<u64> {
    let store = VarStore::shapes_only();
    let model = info.build(options, store.root())?;
    let dims = info.dimensions(options);
    let graph = Graph::of_model(model.as_ref(), (dims.in_chans, dims.image_size, dims.image_size))?;
    let is_frozen = |key: &str| plan.is_frozen.is_some_and(|is_frozen| is_frozen(key));
    let slots = store.slots();
    let elements = |frozen: bool| -> u64 {
        let parameters = slots.iter().filter(|slot| slot.kind == VarKind::Parameter);
        parameters.filter(|slot| is_frozen(&slot.key) == frozen).map(|slot| slot.shape.elem_count() as u64).sum()
    };
    let (trained, frozen) = (elements(false), elements(true));
    // Of what is frozen there is the weight, and what kernels lay out of it.
    let tensors = trained * (3 + plan.optimizer_states as u64) + 2 * frozen + (trained + frozen) * plan.copies as u64;

    // What a gradient passes through: behind a layer that is trained.
    let mut on_graph: Vec<bool> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let prefix = format!("{}.", node.path);
        let trains = plan.is_frozen.is_none()
            || slots
                .iter()
                .any(|slot| slot.key.starts_with(&prefix) && slot.kind == VarKind::Parameter && !is_frozen(&slot.key));
        on_graph.push(trains || node.inputs.iter().any(|&input| on_graph[input]));
    }
    let mut is_kept = on_graph.clone();
    for (node, _) in graph.nodes.iter().zip(&on_graph).filter(|(_, on_graph)| **on_graph) {
        // A layer that is trained reads its input again in the backward pass.
        node.inputs.iter().for_each(|&input| is_kept[input] = true);
    }
    let largest = graph.nodes.iter().map(Node::elements).max().unwrap_or(0);
    let count = |node: &Node| match plan.precision {
        Precision::F32 => node.kept,
        Precision::Bf16 => node.kept_mixed,
    };
    let kept: usize = graph
        .nodes
        .iter()
        .zip(&is_kept)
        .filter(|(_, kept)| **kept)
        .map(|(node, _)| count(node) * node.elements())
        .sum();
    // A pass without a gradient has a layer's input and its output.
    let passing = if on_graph.iter().all(|on_graph| *on_graph) { largest } else { 2 * largest };
    let activations = plan.batch as u64 * (kept * 11 / 10 + passing) as u64;
    let element = plan.precision.dtype().size_in_bytes() as u64;
    Ok(PROGRAM + 4 * tensors + element * activations)
}

//! How much memory training takes, told before it begins.

use crate::model::{ModelInfo, ModelOptions};
use crate::precision::Precision;
use crate::trace::{Graph, Node};
use crate::vars::VarStore;
use candle_core::Result;

/// The program, its threads and what they lay out for themselves.
const PROGRAM: u64 = 10 << 20;
/// Bytes that a process holds at the most while it trains a model on batches of `batch` images, with an optimizer that
/// keeps `optimizer_states` tensors a parameter (1 of SGD with momentum, 2 of Adam). No data set is counted. Maps take 4
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
pub fn training_memory(
    info: &ModelInfo,
    options: &ModelOptions,
    precision: Precision,
    batch: usize,
    optimizer_states: usize,
) -> Result<u64> {
    let store = VarStore::shapes_only();
    let model = info.build(options, store.root())?;
    let dims = info.dimensions(options);
    let graph = Graph::of_model(model.as_ref(), (dims.in_chans, dims.image_size, dims.image_size))?;
    let parameters = store.parameter_count() as u64 * (3 + optimizer_states as u64);
    let largest = graph.nodes.iter().map(Node::elements).max().unwrap_or(0);
    let count = |node: &Node| match precision {
        Precision::F32 => node.kept,
        Precision::Bf16 => node.kept_mixed,
    };
    let kept: usize = graph.nodes.iter().map(|node| count(node) * node.elements()).sum();
    let activations = batch as u64 * (kept * 11 / 10 + largest) as u64;
    let element = precision.dtype().size_in_bytes() as u64;
    Ok(PROGRAM + 4 * parameters + element * activations)
}

//! How much memory training takes, told before it begins.

use crate::model::{ModelInfo, ModelOptions};
use crate::trace::{Graph, Node};
use crate::vars::VarStore;
use candle_core::Result;

/// The program, its threads and what they lay out for themselves.
const PROGRAM: u64 = 20 << 20;
/// An element is an f32.
const ELEMENT: u64 = 4;

/// Bytes that a process holds at the most while it trains a model on batches of `batch` images, with an optimizer that
/// keeps `optimizer_states` tensors a parameter (1 of SGD with momentum, 2 of Adam). No data set is counted.
///
/// It is the sum of
///
/// - the program: 20 MiB;
/// - parameters, their gradients, the optimizer's tensors, and once more what kernels lay out anew of the weights;
/// - what the forward pass keeps for the backward pass, as the network's graph tells it ([`Node::kept`]);
/// - a third of that, for blocks of other sizes that the allocator keeps waiting ([`crate::memory`]), and two tensors
///   as large as the largest, for gradients on their way.
///
/// Against the peaks that `zoo bench MODEL --mode train` reports (2 threads, images of 32x32, SGD with momentum):
///
/// | model | batch | estimate, MB | measured | |
/// |---|---|---|---|---|
/// | cifar_resnet20 | 128 | 314 | 279 | +13 % |
/// | cifar_resnet56 | 128 | 793 | 639 | +24 % |
/// | cifar_resnet18 | 64 | 634 | 638 | -1 % |
/// | cifar_vgg16_bn | 128 | 725 | 652 | +11 % |
/// | cifar_densenet121 | 32 | 1400 | 1456 | -4 % |
/// | cifar_mobilenet_v1 | 64 | 388 | 303 | +28 % |
/// | cifar_mobilenet_v2 | 64 | 1253 | 1121 | +12 % |
/// | cifar_shufflenet_v1_g3 | 64 | 845 | 688 | +23 % |
/// | cifar_vit_tiny_patch4 | 64 | 610 | 459 | +33 % |
/// | template_mixer_s4 | 128 | 178 | 157 | +13 % |
///
/// Ten more, of other batches and kinds, lie between -12 % and +30 %; `tests/tests/memory.rs` holds all twenty true.
///
/// # Errors
/// What building the model or its forward pass refuses.
pub fn training_memory(info: &ModelInfo, options: &ModelOptions, batch: usize, optimizer_states: usize) -> Result<u64> {
    let store = VarStore::shapes_only();
    let model = info.build(options, store.root())?;
    let dims = info.dimensions(options);
    let graph = Graph::of_model(model.as_ref(), (dims.in_chans, dims.image_size, dims.image_size))?;
    let parameters = store.parameter_count() as u64 * (3 + optimizer_states as u64);
    let largest = graph.nodes.iter().map(Node::elements).max().unwrap_or(0);
    let kept: usize = graph.nodes.iter().map(|node| node.kept * node.elements()).sum();
    let activations = batch as u64 * (kept * 4 / 3 + 2 * largest) as u64;
    Ok(PROGRAM + ELEMENT * (parameters + activations))
}

//! How much memory training takes, told before it begins.

use super::{Graph, Node};
use crate::model::{ModelInfo, ModelOptions};
use crate::vars::VarStore;
use candle_core::Result;

/// The program, its threads and what they lay out for themselves.
const PROGRAM: u64 = 20 << 20;
/// An element is an f32.
const ELEMENT: u64 = 4;

/// Bytes that a process holds at the most while it trains a model on batches of `batch` images, with an optimizer that keeps
/// `optimizer_states` tensors a parameter (1 of SGD with momentum, 2 of Adam). No data set is counted.
///
/// It is the sum of
///
/// - the program: 20 MiB;
/// - parameters, their gradients, the optimizer's tensors, and once more what kernels lay out anew of the weights;
/// - what the forward pass keeps for the backward pass, from the outputs of the network's graph; what fused operations never
///   make is left out;
/// - a third of that, for blocks of other sizes that the allocator keeps waiting ([`crate::memory`]), and two tensors as large as
///   the largest, for gradients on their way.
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
    let largest = graph.nodes.iter().map(elements).max().unwrap_or(0);
    let activations = batch as u64 * (kept(&graph) * 4 / 3 + 2 * largest);
    Ok(PROGRAM + ELEMENT * (parameters + activations))
}

fn elements(node: &Node) -> u64 {
    node.shape.iter().product::<usize>() as u64
}

/// Elements that a training step on one image keeps between its forward and its backward pass.
fn kept(graph: &Graph) -> u64 {
    let mut readers: Vec<Vec<&'static str>> = vec![Vec::new(); graph.nodes.len()];
    for node in &graph.nodes {
        node.inputs.iter().for_each(|&input| readers[input].push(node.kind));
    }
    let kept = |(node, readers): (&Node, &Vec<&str>)| {
        let feeds = |kinds: &[&str]| matches!(readers[..], [reader] if kinds.contains(&reader));
        let reads = |kind: &str| node.inputs.iter().any(|&input| graph.nodes[input].kind == kind);
        let times = match node.kind {
            // One operation with the activation or the sum behind it.
            "BatchNorm" if feeds(&["ReLU", "ReLU6", "Add"]) => 0,
            "Add" if reads("BatchNorm") && feeds(&["ReLU", "ReLU6"]) => 0,
            // Inside the residual branch of a Transformer or Mixer, which keeps its first linear layer's output alone.
            "LayerNorm" | "GELU" | "Attention" | "Transpose" => 0,
            "Linear" if feeds(&["Add", "Transpose"]) => 0,
            // Maps that norms alone read stay apart.
            "Concat" if readers.iter().all(|reader| ["BatchNorm", "Concat"].contains(reader)) => 0,
            // A view.
            "Flatten" => 0,
            // On candle's graph, which starts from a copy.
            "Scale" | "Dropout" => 2,
            _ => 1,
        };
        times * elements(node)
    };
    graph.nodes.iter().zip(&readers).map(kept).sum()
}

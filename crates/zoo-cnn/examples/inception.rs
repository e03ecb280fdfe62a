//! The Inception module, naive (figure 2a of "Going Deeper with Convolutions") and with 1x1 reductions (figure 2b):
//! what the reductions save.
//!
//! `cargo run --release --example inception`

use candle_core::{DType, Device, Result, Tensor};
use zoo_cnn::googlenet::{Inception, InceptionConfig};
use zoo_core::trace::Graph;
use zoo_core::{ModuleT, VarStore};

const INPUT: [usize; 4] = [1, 192, 224, 224];

/// Prints the module step by step. Nothing is computed: a trace follows the shapes through the forward pass.
fn describe(title: &str, config: &InceptionConfig) -> Result<Graph> {
    let module = Inception::new(INPUT[1], config, VarStore::shapes_only().root())?;
    let graph = Graph::of(&[&INPUT], |inputs| module.forward_t(&inputs[0], false))?;
    println!("{title}");
    for node in graph.nodes.iter().filter(|node| !["BatchNorm", "ReLU"].contains(&node.kind())) {
        let (name, shape) = (format!("{} {}", node.kind(), node.step.detail()), format!("{:?}", node.shape));
        let (parameters, macs) = (node.parameters, node.macs as f64 / 1e9);
        println!("  {:<16} {name:<20} {shape:<20} {parameters:>7} parameters {macs:>6.2} G multiply-adds", node.path);
    }
    println!("  in all: {} parameters, {:.2} G multiply-adds\n", graph.parameters(), graph.macs() as f64 / 1e9);
    Ok(graph)
}

fn main() -> Result<()> {
    // Module 3a of GoogLeNet: 64 maps of 1x1, 128 of 3x3 behind a reduction to 96, 32 of 5x5 behind one to 16, 32 from
    // the pooling. All branches keep the size of the image, so that they can be laid one behind another.
    let reduced = InceptionConfig::reduced([64, 96, 128, 16, 32, 32]);
    // The same kernels on all 192 channels. The pooling has no weights, so it hands on all the channels it got: modules
    // in a row would grow without end.
    let naive = InceptionConfig::naive(64, 128, 32);

    let a = describe("naive (figure 2a)", &naive)?;
    let b = describe("reduced (figure 2b)", &reduced)?;
    let channels = |graph: &Graph| graph.nodes.last().map(|node| node.shape[1]);
    assert_eq!((channels(&a), channels(&b)), (Some(64 + 128 + 32 + 192), Some(64 + 128 + 32 + 32)));

    // Weights: widths times kernel areas, and two numbers a channel for each BatchNorm.
    assert_eq!(a.parameters(), 192 * (64 + 128 * 9 + 32 * 25) + 2 * (64 + 128 + 32));
    let convolutions = 192 * (64 + 96 + 16 + 32) + 96 * 128 * 9 + 16 * 32 * 25;
    assert_eq!(b.parameters(), convolutions + 2 * (64 + 96 + 128 + 16 + 32 + 32));
    // Each weight of a convolution that keeps the size is used once a pixel.
    assert_eq!(b.macs(), (convolutions * 224 * 224) as u64);
    let share = b.macs() as f64 / a.macs() as f64;
    println!("the reductions leave {:.0} % of the multiply-adds", 100.0 * share);
    assert!(share < 0.5);

    // And computed, on one map of 192 channels.
    let store = VarStore::new(42, DType::F32, &Device::Cpu);
    let module = Inception::new(INPUT[1], &reduced, store.root())?;
    let xs = Tensor::ones(&INPUT, DType::F32, &Device::Cpu)?;
    let ys = module.forward_t(&xs, false)?;
    println!("{:?} -> {:?}", xs.dims(), ys.dims());
    assert_eq!((ys.dims(), module.c_out()), (&[1, 256, 224, 224][..], 256));
    Ok(())
}

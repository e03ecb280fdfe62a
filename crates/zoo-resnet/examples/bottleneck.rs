//! The bottleneck of ResNet-50 (He et al. 2015, arXiv:1512.03385, figure 5, right), from outside: what it costs against
//! the basic block, its shapes from layer to layer, and why it may start as the identity.
//!
//!     cargo run -p zoo-resnet --example bottleneck

use candle_core::{DType, Device, Result, Tensor};
use zoo_core::rng::Rng;
use zoo_core::trace::Graph;
use zoo_core::{ModuleT, VarStore};
use zoo_resnet::resnet::{BlockConfig, block};

/// 256 channels of 56x56 pixels, 32 images: what the first stage of ResNet-50 hands from block to block.
const SHAPE: [usize; 4] = [32, 256, 56, 56];

fn main() -> Result<()> {
    println!("A bottleneck squeezes 256 channels to 64, convolves 3x3 there, and widens again. One image:\n");
    let bottleneck = BlockConfig::bottleneck(256, 64, 256);
    table(&bottleneck)?;

    println!("\nTwo 3x3 convolutions on all 256 channels, the basic block, cost far more:\n");
    table(&BlockConfig::basic(256, 256))?;

    println!("\nWhere the map halves and the channels double, the input itself must be projected (option B):\n");
    table(&BlockConfig { stride: 2, ..BlockConfig::bottleneck(256, 128, 512) })?;

    identity(&bottleneck)
}

/// The steps of a block with their shapes, parameters and multiply-adds, from a trace: nothing is computed.
fn table(config: &BlockConfig) -> Result<()> {
    let block = block(config, VarStore::shapes_only().root())?;
    let [_, _, h, w] = SHAPE;
    let graph = Graph::of(&[&[1, config.c_in, h, w]], |inputs| block.forward_t(&inputs[0], false))?;
    println!("{:<14}{:<11}{:<16}{:<18}{:>12}{:>12}", "place", "kind", "", "output", "parameters", "MACs");
    for node in &graph.nodes {
        let shape = node.shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        println!(
            "{:<14}{:<11}{:<16}{shape:<18}{:>12}{:>12}",
            node.path,
            node.kind(),
            node.step.detail(),
            node.parameters,
            node.macs
        );
        // An addition reads two nodes: the branch, and what came past it.
        if let [branch, past] = node.inputs[..] {
            let name = |i: usize| format!("{} {}", graph.nodes[i].kind(), graph.nodes[i].path).trim_end().to_string();
            println!("{:<14}= {}  +  {}", "", name(branch), name(past));
        }
    }
    println!("{:<59}{:>12}{:>12}", "sum", graph.parameters(), graph.macs());
    Ok(())
}

/// With weight 0 in the last norm the branch gives 0, and relu(0 + x) is x for the x that a ReLU hands on.
fn identity(config: &BlockConfig) -> Result<()> {
    let device = Device::Cpu;
    let mut rng = Rng::new(0, "images");
    let pixels: Vec<f32> = (0..SHAPE.iter().product()).map(|_| rng.uniform_in(0.0, 1.0) as f32).collect();
    let images = Tensor::from_vec(pixels, &SHAPE, &device)?;
    println!("\nForward on {SHAPE:?}, how far the output is from the input:\n");
    for zero_init in [false, true] {
        let store = VarStore::new(0, DType::F32, &device);
        let block = block(&BlockConfig { zero_init, ..*config }, store.root())?;
        let start = std::time::Instant::now();
        let ys = block.forward_t(&images, false)?;
        let seconds = start.elapsed().as_secs_f64();
        let distance = (&ys - &images)?.abs()?.max_all()?.to_scalar::<f32>()?;
        println!("zero_init {zero_init:<7}{:?}   largest difference {distance:.4}   {seconds:.2} s", ys.dims());
        if zero_init && distance != 0.0 {
            candle_core::bail!("a block with zero-init must start as the identity")
        }
    }
    println!("\nA deep stack of such blocks starts as a shallow network, and every block learns what to add.");
    Ok(())
}

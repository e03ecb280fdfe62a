//! One training step and one inference of a network: `cargo bench -p candle-zoo`, or `cargo bench -p candle-zoo -- resnet20`.
//!
//! Images a second, and what that is in GFLOP/s and as a share of what the machine's registers reach. The operations
//! are the multiply-adds of convolutions, linear layers and matrix products (`zoo info`), two each; a training step
//! counts three times the forward pass. Every network stands twice, in f32 and in mixed precision, whose peak is that of
//! products of bfloat16 numbers. A step is forward, loss, backward and SGD with momentum and weight decay, as in
//! `zoo bench`.

#[path = "../../zoo-core/benches/machine/mod.rs"]
mod machine;

use candle_core::{DType, Device, Result, Tensor, Var};
use criterion::{Criterion, SamplingMode, Throughput};
use machine::{Counts, Machine};
use std::hint::black_box;
use std::time::Duration;
use zoo::{Model, ModelOptions, VarStore};
use zoo_core::Precision;
use zoo_core::inspect::model_macs;
use zoo_core::ops::cross_entropy;
use zoo_core::ops::optim::{SgdStep, sgd_step};
use zoo_core::rng::Rng;
use zoo_core::tape::value_and_grad;

/// As the `zoo` command does it, so that the figures are those of `zoo bench`.
#[global_allocator]
static ALLOCATOR: zoo_core::memory::CachingAllocator = zoo_core::memory::CachingAllocator;

/// The networks of docs/performance.md with their batches.
const NETWORKS: [(&str, usize); 10] = [
    ("cifar_resnet20", 128),
    ("cifar_resnet56", 128),
    ("cifar_resnet18", 64),
    ("cifar_vgg16_bn", 128),
    ("cifar_densenet121", 32),
    ("cifar_mobilenet_v1", 64),
    ("cifar_mobilenet_v2", 64),
    ("cifar_shufflenet_v1_g3", 64),
    ("cifar_vit_tiny_patch4", 64),
    ("template_mixer_s4", 128),
];

const SGD: SgdStep = SgdStep { lr: 0.01, momentum: 0.9, nesterov: false, weight_decay: 5e-4 };

fn training_step(net: &dyn Model, images: &Tensor, labels: &Tensor, state: &[(Var, Var)]) -> Result<()> {
    let (_, grads) = value_and_grad(images, |images| cross_entropy(&net.forward_t(images, true)?, labels, 0.0))?;
    for (buffer, param) in state {
        if let Some(grad) = grads.get(param) {
            sgd_step(param, grad, Some(buffer), &SGD)?;
        }
    }
    Ok(())
}

fn network(c: &mut Criterion<Machine>, counts: &Counts, name: &str, batch: usize) -> Result<()> {
    let info = zoo::find(name)?;
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    let net = info.build(&ModelOptions::default(), store.root())?;
    let (side, mut rng) = (info.preprocess.size, Rng::new(0, "bench"));
    let pixels: Vec<f32> = (0..batch * 3 * side * side).map(|_| rng.normal() as f32).collect();
    let images = Tensor::from_vec(pixels, (batch, 3, side, side), &Device::Cpu)?;
    let labels: Vec<u32> = (0..batch).map(|_| rng.below(info.num_classes) as u32).collect();
    let labels = Tensor::new(labels, &Device::Cpu)?;
    let buffer = |param: &Var| Var::from_tensor(&param.zeros_like()?);
    let parameters = store.parameters().into_iter();
    let state = parameters.map(|(_, param)| Ok((buffer(&param)?, param))).collect::<Result<Vec<_>>>()?;
    let flops = 2.0 * model_macs(info, &ModelOptions::default())? as f64;

    let mut group = c.benchmark_group(name);
    // Each sample is as many steps as every other: a step takes up to seconds.
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(batch as u64));
    for &precision in Precision::ALL {
        counts.precision.set(precision);
        counts.flops_per_image.set(Some(3.0 * flops));
        let cast = || precision.cast(&images).expect("on the CPU");
        group.bench_function(format!("{} train", precision.name()), |b| {
            b.iter(|| training_step(net.as_ref(), &cast(), &labels, &state).expect("the network trains"));
        });
        counts.flops_per_image.set(Some(flops));
        group.bench_function(format!("{} infer", precision.name()), |b| {
            b.iter(|| black_box(net.forward_t(&cast(), false).expect("the network runs")));
        });
    }
    group.finish();
    Ok(())
}

fn main() {
    let machine = Machine::measure();
    let counts = machine.counts();
    let mut c = Criterion::default()
        .with_measurement(machine)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(4))
        .configure_from_args();
    for (name, batch) in NETWORKS {
        network(&mut c, &counts, name, batch).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    c.final_summary();
}

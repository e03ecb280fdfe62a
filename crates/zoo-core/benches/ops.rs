//! Operations forward and backward, at the sizes where the networks spend their time: `cargo bench -p zoo-core`, or
//! `cargo bench -p zoo-core -- depthwise` for the lines that hold the word. `RAYON_NUM_THREADS` sets the threads.
//!
//! What multiplies is stated in GFLOP/s, two for a multiply-add, and as a share of what the machine's registers reach;
//! what moves memory in GB/s, and as a share of what a copy reaches. A gradient is that of one input, the others
//! detached; candle's seed of ones and its accumulation are in it, as in training.

mod layers;
mod machine;

use candle_core::{Device, Result, Tensor, Var};
use criterion::{BenchmarkGroup, Criterion, Throughput};
use layers::{LAYERS, LINEAR, Layer};
use machine::Machine;
use std::hint::black_box;
use std::time::Duration;
use zoo_core::ops::{self, Pointwise};
use zoo_core::rng::Rng;

fn random(dims: &[usize]) -> Var {
    let mut rng = Rng::new(0, &format!("{dims:?}"));
    let values: Vec<f32> = (0..dims.iter().product()).map(|_| rng.normal() as f32).collect();
    Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu).expect("values fit dims")).expect("on the CPU")
}

/// `op` forward, then its gradients; `names` of the inputs, empty where no gradient is of interest.
fn measure(
    group: &mut BenchmarkGroup<Machine>,
    name: &str,
    inputs: &[(&str, Var)],
    work: [Throughput; 2],
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let detached: Vec<Tensor> = inputs.iter().map(|(_, var)| var.as_detached_tensor()).collect();
    let [forward, backward] = work;
    group.throughput(forward);
    group.bench_function(format!("{name}/forward"), |b| b.iter(|| black_box(op(&detached).expect("shapes fit"))));
    group.throughput(backward);
    for (i, (input, var)) in inputs.iter().enumerate().filter(|(_, (input, _))| !input.is_empty()) {
        group.bench_function(format!("{name}/{input} gradient"), |b| {
            let mut inputs = detached.clone();
            inputs[i] = var.as_tensor().clone();
            let ys = op(&inputs).expect("shapes fit");
            b.iter(|| black_box(ys.backward().expect("tracked")));
        });
    }
}

fn convolutions(c: &mut Criterion<Machine>) {
    let mut group = c.benchmark_group("conv2d");
    for layer in LAYERS {
        let Layer { b, c_in, c_out, side, kernel, groups, .. } = *layer;
        let flops = || Throughput::Elements(layer.flops());
        let inputs = [
            // An image asks for no gradient.
            (if c_in == 3 { "" } else { "input" }, random(&[b, c_in, side, side])),
            ("weight", random(&[c_out, c_in / groups, kernel, kernel])),
        ];
        measure(&mut group, &layer.name(), &inputs, [flops(), flops()], |t| {
            ops::conv2d(&t[0], &t[1], None, layer.params())
        });
    }
    group.finish();
}

fn products(c: &mut Criterion<Machine>) {
    let mut group = c.benchmark_group("linear");
    for (name, rows, c_in, c_out) in LINEAR {
        let flops = Throughput::Elements((2 * rows * c_in * c_out) as u64);
        let inputs = [("input", random(&[rows, c_in])), ("weight", random(&[c_out, c_in])), ("", random(&[c_out]))];
        measure(&mut group, &format!("{name} {rows} {c_in}-{c_out}"), &inputs, [flops.clone(), flops], |t| {
            ops::linear(&t[0], &t[1], Some(&t[2]))
        });
    }
    group.finish();
    let mut group = c.benchmark_group("matmul");
    for (name, a, b) in
        [("vit_tiny scores", [64, 3, 65, 64], [64, 3, 64, 65]), ("vit_tiny context", [64, 3, 65, 65], [64, 3, 65, 64])]
    {
        let flops = Throughput::Elements((2 * a.iter().product::<usize>() * b[3]) as u64);
        let inputs = [("left", random(&a)), ("right", random(&b))];
        measure(&mut group, name, &inputs, [flops.clone(), flops], |t| ops::matmul(&t[0], &t[1]));
    }
    group.finish();
}

/// `passes` over tensors of `n` f32 numbers.
fn bytes(n: usize, passes: usize) -> Throughput {
    Throughput::Bytes((4 * n * passes) as u64)
}

/// Bytes are counted by tensors read and written: training's normalisation reads its input twice, and in its gradient
/// input and upstream twice; everything else reads what it needs once. The seed of ones and candle's accumulation are
/// not counted.
fn memory_bound(c: &mut Criterion<Machine>) {
    let mut group = c.benchmark_group("batch_norm");
    for dims in [[128, 16, 32, 32], [64, 64, 32, 32], [64, 512, 4, 4]] {
        let n = dims.iter().product();
        let affine = || random(&[dims[1]]);
        let inputs = [("input", random(&dims)), ("", affine()), ("", affine())];
        measure(&mut group, &format!("{dims:?}, training"), &inputs, [bytes(n, 3), bytes(n, 5)], |t| {
            let stats = ops::batch_stats(&t[0])?;
            ops::batch_norm(&t[0], &t[1], &t[2], (&stats.mean, &stats.var), 1e-5, true)
        });
        let stats = ops::batch_stats(&inputs[0].1).expect("a batch");
        let inputs = inputs.map(|(_, var)| ("", var));
        measure(&mut group, &format!("{dims:?}, evaluation"), &inputs, [bytes(n, 2), bytes(n, 2)], |t| {
            ops::batch_norm(&t[0], &t[1], &t[2], (&stats.mean, &stats.var), 1e-5, false)
        });
    }
    group.finish();
    let mut group = c.benchmark_group("layer_norm");
    for dims in [[64, 65, 192], [128, 64, 128]] {
        let n = dims.iter().product();
        let inputs = [("input", random(&dims)), ("", random(&[dims[2]])), ("", random(&[dims[2]]))];
        measure(&mut group, &format!("{dims:?}"), &inputs, [bytes(n, 2), bytes(n, 3)], |t| {
            ops::layer_norm(&t[0], &t[1], &t[2], 1e-5)
        });
    }
    group.finish();
    let mut group = c.benchmark_group("softmax");
    let (dims, n) = ([64, 3, 65, 65], 64 * 3 * 65 * 65);
    measure(&mut group, &format!("{dims:?}"), &[("input", random(&dims))], [bytes(n, 2), bytes(n, 3)], |t| {
        ops::softmax(&t[0])
    });
    group.finish();
    let mut group = c.benchmark_group("pointwise");
    let (dims, n) = ([128, 16, 32, 32], 128 * 16 * 32 * 32);
    for f in [Pointwise::Relu, Pointwise::Relu6, Pointwise::Gelu, Pointwise::Silu, Pointwise::HardSwish] {
        measure(&mut group, &format!("{f:?}"), &[("input", random(&dims))], [bytes(n, 2), bytes(n, 3)], |t| {
            ops::pointwise(&t[0], f)
        });
    }
    group.finish();
    let mut group = c.benchmark_group("pool");
    let pair = |n| (n, n);
    let (dims, n) = ([128, 64, 32, 32], 128 * 64 * 32 * 32);
    let inputs = [("input", random(&dims))];
    // The output and its gradient are a quarter of the input.
    let work = || [Throughput::Bytes(5 * n as u64), Throughput::Bytes(9 * n as u64)];
    measure(&mut group, "max 2x2", &inputs, work(), |t| ops::max_pool2d(&t[0], pair(2), pair(2), pair(0), false));
    measure(&mut group, "max 3x3 s2 p1", &inputs, work(), |t| ops::max_pool2d(&t[0], pair(3), pair(2), pair(1), false));
    let work = [Throughput::Bytes(5 * n as u64), Throughput::Bytes(5 * n as u64)];
    measure(&mut group, "average 2x2", &inputs, work, |t| {
        ops::avg_pool2d(&t[0], pair(2), pair(2), pair(0), false, true)
    });
    measure(&mut group, "global average", &inputs, [bytes(n, 1), bytes(n, 1)], |t| {
        ops::adaptive_avg_pool2d(&t[0], pair(1))
    });
    group.finish();
    let mut group = c.benchmark_group("cross_entropy");
    let targets = Tensor::arange(0u32, 128, &Device::Cpu).expect("on the CPU");
    let n = 128 * 1000;
    measure(&mut group, "128x1000", &[("input", random(&[128, 1000]))], [bytes(n, 1), bytes(n, 2)], |t| {
        ops::cross_entropy(&t[0], &targets, 0.1)
    });
    group.finish();
}

fn main() {
    let mut c = Criterion::default()
        .with_measurement(Machine::measure())
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .configure_from_args();
    convolutions(&mut c);
    products(&mut c);
    memory_bound(&mut c);
    c.final_summary();
}

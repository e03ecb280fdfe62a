//! Operations forward and backward, at the sizes where the networks spend their time: `cargo bench -p zoo-core`, or
//! `cargo bench -p zoo-core -- depthwise` for the lines that hold the word. `RAYON_NUM_THREADS` sets the threads.
//!
//! What multiplies is stated in GFLOP/s, two for a multiply-add, and as a share of what the machine's registers reach;
//! what moves memory in GB/s, and as a share of what a copy reaches. A gradient is that of one input, the others
//! detached; candle's seed of ones and its accumulation are in it, as in training.

mod machine;

use candle_core::{DType, Device, Result, Tensor, Var};
use criterion::{BenchmarkGroup, Criterion, Throughput};
use machine::Machine;
use std::hint::black_box;
use std::time::Duration;
use zoo_core::ops::{self, Conv2dParams, Pointwise};
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

struct Layer {
    network: &'static str,
    b: usize,
    c_in: usize,
    c_out: usize,
    side: usize,
    kernel: usize,
    stride: usize,
    groups: usize,
}

const fn layer(
    network: &'static str,
    b: usize,
    (c_in, c_out): (usize, usize),
    side: usize,
    (kernel, stride, groups): (usize, usize, usize),
) -> Layer {
    Layer { network, b, c_in, c_out, side, kernel, stride, groups }
}

/// The layers by network, each with its network's batch.
const LAYERS: &[Layer] = &[
    layer("resnet20 stem", 128, (3, 16), 32, (3, 1, 1)),
    layer("resnet20", 128, (16, 16), 32, (3, 1, 1)),
    layer("resnet20", 128, (16, 32), 32, (3, 2, 1)),
    layer("resnet20", 128, (32, 32), 16, (3, 1, 1)),
    layer("resnet20", 128, (64, 64), 8, (3, 1, 1)),
    layer("resnet18", 64, (64, 64), 32, (3, 1, 1)),
    layer("resnet18", 64, (64, 128), 32, (3, 2, 1)),
    layer("resnet18", 64, (64, 128), 32, (1, 2, 1)),
    layer("resnet18", 64, (128, 128), 16, (3, 1, 1)),
    layer("resnet18", 64, (256, 256), 8, (3, 1, 1)),
    layer("resnet18", 64, (512, 512), 4, (3, 1, 1)),
    layer("vgg16", 128, (3, 64), 32, (3, 1, 1)),
    layer("vgg16", 128, (128, 128), 16, (3, 1, 1)),
    layer("vgg16", 128, (256, 512), 4, (3, 1, 1)),
    layer("vgg16", 128, (512, 512), 2, (3, 1, 1)),
    layer("densenet121", 32, (256, 128), 32, (1, 1, 1)),
    layer("densenet121", 32, (128, 32), 32, (3, 1, 1)),
    layer("densenet121", 32, (512, 128), 8, (1, 1, 1)),
    layer("densenet121", 32, (1024, 512), 8, (1, 1, 1)),
    layer("mobilenet_v1 depthwise", 64, (64, 64), 32, (3, 2, 64)),
    layer("mobilenet_v1 depthwise", 64, (128, 128), 16, (3, 1, 128)),
    layer("mobilenet_v1 depthwise", 64, (512, 512), 4, (3, 1, 512)),
    layer("mobilenet_v1", 64, (64, 128), 16, (1, 1, 1)),
    layer("mobilenet_v1", 64, (512, 512), 4, (1, 1, 1)),
    layer("mobilenet_v2 depthwise", 64, (144, 144), 32, (3, 1, 144)),
    layer("mobilenet_v2 depthwise", 64, (192, 192), 16, (3, 2, 192)),
    layer("mobilenet_v2", 64, (16, 96), 32, (1, 1, 1)),
    layer("mobilenet_v2", 64, (144, 24), 32, (1, 1, 1)),
    layer("shufflenet_v1_g3", 64, (240, 60), 16, (1, 1, 3)),
    layer("shufflenet_v1_g3 depthwise", 64, (60, 60), 16, (3, 1, 60)),
    layer("shufflenet_v1_g3", 64, (60, 240), 16, (1, 1, 3)),
    layer("resnet50 stem", 8, (3, 64), 224, (7, 2, 1)),
    layer("vit_tiny patches", 64, (3, 192), 32, (4, 4, 1)),
];

fn convolutions(c: &mut Criterion<Machine>) {
    let mut group = c.benchmark_group("conv2d");
    for &Layer { network, b, c_in, c_out, side, kernel, stride, groups } in LAYERS {
        let pair = |n| (n, n);
        let padding = if kernel == stride { 0 } else { kernel / 2 };
        let params = Conv2dParams { stride: pair(stride), padding: pair(padding), groups, ..Default::default() };
        let out = (side + 2 * padding - kernel) / stride + 1;
        let flops = Throughput::Elements((2 * b * c_out * out * out * c_in / groups * kernel * kernel) as u64);
        let inputs = [
            // An image asks for no gradient.
            (if c_in == 3 { "" } else { "input" }, random(&[b, c_in, side, side])),
            ("weight", random(&[c_out, c_in / groups, kernel, kernel])),
        ];
        let name = format!("{network} b{b} {c_in}-{c_out} {side}x{side} k{kernel} s{stride} g{groups}");
        measure(&mut group, &name, &inputs, [flops.clone(), flops], |t| ops::conv2d(&t[0], &t[1], None, params));
    }
    group.finish();
}

fn products(c: &mut Criterion<Machine>) {
    let mut group = c.benchmark_group("linear");
    for (name, rows, c_in, c_out) in [
        ("vit_tiny qkv", 64 * 65, 192, 576),
        ("vit_tiny mlp", 64 * 65, 192, 768),
        ("vit_tiny mlp", 64 * 65, 768, 192),
        ("mixer tokens", 128 * 128, 64, 64),
        ("mixer channels", 128 * 64, 128, 128),
        ("head", 128, 512, 10),
    ] {
        let flops = Throughput::Elements((2 * rows * c_in * c_out) as u64);
        let inputs = [("input", random(&[rows, c_in])), ("weight", random(&[c_out, c_in])), ("", random(&[c_out]))];
        measure(&mut group, &format!("{name} {rows} {c_in}-{c_out}"), &inputs, [flops.clone(), flops], |t| {
            ops::linear(&t[0], &t[1], Some(&t[2]))
        });
        let narrow = |(_, var): &(&str, Var)| var.as_detached_tensor().to_dtype(DType::BF16).expect("f32 numbers");
        let t: Vec<Tensor> = inputs.iter().map(narrow).collect();
        group.throughput(Throughput::Elements((2 * rows * c_in * c_out) as u64));
        group.bench_function(format!("{name} {rows} {c_in}-{c_out}/bfloat16 forward"), |b| {
            b.iter(|| black_box(ops::linear(&t[0], &t[1], Some(&t[2])).expect("shapes fit")));
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

/// bfloat16 maps, channels innermost. A step is an operation and the mean over each channel's pixels on a tape,
/// forwards and backwards: bytes are those of the operation, and of the mean's gradient, which it reads, once written.
fn mixed(c: &mut Criterion<Machine>) {
    let mut group = c.benchmark_group("bfloat16");
    let pair = |n| (n, n);
    // Passes over the map, forwards and in the step.
    type Line = (&'static str, [usize; 2], fn(&Tensor, &[Tensor]) -> Result<Tensor>);
    let lines: &[Line] = &[
        ("mean of pixels", [0, 2], |xs, _| Ok(xs.clone())),
        ("batch_norm", [3, 10], |xs, t| {
            let stats = ops::batch_stats(xs)?;
            ops::batch_norm(xs, &t[0], &t[1], (&stats.mean, &stats.var), 1e-5, true)
        }),
        ("relu", [2, 7], |xs, _| ops::pointwise(xs, Pointwise::Relu)),
        ("silu", [2, 7], |xs, _| ops::pointwise(xs, Pointwise::Silu)),
        ("concat", [4, 9], |xs, _| ops::concat(&[xs, xs], 1)),
        ("shuffle", [2, 6], |xs, _| ops::channel_shuffle(xs, 4)),
        ("max 3x3 s1 p1", [2, 7], |xs, _| ops::max_pool2d(xs, (3, 3), (1, 1), (1, 1), false)),
    ];
    for dims in [[128, 16, 32, 32], [64, 64, 32, 32], [32, 24, 32, 32], [64, 512, 4, 4]] {
        let n: usize = dims.iter().product();
        let xs = random(&dims).permute((0, 2, 3, 1)).and_then(|xs| xs.contiguous()?.to_dtype(DType::BF16));
        let xs = xs.and_then(|xs| Var::from_tensor(&xs.permute((0, 3, 1, 2))?)).expect("four dimensions");
        let weights = [random(&[dims[1]]), random(&[dims[1]])];
        let weights: Vec<Tensor> = weights.iter().map(|var| var.as_tensor().clone()).collect();
        let plain: Vec<Tensor> = weights.iter().map(Tensor::detach).collect();
        for &(name, [forward, step], op) in lines {
            let still = xs.as_detached_tensor();
            if forward > 0 {
                group.throughput(Throughput::Bytes((2 * n * forward) as u64));
                group.bench_function(format!("{name} {dims:?}/forward"), |b| {
                    b.iter(|| black_box(op(&still, &plain).expect("shapes fit")));
                });
            }
            group.throughput(Throughput::Bytes((2 * n * step) as u64));
            group.bench_function(format!("{name} {dims:?}/step"), |b| {
                let run = |xs: &Tensor| {
                    let ys = ops::avg_pool2d(&op(xs, &weights)?, (dims[2], dims[3]), pair(1), pair(0), false, true)?;
                    zoo_core::tape::to_dtype(&ys, DType::F32)
                };
                b.iter(|| {
                    let ys = zoo_core::tape::recorded(&xs, true, run).expect("shapes fit");
                    black_box(ys.backward().expect("tracked"))
                });
            });
        }
    }
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
    mixed(&mut c);
    c.final_summary();
}

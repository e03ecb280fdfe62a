//! Operations of mixed precision on bfloat16 maps, channels innermost: `cargo bench -p zoo-core --bench bf16`, or
//! `cargo bench -p zoo-core --bench bf16 -- attention` for the lines that hold the word. `ZOO_SIMD` forces the level.
//!
//! What multiplies is stated in GFLOP/s, two for a multiply-add, and as a share of what the level's products reach (on
//! matrix tiles with their loads, where there are such); what moves memory in GB/s, and as a share of what a copy
//! reaches. Depthwise convolutions stand twice.
//!
//! A step is the operation and the mean over each channel's pixels, or tokens, on a tape, forwards and backwards: with both gradients
//! three times the forward pass's products, two times for images, which ask for no gradient. Bytes are those of the
//! operation, and of the mean's gradient, which it reads, once written.

mod layers;
mod machine;

use candle_core::{DType, Device, Result, Tensor, Var};
use criterion::{BenchmarkGroup, Criterion, Throughput};
use layers::{LAYERS, LINEAR, Layer};
use machine::Machine;
use std::hint::black_box;
use std::time::Duration;
use zoo_core::ops::{self, Conv2dParams, Pointwise};
use zoo_core::rng::Rng;
use zoo_core::{BatchNorm, Conv2d, Conv2dConfig, DenseBlock, ModuleT, Precision, Sequential, VarStore, seq, tape};

/// As the `zoo` command does it.
#[global_allocator]
static ALLOCATOR: zoo_core::memory::CachingAllocator = zoo_core::memory::CachingAllocator;

fn random(dims: &[usize]) -> Var {
    let mut rng = Rng::new(0, &format!("{dims:?}"));
    let values: Vec<f32> = (0..dims.iter().product()).map(|_| rng.normal() as f32).collect();
    Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu).expect("values fit dims")).expect("on the CPU")
}

/// A map of random numbers, as a layer before hands it over.
fn map(dims: &[usize]) -> Var {
    let map = tape::to_dtype(&random(dims).as_detached_tensor(), DType::BF16).expect("f32 numbers");
    Var::from_tensor(&map).expect("a map")
}

/// `op` forward off every graph, then forwards and backwards on a tape. `weights` are tracked in the step, and so is the
/// map where it asks for a gradient.
fn measure(
    group: &mut BenchmarkGroup<Machine>,
    name: &str,
    (map, asks): (&Var, bool),
    weights: &[Var],
    [forward, step]: [Throughput; 2],
    op: impl Fn(&Tensor, &[Tensor]) -> Result<Tensor>,
) {
    let still = map.as_detached_tensor();
    let detached: Vec<Tensor> = weights.iter().map(|var| var.as_detached_tensor()).collect();
    group.throughput(forward);
    group.bench_function(format!("{name}/forward"), |b| {
        b.iter(|| black_box(op(&still, &detached).expect("shapes fit")));
    });
    let tracked: Vec<Tensor> = weights.iter().map(|var| var.as_tensor().clone()).collect();
    let xs = if asks { map.as_tensor() } else { &still };
    group.throughput(step);
    group.bench_function(format!("{name}/step"), |b| {
        let loss = |xs: &Tensor| {
            let ys = op(xs, &tracked)?;
            let mean = match ys.rank() {
                4 => ops::adaptive_avg_pool2d(&ys, (1, 1))?,
                _ => ops::mean_tokens(&ys, 0)?,
            };
            tape::foreign_op(&[&mean], |ys| ys[0].sum_all())
        };
        b.iter(|| black_box(tape::value_and_grad(xs, |xs| tape::recorded(xs, true, loss)).expect("shapes fit")));
    });
}

/// Images whose tokens are the rows of a linear layer.
const IMAGES: usize = 64;

fn flops(n: u64) -> Throughput {
    Throughput::Elements(n)
}

/// `passes` over maps of `n` bfloat16 numbers.
fn bytes(n: usize, passes: usize) -> Throughput {
    Throughput::Bytes((2 * n * passes) as u64)
}

fn convolutions(c: &mut Criterion<Machine>) {
    let mut group = c.benchmark_group("bf16 conv2d");
    for layer in LAYERS {
        let Layer { b, c_in, c_out, side, kernel, groups, .. } = *layer;
        let asks = c_in != 3;
        let xs = map(&[b, c_in, side, side]);
        let weight = [random(&[c_out, c_in / groups, kernel, kernel])];
        let work = [flops(layer.flops()), flops(layer.flops() * if asks { 3 } else { 2 })];
        let params = layer.params();
        measure(&mut group, &layer.name(), (&xs, asks), &weight, work, |xs, w| ops::conv2d(xs, &w[0], None, params));
    }
    group.finish();
}

/// Six layers of DenseNet-121's, as its four blocks begin: each is a norm on maps that stand apart, a convolution of single
/// taps and one of 3x3. The products are those of the convolutions.
fn dense_blocks(c: &mut Criterion<Machine>) {
    const GROWTH: usize = 32;
    const LAYERS: usize = 6;
    let mut group = c.benchmark_group("bf16 dense block");
    for (channels, side) in [(64, 32), (128, 16), (256, 8), (512, 4)] {
        let (b, wide) = (32, 4 * GROWTH);
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        let unit = |name: String, c_in: usize, c_out: usize| -> Result<Sequential> {
            let vb = store.root().pp(name);
            let conv = |from, to, config: Conv2dConfig, at: &str| Conv2d::new(from, to, config.no_bias(), vb.pp(at));
            let norms = (BatchNorm::new(c_in, vb.pp("norm1"))?, BatchNorm::new(wide, vb.pp("norm2"))?);
            let narrow = conv(c_in, wide, Conv2dConfig::new(1), "conv1")?;
            let spread = conv(wide, c_out, Conv2dConfig::new(3).padding(1), "conv2")?;
            Ok(seq![norms.0, Pointwise::Relu, narrow, norms.1, Pointwise::Relu, spread])
        };
        let layers = (0..LAYERS).map(|i| unit(format!("layer{i}"), channels + i * GROWTH, GROWTH));
        let layers = layers.collect::<Result<Vec<_>>>().expect("a block");
        let all = channels + LAYERS * GROWTH;
        let reader = unit("reader".into(), all, GROWTH).expect("a reader");
        let block = DenseBlock::new(layers, reader, "block");
        let widths = (0..=LAYERS).map(|i| channels + i * GROWTH);
        let macs: usize = widths.map(|width| width * wide + 9 * wide * GROWTH).sum();
        let work = (2 * macs * b * side * side) as u64;
        let weights: Vec<Var> = store.parameters().into_iter().map(|(_, var)| var).collect();
        let xs = map(&[b, channels, side, side]);
        let name = format!("b{b} {channels}x{side}x{side}, {LAYERS} layers");
        // On the tape it trains, off it it evaluates.
        measure(&mut group, &name, (&xs, true), &weights, [flops(work), flops(3 * work)], |xs, w| {
            block.forward_t(xs, w.first().is_some_and(Tensor::is_variable))
        });
    }
    group.finish();
}

fn depthwise(c: &mut Criterion<Machine>) {
    let mut group = c.benchmark_group("bf16 depthwise");
    for (channels, side, stride) in [(64, 32, 1), (128, 16, 1), (144, 32, 2), (512, 4, 1), (960, 2, 1)] {
        let (b, params) = (64, Conv2dParams { stride: (stride, stride), padding: (1, 1), ..Default::default() });
        let params = Conv2dParams { groups: channels, ..params };
        let out = (side - 1) / stride + 1;
        let (inputs, outputs) = (b * channels * side * side, b * channels * out * out);
        let (xs, weight) = (map(&[b, channels, side, side]), [random(&[channels, 1, 3, 3])]);
        let products = [flops((18 * outputs) as u64), flops((54 * outputs) as u64)];
        let moved = [bytes(inputs + outputs, 1), bytes(3 * inputs + 4 * outputs, 1)];
        for (unit, work) in [("flops", products), ("bytes", moved)] {
            let name = format!("b{b} {channels}x{side}x{side} s{stride}, {unit}");
            measure(&mut group, &name, (&xs, true), &weight, work, |xs, w| ops::conv2d(xs, &w[0], None, params));
        }
    }
    group.finish();
}

fn products(c: &mut Criterion<Machine>) {
    let mut group = c.benchmark_group("bf16 linear");
    for (name, rows, c_in, c_out) in LINEAR {
        let work = (2 * rows * c_in * c_out) as u64;
        // The rows are tokens of as many images.
        let xs = map(&[IMAGES, rows / IMAGES, c_in]);
        let weights = [random(&[c_out, c_in]), random(&[c_out])];
        let name = format!("{name} {rows} {c_in}-{c_out}");
        measure(&mut group, &name, (&xs, true), &weights, [flops(work), flops(3 * work)], |xs, w| {
            ops::linear(xs, &w[0], Some(&w[1]))
        });
    }
    group.finish();
    let mut group = c.benchmark_group("bf16 attention");
    // What the backward pass computes once more is not counted.
    for (name, [b, n, c], heads) in [("vit_tiny", [64, 65, 192], 3), ("vit_base", [4, 197, 768], 12)] {
        let work = (4 * b * n * n * c) as u64;
        let name = format!("{name} b{b} {n}x{c}, {heads} heads");
        measure(&mut group, &name, (&map(&[b, n, 3 * c]), true), &[], [flops(work), flops(3 * work)], |xs, _| {
            Ok(ops::self_attention(xs, heads)?.expect("a bfloat16 map on the CPU"))
        });
    }
    group.finish();
}

fn memory_bound(c: &mut Criterion<Machine>) {
    let mut group = c.benchmark_group("bf16 maps");
    // Passes over the map, forwards and in the step.
    type Line = (&'static str, [usize; 2], fn(&Tensor, &[Tensor]) -> Result<Tensor>);
    let lines: &[Line] = &[
        ("batch_norm", [3, 10], |xs, t| {
            let stats = ops::batch_stats(xs)?;
            ops::batch_norm(xs, &t[0], &t[1], (&stats.mean, &stats.var), 1e-5, true)
        }),
        ("relu", [2, 7], |xs, _| ops::pointwise(xs, Pointwise::Relu)),
        ("silu", [2, 7], |xs, _| ops::pointwise(xs, Pointwise::Silu)),
        ("concat", [4, 9], |xs, _| ops::concat(&[xs, xs], 1)),
        ("shuffle", [2, 6], |xs, _| ops::channel_shuffle(xs, 4)),
        ("max 3x3 s1 p1", [2, 7], |xs, _| ops::max_pool2d(xs, (3, 3), (1, 1), (1, 1), false)),
        ("average 2x2", [2, 5], |xs, _| ops::avg_pool2d(xs, (2, 2), (2, 2), (0, 0), false, true)),
    ];
    for dims in [[128, 16, 32, 32], [64, 64, 32, 32], [32, 24, 32, 32], [64, 512, 4, 4]] {
        let n: usize = dims.iter().product();
        let (xs, affine) = (map(&dims), [random(&dims[1..2]), random(&dims[1..2])]);
        for &(name, [forward, step], op) in lines {
            let work = [bytes(n, forward), bytes(n, step)];
            measure(&mut group, &format!("{name} {dims:?}"), (&xs, true), &affine, work, op);
        }
    }
    group.finish();
    let mut group = c.benchmark_group("bf16 tokens");
    for dims in [[64, 65, 192], [128, 64, 128]] {
        let n: usize = dims.iter().product();
        let (xs, affine) = (map(&dims), [random(&dims[2..]), random(&dims[2..])]);
        measure(
            &mut group,
            &format!("layer_norm {dims:?}"),
            (&xs, true),
            &affine,
            [bytes(n, 2), bytes(n, 6)],
            |xs, t| ops::layer_norm(xs, &t[0], &t[1], 1e-5),
        );
        let work = [bytes(n, 2), bytes(n, 6)];
        measure(&mut group, &format!("gelu {dims:?}"), (&xs, true), &[], work, |xs, _| {
            ops::pointwise(xs, Pointwise::Gelu)
        });
    }
    let (dims, n) = ([64 * 3, 65, 65], 64 * 3 * 65 * 65);
    measure(&mut group, &format!("softmax {dims:?}"), (&map(&dims), true), &[], [bytes(n, 2), bytes(n, 6)], |xs, _| {
        ops::softmax(xs)
    });
    group.finish();
}

fn main() {
    let machine = Machine::measure();
    machine.counts().precision.set(Precision::Bf16);
    let mut c = Criterion::default()
        .with_measurement(machine)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .configure_from_args();
    convolutions(&mut c);
    dense_blocks(&mut c);
    depthwise(&mut c);
    products(&mut c);
    memory_bound(&mut c);
    c.final_summary();
}

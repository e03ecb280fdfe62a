//! Depthwise convolution of bfloat16 maps beside that of f32 maps: `cargo bench -p zoo-core --bench bf16_depthwise`.
//!
//! A step is a layer of stride 1 before the layer, both forward on a tape, a global average, and the gradients of both
//! weights and of the map between: three passes of the first layer's size and three of the second's, less one of the first.
//! Every line stands twice: as GFLOP/s, two for a multiply-add, and as GB/s of the maps that the passes read and write.

mod machine;

use candle_core::{DType, Device, Result, Tensor, Var};
use criterion::{BenchmarkGroup, Criterion, Throughput};
use machine::Machine;
use std::hint::black_box;
use std::time::Duration;
use zoo_core::ops::{Conv2dParams, adaptive_avg_pool2d, conv2d};
use zoo_core::rng::Rng;
use zoo_core::tape;

fn random(dims: &[usize]) -> Tensor {
    let mut rng = Rng::new(0, &format!("{dims:?}"));
    let values: Vec<f32> = (0..dims.iter().product()).map(|_| rng.normal() as f32).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).expect("values fit dims")
}

/// `run` once for each way to count its work.
fn lines(group: &mut BenchmarkGroup<Machine>, name: &str, work: [(&str, Throughput); 2], run: impl Fn() -> Result<()>) {
    for (unit, work) in work {
        group.throughput(work);
        group.bench_function(format!("{name}, {unit}"), |b| b.iter(|| run().expect("shapes fit")));
    }
}

fn main() {
    let mut c = Criterion::default()
        .with_measurement(Machine::measure())
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .configure_from_args();
    let mut group = c.benchmark_group("depthwise");
    for (channels, side, stride) in [(64, 32, 1), (128, 16, 1), (144, 32, 2), (512, 4, 1), (960, 2, 1)] {
        let (b, params) = (64, Conv2dParams { stride: (stride, stride), padding: (1, 1), ..Default::default() });
        let params = Conv2dParams { groups: channels, ..params };
        let out = (side - 1) / stride + 1;
        let (inputs, outputs) = (b * channels * side * side, b * channels * out * out);
        let weight = Var::from_tensor(&random(&[channels, 1, 3, 3])).expect("on the CPU");
        for (dtype, bytes) in [(DType::F32, 4), (DType::BF16, 2)] {
            let name = format!("{} b{b} {channels}x{side}x{side} s{stride}", dtype.as_str());
            // Channels innermost, where the type has them so.
            let map = tape::to_dtype(&random(&[b, channels, side, side]), dtype).expect("a map");
            let flops = ("flops", Throughput::Elements((2 * 9 * outputs) as u64));
            let moved = |numbers: usize| ("bytes", Throughput::Bytes((bytes * numbers) as u64));
            let detached = weight.as_detached_tensor();
            lines(&mut group, &format!("{name}/forward"), [flops, moved(inputs + outputs)], || {
                black_box(conv2d(&map, &detached, None, params)?);
                Ok(())
            });
            let first = Conv2dParams { stride: (1, 1), ..params };
            let work = [
                ("flops", Throughput::Elements((2 * 9 * (2 * inputs + 3 * outputs)) as u64)),
                moved(4 * inputs + 3 * (inputs + outputs)),
            ];
            lines(&mut group, &format!("{name}/step"), work, || {
                let loss = |xs: &Tensor| {
                    let ys = conv2d(&conv2d(xs, &weight, None, first)?, &weight, None, params)?;
                    tape::foreign_op(&[&adaptive_avg_pool2d(&ys, (1, 1))?], |ys| ys[0].sum_all())
                };
                black_box(tape::value_and_grad(&map, |xs| tape::recorded(xs, true, loss))?);
                Ok(())
            });
        }
    }
    group.finish();
    c.final_summary();
}

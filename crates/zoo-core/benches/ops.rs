//! Operations forward and backward, on the sizes where a CIFAR network spends its time: `cargo bench -p zoo-core`.
//!
//! Each line's throughput counts multiply-adds of forward and both gradients, so `elem/s` times two is FLOP/s.

use candle_core::{DType, Device, Tensor, Var};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use zoo_core::ops::{Conv2dParams, conv2d};
use zoo_core::rng::Rng;

fn random(dims: &[usize]) -> Var {
    let mut rng = Rng::new(0, &format!("{dims:?}"));
    let values: Vec<f32> = (0..dims.iter().product()).map(|_| rng.normal() as f32).collect();
    Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu).expect("values fit dims")).expect("on the CPU")
}

fn convolutions(c: &mut Criterion) {
    // c_in, c_out, side, kernel, groups
    let cases = [
        (3, 16, 32, 3, 1),
        (16, 16, 32, 3, 1),
        (64, 64, 32, 3, 1),
        (128, 128, 16, 3, 1),
        (256, 256, 8, 3, 1),
        (256, 64, 8, 1, 1),
        (192, 192, 16, 3, 192),
    ];
    let mut group = c.benchmark_group("conv2d, batch 32, forward and backward");
    group.sample_size(10);
    for (c_in, c_out, side, kernel, groups) in cases {
        let x = random(&[32, c_in, side, side]);
        let w = random(&[c_out, c_in / groups, kernel, kernel]);
        let params = Conv2dParams { padding: (kernel / 2, kernel / 2), groups, ..Default::default() };
        let upstream = Tensor::ones((32, c_out, side, side), DType::F32, &Device::Cpu).expect("on the CPU");
        group.throughput(Throughput::Elements((3 * 32 * c_out * side * side * c_in / groups * kernel * kernel) as u64));
        group.bench_function(format!("{c_in}->{c_out} {side}x{side} {kernel}x{kernel} groups {groups}"), |b| {
            b.iter(|| {
                let ys = conv2d(&x, &w, None, params).expect("shapes fit");
                black_box(
                    (ys * &upstream).and_then(|ys| ys.sum_all()).and_then(|loss| loss.backward()).expect("tracked"),
                );
            });
        });
    }
    group.finish();
}

criterion_group!(benches, convolutions);
criterion_main!(benches);

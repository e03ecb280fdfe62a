//! Softmax and the loss against plain loops.

use crate::compare::{Expected, compare, property};
use crate::input::{Input, Values, draw, setting};
use crate::num::{Num, ZERO, num};
use candle_core::{Device, Tensor};
use proptest::sample::select;
use zoo_core::ops;
use zoo_core::rng::Rng;

/// e^(x - max) of a row, and their sum. The difference of two inputs is rounded once.
fn exponentials(row: &[f64]) -> (Vec<Num>, Num) {
    // As PyTorch, a NaN among the inputs is the largest.
    let max = row.iter().copied().fold(f64::NEG_INFINITY, |a, b| if b > a || b.is_nan() { b } else { a });
    let exps: Vec<Num> = row.iter().map(|&x| num(x - max).exp()).collect();
    let total = exps.iter().copied().sum();
    (exps, total)
}

pub fn softmax_expected(input: &Input, upstream: Vec<f64>) -> Expected {
    let n = *input.dims.last().expect("a last dimension");
    let (mut output, mut dx) = (Vec::new(), Vec::new());
    for (row, dy) in input.values.chunks(n).zip(upstream.chunks(n)) {
        let (exps, total) = exponentials(row);
        let ys: Vec<Num> = exps.into_iter().map(|e| e / total).collect();
        let along: Num = ys.iter().zip(dy).map(|(&y, &dy)| y * num(dy)).sum();
        dx.extend(ys.iter().zip(dy).map(|(&y, &dy)| y * (num(dy) - along)));
        output.extend(ys);
    }
    Expected { dims: input.dims.clone(), upstream, output, grads: vec![dx] }
}

#[test]
fn softmax() {
    let lead = proptest::collection::vec(1..=9usize, 0..=3);
    property(200, (lead, 1..=200usize, select(vec![1.0, 10.0, 80.0]), setting()), |(lead, n, size, setting)| {
        let input =
            Input::new(&mut setting.rng(), &[lead, vec![n]].concat(), setting.values, size).lying(setting.lies[0]);
        let upstream = draw(&mut Rng::new(setting.seed, "upstream"), input.values.len(), Values::Uniform, 1.0);
        let expected = softmax_expected(&input, upstream);
        compare(&[input], &expected, setting.strided_upstream, |t| ops::softmax(&t[0]))
    });
}

pub fn cross_entropy_expected(logits: &Input, targets: &[u32], smoothing: f64, upstream: f64) -> Expected {
    let (b, classes) = (logits.dims[0], logits.dims[1]);
    let (mut loss, mut dx) = (ZERO, Vec::new());
    for (row, &target) in logits.values.chunks(classes).zip(targets) {
        let (exps, total) = exponentials(row);
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        for (k, &x) in row.iter().enumerate() {
            let q = smoothing / classes as f64 + if k == target as usize { 1.0 - smoothing } else { 0.0 };
            if q > 0.0 {
                loss += num(q) * (total.ln() - num(x - max)) / num(b as f64);
            }
            dx.push((exps[k] / total - num(q)) * num(upstream) / num(b as f64));
        }
    }
    Expected { dims: Vec::new(), upstream: vec![upstream], output: vec![loss], grads: vec![dx] }
}

#[test]
fn cross_entropy() {
    let smoothing = select(vec![0.0, 0.1, 1.0]);
    property(80, (1..=33usize, 1..=120usize, smoothing, setting()), |(b, classes, smoothing, setting)| {
        let rng = &mut setting.rng();
        let logits = Input::new(rng, &[b, classes], setting.values, 8.0).lying(setting.lies[0]);
        let targets: Vec<u32> = (0..b).map(|_| rng.below(classes) as u32).collect();
        let expected = cross_entropy_expected(&logits, &targets, smoothing, 0.75);
        let targets = Tensor::new(targets, &Device::Cpu).expect("on the CPU");
        compare(&[logits], &expected, false, |t| ops::cross_entropy(&t[0], &targets, smoothing))
    });
}

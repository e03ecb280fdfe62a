//! Batch and layer normalisation against plain loops.

use crate::compare::{Expected, compare, property, with_level};
use crate::input::{Input, Setting, Values, channels, draw, setting, side};
use crate::num::{Num, ZERO, num};
use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use zoo_core::ops::{self, Level};
use zoo_core::rng::Rng;

/// Mean and biased variance.
fn moments(xs: &[Num]) -> (Num, Num) {
    let n = num(xs.len() as f64);
    let mean = xs.iter().copied().sum::<Num>() / n;
    (mean, xs.iter().map(|&x| (x - mean) * (x - mean)).sum::<Num>() / n)
}

/// The gradient of x̂ = (x - μ) / std over one group, given that of x̂.
fn normalised_grad(normal: &[Num], dy: &[Num], inv_std: Num) -> Vec<Num> {
    let n = num(dy.len() as f64);
    let along_one = dy.iter().copied().sum::<Num>() / n;
    let along_x = dy.iter().zip(normal).map(|(&dy, &x)| dy * x).sum::<Num>() / n;
    dy.iter().zip(normal).map(|(&dy, &x)| (dy - along_one - x * along_x) * inv_std).collect()
}

/// The inputs x, weight, bias of a norm; weights near 1.
pub fn norm_inputs(setting: &Setting, dims: &[usize], affine: &[usize], size: f64) -> Vec<Input> {
    let rng = &mut setting.rng();
    let mut inputs = vec![
        Input::new(rng, dims, setting.values, size).lying(setting.lies[0]).tracked(setting.tracked[0]),
        Input::new(rng, affine, Values::Uniform, 0.5).lying(setting.lies[1]).tracked(setting.tracked[1]),
        Input::new(rng, affine, setting.values, 1.0).tracked(setting.tracked[1]),
    ];
    inputs[1].values.iter_mut().for_each(|w| *w = f64::from((*w + 1.0) as f32));
    inputs
}

pub const EPS: f64 = 1e-3;

/// Batch normalisation by the batch's statistics, or by the given (mean, variance).
pub fn batch_norm_expected(inputs: &[Input], given: Option<&[Input; 2]>, upstream: Vec<f64>) -> Expected {
    let dims = inputs[0].dims.clone();
    let (c, s) = (dims[1], dims[2..].iter().product::<usize>());
    let (xs, weight, bias) = (inputs[0].nums(), inputs[1].nums(), inputs[2].nums());
    let (mut output, mut dx) = (vec![ZERO; xs.len()], vec![ZERO; xs.len()]);
    let (mut dw, mut db) = (vec![ZERO; c], vec![ZERO; c]);
    for channel in 0..c {
        let places: Vec<usize> = (0..xs.len()).filter(|i| i / s % c == channel).collect();
        let x: Vec<Num> = places.iter().map(|&i| xs[i]).collect();
        let dy: Vec<Num> = places.iter().map(|&i| num(upstream[i])).collect();
        let (mean, var) = match given {
            Some([mean, var]) => (num(mean.values[channel]), num(var.values[channel])),
            None => moments(&x),
        };
        let inv_std = (var + num(EPS)).rsqrt();
        let normal: Vec<Num> = x.iter().map(|&x| (x - mean) * inv_std).collect();
        let scaled: Vec<Num> = dy.iter().map(|&dy| dy * weight[channel]).collect();
        let grad = match given {
            Some(_) => scaled.iter().map(|&dy| dy * inv_std).collect(),
            None => normalised_grad(&normal, &scaled, inv_std),
        };
        for (k, &i) in places.iter().enumerate() {
            output[i] = normal[k] * weight[channel] + bias[channel];
            dx[i] = grad[k];
            dw[channel] += dy[k] * normal[k];
            db[channel] += dy[k];
        }
    }
    Expected { dims, upstream, output, grads: vec![dx, dw, db] }
}

pub fn run_batch_norm(t: &[Tensor], given: Option<&[Input; 2]>) -> Result<Tensor> {
    match given {
        Some([mean, var]) => {
            let (mean, var) = (mean.tensor(t[0].dtype())?, var.tensor(t[0].dtype())?);
            ops::batch_norm(&t[0], &t[1], &t[2], (&mean, &var), EPS, false)
        }
        None => {
            let stats = ops::batch_stats(&t[0])?;
            ops::batch_norm(&t[0], &t[1], &t[2], (&stats.mean, &stats.var), EPS, true)
        }
    }
}

#[test]
fn batch_normalisation() {
    let rest = prop_oneof![Just(vec![]), (1..=33usize).prop_map(|n| vec![n]), side().prop_map(|(h, w)| vec![h, w])];
    // Small planes of eight images and more go another way than others.
    let images = prop_oneof![3 => 1..=9usize, 1 => 30..=70usize];
    property(200, (images, channels(), rest, any::<bool>(), setting()), |(b, c, rest, train, setting)| {
        let dims = [&[b, c], rest.as_slice()].concat();
        let inputs = norm_inputs(&setting, &dims, &[c], 3.0);
        let rng = &mut Rng::new(setting.seed, "statistics");
        let mut given = [Input::new(rng, &[c], Values::Uniform, 1.0), Input::new(rng, &[c], Values::Uniform, 1.0)];
        given[1].values.iter_mut().for_each(|v| *v = v.abs());
        let given = (!train).then_some(&given);
        let upstream = draw(rng, dims.iter().product(), Values::Uniform, 1.0);
        let expected = batch_norm_expected(&inputs, given, upstream);
        compare(&inputs, &expected, setting.strided_upstream, |t| run_batch_norm(t, given))
    });
}

#[test]
fn batch_statistics() {
    property(40, (1..=9usize, channels(), side(), setting()), |(b, c, (h, w), setting)| {
        let xs =
            Input::new(&mut setting.rng(), &[b, c, h, w], setting.values, 3.0).lying(setting.lies[0]).tracked(false);
        let of = |channel: usize| -> Vec<Num> {
            xs.nums().into_iter().enumerate().filter(|(i, _)| i / (h * w) % c == channel).map(|(_, x)| x).collect()
        };
        let all: Vec<(Num, Num)> = (0..c).map(|channel| moments(&of(channel))).collect();
        let output = all.iter().map(|m| m.0).chain(all.iter().map(|m| m.1)).collect();
        let expected = Expected { dims: vec![2, c], upstream: vec![0.0; 2 * c], output, grads: Vec::new() };
        compare(&[xs], &expected, false, |t| {
            let stats = ops::batch_stats(&t[0])?;
            assert_eq!(stats.count, b * h * w);
            Tensor::stack(&[stats.mean, stats.var], 0)
        })
    });
}

/// The rule forgives what a large mean makes of a variance in one pass, PyTorch does not: E\[x²\] - μ² would lose every
/// digit here.
#[test]
fn a_large_mean_costs_the_variance_no_digits() {
    for level in Level::vectors() {
        for dims in [[4, 3, 9, 11], [2, 5, 33, 33]] {
            let mut xs = Input::new(&mut Rng::new(1, "mean"), &dims, Values::Uniform, 1.0);
            xs.values.iter_mut().for_each(|x| *x = f64::from((*x + 3000.0) as f32));
            let (c, s) = (dims[1], dims[2] * dims[3]);
            let (var, normal) = with_level(level, || {
                let xs = xs.tensor(DType::F32).unwrap();
                let (ones, zeros) =
                    (Tensor::ones(s, DType::F32, &Device::Cpu), Tensor::zeros(s, DType::F32, &Device::Cpu));
                let rows = xs.reshape(((), s)).unwrap();
                let normal = ops::layer_norm(&rows, &ones.unwrap(), &zeros.unwrap(), 0.0).unwrap();
                let var = ops::batch_stats(&xs).unwrap().var.to_vec1::<f32>().unwrap();
                (var, normal.flatten_all().unwrap().to_vec1::<f32>().unwrap())
            });
            for (channel, &got) in var.iter().enumerate() {
                let x: Vec<Num> = (xs.nums().into_iter().enumerate())
                    .filter_map(|(i, x)| (i / s % c == channel).then_some(x))
                    .collect();
                let want = moments(&x).1.value;
                assert!((f64::from(got) / want - 1.0).abs() < 1e-4, "{level:?}: {got} for {want}");
            }
            for (got, xs) in normal.chunks(s).zip(xs.nums().chunks(s)) {
                let (mean, var) = moments(xs);
                for (&got, x) in got.iter().zip(xs) {
                    // The sums of f32 numbers of this size leave some 1e-3 in the mean.
                    let want = (x.value - mean.value) / var.value.sqrt();
                    assert!((f64::from(got) - want).abs() < 5e-3, "{level:?}: {got} for {want}");
                }
            }
        }
    }
}

pub fn layer_norm_expected(inputs: &[Input], upstream: Vec<f64>) -> Expected {
    let (xs, weight, bias) = (inputs[0].nums(), inputs[1].nums(), inputs[2].nums());
    let n = weight.len();
    let (mut output, mut dx) = (Vec::new(), Vec::new());
    let (mut dw, mut db) = (vec![ZERO; n], vec![ZERO; n]);
    for (x, dy) in xs.chunks(n).zip(upstream.chunks(n)) {
        let (mean, var) = moments(x);
        let inv_std = (var + num(EPS)).rsqrt();
        let normal: Vec<Num> = x.iter().map(|&x| (x - mean) * inv_std).collect();
        let scaled: Vec<Num> = dy.iter().zip(&weight).map(|(&dy, &w)| num(dy) * w).collect();
        dx.extend(normalised_grad(&normal, &scaled, inv_std));
        for i in 0..n {
            output.push(normal[i] * weight[i] + bias[i]);
            dw[i] += num(dy[i]) * normal[i];
            db[i] += num(dy[i]);
        }
    }
    Expected { dims: inputs[0].dims.clone(), upstream, output, grads: vec![dx, dw, db] }
}

#[test]
fn layer_normalisation() {
    let lead = proptest::collection::vec(1..=9usize, 0..=2);
    let tail =
        prop_oneof![(1..=300usize).prop_map(|n| vec![n]), (1..=9usize, 1..=33usize).prop_map(|(m, n)| vec![m, n])];
    property(200, (lead, tail, setting()), |(lead, tail, setting)| {
        let dims = [lead, tail.clone()].concat();
        let inputs = norm_inputs(&setting, &dims, &tail, 3.0);
        let upstream = draw(&mut Rng::new(setting.seed, "upstream"), dims.iter().product(), Values::Uniform, 1.0);
        let expected = layer_norm_expected(&inputs, upstream);
        compare(&inputs, &expected, setting.strided_upstream, |t| ops::layer_norm(&t[0], &t[1], &t[2], EPS))
    });
}

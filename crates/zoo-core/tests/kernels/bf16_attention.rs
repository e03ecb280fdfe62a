//! Attention of bfloat16 maps against loops in f64.
//!
//! With u = 2⁻⁸: probabilities are rounded to bfloat16 as operands, each by u of itself, and so is the gradient of the
//! scores; both roundings pass through sums that the loops take of absolute values. The result is rounded once more.

use crate::compare::with_level;
use crate::input::Values;
use candle_core::{DType, Device, Tensor, Var};
use zoo_core::ops::{self, Level};
use zoo_core::rng::Rng;
use zoo_core::tape;

const U: f64 = 1.0 / 256.0;
/// f32 arithmetic, for each term of a sum.
const E: f64 = 1.0 / 8_388_608.0;

/// Numbers and how far from each we may be.
struct Bounded {
    values: Vec<f64>,
    bounds: Vec<f64>,
}

impl Bounded {
    fn zeros(n: usize) -> Self {
        Self { values: vec![0.0; n], bounds: vec![0.0; n] }
    }

    fn add(&mut self, i: usize, value: f64, bound: f64) {
        self.values[i] += value;
        self.bounds[i] += bound;
    }

    /// Rounded once more.
    fn check(&self, what: &str, got: &Tensor) {
        let got: Vec<f64> = got.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(got.len(), self.values.len(), "{what}");
        for (i, (got, (want, bound))) in got.iter().zip(self.values.iter().zip(&self.bounds)).enumerate() {
            let bound = 1.02 * (bound + U * (want.abs() + bound)) + 1e-30;
            assert!((got - want).abs() <= bound, "{what}, element {i}: {got:e} for {want:e}, bound {bound:e}");
        }
    }
}

/// The output and the gradient of qkv.
fn expected((b, n, heads, d): (usize, usize, usize, usize), qkv: &[f64], dy: &[f64]) -> [Bounded; 2] {
    let (c, row) = (heads * d, 3 * heads * d);
    let (mut out, mut dqkv) = (Bounded::zeros(b * n * c), Bounded::zeros(b * n * row));
    let scale = 1.0 / (d as f64).sqrt();
    for (image, head) in (0..b).flat_map(|image| (0..heads).map(move |head| (image, head))) {
        let at = |part: usize, i: usize, x: usize| (image * n + i) * row + part * c + head * d + x;
        let of_out = |i: usize, x: usize| (image * n + i) * c + head * d + x;
        let dot = |a: &dyn Fn(usize) -> f64, b: &dyn Fn(usize) -> f64| -> (f64, f64) {
            (0..d).map(|x| a(x) * b(x)).fold((0.0, 0.0), |(s, m), t| (s + t, m + t.abs()))
        };
        for i in 0..n {
            let scores: Vec<(f64, f64)> = (0..n).map(|j| dot(&|x| qkv[at(0, i, x)], &|x| qkv[at(1, j, x)])).collect();
            let max = scores.iter().map(|s| s.0).fold(f64::NEG_INFINITY, f64::max);
            let size = scores.iter().map(|s| s.1).fold(0.0, f64::max) * scale;
            let exps: Vec<f64> = scores.iter().map(|s| ((s.0 - max) * scale).exp()).collect();
            let total: f64 = exps.iter().sum();
            let p: Vec<f64> = exps.iter().map(|e| e / total).collect();
            // A probability's own rounding, and what the scores' sums are off by.
            let dp_rel = U + (n as f64 + 12.0 + 4.0 * size * (d as f64 + 2.0)) * E;
            let dps: Vec<(f64, f64)> = (0..n).map(|j| dot(&|x| dy[of_out(i, x)], &|x| qkv[at(2, j, x)])).collect();
            let along: f64 = p.iter().zip(&dps).map(|(p, dp)| p * dp.0).sum();
            let dp_error = |dp: (f64, f64)| (d as f64 + 2.0) * E * dp.1;
            let along_error: f64 =
                p.iter().zip(&dps).map(|(p, &dp)| p * (dp_rel + n as f64 * E) * dp.0.abs() + p * dp_error(dp)).sum();
            for j in 0..n {
                let ds = scale * p[j] * (dps[j].0 - along);
                let ds_error = scale
                    * p[j]
                    * (dp_rel * (dps[j].0 - along).abs() + (1.0 + dp_rel) * (dp_error(dps[j]) + along_error));
                let ds_error = ds_error + U * (ds.abs() + ds_error);
                let sums = (n as f64 + 2.0) * E;
                for x in 0..d {
                    let (q, k, v) = (qkv[at(0, i, x)], qkv[at(1, j, x)], qkv[at(2, j, x)]);
                    let dy = dy[of_out(i, x)];
                    out.add(of_out(i, x), p[j] * v, p[j] * v.abs() * (dp_rel + sums));
                    dqkv.add(at(2, j, x), p[j] * dy, p[j] * dy.abs() * (dp_rel + sums));
                    dqkv.add(at(0, i, x), ds * k, (ds_error + ds.abs() * sums) * k.abs());
                    dqkv.add(at(1, j, x), ds * q, (ds_error + ds.abs() * sums) * q.abs());
                }
            }
        }
    }
    [out, dqkv]
}

#[test]
fn heads_of_all_sizes() {
    for (b, n, heads, d) in
        [(1, 1, 1, 1), (2, 3, 2, 5), (1, 33, 3, 16), (2, 65, 3, 64), (1, 17, 1, 33), (1, 100, 2, 24)]
    {
        let (c, row) = (heads * d, 3 * heads * d);
        let rng = &mut Rng::new(5, "attention");
        let qkv = crate::bf16::map(rng, &[b, n, row], Values::Uniform, 2.0).values;
        let dy = crate::bf16::upstream(rng, &[b, n, c]);
        let [out, dqkv] = expected((b, n, heads, d), &qkv, &dy);
        for level in Level::supported() {
            let (ys, grad) = with_level(level, || {
                let xs = Tensor::from_slice(&qkv, (b, n, row), &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
                let xs = Var::from_tensor(&xs).unwrap();
                let run = |xs: &Tensor| tape::to_dtype(&ops::self_attention(xs, heads)?.unwrap(), DType::F32);
                let ys = tape::recorded(&xs, true, run).unwrap();
                let up = Tensor::from_slice(&dy, (b, n, c), &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
                let grads = (&ys * up).unwrap().sum_all().unwrap().backward().unwrap();
                (ys, grads.get(&xs).unwrap().clone())
            });
            out.check(&format!("output of {n} tokens, {heads} heads of {d}, {level:?}"), &ys);
            dqkv.check(&format!("gradient of {n} tokens, {heads} heads of {d}, {level:?}"), &grad);
        }
    }
}

/// What is no number stays in its image, and in its head.
#[test]
fn special_values_stay_in_their_heads() {
    let (n, heads, d) = (35, 2, 8);
    let mut qkv = crate::bf16::map(&mut Rng::new(6, "attention"), &[2, n, 3 * heads * d], Values::Uniform, 1.0).values;
    // A key of the second image's first head.
    qkv[n * 48 + 4 * 48 + 16] = f64::NAN;
    for level in Level::supported() {
        let ys = with_level(level, || {
            let xs = Tensor::from_slice(&qkv, (2, n, 48), &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
            ops::self_attention(&xs, heads).unwrap().unwrap().to_dtype(DType::F32).unwrap()
        });
        let ys: Vec<f32> = ys.flatten_all().unwrap().to_vec1().unwrap();
        for (i, y) in ys.iter().enumerate() {
            assert_eq!(y.is_nan(), i >= n * 16 && i % 16 < 8, "{level:?}: {i} {y}");
        }
    }
}

#[test]
fn heads_must_fit() {
    let xs = Tensor::zeros((1, 2, 12), DType::BF16, &Device::Cpu).unwrap();
    assert!(ops::self_attention(&xs, 3).is_err() && ops::self_attention(&xs, 0).is_err());
}

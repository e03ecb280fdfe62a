//! Depthwise convolution against plain loops, on every width that a vector may meet.

use crate::compare::with_level;
use crate::input::{Values, draw};
use candle_core::{DType, Device, Tensor, Var};
use zoo_core::ops::{self, Conv2dParams, Level};
use zoo_core::rng::Rng;

#[derive(Debug, Clone, Copy)]
struct Case {
    b: usize,
    c: usize,
    multiplier: usize,
    size: (usize, usize),
    kernel: (usize, usize),
    stride: (usize, usize),
    padding: (usize, usize),
    dilation: (usize, usize),
}

impl Case {
    /// None where no window fits.
    fn output(&self) -> Option<(usize, usize)> {
        let out =
            |n: usize, k: usize, s: usize, p: usize, d: usize| Some((n + 2 * p).checked_sub(d * (k - 1) + 1)? / s + 1);
        let (h, w) = self.size;
        Some((
            out(h, self.kernel.0, self.stride.0, self.padding.0, self.dilation.0)?,
            out(w, self.kernel.1, self.stride.1, self.padding.1, self.dilation.1)?,
        ))
    }
}

/// Output, and the gradients of input, weight and bias for the upstream gradient `dy`.
fn by_loops(case: &Case, (oh, ow): (usize, usize), x: &[f64], k: &[f64], bias: &[f64], dy: &[f64]) -> [Vec<f64>; 4] {
    let Case { b, c, multiplier, size: (h, w), kernel: (kh, kw), stride, padding, dilation } = *case;
    let c_out = c * multiplier;
    let (mut y, mut dx, mut dk) = (vec![0.0; b * c_out * oh * ow], vec![0.0; x.len()], vec![0.0; k.len()]);
    let mut db = vec![0.0; c_out];
    for plane in 0..b * c_out {
        let (image, channel) = (plane / c_out, plane % c_out);
        for (oy, ox) in (0..oh).flat_map(|oy| (0..ow).map(move |ox| (oy, ox))) {
            let o = (plane * oh + oy) * ow + ox;
            y[o] = bias[channel];
            db[channel] += dy[o];
            for (ky, kx) in (0..kh).flat_map(|ky| (0..kw).map(move |kx| (ky, kx))) {
                let (row, column) = (oy * stride.0 + ky * dilation.0, ox * stride.1 + kx * dilation.1);
                let (Some(row), Some(column)) = (row.checked_sub(padding.0), column.checked_sub(padding.1)) else {
                    continue;
                };
                if row < h && column < w {
                    let i = ((image * c + channel / multiplier) * h + row) * w + column;
                    let tap = (channel * kh + ky) * kw + kx;
                    y[o] += k[tap] * x[i];
                    dx[i] += k[tap] * dy[o];
                    dk[tap] += x[i] * dy[o];
                }
            }
        }
    }
    [y, dx, dk, db]
}

fn check(case: &Case, dtype: DType, rng: &mut Rng) {
    let Some((oh, ow)) = case.output() else { return };
    let Case { b, c, multiplier, size: (h, w), kernel: (kh, kw), .. } = *case;
    let c_out = c * multiplier;
    let mut uniform = |n| draw(rng, n, Values::Uniform, 1.0);
    let (x, k) = (uniform(b * c * h * w), uniform(c_out * kh * kw));
    let (bias, dy) = (uniform(c_out), uniform(b * c_out * oh * ow));
    let expected = by_loops(case, (oh, ow), &x, &k, &bias, &dy);
    let tensor = |values: &[f64], dims: &[usize]| {
        Tensor::from_vec(values.to_vec(), dims, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    };
    let var = |values: &[f64], dims: &[usize]| Var::from_tensor(&tensor(values, dims)).unwrap();
    let (x, k, bias) = (var(&x, &[b, c, h, w]), var(&k, &[c_out, 1, kh, kw]), var(&bias, &[c_out]));
    let params = Conv2dParams { stride: case.stride, padding: case.padding, dilation: case.dilation, groups: case.c };
    let y = ops::conv2d(&x, &k, Some(&bias), params).unwrap();
    let grads = (&y * tensor(&dy, &[b, c_out, oh, ow])).unwrap().sum_all().unwrap().backward().unwrap();
    let got = [y, grads.get(&x).unwrap().clone(), grads.get(&k).unwrap().clone(), grads.get(&bias).unwrap().clone()];
    // Roundings, of sums of at most b·oh·ow products below 1.
    let tolerance = if dtype == DType::F64 { 1e-11 } else { 3e-4 };
    for (what, (got, expected)) in ["output", "input", "weight", "bias"].iter().zip(got.iter().zip(&expected)) {
        let got = got.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(got.len(), expected.len());
        for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
            let close = (got - expected).abs() <= tolerance * expected.abs().max(1.0);
            assert!(close, "{:?} {dtype:?} {case:?}: {what} {i} is {got}, not {expected}", Level::current());
        }
    }
}

#[test]
fn depthwise_convolution() {
    for level in Level::vectors() {
        with_level(level, check_all);
    }
}

fn check_all() {
    let mut rng = Rng::new(3, "depthwise");
    let three = |b, c, size, stride| Case {
        b,
        c,
        multiplier: 1,
        size,
        kernel: (3, 3),
        stride: (stride, stride),
        padding: (1, 1),
        dilation: (1, 1),
    };
    // The layers of the mobile networks, on every width from one column to more than two vectors.
    for w in 1..=34 {
        for (h, stride) in [(w, 1), (w, 2), (3, 1), (4, 2), (1, 1), (1, 2), (2, 1), (2, 2)] {
            for dtype in [DType::F32, DType::F64] {
                check(&three(2, 3, (h, w), stride), dtype, &mut rng);
                check(&Case { multiplier: 2, ..three(1, 2, (h, w), stride) }, dtype, &mut rng);
            }
        }
    }
    // Channels and images that fill no whole vector and no whole task.
    for size in [(1, 1), (2, 2), (1, 3), (3, 2), (4, 4)] {
        for (b, c) in [(1, 2), (9, 5), (17, 37), (3, 300)] {
            check(&three(b, c, size, 1), DType::F32, &mut rng);
            check(&three(b, c, size, 1), DType::F64, &mut rng);
        }
    }
    for _ in 0..1500 {
        let mut pick = |from: usize, to: usize| from + rng.below(to - from + 1);
        let case = Case {
            b: pick(1, 2),
            c: pick(2, 3),
            multiplier: pick(1, 2),
            size: (pick(1, 33), pick(1, 33)),
            kernel: (pick(1, 5), pick(1, 5)),
            stride: (pick(1, 4), pick(1, 4)),
            padding: (pick(0, 3), pick(0, 3)),
            dilation: (pick(1, 2), pick(1, 2)),
        };
        check(&case, DType::F32, &mut rng);
        check(&case, DType::F64, &mut rng);
    }
}

/// A NaN reaches the outputs whose windows hold it, and no others: the next channel, the next row and the lanes behind
/// the image stay clean.
#[test]
fn nan_stays_in_its_windows() {
    for (h, w) in [(2, 2), (4, 4), (5, 7), (3, 16), (2, 33)] {
        for stride in [1, 2] {
            for at in 0..h * w {
                let mut x = vec![1f32; 3 * h * w];
                x[h * w + at] = f32::NAN;
                let x = Tensor::from_vec(x, (1, 3, h, w), &Device::Cpu).unwrap();
                let k = Tensor::ones((3, 1, 3, 3), DType::F32, &Device::Cpu).unwrap();
                let params = Conv2dParams { stride: (stride, stride), padding: (1, 1), dilation: (1, 1), groups: 3 };
                let y = ops::conv2d(&x, &k, None, params).unwrap();
                let (_, _, oh, ow) = y.dims4().unwrap();
                let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                for (i, y) in y.into_iter().enumerate() {
                    let (oy, ox) = (i / ow % oh * stride, i % ow * stride);
                    let seen = i / (oh * ow) == 1 && oy.abs_diff(at / w) <= 1 && ox.abs_diff(at % w) <= 1;
                    assert_eq!(y.is_nan(), seen, "{h}x{w} stride {stride}, NaN at {at}, output {i}");
                }
            }
        }
    }
}

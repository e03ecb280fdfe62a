//! Depthwise convolution of bfloat16 maps against f64, at every level.
//!
//! Output and the gradient of the input are rounded once to eight bits: half a unit in the last place is at most 2⁻⁸ of the
//! number. Before that a sum of k products in f32 is off by at most k · 2⁻²³ of the sum of their absolute values. The
//! gradients of weight and bias are sums in f32 alone.

use crate::compare::with_level;
use candle_core::{DType, Device, Result, Tensor, Var};
use zoo_core::ops::{self, Conv2dParams, Level};
use zoo_core::rng::Rng;
use zoo_core::tape;

#[derive(Debug, Clone, Copy)]
struct Case {
    b: usize,
    c: usize,
    size: (usize, usize),
    kernel: (usize, usize),
    params: Conv2dParams,
}

/// A 3x3 layer of the mobile networks.
fn three(b: usize, c: usize, size: (usize, usize), stride: usize) -> Case {
    let params = Conv2dParams { stride: (stride, stride), padding: (1, 1), dilation: (1, 1), groups: c };
    Case { b, c, size, kernel: (3, 3), params }
}

/// A sum in f64.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    value: f64,
    /// Σ |terms|
    scale: f64,
    terms: usize,
}

impl Sum {
    fn add(&mut self, term: f64) {
        self.value += term;
        self.scale += term.abs();
        self.terms += 1;
    }

    fn holds(&self, got: f64, rounded: bool) -> bool {
        if !self.value.is_finite() {
            return got == self.value || got.is_nan() && self.value.is_nan();
        }
        let sums = self.scale * self.terms as f64 * 2f64.powi(-23);
        (got - self.value).abs() <= sums + if rounded { self.value.abs() * 2f64.powi(-8) } else { 0.0 }
    }
}

/// Elements of tensors in row-major order: input, weight, bias, gradient of the output.
struct Numbers {
    x: Vec<f64>,
    k: Vec<f64>,
    bias: Vec<f64>,
    dy: Vec<f64>,
}

impl Case {
    /// None where no window fits.
    fn output(&self) -> Option<(usize, usize)> {
        let out =
            |n: usize, k: usize, s: usize, p: usize, d: usize| Some((n + 2 * p).checked_sub(d * (k - 1) + 1)? / s + 1);
        let Conv2dParams { stride, padding, dilation, .. } = self.params;
        Some((
            out(self.size.0, self.kernel.0, stride.0, padding.0, dilation.0)?,
            out(self.size.1, self.kernel.1, stride.1, padding.1, dilation.1)?,
        ))
    }

    /// bfloat16 maps; weights of f32 numbers.
    fn draw(&self, rng: &mut Rng, (oh, ow): (usize, usize)) -> Numbers {
        let (inputs, outputs) = (self.b * self.c * self.size.0 * self.size.1, self.b * self.c * oh * ow);
        let mut map = |n: usize| -> Vec<f64> {
            (0..n).map(|_| half::bf16::from_f64(2.0 * rng.uniform() - 1.0).to_f64()).collect()
        };
        let (x, dy) = (map(inputs), map(outputs));
        let mut weight =
            |n: usize| -> Vec<f64> { (0..n).map(|_| f64::from((2.0 * rng.uniform() - 1.0) as f32)).collect() };
        Numbers { x, dy, k: weight(self.c * self.kernel.0 * self.kernel.1), bias: weight(self.c) }
    }

    /// Output, and the gradients of input, weight and bias.
    fn by_loops(&self, (oh, ow): (usize, usize), of: &Numbers) -> [Vec<Sum>; 4] {
        let Case { b, c, size: (h, w), kernel: (kh, kw), params: Conv2dParams { stride, padding, dilation, .. } } =
            *self;
        let sums = |n: usize| vec![Sum::default(); n];
        let (mut y, mut dx, mut dk, mut db) = (sums(b * c * oh * ow), sums(of.x.len()), sums(of.k.len()), sums(c));
        for plane in 0..b * c {
            let channel = plane % c;
            for (oy, ox) in (0..oh).flat_map(|oy| (0..ow).map(move |ox| (oy, ox))) {
                let o = (plane * oh + oy) * ow + ox;
                y[o].add(of.bias[channel]);
                db[channel].add(of.dy[o]);
                for (ky, kx) in (0..kh).flat_map(|ky| (0..kw).map(move |kx| (ky, kx))) {
                    let row = (oy * stride.0 + ky * dilation.0).checked_sub(padding.0).filter(|row| *row < h);
                    let column = (ox * stride.1 + kx * dilation.1).checked_sub(padding.1).filter(|column| *column < w);
                    let (Some(row), Some(column)) = (row, column) else { continue };
                    let (i, tap) = ((plane * h + row) * w + column, (channel * kh + ky) * kw + kx);
                    y[o].add(of.k[tap] * of.x[i]);
                    dx[i].add(of.k[tap] * of.dy[o]);
                    dk[tap].add(of.x[i] * of.dy[o]);
                }
            }
        }
        [y, dx, dk, db]
    }

    /// The same by the kernels. The map arrives with its pixels innermost, or as its kernels like it.
    fn by_kernels(&self, (oh, ow): (usize, usize), of: &Numbers, pixels_innermost: bool) -> Result<[Vec<f64>; 4]> {
        let Case { b, c, size: (h, w), kernel: (kh, kw), params } = *self;
        let tensor = |values: &[f64], dims: &[usize], dtype| {
            Tensor::from_vec(values.to_vec(), dims, &Device::Cpu)?.to_dtype(dtype)
        };
        let var = |values: &[f64], dims: &[usize], dtype| Var::from_tensor(&tensor(values, dims, dtype)?);
        let x = var(&of.x, &[b, c, h, w], if pixels_innermost { DType::BF16 } else { DType::F32 })?;
        let (k, bias) = (var(&of.k, &[c, 1, kh, kw], DType::F32)?, var(&of.bias, &[c], DType::F32)?);
        let dy = tensor(&of.dy, &[b, c, oh, ow], DType::F32)?;
        let mut y = None;
        let network = |xs: &Tensor| {
            let ys = ops::conv2d(&tape::to_dtype(xs, DType::BF16)?, &k, Some(&bias), params)?;
            assert!(ys.dtype() == DType::BF16 && ys.permute((0, 2, 3, 1))?.is_contiguous());
            y = Some(ys.detach());
            tape::to_dtype(&tape::foreign_op(&[&ys], |ys| (&ys[0] * &dy)?.sum_all())?, DType::F32)
        };
        let (_, grads) = tape::value_and_grad(&x, |xs| tape::recorded(xs, true, network))?;
        let of = |t: &Tensor| t.contiguous()?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
        let grad = |var: &Var| of(grads.get(var).expect("a gradient"));
        assert_eq!(grads.get(&k).map(Tensor::dtype), Some(DType::F32));
        Ok([of(&y.expect("an output"))?, grad(&x)?, grad(&k)?, grad(&bias)?])
    }

    fn check_numbers(&self, out: (usize, usize), numbers: &Numbers) {
        let want = self.by_loops(out, numbers);
        for level in Level::supported() {
            let results = [false, true]
                .map(|pixels_innermost| with_level(level, || self.by_kernels(out, numbers, pixels_innermost).unwrap()));
            for (name, (i, want)) in ["output", "input", "weight", "bias"].iter().zip(want.iter().enumerate()) {
                for got in &results {
                    assert_eq!(got[i].len(), want.len());
                    for (at, (&got, want)) in got[i].iter().zip(want).enumerate() {
                        assert!(want.holds(got, i < 2), "{level:?} {self:?}: {name} {at} is {got}, not {want:?}");
                    }
                }
            }
        }
    }

    fn check(&self, rng: &mut Rng) {
        let Some(out) = self.output() else { return };
        let numbers = self.draw(rng, out);
        self.check_numbers(out, &numbers);
    }
}

const CHANNELS: [usize; 7] = [1, 3, 5, 16, 17, 33, 48];

#[test]
fn every_kernel_stride_padding_and_dilation() {
    let mut rng = Rng::new(11, "bf16 depthwise");
    for (kernel, stride) in [1, 2, 3, 5].into_iter().flat_map(|k| (1..=3).map(move |s| (k, s))) {
        for (padding, dilation) in (0..=2).flat_map(|p| (1..=2).map(move |d| (p, d))) {
            for c in CHANNELS {
                let params = Conv2dParams {
                    stride: (stride, stride),
                    padding: (padding, padding),
                    dilation: (dilation, dilation),
                    groups: c,
                };
                let size = (1 + 2 * rng.below(5), 1 + 2 * rng.below(5));
                Case { b: 1 + rng.below(3), c, size, kernel: (kernel, kernel), params }.check(&mut rng);
            }
        }
    }
}

#[test]
fn both_dimensions_go_their_own_way() {
    let mut rng = Rng::new(12, "bf16 depthwise");
    for _ in 0..300 {
        let mut pair = |from: usize, to: usize| (from + rng.below(to - from + 1), from + rng.below(to - from + 1));
        let (size, kernel) = (pair(1, 12), pair(1, 5));
        let (stride, padding, dilation) = (pair(1, 4), pair(0, 3), pair(1, 2));
        let c = CHANNELS[rng.below(CHANNELS.len())];
        let params = Conv2dParams { stride, padding, dilation, groups: c };
        Case { b: 1 + rng.below(3), c, size, kernel, params }.check(&mut rng);
    }
}

/// Every height and width of the walk along several rows, and maps that several tasks share: by rows, by images, by
/// channels.
#[test]
fn three_by_three_in_all_sizes() {
    let mut rng = Rng::new(13, "bf16 depthwise");
    for (h, w) in (1..=10).flat_map(|h| [(h, 1), (h, 2), (h, 3), (h, 8), (h, 11)]) {
        for (stride, padding) in [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3)] {
            let case = three(2, 19, (h, w), stride);
            let params = Conv2dParams { padding: (padding, padding), ..case.params };
            Case { params, ..case }.check(&mut rng);
        }
    }
    for stride in [1, 2] {
        for (b, c, size) in [
            (2, 17, (45, 43)),
            (1, 18, (3, 1100)),
            (1, 18, (1100, 3)),
            (40, 40, (7, 5)),
            (70, 320, (2, 2)),
            (3, 2100, (5, 7)),
            (1, 66000, (2, 3)),
        ] {
            three(b, c, size, stride).check(&mut rng);
        }
    }
}

/// A NaN, an infinity and a zero that meets one go where arithmetic sends them, and nowhere else.
#[test]
fn special_values_stay_in_their_windows() {
    let mut rng = Rng::new(14, "bf16 depthwise");
    for special in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for (c, stride, kernel) in [5, 17].into_iter().flat_map(|c| [(c, 1, 3), (c, 2, 3), (c, 1, 2), (c, 2, 5)]) {
            let case = Case { kernel: (kernel, kernel), ..three(2, c, (7, 9), stride) };
            let out = case.output().expect("a window fits");
            for share in [0.0, 0.4, 0.999] {
                let place = |values: &mut Vec<f64>| {
                    let at = (values.len() as f64 * share) as usize;
                    values[at] = special;
                };
                for which in 0..3 {
                    let mut numbers = case.draw(&mut rng, out);
                    numbers.k[0] = 0.0;
                    place([&mut numbers.x, &mut numbers.k, &mut numbers.dy][which]);
                    case.check_numbers(out, &numbers);
                }
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let mut rng = Rng::new(15, "bf16 depthwise");
    for case in
        [three(7, 33, (15, 15), 1), three(7, 33, (15, 15), 2), three(2, 64, (40, 30), 1), three(9, 520, (2, 2), 1)]
    {
        let out = case.output().expect("a window fits");
        let numbers = case.draw(&mut rng, out);
        for level in Level::supported() {
            let results = [1, 2, 3, 7].map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                with_level(level, || pool.install(|| case.by_kernels(out, &numbers, false).unwrap()))
            });
            assert!(results.iter().all(|result| *result == results[0]), "{level:?} {case:?}");
        }
    }
}

/// Strided maps and weights are read as they are.
#[test]
fn views_are_read_as_they_are() -> Result<()> {
    let mut rng = Rng::new(16, "bf16 depthwise");
    let mut numbers = |dims: &[usize]| -> Result<Tensor> {
        let values: Vec<f64> = (0..dims.iter().product()).map(|_| 2.0 * rng.uniform() - 1.0).collect();
        Tensor::from_vec(values, dims, &Device::Cpu)
    };
    let x = numbers(&[3, 20, 9, 11])?.to_dtype(DType::BF16)?;
    let k = numbers(&[3, 3, 1, 20])?.to_dtype(DType::F32)?;
    let params = Conv2dParams { padding: (1, 1), groups: 20, ..Default::default() };
    let plain = k.permute((3, 2, 0, 1))?.contiguous()?;
    for view in [x.transpose(2, 3)?, x.narrow(3, 2, 7)?, x.narrow(0, 1, 2)?, x.narrow(2, 3, 5)?] {
        // Both at one level, whatever other tests force.
        let (want, got) = with_level(Level::Portable, || -> Result<_> {
            let want = ops::conv2d(&view.contiguous()?, &plain, None, params)?;
            Ok((want, ops::conv2d(&view, &k.permute((3, 2, 0, 1))?, None, params)?))
        })?;
        let of = |t: &Tensor| t.contiguous()?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        assert_eq!(of(&got)?, of(&want)?);
    }
    Ok(())
}

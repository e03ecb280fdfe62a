//! NaN and infinities go where IEEE arithmetic sends them.

use crate::compare::{Expected, compare};
use crate::convolution::{Conv, square};
use crate::input::{Input, Setting, Values};
use crate::norm::{EPS, batch_norm_expected, layer_norm_expected, norm_inputs, run_batch_norm};
use crate::pointwise::{FUNCTIONS, pointwise_expected};
use crate::pool::{Kind, Pool};
use crate::product::{product, transposed};
use crate::softmax::{cross_entropy_expected, softmax_expected};
use candle_core::{Device, Tensor};
use proptest::test_runner::TestCaseError;
use zoo_core::ops::{self, Conv2dParams, Pointwise};
use zoo_core::rng::Rng;

/// One NaN or infinity among the inputs, or a zero that meets one: it reaches the outputs and gradients that the loops
/// send it to, and no other. The loops do what PyTorch does: a zero weight times NaN is NaN, the padding multiplies
/// nothing, a NaN wins a maximum and passes ReLU.
#[test]
fn special_values_go_where_arithmetic_sends_them() {
    let specials = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    let must = |what: String, result: std::result::Result<(), TestCaseError>| {
        result.unwrap_or_else(|e| panic!("{what}: {e}"));
    };
    let convs = [
        (1, 5, 9, (7, 18), square(3, 1, 1), 1),
        (2, 16, 16, (9, 17), square(3, 1, 1), 1),
        (1, 8, 16, (17, 9), square(3, 2, 1), 1),
        (2, 17, 24, (5, 7), square(1, 1, 0), 1),
        (1, 8, 8, (6, 7), square(1, 2, 0), 1),
        (1, 6, 6, (9, 19), square(3, 1, 1), 6),
        (1, 6, 6, (9, 19), square(3, 2, 1), 6),
        (1, 6, 4, (8, 8), square(5, 1, 2), 2),
    ];
    for (i, special) in specials.into_iter().enumerate() {
        for &(b, c_in, c_out, size, (kernel, params), groups) in &convs {
            let conv = Conv { b, c_in, c_out, size, kernel, params: Conv2dParams { groups, ..params }, bias: true };
            for place in 0..3 {
                let mut inputs = conv.inputs(&Setting { values: Values::MostlyZero, ..Setting::plain(i as u64) });
                // In the image at its corner, its middle, its end; in the weight at its end.
                let xs = &mut inputs[0].values;
                let at = [0, xs.len() / 2 + 3, xs.len() - 1][place];
                xs[at] = special;
                let expected = conv.expected(&inputs, &mut Rng::new(1, "upstream"));
                must(format!("{conv:?}, {special} at {at}"), compare(&inputs, &expected, false, |t| conv.run(t)));
            }
        }
        for f in FUNCTIONS {
            // The limits themselves: the loops' formulas make 0 · ∞ of some, as PyTorch's do, but not of the same.
            if !special.is_nan() && !matches!(f, Pointwise::Relu | Pointwise::Relu6 | Pointwise::LeakyRelu(_)) {
                continue;
            }
            let mut input = Input::new(&mut Rng::new(2, "special"), &[3, 37], Values::Grid, 4.0);
            input.values[40] = special;
            let expected = pointwise_expected(f, &input, vec![1.0; 111]);
            must(format!("{f:?} of {special}"), compare(&[input], &expected, false, |t| ops::pointwise(&t[0], f)));
        }
        for pool in [2, 3].map(|k| Pool { kernel: (k, k), stride: (2, 2), padding: (k / 2, k / 2), ceil_mode: false }) {
            for kind in [Kind::Max, Kind::Average { count_include_pad: true }] {
                let mut input = Input::new(&mut Rng::new(3, "special"), &[2, 3, 7, 21], Values::Grid, 1.0);
                input.values[30] = special;
                let expected = pool.expected(kind, &input, &mut Rng::new(1, "upstream"));
                must(
                    format!("{kind:?} {pool:?} {special}"),
                    compare(&[input], &expected, false, |t| pool.run(kind, &t[0])),
                );
            }
        }
        // One row, one channel, one element.
        let mut input = Input::new(&mut Rng::new(4, "special"), &[5, 19], Values::Uniform, 1.0);
        input.values[23] = special;
        let expected = softmax_expected(&input, vec![1.0; 95]);
        let forward = input.clone().tracked(false);
        must(format!("softmax of {special}"), compare(&[forward], &expected, false, |t| ops::softmax(&t[0])));
        let setting = Setting::plain(5);
        let mut inputs = norm_inputs(&setting, &[4, 19], &[19], 1.0);
        inputs[0].values[23] = special;
        let expected = layer_norm_expected(&inputs, vec![1.0; 76]);
        must(
            format!("layer_norm of {special}"),
            compare(&inputs, &expected, false, |t| ops::layer_norm(&t[0], &t[1], &t[2], EPS)),
        );
        let mut inputs = norm_inputs(&setting, &[2, 3, 5, 7], &[3], 1.0);
        inputs[0].values[40] = special;
        let given = [0.0, 1.0].map(|x| Input { values: vec![x; 3], ..inputs[1].clone() });
        for given in [None, Some(&given)] {
            let expected = batch_norm_expected(&inputs, given, vec![1.0; 210]);
            must(
                format!("batch_norm of {special}, training {}", given.is_none()),
                compare(&inputs, &expected, false, |t| run_batch_norm(t, given)),
            );
        }
        let mut linear =
            [&[3usize, 5] as &[usize], &[7, 5]].map(|d| Input::new(&mut Rng::new(6, "l"), d, Values::Grid, 1.0));
        linear[0].values[7] = special;
        let weight = transposed(&linear[1].nums(), 7, 5);
        let [output, dx, dw] = product(&linear[0].nums(), &weight, &[1.0; 21], (3, 5, 7));
        let grads = vec![dx, transposed(&dw, 5, 7)];
        let expected = Expected { dims: vec![3, 7], upstream: vec![1.0; 21], output, grads };
        must(format!("linear of {special}"), compare(&linear, &expected, false, |t| ops::linear(&t[0], &t[1], None)));
    }
    // A class of probability zero costs nothing, and everything once smoothing wants it.
    let logits = Input {
        values: vec![0.0, f64::NEG_INFINITY, 0.0, 0.0, 0.0, 0.0],
        ..Input::new(&mut Rng::new(8, "x"), &[2, 3], Values::Grid, 1.0)
    };
    for smoothing in [0.0, 0.1] {
        let expected = cross_entropy_expected(&logits, &[0, 2], smoothing, 1.0);
        let targets = Tensor::new(&[0u32, 2], &Device::Cpu).unwrap();
        must(
            format!("cross_entropy of -∞, smoothing {smoothing}"),
            compare(std::slice::from_ref(&logits), &expected, false, |t| {
                ops::cross_entropy(&t[0], &targets, smoothing)
            }),
        );
    }
    // What PyTorch gives at the infinities for the smooth functions.
    let at = |f: Pointwise, x: f32| -> f32 {
        ops::pointwise(&Tensor::new(&[x; 17], &Device::Cpu).unwrap(), f).unwrap().to_vec1().unwrap()[16]
    };
    let infinity = f32::INFINITY;
    for f in [Pointwise::Gelu, Pointwise::GeluTanh, Pointwise::Silu, Pointwise::HardSwish] {
        assert_eq!(at(f, infinity), infinity, "{f:?}");
        let low = at(f, -infinity);
        assert!(low.is_nan(), "{f:?} of -∞ is {low}");
    }
    for (f, low) in [(Pointwise::Sigmoid, 0.0), (Pointwise::Tanh, -1.0), (Pointwise::HardSigmoid, 0.0)] {
        assert_eq!((at(f, -infinity), at(f, infinity)), (low, 1.0), "{f:?}");
    }
}

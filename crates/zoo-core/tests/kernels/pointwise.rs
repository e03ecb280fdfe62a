//! Activation functions against their formulas.

use crate::compare::{Expected, compare, property};
use crate::input::{Input, Values, draw, setting};
use crate::num::{Num, ZERO, num};
use proptest::prelude::Strategy;
use proptest::sample::select;
use zoo_core::ops::{self, Pointwise};
use zoo_core::rng::Rng;

pub const FUNCTIONS: [Pointwise; 11] = [
    Pointwise::Relu,
    Pointwise::Relu6,
    Pointwise::LeakyRelu(0.01),
    Pointwise::LeakyRelu(0.25),
    Pointwise::Gelu,
    Pointwise::GeluTanh,
    Pointwise::Silu,
    Pointwise::Sigmoid,
    Pointwise::Tanh,
    Pointwise::HardSigmoid,
    Pointwise::HardSwish,
];

/// f(x) and f'(x), with PyTorch's derivative at the kinks.
pub fn function(f: Pointwise, at: f64) -> (Num, Num) {
    let (x, one, half) = (num(at), num(1.0), num(0.5));
    // Not min and max, which would swallow a NaN.
    let six = |y: f64| y.clamp(0.0, 6.0);
    let sigmoid = || one / (one + (-x).exp());
    match f {
        Pointwise::Relu if at <= 0.0 => (ZERO, ZERO),
        Pointwise::Relu => (x, one),
        Pointwise::Relu6 => (num(six(at)), if at <= 0.0 || at >= 6.0 { ZERO } else { one }),
        Pointwise::LeakyRelu(_) if at > 0.0 => (x, one),
        Pointwise::LeakyRelu(slope) => (x * num(slope), num(slope)),
        Pointwise::Gelu => {
            let cdf = half * (one + (x * num(std::f64::consts::FRAC_1_SQRT_2)).erf());
            let density = (num(-0.5) * x * x).exp() * num((2.0 * std::f64::consts::PI).sqrt().recip());
            (x * cdf, cdf + x * density)
        }
        Pointwise::GeluTanh => {
            let (a, b) = (num((2.0 / std::f64::consts::PI).sqrt()), num(0.044_715));
            let t = (a * (x + b * x * x * x)).tanh();
            let inner = a * (one + num(3.0) * b * x * x);
            (half * x * (one + t), half * (one + t) + half * x * (one - t * t) * inner)
        }
        Pointwise::Silu => {
            let s = sigmoid();
            (x * s, s * (one + x * (one - s)))
        }
        Pointwise::Sigmoid => (sigmoid(), sigmoid() * (one - sigmoid())),
        Pointwise::Tanh => (x.tanh(), one - x.tanh() * x.tanh()),
        Pointwise::HardSigmoid => {
            (num(six(at + 3.0)) / num(6.0), if at > -3.0 && at < 3.0 { one / num(6.0) } else { ZERO })
        }
        Pointwise::HardSwish => {
            let slope = if at <= -3.0 {
                ZERO
            } else if at < 3.0 {
                x / num(3.0) + half
            } else {
                one
            };
            (x * num(six(at + 3.0)) / num(6.0), slope)
        }
    }
}

pub fn pointwise_expected(f: Pointwise, input: &Input, upstream: Vec<f64>) -> Expected {
    let (output, slopes): (Vec<Num>, Vec<Num>) = input.values.iter().map(|&x| function(f, x)).unzip();
    let dx = slopes.into_iter().zip(&upstream).map(|(slope, &dy)| slope * num(dy)).collect();
    Expected { dims: input.dims.clone(), upstream, output, grads: vec![dx] }
}

#[test]
fn pointwise() {
    let dims =
        proptest::collection::vec(1..=17usize, 1..=4).prop_filter("small", |d| d.iter().product::<usize>() < 9000);
    let size = select(vec![0.1, 4.0, 8.0, 60.0]);
    property(400, (select(FUNCTIONS.to_vec()), dims, size, setting()), |(f, dims, size, setting)| {
        let input = Input::new(&mut setting.rng(), &dims, setting.values, size).lying(setting.lies[0]);
        let upstream = draw(&mut Rng::new(setting.seed, "upstream"), input.values.len(), Values::Uniform, 1.0);
        let expected = pointwise_expected(f, &input, upstream);
        compare(&[input], &expected, setting.strided_upstream, |t| ops::pointwise(&t[0], f))
    });
}

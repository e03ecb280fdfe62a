//! Activations, softmax, layer normalisation and sums of bfloat16 numbers; see [`crate::bf16`] for the rule.

use crate::bf16::{compare, map, maps, once, rounded, upstream};
use crate::compare::{Expected, property};
use crate::input::Values;
use crate::norm::{EPS, layer_norm_expected, norm_inputs};
use crate::num::{Num, ZERO, num};
use crate::pointwise::{FUNCTIONS, function};
use proptest::prelude::Strategy;
use proptest::sample::select;
use zoo_core::ops;
use zoo_core::rng::Rng;

#[test]
fn activations() {
    property(80, (maps(), select(FUNCTIONS.to_vec())), |((dims, setting), f)| {
        let rng = &mut Rng::new(setting.seed, "activations");
        let mut xs = map(rng, &dims, setting.values, 8.0).lying(setting.lies[0]);
        // Whatever a function makes of them.
        let n = xs.values.len();
        for (i, special) in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0].into_iter().enumerate() {
            if n > 20 {
                xs.values[7 * i % n] = if setting.seed % 2 == 0 { special } else { xs.values[i] };
            }
        }
        let up = upstream(rng, &dims);
        let both: Vec<(Num, Num)> = xs.values.iter().map(|&x| function(f, x)).collect();
        let grads = vec![both.iter().zip(&up).map(|(&(_, slope), &up)| slope * num(up)).collect()];
        let output = both.iter().map(|&(y, _)| y).collect();
        let expected = Expected { dims: dims.to_vec(), upstream: up, output, grads };
        // A function's polynomial is good to some units in the last place of f32; GELU's to 2⁻¹⁴, a small part of the
        // rounding to bfloat16.
        let terms = if f == ops::Pointwise::Gelu { 1 << 10 } else { 84 };
        compare(&[xs], 1, &expected, (once(terms), &setting), |t| ops::pointwise(&t[0], f))
    });
}

/// x + x + relu(x): the gradients of three readers meet.
#[test]
fn gradients_of_several_readers_are_added() {
    property(30, maps(), |(dims, setting)| {
        let rng = &mut Rng::new(setting.seed, "sums");
        let mut xs = map(rng, &dims, Values::Grid, 4.0).lying(setting.lies[0]);
        xs.values.iter_mut().for_each(|x| *x = (*x * 2.0).round() / 2.0);
        let up: Vec<f64> = upstream(rng, &dims).iter().map(|x| (x * 16.0).round() / 16.0).collect();
        // Numbers of a few bits: no sum is rounded.
        let output = xs.values.iter().map(|&x| num(2.0 * x + x.max(0.0))).collect();
        let grad = |(&x, &up): (&f64, &f64)| num(if x > 0.0 { 3.0 * up } else { 2.0 * up });
        let grads = vec![xs.values.iter().zip(&up).map(grad).collect()];
        let expected = Expected { dims: dims.to_vec(), upstream: up, output, grads };
        compare(&[xs], 1, &expected, (once(1), &setting), |t| {
            let relu = ops::pointwise(&t[0], ops::Pointwise::Relu)?;
            ops::add(&ops::add(&t[0], &t[0])?, &relu)
        })
    });
}

#[test]
fn layer_normalisation() {
    let sizes = (1..=4usize, 1..=70usize, select(vec![1usize, 3, 16, 17, 33, 64, 100]));
    property(40, (sizes, crate::input::setting()), |((b, n, c), setting)| {
        let dims = [b, n, c];
        let mut inputs = norm_inputs(&setting, &dims, &[c], 3.0);
        inputs[0].values = rounded(&inputs[0].values);
        let up = upstream(&mut Rng::new(setting.seed, "upstream"), &dims);
        let expected = layer_norm_expected(&inputs, up);
        let terms = c.max(b * n) + 8;
        compare(&inputs, 1, &expected, (once(terms), &setting), |t| ops::layer_norm(&t[0], &t[1], &t[2], EPS))
    });
}

#[test]
fn softmax() {
    let sizes = (1..=4usize, 1..=40usize, select(vec![1usize, 3, 16, 17, 33, 65]));
    property(40, (sizes.prop_map(|(b, n, c)| [b, n, c]), crate::input::setting()), |(dims, setting)| {
        let rng = &mut Rng::new(setting.seed, "softmax");
        let xs = map(rng, &dims, setting.values, 5.0).lying(setting.lies[0]);
        let up = upstream(rng, &dims);
        let c = dims[2];
        let (mut output, mut dx) = (Vec::new(), Vec::new());
        for (x, dy) in xs.nums().chunks(c).zip(up.chunks(c)) {
            let exps: Vec<Num> = x.iter().map(|x| x.exp()).collect();
            let total: Num = exps.iter().copied().sum();
            let ys: Vec<Num> = exps.iter().map(|&e| e / total).collect();
            // The gradient reads the output that is stored: eight bits of it, in both places.
            let stored = |y: Num| Num { value: y.value, scale: y.scale.max(y.value * 2f64.powi(23 - 8) / 128.0) };
            let along = ys.iter().zip(dy).fold(ZERO, |sum, (&y, &dy)| sum + stored(y) * num(dy));
            dx.extend(ys.iter().zip(dy).map(|(&y, &dy)| stored(y) * (num(dy) - along)));
            output.extend(ys);
        }
        let expected = Expected { dims: dims.to_vec(), upstream: up, output, grads: vec![dx] };
        let rule = crate::bf16::Rule { terms: 128 + c, roundings: 1 };
        compare(&[xs], 1, &expected, (rule, &setting), |t| ops::softmax(&t[0]))
    });
}

//! What joins, cuts, rearranges and scales bfloat16 maps and tokens; see [`crate::bf16`] for the rule.

use crate::bf16::{compare, map, maps, multilinear, once, upstream};
use crate::compare::{fail, property};
use crate::input::{Input, Lies, Setting, Values};
use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::Strategy;
use proptest::sample::select;
use proptest::test_runner::TestCaseError;
use zoo_core::rng::Rng;
use zoo_core::{Dropout, ModuleT, SqueezeExcite, VarStore, ops};

/// Holds an operation that is linear in each input; its output has `dims`.
fn linear(
    inputs: &[Input],
    maps: usize,
    dims: &[usize],
    (terms, setting): (usize, &Setting),
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> std::result::Result<(), TestCaseError> {
    let up = upstream(&mut Rng::new(setting.seed, "upstream"), dims);
    let expected = multilinear(inputs, up, &op).map_err(|e| fail(e.to_string()))?;
    compare(inputs, maps, &expected, (once(terms), setting), op)
}

#[test]
fn maps_side_by_side() {
    property(60, (maps(), 0..4usize, select(vec![1usize, 2, 12, 32])), |((dims, setting), dim, more)| {
        let rng = &mut Rng::new(setting.seed, "concat");
        let mut sizes = [dims; 3];
        (sizes[1][dim], sizes[2][dim]) = (more, 3);
        let mut part = |i: usize| {
            let input = map(rng, &sizes[i], Values::Uniform, 1.0);
            if i < 2 { input.lying(setting.lies[i]).tracked(setting.tracked[i]) } else { input }
        };
        let inputs = [part(0), part(1), part(2)];
        let mut out = dims;
        out[dim] += more + 3;
        linear(&inputs, 3, &out, (1, &setting), |t| ops::concat(&[&t[0], &t[1], &t[2]], dim))
    });
}

#[test]
fn tokens_side_by_side() {
    let sizes = (1..=4usize, 1..=9usize, select(vec![1usize, 5, 16, 33]));
    property(30, (sizes, 0..3usize, crate::input::setting()), |((b, n, c), dim, setting)| {
        let rng = &mut Rng::new(setting.seed, "concat");
        let (dims, mut other) = ([b, n, c], [b, n, c]);
        other[dim] = 2;
        let mut out = dims;
        out[dim] += 2;
        let inputs = [map(rng, &dims, Values::Uniform, 1.0), map(rng, &other, Values::Uniform, 1.0)];
        linear(&inputs, 2, &out, (1, &setting), |t| ops::concat(&[&t[0], &t[1]], dim))
    });
}

#[test]
fn padded_and_shuffled_channels() {
    property(60, (maps(), (0..9usize, 0..9usize), 1..=4usize), |((dims, setting), (below, above), groups)| {
        let xs = map(&mut Rng::new(setting.seed, "channels"), &dims, Values::Uniform, 1.0).lying(setting.lies[0]);
        if below + above > 0 {
            let out = [dims[0], dims[1] + below + above, dims[2], dims[3]];
            linear(std::slice::from_ref(&xs), 1, &out, (1, &setting), |t| ops::pad_channels(&t[0], below, above))?;
        }
        if !dims[1].is_multiple_of(groups) {
            return Ok(());
        }
        linear(&[xs], 1, &dims, (1, &setting), |t| ops::channel_shuffle(&t[0], groups))
    });
}

#[test]
fn steps_on_tokens() {
    let sizes = (1..=4usize, 1..=19usize, select(vec![1usize, 5, 16, 33, 64]));
    property(40, (sizes, crate::input::setting()), |((b, n, c), setting)| {
        let rng = &mut Rng::new(setting.seed, "tokens");
        let xs = map(rng, &[b, n, c], Values::Uniform, 1.0).lying(setting.lies[0]);
        let one = [xs.clone()];
        let weight = |rng: &mut Rng, dims: &[usize]| {
            let mut input = Input::new(rng, dims, Values::Uniform, 1.0);
            input.values.iter_mut().for_each(|x| *x = f64::from(*x as f32));
            input
        };
        linear(&one, 1, &[b, c, n], (1, &setting), |t| ops::transpose(&t[0]))?;
        linear(&one, 1, &[b, 1, c], (1, &setting), |t| ops::first_token(&t[0]))?;
        let first = setting.seed as usize % n;
        linear(&one, 1, &[b, c], (n + 2, &setting), |t| ops::mean_tokens(&t[0], first))?;
        let both = [xs.clone(), weight(rng, &[1, n, c])];
        linear(&both, 1, &[b, n, c], (b + 1, &setting), |t| ops::add_positions(&t[0], &t[1]))?;
        let both = [xs, weight(rng, &[1, 1, c])];
        linear(&both, 1, &[b, n + 1, c], (b + 1, &setting), |t| ops::prepend_token(&t[0], &t[1]))
    });
}

/// The gate's own layers round on the way, so that it is held against itself in f32: the scale of a gate is at most 1.
#[test]
fn a_gate_on_the_channels() {
    property(20, maps(), |(dims, setting)| {
        let setting = Setting { lies: [Lies::Contiguous; 2], ..setting };
        let xs = map(&mut Rng::new(setting.seed, "gate"), &dims, Values::Uniform, 1.0);
        let layer = |dtype: DType| SqueezeExcite::new(dims[1], 4, VarStore::new(5, dtype, &Device::Cpu).root());
        let up = upstream(&mut Rng::new(setting.seed, "upstream"), &dims);
        let mut expected = multilinear(std::slice::from_ref(&xs), up, &|t| layer(DType::F64)?.forward_t(&t[0], true))
            .map_err(|e| fail(e.to_string()))?;
        // A gate that is off by some of its eight bits moves the output as much, and its gradient by what flows through
        // it.
        let pixels = (dims[2] * dims[3]) as f64;
        for num in expected.output.iter_mut().chain(&mut expected.grads[0]) {
            num.scale = num.value.abs() + 1.0 + 1.0 / pixels;
        }
        let rule = crate::bf16::Rule { terms: 1 << 17, roundings: 2 };
        compare(&[xs], 1, &expected, (rule, &setting), |t| layer(DType::F32)?.forward_t(&t[0], true))
    });
}

#[test]
fn dropout_draws_the_masks_of_f32() {
    let unit = select(vec![0usize, 1, 2]);
    property(40, (maps(), unit.prop_map(|i| i)), |((dims, setting), unit)| {
        let xs = map(&mut Rng::new(setting.seed, "dropout"), &dims, Values::Uniform, 1.0).lying(setting.lies[0]);
        let drop = |t: &[Tensor]| {
            let vb = VarStore::new(9, DType::F32, &Device::Cpu).root().pp("drop");
            let layer = [Dropout::new, Dropout::channels, Dropout::path][unit](0.3, &vb)?;
            layer.forward_t(&t[0], true)
        };
        linear(std::slice::from_ref(&xs), 1, &dims, (2, &setting), drop)?;
        // Tokens.
        let dims = [dims[0], dims[1], dims[2] * dims[3]];
        let tokens = Input { dims: dims.to_vec(), lies: Lies::Contiguous, ..xs };
        linear(&[tokens], 1, &dims, (2, &setting), drop)
    });
}

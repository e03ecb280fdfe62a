//! Operations of mixed precision against loops in f64 on the same bfloat16 numbers, at every level.
//!
//! # The rule of errors
//!
//! What a kernel makes is rounded once to eight bits: half a unit in its last place is at most 2⁻⁸ of it. Before that,
//! f32 arithmetic over k terms is off by at most k · 2⁻²³ of its scale, the sum of the absolute values of what was
//! summed:
//!
//! |ours - reference| ≤ r · 2⁻⁸ · |reference| + k · 2⁻²³ · scale
//!
//! with r = 1. Where an intermediate is stored as a bfloat16 map, r is one more and the scale takes 2⁻⁸ of that map's
//! share.

use crate::compare::{Expected, fail, with_level};
use crate::input::{Input, Lies, Setting, Values, draw};
use crate::num::Num;
use candle_core::{DType, Device, Result, Tensor, Var};
use proptest::prelude::{Strategy, any};
use proptest::sample::select;
use proptest::test_runner::TestCaseError;
use zoo_core::ops::Level;
use zoo_core::rng::Rng;
use zoo_core::tape;

/// How far rounding may lead.
#[derive(Clone, Copy)]
pub struct Rule {
    /// Terms of the longest sum.
    pub terms: usize,
    /// How often a number was rounded to bfloat16.
    pub roundings: usize,
}

/// One rounding, behind sums of so many terms.
pub const fn once(terms: usize) -> Rule {
    Rule { terms, roundings: 1 }
}

/// Numbers as bfloat16 holds them.
pub fn rounded(values: &[f64]) -> Vec<f64> {
    let all = Tensor::from_slice(values, values.len(), &Device::Cpu).and_then(|t| t.to_dtype(DType::BF16));
    all.and_then(|t| t.to_dtype(DType::F64)?.to_vec1()).expect("plain numbers")
}

/// A map of numbers that bfloat16 holds.
pub fn map(rng: &mut Rng, dims: &[usize], values: Values, size: f64) -> Input {
    let mut input = Input::new(rng, dims, values, size);
    input.values = rounded(&input.values);
    input
}

/// An upstream gradient that bfloat16 holds.
pub fn upstream(rng: &mut Rng, dims: &[usize]) -> Vec<f64> {
    rounded(&draw(rng, dims.iter().product(), Values::Uniform, 1.0))
}

/// Channels of maps: of one number, of less than a vector, of vectors and more.
pub fn channels() -> impl Strategy<Value = usize> {
    select(vec![1, 3, 5, 16, 17, 24, 33, 64])
}

/// Sizes (b, c, h, w), and whatever else a case has.
pub fn maps() -> impl Strategy<Value = ([usize; 4], Setting)> {
    let sides = || select(vec![1usize, 2, 3, 5, 7, 8, 13]);
    (1..=4usize, channels(), (sides(), sides()), crate::input::setting(), any::<u64>())
        .prop_map(|(b, c, (h, w), setting, seed)| ([b, c, h, w], Setting { seed, ..setting }))
}

/// The same tensor with its channels innermost in memory.
pub fn channels_last(xs: &Tensor) -> Result<Tensor> {
    match xs.rank() {
        4 => xs.permute((0, 2, 3, 1))?.contiguous()?.permute((0, 3, 1, 2)),
        _ => Ok(xs.clone()),
    }
}

/// Runs `op` at every level on inputs of which the first `maps` are bfloat16 maps and the others f32 weights, on a
/// tape, and holds output and gradients against what is expected. Maps lie as they are told, contiguous ones channels
/// last too.
pub fn compare(
    inputs: &[Input],
    maps: usize,
    expected: &Expected,
    (rule, setting): (Rule, &Setting),
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> std::result::Result<(), TestCaseError> {
    for level in Level::supported() {
        for last in [true, false] {
            let run = || -> Result<(Tensor, Vec<Option<Tensor>>)> {
                let var = |(i, input): (usize, &Input)| {
                    let plain = input.lies == Lies::Contiguous && last;
                    let stored = input.stored(if i < maps { DType::BF16 } else { DType::F32 })?;
                    Var::from_tensor(&if i < maps && plain { channels_last(&stored)? } else { stored })
                };
                let vars = inputs.iter().enumerate().map(var).collect::<Result<Vec<_>>>()?;
                let place = |(input, var): (&Input, &Var)| {
                    input.view(&if input.tracked { var.as_tensor().clone() } else { var.as_detached_tensor() })
                };
                let all = inputs.iter().zip(&vars).map(place).collect::<Result<Vec<_>>>()?;
                let first: Vec<&Tensor> = all[..maps].iter().collect();
                // A tape's output is of f32 numbers; the gradient comes back through the same door.
                let wide = |xs: &[Tensor]| {
                    let ys = op(&[xs, &all[maps..]].concat())?;
                    assert_eq!(ys.dtype(), DType::BF16, "{level:?}");
                    Ok(vec![tape::to_dtype(&ys, DType::F32)?])
                };
                let ys = tape::recorded_all(&first, true, wide)?.remove(0);
                let up = Tensor::from_slice(&expected.upstream, expected.dims.as_slice(), &Device::Cpu)?;
                let mut up = up.to_dtype(DType::F32)?;
                if setting.strided_upstream {
                    up = channels_last(&up)?;
                }
                let asks = inputs.iter().any(|i| i.tracked);
                let grads = if asks { Some((&ys * up)?.sum_all()?.backward()?) } else { None };
                let grad = |(input, var): (&Input, &Var)| {
                    grads.as_ref().and_then(|g| g.get(var)).map(|g| input.view(g)).transpose()
                };
                Ok((ys, inputs.iter().zip(&vars).map(grad).collect::<Result<_>>()?))
            };
            let (ys, grads) = with_level(level, run).map_err(|e| fail(format!("{level:?}: {e}")))?;
            if ys.dims() != expected.dims {
                return Err(fail(format!("output {:?} for {:?}", ys.dims(), expected.dims)));
            }
            close(&format!("output, {level:?}"), &ys, &expected.output, rule)?;
            for (i, (input, grad)) in inputs.iter().zip(&grads).enumerate() {
                let Some(grad) = grad else {
                    let why = format!("input {i} has no gradient");
                    if input.tracked {
                        return Err(fail(why));
                    }
                    continue;
                };
                let wanted = if i < maps { DType::BF16 } else { DType::F32 };
                if grad.dtype() != wanted || !input.tracked {
                    return Err(fail(format!(
                        "a gradient of input {i} of {:?}, tracked: {}",
                        grad.dtype(),
                        input.tracked
                    )));
                }
                close(&format!("gradient of input {i}, {level:?}"), grad, &expected.grads[i], rule)?;
            }
        }
    }
    Ok(())
}

/// What an operation that is linear in each input gives in f64, and its scale: what it gives of absolute values.
pub fn multilinear(inputs: &[Input], upstream: Vec<f64>, op: &dyn Fn(&[Tensor]) -> Result<Tensor>) -> Result<Expected> {
    let run = |f: &dyn Fn(f64) -> f64| -> Result<(Tensor, Vec<Vec<f64>>)> {
        let of = |values: &[f64], dims: &[usize]| {
            Tensor::from_vec(values.iter().map(|&x| f(x)).collect::<Vec<_>>(), dims, &Device::Cpu)
        };
        let vars = inputs.iter().map(|i| Var::from_tensor(&of(&i.values, &i.dims)?)).collect::<Result<Vec<_>>>()?;
        let ys = op(&vars.iter().map(|var| var.as_tensor().clone()).collect::<Vec<_>>())?;
        let grads = (&ys * of(&upstream, ys.dims())?)?.sum_all()?.backward()?;
        let zeros = |var: &Var| grads.get(var).map_or_else(|| var.zeros_like(), |grad| Ok(grad.clone()));
        let grads = vars.iter().map(|var| zeros(var)?.flatten_all()?.to_vec1()).collect::<Result<_>>()?;
        Ok((ys, grads))
    };
    let ((ys, grads), (scale, scales)) = (run(&|x| x)?, run(&f64::abs)?);
    let nums = |values: Vec<f64>, scales: Vec<f64>| -> Vec<Num> {
        values.into_iter().zip(scales).map(|(value, scale)| Num { value, scale }).collect()
    };
    let dims = ys.dims().to_vec();
    let output = nums(ys.flatten_all()?.to_vec1()?, scale.flatten_all()?.to_vec1()?);
    let grads = grads.into_iter().zip(scales).map(|(grad, scale)| nums(grad, scale)).collect();
    Ok(Expected { dims, upstream, output, grads })
}

/// Holds numbers against what is expected, by the [`Rule`].
pub fn close(what: &str, got: &Tensor, want: &[Num], rule: Rule) -> std::result::Result<(), TestCaseError> {
    let got: Vec<f64> =
        got.flatten_all().and_then(|t| t.to_dtype(DType::F64)?.to_vec1()).map_err(|e| fail(e.to_string()))?;
    if got.len() != want.len() {
        return Err(fail(format!("{what}: {} elements for {}", got.len(), want.len())));
    }
    for (i, (&got, want)) in got.iter().zip(want).enumerate() {
        let value = want.value;
        let scale = if want.scale.is_finite() { want.scale } else { value.abs() };
        let bound = rule.roundings as f64 * value.abs() * 2f64.powi(-8) + rule.terms as f64 * scale * 2f64.powi(-23);
        // What underflows is a subnormal number, or nothing.
        let fits = match value.is_finite() {
            true => (got - value).abs() <= bound + f64::from(f32::MIN_POSITIVE),
            false => got == value || got.is_nan() && value.is_nan(),
        };
        if !fits {
            return Err(fail(format!("{what}, element {i}: {got:e} for {value:e}, bound {bound:e}")));
        }
    }
    Ok(())
}

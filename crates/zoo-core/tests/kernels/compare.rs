//! The comparison: output and gradients of an operation against what the loops say.

use crate::input::Input;
use crate::num::Num;
use candle_core::{DType, Device, Result, Tensor, Var};
use proptest::prelude::Strategy;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use std::sync::{Mutex, PoisonError};
use zoo_core::ops::{Level, simd};

/// What the loops say: the output, and the gradients of Σ output · upstream.
pub struct Expected {
    pub dims: Vec<usize>,
    pub upstream: Vec<f64>,
    pub output: Vec<Num>,
    pub grads: Vec<Vec<Num>>,
}

/// `simd::force` holds for the whole process, and tests run side by side.
pub static FORCED: Mutex<()> = Mutex::new(());

pub fn with_level<R>(level: Level, f: impl FnOnce() -> R) -> R {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            simd::force(None).expect("no level is always supported");
        }
    }
    let _alone = FORCED.lock().unwrap_or_else(PoisonError::into_inner);
    let _restore = Restore;
    simd::force(Some(level)).expect("the level is supported");
    f()
}

pub fn fail(message: String) -> TestCaseError {
    TestCaseError::fail(message)
}

pub fn close(what: &str, got: &Tensor, want: &[Num], dtype: DType) -> std::result::Result<(), TestCaseError> {
    let got: Vec<f64> =
        got.flatten_all().and_then(|t| t.to_dtype(DType::F64)?.to_vec1()).map_err(|e| fail(e.to_string()))?;
    let (epsilon, tiny) =
        if dtype == DType::F32 { (1e-5, f64::from(f32::MIN_POSITIVE)) } else { (1e-12, f64::MIN_POSITIVE) };
    if got.len() != want.len() {
        return Err(fail(format!("{what}: {} elements for {}", got.len(), want.len())));
    }
    for (i, (&got, want)) in got.iter().zip(want).enumerate() {
        let value = want.value;
        // An infinite term that a function made finite again, as e^(-∞), has no scale.
        let scale = if want.scale.is_finite() { want.scale } else { value.abs() };
        let fits = if value.is_finite() {
            (got - value).abs() <= epsilon * scale + tiny
        } else {
            got == value || got.is_nan() && value.is_nan()
        };
        if !fits {
            return Err(fail(format!("{what}, element {i}: {got:e} for {value:e} of scale {scale:e}, {dtype:?}")));
        }
    }
    Ok(())
}

/// Runs `op` in both types with every kind of vectors, and compares. The upstream gradient arrives strided if so asked.
pub fn compare(
    inputs: &[Input],
    expected: &Expected,
    strided_upstream: bool,
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> std::result::Result<(), TestCaseError> {
    for level in Level::vectors() {
        for dtype in [DType::F32, DType::F64] {
            let run = || -> Result<(Tensor, Vec<Option<Tensor>>)> {
                let vars = inputs.iter().map(|i| Var::from_tensor(&i.stored(dtype)?)).collect::<Result<Vec<_>>>()?;
                let place = |(input, var): (&Input, &Var)| {
                    input.view(&if input.tracked { var.as_tensor().clone() } else { var.as_detached_tensor() })
                };
                let ys = op(&inputs.iter().zip(&vars).map(place).collect::<Result<Vec<_>>>()?)?;
                let upstream = Tensor::from_slice(&expected.upstream, expected.dims.as_slice(), &Device::Cpu)?;
                let (mut left, mut right) = (ys.clone(), upstream.to_dtype(dtype)?);
                let rank = ys.rank();
                if strided_upstream && rank >= 2 {
                    left = left.transpose(rank - 2, rank - 1)?;
                    right = right.transpose(rank - 2, rank - 1)?;
                }
                let grads =
                    if inputs.iter().any(|i| i.tracked) { Some((left * right)?.sum_all()?.backward()?) } else { None };
                let grad = |(input, var): (&Input, &Var)| {
                    grads.as_ref().and_then(|g| g.get(var)).map(|g| input.view(g)).transpose()
                };
                Ok((ys, inputs.iter().zip(&vars).map(grad).collect::<Result<_>>()?))
            };
            let (ys, grads) = with_level(level, run).map_err(|e| fail(format!("{level:?}, {dtype:?}: {e}")))?;
            if ys.dims() != expected.dims || ys.dtype() != dtype {
                return Err(fail(format!("output {:?} {:?} for {:?} {dtype:?}", ys.dims(), ys.dtype(), expected.dims)));
            }
            close(&format!("output, {level:?}"), &ys, &expected.output, dtype)?;
            for (i, (input, grad)) in inputs.iter().zip(&grads).enumerate() {
                match (input.tracked, grad) {
                    (true, Some(grad)) => {
                        close(&format!("gradient of input {i}, {level:?}"), grad, &expected.grads[i], dtype)?;
                    }
                    (false, None) => {}
                    (true, None) => return Err(fail(format!("input {i} has no gradient"))),
                    (false, Some(_)) => return Err(fail(format!("input {i} asked for no gradient and has one"))),
                }
            }
        }
    }
    Ok(())
}

/// Holds `test` true for `cases` values of `strategy`.
pub fn property<S: Strategy>(
    cases: u32,
    strategy: S,
    test: impl Fn(S::Value) -> std::result::Result<(), TestCaseError>,
) {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(4);
    }
    TestRunner::new(config).run(&strategy, test).unwrap_or_else(|e| panic!("{e}"));
}

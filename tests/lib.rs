//! What the tests that cross crates share: the golden files and the rule that fills weights.
//!
//! The rule and the tolerances are stated, and reasoned, at the top of `golden/generate.py`, which writes the files.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use zoo_core::VarStore;
use zoo_train::progress::say;

/// The examples of README and docs/, so that they compile.
#[cfg(doctest)]
pub mod pages {
    #[doc = include_str!("../README.md")]
    pub struct Readme;
    #[doc = include_str!("../docs/README.md")]
    pub struct Index;
    #[doc = include_str!("../docs/from_pytorch.md")]
    pub struct FromPyTorch;
    #[doc = include_str!("../docs/serve.md")]
    pub struct Serve;
    #[doc = include_str!("../docs/fine_tune.md")]
    pub struct FineTune;
    #[doc = include_str!("../docs/train_cifar10.md")]
    pub struct TrainCifar10;
    #[doc = include_str!("../docs/add_a_network.md")]
    pub struct AddANetwork;
}

/// A file beside the generator.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// A golden JSON file.
///
/// # Errors
/// A file that is absent or no JSON.
pub fn golden_json(name: &str) -> Result<Value> {
    let path = golden(name);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))
}

/// What the project is checked with but does not contain: the folder `shared` beside the checkout. `None`, with a
/// [`skipped`] line, where it is absent.
pub fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(path);
    if !path.exists() {
        skipped(format_args!("{} is absent", path.display()));
        return None;
    }
    Some(path)
}

/// Says on standard error that the test in hand checks nothing, and why: `skipped: NAME: reason`. The harness, which
/// counts such a test as passed, captures what is printed, but not this; `.ci/summary` counts these lines.
pub fn skipped(reason: impl Display) {
    let thread = std::thread::current();
    say(format_args!("skipped: {}: {reason}", thread.name().unwrap_or("a test")));
}

/// Element `i` of the tensor called `key`: in [-1, 1), a multiple of 2⁻²¹.
pub fn unit(key: &str, count: usize) -> Vec<f64> {
    let hash =
        key.bytes().fold(0xCBF2_9CE4_8422_2325u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
    let element = |i: usize| {
        let mut z = hash.wrapping_add((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        (z >> 42) as f64 / 2_097_152.0 - 1.0
    };
    (0..count).map(element).collect()
}

/// The values that the rule gives the tensor called `key`.
pub fn fill(key: &str, dims: &[usize]) -> Vec<f64> {
    let us = unit(key, dims.iter().product());
    let (offset, scale) = if key.ends_with("running_mean") {
        (0.0, 0.25)
    } else if key.ends_with("running_var") {
        (1.0, 0.5)
    } else if key.ends_with("bias") {
        (0.0, 0.125)
    } else if dims.len() == 1 {
        (1.0, 0.25)
    } else {
        let fan_in: usize = dims[1..].iter().product();
        let mut b = 1.0;
        while b * b * fan_in as f64 > 12.0 {
            b /= 2.0;
        }
        (0.0, b)
    };
    us.into_iter().map(|u| offset + u * scale).collect()
}

/// Fills every tensor of `store` by the rule.
///
/// # Errors
/// A store of shapes only, or a tensor that candle will not set.
pub fn fill_store(store: &VarStore) -> Result<()> {
    for slot in store.slots() {
        let var = slot.var.with_context(|| format!("`{}` has no storage", slot.key))?;
        let values = Tensor::from_vec(fill(&slot.key, slot.shape.dims()), &slot.shape, &Device::Cpu)?;
        var.set(&values.to_dtype(store.dtype())?)?;
    }
    Ok(())
}

/// All elements, in f64.
///
/// # Errors
/// An element type that candle cannot convert.
pub fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}

/// Euclidean norm.
pub fn norm(xs: &[f64]) -> f64 {
    xs.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Compares a tensor with its stored summary (norm, probe, single values), within `tolerance` relative to the larger of
/// the stored norm and `scale`. The probe is a sum of `norm`-sized noise, so it has the same bound.
///
/// # Errors
/// A difference, saying which.
pub fn compare_summary(what: &str, key: &str, got: &Tensor, want: &Value, tolerance: f64, scale: f64) -> Result<()> {
    let got = values(got)?;
    let number =
        |field: &str| want[field].as_f64().with_context(|| format!("{what} {key}: no `{field}` in the golden file"));
    let bound = tolerance * number("norm")?.max(scale);
    let probe: f64 = unit(&format!("probe.{key}"), got.len()).iter().zip(&got).map(|(u, x)| u * x).sum();
    let near = |name: &str, got: f64, want: f64| {
        ensure!((got - want).abs() <= bound, "{what} {key}: {name} is {got:e}, PyTorch has {want:e}, bound {bound:e}");
        Ok(())
    };
    near("norm", norm(&got), number("norm")?)?;
    near("probe", probe, number("probe")?)?;
    let (at, stored) = (want["at"].as_array().context("at")?, want["values"].as_array().context("values")?);
    ensure!(!at.is_empty() && at.len() == stored.len(), "{what} {key}: the golden file holds no values");
    for (i, value) in at.iter().zip(stored) {
        let (i, value) = (i.as_u64().context("index")? as usize, value.as_f64().context("value")?);
        ensure!(i < got.len(), "{what} {key}: element {i} of {}", got.len());
        near(&format!("element {i}"), got[i], value)?;
    }
    Ok(())
}

//! Every operation against PyTorch: outputs, the gradient of every input, running statistics; in f64, in f32, on
//! strided and offset inputs, and composed of candle's own ops, as on a device without kernels.

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor, Var};
use serde_json::Value;
use std::collections::HashMap;
use tests::{golden, golden_json, norm, values};
use zoo_core::ops::{self, Conv2dParams, Pointwise};

/// How a case is run.
#[derive(Debug, Clone, Copy)]
struct Mode {
    dtype: DType,
    /// Inputs are transposed views into the middle of larger storages.
    strided: bool,
    composed: bool,
    /// Relative to the norm of the tensor; reasoned at the top of `generate.py`.
    tolerance: f64,
}

struct Case<'a> {
    name: &'a str,
    op: &'a str,
    params: &'a Value,
    tensors: HashMap<&'a str, &'a Tensor>,
}

impl Case<'_> {
    fn pair(&self, field: &str) -> Result<(usize, usize)> {
        let at = |i: usize| self.params[field][i].as_u64().with_context(|| format!("{}: {field}", self.name));
        Ok((at(0)? as usize, at(1)? as usize))
    }

    fn flag(&self, field: &str) -> Result<bool> {
        self.params[field].as_bool().with_context(|| format!("{}: {field}", self.name))
    }

    fn number(&self, field: &str) -> Result<f64> {
        self.params[field].as_f64().with_context(|| format!("{}: {field}", self.name))
    }

    fn tensor(&self, role: &str, dtype: DType) -> Result<Tensor> {
        let tensor = self.tensors.get(role).with_context(|| format!("{}: no {role}", self.name))?;
        Ok(tensor.to_dtype(dtype)?)
    }

    /// The function of the case, on `inputs` by role.
    fn run(&self, inputs: &HashMap<&str, Tensor>, dtype: DType) -> Result<Tensor> {
        let (x, weight, bias) = (&inputs["input"], inputs.get("weight"), inputs.get("bias"));
        let weight = || weight.context("weight");
        let pool =
            || anyhow::Ok((self.pair("kernel")?, self.pair("stride")?, self.pair("padding")?, self.flag("ceil_mode")?));
        let activation = |function| Ok(ops::pointwise(x, function)?);
        match self.op {
            "conv2d" => {
                let params = Conv2dParams {
                    stride: self.pair("stride")?,
                    padding: self.pair("padding")?,
                    dilation: self.pair("dilation")?,
                    groups: self.number("groups")? as usize,
                };
                Ok(ops::conv2d(x, weight()?, bias, params)?)
            }
            "linear" => Ok(ops::linear(x, weight()?, bias)?),
            "batch_norm" => {
                let (eps, bias) = (self.number("eps")?, bias.context("bias")?);
                if self.flag("train")? {
                    let stats = ops::batch_stats(x)?;
                    Ok(ops::batch_norm(x, weight()?, bias, (&stats.mean, &stats.var), eps, true)?)
                } else {
                    let (mean, var) = (self.tensor("running_mean", dtype)?, self.tensor("running_var", dtype)?);
                    Ok(ops::batch_norm(x, weight()?, bias, (&mean, &var), eps, false)?)
                }
            }
            "max_pool2d" => {
                let (kernel, stride, padding, ceil) = pool()?;
                Ok(ops::max_pool2d(x, kernel, stride, padding, ceil)?)
            }
            "avg_pool2d" => {
                let (kernel, stride, padding, ceil) = pool()?;
                Ok(ops::avg_pool2d(x, kernel, stride, padding, ceil, self.flag("count_include_pad")?)?)
            }
            "adaptive_avg_pool2d" => {
                let (b, c, ..) = x.dims4()?;
                match self.pair("output")? {
                    (1, 1) => Ok(zoo_core::global_avg_pool2d(x)?.reshape((b, c, 1, 1))?),
                    size => Ok(ops::adaptive_avg_pool2d(x, size)?),
                }
            }
            "layer_norm" => Ok(ops::layer_norm(x, weight()?, bias.context("bias")?, self.number("eps")?)?),
            "softmax" => Ok(ops::softmax(x)?),
            "attention" => {
                let qkv = (x, weight()?, bias.context("v")?);
                Ok(zoo_core::scaled_dot_product_attention(qkv, Some(&self.tensor("mask", dtype)?), None, true)?)
            }
            "relu" => activation(Pointwise::Relu),
            "relu6" => activation(Pointwise::Relu6),
            "silu" => activation(Pointwise::Silu),
            "sigmoid" => activation(Pointwise::Sigmoid),
            "tanh" => activation(Pointwise::Tanh),
            "hardswish" => activation(Pointwise::HardSwish),
            "hardsigmoid" => activation(Pointwise::HardSigmoid),
            "gelu" if self.params["approximate"] == "tanh" => activation(Pointwise::GeluTanh),
            "gelu" => activation(Pointwise::Gelu),
            "leaky_relu" => activation(Pointwise::LeakyRelu(self.number("negative_slope")?)),
            "cross_entropy" => {
                let targets = self.tensors["target"];
                let targets = targets.to_dtype(if targets.rank() == 1 { DType::U32 } else { dtype })?;
                Ok(ops::cross_entropy(x, &targets, self.number("label_smoothing")?)?)
            }
            other => bail!("{}: the test does not know the operation {other}", self.name),
        }
    }

    fn check(&self, mode: Mode) -> Result<()> {
        let roles = ["input", "weight", "bias"].into_iter().filter(|role| self.tensors.contains_key(role));
        let vars: HashMap<&str, Var> = roles
            .map(|role| anyhow::Ok((role, Var::from_tensor(&self.tensor(role, mode.dtype)?)?)))
            .collect::<Result<_>>()?;
        let inputs = vars
            .iter()
            .map(|(&role, var)| anyhow::Ok((role, if mode.strided { strided(var)? } else { var.as_tensor().clone() })))
            .collect::<Result<_>>()?;
        let forward = || self.run(&inputs, mode.dtype);
        let output = if mode.composed { ops::with_fallback(forward)? } else { forward()? };
        self.near("output", &output, "output", mode)?;
        let upstream = self.tensor("upstream", mode.dtype)?;
        let upstream = if mode.strided { strided(&upstream)? } else { upstream };
        let grads = (output * upstream)?.sum_all()?.backward()?;
        for (role, var) in &vars {
            let grad = grads.get(var).with_context(|| format!("{}: {role} has no gradient", self.name))?;
            self.near(&format!("gradient of {role}"), grad, &format!("grad.{role}"), mode)?;
        }
        Ok(())
    }

    fn near(&self, what: &str, got: &Tensor, role: &str, mode: Mode) -> Result<()> {
        let want = self.tensors.get(role).with_context(|| format!("{}: no {role}", self.name))?;
        ensure!(got.dims() == want.dims(), "{}: {what} is {:?}, PyTorch has {:?}", self.name, got.dims(), want.dims());
        let (got, want) = (values(got)?, values(want)?);
        let difference: Vec<f64> = got.iter().zip(&want).map(|(g, w)| g - w).collect();
        // A gradient that cancels (the input of a BatchNorm over two rows) is compared with the scale of its terms: 1.
        let bound = mode.tolerance * norm(&want).max(1.0) * self.condition(mode);
        ensure!(
            norm(&difference) <= bound,
            "{} {mode:?}: {what} differs by {:e}, bound {bound:e}\n got {:?}\nwant {:?}",
            self.name,
            norm(&difference),
            &got[..got.len().min(12)],
            &want[..want.len().min(12)]
        );
        Ok(())
    }

    /// How much larger than the result its ingredients are, where rounding the input alone costs digits.
    fn condition(&self, mode: Mode) -> f64 {
        match self.name {
            // x - mean takes the 1000 off again: the input's rounding grows a thousandfold, in any implementation.
            "batch_norm/train_large_mean" | "layer_norm/large_mean" => 1e4,
            // PyTorch's derivative of hardsigmoid is 1/6 rounded to f32, in f64 too: 3e-8 off. The finite differences
            // in zoo-core hold ours.
            name if name.starts_with("hardsigmoid/") && mode.dtype == DType::F64 => 1e5,
            // Logits of 800 are rounded to 800 · 6e-8 in f32.
            name if name.ends_with("large_logits") || name == "softmax/large" && mode.dtype == DType::F32 => 1e3,
            _ => 1.0,
        }
    }
}

/// The same values as a transposed view into the middle of a larger storage (or just inside one, for vectors).
fn strided(xs: &Tensor) -> Result<Tensor> {
    if xs.rank() == 0 {
        return Ok(xs.clone());
    }
    let last = xs.rank() - 1;
    let padded = xs.pad_with_zeros(0, 1, 2)?.narrow(0, 1, xs.dim(0)?)?;
    if last == 0 {
        return Ok(padded);
    }
    let view = padded.transpose(0, last)?.contiguous()?.transpose(0, last)?;
    Ok(view)
}

fn check_all(mode: Mode) -> Result<()> {
    let description = golden_json("ops.json")?;
    let stored = candle_core::safetensors::load(golden("ops.safetensors"), &Device::Cpu)?;
    let cases = description["cases"].as_array().context("cases")?;
    ensure!(cases.len() > 100, "the golden file holds {} cases only", cases.len());
    let mut failures = Vec::new();
    for case in cases {
        let name = case["name"].as_str().context("name")?;
        let roles = case["tensors"].as_array().context("tensors")?.iter().filter_map(Value::as_str);
        let tensors = roles
            .map(|role| Ok((role, stored.get(&format!("{name}/{role}")).with_context(|| format!("{name}/{role}"))?)))
            .collect::<Result<_>>()?;
        let case = Case { name, op: case["op"].as_str().context("op")?, params: &case["params"], tensors };
        if let Err(error) = case.check(mode) {
            failures.push(format!("{error:#}"));
        }
    }
    ensure!(failures.is_empty(), "{} of {} cases fail:\n{}", failures.len(), cases.len(), failures.join("\n"));
    Ok(())
}

const F64: Mode = Mode { dtype: DType::F64, strided: false, composed: false, tolerance: 1e-12 };
const F32: Mode = Mode { dtype: DType::F32, tolerance: 1e-5, ..F64 };

#[test]
fn kernels_in_f64() -> Result<()> {
    check_all(F64)
}

#[test]
fn kernels_in_f32() -> Result<()> {
    check_all(F32)
}

#[test]
fn kernels_on_strided_inputs() -> Result<()> {
    check_all(Mode { strided: true, ..F64 })
}

#[test]
fn compositions_in_f64() -> Result<()> {
    check_all(Mode { composed: true, ..F64 })
}

#[test]
fn compositions_on_strided_inputs() -> Result<()> {
    check_all(Mode { composed: true, strided: true, ..F64 })
}

#[test]
fn running_statistics() -> Result<()> {
    use zoo_core::{BatchNorm, BatchNormConfig, ModuleT, VarStore};
    let description = golden_json("ops.json")?;
    let stored = candle_core::safetensors::load(golden("ops.safetensors"), &Device::Cpu)?;
    let mut checked = 0;
    for case in description["cases"].as_array().context("cases")?.iter().filter(|case| case["op"] == "batch_norm") {
        let name = case["name"].as_str().context("name")?;
        let tensor = |role: &str| stored.get(&format!("{name}/{role}")).with_context(|| format!("{name}/{role}"));
        let store = VarStore::new(0, DType::F64, &Device::Cpu);
        let number = |field: &str| case["params"][field].as_f64().context("number");
        let config = BatchNormConfig { eps: number("eps")?, momentum: number("momentum")?, ..Default::default() };
        let layer = BatchNorm::with(tensor("weight")?.dim(0)?, config, store.root())?;
        for slot in store.slots() {
            slot.var.context("var")?.set(tensor(&slot.key)?)?;
        }
        let train = case["params"]["train"].as_bool().context("train")?;
        let output = layer.forward_t(tensor("input")?, train)?;
        for (what, got, want) in [
            ("output", output, tensor("output")?),
            ("running_mean", store.buffers()[0].1.as_detached_tensor(), tensor("running_mean.after")?),
            ("running_var", store.buffers()[1].1.as_detached_tensor(), tensor("running_var.after")?),
        ] {
            let difference = values(&(got - want)?)?;
            let scale = norm(&values(want)?).max(1.0);
            assert!(norm(&difference) <= 1e-11 * scale, "{name}: {what} differs by {:e}", norm(&difference));
            checked += 1;
        }
    }
    assert!(checked >= 27, "{checked} comparisons only");
    Ok(())
}

//! Whole networks against PyTorch: logits in evaluation and training, the loss, the gradient of every parameter and of the
//! input, and the running statistics after one step.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use serde_json::Value;
use tests::{compare_summary, fill_store, golden_json, norm, unit, values};
use zoo::{Model, ModelOptions, VarStore};
use zoo_core::{BatchNormConfig, loss::cross_entropy};

/// The network of a golden entry: registered, or a configuration that the registry does not list.
fn build(name: &str, store: &VarStore) -> Result<Box<dyn Model>> {
    if name == "mlp_bn" {
        use zoo::mlp::mlp::{Config, Mlp};
        let config = Config { batch_norm: Some(BatchNormConfig::default()), ..Config::new(&[3072, 512, 256, 10]) };
        return Ok(Box::new(Mlp::new(&config, store.root())?));
    }
    Ok(zoo::create(name, &ModelOptions::default(), store)?)
}

fn rows(want: &Value) -> Result<Vec<f64>> {
    let rows = want.as_array().context("rows")?.iter().flat_map(|row| row.as_array().into_iter().flatten());
    rows.map(|x| x.as_f64().context("number")).collect()
}

fn near(what: &str, got: &Tensor, want: &[f64], tolerance: f64) -> Result<()> {
    let got = values(got)?;
    ensure!(got.len() == want.len(), "{what}: {} values, PyTorch has {}", got.len(), want.len());
    let difference: Vec<f64> = got.iter().zip(want).map(|(g, w)| g - w).collect();
    ensure!(
        norm(&difference) <= tolerance * norm(want),
        "{what} differs by {:e} of {:e}",
        norm(&difference),
        norm(want)
    );
    Ok(())
}

fn check(entry: &Value, dtype: DType, tolerance: f64) -> Result<()> {
    let name = entry["name"].as_str().context("name")?;
    let store = VarStore::new(0, dtype, &Device::Cpu);
    let net = build(name, &store)?;
    fill_store(&store)?;
    ensure!(
        Some(store.parameter_count() as u64) == entry["parameters"].as_u64(),
        "{name}: {}",
        store.parameter_count()
    );

    let dims: Vec<usize> = serde_json::from_value(entry["input"].clone())?;
    let input = Tensor::from_vec(unit("input", dims.iter().product()), dims, &Device::Cpu)?.to_dtype(dtype)?;
    let targets: Vec<u32> = serde_json::from_value(entry["target"].clone())?;
    let targets = Tensor::new(targets, &Device::Cpu)?;

    near(&format!("{name}: eval logits"), &net.forward_t(&input, false)?, &rows(&entry["logits_eval"])?, tolerance)?;
    let input = Var::from_tensor(&input)?;
    let logits = net.forward_t(&input, true)?;
    near(&format!("{name}: train logits"), &logits, &rows(&entry["logits_train"])?, tolerance)?;
    let loss = cross_entropy(&logits, &targets, 0.0)?;
    near(&format!("{name}: loss"), &loss, &[entry["loss"].as_f64().context("loss")?], tolerance)?;

    // Discrete turns that a rounding can cause; `generate.py` says how this is measured.
    let tolerance = if dtype == DType::F32 {
        tolerance.max(4.0 * entry["f32_error"].as_f64().context("f32_error")?)
    } else {
        tolerance
    };
    let grads = loss.backward()?;
    let wanted = entry["grads"].as_array().context("grads")?;
    let parameters = store.parameters();
    ensure!(parameters.len() == wanted.len(), "{name}: {} parameters, PyTorch has {}", parameters.len(), wanted.len());
    // A gradient that mathematics cancels is compared with the scale of its network.
    let scale = wanted.iter().filter_map(|g| g["norm"].as_f64()).fold(0.0, f64::max);
    for (want, (key, var)) in wanted.iter().zip(&parameters) {
        ensure!(want["key"] == *key, "{name}: parameter `{key}` stands where PyTorch has {}", want["key"]);
        let grad = grads.get(var).with_context(|| format!("{name}: `{key}` has no gradient"))?;
        compare_summary(&format!("{name}: gradient of"), key, grad, want, tolerance, 1e-3 * scale)?;
    }
    let grad = grads.get(&input).context("the input has no gradient")?;
    compare_summary(&format!("{name}: gradient of"), "input", grad, &entry["grad_input"], tolerance, 0.0)?;
    let stats = entry["stats"].as_array().context("stats")?;
    ensure!(stats.len() == store.buffers().len(), "{name}: {} statistics", store.buffers().len());
    for want in stats {
        let key = want["key"].as_str().context("key")?;
        let var = store.get(key).and_then(|slot| slot.var).with_context(|| format!("{name}: no `{key}`"))?;
        compare_summary(&format!("{name}: after a step"), key, &var, want, tolerance, 0.0)?;
    }
    Ok(())
}

fn check_all(dtype: DType, tolerance: f64) -> Result<()> {
    let golden = golden_json("models.json")?;
    let models = golden["models"].as_array().context("models")?;
    ensure!(!models.is_empty(), "the golden file holds no model");
    let failures: Vec<String> =
        models.iter().filter_map(|entry| check(entry, dtype, tolerance).err().map(|e| format!("{e:#}"))).collect();
    ensure!(failures.is_empty(), "{} of {} models fail:\n{}", failures.len(), models.len(), failures.join("\n"));
    Ok(())
}

#[test]
fn networks_in_f64() -> Result<()> {
    check_all(DType::F64, 1e-9)
}

#[test]
fn networks_in_f32() -> Result<()> {
    check_all(DType::F32, 1e-3)
}

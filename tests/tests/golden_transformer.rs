//! The encoder–decoder against `torch.nn.Transformer`, and the translator on top of it against one of PyTorch's parts:
//! output, loss, and the gradient of every parameter and of the inputs.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use serde_json::Value;
use tests::{compare_summary, fill_store, golden_json, unit, values};
use zoo::VarStore;
use zoo::transformer::transformer::seq2seq::{self, Seq2Seq, Sharing};
use zoo::transformer::transformer::{Config, Masks, Transformer, causal_mask};
use zoo_core::Pointwise;

/// As `reference_transformer.py` has them: places of each source and target that are no padding.
const LENGTHS: [(usize, usize); 3] = [(7, 5), (4, 3), (1, 4)];

fn config(settings: &Value) -> Config {
    Config {
        d_model: 32,
        heads: 4,
        encoder_layers: 2,
        decoder_layers: 2,
        feed_forward: 64,
        activation: if settings["activation"] == "gelu" { Pointwise::Gelu } else { Pointwise::Relu },
        norm_first: settings["norm_first"] == true,
        final_norms: settings["final_norms"] != false,
        ..Config::base()
    }
}

fn padding(lengths: impl Iterator<Item = usize>, n: usize, dtype: DType) -> Result<Tensor> {
    let row = |length| (0..n).map(move |j| if j < length { 0f32 } else { f32::NEG_INFINITY });
    let values: Vec<f32> = lengths.flat_map(row).collect();
    Ok(Tensor::from_vec(values, (LENGTHS.len(), 1, 1, n), &Device::Cpu)?.to_dtype(dtype)?)
}

/// The output, the loss, and the inputs that have a gradient.
type Run = (Tensor, Tensor, Vec<(&'static str, Var)>);

fn sequences(entry: &Value, store: &VarStore, dtype: DType) -> Result<Run> {
    let net = Transformer::new(&config(&entry["settings"]), store.root())?;
    fill_store(store)?;
    let input = |name: &str| -> Result<Var> {
        let dims: Vec<usize> = serde_json::from_value(entry["inputs"][name].clone())?;
        let values = Tensor::from_vec(unit(name, dims.iter().product()), dims, &Device::Cpu)?;
        Ok(Var::from_tensor(&values.to_dtype(dtype)?)?)
    };
    let (source, target) = (input("source")?, input("target")?);
    let (n, m) = (source.dim(1)?, target.dim(1)?);
    let masks = if entry["settings"]["masks"] == true {
        let hidden = padding(LENGTHS.iter().map(|l| l.0), n, dtype)?;
        let causal = causal_mask(m, m, dtype, &Device::Cpu)?;
        let target = causal.broadcast_add(&padding(LENGTHS.iter().map(|l| l.1), m, dtype)?)?;
        Masks { source: Some(hidden.clone()), target: Some(target), memory: Some(hidden) }
    } else {
        Masks::default()
    };
    let eval = net.forward(&source, &target, &masks, false)?;
    let output = net.forward(&source, &target, &masks, true)?;
    ensure!(values(&eval)? == values(&output)?, "evaluation differs from training without dropout");
    let upstream = Tensor::from_vec(unit("upstream", output.elem_count()), output.shape(), &Device::Cpu)?;
    let loss = (&output * upstream.to_dtype(dtype)?)?.sum_all()?;
    Ok((output, loss, vec![("source", source), ("target", target)]))
}

fn translator(entry: &Value, store: &VarStore) -> Result<Run> {
    let settings = &entry["settings"];
    let sharing = match settings["sharing"].as_str() {
        Some("none") => Sharing::None,
        Some("target") => Sharing::Target,
        _ => Sharing::All,
    };
    let config = seq2seq::Config { transformer: config(settings), sharing, ..seq2seq::Config::base(13, 0) };
    let net = Seq2Seq::new(&config, store.root())?;
    fill_store(store)?;
    let tokens = |name: &str| -> Result<Tensor> {
        let tokens: Vec<Vec<u32>> = serde_json::from_value(entry["inputs"][name].clone())?;
        Ok(Tensor::new(tokens, &Device::Cpu)?)
    };
    let (source, target) = (tokens("source")?, tokens("target")?);
    let target_in = target.narrow(1, 0, target.dim(1)? - 1)?;
    let output = net.forward(&source, &target_in, true)?;
    // What stands behind the end of a target is nobody's concern: PyTorch's side hides it there, ours does not.
    let output = output.broadcast_mul(&target_in.ne(0u32)?.to_dtype(output.dtype())?.unsqueeze(2)?)?;
    let smoothing = settings["label_smoothing"].as_f64().context("label_smoothing")?;
    Ok((output, net.loss(&source, &target, smoothing, true)?, Vec::new()))
}

fn check(entry: &Value, dtype: DType, tolerance: f64) -> Result<()> {
    let store = VarStore::new(0, dtype, &Device::Cpu);
    store.set_dropout(false);
    let (output, loss, inputs) = match entry["settings"]["kind"].as_str() {
        Some("transformer") => sequences(entry, &store, dtype)?,
        _ => translator(entry, &store)?,
    };
    ensure!(Some(store.parameter_count() as u64) == entry["parameters"].as_u64(), "{}", store.parameter_count());
    let shape: Vec<usize> = serde_json::from_value(entry["output"]["shape"].clone())?;
    ensure!(output.dims() == shape, "the output is {:?}", output.dims());
    compare_summary("the", "output", &output, &entry["output"], tolerance, 0.0)?;
    let (got, want) = (values(&loss)?[0], entry["loss"].as_f64().context("loss")?);
    // A sum over the output with random signs: its terms are larger than itself.
    let scale = entry["output"]["norm"].as_f64().context("norm")?;
    ensure!((got - want).abs() <= tolerance * scale, "the loss is {got:e}, PyTorch has {want:e}");

    // Signs before a ReLU that a rounding can turn; `generate.py` says how this is measured.
    let tolerance = if dtype == DType::F32 {
        tolerance.max(4.0 * entry["f32_error"].as_f64().context("f32_error")?)
    } else {
        tolerance
    };
    let grads = loss.backward()?;
    let wanted = entry["grads"].as_array().context("grads")?;
    let parameters = store.parameters();
    ensure!(parameters.len() == wanted.len(), "{} parameters, PyTorch has {}", parameters.len(), wanted.len());
    // The bias of the keys shifts all scores of a query alike, which the softmax cancels.
    let scale = 1e-3 * wanted.iter().filter_map(|g| g["norm"].as_f64()).fold(0.0, f64::max);
    for (want, (key, var)) in wanted.iter().zip(&parameters) {
        ensure!(want["key"] == *key, "parameter `{key}` stands where PyTorch has {}", want["key"]);
        let grad = grads.get(var).with_context(|| format!("`{key}` has no gradient"))?;
        compare_summary("gradient of", key, grad, want, tolerance, scale)?;
    }
    for (name, var) in &inputs {
        let grad = grads.get(var).with_context(|| format!("the {name} has no gradient"))?;
        compare_summary("gradient of the", name, grad, &entry["grads_inputs"][name], tolerance, 0.0)?;
    }
    Ok(())
}

fn check_all(dtype: DType, tolerance: f64) -> Result<()> {
    let golden = golden_json("transformer_seq.json")?;
    let models = golden["models"].as_array().context("models")?;
    ensure!(!models.is_empty(), "the golden file holds no model");
    let failure = |entry: &Value| check(entry, dtype, tolerance).err().map(|e| format!("{}: {e:#}", entry["name"]));
    let failures: Vec<String> = models.iter().filter_map(failure).collect();
    ensure!(failures.is_empty(), "{} of {} fail:\n{}", failures.len(), models.len(), failures.join("\n"));
    Ok(())
}

#[test]
fn in_f64() -> Result<()> {
    check_all(DType::F64, 1e-9)
}

#[test]
fn in_f32() -> Result<()> {
    check_all(DType::F32, 1e-3)
}

//! Frozen parts of networks: they run as in evaluation, keep their statistics, build no graph, and pass gradients on where
//! something in front of them is trained.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use zoo::{Model, ModelOptions, ModuleT, VarStore};
use zoo_core::loss::cross_entropy;
use zoo_core::tape::value_and_grad;

/// One of every family and kind of block.
const MODELS: [&str; 8] = [
    "cifar_resnet20",
    "cifar_vgg16_bn",
    "cifar_densenet121",
    "cifar_mobilenet_v2",
    "cifar_shufflenet_v1_g3",
    "cifar_googlenet",
    "cifar_vit_tiny_patch4",
    "template_mixer_s4",
];

fn build(name: &str, dtype: DType, frozen: fn(&str, &str) -> bool) -> Result<(VarStore, Box<dyn Model>)> {
    let info = zoo::find(name)?;
    let options = ModelOptions::default();
    let head = info.build(&options, VarStore::shapes_only().root())?.classifier().path().to_string();
    let store = VarStore::new(1, dtype, &Device::Cpu);
    store.set_frozen(move |key| frozen(key, &head));
    let net = info.build(&options, store.root())?;
    store.set_dropout(false);
    Ok((store, net))
}

/// A tensor filled by a rule, the same everywhere.
fn filled(key: &str, dims: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_vec(tests::fill(key, dims), dims, &Device::Cpu)?)
}

fn images(dtype: DType) -> Result<(Tensor, Tensor)> {
    let images = filled("images", &[3, 3, 32, 32])?.to_dtype(dtype)?;
    Ok((images, Tensor::new(&[3u32, 0, 7], &Device::Cpu)?))
}

fn all_but_head(key: &str, head: &str) -> bool {
    key != head && !key.starts_with(&format!("{head}."))
}

fn bits(store: &VarStore, keep: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Vec<u64>>> {
    let slots = store.slots().into_iter().filter(|slot| keep(&slot.key));
    let values = |slot: zoo_core::Slot| -> Result<(String, Vec<u64>)> {
        let var = slot.var.context("a store of shapes")?;
        let values = var.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        Ok((slot.key, values.into_iter().map(f64::to_bits).collect()))
    };
    slots.map(values).collect()
}

fn largest(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok((a - b)?.abs()?.flatten_all()?.max(0)?.to_dtype(DType::F64)?.to_scalar::<f64>()?)
}

/// With all but the classifier frozen a training pass is evaluation up to it: its gradient is that of a linear layer on the
/// features of evaluation, nothing else has one, and no bit of the trunk or its statistics moves.
#[test]
fn a_frozen_trunk_is_its_evaluation() -> Result<()> {
    for name in MODELS {
        let (store, net) = build(name, DType::F64, all_but_head)?;
        let (images, labels) = images(DType::F64)?;
        let head = net.classifier().path().to_string();
        let trained: Vec<String> = store.parameters().into_iter().map(|(key, _)| key).collect();
        ensure!(trained.iter().all(|key| key.starts_with(&head)) && !trained.is_empty(), "{name}: {trained:?}");
        ensure!(store.parameter_count() == zoo::find(name)?.parameters, "{name}: frozen ones count as parameters too");
        let before = bits(&store, |key| all_but_head(key, &head))?;

        let features = net.pre_logits(&net.forward_features(&images, false)?, false)?.detach();
        let want = {
            let logits = net.classifier().forward_t(&features, true)?;
            cross_entropy(&logits, &labels, 0.0)?.backward()?
        };
        let (_, got) = value_and_grad(&images, |xs| Ok(net.training_loss(xs, &labels, 0.0)?.0))?;
        for (key, var) in store.parameters() {
            let (want, got) = (want.get(&var).context(key.clone())?, got.get(&var).context(key.clone())?);
            let error = largest(got, want)?;
            ensure!(error < 1e-12, "{name} {key}: {error} off");
        }
        ensure!(bits(&store, |key| all_but_head(key, &head))? == before, "{name}: the trunk has moved");
    }
    Ok(())
}

/// The same in mixed precision: it runs, its loss is that of evaluation to bfloat16's digits, and the statistics stay.
#[test]
fn a_frozen_trunk_computes_in_mixed_precision() -> Result<()> {
    for name in MODELS {
        let (store, net) = build(name, DType::F32, all_but_head)?;
        let (images, labels) = images(DType::F32)?;
        let before = bits(&store, |_| true)?;
        let want = cross_entropy(&net.forward_t(&images, false)?, &labels, 0.0)?.to_scalar::<f32>()?;
        let maps = zoo_core::Precision::Bf16.cast(&images)?;
        let (loss, grads) = value_and_grad(&maps, |xs| Ok(net.training_loss(xs, &labels, 0.0)?.0))?;
        let loss = loss.to_scalar::<f32>()?;
        ensure!((loss - want).abs() < 0.05 * want.abs().max(1.0), "{name}: {loss}, in f32 {want}");
        ensure!(store.parameters().iter().all(|(_, var)| grads.get(var).is_some()), "{name}: no gradient of the head");
        ensure!(bits(&store, |_| true)? == before, "{name}: something has moved");
    }
    Ok(())
}

/// With every second block frozen, gradients pass through those: the derivative along a direction is the difference
/// quotient, for the parameters in front of frozen layers too.
#[test]
fn gradients_pass_through_frozen_layers() -> Result<()> {
    /// Keys whose numbers add up to an odd one.
    fn odd(key: &str, _: &str) -> bool {
        key.bytes().filter(u8::is_ascii_digit).map(|digit| usize::from(digit - b'0')).sum::<usize>() % 2 == 1
    }
    for name in MODELS {
        let (store, net) = build(name, DType::F64, odd)?;
        let (images, labels) = images(DType::F64)?;
        let frozen: Vec<String> = store.slots().into_iter().filter(|slot| slot.frozen).map(|slot| slot.key).collect();
        let trained = store.parameters();
        ensure!(!frozen.is_empty() && !trained.is_empty(), "{name}: {} frozen, {}", frozen.len(), trained.len());
        let before = bits(&store, |key| frozen.iter().any(|k| k == key))?;
        let loss = |xs: &Tensor| net.training_loss(xs, &labels, 0.0).map(|(loss, _)| loss);
        let (_, grads) = value_and_grad(&images, loss)?;

        // Along one direction of all trained parameters at once.
        let directions: Vec<Tensor> =
            trained.iter().map(|(key, var)| filled(key, var.dims())).collect::<Result<_>>()?;
        let mut slope = 0.0;
        for ((key, var), direction) in trained.iter().zip(&directions) {
            let grad = grads.get(var).with_context(|| format!("{name}: no gradient of {key}"))?;
            slope += (grad * direction)?.sum_all()?.to_scalar::<f64>()?;
        }
        let start: Vec<Tensor> = trained.iter().map(|(_, var)| var.copy()).collect::<candle_core::Result<_>>()?;
        let at = |step: f64| -> Result<f64> {
            for (((_, var), start), direction) in trained.iter().zip(&start).zip(&directions) {
                var.set(&(start + (direction * step)?)?)?;
            }
            let (loss, _) = value_and_grad(&images, loss)?;
            Ok(loss.to_scalar::<f64>()?)
        };
        // Narrow enough for ReLUs and maxima to stay on their side, wide enough for the digits of the loss.
        let mut closest = f64::INFINITY;
        for h in [1e-7, 1e-8, 1e-9, 1e-10] {
            let quotient = (at(h)? - at(-h)?) / (2.0 * h);
            closest = closest.min((slope - quotient).abs() / slope.abs().max(1.0));
        }
        at(0.0)?;
        ensure!(closest < 1e-4, "{name}: slope {slope}, {closest} from any difference quotient");
        ensure!(bits(&store, |key| frozen.iter().any(|k| k == key))? == before, "{name}: what is frozen has moved");
    }
    Ok(())
}

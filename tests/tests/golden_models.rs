//! Whole networks against PyTorch: logits in evaluation and training, the loss, the gradient of every parameter and of
//! the input, and the running statistics after one step.

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor, Var};
use serde_json::Value;
use tests::{compare_summary, fill_store, golden_json, norm, unit, values};
use zoo::{Model, ModelOptions, VarStore};
use zoo_core::{BatchNormConfig, GlobalPool, Pointwise, loss::cross_entropy};

/// The network of a golden entry: the registered one with ten classes, or one with settings that the registry does not
/// have; `reference_*.py` names them.
fn build(name: &str, settings: &str, image: usize, store: &VarStore) -> Result<Box<dyn Model>> {
    let vb = store.root();
    Ok(match settings {
        "" => {
            let options = ModelOptions { num_classes: Some(10), image_size: Some(image), ..Default::default() };
            zoo::create(name, &options, store)?
        }
        "mlp batch_norm" => {
            use zoo::mlp::mlp::{Config, Mlp};
            let config = Config { batch_norm: Some(BatchNormConfig::default()), ..Config::new(&[3072, 512, 256, 10]) };
            Box::new(Mlp::new(&config, vb)?)
        }
        "alexnet hidden 256" => {
            use zoo::cnn::alexnet::{AlexNet, Config};
            Box::new(AlexNet::new(&Config { hidden: 256, num_classes: 10, ..Config::alexnet() }, vb)?)
        }
        "vgg11 hidden 256" | "vgg13_bn hidden 256" => {
            use zoo::cnn::vgg::{Config, Head, Vgg};
            let config = if settings.contains("_bn") { Config::vgg_bn(13)? } else { Config::vgg(11)? };
            let head = Head::Hidden { grid: 7, width: 256, dropout: 0.5 };
            Box::new(Vgg::new(&Config { head, num_classes: 10, ..config }, vb)?)
        }
        "googlenet auxiliary transform_input kernel 5" => {
            use zoo::cnn::googlenet::{Config, GoogLeNet};
            let config = Config { auxiliary: true, transform_input: true, large_kernel: 5, ..Config::googlenet() };
            Box::new(GoogLeNet::new(&Config { num_classes: 10, ..config }, vb)?)
        }
        _ if settings.starts_with("densenet ") => {
            use zoo::cnn::densenet::{Config, DenseNet, Stem};
            let blocks = vec![2, 1, 1, 2];
            let config = match settings {
                "densenet unpadded 2 1 1 2" => {
                    Config { blocks, stem: Stem::Shrinking { padding: 0 }, ..Config::densenet121() }
                }
                "densenet small 2 1 1 2" => Config { blocks, ..Config::cifar_densenet121() },
                "densenet bc 22 12" => Config::cifar_bc(22, 12)?,
                "densenet plain 10 12" => Config::cifar_plain(10, 12)?,
                other => bail!("{name}: the test does not know the settings `{other}`"),
            };
            Box::new(DenseNet::new(&Config { num_classes: 10, ..config }, vb)?)
        }
        "bottlenecks stride_on_1x1" | "bottlenecks groups" | "bottlenecks plain" | "bottlenecks se" => {
            use zoo::resnet::resnet::{Config, ResNet, Shortcut};
            let one_each = Config { blocks: [1; 4], num_classes: 10, ..Config::resnet(50)? };
            let config = match settings.trim_start_matches("bottlenecks ") {
                "stride_on_1x1" => Config { stride_on_1x1: true, ..one_each },
                "groups" => Config { groups: 32, width_per_group: 4, ..one_each },
                "plain" => Config { shortcut: Shortcut::None, ..one_each },
                _ => Config { se_reduction: Some(16), ..one_each },
            };
            Box::new(ResNet::new(&config, vb)?)
        }
        "resnet one_each max" | "resnet one_each avgmax" => {
            use zoo::resnet::resnet::{Config, ResNet};
            let global_pool = if settings.ends_with(" max") { GlobalPool::Max } else { GlobalPool::AvgMax };
            let config = Config { blocks: [1; 4], num_classes: 10, global_pool, ..Config::resnet(18)? };
            Box::new(ResNet::new(&config, vb)?)
        }
        "template_residual_cnn big" => {
            use zoo::resnet::{
                resnet::Kind,
                template_residual_cnn::{Config, TemplateResidualCnn},
            };
            let config = Config { block: Kind::Bottleneck, image_size: image, ..Config::template() };
            Box::new(TemplateResidualCnn::new(&config, vb)?)
        }
        "template mlp" => {
            use zoo::mlp::mlp::{Config, Mlp};
            Box::new(Mlp::new(&Config::template(&[3072, 64, 48, 10]), vb)?)
        }
        "template mlp leaky" => {
            use zoo::mlp::mlp::{Config, Last, Mlp};
            let config = Config {
                batch_norm: None,
                middle: Pointwise::LeakyRelu(0.01),
                last: Last::Pointwise(Pointwise::Sigmoid),
                ..Config::template(&[3072, 64, 48, 10])
            };
            Box::new(Mlp::new(&config, vb)?)
        }
        "mixer narrow" => {
            use zoo::mlp::mlp_mixer::{Config, MlpMixer};
            let config = Config { image_size: 32, num_classes: 10, ..Config::new(8, 3, 64) };
            Box::new(MlpMixer::new(&config, vb)?)
        }
        "vit mean" | "vit mean beside class token" => {
            use zoo::transformer::vit::{Config, Pooling, VisionTransformer};
            let config = Config {
                image_size: image,
                patch: 8,
                dim: 48,
                depth: 3,
                mlp_dim: 4 * 48,
                class_token: settings != "vit mean",
                pooling: Pooling::Mean,
                num_classes: 10,
                ..Config::vit_tiny_patch16_224()
            };
            Box::new(VisionTransformer::new(&config, vb)?)
        }
        other => bail!("{name}: the test does not know the settings `{other}`"),
    })
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
    let image = entry["input"][2].as_u64().context("input")? as usize;
    let net = build(name, entry["settings"].as_str().context("settings")?, image, &store)?;
    fill_store(&store)?;
    store.set_dropout(false);
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
    let (logits, auxiliary) = net.forward_auxiliary(&input, true)?;
    near(&format!("{name}: train logits"), &logits, &rows(&entry["logits_train"])?, tolerance)?;
    let mut loss = cross_entropy(&logits, &targets, 0.0)?;
    for head in auxiliary {
        loss = (loss + (cross_entropy(&head.logits, &targets, 0.0)? * head.loss_weight)?)?;
    }
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

fn check_all(family: &str, dtype: DType, tolerance: f64) -> Result<()> {
    let golden = golden_json(&format!("models_{family}.json"))?;
    let models = golden["models"].as_array().context("models")?;
    ensure!(!models.is_empty(), "the golden file holds no model");
    let failures: Vec<String> =
        models.iter().filter_map(|entry| check(entry, dtype, tolerance).err().map(|e| format!("{e:#}"))).collect();
    ensure!(failures.is_empty(), "{} of {} models fail:\n{}", failures.len(), models.len(), failures.join("\n"));
    Ok(())
}

macro_rules! family {
    ($name:ident) => {
        mod $name {
            #[test]
            fn in_f64() -> anyhow::Result<()> {
                super::check_all(stringify!($name), candle_core::DType::F64, 1e-9)
            }

            #[test]
            fn in_f32() -> anyhow::Result<()> {
                super::check_all(stringify!($name), candle_core::DType::F32, 1e-3)
            }
        }
    };
}

family!(cnn);
family!(resnet);
family!(mobile);
family!(transformer);
family!(mlp);

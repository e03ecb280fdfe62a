//! The published checkpoints classify real images as often as they do in PyTorch: pixels, normalisation, BatchNorm,
//! shortcuts and keys, all at once.

use anyhow::Result;
use candle_core::{DType, Device};
use tests::shared;
use zoo::{ModelOptions, VarStore};
use zoo_core::weights::{LoadOptions, Weights, load};
use zoo_image::Normalize;
use zoo_train::data::{DataSpec, Dataset};
use zoo_train::eval::evaluate;
use zoo_train::loader::Loader;

/// How many of the test images `model` classifies right with the weights in `file`.
fn correct(model: &str, file: &str) -> Result<Option<usize>> {
    let (Some(weights), Some(data)) = (shared(&format!("checkpoints/{file}")), shared("data/cifar10-sample")) else {
        return Ok(None);
    };
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    let net = zoo::create(model, &ModelOptions::default(), &store)?;
    let options = LoadOptions { renames: zoo::find(model)?.renames, ..Default::default() };
    load(&store, &Weights::open(&weights)?, &options)?;
    let data = Dataset::load(&DataSpec::Dir(data))?;
    // What these checkpoints were trained with.
    let transform = data.train.transform(&Normalize::IMAGENET)?;
    let loader = Loader::eval(data.test, transform.into(), 250, &Device::Cpu)?;
    Ok(Some(evaluate(net.as_ref(), &loader)?.correct))
}

#[test]
fn resnet20_classifies_915_of_1000() -> Result<()> {
    if let Some(n) = correct("cifar_resnet20", "resnet20-12fca82f.th")? {
        assert!((914..=916).contains(&n), "{n} of 1000");
    }
    Ok(())
}

#[test]
fn resnet44_classifies_933_of_1000() -> Result<()> {
    if let Some(n) = correct("cifar_resnet44", "resnet44-014dd654.th")? {
        assert!((932..=934).contains(&n), "{n} of 1000");
    }
    Ok(())
}

//! Training from end to end: networks learn, a seed repeats a run bit by bit, and what goes wrong is kept and said.

use anyhow::Result;
use candle_core::Device;
use rayon::prelude::*;
use std::sync::atomic::AtomicBool;
use zoo::{ModelOptions, VarStore};
use zoo_core::weights::{LoadOptions, Weights, load};
use zoo_train::checkpoint::Checkpoints;
use zoo_train::data::{Dataset, Synthetic};
use zoo_train::eval::evaluate;
use zoo_train::loader::Loader;
use zoo_train::recipe::{Overrides, Recipe};
use zoo_train::record::{EpochMetrics, METRICS_FILE, Status, read_jsonl};
use zoo_train::trainer::{Job, Outcome, train};

fn data() -> Dataset {
    Synthetic { train: 200, test: 50, seed: 0 }.generate()
}

fn job(model: &str, seed: u64, overrides: Overrides) -> Result<Job> {
    Ok(Job::new(zoo::find(model)?, Recipe::named("quick")?.with(&overrides)?, seed, Device::Cpu))
}

fn run(job: &Job, data: &Dataset) -> Result<(Outcome, tempfile::TempDir)> {
    let folder = tempfile::tempdir()?;
    Ok((train(job, data, folder.path(), &Checkpoints::default(), &AtomicBool::new(false))?, folder))
}

/// Everything but the times.
fn numbers(epochs: &[EpochMetrics]) -> Vec<[u64; 5]> {
    let row = |e: &EpochMetrics| [e.lr, e.train_loss, e.train_acc, e.test_loss, e.test_acc].map(f64::to_bits);
    epochs.iter().map(row).collect()
}

#[test]
fn networks_fit_what_they_see() -> Result<()> {
    let epochs = Overrides { epochs: Some(6), batch: Some(25), lr: None, ..Overrides::NONE };
    for model in ["mlp", "template_cnn", "cifar_resnet20"] {
        let (outcome, _folder) = run(&job(model, 1, epochs)?, &data())?;
        let (first, last) = (&outcome.epochs[0], &outcome.epochs[5]);
        assert_eq!(outcome.status, Status::Finished);
        assert!(last.train_loss < 0.8 * first.train_loss, "{model}: {} to {}", first.train_loss, last.train_loss);
        assert!(last.train_acc > 2.0 * 0.1, "{model}: {}", last.train_acc);
    }
    Ok(())
}

#[test]
fn a_seed_repeats_a_run_bit_by_bit() -> Result<()> {
    let two = Overrides { epochs: Some(2), batch: Some(50), lr: None, ..Overrides::NONE };
    for model in ["mlp", "cifar_resnet20"] {
        let (a, folder_a) = run(&job(model, 7, two)?, &data())?;
        let (b, folder_b) = run(&job(model, 7, two)?, &data())?;
        let (c, _folder) = run(&job(model, 8, two)?, &data())?;
        assert_eq!(numbers(&a.epochs), numbers(&b.epochs), "{model}");
        assert_ne!(numbers(&a.epochs), numbers(&c.epochs), "{model}: the seed changes nothing");
        let weights = |folder: &tempfile::TempDir| std::fs::read(folder.path().join("model.safetensors"));
        assert_eq!(weights(&folder_a)?, weights(&folder_b)?, "{model}: the weights differ");
    }
    Ok(())
}

/// A thread that waits inside one run's operation takes up another run, if both are the pool's: neither may see the
/// other's tape.
#[test]
fn runs_in_one_pool_do_not_touch_each_other() -> Result<()> {
    let one = Overrides { epochs: Some(1), batch: Some(50), lr: None, ..Overrides::NONE };
    let alone = run(&job("cifar_resnet20", 7, one)?, &data())?.0;
    let together: Vec<Outcome> = [7u64; 4]
        .into_par_iter()
        .with_max_len(1)
        .map(|seed| Ok(run(&job("cifar_resnet20", seed, one)?, &data())?.0))
        .collect::<Result<_>>()?;
    for other in together {
        assert_eq!(numbers(&alone.epochs), numbers(&other.epochs));
    }
    Ok(())
}

#[test]
fn the_saved_weights_are_the_ones_that_were_tested() -> Result<()> {
    let data = data();
    let job = job("template_cnn", 3, Overrides { epochs: Some(2), batch: Some(50), lr: None, ..Overrides::NONE })?;
    let (outcome, folder) = run(&job, &data)?;
    let lines = read_jsonl::<EpochMetrics>(&folder.path().join(METRICS_FILE))?;
    assert_eq!(numbers(&lines.values), numbers(&outcome.epochs));
    let store = VarStore::new(99, candle_core::DType::F32, &Device::Cpu);
    let net = job.model.build(&ModelOptions::default(), store.root())?;
    load(&store, &Weights::open(folder.path().join("model.safetensors"))?, &LoadOptions::default())?;
    let transform = data.train.transform(&job.recipe.normalize)?;
    let loader = Loader::eval(data.test.clone(), transform.into(), 250, &Device::Cpu)?;
    let measured = evaluate(net.as_ref(), &loader)?;
    assert_eq!((measured.top1(), measured.loss), (outcome.epochs[1].test_acc, outcome.epochs[1].test_loss));
    Ok(())
}

#[test]
fn training_goes_on_from_a_checkpoint_with_another_head() -> Result<()> {
    let one = Overrides { epochs: Some(1), batch: Some(50), lr: Some(1e-9), ..Overrides::NONE };
    let (_, folder) = run(&job("template_cnn", 3, one)?, &data())?;
    let file = folder.path().join("model.safetensors");
    // The first three classes only, so that the classifier has another shape.
    let all = data();
    let keep: Vec<usize> = (0..all.train.len()).filter(|&i| all.train.labels()[i] < 3).collect();
    let images: Vec<u8> = keep.iter().flat_map(|&i| all.train.image(i).unwrap().to_vec()).collect();
    let labels: Vec<u32> = keep.iter().map(|&i| all.train.labels()[i]).collect();
    let split = zoo_train::data::Split::new(images, labels, [3, 32, 32])?;
    let three = Dataset::new(split.clone(), split, all.classes[..3].to_vec(), all.source.clone())?;
    let strict = run(&job("template_cnn", 4, one)?.weights(&file, &[]), &three).map(|_| ()).unwrap_err();
    assert!(format!("{strict:#}").contains("classifier"), "{strict:#}");
    let (outcome, tuned) = run(&job("template_cnn", 4, one)?.weights(&file, &["classifier"]), &three)?;
    assert_eq!(outcome.status, Status::Finished);
    // At a learning rate of 1e-9 the trunk is still the checkpoint's.
    let [before, after] = [file, tuned.path().join("model.safetensors")]
        .map(|path| candle_core::safetensors::load(path, &Device::Cpu).unwrap()["features.3.conv.weight"].clone());
    let moved = (before - after)?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(moved < 1e-6, "the trunk did not start from the checkpoint: {moved}");
    Ok(())
}

#[test]
fn divergence_and_interruption_keep_what_is_done() -> Result<()> {
    let wild = job("mlp", 1, Overrides { epochs: Some(3), batch: Some(50), lr: Some(1e30), ..Overrides::NONE })?;
    let (outcome, folder) = run(&wild, &data())?;
    let Status::Failed { message } = &outcome.status else { panic!("{:?}", outcome.status) };
    assert!(message.contains("epoch 1") && message.contains("batch") && message.contains("1.000e30"), "{message}");
    assert!(folder.path().join("model.safetensors").exists());

    let folder = tempfile::tempdir()?;
    let stopped = train(
        &job("mlp", 1, Overrides::default())?,
        &data(),
        folder.path(),
        &Checkpoints::default(),
        &AtomicBool::new(true),
    )?;
    assert_eq!((stopped.status, stopped.epochs.len()), (Status::Interrupted, 0));
    Ok(())
}

#[test]
fn a_last_batch_of_one_image_does_not_end_a_run() -> Result<()> {
    let data = data().limit(101);
    let (outcome, _folder) = run(
        &job("template_cnn", 1, Overrides { epochs: Some(2), batch: Some(50), lr: None, ..Overrides::NONE })?,
        &data,
    )?;
    assert_eq!((outcome.status, outcome.steps), (Status::Finished, 4));
    Ok(())
}

#[test]
fn images_that_do_not_fit_are_an_error() -> Result<()> {
    let split = zoo_train::data::Split::new(vec![0; 2 * 3 * 64 * 64], vec![0, 1], [3, 64, 64])?;
    let names = vec!["a".to_string(), "b".to_string()];
    let data = Dataset::new(split.clone(), split, names, data().source)?;
    let error = run(&job("mlp", 1, Overrides::default())?, &data).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("32x32") && error.contains("64x64"), "{error}");
    Ok(())
}

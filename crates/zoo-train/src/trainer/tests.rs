use super::*;
use crate::data::Synthetic;
use crate::recipe::{Keep, Length, Recipe};
use crate::record::Status;
use candle_core::Device;
use std::sync::Arc;
use zoo_core::Precision;
use zoo_image::WEIGHTS_FILE;

/// The learning rate is infinite as f32, so that weights stop being finite in the first epoch. That ends the run,
/// and ends it again when it is resumed; no weights are left.
#[test]
fn weights_that_are_not_finite_are_no_result() -> Result<()> {
    let data = Synthetic { train: 64, test: 20, seed: 0 }.generate();
    let mut job = Job::new(zoo::find("mlp")?, Recipe::named("quick")?, 1, Device::Cpu);
    job.recipe.lr = 1e300;
    for (length, precision) in [(1, Precision::F32), (3, Precision::F32), (2, Precision::Bf16)] {
        (job.recipe.length, job.recipe.precision) = (Length::Epochs(length), precision);
        let folder = tempfile::tempdir()?;
        for resume in [false, true] {
            let checkpoints = Checkpoints { resume, ..Checkpoints::default() };
            let outcome = train(&job, &data, folder.path(), &checkpoints, &AtomicBool::new(false))?;
            let Status::Failed { message } = outcome.status else { panic!("{:?}", outcome.status) };
            assert!(message.starts_with("`layers.") && message.contains("is not finite after epoch 1 of"), "{message}");
            assert!(outcome.epochs.len() == 1 && !folder.path().join(WEIGHTS_FILE).exists());
        }
    }
    Ok(())
}

fn short(epochs: usize) -> Recipe {
    let length = Length::Epochs(epochs);
    Recipe { length, batch: 32, lr: 0.2, ..Recipe::named("quick").unwrap() }
}

fn fit(recipe: Recipe, data: &Dataset, folder: &Path, resume: bool, stop: &AtomicBool) -> Outcome {
    let job = Job::new(zoo::find("mlp").unwrap(), recipe, 1, Device::Cpu);
    train(&job, data, folder, &Checkpoints { resume, every: std::time::Duration::ZERO }, stop).unwrap()
}

/// The accuracy of a file's weights on a split, as whoever has the file measures it.
fn measured(folder: &Path, file: &str, split: &Arc<crate::data::Split>, recipe: &Recipe) -> crate::eval::Evaluation {
    let store = VarStore::new(9, DType::F32, &Device::Cpu);
    let net = zoo::find("mlp").unwrap().build(&ModelOptions::for_data(10, 3, 32), store.root()).unwrap();
    let weights = zoo_core::weights::Weights::open(folder.join(file)).unwrap();
    load(&store, &weights, &LoadOptions::default()).unwrap();
    let transform = Arc::new(split.transform(&recipe.normalize).unwrap());
    let loader = crate::loader::Loader::eval(split.clone(), transform, 64, &Device::Cpu).unwrap();
    crate::eval::evaluate(net.as_ref(), &loader).unwrap()
}

fn of_file(folder: &Path, file: &str) -> Option<zoo_image::Kept> {
    Metadata::of_weights(&zoo_core::weights::Weights::open(folder.join(file)).unwrap()).unwrap().kept
}

/// What is announced is what is kept: the best epoch by the held-out images, and the test images once, with its weights; and
/// a run that is cut off anywhere comes to the same.
#[test]
fn the_best_epoch_is_the_one_that_is_kept() {
    let data = Synthetic { train: 200, test: 60, seed: 0 }.generate();
    let data = data.hold_out(crate::data::HoldOut { share: 0.2, seed: 1 }).unwrap();
    let recipe = Recipe { keep: Keep::Both, ..short(6) };
    let folder = tempfile::tempdir().unwrap();
    let outcome = fit(recipe.clone(), &data, folder.path(), false, &AtomicBool::new(false));
    let (kept, test) = (outcome.kept.clone().unwrap(), outcome.test.unwrap());
    let best = outcome.epochs.iter().map(|epoch| epoch.test_acc).fold(0.0, f64::max);
    let first = outcome.epochs.iter().find(|epoch| epoch.test_acc == best).unwrap();
    assert_eq!((kept.epoch, kept.accuracy, kept.measured_on.as_str()), (first.epoch, best, "validation"));
    assert_eq!(of_file(folder.path(), WEIGHTS_FILE).unwrap().epoch, kept.epoch);

    let val = data.val.clone().unwrap();
    assert_eq!(measured(folder.path(), WEIGHTS_FILE, &val, &recipe).top1(), kept.accuracy);
    let again = measured(folder.path(), WEIGHTS_FILE, &data.test, &recipe);
    assert_eq!((again.top1(), again.images), (test.top1(), 60));
    assert_eq!(measured(folder.path(), LAST_FILE, &val, &recipe).top1(), outcome.epochs.last().unwrap().test_acc);

    // Cut off again and again, after every few steps.
    let cut = tempfile::tempdir().unwrap();
    let mut resumed = None;
    for session in 0..40 {
        let stop = AtomicBool::new(false);
        let job = Job::new(zoo::find("mlp").unwrap(), recipe.clone(), 1, Device::Cpu);
        let mut notes = Vec::new();
        let (store, net) = build(&job, &data, &mut notes).unwrap();
        let mut steps = 0;
        let checkpoints = Checkpoints { resume: session > 0, every: std::time::Duration::from_secs(3600) };
        let mut trainer = Trainer::new(net.as_ref(), &store, recipe.clone()).name("mlp").checkpoints(checkpoints);
        trainer = trainer.stop(&stop).on_step(|_| {
            steps += 1;
            if steps == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let outcome = trainer.fit(&data, cut.path()).unwrap();
        if outcome.status == Status::Finished {
            resumed = Some((session, outcome));
            break;
        }
    }
    let (sessions, resumed) = resumed.unwrap();
    assert!(sessions > 5, "{sessions}");
    assert_eq!((resumed.kept, resumed.test.map(|test| test.top1())), (outcome.kept, Some(test.top1())));
    for file in [WEIGHTS_FILE, LAST_FILE] {
        let bytes = |folder: &tempfile::TempDir| std::fs::read(folder.path().join(file)).unwrap();
        assert!(bytes(&cut) == bytes(&folder), "{file}");
    }
}

#[test]
fn patience_ends_a_run_that_gets_no_better() {
    let data = Synthetic { train: 96, test: 60, seed: 0 }.generate();
    // A rate at which nothing is learnt.
    let recipe = Recipe { patience: Some(2), keep: Keep::Best, lr: 1e-12, ..short(9) };
    let folder = tempfile::tempdir().unwrap();
    let outcome = fit(recipe.clone(), &data, folder.path(), false, &AtomicBool::new(false));
    assert_eq!((outcome.status, outcome.epochs.len()), (Status::Finished, 3));
    assert_eq!(outcome.kept.unwrap().epoch, 1);
    // Resumed, it is still over.
    let again = fit(recipe, &data, folder.path(), true, &AtomicBool::new(false));
    assert_eq!(again.epochs.len(), 3);
}

/// Without BatchNorm a step on two batches is the step on one of twice the size.
#[test]
fn accumulated_batches_are_one_large_batch() {
    let data = Synthetic { train: 200, test: 20, seed: 0 }.generate();
    let run = |batch: usize, accumulate: usize| {
        let recipe = Recipe { batch, accumulate, ..short(2) };
        let folder = tempfile::tempdir().unwrap();
        let outcome = fit(recipe, &data, folder.path(), false, &AtomicBool::new(false));
        let weights = zoo_core::weights::Weights::open(folder.path().join(WEIGHTS_FILE)).unwrap();
        let key = weights.keys().next().unwrap();
        let values: Vec<f32> = weights.tensor(key, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        (outcome.steps, outcome.epochs.last().unwrap().train_loss, values)
    };
    let (large, small) = (run(64, 1), run(16, 4));
    assert_eq!((large.0, small.0), (8, 8));
    assert!((large.1 - small.1).abs() < 1e-4, "{} {}", large.1, small.1);
    let furthest = large.2.iter().zip(&small.2).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(furthest < 1e-4, "{furthest}");
}

/// Averages are what is measured and kept, the weights themselves stand beside them, and resuming changes no bit.
#[test]
fn averages_are_measured_kept_and_resumed() {
    let data = Synthetic { train: 128, test: 60, seed: 0 }.generate();
    let recipe = Recipe { ema: Some(0.9), ..short(3) };
    let run = |ema: Option<f64>| {
        let folder = tempfile::tempdir().unwrap();
        let outcome = fit(Recipe { ema, ..recipe.clone() }, &data, folder.path(), false, &AtomicBool::new(false));
        (folder, outcome)
    };
    let (folder, outcome) = run(recipe.ema);
    let last = outcome.epochs.last().unwrap().test_acc;
    assert_eq!(measured(folder.path(), WEIGHTS_FILE, &data.test, &recipe).top1(), last);
    // The optimizer does not see the averages.
    let (plain, _) = run(None);
    let values = |folder: &tempfile::TempDir, file: &str| -> Vec<f32> {
        let weights = zoo_core::weights::Weights::open(folder.path().join(file)).unwrap();
        let key = weights.keys().next().unwrap();
        weights.tensor(key, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    assert!(values(&folder, RAW_FILE) == values(&plain, WEIGHTS_FILE));
    assert!(values(&folder, WEIGHTS_FILE) != values(&plain, WEIGHTS_FILE));

    let cut = tempfile::tempdir().unwrap();
    let job = Job::new(zoo::find("mlp").unwrap(), recipe.clone(), 1, Device::Cpu);
    for (session, steps) in [(0, 5), (1, 3), (2, 99)] {
        let (store, net) = build(&job, &data, &mut Vec::new()).unwrap();
        let (mut left, mut first) = (steps, None);
        let checkpoints = Checkpoints { resume: session > 0, ..Checkpoints::default() };
        let trainer = Trainer::new(net.as_ref(), &store, recipe.clone()).name("mlp").checkpoints(checkpoints);
        let trainer = trainer.on_step(|metrics| {
            first.get_or_insert(metrics.step);
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        trainer.fit(&data, cut.path()).unwrap();
        // It goes on: starting over would come to the same weights, too.
        assert_eq!(first, Some([1, 6, 9][session]));
    }
    assert!(values(&cut, WEIGHTS_FILE) == values(&folder, WEIGHTS_FILE));
    assert!(values(&cut, RAW_FILE) == values(&folder, RAW_FILE));
}

/// The mean over the last epochs is what is measured from its first epoch on, and kept; a run that is cut off comes to the same.
#[test]
fn the_last_epochs_are_averaged() {
    let data = Synthetic { train: 128, test: 60, seed: 0 }.generate();
    // Of five epochs the last two.
    let recipe = Recipe { swa: Some(0.4), ..short(5) };
    let run = |recipe: &Recipe, cut: usize| {
        let folder = tempfile::tempdir().unwrap();
        let job = Job::new(zoo::find("mlp").unwrap(), recipe.clone(), 1, Device::Cpu);
        let (mut seen, mut epochs) = (Vec::new(), Vec::new());
        for session in 0..20 {
            let (store, net) = build(&job, &data, &mut Vec::new()).unwrap();
            let mut left = cut;
            let checkpoints = Checkpoints { resume: session > 0, ..Checkpoints::default() };
            let weights = || -> Vec<f32> { store.parameters()[0].1.flatten_all().unwrap().to_vec1().unwrap() };
            let trainer = Trainer::new(net.as_ref(), &store, recipe.clone()).name("mlp").checkpoints(checkpoints);
            let trainer = trainer
                .on_epoch(|_| {
                    seen.push(weights());
                    ControlFlow::Continue(())
                })
                .on_step(|_| {
                    left -= 1;
                    if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                });
            let outcome = trainer.fit(&data, folder.path()).unwrap();
            epochs = outcome.epochs;
            if outcome.status == Status::Finished {
                break;
            }
        }
        (folder, seen, epochs)
    };
    let values = |folder: &tempfile::TempDir, file: &str| -> Vec<f32> {
        let weights = zoo_core::weights::Weights::open(folder.path().join(file)).unwrap();
        weights.tensor("layers.0.weight", &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let (folder, seen, epochs) = run(&recipe, 999);
    // The optimizer's own weights are those of a run without an average.
    let (plain, plain_seen, plain_epochs) = run(&short(5), 999);
    assert!(seen == plain_seen && values(&folder, RAW_FILE) == values(&plain, WEIGHTS_FILE));
    let mean = seen[3].iter().zip(&seen[4]).map(|(a, b)| (a + b) / 2.0);
    let far = mean.zip(values(&folder, WEIGHTS_FILE)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far < 1e-6, "{far}");
    let losses = |epochs: &[EpochMetrics]| epochs.iter().map(|epoch| epoch.test_loss).collect::<Vec<_>>();
    let (averaged, plain) = (losses(&epochs), losses(&plain_epochs));
    // A mean of one is that one.
    assert!(averaged[..4] == plain[..4] && averaged[4] != plain[4], "{averaged:?} {plain:?}");
    let last = measured(folder.path(), WEIGHTS_FILE, &data.test, &recipe);
    assert_eq!((last.top1(), last.loss), (epochs[4].test_acc, epochs[4].test_loss));
    let (cut, _, cut_epochs) = run(&recipe, 3);
    assert_eq!(losses(&cut_epochs), averaged);
    assert!(values(&cut, WEIGHTS_FILE) == values(&folder, WEIGHTS_FILE));
}

/// The loss that a recipe names is the one that is made small: of ten classes each by itself it begins near ln 2.
#[test]
fn the_recipes_loss_is_trained_by() {
    let data = Synthetic { train: 128, test: 20, seed: 0 }.generate();
    for precision in [Precision::F32, Precision::Bf16] {
        let recipe = Recipe { loss: crate::recipe::LossFunction::Bce, precision, lr: 1.0, ..short(8) };
        let folder = tempfile::tempdir().unwrap();
        let outcome = fit(recipe, &data, folder.path(), false, &AtomicBool::new(false));
        let losses: Vec<f64> = outcome.epochs.iter().map(|epoch| epoch.train_loss).collect();
        assert!(losses[0] < 0.8 && losses[7] < 0.5 * losses[0], "{precision}: {losses:?}");
        assert!(outcome.epochs[7].train_acc > 0.5, "{:?}", outcome.epochs[7]);
    }
}

/// The classifier behind a frozen trunk learns the same whether the trunk sees some images at a time, off the tape, or a batch
/// as a whole on it, as a loss of the caller's own has it.
#[test]
fn a_frozen_trunk_sees_some_images_at_a_time() {
    use crate::data::{DataSource, Split};
    let images = |n: usize| {
        let bytes = (0..n * 3 * 40 * 40).map(|i| (i * i % 251 + i % 5) as u8).collect();
        Split::new(bytes, (0..n as u32).map(|i| i % 4).collect(), [3, 40, 40]).unwrap()
    };
    let classes = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
    let data = Dataset::new(images(84), images(8), classes, DataSource::Synthetic { seed: 0 }).unwrap();
    let model = zoo::find("cifar_resnet20").unwrap();
    let run = |whole: bool| {
        let store = VarStore::new(3, DType::F32, &Device::Cpu);
        let recipe = Recipe { freeze_all_but_head: true, batch: 42, label_smoothing: 0.1, ..short(3) };
        let options = ModelOptions::for_data(4, 3, 40);
        store.set_frozen(recipe.frozen(model, &options).unwrap().unwrap());
        let net = model.build(&options, store.root()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut trainer = Trainer::new(net.as_ref(), &store, recipe);
        if whole {
            trainer = trainer.loss(&|net, images, batch| net.training_loss(images, &batch.labels, 0.1));
        }
        let outcome = trainer.fit(&data, folder.path()).unwrap();
        let weights = store.parameters()[0].1.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (outcome.epochs.last().unwrap().train_loss, weights)
    };
    let (parts, whole) = (run(false), run(true));
    let far = parts.1.iter().zip(&whole.1).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far < 1e-6 && (parts.0 - whole.0).abs() < 1e-6, "{far}, {} {}", parts.0, whole.0);
}

/// A run whose classifier alone is trained keeps every other bit, and says what is frozen.
#[test]
fn what_is_frozen_keeps_its_bits() {
    let data = Synthetic { train: 64, test: 20, seed: 0 }.generate();
    let model = zoo::find("cifar_resnet20").unwrap();
    let recipe = Recipe { freeze_all_but_head: true, ..short(1) };
    let folder = tempfile::tempdir().unwrap();
    let job = Job::new(model, recipe, 3, Device::Cpu);
    train(&job, &data, folder.path(), &Checkpoints::default(), &AtomicBool::new(false)).unwrap();
    let store = VarStore::new(3, DType::F32, &Device::Cpu);
    let net = model.build(&ModelOptions::for_data(10, 3, 32), store.root()).unwrap();
    let weights = zoo_core::weights::Weights::open(folder.path().join(WEIGHTS_FILE)).unwrap();
    for slot in store.slots() {
        let bits = |tensor: &Tensor| -> Vec<u32> {
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
        };
        let same = bits(&weights.tensor(&slot.key, &Device::Cpu).unwrap()) == bits(slot.var.as_ref().unwrap());
        assert_eq!(same, !slot.key.starts_with(net.classifier().path()), "{}", slot.key);
    }
    // Whoever builds the network has to freeze it: a recipe alone comes too late.
    let late = Recipe { freeze_all_but_head: true, ..short(1) };
    let error = Trainer::new(net.as_ref(), &store, late).fit(&data, tempfile::tempdir().unwrap().path()).unwrap_err();
    assert!(error.to_string().contains("call VarStore::set_frozen"), "{error}");
    let unknown = Recipe { freeze: vec!["layer9".into()], ..short(1) };
    let job = Job::new(model, unknown, 3, Device::Cpu);
    let other = tempfile::tempdir().unwrap();
    let error = train(&job, &data, other.path(), &Checkpoints::default(), &AtomicBool::new(false)).unwrap_err();
    assert_eq!(error.to_string(), "freeze: no parameter of cifar_resnet20 has a name like layer9");
}

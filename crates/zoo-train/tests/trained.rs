//! What training leaves in its file is what a classifier makes of it.

use anyhow::Result;
use candle_core::Device;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use zoo_image::{ImageClassifier, Normalize, Options, WEIGHTS_FILE};
use zoo_train::checkpoint::Checkpoints;
use zoo_train::data::{Dataset, Synthetic};
use zoo_train::recipe::{Overrides, Recipe};
use zoo_train::trainer::{Job, train};

/// What `cifar_resnet20`, trained for an epoch under a recipe, leaves in a folder; its test loss.
fn run(recipe: &str, overrides: &Overrides, data: &Dataset, folder: &Path) -> Result<f64> {
    let recipe = Recipe::named(recipe)?.with(overrides)?;
    let job = Job::new(zoo::find("cifar_resnet20")?, recipe, 1, Device::Cpu);
    let outcome = train(&job, data, folder, &Checkpoints::default(), &AtomicBool::new(false))?;
    Ok(outcome.epochs[0].test_loss)
}

fn loss(classifier: &ImageClassifier, data: &Dataset) -> Result<f64> {
    let images: Vec<Vec<u8>> = (0..data.test.len()).map(|index| data.test.image(index).unwrap().to_vec()).collect();
    let predictions = classifier.predict(&classifier.batch(&images)?)?;
    let own = predictions.iter().zip(data.test.labels()).map(|(p, &label)| -p.probabilities()[label as usize].ln());
    Ok(own.sum::<f64>() / images.len() as f64)
}

#[test]
fn a_file_brings_all_that_its_recipe_changed() -> Result<()> {
    let data = Synthetic { train: 64, test: 20, seed: 3 }.generate();
    let once = Overrides { epochs: Some(1), batch: Some(16), ..Overrides::NONE };
    for (recipe, overrides) in [
        ("resnet-paper", once),
        ("modern-200", Overrides { bn_eps: Some(0.1), ..once }),
        ("modern-200", Overrides { batch_norm: Some(false), lr: Some(1e-4), ..once }),
    ] {
        let folder = tempfile::tempdir()?;
        let expected = run(recipe, &overrides, &data, folder.path())?;
        let classifier = ImageClassifier::open(folder.path())?;
        assert_eq!(classifier.name(), "cifar_resnet20");
        assert_eq!((classifier.num_classes(), classifier.classes()), (10, Some(&data.classes[..])));
        let found = loss(&classifier, &data)?;
        assert!((found - expected).abs() < 1e-5 * expected, "{recipe}: {found}, {expected}");

        // It is the file's word that makes it so.
        let other = Options::new().normalize(Normalize::HALF).open(folder.path().join(WEIGHTS_FILE))?;
        let other = loss(&other, &data)?;
        assert!((other - expected).abs() > 1e-3 * expected, "{recipe}: {other}, {expected}");
    }
    Ok(())
}

//! A trained network with all that its weights' file says of how it is used: on photographs, and measured on test images.
//!
//! [`train`](crate::trainer::train) writes into `model.safetensors` which network it holds, the size of its images, how their
//! pixels were normalised and what the classes are called. [`Trained::open`] follows that; of other files, which say nothing of the
//! kind, it takes what the network's published checkpoints want ([`ModelInfo::input`]).

use crate::augment::{Normalize, Transform};
use crate::data::photo::Framing;
use crate::data::{Split, TestImages};
use crate::eval::{Evaluation, evaluate_parts};
use crate::loader::Loader;
use crate::recipe::{BatchNormOverride, Recipe};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use zoo::{ModelInfo, ModelOptions, VarStore};
use zoo_core::Model;
use zoo_core::threads::in_pool;
use zoo_core::weights::{Weights, check, load};

/// The file of a run's folder that holds the trained network.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// What a file of weights says of itself: keys of its metadata.
mod key {
    /// The zoo's name of the network.
    pub const MODEL: &str = "model";
    /// Side of its images in pixels.
    pub const IMAGE_SIZE: &str = "image_size";
    /// JSON: a list of names, in the order of the outputs.
    pub const CLASSES: &str = "classes";
    /// JSON: a [`Normalize`](crate::augment::Normalize).
    pub const NORMALIZE: &str = "normalize";
    /// JSON: the values that are taken off each pixel, where `normalize` is `"pixel_mean"`.
    pub const PIXEL_MEAN: &str = "pixel_mean";
    /// JSON: what the recipe changed in the network's BatchNorm layers, if it did.
    pub const BATCH_NORM: &str = "batch_norm";
}

/// What the file of a network trained under `recipe` says of itself.
pub(crate) fn metadata(
    model: &ModelInfo,
    recipe: &Recipe,
    transform: &Transform,
    classes: &[String],
) -> Result<BTreeMap<String, String>> {
    fn json(value: &(impl Serialize + ?Sized)) -> Result<String> {
        serde_json::to_string(value).context("cannot write what the weights are as JSON")
    }
    let mut said = BTreeMap::from([
        (key::MODEL, model.name.to_owned()),
        (key::IMAGE_SIZE, transform.shape()[1].to_string()),
        (key::CLASSES, json(classes)?),
        (key::NORMALIZE, json(&recipe.normalize)?),
    ]);
    if let Some(mean) = transform.pixel_mean() {
        said.insert(key::PIXEL_MEAN, json(mean)?);
    }
    if recipe.batch_norm != BatchNormOverride::default() {
        said.insert(key::BATCH_NORM, json(&recipe.batch_norm)?);
    }
    Ok(said.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// A value of a file's metadata.
fn said<T: DeserializeOwned>(weights: &Weights, key: &str) -> Result<Option<T>> {
    let Some(text) = weights.metadata().get(key) else { return Ok(None) };
    let value = serde_json::from_str(text);
    value.map(Some).with_context(|| format!("{}: its metadata `{key}` is not what zoo train writes", weights.name()))
}

/// What is used in place of what a file of weights says.
#[derive(Debug, Clone, Default)]
pub struct Instead {
    /// How pixels are normalised.
    pub normalize: Option<Normalize>,
    /// Side of the images in pixels.
    pub image_size: Option<usize>,
}

/// A network with its weights, ready for images.
///
/// ```no_run
/// use candle_core::Device;
/// use zoo_train::trained::{Instead, Trained};
/// let trained = Trained::open(zoo::find("resnet18")?, "my-run/model.safetensors".as_ref(), &Instead::default(), &Device::Cpu)?;
/// let image = trained.framing().read("photo.jpg".as_ref())?;
/// for (class, probability) in Trained::largest(&trained.probabilities(&[image])?[0], 5) {
///     println!("{:5.1} %  {}", 100.0 * probability, trained.class_name(class));
/// }
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct Trained {
    net: Box<dyn Model>,
    num_classes: usize,
    classes: Option<Vec<String>>,
    framing: Framing,
    normalize: Normalize,
    transform: Arc<Transform>,
    device: Device,
}

impl Trained {
    /// `model` with the weights in `file`: .safetensors, .pth, .pt or .th. The file decides how many classes there are.
    ///
    /// # Errors
    /// A file that does not hold this network's weights, with every key that does not fit; metadata that contradicts them.
    pub fn open(model: &ModelInfo, file: &Path, instead: &Instead, device: &Device) -> Result<Self> {
        let weights = Weights::open(file)?;
        if let Some(held) = weights.metadata().get(key::MODEL) {
            // Networks may have the same keys and be others, as cifar_resnet20 and cifar_plain20 do.
            ensure!(held == model.name, "{} holds the weights of {held}, not of {}", file.display(), model.name);
        }
        let own_size = said::<usize>(&weights, key::IMAGE_SIZE)?;
        let size = instead.image_size.or(own_size).unwrap_or(model.input.size);
        // As in training: a file's claim does not make an image larger than the network's own.
        ensure!(
            (1..=model.input.size).contains(&size),
            "{}: {} takes images of up to {s}x{s}, not {size}x{size}",
            file.display(),
            model.name,
            s = model.input.size
        );
        // Photographs that `zoo train` saw were cut its way.
        let framing = if own_size.is_some() || size != model.input.size {
            Framing::whole(size)
        } else {
            Framing::of(&model.input)
        };
        let shape = [3, size, size];
        let normalize = match &instead.normalize {
            Some(normalize) => normalize.clone(),
            None => said(&weights, key::NORMALIZE)?.unwrap_or_else(|| Normalize::of(&model.input)),
        };
        let transform = match &normalize {
            Normalize::Channels { mean, std } => Transform::of_channels(*mean, *std, shape),
            Normalize::PixelMean => match said(&weights, key::PIXEL_MEAN)? {
                Some(mean) => Transform::of_pixel_mean(mean, shape),
                None => bail!("{}: it does not hold the mean image that is to be taken off", file.display()),
            },
        }
        .with_context(|| format!("{}: how its images are normalised", file.display()))?;

        let options = ModelOptions { in_chans: Some(3), image_size: Some(size), num_classes: None };
        let num_classes = classes_in(&weights, model, &options)?;
        let classes = said::<Vec<String>>(&weights, key::CLASSES)?;
        if let Some(names) = &classes {
            let n = names.len();
            ensure!(n == num_classes, "{}: {n} names for the network's {num_classes} classes", file.display());
        }
        let store = VarStore::new(0, DType::F32, device);
        store.set_batch_norm(said::<BatchNormOverride>(&weights, key::BATCH_NORM)?.unwrap_or_default().into());
        let net = model.build(&ModelOptions { num_classes: Some(num_classes), ..options }, store.root())?;
        load(&store, &weights, &model.load_options())?;
        Ok(Self { net, num_classes, classes, framing, normalize, transform: transform.into(), device: device.clone() })
    }

    /// Gives the classes names, in the order of the outputs, whatever the file calls them.
    ///
    /// # Errors
    /// Another number of names than of classes.
    pub fn with_classes(mut self, names: Vec<String>) -> Result<Self> {
        let (n, expected) = (names.len(), self.num_classes);
        ensure!(n == expected, "{n} names for the network's {expected} classes");
        self.classes = Some(names);
        Ok(self)
    }

    /// The names of the classes, if they are known.
    pub fn classes(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }

    /// How many classes it tells apart.
    pub fn num_classes(&self) -> usize {
        self.num_classes
    }

    /// A class by its name, or by its number where that is all that is known.
    pub fn class_name(&self, class: usize) -> String {
        match self.classes.as_ref().and_then(|names| names.get(class)) {
            Some(name) => name.clone(),
            None => format!("class {class}"),
        }
    }

    /// How it wants photographs cut.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// How pixels are normalised.
    pub fn normalize(&self) -> &Normalize {
        &self.normalize
    }

    /// The probabilities of the classes, softmax of the logits, for each of `images` as [`Framing::read`] gives them.
    ///
    /// # Errors
    /// Images of another size; an output that is not finite.
    pub fn probabilities(&self, images: &[Vec<u8>]) -> Result<Vec<Vec<f64>>> {
        let split = Split::new(images.concat(), vec![0; images.len()], self.transform.shape())?;
        let loader = Loader::eval(split.into(), self.transform.clone(), images.len().max(1), &self.device)?;
        let mut all = Vec::with_capacity(images.len());
        for batch in loader.epoch(0)? {
            let images = batch?.images;
            let logits = in_pool(|| self.net.forward_t(&images, false))?;
            let rows = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
            all.extend(rows.iter().map(|row| softmax(row)).collect::<Result<Vec<_>>>()?);
        }
        Ok(all)
    }

    /// The `k` largest of `probabilities` with their classes, largest first; of equals the lower class comes first.
    pub fn largest(probabilities: &[f64], k: usize) -> Vec<(usize, f64)> {
        let mut ranked: Vec<(usize, f64)> = probabilities.iter().copied().enumerate().collect();
        ranked.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        ranked.truncate(k);
        ranked
    }

    /// Measures it on `images`, `batch` at a time, and tells `seen` after each batch how many images that had.
    ///
    /// # Errors
    /// Images of another number of classes, files that cannot be read, or what the network refuses.
    pub fn evaluate(&self, images: &TestImages, batch: usize, seen: impl FnMut(usize) + Send) -> Result<Evaluation> {
        let (n, expected) = (images.classes().len(), self.num_classes);
        ensure!(n == expected, "the network tells {expected} classes apart, the images are of {n}");
        let loader = |split| Ok(Loader::eval(split?, self.transform.clone(), batch, &self.device)?);
        in_pool(|| evaluate_parts(self.net.as_ref(), images.parts().map(loader), seen))
    }
}

/// The width of the classifier in the file.
fn classes_in(weights: &Weights, model: &ModelInfo, options: &ModelOptions) -> Result<usize> {
    let store = VarStore::shapes_only();
    let place = model.build(options, store.root())?.classifier().place().to_string();
    let report = check(&store, weights, &model.load_options())?;
    let head = report.mis_shaped.iter().find(|m| m.key == format!("{place}.weight"));
    Ok(head.and_then(|m| m.file.dims().first().copied()).unwrap_or(model.num_classes))
}

fn softmax(logits: &[f32]) -> Result<Vec<f64>> {
    ensure!(logits.iter().all(|x| x.is_finite()), "the network's output is not finite");
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|&x| f64::from(x - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    Ok(powers.into_iter().map(|power| power / sum).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoints;
    use crate::data::{Dataset, Synthetic};
    use crate::recipe::Overrides;
    use crate::trainer::{Job, train};
    use std::sync::atomic::AtomicBool;

    /// What `cifar_resnet20`, trained for an epoch under a recipe, leaves in a folder; its test loss.
    fn run(recipe: &str, overrides: &Overrides, data: &Dataset, folder: &Path) -> f64 {
        let recipe = Recipe::named(recipe).unwrap().with(overrides).unwrap();
        let job = Job::new(zoo::find("cifar_resnet20").unwrap(), recipe, 1, Device::Cpu);
        let outcome = train(&job, data, folder, &Checkpoints::default(), &AtomicBool::new(false)).unwrap();
        outcome.epochs.last().unwrap().test_loss
    }

    fn loss(trained: &Trained, data: &Dataset) -> f64 {
        let images: Vec<Vec<u8>> = (0..data.test.len()).map(|index| data.test.image(index).to_vec()).collect();
        let probabilities = trained.probabilities(&images).unwrap();
        let own = probabilities.iter().zip(data.test.labels()).map(|(row, &label)| -row[label as usize].ln());
        own.sum::<f64>() / images.len() as f64
    }

    #[test]
    fn a_file_brings_all_that_its_recipe_changed() {
        let data = Synthetic { train: 64, test: 20, seed: 3 }.generate();
        let once = Overrides { epochs: Some(1), batch: Some(16), ..Overrides::NONE };
        for (recipe, overrides) in [
            ("resnet-paper", once),
            ("modern-200", Overrides { bn_eps: Some(0.1), ..once }),
            ("modern-200", Overrides { batch_norm: Some(false), lr: Some(1e-4), ..once }),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let expected = run(recipe, &overrides, &data, folder.path());
            let model = zoo::find("cifar_resnet20").unwrap();
            let file = folder.path().join(WEIGHTS_FILE);
            let trained = Trained::open(model, &file, &Instead::default(), &Device::Cpu).unwrap();
            assert_eq!((trained.num_classes(), trained.classes()), (10, Some(&data.classes[..])));
            let found = loss(&trained, &data);
            assert!((found - expected).abs() < 1e-5 * expected, "{recipe}: {found}, {expected}");

            // It is the file's word that makes it so.
            let instead = Instead { normalize: Some(Normalize::HALF), image_size: None };
            let other = loss(&Trained::open(model, &file, &instead, &Device::Cpu).unwrap(), &data);
            assert!((other - expected).abs() > 1e-3 * expected, "{recipe}: {other}, {expected}");
        }
    }

    #[test]
    fn what_a_file_claims_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net.safetensors");
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        let model = zoo::find("mlp").unwrap();
        model.build(&ModelOptions { num_classes: Some(3), ..ModelOptions::default() }, store.root()).unwrap();
        let message = |claims: &[(&str, &str)]| {
            let metadata = claims.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
            zoo_core::weights::save_safetensors(&store, &path, &metadata).unwrap();
            let opened = Trained::open(model, &path, &Instead::default(), &Device::Cpu);
            opened.map(|trained| trained.num_classes()).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(message(&[]), Ok(3));
        assert_eq!(message(&[("classes", r#"["a","b","c"]"#)]), Ok(3));
        for (claims, complaint) in [
            (&[("classes", r#"["a","b"]"#)][..], "2 names for the network's 3 classes"),
            (&[("classes", "a, b, c")], "its metadata `classes` is not what zoo train writes"),
            (&[("image_size", "0")], "images of up to 32x32, not 0x0"),
            (&[("image_size", "1000000")], "images of up to 32x32, not 1000000x1000000"),
            (&[("normalize", r#""pixel_mean""#)], "does not hold the mean image"),
            (&[("normalize", r#""pixel_mean""#), ("pixel_mean", "[0.5]")], "a mean image of 1 values"),
            (&[("model", "cifar_plain20")], "holds the weights of cifar_plain20, not of mlp"),
        ] {
            let error = message(claims).unwrap_err();
            assert!(error.contains(complaint) && error.contains("net.safetensors"), "{error}");
        }
    }

    #[test]
    fn the_most_probable_come_first_and_probabilities_sum_to_one() {
        let probabilities = softmax(&[1.0, 3.0, 3.0, -1000.0]).unwrap();
        assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        let classes = |k| Trained::largest(&probabilities, k).into_iter().map(|(class, _)| class).collect::<Vec<_>>();
        assert_eq!((classes(2), classes(9)), (vec![1, 2], vec![1, 2, 0, 3]));
        assert!(softmax(&[0.0, f32::NAN]).is_err() && softmax(&[f32::INFINITY, 0.0]).is_err());
    }
}

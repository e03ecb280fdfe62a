//! Batches, made ready on other threads while the network computes.

mod batches;
mod targets;
#[cfg(test)]
mod tests;

pub use batches::Batches;
pub use targets::Targets;

use crate::augment::{Augment, Pixels};
use crate::data::{DataError, Split};
use batches::{DEPTH, Destination, HostBatch};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use zoo_core::Precision;
use zoo_core::rng::Rng;
use zoo_image::{Transform, View};

/// The most threads that make batches: each has two in hand.
const MOST_WORKERS: usize = 8;

/// What one step reads.
#[derive(Debug, Clone)]
pub struct Batch {
    /// (b, c, h, w) on the loader's device: f32, or of the loader's [`precision`](Loader::precision).
    pub images: Tensor,
    /// What is asked for, on the loader's device: classes (b) u32 or, where images are mixed or classes weighted, shares of
    /// all classes (b, classes) f32.
    pub labels: Tensor,
    /// The images' own classes on the host.
    pub host_labels: Vec<u32>,
    /// Where in its split each image stands.
    pub indices: Vec<usize>,
}

/// Cuts a split into batches, epoch by epoch.
///
/// The order of a training epoch is a function of (seed, epoch), an image's crop and flip of (seed, epoch, index):
/// neither threads nor batch size nor where an epoch is entered change what an image looks like.
///
/// ```
/// use candle_core::Device;
/// use std::sync::Arc;
/// use zoo_train::augment::Augment;
/// use zoo_image::{Normalize, Transform};
/// use zoo_train::data::Synthetic;
/// use zoo_train::loader::Loader;
///
/// let data = Synthetic { train: 100, test: 20, seed: 0 }.generate();
/// let transform = Arc::new(data.train.transform(&Normalize::CIFAR10)?);
/// let train = Loader::train(data.train, transform.clone(), Augment::STANDARD, 32, 1, &Device::Cpu)?;
/// assert_eq!(train.len(), 4);
/// let mut batches = train.epoch(0)?;
/// for batch in &mut batches {
///     let batch = batch?;
///     assert_eq!(batch.images.dims()[1..], [3, 32, 32]);
/// }
/// println!("the step waited {:.3} s for data", batches.wait_seconds());
///
/// let test = Loader::eval(data.test, transform, 16, &Device::Cpu)?;
/// assert_eq!(test.epoch(0)?.count(), 2);
/// # Ok::<(), zoo_train::data::DataError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Loader {
    split: Arc<Split>,
    transform: Arc<Transform>,
    batch: usize,
    /// `None`: in order and as they are.
    training: Option<(Augment, u64)>,
    drop_last: bool,
    targets: Targets,
    workers: usize,
    device: Device,
    precision: Precision,
    /// Images that could not be read so far, and why.
    unreadable: Arc<Mutex<BTreeMap<usize, String>>>,
}

impl Loader {
    /// Shuffled, augmented batches of `batch` images. The last one of an epoch is smaller where the split does not
    /// divide, unless [`drop_last`](Self::drop_last) is asked.
    ///
    /// # Errors
    /// A batch of 0; a transform for images of another shape.
    pub fn train(
        split: Arc<Split>,
        transform: Arc<Transform>,
        augment: Augment,
        batch: usize,
        seed: u64,
        device: &Device,
    ) -> Result<Self, DataError> {
        Self::new(split, transform, batch, Some((augment, seed)), device)
    }

    /// Batches in the split's order, neither cropped nor flipped. Images that cannot be read are left out.
    ///
    /// # Errors
    /// A batch of 0; a transform for images of another shape.
    pub fn eval(
        split: Arc<Split>,
        transform: Arc<Transform>,
        batch: usize,
        device: &Device,
    ) -> Result<Self, DataError> {
        Self::new(split, transform, batch, None, device)
    }

    fn new(
        split: Arc<Split>,
        transform: Arc<Transform>,
        batch: usize,
        training: Option<(Augment, u64)>,
        device: &Device,
    ) -> Result<Self, DataError> {
        if batch == 0 {
            return Err(DataError::Mismatch("a batch of 0 images: expected at least 1".into()));
        }
        if split.shape() != transform.shape() {
            let (images, expected) = (split.shape(), transform.shape());
            return Err(DataError::Mismatch(format!("images of shape {images:?} for a transform of {expected:?}")));
        }
        // Bytes in memory that are cropped and flipped take one thread a fraction of a step.
        let is_slow = split.is_slow() || training.as_ref().is_some_and(|(augment, _)| !augment.is_plain());
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_WORKERS);
        // Of what the images say; whoever knows of more classes says so.
        let classes = split.labels().iter().max().map_or(0, |&label| label as usize + 1);
        Ok(Self {
            split,
            transform,
            batch,
            training,
            drop_last: false,
            targets: Targets { classes, ..Targets::default() },
            workers: if is_slow { threads } else { 1 },
            device: device.clone(),
            precision: Precision::F32,
            unreadable: Arc::default(),
        })
    }

    /// Batches that are in memory at the most: those that wait, those that are being made, and the network's.
    pub(crate) fn most_in_memory() -> usize {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_WORKERS);
        DEPTH.max(threads) + threads + 1
    }

    /// Whether an epoch ends before a batch that would be smaller than the others.
    #[must_use]
    pub fn drop_last(mut self, yes: bool) -> Self {
        self.drop_last = yes;
        self
    }

    /// The precision that batches are made for: their images are cast to its maps.
    #[must_use]
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// What is asked for each image. Without weights and mixed images a batch's labels stay classes, and the loss spreads the
    /// smoothing; with either they are shares of all classes, (b, classes), with weights and smoothing in them.
    #[must_use]
    pub fn targets(mut self, targets: Targets) -> Self {
        let classes = targets.classes.max(self.targets.classes);
        self.targets = Targets { classes, ..targets };
        self
    }

    /// How many threads make batches: as many as the machine has, up to 8, where images are decoded or augmented beyond crop
    /// and flip, else one. No number of them changes an image or the order.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }

    /// Images of the split that could not be read so far, by their place, and why: in training the next one that can be read
    /// took their place.
    pub fn unreadable(&self) -> BTreeMap<usize, String> {
        // A panic elsewhere does not make the list wrong.
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Images of the split.
    pub fn images(&self) -> usize {
        self.split.len()
    }

    /// Batches of an epoch.
    pub fn len(&self) -> usize {
        match self.drop_last {
            true => self.split.len() / self.batch,
            false => self.split.len().div_ceil(self.batch),
        }
    }

    /// Whether an epoch has no batch.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The batches of one epoch.
    ///
    /// # Errors
    /// No thread to make them.
    pub fn epoch(&self, epoch: u64) -> Result<Batches, DataError> {
        self.epoch_from(epoch, 0)
    }

    /// The batches of one epoch from batch number `skip` on: what is left of an epoch that was interrupted.
    ///
    /// # Errors
    /// No thread to make them.
    pub fn epoch_from(&self, epoch: u64, skip: usize) -> Result<Batches, DataError> {
        let count = self.len().saturating_sub(skip);
        let order: Arc<[usize]> = self.order(epoch).into();
        let make = |loader: Self| {
            let order = order.clone();
            move |position: usize| {
                let begin = (skip + position) * loader.batch;
                let indices = order[begin..(begin + loader.batch).min(order.len())].to_vec();
                loader.prepare(epoch, skip + position, indices)
            }
        };
        let to = Destination { shape: self.transform.shape(), device: self.device.clone(), precision: self.precision };
        Batches::start(count, to, (0..self.workers).map(|_| make(self.clone())))
    }

    /// What the images at these places are to a step of `epoch`, one after the other, mixed as its first batch of them would be:
    /// to look at.
    ///
    /// # Errors
    /// No image that can be read.
    pub fn look(&self, epoch: u64, places: &[usize]) -> Result<Vec<f32>, DataError> {
        Ok(self.prepare(epoch, 0, places.to_vec())?.pixels)
    }

    /// The order in which an epoch sees the split.
    fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.split.len()).collect();
        if let Some((_, seed)) = self.training {
            Rng::new(seed, &format!("shuffle/epoch-{epoch}")).shuffle(&mut order);
        }
        order
    }

    /// Makes batch `number` of an epoch. It is a function of its arguments, whichever thread makes it.
    fn prepare(&self, epoch: u64, number: usize, indices: Vec<usize>) -> Result<HostBatch, DataError> {
        let shape = self.transform.shape();
        let size: usize = shape.iter().product();
        let mut batch = HostBatch {
            pixels: Vec::with_capacity(indices.len() * size),
            labels: Vec::with_capacity(indices.len()),
            targets: None,
            indices: Vec::with_capacity(indices.len()),
        };
        for index in indices {
            let begin = batch.pixels.len();
            batch.pixels.resize(begin + size, 0.0);
            match self.write(epoch, index, &mut batch.pixels[begin..])? {
                Some(shown) => {
                    batch.labels.push(self.split.labels()[shown]);
                    batch.indices.push(shown);
                }
                None => batch.pixels.truncate(begin),
            }
        }
        let images = batch.labels.len();
        let mix = self
            .training
            .as_ref()
            .and_then(|(augment, seed)| augment.mix(*seed, epoch, number, images, [shape[1], shape[2]]));
        if let Some(mix) = &mix {
            mix.apply(&mut batch.pixels, [images, shape[0], shape[1], shape[2]]);
        }
        batch.targets = self.targets.of(&batch.labels, mix.as_ref());
        Ok(batch)
    }

    /// Writes image `index` as `epoch` sees it, and says which image was written: in training the next one that can be read,
    /// in evaluation none where it cannot be.
    fn write(&self, epoch: u64, index: usize, out: &mut [f32]) -> Result<Option<usize>, DataError> {
        let n = self.split.len();
        for step in 0..n {
            let shown = (index + step) % n;
            match (self.write_this(epoch, shown, out), &self.training) {
                (Ok(()), _) => return Ok(Some(shown)),
                (Err(error), training) => {
                    let mut unreadable = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
                    unreadable.entry(shown).or_insert_with(|| error.to_string());
                    if training.is_none() {
                        return Ok(None);
                    }
                }
            }
        }
        Err(DataError::Mismatch(format!("none of the {n} images to train on can be read")))
    }

    fn write_this(&self, epoch: u64, index: usize, out: &mut [f32]) -> Result<(), DataError> {
        let shape = self.transform.shape();
        match &self.training {
            Some((augment, seed)) => {
                let view = augment.view(*seed, epoch, index);
                if augment.changes_pixels() {
                    let picture = match augment.wants_picture() {
                        true => self.split.picture(index)?,
                        false => Pixels::new(self.split.image(index)?.into_owned(), shape)?,
                    };
                    let image = augment.image(*seed, epoch, index, picture, shape[1]);
                    self.transform.write(image.data(), view, out);
                } else {
                    self.transform.write(&self.split.image(index)?, view, out);
                }
                augment.after_normalize(*seed, epoch, index, out, shape);
            }
            None => self.transform.write(&self.split.image(index)?, View::default(), out),
        }
        Ok(())
    }
}

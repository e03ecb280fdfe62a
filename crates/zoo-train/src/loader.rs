//! Batches, made ready on another thread while the network computes.

use crate::augment::Augment;
use crate::data::{DataError, Split};
use candle_core::{Device, Tensor};
use std::any::Any;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use zoo_core::Precision;
use zoo_core::rng::Rng;
use zoo_image::{Transform, View};

/// Batches that wait ready. One would do for a steady step; two more cover a step that is quicker than the average.
const DEPTH: usize = 3;

/// What one step reads.
#[derive(Debug, Clone)]
pub struct Batch {
    /// (b, c, h, w) on the loader's device: f32, or of the loader's [`precision`](Loader::precision).
    pub images: Tensor,
    /// (b) u32 on the loader's device.
    pub labels: Tensor,
    /// The labels on the host.
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
    device: Device,
    precision: Precision,
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

    /// Batches in the split's order, neither cropped nor flipped.
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
        Ok(Self {
            split,
            transform,
            batch,
            training,
            drop_last: false,
            device: device.clone(),
            precision: Precision::F32,
        })
    }

    /// Whether an epoch ends before a batch that would be smaller than the others.
    #[must_use]
    pub fn drop_last(mut self, yes: bool) -> Self {
        self.drop_last = yes;
        self
    }

    /// Casts images to what a network computes in. One that the device does not compute in is an error of the first
    /// batch.
    #[must_use]
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Batches in an epoch.
    pub fn len(&self) -> usize {
        if self.drop_last { self.split.len() / self.batch } else { self.split.len().div_ceil(self.batch) }
    }

    /// Whether an epoch has no batch.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The batches of `epoch`, from its first.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn epoch(&self, epoch: u64) -> Result<Batches, DataError> {
        self.epoch_from(epoch, 0)
    }

    /// The batches of `epoch` without the first `skip`: where an interrupted run goes on. They are the same batches,
    /// bit by bit, as those that [`epoch`](Self::epoch) gives there, and the skipped ones cost nothing.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn epoch_from(&self, epoch: u64, skip: usize) -> Result<Batches, DataError> {
        let loader = self.clone();
        let order = self.order(epoch);
        let make = move |position: usize| {
            let start = (skip + position) * loader.batch;
            let indices = order[start..order.len().min(start + loader.batch)].to_vec();
            loader.prepare(epoch, indices)
        };
        let to = Destination { shape: self.split.shape(), device: self.device.clone(), precision: self.precision };
        Batches::start(self.len().saturating_sub(skip), to, make)
    }

    /// The index of every image of `epoch`, in the order in which they come.
    fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.split.len()).collect();
        if let Some((_, seed)) = self.training {
            Rng::new(seed, &format!("shuffle/epoch-{epoch}")).shuffle(&mut order);
        }
        order
    }

    // On one thread: a batch of 128 takes a fraction of a millisecond, and the training step wants the other cores.
    fn prepare(&self, epoch: u64, indices: Vec<usize>) -> HostBatch {
        let size = self.split.shape().iter().product();
        let mut pixels = vec![0.0; indices.len() * size];
        for (&index, out) in indices.iter().zip(pixels.chunks_exact_mut(size)) {
            let view = match self.training {
                Some((augment, seed)) => augment.view(seed, epoch, index),
                None => View::default(),
            };
            self.transform.write(self.split.image(index), view, out);
        }
        let labels = indices.iter().map(|&index| self.split.labels()[index]).collect();
        HostBatch { pixels, labels, indices }
    }
}

/// A batch before it goes to the device. That is left to the thread that computes: no other one touches the device.
struct HostBatch {
    pixels: Vec<f32>,
    labels: Vec<u32>,
    indices: Vec<usize>,
}

/// What a batch becomes on the thread that computes.
#[derive(Debug)]
struct Destination {
    /// (c, h, w)
    shape: [usize; 3],
    device: Device,
    precision: Precision,
}

/// The batches of one epoch: an iterator over `Result<Batch, DataError>` that ends after the first error.
///
/// Dropping it ends its thread.
#[derive(Debug)]
pub struct Batches {
    /// `None` once the thread is let go.
    receiver: Option<Receiver<HostBatch>>,
    worker: Option<JoinHandle<()>>,
    remaining: usize,
    to: Destination,
    waited: Duration,
}

impl Batches {
    fn start(
        count: usize,
        to: Destination,
        mut make: impl FnMut(usize) -> HostBatch + Send + 'static,
    ) -> Result<Self, DataError> {
        let (sender, receiver) = sync_channel(DEPTH - 1);
        let work = move || {
            for position in 0..count {
                // Nobody listens any more: the iterator was dropped.
                if sender.send(make(position)).is_err() {
                    return;
                }
            }
        };
        let worker = thread::Builder::new()
            .name("zoo-loader".into())
            .spawn(work)
            .map_err(|e| DataError::Worker(format!("could not be started: {e}")))?;
        let (receiver, worker) = (Some(receiver), Some(worker));
        Ok(Self { receiver, worker, remaining: count, to, waited: Duration::ZERO })
    }

    /// Seconds that [`next`](Iterator::next) has waited for the thread so far: the time that data cost the step.
    pub fn wait_seconds(&self) -> f64 {
        self.waited.as_secs_f64()
    }

    fn receive(&mut self) -> Result<Batch, DataError> {
        let begin = Instant::now();
        let received = self.receiver.as_ref().and_then(|receiver| receiver.recv().ok());
        self.waited += begin.elapsed();
        // The channel closes early only if the thread panicked.
        let HostBatch { pixels, labels, indices } = received.ok_or_else(|| DataError::Worker(self.join()))?;
        let Destination { shape: [c, h, w], device, precision } = &self.to;
        let images = precision.cast(&Tensor::from_vec(pixels, (labels.len(), *c, *h, *w), device)?)?;
        Ok(Batch { images, labels: Tensor::new(labels.as_slice(), device)?, host_labels: labels, indices })
    }

    /// Lets the thread go and waits for its end; what it said if it panicked.
    fn join(&mut self) -> String {
        self.receiver = None;
        match self.worker.take().map(JoinHandle::join) {
            Some(Err(panic)) => panic_message(panic.as_ref()),
            _ => "it ended early".into(),
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("panicked").into()
}

impl Iterator for Batches {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.remaining = self.remaining.checked_sub(1)?;
        let batch = self.receive();
        if batch.is_err() {
            self.remaining = 0;
        }
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.remaining, Some(self.remaining))
    }
}

impl ExactSizeIterator for Batches {}

impl Drop for Batches {
    fn drop(&mut self) {
        self.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Synthetic;
    use candle_core::DType;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use zoo_image::Normalize;

    /// 50 images.
    fn parts() -> (Arc<Split>, Arc<Transform>) {
        let split = Synthetic { train: 50, test: 0, seed: 0 }.generate().train;
        let transform = split.transform(&Normalize::CIFAR10).unwrap();
        (split, transform.into())
    }

    fn train(batch: usize, seed: u64) -> Loader {
        let (split, transform) = parts();
        Loader::train(split, transform, Augment::STANDARD, batch, seed, &Device::Cpu).unwrap()
    }

    fn pixels(batch: &Batch) -> Vec<f32> {
        batch.images.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// The epoch's images, labels and indices in one piece, however it was cut.
    fn flat(batches: Batches) -> (Vec<f32>, Vec<u32>, Vec<usize>) {
        let (mut images, mut labels, mut indices) = (vec![], vec![], vec![]);
        for batch in batches {
            let batch = batch.unwrap();
            images.extend(pixels(&batch));
            assert_eq!(batch.labels.to_vec1::<u32>().unwrap(), batch.host_labels);
            labels.extend(batch.host_labels);
            indices.extend(batch.indices);
        }
        (images, labels, indices)
    }

    #[test]
    fn an_epoch_is_a_permutation_fixed_by_seed_and_epoch() {
        let (images, labels, indices) = flat(train(16, 1).epoch(0).unwrap());
        let mut sorted = indices.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        assert_ne!(indices, sorted);
        // Synthetic image i has the label i mod 10.
        assert!(indices.iter().zip(&labels).all(|(&i, &label)| label == (i % 10) as u32));

        assert!(flat(train(16, 1).epoch(0).unwrap()).0 == images);
        assert_ne!(flat(train(16, 1).epoch(1).unwrap()).2, indices);
        assert_ne!(flat(train(16, 2).epoch(0).unwrap()).2, indices);
    }

    #[test]
    fn the_batch_size_changes_no_image() {
        let whole = flat(train(50, 1).epoch(3).unwrap());
        for batch in [1, 7, 16, 64] {
            assert!(flat(train(batch, 1).epoch(3).unwrap()) == whole, "batch {batch}");
        }
    }

    #[test]
    fn loaders_on_many_threads_agree() {
        let expected = flat(train(8, 5).epoch(2).unwrap());
        let agree = || flat(train(8, 5).epoch(2).unwrap()) == expected;
        thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(agree)).collect();
            threads.into_iter().for_each(|thread| assert!(thread.join().unwrap()));
        });
    }

    #[test]
    fn an_epoch_can_be_entered_anywhere() {
        let loader = train(8, 1);
        let whole: Vec<Batch> = loader.epoch(4).unwrap().map(Result::unwrap).collect();
        for skip in 0..=whole.len() {
            let rest: Vec<Batch> = loader.epoch_from(4, skip).unwrap().map(Result::unwrap).collect();
            assert_eq!(rest.len(), whole.len() - skip);
            assert!(rest.iter().zip(&whole[skip..]).all(|(a, b)| pixels(a) == pixels(b) && a.indices == b.indices));
        }
        assert_eq!(loader.epoch_from(4, 1000).unwrap().count(), 0);
    }

    #[test]
    fn the_last_batch_is_kept_or_dropped() {
        let sizes = |loader: &Loader| -> Vec<usize> {
            let batches = loader.epoch(0).unwrap();
            assert_eq!(batches.len(), loader.len());
            batches.map(|batch| batch.unwrap().indices.len()).collect()
        };
        assert_eq!(sizes(&train(16, 1)), [16, 16, 16, 2]);
        assert_eq!(sizes(&train(16, 1).drop_last(true)), [16, 16, 16]);
        assert_eq!(sizes(&train(25, 1).drop_last(true)), [25, 25]);
        assert!(train(64, 1).drop_last(true).is_empty());
    }

    #[test]
    fn evaluation_keeps_the_order_and_the_pixels() {
        let (split, transform) = parts();
        let loader = Loader::eval(split.clone(), transform.clone(), 16, &Device::Cpu).unwrap();
        let (images, _, indices) = flat(loader.epoch(0).unwrap());
        assert_eq!(indices, (0..50).collect::<Vec<_>>());
        let mut expected = vec![0.0; 50 * 3072];
        for (i, out) in expected.chunks_exact_mut(3072).enumerate() {
            transform.write(split.image(i), View::default(), out);
        }
        assert!(images == expected);
    }

    #[test]
    fn settings_that_do_not_fit_are_errors() {
        let (split, transform) = parts();
        let error = Loader::eval(split, transform.clone(), 0, &Device::Cpu).unwrap_err().to_string();
        assert_eq!(error, "a batch of 0 images: expected at least 1");
        let other = Arc::new(Split::new(vec![0; 12], vec![0], [3, 2, 2]).unwrap());
        let error = Loader::eval(other, transform, 1, &Device::Cpu).unwrap_err().to_string();
        assert_eq!(error, "images of shape [3, 2, 2] for a transform of [3, 32, 32]");
    }

    #[test]
    fn a_precision_casts_the_images_alone() {
        let batch = |loader: Loader| loader.epoch(1).unwrap().next().unwrap().unwrap();
        let (whole, mixed) = (batch(train(16, 1)), batch(train(16, 1).precision(Precision::Bf16)));
        assert_eq!((mixed.images.dtype(), mixed.images.dims()), (DType::BF16, whole.images.dims()));
        let rounded = whole.images.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        let widened = Batch { images: mixed.images.to_dtype(DType::F32).unwrap(), ..mixed };
        assert!(pixels(&widened) == rounded.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        assert_eq!((widened.host_labels, widened.indices), (whole.host_labels, whole.indices));
    }

    fn destination() -> Destination {
        Destination { shape: [3, 2, 2], device: Device::Cpu, precision: Precision::F32 }
    }

    #[test]
    fn a_panic_on_the_thread_arrives_as_an_error() {
        let make = |position: usize| {
            assert!(position < 2, "image {position} exploded");
            HostBatch { pixels: vec![0.0; 12], labels: vec![0], indices: vec![0] }
        };
        let mut batches = Batches::start(5, destination(), make).unwrap();
        assert!(batches.next().unwrap().is_ok() && batches.next().unwrap().is_ok());
        let error = batches.next().unwrap().unwrap_err().to_string();
        assert_eq!(error, "the data loader's thread failed: image 2 exploded");
        assert!(batches.next().is_none());
    }

    #[test]
    fn dropping_the_iterator_ends_the_thread() {
        let made = Arc::new(AtomicUsize::new(0));
        let counter = made.clone();
        let make = move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
            HostBatch { pixels: vec![0.0; 12], labels: vec![0], indices: vec![0] }
        };
        let mut batches = Batches::start(1_000_000, destination(), make).unwrap();
        assert!(batches.next().is_some());
        assert!(batches.wait_seconds() > 0.0);
        drop(batches);
        // The closure, and with it the counter, went with the thread; no more than the channel holds was made ahead.
        assert_eq!(Arc::strong_count(&made), 1);
        assert!(made.load(Ordering::SeqCst) <= 1 + DEPTH + 1);
    }
}

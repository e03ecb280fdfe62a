//! The threads that make batches, and the iterator over what they make.

use super::Batch;
use crate::data::DataError;
use candle_core::{Device, Tensor};
use std::any::Any;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use zoo_core::Precision;

/// Batches that wait ready. One would do for a steady step; two more cover a step that is quicker than the average.
pub(super) const DEPTH: usize = 3;

/// A batch before it goes to the device. That is left to the thread that computes: no other one touches the device.
pub(super) struct HostBatch {
    pub pixels: Vec<f32>,
    pub labels: Vec<u32>,
    pub targets: Option<Vec<f32>>,
    pub indices: Vec<usize>,
}

/// What a batch becomes on the thread that computes.
#[derive(Debug)]
pub(super) struct Destination {
    /// (c, h, w)
    pub shape: [usize; 3],
    pub device: Device,
    pub precision: Precision,
}

/// A thread that makes every so many-th batch.
#[derive(Debug)]
struct Worker {
    receiver: Receiver<Result<HostBatch, DataError>>,
    thread: JoinHandle<()>,
}

/// The batches of one epoch: an iterator over `Result<Batch, DataError>` that ends after the first error.
///
/// Dropping it ends its threads.
#[derive(Debug)]
pub struct Batches {
    /// Batch i comes from worker i modulo their number.
    workers: Vec<Worker>,
    next: usize,
    remaining: usize,
    to: Destination,
    waited: Duration,
}

impl Batches {
    pub(super) fn start<M>(
        count: usize,
        to: Destination,
        makers: impl ExactSizeIterator<Item = M>,
    ) -> Result<Self, DataError>
    where
        M: FnMut(usize) -> Result<HostBatch, DataError> + Send + 'static,
    {
        let together = makers.len();
        let mut workers = Vec::with_capacity(together);
        for (first, mut make) in makers.enumerate() {
            let (sender, receiver) = sync_channel((DEPTH / together).max(1) - usize::from(together == 1));
            let work = move || {
                for position in (first..count).step_by(together) {
                    // Nobody listens any more: the iterator was dropped.
                    if sender.send(make(position)).is_err() {
                        return;
                    }
                }
            };
            let thread = thread::Builder::new()
                .name("zoo-loader".into())
                .spawn(work)
                .map_err(|e| DataError::Worker(format!("could not be started: {e}")))?;
            workers.push(Worker { receiver, thread });
        }
        Ok(Self { workers, next: 0, remaining: count, to, waited: Duration::ZERO })
    }

    /// Seconds that [`next`](Iterator::next) has waited for the threads so far: the time that data cost the step.
    pub fn wait_seconds(&self) -> f64 {
        self.waited.as_secs_f64()
    }

    fn receive(&mut self) -> Result<Batch, DataError> {
        let begin = Instant::now();
        let place = self.next % self.workers.len().max(1);
        let received = self.workers.get(place).and_then(|worker| worker.receiver.recv().ok());
        self.waited += begin.elapsed();
        self.next += 1;
        // A channel closes early only if its thread panicked.
        let batch = received.ok_or_else(|| DataError::Worker(self.join(Some(place))))??;
        let HostBatch { pixels, labels, targets, indices } = batch;
        let Destination { shape: [c, h, w], device, precision } = &self.to;
        let images = precision.cast(&Tensor::from_vec(pixels, (labels.len(), *c, *h, *w), device)?)?;
        let targets = match targets {
            Some(shares) => {
                let classes = shares.len() / labels.len().max(1);
                Tensor::from_vec(shares, (labels.len(), classes), device)?
            }
            None => Tensor::new(labels.as_slice(), device)?,
        };
        Ok(Batch { images, labels: targets, host_labels: labels, indices })
    }

    /// Lets the threads go and waits for their end; what the one at `place` said if it panicked.
    fn join(&mut self, place: Option<usize>) -> String {
        let (receivers, threads): (Vec<_>, Vec<_>) =
            self.workers.drain(..).map(|worker| (worker.receiver, worker.thread)).unzip();
        drop(receivers);
        let mut said = String::from("it ended early");
        for (at, thread) in threads.into_iter().enumerate() {
            if let (Err(panic), true) = (thread.join(), Some(at) == place) {
                said = panic_message(panic.as_ref());
            }
        }
        said
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("panicked").into()
}

impl Iterator for Batches {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.remaining = self.remaining.checked_sub(1)?;
            match self.receive() {
                // None of its images could be read.
                Ok(batch) if batch.host_labels.is_empty() => {}
                Ok(batch) => return Some(Ok(batch)),
                Err(error) => {
                    self.remaining = 0;
                    return Some(Err(error));
                }
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.remaining))
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.join(None);
    }
}

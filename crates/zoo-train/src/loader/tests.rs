use super::batches::DEPTH;
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
        let sizes: Vec<usize> = loader.epoch(0).unwrap().map(|batch| batch.unwrap().indices.len()).collect();
        assert_eq!(sizes.len(), loader.len());
        sizes
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
        transform.write(&split.image(i).unwrap(), View::default(), out);
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

/// Everything at once, on as many threads as one likes: the same images, in the same order.
#[test]
fn no_number_of_workers_changes_a_batch() {
    let augment = Augment {
        policy: Some("rand-m9-mstd0.5-inc1".parse().unwrap()),
        cutout: Some(8),
        mixup: Some(0.4),
        cutmix: Some(1.0),
        ..Augment::STANDARD
    };
    let (split, transform) = parts();
    let run = |workers: usize| -> Vec<(Vec<f32>, Vec<f32>, Vec<usize>)> {
        let loader = Loader::train(split.clone(), transform.clone(), augment, 8, 1, &Device::Cpu).unwrap();
        let targets = Targets { classes: 10, weights: Vec::new(), label_smoothing: 0.1, as_shares: false };
        let batches = loader.targets(targets).workers(workers).epoch(3).unwrap();
        let parts = |batch: Batch| {
            let shares: Vec<f32> = batch.labels.flatten_all().unwrap().to_vec1().unwrap();
            assert!(shares.chunks(10).all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-5), "{shares:?}");
            (pixels(&batch), shares, batch.indices)
        };
        batches.map(|batch| parts(batch.unwrap())).collect()
    };
    let one = run(1);
    assert_eq!(one.len(), 7);
    assert!(one == run(2) && one == run(5) && one == run(9));
}

/// PyTorch's `cross_entropy(logits, labels, weight=…, label_smoothing=0.1)` is the mean of -Σ share · log p.
#[test]
fn weights_of_classes_are_pytorchs() {
    let targets = Targets { classes: 3, weights: vec![1.0, 2.0, 4.0], label_smoothing: 0.1, as_shares: false };
    let shares = targets.of(&[0, 2], None).unwrap();
    // Weighted by hand: (0.9 · w[y] at y + 0.1 / 3 · w[c] at each c) · 2 / (1 + 4).
    let by_hand = |y: usize, c: usize| {
        let weight = [1.0, 2.0, 4.0][c];
        (f32::from(u8::from(y == c)) * 0.9 + 0.1 / 3.0) * weight * 2.0 / 5.0
    };
    for (i, share) in shares.iter().enumerate() {
        assert!((share - by_hand([0, 2][i / 3], i % 3)).abs() < 1e-6, "{shares:?}");
    }
    assert_eq!(Targets { classes: 3, ..Targets::default() }.of(&[0], None), None);
    // A batch of images that do not count asks for nothing, where 0 / 0 would end the run.
    let none = Targets { classes: 2, weights: vec![0.0, 1.0], label_smoothing: 0.0, as_shares: false };
    assert_eq!(none.of(&[0, 0], None).unwrap(), [0.0; 4]);
}

/// Images of which every third cannot be read.
#[derive(Debug)]
struct Holes;

impl crate::data::ImageSet for Holes {
    fn len(&self) -> usize {
        10
    }
    fn shape(&self) -> [usize; 3] {
        [1, 1, 1]
    }
    fn read(&self, index: usize) -> Result<std::borrow::Cow<'_, [u8]>, DataError> {
        match index % 3 {
            0 => Err(DataError::Mismatch(format!("image {index} is a hole"))),
            _ => Ok(vec![index as u8].into()),
        }
    }
}

#[test]
fn training_takes_the_next_image_and_evaluation_leaves_out_what_cannot_be_read() {
    let split = Arc::new(Split::of(Arc::new(Holes), (0..10).collect()).unwrap());
    let transform = Arc::new(split.transform(&Normalize::HALF).unwrap());
    let eval = Loader::eval(split.clone(), transform.clone(), 1, &Device::Cpu).unwrap();
    assert_eq!(flat(eval.epoch(0).unwrap()).1, [1, 2, 4, 5, 7, 8]);
    assert_eq!(eval.unreadable().keys().copied().collect::<Vec<_>>(), [0, 3, 6, 9]);
    assert_eq!(eval.unreadable()[&3], "image 3 is a hole");

    let train = Loader::train(split, transform, Augment::NONE, 4, 1, &Device::Cpu).unwrap();
    let (_, labels, indices) = flat(train.epoch(0).unwrap());
    let mut sorted = indices.clone();
    sorted.sort_unstable();
    // 0 became 1, 3 became 4, 6 became 7, 9 and then 0 became 1.
    assert_eq!(sorted, [1, 1, 1, 2, 4, 4, 5, 7, 7, 8]);
    assert!(labels.iter().zip(indices).all(|(&label, index)| label as usize == index));
}

fn destination() -> Destination {
    Destination { shape: [3, 2, 2], device: Device::Cpu, precision: Precision::F32 }
}

#[test]
fn a_panic_on_the_thread_arrives_as_an_error() {
    let make = |position: usize| {
        assert!(position < 2, "image {position} exploded");
        Ok(HostBatch { pixels: vec![0.0; 12], labels: vec![0], targets: None, indices: vec![0] })
    };
    let mut batches = Batches::start(5, destination(), [make].into_iter()).unwrap();
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
        Ok(HostBatch { pixels: vec![0.0; 12], labels: vec![0], targets: None, indices: vec![0] })
    };
    let mut batches = Batches::start(1_000_000, destination(), [make].into_iter()).unwrap();
    assert!(batches.next().is_some());
    assert!(batches.wait_seconds() > 0.0);
    drop(batches);
    // The closure, and with it the counter, went with the thread; no more than the channel holds was made ahead.
    assert_eq!(Arc::strong_count(&made), 1);
    assert!(made.load(Ordering::SeqCst) <= 1 + DEPTH + 1);
}

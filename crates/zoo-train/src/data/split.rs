//! Labelled images: in memory, or read when they are wanted.

use super::DataError;
use crate::augment::Pixels;
use rayon::prelude::*;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use zoo_image::{Normalize, Transform, grey};

/// Images of one shape that can be read in any order, from several threads: a caller's own data implements it and becomes
/// a [`Split`].
///
/// ```
/// use std::borrow::Cow;
/// use std::sync::Arc;
/// use zoo_train::data::{DataError, ImageSet, Split};
///
/// /// Squares of one shade of grey, drawn when they are asked for.
/// #[derive(Debug)]
/// struct Shades;
///
/// impl ImageSet for Shades {
///     fn len(&self) -> usize {
///         256
///     }
///     fn shape(&self) -> [usize; 3] {
///         [1, 32, 32]
///     }
///     fn read(&self, index: usize) -> Result<Cow<'_, [u8]>, DataError> {
///         Ok(vec![index as u8; 32 * 32].into())
///     }
/// }
///
/// let dark_or_light = (0..256).map(|shade| u32::from(shade >= 128)).collect();
/// let split = Split::of(Arc::new(Shades), dark_or_light)?;
/// assert_eq!((split.len(), split.image(7)?[0]), (256, 7));
/// # Ok::<(), DataError>(())
/// ```
#[allow(clippy::len_without_is_empty)] // Whether there is any image is asked of the split.
pub trait ImageSet: fmt::Debug + Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// (channels, height, width) of every image, as [`read`](Self::read) gives it.
    fn shape(&self) -> [usize; 3];

    /// The bytes of image `index`, which is below [`len`](Self::len): channel by channel, row by row. The same ones every time.
    ///
    /// # Errors
    /// An image that cannot be read: training takes the next one in its place, evaluation leaves it out.
    fn read(&self, index: usize) -> Result<Cow<'_, [u8]>, DataError>;

    /// What image `index` was cut from, at its own size: what a random resized crop chooses from. The image itself, unless
    /// the set knows more.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn picture(&self, index: usize) -> Result<Pixels, DataError> {
        Pixels::new(self.read(index)?.into_owned(), self.shape())
    }

    /// What tells image `index` from others, so that a run goes on with the data that it began with: its bytes, unless the set
    /// knows something that is quicker to read.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn fingerprint(&self, index: usize) -> Result<Cow<'_, [u8]>, DataError> {
        self.read(index)
    }

    /// Whether reading an image takes work, as decoding does: then several threads share it.
    fn is_slow(&self) -> bool {
        true
    }
}

/// Images in memory, one after the other.
#[derive(Debug)]
struct Memory {
    images: Vec<u8>,
    len: usize,
    shape: [usize; 3],
}

impl ImageSet for Memory {
    fn len(&self) -> usize {
        self.len
    }

    fn shape(&self) -> [usize; 3] {
        self.shape
    }

    fn read(&self, index: usize) -> Result<Cow<'_, [u8]>, DataError> {
        let size = self.shape.iter().product::<usize>();
        Ok(self.images[index * size..(index + 1) * size].into())
    }

    fn is_slow(&self) -> bool {
        false
    }
}

/// The images of another set in grey.
#[derive(Debug)]
struct Grey(Arc<dyn ImageSet>);

impl ImageSet for Grey {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn shape(&self) -> [usize; 3] {
        let [_, height, width] = self.0.shape();
        [1, height, width]
    }

    fn read(&self, index: usize) -> Result<Cow<'_, [u8]>, DataError> {
        Ok(grey(&self.0.read(index)?).into())
    }

    fn picture(&self, index: usize) -> Result<Pixels, DataError> {
        let colour = self.0.picture(index)?;
        let [_, height, width] = colour.shape();
        Pixels::new(grey(colour.data()), [1, height, width])
    }

    fn is_slow(&self) -> bool {
        self.0.is_slow()
    }
}

/// Images of one shape with their labels: a view of an [`ImageSet`].
#[derive(Debug, Clone)]
pub struct Split {
    set: Arc<dyn ImageSet>,
    /// Which of the set's images; all of them in their order without it.
    indices: Option<Vec<usize>>,
    labels: Vec<u32>,
}

impl PartialEq for Split {
    /// The same labels, and the same bytes.
    fn eq(&self, other: &Self) -> bool {
        let same = |index| matches!((self.image(index), other.image(index)), (Ok(a), Ok(b)) if a == b);
        self.labels == other.labels && self.shape() == other.shape() && (0..self.len()).all(same)
    }
}

impl Split {
    /// `images` holds `labels.len()` images of `shape` (channels, height, width) one after the other, each channel by
    /// channel and row by row.
    ///
    /// # Errors
    /// A buffer of another length.
    pub fn new(images: Vec<u8>, labels: Vec<u32>, shape: [usize; 3]) -> Result<Self, DataError> {
        let expected = labels.len() * shape.iter().product::<usize>();
        if images.len() != expected {
            let (bytes, n) = (images.len(), labels.len());
            return Err(DataError::Mismatch(format!(
                "{n} images of shape {shape:?} take {expected} bytes, got {bytes}"
            )));
        }
        Ok(Self::drawn(images, labels, shape))
    }

    /// Of images whose number is that of the labels.
    pub(super) fn drawn(images: Vec<u8>, labels: Vec<u32>, shape: [usize; 3]) -> Self {
        Self { set: Arc::new(Memory { images, len: labels.len(), shape }), indices: None, labels }
    }

    /// All images of `set`, with the class of each.
    ///
    /// # Errors
    /// Another number of labels than there are images.
    pub fn of(set: Arc<dyn ImageSet>, labels: Vec<u32>) -> Result<Self, DataError> {
        if set.len() != labels.len() {
            return Err(DataError::Mismatch(format!("{} labels for {} images", labels.len(), set.len())));
        }
        Ok(Self { set, indices: None, labels })
    }

    /// The images at these places, in this order.
    ///
    /// ```
    /// use zoo_train::data::Synthetic;
    /// let split = Synthetic { train: 30, test: 0, seed: 0 }.generate().train;
    /// let few = split.select(&[7, 3]);
    /// assert_eq!((few.image(0)?, few.labels()), (split.image(7)?, &[7, 3][..]));
    /// # Ok::<(), zoo_train::data::DataError>(())
    /// ```
    ///
    /// # Panics
    /// If one is not below [`len`](Self::len).
    pub fn select(&self, places: &[usize]) -> Self {
        let indices = places.iter().map(|&place| self.place(place)).collect();
        let labels = places.iter().map(|&place| self.labels[place]).collect();
        Self { set: self.set.clone(), indices: Some(indices), labels }
    }

    /// Where in the set an image of this split stands.
    fn place(&self, index: usize) -> usize {
        assert!(index < self.len(), "image {index} of {}", self.len());
        self.indices.as_ref().map_or(index, |indices| indices[index])
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// (channels, height, width) of every image.
    pub fn shape(&self) -> [usize; 3] {
        self.set.shape()
    }

    /// The bytes of image `index`, channel by channel, row by row.
    ///
    /// # Errors
    /// An image that cannot be read; those in memory always can.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len).
    pub fn image(&self, index: usize) -> Result<Cow<'_, [u8]>, DataError> {
        self.set.read(self.place(index))
    }

    /// What image `index` was cut from, at its own size, see [`ImageSet::picture`].
    ///
    /// # Errors
    /// As [`image`](Self::image).
    ///
    /// # Panics
    /// As [`image`](Self::image).
    pub fn picture(&self, index: usize) -> Result<Pixels, DataError> {
        self.set.picture(self.place(index))
    }

    /// What tells image `index` from others, see [`ImageSet::fingerprint`].
    ///
    /// # Errors
    /// As [`image`](Self::image).
    ///
    /// # Panics
    /// As [`image`](Self::image).
    pub fn fingerprint(&self, index: usize) -> Result<Cow<'_, [u8]>, DataError> {
        self.set.fingerprint(self.place(index))
    }

    /// Whether reading takes work, see [`ImageSet::is_slow`].
    pub fn is_slow(&self) -> bool {
        self.set.is_slow()
    }

    /// The class of every image.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// How many images each of `classes` classes has.
    pub fn counts(&self, classes: usize) -> Vec<usize> {
        let mut counts = vec![0; classes];
        for &label in &self.labels {
            if let Some(count) = counts.get_mut(label as usize) {
                *count += 1;
            }
        }
        counts
    }

    /// The mean image over the split, as the network sees it before any other normalisation: c·h·w values in 0..=1.
    /// Zeros for an empty split. Images that cannot be read do not count.
    pub fn mean_image(&self) -> Vec<f32> {
        let size = self.shape().iter().product();
        let none = || (vec![0u64; size], 0u64);
        let add = |(mut sums, n): (Vec<u64>, u64), index: usize| {
            let Ok(image) = self.image(index) else { return (sums, n) };
            sums.iter_mut().zip(image.iter()).for_each(|(sum, &byte)| *sum += u64::from(byte));
            (sums, n + 1)
        };
        let join = |(mut a, n): (Vec<u64>, u64), (b, m): (Vec<u64>, u64)| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
            (a, n + m)
        };
        // Sums of whole numbers: no order of threads changes them.
        let (sums, n) = (0..self.len()).into_par_iter().fold(none, add).reduce(none, join);
        let scale = 255.0 * n.max(1) as f64;
        sums.into_iter().map(|sum| (sum as f64 / scale) as f32).collect()
    }

    /// How these images become what a network reads. The test images of a run go through the transform of its
    /// *training* split, whose mean [`Normalize::PixelMean`] takes off.
    ///
    /// # Errors
    /// Images of neither three channels nor one, where three means are taken off.
    pub fn transform(&self, normalize: &Normalize) -> Result<Transform, DataError> {
        Ok(Transform::new(normalize, self.shape(), || self.mean_image())?)
    }

    /// The first `n` images; all if there are no more.
    pub(super) fn truncate(&mut self, n: usize) {
        if n < self.len() {
            *self = self.select(&(0..n).collect::<Vec<_>>());
        }
    }

    /// The images in `channels` channels: as they are, or grey.
    ///
    /// ```
    /// use zoo_train::data::Split;
    /// let red = Split::new(vec![255, 0, 0], vec![0], [3, 1, 1])?;
    /// assert_eq!(*red.with_channels(1)?.image(0)?, [76]);
    /// # Ok::<(), zoo_train::data::DataError>(())
    /// ```
    ///
    /// # Errors
    /// Another number of channels than the images have, or 1.
    pub fn with_channels(self, channels: usize) -> Result<Self, DataError> {
        match (self.shape()[0], channels) {
            (own, channels) if own == channels => Ok(self),
            (3, 1) => Ok(Self { set: Arc::new(Grey(self.set)), ..self }),
            (own, _) => Err(DataError::Mismatch(format!(
                "images of {own} channels cannot become images of {channels}: only colour can become grey"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Synthetic;

    #[test]
    fn a_split_checks_its_length() {
        let error = Split::new(vec![0; 11], vec![0], [3, 2, 2]).unwrap_err().to_string();
        assert_eq!(error, "1 images of shape [3, 2, 2] take 12 bytes, got 11");
    }

    #[test]
    fn the_mean_image_averages_pixel_by_pixel() {
        let split = Split::new(vec![0, 51, 255, 0, 153, 0], vec![0, 0], [3, 1, 1]).unwrap();
        assert_eq!(split.mean_image(), [0.0, 0.4, 0.5]);
        assert_eq!(split.select(&[1]).mean_image(), [0.0, 0.6, 0.0]);
    }

    #[test]
    fn colour_images_become_grey_and_grey_ones_stay() {
        let planes = vec![255, 12, 0, 200, 0, 99];
        let split = Split::new(planes, vec![4], [3, 1, 2]).unwrap().with_channels(1).unwrap();
        assert_eq!((split.shape(), split.labels()), ([1, 1, 2], &[4][..]));
        assert_eq!(*split.image(0).unwrap(), [76, 132]);
        assert_eq!(split.picture(0).unwrap().data(), [76, 132]);
        assert_eq!(split.clone().with_channels(1).unwrap(), split);
        assert!(split.with_channels(3).unwrap_err().to_string().contains("1 channels cannot become images of 3"));
    }

    #[test]
    fn a_selection_of_a_selection_is_of_the_whole() {
        let split = Synthetic { train: 30, test: 0, seed: 0 }.generate().train;
        let chosen = split.select(&[9, 4, 22, 0]).select(&[2, 0]);
        assert_eq!(chosen.labels(), [2, 9]);
        assert_eq!(chosen.image(0).unwrap(), split.image(22).unwrap());
        assert_eq!(chosen.fingerprint(1).unwrap(), split.fingerprint(9).unwrap());
        assert_eq!(chosen.counts(4), [0, 0, 1, 0]);
        assert!(chosen != *split && chosen == split.select(&[22, 9]));
    }
}

//! Colour images for networks that take one channel.

use super::{DataError, Dataset, Split};
use std::sync::Arc;
use zoo_image::grey;

impl Split {
    /// The images in `channels` channels: as they are, or grey.
    ///
    /// ```
    /// use zoo_train::data::Split;
    /// let red = Split::new(vec![255, 0, 0], vec![0], [3, 1, 1])?;
    /// assert_eq!(red.with_channels(1)?.image(0), [76]);
    /// # Ok::<(), zoo_train::data::DataError>(())
    /// ```
    ///
    /// # Errors
    /// Another number of channels than the images have, or 1.
    pub fn with_channels(self, channels: usize) -> Result<Self, DataError> {
        let [own, height, width] = self.shape;
        if own == channels {
            return Ok(self);
        }
        if (own, channels) != (3, 1) {
            let problem =
                format!("images of {own} channels cannot become images of {channels}: only colour can become grey");
            return Err(DataError::Mismatch(problem));
        }
        let images = (0..self.len()).flat_map(|index| grey(self.image(index))).collect();
        Ok(Self { images, labels: self.labels, shape: [1, height, width] })
    }
}

impl Dataset {
    /// Both splits in `channels` channels: as they are, or grey.
    ///
    /// # Errors
    /// As [`Split::with_channels`].
    pub fn with_channels(self, channels: usize) -> Result<Self, DataError> {
        let Self { train, test, .. } = self;
        let converted = |split: Arc<Split>| Arc::unwrap_or_clone(split).with_channels(channels).map(Arc::new);
        Ok(Self { train: converted(train)?, test: converted(test)?, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_images_become_grey_and_grey_ones_stay() {
        let planes = vec![255, 12, 0, 200, 0, 99];
        let split = Split::new(planes, vec![4], [3, 1, 2]).unwrap().with_channels(1).unwrap();
        assert_eq!((split.shape(), split.labels(), split.image(0)), ([1, 1, 2], &[4][..], &[76, 132][..]));
        assert_eq!(split.clone().with_channels(1).unwrap(), split);
        assert!(split.with_channels(3).unwrap_err().to_string().contains("1 channels cannot become images of 3"));
    }
}

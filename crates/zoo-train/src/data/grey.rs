//! Colour images for networks that take one channel.

use super::{DataError, Dataset, Split};
use std::sync::Arc;

/// Red, green and blue as one channel: ITU-R 601's luma, rounded as Pillow rounds it.
fn luma([red, green, blue]: [u8; 3]) -> u8 {
    ((u32::from(red) * 19595 + u32::from(green) * 38470 + u32::from(blue) * 7471 + 0x8000) >> 16) as u8
}

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
        let pixels = height * width;
        let mut images = Vec::with_capacity(self.labels.len() * pixels);
        for index in 0..self.len() {
            let image = self.image(index);
            images.extend((0..pixels).map(|at| luma([image[at], image[pixels + at], image[2 * pixels + at]])));
        }
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

    /// Expected values from Pillow 13: `Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0))`.
    #[test]
    fn colours_become_the_grey_that_pillow_makes() {
        let colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [12, 200, 99], [255, 255, 255], [1, 2, 3], [0, 0, 0]];
        assert_eq!(colours.map(luma), [76, 150, 29, 132, 255, 2, 0]);
        let planes = (0..3).flat_map(|c| colours.map(|colour| colour[c])).collect();
        let split = Split::new(planes, vec![4], [3, 1, 7]).unwrap().with_channels(1).unwrap();
        assert_eq!(
            (split.shape(), split.labels(), split.image(0)),
            ([1, 1, 7], &[4][..], &[76, 150, 29, 132, 255, 2, 0][..])
        );
        assert!(split.with_channels(3).unwrap_err().to_string().contains("1 channels cannot become images of 3"));
    }
}

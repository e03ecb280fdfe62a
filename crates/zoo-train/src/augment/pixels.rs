//! Images of bytes, as they are before normalisation.

use crate::data::DataError;

/// A rectangle of an image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Rows above it.
    pub top: usize,
    /// Columns to the left of it.
    pub left: usize,
    /// Its rows.
    pub height: usize,
    /// Its columns.
    pub width: usize,
}

impl Region {
    /// Its pixels.
    pub fn area(&self) -> usize {
        self.height * self.width
    }
}

/// An image of bytes: one plane for grey, three for red, green and blue, each row by row.
///
/// ```
/// use zoo_train::augment::Pixels;
/// let image = Pixels::new(vec![10, 20, 30, 40], [1, 2, 2])?;
/// assert_eq!((image.shape(), image.data()), ([1, 2, 2], &[10, 20, 30, 40][..]));
/// assert!(Pixels::new(vec![0; 5], [1, 2, 2]).is_err());
/// # Ok::<(), zoo_train::data::DataError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pixels {
    data: Vec<u8>,
    shape: [usize; 3],
}

impl Pixels {
    /// The bytes of an image of `shape`, (channels, height, width).
    ///
    /// # Errors
    /// Neither one channel nor three, no pixels, or another number of bytes.
    pub fn new(data: Vec<u8>, shape: [usize; 3]) -> Result<Self, DataError> {
        let [channels, height, width] = shape;
        if !matches!(channels, 1 | 3) || height == 0 || width == 0 {
            return Err(DataError::Mismatch(format!(
                "an image of shape {shape:?}: expected pixels of 1 or 3 channels"
            )));
        }
        if data.len() != channels * height * width {
            return Err(DataError::Mismatch(format!("{} bytes for an image of shape {shape:?}", data.len())));
        }
        Ok(Self { data, shape })
    }

    /// Of a shape that the caller has kept.
    pub(super) fn of(data: Vec<u8>, shape: [usize; 3]) -> Self {
        debug_assert_eq!(data.len(), shape.iter().product::<usize>());
        Self { data, shape }
    }

    /// (channels, height, width)
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// The bytes, plane by plane, row by row.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The bytes alone.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    pub(super) fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// Pixels of a plane.
    pub(super) fn area(&self) -> usize {
        self.shape[1] * self.shape[2]
    }

    pub(super) fn planes(&self) -> impl Iterator<Item = &[u8]> {
        self.data.chunks_exact(self.area())
    }

    pub(super) fn planes_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let area = self.area();
        self.data.chunks_exact_mut(area)
    }

    /// What of the image lies in `region`, which is inside of it.
    pub(super) fn crop(&self, region: Region) -> Self {
        let [channels, height, width] = self.shape;
        let mut data = Vec::with_capacity(channels * region.area());
        for plane in self.planes() {
            let rows = plane.chunks_exact(width).skip(region.top).take(region.height.min(height));
            rows.for_each(|row| data.extend_from_slice(&row[region.left..region.left + region.width]));
        }
        Self::of(data, [channels, region.height, region.width])
    }

    /// A window of the image's own size, `down` and `right` of it; black where the image does not reach.
    pub(super) fn shifted(&self, down: isize, right: isize) -> Self {
        let [channels, height, width] = self.shape;
        let mut data = vec![0; self.data.len()];
        let inside = |at: usize, by: isize, side: usize| at.checked_add_signed(by).filter(|&at| at < side);
        for line in 0..channels * height {
            let (plane, y) = (line / height * height, line % height);
            let Some(from) = inside(y, down, height).map(|y| (plane + y) * width) else { continue };
            for x in 0..width {
                if let Some(column) = inside(x, right, width) {
                    data[line * width + x] = self.data[from + column];
                }
            }
        }
        Self::of(data, self.shape)
    }

    /// Mirrors left and right.
    pub(super) fn flip_horizontally(&mut self) {
        let width = self.shape[2];
        self.data.chunks_exact_mut(width).for_each(<[u8]>::reverse);
    }

    /// Mirrors top and bottom.
    pub(super) fn flip_vertically(&mut self) {
        let [_, height, width] = self.shape;
        for plane in self.planes_mut() {
            for y in 0..height / 2 {
                let (upper, lower) = plane.split_at_mut((height - 1 - y) * width);
                upper[y * width..(y + 1) * width].swap_with_slice(&mut lower[..width]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let error = |bytes: usize, shape| Pixels::new(vec![0; bytes], shape).unwrap_err().to_string();
        assert_eq!(error(5, [1, 2, 2]), "5 bytes for an image of shape [1, 2, 2]");
        assert_eq!(error(8, [2, 2, 2]), "an image of shape [2, 2, 2]: expected pixels of 1 or 3 channels");
        assert_eq!(error(0, [3, 0, 4]), "an image of shape [3, 0, 4]: expected pixels of 1 or 3 channels");
    }

    #[test]
    fn cuts_shifts_and_flips_as_drawn_by_hand() {
        #[rustfmt::skip]
        let image = Pixels::new(vec![
            1, 2, 3,
            4, 5, 6,
            7, 8, 9,
        ], [1, 3, 3]).unwrap();
        let corner = image.crop(Region { top: 1, left: 0, height: 2, width: 2 });
        assert_eq!((corner.shape(), corner.data()), ([1, 2, 2], &[4, 5, 7, 8][..]));
        assert_eq!(image.shifted(1, -1).data(), [0, 4, 5, 0, 7, 8, 0, 0, 0]);
        assert_eq!(image.shifted(-3, 0).data(), [0; 9]);
        let mut flipped = image.clone();
        flipped.flip_vertically();
        assert_eq!(flipped.data(), [7, 8, 9, 4, 5, 6, 1, 2, 3]);
        flipped.flip_horizontally();
        assert_eq!(flipped.data(), [9, 8, 7, 6, 5, 4, 3, 2, 1]);
    }
}

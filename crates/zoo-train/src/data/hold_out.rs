//! A part of the training images to choose an epoch by.

use super::{DataError, Split};
use zoo_core::rng::Rng;

/// A share of the training images that is not trained on: the same share of every class, drawn by a seed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HoldOut {
    /// Of each class's images, over 0 and below 1; at least one image.
    pub share: f64,
    /// Fixes which.
    pub seed: u64,
}

impl HoldOut {
    /// The images that are left, and those that are held out, each in the order of `split`.
    pub(super) fn part(self, split: &Split, classes: usize) -> Result<(Split, Split), DataError> {
        let Self { share, seed } = self;
        if !(share > 0.0 && share < 1.0) {
            return Err(DataError::Mismatch(format!("the share to hold out must be over 0 and below 1, got {share}")));
        }
        let mut of_class: Vec<Vec<usize>> = vec![Vec::new(); classes];
        for (index, &label) in split.labels().iter().enumerate() {
            if let Some(images) = of_class.get_mut(label as usize) {
                images.push(index);
            }
        }
        let mut held = vec![false; split.len()];
        for (class, images) in of_class.iter_mut().enumerate() {
            let count = ((images.len() as f64 * share).round() as usize).max(1);
            if images.is_empty() {
                continue;
            }
            if count >= images.len() {
                let n = images.len();
                let problem = format!("to hold out {share} of class {class} leaves none of its {n} images to train on");
                return Err(DataError::Mismatch(problem));
            }
            Rng::new(seed, &format!("hold-out/{class}")).shuffle(images);
            images[..count].iter().for_each(|&index| held[index] = true);
        }
        let (held, left): (Vec<usize>, Vec<usize>) = (0..split.len()).partition(|&index| held[index]);
        Ok((split.select(&left), split.select(&held)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split() -> Split {
        // 30 of one class, 9 of another.
        let labels = (0..39).map(|i| u32::from(i % 13 >= 10)).collect();
        Split::new((0..39).collect(), labels, [1, 1, 1]).unwrap()
    }

    #[test]
    fn the_same_share_of_every_class_is_held_out_by_the_seed() {
        let (split, classes) = (split(), 2);
        let part = |seed| HoldOut { share: 0.1, seed }.part(&split, classes).unwrap();
        let (left, held) = part(1);
        assert_eq!((left.counts(classes), held.counts(classes)), (vec![27, 8], vec![3, 1]));
        let images = |part: &Split| -> Vec<u8> { (0..part.len()).map(|i| part.image(i).unwrap()[0]).collect() };
        let (left, held) = (images(&left), images(&held));
        assert!(left.is_sorted() && held.is_sorted());
        let mut all = [left, held.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..39).collect::<Vec<u8>>());
        assert_eq!(images(&part(1).1), held);
        assert!((2..9).any(|seed| images(&part(seed).1) != held));
    }

    #[test]
    fn a_class_of_one_image_and_shares_of_all_are_errors() {
        let error = |share, split: &Split| HoldOut { share, seed: 1 }.part(split, 2).unwrap_err().to_string();
        assert_eq!(error(1.0, &split()), "the share to hold out must be over 0 and below 1, got 1");
        let one = Split::new(vec![0; 3], vec![0, 0, 1], [1, 1, 1]).unwrap();
        assert_eq!(error(0.1, &one), "to hold out 0.1 of class 1 leaves none of its 1 images to train on");
    }
}

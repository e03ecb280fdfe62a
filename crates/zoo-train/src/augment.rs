//! Augmentation of training images: which window of an image an epoch sees, and whether it is mirrored.
//!
//! The order is torchvision's, `RandomCrop(size, padding)`, `RandomHorizontalFlip`, `ToTensor`, `Normalize`: the
//! padding is black *before* normalisation, which [`Transform`](zoo_image::Transform) does. Every image's randomness is a
//! function of (seed, epoch, index of the image in its split) alone, whatever the batch size and the number of threads.

use serde::{Deserialize, Serialize};
use zoo_core::rng::Rng;
use zoo_image::View;

/// Random crop and flip of training images.
///
/// ```
/// use zoo_image::View;
/// use zoo_train::augment::Augment;
/// assert_eq!(Augment::NONE.view(1, 0, 42), View::default());
/// // The same image in the same epoch under the same seed is always seen alike.
/// assert_eq!(Augment::STANDARD.view(1, 0, 42), Augment::STANDARD.view(1, 0, 42));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augment {
    /// Black pixels added on every side before a window of the image's own size is cut at random; 0: no crop.
    pub crop_padding: usize,
    /// Mirror left and right in half of the cases.
    pub flip: bool,
}

impl Augment {
    /// The image as it is.
    pub const NONE: Self = Self { crop_padding: 0, flip: false };
    /// Pad 4 and flip: what nearly every CIFAR-10 recipe does.
    pub const STANDARD: Self = Self { crop_padding: 4, flip: true };

    /// How image `index` of its split is seen in `epoch` under `seed`.
    pub fn view(&self, seed: u64, epoch: u64, index: usize) -> View {
        /// Every image owns this many words of the epoch's stream; three draws take six.
        const WORDS: u64 = 16;
        let mut rng = Rng::new(seed, &format!("augment/epoch-{epoch}"));
        rng.seek(index as u64 * WORDS);
        let padding = self.crop_padding as isize;
        let mut shift = || rng.below(2 * self.crop_padding + 1) as isize - padding;
        let (down, right) = (shift(), shift());
        View { down, right, flip: rng.bernoulli(0.5) && self.flip }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_even_and_differ_by_image_epoch_and_seed() {
        let n = 81_000;
        let views: Vec<View> = (0..n).map(|i| Augment::STANDARD.view(3, 1, i)).collect();
        let mut counts = [[0usize; 9]; 9];
        views.iter().for_each(|v| counts[(v.down + 4) as usize][(v.right + 4) as usize] += 1);
        // 1,000 expected in each of the 81 places, four standard deviations are 126.
        assert!(counts.iter().flatten().all(|n| n.abs_diff(1000) < 130), "{counts:?}");
        let flips = views.iter().filter(|v| v.flip).count();
        assert!(flips.abs_diff(n / 2) < 600, "{flips}");

        let differ = |other: &dyn Fn(usize) -> View| (0..100).filter(|&i| other(i) != views[i]).count();
        assert!(differ(&|i| Augment::STANDARD.view(4, 1, i)) > 90);
        assert!(differ(&|i| Augment::STANDARD.view(3, 2, i)) > 90);
        assert!(differ(&|i| Augment::STANDARD.view(3, 1, i + 1)) > 90);
    }

    #[test]
    fn settings_are_data() {
        let json = serde_json::to_string(&Augment::STANDARD).unwrap();
        assert_eq!(json, r#"{"crop_padding":4,"flip":true}"#);
        assert_eq!(serde_json::from_str::<Augment>(&json).unwrap(), Augment::STANDARD);
    }
}

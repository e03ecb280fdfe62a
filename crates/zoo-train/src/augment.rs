//! Augmentation of training images: which part of an image an epoch sees, and how it is changed.
//!
//! The order is torchvision's references': a crop, flips, a policy, changes of colour, `ToTensor`, `Normalize`, erasing;
//! mixing is for a batch as a whole. Settings with `crop_padding` and `flip` alone are a [`View`] that
//! [`Transform`](zoo_image::Transform) shows, black *before* normalisation; all that looks at bytes goes through
//! [`Augment::image`]. What an operation computes is Pillow's arithmetic, byte for byte.
//!
//! An image's randomness is a function of (seed, epoch, index of the image in its split) alone, whatever the batch size
//! and the number of threads; a batch's mixture is one of (seed, epoch, number of the batch).

mod colour;
mod crop;
mod erase;
mod geometry;
#[cfg(test)]
mod golden;
mod jitter;
mod mix;
mod ops;
mod pixels;
mod policy;
mod rand_augment;

pub use crop::ResizedCrop;
pub use erase::{Erased, RandomErasing};
pub use geometry::{Interpolation, Sampling};
pub use jitter::ColorJitter;
pub use mix::{Mix, targets};
pub use ops::Op;
pub use pixels::{Pixels, Region};
pub use policy::Policy;
pub use rand_augment::RandAugment;

use serde::{Deserialize, Serialize};
use zoo_core::rng::Rng;
use zoo_image::View;

/// How training images are changed at random. What is not set is not written, so that settings of before there were
/// more of them read and write as they did.
///
/// ```
/// use zoo_image::View;
/// use zoo_train::augment::{Augment, Policy};
/// assert_eq!(Augment::NONE.view(1, 0, 42), View::default());
/// // The same image in the same epoch under the same seed is always seen alike.
/// assert_eq!(Augment::STANDARD.view(1, 0, 42), Augment::STANDARD.view(1, 0, 42));
///
/// let json = r#"{"crop_padding":4,"flip":true,"policy":"trivial-augment-wide","cutout":16,"mixup":0.2}"#;
/// let augment: Augment = serde_json::from_str(json)?;
/// assert_eq!((augment.policy, augment.cutout), (Some(Policy::TrivialAugmentWide), Some(16)));
/// assert_eq!(serde_json::to_string(&augment)?, json);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augment {
    /// Black pixels added on every side before a window of the image's own size is cut at random; 0: no crop. A resized
    /// crop takes its place.
    pub crop_padding: usize,
    /// Mirror left and right in half of the cases.
    pub flip: bool,
    /// With `flip`: an image that one epoch mirrors the next one does not, so that two epochs see both sides of every image
    /// (Jordan 2024, arXiv 2404.00498).
    #[serde(default, skip_serializing_if = "is_false")]
    pub alternating_flip: bool,
    /// A random part of the picture, of the picture's own size, resized to the network's side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resized_crop: Option<ResizedCrop>,
    /// Mirror top and bottom in half of the cases.
    #[serde(default, skip_serializing_if = "is_false")]
    pub vertical_flip: bool,
    /// Operations from a table, such as RandAugment's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// Random changes of brightness, contrast, saturation and hue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color_jitter: Option<ColorJitter>,
    /// A rectangle that is erased after normalisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random_erasing: Option<RandomErasing>,
    /// Side of a square that becomes 0 after normalisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cutout: Option<usize>,
    /// α of mixup: whole images are added up by shares from Beta(α, α).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixup: Option<f64>,
    /// α of CutMix: the share of the area that stays is from Beta(α, α).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cutmix: Option<f64>,
    /// How likely a batch is mixed, where mixup or CutMix is asked for.
    #[serde(default = "always", skip_serializing_if = "is_always")]
    pub mixup_prob: f64,
    /// How likely CutMix is where mixup is asked for too.
    #[serde(default = "half", skip_serializing_if = "is_half")]
    pub mixup_switch_prob: f64,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn always() -> f64 {
    Augment::NONE.mixup_prob
}

fn is_always(value: &f64) -> bool {
    *value == always()
}

fn half() -> f64 {
    Augment::NONE.mixup_switch_prob
}

fn is_half(value: &f64) -> bool {
    *value == half()
}

impl Augment {
    /// The image as it is.
    pub const NONE: Self = Self {
        crop_padding: 0,
        flip: false,
        alternating_flip: false,
        resized_crop: None,
        vertical_flip: false,
        policy: None,
        color_jitter: None,
        random_erasing: None,
        cutout: None,
        mixup: None,
        cutmix: None,
        mixup_prob: 1.0,
        mixup_switch_prob: 0.5,
    };
    /// Pad 4 and flip: what nearly every CIFAR-10 recipe does.
    pub const STANDARD: Self = Self { crop_padding: 4, flip: true, ..Self::NONE };

    /// Whether there is nothing beyond `crop_padding` and `flip`: [`view`](Self::view) says all then.
    pub fn is_plain(&self) -> bool {
        !self.changes_pixels() && !self.changes_input() && !self.mixes()
    }

    /// Whether [`image`](Self::image) does anything.
    pub fn changes_pixels(&self) -> bool {
        self.resized_crop.is_some() || self.vertical_flip || self.policy.is_some() || self.color_jitter.is_some()
    }

    /// Whether [`after_normalize`](Self::after_normalize) does anything.
    pub fn changes_input(&self) -> bool {
        self.random_erasing.is_some() || self.cutout.is_some()
    }

    /// Whether [`mix`](Self::mix) may give anything, so that targets are shares of classes.
    pub fn mixes(&self) -> bool {
        self.mixup.is_some() || self.cutmix.is_some()
    }

    /// Whether [`image`](Self::image) wants the picture at its own size: a resized crop cuts from that.
    pub fn wants_picture(&self) -> bool {
        self.resized_crop.is_some()
    }

    /// Whether every setting is one that can be drawn from.
    ///
    /// # Errors
    /// A probability outside 0..=1, a range that is none, an α that is not positive, too wide a jitter.
    pub fn check(&self) -> Result<(), String> {
        for (name, alpha) in [("mixup", self.mixup), ("cutmix", self.cutmix)] {
            if let Some(alpha) = alpha.filter(|alpha| !(*alpha > 0.0 && alpha.is_finite())) {
                return Err(format!("{name} must be a positive number, got {alpha}"));
            }
        }
        for (name, p) in [("mixup_prob", self.mixup_prob), ("mixup_switch_prob", self.mixup_switch_prob)] {
            if !(0.0..=1.0).contains(&p) {
                return Err(format!("{name} must lie in 0..=1, got {p}"));
            }
        }
        self.resized_crop.as_ref().map_or(Ok(()), ResizedCrop::check)?;
        self.color_jitter.as_ref().map_or(Ok(()), ColorJitter::check)?;
        self.random_erasing.as_ref().map_or(Ok(()), RandomErasing::check)
    }

    /// How image `index` of its split is seen in `epoch` under `seed`. Settings that go through
    /// [`image`](Self::image) crop and flip there: what they make is seen as it is.
    pub fn view(&self, seed: u64, epoch: u64, index: usize) -> View {
        if self.changes_pixels() { View::default() } else { self.window(seed, epoch, index) }
    }

    /// Crop and flip of the image, whoever makes them.
    fn window(&self, seed: u64, epoch: u64, index: usize) -> View {
        /// Every image owns this many words of the epoch's stream; three draws take six.
        const WORDS: u64 = 16;
        let mut rng = Rng::new(seed, &format!("augment/epoch-{epoch}"));
        rng.seek(index as u64 * WORDS);
        let padding = self.crop_padding as isize;
        let mut shift = || rng.below(2 * self.crop_padding + 1) as isize - padding;
        let (down, right) = (shift(), shift());
        let mut mirrored = rng.bernoulli(0.5);
        if self.alternating_flip {
            let mut first = Rng::new(seed, "augment/alternating-flip");
            first.seek(index as u64 * WORDS);
            mirrored = first.bernoulli(0.5) ^ (epoch % 2 == 1);
        }
        View { down, right, flip: mirrored && self.flip }
    }

    /// Image `index` as `epoch` sees it under `seed`, before normalisation: crop, flips, policy and colours. With a
    /// resized crop `picture` may have any size and becomes `side` x `side`; otherwise it keeps its own. Plain settings
    /// leave it as it is, see [`view`](Self::view).
    ///
    /// ```
    /// use zoo_train::augment::{Augment, Pixels, Policy, ResizedCrop};
    /// let picture = Pixels::new((0..60 * 90).map(|i| (i % 251) as u8).collect(), [1, 60, 90])?;
    /// let augment = Augment {
    ///     flip: true,
    ///     resized_crop: Some(ResizedCrop::default()),
    ///     policy: Some(Policy::TrivialAugmentWide),
    ///     ..Augment::NONE
    /// };
    /// let seen = augment.image(1, 0, 42, picture.clone(), 32);
    /// assert_eq!(seen.shape(), [1, 32, 32]);
    /// assert_eq!(augment.image(1, 0, 42, picture, 32), seen);
    /// # Ok::<(), zoo_train::data::DataError>(())
    /// ```
    pub fn image(&self, seed: u64, epoch: u64, index: usize, picture: Pixels, side: usize) -> Pixels {
        if !self.changes_pixels() {
            return picture;
        }
        // A stream for each, so that what one is set to does not move another's draws.
        let stream = |kind: &str| Rng::new(seed, &format!("augment/{kind}/epoch-{epoch}/{index}"));
        let window = self.window(seed, epoch, index);
        let mut image = match &self.resized_crop {
            Some(crop) => crop.apply(&picture, side, &mut stream("resized-crop")),
            None if self.crop_padding > 0 => picture.shifted(window.down, window.right),
            None => picture,
        };
        if window.flip {
            image.flip_horizontally();
        }
        if self.vertical_flip && stream("vertical-flip").bernoulli(0.5) {
            image.flip_vertically();
        }
        if let Some(policy) = &self.policy {
            image = policy.apply(image, &mut stream("policy"));
        }
        if let Some(jitter) = &self.color_jitter {
            image = jitter.apply(image, &mut stream("color-jitter"));
        }
        image
    }

    /// Erases in image `index` of `shape`, (channels, height, width), after normalisation.
    ///
    /// # Panics
    /// If `image` has another length.
    pub fn after_normalize(&self, seed: u64, epoch: u64, index: usize, image: &mut [f32], shape: [usize; 3]) {
        assert!(image.len() == shape.iter().product::<usize>(), "{} values for an image {shape:?}", image.len());
        let stream = |kind: &str| Rng::new(seed, &format!("augment/{kind}/epoch-{epoch}/{index}"));
        if let Some(erasing) = &self.random_erasing {
            erasing.apply(image, shape, &mut stream("random-erasing"));
        }
        if let Some(side) = self.cutout {
            erase::cutout(side, image, shape, &mut stream("cutout"));
        }
    }

    /// How batch number `batch` of `epoch`, of `images` images of `size` (height, width), is mixed under `seed`, if it
    /// is.
    pub fn mix(&self, seed: u64, epoch: u64, batch: usize, images: usize, size: [usize; 2]) -> Option<Mix> {
        let &Self { mixup, cutmix, mixup_prob: prob, mixup_switch_prob: switch_prob, .. } = self;
        let mut rng = Rng::new(seed, &format!("augment/mix/epoch-{epoch}/{batch}"));
        mix::Settings { mixup, cutmix, prob, switch_prob }.sample(images, size, &mut rng)
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
    fn two_epochs_see_both_sides_of_every_image() {
        let augment = Augment { alternating_flip: true, ..Augment::STANDARD };
        let flips = |epoch| (0..10_000).map(|index| augment.view(7, epoch, index).flip).collect::<Vec<_>>();
        let (first, second) = (flips(1), flips(2));
        assert!(first.iter().zip(&second).all(|(a, b)| a != b) && first == flips(3));
        let mirrored = first.iter().filter(|&&flip| flip).count();
        assert!(mirrored.abs_diff(5_000) < 200, "{mirrored}");
        // The crop is the one that it is without it; and nothing is mirrored that was not to be.
        let plain = |index| Augment::STANDARD.view(7, 1, index);
        assert!((0..100).all(|i| plain(i) == View { flip: plain(i).flip, ..augment.view(7, 1, i) }));
        let never = Augment { flip: false, ..augment };
        assert!((0..100).all(|index| !never.view(7, 1, index).flip));
    }

    #[test]
    fn settings_are_data() {
        let json = serde_json::to_string(&Augment::STANDARD).unwrap();
        assert_eq!(json, r#"{"crop_padding":4,"flip":true}"#);
        assert_eq!(serde_json::from_str::<Augment>(&json).unwrap(), Augment::STANDARD);
    }

    fn picture(shape: [usize; 3]) -> Pixels {
        Pixels::new((0..shape.iter().product::<usize>()).map(|i| (i * i * 31 % 251) as u8).collect(), shape).unwrap()
    }

    fn everything() -> Augment {
        Augment {
            crop_padding: 3,
            flip: true,
            alternating_flip: true,
            resized_crop: Some(ResizedCrop::default()),
            vertical_flip: true,
            policy: Some(Policy::RandAugment(RandAugment::default())),
            color_jitter: Some(ColorJitter { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 }),
            random_erasing: Some(RandomErasing { probability: 0.9, ..RandomErasing::default() }),
            cutout: Some(6),
            mixup: Some(0.8),
            cutmix: Some(1.0),
            mixup_prob: 0.9,
            mixup_switch_prob: 0.25,
        }
    }

    #[test]
    fn what_is_not_set_is_not_written() {
        let old: Augment = serde_json::from_str(r#"{"crop_padding":2,"flip":false}"#).unwrap();
        assert_eq!(old, Augment { crop_padding: 2, ..Augment::NONE });
        let json = serde_json::to_string(&everything()).unwrap();
        assert_eq!(serde_json::from_str::<Augment>(&json).unwrap(), everything());
        assert!(serde_json::from_str::<Augment>(&json.replace("cutout", "cutuot")).is_err());
        assert!(Augment::STANDARD.is_plain() && !everything().is_plain());
        assert!(!Augment { cutmix: Some(1.0), ..Augment::NONE }.is_plain());
    }

    #[test]
    fn settings_that_cannot_be_drawn_from_are_named() {
        assert_eq!(everything().check(), Ok(()));
        let error = |change: fn(&mut Augment)| {
            let mut augment = everything();
            change(&mut augment);
            augment.check().unwrap_err()
        };
        assert_eq!(error(|a| a.mixup = Some(0.0)), "mixup must be a positive number, got 0");
        assert_eq!(error(|a| a.mixup_prob = 1.5), "mixup_prob must lie in 0..=1, got 1.5");
        assert!(
            error(|a| a.color_jitter = Some(ColorJitter { hue: 2.0, ..ColorJitter::default() })).contains("jitter")
        );
        assert!(
            error(|a| a.resized_crop = Some(ResizedCrop { scale: [0.0; 2], ..Default::default() })).contains("scale")
        );
    }

    #[test]
    fn an_image_is_fixed_by_seed_epoch_and_index() {
        let policies = ["trivial-augment-wide", "rand-m9-n2-mstd0.5-inc1", "autoaugment-cifar10"];
        let mut settings: Vec<Augment> = policies
            .iter()
            .map(|policy| Augment { policy: Some(policy.parse().unwrap()), ..Augment::STANDARD })
            .collect();
        settings.push(everything());
        for augment in settings {
            for channels in [1, 3] {
                let picture = picture([channels, 24, 24]);
                let seen = |seed, epoch, index| {
                    let image = augment.image(seed, epoch, index, picture.clone(), 24);
                    assert_eq!(image.shape(), [channels, 24, 24]);
                    assert_eq!(augment.view(seed, epoch, index), View::default());
                    image
                };
                let first: Vec<Pixels> = (0..40).map(|index| seen(1, 0, index)).collect();
                assert!((0..40).all(|index| seen(1, 0, index) == first[index]));
                let differ = |other: &dyn Fn(usize) -> Pixels| (0..40).filter(|&i| other(i) != first[i]).count();
                assert!(differ(&|i| seen(2, 0, i)) > 30, "{augment:?}");
                assert!(differ(&|i| seen(1, 1, i)) > 30, "{augment:?}");
                assert!(differ(&|i| seen(1, 0, i + 1)) > 30, "{augment:?}");
            }
        }
    }

    /// The crop and the flip of the bytes are those that the view would have been.
    #[test]
    fn pixels_are_cropped_and_flipped_as_the_view_shows_them() {
        let identity = zoo_image::Normalize::Channels { mean: [0.0; 3], std: [1.0; 3] };
        let transform = zoo_image::Transform::new(&identity, [3, 12, 10], Vec::new).unwrap();
        let picture = picture([3, 12, 10]);
        // A jitter of nothing: the way of the pixels without a change.
        let augment = Augment { color_jitter: Some(ColorJitter::default()), ..Augment::STANDARD };
        for index in 0..50 {
            let mut shown = [0.0; 360];
            transform.write(picture.data(), Augment::STANDARD.view(1, 2, index), &mut shown);
            let shown: Vec<u8> = shown.iter().map(|value| (value * 255.0).round() as u8).collect();
            assert_eq!(augment.image(1, 2, index, picture.clone(), 12).data(), shown);
        }
        assert_eq!(Augment::STANDARD.image(1, 2, 3, picture.clone(), 12), picture);
    }

    #[test]
    fn a_single_pixel_goes_through_everything() {
        let augment = Augment { resized_crop: None, ..everything() };
        for shape in [[1, 1, 1], [3, 1, 1], [3, 1, 5]] {
            for index in 0..200 {
                let image = augment.image(1, 0, index, picture(shape), 1);
                assert_eq!(image.shape(), shape);
                let mut input = vec![1.0; image.data().len()];
                augment.after_normalize(1, 0, index, &mut input, shape);
            }
        }
        assert_eq!(everything().image(1, 0, 0, picture([3, 1, 1]), 7).shape(), [3, 7, 7]);
    }

    #[test]
    fn erasing_and_mixing_are_fixed_too() {
        let augment = everything();
        let erased = |seed, epoch, index| {
            let mut input = vec![1.0; 768];
            augment.after_normalize(seed, epoch, index, &mut input, [3, 16, 16]);
            input
        };
        assert_eq!(erased(1, 0, 5), erased(1, 0, 5));
        assert!((0..20).filter(|&i| erased(1, 0, i) != erased(1, 1, i)).count() > 10);
        let mix = |seed, epoch, batch| augment.mix(seed, epoch, batch, 4, [16, 16]);
        assert_eq!(mix(1, 0, 5), mix(1, 0, 5));
        assert!((0..20).filter(|&i| mix(1, 0, i) != mix(1, 1, i)).count() > 10);
        assert!((0..20).filter(|&i| mix(1, 0, i) != mix(2, 0, i)).count() > 10);
        assert_eq!(Augment::STANDARD.mix(1, 0, 0, 4, [16, 16]), None);
    }

    #[test]
    fn flips_come_in_half_of_the_cases() {
        let augment = Augment { vertical_flip: true, ..Augment::NONE };
        let picture = picture([1, 4, 4]);
        let flipped = (0..1000).filter(|&i| augment.image(1, 0, i, picture.clone(), 4) != picture).count();
        assert!(flipped.abs_diff(500) < 65, "{flipped}");
    }
}

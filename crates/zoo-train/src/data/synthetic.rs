//! An embedded procedural data set in CIFAR-10's shape, for tests, demonstrations and machines without network.
//!
//! **It is not CIFAR-10** and no figure measured on it may stand beside one measured on CIFAR-10:
//! [`DataSource::label`](super::DataSource::label) says so wherever the data set appears.
//!
//! Ten classes of drawn figures and textures, 3 x 32 x 32, u8. What an image shows is told by its *shape* alone:
//!
//! - position, size and rotation vary, lines and checks have any phase, light falls off across the image, every pixel
//!   is noisy;
//! - the colours carry nothing. With a the share of the image that the figure covers, an image is drawn from a mean
//!   colour m and a contrast d, both chosen blind to the class, as figure = m + (1 - a) d and ground = m - a d: its
//!   mean is m, whatever the figure. Most figures, not all, are brighter than their ground (`BRIGHTER`), which leaves
//!   a linear model something to find, but not enough;
//! - no class is the mirror image of another, and figures stand whole inside the image, so that flips and crops keep
//!   the label.
//!
//! Pixels come from additions, multiplications, divisions and square roots only, which IEEE 754 rounds alike
//! everywhere: one seed gives the same bytes on every platform, whatever the number of threads.

use super::{DataSource, Dataset, LeftOut, Split};
use rayon::prelude::*;
use zoo_core::rng::Rng;

/// Side of an image in pixels.
const SIDE: usize = 32;
const CHANNELS: usize = 3;
const IMAGE: usize = CHANNELS * SIDE * SIDE;
/// From this class on the pattern fills the whole image.
const FIRST_TEXTURE: usize = 6;
/// How often the figure is brighter than the ground.
const BRIGHTER: f64 = 0.8;

/// Names of the ten classes; the position is the label.
pub const CLASSES: &[&str] = &[
    "disc",
    "ring",
    "square",
    "triangle",
    "cross",
    "pair",
    "horizontal stripes",
    "vertical stripes",
    "diagonal stripes",
    "checkerboard",
];

/// The procedural data set's size and seed.
///
/// ```
/// use zoo_train::data::Synthetic;
/// let data = Synthetic { train: 200, test: 50, seed: 0 }.generate();
/// assert_eq!(data.train.len(), 200);
/// assert!(data.source.is_synthetic());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Synthetic {
    /// Training images.
    pub train: usize,
    /// Test images, drawn from streams of their own.
    pub test: usize,
    /// Fixes every byte. It is apart from the training seed: runs of different seeds compare on the same images.
    pub seed: u64,
}

impl Default for Synthetic {
    fn default() -> Self {
        Self { train: 10_000, test: 2_000, seed: 0 }
    }
}

impl Synthetic {
    /// Draws both splits, in parallel. Image i has the label i mod 10, so that any first n images are balanced, and
    /// its pixels depend on (seed, split, i) alone: a longer set begins with the shorter one.
    pub fn generate(&self) -> Dataset {
        let split = |name: &str, n: usize| {
            let mut images = vec![0; n * IMAGE];
            images.par_chunks_exact_mut(IMAGE).enumerate().for_each(|(i, image)| {
                draw(i % CLASSES.len(), &mut Rng::new(self.seed, &format!("synthetic/{name}/{i}")), image);
            });
            let labels = (0..n).map(|i| (i % CLASSES.len()) as u32).collect();
            Split::drawn(images, labels, [CHANNELS, SIDE, SIDE])
        };
        Dataset {
            train: split("train", self.train).into(),
            val: None,
            is_validation: false,
            test: split("test", self.test).into(),
            classes: CLASSES.iter().copied().map(String::from).collect(),
            source: DataSource::Synthetic { seed: self.seed },
            left_out: LeftOut::default(),
        }
    }
}

/// Where, how large and how turned a figure stands.
struct Pose {
    center: [f64; 2],
    /// Half the figure's extent, or half a period of the texture, in pixels.
    size: f64,
    /// Cosine and sine of the rotation.
    turn: [f64; 2],
    /// Line width over size, gap over size: whatever the class needs one of.
    detail: f64,
}

impl Pose {
    /// From pixel coordinates to the figure's own.
    fn local(&self, x: f64, y: f64) -> [f64; 2] {
        let (x, y) = (x - self.center[0], y - self.center[1]);
        let [c, s] = self.turn;
        [c * x + s * y, c * y - s * x]
    }
}

/// (cos θ, sin θ) of an angle with tan(θ/2) = t: rational, so that no platform's sine is asked.
fn turn(t: f64) -> [f64; 2] {
    let n = 1.0 + t * t;
    [(1.0 - t * t) / n, 2.0 * t / n]
}

/// Signed distance in pixels to the edge of class `label`'s figure (negative inside) at (x, y).
fn distance(label: usize, pose: &Pose, x: f64, y: f64) -> f64 {
    let [x, y] = pose.local(x, y);
    let r = pose.size;
    let hypot = |x: f64, y: f64| (x * x + y * y).sqrt();
    // A bar of infinite length: |x| < half.
    let slab = |x: f64, half: f64| x.abs() - half;
    // Bars of width r, a gap r apart.
    let lines = |x: f64| {
        let phase = x / (2.0 * r);
        ((phase - phase.floor() - 0.5).abs() - 0.25) * 2.0 * r
    };
    match label {
        0 => hypot(x, y) - r,
        1 => (hypot(x, y) - r).abs() - r * pose.detail,
        2 => slab(x, r).max(slab(y, r)),
        // Equilateral about the origin, inradius r / 2: three half-planes, their normals 120 degrees apart.
        3 => {
            let half_sqrt3 = 0.75f64.sqrt();
            y.max(half_sqrt3 * x - 0.5 * y).max(-half_sqrt3 * x - 0.5 * y) - 0.5 * r
        }
        4 => slab(x, r * pose.detail).max(slab(y, r)).min(slab(y, r * pose.detail).max(slab(x, r))),
        5 => hypot(x.abs() - r, y) - r * (0.5 + pose.detail),
        6 => lines(y),
        7 | 8 => lines(x),
        // Equal signs of two line patterns: the product's sign, the nearer edge's distance.
        _ => {
            let (a, b) = (lines(x), lines(y));
            a.abs().min(b.abs()) * (a * b).signum()
        }
    }
}

fn pose(label: usize, rng: &mut Rng) -> Pose {
    let middle = SIDE as f64 / 2.0;
    // Half an angle's tangent: 0.09 is 10 degrees, √2 - 1 is 45 degrees.
    let tilt = rng.uniform_in(-0.09, 0.09);
    let (size, shift) = match label {
        0 => (rng.uniform_in(5.0, 9.0), 5.0),
        1 => (rng.uniform_in(5.5, 8.5), 5.0),
        2 => (rng.uniform_in(4.5, 8.0), 5.0),
        3 => (rng.uniform_in(7.5, 11.0), 4.0),
        4 => (rng.uniform_in(6.5, 10.0), 4.0),
        5 => (rng.uniform_in(4.5, 6.0), 4.0),
        9 => (rng.uniform_in(3.0, 6.0), 16.0),
        _ => (rng.uniform_in(2.0, 5.0), 16.0),
    };
    let t = match label {
        // Discs and rings look the same however turned; a triangle and a pair may stand any way.
        3 | 5 => rng.uniform_in(-1.0, 1.0),
        8 if rng.bernoulli(0.5) => tilt + (2f64.sqrt() - 1.0),
        8 => tilt - (2f64.sqrt() - 1.0),
        _ => tilt,
    };
    let detail = match label {
        1 => rng.uniform_in(0.15, 0.30),
        4 => rng.uniform_in(0.22, 0.36),
        5 => rng.uniform_in(0.10, 0.35),
        _ => 0.0,
    };
    let center = [0; 2].map(|_| middle + rng.uniform_in(-shift, shift));
    debug_assert!(label >= FIRST_TEXTURE || size + shift < middle, "figure {label} may leave the image");
    Pose { center, size, turn: turn(t), detail }
}

/// Draws one image of class `label`, channel by channel, row by row.
fn draw(label: usize, rng: &mut Rng, image: &mut [u8]) {
    let pose = pose(label, rng);
    let coverage: Vec<f64> = (0..SIDE * SIDE)
        .map(|i| {
            let (x, y) = ((i % SIDE) as f64 + 0.5, (i / SIDE) as f64 + 0.5);
            (0.5 - distance(label, &pose, x, y)).clamp(0.0, 1.0)
        })
        .collect();
    let share = coverage.iter().sum::<f64>() / coverage.len() as f64;

    // The contrast has one sign in all channels, so that a figure is brighter or darker, and at least one strong
    // channel.
    let sign = if rng.bernoulli(BRIGHTER) { 1.0 } else { -1.0 };
    let strong = rng.below(CHANNELS);
    let slope = [0; 2].map(|_| rng.uniform_in(-0.15, 0.15) / SIDE as f64);
    let noise = rng.uniform_in(0.02, 0.10);
    for (channel, plane) in image.chunks_exact_mut(SIDE * SIDE).enumerate() {
        let depth = if channel == strong { rng.uniform_in(0.30, 0.45) } else { rng.uniform_in(0.05, 0.40) };
        // Figure and ground both stay inside 0..1 wherever the mean falls in here.
        let mean = rng.uniform_in(depth, 1.0 - depth);
        for (i, (byte, &a)) in plane.iter_mut().zip(&coverage).enumerate() {
            let light = slope[0] * ((i % SIDE) as f64 - 15.5) + slope[1] * ((i / SIDE) as f64 - 15.5);
            let value = mean + sign * depth * (a - share) + light + noise * bell(rng.next_u32());
            // Adding a half and truncating rounds; `as` saturates at 0 and 255.
            *byte = (value * 255.0 + 0.5) as u8;
        }
    }
}

/// About standard normal, exactly symmetric: the sum of a word's four bytes, centred and scaled.
fn bell(word: u32) -> f64 {
    let sum: i32 = word.to_le_bytes().iter().map(|&b| i32::from(b)).sum();
    // Four bytes have the variance 4 (256² - 1) / 12 = 147.8².
    f64::from(sum - 510) / 147.8
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{D, DType, Device, Tensor};

    fn set(train: usize, test: usize, seed: u64) -> Dataset {
        Synthetic { train, test, seed }.generate()
    }

    #[test]
    fn a_seed_fixes_every_byte_and_a_longer_set_begins_with_the_shorter() {
        let data = set(40, 20, 7);
        assert_eq!(data.train, set(40, 20, 7).train);
        let longer = set(60, 20, 7);
        assert_eq!(data.test, longer.test);
        assert!((0..40).all(|i| data.train.image(i).unwrap() == longer.train.image(i).unwrap()));
        assert!((0..20).all(|i| data.train.image(i).unwrap() != data.test.image(i).unwrap()));
        let other = set(40, 20, 8);
        assert!((0..40).all(|i| data.train.image(i).unwrap() != other.train.image(i).unwrap()));
    }

    /// Figures measured on one version compare with the next only if the images stay. FNV-1a of the first 100.
    #[test]
    fn the_images_of_seed_0_never_change() {
        let data = set(100, 0, 0);
        let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        let hash = (0..100).flat_map(|i| data.train.image(i).unwrap().to_vec()).fold(0xCBF2_9CE4_8422_2325, fnv);
        assert_eq!(hash, 0x1862_eb90_2243_2022, "{hash:#018x}");
    }

    #[test]
    fn classes_are_balanced_and_named() {
        let data = Synthetic::default().generate();
        assert_eq!((data.train.len(), data.test.len()), (10_000, 2_000));
        for (split, each) in [(&data.train, 1000), (&data.test, 200)] {
            for class in 0..10 {
                assert_eq!(split.labels().iter().filter(|&&label| label == class).count(), each);
            }
        }
        assert_eq!(data.classes, CLASSES);
        assert_eq!(data.source.label(), "synthetic (procedural, seed 0), not CIFAR-10");
    }

    /// The mean colour of every image.
    fn colours(split: &Split) -> Vec<[f64; 3]> {
        let mean = |plane: &[u8]| plane.iter().map(|&byte| f64::from(byte)).sum::<f64>() / plane.len() as f64;
        (0..split.len())
            .map(|i| [0, 1, 2].map(|c| mean(&split.image(i).unwrap()[c * SIDE * SIDE..(c + 1) * SIDE * SIDE])))
            .collect()
    }

    #[test]
    fn colour_tells_nothing() {
        let data = set(5000, 2000, 0);
        let mut means = [[0.0; 3]; 10];
        for (colour, &label) in colours(&data.train).iter().zip(data.train.labels()) {
            (0..3).for_each(|c| means[label as usize][c] += colour[c] / 500.0);
        }
        let distance = |a: &[f64; 3], b: &[f64; 3]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        let nearest = |colour: &[f64; 3]| {
            (0..10).min_by(|&a, &b| distance(colour, &means[a]).total_cmp(&distance(colour, &means[b]))).unwrap()
        };
        let right = |&(colour, &label): &(&[f64; 3], &u32)| nearest(colour) == label as usize;
        let colours = colours(&data.test);
        let accuracy = colours.iter().zip(data.test.labels()).filter(right).count() as f64 / 2000.0;
        // Chance is 0.1, its standard deviation over 2,000 images 0.007.
        assert!((0.07..0.13).contains(&accuracy), "{accuracy}");
    }

    /// Ridge regression on the pixels to one-hot labels, by gradient descent with momentum, as long as it helps.
    #[test]
    fn a_linear_model_stays_under_60_percent() -> candle_core::Result<()> {
        let data = set(3000, 1000, 0);
        let inputs = |split: &Split| -> candle_core::Result<Tensor> {
            let images: Vec<u8> = (0..split.len()).flat_map(|i| split.image(i).unwrap().to_vec()).collect();
            let bytes = Tensor::from_vec(images, (split.len(), IMAGE), &Device::Cpu)?;
            bytes.to_dtype(DType::F32)?.affine(1.0 / 127.5, -1.0)
        };
        let (xs, test) = (inputs(&data.train)?, inputs(&data.test)?);
        let labels = Tensor::new(data.train.labels(), &Device::Cpu)?;
        let targets = labels.unsqueeze(1)?.broadcast_eq(&Tensor::arange(0u32, 10, &Device::Cpu)?)?;
        let targets = targets.to_dtype(DType::F32)?.affine(1.0, -0.1)?;
        let accuracy = |weights: &Tensor, xs: &Tensor, labels: &[u32]| -> candle_core::Result<f64> {
            let guesses = xs.matmul(weights)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
            Ok(guesses.iter().zip(labels).filter(|(a, b)| a == b).count() as f64 / labels.len() as f64)
        };

        let transposed = xs.t()?.contiguous()?;
        let mut weights = Tensor::zeros((IMAGE, CLASSES.len()), DType::F32, &Device::Cpu)?;
        let mut velocity = weights.clone();
        let mut best = 0f64;
        for step in 1..=200 {
            let error = (xs.matmul(&weights)? - &targets)?;
            let gradient = ((transposed.matmul(&error)? / xs.dim(0)? as f64)? + (&weights * 0.01)?)?;
            velocity = ((velocity * 0.9)? - gradient * 0.002)?;
            weights = (weights + &velocity)?;
            if step % 20 == 0 {
                best = best.max(accuracy(&weights, &test, data.test.labels())?);
            }
        }
        // It did learn what there is to learn, and that is not enough.
        let fitted = accuracy(&weights, &xs, data.train.labels())?;
        assert!(fitted > 0.4, "{fitted}");
        assert!((0.2..0.6).contains(&best), "{best}");
        Ok(())
    }
}

//! Two images in one: mixup (Zhang et al. 2017, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899), as
//! timm mixes a whole batch.

use super::pixels::Region;
use zoo_core::rng::Rng;

/// How the images of a batch are mixed: all of them alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Mix {
    /// Which image of the batch is mixed into each one.
    pub partner: Vec<usize>,
    /// The share of its own label that each image keeps.
    pub lambda: f32,
    /// The part that is the partner's, for CutMix. Without one, whole images are added up.
    pub region: Option<Region>,
}

/// What is drawn for a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    /// Beta(α, α) of mixup.
    pub mixup: Option<f64>,
    /// Beta(α, α) of CutMix.
    pub cutmix: Option<f64>,
    /// How likely a batch is mixed.
    pub prob: f64,
    /// How likely CutMix is where both are asked for.
    pub switch_prob: f64,
}

impl Settings {
    /// Of a batch of `images` images of `size`, (height, width).
    pub(super) fn sample(&self, images: usize, size: [usize; 2], rng: &mut Rng) -> Option<Mix> {
        let (happens, switch) = (rng.bernoulli(self.prob), rng.bernoulli(self.switch_prob));
        let (alpha, cuts) = match (self.mixup, self.cutmix) {
            (None, None) => return None,
            (Some(alpha), None) => (alpha, false),
            (None, Some(alpha)) => (alpha, true),
            (Some(_), Some(alpha)) if switch => (alpha, true),
            (Some(alpha), Some(_)) => (alpha, false),
        };
        // As timm's, which turns the batch around.
        let partner: Vec<usize> = (0..images).rev().collect();
        let centre = size.map(|side| rng.below(side.max(1)));
        let lambda = beta(alpha, rng);
        if !happens || images < 2 || lambda == 1.0 {
            return None;
        }
        if !cuts {
            return Some(Mix { partner, lambda: lambda as f32, region: None });
        }
        let region = cutmix_region(lambda, centre, size);
        Some(Mix { partner, lambda: kept(region, size) as f32, region: Some(region) })
    }
}

/// A rectangle of the image's proportions and 1 - `lambda` of its area around (`row`, `column`), cut at the border.
pub(super) fn cutmix_region(lambda: f64, [row, column]: [usize; 2], [height, width]: [usize; 2]) -> Region {
    let share = (1.0 - lambda).sqrt();
    let span = |side: usize, centre: usize| {
        let cut = (side as f64 * share) as usize;
        let (start, end) = (centre.saturating_sub(cut / 2), (centre + cut.div_ceil(2)).min(side));
        (start, end - start)
    };
    let ((top, h), (left, w)) = (span(height, row), span(width, column));
    Region { top, left, height: h, width: w }
}

/// The share of an image of `size` outside `region`.
pub(super) fn kept(region: Region, [height, width]: [usize; 2]) -> f64 {
    1.0 - region.area() as f64 / (height * width) as f64
}

impl Mix {
    /// Mixes a batch of `shape` (images, channels, height, width) in place.
    ///
    /// # Panics
    /// If `images` has another length, or the batch another number of images than was drawn for.
    pub fn apply(&self, images: &mut [f32], [count, channels, height, width]: [usize; 4]) {
        let size = channels * height * width;
        assert!(images.len() == count * size && self.partner.len() == count, "a batch of {count} images of {size}");
        // What is mixed in is the partner as it was.
        let before = images.to_vec();
        for (image, &partner) in images.chunks_exact_mut(size.max(1)).zip(&self.partner) {
            let other = &before[partner * size..][..size];
            match self.region {
                None => {
                    let (own, rest) = (self.lambda, 1.0 - self.lambda);
                    image.iter_mut().zip(other).for_each(|(value, other)| *value = *value * own + other * rest);
                }
                Some(Region { top, left, height: h, width: w }) => {
                    for line in (0..channels).flat_map(|channel| (top..top + h).map(move |y| channel * height + y)) {
                        let part = line * width + left..line * width + left + w;
                        image[part.clone()].copy_from_slice(&other[part]);
                    }
                }
            }
        }
    }

    /// The targets of a mixed batch, (images, classes): see [`targets`].
    pub fn targets(&self, labels: &[u32], classes: usize, smoothing: f64) -> Vec<f32> {
        targets(Some(self), labels, classes, smoothing)
    }
}

/// What the network should say of each image, (images, classes): `smoothing` of the whole is spread over all classes,
/// the rest is the label's; a mixed image has both labels by their shares, as timm's `mixup_target`.
///
/// ```
/// use zoo_train::augment::{Mix, targets};
/// let mix = Mix { partner: vec![1, 0], lambda: 0.75, region: None };
/// assert_eq!(targets(Some(&mix), &[0, 2], 4, 0.0), [0.75, 0.0, 0.25, 0.0, 0.25, 0.0, 0.75, 0.0]);
/// ```
///
/// # Panics
/// If a label is not below `classes`, or `mix` is of another number of images.
pub fn targets(mix: Option<&Mix>, labels: &[u32], classes: usize, smoothing: f64) -> Vec<f32> {
    let off = (smoothing / classes as f64) as f32;
    let on = (1.0 - smoothing + smoothing / classes as f64) as f32;
    let value = |label: u32, class: usize| if label as usize == class { on } else { off };
    assert!(labels.iter().all(|&label| (label as usize) < classes), "a label of no class among {classes}");
    let mut out = Vec::with_capacity(labels.len() * classes);
    for (i, &label) in labels.iter().enumerate() {
        match mix {
            None => out.extend((0..classes).map(|class| value(label, class))),
            Some(mix) => {
                let (other, own, rest) = (labels[mix.partner[i]], mix.lambda, 1.0 - mix.lambda);
                out.extend((0..classes).map(|class| value(label, class) * own + value(other, class) * rest));
            }
        }
    }
    out
}

/// Beta(α, α), by two gamma variates. Logarithms of them: the variates themselves vanish where α is small.
fn beta(alpha: f64, rng: &mut Rng) -> f64 {
    let [x, y] = [0, 1].map(|_| ln_gamma_variate(alpha, rng));
    1.0 / (1.0 + (y - x).exp())
}

/// The logarithm of a Gamma(α, 1) variate (Marsaglia and Tsang 2000, "A simple method for generating gamma variables").
fn ln_gamma_variate(alpha: f64, rng: &mut Rng) -> f64 {
    if alpha < 1.0 {
        // The method wants α ≥ 1: a variate of α + 1 times a uniform one's 1/α-th power is one of α.
        let uniform = 1.0 - rng.uniform();
        return ln_gamma_variate(alpha + 1.0, rng) + uniform.ln() / alpha;
    }
    let d = alpha - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let normal = rng.normal();
        let v = (1.0 + c * normal).powi(3);
        let uniform = 1.0 - rng.uniform();
        // Nineteen of twenty are taken; negative ones never.
        if v > 0.0 && uniform.ln() < 0.5 * normal * normal + d - d * v + d * v.ln() {
            return d.ln() + v.ln();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beta_has_its_moments() {
        let n = 40_000;
        for alpha in [0.1, 0.2, 0.8, 1.0, 2.5, 8.0] {
            let mut rng = Rng::new(1, &format!("beta/{alpha}"));
            let draws: Vec<f64> = (0..n).map(|_| beta(alpha, &mut rng)).collect();
            assert!(draws.iter().all(|x| (0.0..=1.0).contains(x)));
            let moment = |k: i32| draws.iter().map(|x| (x - 0.5).powi(k)).sum::<f64>() / n as f64;
            let variance = 1.0 / (4.0 * (2.0 * alpha + 1.0));
            // E(x - ½)⁴ = 3 / (16 (2α + 1) (2α + 3)).
            let fourth = 3.0 / (16.0 * (2.0 * alpha + 1.0) * (2.0 * alpha + 3.0));
            let error = |second: f64| 4.0 * (second / n as f64).sqrt();
            assert!(moment(1).abs() < error(variance), "{alpha}: mean {}", moment(1));
            assert!((moment(2) - variance).abs() < error(fourth), "{alpha}: variance {} {variance}", moment(2));
            assert!((moment(4) - fourth).abs() < 0.03 * fourth + 1e-4, "{alpha}: {} {fourth}", moment(4));
        }
        // So small that a gamma variate would be 0.
        let mut rng = Rng::new(1, "small");
        let draws: Vec<f64> = (0..1000).map(|_| beta(1e-4, &mut rng)).collect();
        let ones = draws.iter().filter(|x| **x > 0.99).count();
        assert!(ones.abs_diff(500) < 70 && draws.iter().filter(|x| **x < 0.01).count() > 430, "{ones}");
    }

    #[test]
    fn gamma_has_its_moments() {
        let n = 40_000;
        for alpha in [0.5, 1.0, 3.0] {
            let mut rng = Rng::new(2, &format!("gamma/{alpha}"));
            let draws: Vec<f64> = (0..n).map(|_| ln_gamma_variate(alpha, &mut rng).exp()).collect();
            let mean = draws.iter().sum::<f64>() / n as f64;
            let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
            // Mean and variance are both α.
            assert!((mean - alpha).abs() < 4.0 * (alpha / n as f64).sqrt(), "{alpha}: {mean}");
            let error = 4.0 * ((2.0 * alpha * alpha + 6.0 * alpha) / n as f64).sqrt();
            assert!((variance - alpha).abs() < error, "{alpha}: {variance}");
        }
    }

    #[test]
    fn batches_are_mixed_as_often_and_as_asked() {
        let count = |mixup, cutmix, prob, switch_prob| {
            let settings = Settings { mixup, cutmix, prob, switch_prob };
            let mut rng = Rng::new(1, "mix");
            let mixes: Vec<Mix> = (0..2000).filter_map(|_| settings.sample(8, [32, 32], &mut rng)).collect();
            assert!(mixes.iter().all(|mix| mix.partner == [7, 6, 5, 4, 3, 2, 1, 0]));
            (mixes.len(), mixes.iter().filter(|mix| mix.region.is_some()).count())
        };
        assert_eq!(count(None, None, 1.0, 0.5), (0, 0));
        assert_eq!(count(Some(0.8), None, 1.0, 0.5), (2000, 0));
        assert_eq!(count(None, Some(1.0), 1.0, 0.0), (2000, 2000));
        let (mixed, cut) = count(Some(0.8), Some(1.0), 0.5, 0.25);
        assert!(mixed.abs_diff(1000) < 90 && cut.abs_diff(250) < 60, "{mixed} {cut}");
        let settings = Settings { mixup: Some(1.0), cutmix: None, prob: 1.0, switch_prob: 0.5 };
        assert_eq!(settings.sample(1, [32, 32], &mut Rng::new(1, "mix")), None);
    }

    #[test]
    fn lambda_is_the_share_that_is_kept() {
        let settings = Settings { mixup: None, cutmix: Some(1.0), prob: 1.0, switch_prob: 0.5 };
        let mut rng = Rng::new(3, "mix");
        for _ in 0..200 {
            let mix = settings.sample(2, [8, 12], &mut rng).unwrap();
            let mut images = [vec![1.0; 192], vec![0.0; 192]].concat();
            mix.apply(&mut images, [2, 2, 8, 12]);
            let shares = [0, 1].map(|i| images[i * 192..][..192].iter().sum::<f32>() / 192.0);
            assert!((shares[0] - mix.lambda).abs() < 1e-6 && (shares[1] - (1.0 - mix.lambda)).abs() < 1e-6);
        }
    }
}

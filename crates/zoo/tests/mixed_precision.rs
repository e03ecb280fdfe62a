//! Whole networks in mixed precision: their gradients point where the exact ones do, at every level of vectors alike.
//!
//! What can be asked of a network depends on how it is conditioned. Where a bfloat16 rounding of a map moves a gradient
//! little, every tensor's gradient is held to that of f64 by its cosine. Right after initialisation some networks are not
//! so: their norms divide by spreads that are small beside the mean, layer after layer, and the scale of a norm before a
//! depthwise convolution and the next norm has a gradient that cancels but for eps. PyTorch's autocast is as far off
//! there (docs/mixed_precision.md has both, on networks that have begun to train). Of those the loss is compared.
//!
//! The bounds follow from measurement: 1 - cosine, the square of a small angle's half, may be twice what was seen at the
//! worst of the levels, and the loss twice as far off.

use candle_core::{DType, Device, Result, Tensor};
use std::sync::{Mutex, MutexGuard, PoisonError};
use zoo::core::ops::{Level, simd};
use zoo::core::{Precision, rng::Rng, tape};
use zoo::{ModelOptions, VarStore};

/// Networks, images a batch, and the least cosine that a tensor, and the mean of all tensors, may have.
const BY_GRADIENT: &[(&str, usize, f64, f64)] = &[
    ("cifar_resnet20", 16, 0.85, 0.945),
    ("cifar_vit_tiny_patch4", 2, 0.9995, 0.9998),
    ("template_mixer_s4", 16, 0.9965, 0.9998),
];

/// Networks, images a batch, and how far the loss may be off, relative to it.
const BY_LOSS: &[(&str, usize, f64)] = &[
    ("cifar_vgg16_bn", 4, 0.03),
    ("cifar_densenet121", 2, 0.03),
    ("cifar_mobilenet_v1", 8, 0.1),
    ("cifar_mobilenet_v2", 8, 0.02),
    ("cifar_shufflenet_v1_g3", 8, 0.02),
];

/// A level is forced on the whole process, and tests run side by side.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a training step computes, in f64 numbers.
struct Step {
    loss: f64,
    /// Of every parameter, by its key.
    grads: Vec<(String, Vec<f64>)>,
}

impl Step {
    /// The same weights, images and labels in every type: the images are bfloat16 numbers.
    fn new(name: &str, images: usize, weights: DType, maps: DType) -> Result<Self> {
        let info = zoo::find(name)?;
        let store = VarStore::new(1, weights, &Device::Cpu);
        let model = info.build(&ModelOptions::default(), store.root())?;
        let (mut rng, side) = (Rng::new(3, name), info.preprocess.size);
        let xs: Vec<f64> = (0..images * 3 * side * side).map(|_| rng.normal()).collect();
        let xs = Tensor::from_vec(xs, (images, 3, side, side), &Device::Cpu)?.to_dtype(DType::BF16)?;
        let xs = tape::to_dtype(&xs.to_dtype(weights)?, maps)?;
        let labels: Vec<u32> = (0..images as u32).map(|i| i % 10).collect();
        let labels = Tensor::from_vec(labels, images, &Device::Cpu)?;
        let (loss, grads) = tape::value_and_grad(&xs, |xs| Ok(model.training_loss(xs, &labels, 0.0)?.0))?;
        let numbers = |xs: &Tensor| xs.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
        let grad = |(key, var): (String, candle_core::Var)| {
            let grad = grads.get(&var).expect("a gradient");
            assert_eq!((grad.dtype(), grad.dims()), (weights, var.dims()), "{name}: {key}");
            let grad = numbers(grad)?;
            assert!(grad.iter().all(|x| x.is_finite()), "{name}: {key}");
            Ok((key, grad))
        };
        let grads = store.parameters().into_iter().map(grad).collect::<Result<_>>()?;
        Ok(Self { loss: numbers(&loss)?[0], grads })
    }

    fn exact(name: &str, images: usize) -> Result<Self> {
        Self::new(name, images, DType::F64, DType::F64)
    }

    fn mixed(name: &str, images: usize) -> Result<Self> {
        Self::new(name, images, DType::F32, Precision::Bf16.dtype())
    }

    /// The least cosine of a tensor's gradient with `want`'s, its key, and the mean of all.
    fn cosines<'a>(&self, want: &'a Self) -> (f64, &'a str, f64) {
        let all = || self.grads.iter().zip(&want.grads).map(|((_, a), (key, b))| (cosine(a, b), key.as_str()));
        let (least, key) = all().min_by(|a, b| a.0.total_cmp(&b.0)).expect("parameters");
        (least, key, all().map(|(cosine, _)| cosine).sum::<f64>() / self.grads.len() as f64)
    }

    fn loss_off(&self, want: &Self) -> f64 {
        (self.loss / want.loss - 1.0).abs()
    }
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn gradients_point_where_the_exact_ones_do() -> Result<()> {
    let _alone = alone();
    for &(name, images, least, mean) in BY_GRADIENT {
        let (got, want) = (Step::mixed(name, images)?, Step::exact(name, images)?);
        let (lowest, key, average) = got.cosines(&want);
        println!("{name}: lowest {lowest:.5} ({key}), mean {average:.5}, loss {:.1e} off", got.loss_off(&want));
        assert!(lowest >= least, "{name}: the gradient of {key} has a cosine of {lowest:.5}, below {least}");
        assert!(average >= mean, "{name}: the gradients have a mean cosine of {average:.5}, below {mean}");
        assert!(got.loss_off(&want) < 2e-3, "{name}: a loss of {} for {}", got.loss, want.loss);
    }
    Ok(())
}

#[test]
fn losses_are_the_exact_ones_where_gradients_are_ill_conditioned() -> Result<()> {
    let _alone = alone();
    for &(name, images, bound) in BY_LOSS {
        let (got, want) = (Step::mixed(name, images)?, Step::exact(name, images)?);
        println!("{name}: loss {:.1e} off", got.loss_off(&want));
        assert!(got.loss_off(&want) < bound, "{name}: a loss of {} for {}", got.loss, want.loss);
    }
    Ok(())
}

/// Levels differ by roundings of sums, which now and then turn the rounding of a map's number: less than rounding at all
/// costs. So they are nearer to one another than to the exact gradient.
#[test]
fn every_level_gives_the_same_gradients() -> Result<()> {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            simd::force(None).expect("no level is always supported");
        }
    }
    let _alone = alone();
    let _restore = Restore;
    let at = |level: Level, name: &str| {
        simd::force(Some(level)).expect("the level is supported");
        Step::mixed(name, 8)
    };
    let want = [at(Level::Portable, "template_mixer_s4")?, at(Level::Portable, "cifar_resnet20")?];
    let (exact, _, _) = want[0].cosines(&Step::exact("template_mixer_s4", 8)?);
    for level in Level::supported().filter(|level| *level != Level::Portable) {
        let (lowest, key, _) = at(level, "template_mixer_s4")?.cosines(&want[0]);
        let off = at(level, "cifar_resnet20")?.loss_off(&want[1]);
        println!("{level:?}: lowest {lowest:.5} ({key}); loss of the ResNet {off:.1e} off");
        assert!(
            lowest > exact,
            "{level:?}: {key} has a cosine of {lowest:.5} with the portable one, {exact:.5} with f64"
        );
        assert!(off < 2e-3, "{level:?}: a loss {off:.1e} off that of the portable level");
    }
    Ok(())
}

//! Whole networks in mixed precision: every gradient points where the exact one does.

use candle_core::{DType, Device, Result, Tensor};
use zoo::core::{rng::Rng, tape};
use zoo::{ModelOptions, VarStore};

const NETWORKS: &[(&str, usize)] = &[
    ("cifar_resnet20", 8),
    ("cifar_vgg16_bn", 8),
    ("cifar_densenet121", 4),
    ("cifar_mobilenet_v1", 8),
    ("cifar_mobilenet_v2", 8),
    ("cifar_shufflenet_v1_g3", 8),
    ("cifar_vit_tiny_patch4", 4),
    ("template_mixer_s4", 8),
];

/// The loss of one batch, and the gradient of every parameter by its key, in f64 numbers.
fn step(name: &str, images: usize, weights: DType, maps: DType) -> Result<(f64, Vec<(String, Vec<f64>)>)> {
    let info = zoo::find(name)?;
    let device = Device::Cpu;
    let store = VarStore::new(1, weights, &device);
    let model = info.build(&ModelOptions::default(), store.root())?;
    let mut rng = Rng::new(3, name);
    let side = info.input.size;
    let xs: Vec<f64> = (0..images * 3 * side * side).map(|_| rng.normal()).collect();
    let xs = Tensor::from_vec(xs, (images, 3, side, side), &device)?.to_dtype(DType::BF16)?.to_dtype(weights)?;
    let labels = Tensor::from_vec((0..images as u32).map(|i| i % 10).collect::<Vec<_>>(), images, &device)?;
    let (loss, grads) =
        tape::value_and_grad(&tape::to_dtype(&xs, maps)?, |xs| Ok(model.training_loss(xs, &labels, 0.0)?.0))?;
    let all = store.parameters().into_iter().map(|(key, var)| {
        let grad = grads.get(&var).expect("a gradient");
        assert_eq!(grad.dtype(), weights);
        Ok((key, grad.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?))
    });
    Ok((loss.to_dtype(DType::F64)?.to_scalar()?, all.collect::<Result<_>>()?))
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn gradients_point_where_the_exact_ones_do() -> Result<()> {
    for &(name, images) in NETWORKS {
        let (want_loss, want) = step(name, images, DType::F64, DType::F64)?;
        let (loss, got) = step(name, images, DType::F32, DType::BF16)?;
        let mut cosines: Vec<(f64, &str)> =
            got.iter().zip(&want).map(|((key, a), (_, b))| (cosine(a, b), key.as_str())).collect();
        cosines.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mean = cosines.iter().map(|(cosine, _)| cosine).sum::<f64>() / cosines.len() as f64;
        println!(
            "{name}: loss {loss:.5} for {want_loss:.5}; cosines: lowest {:.5} ({}), mean {mean:.5}",
            cosines[0].0, cosines[0].1
        );
    }
    Ok(())
}

//! A seed gives the same bits at any number of threads: whole training steps in mixed precision, at every level.

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use rayon::ThreadPoolBuilder;
use zoo::{ModelOptions, VarStore};
use zoo_core::Precision;
use zoo_core::ops::{Level, simd};
use zoo_core::rng::Rng;
use zoo_core::tape::value_and_grad;
use zoo_train::optim::{Group, Optimizer, Sgd};

fn bits(tensor: &Tensor) -> Result<Vec<u32>> {
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

/// Two steps from the seed on, the second behind an update: losses, gradients, then weights and running statistics.
fn two_steps(model: &str, batch: usize) -> Result<Vec<Vec<u32>>> {
    let store = VarStore::new(5, DType::F32, &Device::Cpu);
    let net = zoo::create(model, &ModelOptions::default(), &store)?;
    let mut rng = Rng::new(5, "images");
    let pixels: Vec<f32> = (0..batch * 3 * 32 * 32).map(|_| rng.normal() as f32).collect();
    let images = Precision::Bf16.cast(&Tensor::from_vec(pixels, (batch, 3, 32, 32), &Device::Cpu)?)?;
    let labels: Vec<u32> = (0..batch).map(|_| rng.below(10) as u32).collect();
    let labels = Tensor::from_vec(labels, batch, &Device::Cpu)?;
    let mut optimizer = Sgd::new(vec![Group::new(store.parameters(), 5e-4)], 0.05).momentum(0.9);
    let mut all = Vec::new();
    for _ in 0..2 {
        let (loss, grads) = value_and_grad(&images, |xs| Ok(net.training_loss(xs, &labels, 0.0)?.0))?;
        all.push(bits(&loss)?);
        for (key, var) in store.parameters() {
            let Some(grad) = grads.get(&var) else { anyhow::bail!("{model}: `{key}` has no gradient") };
            all.push(bits(grad)?);
        }
        optimizer.step(&grads)?;
    }
    for (_, var) in store.parameters().into_iter().chain(store.buffers()) {
        all.push(bits(&var)?);
    }
    Ok(all)
}

/// One test in this file: a level is forced on the whole process.
#[test]
fn one_two_and_three_threads_train_alike_in_mixed_precision() -> Result<()> {
    let mut pools = Vec::new();
    for threads in [1, 2, 3] {
        pools.push(ThreadPoolBuilder::new().num_threads(threads).build()?);
    }
    // Batches that no number of threads divides.
    for (model, batch) in [("cifar_resnet20", 13), ("cifar_shufflenet_v1_g3", 7), ("template_mixer_s4", 13)] {
        for level in Level::supported() {
            simd::force(Some(level))?;
            let want = pools[0].install(|| two_steps(model, batch))?;
            for pool in &pools[1..] {
                let got = pool.install(|| two_steps(model, batch))?;
                ensure!(got == want, "{model}, {level:?}: {} threads give other bits", pool.current_num_threads());
            }
        }
    }
    Ok(())
}

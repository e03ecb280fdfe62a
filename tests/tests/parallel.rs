//! Networks side by side in one process: each gives the gradients that it gives alone, bit by bit, whatever thread its
//! work lands on.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use std::thread;
use zoo::{Model, ModelOptions, VarStore};
use zoo_core::rng::Rng;
use zoo_core::tape::recorded;

/// A network with its images and their classes.
struct Pass {
    store: VarStore,
    net: Box<dyn Model>,
    images: Tensor,
    targets: Tensor,
}

/// Loss, the gradient of every parameter, and the running statistics behind the step: all as bits.
type Outcome = Vec<Vec<u32>>;

fn bits(tensor: &Tensor) -> Result<Vec<u32>> {
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

impl Pass {
    fn new(model: &str, seed: u64, batch: usize) -> Result<Self> {
        let store = VarStore::new(seed, DType::F32, &Device::Cpu);
        let net = zoo::create(model, &ModelOptions::default(), &store)?;
        let mut rng = Rng::new(seed, "images");
        let pixels: Vec<f32> = (0..batch * 3 * 32 * 32).map(|_| rng.normal() as f32).collect();
        let targets: Vec<u32> = (0..batch).map(|_| rng.below(10) as u32).collect();
        Ok(Self {
            store,
            net,
            images: Tensor::from_vec(pixels, (batch, 3, 32, 32), &Device::Cpu)?,
            targets: Tensor::from_vec(targets, batch, &Device::Cpu)?,
        })
    }

    fn loss(&self) -> Result<Tensor> {
        Ok(zoo_core::ops::cross_entropy(&self.net.forward_t(&self.images, true)?, &self.targets, 0.0)?)
    }

    fn outcome(&self, loss: &Tensor) -> Result<Outcome> {
        let grads = loss.backward()?;
        let mut all = vec![bits(loss)?];
        for (key, var) in self.store.parameters() {
            all.push(bits(grads.get(&var).with_context(|| format!("no gradient of `{key}`"))?)?);
        }
        for (_, var) in self.store.buffers() {
            all.push(bits(&var)?);
        }
        Ok(all)
    }

    fn step(&self) -> Result<Outcome> {
        self.outcome(&self.loss()?)
    }
}

/// A pair of networks, and what each gives alone.
fn pair(a: &str, b: &str, batch: usize) -> Result<[(impl Fn() -> Result<Pass> + Sync, Outcome); 2]> {
    let make = |model: &str, seed: u64| {
        let model = model.to_string();
        move || Pass::new(&model, seed, batch)
    };
    let (a, b) = (make(a, 1), make(b, 2));
    let alone = [a()?.step()?, b()?.step()?];
    let [first, second] = alone;
    Ok([(a, first), (b, second)])
}

const PAIRS: [(&str, &str); 3] = [
    ("cifar_resnet20", "cifar_resnet20_b"),
    ("cifar_densenet_bc_100_12", "cifar_vit_tiny_patch4"),
    ("template_mixer_s4", "cifar_mobilenet_v2"),
];

/// A thread that is in the midst of one network's pass takes up the whole of another's: the one worker of a pool does
/// so for certain.
#[test]
fn a_pass_that_is_taken_up_inside_another_has_its_own_tape() -> Result<()> {
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    for (a, b) in PAIRS {
        let [(a, alone_a), (b, alone_b)] = pair(a, b, 4)?;
        let (a, b) = (a()?, b()?);
        let (outer, inner) = one.install(|| -> Result<(Outcome, Outcome)> {
            let mut inner = None;
            let logits = recorded(&a.images, true, |xs| {
                rayon::scope(|scope| scope.spawn(|_| inner = Some(b.step())));
                a.net.forward_t(xs, true)
            })?;
            let loss = zoo_core::ops::cross_entropy(&logits, &a.targets, 0.0)?;
            Ok((a.outcome(&loss)?, inner.context("the inner pass did not run")??))
        })?;
        ensure!(outer == alone_a, "the outer pass differs from its own alone");
        ensure!(inner == alone_b, "the inner pass differs from its own alone");
    }
    Ok(())
}

#[test]
fn two_networks_under_join_give_what_each_gives_alone() -> Result<()> {
    for (a, b) in PAIRS {
        for (batch, rounds) in [(2, 4), (48, 1)] {
            let [(a, alone_a), (b, alone_b)] = pair(a, b, batch)?;
            for _ in 0..rounds {
                // Forward and backward pass in the tasks.
                let (got_a, got_b) = rayon::join(|| a()?.step(), || b()?.step());
                ensure!(got_a? == alone_a && got_b? == alone_b, "whole steps, batch {batch}");
                // The forward passes alone; the backward passes one after the other.
                let (net_a, net_b) = (a()?, b()?);
                let (loss_a, loss_b) = rayon::join(|| net_a.loss(), || net_b.loss());
                ensure!(net_a.outcome(&loss_a?)? == alone_a, "forward alone, batch {batch}");
                ensure!(net_b.outcome(&loss_b?)? == alone_b, "forward alone, batch {batch}");
            }
        }
    }
    Ok(())
}

#[test]
fn two_networks_on_threads_give_what_each_gives_alone() -> Result<()> {
    for (a, b) in PAIRS {
        for batch in [2, 48] {
            let [(a, alone_a), (b, alone_b)] = pair(a, b, batch)?;
            let (got_a, got_b) = thread::scope(|scope| {
                let (a, b) = (scope.spawn(|| a()?.step()), scope.spawn(|| b()?.step()));
                (a.join(), b.join())
            });
            ensure!(got_a.is_ok_and(|got| got.is_ok_and(|got| got == alone_a)), "batch {batch}");
            ensure!(got_b.is_ok_and(|got| got.is_ok_and(|got| got == alone_b)), "batch {batch}");
        }
    }
    Ok(())
}

/// One network, evaluated by eight threads at once, gives the logits that it gives one.
#[test]
fn eight_threads_evaluate_one_network() -> Result<()> {
    for model in ["cifar_resnet20", "cifar_vit_tiny_patch4", "cifar_densenet_bc_100_12"] {
        let pass = Pass::new(model, 3, 48)?;
        let alone = bits(&pass.net.forward_t(&pass.images, false)?)?;
        let all = thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| bits(&pass.net.forward_t(&pass.images, false)?))).collect();
            threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
        });
        for got in all {
            ensure!(got.is_ok_and(|got| got.is_ok_and(|got| got == alone)), "{model}");
        }
    }
    Ok(())
}

//! Trains a small Transformer to write a sequence backwards, the way the paper trains its translators: shared
//! embeddings, label smoothing, Adam with the paper's constants, a rate that warms up and falls. Then it writes for
//! sequences that it has not seen, greedily and with a beam. About a minute on two CPU cores.
//!
//! ```text
//! cargo run --release --example reverse [STEPS]
//! ```
//!
//! Ends with an error when fewer than 99 % of the sequences come out exactly right.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var, bail};
use std::time::Instant;
use zoo_core::VarStore;
use zoo_core::ops::optim::{AdamStep, adam_step};
use zoo_core::rng::Rng;
use zoo_transformer::transformer;
use zoo_transformer::transformer::decode::{Beam, Decoding, Hypothesis, beam_search, greedy};
use zoo_transformer::transformer::seq2seq::{Config, Seq2Seq};
use zoo_transformer::transformer::training::{LABEL_SMOOTHING, Noam};

/// Tokens: padding, begin and end, then ten symbols.
const PAD: u32 = 0;
const BEGIN: u32 = 1;
const END: u32 = 2;
const SYMBOLS: std::ops::Range<u32> = 3..13;
const LENGTHS: std::ops::RangeInclusive<usize> = 1..=10;

const BATCH: usize = 64;
const STEPS: u64 = 900;
const SEED: u64 = 0;

fn main() -> Result<()> {
    let steps = match std::env::args().nth(1).map(|arg| arg.parse::<u64>()) {
        None => STEPS,
        Some(Ok(steps)) => steps,
        Some(Err(error)) => bail!("the one argument is the number of steps: {error}"),
    };
    let store = VarStore::new(SEED, DType::F32, &Device::Cpu);
    let transformer = transformer::Config {
        d_model: 64,
        heads: 4,
        encoder_layers: 2,
        decoder_layers: 2,
        feed_forward: 128,
        dropout: 0.0,
        ..transformer::Config::base()
    };
    let net = Seq2Seq::new(&Config { transformer, ..Config::base(SYMBOLS.end as usize, PAD) }, store.root())?;
    println!(
        "{} parameters, {steps} steps of {BATCH} random sequences of {LENGTHS:?} symbols",
        store.parameter_count()
    );

    let rate = Noam { factor: 0.3, ..Noam::new(64, 250) };
    let mut adam = Adam::new(store.parameters())?;
    let mut rng = Rng::new(SEED, "training sequences");
    let (start, mut losses) = (Instant::now(), Vec::new());
    for step in 0..steps {
        let sequences = draw(&mut rng, BATCH);
        let (source, target) = batch(&sequences)?;
        let loss = net.loss(&source, &target, LABEL_SMOOTHING, true)?;
        adam.step(&loss.backward()?, rate.at(step))?;
        losses.push(loss.to_scalar::<f32>()?);
        if (step + 1) % 100 == 0 {
            let mean = losses.drain(..).sum::<f32>() / 100.0;
            println!("step {:5}  loss {mean:.4}  rate {:.5}  {:.0?}", step + 1, rate.at(step), start.elapsed());
        }
    }

    let sequences = draw(&mut Rng::new(SEED, "test sequences"), 500);
    let (source, _) = batch(&sequences)?;
    let how = Decoding::new(BEGIN, END, LENGTHS.end() + 2);
    let start = Instant::now();
    let by_greedy = greedy(&net, &source, &how)?;
    let with_cache = start.elapsed();
    let start = Instant::now();
    let without = greedy(&net, &source, &Decoding { cache: false, ..how })?;
    println!("greedy, {} sequences: {with_cache:.0?} with the cache, {:.0?} without", sequences.len(), start.elapsed());
    if by_greedy.iter().zip(&without).any(|(a, b)| a.tokens != b.tokens) {
        bail!("with and without the cache other tokens are written")
    }
    let beams = beam_search(&net, &source, &how, &Beam::default())?;
    let by_beam: Vec<Hypothesis> = beams.into_iter().filter_map(|found| found.into_iter().next()).collect();
    for (sequence, hypothesis) in sequences.iter().zip(&by_greedy).take(5) {
        println!("{:>20} -> {}  (log p {:.2})", text(sequence), text(&hypothesis.tokens), hypothesis.log_prob);
    }
    for (name, written) in [("greedy", &by_greedy), ("beam", &by_beam)] {
        let right = |(sequence, hypothesis): &(&Vec<u32>, &Hypothesis)| {
            hypothesis.finished && hypothesis.tokens.iter().eq(sequence.iter().rev())
        };
        let share = sequences.iter().zip(written).filter(right).count() as f64 / sequences.len() as f64;
        println!("{name}: {:.1} % exactly right", 100.0 * share);
        if share < 0.99 {
            bail!("{name}: fewer than 99 % are right; it was trained for {steps} steps, {STEPS} are enough")
        }
    }
    Ok(())
}

fn draw(rng: &mut Rng, count: usize) -> Vec<Vec<u32>> {
    let spread = LENGTHS.end() - LENGTHS.start() + 1;
    let symbols = (SYMBOLS.end - SYMBOLS.start) as usize;
    let mut sequence = || {
        let length = LENGTHS.start() + rng.below(spread);
        (0..length).map(|_| SYMBOLS.start + rng.below(symbols) as u32).collect()
    };
    (0..count).map(|_| sequence()).collect()
}

/// Sources, and targets from begin to end, each filled up to the longest.
fn batch(sequences: &[Vec<u32>]) -> Result<(Tensor, Tensor)> {
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
    let filled = |tokens: Vec<u32>, length: usize| tokens.into_iter().chain(std::iter::repeat(PAD)).take(length);
    let target = |s: &Vec<u32>| std::iter::once(BEGIN).chain(s.iter().rev().copied()).chain([END]).collect();
    let sources: Vec<u32> = sequences.iter().flat_map(|s| filled(s.clone(), longest)).collect();
    let targets: Vec<u32> = sequences.iter().flat_map(|s| filled(target(s), longest + 2)).collect();
    let shape = |length| (sequences.len(), length);
    let device = Device::Cpu;
    Ok((Tensor::from_vec(sources, shape(longest), &device)?, Tensor::from_vec(targets, shape(longest + 2), &device)?))
}

fn text(tokens: &[u32]) -> String {
    tokens.iter().map(|token| (token - token.min(&SYMBOLS.start)).to_string()).collect::<Vec<_>>().join(" ")
}

/// Adam with the paper's constants (section 5.3). A training program would take the one of zoo-train, which this crate
/// does not know.
struct Adam {
    /// Each parameter with its two moments.
    slots: Vec<[Var; 3]>,
    steps: u64,
}

impl Adam {
    fn new(parameters: Vec<(String, Var)>) -> Result<Self> {
        let zeros = |var: &Var| Var::zeros(var.shape(), var.dtype(), var.device());
        let slot = |(_, var): (String, Var)| Ok([zeros(&var)?, zeros(&var)?, var]);
        Ok(Self { slots: parameters.into_iter().map(slot).collect::<Result<_>>()?, steps: 0 })
    }

    fn step(&mut self, grads: &GradStore, lr: f64) -> Result<()> {
        self.steps += 1;
        let (beta1, beta2, eps) = (0.9, 0.98, 1e-9);
        let step = AdamStep { lr, beta1, beta2, eps, weight_decay: 0.0, decoupled: false, step: self.steps };
        for [mean, square, var] in &self.slots {
            if let Some(grad) = grads.get(var) {
                adam_step(var, grad, mean, square, &step)?;
            }
        }
        Ok(())
    }
}

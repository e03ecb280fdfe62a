//! The translator learns, and writes the same with its cache as without, also once it has learnt.
//! `examples/reverse.rs` takes the same task to the end.

use candle_core::{DType, Device, Result, Tensor, Var};
use zoo_core::VarStore;
use zoo_core::ops::optim::{AdamStep, adam_step};
use zoo_core::rng::Rng;
use zoo_transformer::transformer;
use zoo_transformer::transformer::decode::{Beam, Decoding, beam_search, greedy};
use zoo_transformer::transformer::seq2seq::{Config, Seq2Seq};
use zoo_transformer::transformer::training::{LABEL_SMOOTHING, Noam};

/// Tokens: padding 0, begin 1, end 2, and symbols from 3 to 6; sources of one to three symbols, targets backwards.
fn batch(rng: &mut Rng, count: usize) -> Result<(Tensor, Tensor)> {
    let (mut sources, mut targets) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let symbols: Vec<u32> = (0..1 + rng.below(3)).map(|_| 3 + rng.below(4) as u32).collect();
        let mut target: Vec<u32> = [1].into_iter().chain(symbols.iter().rev().copied()).chain([2]).collect();
        target.resize(5, 0);
        sources.extend(symbols.iter().copied().chain([0; 3]).take(3));
        targets.extend(target);
    }
    Ok((Tensor::from_vec(sources, (count, 3), &Device::Cpu)?, Tensor::from_vec(targets, (count, 5), &Device::Cpu)?))
}

#[test]
fn it_learns_to_reverse_and_the_cache_changes_no_token() -> Result<()> {
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    let transformer = transformer::Config {
        d_model: 32,
        heads: 4,
        encoder_layers: 1,
        decoder_layers: 1,
        feed_forward: 64,
        dropout: 0.0,
        ..transformer::Config::base()
    };
    let net = Seq2Seq::new(&Config { transformer, ..Config::base(7, 0) }, store.root())?;
    let zeros = |var: &Var| Var::zeros(var.shape(), var.dtype(), var.device());
    let slots = store.parameters().into_iter().map(|(_, var)| Ok([zeros(&var)?, zeros(&var)?, var]));
    let slots = slots.collect::<Result<Vec<[Var; 3]>>>()?;
    let (mut rng, rate) = (Rng::new(0, "reverse"), Noam { factor: 0.5, ..Noam::new(32, 60) });
    let mut losses = Vec::new();
    for step in 0..300 {
        let (source, target) = batch(&mut rng, 16)?;
        let loss = net.loss(&source, &target, LABEL_SMOOTHING, true)?;
        let grads = loss.backward()?;
        let (lr, beta1, beta2, eps, step) = (rate.at(step), 0.9, 0.98, 1e-9, step + 1);
        for [mean, square, var] in &slots {
            let step = AdamStep { lr, beta1, beta2, eps, weight_decay: 0.0, decoupled: false, step };
            adam_step(var, grads.get(var).expect("a gradient"), mean, square, &step)?;
        }
        losses.push(loss.to_scalar::<f32>()?);
    }
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    let (first, last) = (mean(&losses[..10]), mean(&losses[290..]));
    // Label smoothing leaves 0.45 to the one who knows everything: the entropy of 0.914 and six times 0.014.
    assert!(first > 1.5 && last < 0.7, "the loss went from {first} to {last}");

    let (source, target) = batch(&mut rng, 20)?;
    let (cached, beam) = (Decoding::new(1, 2, 6), Beam::default());
    let uncached = Decoding { cache: false, ..cached };
    let written = greedy(&net, &source, &cached)?;
    for (a, b) in written.iter().zip(&greedy(&net, &source, &uncached)?) {
        assert!(a.tokens == b.tokens && (a.log_prob - b.log_prob).abs() < 1e-4, "{a:?} {b:?}");
    }
    let (a, b) = (beam_search(&net, &source, &cached, &beam)?, beam_search(&net, &source, &uncached, &beam)?);
    for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
        assert!(a.tokens == b.tokens && (a.log_prob - b.log_prob).abs() < 1e-4, "{a:?} {b:?}");
    }
    let right = written.iter().zip(target.to_vec2::<u32>()?).filter(|(hypothesis, target)| {
        let wanted = target.iter().copied().filter(|&token| token > 2);
        hypothesis.finished && hypothesis.tokens.iter().copied().eq(wanted)
    });
    let right = right.count();
    assert!(right >= 15, "{right} of 20 are right");
    Ok(())
}

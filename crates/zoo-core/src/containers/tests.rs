//! Convolution, norm, shortcut and activation as one operation: what they compute, what they move and what they refuse.

use crate::ops::{Conv2dParams, Pointwise, with_fallback};
use crate::testing::{distance, numbers};
use crate::trace::Graph;
use crate::vars::BatchNormSettings;
use crate::{BatchNorm, BatchNormConfig, Conv2d, Conv2dConfig, Layer, Residual, Sequential, VarStore};
use crate::{activate, seq, tape};
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::ModuleT;
use std::sync::Arc;

const OFF: BatchNormSettings = BatchNormSettings { momentum: None, eps: None, normalize: false };

/// A layer that gives a tensor, whatever it reads: a shortcut.
#[derive(Debug)]
struct Given(Tensor);

impl ModuleT for Given {
    fn forward_t(&self, _: &Tensor, _: bool) -> Result<Tensor> {
        Ok(self.0.clone())
    }
}

/// A unit whose norm has a weight and a bias of its own.
fn unit(settings: BatchNormSettings, config: BatchNormConfig) -> (VarStore, Sequential) {
    let store = VarStore::new(1, DType::F64, &Device::Cpu);
    store.set_batch_norm(settings);
    let conv = Conv2d::new(3, 4, Conv2dConfig::new(3).padding(1), store.root().pp("conv")).unwrap();
    let bn = BatchNorm::with(4, config, store.root().pp("bn")).unwrap();
    for key in ["bn.weight", "bn.bias"] {
        store.get(key).unwrap().var.unwrap().set(&numbers(key, &[4])).unwrap();
    }
    (store, seq![conv, bn])
}

/// A call that is refused leaves the running statistics where they were, and its error names the norm and its own map.
#[test]
fn a_refused_call_moves_no_statistics() {
    let (store, unit) = unit(BatchNormSettings::default(), BatchNormConfig::default());
    let statistics = || {
        let row = |(_, var): (String, Var)| var.to_vec1::<f64>().unwrap();
        store.buffers().into_iter().map(row).collect::<Vec<_>>()
    };
    let before = statistics();
    let refused = |xs: &Tensor, skip: Option<&Tensor>, on_tape: bool| {
        let call = |xs: &Tensor| match skip {
            None => unit.forward_t(xs, true),
            Some(skip) => Residual::new(unit.clone()).shortcut(seq![Given(skip.clone())]).forward_t(xs, true),
        };
        let result = if on_tape { tape::recorded(xs, true, call) } else { call(xs) };
        let error = result.unwrap_err().to_string();
        assert_eq!(statistics(), before, "{error}");
        error
    };
    let (xs, narrow) = (numbers("x", &[2, 3, 6, 6]), numbers("skip", &[2, 4, 6, 5]));
    let error = refused(&xs, Some(&narrow), true);
    assert!(error.contains("[2, 4, 6, 5]") && error.contains("[2, 4, 6, 6]"), "{error}");
    let other = numbers("skip", &[2, 4, 6, 6]).to_dtype(DType::F32).unwrap();
    assert!(refused(&xs, Some(&other), true).contains("F32"));
    for on_tape in [true, false] {
        let error = refused(&numbers("x", &[1, 3, 1, 1]), None, on_tape);
        assert!(error.starts_with("bn: ") && error.contains("[1, 4, 1, 1]"), "{error}");
    }
    assert!(unit.forward_t(&xs, true).is_ok());
    assert_ne!(statistics(), before);
}

#[test]
fn momentum_and_eps_arrive() {
    let config = BatchNormConfig { momentum: 0.3, eps: 0.5, ..BatchNormConfig::default() };
    let settings = BatchNormSettings { momentum: Some(0.3), eps: Some(0.5), normalize: true };
    let xs = numbers("x", &[2, 3, 5, 5]);
    let run = |settings, config| {
        let (store, unit) = unit(settings, config);
        let unit = seq![unit, Pointwise::Relu];
        let ys = tape::recorded(&xs, true, |xs| unit.forward_t(xs, true)).unwrap();
        let mut all = vec![ys, unit.forward_t(&xs, true).unwrap(), unit.forward_t(&xs, false).unwrap()];
        all.extend(store.buffers().into_iter().map(|(_, var)| var.as_detached_tensor()));
        all
    };
    let want = run(BatchNormSettings::default(), config);
    let got = run(settings, BatchNormConfig::default());
    assert!(got.iter().zip(&want).all(|(a, b)| distance(a, b) == 0.0));
    let plain = run(BatchNormSettings::default(), BatchNormConfig::default());
    assert!(got.iter().zip(&plain).all(|(a, b)| distance(a, b) > 1e-3));
}

/// Without normalisation the unit is act(weight · conv(x) + bias + skip), in training and in evaluation, fused or not.
#[test]
fn without_normalisation_weight_and_bias_are_left() {
    for (activation, with_skip) in
        [(Some(Pointwise::Relu), true), (Some(Pointwise::Relu6), false), (Some(Pointwise::Silu), true), (None, false)]
    {
        let (store, unit) = unit(OFF, BatchNormConfig::default());
        let xs = Var::from_tensor(&numbers("x", &[2, 3, 6, 5])).unwrap();
        let skip = Var::from_tensor(&numbers("skip", &[2, 4, 6, 5])).unwrap();
        let behind: Vec<Arc<dyn Layer>> = activation.into_iter().map(|a| Arc::new(a) as Arc<dyn Layer>).collect();
        let block = |unit: &Sequential| match with_skip {
            true => seq![Residual::new(unit.clone()).shortcut(seq![Given(skip.as_tensor().clone())])],
            false => unit.clone(),
        };
        let net = match (with_skip, activation) {
            (true, Some(activation)) => {
                seq![Residual::new(unit.clone()).shortcut(seq![Given(skip.as_tensor().clone())]).activation(activation)]
            }
            _ => Sequential::new([Arc::new(block(&unit)) as Arc<dyn Layer>].into_iter().chain(behind).collect()),
        };
        let fused = || tape::recorded(&xs, true, |xs| net.forward_t(xs, true));
        let by_layers = || net.forward_t(&xs, true);
        let by_hand = || {
            let var = |key: &str| store.get(key).unwrap().var.unwrap().as_tensor().clone();
            let row = |key: &str| var(key).reshape((1, 4, 1, 1));
            let padded = Conv2dParams { padding: (1, 1), ..Conv2dParams::default() };
            let ys = crate::ops::conv2d(&xs, &var("conv.weight"), Some(&var("conv.bias")), padded)?;
            let ys = ys.broadcast_mul(&row("bn.weight")?)?.broadcast_add(&row("bn.bias")?)?;
            let ys = if with_skip { (ys + skip.as_tensor())? } else { ys };
            activation.map_or(Ok(ys.clone()), |function| activate(&ys, function))
        };
        let mut vars: Vec<Tensor> = store.parameters().iter().map(|(_, var)| var.as_tensor().clone()).collect();
        vars.push(xs.as_tensor().clone());
        vars.extend(with_skip.then(|| skip.as_tensor().clone()));
        let gradients = |run: &dyn Fn() -> Result<Tensor>| {
            let ys = run().unwrap();
            let loss = (&ys * numbers("upstream", ys.dims())).unwrap().sum_all().unwrap();
            let grads = loss.backward().unwrap();
            let mut all: Vec<Tensor> = vars.iter().map(|var| grads.get(var).unwrap().clone()).collect();
            all.push(ys);
            all
        };
        let want = gradients(&by_hand);
        for got in [gradients(&fused), gradients(&by_layers), with_fallback(|| gradients(&by_layers))] {
            assert!(got.iter().zip(&want).all(|(a, b)| distance(a, b) < 1e-12), "{activation:?}");
        }
        let plain = xs.as_detached_tensor();
        let evaluated = net.forward_t(&plain, false).unwrap();
        assert!(distance(&evaluated, &want[want.len() - 1]) < 1e-12, "{activation:?} in evaluation");
    }
}

#[test]
fn without_normalisation_keys_stay_and_statistics_rest() {
    let (store, norm) = unit(OFF, BatchNormConfig::default());
    let (usual, _) = unit(BatchNormSettings::default(), BatchNormConfig::default());
    let keys = |store: &VarStore| store.slots().into_iter().map(|s| (s.key, s.shape, s.kind)).collect::<Vec<_>>();
    assert_eq!(keys(&store), keys(&usual));
    // A single value a channel has no variance, and needs none.
    norm.forward_t(&numbers("x", &[1, 3, 1, 1]), true).unwrap();
    let statistics = |key: &str| store.get(key).unwrap().var.unwrap().to_vec1::<f64>().unwrap();
    assert_eq!((statistics("bn.running_mean"), statistics("bn.running_var")), (vec![0.0; 4], vec![1.0; 4]));
}

/// Planes so large that their gradients go a few images at a time, the last part smaller, are those of the layers.
#[test]
fn gradients_by_images_are_those_of_the_layers() {
    for (stride, with_skip) in [(1, false), (1, true), (2, false), (2, true)] {
        let store = VarStore::new(1, DType::F64, &Device::Cpu);
        let config = Conv2dConfig::new(3).padding(1).stride(stride).no_bias();
        let conv = Conv2d::new(3, 8, config, store.root().pp("conv")).unwrap();
        let bn = BatchNorm::new(8, store.root().pp("bn")).unwrap();
        let side = 64;
        let xs = Var::from_tensor(&numbers("x", &[9, 3, side * stride, side * stride])).unwrap();
        let skip = Var::from_tensor(&numbers("skip", &[9, 8, side, side])).unwrap();
        let net = match with_skip {
            true => seq![
                Residual::new(seq![conv, bn])
                    .shortcut(seq![Given(skip.as_tensor().clone())])
                    .activation(Pointwise::Relu)
            ],
            false => seq![conv, bn, Pointwise::Relu],
        };
        let run = || {
            let ys = tape::recorded(&xs, true, |xs| net.forward_t(xs, true)).unwrap();
            let loss = (&ys * numbers("upstream", ys.dims())).unwrap().sum_all().unwrap();
            (ys, loss.backward().unwrap())
        };
        let ((ys, got), (want_ys, want)) = (run(), with_fallback(run));
        let close = |name: &str, a: &Tensor, b: &Tensor| {
            let error = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
            let scale = b.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(error <= 1e-12 * scale.max(1.0), "{name}, stride {stride}: {error} of {scale}");
        };
        close("y", &ys, &want_ys);
        let mut vars: Vec<(String, Tensor)> =
            store.parameters().into_iter().map(|(key, var)| (key, var.as_tensor().clone())).collect();
        vars.push(("x".into(), xs.as_tensor().clone()));
        vars.extend(with_skip.then(|| ("skip".into(), skip.as_tensor().clone())));
        for (key, var) in vars {
            close(&key, got.get(&var).expect(&key), want.get(&var).expect(&key));
        }
    }
}

/// Which layers run as one operation, and that a sequence inside another is spliced in unless it has a name.
#[test]
fn sequences_find_their_operations() {
    let vb = VarStore::new(0, DType::F32, &Device::Cpu).root();
    let conv = |name: &str| Conv2d::new(4, 4, Conv2dConfig::new(1).no_bias(), vb.pp(name)).unwrap();
    let norm = |name: &str| BatchNorm::new(4, vb.pp(name).pp("norm")).unwrap();
    // Layers of each operation.
    let cut = |layers: &Sequential| {
        let xs = Tensor::zeros((1, 4, 2, 2), DType::F32, &Device::Cpu).unwrap();
        let graph = Graph::of(&[xs.dims()], |xs| layers.forward_t(&xs[0], false)).unwrap();
        let mut lengths = vec![0; graph.nodes.len()];
        graph.nodes[1..].iter().for_each(|node| lengths[node.operation] += 1);
        lengths.into_iter().filter(|&n| n > 0).collect::<Vec<usize>>()
    };
    assert_eq!(cut(&seq![conv("a"), norm("a"), Pointwise::Relu, conv("b"), norm("b")]), [3, 2]);
    assert_eq!(cut(&seq![norm("c"), Pointwise::Relu6, conv("c"), norm("d"), Pointwise::Gelu]), [2, 2, 1]);
    assert_eq!(cut(&seq![seq![conv("e")], seq![norm("e"), Pointwise::Relu]]), [3]);
    assert_eq!(cut(&seq![conv("f"), seq![norm("f"), Pointwise::Relu].block("Unit", &vb)]), [1, 2]);
    assert_eq!(cut(&seq![Residual::new(seq![conv("g"), norm("g")]).activation(Pointwise::Relu)]), [4]);
    // The sum alone is part of it too, an activation that does not only cut is not.
    assert_eq!(cut(&seq![Residual::new(seq![conv("h"), norm("h")])]), [3]);
    assert_eq!(cut(&seq![Residual::new(seq![conv("i"), norm("i")]).activation(Pointwise::Silu)]), [2, 1, 1]);
}

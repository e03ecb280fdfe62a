//! Masks, the cache, the graph and what is refused.

use super::*;
use candle_core::{DType, Device};
use std::collections::HashSet;
use zoo_core::VarStore;
use zoo_core::ops::with_fallback;
use zoo_core::trace::Graph;

fn small() -> Config {
    Config { d_model: 12, heads: 3, encoder_layers: 2, decoder_layers: 2, feed_forward: 20, ..Config::base() }
}

fn numbers(b: usize, n: usize, d: usize) -> Tensor {
    let values = (0..b * n * d).map(|i| ((i * 7 + i / 5) % 23) as f64 / 11.0 - 1.0).collect();
    Tensor::from_vec(values, (b, n, d), &Device::Cpu).unwrap()
}

fn net(config: &Config) -> Transformer {
    Transformer::new(config, VarStore::new(0, DType::F64, &Device::Cpu).root()).unwrap()
}

fn values(xs: &Tensor) -> Vec<f64> {
    xs.flatten_all().unwrap().to_vec1().unwrap()
}

/// The whole of layers, norms and cross-attention is visible to the tracer, and the count is the published one.
#[test]
fn the_graph_has_no_gap() {
    for info in MODELS {
        let store = VarStore::shapes_only();
        let net = (info.builder)(store.root()).unwrap();
        assert_eq!(store.parameter_count(), info.parameters, "{}", info.name);
        let (source, target) = ([1, 7, info.d_model], [1, 5, info.d_model]);
        let graph = Graph::of(&[&source, &target], |xs| net.forward_t(&xs[0], &xs[1], false)).unwrap();
        assert_eq!(graph.parameters(), info.parameters, "{}", info.name);
        assert!(graph.nodes[2..].iter().all(|node| !node.inputs.is_empty()));
        let read: HashSet<usize> = graph.nodes.iter().flat_map(|node| node.inputs.iter().copied()).collect();
        let unread: Vec<_> = (0..graph.nodes.len()).filter(|i| !read.contains(i)).collect();
        assert_eq!(unread, [graph.nodes.len() - 1]);
        assert_eq!(graph.nodes[unread[0]].shape, target);
        // Per place a product with every matrix, and twice the width for each pair that looks.
        let (d, n, m) = (info.d_model, 7, 5);
        let encoder = 6 * (n * 4 * d * d + 2 * n * n * d + n * 2 * d * 2048);
        let decoder = 6 * ((6 * m + 2 * n) * d * d + 2 * m * (m + n) * d + m * 2 * d * 2048);
        assert_eq!(graph.macs(), (encoder + decoder) as u64);
    }
}

#[test]
fn without_the_last_norms_it_is_the_papers() {
    let count = |config: &Config| {
        let store = VarStore::shapes_only();
        Transformer::new(config, store.root()).unwrap();
        store.parameter_count()
    };
    assert_eq!(count(&Config { final_norms: false, ..Config::base() }), 44_138_496);
    assert_eq!(count(&Config { norm_first: true, ..Config::base() }), 44_140_544);
}

#[test]
fn what_does_not_fit_says_why() {
    let refused = |config: Config| Transformer::new(&config, VarStore::shapes_only().root()).unwrap_err().to_string();
    assert!(refused(Config { heads: 5, ..small() }).contains("5 heads do not divide a width of 12"));
    assert!(refused(Config { decoder_layers: 0, ..small() }).contains("a layer on each side"));
    assert!(refused(Config { dropout: 1.5, ..small() }).contains("1.5"));
    let net = net(&small());
    let masks = Masks::default();
    let error = net.forward(&numbers(2, 3, 12), &numbers(3, 3, 12), &masks, false).unwrap_err().to_string();
    assert!(error.contains("3 targets for 2 sources"), "{error}");
    let error = net.encode(&numbers(2, 3, 11), None, false).unwrap_err().to_string();
    assert!(error.contains("source") && error.contains("12"), "{error}");
}

/// A place of the target depends on itself and those before it, and on no padding of the source.
#[test]
fn masks_hide_what_they_should() {
    let net = net(&small());
    let tokens = Tensor::new(&[[5u32, 6, 0], [5, 6, 7]], &Device::Cpu).unwrap();
    let padding = padding_mask(&tokens, 0, DType::F64).unwrap();
    let causal = causal_mask(4, 4, DType::F64, &Device::Cpu).unwrap();
    let masks = Masks { source: Some(padding.clone()), target: Some(causal), memory: Some(padding) };
    let (source, target) = (numbers(2, 3, 12), numbers(2, 4, 12));
    let plain = net.forward(&source, &target, &masks, false).unwrap();

    let place = |b: usize, i: usize, n: usize| {
        let hit = |j: usize| if j / 12 == b * n + i { 1.0 } else { 0.0 };
        Tensor::from_vec((0..2 * n * 12).map(hit).collect::<Vec<f64>>(), (2, n, 12), &Device::Cpu).unwrap()
    };
    // Which places (b, i) of the output change.
    let changed = |source: &Tensor, target: &Tensor| -> Vec<(usize, usize)> {
        let (a, b) = (values(&plain), values(&net.forward(source, target, &masks, false).unwrap()));
        let differs = |&p: &usize| a[p * 12..][..12] != b[p * 12..][..12];
        (0..8).filter(differs).map(|p| (p / 4, p % 4)).collect()
    };
    assert_eq!(changed(&source, &(&target + place(0, 2, 4)).unwrap()), [(0, 2), (0, 3)]);
    assert_eq!(changed(&(&source + place(0, 2, 3)).unwrap(), &target), [], "padding is seen");
    assert_eq!(changed(&(&source + place(1, 2, 3)).unwrap(), &target), [(1, 0), (1, 1), (1, 2), (1, 3)]);
}

/// One place after another, in pieces, or all at once: the same to the rounding of f64.
#[test]
fn the_cache_changes_nothing() {
    for norm_first in [false, true] {
        let net = net(&Config { norm_first, ..small() });
        let target = numbers(2, 6, 12);
        let memory = net.encode(&numbers(2, 3, 12), None, false).unwrap();
        let causal = causal_mask(6, 6, DType::F64, &Device::Cpu).unwrap();
        let masks = Masks { target: Some(causal), ..Masks::default() };
        let whole = values(&net.decode(&target, &memory, &masks, false).unwrap());
        for pieces in [vec![1; 6], vec![2, 1, 3], vec![6]] {
            let (mut cache, mut parts) = (Cache::default(), Vec::new());
            for len in pieces {
                let next = target.narrow(1, cache.len(), len).unwrap();
                parts.push(net.decode_next(&next, &memory, None, &mut cache).unwrap());
            }
            let parts = values(&Tensor::cat(&parts, 1).unwrap());
            assert!(whole.iter().zip(&parts).all(|(a, b)| (a - b).abs() < 1e-12), "{whole:?} {parts:?}");
        }
    }
}

/// A training pass goes on one tape, whose gradients are those of candle's graph; inside a tape an operation that bypassed
/// it would be an error.
#[test]
fn it_trains_on_the_tape() {
    for norm_first in [false, true] {
        let store = VarStore::new(0, DType::F64, &Device::Cpu);
        let net = Transformer::new(&Config { norm_first, ..small() }, store.root()).unwrap();
        store.set_dropout(false);
        let (source, target) = (numbers(2, 3, 12), numbers(2, 4, 12));
        let causal = causal_mask(4, 4, DType::F64, &Device::Cpu).unwrap();
        let masks = Masks { target: Some(causal), ..Masks::default() };
        let gradients = || {
            let ys = net.forward(&source, &target, &masks, true).unwrap();
            let grads = ys.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let parameters = store.parameters().into_iter();
            parameters.map(|(key, var)| (values(grads.get(&var).unwrap()), key)).collect::<Vec<_>>()
        };
        for ((got, key), (want, _)) in gradients().iter().zip(&with_fallback(gradients)) {
            assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-11), "{key}: {got:?} {want:?}");
        }
        let pass = |xs: &[Tensor]| Ok(vec![net.forward(&xs[0], &xs[1], &masks, true)?]);
        let ys = tape::recorded_all(&[&source, &target], true, pass).unwrap();
        assert!(ys[0].track_op());
    }
}

//! Dense blocks of bfloat16 maps, which are not joined, against those of f64 whose maps are.
//!
//! Several layers stand behind each other, each of which rounds what it makes to eight bits, and a rounding next to
//! zero opens or shuts a ReLU. So a tensor as a whole is held, in the Euclidean norm, and against what rounding costs
//! in any case: the same block out of candle's operations, each in f32 and rounded, is off by e, and ours is off by 1.5
//! · e + 2⁻⁸ · |reference| at the most.

use crate::bf16::{channels_last, map};
use crate::compare::with_level;
use crate::input::Values;
use candle_core::{DType, Device, Result, Tensor, Var};
use zoo_core::ops::{Level, with_fallback};
use zoo_core::rng::Rng;
use zoo_core::{
    BatchNorm, BatchNormConfig, Conv2d, Conv2dConfig, DenseBlock, Init, ModuleT, Pointwise, VarStore, seq, tape,
};

/// Three layers and a reader, of growth 5, 12 and 32.
fn block(store: &VarStore) -> DenseBlock {
    let unit = |name: &str, c_in: usize, c_out: usize| {
        let (vb, init) = (store.root().pp(name), Init::Uniform { lo: 0.5, hi: 1.5 });
        let config = BatchNormConfig { weight_init: init, eps: 1e-2, ..BatchNormConfig::default() };
        let norm = BatchNorm::with(c_in, config, vb.pp("norm")).unwrap();
        let conv = Conv2d::new(c_in, c_out, Conv2dConfig::new(1), vb.pp("conv")).unwrap();
        seq![norm, Pointwise::Relu, conv]
    };
    DenseBlock::new(vec![unit("a", 24, 5), unit("b", 29, 12), unit("c", 41, 32)], unit("d", 73, 9), "block")
}

/// The output in training and evaluation, all gradients, and the running statistics.
fn results(dtype: DType, xs: &Tensor, upstream: &Tensor) -> Result<Vec<Tensor>> {
    let weights = if dtype == DType::BF16 { DType::F32 } else { dtype };
    let store = VarStore::new(3, weights, &Device::Cpu);
    let block = block(&store);
    // A product's operands are bfloat16 numbers: so are the weights that all read.
    for (_, var) in store.parameters() {
        var.set(&var.to_dtype(DType::BF16)?.to_dtype(weights)?)?;
    }
    let xs = Var::from_tensor(&channels_last(&xs.to_dtype(dtype)?)?)?;
    let ys = tape::recorded(&xs, true, |xs| tape::to_dtype(&block.forward_t(xs, true)?, weights))?;
    let grads = (&ys * upstream.to_dtype(weights)?)?.sum_all()?.backward()?;
    let vars = store.parameters().into_iter().map(|(_, var)| var).chain([xs.clone()]);
    let mut all: Vec<Tensor> = vars.map(|var| grads.get(&var).expect("a gradient").clone()).collect();
    all.push(ys.detach());
    all.extend(store.buffers().into_iter().map(|(_, var)| var.as_detached_tensor()));
    all.push(block.forward_t(&xs.as_detached_tensor(), false)?);
    all.iter().map(|t| t.contiguous()?.to_dtype(DType::F64)).collect()
}

#[test]
fn maps_apart_are_maps_joined() -> Result<()> {
    let rng = &mut Rng::new(4, "dense");
    for (b, h, w) in [(3, 5, 7), (2, 16, 16)] {
        let xs = map(rng, &[b, 24, h, w], Values::Uniform, 2.0).tensor(DType::F64)?;
        let upstream = map(rng, &[b, 9, h, w], Values::Uniform, 1.0).tensor(DType::F64)?;
        let want = with_fallback(|| results(DType::F64, &xs, &upstream))?;
        let plain = with_fallback(|| results(DType::BF16, &xs, &upstream))?;
        for level in Level::supported() {
            let got = with_level(level, || results(DType::BF16, &xs, &upstream))?;
            assert_eq!(got.len(), want.len());
            for (i, ((got, plain), want)) in got.iter().zip(&plain).zip(&want).enumerate() {
                let norm = |t: &Tensor| t.sqr()?.sum_all()?.to_scalar::<f64>().map(f64::sqrt);
                let (error, rounding, size) = (norm(&(got - want)?)?, norm(&(plain - want)?)?, norm(want)?);
                let bound = 1.5 * rounding + size * 2f64.powi(-8);
                assert!(error <= bound, "{level:?}, {b} {h} {w}, result {i}: {error} of {size}, bound {bound}");
            }
        }
    }
    Ok(())
}

//! Branches whose outputs stand one behind the other along the channels.

use super::sequential::Sequential;
use crate::layers::concat;
use crate::ops;
use crate::ops::fused::concat_norm::ConcatView;
use crate::pass::{self, Mode};
use crate::tape;
use crate::trace;
use crate::vars::Training;
use candle_core::{Result, Tensor, bail};
use candle_nn::ModuleT;

/// y = [f₁(x), …, fₙ(x)]: branches over one map, joined along the channels. (b, c, h, w) -> (b, Σ cᵢ, h', w')
#[derive(Debug, Clone)]
pub struct Concat(Vec<Sequential>);

impl Concat {
    /// Of these branches, in this order. An empty one hands x on.
    pub fn new(branches: Vec<Sequential>) -> Self {
        Self(branches)
    }
}

impl ModuleT for Concat {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let maps = self.0.iter().map(|branch| branch.forward_t(xs, train)).collect::<Result<Vec<_>>>()?;
        concat(&maps.iter().collect::<Vec<_>>(), 1)
    }
}

/// Dense connections (Huang et al. 2016, arXiv:1608.06993, equation 2): x₁ = [x, f₁(x)], x₂ = [x₁, f₂(x₁)], …, and y =
/// g(xₙ) for the layers g that read all maps. (b, c, h, w) -> g of (b, c + Σ kᵢ, h, w)
///
/// Where layers begin with a BatchNorm and a ReLU, the maps are never joined: the norm reads them from where they are,
/// and each one's statistics are made once.
#[derive(Debug, Clone)]
pub struct DenseBlock {
    layers: Vec<Sequential>,
    reader: Sequential,
    name: String,
    /// What of all that is trained.
    training: Training,
}

impl DenseBlock {
    /// `layers` are f₁ … fₙ, `reader` is g; `name` is that of the stage xₙ, see
    /// [`Model::forward_intermediates`](crate::Model::forward_intermediates).
    pub fn new(layers: Vec<Sequential>, reader: Sequential, name: impl Into<String>) -> Self {
        let training = layers.iter().map(Sequential::training).fold(reader.training(), Training::and);
        Self { layers, reader, name: name.into(), training }
    }
}

impl ModuleT for DenseBlock {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let train = train && !self.training.is_frozen();
        let readers = self.layers.iter().chain([&self.reader]);
        let as_one = readers.clone().all(|layers| layers.first_on_concat().is_some()) && xs.rank() == 4;
        // Where only some of the layers are trained each decides for itself.
        let fused = as_one && !self.training.is_mixed();
        let has_kernels = matches!(pass::mode(xs, train), Mode::Tape | Mode::Inference);
        let mut maps = Maps::new(xs, fused && has_kernels && !trace::is_watched(), train)?;
        for layer in &self.layers {
            layer.in_block(|| {
                let ys = maps.read_by(layer, train)?;
                // Of maps that are not joined nobody makes the whole.
                if fused { trace::fused(None, || maps.push(ys, train)) } else { maps.push(ys, train) }
            })?;
        }
        if let Maps::Joined(all) = &maps {
            trace::stage(&self.name, all.clone());
        }
        let ys = self.reader.in_block(|| maps.read_by(&self.reader, train))?;
        Ok(if train { ys } else { tape::constant(ys, &[xs]) })
    }
}

/// Maps one behind the other along the channels.
enum Maps {
    Joined(Tensor),
    /// Each where it is, in training with its statistics.
    View(ConcatView),
}

impl Maps {
    fn new(xs: &Tensor, as_view: bool, train: bool) -> Result<Self> {
        if !as_view {
            return Ok(Self::Joined(xs.clone()));
        }
        let mut maps = Self::View(Vec::new());
        maps.push(xs.clone(), train)?;
        Ok(maps)
    }

    fn push(&mut self, map: Tensor, train: bool) -> Result<()> {
        match self {
            Self::Joined(all) => *all = concat(&[all, &map], 1)?,
            Self::View(maps) => {
                let stats = train.then(|| ops::batch_stats(&map)).transpose()?;
                maps.push((map, stats));
            }
        }
        Ok(())
    }

    fn read_by(&self, layers: &Sequential, train: bool) -> Result<Tensor> {
        match (self, layers.first_on_concat()) {
            (Self::View(maps), Some(row)) => {
                layers.behind_first(row.run_on_concat(layers.first_layers(), maps, train)?, train)
            }
            (Self::Joined(all), _) => layers.steps_on(all, train),
            // A block whose layers cannot all read a view joins its maps.
            (Self::View(_), None) => bail!("dense_block: {layers:?} cannot read maps that are not joined"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::with_fallback;
    use crate::testing::numbers;
    use crate::vars::VarStore;
    use crate::{BatchNorm, BatchNormConfig, Conv2d, Conv2dConfig, Init, Pointwise, seq};
    use candle_core::{DType, Device, Var};

    /// Two layers and a reader, which all begin with a norm and an activation.
    fn dense(store: &VarStore, activation: Pointwise) -> DenseBlock {
        let unit = |name: &str, c_in: usize, c_out: usize| {
            let (vb, init) = (store.root().pp(name), Init::Uniform { lo: 0.5, hi: 1.5 });
            let config = BatchNormConfig { weight_init: init, eps: 1e-2, ..BatchNormConfig::default() };
            let norm = BatchNorm::with(c_in, config, vb.pp("norm")).unwrap();
            seq![norm, activation, Conv2d::new(c_in, c_out, Conv2dConfig::new(1), vb.pp("conv")).unwrap()]
        };
        DenseBlock::new(vec![unit("a", 3, 1), unit("b", 4, 17)], unit("c", 21, 5), "block")
    }

    /// Maps that several norms read from where they are: outputs, statistics and all gradients are those of joined
    /// maps. An activation that no kernel has takes the joined ones.
    #[test]
    fn maps_apart_are_maps_joined() {
        for activation in [Pointwise::Relu, Pointwise::Silu] {
            let result = |fallback: bool| {
                let store = VarStore::new(3, DType::F64, &Device::Cpu);
                let block = dense(&store, activation);
                assert_eq!(block.reader.first_on_concat().is_some(), activation == Pointwise::Relu);
                let xs = Var::from_tensor(&numbers("x", &[3, 3, 5, 7])).unwrap();
                let run = || {
                    let ys = tape::recorded(&xs, true, |xs| block.forward_t(xs, true)).unwrap();
                    let loss = (&ys * numbers("upstream", ys.dims())).unwrap().sum_all().unwrap();
                    let grads = loss.backward().unwrap();
                    let vars = store.parameters().into_iter().map(|(_, var)| var).chain([xs.clone()]);
                    let mut out: Vec<Tensor> = vars.map(|var| grads.get(&var).unwrap().clone()).collect();
                    out.push(ys.detach());
                    out.extend(store.buffers().into_iter().map(|(_, var)| var.as_detached_tensor()));
                    out.push(block.forward_t(&xs.as_detached_tensor(), false).unwrap());
                    out
                };
                if fallback { with_fallback(run) } else { run() }
            };
            let (got, want) = (result(false), result(true));
            assert_eq!(got.len(), want.len());
            for (i, (a, b)) in got.iter().zip(&want).enumerate() {
                let error = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
                assert!(error < 1e-11, "{activation:?}, result {i}: {error}");
            }
        }
    }

    /// Layers that begin with a norm and a convolution of single taps are one operation in mixed precision: outputs,
    /// running statistics and all gradients are as far from f64 as where norm and convolution are two, and evaluation has
    /// the same bits whether the weights are laid out anew or not.
    #[test]
    fn bottleneck_layers_of_mixed_precision_are_those_of_f64() -> Result<()> {
        let build = |store: &VarStore, (c, wide, grown): (usize, usize, usize), apart: bool| -> Result<DenseBlock> {
            let unit = |name: &str, c: usize| -> Result<Sequential> {
                let vb = store.root().pp(name);
                let norm = |c: usize, vb| {
                    let init = Init::Uniform { lo: 0.5, hi: 1.5 };
                    BatchNorm::with(c, BatchNormConfig { weight_init: init, eps: 1e-2, ..Default::default() }, vb)
                };
                let conv = |from, to, config: Conv2dConfig, vb| Conv2d::new(from, to, config.no_bias(), vb);
                let first = conv(c, wide, Conv2dConfig::new(1), vb.pp("conv1"))?;
                let middle = seq![first, norm(wide, vb.pp("norm2"))?, Pointwise::Relu];
                // A block with a name is not spliced in.
                let middle = if apart { middle.block("Middle", &vb) } else { middle };
                let last = conv(wide, grown, Conv2dConfig::new(3).padding(1), vb.pp("conv2"))?;
                Ok(seq![norm(c, vb.pp("norm1"))?, Pointwise::Relu, middle, last])
            };
            let layers = (0..3).map(|i| unit(&format!("layer{i}"), c + i * grown)).collect::<Result<Vec<_>>>()?;
            Ok(DenseBlock::new(layers, unit("reader", c + 3 * grown)?, "block"))
        };
        for (dims, wide, grown) in [([3, 5, 7, 6], 7, 3), ([6, 64, 9, 8], 128, 32)] {
            let run = |weights: DType, maps: DType, apart: bool| -> Result<Vec<Tensor>> {
                let store = VarStore::new(3, weights, &Device::Cpu);
                let block = build(&store, (dims[1], wide, grown), apart)?;
                let xs = numbers("x", &dims).to_dtype(DType::BF16)?.to_dtype(weights)?;
                let xs = Var::from_tensor(&tape::to_dtype(&xs, maps)?)?;
                let loss = |xs: &Tensor| {
                    let ys = block.forward_t(xs, true)?;
                    let upstream = numbers("upstream", ys.dims()).to_dtype(DType::BF16)?.to_dtype(weights)?;
                    tape::foreign_op(&[&ys], |ys| (ys[0].to_dtype(weights)? * &upstream)?.sum_all())
                };
                let (_, grads) = tape::value_and_grad(&xs, |xs| tape::recorded(xs, true, loss))?;
                let vars = store.parameters().into_iter().map(|(_, var)| var).chain([xs.clone()]);
                let mut all: Vec<Tensor> = vars.map(|var| grads.get(&var).expect("a gradient").clone()).collect();
                all.extend(store.buffers().into_iter().map(|(_, var)| var.as_detached_tensor()));
                let xs = xs.as_detached_tensor();
                let ys = block.forward_t(&xs, false)?;
                if maps == DType::BF16 {
                    let bits = |ys: &Tensor| ys.flatten_all()?.to_vec1::<half::bf16>();
                    pass::with_fixed_weights(|| -> Result<()> {
                        for _ in 0..2 {
                            assert_eq!(bits(&block.forward_t(&xs, false)?)?, bits(&ys)?);
                        }
                        Ok(())
                    })?;
                }
                all.push(ys);
                all.iter().map(|xs| xs.to_dtype(DType::F64)).collect()
            };
            let want = run(DType::F64, DType::F64, true)?;
            let (got, apart) = (run(DType::F32, DType::BF16, false)?, run(DType::F32, DType::BF16, true)?);
            for (i, ((got, apart), want)) in got.iter().zip(&apart).zip(&want).enumerate() {
                let size = |xs: &Tensor| xs.sqr()?.sum_all()?.to_scalar::<f64>().map(f64::sqrt);
                let [error, of_two] = [size(&(got - want)?)?, size(&(apart - want)?)?];
                let size = size(want)?;
                assert!(
                    error <= 1.5 * of_two + 0.004 * size,
                    "{dims:?}, result {i} of {:?}: {error}, of two operations {of_two}, of {size}",
                    want.dims()
                );
            }
        }
        Ok(())
    }

    /// A layer whose map has another size is refused, in training and in evaluation.
    #[test]
    fn maps_of_other_sizes_are_errors_in_mixed_precision() -> Result<()> {
        let store = VarStore::new(3, DType::F32, &Device::Cpu);
        let unit = |name: &str, c: usize| -> Result<Sequential> {
            let vb = store.root().pp(name);
            let first = Conv2d::new(c, 4, Conv2dConfig::new(1).no_bias(), vb.pp("conv1"))?;
            let last = Conv2d::new(4, 2, Conv2dConfig::new(3).no_bias(), vb.pp("conv2"))?;
            let norms = [BatchNorm::new(c, vb.pp("norm1"))?, BatchNorm::new(4, vb.pp("norm2"))?];
            let [norm1, norm2] = norms;
            Ok(seq![norm1, Pointwise::Relu, first, norm2, Pointwise::Relu, last])
        };
        let block = DenseBlock::new(vec![unit("a", 3)?, unit("b", 5)?], unit("c", 7)?, "block");
        let xs = tape::to_dtype(&numbers("x", &[2, 3, 5, 5]).to_dtype(DType::F32)?, DType::BF16)?;
        for train in [false, true] {
            let run = || tape::recorded(&xs, train, |xs| block.forward_t(xs, train));
            let error = run().expect_err("maps of two sizes").to_string();
            assert!(error.contains("[2, 3, 5, 5] and [2, 2, 3, 3] cannot stand side by side"), "{error}");
        }
        Ok(())
    }

    /// Whether somebody collects the stages or not, evaluation gives the same bits.
    #[test]
    fn a_watched_block_evaluates_to_the_same_bits() -> Result<()> {
        let block = dense(&VarStore::new(3, DType::F32, &Device::Cpu), Pointwise::Relu);
        let xs = numbers("x", &[2, 3, 3, 3]).to_dtype(DType::F32)?;
        let mut watched = None;
        let stages = trace::stages(|| {
            let ys = block.forward_t(&xs, false)?;
            watched = Some(ys.clone());
            Ok(ys)
        })?;
        assert_eq!((stages.len(), stages[0].0.as_str(), stages[0].1.dims()), (1, "block", &[2, 21, 3, 3][..]));
        let values = |ys: &Tensor| ys.flatten_all()?.to_vec1::<f32>();
        assert_eq!(values(&watched.unwrap())?, values(&block.forward_t(&xs, false)?)?);
        Ok(())
    }
}

//! Normalisation layers.

use crate::init::Init;
use crate::ops::{BatchStats, Norm, Pointwise, batch_norm_act, batch_stats, layer_norm};
use crate::trace;
use crate::vars::{BatchNormSettings, VarBuilder, weight_for};
use candle_core::{Result, Shape, Tensor, Var, bail};
use candle_nn::ModuleT;

/// How a [`BatchNorm`] is made; the defaults are `torch.nn.BatchNorm2d`'s.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchNormConfig {
    /// Added to the variance before its root.
    pub eps: f64,
    /// Weight of the new batch in the running statistics, in PyTorch's sense (Keras calls 1 - this its momentum).
    pub momentum: f64,
    /// Whether a weight and a bias follow the normalisation.
    pub affine: bool,
    /// What the weight starts at; 0 for the last norm of a residual branch makes the block start as the identity.
    pub weight_init: Init,
}

impl Default for BatchNormConfig {
    fn default() -> Self {
        Self { eps: 1e-5, momentum: 0.1, affine: true, weight_init: Init::ONES }
    }
}

/// Batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167) over (b, c) or (b, c, h, w), channel by channel:
/// y = (x - μ) / √(σ² + eps) · weight + bias.
///
/// In training μ and σ² are the batch's, and the running statistics move: r ← (1 - momentum) · r + momentum · new, with
/// the **unbiased** variance, as in PyTorch. In evaluation they are the running ones. The store may change all of that:
/// see [`BatchNormSettings`].
///
/// Keys: `weight`, `bias` (if affine), `running_mean`, `running_var`, each (c).
#[derive(Debug, Clone)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_var: Var,
    /// Mean 0 and variance 1, which stand for all statistics where nothing is normalised.
    constants: Option<(Tensor, Tensor)>,
    config: BatchNormConfig,
    path: String,
}

impl BatchNorm {
    /// With the default configuration.
    ///
    /// # Errors
    /// A key that is taken already.
    pub fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        Self::with(channels, BatchNormConfig::default(), vb)
    }

    /// With `config`, and what the store's [`BatchNormSettings`] put over it.
    ///
    /// # Errors
    /// A key that is taken already.
    pub fn with(channels: usize, config: BatchNormConfig, vb: VarBuilder) -> Result<Self> {
        let BatchNormSettings { momentum, eps, normalize } = vb.batch_norm();
        let mut config = config;
        config.momentum = momentum.unwrap_or(config.momentum);
        config.eps = eps.unwrap_or(config.eps);
        let mut constants = None;
        if !normalize {
            let zeros = Tensor::zeros(channels, vb.dtype(), vb.device())?;
            constants = Some((zeros.clone(), zeros.ones_like()?));
            config.eps = 0.0;
        }
        let (weight, bias) = if config.affine {
            (vb.param(channels, "weight", config.weight_init)?, vb.param(channels, "bias", Init::ZEROS)?)
        } else {
            let ones = Tensor::ones(channels, vb.dtype(), vb.device())?;
            (ones.clone(), ones.zeros_like()?)
        };
        let running_mean = vb.buffer(channels, "running_mean", Init::ZEROS)?;
        let running_var = vb.buffer(channels, "running_var", Init::ONES)?;
        Ok(Self { weight, bias, running_mean, running_var, constants, config, path: vb.path().to_string() })
    }

    fn update(&self, running: &Var, batch: &Tensor) -> Result<()> {
        let momentum = self.config.momentum;
        let batch = batch.to_dtype(running.dtype())?;
        running.set(&((running.as_detached_tensor() * (1.0 - momentum))? + (batch * momentum)?)?)
    }
}

impl BatchNorm {
    /// Whether it computes with statistics at all.
    pub(crate) fn normalizes(&self) -> bool {
        self.constants.is_none()
    }

    /// The running statistics or what stands for them, and the weights as they are.
    pub(crate) fn running(&self) -> Norm<'_> {
        let (mean, var) = match &self.constants {
            Some((mean, var)) => (mean, var),
            None => (self.running_mean.as_tensor(), self.running_var.as_tensor()),
        };
        Norm { weight: &self.weight, bias: &self.bias, mean, var, eps: self.config.eps, through_stats: false }
    }

    /// Moves the running statistics towards those of a batch of shape `dims`: called when its output has been computed, so that a
    /// call that is refused leaves them where they were.
    pub(crate) fn update_running_stats(&self, stats: &BatchStats, dims: &[usize]) -> Result<()> {
        if stats.count < 2 {
            let path = if self.path.is_empty() { "batch_norm" } else { &self.path };
            bail!(
                "{path}: training needs more than one value per channel, got input {dims:?}; use a larger batch, or drop the \
                 last one of the epoch if it holds a single image"
            )
        }
        self.update(&self.running_mean, &stats.mean)?;
        let unbiased = stats.count as f64 / (stats.count - 1) as f64;
        self.update(&self.running_var, &(&stats.var * unbiased)?)
    }

    /// Weight and bias.
    pub(crate) fn weights(&self, train: bool) -> (Tensor, Tensor) {
        (weight_for(&self.weight, train), weight_for(&self.bias, train))
    }

    /// The normalisation by a batch's own statistics.
    pub(crate) fn of_batch<'a>(&self, weight: &'a Tensor, bias: &'a Tensor, stats: &'a BatchStats) -> Norm<'a> {
        Norm { weight, bias, mean: &stats.mean, var: &stats.var, eps: self.config.eps, through_stats: true }
    }

    /// The normalisation, then an activation.
    pub(crate) fn normalize(&self, xs: &Tensor, activation: Option<Pointwise>, train: bool) -> Result<Tensor> {
        let (weight, bias) = self.weights(train);
        if !train || !self.normalizes() {
            return batch_norm_act(xs, &Norm { weight: &weight, bias: &bias, ..self.running() }, activation);
        }
        let stats = batch_stats(xs)?;
        let ys = batch_norm_act(xs, &self.of_batch(&weight, &bias, &stats), activation)?;
        self.update_running_stats(&stats, xs.dims())?;
        Ok(ys)
    }
}

impl ModuleT for BatchNorm {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let weights = self.config.affine.then_some([Some(&self.weight), Some(&self.bias)]);
        let weights = weights.as_ref().map_or(&[][..], |weights| weights);
        let detail = || if self.normalizes() { String::new() } else { "off".to_string() };
        trace::layer("BatchNorm", &self.path, weights, detail, &[xs], || self.normalize(xs, None, train))
    }
}

/// Layer normalisation (Ba, Kiros and Hinton 2016, arXiv:1607.06450) over the last dimensions, sample by sample and place by
/// place: y = (x - μ) / √(σ² + eps) · weight + bias, with the mean and the biased variance of those dimensions.
///
/// Keys: `weight`, `bias`, of the normalised shape.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{LayerNorm, ModuleT, VarStore};
/// let norm = LayerNorm::new(2, 1e-5, VarStore::new(0, DType::F32, &Device::Cpu).root())?;
/// let ys = norm.forward_t(&Tensor::new(&[[1f32, 3.]], &Device::Cpu)?, false)?.to_vec2::<f32>()?;
/// assert!((ys[0][0] + 1.0).abs() < 1e-4 && (ys[0][1] - 1.0).abs() < 1e-4);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
    path: String,
}

impl LayerNorm {
    /// Over the last dimensions, which have the shape `normalized`: a number for the last one, a tuple for several.
    ///
    /// # Errors
    /// A key that is taken already.
    pub fn new(normalized: impl Into<Shape>, eps: f64, vb: VarBuilder) -> Result<Self> {
        let shape = normalized.into();
        let weight = vb.param(shape.clone(), "weight", Init::ONES)?;
        Ok(Self { weight, bias: vb.param(shape, "bias", Init::ZEROS)?, eps, path: vb.path().to_string() })
    }

    /// Weight, bias and ε.
    pub(crate) fn parts(&self, train: bool) -> ((Tensor, Tensor), f64) {
        ((weight_for(&self.weight, train), weight_for(&self.bias, train)), self.eps)
    }
}

impl ModuleT for LayerNorm {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        trace::layer("LayerNorm", &self.path, &[Some(&self.weight), Some(&self.bias)], String::new, &[xs], || {
            layer_norm(xs, &weight_for(&self.weight, train), &weight_for(&self.bias, train), self.eps)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Conv2dParams, with_fallback};
    use crate::testing::{distance, numbers};
    use crate::{Conv2d, Conv2dConfig, Layer, Residual, Sequential, VarStore, activate, seq, tape};
    use candle_core::{DType, Device};
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
        for (activation, with_skip) in [
            (Some(Pointwise::Relu), true),
            (Some(Pointwise::Relu6), false),
            (Some(Pointwise::Silu), true),
            (None, false),
        ] {
            let (store, unit) = unit(OFF, BatchNormConfig::default());
            let xs = Var::from_tensor(&numbers("x", &[2, 3, 6, 5])).unwrap();
            let skip = Var::from_tensor(&numbers("skip", &[2, 4, 6, 5])).unwrap();
            let behind: Vec<Arc<dyn Layer>> = activation.into_iter().map(|a| Arc::new(a) as Arc<dyn Layer>).collect();
            let block = |unit: &Sequential| match with_skip {
                true => seq![Residual::new(unit.clone()).shortcut(seq![Given(skip.as_tensor().clone())])],
                false => unit.clone(),
            };
            let net = match (with_skip, activation) {
                (true, Some(activation)) => seq![
                    Residual::new(unit.clone()).shortcut(seq![Given(skip.as_tensor().clone())]).activation(activation)
                ],
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
}

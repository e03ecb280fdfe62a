//! Optimizers: SGD, Adam and AdamW with PyTorch's update rules, parameter groups, and state that goes into checkpoints.
//!
//! A parameter without a gradient in a step is left alone, with its state, as PyTorch does. The arithmetic itself
//! stands in [`zoo_core::ops::optim`].

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use zoo_core::memory;
use zoo_core::ops::optim::{AdamStep, SgdStep, adam_step, global_norm, sgd_step};

/// What the training loop asks of an optimizer.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{Init, VarStore};
/// use zoo_train::optim::{Group, Optimizer, Sgd};
///
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let w = store.root().param(2, "w", Init::ONES)?;
/// let mut sgd = Sgd::new(vec![Group::new(store.parameters(), 0.0)], 0.1).momentum(0.9);
/// let loss = (w * Tensor::new(&[1f32, 2.0], &Device::Cpu)?)?.sum_all()?;
/// sgd.step(&loss.backward()?)?;
/// assert_eq!(store.parameters()[0].1.to_vec1::<f32>()?, [0.9, 0.8]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub trait Optimizer: Send {
    /// The learning rate, before the groups' own factors.
    fn lr(&self) -> f64;

    /// Sets the learning rate of the steps that follow.
    fn set_lr(&mut self, lr: f64);

    /// Moves every parameter that has a gradient in `grads`.
    ///
    /// # Errors
    /// A gradient whose shape or type is not its parameter's, or what the device reports.
    fn step(&mut self, grads: &GradStore) -> Result<()>;

    /// A copy of the state, under `PARAMETER.NAME`, with PyTorch's names: `step`, and `momentum_buffer`, or `exp_avg`
    /// and `exp_avg_sq`. Parameters that never had a gradient have none.
    ///
    /// # Errors
    /// What the device reports.
    fn state(&self) -> Result<BTreeMap<String, Tensor>>;

    /// Puts back what [`Optimizer::state`] gave; the steps that follow are then the same bit by bit.
    ///
    /// # Errors
    /// State that belongs to no parameter, misses a part, or has another shape: nothing is loaded then.
    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()>;
}

/// Parameters that share their settings.
#[derive(Debug, Clone)]
pub struct Group {
    parameters: Vec<(String, Var)>,
    weight_decay: f64,
    lr_factor: f64,
}

impl Group {
    /// Parameters with their keys, as [`zoo_core::VarStore::parameters`] gives them.
    pub fn new(parameters: Vec<(String, Var)>, weight_decay: f64) -> Self {
        Self { parameters, weight_decay, lr_factor: 1.0 }
    }

    /// Trains this group at a multiple of the optimizer's learning rate: a small one for a pretrained trunk.
    pub fn lr_factor(self, lr_factor: f64) -> Self {
        Self { lr_factor, ..self }
    }

    /// Two groups: weight decay on matrices and convolutions, none on biases and the scales of normalisations.
    pub fn decay_weights_only(parameters: Vec<(String, Var)>, weight_decay: f64) -> Vec<Self> {
        let (weights, others) = parameters.into_iter().partition(|(_, var)| var.rank() > 1);
        vec![Self::new(weights, weight_decay), Self::new(others, 0.0)]
    }
}

/// Stochastic gradient descent, with momentum (dampening 0) and Nesterov's form of it.
#[derive(Debug)]
pub struct Sgd {
    slots: Slots,
    lr: f64,
    momentum: f64,
    nesterov: bool,
}

impl Sgd {
    /// Without momentum.
    pub fn new(groups: Vec<Group>, lr: f64) -> Self {
        Self { slots: Slots::new(groups, &[]), lr, momentum: 0.0, nesterov: false }
    }

    /// With momentum, before the first step.
    pub fn momentum(mut self, momentum: f64) -> Self {
        self.momentum = momentum;
        self.slots.names = if momentum == 0.0 { &[] } else { &["momentum_buffer"] };
        self
    }

    /// Looks ahead along the momentum.
    pub fn nesterov(self, nesterov: bool) -> Self {
        Self { nesterov, ..self }
    }
}

impl Optimizer for Sgd {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn set_lr(&mut self, lr: f64) {
        self.lr = lr;
    }

    fn step(&mut self, grads: &GradStore) -> Result<()> {
        let (lr, momentum, nesterov) = (self.lr, self.momentum, self.nesterov);
        self.slots.step(grads, |slot, grad| {
            let step = SgdStep { lr: lr * slot.lr_factor, momentum, nesterov, weight_decay: slot.weight_decay };
            sgd_step(&slot.var, grad, slot.state.first(), &step)
        })
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        self.slots.save()
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        self.slots.load(state)
    }
}

/// Adam (Kingma and Ba 2014, arXiv 1412.6980) with its weight decay as an L2 penalty, or AdamW (Loshchilov and Hutter
/// 2017, arXiv 1711.05101), which shrinks the parameter itself.
#[derive(Debug)]
pub struct Adam {
    slots: Slots,
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    decoupled: bool,
}

impl Adam {
    /// Adam with β 0.9 and 0.999 and ε 1e-8.
    pub fn new(groups: Vec<Group>, lr: f64) -> Self {
        let slots = Slots::new(groups, &["exp_avg", "exp_avg_sq"]);
        Self { slots, lr, betas: [0.9, 0.999], eps: 1e-8, decoupled: false }
    }

    /// AdamW with the same constants.
    pub fn decoupled(groups: Vec<Group>, lr: f64) -> Self {
        Self { decoupled: true, ..Self::new(groups, lr) }
    }

    /// Other decays of the moments.
    pub fn betas(self, betas: [f64; 2]) -> Self {
        Self { betas, ..self }
    }

    /// Another ε.
    pub fn eps(self, eps: f64) -> Self {
        Self { eps, ..self }
    }
}

impl Optimizer for Adam {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn set_lr(&mut self, lr: f64) {
        self.lr = lr;
    }

    fn step(&mut self, grads: &GradStore) -> Result<()> {
        let (lr, [beta1, beta2], eps, decoupled) = (self.lr, self.betas, self.eps, self.decoupled);
        self.slots.step(grads, |slot, grad| {
            let (lr, weight_decay, step) = (lr * slot.lr_factor, slot.weight_decay, slot.steps);
            let step = AdamStep { lr, beta1, beta2, eps, weight_decay, decoupled, step };
            adam_step(&slot.var, grad, &slot.state[0], &slot.state[1], &step)
        })
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        self.slots.save()
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        self.slots.load(state)
    }
}

/// Which optimizer, as a recipe states it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum OptimizerConfig {
    /// [`Sgd`].
    Sgd {
        /// 0 for none.
        momentum: f64,
        /// Looks ahead along the momentum.
        nesterov: bool,
        /// L2 penalty.
        weight_decay: f64,
    },
    /// [`Adam`] with L2 weight decay.
    Adam {
        /// Decays of the two moments.
        betas: [f64; 2],
        /// ε.
        eps: f64,
        /// L2 penalty.
        weight_decay: f64,
    },
    /// [`Adam`] with decoupled weight decay.
    AdamW {
        /// Decays of the two moments.
        betas: [f64; 2],
        /// ε.
        eps: f64,
        /// Share of a parameter that a step at learning rate 1 would take off.
        weight_decay: f64,
    },
}

impl OptimizerConfig {
    /// The kind of this name, as a recipe writes it, with PyTorch's constants and, of SGD, the usual momentum; without
    /// weight decay but AdamW's own.
    ///
    /// ```
    /// use zoo_train::optim::OptimizerConfig;
    /// let adamw = OptimizerConfig::AdamW { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01 };
    /// assert_eq!(OptimizerConfig::of_kind("adamw"), Some(adamw));
    /// assert_eq!(OptimizerConfig::of_kind("adamm"), None);
    /// ```
    pub fn of_kind(name: &str) -> Option<Self> {
        let (betas, eps) = ([0.9, 0.999], 1e-8);
        Some(match name {
            "sgd" => Self::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 },
            "adam" => Self::Adam { betas, eps, weight_decay: 0.0 },
            "adamw" => Self::AdamW { betas, eps, weight_decay: 0.01 },
            _ => return None,
        })
    }

    /// How many tensors of its own it keeps for each parameter.
    pub fn states(&self) -> usize {
        match *self {
            Self::Sgd { momentum, .. } => usize::from(momentum != 0.0),
            Self::Adam { .. } | Self::AdamW { .. } => 2,
        }
    }

    /// Builds it over `parameters`. With `decay_all` weight decay covers biases and normalisation scales too, which is
    /// PyTorch's default and what the published CIFAR-10 recipes did.
    pub fn build(&self, parameters: Vec<(String, Var)>, lr: f64, decay_all: bool) -> Box<dyn Optimizer> {
        let groups = |weight_decay| match decay_all {
            true => vec![Group::new(parameters, weight_decay)],
            false => Group::decay_weights_only(parameters, weight_decay),
        };
        match *self {
            Self::Sgd { momentum, nesterov, weight_decay } => {
                Box::new(Sgd::new(groups(weight_decay), lr).momentum(momentum).nesterov(nesterov))
            }
            Self::Adam { betas, eps, weight_decay } => {
                Box::new(Adam::new(groups(weight_decay), lr).betas(betas).eps(eps))
            }
            Self::AdamW { betas, eps, weight_decay } => {
                Box::new(Adam::decoupled(groups(weight_decay), lr).betas(betas).eps(eps))
            }
        }
    }
}

/// Scales the gradients of `parameters` so that their common L2 norm is at most `max_norm`, and returns the norm that
/// they had (PyTorch's `clip_grad_norm_`: the factor is max_norm / (norm + 1e-6)). A norm that is not finite is
/// returned as it is.
///
/// # Errors
/// What the device reports.
pub fn clip_grad_norm(parameters: &[(String, Var)], grads: &mut GradStore, max_norm: f64) -> Result<f64> {
    let norm = grad_norm(parameters, grads)?;
    let factor = max_norm / (norm + 1e-6);
    if factor < 1.0 {
        for (_, var) in parameters {
            if let Some(grad) = grads.remove(var) {
                grads.insert(var, (grad.detach() * factor)?);
            }
        }
    }
    Ok(norm)
}

/// The common L2 norm of the gradients of `parameters`.
///
/// # Errors
/// What the device reports.
pub fn grad_norm(parameters: &[(String, Var)], grads: &GradStore) -> Result<f64> {
    global_norm(parameters.iter().filter_map(|(_, var)| grads.get(var)))
}

/// The parameters of an optimizer, each with its settings and its state.
#[derive(Debug)]
struct Slots {
    list: Vec<Slot>,
    /// What the state's tensors are called.
    names: &'static [&'static str],
}

#[derive(Debug)]
struct Slot {
    key: String,
    var: Var,
    weight_decay: f64,
    lr_factor: f64,
    /// Steps in which this parameter had a gradient.
    steps: u64,
    /// One tensor a name, made at the first gradient.
    state: Vec<Var>,
}

impl Slots {
    fn new(groups: Vec<Group>, names: &'static [&'static str]) -> Self {
        let slots = |Group { parameters, weight_decay, lr_factor }: Group| {
            parameters.into_iter().map(move |(key, var)| {
                let (steps, state) = (0, Vec::new());
                Slot { key, var, weight_decay, lr_factor, steps, state }
            })
        };
        Self { list: groups.into_iter().flat_map(slots).collect(), names }
    }

    fn step(&mut self, grads: &GradStore, mut update: impl FnMut(&Slot, &Tensor) -> Result<()>) -> Result<()> {
        for slot in &mut self.list {
            let Some(grad) = grads.get(&slot.var) else { continue };
            if slot.state.len() < self.names.len() {
                let zeros = || Var::zeros(slot.var.shape(), slot.var.dtype(), slot.var.device());
                slot.state = memory::lasting(|| self.names.iter().map(|_| zeros()).collect::<Result<_>>())?;
            }
            slot.steps += 1;
            update(slot, grad)?;
        }
        Ok(())
    }

    fn save(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut all = BTreeMap::new();
        for slot in self.list.iter().filter(|slot| slot.steps > 0) {
            let steps = i64::try_from(slot.steps).map_err(candle_core::Error::wrap)?;
            all.insert(format!("{}.step", slot.key), Tensor::new(steps, &Device::Cpu)?);
            for (name, var) in self.names.iter().zip(&slot.state) {
                all.insert(format!("{}.{name}", slot.key), var.copy()?.detach());
            }
        }
        Ok(all)
    }

    fn load(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let mut left: BTreeMap<&str, &Tensor> = state.iter().map(|(key, tensor)| (key.as_str(), tensor)).collect();
        let mut loaded = Vec::with_capacity(self.list.len());
        for slot in &self.list {
            let Some(steps) = left.remove(format!("{}.step", slot.key).as_str()) else {
                loaded.push((0, Vec::new()));
                continue;
            };
            let steps = steps.to_dtype(DType::I64)?.to_scalar::<i64>()?;
            let mut vars = Vec::with_capacity(self.names.len());
            for name in self.names {
                let key = format!("{}.{name}", slot.key);
                let Some(tensor) = left.remove(key.as_str()) else { bail!("optimizer state: `{key}` is missing") };
                if tensor.shape() != slot.var.shape() || tensor.dtype() != slot.var.dtype() {
                    let (got, want) = ((tensor.shape(), tensor.dtype()), (slot.var.shape(), slot.var.dtype()));
                    bail!("optimizer state: `{key}` is {got:?}, its parameter {want:?}")
                }
                // Detached, since a variable would be taken over as it is instead of copied.
                vars.push(Var::from_tensor(&tensor.to_device(slot.var.device())?.detach())?);
            }
            loaded.push((u64::try_from(steps).map_err(candle_core::Error::wrap)?, vars));
        }
        if !left.is_empty() {
            bail!("optimizer state: belongs to no parameter of this run: {:?}", left.into_keys().collect::<Vec<_>>())
        }
        for (slot, (steps, vars)) in self.list.iter_mut().zip(loaded) {
            (slot.steps, slot.state) = (steps, vars);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

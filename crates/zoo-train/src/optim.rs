//! Optimizers: SGD, Adam, AdamW, RMSprop and Muon with PyTorch's update rules, LAMB and Lion with timm's; parameter
//! groups, and state that goes into checkpoints.
//!
//! A parameter without a gradient in a step is left alone, with its state, as PyTorch does. The arithmetic itself
//! stands in [`zoo_core::ops::optim`].

mod config;
mod gradients;
mod lamb;
mod layer_decay;
mod lion;
mod muon;
mod rmsprop;
mod slots;

pub use config::OptimizerConfig;
pub use gradients::{accumulate, clip_grad_norm, grad_norm, scale};
pub use lamb::Lamb;
pub use layer_decay::{LayerDecay, layer_decay_groups};
pub use lion::Lion;
pub use muon::{AdjustLr, Muon};
pub use rmsprop::Rmsprop;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};
use slots::Slots;
use std::collections::BTreeMap;
use zoo_core::ops::optim::{AdamStep, SgdStep, adam_step, sgd_step};

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

    /// A copy of the state, under `PARAMETER.NAME`, with the names of PyTorch and timm: `step`, and `momentum_buffer`, or
    /// `exp_avg` and `exp_avg_sq`, and so on. Parameters that never had a gradient have none.
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

    /// The parameters, with their keys.
    pub fn parameters(&self) -> &[(String, Var)] {
        &self.parameters
    }

    /// What the optimizer's learning rate is multiplied with, and the weight decay.
    pub fn factors(&self) -> (f64, f64) {
        (self.lr_factor, self.weight_decay)
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
        self.slots.keep(if momentum == 0.0 { &[] } else { &["momentum_buffer"] });
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
            sgd_step(&slot.var, grad, slot.state("momentum_buffer"), &step)
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

#[cfg(test)]
mod more_tests;
#[cfg(test)]
mod tests;

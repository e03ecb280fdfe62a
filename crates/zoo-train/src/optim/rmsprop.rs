//! RMSprop.

use super::slots::Slots;
use super::{Group, Optimizer};
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};
use std::collections::BTreeMap;
use zoo_core::ops::optim::{RmspropStep, rmsprop_step};

/// RMSprop (Tieleman and Hinton 2012), with momentum and centred on request, as `torch.optim.RMSprop`: gradients over the
/// root of their mean square. Its state is `square_avg`, `grad_avg` where it is centred, and `momentum_buffer`.
#[derive(Debug)]
pub struct Rmsprop {
    slots: Slots,
    lr: f64,
    alpha: f64,
    eps: f64,
    momentum: f64,
    centered: bool,
}

impl Rmsprop {
    /// With α 0.99 and ε 1e-8, neither momentum nor centred.
    pub fn new(groups: Vec<Group>, lr: f64) -> Self {
        let slots = Slots::new(groups, &["square_avg"]);
        Self { slots, lr, alpha: 0.99, eps: 1e-8, momentum: 0.0, centered: false }
    }

    /// Another decay of the mean square.
    pub fn alpha(self, alpha: f64) -> Self {
        Self { alpha, ..self }
    }

    /// Another ε.
    pub fn eps(self, eps: f64) -> Self {
        Self { eps, ..self }
    }

    /// With momentum, before the first step.
    pub fn momentum(self, momentum: f64) -> Self {
        Self { momentum, ..self }.named()
    }

    /// Divides by the deviation of the gradients, before the first step.
    pub fn centered(self, centered: bool) -> Self {
        Self { centered, ..self }.named()
    }

    fn named(mut self) -> Self {
        self.slots.keep(match (self.centered, self.momentum != 0.0) {
            (false, false) => &["square_avg"],
            (true, false) => &["square_avg", "grad_avg"],
            (false, true) => &["square_avg", "momentum_buffer"],
            (true, true) => &["square_avg", "grad_avg", "momentum_buffer"],
        });
        self
    }
}

impl Optimizer for Rmsprop {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn set_lr(&mut self, lr: f64) {
        self.lr = lr;
    }

    fn step(&mut self, grads: &GradStore) -> Result<()> {
        let (lr, alpha, eps, momentum) = (self.lr, self.alpha, self.eps, self.momentum);
        self.slots.step(grads, |slot, grad| {
            let step = RmspropStep { lr: lr * slot.lr_factor, alpha, eps, momentum, weight_decay: slot.weight_decay };
            let (mean, buffer) = (slot.state("grad_avg"), slot.state("momentum_buffer"));
            rmsprop_step(&slot.var, grad, &slot.state[0], mean, buffer, &step)
        })
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        self.slots.save()
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        self.slots.load(state)
    }
}

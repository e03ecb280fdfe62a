//! LAMB.

use super::slots::Slots;
use super::{Group, Optimizer};
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};
use std::collections::BTreeMap;
use zoo_core::ops::optim::{LambStep, global_norm, lamb_step};

/// LAMB (You et al. 2019, arXiv 1904.00962), as timm's `Lamb`: Adam's update, scaled to the norm of the parameter that it
/// moves, for large batches. Its state is `exp_avg` and `exp_avg_sq`.
///
/// A parameter without weight decay takes Adam's update as it is, unless [`Lamb::always_adapt`] says otherwise. The bias
/// corrections count the steps of the optimizer, not of each parameter.
#[derive(Debug)]
pub struct Lamb {
    slots: Slots,
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    max_grad_norm: Option<f64>,
    always_adapt: bool,
}

impl Lamb {
    /// With β 0.9 and 0.999, ε 1e-6, and gradients clipped to a common norm of 1.
    pub fn new(groups: Vec<Group>, lr: f64) -> Self {
        let slots = Slots::new(groups, &["exp_avg", "exp_avg_sq"]);
        Self { slots, lr, betas: [0.9, 0.999], eps: 1e-6, max_grad_norm: Some(1.0), always_adapt: false }
    }

    /// Other decays of the moments.
    pub fn betas(self, betas: [f64; 2]) -> Self {
        Self { betas, ..self }
    }

    /// Another ε.
    pub fn eps(self, eps: f64) -> Self {
        Self { eps, ..self }
    }

    /// The norm that all gradients together have at the most; `None` leaves them as they are.
    pub fn max_grad_norm(self, max_grad_norm: Option<f64>) -> Self {
        Self { max_grad_norm, ..self }
    }

    /// Scales the updates of parameters without weight decay too.
    pub fn always_adapt(self, always_adapt: bool) -> Self {
        Self { always_adapt, ..self }
    }
}

impl Optimizer for Lamb {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn set_lr(&mut self, lr: f64) {
        self.lr = lr;
    }

    fn step(&mut self, grads: &GradStore) -> Result<()> {
        let (lr, [beta1, beta2], eps, always_adapt) = (self.lr, self.betas, self.eps, self.always_adapt);
        let clip = match self.max_grad_norm {
            None => 1.0,
            Some(most) => {
                let above = global_norm(self.slots.gradients(grads))? / most;
                // A norm that is not a number goes on: the step is not to look as if nothing was wrong.
                if above < 1.0 { 1.0 } else { above }
            }
        };
        self.slots.step_together(grads, |slot, grad| {
            let (lr, weight_decay, step) = (lr * slot.lr_factor, slot.weight_decay, slot.steps);
            let step = LambStep { lr, beta1, beta2, eps, weight_decay, clip, always_adapt, step };
            lamb_step(&slot.var, grad, &slot.state[0], &slot.state[1], &step)
        })
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        self.slots.save()
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        self.slots.load(state)
    }
}

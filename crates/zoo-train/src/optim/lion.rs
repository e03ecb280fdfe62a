//! Lion.

use super::slots::Slots;
use super::{Group, Optimizer};
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};
use std::collections::BTreeMap;
use zoo_core::ops::optim::{LionStep, lion_step};

/// Lion (Chen et al. 2023, arXiv 2302.06675), as timm's: every parameter moves by the learning rate, in the direction of
/// the sign of a momentum, so that the rate wants to be three to ten times smaller than AdamW's and the weight decay as
/// much larger. Its state is `exp_avg`.
#[derive(Debug)]
pub struct Lion {
    slots: Slots,
    lr: f64,
    betas: [f64; 2],
}

impl Lion {
    /// With β 0.9 in the update and 0.99 in what is kept.
    pub fn new(groups: Vec<Group>, lr: f64) -> Self {
        Self { slots: Slots::new(groups, &["exp_avg"]), lr, betas: [0.9, 0.99] }
    }

    /// Other shares of the momentum.
    pub fn betas(self, betas: [f64; 2]) -> Self {
        Self { betas, ..self }
    }
}

impl Optimizer for Lion {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn set_lr(&mut self, lr: f64) {
        self.lr = lr;
    }

    fn step(&mut self, grads: &GradStore) -> Result<()> {
        let (lr, [beta1, beta2]) = (self.lr, self.betas);
        self.slots.step(grads, |slot, grad| {
            let step = LionStep { lr: lr * slot.lr_factor, beta1, beta2, weight_decay: slot.weight_decay };
            lion_step(&slot.var, grad, &slot.state[0], &step)
        })
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        self.slots.save()
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        self.slots.load(state)
    }
}

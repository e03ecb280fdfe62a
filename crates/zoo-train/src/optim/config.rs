//! Which optimizer a recipe asks for.

use super::{Adam, AdjustLr, Group, Lamb, Lion, Muon, Optimizer, Rmsprop, Sgd};
use candle_core::Var;
use serde::{Deserialize, Serialize};

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
    /// [`Rmsprop`].
    Rmsprop {
        /// Decay of the mean square.
        alpha: f64,
        /// ε.
        eps: f64,
        /// 0 for none.
        momentum: f64,
        /// Divides by the deviation instead of the root of the mean square.
        centered: bool,
        /// L2 penalty.
        weight_decay: f64,
    },
    /// [`Lamb`].
    Lamb {
        /// Decays of the two moments.
        betas: [f64; 2],
        /// ε.
        eps: f64,
        /// The gradients' common norm at the most; `None` for any.
        max_grad_norm: Option<f64>,
        /// Share of a parameter in its update, before that is scaled.
        weight_decay: f64,
    },
    /// [`Lion`].
    Lion {
        /// Shares of the momentum in the update and in what is kept.
        betas: [f64; 2],
        /// Share of a parameter that a step at learning rate 1 would take off.
        weight_decay: f64,
    },
    /// [`Muon`] on matrices, AdamW on everything else; [`Muon::of_groups`] says which is which.
    Muon {
        /// Share of the momentum that is kept.
        momentum: f64,
        /// Looks ahead along the momentum.
        nesterov: bool,
        /// How a step's size depends on the matrix's shape.
        adjust_lr_fn: AdjustLr,
        /// Share of a parameter that a step at learning rate 1 would take off.
        weight_decay: f64,
        /// AdamW's learning rate, as a multiple of Muon's.
        adamw_lr_factor: f64,
        /// Decays of AdamW's two moments.
        betas: [f64; 2],
        /// AdamW's ε.
        eps: f64,
    },
}

impl OptimizerConfig {
    /// The kind of this name, as a recipe writes it, with the constants of PyTorch or of its paper and, of SGD, the usual
    /// momentum; without weight decay but AdamW's own.
    ///
    /// ```
    /// use zoo_train::optim::OptimizerConfig;
    /// let adamw = OptimizerConfig::AdamW { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01 };
    /// assert_eq!(OptimizerConfig::of_kind("adamw"), Some(adamw));
    /// assert_eq!(OptimizerConfig::of_kind("adamm"), None);
    /// ```
    pub fn of_kind(name: &str) -> Option<Self> {
        let (betas, eps, weight_decay) = ([0.9, 0.999], 1e-8, 0.0);
        Some(match name {
            "sgd" => Self::Sgd { momentum: 0.9, nesterov: false, weight_decay },
            "adam" => Self::Adam { betas, eps, weight_decay },
            "adamw" => Self::AdamW { betas, eps, weight_decay: 0.01 },
            "rmsprop" => Self::Rmsprop { alpha: 0.99, eps, momentum: 0.0, centered: false, weight_decay },
            "lamb" => Self::Lamb { betas, eps: 1e-6, max_grad_norm: Some(1.0), weight_decay },
            "lion" => Self::Lion { betas: [0.9, 0.99], weight_decay },
            "muon" => Self::Muon {
                momentum: 0.95,
                nesterov: true,
                adjust_lr_fn: AdjustLr::MatchRmsAdamW,
                weight_decay,
                adamw_lr_factor: 1.0,
                betas: [0.9, 0.95],
                eps,
            },
            _ => return None,
        })
    }

    /// How many tensors of its own it keeps for each parameter, at the most.
    pub fn states(&self) -> usize {
        match *self {
            Self::Sgd { momentum, .. } => usize::from(momentum != 0.0),
            Self::Adam { .. } | Self::AdamW { .. } | Self::Lamb { .. } => 2,
            Self::Rmsprop { momentum, centered, .. } => 1 + usize::from(centered) + usize::from(momentum != 0.0),
            Self::Lion { .. } => 1,
            // AdamW's; matrices have one.
            Self::Muon { .. } => 2,
        }
    }

    /// Builds it over `parameters`. With `decay_all` weight decay covers biases and normalisation scales too, which is
    /// PyTorch's default and what the published CIFAR-10 recipes did.
    pub fn build(&self, parameters: Vec<(String, Var)>, lr: f64, decay_all: bool) -> Box<dyn Optimizer> {
        let weight_decay = self.weight_decay();
        let groups = match decay_all {
            true => vec![Group::new(parameters, weight_decay)],
            false => Group::decay_weights_only(parameters, weight_decay),
        };
        self.build_groups(groups, lr)
    }

    /// Builds it over `groups`, which have weight decays of their own.
    pub fn build_groups(&self, groups: Vec<Group>, lr: f64) -> Box<dyn Optimizer> {
        match *self {
            Self::Sgd { momentum, nesterov, .. } => {
                Box::new(Sgd::new(groups, lr).momentum(momentum).nesterov(nesterov))
            }
            Self::Adam { betas, eps, .. } => Box::new(Adam::new(groups, lr).betas(betas).eps(eps)),
            Self::AdamW { betas, eps, .. } => Box::new(Adam::decoupled(groups, lr).betas(betas).eps(eps)),
            Self::Rmsprop { alpha, eps, momentum, centered, .. } => {
                Box::new(Rmsprop::new(groups, lr).alpha(alpha).eps(eps).momentum(momentum).centered(centered))
            }
            Self::Lamb { betas, eps, max_grad_norm, .. } => {
                Box::new(Lamb::new(groups, lr).betas(betas).eps(eps).max_grad_norm(max_grad_norm))
            }
            Self::Lion { betas, .. } => Box::new(Lion::new(groups, lr).betas(betas)),
            Self::Muon { momentum, nesterov, adjust_lr_fn, adamw_lr_factor, betas, eps, .. } => {
                let muon = Muon::of_groups(groups, lr).momentum(momentum).nesterov(nesterov);
                Box::new(muon.adjust_lr_fn(adjust_lr_fn).adamw(adamw_lr_factor, betas, eps))
            }
        }
    }

    /// The weight decay.
    pub fn weight_decay(&self) -> f64 {
        match *self {
            Self::Sgd { weight_decay, .. }
            | Self::Adam { weight_decay, .. }
            | Self::AdamW { weight_decay, .. }
            | Self::Rmsprop { weight_decay, .. }
            | Self::Lamb { weight_decay, .. }
            | Self::Lion { weight_decay, .. }
            | Self::Muon { weight_decay, .. } => weight_decay,
        }
    }
}

//! Muon, with AdamW for what is no matrix.

use super::slots::{Slot, Slots};
use super::{Group, Optimizer};
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use zoo_core::ops::optim::{AdamStep, MuonStep, adam_step, muon_step};

/// How the size of a step depends on the shape of the matrix (rows, columns), as `torch.optim.Muon` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdjustLr {
    /// √max(1, rows / columns): Jordan's own.
    #[serde(rename = "original")]
    Original,
    /// 0.2 · √max(rows, columns): the size of AdamW's updates, so that its learning rates and weight decays carry over (Liu
    /// et al. 2025, arXiv 2502.16982).
    #[serde(rename = "match_rms_adamw")]
    MatchRmsAdamW,
    /// √(rows / columns): the same change of the output for every shape (Bernstein 2025).
    #[serde(rename = "spectral_unclamped")]
    SpectralUnclamped,
}

impl AdjustLr {
    /// What the learning rate is multiplied with.
    pub fn ratio(self, rows: usize, columns: usize) -> f64 {
        let (rows, columns) = (rows as f64, columns as f64);
        match self {
            Self::Original => (rows / columns).max(1.0).sqrt(),
            Self::MatchRmsAdamW => 0.2 * rows.max(columns).sqrt(),
            Self::SpectralUnclamped => (rows / columns).sqrt(),
        }
    }
}

/// Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"), as `torch.optim.Muon`: the
/// momentum of a matrix, made orthogonal by five steps of Newton and Schulz's iteration. What is no matrix is trained by
/// AdamW beside it. The state of a matrix is `momentum_buffer`, that of the others `exp_avg` and `exp_avg_sq`.
///
/// Weight decay shrinks the parameter itself in both. The iteration runs in the type of the weights, where PyTorch's runs
/// in bfloat16: trajectories agree to its three digits, not to f32's.
#[derive(Debug)]
pub struct Muon {
    slots: Slots,
    lr: f64,
    momentum: f64,
    nesterov: bool,
    adjust: AdjustLr,
    adamw_lr_factor: f64,
    betas: [f64; 2],
    eps: f64,
}

/// What a matrix's state is called, which tells it from AdamW's parameters.
const MUON: &[&str] = &["momentum_buffer"];
const ADAMW: &[&str] = &["exp_avg", "exp_avg_sq"];

impl Muon {
    /// Muon on `matrices`, weights of at least two dimensions, and AdamW on `others`; with Nesterov's momentum 0.95, and
    /// AdamW's β 0.9 and 0.999 and ε 1e-8 at the same learning rate.
    pub fn new(matrices: Vec<Group>, others: Vec<Group>, lr: f64) -> Self {
        Self {
            slots: Slots::new(matrices, MUON).and(Slots::new(others, ADAMW)),
            lr,
            momentum: 0.95,
            nesterov: true,
            adjust: AdjustLr::Original,
            adamw_lr_factor: 1.0,
            betas: [0.9, 0.999],
            eps: 1e-8,
        }
    }

    /// The same, where the parameters' shapes and keys say what is a matrix. AdamW trains
    /// - what has fewer than two dimensions, and what is a vector by its shape: class tokens and position embeddings, of one
    ///   row (1, …), or weights of one column;
    /// - embeddings: weights of two dimensions whose module is called so (`embed`, `embedding`, `tok_embeddings`);
    /// - the classifier: of the weights of at least two dimensions, the last of the last group, since networks are built
    ///   from the image upwards.
    ///
    /// Muon trains the rest; a convolution's weight as the matrix (out, everything else).
    pub fn of_groups(groups: Vec<Group>, lr: f64) -> Self {
        let (matrices, others) = split(groups);
        Self::new(matrices, others, lr)
    }

    /// Another momentum.
    pub fn momentum(self, momentum: f64) -> Self {
        Self { momentum, ..self }
    }

    /// Whether it looks ahead along the momentum.
    pub fn nesterov(self, nesterov: bool) -> Self {
        Self { nesterov, ..self }
    }

    /// How the size of a step depends on the shape.
    pub fn adjust_lr_fn(self, adjust: AdjustLr) -> Self {
        Self { adjust, ..self }
    }

    /// AdamW's constants: its learning rate as a multiple of Muon's, its β and its ε.
    pub fn adamw(self, lr_factor: f64, betas: [f64; 2], eps: f64) -> Self {
        Self { adamw_lr_factor: lr_factor, betas, eps, ..self }
    }

    /// The keys of what Muon itself trains.
    pub fn matrices(&self) -> Vec<&str> {
        self.slots.list.iter().filter(|slot| is_muons(slot)).map(Slot::key).collect()
    }
}

fn is_muons(slot: &Slot) -> bool {
    slot.names() == MUON
}

/// Whether a parameter is a matrix by its shape and no embedding by its key.
fn is_matrix((key, var): &(String, Var)) -> bool {
    let module = key.rsplit('.').nth(1).unwrap_or_default();
    let is_embedding = var.rank() == 2 && module.contains("embed");
    let rows = var.dims().first().copied().unwrap_or(1);
    var.rank() > 1 && rows > 1 && var.elem_count() > rows && !is_embedding
}

/// Groups of matrices, and groups of everything else, with the settings that they had.
fn split(groups: Vec<Group>) -> (Vec<Group>, Vec<Group>) {
    let wide = groups.iter().rev().flat_map(|group| group.parameters.iter().rev()).find(|(_, var)| var.rank() > 1);
    let classifier = wide.map(|(key, _)| key.clone());
    let is_muons = |parameter: &(String, Var)| is_matrix(parameter) && Some(&parameter.0) != classifier.as_ref();
    let split = |group: Group| {
        let (own, rest) = group.parameters.iter().cloned().partition(is_muons);
        (Group { parameters: own, ..group.clone() }, Group { parameters: rest, ..group })
    };
    groups.into_iter().map(split).unzip()
}

impl Optimizer for Muon {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn set_lr(&mut self, lr: f64) {
        self.lr = lr;
    }

    fn step(&mut self, grads: &GradStore) -> Result<()> {
        let (lr, momentum, nesterov, adjust) = (self.lr, self.momentum, self.nesterov, self.adjust);
        let (adamw_lr_factor, [beta1, beta2], eps) = (self.adamw_lr_factor, self.betas, self.eps);
        self.slots.step_in_parallel(grads, |slot, grad| {
            let (lr, weight_decay, step) = (lr * slot.lr_factor, slot.weight_decay, slot.steps);
            if is_muons(slot) {
                let rows = slot.var.dims().first().copied().unwrap_or(1).max(1);
                let size = lr * adjust.ratio(rows, slot.var.elem_count() / rows);
                let step = MuonStep { lr, size, momentum, nesterov, weight_decay, ns_steps: 5 };
                return muon_step(&slot.var, grad, &slot.state[0], &step);
            }
            let lr = lr * adamw_lr_factor;
            let step = AdamStep { lr, beta1, beta2, eps, weight_decay, decoupled: true, step };
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
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use zoo_core::{ModelOptions, VarStore};

    /// On the networks of the zoo: the classifier and all vectors are AdamW's, whatever their keys are.
    #[test]
    fn the_split_finds_the_classifier_of_every_network() -> Result<()> {
        let mut looked_at = 0;
        for model in zoo::all().filter(|model| model.parameters < 15_000_000) {
            let (name, store) = (model.name, VarStore::for_loading(DType::F32, &Device::Cpu));
            let net = model.build(&ModelOptions::default(), store.root())?;
            let classifier = format!("{}.weight", net.classifier().path());
            let all = store.parameters();
            // A squeeze to a single channel is a vector, as tokens and positions are.
            let is_wide = |var: &Var| var.rank() > 1 && var.dims()[0] > 1 && var.elem_count() > var.dims()[0];
            let wide: Vec<&str> = all.iter().filter(|(_, var)| is_wide(var)).map(|(key, _)| key.as_str()).collect();
            for decay_all in [true, false] {
                let groups = match decay_all {
                    true => vec![Group::new(all.clone(), 0.1)],
                    false => Group::decay_weights_only(all.clone(), 0.1),
                };
                let muon = Muon::of_groups(groups, 0.1);
                let matrices = muon.matrices();
                let left: Vec<&&str> = wide.iter().filter(|key| !matrices.contains(*key)).collect();
                let is_expected =
                    |key: &&&str| **key == classifier || ["cls_token", "pos_embed", "embed.weight"].contains(*key);
                assert!(left.contains(&&classifier.as_str()) && left.iter().all(is_expected), "{name}: {left:?}");
                assert!(matrices.iter().all(|key| wide.contains(key)), "{name}: {matrices:?}");
                assert_eq!(muon.slots.list.len(), all.len(), "{name}");
            }
            looked_at += 1;
        }
        assert!(looked_at > 20, "{looked_at} networks only");
        Ok(())
    }

    #[test]
    fn sizes_are_those_of_pytorch() {
        assert_eq!([(4, 16), (16, 4)].map(|(a, b)| AdjustLr::Original.ratio(a, b)), [1.0, 2.0]);
        assert_eq!([(4, 16), (16, 4)].map(|(a, b)| AdjustLr::MatchRmsAdamW.ratio(a, b)), [0.8, 0.8]);
        assert_eq!([(4, 16), (16, 4)].map(|(a, b)| AdjustLr::SpectralUnclamped.ratio(a, b)), [0.5, 2.0]);
    }
}

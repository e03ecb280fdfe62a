//! Optimizers: SGD, Adam and AdamW with PyTorch's update rules, parameter groups, and state that goes into checkpoints.
//!
//! A parameter without a gradient in a step is left alone, with its state, as PyTorch does. The arithmetic itself stands in
//! [`zoo_core::ops::optim`].

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
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

    /// A copy of the state, under `PARAMETER.NAME`, with PyTorch's names: `step`, and `momentum_buffer`, or `exp_avg` and
    /// `exp_avg_sq`. Parameters that never had a gradient have none.
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

/// Adam (Kingma and Ba 2014, arXiv 1412.6980) with its weight decay as an L2 penalty, or AdamW (Loshchilov and Hutter 2017,
/// arXiv 1711.05101), which shrinks the parameter itself.
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

/// Scales the gradients of `parameters` so that their common L2 norm is at most `max_norm`, and returns the norm that they had
/// (PyTorch's `clip_grad_norm_`: the factor is max_norm / (norm + 1e-6)). A norm that is not finite is returned as it is.
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

/// Every parameter with its settings and its state.
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
                slot.state = self.names.iter().map(|_| zeros()).collect::<Result<_>>()?;
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
mod tests {
    use super::*;
    use serde_json::Value;
    use zoo_core::{Init, VarStore};

    fn golden() -> Value {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/optim.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn floats(value: &Value) -> Vec<f64> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    }

    /// The golden file's parameters, in `dtype`.
    fn parameters(golden: &Value, dtype: DType) -> Vec<(String, Var)> {
        let initial = golden["initial"].as_object().unwrap();
        let make = |(key, values): (&String, &Value)| {
            let shape: Vec<usize> = serde_json::from_value(golden["shapes"][key].clone()).unwrap();
            let tensor = Tensor::from_vec(floats(values), shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            (key.clone(), Var::from_tensor(&tensor).unwrap())
        };
        initial.iter().map(make).collect()
    }

    /// A store with the golden file's gradients of one step.
    fn gradients(golden: &Value, parameters: &[(String, Var)], step: usize) -> GradStore {
        // The only way to an empty store from outside candle: the gradients of a constant.
        let mut grads = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap().backward().unwrap();
        for (key, var) in parameters {
            if let Some(values) = golden["grads"][step].get(key) {
                let grad = Tensor::from_vec(floats(values), var.shape(), &Device::Cpu).unwrap();
                grads.insert(var, grad.to_dtype(var.dtype()).unwrap());
            }
        }
        grads
    }

    fn config(run: &Value) -> OptimizerConfig {
        let options = &run["options"];
        let number = |name: &str, default: f64| options.get(name).map_or(default, |v| v.as_f64().unwrap());
        let weight_decay = number("weight_decay", 0.0);
        let betas = options.get("betas").map_or([0.9, 0.999], |b| [0, 1].map(|i| b[i].as_f64().unwrap()));
        let eps = number("eps", 1e-8);
        match run["kind"].as_str().unwrap() {
            "sgd" => {
                let nesterov = options.get("nesterov").is_some();
                OptimizerConfig::Sgd { momentum: number("momentum", 0.0), nesterov, weight_decay }
            }
            "adam" => OptimizerConfig::Adam { betas, eps, weight_decay },
            kind => {
                assert_eq!(kind, "adamw");
                OptimizerConfig::AdamW { betas, eps, weight_decay }
            }
        }
    }

    /// Follows every run of the golden file; the largest error of any parameter at any step.
    fn largest_error(dtype: DType) -> f64 {
        let golden = golden();
        let lrs = floats(&golden["lrs"]);
        let mut largest = 0f64;
        for run in golden["optimizers"].as_array().unwrap() {
            let parameters = parameters(&golden, dtype);
            let decay_all = run["decay_one_dimensional"].as_bool().unwrap();
            let mut optimizer = config(run).build(parameters.clone(), lrs[0], decay_all);
            for (step, &lr) in lrs.iter().enumerate() {
                optimizer.set_lr(lr);
                let mut grads = gradients(&golden, &parameters, step);
                if let Some(max) = run["clip"].as_f64() {
                    let norm = clip_grad_norm(&parameters, &mut grads, max).unwrap();
                    largest = largest.max((norm - run["norms"][step].as_f64().unwrap()).abs());
                }
                optimizer.step(&grads).unwrap();
                for (key, var) in &parameters {
                    let got = var.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
                    for (got, want) in got.iter().zip(floats(&run["parameters"][step][key])) {
                        assert!(got.is_finite());
                        largest = largest.max((got - want).abs());
                    }
                }
            }
        }
        largest
    }

    #[test]
    fn trajectories_are_those_of_pytorch() {
        // Values of order 1, a few dozen operations each: rounding alone stays below 1e-14.
        let error = largest_error(DType::F64);
        assert!(error < 1e-12, "{error}");
        let error = largest_error(DType::F32);
        assert!(error < 1e-5, "{error}");
    }

    /// Half types go through the composition of candle's ops. Adam's ε vanishes in them, but nothing here divides by zero.
    #[test]
    fn half_precision_follows_within_its_digits() {
        let error = largest_error(DType::BF16);
        assert!(error < 0.2, "{error}");
    }

    #[test]
    fn a_resumed_run_is_the_same_bit_by_bit() {
        let golden = golden();
        let bits = |parameters: &[(String, Var)]| -> Vec<u64> {
            let values = |(_, var): &(String, Var)| var.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            parameters.iter().flat_map(values).map(f64::to_bits).collect()
        };
        for run in golden["optimizers"].as_array().unwrap() {
            let whole = parameters(&golden, DType::F64);
            let mut optimizer = config(run).build(whole.clone(), 0.1, true);
            let mut saved = None;
            for step in 0..6 {
                if step == 3 {
                    let copies = whole.iter().map(|(k, v)| (k.clone(), Var::from_tensor(&v.detach()).unwrap()));
                    saved = Some((copies.collect::<Vec<_>>(), optimizer.state().unwrap()));
                }
                optimizer.step(&gradients(&golden, &whole, step)).unwrap();
            }
            let (resumed, state) = saved.unwrap();
            let mut optimizer = config(run).build(resumed.clone(), 0.1, true);
            optimizer.load_state(&state).unwrap();
            for step in 3..6 {
                optimizer.step(&gradients(&golden, &resumed, step)).unwrap();
            }
            assert_eq!(bits(&whole), bits(&resumed), "{}", run["name"]);
        }
    }

    #[test]
    fn state_that_does_not_fit_is_refused_whole() {
        let golden = golden();
        let all = parameters(&golden, DType::F64);
        let sgd = || Sgd::new(vec![Group::new(all.clone(), 0.0)], 0.1).momentum(0.9);
        let mut optimizer = sgd();
        optimizer.step(&gradients(&golden, &all, 0)).unwrap();
        let good = optimizer.state().unwrap();
        assert_eq!(
            good.keys().collect::<Vec<_>>(),
            ["w.bias.momentum_buffer", "w.bias.step", "w.weight.momentum_buffer", "w.weight.step"]
        );
        let changed = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
            let (mut state, mut fresh) = (good.clone(), sgd());
            change(&mut state);
            let message = fresh.load_state(&state).unwrap_err().to_string();
            assert!(fresh.state().unwrap().is_empty(), "a refused state must leave nothing behind");
            message
        };
        let tensor = Tensor::zeros(7, DType::F64, &Device::Cpu).unwrap();
        assert!(changed(&|s| drop(s.insert("fc.step".into(), tensor.clone()))).contains("fc.step"));
        assert!(changed(&|s| drop(s.insert("w.bias.momentum_buffer".into(), tensor.clone()))).contains("[7]"));
        assert!(
            changed(&|s| drop(s.remove("w.weight.momentum_buffer"))).contains("`w.weight.momentum_buffer` is missing")
        );
        assert!(changed(&|s| drop(s.remove("w.weight.step"))).contains("w.weight.momentum_buffer"));
    }

    #[test]
    fn a_saved_state_does_not_move_with_the_run() {
        let golden = golden();
        let all = parameters(&golden, DType::F64);
        let mut adam = Adam::new(vec![Group::new(all.clone(), 0.0)], 0.1);
        adam.step(&gradients(&golden, &all, 0)).unwrap();
        let state = adam.state().unwrap();
        let before = state["w.bias.exp_avg"].to_vec1::<f64>().unwrap();
        adam.step(&gradients(&golden, &all, 1)).unwrap();
        assert_eq!(before, state["w.bias.exp_avg"].to_vec1::<f64>().unwrap());
    }

    #[test]
    fn a_group_trains_at_its_own_rate() {
        let store = VarStore::new(0, DType::F64, &Device::Cpu);
        let trunk = store.root().param(1, "trunk", Init::ZEROS).unwrap();
        let head = store.root().param(1, "head", Init::ZEROS).unwrap();
        let mut parameters = store.parameters();
        let last = parameters.split_off(1);
        let mut sgd = Sgd::new(vec![Group::new(parameters, 0.0).lr_factor(0.1), Group::new(last, 0.0)], 1.0);
        sgd.step(&(&trunk + &head).unwrap().sum_all().unwrap().backward().unwrap()).unwrap();
        assert_eq!((trunk.to_vec1::<f64>().unwrap(), head.to_vec1::<f64>().unwrap()), (vec![-0.1], vec![-1.0]));
    }
}

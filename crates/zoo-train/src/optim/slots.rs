//! The parameters of an optimizer and what it remembers of each.

use super::Group;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var, bail};
use rayon::prelude::*;
use std::collections::BTreeMap;
use zoo_core::memory;

/// The parameters of an optimizer, each with its settings and its state.
#[derive(Debug)]
pub(super) struct Slots {
    pub list: Vec<Slot>,
}

#[derive(Debug)]
pub(super) struct Slot {
    key: String,
    pub var: Var,
    pub weight_decay: f64,
    pub lr_factor: f64,
    /// Steps in which this parameter had a gradient.
    pub steps: u64,
    /// What the state's tensors are called.
    names: &'static [&'static str],
    /// One tensor a name, made at the first gradient.
    pub state: Vec<Var>,
}

impl Slot {
    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn names(&self) -> &'static [&'static str] {
        self.names
    }

    /// Begins a step: makes the state, before the first one, and counts.
    fn begin(&mut self, next: impl Fn(u64) -> u64) -> Result<()> {
        if self.state.len() < self.names.len() {
            let zeros = || Var::zeros(self.var.shape(), self.var.dtype(), self.var.device());
            self.state = memory::lasting(|| self.names.iter().map(|_| zeros()).collect::<Result<_>>())?;
        }
        self.steps = next(self.steps);
        Ok(())
    }

    /// The state of this name, if the optimizer keeps such.
    pub fn state(&self, name: &str) -> Option<&Var> {
        self.names.iter().position(|known| *known == name).and_then(|i| self.state.get(i))
    }
}

impl Slots {
    /// Every parameter of `groups` with a state of these names.
    pub fn new(groups: Vec<Group>, names: &'static [&'static str]) -> Self {
        let slots = |Group { parameters, weight_decay, lr_factor }: Group| {
            parameters.into_iter().map(move |(key, var)| {
                let (steps, state) = (0, Vec::new());
                Slot { key, var, weight_decay, lr_factor, steps, names, state }
            })
        };
        Self { list: groups.into_iter().flat_map(slots).collect() }
    }

    /// These and those of another, each with the state that it has.
    pub fn and(mut self, others: Self) -> Self {
        self.list.extend(others.list);
        self
    }

    /// Keeps a state of other names, before the first step.
    pub fn keep(&mut self, names: &'static [&'static str]) {
        self.list.iter_mut().for_each(|slot| slot.names = names);
    }

    /// Hands every parameter that has a gradient to `update`, with its state.
    pub fn step(&mut self, grads: &GradStore, update: impl FnMut(&Slot, &Tensor) -> Result<()>) -> Result<()> {
        self.count(grads, |steps| steps + 1, update)
    }

    /// The same where all parameters count the same steps, those without a gradient too.
    pub fn step_together(&mut self, grads: &GradStore, update: impl FnMut(&Slot, &Tensor) -> Result<()>) -> Result<()> {
        let next = self.list.iter().map(|slot| slot.steps).max().unwrap_or(0) + 1;
        self.count(grads, |_| next, update)
    }

    /// [`step`](Self::step), with the parameters shared out among the threads where they are in a processor's memory: for updates
    /// of many small products, each of which is too little for all threads together.
    pub fn step_in_parallel(
        &mut self,
        grads: &GradStore,
        update: impl Fn(&Slot, &Tensor) -> Result<()> + Sync,
    ) -> Result<()> {
        let mut ready = Vec::with_capacity(self.list.len());
        for slot in &mut self.list {
            let Some(grad) = grads.get(&slot.var) else { continue };
            slot.begin(|steps| steps + 1)?;
            ready.push((&*slot, grad));
        }
        match ready.iter().all(|(slot, _)| slot.var.device().is_cpu()) {
            true => ready.par_iter().with_max_len(1).try_for_each(|(slot, grad)| update(slot, grad)),
            false => ready.iter().try_for_each(|(slot, grad)| update(slot, grad)),
        }
    }

    fn count(
        &mut self,
        grads: &GradStore,
        next: impl Fn(u64) -> u64,
        mut update: impl FnMut(&Slot, &Tensor) -> Result<()>,
    ) -> Result<()> {
        for slot in &mut self.list {
            let Some(grad) = grads.get(&slot.var) else { continue };
            slot.begin(&next)?;
            update(slot, grad)?;
        }
        Ok(())
    }

    /// The gradients that the parameters have.
    pub fn gradients<'a>(&'a self, grads: &'a GradStore) -> impl Iterator<Item = &'a Tensor> {
        self.list.iter().filter_map(|slot| grads.get(&slot.var))
    }

    pub fn save(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut all = BTreeMap::new();
        for slot in self.list.iter().filter(|slot| slot.steps > 0) {
            let steps = i64::try_from(slot.steps).map_err(candle_core::Error::wrap)?;
            all.insert(format!("{}.step", slot.key), Tensor::new(steps, &Device::Cpu)?);
            for (name, var) in slot.names.iter().zip(&slot.state) {
                all.insert(format!("{}.{name}", slot.key), var.copy()?.detach());
            }
        }
        Ok(all)
    }

    pub fn load(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let mut left: BTreeMap<&str, &Tensor> = state.iter().map(|(key, tensor)| (key.as_str(), tensor)).collect();
        let mut loaded = Vec::with_capacity(self.list.len());
        for slot in &self.list {
            let Some(steps) = left.remove(format!("{}.step", slot.key).as_str()) else {
                loaded.push((0, Vec::new()));
                continue;
            };
            let steps = steps.to_dtype(DType::I64)?.to_scalar::<i64>()?;
            let mut vars = Vec::with_capacity(slot.names.len());
            for name in slot.names {
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

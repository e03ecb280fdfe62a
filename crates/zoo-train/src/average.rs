//! Averages of a network's weights over its training: they often classify better than the last weights.
//!
//! An exponential moving average (Polyak and Juditsky 1992; as timm's `ModelEmaV3`) follows the network step by step; an
//! equal mean of snapshots is stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407; as PyTorch's
//! `torch.optim.swa_utils`). Both average parameters and running statistics.

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use std::collections::BTreeMap;
use zoo_core::ops::optim::lerp_step;
use zoo_core::{VarStore, memory};

/// What the count of updates is called in a state, beside the keys of the network.
const COUNT: &str = "n_averaged";

/// An average of the tensors of a store, beside them.
///
/// ```
/// use candle_core::{DType, Device};
/// use zoo_core::{Init, VarStore};
/// use zoo_train::average::WeightAverage;
///
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// store.root().param(1, "w", Init::ONES)?;
/// let w = store.parameters()[0].1.clone();
/// let mut average = WeightAverage::ema(&store, 0.75)?;
/// w.set(&(w.as_detached_tensor() * 5.0)?)?; // A step of training.
/// average.update()?;
/// average.swap()?; // The network has the average now: evaluate it, save it,
/// assert_eq!(w.to_vec1::<f32>()?, [2.0]);
/// average.swap()?; // and go on.
/// assert_eq!(w.to_vec1::<f32>()?, [5.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct WeightAverage {
    kind: Kind,
    entries: Vec<Entry>,
    updates: u64,
    /// Whether the store holds the averages, and the entries what the store held.
    swapped: bool,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Ema { decay: f64, warmup: Option<(f64, f64)> },
    Mean,
}

#[derive(Debug)]
struct Entry {
    key: String,
    var: Var,
    average: Var,
}

impl WeightAverage {
    /// An exponential moving average: average = decay · average + (1 - decay) · weight, from the present weights on.
    ///
    /// # Errors
    /// A decay outside 0..=1, or what the device reports.
    pub fn ema(store: &VarStore, decay: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&decay) {
            bail!("weight average: the decay must lie in 0..=1, got {decay}")
        }
        Self::new(store, Kind::Ema { decay, warmup: None })
    }

    /// The equal mean of the weights at every [`update`](Self::update).
    ///
    /// # Errors
    /// What the device reports.
    pub fn mean(store: &VarStore) -> Result<Self> {
        Self::new(store, Kind::Mean)
    }

    fn new(store: &VarStore, kind: Kind) -> Result<Self> {
        let stored = store.slots().into_iter().filter_map(|slot| Some((slot.key, slot.var?)));
        let entry = |(key, var): (String, Var)| {
            let average = Var::from_tensor(&var.as_detached_tensor())?;
            Ok(Entry { key, var, average })
        };
        let entries = memory::lasting(|| stored.map(entry).collect::<Result<_>>())?;
        Ok(Self { kind, entries, updates: 0, swapped: false })
    }

    /// Follows fast at first: the first update takes the weights, update n has the decay 1 - (1 + (n - 1) / gamma)^-power
    /// until that reaches the full one (timm's `use_warmup`, with gamma 1 and power 2/3). A mean knows none.
    pub fn warmup(mut self, gamma: f64, power: f64) -> Self {
        if let Kind::Ema { warmup, .. } = &mut self.kind {
            *warmup = Some((gamma, power));
        }
        self
    }

    /// How many updates it has seen.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// How much of the way to the weights the next update goes.
    fn weight(&self) -> f64 {
        match self.kind {
            Kind::Mean => 1.0 / (self.updates + 1) as f64,
            Kind::Ema { decay, warmup: None } => 1.0 - decay,
            Kind::Ema { decay, warmup: Some((gamma, power)) } => {
                let reached = 1.0 - (1.0 + self.updates as f64 / gamma).powf(-power);
                1.0 - reached.clamp(0.0, decay)
            }
        }
    }

    /// Takes the network's present weights into the average: after every step, or every so many, for a moving average,
    /// at the end of every epoch for a mean.
    ///
    /// # Errors
    /// Weights that are swapped, or what the device reports.
    pub fn update(&mut self) -> Result<()> {
        self.check_in_place("update")?;
        let weight = self.weight();
        for Entry { var, average, .. } in &self.entries {
            match weight {
                1.0 => average.set(&var.as_detached_tensor())?,
                _ => lerp_step(average, &var.as_detached_tensor(), weight)?,
            }
        }
        self.updates += 1;
        Ok(())
    }

    /// Exchanges the network's tensors with the averages, in place; a second call puts both back, bit by bit. A mean
    /// without an update is the weights that it began with.
    ///
    /// # Errors
    /// What the device reports.
    pub fn swap(&mut self) -> Result<()> {
        for Entry { var, average, .. } in &self.entries {
            let weights = var.copy()?.detach();
            var.set(&average.as_detached_tensor())?;
            average.set(&weights)?;
        }
        self.swapped = !self.swapped;
        Ok(())
    }

    /// Whether the network has the averages.
    pub fn is_swapped(&self) -> bool {
        self.swapped
    }

    /// A copy of the averages under the network's keys, and the count of updates as `n_averaged`.
    ///
    /// # Errors
    /// Weights that are swapped, or what the device reports.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        self.check_in_place("state")?;
        let updates = i64::try_from(self.updates).map_err(candle_core::Error::wrap)?;
        let mut all = BTreeMap::from([(COUNT.to_owned(), Tensor::new(updates, &Device::Cpu)?)]);
        for Entry { key, average, .. } in &self.entries {
            all.insert(key.clone(), average.copy()?.detach());
        }
        Ok(all)
    }

    /// Puts back what [`state`](Self::state) gave; the updates that follow are then the same bit by bit.
    ///
    /// # Errors
    /// Weights that are swapped; a tensor that is missing, over, or of another shape or type: nothing is loaded then.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        self.check_in_place("load_state")?;
        let Some(updates) = state.get(COUNT) else { bail!("weight average: `{COUNT}` is missing") };
        let updates = updates.to_dtype(DType::I64)?.to_scalar::<i64>()?;
        let updates = u64::try_from(updates).map_err(candle_core::Error::wrap)?;
        let mut found = Vec::with_capacity(self.entries.len());
        for Entry { key, average, .. } in &self.entries {
            let Some(tensor) = state.get(key) else { bail!("weight average: `{key}` is missing") };
            if tensor.shape() != average.shape() || tensor.dtype() != average.dtype() {
                let (got, want) = ((tensor.shape(), tensor.dtype()), (average.shape(), average.dtype()));
                bail!("weight average: `{key}` is {got:?}, the network's {want:?}")
            }
            found.push(tensor.to_device(average.device())?.detach());
        }
        if state.len() != found.len() + 1 {
            let is_known = |key: &String| key == COUNT || self.entries.iter().any(|entry| entry.key == *key);
            let over: Vec<&String> = state.keys().filter(|key| !is_known(key)).collect();
            bail!("weight average: belongs to nothing in this network: {over:?}")
        }
        for (entry, tensor) in self.entries.iter().zip(found) {
            entry.average.set(&tensor)?;
        }
        self.updates = updates;
        Ok(())
    }

    fn check_in_place(&self, what: &str) -> Result<()> {
        if self.swapped {
            bail!("weight average: {what} while the network has the averages; swap them back first")
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zoo_core::Init;
    use zoo_core::rng::Rng;

    /// A parameter and a running statistic.
    fn store() -> VarStore {
        let store = VarStore::new(3, DType::F32, &Device::Cpu);
        store.root().param((3, 50), "weight", Init::HE_FAN_IN).unwrap();
        store.root().buffer(7, "running_mean", Init::ONES).unwrap();
        store
    }

    fn values(store: &VarStore) -> Vec<f32> {
        let of = |var: Var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        store.slots().into_iter().flat_map(|slot| of(slot.var.unwrap())).collect()
    }

    /// Stands for a step of training.
    fn step(store: &VarStore, seed: u64) {
        for slot in store.slots() {
            let (mut rng, var) = (Rng::new(seed, &slot.key), slot.var.unwrap());
            let moved: Vec<f32> = (0..var.elem_count()).map(|_| rng.uniform_in(-1.0, 1.0) as f32).collect();
            var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap()).unwrap();
        }
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    /// The averages against their formulas in f64, over a hundred updates.
    #[test]
    fn averages_are_those_of_the_formulas() {
        type Weight = fn(u64) -> f64;
        type Start = fn(WeightAverage) -> WeightAverage;
        let cases: [(&str, f64, Start, Weight); 3] = [
            ("ema", 0.9, |average| average, |_| 0.1),
            (
                "warm",
                0.9,
                |average| average.warmup(1.0, 2.0 / 3.0),
                |n| 1.0 - (1.0 - (n as f64).powf(-2.0 / 3.0)).min(0.9),
            ),
            ("mean", 0.0, |average| average, |n| 1.0 / n as f64),
        ];
        for (name, decay, start, weight) in cases {
            let store = store();
            let average = match name {
                "mean" => WeightAverage::mean(&store),
                _ => WeightAverage::ema(&store, decay),
            };
            let mut average = start(average.unwrap());
            let mut exact: Vec<f64> = values(&store).into_iter().map(f64::from).collect();
            for n in 1..=100 {
                step(&store, n);
                average.update().unwrap();
                for (a, w) in exact.iter_mut().zip(values(&store)) {
                    *a = (1.0 - weight(n)) * *a + weight(n) * f64::from(w);
                }
            }
            assert_eq!(average.updates(), 100);
            average.swap().unwrap();
            // Values below 1, whose roundings of 3e-8 an average of ten or a hundred of them adds up.
            let far = values(&store).iter().zip(&exact).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            assert!(far < 5e-7, "{name}: {far}");
        }
    }

    #[test]
    fn swapping_twice_changes_no_bit() {
        let store = store();
        let mut average = WeightAverage::ema(&store, 0.9).unwrap();
        step(&store, 1);
        average.update().unwrap();
        let (before, state) = (values(&store), average.state().unwrap());
        average.swap().unwrap();
        assert!(average.is_swapped() && bits(&values(&store)) != bits(&before));
        let error = average.update().unwrap_err().to_string();
        assert!(error.contains("swap them back"), "{error}");
        assert!(average.state().is_err() && average.load_state(&state).is_err());
        average.swap().unwrap();
        assert_eq!(bits(&values(&store)), bits(&before));
        for (key, tensor) in average.state().unwrap() {
            let of =
                |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            assert_eq!(of(&tensor), of(&state[&key]), "{key}");
        }
    }

    #[test]
    fn a_resumed_average_is_the_same_bit_by_bit() {
        for mean in [true, false] {
            let make = |store: &VarStore| {
                let average = if mean { WeightAverage::mean(store) } else { WeightAverage::ema(store, 0.99) };
                average.unwrap().warmup(1.0, 0.75)
            };
            let (one, two) = (store(), store());
            let (mut whole, mut resumed) = (make(&one), make(&two));
            for n in 1..=5 {
                step(&one, n);
                whole.update().unwrap();
            }
            resumed.load_state(&whole.state().unwrap()).unwrap();
            for n in 6..=9 {
                for (store, average) in [(&one, &mut whole), (&two, &mut resumed)] {
                    step(store, n);
                    average.update().unwrap();
                }
            }
            assert_eq!(resumed.updates(), 9);
            whole.swap().unwrap();
            resumed.swap().unwrap();
            assert_eq!(bits(&values(&one)), bits(&values(&two)), "mean: {mean}");
        }
    }

    #[test]
    fn state_that_does_not_fit_is_refused_whole() {
        let store = store();
        let mut average = WeightAverage::mean(&store).unwrap();
        step(&store, 1);
        average.update().unwrap();
        let good = average.state().unwrap();
        let mut refused = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
            let mut state = good.clone();
            change(&mut state);
            average.load_state(&state).unwrap_err().to_string()
        };
        let tensor = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
        assert!(refused(&|s| drop(s.remove(COUNT))).contains(COUNT));
        assert!(refused(&|s| drop(s.remove("weight"))).contains("`weight` is missing"));
        assert!(refused(&|s| drop(s.insert("weight".into(), tensor.clone()))).contains("[2]"));
        assert!(refused(&|s| drop(s.insert("elsewhere".into(), tensor.clone()))).contains("elsewhere"));
        assert!(WeightAverage::ema(&store, 1.5).unwrap_err().to_string().contains("1.5"));
    }
}

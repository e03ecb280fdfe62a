//! Where a network's tensors live: [`VarStore`] owns them by key, [`VarBuilder`] is how a model asks for them.
//!
//! Candle's own `VarMap` makes running statistics trainable, cannot be seeded on the CPU and depends on the order of
//! construction. Here a parameter's initial value is a function of (seed, key) alone, statistics are buffers that no
//! optimizer sees, and a store can be built from shapes only, to count a 600 MB network without allocating it.

mod training;

pub(crate) use training::Training;

use crate::init::{Init, InitRule};
use crate::rng::Rng;
use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use training::Frozen;

/// What a stored tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VarKind {
    /// Trained by gradient descent.
    Parameter,
    /// Part of the state, not trained: running statistics.
    Buffer,
}

/// One stored tensor.
#[derive(Debug, Clone)]
pub struct Slot {
    /// The checkpoint key, for example `layer1.0.conv1.weight`.
    pub key: String,
    /// Parameter or buffer.
    pub kind: VarKind,
    /// The tensor's shape.
    pub shape: Shape,
    /// The variable; `None` in a store of shapes only.
    pub var: Option<Var>,
    /// A parameter that is not trained, see [`VarStore::set_frozen`].
    pub frozen: bool,
}

/// What a [`VarStore`] changes in every [`BatchNorm`](crate::BatchNorm) that is built in it, whatever the network's own
/// config says: for ablations. Keys and parameters stay as they are.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{BatchNorm, BatchNormSettings, ModuleT, VarStore};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// store.set_batch_norm(BatchNormSettings { normalize: false, ..BatchNormSettings::default() });
/// let norm = BatchNorm::new(1, store.root())?;
/// let xs = Tensor::new(&[[3f32], [5.]], &Device::Cpu)?;
/// // The weight starts at 1, the bias at 0.
/// assert_eq!(norm.forward_t(&xs, true)?.to_vec2::<f32>()?, [[3.], [5.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchNormSettings {
    /// Instead of [`BatchNormConfig::momentum`](crate::BatchNormConfig::momentum).
    pub momentum: Option<f64>,
    /// Instead of [`BatchNormConfig::eps`](crate::BatchNormConfig::eps).
    pub eps: Option<f64>,
    /// With `false` a layer is y = weight · x + bias: it reads no statistics, and its running ones never move.
    pub normalize: bool,
}

impl Default for BatchNormSettings {
    fn default() -> Self {
        Self { momentum: None, eps: None, normalize: true }
    }
}

#[derive(Debug)]
struct Inner {
    seed: u64,
    dtype: DType,
    device: Device,
    values: Values,
    slots: Mutex<Slots>,
    /// Whether dropout layers let everything through.
    dropout_off: Arc<AtomicBool>,
    dropout_calls: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    batch_norm: Mutex<BatchNormSettings>,
    init: Mutex<InitRule>,
    frozen: Mutex<Frozen>,
}

/// What a new tensor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Values {
    Drawn,
    Zeros,
    None,
}

#[derive(Debug, Default)]
struct Slots {
    /// In the order of construction, which for a model written top-down is the order of the reference checkpoint.
    list: Vec<Slot>,
    by_key: HashMap<String, usize>,
}

/// The tensors of one network, by key. Clones share the same tensors.
///
/// ```
/// use candle_core::{DType, Device};
/// use zoo_core::{Init, VarStore};
/// let store = VarStore::new(42, DType::F32, &Device::Cpu);
/// let weight = store.root().pp("fc").param((10, 64), "weight", Init::TORCH_WEIGHT)?;
/// assert_eq!(weight.dims(), &[10, 64]);
/// assert_eq!(store.parameter_count(), 640);
/// assert_eq!(store.slots()[0].key, "fc.weight");
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct VarStore(Arc<Inner>);

impl VarStore {
    /// An empty store; `seed` fixes every initial value and every dropout mask of what is built in it.
    pub fn new(seed: u64, dtype: DType, device: &Device) -> Self {
        Self::build(seed, dtype, device, Values::Drawn)
    }

    /// A store whose tensors are zeros until they are loaded: to draw the initial values of a large network takes longer than
    /// to read its weights.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use zoo_core::{Init, VarStore};
    /// let store = VarStore::for_loading(DType::F32, &Device::Cpu);
    /// let weight = store.root().param((2, 2), "weight", Init::TORCH_WEIGHT)?;
    /// assert_eq!(weight.to_vec2::<f32>()?, [[0.; 2]; 2]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn for_loading(dtype: DType, device: &Device) -> Self {
        Self::build(0, dtype, device, Values::Zeros)
    }

    /// A store that keeps shapes and allocates nothing: for counting parameters and listing keys.
    pub fn shapes_only() -> Self {
        Self::build(0, DType::F32, &Device::Cpu, Values::None)
    }

    fn build(seed: u64, dtype: DType, device: &Device, values: Values) -> Self {
        let (slots, dropout_off, dropout_calls, batch_norm, init, frozen) = Default::default();
        let device = device.clone();
        let inner = Inner { seed, dtype, device, values, slots, dropout_off, dropout_calls, batch_norm, init, frozen };
        Self(Arc::new(inner))
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        // A panic elsewhere cannot leave the list half-written: every change is one push after all checks.
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The builder at the top of the key space.
    pub fn root(&self) -> VarBuilder {
        VarBuilder { store: self.clone(), path: String::new(), replace: false }
    }

    /// The element type of every tensor in the store.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// The device of every tensor in the store.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// Everything stored, in the order of construction.
    pub fn slots(&self) -> Vec<Slot> {
        self.lock().list.clone()
    }

    /// The slot under `key`.
    pub fn get(&self, key: &str) -> Option<Slot> {
        let slots = self.lock();
        slots.by_key.get(key).map(|&i| slots.list[i].clone())
    }

    fn vars(&self, kind: VarKind) -> Vec<(String, Var)> {
        let slots = self.lock();
        let wanted = slots.list.iter().filter(|s| s.kind == kind && !s.frozen);
        wanted.filter_map(|s| Some((s.key.clone(), s.var.clone()?))).collect()
    }

    /// The trainable variables with their keys, in the order of construction; frozen ones are not among them.
    pub fn parameters(&self) -> Vec<(String, Var)> {
        self.vars(VarKind::Parameter)
    }

    /// The running statistics with their keys, in the order of construction.
    pub fn buffers(&self) -> Vec<(String, Var)> {
        self.vars(VarKind::Buffer)
    }

    /// The number of trainable elements: what papers call the network's parameters.
    pub fn parameter_count(&self) -> usize {
        self.lock().list.iter().filter(|s| s.kind == VarKind::Parameter).map(|s| s.shape.elem_count()).sum()
    }

    /// Turns every dropout and stochastic depth of the network off (or on again): a training pass without chance, to
    /// compare with another implementation.
    pub fn set_dropout(&self, on: bool) {
        self.0.dropout_off.store(!on, Ordering::Relaxed);
    }

    /// Changes every BatchNorm that is built in this store from now on: call it before the network is built.
    pub fn set_batch_norm(&self, settings: BatchNormSettings) {
        *self.0.batch_norm.lock().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    /// Whose rules fill the layers that are built in this store from now on: call it before the network is built.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use zoo_core::{Conv2d, Conv2dConfig, Init, InitRule, VarStore};
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// store.set_init(InitRule::Torch);
    /// let config = Conv2dConfig::new(3).no_bias().init(Init::HE_FAN_OUT);
    /// Conv2d::new(16, 64, config, store.root())?;
    /// // PyTorch: uniform below 1 / √(16 · 3 · 3).
    /// let largest = store.parameters()[0].1.abs()?.max_all()?.to_scalar::<f32>()?;
    /// assert!(largest > 0.99 / 12.0 && largest <= 1.0 / 12.0);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn set_init(&self, rule: InitRule) {
        *self.0.init.lock().unwrap_or_else(PoisonError::into_inner) = rule;
    }

    /// Freezes every layer that is built in this store from now on, and every single parameter, whose key `is_frozen`: call
    /// it before the network is built. What is frozen runs as in evaluation: it is on no graph, its BatchNorms read
    /// their running statistics without moving them, and its dropouts let everything through. Frozen parameters are not among
    /// [`parameters`](Self::parameters).
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use zoo_core::{BatchNorm, Linear, VarStore};
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// store.set_frozen(|key| key.starts_with("trunk"));
    /// Linear::new(4, 8, store.root().pp("trunk"))?;
    /// Linear::new(8, 2, store.root().pp("head"))?;
    /// let trained: Vec<String> = store.parameters().into_iter().map(|(key, _)| key).collect();
    /// assert_eq!(trained, ["head.weight", "head.bias"]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn set_frozen(&self, is_frozen: impl Fn(&str) -> bool + Send + Sync + 'static) {
        *self.0.frozen.lock().unwrap_or_else(PoisonError::into_inner) = Frozen(Some(Arc::new(is_frozen)));
    }

    /// How often each dropout layer has drawn a mask, by key: with the seed, the whole random state of the network.
    pub fn dropout_state(&self) -> BTreeMap<String, u64> {
        let calls = self.0.dropout_calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.iter().map(|(key, n)| (key.clone(), n.load(Ordering::Relaxed))).collect()
    }

    /// Puts the dropout layers back to where [`VarStore::dropout_state`] saw them; keys that no layer has are ignored.
    pub fn set_dropout_state(&self, state: &BTreeMap<String, u64>) {
        let calls = self.0.dropout_calls.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, n) in calls.iter() {
            n.store(state.get(key).copied().unwrap_or(0), Ordering::Relaxed);
        }
    }
}

/// A place in a [`VarStore`]'s key space, from which a layer takes its tensors.
#[derive(Debug, Clone)]
pub struct VarBuilder {
    store: VarStore,
    path: String,
    replace: bool,
}

impl VarBuilder {
    /// The same place, where a tensor takes the place of the one that has its key already.
    pub(crate) fn replacing(&self) -> Self {
        Self { replace: true, ..self.clone() }
    }

    /// The place one step down: `vb.pp("layer1").pp(0)` is `layer1.0`.
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self { store: self.store.clone(), path: self.key(&name.to_string()), replace: self.replace }
    }

    fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }

    /// The key of this place, without a trailing dot; empty at the root.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The element type of the store.
    pub fn dtype(&self) -> DType {
        self.store.dtype()
    }

    /// The device of the store.
    pub fn device(&self) -> &Device {
        self.store.device()
    }

    /// What the store changes in a BatchNorm.
    pub(crate) fn batch_norm(&self) -> BatchNormSettings {
        *self.store.0.batch_norm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what is called `name` here is not trained.
    pub(crate) fn is_frozen(&self, name: &str) -> bool {
        let frozen = self.store.0.frozen.lock().unwrap_or_else(PoisonError::into_inner);
        frozen.0.as_ref().is_some_and(|is_frozen| is_frozen(&self.key(name)))
    }

    /// Which of these names are trained here.
    pub(crate) fn training_of(&self, names: &[&str]) -> Training {
        names.iter().fold(Training::default(), |all, name| {
            let frozen = self.is_frozen(name);
            all.and(Training { frozen, trained: !frozen })
        })
    }

    /// Whose rules fill layers.
    pub(crate) fn init_rule(&self) -> InitRule {
        *self.store.0.init.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What fills a layer's weight and bias that has `fan_in` inputs for each output: the layer's own `weight` and `bias`,
    /// unless the store says otherwise.
    pub(crate) fn layer_inits(&self, weight: Init, bias: Init, fan_in: usize) -> (Init, Init) {
        match self.init_rule() {
            InitRule::Model => (weight, bias),
            InitRule::Torch => (Init::TORCH_WEIGHT, Init::torch_bias(fan_in)),
        }
    }

    /// A new trainable tensor called `name` here, filled by `init`.
    ///
    /// # Errors
    /// A key that is taken already (to share a weight, clone the tensor), or an init that does not fit the shape.
    pub fn param(&self, shape: impl Into<Shape>, name: &str, init: Init) -> Result<Tensor> {
        let (shape, key, frozen) = (shape.into(), self.key(name), self.is_frozen(name));
        if self.store.0.values == Values::None {
            let tensor = Tensor::zeros((), self.dtype(), self.device())?.broadcast_as(&shape)?;
            self.insert(Slot { key, kind: VarKind::Parameter, shape, var: None, frozen })?;
            return Ok(tensor);
        }
        let var = self.fill(&key, &shape, init)?;
        self.insert(Slot { key, kind: VarKind::Parameter, shape, var: Some(var.clone()), frozen })?;
        // Detached it is the same memory, and no graph knows it.
        Ok(if frozen { var.as_detached_tensor() } else { var.into_inner() })
    }

    /// A new tensor called `name` here that is saved but not trained.
    ///
    /// # Errors
    /// As [`VarBuilder::param`].
    pub fn buffer(&self, shape: impl Into<Shape>, name: &str, init: Init) -> Result<Var> {
        let (shape, key) = (shape.into(), self.key(name));
        let var = self.fill(&key, &shape, init)?;
        let stored = (self.store.0.values != Values::None).then(|| var.clone());
        self.insert(Slot { key, kind: VarKind::Buffer, shape, var: stored, frozen: false })?;
        Ok(var)
    }

    fn fill(&self, key: &str, shape: &Shape, init: Init) -> Result<Var> {
        if self.store.0.values == Values::Zeros {
            return Var::zeros(shape, self.dtype(), self.device());
        }
        let mut rng = Rng::new(self.store.0.seed, &format!("init/{key}"));
        // The two usual types are drawn where they stay: a copy of a large layer would be the most that building ever
        // takes.
        match self.dtype() {
            DType::F32 => Var::from_vec(init.sample::<f32>(shape.dims(), &mut rng)?, shape, self.device()),
            DType::F64 => Var::from_vec(init.sample::<f64>(shape.dims(), &mut rng)?, shape, self.device()),
            other => {
                let values = Tensor::from_vec(init.sample::<f64>(shape.dims(), &mut rng)?, shape, &Device::Cpu)?;
                Var::from_tensor(&values.to_dtype(other)?.to_device(self.device())?)
            }
        }
    }

    fn insert(&self, slot: Slot) -> Result<()> {
        let mut slots = self.store.lock();
        if let Some(&index) = slots.by_key.get(&slot.key) {
            if self.replace {
                slots.list[index] = slot;
                return Ok(());
            }
            bail!("the key `{}` is taken already: two layers of this network have the same name", slot.key)
        }
        let index = slots.list.len();
        slots.by_key.insert(slot.key.clone(), index);
        slots.list.push(slot);
        Ok(())
    }

    /// The random stream of the dropout layer at this place. It has no tensor and no key in checkpoints, but its
    /// position is part of the store's state ([`VarStore::dropout_state`]).
    pub fn dropout_stream(&self) -> DropoutStream {
        let calls = Arc::new(AtomicU64::new(0));
        let mut all = self.store.0.dropout_calls.lock().unwrap_or_else(PoisonError::into_inner);
        // Several dropouts may stand at one place, in one block: number them.
        let place = format!("{}#", self.path);
        let key = format!("{place}{}", all.keys().filter(|key| key.starts_with(&place)).count());
        all.insert(key.clone(), calls.clone());
        let off = if self.is_frozen("") { Arc::new(AtomicBool::new(true)) } else { self.store.0.dropout_off.clone() };
        DropoutStream { seed: self.store.0.seed, key, calls, off }
    }
}

/// A dropout layer's source of masks: mask number n is a function of (seed, the layer's place, n).
#[derive(Debug, Clone)]
pub struct DropoutStream {
    seed: u64,
    key: String,
    calls: Arc<AtomicU64>,
    off: Arc<AtomicBool>,
}

impl DropoutStream {
    /// Whether [`VarStore::set_dropout`] has turned it off.
    pub fn is_off(&self) -> bool {
        self.off.load(Ordering::Relaxed)
    }

    /// The generator of the next mask.
    pub fn next_mask(&self) -> Rng {
        let n = self.calls.fetch_add(1, Ordering::Relaxed);
        Rng::new(self.seed, &format!("dropout/{}/{n}", self.key))
    }
}

/// A weight as a forward pass should see it: on the graph in training, detached in evaluation, where a graph would only
/// hold memory.
pub fn weight_for(weight: &Tensor, train: bool) -> Tensor {
    if train { weight.clone() } else { weight.detach() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(store: &VarStore, key: &str) -> Vec<f32> {
        store.get(key).unwrap().var.unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_value_depends_on_seed_and_key_only() {
        let (a, b) = (VarStore::new(1, DType::F32, &Device::Cpu), VarStore::new(1, DType::F32, &Device::Cpu));
        a.root().param((4, 3), "first", Init::HE_FAN_IN).unwrap();
        a.root().pp("x").param((4, 3), "w", Init::HE_FAN_IN).unwrap();
        b.root().pp("x").param((4, 3), "w", Init::HE_FAN_IN).unwrap();
        assert_eq!(values(&a, "x.w"), values(&b, "x.w"));
        let c = VarStore::new(2, DType::F32, &Device::Cpu);
        c.root().pp("x").param((4, 3), "w", Init::HE_FAN_IN).unwrap();
        assert_ne!(values(&a, "x.w"), values(&c, "x.w"));
    }

    #[test]
    fn a_taken_key_is_an_error() {
        let vb = VarStore::new(0, DType::F32, &Device::Cpu).root().pp("fc");
        vb.param(3, "bias", Init::ZEROS).unwrap();
        assert!(vb.param(3, "bias", Init::ZEROS).unwrap_err().to_string().contains("`fc.bias`"));
    }

    #[test]
    fn shapes_only_counts_without_allocating() {
        let store = VarStore::shapes_only();
        // 2^40 elements: 4 TB, which no test machine could allocate.
        let weight = store.root().param((1 << 20, 1 << 20), "w", Init::HE_FAN_IN).unwrap();
        assert_eq!((weight.elem_count(), store.parameter_count()), (1 << 40, 1 << 40));
        assert!(store.parameters().is_empty(), "there is nothing to train in a store of shapes");
    }

    #[test]
    fn buffers_are_not_parameters() {
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        store.root().buffer(5, "running_var", Init::ONES).unwrap();
        assert_eq!((store.parameter_count(), store.parameters().len(), store.buffers().len()), (0, 0, 1));
    }

    #[test]
    fn dropout_streams_differ_by_place_and_call_and_can_be_restored() {
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        let (a, b) = (store.root().pp("a").dropout_stream(), store.root().pp("a").dropout_stream());
        let first = a.next_mask().next_u32();
        assert_ne!(first, b.next_mask().next_u32());
        let state = store.dropout_state();
        let second = a.next_mask().next_u32();
        assert_ne!(first, second);
        store.set_dropout_state(&state);
        assert_eq!(second, a.next_mask().next_u32());
    }
}

//! From and to `candle_nn::VarBuilder`, for programs that hold their weights in one.

use crate::vars::VarStore;
use candle_core::{Result, Tensor};
use std::collections::HashMap;

/// Puts the tensors of a `candle_nn` builder into a store, every key of it: `vb.pp("encoder")` reads those below `encoder`.
/// They are converted to the store's number type and moved to its device.
///
/// ```
/// use candle_core::{DType, Device};
/// use zoo_core::weights::{from_candle, to_candle};
/// use zoo_core::{Linear, VarStore};
/// # let dev = Device::Cpu;
/// let (one, other) = (VarStore::new(1, DType::F32, &dev), VarStore::new(2, DType::F32, &dev));
/// let (a, b) = (Linear::new(3, 2, one.root())?, Linear::new(3, 2, other.root())?);
/// from_candle(&other, &to_candle(&one)?)?;
/// # use candle_core::Tensor; use zoo_core::ModuleT;
/// # let xs = Tensor::ones((1, 3), DType::F32, &dev)?;
/// # assert_eq!(a.forward_t(&xs, false)?.to_vec2::<f32>()?, b.forward_t(&xs, false)?.to_vec2::<f32>()?);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// A key that the builder does not have, or has in another shape; a store of shapes only.
pub fn from_candle(store: &VarStore, vb: &candle_nn::VarBuilder) -> Result<()> {
    // All of them before the first is set: an error leaves the store as it was.
    let mut tensors = Vec::new();
    for slot in store.slots() {
        let Some(var) = slot.var else { bail!("`{}`: a store of shapes only takes no weights", slot.key) };
        if !vb.contains_tensor(&slot.key) {
            bail!("the builder has no `{}`", slot.key)
        }
        let found = vb.get(slot.shape, &slot.key)?;
        tensors.push((var.clone(), found.to_dtype(var.dtype())?.to_device(var.device())?));
    }
    tensors.into_iter().try_for_each(|(var, tensor)| var.set(&tensor))
}

/// A store's tensors as a `candle_nn` builder, for layers of `candle_nn`. It holds copies: later training does not reach
/// them.
///
/// # Errors
/// A store without tensors, or of shapes only.
pub fn to_candle(store: &VarStore) -> Result<candle_nn::VarBuilder<'static>> {
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for slot in store.slots() {
        let Some(var) = slot.var else { bail!("`{}`: a store of shapes only has no weights", slot.key) };
        tensors.insert(slot.key, var.as_detached_tensor().copy()?);
    }
    let Some(first) = tensors.values().next().cloned() else { bail!("the store has no tensors") };
    Ok(candle_nn::VarBuilder::from_tensors(tensors, first.dtype(), first.device()))
}

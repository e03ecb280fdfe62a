//! Counting what a forward pass costs.

use crate::model::{Model, ModelInfo, ModelOptions};
use crate::vars::VarStore;
use candle_core::{Result, Tensor};
use std::cell::Cell;

thread_local! {
    static MACS: Cell<u64> = const { Cell::new(0) };
}

/// Adds to the count of the pass that runs on this thread; called by the operations that multiply.
pub(crate) fn count_macs(n: u64) {
    MACS.with(|macs| macs.set(macs.get() + n));
}

/// Multiply-adds of `model` on one forward pass of `xs` in evaluation: convolutions, linear layers and matrix products,
/// as the published figures count them (FLOPs = 2 · MACs). Normalisation, activations and pooling are not counted.
///
/// # Errors
/// What the forward pass refuses.
pub fn macs(model: &dyn Model, xs: &Tensor) -> Result<u64> {
    let before = MACS.get();
    model.forward_t(xs, false)?;
    Ok(MACS.get() - before)
}

/// Multiply-adds of a registered model on one image of its default size, without allocating its weights for longer than
/// one layer at a time.
///
/// # Errors
/// What building the model or its forward pass refuses.
pub fn model_macs(info: &ModelInfo, options: &ModelOptions) -> Result<u64> {
    let store = VarStore::shapes_only();
    let model = info.build(options, store.root())?;
    let dims = info.dimensions(options);
    let image = Tensor::zeros((1, dims.in_chans, dims.image_size, dims.image_size), store.dtype(), store.device())?;
    macs(model.as_ref(), &image)
}

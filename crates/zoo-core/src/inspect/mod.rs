//! What is read off a registered network without training it: its graph, its multiply-adds, the memory that training
//! will take, and which layer's output is the first that is no number.

mod diagnose;
mod memory_forecast;

pub use diagnose::{Diagnosis, diagnose, first_damaged, first_not_finite};
pub use memory_forecast::{TrainingPlan, training_memory};

use crate::model::{Model, ModelInfo, ModelOptions};
use crate::trace::Graph;
use crate::vars::VarStore;
use candle_core::Result;

impl Graph {
    /// The graph of an image classifier on one image (channels, height, width), in evaluation.
    ///
    /// # Errors
    /// What the forward pass refuses.
    pub fn of_model(model: &dyn Model, (c, h, w): (usize, usize, usize)) -> Result<Self> {
        Self::of(&[&[1, c, h, w]], |inputs| model.forward_t(&inputs[0], false))
    }
}

/// Multiply-adds of a registered model on one image of its default size, without allocating its weights.
///
/// # Errors
/// What building the model or its forward pass refuses.
pub fn model_macs(info: &ModelInfo, options: &ModelOptions) -> Result<u64> {
    let model = info.build(options, VarStore::shapes_only().root())?;
    let dims = info.dimensions(options);
    Ok(Graph::of_model(model.as_ref(), (dims.in_chans, dims.image_size, dims.image_size))?.macs())
}

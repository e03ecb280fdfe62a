//! Where numbers stop being numbers.

use crate::model::Model;
use crate::trace::{Graph, Node, Tracer, is_finite, observe};
use crate::vars::VarStore;
use candle_core::{DType, Result, Tensor, Var};
use std::fmt;

/// Runs a forward pass, in training or in evaluation, and looks at the output of each of its layers: the first that
/// holds a NaN or an infinity, where the pass ends; `None` if there is none. A step without tensors of its own is
/// placed at its block.
///
/// The values are real and whatever the pass moves, such as running statistics, moves: see [`diagnose`], which puts it
/// back. What is one operation elsewhere runs layer by layer here.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{Linear, ModuleT, VarStore, inspect::first_not_finite};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let (a, b) = (Linear::new(2, 3, store.root().pp("a"))?, Linear::new(3, 1, store.root().pp("b"))?);
/// store.parameters()[2].1.set(&Tensor::new(&[[f32::NAN, 0., 0.]], &Device::Cpu)?)?; // b.weight
/// let xs = Tensor::ones((1, 2), DType::F32, &Device::Cpu)?;
/// let found = first_not_finite(|| b.forward_t(&a.forward_t(&xs, true)?, true))?;
/// assert!(found.is_some_and(|node| node.path == "b" && node.kind() == "Linear"));
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// What the forward pass refuses.
pub fn first_not_finite<R>(forward: impl FnOnce() -> Result<R>) -> Result<Option<Node>> {
    let (result, tracer) = observe(Tracer { values: true, ..Tracer::default() }, forward);
    if !tracer.not_finite {
        return result.map(|_| None);
    }
    let Graph { mut nodes, blocks } = tracer.graph;
    let mut found = nodes.pop();
    if let Some(node) = found.as_mut().filter(|node| node.path.is_empty()) {
        node.path = node.block.map_or(String::new(), |block| blocks[block].path.clone());
    }
    Ok(found)
}

/// What [`diagnose`] has found: the first of these that holds, in a sentence by its `Display`.
#[derive(Debug, Clone, PartialEq)]
pub enum Diagnosis {
    /// The images hold a value that is not finite.
    Input,
    /// The parameter with this key does.
    Parameter(String),
    /// All of these are finite, and this is the first step whose output is not.
    Output(Node),
    /// All outputs are finite, but the running statistic with this key, which only evaluation reads, is not.
    Statistic(String),
    /// Nothing of the network is at fault.
    Finite {
        /// The largest magnitude among the logits.
        largest_logit: f64,
    },
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input => write!(f, "the input is not finite"),
            Self::Parameter(key) => write!(f, "the parameter `{key}` is not finite"),
            Self::Output(node) if node.path.is_empty() => {
                write!(f, "the first output that is not finite is a {}'s", node.kind())
            }
            Self::Output(node) => {
                write!(f, "the first output that is not finite is that of {} ({})", node.path, node.kind())
            }
            Self::Statistic(key) => {
                write!(f, "every output of a training pass is finite, but the running statistic `{key}` is not")
            }
            Self::Finite { largest_logit } => {
                write!(f, "every output of the network is finite; the largest logit is {largest_logit:.2e}")
            }
        }
    }
}

/// Why the loss of `images` is not finite: looks at the images, at the parameters of `store`, and at each output of a
/// training pass. Running statistics and dropout are put back to where they were, so that looking changes nothing.
///
/// # Errors
/// What the forward pass refuses.
pub fn diagnose(model: &dyn Model, store: &VarStore, images: &Tensor) -> Result<Diagnosis> {
    if !is_finite(images)? {
        return Ok(Diagnosis::Input);
    }
    if let Some(key) = not_finite(store.parameters())? {
        return Ok(Diagnosis::Parameter(key));
    }
    let copy = |(_, var): (String, Var)| Ok((var.as_detached_tensor().copy()?, var));
    let buffers = store.buffers().into_iter().map(copy).collect::<Result<Vec<_>>>()?;
    let dropout = store.dropout_state();
    let found = training_pass(model, store, images);
    buffers.iter().try_for_each(|(before, var)| var.set(before))?;
    store.set_dropout_state(&dropout);
    found
}

fn training_pass(model: &dyn Model, store: &VarStore, images: &Tensor) -> Result<Diagnosis> {
    let mut logits = None;
    let node = first_not_finite(|| {
        logits = Some(model.forward_auxiliary(images, true)?.0.detach());
        Ok(())
    })?;
    if let Some(node) = node {
        return Ok(Diagnosis::Output(node));
    }
    if let Some(key) = not_finite(store.buffers())? {
        return Ok(Diagnosis::Statistic(key));
    }
    let largest = |logits: Tensor| logits.abs()?.flatten_all()?.max(0)?.to_dtype(DType::F64)?.to_scalar::<f64>();
    Ok(Diagnosis::Finite { largest_logit: logits.map_or(Ok(0.0), largest)? })
}

/// The key of the first of a network's parameters, and then of its running statistics, that holds a value which is not
/// finite: with such a one it gives no answer.
///
/// # Errors
/// A device that does not answer.
pub fn first_damaged(store: &VarStore) -> Result<Option<String>> {
    match not_finite(store.parameters())? {
        None => not_finite(store.buffers()),
        found => Ok(found),
    }
}

/// The key of the first tensor that is not finite.
fn not_finite(vars: Vec<(String, Var)>) -> Result<Option<String>> {
    for (key, var) in vars {
        if !is_finite(&var)? {
            return Ok(Some(key));
        }
    }
    Ok(None)
}

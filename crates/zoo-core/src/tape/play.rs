//! A tape played backwards, and the gradients of a loss straight from it.

use super::recording::{Backward, Gradient, Node, Recording};
use super::{Run, is_on_tape};
use crate::pass::{self, takes_tape};
use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, TensorId, bail};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The value of a loss and the gradients of all variables that it depends on, `xs` among them if it is one. `f` gets
/// `xs` and returns the loss, one number. Where the network runs [`recorded`](super::recorded), as those of the zoo do,
/// it and the loss are on one tape, which hands its gradients straight to the caller: `loss.backward()` gives the same
/// numbers, but has candle add each to zeros that it fills first, two passes over every weight. Any other network stays
/// on candle's graph.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::tape::{recorded, value_and_grad};
/// use zoo_core::{Linear, ModuleT, VarStore, ops::cross_entropy};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let fc = Linear::new(3, 2, store.root())?;
/// let (images, labels) = (Tensor::ones((4, 3), DType::F32, &Device::Cpu)?, Tensor::new(&[0u32, 1, 0, 1], &Device::Cpu)?);
/// let (loss, gradients) = value_and_grad(&images, |xs| {
///     let logits = recorded(xs, true, |xs| fc.forward_t(xs, true))?;
///     cross_entropy(&logits, &labels, 0.0)
/// })?;
/// assert!(loss.to_scalar::<f32>()? > 0.0);
/// assert!(store.parameters().iter().all(|(_, var)| gradients.get(var).is_some()));
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// What `f` refuses, a loss of more than one element, and an operation of candle's own on a recorded tensor that did
/// not go through [`foreign_op`](super::foreign_op).
pub fn value_and_grad(xs: &Tensor, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<(Tensor, GradStore)> {
    if is_on_tape(xs) || !takes_tape(xs) {
        let loss = f(xs)?;
        return Ok((loss.detach(), loss.backward()?));
    }
    let Run { inputs, outputs, recording } = Run::new(&[xs], true, |inputs| Ok(vec![f(&inputs[0])?]))?;
    let Recording { nodes, known, tracked, variables, .. } = recording;
    let [loss] = outputs.as_slice() else { bail!("tape: a pass without a loss") };
    if loss.elem_count() != 1 {
        bail!("value_and_grad: a loss is one number, got a tensor of {:?}", loss.dims())
    }
    if !known.contains(&loss.id()) {
        // Made of variables alone: candle's graph has it.
        return Ok((loss.detach(), loss.backward()?));
    }
    let mut state = State::new(nodes, tracked);
    state.grads.insert(loss.id(), Gradient::new(loss.ones_like()?));
    state.play()?;
    let mut leaves = Vec::with_capacity(variables.len());
    // What candle has made of variables: its own backward pass goes on from there.
    let mut onward = Tensor::zeros((), loss.dtype(), loss.device())?;
    let read = variables.iter().map(|tensor| (tensor, tensor.id()));
    for (tensor, id) in read.chain(inputs.iter().map(|(source, input)| (source, input.id()))) {
        let Some(grad) = state.grads.remove(&id) else { continue };
        match tensor.is_variable() {
            true => leaves.push((tensor, grad)),
            false => onward = (onward + (tensor * grad.tensor)?.sum_all()?)?,
        }
    }
    let mut grads = onward.backward()?;
    for (tensor, grad) in leaves {
        let grad = match grads.remove(tensor) {
            Some(earlier) => Gradient::new(earlier).add(grad)?,
            None => grad,
        };
        grads.insert(tensor, grad.tensor);
    }
    Ok((loss.detach(), grads))
}

/// The operations of a pass, and the gradients that have come so far.
pub(super) struct State {
    /// `None` once played.
    nodes: Option<Vec<Node>>,
    tracked: Arc<HashSet<TensorId>>,
    /// Of the outputs until the tape is played, of the variables afterwards.
    pub grads: HashMap<TensorId, Gradient>,
}

impl State {
    pub fn new(nodes: Vec<Node>, tracked: HashSet<TensorId>) -> Self {
        Self { nodes: Some(nodes), tracked: Arc::new(tracked), grads: HashMap::new() }
    }

    pub fn is_played(&self) -> bool {
        self.nodes.is_none()
    }

    /// Walks the tape backwards, unless that was done: from the gradients of the outputs to those of the variables.
    pub fn play(&mut self) -> Result<()> {
        let Some(nodes) = self.nodes.take() else { return Ok(()) };
        // A thread that waits while it plays another tape may have taken this one up: that one goes on afterwards.
        pass::during(|pass| &mut pass.playing, Some(self.tracked.clone()), || self.walk(nodes)).0
    }

    fn walk(&mut self, nodes: Vec<Node>) -> Result<()> {
        for node in nodes.into_iter().rev() {
            let Some(mut grad) = self.grads.remove(&node.output) else { continue };
            // Who reads bfloat16 maps takes them as they lie.
            if !grad.tensor.is_contiguous() && grad.tensor.dtype() != DType::BF16 {
                grad = Gradient::new(grad.tensor.contiguous()?);
            }
            let grads = match node.backward {
                Backward::Separate(backward) => backward(grad)?,
                Backward::Accumulating(backward) => {
                    let mut earlier = |id: &Option<TensorId>| id.and_then(|id| self.grads.remove(&id));
                    let earlier = node.inputs.iter().map(&mut earlier).collect();
                    backward(grad, earlier)?
                }
            };
            for (id, grad) in node.inputs.into_iter().zip(grads) {
                let (Some(id), Some(grad)) = (id, grad) else { continue };
                let grad = match self.grads.remove(&id) {
                    Some(earlier) => earlier.add(grad)?,
                    None => grad,
                };
                self.grads.insert(id, grad);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tape::recorded;
    use candle_core::{Device, Var};

    /// Plain variables, one that candle has scaled, one that is read twice, and the input itself.
    #[test]
    fn a_loss_on_the_tape_has_the_gradients_of_its_backward_pass() -> Result<()> {
        let var = |dims: (usize, usize), from: f64| {
            let n = dims.0 * dims.1;
            let values = (0..n).map(|i| from + ((7 * i) % 11) as f64 / 10.0).collect::<Vec<_>>();
            Var::from_vec(values, dims, &Device::Cpu)
        };
        let (xs, a, b, c) = (var((4, 3), -0.5)?, var((5, 3), -0.4)?, var((5, 5), -0.3)?, var((5, 5), 0.1)?);
        let labels = Tensor::new(&[0u32, 3, 4, 1], &Device::Cpu)?;
        let net = |xs: &Tensor| {
            let ys = crate::ops::linear(xs, &a, None)?;
            let scaled = (c.as_tensor() * 0.5)?;
            let ys = crate::ops::linear(&crate::ops::linear(&ys, &b, None)?, &b, None)?;
            crate::ops::add(&crate::ops::linear(&ys, &scaled, None)?, &crate::ops::linear(&ys, &c, None)?)
        };
        let loss = |ys: &Tensor| crate::ops::cross_entropy(ys, &labels, 0.1);
        let on_tape = |xs: &Tensor| loss(&recorded(xs, true, net)?);
        // One that knows no tape, whose operations are candle's own in part.
        let foreign = |xs: &Tensor| {
            let ys = net(xs)?;
            loss(&crate::ops::add(&crate::ops::pointwise(&ys, crate::Pointwise::Relu)?, &(&ys * 0.5)?)?)
        };
        for (name, f) in [("tape", &on_tape as &dyn Fn(&Tensor) -> Result<Tensor>), ("foreign", &foreign)] {
            let whole = f(&xs)?;
            let (want, (value, got)) = (whole.backward()?, value_and_grad(&xs, f)?);
            assert_eq!(value.to_scalar::<f64>()?, whole.to_scalar::<f64>()?);
            for var in [&xs, &a, &b, &c] {
                let (got, want) = (got.get(var).expect("a gradient"), want.get(var).expect("a gradient"));
                let error = (got - want)?.abs()?.max_all()?.to_scalar::<f64>()?;
                assert!(error < 1e-14, "{name} {:?}: {error}", var.dims());
            }
            // Images ask for no gradient.
            assert!(value_and_grad(&xs.as_detached_tensor(), f)?.1.get(&xs).is_none());
        }
        assert!(value_and_grad(&xs, |xs| crate::ops::linear(xs, &a, None)).is_err());
        Ok(())
    }
}

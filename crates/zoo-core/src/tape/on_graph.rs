//! A recorded pass as operations of candle's graph.

use super::Run;
use super::play::State;
use super::recording::{Gradient, Recording};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, TensorId, bail};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Hangs a pass into candle's graph: its outputs there.
pub(super) fn put(run: Run) -> Result<Vec<Tensor>> {
    let Run { inputs, outputs, recording } = run;
    let Recording { nodes, known, tracked, variables, .. } = recording;
    let tape = Tape(Arc::new(Mutex::new(State::new(nodes, tracked))));
    // A chain of scalars through all variables, at whose upper end the outputs hang. Walking it from above, candle asks
    // each link for its variables' gradients; the first link to be asked has the gradients of all outputs.
    let (source, _) = &inputs[0];
    let mut link = Tensor::zeros((), source.dtype(), source.device())?;
    let sources = inputs.iter().filter(|(source, _)| source.track_op()).map(|(source, input)| (source, input.id()));
    for (tensor, id) in sources.chain(variables.iter().map(|variable| (variable, variable.id()))) {
        link = link.apply_op2(tensor, Link { tape: tape.clone(), id })?;
    }
    let output = |ys: Tensor| match known.contains(&ys.id()) {
        true => link.apply_op1(Output { tape: tape.clone(), ys }),
        // Made of variables alone: candle's graph has it.
        false => Ok(ys),
    };
    outputs.into_iter().map(output).collect()
}

#[derive(Clone)]
struct Tape(Arc<Mutex<State>>);

impl Tape {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plays the tape unless it was, and takes the gradient of a variable.
    fn gradient(&self, id: TensorId) -> Result<Option<Tensor>> {
        let mut state = self.state();
        state.play()?;
        Ok(state.grads.remove(&id).map(|grad| grad.tensor))
    }
}

/// An output of the tape: (the chain's upper end) -> the tensor that was computed.
struct Output {
    tape: Tape,
    ys: Tensor,
}

impl CustomOp1 for Output {
    fn name(&self) -> &'static str {
        "tape"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let ys = self.ys.contiguous()?;
        let (storage, layout) = ys.storage_and_layout();
        match (&*storage, layout.contiguous_offsets()) {
            (candle_core::Storage::Cpu(CpuStorage::F32(all)), Some((a, b))) => {
                Ok((CpuStorage::F32(all[a..b].to_vec()), ys.shape().clone()))
            }
            (candle_core::Storage::Cpu(CpuStorage::F64(all)), Some((a, b))) => {
                Ok((CpuStorage::F64(all[a..b].to_vec()), ys.shape().clone()))
            }
            (candle_core::Storage::Cpu(CpuStorage::BF16(all)), Some((a, b))) => {
                Ok((CpuStorage::BF16(all[a..b].to_vec()), ys.shape().clone()))
            }
            _ => bail!("tape: an output must be f32, f64 or bfloat16 on the CPU, got {:?}", ys.dtype()),
        }
    }

    fn bwd(&self, link: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut state = self.tape.state();
        if state.is_played() {
            bail!("tape: this pass has been walked backwards already; run the network forward again")
        }
        let grad = Gradient::of(grad.contiguous()?, false);
        let grad = match state.grads.remove(&self.ys.id()) {
            Some(earlier) => earlier.add(grad)?,
            None => grad,
        };
        state.grads.insert(self.ys.id(), grad);
        Ok(Some(link.zeros_like()?))
    }
}

/// A link of the chain of scalars, with its variable.
struct Link {
    tape: Tape,
    id: TensorId,
}

impl CustomOp2 for Link {
    fn name(&self) -> &'static str {
        "tape link"
    }

    fn cpu_fwd(&self, link: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((link.clone(), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.clone()), self.tape.gradient(self.id)?))
    }
}

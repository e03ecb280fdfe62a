//! What this thread's forward or backward pass does: the one thread-local of this crate, and the one question about it.
//!
//! A layer that has a faster way than step by step asks [`mode`] once. An operation asks [`backend`] where it runs.

use crate::tape::recording::Recording;
use crate::trace::graph::Tracer;
use candle_core::{DType, Result, Tensor, TensorId};
use std::any::Any;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// The state of a thread's pass.
#[derive(Default)]
pub(crate) struct Pass {
    /// The tape that is being recorded.
    pub recording: Option<Recording>,
    /// What the tape that is being played tracks.
    pub playing: Option<Arc<HashSet<TensorId>>>,
    /// Who looks at each step.
    pub tracer: Option<Tracer>,
    /// The maps that stages hand on, where somebody collects them.
    pub stages: Option<Vec<(String, Tensor)>>,
    /// Whether candle's own operations stand in for the kernels.
    pub fallback: bool,
    /// What operations have prepared of the weights, where several calls read the same ones.
    pub prepared: Option<Arc<Prepared>>,
}

/// What is prepared of weights, by their place in memory and the sizes of the operation.
pub(crate) type Prepared = Mutex<HashMap<(usize, Vec<usize>), Arc<dyn Any + Send + Sync>>>;

thread_local! {
    static PASS: RefCell<Pass> = RefCell::default();
}

/// How the layers of a pass run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// On shapes alone, one by one: nothing is computed.
    Shapes,
    /// One by one: somebody looks at their values, there are no kernels, or a gradient is wanted off the tape.
    Layers,
    /// With kernels, in training, on the tape.
    Tape,
    /// With kernels, in evaluation, for no gradient.
    Inference,
}

/// Where an operation runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Nowhere: only the output's shape is wanted.
    Shapes,
    /// A kernel of ours, in the tensor's own type.
    Kernel,
    /// Kernels of mixed precision, where there are such, else in f32 and rounded: bfloat16 maps on the CPU.
    Mixed,
    /// A kernel of ours, in f32, for f16 on the CPU.
    KernelInF32,
    /// Operations of candle's.
    Fallback,
}

impl Pass {
    fn backend(&self, xs: &Tensor) -> Backend {
        if self.tracer.as_ref().is_some_and(|tracer| !tracer.values) {
            return Backend::Shapes;
        }
        match (xs.device().is_cpu(), xs.dtype()) {
            _ if self.fallback => Backend::Fallback,
            (true, DType::F32 | DType::F64) => Backend::Kernel,
            (true, DType::BF16) => Backend::Mixed,
            (true, DType::F16) => Backend::KernelInF32,
            _ => Backend::Fallback,
        }
    }

    fn knows(&self, tensor: &Tensor) -> bool {
        self.recording.as_ref().is_some_and(|tape| tape.known.contains(&tensor.id()))
    }

    fn tracks(&self, tensor: &Tensor) -> bool {
        tensor.track_op()
            || self.playing.as_ref().is_some_and(|tracked| tracked.contains(&tensor.id()))
            || self.recording.as_ref().is_some_and(|tape| tape.tracked.contains(&tensor.id()))
    }
}

/// How a layer runs that reads `xs` in training or in evaluation.
pub(crate) fn mode(xs: &Tensor, train: bool) -> Mode {
    with(|pass| match pass.backend(xs) {
        Backend::Shapes => Mode::Shapes,
        Backend::Kernel | Backend::Mixed if pass.tracer.is_some() => Mode::Layers,
        Backend::Kernel | Backend::Mixed if train && pass.knows(xs) => Mode::Tape,
        Backend::Kernel | Backend::Mixed if !train && !pass.tracks(xs) => Mode::Inference,
        _ => Mode::Layers,
    })
}

/// Whether a pass on `xs` can go on a tape: there are kernels for it.
pub(crate) fn takes_tape(xs: &Tensor) -> bool {
    matches!(backend(xs), Backend::Kernel | Backend::Mixed)
}

/// Where an operation on `xs` runs.
pub(crate) fn backend(xs: &Tensor) -> Backend {
    with(|pass| pass.backend(xs))
}

/// Whether `tensor` belongs to the tape that this thread records: an input of its pass, or the output of one of its
/// operations. Operations on it go on that tape. A thread that waits inside a pass may take up work of another network,
/// whose tensors this tape does not know: they go on candle's graph, or on a tape of their own.
pub(crate) fn is_on_tape(tensor: &Tensor) -> bool {
    with(|pass| pass.knows(tensor))
}

/// Whether a tensor asks for its gradient, of candle's graph or of the tape.
pub(crate) fn tracks(tensor: &Tensor) -> bool {
    with(|pass| pass.tracks(tensor))
}

/// What `make` prepares of a weight that lies at `place`, for sizes that `key` tells apart: once for all calls of a pass that
/// reads the same weights many times. What is made must hold the weight, so that its place is nobody else's.
pub(crate) fn prepared<T: Send + Sync + 'static>(
    place: usize,
    key: &[usize],
    make: impl FnOnce() -> Result<T>,
) -> Result<Arc<T>> {
    let Some(all) = with(|pass| pass.prepared.clone()) else { return Ok(Arc::new(make()?)) };
    let key = (place, key.to_vec());
    let lock = || all.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(Ok(found)) = lock().get(&key).map(|found| found.clone().downcast::<T>()) {
        return Ok(found);
    }
    // Not under the lock: a thread that waits inside of `make` may take up another call. Who comes second has made the same.
    let made = Arc::new(make()?);
    lock().insert(key, made.clone());
    Ok(made)
}

/// Lends this thread's pass. `f` runs no operation.
pub(crate) fn with<R>(f: impl FnOnce(&mut Pass) -> R) -> R {
    PASS.with_borrow_mut(f)
}

/// Runs `f` while a field of the pass holds `value`, and puts the present one back, whatever becomes of `f`: its
/// result, and what the field held at the end.
pub(crate) fn during<V: 'static, R>(field: fn(&mut Pass) -> &mut V, value: V, f: impl FnOnce() -> R) -> (R, Option<V>) {
    struct Restore<V: 'static>(fn(&mut Pass) -> &mut V, Option<V>);
    impl<V> Restore<V> {
        fn restore(&mut self) -> Option<V> {
            let value = self.1.take()?;
            Some(with(|pass| std::mem::replace((self.0)(pass), value)))
        }
    }
    impl<V> Drop for Restore<V> {
        fn drop(&mut self) {
            self.restore();
        }
    }
    let mut restore = Restore(field, Some(with(|pass| std::mem::replace(field(pass), value))));
    let result = f();
    (result, restore.restore())
}

/// Runs `f` as on a thread of its own: neither recording nor playing, with nothing prepared. Work that a thread takes up
/// while it waits inside an operation of other work knows nothing of that one's tape and weights.
pub(crate) fn isolated<R>(f: impl FnOnce() -> R) -> R {
    let off_tape = || during(|pass| &mut pass.recording, None, f).0;
    during(|pass| &mut pass.prepared, None, || during(|pass| &mut pass.playing, None, off_tape).0).0
}

/// Runs `f`, which changes no weight: what kernels of mixed precision lay out of the weights for evaluation, they lay out
/// once for all of its passes, for each size of a batch. A weight that changes all the same is read as it was.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use zoo_core::{Conv2dConfig, ModuleT, Precision, VarStore, conv_bn, with_fixed_weights};
///
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let at = (store.root().pp("conv"), store.root().pp("norm"));
/// let net = conv_bn((3, 8), Conv2dConfig::new(3).padding(1), Default::default(), None, at)?;
/// let images = Precision::Bf16.cast(&Tensor::ones((2, 3, 8, 8), DType::F32, &Device::Cpu)?)?;
/// let batches = [&images, &images, &images];
/// let features: Result<Vec<_>> = with_fixed_weights(|| batches.iter().map(|xs| net.forward_t(xs, false)).collect());
/// assert_eq!(features?.len(), 3);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn with_fixed_weights<R>(f: impl FnOnce() -> R) -> R {
    let prepared = shared_preparations();
    during(|pass| &mut pass.prepared, Some(prepared), f).0
}

/// What this thread's passes have prepared, or room for it.
pub(crate) fn shared_preparations() -> Arc<Prepared> {
    with(|pass| pass.prepared.clone()).unwrap_or_default()
}

/// Runs `f` with every operation made of candle's own, as on a device without kernels: the reference that the kernels
/// are tested against, and a way to tell whether a kernel is to blame. The backward pass of what `f` computed stays so,
/// wherever it runs.
pub fn with_fallback<R>(f: impl FnOnce() -> R) -> R {
    during(|pass| &mut pass.fallback, true, f).0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(place: usize, number: u32) -> u32 {
        *prepared(place, &[8], || Ok(number)).unwrap()
    }

    #[test]
    fn fixed_weights_are_prepared_once_and_other_work_prepares_its_own() {
        assert_eq!((made(1, 10), made(1, 11)), (10, 11), "nothing is kept outside");
        with_fixed_weights(|| {
            assert_eq!((made(1, 20), made(1, 21), made(2, 22)), (20, 20, 22));
            with_fixed_weights(|| assert_eq!(made(1, 23), 20));
            isolated(|| assert_eq!(made(1, 24), 24));
            assert_eq!(made(1, 25), 20);
        });
        assert_eq!(made(1, 30), 30);
    }
}

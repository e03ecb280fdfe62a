//! A pass recorded by ourselves: candle's autograd as the interface, without its traffic.
//!
//! Candle's backward pass adds every gradient to a tensor of zeros that it makes first: four passes over memory for each
//! tensor of the graph, which take longer than many a convolution. And it keeps every activation until the loss is
//! dropped. So the networks of the zoo run inside [`on_tape`]: there the operations of [`crate::ops`] go on a tape of our own, and
//! candle's graph sees the whole pass as one operation whose inputs are the variables. A gradient that arrives first is moved, the
//! next one is added in place, kernels may write over what they own, an activation is freed when its gradient has passed.
//!
//! Nothing changes for a caller: `loss.backward()` walks candle's graph down to the tape's outputs, plays the tape backwards
//! once, and puts every variable's gradient into candle's `GradStore`.
//!
//! Operations of candle do not know the tape. One that works on recorded tensors goes through [`candle`], which differentiates it
//! by candle's own graph; an operation that does not is found out when the recording ends, and is an error.

use crate::ops::{AddTo, Path, has_whole_rows, path};
use crate::trace;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, TensorId, Var, bail};
use rayon::prelude::*;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

thread_local! {
    static RECORDING: RefCell<Option<Recording>> = const { RefCell::new(None) };
    /// What the tape that is being played tracks.
    static PLAYING: RefCell<Option<Arc<HashSet<TensorId>>>> = const { RefCell::new(None) };
}

/// A gradient on its way down the tape.
pub(crate) struct Gradient {
    pub tensor: Tensor,
    /// Nobody else reads this tensor's memory: it may be written over.
    pub owned: bool,
}

impl Gradient {
    /// One that a kernel has just made.
    pub fn new(tensor: Tensor) -> Self {
        Self { tensor, owned: true }
    }

    /// The sum of two, over the memory of one that is owned.
    pub fn add(self, other: Self) -> Result<Self> {
        let (to, from) = if self.owned { (self, other) } else { (other, self) };
        if to.owned && to.tensor.is_contiguous() {
            let from = if has_whole_rows(&from.tensor) { from.tensor } else { from.tensor.contiguous()? };
            to.tensor.inplace_op2(&from, &AddTo)?;
            return Ok(to);
        }
        Ok(Self::new((to.tensor + from.tensor)?))
    }
}

/// One gradient for each input of an operation, where there is one.
type Gradients = Vec<Option<Gradient>>;

/// How an operation's gradient passes to its inputs.
enum Backward {
    /// To be added to those of other readers.
    Apart(Box<dyn FnOnce(Gradient) -> Result<Gradients> + Send>),
    /// Given what other readers have sent so far, the sums with it.
    Onto(Box<dyn FnOnce(Gradient, Gradients) -> Result<Gradients> + Send>),
}

/// One recorded operation.
struct Node {
    name: &'static str,
    inputs: Vec<Option<TensorId>>,
    output: TensorId,
    backward: Backward,
}

#[derive(Default)]
struct Recording {
    nodes: Vec<Node>,
    /// The pass's input and every output of its operations, whether a gradient is wanted or not.
    known: HashSet<TensorId>,
    /// An input that becomes known when [`on_tape`] takes it: a network that does not speak the tape stays on candle's graph.
    offered: Option<TensorId>,
    /// Those, and the variables, whose gradient is wanted.
    tracked: HashSet<TensorId>,
    /// Every variable that an operation has read, once.
    variables: Vec<Tensor>,
}

impl Recording {
    fn tracks(&mut self, tensor: &Tensor) -> bool {
        // A variable, or what candle has made of one.
        if tensor.track_op() && self.tracked.insert(tensor.id()) {
            self.variables.push(tensor.clone());
        }
        self.tracked.contains(&tensor.id())
    }
}

/// Runs `f` with another recording, or none, and puts the present one back, whatever becomes of `f`.
fn while_recording<R>(recording: Option<Recording>, f: impl FnOnce() -> R) -> (R, Option<Recording>) {
    struct Restore(Option<Recording>);
    impl Drop for Restore {
        fn drop(&mut self) {
            RECORDING.set(self.0.take());
        }
    }
    let _restore = Restore(RECORDING.replace(recording));
    let result = f();
    (result, RECORDING.take())
}

/// Runs `f` as on a thread of its own: neither recording nor playing. Work that a thread takes up while it waits inside an operation of
/// other work knows nothing of that one's tape.
pub(crate) fn apart<R>(f: impl FnOnce() -> R) -> R {
    struct Restore(Option<Arc<HashSet<TensorId>>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            PLAYING.set(self.0.take());
        }
    }
    let _restore = Restore(PLAYING.take());
    while_recording(None, f).0
}

/// Whether `tensor` belongs to the tape that runs on this thread: its input, or the output of one of its operations. Operations on it go
/// on that tape. A thread that waits inside a pass may take up work of another network, whose tensors this tape does not know: they go on
/// candle's graph, or on a tape of their own.
pub(crate) fn is_recorded(tensor: &Tensor) -> bool {
    RECORDING.with_borrow(|tape| tape.as_ref().is_some_and(|tape| tape.known.contains(&tensor.id())))
}

/// Whether a pass on `xs` goes on the tape that runs on this thread.
fn joins(xs: &Tensor) -> bool {
    RECORDING.with_borrow_mut(|tape| {
        let Some(tape) = tape else { return false };
        if tape.offered == Some(xs.id()) {
            tape.known.insert(xs.id());
        }
        tape.known.contains(&xs.id())
    })
}

/// [`is_recorded`] for at least one of `tensors`.
fn any_recorded(tensors: &[&Tensor]) -> bool {
    tensors.iter().any(|tensor| is_recorded(tensor))
}

/// Whether a tensor asks for its gradient, of candle's graph or of the tape.
pub(crate) fn tracks(tensor: &Tensor) -> bool {
    tensor.track_op()
        || PLAYING.with_borrow(|playing| playing.as_ref().is_some_and(|tracked| tracked.contains(&tensor.id())))
        || RECORDING.with_borrow(|tape| tape.as_ref().is_some_and(|tape| tape.tracked.contains(&tensor.id())))
}

/// Puts an operation on the tape. `backward` maps the output's gradient to one for each input, `None` where there is none.
pub(crate) fn record(
    name: &'static str,
    inputs: &[&Tensor],
    output: &Tensor,
    backward: impl FnOnce(Gradient) -> Result<Gradients> + Send + 'static,
) {
    push(name, inputs, output, Backward::Apart(Box::new(backward)));
}

/// [`record`] for an operation that adds to the gradients which other readers of its inputs have sent: `backward` gets these too and
/// returns the sums. It saves a tensor that many read, as those of a dense block are, a pass for each.
pub(crate) fn record_onto(
    name: &'static str,
    inputs: &[&Tensor],
    output: &Tensor,
    backward: impl FnOnce(Gradient, Gradients) -> Result<Gradients> + Send + 'static,
) {
    push(name, inputs, output, Backward::Onto(Box::new(backward)));
}

fn push(name: &'static str, inputs: &[&Tensor], output: &Tensor, backward: Backward) {
    RECORDING.with_borrow_mut(|tape| {
        let Some(tape) = tape.as_mut().filter(|tape| inputs.iter().any(|t| tape.known.contains(&t.id()))) else {
            return;
        };
        tape.known.insert(output.id());
        let inputs: Vec<Option<TensorId>> = inputs.iter().map(|t| tape.tracks(t).then(|| t.id())).collect();
        if inputs.iter().any(Option::is_some) {
            tape.tracked.insert(output.id());
            tape.nodes.push(Node { name, inputs, output: output.id(), backward });
        }
    });
}

/// What an operation has made of `grad`: its own, unless it handed on the memory that it got.
fn made(gradient: Option<Tensor>, grad: &Gradient) -> Option<Gradient> {
    gradient.map(|tensor| {
        let is_handed_on = std::ptr::eq(&*tensor.storage_and_layout().0, &*grad.tensor.storage_and_layout().0);
        Gradient { owned: !is_handed_on, tensor }
    })
}

/// Runs an operation of one tensor, on the tape if the tensor is, otherwise on candle's graph.
pub(crate) fn apply1(xs: &Tensor, op: impl CustomOp1 + Send + Sync + 'static) -> Result<Tensor> {
    if !is_recorded(xs) {
        return xs.apply_op1(op);
    }
    let ys = xs.apply_op1_no_bwd(&op)?;
    let (x, y) = (xs.clone(), ys.clone());
    record(op.name(), &[xs], &ys, move |grad| Ok(vec![made(op.bwd(&x, &y, &grad.tensor)?, &grad)]));
    Ok(ys)
}

/// Runs an operation of two tensors.
pub(crate) fn apply2(a: &Tensor, b: &Tensor, op: impl CustomOp2 + Send + Sync + 'static) -> Result<Tensor> {
    if !any_recorded(&[a, b]) {
        return a.apply_op2(b, op);
    }
    let ys = a.apply_op2_no_bwd(b, &op)?;
    let (x0, x1, y) = (a.clone(), b.clone(), ys.clone());
    let name = CustomOp2::name(&op);
    record(name, &[a, b], &ys, move |grad| {
        let (d0, d1) = op.bwd(&x0, &x1, &y, &grad.tensor)?;
        Ok(vec![made(d0, &grad), made(d1, &grad)])
    });
    Ok(ys)
}

/// Runs an operation of three tensors.
pub(crate) fn apply3(a: &Tensor, b: &Tensor, c: &Tensor, op: impl CustomOp3 + Send + Sync + 'static) -> Result<Tensor> {
    if !any_recorded(&[a, b, c]) {
        return a.apply_op3(b, c, op);
    }
    let ys = a.apply_op3_no_bwd(b, c, &op)?;
    let (x0, x1, x2, y) = (a.clone(), b.clone(), c.clone(), ys.clone());
    let name = CustomOp3::name(&op);
    record(name, &[a, b, c], &ys, move |grad| {
        let (d0, d1, d2) = op.bwd(&x0, &x1, &x2, &y, &grad.tensor)?;
        Ok([d0, d1, d2].map(|d| made(d, &grad)).into())
    });
    Ok(ys)
}

/// A tensor under another shape. A view, on the tape as well.
///
/// # Errors
/// A shape of another number of elements.
pub fn reshape(xs: &Tensor, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    if !is_recorded(xs) {
        return xs.reshape(shape);
    }
    let ys = xs.contiguous()?.reshape(shape)?;
    if ys.id() != xs.id() {
        let shape = xs.shape().clone();
        record("reshape", &[xs], &ys, move |grad| {
            let tensor = grad.tensor.contiguous()?.reshape(shape)?;
            Ok(vec![Some(Gradient { tensor, owned: grad.owned })])
        });
    }
    Ok(ys)
}

/// The same elements in row-major order, on the tape as well.
pub(crate) fn contiguous(xs: &Tensor) -> Result<Tensor> {
    let ys = xs.contiguous()?;
    if ys.id() != xs.id() {
        record("contiguous", &[xs], &ys, |grad| Ok(vec![Some(grad)]));
    }
    Ok(ys)
}

/// Runs operations of candle on tensors that may be on the tape. Off the tape it is `f(inputs)`. On it, `f` gets copies that
/// candle's graph starts from, and its backward pass is candle's: right for any operation, and no faster than candle.
///
/// # Errors
/// What `f` refuses.
pub fn candle(inputs: &[&Tensor], f: impl FnOnce(&[Tensor]) -> Result<Tensor>) -> Result<Tensor> {
    let owned = || inputs.iter().map(|&t| t.clone()).collect::<Vec<_>>();
    if !any_recorded(inputs) {
        return f(&owned());
    }
    let leaves: Vec<(Tensor, bool)> = inputs
        .iter()
        .map(|&t| match t.is_variable() {
            false if tracks(t) => Ok((Var::from_tensor(t)?.into_inner(), true)),
            is_variable => Ok((t.clone(), is_variable)),
        })
        .collect::<Result<_>>()?;
    // `f` may call operations of ours: for them, too, there is no tape now.
    let inner = while_recording(None, || f(&leaves.iter().map(|(leaf, _)| leaf.clone()).collect::<Vec<_>>())).0?;
    let ys = inner.detach().contiguous()?;
    record("candle", inputs, &ys, move |grad| {
        let mut grads = (&inner * grad.tensor)?.sum_all()?.backward()?;
        Ok(leaves.iter().map(|(leaf, wanted)| grads.remove(leaf).filter(|_| *wanted).map(Gradient::new)).collect())
    });
    Ok(ys)
}

/// Runs a training pass on a tape: `f` gets `xs`, and what it returns is on candle's graph, an operation of the variables that
/// `f` has read, and of `xs` if that asks for its gradient. In evaluation, for an `xs` that is on a tape already, while a graph is
/// drawn, and where there are no kernels, this is `f(xs)`.
///
/// `f` must not keep tensors that it makes for later: outside they are constants.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{Linear, ModuleT, VarStore, relu, tape::on_tape};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let (a, b) = (Linear::new(3, 8, store.root().pp("a"))?, Linear::new(8, 2, store.root().pp("b"))?);
/// let xs = Tensor::ones((4, 3), DType::F32, &Device::Cpu)?;
/// let ys = on_tape(&xs, true, |xs| b.forward_t(&relu(&a.forward_t(xs, true)?)?, true))?;
/// let gradients = ys.sum_all()?.backward()?;
/// assert!(store.parameters().iter().all(|(_, var)| gradients.get(var).is_some()));
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// What `f` refuses, and an operation of candle's own on a recorded tensor that did not go through [`candle`].
pub fn on_tape(xs: &Tensor, train: bool, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let mut outputs = outputs_on_tape(xs, train, |xs| Ok(vec![f(xs)?]))?;
    match outputs.pop() {
        Some(output) => Ok(output),
        None => bail!("tape: a pass without an output"),
    }
}

/// [`on_tape`] in training; in evaluation `f` gets `images` images at a time, and every thread its own, so that what a layer
/// makes is still in the cache when the next one reads it. For networks whose weights are small beside their
/// activations: each call of `f` reads them all.
///
/// # Errors
/// As [`on_tape`].
pub fn by_images(
    xs: &Tensor,
    train: bool,
    images: usize,
    f: impl Fn(&Tensor) -> Result<Tensor> + Sync,
) -> Result<Tensor> {
    let batch = xs.dims().first().copied().unwrap_or(0);
    let whole = train || is_recorded(xs) || tracks(xs) || batch < 2 * images || !matches!(path(xs), Path::Kernel);
    // Who looks at the steps looks at this thread.
    if whole || trace::is_watched() {
        return on_tape(xs, train, f);
    }
    let parts = (0..batch.div_ceil(images)).into_par_iter().map(|part| {
        let part = xs.narrow(0, part * images, images.min(batch - part * images))?;
        // This thread may be one that waits for an operation of a pass on a tape.
        apart(|| f(&part))
    });
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
}

/// [`on_tape`] for a pass with several outputs.
///
/// # Errors
/// As [`on_tape`].
pub fn outputs_on_tape(
    xs: &Tensor,
    train: bool,
    f: impl FnOnce(&Tensor) -> Result<Vec<Tensor>>,
) -> Result<Vec<Tensor>> {
    if !train || !matches!(path(xs), Path::Kernel) || joins(xs) {
        return f(xs);
    }
    let Pass { source, input, outputs, recording } = Pass::run(xs, false, f)?;
    let Recording { nodes, known, tracked, variables, .. } = recording;
    if nodes.is_empty() {
        return Ok(outputs);
    }
    let tape =
        Tape(Arc::new(Mutex::new(State { nodes: Some(nodes), tracked: Arc::new(tracked), grads: HashMap::new() })));
    // A chain of scalars through all variables, at whose upper end the outputs hang. Walking it from above, candle asks
    // each link for its variables' gradients; the first link to be asked has the gradients of all outputs.
    let mut link = Tensor::zeros((), xs.dtype(), xs.device())?;
    if source.track_op() {
        link = link.apply_op2(&source, Link { tape: tape.clone(), ids: vec![input.id()] })?;
    }
    for pair in variables.chunks(2) {
        let op = Link { tape: tape.clone(), ids: pair.iter().map(Tensor::id).collect() };
        link = match pair {
            [a, b] => link.apply_op3(a, b, op)?,
            [a] => link.apply_op2(a, op)?,
            _ => link,
        };
    }
    let output = |ys: Tensor| match known.contains(&ys.id()) {
        true => link.apply_op1(Output { tape: tape.clone(), ys }),
        // Made of variables alone: candle's graph has it.
        false => Ok(ys),
    };
    outputs.into_iter().map(output).collect()
}

/// A pass that has been recorded.
struct Pass {
    /// What the caller gave, and what the pass read in its place.
    source: Tensor,
    input: Tensor,
    outputs: Vec<Tensor>,
    recording: Recording,
}

impl Pass {
    /// Records `f`, whose own operations on `xs` go on the tape, or, if that is only `offered`, those of a network that runs [`on_tape`].
    fn run(xs: &Tensor, offered: bool, f: impl FnOnce(&Tensor) -> Result<Vec<Tensor>>) -> Result<Self> {
        let source = xs.contiguous()?;
        // To candle's graph the input of a tape is a constant. An offered one that asks for its gradient may yet be candle's.
        let input = if offered { source.clone() } else { source.detach() };
        let mut recording = Recording::default();
        match offered {
            true => recording.offered = Some(input.id()),
            false => _ = recording.known.insert(input.id()),
        }
        if source.track_op() {
            recording.tracked.insert(input.id());
        }
        let (outputs, recording) = while_recording(Some(recording), || f(&input));
        let pass = Self { source, input, outputs: outputs?, recording: recording.unwrap_or_default() };
        pass.check()?;
        Ok(pass)
    }

    /// Whatever the tape has made is read by it, or is an output: else an operation of candle's own has read it.
    fn check(&self) -> Result<()> {
        let nodes = &self.recording.nodes;
        let inputs = nodes.iter().flat_map(|node| node.inputs.iter().flatten().copied());
        let read: HashSet<TensorId> = inputs.chain(self.outputs.iter().map(Tensor::id)).collect();
        if let Some(node) = nodes.iter().find(|node| !read.contains(&node.output)) {
            bail!(
                "tape: nothing on the tape reads what `{}` has made; if an operation of candle does, it must go through \
                 zoo_core::tape::candle",
                node.name
            )
        }
        if self.source.track_op() && !nodes.is_empty() && !read.contains(&self.input.id()) {
            bail!("tape: nothing on the tape reads the input, which asks for its gradient; see zoo_core::tape::candle")
        }
        Ok(())
    }
}

/// The value of a loss and the gradients of all variables that it depends on, `xs` among them if it is one. `f` gets `xs` and returns the
/// loss, one number. Where the network runs [`on_tape`], as those of the zoo do, it and the loss are on one tape, which hands its
/// gradients straight to the caller: `loss.backward()` gives the same numbers, but has candle add each to zeros that it fills first,
/// two passes over every weight. Any other network stays on candle's graph.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::tape::{on_tape, value_and_grad};
/// use zoo_core::{Linear, ModuleT, VarStore, ops::cross_entropy};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let fc = Linear::new(3, 2, store.root())?;
/// let (images, labels) = (Tensor::ones((4, 3), DType::F32, &Device::Cpu)?, Tensor::new(&[0u32, 1, 0, 1], &Device::Cpu)?);
/// let (loss, gradients) = value_and_grad(&images, |xs| {
///     let logits = on_tape(xs, true, |xs| fc.forward_t(xs, true))?;
///     cross_entropy(&logits, &labels, 0.0)
/// })?;
/// assert!(loss.to_scalar::<f32>()? > 0.0);
/// assert!(store.parameters().iter().all(|(_, var)| gradients.get(var).is_some()));
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// What `f` refuses, a loss of more than one element, and an operation of candle's own on a recorded tensor that did not go through
/// [`candle`].
pub fn value_and_grad(xs: &Tensor, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<(Tensor, GradStore)> {
    if is_recorded(xs) || !matches!(path(xs), Path::Kernel) {
        let loss = f(xs)?;
        return Ok((loss.detach(), loss.backward()?));
    }
    let Pass { source, input, outputs, recording } = Pass::run(xs, true, |xs| Ok(vec![f(xs)?]))?;
    let Recording { nodes, known, tracked, variables, .. } = recording;
    let [loss] = outputs.as_slice() else { bail!("tape: a pass without a loss") };
    if loss.elem_count() != 1 {
        bail!("value_and_grad: a loss is one number, got a tensor of {:?}", loss.dims())
    }
    if !known.contains(&loss.id()) {
        // Made of variables alone: candle's graph has it.
        return Ok((loss.detach(), loss.backward()?));
    }
    let seed = Gradient::new(loss.ones_like()?);
    let mut state = State { nodes: Some(nodes), tracked: Arc::new(tracked), grads: HashMap::from([(loss.id(), seed)]) };
    state.play()?;
    let mut leaves = Vec::with_capacity(variables.len());
    // What candle has made of variables: its own backward pass goes on from there.
    let mut onward = Tensor::zeros((), loss.dtype(), loss.device())?;
    let read = variables.iter().map(|tensor| (tensor, tensor.id())).chain([(&source, input.id())]);
    for (tensor, id) in read {
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

struct State {
    /// `None` once played.
    nodes: Option<Vec<Node>>,
    tracked: Arc<HashSet<TensorId>>,
    /// Of the outputs until the tape is played, of the variables afterwards.
    grads: HashMap<TensorId, Gradient>,
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

impl State {
    /// Walks the tape backwards, unless that was done: from the gradients of the outputs to those of the variables.
    fn play(&mut self) -> Result<()> {
        let Some(nodes) = self.nodes.take() else { return Ok(()) };
        // A thread that waits while it plays another tape may have taken this one up: that one goes on afterwards.
        struct Restore(Option<Arc<HashSet<TensorId>>>);
        impl Drop for Restore {
            fn drop(&mut self) {
                PLAYING.set(self.0.take());
            }
        }
        let _restore = Restore(PLAYING.replace(Some(self.tracked.clone())));
        for node in nodes.into_iter().rev() {
            let Some(mut grad) = self.grads.remove(&node.output) else { continue };
            if !grad.tensor.is_contiguous() {
                grad = Gradient::new(grad.tensor.contiguous()?);
            }
            let grads = match node.backward {
                Backward::Apart(backward) => backward(grad)?,
                Backward::Onto(backward) => {
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
            _ => bail!("tape: an output must be f32 or f64 on the CPU, got {:?}", ys.dtype()),
        }
    }

    fn bwd(&self, link: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut state = self.tape.state();
        if state.nodes.is_none() {
            bail!("tape: this pass has been walked backwards already; run the network forward again")
        }
        let grad = Gradient { tensor: grad.contiguous()?, owned: false };
        let grad = match state.grads.remove(&self.ys.id()) {
            Some(earlier) => earlier.add(grad)?,
            None => grad,
        };
        state.grads.insert(self.ys.id(), grad);
        Ok(Some(link.zeros_like()?))
    }
}

/// A link of the chain of scalars, with up to two variables.
struct Link {
    tape: Tape,
    ids: Vec<TensorId>,
}

impl Link {
    fn pass(storage: &CpuStorage) -> Result<(CpuStorage, Shape)> {
        Ok((storage.clone(), Shape::from(())))
    }
}

impl CustomOp2 for Link {
    fn name(&self) -> &'static str {
        "tape link"
    }

    fn cpu_fwd(&self, link: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Self::pass(link)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.clone()), self.tape.gradient(self.ids[0])?))
    }
}

impl CustomOp3 for Link {
    fn name(&self) -> &'static str {
        "tape link"
    }

    fn cpu_fwd(
        &self,
        link: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Self::pass(link)
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.clone()), self.tape.gradient(self.ids[0])?, self.tape.gradient(self.ids[1])?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    /// Every image in its place, the rest that fills no part too; in training all together, with gradients.
    #[test]
    fn images_in_parts_are_all_images() -> Result<()> {
        let xs = Tensor::arange(0f32, 37.0 * 3.0, &Device::Cpu)?.reshape((37, 3))?;
        let weight = Var::from_tensor(&Tensor::new(&[[1f32, -2.0, 0.5], [0.25, 4.0, -1.0]], &Device::Cpu)?)?;
        let calls = Mutex::new(Vec::new());
        let run = |train: bool| {
            by_images(&xs, train, 5, |xs| {
                calls.lock().unwrap_or_else(PoisonError::into_inner).push(xs.dim(0)?);
                assert_eq!(is_recorded(xs), train);
                crate::ops::linear(xs, &weight, None)
            })
        };
        let (parts, whole) = (run(false)?, run(true)?);
        assert_eq!(parts.to_vec2::<f32>()?, whole.to_vec2::<f32>()?);
        let mut calls = calls.into_inner().unwrap_or_else(PoisonError::into_inner);
        calls.sort_unstable();
        assert_eq!(calls, [2, 5, 5, 5, 5, 5, 5, 5, 37]);
        assert!(whole.sum_all()?.backward()?.get(&weight).is_some());
        Ok(())
    }

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
        let on_tape = |xs: &Tensor| loss(&on_tape(xs, true, net)?);
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

    #[test]
    fn an_error_of_one_part_is_the_error() -> Result<()> {
        let xs = Tensor::zeros((8, 1), DType::F32, &Device::Cpu)?;
        let failed = by_images(&xs, false, 2, |_| bail!("no such layer"));
        assert!(failed.is_err_and(|e| e.to_string().contains("no such layer")));
        Ok(())
    }
}

//! An operation with a gradient of its own, and what puts it to work: the kernel or its stand-in, the tape or candle's
//! graph.

use crate::kernels::Real;
use crate::pass::{Backend, backend, is_on_tape, tracks};
use crate::storage::{elements, for_dtype, for_real, tensor, with_elements};
use crate::tape::{self, Gradient};
use crate::trace::shape_only;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;
use std::sync::Arc;

/// An operation on tensors of one element type: a value that holds every size, so that its passes are slices in, slices
/// out.
///
/// [`apply`] runs it. Whoever writes one states the arithmetic, and nothing of tensors, devices, the tape or candle's
/// graph.
pub(crate) trait Op: Send + Sync + 'static {
    /// What errors and tapes call it.
    fn name(&self) -> &'static str;

    /// The output's shape.
    fn shape(&self) -> Vec<usize>;

    /// What the backward pass reads of the forward pass: the inputs, the output.
    fn saves(&self) -> (bool, bool) {
        (true, false)
    }

    /// The output's elements of the inputs'.
    fn forward<T: Real>(&self, inputs: &[&[T]]) -> Result<Vec<T>>;

    /// The same of bfloat16 numbers, if there is a kernel for them on this machine; else it is done in f32, and rounded.
    fn forward_bf16(&self, _inputs: &[&[bf16]]) -> Option<Vec<bf16>> {
        None
    }

    /// A gradient for each input, from that of the output.
    fn backward<T: Real>(&self, saved: &Saved<T>) -> Result<Vec<Passed<T>>>;

    /// The same out of candle's own operations, whose gradient is right, for devices and element types without a
    /// kernel.
    fn fallback(&self, inputs: &[Tensor]) -> Result<Tensor>;
}

/// What a backward pass reads; empty what [`Op::saves`] does not ask for.
pub(crate) struct Saved<'a, T> {
    pub inputs: Vec<&'a [T]>,
    pub output: &'a [T],
    /// The gradient of the output.
    pub grad: &'a [T],
    /// Which inputs ask for a gradient.
    pub wanted: &'a [bool],
}

impl<T> Saved<'_, T> {
    /// The gradient of input `i`, if it is asked for.
    pub fn want(&self, i: usize, gradient: impl FnOnce() -> Vec<T>) -> Passed<T> {
        if self.wanted[i] { Passed::Made(gradient()) } else { Passed::Nothing }
    }
}

/// What an input gets.
pub(crate) enum Passed<T> {
    /// No gradient: it asks for none.
    Nothing,
    /// Elements that a kernel has made.
    Made(Vec<T>),
    /// The output's gradient itself.
    Whole,
    /// `len` places of the output's gradient along `dim`.
    Slice { dim: usize, start: usize, len: usize },
}

/// Runs an operation on inputs that fit it, the first of which says where.
pub(crate) fn apply(op: impl Op, inputs: &[&Tensor]) -> Result<Tensor> {
    let Some(first) = inputs.first() else { bail!("{}: an operation of nothing", op.name()) };
    match backend(first) {
        Backend::Shapes => shape_only(&op.shape(), first.dtype(), first.device()),
        Backend::Fallback => op.fallback(&inputs.iter().map(|&xs| xs.clone()).collect::<Vec<_>>()),
        Backend::Kernel => with_kernel(op, inputs),
        Backend::KernelInF32 => {
            if let Some(ys) = in_bf16(&op, inputs)? {
                return Ok(ys);
            }
            let inputs = inputs.iter().map(|xs| xs.to_dtype(DType::F32)).collect::<Result<Vec<_>>>()?;
            with_kernel(op, &inputs.iter().collect::<Vec<_>>())?.to_dtype(first.dtype())
        }
    }
}

/// The output of bfloat16 inputs that ask for no gradient, if the operation has a kernel for them.
fn in_bf16(op: &impl Op, inputs: &[&Tensor]) -> Result<Option<Tensor>> {
    if inputs.iter().any(|xs| xs.dtype() != DType::BF16 || xs.track_op()) {
        return Ok(None);
    }
    let inputs = inputs.iter().map(|xs| xs.contiguous()).collect::<Result<Vec<_>>>()?;
    let ys = with_elements::<bf16, _>(op.name(), &inputs.iter().collect::<Vec<_>>(), |all| Ok(op.forward_bf16(all)))?;
    ys.map(|ys| Tensor::from_vec(ys, op.shape(), inputs[0].device())).transpose()
}

fn with_kernel<O: Op>(op: O, inputs: &[&Tensor]) -> Result<Tensor> {
    let inputs = inputs.iter().map(|xs| tape::contiguous(xs)).collect::<Result<Vec<_>>>()?;
    if inputs.iter().any(is_on_tape) {
        return on_tape(op, &inputs);
    }
    let op = OnGraph(Arc::new(op));
    match inputs.as_slice() {
        _ if !inputs.iter().any(Tensor::track_op) => forward(&*op.0, &inputs),
        [a] => a.apply_op1(op),
        [a, b] => a.apply_op2(b, op),
        [a, b, c] => a.apply_op3(b, c, op),
        _ => bail!("{}: candle's graph takes three inputs at the most, got {}", op.0.name(), inputs.len()),
    }
}

fn forward(op: &impl Op, inputs: &[Tensor]) -> Result<Tensor> {
    let name = op.name();
    for_dtype!(name, inputs[0].dtype(), T => {
        let all: Vec<&Tensor> = inputs.iter().collect();
        tensor(with_elements::<T, _>(name, &all, |inputs| op.forward(inputs))?, op.shape())
    })
}

fn on_tape(op: impl Op, inputs: &[Tensor]) -> Result<Tensor> {
    let ys = forward(&op, inputs)?;
    let shapes: Vec<Shape> = inputs.iter().map(|xs| xs.shape().clone()).collect();
    let wanted: Vec<bool> = inputs.iter().map(tracks).collect();
    let (keep_inputs, keep_output) = op.saves();
    let saved = if keep_inputs { inputs.to_vec() } else { Vec::new() };
    let output = keep_output.then(|| ys.clone());
    tape::push(op.name(), &inputs.iter().collect::<Vec<_>>(), &ys, move |grad| {
        backward(&op, &saved, output.as_ref(), grad, &shapes, &wanted)
    });
    Ok(ys)
}

fn backward(
    op: &impl Op,
    inputs: &[Tensor],
    output: Option<&Tensor>,
    grad: Gradient,
    shapes: &[Shape],
    wanted: &[bool],
) -> Result<Vec<Option<Gradient>>> {
    let name = op.name();
    let tensors: Vec<&Tensor> = [&grad.tensor].into_iter().chain(output).chain(inputs).collect();
    for_dtype!(name, grad.tensor.dtype(), T => {
        let passed = with_elements::<T, _>(name, &tensors, |all| {
            let (&[grad], rest) = all.split_at(1) else { bail!("{name}: no gradient") };
            let (output, inputs) = rest.split_at(usize::from(output.is_some()));
            let output = output.first().copied().unwrap_or_default();
            op.backward(&Saved { inputs: inputs.to_vec(), output, grad, wanted })
        })?;
        // Memory that is handed on is its one receiver's, or nobody's.
        let received = wanted.iter().filter(|wanted| **wanted).count();
        let pass = |((passed, shape), wanted): ((Passed<T>, &Shape), &bool)| {
            let lent = |tensor: Tensor| Gradient { tensor, owned: grad.owned && received == 1 };
            Ok(match passed {
                _ if !wanted => None,
                Passed::Nothing => None,
                Passed::Made(elements) => Some(Gradient::new(tensor(elements, shape)?)),
                Passed::Whole => Some(lent(grad.tensor.clone())),
                Passed::Slice { dim, start, len } => {
                    Some(Gradient { owned: false, ..lent(grad.tensor.narrow(dim, start, len)?) })
                }
            })
        };
        passed.into_iter().zip(shapes).zip(wanted).map(pass).collect()
    })
}

/// An operation on candle's graph.
struct OnGraph<O>(Arc<O>);

impl<O: Op> OnGraph<O> {
    fn run(&self, inputs: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        let name = self.0.name();
        for_real!(name, inputs[0].0, T => {
            let inputs = inputs.iter().map(|(storage, layout)| elements::<T>(name, storage, layout));
            let ys = self.0.forward(&inputs.collect::<Result<Vec<_>>>()?)?;
            Ok((<T as candle_core::WithDType>::to_cpu_storage_owned(ys), self.0.shape().into()))
        })
    }

    fn gradients<const N: usize>(
        &self,
        inputs: [&Tensor; N],
        output: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; N]> {
        let shapes = inputs.map(|xs| xs.shape().clone());
        let wanted = inputs.map(tracks);
        let output = if self.0.saves().1 { Some(output) } else { None };
        let grad = Gradient { tensor: grad.contiguous()?, owned: false };
        let inputs = inputs.map(Tensor::clone);
        let saved = if self.0.saves().0 { &inputs[..] } else { &[] };
        let mut all = backward(&*self.0, saved, output, grad, &shapes, &wanted)?.into_iter();
        Ok(std::array::from_fn(|_| all.next().flatten().map(|grad| grad.tensor)))
    }
}

impl<O: Op> CustomOp1 for OnGraph<O> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(&self, a: &CpuStorage, al: &Layout) -> Result<(CpuStorage, Shape)> {
        self.run(&[(a, al)])
    }

    fn bwd(&self, a: &Tensor, output: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [da] = self.gradients([a], output, grad)?;
        Ok(da)
    }
}

impl<O: Op> CustomOp2 for OnGraph<O> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(&self, a: &CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        self.run(&[(a, al), (b, bl)])
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, output: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok(self.gradients([a, b], output, grad)?.into())
    }
}

impl<O: Op> CustomOp3 for OnGraph<O> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        al: &Layout,
        b: &CpuStorage,
        bl: &Layout,
        c: &CpuStorage,
        cl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run(&[(a, al), (b, bl), (c, cl)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        output: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok(self.gradients([a, b, c], output, grad)?.into())
    }
}

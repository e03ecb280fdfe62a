//! Where an operation runs.

use super::{Op, Passed, Saved, mixed};
use crate::pass::{Backend, backend, is_on_tape, tracks};
use crate::storage::{elements, for_dtype, for_real, tensor, with_elements};
use crate::tape::{self, Gradient, in_f32};
use crate::trace::shape_only;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use std::sync::Arc;

/// Runs an operation on inputs that fit it, the first of which says where.
pub(crate) fn apply(op: impl Op, inputs: &[&Tensor]) -> Result<Tensor> {
    let Some(first) = inputs.first() else { bail!("{}: an operation of nothing", op.name()) };
    match backend(first) {
        Backend::Shapes => shape_only(&op.shape(), first.dtype(), first.device()),
        Backend::Fallback if inputs.iter().any(|xs| xs.dtype() != first.dtype()) => {
            in_f32(inputs, |inputs| op.fallback(inputs))
        }
        Backend::Fallback => op.fallback(&inputs.iter().map(|&xs| xs.clone()).collect::<Vec<_>>()),
        Backend::Kernel => with_kernel(op, inputs),
        Backend::Mixed => match mixed::apply(op, inputs)? {
            Ok(ys) => Ok(ys),
            Err(op) => in_f32(inputs, |inputs| with_kernel(op, &inputs.iter().collect::<Vec<_>>())),
        },
        Backend::KernelInF32 => {
            let inputs = inputs.iter().map(|xs| xs.to_dtype(DType::F32)).collect::<Result<Vec<_>>>()?;
            with_kernel(op, &inputs.iter().collect::<Vec<_>>())?.to_dtype(first.dtype())
        }
    }
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
            let lent = |tensor: Tensor| Gradient::of(tensor, grad.owned && received == 1);
            Ok(match passed {
                _ if !wanted => None,
                Passed::Nothing => None,
                Passed::Made(elements) => Some(Gradient::new(tensor(elements, shape)?)),
                Passed::InF32(elements) => Some(Gradient::new(tensor(elements, shape)?)),
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
        let grad = Gradient::of(grad.contiguous()?, false);
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

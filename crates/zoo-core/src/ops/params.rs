//! Operations with more parameters than candle's graph has edges for.
//!
//! A `CustomOp` reads three tensors at the most. Here an operation reads its input and a *token*, a tensor of one element that
//! the graph takes for the parameters: the token's own operations read them. In the backward pass the operation leaves
//! the gradients of the parameters in a box, and the token's operations, which come behind it, hand them on.

use super::{elements, for_real};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, WithDType, bail,
};
use std::sync::{Arc, Mutex, PoisonError};

type Grads = Arc<Mutex<Vec<Option<Tensor>>>>;

/// Contiguous parameters, the token that stands for them, and the box for their gradients.
pub(crate) struct Params {
    pub tensors: Vec<Tensor>,
    pub token: Tensor,
    grads: Grads,
}

impl Params {
    /// For one to nine parameters.
    pub fn new(tensors: &[&Tensor]) -> Result<Self> {
        let tensors = tensors.iter().map(|t| t.contiguous()).collect::<Result<Vec<_>>>()?;
        let grads = Grads::default();
        let three = |(i, three): (usize, &[Tensor])| join(three, Token { grads: Some(grads.clone()), first: 3 * i });
        let tokens = tensors.chunks(3).enumerate().map(three).collect::<Result<Vec<_>>>()?;
        let token = match &tokens[..] {
            [token] => token.clone(),
            tokens => join(tokens, Token { grads: None, first: 0 })?,
        };
        Ok(Self { tensors, token, grads })
    }

    /// Without a token that anybody listens to.
    pub fn untracked(tensors: &[&Tensor]) -> Result<Self> {
        let tensors = tensors.iter().map(|t| t.contiguous()).collect::<Result<Vec<_>>>()?;
        let token = Tensor::zeros(1, tensors[0].dtype(), tensors[0].device())?;
        Ok(Self { tensors, token, grads: Grads::default() })
    }

    /// Leaves the gradients for the token, whose own gradient this is.
    pub fn hand_on(&self, grads: Vec<Option<Tensor>>) -> Result<Option<Tensor>> {
        *self.grads.lock().unwrap_or_else(PoisonError::into_inner) = grads;
        self.token.track_op().then(|| self.token.zeros_like()).transpose()
    }
}

fn join(tensors: &[Tensor], token: Token) -> Result<Tensor> {
    match tensors {
        [a] => a.apply_op1(token),
        [a, b] => a.apply_op2(b, token),
        [a, b, c] => a.apply_op3(b, c, token),
        _ => bail!("a token stands for three tensors at the most, got {}", tensors.len()),
    }
}

/// Of parameters whose gradients come to lie in the box from `first` on, or of other tokens.
struct Token {
    grads: Option<Grads>,
    first: usize,
}

impl Token {
    fn forward(&self, storage: &CpuStorage) -> Result<(CpuStorage, Shape)> {
        for_real!("parameters", storage, T => Ok((T::to_cpu_storage_owned(vec![0.0]), 1.into())))
    }

    fn grad(&self, i: usize, of: &Tensor) -> Result<Option<Tensor>> {
        match &self.grads {
            Some(grads) => {
                let mut grads = grads.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(grads.get_mut(self.first + i).and_then(Option::take))
            }
            None => of.track_op().then(|| of.zeros_like()).transpose(),
        }
    }
}

impl CustomOp1 for Token {
    fn name(&self) -> &'static str {
        "parameters"
    }

    fn cpu_fwd(&self, a: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(a)
    }

    fn bwd(&self, a: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        self.grad(0, a)
    }
}

impl CustomOp2 for Token {
    fn name(&self) -> &'static str {
        "parameters"
    }

    fn cpu_fwd(&self, a: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(a)
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, _: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((self.grad(0, a)?, self.grad(1, b)?))
    }
}

impl CustomOp3 for Token {
    fn name(&self) -> &'static str {
        "parameters"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(a)
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok((self.grad(0, a)?, self.grad(1, b)?, self.grad(2, c)?))
    }
}

/// Runs `f` on the elements of contiguous tensors on the host.
pub(crate) fn with_elements<T: super::Real, R>(
    op: &str,
    tensors: &[&Tensor],
    f: impl FnOnce(&[&[T]]) -> Result<R>,
) -> Result<R> {
    let guards: Vec<_> = tensors.iter().map(|t| t.storage_and_layout()).collect();
    let mut slices = Vec::with_capacity(guards.len());
    for (storage, layout) in &guards {
        match &**storage {
            Storage::Cpu(storage) => slices.push(elements::<T>(op, storage, layout)?),
            _ => bail!("{op}: the kernel wants tensors on the host"),
        }
    }
    f(&slices)
}

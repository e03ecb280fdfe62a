//! A residual branch of a Transformer or Mixer as one operation.

pub(crate) use super::cpu::branch::Inner;
use super::cpu::branch::{Branch, Weights};
use super::params::{Params, with_elements};
use super::{Path, Real, elements, for_real, path};
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType, bail};
use std::sync::OnceLock;

/// Weight and bias of a norm or of a linear map.
pub(crate) type Affine<'a> = (&'a Tensor, &'a Tensor);

/// x + second(inner(first(norm(x)))) for x of (b, n, c), if there is a kernel for it; `None` where it is to be composed of
/// its layers: on other devices, for half types, and while a tracer looks on.
pub(crate) fn branch(
    xs: &Tensor,
    inner: Inner,
    (norm, eps): (Affine, f64),
    first: Affine,
    second: Affine,
) -> Result<Option<Tensor>> {
    let (Path::Kernel, &[b, n, c]) = (path(xs), xs.dims()) else { return Ok(None) };
    let (&[mid, _], &[_, act]) = (first.0.dims(), second.0.dims()) else { return Ok(None) };
    let branch = Branch { inner, eps, n, c, mid, act };
    let params = [norm.0, norm.1, first.0, first.1, second.0, second.1];
    // What does not fit gets its error from the layer that refuses it.
    let fits = params.iter().zip(branch.lengths()).all(|(p, len)| p.elem_count() == len && p.dtype() == xs.dtype());
    let inner_fits = match inner {
        Inner::Attention(heads) => mid == 3 * c && act == c && c.is_multiple_of(heads),
        _ => mid == act,
    };
    if !fits || !inner_fits || [b, n, c, mid].contains(&0) {
        return Ok(None);
    }
    let params = Params::new(&params)?;
    let token = params.token.clone();
    let keep = xs.track_op() || token.track_op();
    xs.contiguous()?.apply_op2(&token, Op { branch, params, keep, mid: OnceLock::new() }).map(Some)
}

struct Op {
    branch: Branch,
    params: Params,
    /// Whether a backward pass may follow.
    keep: bool,
    /// What the first map made, where it was kept.
    mid: OnceLock<Tensor>,
}

impl Op {
    fn weights<'a, T>(params: &[&'a [T]]) -> Weights<'a, T> {
        let pair = |i: usize| (params[i], params[i + 1]);
        Weights { norm: pair(0), first: pair(2), second: pair(4) }
    }

    fn gradients<T: Real>(&self, xs: &Tensor, grad: &Tensor) -> Result<(Tensor, Vec<Option<Tensor>>)> {
        let Some(mid) = self.mid.get() else { bail!("branch: the forward pass kept nothing for a gradient") };
        let params = &self.params.tensors;
        let mut tensors = vec![xs, mid, grad];
        tensors.extend(params);
        let (dx, sums) = with_elements::<T, _>("branch", &tensors, |all| {
            Ok(self.branch.backward(all[0], all[1], all[2], Self::weights(&all[3..])))
        })?;
        let wanted = |(sum, param): (Vec<T>, &Tensor)| {
            param.track_op().then(|| Tensor::from_vec(sum, param.shape(), param.device())).transpose()
        };
        let sums = sums.into_iter().zip(params).map(wanted).collect::<Result<_>>()?;
        Ok((Tensor::from_vec(dx, xs.shape(), xs.device())?, sums))
    }
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        "branch"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!("branch", x, T => {
            let xs = elements::<T>("branch", x, xl)?;
            let params: Vec<&Tensor> = self.params.tensors.iter().collect();
            let (ys, mid) = with_elements::<T, _>("branch", &params, |params| {
                Ok(self.branch.forward(xs, Self::weights(params), self.keep))
            })?;
            if let Some(mid) = mid {
                let len = mid.len();
                _ = self.mid.set(Tensor::from_vec(mid, len, &candle_core::Device::Cpu)?);
            }
            Ok((T::to_cpu_storage_owned(ys), xl.shape().clone()))
        })
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dx, sums) = match xs.dtype() {
            DType::F64 => self.gradients::<f64>(xs, &grad)?,
            _ => self.gradients::<f32>(xs, &grad)?,
        };
        Ok((xs.track_op().then_some(dx), self.params.hand_on(sums)?))
    }
}

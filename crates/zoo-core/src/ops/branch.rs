//! A residual branch of a Transformer or Mixer as one operation.

use super::{Path, Real, elements, for_real, path, with_elements};
pub(crate) use crate::kernels::residual_block::Inner;
use crate::kernels::residual_block::{Branch, Weights};
use crate::tape::{self, Gradient, on_tape};
use crate::trace;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, WithDType, bail};
use std::sync::OnceLock;

/// Weight and bias of a norm or of a linear map.
pub(crate) type Affine<'a> = (&'a Tensor, &'a Tensor);

/// x + second(inner(first(norm(x)))) for x of (b, n, c), or its first tokens (b, 1, c), if there is a kernel for it; `None`
/// where it is to be composed of its layers: on other devices, for half types, and while somebody looks at each layer.
pub(crate) fn branch(
    xs: &Tensor,
    inner: Inner,
    (norm, eps): (Affine, f64),
    first: Affine,
    second: Affine,
) -> Result<Option<Tensor>> {
    let (Path::Kernel, &[b, n, c]) = (path(xs), xs.dims()) else { return Ok(None) };
    let (&[mid, _], &[_, act]) = (first.0.dims(), second.0.dims()) else { return Ok(None) };
    if trace::by_layers() {
        return Ok(None);
    }
    let branch = Branch { inner, eps, n, c, mid, act };
    let params = [norm.0, norm.1, first.0, first.1, second.0, second.1];
    // What does not fit gets its error from the layer that refuses it.
    let fits = params.iter().zip(branch.lengths()).all(|(p, len)| p.elem_count() == len && p.dtype() == xs.dtype());
    let inner_fits = match inner {
        Inner::Attention(heads) | Inner::AttentionOfFirst(heads) => mid == 3 * c && act == c && c.is_multiple_of(heads),
        _ => mid == act,
    };
    if !fits || !inner_fits || [b, n, c, mid].contains(&0) {
        return Ok(None);
    }
    // Off the tape it gets one of its own: candle's operations have three inputs at the most.
    on_tape(xs, true, |xs| record(&tape::contiguous(xs)?, branch, &params)).map(Some)
}

fn record(xs: &Tensor, branch: Branch, params: &[&Tensor]) -> Result<Tensor> {
    let keep = tape::tracks(xs) || params.iter().any(|param| param.track_op());
    let params = params.iter().map(|param| param.contiguous()).collect::<Result<Vec<_>>>()?;
    let op = Op { branch, params, keep, mid: OnceLock::new() };
    let ys = xs.apply_op1_no_bwd(&op)?;
    let x = xs.clone();
    let inputs: Vec<Tensor> = [xs].into_iter().chain(&op.params).cloned().collect();
    tape::record("branch", &inputs.iter().collect::<Vec<_>>(), &ys, move |grad| {
        let (dx, sums) = op.backward(&x, &grad.tensor)?;
        Ok([Some(dx)].into_iter().chain(sums).map(|grad| grad.map(Gradient::new)).collect())
    });
    Ok(ys)
}

struct Op {
    branch: Branch,
    /// Weights and biases of norm, first and second map, contiguous.
    params: Vec<Tensor>,
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

    fn backward(&self, xs: &Tensor, grad: &Tensor) -> Result<(Tensor, Vec<Option<Tensor>>)> {
        match xs.dtype() {
            DType::F64 => self.gradients::<f64>(xs, grad),
            _ => self.gradients::<f32>(xs, grad),
        }
    }

    fn gradients<T: Real>(&self, xs: &Tensor, grad: &Tensor) -> Result<(Tensor, Vec<Option<Tensor>>)> {
        let Some(mid) = self.mid.get() else { bail!("branch: the forward pass kept nothing for a gradient") };
        let params = &self.params;
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

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        "branch"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!("branch", x, T => {
            let xs = elements::<T>("branch", x, xl)?;
            let params: Vec<&Tensor> = self.params.iter().collect();
            let (ys, mid) = with_elements::<T, _>("branch", &params, |params| {
                Ok(self.branch.forward(xs, Self::weights(params), self.keep))
            })?;
            if let Some(mid) = mid {
                let len = mid.len();
                _ = self.mid.set(Tensor::from_vec(mid, len, &candle_core::Device::Cpu)?);
            }
            let (&Branch { c, .. }, tokens) = (&self.branch, self.branch.tokens());
            let shape = (ys.len() / (tokens * c), tokens, c).into();
            Ok((T::to_cpu_storage_owned(ys), shape))
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::drop::Dropout;
    use crate::init::Init;
    use crate::linear::MlpBlock;
    use crate::norm::LayerNorm;
    use crate::ops::composed;
    use crate::vars::VarStore;
    use crate::{SelfAttention, VarBuilder};
    use candle_core::{DType, Device, Result, Tensor, Var};

    type Forward = Box<dyn Fn(&Tensor, bool) -> Result<Tensor>>;

    fn numbers(dims: &[usize], step: usize) -> Result<Tensor> {
        let values = (0..dims.iter().product()).map(|i: usize| ((i * step + i / 7) % 31) as f64 / 15.0 - 1.0);
        Tensor::from_vec(values.collect::<Vec<_>>(), dims, &Device::Cpu)
    }

    /// Output and gradients of the branch as one operation are those of its layers.
    fn check((b, n, c): (usize, usize, usize), build: impl Fn(&VarBuilder) -> Result<Forward>) -> Result<()> {
        let store = VarStore::new(0, DType::F64, &Device::Cpu);
        let forward = build(&store.root())?;
        for (i, (_, var)) in store.parameters().iter().enumerate() {
            let scale = 1.0 / (var.elem_count() as f64 / var.dim(0)? as f64).sqrt();
            var.set(&((numbers(var.dims(), 11 + i)? * scale)? + 0.1)?)?;
        }
        let xs = Var::from_tensor(&numbers(&[b, n, c], 17)?)?;
        let run = || -> Result<(Tensor, Vec<Tensor>)> {
            let ys = forward(&xs, true)?;
            let grads = (&ys * numbers(ys.dims(), 13)?)?.sum_all()?.backward()?;
            let vars: Vec<_> = store.parameters().iter().map(|(_, var)| var.as_tensor().clone()).collect();
            let vars = [vec![xs.as_tensor().clone()], vars].concat();
            Ok((ys, vars.iter().map(|var| grads.get(var).expect("a gradient").clone()).collect()))
        };
        let ((ys, grads), (want, want_grads)) = (run()?, composed(run)?);
        let without_graph = forward(&xs.as_detached_tensor(), false)?;
        let all = grads.iter().zip(&want_grads).chain([(&ys, &want), (&without_graph, &want)]);
        for (i, (a, b)) in all.enumerate() {
            assert_eq!(a.dims(), b.dims());
            let scale = b.abs()?.max_all()?.to_scalar::<f64>()?.max(1.0);
            let error = (a - b)?.abs()?.max_all()?.to_scalar::<f64>()?;
            assert!(error <= 1e-12 * scale, "{i}: {error} of {scale} for {b:?}");
        }
        Ok(())
    }

    #[test]
    fn branches_are_their_layers() -> Result<()> {
        let init = Init::TORCH_WEIGHT;
        for (b, n, c, hidden) in [(2, 3, 5, 7), (23, 17, 20, 33), (3, 150, 16, 24), (2, 3, 1024, 1025)] {
            check((b, n, c), |vb| {
                let norm = LayerNorm::new(c, 1e-6, vb.pp("norm"))?;
                let mlp = MlpBlock::new((c, hidden, c), 0.0, init, Init::ZEROS, vb.pp("mlp"))?;
                Ok(Box::new(move |xs, train| mlp.residual(xs, &norm, None, train)))
            })?;
            if c > 100 {
                continue;
            }
            for over_tokens in [false, true] {
                check((b, n, c), |vb| {
                    let norm = LayerNorm::new(if over_tokens { n } else { c }, 1e-5, vb.pp("norm"))?;
                    let mlp = MlpBlock::new((n, hidden, n), 0.0, init, Init::ZEROS, vb.pp("mlp"))?;
                    Ok(Box::new(move |xs, train| mlp.residual_of_tokens(xs, (&norm, over_tokens), None, train)))
                })?;
            }
            let heads = if c == 5 { 5 } else { 4 };
            check((b, n, c), |vb| {
                let norm = LayerNorm::new(c, 1e-6, vb.pp("norm"))?;
                let attn = SelfAttention::new(c, heads, (0.0, 0.0), init, vb.pp("attn"))?;
                Ok(Box::new(move |xs, train| attn.residual(xs, &norm, None, train)))
            })?;
            check((b, n, c), |vb| {
                let norm = LayerNorm::new(c, 1e-6, vb.pp("norm"))?;
                let attn = SelfAttention::new(c, heads, (0.0, 0.0), init, vb.pp("attn"))?;
                Ok(Box::new(move |xs, train| attn.residual_of_first(xs, &norm, None, train)))
            })?;
        }
        Ok(())
    }

    /// With dropout the layers run one by one, and in evaluation the branch is one operation again.
    #[test]
    fn dropout_takes_the_layers() -> Result<()> {
        let store = VarStore::new(0, DType::F64, &Device::Cpu);
        let vb = store.root();
        let norm = LayerNorm::new(6, 1e-6, vb.pp("norm"))?;
        let mlp = MlpBlock::new((6, 8, 6), 0.0, Init::TORCH_WEIGHT, Init::ZEROS, vb.pp("mlp"))?;
        let path = Dropout::path(0.99, &vb)?;
        let xs = numbers(&[4, 3, 6], 5)?;
        let distance = |a: &Tensor, b: &Tensor| (a - b)?.abs()?.max_all()?.to_scalar::<f64>();
        assert_eq!(distance(&mlp.residual(&xs, &norm, Some(&path), true)?, &xs)?, 0.0);
        let plain = mlp.residual(&xs, &norm, None, true)?;
        assert_eq!(distance(&mlp.residual(&xs, &norm, Some(&path), false)?, &plain)?, 0.0);
        Ok(())
    }
}

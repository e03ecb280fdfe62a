//! Shortcuts around branches.

use super::sequential::Sequential;
use crate::fuse::{self, Row};
use crate::layers::{Dropout, Layer, activate, add};
use crate::ops::{self, Pointwise};
use crate::pass::{self, Mode};
use crate::tape;
use crate::trace;
use candle_core::{Result, Tensor};
use candle_nn::ModuleT;
use std::sync::Arc;

/// y = act(s(x) + f(x)): a branch f and a way past it, which is the identity unless [`shortcut`](Self::shortcut) puts
/// layers there (He et al. 2015, arXiv:1512.03385, equations 1 and 2).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{LayerNorm, Linear, ModuleT, Residual, VarStore, seq};
/// let vb = VarStore::new(0, DType::F32, &Device::Cpu).root();
/// // x + W · norm(x)
/// let block = Residual::new(seq![LayerNorm::new(4, 1e-5, vb.pp("norm"))?, Linear::new(4, 4, vb.pp("fc"))?]);
/// let xs = Tensor::zeros((2, 4), DType::F32, &Device::Cpu)?;
/// assert_eq!(block.forward_t(&xs, false)?.dims(), &[2, 4]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Residual {
    /// The branch up to what is one operation with the sum, and that.
    head: Sequential,
    tail: Sequential,
    row: Option<&'static Row>,
    shortcut: Option<Sequential>,
    activation: Option<Pointwise>,
    drop_path: Option<Dropout>,
    /// The tail's layers are not trained.
    frozen_tail: bool,
}

impl Residual {
    /// x + f(x)
    pub fn new(branch: Sequential) -> Self {
        let mut layers: Vec<_> = branch.layers().collect();
        let row = fuse::end_of_branch(&layers);
        let tail = layers.split_off(layers.len() - row.map_or(0, |row| row.layers.len()));
        let frozen_tail = row.is_some() && fuse::training(&tail).is_frozen();
        let (head, tail) = (Sequential::new(layers), Sequential::new(tail));
        Self { head, tail, row, shortcut: None, activation: None, drop_path: None, frozen_tail }
    }

    /// s(x) + f(x), for a branch whose output is of another shape.
    pub fn shortcut(mut self, layers: Sequential) -> Self {
        self.shortcut = Some(layers);
        self
    }

    /// An activation behind the sum.
    pub fn activation(mut self, activation: Pointwise) -> Self {
        self.activation = Some(activation);
        self
    }

    /// Stochastic depth: the branch is left out for some samples in training (Huang et al. 2016, arXiv:1603.09382).
    pub fn drop_path(mut self, dropout: Dropout) -> Self {
        self.drop_path = Some(dropout);
        self
    }

    /// The first token of the output, (b, n, c) -> (b, 1, c), for networks whose last block is read there alone. As one
    /// operation it computes no other token.
    ///
    /// # Errors
    /// As the forward pass.
    pub fn forward_first(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let whole = train;
        let train = train && !self.frozen_tail;
        if let Mode::Tape | Mode::Inference = pass::mode(xs, train)
            && let Some(ys) = self.tail_layers(train, |layers| fuse::attention_of_first(layers, xs, train))?
        {
            return Ok(tape::constant(ys, &[xs]));
        }
        let train = whole;
        ops::first_token(&self.forward_t(xs, train)?)
    }

    /// `run` on the layers of the tail, unless something stands between them and the sum.
    fn tail_layers<R>(
        &self,
        train: bool,
        run: impl FnOnce(&[Arc<dyn Layer>]) -> Result<Option<R>>,
    ) -> Result<Option<R>> {
        if self.row.is_none() || self.drop_path.as_ref().is_some_and(|drop| drop.drops(train)) {
            return Ok(None);
        }
        run(&self.tail.layers().collect::<Vec<_>>())
    }
}

impl ModuleT for Residual {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let ys = self.head.forward_t(xs, train)?;
        let whole = train;
        let skip = self.shortcut.as_ref().map_or(Ok(xs.clone()), |shortcut| shortcut.forward_t(xs, train))?;
        let train = train && !self.frozen_tail;
        // What is frozen is one operation in evaluation, which has no gradient: not even the shortcut's.
        let is_constant = train || !pass::tracks(&skip);
        if let (Some(row), Mode::Tape | Mode::Inference, true) = (self.row, pass::mode(&ys, train), is_constant)
            && let Some(out) =
                self.tail_layers(train, |layers| row.run(layers, &ys, Some((&skip, self.activation)), train))?
        {
            return Ok(tape::constant(out, &[&ys, &skip]));
        }
        let train = whole;
        let by_layers = || {
            let ys = self.tail.forward_t(&ys, train)?;
            let ys = self.drop_path.as_ref().map_or(Ok(ys.clone()), |drop| drop.forward_t(&ys, train))?;
            let sum = add(&ys, &skip)?;
            self.activation.map_or(Ok(sum.clone()), |function| activate(&sum, function))
        };
        match self.row.filter(|row| row.takes(self.activation)) {
            Some(row) => trace::fused(Some(row.kept()), by_layers),
            None => by_layers(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::Init;
    use crate::ops::with_fallback;
    use crate::testing::{distance, numbers};
    use crate::vars::{VarBuilder, VarStore};
    use crate::{LayerNorm, MlpBlock, SelfAttention, Transpose, seq, with_fixed_weights};
    use candle_core::{DType, Device, Var};

    type Forward = Box<dyn Fn(&Tensor, bool) -> Result<Tensor>>;

    /// Output and gradients of the branch as one operation are those of its layers.
    fn check((b, n, c): (usize, usize, usize), build: impl Fn(&VarBuilder) -> Result<Forward>) -> Result<()> {
        let store = VarStore::new(0, DType::F64, &Device::Cpu);
        let forward = build(&store.root())?;
        for (i, (_, var)) in store.parameters().iter().enumerate() {
            let scale = 1.0 / (var.elem_count() as f64 / var.dim(0)? as f64).sqrt();
            var.set(&((numbers(&format!("var {i}"), var.dims()) * scale)? + 0.1)?)?;
        }
        let xs = Var::from_tensor(&numbers("x", &[b, n, c]))?;
        let run = || -> Result<(Tensor, Vec<Tensor>)> {
            let ys = tape::recorded(&xs, true, |xs| forward(xs, true))?;
            let grads = (&ys * numbers("upstream", ys.dims()))?.sum_all()?.backward()?;
            let vars: Vec<_> = store.parameters().iter().map(|(_, var)| var.as_tensor().clone()).collect();
            let vars = [vec![xs.as_tensor().clone()], vars].concat();
            Ok((ys, vars.iter().map(|var| grads.get(var).expect("a gradient").clone()).collect()))
        };
        let ((ys, grads), (want, want_grads)) = (run()?, with_fallback(run)?);
        let without_graph = forward(&xs.as_detached_tensor(), false)?;
        let all = grads.iter().zip(&want_grads).chain([(&ys, &want), (&without_graph, &want)]);
        for (i, (a, b)) in all.enumerate() {
            assert_eq!(a.dims(), b.dims());
            let scale = b.abs()?.max_all()?.to_scalar::<f64>()?.max(1.0);
            let error = distance(a, b);
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
                let block = Residual::new(seq![norm, mlp]);
                Ok(Box::new(move |xs, train| block.forward_t(xs, train)))
            })?;
            if c > 100 {
                continue;
            }
            for over_tokens in [false, true] {
                check((b, n, c), |vb| {
                    let norm = LayerNorm::new(if over_tokens { n } else { c }, 1e-5, vb.pp("norm"))?;
                    let mlp = MlpBlock::new((n, hidden, n), 0.0, init, Init::ZEROS, vb.pp("mlp"))?;
                    let block = Residual::new(match over_tokens {
                        true => seq![Transpose, norm, mlp, Transpose],
                        false => seq![norm, Transpose, mlp, Transpose],
                    });
                    assert!(block.row.is_some());
                    Ok(Box::new(move |xs, train| block.forward_t(xs, train)))
                })?;
            }
            let heads = if c == 5 { 5 } else { 4 };
            check((b, n, c), |vb| {
                let norm = LayerNorm::new(c, 1e-6, vb.pp("norm"))?;
                let attn = SelfAttention::new(c, heads, (0.0, 0.0), init, vb.pp("attn"))?;
                let block = Residual::new(seq![norm, attn]);
                Ok(Box::new(move |xs, train| block.forward_t(xs, train)))
            })?;
            check((b, n, c), |vb| {
                let norm = LayerNorm::new(c, 1e-6, vb.pp("norm"))?;
                let attn = SelfAttention::new(c, heads, (0.0, 0.0), init, vb.pp("attn"))?;
                let block = Residual::new(seq![norm, attn]);
                Ok(Box::new(move |xs, train| block.forward_first(xs, train)))
            })?;
        }
        Ok(())
    }

    /// In mixed precision they are as far from f64 as their layers one by one are.
    #[test]
    fn branches_of_mixed_precision_are_their_layers() -> Result<()> {
        type Build = fn(&VarBuilder, (usize, usize, usize)) -> Result<Residual>;
        let builds: [(bool, Build); 5] = [
            (false, |vb, (_, c, hidden)| {
                let norm = LayerNorm::new(c, 1e-6, vb.pp("norm"))?;
                let (init, mlp) = (Init::TORCH_WEIGHT, vb.pp("mlp"));
                Ok(Residual::new(seq![norm, MlpBlock::new((c, hidden, c), 0.0, init, Init::ZEROS, mlp)?]))
            }),
            (false, |vb, (n, c, hidden)| {
                let norm = LayerNorm::new(c, 1e-6, vb.pp("norm"))?;
                let mlp = MlpBlock::new((n, hidden, n), 0.0, Init::TORCH_WEIGHT, Init::ZEROS, vb.pp("mlp"))?;
                Ok(Residual::new(seq![norm, Transpose, mlp, Transpose]))
            }),
            (false, |vb, (n, _, hidden)| {
                let norm = LayerNorm::new(n, 1e-6, vb.pp("norm"))?;
                let mlp = MlpBlock::new((n, hidden, n), 0.0, Init::TORCH_WEIGHT, Init::ZEROS, vb.pp("mlp"))?;
                Ok(Residual::new(seq![Transpose, norm, mlp, Transpose]))
            }),
            (false, |vb, (_, c, _)| {
                let norm = LayerNorm::new(c, 1e-6, vb.pp("norm"))?;
                let heads = if c % 4 == 0 { 4 } else { 1 };
                let attn = SelfAttention::new(c, heads, (0.0, 0.0), Init::TORCH_WEIGHT, vb.pp("attn"))?;
                Ok(Residual::new(seq![norm, attn]))
            }),
            (true, |vb, (_, c, _)| {
                let norm = LayerNorm::new(c, 1e-6, vb.pp("norm"))?;
                let heads = if c % 4 == 0 { 4 } else { 1 };
                let attn = SelfAttention::new(c, heads, (0.0, 0.0), Init::TORCH_WEIGHT, vb.pp("attn"))?;
                Ok(Residual::new(seq![norm, attn]))
            }),
        ];
        for (b, n, c, hidden) in [(2, 3, 5, 7), (23, 17, 20, 33), (70, 9, 64, 96), (3, 150, 16, 24)] {
            for (i, (first, build)) in builds.iter().enumerate() {
                let xs = numbers("x", &[b, n, c]).to_dtype(DType::BF16)?;
                let run = |dtype: DType, fused: bool| -> Result<Vec<Tensor>> {
                    let store = VarStore::new(0, dtype, &Device::Cpu);
                    let mut block = build(&store.root(), (n, c, hidden))?;
                    block.row = block.row.filter(|_| fused);
                    for (i, (_, var)) in store.parameters().iter().enumerate() {
                        let scale = 1.0 / (var.elem_count() as f64 / var.dim(0)? as f64).sqrt();
                        let values = ((numbers(&format!("var {i}"), var.dims()) * scale)? + 0.1)?;
                        var.set(&values.to_dtype(DType::F32)?.to_dtype(dtype)?)?;
                    }
                    let wide = xs.to_dtype(dtype)?;
                    let xs = Var::from_tensor(if dtype == DType::F64 { &wide } else { &xs })?;
                    let forward = |xs: &Tensor, train: bool| {
                        let ys = if *first { block.forward_first(xs, train) } else { block.forward_t(xs, train) };
                        tape::to_dtype(&ys?, dtype)
                    };
                    let ys = tape::recorded(&xs, true, |xs| forward(xs, true))?;
                    let up = numbers("upstream", ys.dims()).to_dtype(DType::BF16)?.to_dtype(dtype)?;
                    let grads = (&ys * up)?.sum_all()?.backward()?;
                    let still = || forward(&xs.as_detached_tensor(), false);
                    let mut all = vec![ys, still()?];
                    // What is laid out of the weights once is what is laid out anew.
                    let values = |ys: &Tensor| ys.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
                    let again = with_fixed_weights(|| [still(), still()]);
                    for again in again {
                        assert_eq!(values(&again?)?, values(&all[1])?);
                    }
                    let vars = store.parameters();
                    let vars = [xs.as_tensor()].into_iter().chain(vars.iter().map(|(_, var)| var.as_tensor()));
                    all.extend(vars.map(|var| grads.get(var).expect("a gradient").clone()));
                    all.iter().map(|t| t.to_dtype(DType::F64)).collect()
                };
                let want = with_fallback(|| run(DType::F64, false))?;
                let layers = run(DType::F32, false)?;
                let got = run(DType::F32, true)?;
                for (part, ((got, layers), want)) in got.iter().zip(&layers).zip(&want).enumerate() {
                    let norm = |t: &Tensor| t.sqr()?.sum_all()?.to_scalar::<f64>().map(f64::sqrt);
                    let [error, of_layers] = [norm(&(got - want)?)?, norm(&(layers - want)?)?];
                    let size = norm(want)?;
                    assert!(
                        error <= 1.5 * of_layers + 0.004 * size,
                        "{i} {part} of {b} {n} {c}: {error}, layers {of_layers}, of {size}"
                    );
                }
            }
        }
        Ok(())
    }

    /// What rounding cuts off goes along from branch to branch: sixteen steps of a sixteenth of a bfloat16 step are one.
    #[test]
    fn a_stream_in_training_sums_what_bfloat16_would_lose() -> Result<()> {
        let step = 2f64.powi(-7);
        let names = ["norm.weight", "norm.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight"];
        for (b, n, over_tokens) in [(2, 3, false), (9, 128, false), (2, 3, true)] {
            let (c, store) = (5, VarStore::new(0, DType::F32, &Device::Cpu));
            let vb = store.root();
            let over = if over_tokens { n } else { c };
            let norm = LayerNorm::new(c, 1e-6, vb.pp("norm"))?;
            let mlp = MlpBlock::new((over, 7, over), 0.0, Init::TORCH_WEIGHT, Init::ZEROS, vb.pp("mlp"))?;
            let block =
                Residual::new(if over_tokens { seq![norm, Transpose, mlp, Transpose] } else { seq![norm, mlp] });
            // The branch is its last bias. The gradient of its norm is none.
            for (key, var) in store.parameters() {
                let value = if names.contains(&key.as_str()) { 0.0 } else { step / 16.0 };
                var.set(&(var.zeros_like()? + value)?)?;
            }
            let xs = Var::from_tensor(&Tensor::ones((b, n, c), DType::BF16, &Device::Cpu)?)?;
            let sixteen = |xs: &Tensor| (0..16).try_fold(xs.clone(), |xs, _| block.forward_t(&xs, true));
            let ys = tape::recorded(&xs, true, sixteen)?;
            assert_eq!(distance(&ys.to_dtype(DType::F64)?, &(ys.ones_like()?.to_dtype(DType::F64)? + step)?), 0.0);
        }
        Ok(())
    }

    /// So are the gradients of a stream's branches, forwards and backwards, nearer to the exact ones than layer by layer.
    #[test]
    fn gradients_of_a_stream_are_nearer_than_those_of_layers() -> Result<()> {
        let (b, n, c) = (8, 33, 12);
        let run = |dtype: DType, fused: bool| -> Result<Vec<Tensor>> {
            let store = VarStore::new(0, dtype, &Device::Cpu);
            let mut blocks = Vec::new();
            for i in 0..24 {
                let vb = store.root().pp(i);
                let norm = LayerNorm::new(c, 1e-6, vb.pp("norm"))?;
                let mut block = Residual::new(match i % 2 {
                    0 => seq![norm, SelfAttention::new(c, 3, (0.0, 0.0), Init::TORCH_WEIGHT, vb.pp("attn"))?],
                    _ => seq![norm, MlpBlock::new((c, 20, c), 0.0, Init::TORCH_WEIGHT, Init::ZEROS, vb.pp("mlp"))?],
                });
                block.row = block.row.filter(|_| fused);
                blocks.push(block);
            }
            for (key, var) in store.parameters() {
                let scale = if key.ends_with("bias") { 0.02 } else { 0.05 };
                let values = (numbers(&key, var.dims()) * scale)?;
                let values = if key.ends_with("norm.weight") { (values + 1.0)? } else { values };
                var.set(&values.to_dtype(DType::F32)?.to_dtype(dtype)?)?;
            }
            let narrow = |name: &str| numbers(name, &[b, n, c]).to_dtype(DType::BF16);
            let of = if dtype == DType::F64 { dtype } else { DType::BF16 };
            let xs = Var::from_tensor(&narrow("x")?.to_dtype(of)?)?;
            let stream = |xs: &Tensor| blocks.iter().try_fold(xs.clone(), |xs, block| block.forward_t(&xs, true));
            let ys = tape::recorded(&xs, true, |xs| tape::to_dtype(&stream(xs)?, dtype))?;
            let grads = (&ys * narrow("upstream")?.to_dtype(dtype)?)?.sum_all()?.backward()?;
            let vars = store.parameters().into_iter().filter(|(key, _)| key.ends_with("norm.weight"));
            vars.map(|(_, var)| grads.get(&var).expect("a gradient").to_dtype(DType::F64)).collect()
        };
        let want = with_fallback(|| run(DType::F64, false))?;
        let norm = |t: &Tensor| t.sqr()?.sum_all()?.to_scalar::<f64>().map(f64::sqrt);
        let error = |got: Vec<Tensor>| -> Result<f64> {
            let each = got.iter().zip(&want).map(|(got, want)| Ok(norm(&(got - want)?)? / norm(want)?));
            Ok(each.collect::<Result<Vec<f64>>>()?.iter().sum::<f64>() / want.len() as f64)
        };
        let (stream, layers) = (error(run(DType::F32, true)?)?, error(run(DType::F32, false)?)?);
        assert!(stream < 0.75 * layers, "{stream}, layers {layers}");
        Ok(())
    }

    /// With dropout the layers run one by one, and in evaluation the branch is one operation again.
    #[test]
    fn dropout_takes_the_layers() -> Result<()> {
        let store = VarStore::new(0, DType::F64, &Device::Cpu);
        let vb = store.root();
        let norm = LayerNorm::new(6, 1e-6, vb.pp("norm"))?;
        let mlp = MlpBlock::new((6, 8, 6), 0.0, Init::TORCH_WEIGHT, Init::ZEROS, vb.pp("mlp"))?;
        let block = Residual::new(seq![norm, mlp]);
        let dropping = block.clone().drop_path(Dropout::path(0.99, &vb)?);
        let xs = numbers("x", &[4, 3, 6]);
        let train = |block: &Residual| tape::recorded(&xs, true, |xs| block.forward_t(xs, true));
        assert_eq!(distance(&train(&dropping)?, &xs), 0.0);
        let plain = train(&block)?;
        assert_eq!(distance(&dropping.forward_t(&xs, false)?, &plain), 0.0);
        Ok(())
    }
}

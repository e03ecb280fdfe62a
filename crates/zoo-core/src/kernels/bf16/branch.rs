//! Residual branches of Transformers and Mixers in mixed precision: x + W₂ · inner(W₁ · norm(x) + b₁) + b₂.
//!
//! The forward pass keeps what the first map makes, rounded; normalisation, GELU and attention are computed once more on
//! the way back. Maps over channels go through a few images at a time, in `token_chunks.rs`; here is what all threads share
//! for large weights and small batches. Maps over tokens are products of an image's rows as they lie, in
//! `token_mixing.rs`.

use super::store::Finish;
use super::token_chunks::Chunks;
use super::token_mixing::Mixing;
use super::{attention, bias, channels, conv};
use crate::kernels::attention::Sizes as Heads;
use crate::kernels::buffer::written;
use crate::kernels::layer_norm as norm;
use crate::kernels::linear::Sizes;
use crate::kernels::pointwise::{self, Pointwise};
use crate::kernels::residual_block::{Branch, Inner, Weights};
use half::bf16;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// The gradients of the six parameters.
pub(crate) type Sums = [Vec<f32>; 6];

/// The weights of a branch's maps as operands of the forward pass.
pub(crate) enum Operands {
    /// Left sides of products with an image's tokens.
    Tokens([Vec<bf16>; 2]),
    /// Right sides of products with the channels of a few images.
    Chunks([Vec<bf16>; 2]),
    /// Convolutions of single taps over the rows of all images.
    Rows(Box<[conv::Forward; 2]>),
}

impl Operands {
    /// For so many images.
    pub fn new(branch: &Branch, w: &Weights<f32>, batch: usize) -> Self {
        if let Inner::GeluOfTokens(_) = branch.inner {
            return Self::Tokens(Mixing::new(branch, w).sides(false));
        }
        if let Some(chunks) = Chunks::new(branch, heads(branch), *w, batch) {
            return Self::Chunks(chunks.sides());
        }
        let (first, second) = maps(branch, batch * branch.n);
        Self::Rows(Box::new([
            conv::Forward::new(&first.as_conv(), w.first.0, None),
            conv::Forward::new(&second.as_conv(), w.second.0, None),
        ]))
    }
}

/// The output, and with `keep` the inner function's input for the backward pass.
pub(crate) fn forward(
    branch: &Branch,
    xs: &[bf16],
    w: Weights<f32>,
    operands: &Operands,
    keep: bool,
) -> (Vec<bf16>, Option<Vec<bf16>>) {
    let batch = xs.len() / (branch.n * branch.c);
    let [first, second] = match operands {
        Operands::Tokens(sides) => {
            return Mixing::new(branch, &w).forward(sides, xs, &normalized(branch, xs, &w), keep);
        }
        Operands::Chunks(sides) => {
            let chunks = Chunks::new(branch, heads(branch), w, batch);
            return chunks.expect("operands for chunks of this batch").forward(sides, xs, keep);
        }
        Operands::Rows(maps) => &**maps,
    };
    let normed = normalized(branch, xs, &w);
    let mid = first.run(&normed, &Finish::bias(Some(w.first.1)));
    drop(normed);
    let act = match heads(branch) {
        Some(heads) => attention::forward(heads, &mid),
        None => pointwise::forward(Pointwise::Gelu, &mid),
    };
    let kept = keep.then_some(mid);
    let first_tokens = (branch.tokens() < branch.n).then(|| first_tokens(branch, xs));
    let skip = Some(first_tokens.as_deref().unwrap_or(xs));
    let ys = second.run(&act, &Finish { skip, ..Finish::bias(Some(w.second.1)) });
    (ys, kept)
}

/// The gradients of the input and of the six parameters.
pub(crate) fn backward(
    branch: &Branch,
    xs: &[bf16],
    mid: Vec<bf16>,
    grad: &[bf16],
    w: Weights<f32>,
) -> (Vec<bf16>, Sums) {
    let batch = xs.len() / (branch.n * branch.c);
    let chunks = match branch.inner {
        Inner::GeluOfTokens(_) => None,
        _ => Chunks::new(branch, heads(branch), w, batch),
    };
    if let Some(chunks) = chunks {
        return chunks.backward(xs, &mid, grad);
    }
    let normed = normalized(branch, xs, &w);
    if let Inner::GeluOfTokens(_) = branch.inner {
        let (dnormed, [dw_first, db_first, dw_second, db_second]) =
            Mixing::new(branch, &w).backward(&normed, &mid, grad);
        drop((normed, mid));
        let (dx, [dw, db]) = normalized_backward(branch, (xs, &dnormed), &w, grad);
        return (dx, [dw, db, dw_first, db_first, dw_second, db_second]);
    }
    let (first, second) = maps(branch, xs.len() / branch.c);
    let (first, second) = (first.as_conv(), second.as_conv());
    let mut dact = conv::input_grad(&second, grad, w.second.0);
    let (act, dmid) = match heads(branch) {
        Some(heads) => {
            let (dmid, act) = attention::backward(heads, &mid, &dact);
            (act, dmid)
        }
        None => (pointwise::gelu_and_grad_by_all(&mid, &mut dact), dact),
    };
    drop(mid);
    let (dw_second, db_second) = (conv::weight_grad(&second, &act, grad), bias::gradient(grad, branch.c));
    drop(act);
    let (dw_first, db_first) = (conv::weight_grad(&first, &normed, &dmid), bias::gradient(&dmid, branch.mid));
    drop(normed);
    let dnormed = conv::input_grad(&first, &dmid, w.first.0);
    drop(dmid);
    let whole = (branch.tokens() < branch.n).then(|| channels::join(batch, &[grad], (0, (branch.n - 1) * branch.c)));
    let (dx, [dw, db]) = normalized_backward(branch, (xs, &dnormed), &w, whole.as_deref().unwrap_or(grad));
    (dx, [dw, db, dw_first, db_first, dw_second, db_second])
}

/// The linear maps' sizes, for so many tokens.
fn maps(branch: &Branch, rows: usize) -> (Sizes, Sizes) {
    let &Branch { n, c, mid, act, .. } = branch;
    let behind = rows / n * branch.tokens();
    (Sizes { rows, c_in: c, c_out: mid }, Sizes { rows: behind, c_in: act, c_out: c })
}

fn heads(branch: &Branch) -> Option<Heads> {
    match branch.inner {
        Inner::Attention(heads) | Inner::AttentionOfFirst(heads) => {
            Some(Heads { n: branch.n, queries: branch.tokens(), heads, d: branch.c / heads })
        }
        Inner::Gelu | Inner::GeluOfTokens(_) => None,
    }
}

fn first_tokens(branch: &Branch, xs: &[bf16]) -> Vec<bf16> {
    let parts = channels::split(xs, &[branch.c, (branch.n - 1) * branch.c], &[true, false]);
    parts.into_iter().next().flatten().unwrap_or_default()
}

fn normalized(branch: &Branch, xs: &[bf16], w: &Weights<f32>) -> Vec<bf16> {
    let Inner::GeluOfTokens(false) = branch.inner else {
        return norm::normalized(xs, w.norm.0, w.norm.1, branch.eps);
    };
    let image = branch.n * branch.c;
    let fill = |ys: &mut [MaybeUninit<bf16>]| {
        let images = ys.par_chunks_mut(image).zip(xs.par_chunks(image));
        images.for_each(|(ys, xs)| norm::columns_forward(xs, w.norm.0, w.norm.1, branch.eps, ys));
    };
    // SAFETY: every image is written.
    unsafe { written(xs.len(), fill) }
}

/// Images whose sums of gradients are taken in f32, one after the other.
const TOGETHER: usize = 8;

/// The gradient behind the norm and that of the shortcut, `onto`, as one; and those of the norm's parameters.
fn normalized_backward(
    branch: &Branch,
    (xs, grad): (&[bf16], &[bf16]),
    w: &Weights<f32>,
    onto: &[bf16],
) -> (Vec<bf16>, [Vec<f32>; 2]) {
    let zeros = || [(); 2].map(|()| vec![0f32; w.norm.0.len()]);
    let mut total = zeros();
    let [dw, db] = &mut total;
    let Inner::GeluOfTokens(false) = branch.inner else {
        let fill = |dx: &mut [MaybeUninit<bf16>]| {
            norm::backward((xs, grad), w.norm.0, branch.eps, Some(onto), dx, (dw, db));
        };
        // SAFETY: every row is written.
        let dx = unsafe { written(xs.len(), fill) };
        return (dx, total);
    };
    let image = branch.n * branch.c;
    let part = TOGETHER * image;
    let mut sums = Vec::new();
    let fill = |dx: &mut [MaybeUninit<bf16>]| {
        let parts = dx.par_chunks_mut(part).zip(xs.par_chunks(part));
        let parts = parts.zip(grad.par_chunks(part)).zip(onto.par_chunks(part)).map(|(((dx, xs), grad), onto)| {
            let mut sums = zeros();
            let [dw, db] = &mut sums;
            let images = dx.chunks_mut(image).zip(xs.chunks(image));
            for (((dx, xs), grad), onto) in images.zip(grad.chunks(image)).zip(onto.chunks(image)) {
                norm::columns_backward((xs, grad), w.norm.0, branch.eps, Some(onto), dx, (&mut *dw, &mut *db));
            }
            sums
        });
        sums = parts.collect::<Vec<_>>();
    };
    // SAFETY: every image is written.
    let dx = unsafe { written(xs.len(), fill) };
    for part in &sums {
        for (total, part) in total.iter_mut().zip(part) {
            total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
        }
    }
    (dx, total)
}

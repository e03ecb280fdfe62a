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
use crate::kernels::buffer::{written, written_all};
use crate::kernels::layer_norm::{self as norm, Onto};
use crate::kernels::linear::Sizes;
use crate::kernels::pointwise::{self, Pointwise};
use crate::kernels::residual_block::{Branch, Inner, MixedKept as Kept, MixedSums as Sums, Weights};
use half::bf16;
use rayon::prelude::*;
use std::mem::MaybeUninit;

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

/// The output of tokens and, if there is one, their low part; with `keep` what a pass with gradients has beside it.
pub(crate) fn forward(
    branch: &Branch,
    (xs, low): (&[bf16], Option<&[bf16]>),
    w: Weights<f32>,
    operands: &Operands,
    keep: bool,
) -> (Vec<bf16>, Option<Kept>) {
    let batch = xs.len() / (branch.n * branch.c);
    let [first, second] = match operands {
        Operands::Tokens(sides) => {
            return Mixing::new(branch, &w).forward(sides, (xs, low), &normalized(branch, xs, &w), keep);
        }
        Operands::Chunks(sides) => {
            let chunks = Chunks::new(branch, heads(branch), w, batch);
            return chunks.expect("operands for chunks of this batch").forward(sides, (xs, low), keep);
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
    let read = |xs: &[bf16]| (branch.tokens() < branch.n).then(|| first_tokens(branch, xs));
    let (skip, skip_low) = (read(xs), low.and_then(read));
    let skip = Some(skip.as_deref().unwrap_or(xs));
    let finish = Finish { skip, skip_low: skip_low.as_deref().or(low), ..Finish::bias(Some(w.second.1)) };
    if !keep {
        return (second.run(&act, &finish), None);
    }
    let (ys, low) = second.run_with_low_part(&act, &finish);
    (ys, Some(Kept { mid, low }))
}

/// The gradient of the input and its low part, and those of the six parameters; of the output's, and of its low part if
/// there is one.
pub(crate) fn backward(
    branch: &Branch,
    xs: &[bf16],
    mid: Vec<bf16>,
    (grad, low): (&[bf16], Option<&[bf16]>),
    w: Weights<f32>,
) -> ([Vec<bf16>; 2], Sums) {
    let batch = xs.len() / (branch.n * branch.c);
    let chunks = match branch.inner {
        Inner::GeluOfTokens(_) => None,
        _ => Chunks::new(branch, heads(branch), w, batch),
    };
    if let Some(chunks) = chunks {
        return chunks.backward(xs, &mid, (grad, low));
    }
    let normed = normalized(branch, xs, &w);
    if let Inner::GeluOfTokens(_) = branch.inner {
        let (dnormed, [dw_first, db_first, dw_second, db_second]) =
            Mixing::new(branch, &w).backward(&normed, &mid, grad);
        drop((normed, mid));
        let (dx, [dw, db]) = normalized_backward(branch, (xs, &dnormed), &w, Onto { high: grad, low });
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
    let whole = |grad: &[bf16]| {
        (branch.tokens() < branch.n).then(|| channels::join(batch, &[grad], (0, (branch.n - 1) * branch.c)))
    };
    let (high, whole_low) = (whole(grad), low.and_then(whole));
    let onto = Onto { high: high.as_deref().unwrap_or(grad), low: whole_low.as_deref().or(low) };
    let (dx, [dw, db]) = normalized_backward(branch, (xs, &dnormed), &w, onto);
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

/// The gradient behind the norm and that of the shortcut, `onto`, as one, and its low part; and those of the norm's
/// parameters.
fn normalized_backward(
    branch: &Branch,
    (xs, grad): (&[bf16], &[bf16]),
    w: &Weights<f32>,
    onto: Onto<bf16>,
) -> ([Vec<bf16>; 2], [Vec<f32>; 2]) {
    let zeros = || [(); 2].map(|()| vec![0f32; w.norm.0.len()]);
    let mut total = zeros();
    let [dw, db] = &mut total;
    let Inner::GeluOfTokens(false) = branch.inner else {
        let fill = |[dx, low]: [&mut [MaybeUninit<bf16>]; 2]| {
            norm::backward((xs, grad), w.norm.0, branch.eps, Some(onto), (dx, Some(low)), (dw, db));
        };
        // SAFETY: every row is written.
        let dx = unsafe { written_all([xs.len(); 2], fill) };
        return (dx, total);
    };
    let image = branch.n * branch.c;
    let part = TOGETHER * image;
    let mut sums = Vec::new();
    let fill = |[dx, low]: [&mut [MaybeUninit<bf16>]; 2]| {
        let parts = dx.par_chunks_mut(part).zip(low.par_chunks_mut(part)).enumerate().map(|(i, (dx, low))| {
            let mut sums = zeros();
            let [dw, db] = &mut sums;
            let images = dx.chunks_mut(image).zip(low.chunks_mut(image)).enumerate();
            for (k, dx) in images.map(|(k, (dx, low))| (k, (dx, Some(low)))) {
                let at = i * part + k * image..i * part + (k + 1) * image;
                let onto = Onto { high: &onto.high[at.clone()], low: onto.low.map(|low| &low[at.clone()]) };
                let read = (&xs[at.clone()], &grad[at]);
                norm::columns_backward(read, w.norm.0, branch.eps, Some(onto), dx, (&mut *dw, &mut *db));
            }
            sums
        });
        sums = parts.collect::<Vec<_>>();
    };
    // SAFETY: every image is written.
    let dx = unsafe { written_all([xs.len(); 2], fill) };
    for part in &sums {
        for (total, part) in total.iter_mut().zip(part) {
            total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
        }
    }
    (dx, total)
}

//! Residual branches of Transformers and Mixers on the host, a few images at a time, so that what lies between input and
//! output stays in the cache: x + W₂ · inner(W₁ · norm(x) + b₁) + b₂.

use super::attention;
use super::buffer::{assume_init, repeat, written};
use super::gemm::{Mat, all_threads, gemm, threads_inside};
use super::layer_norm as norm;
use super::pointwise::{gelu, gelu_and_grad};
use super::rows::{add_column, add_column_sums, add_row, add_row_sums};
use crate::ops::Real;
use gemm::Parallelism;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// What stands between the two linear maps.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Inner {
    Gelu,
    /// With this many heads: the first map makes queries, keys and values.
    Attention(usize),
    /// GELU, and the maps act on the tokens instead of the channels; the norm on the channels of a token if true, else on
    /// the tokens of a channel.
    GeluOfTokens(bool),
}

/// An image is (n, c); the first map makes `mid` numbers, the second reads `act`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Branch {
    pub inner: Inner,
    pub eps: f64,
    pub n: usize,
    pub c: usize,
    pub mid: usize,
    pub act: usize,
}

/// Weight and bias of the norm, of the first map and of the second; or their gradients.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a, T> {
    pub norm: (&'a [T], &'a [T]),
    pub first: (&'a [T], &'a [T]),
    pub second: (&'a [T], &'a [T]),
}

/// Rows that a matrix product wants, to be worth the packing of its other side.
const ROWS: usize = 128;
/// Weights beyond this many leave the cache anyway: then the threads share one product.
const LARGE: usize = 1 << 20;
/// Parts of the batch that sum their gradients each for itself.
const PARTS: usize = 8;
/// Elements of a block of GELU that one task takes.
const BLOCK: usize = 1 << 14;

impl Branch {
    fn on_tokens(&self) -> bool {
        matches!(self.inner, Inner::GeluOfTokens(_))
    }

    /// Numbers that an image has between the first map and the inner function, and behind it.
    pub fn mid_len(&self) -> usize {
        self.mid * if self.on_tokens() { self.c } else { self.n }
    }

    fn act_len(&self) -> usize {
        self.act * if self.on_tokens() { self.c } else { self.n }
    }

    /// Lengths of the six parameters.
    pub fn lengths(&self) -> [usize; 6] {
        let width = if self.on_tokens() { self.n } else { self.c };
        let normed = if let Inner::GeluOfTokens(false) = self.inner { self.n } else { self.c };
        [normed, normed, self.mid * width, self.mid, width * self.act, width]
    }

    /// Images that go through together.
    fn images(&self, batch: usize) -> usize {
        let [.., second, _] = self.lengths();
        match self.inner {
            Inner::GeluOfTokens(_) => 1,
            _ if second.max(self.lengths()[2]) >= LARGE => (8 * ROWS).div_ceil(self.n).min(batch),
            _ => ROWS.div_ceil(self.n).min(batch),
        }
    }

    fn normalize<T: Real>(&self, x: &[T], w: &Weights<T>, out: &mut [T]) {
        match self.inner {
            Inner::GeluOfTokens(false) => norm::columns_forward(x, w.norm.0, w.norm.1, self.eps, out),
            _ => norm::forward(x, w.norm.0, w.norm.1, self.eps, uninit(out)),
        }
    }

    fn normalize_grad<T: Real>(
        &self,
        (x, grad): (&[T], &[T]),
        w: &Weights<T>,
        dy: &[T],
        dx: &mut [MaybeUninit<T>],
        sums: (&mut [T], &mut [T]),
    ) {
        match self.inner {
            Inner::GeluOfTokens(false) => {
                norm::columns_backward((x, grad), w.norm.0, self.eps, Some(dy), dx, sums);
            }
            _ => norm::backward((x, grad), w.norm.0, self.eps, Some(dy), dx, sums),
        }
    }

    /// The first map, onto its bias.
    fn first<T: Real>(&self, images: usize, normed: &[T], w: &Weights<T>, mid: &mut [MaybeUninit<T>], p: Parallelism) {
        let (n, c) = (self.n, self.c);
        if self.on_tokens() {
            let mid = columns(mid, w.first.1, c);
            gemm((self.mid, c, n), mid, true, Mat::rows(w.first.0, n), Mat::rows(normed, c), p);
        } else {
            let mid = repeat(mid, w.first.1);
            gemm((images * n, self.mid, c), mid, true, Mat::rows(normed, c), Mat::transposed(w.first.0, c), p);
        }
    }

    /// The second map, onto the input and the bias.
    fn second<T: Real>(
        &self,
        images: usize,
        (x, act): (&[T], &[T]),
        w: &Weights<T>,
        y: &mut [MaybeUninit<T>],
        p: Parallelism,
    ) {
        let (n, c) = (self.n, self.c);
        if self.on_tokens() {
            let y = add_column(x, w.second.1, y);
            gemm((n, c, self.act), y, true, Mat::rows(w.second.0, self.act), Mat::rows(act, c), p);
        } else {
            let y = add_row(x, w.second.1, y);
            let rhs = Mat::transposed(w.second.0, self.act);
            gemm((images * n, c, self.act), y, true, Mat::rows(act, self.act), rhs, p);
        }
    }

    fn attention(&self, heads: usize) -> attention::Sizes {
        attention::Sizes { n: self.n, heads, d: self.c / heads }
    }

    fn inner<T: Real>(&self, mid: &[T], act: &mut [T]) {
        match self.inner {
            Inner::Attention(heads) => {
                let sizes = self.attention(heads);
                let images = act.par_chunks_mut(self.n * self.c).zip(mid.par_chunks(3 * self.n * self.c));
                let scratch = || vec![T::zero(); self.n * self.n];
                images.for_each_init(scratch, |scratch, (act, mid)| attention::forward(sizes, mid, act, scratch));
            }
            _ => act.par_chunks_mut(BLOCK).zip(mid.par_chunks(BLOCK)).for_each(|(act, mid)| gelu(mid, act)),
        }
    }

    /// `act` once more, and from its gradient `dact` that of `mid`, in `dmid`; for GELU both are one.
    fn inner_grad<T: Real>(&self, mid: &[T], act: &mut [T], dact: &mut [T], dmid: &mut [T]) {
        match self.inner {
            Inner::Attention(heads) => {
                let (sizes, one) = (self.attention(heads), self.n * self.c);
                let outputs = dmid.par_chunks_mut(3 * one).zip(act.par_chunks_mut(one));
                let images = outputs.zip(mid.par_chunks(3 * one)).zip(dact.par_chunks(one));
                let scratch = || vec![T::zero(); 2 * self.n * self.n];
                images.for_each_init(scratch, |scratch, (((dmid, act), mid), dact)| {
                    attention::backward(sizes, mid, dact, dmid, Some(act), scratch);
                });
            }
            _ => {
                let blocks = act.par_chunks_mut(BLOCK).zip(dact.par_chunks_mut(BLOCK)).zip(mid.par_chunks(BLOCK));
                blocks.for_each(|((act, dact), mid)| gelu_and_grad(mid, act, dact));
            }
        }
    }

    /// The output, and what lies before the inner function if `keep`: for the backward pass.
    pub fn forward<T: Real>(&self, xs: &[T], w: Weights<T>, keep: bool) -> (Vec<T>, Option<Vec<T>>) {
        let image = self.n * self.c;
        let batch = xs.len() / image;
        let images = self.images(batch);
        let p = self.parallelism(batch);
        // Memory for what lies between is laid out once for each run of chunks.
        let run = batch.div_ceil(images).div_ceil(PARTS);
        let mut kept = Vec::new();
        let fill = |ys: &mut [MaybeUninit<T>]| {
            let chunks = || xs.par_chunks(images * image);
            let scratch = || (vec![T::zero(); images * image], vec![T::zero(); images * self.act_len()]);
            let ys = ys.par_chunks_mut(images * image).zip(chunks()).with_min_len(run);
            if keep {
                let fill = |mids: &mut [MaybeUninit<T>]| {
                    let chunks = ys.zip(mids.par_chunks_mut(images * self.mid_len())).with_min_len(run);
                    chunks.for_each_init(scratch, |scratch, ((y, x), mid)| self.chunk(x, &w, mid, y, scratch, p));
                };
                // SAFETY: `chunk` fills the images that it is given, and they are all.
                kept = unsafe { written(batch * self.mid_len(), fill) };
            } else {
                let scratch = || (scratch(), vec![T::zero(); images * self.mid_len()]);
                ys.for_each_init(scratch, |(scratch, mid), (y, x)| {
                    let mid = &mut mid[..x.len() / image * self.mid_len()];
                    self.chunk(x, &w, uninit(mid), y, scratch, p);
                });
            }
        };
        // SAFETY: as above.
        let ys = unsafe { written(xs.len(), fill) };
        (ys, keep.then_some(kept))
    }

    fn chunk<T: Real>(
        &self,
        x: &[T],
        w: &Weights<T>,
        mid: &mut [MaybeUninit<T>],
        y: &mut [MaybeUninit<T>],
        (normed, act): &mut (Vec<T>, Vec<T>),
        p: Parallelism,
    ) {
        let images = x.len() / (self.n * self.c);
        let (normed, act) = (&mut normed[..x.len()], &mut act[..images * self.act_len()]);
        self.normalize(x, w, normed);
        self.first(images, normed, w, mid, p);
        // SAFETY: `first` fills it.
        self.inner(unsafe { assume_init(mid) }, act);
        self.second(images, (x, act), w, y, p);
    }

    fn parallelism(&self, batch: usize) -> Parallelism {
        let large = self.lengths().into_iter().max() >= Some(LARGE);
        if large { all_threads() } else { threads_inside(batch.div_ceil(self.images(batch))) }
    }

    /// The gradients of the input and of the six parameters.
    pub fn backward<T: Real>(&self, xs: &[T], mids: &[T], grad: &[T], w: Weights<T>) -> (Vec<T>, Vec<Vec<T>>) {
        let image = self.n * self.c;
        let batch = xs.len() / image;
        let images = self.images(batch);
        // With large weights one sum is enough memory; the threads share each product.
        let large = self.lengths().into_iter().max() >= Some(LARGE);
        let parts = if large { 1 } else { PARTS };
        let part = batch.div_ceil(images).div_ceil(parts) * images;
        let p = if large { all_threads() } else { threads_inside(batch.div_ceil(part)) };
        let mut sums = Vec::new();
        let fill = |dx: &mut [MaybeUninit<T>]| {
            let parts = dx.par_chunks_mut(part * image).zip(xs.par_chunks(part * image));
            let parts = parts.zip(grad.par_chunks(part * image)).zip(mids.par_chunks(part * self.mid_len()));
            sums = parts.map(|(((dx, x), dy), mid)| self.part(images, (x, mid, dy), &w, dx, p)).collect();
        };
        // SAFETY: the parts cover the images, and `part` fills those it is given.
        let dx = unsafe { written(xs.len(), fill) };
        let mut sums = sums.into_iter();
        let mut total: Vec<Vec<T>> = sums.next().unwrap_or_default();
        let rest: Vec<Vec<Vec<T>>> = sums.collect();
        for (i, total) in total.iter_mut().enumerate() {
            total.par_chunks_mut(BLOCK).enumerate().for_each(|(block, total)| {
                for part in &rest {
                    total.iter_mut().zip(&part[i][block * BLOCK..]).for_each(|(total, &x)| *total += x);
                }
            });
        }
        (dx, total)
    }

    fn part<T: Real>(
        &self,
        images: usize,
        (xs, mids, grad): (&[T], &[T], &[T]),
        w: &Weights<T>,
        dx: &mut [MaybeUninit<T>],
        p: Parallelism,
    ) -> Vec<Vec<T>> {
        let image = self.n * self.c;
        let mut sums = self.lengths().map(|len| vec![T::zero(); len]).to_vec();
        let [dw_norm, db_norm, dw_first, db_first, dw_second, db_second] = &mut sums[..] else { return sums };
        let zeros = |len: usize| vec![T::zero(); images * len];
        let (mut normed, mut dnormed) = (zeros(image), zeros(image));
        let (mut act, mut dact) = (zeros(self.act_len()), zeros(self.act_len()));
        let mut dmid = if self.mid == self.act { Vec::new() } else { zeros(self.mid_len()) };
        let chunks = xs.chunks(images * image).zip(grad.chunks(images * image)).zip(dx.chunks_mut(images * image));
        for (((x, dy), dx), mid) in chunks.zip(mids.chunks(images * self.mid_len())) {
            let images = x.len() / image;
            let (normed, dnormed) = (&mut normed[..x.len()], &mut dnormed[..x.len()]);
            let act_len = images * self.act_len();
            let (act, dact) = (&mut act[..act_len], &mut dact[..act_len]);
            self.normalize(x, w, normed);
            let (n, c, rows) = (self.n, self.c, images * self.n);
            let (first, second) = ((self.mid, n), (self.act, n));
            if self.on_tokens() {
                gemm((self.act, c, n), dact, false, Mat::transposed(w.second.0, self.act), Mat::rows(dy, c), p);
                self.inner_grad(mid, act, dact, &mut []);
                gemm((second.1, second.0, c), dw_second, true, Mat::rows(dy, c), Mat::transposed(act, c), p);
                gemm((first.0, first.1, c), dw_first, true, Mat::rows(dact, c), Mat::transposed(normed, c), p);
                add_row_sums(dy, db_second);
                add_row_sums(dact, db_first);
                gemm((n, c, self.mid), dnormed, false, Mat::transposed(w.first.0, n), Mat::rows(dact, c), p);
            } else {
                gemm((rows, self.act, c), dact, false, Mat::rows(dy, c), Mat::rows(w.second.0, self.act), p);
                let dmid_len = if dmid.is_empty() { 0 } else { images * self.mid_len() };
                self.inner_grad(mid, act, dact, &mut dmid[..dmid_len]);
                gemm((c, self.act, rows), dw_second, true, Mat::transposed(dy, c), Mat::rows(act, self.act), p);
                add_column_sums(dy, db_second);
                let dmid: &[T] = if dmid.is_empty() { dact } else { &dmid[..dmid_len] };
                gemm((self.mid, c, rows), dw_first, true, Mat::transposed(dmid, self.mid), Mat::rows(normed, c), p);
                add_column_sums(dmid, db_first);
                gemm((rows, c, self.mid), dnormed, false, Mat::rows(dmid, self.mid), Mat::rows(w.first.0, c), p);
            }
            self.normalize_grad((x, dnormed), w, dy, dx, (&mut *dw_norm, &mut *db_norm));
        }
        sums
    }
}

/// Memory that may be written without regard to what it holds.
fn uninit<T: Real>(xs: &mut [T]) -> &mut [MaybeUninit<T>] {
    // SAFETY: the same layout, and the kernels that write through it leave numbers behind.
    unsafe { &mut *(std::ptr::from_mut(xs) as *mut [MaybeUninit<T>]) }
}

/// Fills each row of `cols` elements with its own number.
fn columns<'a, T: Real>(out: &'a mut [MaybeUninit<T>], column: &[T], cols: usize) -> &'a mut [T] {
    assert_eq!(out.len(), column.len() * cols);
    for (row, &x) in out.chunks_exact_mut(cols).zip(column) {
        row.iter_mut().for_each(|y| _ = y.write(x));
    }
    // SAFETY: the rows fill the block.
    unsafe { assume_init(out) }
}

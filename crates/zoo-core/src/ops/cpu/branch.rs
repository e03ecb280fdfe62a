//! Residual branches of Transformers and Mixers on the host, a few images at a time, so that what lies between input and
//! output stays in the cache: x + W₂ · inner(W₁ · norm(x) + b₁) + b₂.

use super::attention;
use super::buffer::{assume_init, uninit, written};
use super::gemm::{Mat, Out, Panels, Threads, gemm};
use super::layer_norm as norm;
use super::pointwise::{gelu, gelu_and_grad};
use super::rows::{add_column, add_column_sums, add_row, add_row_sums};
use crate::ops::Real;
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

/// The weights of both maps as right sides of products; `None` where they stand on the left.
type Packed<T> = Option<(Panels<T>, Panels<T>)>;

/// Rows that a matrix product wants.
const ROWS: usize = 128;
/// Weights beyond this many leave the cache anyway: then more rows go through together, and one sum of their gradients is
/// enough.
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
            _ if second.max(self.lengths()[2]) >= LARGE => (2 * ROWS).div_ceil(self.n).min(batch),
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

    /// The weights of both maps as the right sides of the forward pass's products, if that is what they are.
    fn pack<T: Real>(&self, w: &Weights<T>) -> Packed<T> {
        (!self.on_tokens()).then(|| {
            let (first, second) = (Mat::transposed(w.first.0, self.c), Mat::transposed(w.second.0, self.act));
            (Panels::new(first, (self.c, self.mid)), Panels::new(second, (self.act, self.c)))
        })
    }

    /// The same for the backward pass.
    fn pack_for_grad<T: Real>(&self, w: &Weights<T>) -> Packed<T> {
        (!self.on_tokens()).then(|| {
            let (first, second) = (Mat::rows(w.first.0, self.c), Mat::rows(w.second.0, self.act));
            (Panels::new(first, (self.mid, self.c)), Panels::new(second, (self.c, self.act)))
        })
    }

    /// The first map, onto its bias.
    fn first<T: Real>(
        &self,
        normed: &[T],
        w: &Weights<T>,
        packed: &Packed<T>,
        mid: &mut [MaybeUninit<T>],
        threads: Threads,
    ) {
        let (n, c) = (self.n, self.c);
        match packed {
            None => {
                let mid = Out::Plus(columns(mid, w.first.1, c));
                gemm((self.mid, c, n), mid, Mat::rows(w.first.0, n), Mat::rows(normed, c), threads);
            }
            Some((first, _)) => {
                first.multiply(normed.len() / c, Out::OntoRow(mid, w.first.1), Mat::rows(normed, c), threads);
            }
        }
    }

    /// The second map, onto the input and the bias.
    fn second<T: Real>(
        &self,
        (x, act): (&[T], &[T]),
        w: &Weights<T>,
        packed: &Packed<T>,
        y: &mut [MaybeUninit<T>],
        threads: Threads,
    ) {
        let (n, c) = (self.n, self.c);
        match packed {
            None => {
                let y = Out::Plus(add_column(x, w.second.1, y));
                gemm((n, c, self.act), y, Mat::rows(w.second.0, self.act), Mat::rows(act, c), threads);
            }
            Some((_, second)) => {
                let y = Out::Plus(add_row(x, w.second.1, y));
                second.multiply(x.len() / c, y, Mat::rows(act, self.act), threads);
            }
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
        let threads = Threads::inside(batch.div_ceil(images));
        let packed = self.pack(&w);
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
                    chunks.for_each_init(scratch, |scratch, ((y, x), mid)| {
                        self.chunk(x, (&w, &packed), mid, y, scratch, threads)
                    });
                };
                // SAFETY: `chunk` fills the images that it is given, and they are all.
                kept = unsafe { written(batch * self.mid_len(), fill) };
            } else {
                let scratch = || (scratch(), vec![T::zero(); images * self.mid_len()]);
                ys.for_each_init(scratch, |(scratch, mid), (y, x)| {
                    let mid = &mut mid[..x.len() / image * self.mid_len()];
                    self.chunk(x, (&w, &packed), uninit(mid), y, scratch, threads);
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
        (w, packed): (&Weights<T>, &Packed<T>),
        mid: &mut [MaybeUninit<T>],
        y: &mut [MaybeUninit<T>],
        (normed, act): &mut (Vec<T>, Vec<T>),
        threads: Threads,
    ) {
        let images = x.len() / (self.n * self.c);
        let (normed, act) = (&mut normed[..x.len()], &mut act[..images * self.act_len()]);
        self.normalize(x, w, normed);
        self.first(normed, w, packed, mid, threads);
        // SAFETY: `first` fills it.
        self.inner(unsafe { assume_init(mid) }, act);
        self.second((x, act), w, packed, y, threads);
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
        let threads = Threads::inside(batch.div_ceil(part));
        let packed = self.pack_for_grad(&w);
        let mut sums = Vec::new();
        let fill = |dx: &mut [MaybeUninit<T>]| {
            let parts = dx.par_chunks_mut(part * image).zip(xs.par_chunks(part * image));
            let parts = parts.zip(grad.par_chunks(part * image)).zip(mids.par_chunks(part * self.mid_len()));
            sums =
                parts.map(|(((dx, x), dy), mid)| self.part(images, (x, mid, dy), (&w, &packed), dx, threads)).collect();
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
        (w, packed): (&Weights<T>, &Packed<T>),
        dx: &mut [MaybeUninit<T>],
        threads: Threads,
    ) -> Vec<Vec<T>> {
        let image = self.n * self.c;
        let [norm, norm_bias, _, first_bias, _, second_bias] = self.lengths().map(|len| vec![T::zero(); len]);
        let (mut dw_norm, mut db_norm, mut db_first, mut db_second) = (norm, norm_bias, first_bias, second_bias);
        let (mut dw_first, mut dw_second) = (Vec::new(), Vec::new());
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
            let dmid_len = if dmid.is_empty() { 0 } else { images * self.mid_len() };
            match packed {
                None => {
                    let (weight, dy) = (Mat::transposed(w.second.0, self.act), Mat::rows(dy, c));
                    gemm((self.act, c, n), Out::Is(uninit(dact)), weight, dy, threads);
                }
                Some((_, second)) => second.multiply(rows, Out::Is(uninit(dact)), Mat::rows(dy, c), threads),
            }
            self.inner_grad(mid, act, dact, &mut dmid[..dmid_len]);
            let dmid: &[T] = if dmid.is_empty() { dact } else { &dmid[..dmid_len] };
            match packed {
                None => {
                    let (act, normed) = (Mat::transposed(act, c), Mat::transposed(normed, c));
                    add_product((n, self.act, c), &mut dw_second, Mat::rows(dy, c), act, threads);
                    add_product((self.mid, n, c), &mut dw_first, Mat::rows(dmid, c), normed, threads);
                    add_row_sums(dy, &mut db_second);
                    add_row_sums(dmid, &mut db_first);
                    let (weight, dmid) = (Mat::transposed(w.first.0, n), Mat::rows(dmid, c));
                    gemm((n, c, self.mid), Out::Is(uninit(dnormed)), weight, dmid, threads);
                }
                Some((first, _)) => {
                    let (act, normed) = (Mat::rows(act, self.act), Mat::rows(normed, c));
                    add_product((c, self.act, rows), &mut dw_second, Mat::transposed(dy, c), act, threads);
                    let dmid_t = Mat::transposed(dmid, self.mid);
                    add_product((self.mid, c, rows), &mut dw_first, dmid_t, normed, threads);
                    add_column_sums(dy, &mut db_second);
                    add_column_sums(dmid, &mut db_first);
                    first.multiply(rows, Out::Is(uninit(dnormed)), Mat::rows(dmid, self.mid), threads);
                }
            }
            self.normalize_grad((x, dnormed), w, dy, dx, (&mut dw_norm, &mut db_norm));
        }
        vec![dw_norm, db_norm, dw_first, db_first, dw_second, db_second]
    }
}

/// Adds lhs · rhs to `sum`, which starts empty: the first product is written, not added to zeros.
fn add_product<T: Real>(
    (m, n, k): (usize, usize, usize),
    sum: &mut Vec<T>,
    lhs: Mat<T>,
    rhs: Mat<T>,
    threads: Threads,
) {
    if sum.is_empty() {
        // SAFETY: the product fills its rows.
        *sum = unsafe { written(m * n, |sum| gemm((m, n, k), Out::Is(sum), lhs, rhs, threads)) };
    } else {
        gemm((m, n, k), Out::Plus(sum), lhs, rhs, threads);
    }
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

//! Residual blocks of Transformers and Mixers: x + W₂ · inner(W₁ · norm(x) + b₁) + b₂, a few images at a time, so that
//! every intermediate stays in the cache.

use super::attention;
use super::bias::{add_column, add_column_sums, add_row, add_row_sums};
use super::buffer::{assume_init, room, written};
use super::gemm::Threads::{self, All};
use super::gemm::{Mat, Out, Rhs, gemm};
use super::layer_norm as norm;
use super::pointwise::{gelu, gelu_and_grad};
use super::simd::Real;
use half::bf16;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// What stands between the two linear maps.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Inner {
    Gelu,
    /// With this many heads: the first map makes queries, keys and values.
    Attention(usize),
    /// The same with one query, each image's first token.
    AttentionOfFirst(usize),
    /// GELU, and the maps act on the tokens instead of the channels; the norm on the channels of a token if true, else
    /// on the tokens of a channel.
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
type Sides<'a, T> = Option<(Rhs<'a, T>, Rhs<'a, T>)>;

/// Rows that a matrix product wants.
const ROWS: usize = 256;
/// Weights from which on one sum of gradients is memory enough.
const LARGE: usize = 1 << 20;
/// Parts of the batch with a sum of gradients each.
const PARTS: usize = 8;
/// Elements of a block of GELU that one task takes.
const BLOCK: usize = 1 << 14;

/// What a pass in mixed precision has of a branch beside its output.
pub(crate) struct MixedKept {
    /// The inner function's input, for the backward pass.
    pub mid: Vec<bf16>,
    /// The low part of the output, for the branch that comes next.
    pub low: Vec<bf16>,
}

/// The gradients of the six parameters in mixed precision.
pub(crate) type MixedSums = [Vec<f32>; 6];

impl Branch {
    fn on_tokens(&self) -> bool {
        matches!(self.inner, Inner::GeluOfTokens(_))
    }

    /// Numbers that an image has between the first map and the inner function, and behind it.
    pub fn mid_len(&self) -> usize {
        self.mid * if self.on_tokens() { self.c } else { self.n }
    }

    fn act_len(&self) -> usize {
        self.act * if self.on_tokens() { self.c } else { self.tokens() }
    }

    /// Output tokens of an image.
    pub fn tokens(&self) -> usize {
        if let Inner::AttentionOfFirst(_) = self.inner { 1 } else { self.n }
    }

    /// Output elements of an image.
    fn out_len(&self) -> usize {
        self.tokens() * self.c
    }

    /// Lengths of the six parameters.
    pub fn lengths(&self) -> [usize; 6] {
        let width = if self.on_tokens() { self.n } else { self.c };
        let normed = if let Inner::GeluOfTokens(false) = self.inner { self.n } else { self.c };
        [normed, normed, self.mid * width, self.mid, width * self.act, width]
    }

    /// Images that go through together.
    fn images(&self, batch: usize) -> usize {
        match self.inner {
            Inner::GeluOfTokens(_) => 1,
            _ => ROWS.div_ceil(self.n).min(batch),
        }
    }

    fn normalize<T: Real>(&self, x: &[T], w: &Weights<T>, out: &mut [MaybeUninit<T>]) {
        match self.inner {
            Inner::GeluOfTokens(false) => norm::columns_forward(x, w.norm.0, w.norm.1, self.eps, out),
            _ => norm::forward(x, w.norm.0, w.norm.1, self.eps, out),
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
        let onto = Some(norm::Onto { high: dy, low: None });
        match self.inner {
            Inner::GeluOfTokens(false) => {
                norm::columns_backward((x, grad), w.norm.0, self.eps, onto, (dx, None), sums);
            }
            _ => norm::backward((x, grad), w.norm.0, self.eps, onto, (dx, None), sums),
        }
    }

    /// The weights of both maps, packed for the forward pass's products with `rows` rows, where they are right sides.
    fn sides<'a, T: Real>(&self, w: &Weights<'a, T>, rows: usize) -> Sides<'a, T> {
        (!self.on_tokens()).then(|| {
            let (first, second) = (Mat::transposed(w.first.0, self.c), Mat::transposed(w.second.0, self.act));
            (Rhs::new(first, (self.c, self.mid), rows, All), Rhs::new(second, (self.act, self.c), rows, All))
        })
    }

    /// The same for the backward pass.
    fn sides_for_grad<'a, T: Real>(&self, w: &Weights<'a, T>, rows: usize) -> Sides<'a, T> {
        (!self.on_tokens()).then(|| {
            let (first, second) = (Mat::rows(w.first.0, self.c), Mat::rows(w.second.0, self.act));
            (Rhs::new(first, (self.mid, self.c), rows, All), Rhs::new(second, (self.c, self.act), rows, All))
        })
    }

    /// The first map, onto its bias.
    fn first<T: Real>(
        &self,
        normed: &[T],
        w: &Weights<T>,
        sides: &Sides<T>,
        mid: &mut [MaybeUninit<T>],
        threads: Threads,
    ) {
        let (n, c) = (self.n, self.c);
        match sides {
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
        sides: &Sides<T>,
        y: &mut [MaybeUninit<T>],
        threads: Threads,
    ) {
        let (n, c) = (self.n, self.c);
        match sides {
            None => {
                let y = Out::Plus(add_column(x, w.second.1, y));
                gemm((n, c, self.act), y, Mat::rows(w.second.0, self.act), Mat::rows(act, c), threads);
            }
            Some((_, second)) => {
                let y = Out::Plus(add_row(x, w.second.1, y));
                second.multiply(act.len() / self.act, y, Mat::rows(act, self.act), threads);
            }
        }
    }

    fn attention(&self, heads: usize) -> attention::Sizes {
        attention::Sizes { n: self.n, queries: self.tokens(), heads, d: self.c / heads }
    }

    /// The input's tokens that the branch is added to; in `scratch`, if they do not lie together.
    fn skipped<'a, T: Real>(&self, x: &'a [T], scratch: &'a mut Vec<T>) -> &'a [T] {
        if self.tokens() == self.n {
            return x;
        }
        scratch.clear();
        x.chunks_exact(self.n * self.c).for_each(|image| scratch.extend_from_slice(&image[..self.out_len()]));
        scratch
    }

    /// The gradient of [`skipped`](Self::skipped).
    fn skipped_grad<'a, T: Real>(&self, dy: &'a [T], scratch: &'a mut Vec<T>) -> &'a [T] {
        if self.tokens() == self.n {
            return dy;
        }
        let image = self.n * self.c;
        scratch.clear();
        for (i, dy) in dy.chunks_exact(self.out_len()).enumerate() {
            scratch.extend_from_slice(dy);
            scratch.resize((i + 1) * image, T::zero());
        }
        scratch
    }

    fn inner<T: Real>(&self, mid: &[T], act: &mut [MaybeUninit<T>]) {
        match self.inner {
            Inner::Attention(heads) | Inner::AttentionOfFirst(heads) => {
                let sizes = self.attention(heads);
                let images = act.par_chunks_mut(self.out_len()).zip(mid.par_chunks(3 * self.n * self.c));
                let scratch = || vec![T::zero(); self.tokens() * self.n];
                images.for_each_init(scratch, |scratch, (act, mid)| attention::forward(sizes, mid, act, scratch));
            }
            _ => act.par_chunks_mut(BLOCK).zip(mid.par_chunks(BLOCK)).for_each(|(act, mid)| gelu(mid, act)),
        }
    }

    /// The gradient of `mid` from `dact`, to `dmid`, and `act` once more; for GELU `dact` becomes that gradient itself.
    fn inner_grad<T: Real>(&self, mid: &[T], act: &mut [MaybeUninit<T>], dact: &mut [T], dmid: &mut [MaybeUninit<T>]) {
        match self.inner {
            Inner::Attention(heads) | Inner::AttentionOfFirst(heads) => {
                let (sizes, out) = (self.attention(heads), self.out_len());
                let outputs = dmid.par_chunks_mut(self.mid_len()).zip(act.par_chunks_mut(out));
                let images = outputs.zip(mid.par_chunks(self.mid_len())).zip(dact.par_chunks(out));
                let scratch = || vec![T::zero(); 2 * self.tokens() * self.n];
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

    /// The output, and with `keep` the inner function's input for the backward pass.
    pub fn forward<T: Real>(&self, xs: &[T], w: Weights<T>, keep: bool) -> (Vec<T>, Option<Vec<T>>) {
        let image = self.n * self.c;
        let batch = xs.len() / image;
        let images = self.images(batch);
        let threads = Threads::inside(batch.div_ceil(images));
        let sides = self.sides(&w, batch * self.n);
        // Memory for what lies between is laid out once for each run of chunks.
        let run = batch.div_ceil(images).div_ceil(PARTS);
        let mut kept = Vec::new();
        let fill = |ys: &mut [MaybeUninit<T>]| {
            let chunks = || xs.par_chunks(images * image);
            let rooms = |len: usize| Vec::with_capacity(images * len);
            let scratch = || (rooms(image), rooms(self.act_len()), Vec::new());
            let ys = ys.par_chunks_mut(images * self.out_len()).zip(chunks()).with_min_len(run);
            if keep {
                let fill = |mids: &mut [MaybeUninit<T>]| {
                    let chunks = ys.zip(mids.par_chunks_mut(images * self.mid_len())).with_min_len(run);
                    chunks.for_each_init(scratch, |scratch, ((y, x), mid)| {
                        self.chunk(x, (&w, &sides), mid, y, scratch, threads)
                    });
                };
                // SAFETY: `chunk` fills the images that it is given, and they are all.
                kept = unsafe { written(batch * self.mid_len(), fill) };
            } else {
                let scratch = || (scratch(), rooms(self.mid_len()));
                ys.for_each_init(scratch, |(scratch, mid), (y, x)| {
                    let mid = room(mid, x.len() / image * self.mid_len());
                    self.chunk(x, (&w, &sides), mid, y, scratch, threads);
                });
            }
        };
        // SAFETY: as above.
        let ys = unsafe { written(batch * self.out_len(), fill) };
        (ys, keep.then_some(kept))
    }

    fn chunk<T: Real>(
        &self,
        x: &[T],
        (w, sides): (&Weights<T>, &Sides<T>),
        mid: &mut [MaybeUninit<T>],
        y: &mut [MaybeUninit<T>],
        (normed, act, skipped): &mut (Vec<T>, Vec<T>, Vec<T>),
        threads: Threads,
    ) {
        let images = x.len() / (self.n * self.c);
        let (normed, act) = (room(normed, x.len()), room(act, images * self.act_len()));
        self.normalize(x, w, normed);
        // SAFETY: `normalize` fills it.
        self.first(unsafe { assume_init(normed) }, w, sides, mid, threads);
        // SAFETY: `first` fills it.
        self.inner(unsafe { assume_init(mid) }, act);
        // SAFETY: `inner` fills it.
        let act = unsafe { assume_init(act) };
        self.second((self.skipped(x, skipped), act), w, sides, y, threads);
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
        let sides = self.sides_for_grad(&w, batch * self.n);
        let mut sums = Vec::new();
        let fill = |dx: &mut [MaybeUninit<T>]| {
            let parts = dx.par_chunks_mut(part * image).zip(xs.par_chunks(part * image));
            let parts = parts.zip(grad.par_chunks(part * self.out_len())).zip(mids.par_chunks(part * self.mid_len()));
            sums =
                parts.map(|(((dx, x), dy), mid)| self.part(images, (x, mid, dy), (&w, &sides), dx, threads)).collect();
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
        (w, sides): (&Weights<T>, &Sides<T>),
        dx: &mut [MaybeUninit<T>],
        threads: Threads,
    ) -> Vec<Vec<T>> {
        let image = self.n * self.c;
        let [norm, norm_bias, _, first_bias, _, second_bias] = self.lengths().map(|len| vec![T::zero(); len]);
        let (mut dw_norm, mut db_norm, mut db_first, mut db_second) = (norm, norm_bias, first_bias, second_bias);
        let (mut dw_first, mut dw_second) = (Vec::new(), Vec::new());
        let rooms = |len: usize| Vec::with_capacity(images * len);
        let (mut normed, mut dnormed) = (rooms(image), rooms(image));
        let (mut act, mut dact) = (rooms(self.act_len()), rooms(self.act_len()));
        let dmid_len = if self.mid == self.act { 0 } else { self.mid_len() };
        let mut dmid = rooms(dmid_len);
        let mut skipped = Vec::new();
        let chunks =
            xs.chunks(images * image).zip(grad.chunks(images * self.out_len())).zip(dx.chunks_mut(images * image));
        for (((x, dy), dx), mid) in chunks.zip(mids.chunks(images * self.mid_len())) {
            let images = x.len() / image;
            let (normed, dnormed) = (room(&mut normed, x.len()), room(&mut dnormed, x.len()));
            let act_len = images * self.act_len();
            let (act, dact) = (room(&mut act, act_len), room(&mut dact, act_len));
            let dmid = room(&mut dmid, images * dmid_len);
            self.normalize(x, w, normed);
            let (n, c, rows) = (self.n, self.c, images * self.n);
            match sides {
                None => {
                    let (weight, dy) = (Mat::transposed(w.second.0, self.act), Mat::rows(dy, c));
                    gemm((self.act, c, n), Out::Is(dact), weight, dy, threads);
                }
                Some((_, second)) => second.multiply(dy.len() / c, Out::Is(dact), Mat::rows(dy, c), threads),
            }
            // SAFETY: the product fills the gradient, `normalize` and `inner_grad` what they are given.
            let (normed, act, dmid) = unsafe {
                let dact = assume_init(dact);
                self.inner_grad(mid, act, dact, dmid);
                let dmid: &[T] = if dmid.is_empty() { dact } else { assume_init(dmid) };
                (&*assume_init(normed), &*assume_init(act), dmid)
            };
            match sides {
                None => {
                    let (act, normed) = (Mat::transposed(act, c), Mat::transposed(normed, c));
                    add_product((n, self.act, c), &mut dw_second, Mat::rows(dy, c), act, threads);
                    add_product((self.mid, n, c), &mut dw_first, Mat::rows(dmid, c), normed, threads);
                    add_row_sums(dy, &mut db_second);
                    add_row_sums(dmid, &mut db_first);
                    let (weight, dmid) = (Mat::transposed(w.first.0, n), Mat::rows(dmid, c));
                    gemm((n, c, self.mid), Out::Is(dnormed), weight, dmid, threads);
                }
                Some((first, _)) => {
                    let (act, normed) = (Mat::rows(act, self.act), Mat::rows(normed, c));
                    add_product((c, self.act, dy.len() / c), &mut dw_second, Mat::transposed(dy, c), act, threads);
                    let dmid_t = Mat::transposed(dmid, self.mid);
                    add_product((self.mid, c, rows), &mut dw_first, dmid_t, normed, threads);
                    add_column_sums(dy, &mut db_second);
                    add_column_sums(dmid, &mut db_first);
                    first.multiply(rows, Out::Is(dnormed), Mat::rows(dmid, self.mid), threads);
                }
            }
            // SAFETY: the product fills it.
            self.normalize_grad(
                (x, unsafe { assume_init(dnormed) }),
                w,
                self.skipped_grad(dy, &mut skipped),
                dx,
                (&mut dw_norm, &mut db_norm),
            );
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

//! A branch whose maps act on the channels, a few images at a time: every intermediate stays in the task's cache.
//!
//! Rows of scratch are as long as whole steps of products, zeros at their ends: so they are left sides as they lie.

use super::attention::{Head, Plan};
use super::matrix::{
    Rooms, Skip, To, left, left_room, left_transposed, multiply, padded, places, right, right_room, steps,
};
use super::tiles::{DEPTH, Product, Tiles};
use super::weights::packed;
use crate::kernels::attention::Sizes;
use crate::kernels::buffer::{Shared, with_scratch, written_all};
use crate::kernels::layer_norm as norm;
use crate::kernels::low_parts::LowParts;
use crate::kernels::pointwise::{gelu_of, gelu_with_slope};
use crate::kernels::residual_block::{Branch, MixedKept as Kept, MixedSums as Sums, Weights};
use crate::kernels::simd::{Kernel, Level, Simd, dispatch_at};
use half::bf16;
use rayon::prelude::*;

/// Rows of a chunk, if it has more than one image.
const ROWS: usize = 256;
/// Parts of the batch with a sum of gradients each.
const PARTS: usize = 8;
/// Chunks from which on a batch is worth it: fewer do not keep threads busy.
const CHUNKS: usize = 4;
/// Weights from which on sums of their gradients are too much memory for parts.
const LARGE: usize = 1 << 20;

/// A branch, prepared.
pub(super) struct Chunks<'a> {
    branch: &'a Branch,
    w: Weights<'a, f32>,
    level: Level,
    images: usize,
    heads: Option<Plan>,
    /// Where steps of sums begin: over channels, over what the first map makes, over what the second reads.
    of_c: Vec<usize>,
    of_mid: Vec<usize>,
    of_act: Vec<usize>,
}

impl<'a> Chunks<'a> {
    /// `None` for batches and weights whose products all threads should share.
    pub fn new(branch: &'a Branch, heads: Option<Sizes>, w: Weights<'a, f32>, batch: usize) -> Option<Self> {
        let images = ROWS.div_ceil(branch.n);
        let large = branch.lengths().into_iter().max() >= Some(LARGE);
        if large || batch.div_ceil(images) < CHUNKS {
            return None;
        }
        let (of_c, of_mid, of_act) = (steps(branch.c), steps(branch.mid), steps(branch.act));
        Some(Self { branch, w, level: Level::current(), images, heads: heads.map(Plan::new), of_c, of_mid, of_act })
    }

    fn product<'s>(&self, steps: &'s [usize]) -> Product<'s> {
        Product { level: self.level, depth: DEPTH, stride: steps.len() * DEPTH, steps }
    }

    /// Rows of so many images, behind attention and before it.
    fn rows(&self, images: usize) -> (usize, usize) {
        (images * self.branch.tokens(), images * self.branch.n)
    }

    fn heads_room(&self) -> usize {
        self.heads.as_ref().map_or(0, Plan::rooms)
    }

    /// Both weights as right sides of the forward pass.
    pub fn sides(&self) -> [Vec<bf16>; 2] {
        let &Branch { c, mid, act, .. } = self.branch;
        [packed(self.level, self.w.first.0, (c, mid), true), packed(self.level, self.w.second.0, (act, c), true)]
    }

    /// The output, and with `keep` what a backward pass reads.
    pub fn forward(
        &self,
        sides: &[Vec<bf16>; 2],
        (xs, low): (&[bf16], Option<&[bf16]>),
        keep: bool,
    ) -> (Vec<bf16>, Option<Kept>) {
        let &Branch { n, c, mid, act, .. } = self.branch;
        let batch = xs.len() / (n * c);
        let (behind, rows) = self.rows(self.images);
        let lefts = [left_room(rows, c), rows * mid, left_room(behind, act)];
        let room = Rooms::len(&[self.heads_room()], &lefts);
        let len = batch * self.branch.tokens() * c;
        let lens = if keep { [len, batch * n * mid, len] } else { [len, 0, 0] };
        // SAFETY: a chunk's task writes the outputs of its images, and what is kept of them.
        let [ys, kept_mid, kept_low] = unsafe {
            written_all(lens, |all| {
                let [ys, kept_mid, kept_low] = all.map(Shared::from_uninit);
                xs.par_chunks(self.images * n * c).enumerate().for_each(|(chunk, x)| {
                    let first = chunk * self.images;
                    let kept = keep.then(|| kept_mid.offset(first * n * mid));
                    let (from, to) = (first * n * c, first * self.branch.tokens() * c);
                    let y = ys.offset(to);
                    let sum = keep.then(|| kept_low.at(to));
                    let low = LowParts { addend: low.map(|low| low[from..].as_ptr()), sum };
                    // Outside of `dispatch`: what a closure holds does not take on the features of the function around.
                    with_scratch::<f32, _>(room, |scratch| {
                        dispatch_at(self.level, Forward { of: self, sides, x, kept, y, low, scratch });
                    });
                });
            })
        };
        (ys, keep.then_some(Kept { mid: kept_mid, low: kept_low }))
    }

    /// The gradients of the input and of the six parameters.
    pub fn backward(
        &self,
        xs: &[bf16],
        mids: &[bf16],
        (grad, low): (&[bf16], Option<&[bf16]>),
    ) -> ([Vec<bf16>; 2], Sums) {
        let &Branch { n, c, mid, act, .. } = self.branch;
        let batch = xs.len() / (n * c);
        let sides =
            [packed(self.level, self.w.first.0, (mid, c), false), packed(self.level, self.w.second.0, (c, act), false)];
        let (behind, rows) = self.rows(self.images);
        let lefts = [left_room(behind, c), left_room(behind, act), rows * c, left_room(rows, mid), rows * c];
        let turned = [left_room(c, rows), right_room(rows, mid.max(act))];
        let own = if self.heads.is_some() { left_room(behind, act) } else { left_room(rows, act) };
        let room = Rooms::len(&[self.heads_room(), 2 * c], &[&lefts[..], &turned, &[own]].concat());
        let lengths = self.branch.lengths();
        let each = batch.div_ceil(self.images).div_ceil(PARTS) * self.images;
        let mut sums: Vec<[Vec<f32>; 6]> = Vec::new();
        // SAFETY: a chunk's task writes the gradient of its images, and its low part.
        let dx = unsafe {
            written_all([xs.len(); 2], |all| {
                let [dx, dx_low] = all.map(Shared::from_uninit);
                let parts = (0..batch.div_ceil(each)).into_par_iter().map(|part| {
                    let mut sums = lengths.map(|len| vec![0f32; len]);
                    let end = ((part + 1) * each).min(batch);
                    for first in (part * each..end).step_by(self.images) {
                        let images = self.images.min(end - first);
                        let tokens = self.branch.tokens() * c;
                        let chunk = Backward {
                            of: self,
                            sides: &sides,
                            images,
                            x: &xs[first * n * c..][..images * n * c],
                            mid: &mids[first * n * mid..][..images * n * mid],
                            dy: &grad[first * tokens..][..images * tokens],
                            dx: dx.offset(first * n * c),
                            low: LowParts {
                                addend: low.map(|low| low[first * tokens..].as_ptr()),
                                sum: Some(dx_low.at(first * n * c)),
                            },
                            sums: &mut sums,
                        };
                        with_scratch::<f32, _>(room, |scratch| dispatch_at(self.level, (chunk, scratch)));
                    }
                    sums
                });
                sums = parts.collect();
            })
        };
        let mut total = lengths.map(|len| vec![0f32; len]);
        for (i, total) in total.iter_mut().enumerate() {
            total.par_chunks_mut(1 << 13).enumerate().for_each(|(block, total)| {
                for part in &sums {
                    let part = &part[i][block << 13..][..total.len()];
                    total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
                }
            });
        }
        // The first map's were summed by channels.
        let by_channels = std::mem::take(&mut total[2]);
        let mut first = vec![0f32; mid * c];
        first.par_chunks_mut(16 * c).enumerate().for_each(|(block, to)| {
            for channel in 0..c {
                let from = &by_channels[channel * mid + block * 16..];
                to[channel..].iter_mut().step_by(c).zip(from).for_each(|(to, from)| *to = *from);
            }
        });
        total[2] = first;
        (dx, total)
    }
}

struct Forward<'a> {
    of: &'a Chunks<'a>,
    sides: &'a [Vec<bf16>; 2],
    x: &'a [bf16],
    kept: Option<Shared<bf16>>,
    y: Shared<bf16>,
    low: LowParts<bf16>,
    scratch: *mut f32,
}

impl Kernel<f32> for Forward<'_> {
    const NARROWS: bool = true;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let Self { of, sides: [first, second], x, kept, y, low, scratch } = self;
        let &Branch { n, c, mid, act: width, .. } = of.branch;
        let images = x.len() / (n * c);
        let ((behind, rows), (_, most)) = (of.rows(images), of.rows(of.images));
        let (of_c, of_act) = (padded(c), padded(width));
        let _tiles = Tiles::new(of.level, DEPTH);
        // SAFETY: run by `dispatch`; the scratch has all rooms, each is written before it is read.
        unsafe {
            let mut rooms = Rooms::new(scratch);
            let of_heads = rooms.wide(of.heads_room());
            let normed = rooms.narrow(left_room(most, c));
            let between = rooms.narrow(most * mid);
            let act = rooms.narrow(left_room(of.rows(of.images).0, width));
            let between = kept.map_or(between, |kept| kept.at(0));
            normalize::<V>(of, x, (normed, of_c));
            let (product, sides, bias) =
                (of.product(&of.of_c), (normed.cast_const(), first.as_ptr()), of.w.first.1.as_ptr());
            let at_once = kept.is_none() && of.heads.is_none();
            let to = if at_once { To::GeluOfColumn(act, of_act, bias) } else { To::Column(between, mid, bias, None) };
            multiply::<V>(&product, sides, (rows, mid), to);
            match &of.heads {
                Some(plan) => {
                    let of_image = n * mid;
                    for image in 0..images {
                        let qkv = std::slice::from_raw_parts(between.add(image * of_image), of_image);
                        let out = (Shared::of(act.add(image * of.branch.tokens() * of_act)), of_act);
                        for head in 0..plan.heads() {
                            Head { plan, head, qkv, grad: None, out, scratch: of_heads }.run::<V>();
                        }
                    }
                }
                None if at_once => {}
                None if of_act == width => gelu_of::<V, bf16>(rows * width, between, act),
                None => {
                    for row in 0..rows {
                        gelu_of::<V, bf16>(width, between.add(row * mid), act.add(row * of_act));
                    }
                }
            }
            pad((act, of_act), (behind, width));
            // Tokens that are not read have no output.
            let skip = Skip { from: x.as_ptr(), stride: n / of.branch.tokens() * c, low };
            let to = To::Column(y.at(0), c, of.w.second.1.as_ptr(), Some(skip));
            multiply::<V>(&of.product(&of.of_act), (act, second.as_ptr()), (behind, c), to);
        }
    }
}

/// The normalised rows, a distance apart.
#[inline(always)]
unsafe fn normalize<V: Simd<Elem = f32>>(of: &Chunks, x: &[bf16], (to, stride): (*mut bf16, usize)) {
    let c = of.branch.c;
    let (weight, bias) = of.w.norm;
    for (row, x) in x.chunks_exact(c).enumerate() {
        // SAFETY: the caller's room.
        unsafe {
            let affine = (weight.as_ptr(), bias.as_ptr());
            norm::row::<V, bf16>(c, x.as_ptr(), affine, of.branch.eps, to.add(row * stride));
        }
    }
    // SAFETY: as above.
    unsafe { pad((to, stride), (x.len() / c, c)) };
}

/// Zeros behind the numbers of each row.
#[inline(always)]
unsafe fn pad((to, stride): (*mut bf16, usize), (rows, width): (usize, usize)) {
    if width < stride {
        for row in 0..rows {
            // SAFETY: the caller's room.
            unsafe { std::slice::from_raw_parts_mut(to.add(row * stride + width), stride - width).fill(bf16::ZERO) };
        }
    }
}

struct Backward<'a> {
    of: &'a Chunks<'a>,
    /// Of the first map and of the second.
    sides: &'a [Vec<bf16>; 2],
    images: usize,
    x: &'a [bf16],
    mid: &'a [bf16],
    dy: &'a [bf16],
    dx: Shared<bf16>,
    /// Of `dy` and of `dx`.
    low: LowParts<bf16>,
    sums: &'a mut [Vec<f32>; 6],
}

impl Kernel<f32> for (Backward<'_>, *mut f32) {
    const NARROWS: bool = true;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let (Backward { of, sides: [first, second], images, x, mid: mids, dy, dx, low, sums }, scratch) = self;
        let [dw_norm, db_norm, dw_first, db_first, dw_second, db_second] = sums;
        let &Branch { n, c, mid, act: width, eps, .. } = of.branch;
        let ((behind, rows), (most_behind, most)) = (of.rows(images), of.rows(of.images));
        let (of_act, of_mid) = (padded(width), padded(mid));
        let (all_behind, all_rows) = (places(behind), places(rows));
        let (steps_behind, steps_of_rows) = (steps(behind), steps(rows));
        let _tiles = Tiles::new(of.level, DEPTH);
        // SAFETY: run by `dispatch`; the scratch has all rooms, each is written before it is read, and a left side's rows
        // beyond its last one reach no output.
        unsafe {
            let mut rooms = Rooms::new(scratch);
            let of_heads = rooms.wide(of.heads_room());
            let short = rooms.wide(2 * c);
            let rows_of_dy = rooms.narrow(left_room(most_behind, c));
            let dact = rooms.narrow(left_room(most_behind, width));
            let normed = rooms.narrow(most * c);
            let dmid = rooms.narrow(left_room(most, mid));
            let dnormed = rooms.narrow(most * c);
            let turned = rooms.narrow(left_room(c, most));
            let paired = rooms.narrow(right_room(most, mid.max(width)));
            let act = rooms.narrow(left_room(if of.heads.is_some() { most_behind } else { most }, width));
            // dact = dy · W₂, and what the inner function makes of it.
            left((dy, c, 0), (behind, c), rows_of_dy);
            let by_c = of.product(&of.of_c);
            let to = if of.heads.is_some() { dact } else { dmid };
            multiply::<V>(&by_c, (rows_of_dy, second.as_ptr()), (behind, width), To::Narrow(to, of_act));
            match &of.heads {
                Some(plan) => {
                    let tokens = of.branch.tokens() * of_act;
                    for image in 0..images {
                        let qkv = &mids[image * n * mid..][..n * mid];
                        let grad = std::slice::from_raw_parts(dact.add(image * tokens), tokens);
                        let to = (Shared::of(dmid.add(image * n * of_mid)), of_mid);
                        let out = (Shared::of(act.add(image * tokens)), of_act);
                        for head in 0..plan.heads() {
                            let grad = Some(((grad, of_act), to));
                            Head { plan, head, qkv, grad, out, scratch: of_heads }.run::<V>();
                        }
                    }
                }
                None if of_act == width => gelu_with_slope::<V, bf16>(rows * width, mids.as_ptr(), act, dmid),
                None => {
                    for row in 0..rows {
                        let at = row * of_act;
                        gelu_with_slope::<V, bf16>(width, mids.as_ptr().add(row * mid), act.add(at), dmid.add(at));
                    }
                }
            }
            pad((dmid, of_mid), (rows, mid));
            // dW₂ = dyᵀ · act
            left_transposed::<V>((dy, c, 0), c, &all_behind, turned);
            let act = std::slice::from_raw_parts(act, (behind - 1) * of_act + width);
            right::<V>((act, of_act, 0), width, &all_behind, paired);
            let to = To::Onto(dw_second.as_mut_ptr(), width);
            multiply::<V>(&of.product(&steps_behind), (turned, paired), (c, width), to);
            add_column_sums::<V>((dy.as_ptr(), c), (behind, c), db_second);
            // dW₁ᵀ = normedᵀ · dmid
            normalize::<V>(of, x, (normed, c));
            left_transposed::<V>((std::slice::from_raw_parts(normed, rows * c), c, 0), c, &all_rows, turned);
            let whole = std::slice::from_raw_parts(dmid, rows * of_mid);
            right::<V>((whole, of_mid, 0), mid, &all_rows, paired);
            let to = To::Onto(dw_first.as_mut_ptr(), mid);
            multiply::<V>(&of.product(&steps_of_rows), (turned, paired), (c, mid), to);
            add_column_sums::<V>((dmid, of_mid), (rows, mid), db_first);
            // dnormed = dmid · W₁, and through the norm onto the shortcut's gradient.
            let by_mid = of.product(&of.of_mid);
            multiply::<V>(&by_mid, (dmid, first.as_ptr()), (rows, c), To::Narrow(dnormed, c));
            let short = std::slice::from_raw_parts_mut(short, 2 * c);
            short.fill(0.0);
            let (dw, db) = short.split_at_mut(c);
            let tokens = of.branch.tokens();
            for image in 0..images {
                for (rows, onto) in [(0..tokens, true), (tokens..n, false)] {
                    let (at, len) = ((image * n + rows.start) * c, rows.len() * c);
                    let xs = &x[at..][..len];
                    let grad = std::slice::from_raw_parts(dnormed.add(at), len);
                    let of_dy = image * tokens * c;
                    let low = LowParts { addend: low.addend.filter(|_| onto), ..low }.offset(of_dy, at);
                    let onto = onto.then(|| dy.as_ptr().add(of_dy));
                    let (weight, dx) = (of.w.norm.0, dx.at(at));
                    norm::Backward { xs, grad, weight, eps, onto, low, dx, dw: &mut *dw, db: &mut *db }.run::<V>();
                }
            }
            dw_norm.iter_mut().zip(dw).for_each(|(total, dw)| *total += *dw);
            db_norm.iter_mut().zip(db).for_each(|(total, db)| *total += *db);
        }
    }
}

/// Σ over rows a distance apart, added.
#[inline(always)]
unsafe fn add_column_sums<V: Simd<Elem = f32>>(
    (from, stride): (*const bf16, usize),
    (rows, columns): (usize, usize),
    sums: &mut [f32],
) {
    for column in (0..columns).step_by(V::LANES) {
        let n = V::LANES.min(columns - column);
        // SAFETY: the caller stands below `dispatch`, and its rows have the columns.
        unsafe {
            let mut sum = V::zero();
            for row in 0..rows {
                let from = from.add(row * stride + column);
                sum = sum.add(if n == V::LANES { V::load_bf16(from) } else { V::load_first_bf16(from, n) });
            }
            let to = sums.as_mut_ptr().add(column);
            V::load_first(to, n).add(sum).store_first(to, n);
        }
    }
}

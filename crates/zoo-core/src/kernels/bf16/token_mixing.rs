//! The maps of a branch over the tokens of an image: W₂ · gelu(W₁ · normed + b₁) + b₂, with the weights on the left and
//! the image's rows on the right, so that nothing is transposed. A task has one image, or several whose gradients of the
//! weights it sums.

use super::matrix::{
    Rooms, Skip, To, left, left_room, left_transposed, multiply, places, right, right_room, right_transposed, steps,
};
use super::tiles::{DEPTH, Product, Tiles};
use super::{row_mean, weights};
use crate::kernels::buffer::{Shared, with_scratch, written, written_all};
use crate::kernels::low_parts::LowParts;
use crate::kernels::pointwise::{gelu_of, gelu_with_slope};
use crate::kernels::residual_block::{Branch, MixedKept as Kept, Weights};
use crate::kernels::simd::{Kernel, Level, Simd, dispatch_at};
use half::bf16;
use rayon::prelude::*;

/// Parts of a batch with a sum of gradients each.
const PARTS: usize = 16;

/// The maps of a branch, prepared.
pub(super) struct Mixing<'a> {
    level: Level,
    /// Tokens, channels, and tokens between the maps.
    n: usize,
    c: usize,
    mid: usize,
    weights: [&'a [f32]; 2],
    bias: [&'a [f32]; 2],
    /// Steps of sums over tokens, over what is between the maps, and over channels; and rows to pair.
    of_tokens: Vec<usize>,
    of_mid: Vec<usize>,
    of_channels: Vec<usize>,
    tokens: Vec<u32>,
    mids: Vec<u32>,
}

impl<'a> Mixing<'a> {
    pub fn new(branch: &Branch, w: &Weights<'a, f32>) -> Self {
        let &Branch { n, c, mid, .. } = branch;
        Self {
            level: Level::current(),
            n,
            c,
            mid,
            weights: [w.first.0, w.second.0],
            bias: [w.first.1, w.second.1],
            of_tokens: steps(n),
            of_mid: steps(mid),
            of_channels: steps(c),
            tokens: places(n),
            mids: places(mid),
        }
    }

    fn product<'s>(&self, steps: &'s [usize]) -> Product<'s> {
        Product { level: self.level, depth: DEPTH, stride: steps.len() * DEPTH, steps }
    }

    /// Both weights as left sides, or their transposes, the second first.
    pub fn sides(&self, transposed: bool) -> [Vec<bf16>; 2] {
        let (n, mid) = (self.n, self.mid);
        let weights = &self.weights.map(weights::narrow);
        let mut sides = [vec![bf16::ZERO; left_room(mid, n)], vec![bf16::ZERO; left_room(n, mid)]];
        dispatch_at(self.level, Sides { mixing: self, weights, transposed, to: &mut sides });
        sides
    }

    /// x + the branch, and what is between the maps if it is to be kept; with the weights as they lie, as left sides.
    pub fn forward(
        &self,
        sides: &[Vec<bf16>; 2],
        (xs, low): (&[bf16], Option<&[bf16]>),
        normed: &[bf16],
        keep: bool,
    ) -> (Vec<bf16>, Option<Kept>) {
        let &Self { n, c, mid, .. } = self;
        let images = xs.len() / (n * c);
        let lens = if keep { [xs.len(), images * mid * c, xs.len()] } else { [xs.len(), 0, 0] };
        let room = Rooms::len(&[], &[right_room(n, c), right_room(mid, c), mid * c]);
        // SAFETY: an image's task writes its outputs, and what is kept of it.
        let [ys, kept_mid, kept_low] = unsafe {
            written_all(lens, |all| {
                let [ys, kept_mid, kept_low] = all.map(Shared::from_uninit);
                (0..images).into_par_iter().for_each(|image| {
                    let at = image * n * c;
                    let (x, normed) = (&xs[at..][..n * c], &normed[at..][..n * c]);
                    let kept = keep.then(|| kept_mid.offset(image * mid * c));
                    let sum = keep.then(|| kept_low.at(at));
                    let low = LowParts { addend: low.map(|low| low[at..].as_ptr()), sum };
                    let y = ys.offset(at);
                    // Outside of `dispatch`: what a closure holds does not take on the features of the function around.
                    with_scratch::<f32, _>(room, |scratch| {
                        dispatch_at(self.level, Forward { mixing: self, sides, x, normed, kept, y, low, scratch });
                    });
                });
            })
        };
        (ys, keep.then_some(Kept { mid: kept_mid, low: kept_low }))
    }

    /// The gradients of the normalised input, and of weights and biases.
    pub fn backward(&self, normed: &[bf16], mids: &[bf16], grad: &[bf16]) -> (Vec<bf16>, [Vec<f32>; 4]) {
        let &Self { n, c, mid, .. } = self;
        let images = normed.len() / (n * c);
        let sides = self.sides(true);
        let lengths = [mid * n, mid, n * mid, n];
        let each = images.div_ceil(PARTS);
        let lefts = [left_room(n, c), left_room(mid, c)];
        let rights = [right_room(n, c), right_room(mid, c), right_room(c, n.max(mid))];
        let room = Rooms::len(&[], &[&lefts[..], &rights, &[mid * c; 2]].concat());
        let mut sums: Vec<[Vec<f32>; 4]> = Vec::new();
        let mut fill = |to: Shared<bf16>| {
            let parts = (0..images.div_ceil(each)).into_par_iter().map(|part| {
                let mut sums = lengths.map(|len| vec![0f32; len]);
                for image in part * each..((part + 1) * each).min(images) {
                    let (at, of_mid) = (image * n * c, image * mid * c);
                    let (normed, grad) = (&normed[at..][..n * c], &grad[at..][..n * c]);
                    let mids = &mids[of_mid..][..mid * c];
                    // SAFETY: the image's own place.
                    let to = unsafe { to.offset(at) };
                    with_scratch::<f32, _>(room, |scratch| {
                        let (sides, sums) = (&sides, &mut sums);
                        dispatch_at(
                            self.level,
                            Backward { mixing: self, sides, normed, mids, grad, to, sums, scratch },
                        );
                    });
                }
                sums
            });
            sums = parts.collect();
        };
        // SAFETY: the images are all of the gradient.
        let to = unsafe { written(normed.len(), |to| fill(Shared::from_uninit(to))) };
        let mut total = lengths.map(|len| vec![0f32; len]);
        for part in &sums {
            for (total, part) in total.iter_mut().zip(part) {
                total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
            }
        }
        (to, total)
    }
}

struct Sides<'a> {
    mixing: &'a Mixing<'a>,
    weights: &'a [Vec<bf16>; 2],
    transposed: bool,
    to: &'a mut [Vec<bf16>; 2],
}

impl Kernel<f32> for Sides<'_> {
    const NARROWS: bool = true;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let Mixing { n, mid, tokens, mids, .. } = self.mixing;
        let ([first, second], [a, b]) = (self.weights, self.to);
        // SAFETY: run by `dispatch`; the sides have their rooms.
        unsafe {
            if self.transposed {
                left_transposed::<V>((second, *mid, 0), *mid, tokens, a.as_mut_ptr());
                left_transposed::<V>((first, *n, 0), *n, mids, b.as_mut_ptr());
            } else {
                left((first, *n, 0), (*mid, *n), a.as_mut_ptr());
                left((second, *mid, 0), (*n, *mid), b.as_mut_ptr());
            }
        }
    }
}

struct Forward<'a> {
    mixing: &'a Mixing<'a>,
    sides: &'a [Vec<bf16>; 2],
    x: &'a [bf16],
    normed: &'a [bf16],
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
        let Self { mixing, sides: [first, second], x, normed, kept, y, low, scratch } = self;
        let &Mixing { n, c, mid, .. } = mixing;
        let _tiles = Tiles::new(mixing.level, DEPTH);
        // SAFETY: run by `dispatch`; the scratch has all rooms, each is written before it is read.
        unsafe {
            let mut rooms = Rooms::new(scratch);
            let rows = rooms.narrow(right_room(n, c));
            let act_rows = rooms.narrow(right_room(mid, c));
            let act = rooms.narrow(mid * c);
            right::<V>((normed, c, 0), c, &mixing.tokens, rows);
            let (product, sides, bias) =
                (mixing.product(&mixing.of_tokens), (first.as_ptr(), rows.cast_const()), mixing.bias[0].as_ptr());
            match kept {
                Some(kept) => {
                    multiply::<V>(&product, sides, (mid, c), To::Row(kept.at(0), c, bias, None));
                    gelu_of::<V, bf16>(mid * c, kept.at(0), act);
                }
                None => multiply::<V>(&product, sides, (mid, c), To::GeluOfRow(act, c, bias)),
            }
            right::<V>((std::slice::from_raw_parts(act, mid * c), c, 0), c, &mixing.mids, act_rows);
            let skip = Skip { from: x.as_ptr(), stride: c, low };
            let to = To::Row(y.at(0), c, mixing.bias[1].as_ptr(), Some(skip));
            multiply::<V>(&mixing.product(&mixing.of_mid), (second.as_ptr(), act_rows), (n, c), to);
        }
    }
}

struct Backward<'a> {
    mixing: &'a Mixing<'a>,
    /// The transposes, the second's first.
    sides: &'a [Vec<bf16>; 2],
    normed: &'a [bf16],
    mids: &'a [bf16],
    grad: &'a [bf16],
    to: Shared<bf16>,
    sums: &'a mut [Vec<f32>; 4],
    scratch: *mut f32,
}

impl Kernel<f32> for Backward<'_> {
    const NARROWS: bool = true;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let Self { mixing, sides: [second, first], normed, mids, grad, to, sums, scratch } = self;
        let [dw_first, db_first, dw_second, db_second] = sums;
        let &Mixing { n, c, mid, .. } = mixing;
        let by_channels = mixing.product(&mixing.of_channels);
        let _tiles = Tiles::new(mixing.level, DEPTH);
        // SAFETY: run by `dispatch`; the scratch has all rooms, each is written before it is read, and a left side's rows
        // beyond its last one reach no output.
        unsafe {
            let mut rooms = Rooms::new(scratch);
            let of_grad = rooms.narrow(left_room(n, c));
            let of_dmid = rooms.narrow(left_room(mid, c));
            let grad_rows = rooms.narrow(right_room(n, c));
            let dmid_rows = rooms.narrow(right_room(mid, c));
            let turned = rooms.narrow(right_room(c, n.max(mid)));
            let act = rooms.narrow(mid * c);
            let dmid = rooms.narrow(mid * c);
            // dact = W₂ᵀ · dy
            right::<V>((grad, c, 0), c, &mixing.tokens, grad_rows);
            let (by_tokens, to_dmid) = (mixing.product(&mixing.of_tokens), To::Narrow(dmid, c));
            multiply::<V>(&by_tokens, (second.as_ptr(), grad_rows), (mid, c), to_dmid);
            gelu_with_slope::<V, bf16>(mid * c, mids.as_ptr(), act, dmid);
            let act = std::slice::from_raw_parts(act, mid * c);
            let dmid = std::slice::from_raw_parts(dmid, mid * c);
            // dW₂ = dy · actᵀ
            left((grad, c, 0), (n, c), of_grad);
            right_transposed::<V>((act, c, 0), (c, mid), turned);
            multiply::<V>(&by_channels, (of_grad, turned), (n, mid), To::Onto(dw_second.as_mut_ptr(), mid));
            add_row_sums::<V>(grad, c, db_second);
            // dW₁ = dmid · normedᵀ
            left((dmid, c, 0), (mid, c), of_dmid);
            right_transposed::<V>((normed, c, 0), (c, n), turned);
            multiply::<V>(&by_channels, (of_dmid, turned), (mid, n), To::Onto(dw_first.as_mut_ptr(), n));
            add_row_sums::<V>(dmid, c, db_first);
            // dnormed = W₁ᵀ · dmid
            right::<V>((dmid, c, 0), c, &mixing.mids, dmid_rows);
            let by_mid = mixing.product(&mixing.of_mid);
            multiply::<V>(&by_mid, (first.as_ptr(), dmid_rows), (n, c), To::Narrow(to.at(0), c));
        }
    }
}

/// Σ of each row of c numbers, added.
#[inline(always)]
unsafe fn add_row_sums<V: Simd<Elem = f32>>(rows: &[bf16], c: usize, sums: &mut [f32]) {
    for (row, total) in rows.chunks_exact(c).zip(sums) {
        // SAFETY: the caller stands below `dispatch`.
        *total += unsafe { row_mean::sum::<V>(row) };
    }
}

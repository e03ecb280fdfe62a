//! W · act(norm(x)) for maps x that stand side by side and are never put together: what a layer of a dense block begins
//! with (Huang et al. 2016, arXiv:1608.06993). A pixel's row of all maps is read, normalised and multiplied while it is in
//! the cache, a block of pixels at a time, and never written. The way back reads the maps twice, once for the sums and once
//! for their gradients, and makes the normalised rows and their gradients anew: products are cheaper than memory.

use super::channels::join_block;
use super::concat_norm::{Grad, Maps};
use super::matrix::{
    Rooms, Rows, To, left, left_room, left_transposed, multiply, padded, places, right, right_room, steps,
};
use super::norm::{Affine, Coefficients, InputGrad, Sums, SumsOf};
use super::sizes::{Channels, NOWHERE};
use super::store::{Finish, store};
use super::tiles::{BLOCK, Block, DEPTH, Product, SIDE, Tiles};
use super::weights::packed;
use crate::kernels::buffer::{Shared, with_scratch, written};
use crate::kernels::fused_activation::FusedActivation;
use crate::kernels::simd::{Kernel, Level, Simd, dispatch_at};
use half::bf16;
use rayon::prelude::*;

/// Numbers of a block's rows: with their products and sums they stay in the second-level cache.
const NUMBERS: usize = 1 << 17;
/// Pixels of a block, at the least and at the most.
const PIXELS: (usize, usize) = (64, 512);
/// Parts of the pixels with a sum of gradients each.
const PARTS: usize = 8;

/// Maps, their normalisation, and the map of its rows.
pub(crate) struct Unit<'a> {
    pub maps: Maps<'a>,
    by: &'a Coefficients,
    activation: FusedActivation,
    /// Numbers of a row of the output.
    outputs: usize,
    level: Level,
    /// Where steps of sums begin: over channels, and over outputs.
    of_c: Vec<usize>,
    of_outputs: Vec<usize>,
}

/// Weights (outputs, c) as a right side, each output's multiplied by its `scale`.
pub(crate) fn right_side(w: &[f32], outputs: usize, scale: Option<&[f32]>) -> Vec<bf16> {
    let c = w.len() / outputs;
    let pack = |w: &[f32]| packed(Level::current(), w, (c, outputs), true);
    match scale {
        Some(scale) => {
            pack(&w.chunks_exact(c).zip(scale).flat_map(|(w, by)| w.iter().map(move |w| w * by)).collect::<Vec<_>>())
        }
        None => pack(w),
    }
}

impl<'a> Unit<'a> {
    /// Of these maps.
    pub fn new(maps: Maps<'a>, by: &'a Coefficients, activation: FusedActivation, outputs: usize) -> Self {
        assert_eq!(by.channels(), maps.c);
        let (of_c, of_outputs) = (steps(maps.c), steps(outputs));
        Self { maps, by, activation, outputs, level: Level::current(), of_c, of_outputs }
    }

    fn product<'s>(&self, steps: &'s [usize]) -> Product<'s> {
        Product { level: self.level, depth: DEPTH, stride: steps.len() * DEPTH, steps }
    }

    /// Pixels of a block: whole blocks of products, and whole vectors whatever the channels.
    fn pixels(&self) -> usize {
        (NUMBERS / self.maps.c).clamp(PIXELS.0, PIXELS.1) / PIXELS.0 * PIXELS.0
    }

    /// The first pixel of each block, and how many it has.
    fn blocks(&self) -> Vec<(usize, usize)> {
        let (all, each) = (self.maps.pixels, self.pixels());
        (0..all).step_by(each).map(|first| (first, each.min(all - first))).collect()
    }

    /// The rows of a block side by side.
    ///
    /// # Safety
    /// `to` has room for them.
    unsafe fn join<'b>(&self, block: (usize, usize), to: *mut bf16) -> &'b [bf16] {
        // SAFETY: the maps have the rows, the caller's room.
        unsafe {
            join_block(&self.maps.parts, block, to);
            std::slice::from_raw_parts(to, block.1 * self.maps.c)
        }
    }

    /// act(W · act₁(norm(x)) + shift) of all pixels, of the weights' [`right_side`]; and the sums that `finish` asks for.
    pub fn forward(&self, side: &[bf16], finish: &Finish) -> (Vec<bf16>, Vec<[f64; 2]>) {
        let (c, outputs) = (self.maps.c, self.outputs);
        assert_eq!(side.len(), right_room(c, outputs));
        finish.check(Channels { all: outputs, first: 0, used: outputs }, self.maps.pixels);
        let affine = Affine::new(&self.by.scale, &self.by.shift, self.pixels() * c, self.activation);
        let rows = self.pixels();
        let room = Rooms::len(&[], &[rows * c, left_room(rows, c)]);
        let mut parts = Vec::new();
        // SAFETY: each block's task writes its pixels; the scratch has the rooms, each is written before it is read.
        let ys = unsafe {
            written(self.maps.pixels * outputs, |ys| {
                let out = Shared::from_uninit(ys);
                let run = |&block: &(usize, usize)| {
                    with_scratch::<f32, _>(room, |scratch| {
                        let mut rooms = Rooms::new(scratch);
                        let (x, rows) = (rooms.narrow(rows * c), rooms.narrow(left_room(rows, c)));
                        self.join(block, x);
                        affine.over(std::slice::from_raw_parts_mut(x, block.1 * c));
                        dispatch_at(self.level, Forward { unit: self, block, x, rows, side, out, finish })
                    })
                };
                parts = self.blocks().par_iter().map(run).collect::<Vec<_>>();
            })
        };
        let mut total = vec![[0.0; 2]; if finish.with_sums { outputs } else { 0 }];
        for part in &parts {
            total.iter_mut().zip(part).for_each(|(total, part)| *total = [total[0] + part[0], total[1] + part[1]]);
        }
        (ys, total)
    }

    /// The gradients of the weights (outputs, c), and of weight and bias of the norm, from that of the output.
    pub fn gradient_sums(&self, w: &[f32], dy: &[bf16]) -> (Vec<f32>, Sums) {
        let (c, outputs) = (self.maps.c, self.outputs);
        assert!(dy.len() == self.maps.pixels * outputs && w.len() == outputs * c);
        let side = packed(self.level, w, (outputs, c), false);
        let rows = self.pixels();
        let affine = Affine::new(&self.by.scale, &self.by.shift, rows * c, self.activation);
        let sums = SumsOf::new(self.by, rows * c, self.activation);
        let sides = [left_room(rows, outputs), left_room(outputs, rows), right_room(rows, c)];
        let room = Rooms::len(&[], &[&[rows * c; 2][..], &sides].concat());
        let blocks = self.blocks();
        let part = |blocks: &[(usize, usize)]| {
            let (mut dw, mut of_norm) = (vec![0f32; outputs * c], vec![0f64; 2 * c]);
            for &block in blocks {
                // SAFETY: the scratch has the rooms, each is written before it is read.
                let part = with_scratch::<f32, _>(room, |scratch| unsafe {
                    let mut rooms = Rooms::new(scratch);
                    let [x, g] = [(); 2].map(|()| rooms.narrow(rows * c));
                    let sides = sides.map(|n| rooms.narrow(n));
                    let x = self.join(block, x);
                    affine.block(x, None, std::slice::from_raw_parts_mut(g.cast(), x.len()));
                    let dw = Some(&mut dw[..]);
                    dispatch_at(self.level, Gradients { unit: self, block, dy, side: &side, rows: g, sides, dw });
                    sums.block(x, None, std::slice::from_raw_parts(g, x.len()), None)
                });
                of_norm.iter_mut().zip(part).for_each(|(total, part)| *total += part);
            }
            (dw, of_norm)
        };
        let parts: Vec<_> = blocks.par_chunks(blocks.len().div_ceil(PARTS)).map(part).collect();
        let mut dw = vec![0f32; outputs * c];
        dw.par_chunks_mut(NUMBERS / 8).enumerate().for_each(|(i, dw)| {
            for (part, _) in &parts {
                let part = &part[i * (NUMBERS / 8)..][..dw.len()];
                dw.iter_mut().zip(part).for_each(|(total, part)| *total += part);
            }
        });
        let of_norm: Vec<Vec<f64>> = parts.into_iter().map(|(_, of_norm)| of_norm).collect();
        (dw, sums.of_blocks(self.by, &of_norm))
    }

    /// The gradient of each map that is wanted, on top of what other readers have sent `earlier`.
    pub fn input_grads(
        &self,
        w: &[f32],
        dy: &[bf16],
        by: &InputGrad,
        earlier: &[Option<&[bf16]>],
        wanted: &[bool],
    ) -> Vec<Option<Vec<bf16>>> {
        let (c, outputs) = (self.maps.c, self.outputs);
        assert!(dy.len() == self.maps.pixels * outputs && w.len() == outputs * c);
        let side = packed(self.level, w, (outputs, c), false);
        let rows = self.pixels();
        let sides = [left_room(rows, outputs), 0, 0];
        let make = |block: (usize, usize), g: &mut Vec<bf16>| {
            g.resize(block.1 * c, bf16::ZERO);
            with_scratch::<f32, _>(Rooms::len(&[], &sides), |scratch| {
                let mut rooms = Rooms::new(scratch);
                // SAFETY: the scratch has the rooms, each is written before it is read.
                let sides = sides.map(|n| unsafe { rooms.narrow(n) });
                let (rows, dw) = (g.as_mut_ptr(), None);
                dispatch_at(self.level, Gradients { unit: self, block, dy, side: &side, rows, sides, dw });
            });
        };
        self.maps.input_grads_of(rows, Grad::Made(&make), by, earlier, wanted)
    }
}

/// `count` rows of k numbers as a left side: as they lie, if they are whole steps and whole blocks; else copied to `to`.
///
/// # Safety
/// `to` has [`left_room`], and so has what lies behind the map's first row, if it has rows for whole blocks.
#[inline(always)]
unsafe fn whole_steps(map: Rows, (count, k): (usize, usize), to: *mut bf16) -> *const bf16 {
    if k == padded(k) && count.is_multiple_of(BLOCK) {
        return map.0[map.2..].as_ptr();
    }
    // SAFETY: the caller's.
    unsafe { left(map, (count, k), to) };
    to
}

/// The output of a block.
struct Forward<'a> {
    unit: &'a Unit<'a>,
    block: (usize, usize),
    x: *const bf16,
    rows: *mut bf16,
    side: &'a [bf16],
    out: Shared<bf16>,
    finish: &'a Finish<'a>,
}

impl Kernel<f32> for Forward<'_> {
    const NARROWS: bool = true;
    type Output = Vec<[f64; 2]>;

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) -> Vec<[f64; 2]> {
        let Self { unit, block: (first, count), x, rows, side, out, finish } = self;
        let (c, outputs) = (unit.maps.c, unit.outputs);
        let (product, mut block) = (unit.product(&unit.of_c), Block::new());
        let mut totals = vec![[0.0; 2]; if finish.with_sums { outputs } else { 0 }];
        let _tiles = Tiles::new(unit.level, DEPTH);
        // SAFETY: run by `dispatch`; the rows are the block's, and the output has its pixels.
        unsafe {
            let x = (std::slice::from_raw_parts(x, count * c), c, 0);
            let rows = whole_steps(x, (count, c), rows);
            for output in (0..outputs).step_by(BLOCK) {
                let width = BLOCK.min(outputs - output);
                let b = side.as_ptr().add(output / SIDE * product.column());
                let b = (b, (width > SIDE).then(|| b.add(product.column())));
                let mut own = [[0f32; BLOCK]; 2];
                for row in (0..count).step_by(BLOCK) {
                    let places: [u32; BLOCK] =
                        std::array::from_fn(|i| if row + i < count { (first + row + i) as u32 } else { NOWHERE });
                    let a = rows.add(row * product.stride);
                    product.multiply::<V>([a, a.add(SIDE * product.stride)], b, &mut block);
                    let to = (Channels { all: outputs, first: 0, used: outputs }, output, width);
                    store::<V>(&block, &places, to, out, finish, &mut own);
                }
                for (i, total) in totals.iter_mut().skip(output).take(width).enumerate() {
                    *total = [f64::from(own[0][i]), f64::from(own[1][i])];
                }
            }
        }
        totals
    }
}

/// The gradient of a block's normalised rows; and before it that of the weights, if it is wanted.
struct Gradients<'a> {
    unit: &'a Unit<'a>,
    block: (usize, usize),
    dy: &'a [bf16],
    side: &'a [bf16],
    /// The normalised rows, and then their gradient.
    rows: *mut bf16,
    /// Of dy's rows, and with the weights' gradient of its transpose and of the normalised rows.
    sides: [*mut bf16; 3],
    dw: Option<&'a mut [f32]>,
}

impl Kernel<f32> for Gradients<'_> {
    const NARROWS: bool = true;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let Self { unit, block: (first, count), dy, side, rows, sides: [of_dy, turned, paired], dw } = self;
        let (c, outputs) = (unit.maps.c, unit.outputs);
        let dy = (&dy[first * outputs..][..count * outputs], outputs, 0);
        let _tiles = Tiles::new(unit.level, DEPTH);
        // SAFETY: run by `dispatch`; the rooms are the caller's, each is written before it is read.
        unsafe {
            if let Some(dw) = dw {
                let (places, steps) = (places(count), steps(count));
                left_transposed::<V>(dy, outputs, &places, turned);
                right::<V>((std::slice::from_raw_parts(rows, count * c), c, 0), c, &places, paired);
                let to = To::Onto(dw.as_mut_ptr(), c);
                multiply::<V>(&unit.product(&steps), (turned, paired), (outputs, c), to);
            }
            let of_dy = whole_steps(dy, (count, outputs), of_dy);
            let product = unit.product(&unit.of_outputs);
            multiply::<V>(&product, (of_dy, side.as_ptr()), (count, c), To::Narrow(rows, c));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    /// Numbers and the sizes of what is summed to them: Σ terms and Σ |terms|.
    #[derive(Clone, Copy, Default)]
    struct Sum(f64, f64);

    impl Sum {
        fn add(&mut self, term: f64, size: f64) {
            *self = Self(self.0 + term, self.1 + size);
        }
    }

    fn rounded(name: &str, n: usize) -> Vec<bf16> {
        values(name, n).into_iter().map(bf16::from_f64).collect()
    }

    fn singles(name: &str, n: usize) -> Vec<f32> {
        values(name, n).into_iter().map(|x| x as f32).collect()
    }

    /// At most one rounding of `got` to `bits`, and what f32 loses of the sum.
    fn check(what: &str, got: impl Iterator<Item = f64>, want: &[Sum], bits: i32) {
        for (i, (got, want)) in got.zip(want).enumerate() {
            let bound = want.0.abs() * 2f64.powi(-bits) + want.1 * 2f64.powi(-18);
            assert!((got - want.0).abs() <= bound, "{what} {i}: {got} for {}, {bound}", want.0);
        }
    }

    /// Every result against f64 sums of the numbers that the kernel rounds its operands to: channels and outputs that
    /// fill no step, pixels that fill no block, more than one block, a map that nobody wants a gradient of.
    #[test]
    fn all_results_are_those_of_f64_at_every_level() {
        for (widths, outputs, pixels) in
            [(vec![3, 5, 17], 7, 33), (vec![1], 1, 1), (vec![24, 12, 12], 48, 700), (vec![64, 32, 32], 128, 600)]
        {
            let c: usize = widths.iter().sum();
            let x = rounded("x", pixels * c);
            let parts: Vec<Vec<bf16>> = widths
                .iter()
                .scan(0, |before, &width| {
                    let first = *before;
                    *before += width;
                    Some(x.chunks_exact(c).flat_map(|row| &row[first..first + width]).copied().collect())
                })
                .collect();
            let slices: Vec<&[bf16]> = parts.iter().map(Vec::as_slice).collect();
            let (mean, var) = super::super::norm::stats(&x, c);
            let by = Coefficients::new(&singles("gamma", c), &singles("beta", c), (&mean, &var), 1e-3, true);
            let (w, dy) = (singles("w", outputs * c), rounded("dy", pixels * outputs));
            let narrow: Vec<f64> = w.iter().map(|&w| bf16::from_f32(w).to_f64()).collect();
            let cut = |i: usize| x[i].to_f32().mul_add(by.scale[i % c], by.shift[i % c]);
            let normed: Vec<f64> = (0..x.len()).map(|i| bf16::from_f32(cut(i).max(0.0)).to_f64()).collect();
            let mut y = vec![Sum::default(); pixels * outputs];
            let (mut dw, mut g) = (vec![Sum::default(); outputs * c], vec![Sum::default(); x.len()]);
            for pixel in 0..pixels {
                for o in 0..outputs {
                    let dy = dy[pixel * outputs + o].to_f64();
                    for i in 0..c {
                        let (normed, w) = (normed[pixel * c + i], narrow[o * c + i]);
                        y[pixel * outputs + o].add(normed * w, (normed * w).abs());
                        // A number on the edge between two of bfloat16 may be rounded to either.
                        dw[o * c + i].add(dy * normed, (dy * normed).abs() * 2f64.powi(10));
                        g[pixel * c + i].add(dy * w, (dy * w).abs());
                    }
                }
            }
            for level in Level::supported() {
                let maps = Maps::new(&slices, &widths);
                let unit = Unit { level, ..Unit::new(maps, &by, FusedActivation::Relu, outputs) };
                let finish = Finish { with_sums: true, ..Finish::bias(None) };
                let (got, sums) = unit.forward(&right_side(&w, outputs, None), &finish);
                check("output", got.iter().map(|x| x.to_f64()), &y, 7);
                let mut of_output = vec![[Sum::default(); 2]; outputs];
                for (i, y) in y.iter().enumerate() {
                    of_output[i % outputs][0].add(y.0, y.1);
                    of_output[i % outputs][1].add(y.0 * y.0, y.1 * y.1);
                }
                let [sum, squares] = [0, 1].map(|k| of_output.iter().map(|of| of[k]).collect::<Vec<_>>());
                check("sums", sums.iter().map(|sums| sums[0]), &sum, 20);
                check("squares", sums.iter().map(|sums| sums[1]), &squares, 20);
                let (got_dw, of_norm) = unit.gradient_sums(&w, &dy);
                check("dw", got_dw.iter().map(|&x| f64::from(x)), &dw, 20);
                // The gradient of the normalised rows is rounded once, where the activation passes it.
                let (mut bias, mut weight) = (vec![Sum::default(); c], vec![Sum::default(); c]);
                for (i, g) in g.iter().enumerate().filter(|&(i, _)| cut(i) > 0.0) {
                    let hat = f64::from(x[i].to_f32() - by.mean[i % c]) * f64::from(by.inv_std[i % c]);
                    bias[i % c].add(g.0, g.1 * 2f64.powi(10));
                    weight[i % c].add(g.0 * hat, (g.1 * hat).abs() * 2f64.powi(10));
                }
                check("of norm's bias", of_norm.bias.iter().map(|&x| f64::from(x)), &bias, 20);
                check("of norm's weight", of_norm.weight.iter().map(|&x| f64::from(x)), &weight, 20);
                let through = InputGrad::new(&by, &of_norm, pixels, FusedActivation::Relu);
                let earlier = rounded("earlier", parts[0].len());
                let sent: Vec<Option<&[bf16]>> =
                    (0..widths.len()).map(|i| (i == 0).then_some(earlier.as_slice())).collect();
                let wanted: Vec<bool> = (0..widths.len()).map(|i| i != 1).collect();
                let all = unit.input_grads(&w, &dy, &through, &sent, &wanted);
                let mut before = 0;
                for (i, (got, &width)) in all.iter().zip(&widths).enumerate() {
                    assert_eq!(got.is_some(), wanted[i]);
                    let want = |at: usize| {
                        let (pixel, channel) = (at / width, before + at % width);
                        let place = pixel * c + channel;
                        let hat = (x[place].to_f64() - f64::from(mean[channel])) * f64::from(by.inv_std[channel]);
                        let rest = [f64::from(of_norm.bias[channel]), hat * f64::from(of_norm.weight[channel])];
                        let rest = rest.map(|rest| rest / pixels as f64);
                        let g = if cut(place) > 0.0 { g[place] } else { Sum::default() };
                        let scale = f64::from(by.scale[channel]);
                        let sent = if i == 0 { earlier[at].to_f64() } else { 0.0 };
                        let size = rest[0].abs() + rest[1].abs() + g.1 * 2f64.powi(10);
                        Sum(sent + scale * (g.0 - rest[0] - rest[1]), sent.abs() + 8.0 * size * scale.abs())
                    };
                    if let Some(got) = got {
                        let want: Vec<Sum> = (0..got.len()).map(want).collect();
                        check("gradient of a map", got.iter().map(|x| x.to_f64()), &want, 7);
                    }
                    before += width;
                }
            }
        }
    }
}

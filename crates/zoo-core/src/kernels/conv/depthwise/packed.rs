//! Depthwise 3x3 convolution of images no larger than one vector: several channels lie in a vector, as in memory.

use super::{Planes, lanes};
use crate::kernels::conv::geometry::Geometry;
use crate::kernels::simd::{Kernel, Real, Simd, dispatch};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Images that are taken together, so that what is loaded for a channel serves several.
const IMAGES: usize = 8;

/// A vector of whole channels, as many as fit, one behind the other as in memory. A tap is a load from a place nearby
/// that leaves out the lanes whose neighbour lies outside their own image.
pub(super) struct Packed {
    pixels: usize,
    /// Channels in a vector.
    pub channels: usize,
    /// Where each tap reads, from the pixel's own place.
    offsets: [isize; 9],
    lanes: [u32; 9],
}

impl Packed {
    pub fn new((h, w): (usize, usize), lanes: usize) -> Self {
        let (pixels, channels) = (h * w, lanes / (h * w));
        let inside = |tap: usize| {
            let (dy, dx) = (tap / 3, tap % 3);
            let pixel = |i: usize| (1..=h).contains(&(i / w + dy)) && (1..=w).contains(&(i % w + dx));
            (0..channels * pixels).filter(|lane| pixel(lane % pixels)).fold(0, |lanes, lane| lanes | 1 << lane)
        };
        Self {
            pixels,
            channels,
            offsets: std::array::from_fn(|tap| (tap / 3 * w + tap % 3) as isize - w as isize - 1),
            lanes: std::array::from_fn(inside),
        }
    }

    /// The taps' lanes where only `held` lanes hold a pixel.
    #[inline(always)]
    fn held(&self, held: usize) -> [u32; 9] {
        self.lanes.map(|lanes| lanes & ((1 << held) - 1))
    }
}

/// [`Planes`] of small images: 3x3 with stride 1. `IMAGES` images are one task.
pub(super) fn packed<T: Real>(planes: &Planes<T>, pixels: usize, out: &mut [MaybeUninit<T>]) {
    let (lanes, channels) = (lanes::<T>(), planes.out_channels);
    let shape = Packed::new(planes.plane.input, lanes);
    // For each vector of channels the nine taps and the bias, each in the lanes of its channel.
    let mut table = vec![T::zero(); channels.div_ceil(shape.channels) * 10 * lanes];
    for (group, table) in table.chunks_exact_mut(10 * lanes).enumerate() {
        for c in 0..shape.channels.min(channels - group * shape.channels) {
            let channel = group * shape.channels + c;
            for (i, row) in table.chunks_exact_mut(lanes).enumerate() {
                let value = match planes.bias {
                    _ if i < 9 => planes.weight[channel * 9 + i],
                    Some(bias) => bias[channel],
                    None => T::zero(),
                };
                row[c * pixels..][..pixels].fill(value);
            }
        }
    }
    let image = channels * pixels;
    let tasks = out.par_chunks_mut(IMAGES * image).zip(planes.inputs.par_chunks(IMAGES * image));
    tasks.for_each(|(out, xs)| dispatch(PackedTask { shape: &shape, table: &table, image, xs, out }));
}

struct PackedTask<'a, T> {
    shape: &'a Packed,
    table: &'a [T],
    /// Elements of an image.
    image: usize,
    xs: &'a [T],
    out: &'a mut [MaybeUninit<T>],
}

impl<T: Real> Kernel<T> for PackedTask<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let step = self.shape.channels * self.shape.pixels;
        for (start, table) in (0..self.image).step_by(step).zip(self.table.chunks_exact(10 * V::LANES)) {
            let held = step.min(self.image - start);
            let lanes = self.shape.held(held);
            // SAFETY: below `dispatch`; only lanes of this image's channels are read and written.
            unsafe {
                let rows: [V; 10] = std::array::from_fn(|i| V::load(table.as_ptr().add(i * V::LANES)));
                for (x, y) in self.xs.chunks_exact(self.image).zip(self.out.chunks_exact_mut(self.image)) {
                    let x = x.as_ptr().add(start);
                    let mut total = rows[9];
                    for tap in 0..9 {
                        let x = V::load_where(x.wrapping_offset(self.shape.offsets[tap]), lanes[tap]);
                        total = x.mul_add(rows[tap], total);
                    }
                    total.store_first(y.as_mut_ptr().cast::<T>().add(start), held);
                }
            }
        }
    }
}

/// The gradient of some channels' weights.
pub(super) struct PackedWeightGrad<'a, T> {
    pub g: &'a Geometry,
    pub shape: &'a Packed,
    pub xs: &'a [T],
    pub grad: &'a [T],
    /// The first channel.
    pub first: usize,
    pub dw: &'a mut [T],
}

impl<T: Real> Kernel<T> for PackedWeightGrad<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let Packed { pixels, channels, offsets, .. } = *self.shape;
        let image = self.g.c_in * pixels;
        let (begin, elements) = (self.first * pixels, self.dw.len() / 9 * pixels);
        let step = channels * pixels;
        let mut sums = vec![T::zero(); elements.div_ceil(step) * 9 * V::LANES];
        for (xs, dys) in self.xs.chunks(IMAGES * image).zip(self.grad.chunks(IMAGES * image)) {
            for (start, sums) in (0..elements).step_by(step).zip(sums.chunks_exact_mut(9 * V::LANES)) {
                let held = step.min(elements - start);
                let lanes = self.shape.held(held);
                // SAFETY: below `dispatch`; only lanes of this image's channels are read; `sums` holds nine vectors.
                unsafe {
                    let sums = sums.as_mut_ptr();
                    let mut nine: [V; 9] = std::array::from_fn(|tap| V::load(sums.add(tap * V::LANES)));
                    for (x, dy) in xs.chunks_exact(image).zip(dys.chunks_exact(image)) {
                        let (x, dy) = (x.as_ptr().add(begin + start), dy.as_ptr().add(begin + start));
                        let dy = V::load_first(dy, held);
                        for tap in 0..9 {
                            let x = V::load_where(x.wrapping_offset(offsets[tap]), lanes[tap]);
                            nine[tap] = x.mul_add(dy, nine[tap]);
                        }
                    }
                    nine.into_iter().enumerate().for_each(|(tap, sum)| sum.store(sums.add(tap * V::LANES)));
                }
            }
        }
        for (c, dw) in self.dw.chunks_exact_mut(9).enumerate() {
            let group = &sums[c / channels * 9 * V::LANES..];
            for (dw, lanes) in dw.iter_mut().zip(group.chunks_exact(V::LANES)) {
                let own = &lanes[c % channels * pixels..][..pixels];
                *dw = own.iter().fold(T::zero(), |total, &x| total + x);
            }
        }
    }
}

//! Batch normalisation on the host, with what usually follows it: y = act((x - mean) · scale + shift + skip).
//!
//! Inputs are (b, c, s) with s pixels a plane. Every pass runs over runs of planes in parallel; a plane's sums are made
//! while it is in the first-level cache, in vector lanes, and added up over the planes of a channel in f64, in their
//! order: no bit depends on the number of threads.
//!
//! Planes of a few pixels would leave most lanes of a vector empty, and calling a kernel would take longer than its
//! work. There ([`small`]) a vector holds pixels of several channels: one pass takes all planes of an image, with every
//! channel's numbers repeated for its pixels, and sums go over the images element by element.

mod backward;
mod coefficients;
mod forward;
mod small;
mod stats;

pub(crate) use backward::{CutBy, InputGrad, add_input_grad, grad_sums, input_grad, input_grad_over};
pub(crate) use coefficients::{Coefficients, Sums};
pub(crate) use forward::{add_and_activate, add_to, affine, affine_into};
pub(crate) use stats::{plane_stats, stats, stats_of_planes};

use crate::kernels::buffer::Shared;
use crate::kernels::simd::{Real, Simd};
use rayon::prelude::*;
use std::ops::Range;

/// (b, channels, pixels a plane)
pub(crate) type Dims = (usize, usize, usize);

/// Elements of a task.
const TASK: usize = 1 << 15;

/// Mean, scale and shift of each channel.
#[derive(Clone, Copy)]
pub(crate) struct Affine<'a, T> {
    pub mean: &'a [T],
    /// weight / std
    pub scale: &'a [T],
    pub shift: &'a [T],
}

impl<T: Real> Affine<'_, T> {
    fn check(&self, (_, c, _): Dims) {
        assert_eq!((self.mean.len(), self.scale.len(), self.shift.len()), (c, c, c));
    }
}

/// A number by channel as a kernel reads it: one for a plane, or with `EACH` one for every pixel of an image.
#[derive(Clone, Copy)]
struct PerChannel<'a, T> {
    one: T,
    each: &'a [T],
}

impl<'a, T: Real> PerChannel<'a, T> {
    /// Of `channel`, or of the pixels from there on.
    fn of(values: &'a [T], channel: usize) -> Self {
        Self { one: values[channel], each: values }
    }

    #[inline(always)]
    unsafe fn lanes<V: Simd<Elem = T>, const EACH: bool>(self, i: usize, count: usize) -> V {
        debug_assert!(!EACH || i + count <= self.each.len());
        // SAFETY: below `dispatch`; with `EACH` there are as many values as pixels, and i + count of these.
        unsafe { if EACH { V::load_first(self.each.as_ptr().add(i), count) } else { V::splat(self.one) } }
    }
}

/// The channels of a wider tensor that a narrow one takes.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    /// First channel in the wide tensor.
    pub first: usize,
    /// Channels of the wide tensor.
    pub of: usize,
}

impl Window {
    /// All channels.
    pub fn whole((_, c, _): Dims) -> Self {
        Self { first: 0, of: c }
    }

    /// Where a plane of the narrow tensor begins in the wide one.
    fn start(self, plane: usize, (_, c, s): Dims) -> usize {
        (plane / c * self.of + self.first + plane % c) * s
    }

    fn check(self, (b, c, s): Dims, wide: usize) {
        assert!(self.first + c <= self.of && wide == b * self.of * s);
    }
}

/// Runs `f` over runs of planes, in parallel.
fn for_planes((b, c, s): Dims, f: impl Fn(Range<usize>) + Sync) {
    let (planes, run) = (b * c, (TASK / s.max(1)).max(1));
    (0..planes.div_ceil(run)).into_par_iter().for_each(|i| f(i * run..planes.min((i + 1) * run)));
}

/// Two numbers of each plane, added up over the planes of each channel by `add`.
fn by_channel<R: Send>(
    dims: Dims,
    f: impl Fn(usize) -> [f64; 2] + Sync,
    add: impl Fn(&[[f64; 2]]) -> R + Sync + Send,
) -> Vec<R> {
    let (b, c, _) = dims;
    // A channel's planes side by side.
    let mut planes = vec![[0.0; 2]; b * c];
    let shared = Shared::new(&mut planes);
    for_planes(dims, |run| {
        for plane in run {
            let both = f(plane);
            // SAFETY: each plane has its place.
            unsafe { *shared.at(plane % c * b + plane / c) = both };
        }
    });
    planes.par_chunks_exact(b.max(1)).with_min_len(64).map(add).collect()
}

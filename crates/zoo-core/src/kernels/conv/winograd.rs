//! Winograd's algorithm F(2x2, 3x3): sixteen multiplications for the four pixels of a tile instead of thirty-six
//! (Lavin and Gray 2015, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308).
//!
//! y = Aᵀ · \[(G · w · Gᵀ) ⊙ (Bᵀ · x · B)\] · A for a tile of 4x4 inputs; the sum over channels stands before the last step, and
//! is sixteen matrix products.
//!
//! Its roundings are those of the tile's sums, not of one window's: the error of a pixel scales with the largest Σ |w|·|x| of
//! the four windows of its tile. A number that is not finite would reach pixels of its tile that no window brings it to, so
//! such inputs and weights take the direct way. So does the forward pass of training, see `Finish::by_tiles`.

use super::geometry::Geometry;
use crate::kernels::real::Real;
use crate::kernels::simd::Simd;
use rayon::prelude::*;

/// Elements of transformed input that a task keeps in the second-level cache, in bytes.
const CACHE: usize = 512 << 10;

/// Whether a layer of `channels` (in, out) of a group is faster this way.
pub(super) fn suits<T: Real>(g: &Geometry, channels: (usize, usize), out: (usize, usize), weight: &[T]) -> bool {
    let p = g.params;
    let is_plain = (g.kh, g.kw, p.stride, p.padding, p.dilation) == (3, 3, (1, 1), (1, 1), (1, 1));
    // Below, transforming costs what multiplying saves; above, transformed weights would stream from memory.
    let fits = channels.0.min(channels.1) >= 64 && channels.0 * channels.1 <= 1 << 16;
    is_plain && fits && out.0.div_ceil(2) * out.1.div_ceil(2) >= 64 && weight.iter().all(|w| is_finite(*w))
}

pub(super) fn is_finite<T: Real>(x: T) -> bool {
    x.to_f64().is_finite()
}

/// Pairs of vectors of tiles that are transformed at a time.
pub(super) fn pairs<T: Real>(channels: usize, lanes: usize) -> usize {
    (CACHE / (16 * channels * 2 * lanes * size_of::<T>())).clamp(1, 16)
}

/// Scratch of a task besides the packed input: transformed input, products, and a vector of finished tiles.
pub(super) fn scratch<T: Real>(channels: usize, lanes: usize, block: usize) -> usize {
    (pairs::<T>(channels, lanes) * 16 * channels + 16 * block + 4) * 2 * lanes
}

/// G · w · Gᵀ of every kernel: (group, 16, out, in). The kernel of (group, out, in) starts at `at` of `weight`, its taps in the
/// order that `tap` gives them; `scale` has a factor for each output.
pub(super) fn weights<T: Real>(
    weight: &[T],
    (groups, out, channels): (usize, usize, usize),
    at: impl Fn(usize, usize, usize) -> usize + Sync,
    tap: impl Fn(usize) -> usize + Sync,
    scale: Option<&[T]>,
) -> Vec<T> {
    let half = T::from_f64(0.5);
    let each = |a: T, b: T, c: T| [a, half * (a + b + c), half * (a - b + c), c];
    let mut turned = vec![T::zero(); groups * 16 * out * channels];
    turned.par_chunks_exact_mut(16 * out * channels).enumerate().for_each(|(group, turned)| {
        for row in 0..out {
            let factor = scale.map_or(T::one(), |scale| scale[group * out + row]);
            for channel in 0..channels {
                let kernel = &weight[at(group, row, channel)..][..9];
                let w = |i: usize| kernel[tap(i)] * factor;
                let rows: [[T; 4]; 3] = std::array::from_fn(|x| each(w(x), w(3 + x), w(6 + x)));
                for y in 0..4 {
                    for (x, value) in each(rows[0][y], rows[1][y], rows[2][y]).into_iter().enumerate() {
                        turned[((4 * y + x) * out + row) * channels + channel] = value;
                    }
                }
            }
        }
    });
    turned
}

/// Bᵀ · x · B
///
/// # Safety
/// Below `dispatch`.
#[inline(always)]
pub(super) unsafe fn input<V: Simd>(x: [V; 16]) -> [V; 16] {
    // SAFETY: the caller's.
    unsafe {
        let mut t = [V::zero(); 16];
        for i in 0..4 {
            let (a, b, c, d) = (x[i], x[4 + i], x[8 + i], x[12 + i]);
            (t[i], t[4 + i], t[8 + i], t[12 + i]) = (a.sub(c), b.add(c), c.sub(b), b.sub(d));
        }
        let mut u = [V::zero(); 16];
        for i in 0..4 {
            let (a, b, c, d) = (t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]);
            (u[4 * i], u[4 * i + 1], u[4 * i + 2], u[4 * i + 3]) = (a.sub(c), b.add(c), c.sub(b), b.sub(d));
        }
        u
    }
}

/// Aᵀ · m · A: the upper left, upper right, lower left and lower right pixels.
///
/// # Safety
/// Below `dispatch`.
#[inline(always)]
pub(super) unsafe fn output<V: Simd>(m: [V; 16]) -> [V; 4] {
    // SAFETY: the caller's.
    unsafe {
        let mut t = [V::zero(); 8];
        for i in 0..4 {
            t[i] = m[i].add(m[4 + i]).add(m[8 + i]);
            t[4 + i] = m[4 + i].sub(m[8 + i]).sub(m[12 + i]);
        }
        [t[0].add(t[1]).add(t[2]), t[1].sub(t[2]).sub(t[3]), t[4].add(t[5]).add(t[6]), t[5].sub(t[6]).sub(t[7])]
    }
}

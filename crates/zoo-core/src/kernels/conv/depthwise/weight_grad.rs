//! The gradient of a depthwise convolution's weight.

use super::packed::{Packed, PackedWeightGrad};
use super::stencil::{Neighbours, Neighbours2, inside, load_strided, within};
use super::{Plane, Way, lanes};
use crate::kernels::blocking::PLANE_TASK;
use crate::kernels::conv::geometry::Geometry;
use crate::kernels::simd::{Kernel, Real, Simd, dispatch};
use rayon::prelude::*;
use std::ops::Range;

/// Each task has its own channels and goes through all images, so the order of the sum is fixed by the shapes.
pub(in crate::kernels::conv) fn weight_grad<T: Real>(g: &Geometry, xs: &[T], grad: &[T]) -> Vec<T> {
    let plane = Plane::forward(g);
    let (input, output, taps) = (g.input_plane(), g.output_plane(), plane.taps());
    assert_eq!((xs.len(), grad.len()), (g.b * g.c_in * input, g.b * g.c_out * output));
    let mut dw = vec![T::zero(); g.c_out * taps];
    let packed = g.c_in == g.c_out && plane.way == Way::Three && output <= lanes::<T>();
    let packed = packed.then(|| Packed::new(plane.input, lanes::<T>()));
    // The sums of a task's channels, a vector for each tap, stay in the cache while the images pass.
    let channels = match &packed {
        Some(shape) => 32 * shape.channels,
        None => (PLANE_TASK / 4 / (size_of::<T>() * output)).clamp(1, 64),
    };
    dw.par_chunks_mut(channels * taps).enumerate().for_each(|(i, dw)| {
        let first = i * channels;
        match &packed {
            Some(shape) => dispatch(PackedWeightGrad { g, shape, xs, grad, first, dw }),
            None => dispatch(WeightGrad { g, plane: &plane, xs, grad, first, dw }),
        }
    });
    dw
}

struct WeightGrad<'a, T> {
    g: &'a Geometry,
    plane: &'a Plane,
    xs: &'a [T],
    grad: &'a [T],
    /// The first output channel.
    first: usize,
    dw: &'a mut [T],
}

impl<T: Real> Kernel<T> for WeightGrad<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let (g, p) = (self.g, self.plane);
        let (input, output, taps, multiplier) = (g.input_plane(), g.output_plane(), p.taps(), g.c_out / g.c_in);
        let columns = p.columns();
        let mut sums = vec![T::zero(); self.dw.len() * V::LANES];
        for image in 0..g.b {
            for (i, sums) in sums.chunks_exact_mut(taps * V::LANES).enumerate() {
                let c = self.first + i;
                let x = &self.xs[(image * g.c_in + c / multiplier) * input..][..input];
                let dy = &self.grad[(image * g.c_out + c) * output..][..output];
                // SAFETY: `run` is below `dispatch`, the planes have their elements, `sums` a vector for each tap.
                unsafe {
                    let (x, dy, sums) = (x.as_ptr(), dy.as_ptr(), sums.as_mut_ptr());
                    match p.way {
                        Way::Three => keep(sums, weight_grad_three::<V>(p.input, x, dy)),
                        Way::ThreeByTwo => keep(sums, weight_grad_three_by_two::<V>(p, x, dy)),
                        _ => weight_grad_taps::<V>(p, &columns, x, dy, sums),
                    }
                }
            }
        }
        for (dw, sums) in self.dw.iter_mut().zip(sums.chunks_exact(V::LANES)) {
            // SAFETY: below `dispatch`, a vector a tap.
            *dw = unsafe { V::load(sums.as_ptr()).sum() };
        }
    }
}

/// Adds a plane's nine sums to those so far.
///
/// # Safety
/// Below `dispatch`; `sums` holds nine vectors.
#[inline(always)]
unsafe fn keep<V: Simd>(sums: *mut V::Elem, plane: [V; 9]) {
    for (tap, sum) in plane.into_iter().enumerate() {
        // SAFETY: the caller's.
        unsafe {
            let to = sums.add(tap * V::LANES);
            V::load(to).add(sum).store(to);
        }
    }
}

/// sums += row · dy, for the three taps of a row of the kernel.
///
/// # Safety
/// Below `dispatch`.
#[inline(always)]
unsafe fn three_products<V: Simd>(sums: &mut [V], row: (V, V, V), dy: V) {
    // SAFETY: the caller's.
    unsafe {
        sums[0] = row.0.mul_add(dy, sums[0]);
        sums[1] = row.1.mul_add(dy, sums[1]);
        sums[2] = row.2.mul_add(dy, sums[2]);
    }
}

/// # Safety
/// Below `dispatch`; both planes hold h·w elements.
#[inline(always)]
unsafe fn weight_grad_three<V: Simd>((h, w): (usize, usize), x: *const V::Elem, dy: *const V::Elem) -> [V; 9] {
    // SAFETY: rows lie in 0..h, columns are cut at w.
    unsafe {
        let mut sums = [V::zero(); 9];
        for column in (0..w).step_by(V::LANES) {
            let (at, n) = (Neighbours::new::<V>(column, w), inside::<V>(column as isize, w));
            let (mut above, mut here) = (V::zero(), V::load_where(dy.add(column), n));
            for r in 0..h {
                let row = at.load::<V>(x.add(r * w));
                let below = if r + 1 < h { V::load_where(dy.add((r + 1) * w + column), n) } else { V::zero() };
                three_products(&mut sums[3..6], row, here);
                // Outputs that do not exist are left out: zero times a NaN would be one.
                if r + 1 < h {
                    three_products(&mut sums[0..3], row, below);
                }
                if r > 0 {
                    three_products(&mut sums[6..9], row, above);
                }
                (above, here) = (here, below);
            }
        }
        sums
    }
}

/// # Safety
/// Below `dispatch`; the planes hold their elements.
#[inline(always)]
unsafe fn weight_grad_three_by_two<V: Simd>(p: &Plane, x: *const V::Elem, dy: *const V::Elem) -> [V; 9] {
    let ((h, w), (oh, ow)) = (p.input, p.output);
    // SAFETY: rows lie in 0..h and 0..oh, columns are cut at w and ow.
    unsafe {
        let mut sums = [V::zero(); 9];
        for column in (0..ow).step_by(V::LANES) {
            let (at, n) = (Neighbours2::new::<V>(column, w), inside::<V>(column as isize, ow));
            let mut here = V::load_where(dy.add(column), n);
            for o in 0..oh {
                three_products(&mut sums[3..6], at.load::<V>(x.add(2 * o * w)), here);
                let below = if o + 1 < oh { V::load_where(dy.add((o + 1) * ow + column), n) } else { V::zero() };
                if 2 * o + 1 < h {
                    let odd = at.load::<V>(x.add((2 * o + 1) * w));
                    three_products(&mut sums[6..9], odd, here);
                    if o + 1 < oh {
                        three_products(&mut sums[0..3], odd, below);
                    }
                }
                here = below;
            }
        }
        sums
    }
}

/// # Safety
/// Below `dispatch`; the planes hold their elements, `sums` a vector for each tap.
#[inline(always)]
unsafe fn weight_grad_taps<V: Simd>(
    p: &Plane,
    columns: &[(Range<usize>, isize)],
    x: *const V::Elem,
    dy: *const V::Elem,
    sums: *mut V::Elem,
) {
    let (oh, ow) = p.output;
    for tap in 0..p.taps() {
        let (reach, offset) = &columns[tap % p.kernel.1];
        // SAFETY: rows and columns lie inside the planes, or are left out.
        unsafe {
            let mut sum = V::zero();
            for row in 0..oh {
                let Some(input_row) = p.input_row(row, tap / p.kernel.1) else { continue };
                for column in (0..ow).step_by(V::LANES) {
                    let lanes = within::<V>(column, reach);
                    let first = (column * p.stride.1) as isize + offset;
                    let x = load_strided::<V>(x.add(input_row * p.input.1), first, p.stride.1, lanes);
                    sum = x.mul_add(V::load_where(dy.add(row * ow + column), lanes), sum);
                }
            }
            let to = sums.add(tap * V::LANES);
            V::load(to).add(sum).store(to);
        }
    }
}

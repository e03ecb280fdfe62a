//! Softmax of rows on the host.

use super::buffer::{with_scratch, written};
use super::math::{exp, num};
use super::simd::{Kernel, Real, Simd, dispatch};
use super::stored::Stored;
use candle_core::WithDType;
use half::bf16;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Rows of `n`, in place if both pointers are the same.
struct Softmax<T> {
    n: usize,
    rows: usize,
    from: *const T,
    to: *mut T,
}

impl<T: Real> Kernel<T> for Softmax<T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let Self { n, rows, from, to } = self;
        let (whole, rest) = (n - n % V::LANES, n % V::LANES);
        for row in 0..rows {
            // SAFETY: run by `dispatch`; both pointers hold `rows` rows of n elements.
            unsafe {
                let (x, y) = (from.add(row * n), to.add(row * n));
                let lowest = <T as WithDType>::from_f64(f64::NEG_INFINITY);
                // A NaN gets past the maximum, and from the exponential into the sum.
                let mut max = V::splat(lowest);
                for i in (0..whole).step_by(V::LANES) {
                    max = V::load(x.add(i)).max(max);
                }
                let mut max = max.largest();
                for i in whole..n {
                    max = if *x.add(i) > max { *x.add(i) } else { max };
                }
                let (max, mut total) = (V::splat(max), V::zero());
                for i in (0..whole).step_by(V::LANES) {
                    let e = exp(V::load(x.add(i)).sub(max));
                    e.store(y.add(i));
                    total = total.add(e);
                }
                let mut total = total.sum();
                if rest > 0 {
                    exp(V::load_first(x.add(whole), rest).sub(max)).store_first(y.add(whole), rest);
                    for i in whole..n {
                        total += *y.add(i);
                    }
                }
                let scale = num::<V>(1.0).div(V::splat(total));
                for i in (0..whole).step_by(V::LANES) {
                    V::load(y.add(i)).mul(scale).store(y.add(i));
                }
                if rest > 0 {
                    V::load_first(y.add(whole), rest).mul(scale).store_first(y.add(whole), rest);
                }
            }
        }
    }
}

/// dx = y · (dy - Σ dy·y) · scale; dx may be dy.
struct Gradient<E> {
    n: usize,
    rows: usize,
    y: *const E,
    dy: *const E,
    dx: *mut E,
    scale: f64,
}

impl<T: Real, E: Stored<Elem = T>> Kernel<T> for Gradient<E> {
    const NARROWS: bool = E::NARROWS;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let Self { n, rows, .. } = self;
        let (whole, rest) = (n - n % V::LANES, n % V::LANES);
        for row in 0..rows {
            // SAFETY: run by `dispatch`; the pointers hold `rows` rows of n elements.
            unsafe {
                let (y, dy, dx) = (self.y.add(row * n), self.dy.add(row * n), self.dx.add(row * n));
                let mut along = V::zero();
                for i in (0..whole).step_by(V::LANES) {
                    along = E::load::<V>(y.add(i)).mul_add(E::load(dy.add(i)), along);
                }
                if rest > 0 {
                    along = E::load_first::<V>(y.add(whole), rest).mul_add(E::load_first(dy.add(whole), rest), along);
                }
                let (along, scale) = (V::splat(along.sum()), num::<V>(self.scale));
                for i in (0..whole).step_by(V::LANES) {
                    let dx_i = E::load::<V>(dy.add(i)).sub(along).mul(E::load(y.add(i))).mul(scale);
                    E::store(dx_i, dx.add(i));
                }
                if rest > 0 {
                    let y = E::load_first::<V>(y.add(whole), rest);
                    let dx_rest = E::load_first::<V>(dy.add(whole), rest).sub(along).mul(y).mul(scale);
                    E::store_first(dx_rest, dx.add(whole), rest);
                }
            }
        }
    }
}

/// Rows that one task takes.
const ROWS: usize = 32;

/// Softmax of each row of n elements.
pub(crate) fn forward<T: Real>(n: usize, xs: &[T]) -> Vec<T> {
    assert!(xs.len().is_multiple_of(n));
    let fill = |ys: &mut [MaybeUninit<T>]| {
        ys.par_chunks_mut(n * ROWS).zip(xs.par_chunks(n * ROWS)).for_each(|(ys, xs)| {
            dispatch(Softmax { n, rows: xs.len() / n, from: xs.as_ptr(), to: ys.as_mut_ptr().cast() });
        });
    };
    // SAFETY: the blocks cover the output, and each is written whole.
    unsafe { written(xs.len(), fill) }
}

/// The same of bfloat16 numbers, in f32 but for what goes in and out.
pub(crate) fn mixed_forward(n: usize, xs: &[bf16]) -> Vec<bf16> {
    assert!(xs.len().is_multiple_of(n));
    let fill = |ys: &mut [MaybeUninit<bf16>]| {
        ys.par_chunks_mut(n * ROWS).zip(xs.par_chunks(n * ROWS)).for_each(|(ys, xs)| {
            with_scratch(xs.len(), |wide: *mut f32| {
                dispatch(Copy { n: xs.len(), from: xs.as_ptr(), to: wide });
                dispatch(Softmax { n, rows: xs.len() / n, from: wide, to: wide });
                dispatch(Copy { n: xs.len(), from: wide, to: ys.as_mut_ptr().cast::<bf16>() });
            });
        });
    };
    // SAFETY: the blocks cover the output, and each is written whole.
    unsafe { written(xs.len(), fill) }
}

/// Numbers from one kind of memory to another.
struct Copy<A, B> {
    n: usize,
    from: *const A,
    to: *mut B,
}

impl<A: Stored<Elem = f32>, B: Stored<Elem = f32>> Kernel<f32> for Copy<A, B> {
    const NARROWS: bool = B::NARROWS;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let Self { n, from, to } = self;
        // SAFETY: run by `dispatch`; both pointers hold n numbers.
        unsafe {
            for i in (0..n - n % V::LANES).step_by(V::LANES) {
                B::store(A::load::<V>(from.add(i)), to.add(i));
            }
            let (whole, rest) = (n - n % V::LANES, n % V::LANES);
            B::store_first(A::load_first::<V>(from.add(whole), rest), to.add(whole), rest);
        }
    }
}

/// The same over what it reads.
pub(crate) fn in_place<T: Real>(n: usize, xs: &mut [T]) {
    assert!(xs.len().is_multiple_of(n));
    dispatch(Softmax { n, rows: xs.len() / n, from: xs.as_ptr(), to: xs.as_mut_ptr() });
}

/// From the output and its gradient, the gradient of the input.
pub(crate) fn backward<E: Stored>(n: usize, ys: &[E], grad: &[E]) -> Vec<E> {
    assert!(ys.len() == grad.len() && ys.len().is_multiple_of(n));
    let fill = |dx: &mut [MaybeUninit<E>]| {
        let blocks = dx.par_chunks_mut(n * ROWS).zip(ys.par_chunks(n * ROWS)).zip(grad.par_chunks(n * ROWS));
        blocks.for_each(|((dx, ys), grad)| {
            let (y, dy, dx) = (ys.as_ptr(), grad.as_ptr(), dx.as_mut_ptr().cast());
            dispatch(Gradient { n, rows: ys.len() / n, y, dy, dx, scale: 1.0 });
        });
    };
    // SAFETY: the blocks cover the output, and each is written whole.
    unsafe { written(ys.len(), fill) }
}

/// `scale` times the gradient of the input, over that of the output.
pub(crate) fn backward_in_place<T: Real>(n: usize, ys: &[T], grad: &mut [T], scale: f64) {
    assert!(ys.len() == grad.len() && ys.len().is_multiple_of(n));
    dispatch(Gradient { n, rows: ys.len() / n, y: ys.as_ptr(), dy: grad.as_ptr(), dx: grad.as_mut_ptr(), scale });
}

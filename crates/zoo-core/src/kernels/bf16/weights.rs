//! Weights as operands of products: rounded, and packed as right sides.

use super::matrix::{padded, places, right, right_room, right_transposed};
use crate::kernels::buffer::{Shared, written};
use crate::kernels::simd::{Kernel, Level, Simd, dispatch, dispatch_at};
use half::bf16;
use rayon::prelude::*;

/// Numbers of one task.
const TASK: usize = 1 << 14;
/// Columns of one task.
const COLUMNS: usize = 64;

/// Rounds every number.
pub(super) fn narrow(w: &[f32]) -> Vec<bf16> {
    // SAFETY: the chunks have the same lengths, and every element is written.
    unsafe {
        written(w.len(), |to| {
            let parts = to.par_chunks_mut(TASK).zip(w.par_chunks(TASK));
            parts.for_each(|(to, w)| dispatch(Narrow { w, to: Shared::from_uninit(to) }));
        })
    }
}

/// A matrix of k rows and n columns as a right side; `w` is the matrix, or its transpose.
pub(super) fn packed(level: Level, w: &[f32], (k, n): (usize, usize), transposed: bool) -> Vec<bf16> {
    assert_eq!(w.len(), k * n);
    let (map, places) = (narrow(w), places(k));
    // SAFETY: each task writes its columns, whole tiles, and they are all.
    unsafe {
        written(right_room(k, n), |to| {
            to.par_chunks_mut(COLUMNS * padded(k)).enumerate().for_each(|(i, to)| {
                let columns = (i * COLUMNS, COLUMNS.min(n - i * COLUMNS));
                let (map, places, to) = (&map, &places, Shared::from_uninit(to));
                dispatch_at(level, Pack { map, k, n, transposed, columns, places, to });
            });
        })
    }
}

struct Narrow<'a> {
    w: &'a [f32],
    to: Shared<bf16>,
}

impl Kernel<f32> for Narrow<'_> {
    const NARROWS: bool = true;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let whole = self.w.len() - self.w.len() % V::LANES;
        // SAFETY: run by `dispatch`; as many numbers behind both pointers, vectors are cut at the end.
        unsafe {
            for i in (0..whole).step_by(V::LANES) {
                V::load(self.w.as_ptr().add(i)).store_bf16(self.to.at(i));
            }
            let rest = self.w.len() - whole;
            if rest > 0 {
                V::load_first(self.w.as_ptr().add(whole), rest).store_first_bf16(self.to.at(whole), rest);
            }
        }
    }
}

struct Pack<'a> {
    map: &'a [bf16],
    k: usize,
    n: usize,
    transposed: bool,
    /// The first one, and how many.
    columns: (usize, usize),
    places: &'a [u32],
    to: Shared<bf16>,
}

impl Kernel<f32> for Pack<'_> {
    const NARROWS: bool = true;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let Self { map, k, n, transposed, columns: (first, count), places, to } = self;
        // SAFETY: run by `dispatch`; the room is that of the columns.
        unsafe {
            if transposed {
                right_transposed::<V>((map, k, first * k), (k, count), to.at(0));
            } else {
                right::<V>((map, n, first), count, places, to.at(0));
            }
        }
    }
}

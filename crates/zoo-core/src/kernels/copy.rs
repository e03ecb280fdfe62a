//! Moving whole rows: what joins, cuts and rearranges channels.

use super::buffer::written;
use super::simd::Real;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Elements that one task copies.
const TASK: usize = 1 << 15;

fn copy<T: Real>(to: &mut [MaybeUninit<T>], from: &[T]) {
    to.par_chunks_mut(TASK).zip(from.par_chunks(TASK)).for_each(|(to, from)| {
        to.write_copy_of_slice(from);
    });
}

/// Rows of several tensors, `count` of each, side by side. `below` and `above` are zeros put around each row.
pub(crate) fn join<T: Real>(count: usize, parts: &[&[T]], below: usize, above: usize) -> Vec<T> {
    let held: usize = parts.iter().map(|part| part.len() / count).sum();
    assert!(parts.iter().all(|part| part.len().is_multiple_of(count)));
    let row = below + held + above;
    let fill = |out: &mut [MaybeUninit<T>]| {
        out.par_chunks_exact_mut(row).enumerate().for_each(|(i, out)| {
            let (zeros, mut rest) = out.split_at_mut(below);
            zeros.fill(MaybeUninit::new(T::zero()));
            for part in parts {
                let n = part.len() / count;
                let (to, behind) = rest.split_at_mut(n);
                copy(to, &part[i * n..][..n]);
                rest = behind;
            }
            rest.fill(MaybeUninit::new(T::zero()));
        });
    };
    // SAFETY: each row is zeros, the parts' rows, and zeros to its end.
    unsafe { written(count * row, fill) }
}

/// Planes of `plane` elements in the order that `source` tells: plane i comes from plane source(i).
pub(crate) fn arrange<T: Real>(xs: &[T], plane: usize, source: impl Fn(usize) -> usize + Sync) -> Vec<T> {
    assert!(xs.len().is_multiple_of(plane));
    let fill = |out: &mut [MaybeUninit<T>]| {
        let planes = out.par_chunks_exact_mut(plane).enumerate().with_min_len((TASK / plane).max(1));
        planes.for_each(|(i, out)| {
            out.write_copy_of_slice(&xs[source(i) * plane..][..plane]);
        });
    };
    // SAFETY: each plane is copied whole.
    unsafe { written(xs.len(), fill) }
}

/// a + b.
pub(crate) fn add<T: Real>(a: &[T], b: &[T]) -> Vec<T> {
    assert_eq!(a.len(), b.len());
    let fill = |out: &mut [MaybeUninit<T>]| {
        out.par_chunks_mut(TASK).zip(a.par_chunks(TASK)).zip(b.par_chunks(TASK)).for_each(|((out, a), b)| {
            for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
                out.write(a + b);
            }
        });
    };
    // SAFETY: the chunks have the same lengths, and every element is written.
    unsafe { written(a.len(), fill) }
}

//! Memory that a kernel fills, without the pass that would zero it first.

use crate::ops::Real;
use std::mem::MaybeUninit;

/// A vector of n elements, **every one of which** `fill` must write.
pub(crate) fn filled<T: Real>(n: usize, fill: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut out = Vec::with_capacity(n);
    fill(&mut out.spare_capacity_mut()[..n]);
    // SAFETY: the capacity is there, and `fill` has written it; a float has no invalid bits.
    unsafe { out.set_len(n) };
    out
}

/// Writes `row` again and again over the block, which is a slice of numbers from then on.
pub(crate) fn repeat<'a, T: Real>(out: &'a mut [MaybeUninit<T>], row: &[T]) -> &'a mut [T] {
    assert_eq!(out.len() % row.len(), 0);
    for place in out.chunks_exact_mut(row.len()) {
        copy(place, row);
    }
    // SAFETY: the rows fill the block.
    unsafe { assume_init(out) }
}

/// Writes zeros over the block, which is a slice of numbers from then on.
pub(crate) fn zeroed<T: Real>(out: &mut [MaybeUninit<T>]) -> &mut [T] {
    out.iter_mut().for_each(|x| _ = x.write(T::zero()));
    // SAFETY: all are written.
    unsafe { assume_init(out) }
}

/// Copies `from` over the block, which is a slice of numbers from then on.
pub(crate) fn copy<'a, T: Real>(out: &'a mut [MaybeUninit<T>], from: &[T]) -> &'a mut [T] {
    assert_eq!(out.len(), from.len());
    // SAFETY: equal lengths, and a mutable borrow overlaps nothing.
    unsafe {
        std::ptr::copy_nonoverlapping(from.as_ptr(), out.as_mut_ptr().cast(), from.len());
        assume_init(out)
    }
}

/// The block as numbers.
///
/// # Safety
/// Every element has been written.
pub(crate) unsafe fn assume_init<T: Real>(out: &mut [MaybeUninit<T>]) -> &mut [T] {
    // SAFETY: the same layout, and the caller has written all.
    unsafe { &mut *(std::ptr::from_mut(out) as *mut [T]) }
}

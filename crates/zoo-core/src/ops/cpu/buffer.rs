//! Outputs that are written once.

use std::mem::MaybeUninit;

/// A vector of `n` elements that `fill` writes: nothing is zeroed first, which would cost a pass over the memory.
///
/// # Safety
/// `fill` writes every element.
pub(crate) unsafe fn written<T: Copy>(n: usize, fill: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut out = Vec::with_capacity(n);
    fill(&mut out.spare_capacity_mut()[..n]);
    // SAFETY: the capacity is there, and `fill` has written it.
    unsafe { out.set_len(n) };
    out
}

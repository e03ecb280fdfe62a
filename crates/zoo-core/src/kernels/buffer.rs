//! Memory for kernels: outputs that are written once, and scratch that a thread keeps.

use super::simd::Real;
use std::cell::RefCell;
use std::mem::MaybeUninit;

/// A pointer shared by tasks, each of which writes its own places.
pub(crate) struct Shared<T>(*mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: a pointer is as good in one thread as in another; who writes through it answers for the places being
// disjoint.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    pub fn from_uninit(slice: &mut [MaybeUninit<T>]) -> Self {
        Self(slice.as_mut_ptr().cast())
    }

    /// A place of scratch.
    pub fn of(place: *mut T) -> Self {
        Self(place)
    }

    /// The room of a vector behind its elements.
    pub fn from_spare(vec: &mut Vec<T>) -> Self {
        Self(vec.spare_capacity_mut().as_mut_ptr().cast())
    }

    /// The place `offset` elements on.
    ///
    /// # Safety
    /// As [`at`](Self::at).
    pub unsafe fn offset(self, offset: usize) -> Self {
        // SAFETY: the caller keeps inside.
        Self(unsafe { self.at(offset) })
    }

    /// A pointer to read from only.
    pub fn reading(slice: &[T]) -> Self {
        Self(slice.as_ptr().cast_mut())
    }

    /// The pointer, `offset` elements on.
    ///
    /// # Safety
    /// The offset must stay inside what the pointer was made from.
    #[inline(always)]
    pub unsafe fn at(self, offset: usize) -> *mut T {
        // SAFETY: the caller keeps inside.
        unsafe { self.0.add(offset) }
    }
}

/// A vector of `n` elements that `fill` writes, every one of them: no pass over the memory to zero it first.
///
/// # Safety
/// `fill` must have written all `n` elements when it returns.
pub(crate) unsafe fn written_by_tasks<T: Real>(n: usize, fill: impl FnOnce(Shared<T>)) -> Vec<T> {
    let mut out: Vec<T> = Vec::with_capacity(n);
    fill(Shared(out.as_mut_ptr()));
    // SAFETY: the capacity is n, and the caller vouches for the elements.
    unsafe { out.set_len(n) };
    out
}

/// [`written_by_tasks`] for one that is filled as a slice.
///
/// # Safety
/// `fill` writes every element.
pub(crate) unsafe fn written<T>(n: usize, fill: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut out = Vec::with_capacity(n);
    fill(&mut out.spare_capacity_mut()[..n]);
    // SAFETY: the capacity is there, and `fill` has written it.
    unsafe { out.set_len(n) };
    out
}

/// [`written`] for several vectors at once.
///
/// # Safety
/// `fill` writes every element of each.
pub(crate) unsafe fn written_all<T, const N: usize>(
    lens: [usize; N],
    fill: impl FnOnce([&mut [MaybeUninit<T>]; N]),
) -> [Vec<T>; N] {
    let mut all = lens.map(Vec::with_capacity);
    fill(all.each_mut().map(|out| {
        let len = out.capacity();
        &mut out.spare_capacity_mut()[..len]
    }));
    for (out, len) in all.iter_mut().zip(lens) {
        // SAFETY: the capacity is there, and `fill` has written it.
        unsafe { out.set_len(len) };
    }
    all
}

thread_local! {
    static SCRATCH: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Lends `f` room for `n` elements, on a cache line's boundary, holding whatever the last use left there. The thread
/// keeps the memory for the next time. `f` must not wait for other tasks: another use of the scratch could start
/// meanwhile.
pub(crate) fn with_scratch<T: Real, R>(n: usize, f: impl FnOnce(*mut T) -> R) -> R {
    const LINE: usize = 64;
    SCRATCH.with_borrow_mut(|scratch| {
        let words = (n * size_of::<T>() + LINE).div_ceil(size_of::<u64>());
        if scratch.len() < words {
            // The old contents are nobody's: no need to move them.
            *scratch = Vec::new();
            *scratch = vec![0; words];
        }
        let start = scratch.as_mut_ptr().cast::<u8>();
        // SAFETY: the vector has a line more than n elements need; u64 and the line are aligned for f32 and f64.
        f(unsafe { start.add(start.align_offset(LINE)) }.cast())
    })
}

/// The first `n` elements of an empty vector's room, for what is written before it is read.
pub(crate) fn room<T: Real>(vec: &mut Vec<T>, n: usize) -> &mut [MaybeUninit<T>] {
    &mut vec.spare_capacity_mut()[..n]
}

/// Writes zeros over the block, which is a slice of numbers from then on.
pub(crate) fn zeroed<T: Real>(out: &mut [MaybeUninit<T>]) -> &mut [T] {
    out.iter_mut().for_each(|x| _ = x.write(T::zero()));
    // SAFETY: all are written.
    unsafe { assume_init(out) }
}

/// Numbers as memory to be written over.
pub(crate) fn uninit<T: Real>(xs: &mut [T]) -> &mut [MaybeUninit<T>] {
    // SAFETY: the same layout, and the kernels that write through it leave numbers behind.
    unsafe { &mut *(std::ptr::from_mut(xs) as *mut [MaybeUninit<T>]) }
}

/// The block as numbers.
///
/// # Safety
/// Every element has been written.
pub(crate) unsafe fn assume_init<T: Real>(out: &mut [MaybeUninit<T>]) -> &mut [T] {
    // SAFETY: the same layout, and the caller has written all.
    unsafe { &mut *(std::ptr::from_mut(out) as *mut [T]) }
}

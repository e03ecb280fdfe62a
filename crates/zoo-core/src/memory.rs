//! An allocator that keeps its pages.
//!
//! A step of training allocates the same large blocks again and again. An allocator that gives them back to the system in between
//! gets them page by page, zeroed, at the next use: with im2col's kernels cifar_resnet20 trained 178 images/s so, and 217 with
//! an allocator that keeps them. A binary that computes with the zoo therefore chooses [`KeepPages`]:
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: zoo_core::memory::KeepPages = zoo_core::memory::KeepPages;
//! ```
//!
//! Blocks below 64 KiB are the system allocator's. Larger ones are rounded up to a size class, an eighth of a power of two apart,
//! and a freed one waits in its class for the next use. What waits is bounded by what is in use at the most.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// The allocator; see the [module](self).
#[derive(Debug, Clone, Copy, Default)]
pub struct KeepPages;

/// Blocks from this size on are kept.
const SMALLEST: usize = 64 << 10;
/// Eight classes for each power of two from 2¹⁶ to 2⁴⁰.
const CLASSES: usize = 8 * 24;
/// Every kept block starts on a page of its own.
const ALIGN: usize = 4096;
/// Blocks from this size on start on a huge page, so that the system may use such.
const HUGE: usize = 2 << 20;

/// The first free block of each class, whose first word points to the next.
static FREE: [Mutex<usize>; CLASSES] = [const { Mutex::new(0) }; CLASSES];
/// Bytes of kept classes in use, the most that ever were, and bytes that wait.
static IN_USE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Class and size of a request, if it is one to keep.
fn class(layout: Layout) -> Option<(usize, Layout)> {
    let size = layout.size();
    if size < SMALLEST || layout.align() > ALIGN {
        return None;
    }
    // The power of two at or below, and the eighth of it, rounded up.
    let power = size.ilog2() as usize;
    let step = 1usize << (power - 3);
    let eighth = (size - (1 << power)).div_ceil(step);
    let index = 8 * (power - SMALLEST.ilog2() as usize) + eighth;
    let rounded = (1usize << power) + eighth * step;
    let align = if rounded >= HUGE { HUGE } else { ALIGN };
    let layout = Layout::from_size_align(rounded, align).ok()?;
    (index < CLASSES).then_some((index, layout))
}

// SAFETY: a block handed out is either the system allocator's or a free one of its class, which is as large and aligned as any
// request of the class asks for, and which the class's lock lets one caller take.
unsafe impl GlobalAlloc for KeepPages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some((index, block)) = class(layout) else {
            // SAFETY: the caller's.
            return unsafe { System.alloc(layout) };
        };
        MOST.fetch_max(IN_USE.fetch_add(block.size(), Relaxed) + block.size(), Relaxed);
        let mut first = FREE[index].lock().unwrap_or_else(PoisonError::into_inner);
        if *first != 0 {
            let taken = *first as *mut u8;
            // SAFETY: a free block holds the next one's address in its first word.
            *first = unsafe { taken.cast::<usize>().read() };
            WAITING.fetch_sub(block.size(), Relaxed);
            return taken;
        }
        drop(first);
        // SAFETY: the class's layout is not empty.
        let taken = unsafe { System.alloc(block) };
        if !taken.is_null() {
            advise_huge(taken, block.size());
        }
        taken
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        let Some((index, block)) = class(layout) else {
            // SAFETY: the caller's.
            return unsafe { System.dealloc(ptr, layout) };
        };
        IN_USE.fetch_sub(block.size(), Relaxed);
        if WAITING.load(Relaxed) + block.size() > MOST.load(Relaxed) {
            // SAFETY: the block came from the system with this layout.
            return unsafe { System.dealloc(ptr, block) };
        }
        WAITING.fetch_add(block.size(), Relaxed);
        let mut first = FREE[index].lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the block is ours again, and larger than a word.
        unsafe { ptr.cast::<usize>().write(*first) };
        *first = ptr as usize;
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if class(layout).is_none() {
            // SAFETY: the caller's.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: the caller's; the block holds layout.size() bytes.
        unsafe {
            let taken = self.alloc(layout);
            if !taken.is_null() {
                taken.write_bytes(0, layout.size());
            }
            taken
        }
    }
}

/// Tells the system that huge pages suit the block: a miss of the address cache for each 2 MiB instead of each 4 KiB.
fn advise_huge(block: *mut u8, size: usize) {
    #[cfg(target_os = "linux")]
    if size >= HUGE {
        // SAFETY: advice about our own block, from a page's start on; whether the system heeds it changes no content.
        unsafe { libc::madvise(block.cast(), size - size % HUGE, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (block, size);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_their_requests_and_waste_an_eighth_at_the_most() {
        assert!(class(Layout::from_size_align(SMALLEST - 1, 8).unwrap()).is_none());
        let mut last = 0;
        for size in (SMALLEST..1 << 24).step_by(777) {
            let (index, block) = class(Layout::from_size_align(size, 8).unwrap()).unwrap();
            assert!(block.size() >= size && block.size() <= size + size / 8 + 1, "{size} in {}", block.size());
            assert!(index >= last);
            last = index;
            // Every request of a class gets the same block.
            assert_eq!(class(Layout::from_size_align(block.size(), 8).unwrap()).unwrap(), (index, block));
        }
    }

    #[test]
    fn a_freed_block_comes_back() {
        let layout = Layout::from_size_align(3 << 20, 64).unwrap();
        // SAFETY: blocks are freed with the layout they were asked for with, and written inside.
        unsafe {
            let first = KeepPages.alloc(layout);
            first.write_bytes(7, layout.size());
            // As much must have been in use as may wait.
            KeepPages.dealloc(first, layout);
            let second = KeepPages.alloc_zeroed(layout);
            assert_eq!(first, second);
            assert!((0..layout.size()).all(|i| *second.add(i) == 0));
            KeepPages.dealloc(second, layout);
        }
    }
}

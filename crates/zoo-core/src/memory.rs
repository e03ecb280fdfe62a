//! An allocator that keeps its pages.
//!
//! A step of training allocates the same large blocks again and again. An allocator that gives them back to the system
//! in between gets them page by page, zeroed, at the next use: with im2col's kernels cifar_resnet20 trained 178
//! images/s so, and 217 with an allocator that keeps them. A binary that computes with the zoo therefore chooses
//! [`CachingAllocator`]:
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: zoo_core::memory::CachingAllocator = zoo_core::memory::CachingAllocator;
//! ```
//!
//! Blocks below 64 KiB are the system allocator's. Larger ones are rounded up to a size class, an eighth of a power of
//! two apart, and a freed one waits in its class for the next use. Where none waits, one of up to twice the size is
//! lent: an epoch's last batch, smaller than the others, lives in their memory. What waits is bounded by what is in use
//! at the most, and a quarter of it: a step that needs two sizes at two times would else get pages anew each time, 7 %
//! of cifar_resnet20's in bf16.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// The allocator; see the [module](self).
#[derive(Debug, Clone, Copy, Default)]
pub struct CachingAllocator;

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
/// A request may be lent a block of this many classes above its own: up to twice the size.
const LENDING: usize = 8;
/// Blocks that were lent, with their own class: their layout does not tell it.
static BORROWED: Mutex<Borrowed> = Mutex::new(Borrowed { blocks: [(0, 0); 512], count: 0 });
/// `BORROWED`'s count, to be asked without its lock.
static LENT_COUNT: AtomicUsize = AtomicUsize::new(0);
/// Bytes of kept classes in use, the most that ever were, and bytes that wait.
static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static WAITING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether what this thread asks for is to stay.
    static LASTING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`, whose blocks are to stay for long: none is lent from a larger class, which would never come back to those
/// that it was made for. An optimizer makes its state so, when the first step's maps wait for the second's.
///
/// ```
/// let moments = zoo_core::memory::lasting(|| vec![0f32; 1 << 20]);
/// assert_eq!(moments.len(), 1 << 20);
/// ```
pub fn lasting<R>(f: impl FnOnce() -> R) -> R {
    /// Puts back what was, also when `f` panics.
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            LASTING.set(self.0);
        }
    }
    let _before = Before(LASTING.replace(true));
    f()
}

/// Class of a request, if it is one to keep.
fn class(layout: Layout) -> Option<usize> {
    let size = layout.size();
    if size < SMALLEST || layout.align() > ALIGN {
        return None;
    }
    // The power of two at or below, and the eighth of it, rounded up.
    let power = size.ilog2() as usize;
    let eighth = (size - (1 << power)).div_ceil(1 << (power - 3));
    let index = 8 * (power - SMALLEST.ilog2() as usize) + eighth;
    (index < CLASSES).then_some(index)
}

/// The block of a class.
fn block(index: usize) -> Layout {
    let power = index / 8 + SMALLEST.ilog2() as usize;
    let size = (1usize << power) + ((index % 8) << (power - 3));
    let align = if size >= HUGE { HUGE } else { ALIGN };
    // SAFETY: the alignment is a power of two, and the size, below 2⁴⁰ for every class, far from overflowing.
    unsafe { Layout::from_size_align_unchecked(size, align) }
}

struct Borrowed {
    /// Address and class of the first `count`.
    blocks: [(usize, usize); 512],
    count: usize,
}

impl Borrowed {
    /// Notes a block; false where there is no room.
    fn add(&mut self, address: usize, index: usize) -> bool {
        let has_room = self.count < self.blocks.len();
        if has_room {
            self.blocks[self.count] = (address, index);
            self.count += 1;
            LENT_COUNT.store(self.count, Relaxed);
        }
        has_room
    }

    /// The class of a block, which is lent no longer.
    fn remove(&mut self, address: usize) -> Option<usize> {
        let at = self.blocks[..self.count].iter().position(|lent| lent.0 == address)?;
        self.count -= 1;
        LENT_COUNT.store(self.count, Relaxed);
        let index = self.blocks[at].1;
        self.blocks[at] = self.blocks[self.count];
        Some(index)
    }
}

/// The first block that waits in a class.
fn take(index: usize) -> Option<*mut u8> {
    let mut first = FREE[index].lock().unwrap_or_else(PoisonError::into_inner);
    if *first == 0 {
        return None;
    }
    let taken = *first as *mut u8;
    // SAFETY: a free block holds the next one's address in its first word.
    *first = unsafe { taken.cast::<usize>().read() };
    WAITING.fetch_sub(block(index).size(), Relaxed);
    Some(taken)
}

/// Lets a block wait in its class.
///
/// # Safety
/// The block is of this class, and nobody's.
unsafe fn keep(index: usize, ptr: *mut u8) {
    WAITING.fetch_add(block(index).size(), Relaxed);
    let mut first = FREE[index].lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the caller's; a block is larger than a word.
    unsafe { ptr.cast::<usize>().write(*first) };
    *first = ptr as usize;
}

/// A waiting block of a larger class.
fn borrow(index: usize) -> Option<(usize, *mut u8)> {
    if LASTING.get() {
        return None;
    }
    for larger in index + 1..CLASSES.min(index + LENDING + 1) {
        if let Some(taken) = take(larger) {
            if BORROWED.lock().unwrap_or_else(PoisonError::into_inner).add(taken as usize, larger) {
                return Some((larger, taken));
            }
            // SAFETY: it was taken from this class just now.
            unsafe { keep(larger, taken) };
            return None;
        }
    }
    None
}

/// Counts a block that is handed out.
fn count(index: usize) {
    let size = block(index).size();
    PEAK.fetch_max(IN_USE.fetch_add(size, Relaxed) + size, Relaxed);
}

// SAFETY: a block handed out is either the system allocator's or a free one of its class or a larger one, which is as
// large and aligned as any request of the class asks for, and which the class's lock lets one caller take.
unsafe impl GlobalAlloc for CachingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(index) = class(layout) else {
            // SAFETY: the caller's.
            return unsafe { System.alloc(layout) };
        };
        if let Some((index, taken)) = take(index).map(|taken| (index, taken)).or_else(|| borrow(index)) {
            count(index);
            return taken;
        }
        let block = block(index);
        // SAFETY: the class's layout is not empty.
        let taken = unsafe { System.alloc(block) };
        if !taken.is_null() {
            count(index);
            advise_huge(taken, block.size());
        }
        taken
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        let Some(index) = class(layout) else {
            // SAFETY: the caller's.
            return unsafe { System.dealloc(ptr, layout) };
        };
        let mut index = index;
        // Who frees a block knows of its being lent: whatever handed it over from the thread that got it has ordered
        // the count.
        if LENT_COUNT.load(Relaxed) > 0 {
            let mut lent = BORROWED.lock().unwrap_or_else(PoisonError::into_inner);
            index = lent.remove(ptr as usize).unwrap_or(index);
        }
        let block = block(index);
        IN_USE.fetch_sub(block.size(), Relaxed);
        if WAITING.load(Relaxed) + block.size() > PEAK.load(Relaxed) / 4 * 5 {
            // SAFETY: the block came from the system with this layout.
            return unsafe { System.dealloc(ptr, block) };
        }
        // SAFETY: the block is ours again.
        unsafe { keep(index, ptr) };
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

/// Gives what waits for its next use back to the system, together with what the system's own allocator holds for
/// nobody. Between two works of one program, so that what the second takes at the most can be told from what the first
/// did.
///
/// ```
/// zoo_core::memory::give_back();
/// ```
pub fn give_back() {
    for index in 0..CLASSES {
        while let Some(taken) = take(index) {
            // SAFETY: the block waited in this class, so that it came from the system with this layout and is nobody's.
            unsafe { System.dealloc(taken, block(index)) };
        }
    }
    PEAK.store(IN_USE.load(Relaxed), Relaxed);
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
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

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 8).unwrap()
    }

    #[test]
    fn classes_hold_their_requests_and_waste_an_eighth_at_the_most() {
        assert!(class(layout(SMALLEST - 1)).is_none());
        let mut last = 0;
        for size in (SMALLEST..1 << 24).step_by(777) {
            let index = class(layout(size)).unwrap();
            let block = block(index);
            assert!(block.size() >= size && block.size() <= size + size / 8 + 1, "{size} in {}", block.size());
            assert!(index >= last);
            last = index;
            // Every request of a class gets the same block.
            assert_eq!(class(layout(block.size())), Some(index));
        }
    }

    /// Sizes that no other test asks for, so that nobody else takes the blocks.
    #[test]
    fn a_block_is_lent_to_smaller_requests_and_comes_back_to_its_class() {
        let (large, small) = (layout(900 << 20), layout(600 << 20));
        // SAFETY: blocks are freed with the layout they were asked for with, and never touched.
        unsafe {
            let first = CachingAllocator.alloc(large);
            CachingAllocator.dealloc(first, large);
            let lent = CachingAllocator.alloc(small);
            assert_eq!(lent, first);
            // While it is lent nobody else has it.
            let other = CachingAllocator.alloc(large);
            assert_ne!(other, first);
            CachingAllocator.dealloc(lent, small);
            // What is to stay gets a block of its own.
            let stays = lasting(|| CachingAllocator.alloc(small));
            assert_ne!(stays, first);
            CachingAllocator.dealloc(stays, small);
            assert_eq!(CachingAllocator.alloc(large), first);
            CachingAllocator.dealloc(first, large);
            CachingAllocator.dealloc(other, large);
            // Less than half of it is not worth it.
            let little = CachingAllocator.alloc(layout(300 << 20));
            assert!(little != first && little != other);
            CachingAllocator.dealloc(little, layout(300 << 20));
        }
    }

    #[test]
    fn a_freed_block_comes_back() {
        let layout = Layout::from_size_align(3 << 20, 64).unwrap();
        // SAFETY: blocks are freed with the layout they were asked for with, and written inside.
        unsafe {
            let first = CachingAllocator.alloc(layout);
            first.write_bytes(7, layout.size());
            // As much must have been in use as may wait.
            CachingAllocator.dealloc(first, layout);
            let second = CachingAllocator.alloc_zeroed(layout);
            assert_eq!(first, second);
            assert!((0..layout.size()).all(|i| *second.add(i) == 0));
            CachingAllocator.dealloc(second, layout);
        }
    }
}

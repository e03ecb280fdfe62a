//! Rows side by side, apart, and in another order: copies of 16-bit numbers.

use crate::kernels::buffer::{Shared, written};
use half::bf16;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Numbers that one task copies.
const TASK: usize = 1 << 14;

/// Copies n numbers. A call of the library's copy takes longer than a row of a few.
///
/// # Safety
/// n numbers behind both pointers, in places that do not overlap.
#[inline(always)]
unsafe fn copy_row(from: *const bf16, to: *mut bf16, n: usize) {
    const PIECE: usize = 8;
    // SAFETY: the caller's; the last piece reaches back to what was copied before.
    unsafe {
        if n > 32 * PIECE {
            std::ptr::copy_nonoverlapping(from, to, n);
        } else if n >= PIECE {
            let mut at = 0;
            while at < n {
                let start = at.min(n - PIECE);
                to.add(start).cast::<u128>().write_unaligned(from.add(start).cast::<u128>().read_unaligned());
                at += PIECE;
            }
        } else {
            for i in 0..n {
                *to.add(i) = *from.add(i);
            }
        }
    }
}

/// Rows of these numbers of several tensors side by side, on this thread: `count` rows of all of them from row `first`
/// on.
///
/// # Safety
/// The parts hold the rows, and `to` holds them side by side.
pub(crate) unsafe fn join_block(parts: &[(&[bf16], usize)], (first, count): (usize, usize), to: *mut bf16) {
    let wide: usize = parts.iter().map(|(_, width)| width).sum();
    let mut before = 0;
    for &(part, width) in parts {
        debug_assert!((first + count) * width <= part.len());
        // SAFETY: the caller's.
        unsafe {
            let (from, to) = (part.as_ptr().add(first * width), to.add(before));
            for row in 0..count {
                copy_row(from.add(row * width), to.add(row * wide), width);
            }
        }
        before += width;
    }
}

/// What stands side by side in rows, to the places of each part: the reverse of [`join_block`]. A part without a place
/// is left out.
///
/// # Safety
/// `from` holds the rows, and each place those from row `first` on, nobody else's.
pub(crate) unsafe fn split_block(
    from: *const bf16,
    parts: &[(Option<Shared<bf16>>, usize)],
    (first, count): (usize, usize),
) {
    let wide: usize = parts.iter().map(|(_, width)| width).sum();
    let mut before = 0;
    for &(to, width) in parts {
        if let Some(to) = to {
            // SAFETY: the caller's.
            unsafe {
                let (from, to) = (from.add(before), to.at(first * width));
                for row in 0..count {
                    copy_row(from.add(row * wide), to.add(row * width), width);
                }
            }
        }
        before += width;
    }
}

/// `count` rows of several tensors side by side, zeros of these numbers in front and behind.
pub(crate) fn join(count: usize, parts: &[&[bf16]], (below, above): (usize, usize)) -> Vec<bf16> {
    assert!(count > 0 && parts.iter().all(|part| part.len().is_multiple_of(count)));
    let widths = parts.iter().map(|part| part.len() / count);
    let zeros = [below, above].map(|n| vec![bf16::ZERO; n]);
    let held: usize = widths.clone().sum();
    let wide = below + held + above;
    let parts: Vec<(&[bf16], usize)> = parts.iter().copied().zip(widths).collect();
    let task = (TASK / wide.max(1)).max(1);
    let fill = |out: &mut [MaybeUninit<bf16>]| {
        out.par_chunks_mut(task * wide).enumerate().for_each(|(i, out)| {
            let (first, rows, to) = (i * task, out.len() / wide, out.as_mut_ptr().cast::<bf16>());
            // SAFETY: every part has `count` rows; the pieces side by side are a row of the output.
            unsafe {
                if below + above == 0 {
                    return join_block(&parts, (first, rows), to);
                }
                for row in 0..rows {
                    let to = to.add(row * wide);
                    copy_row(zeros[0].as_ptr(), to, below);
                    join_block(&parts, (first + row, 1), to.add(below));
                    copy_row(zeros[1].as_ptr(), to.add(below + held), above);
                }
            }
        });
    };
    // SAFETY: every row is written to its end.
    unsafe { written(count * wide, fill) }
}

/// Rows cut into pieces of these widths, each piece a tensor of its own; nothing for those that are not wanted.
pub(crate) fn split(rows: &[bf16], widths: &[usize], wanted: &[bool]) -> Vec<Option<Vec<bf16>>> {
    let wide: usize = widths.iter().sum();
    assert!(wide > 0 && rows.len().is_multiple_of(wide) && wanted.len() == widths.len());
    let count = rows.len() / wide;
    let make = |(&width, &wanted): (&usize, &bool)| wanted.then(|| Vec::with_capacity(count * width));
    let mut all: Vec<Option<Vec<bf16>>> = widths.iter().zip(wanted).map(make).collect();
    let places = all.iter_mut().map(|part| part.as_mut().map(Shared::from_spare));
    let places: Vec<(Option<Shared<bf16>>, usize)> = places.zip(widths.iter().copied()).collect();
    let task = (TASK / wide).max(1);
    rows.par_chunks(task * wide).enumerate().for_each(|(i, rows)| {
        // SAFETY: every part has room for its piece of all rows, and these rows are this task's.
        unsafe { split_block(rows.as_ptr(), &places, (i * task, rows.len() / wide)) }
    });
    for (part, &width) in all.iter_mut().zip(widths) {
        if let Some(part) = part {
            // SAFETY: all rows are written.
            unsafe { part.set_len(count * width) }
        }
    }
    all
}

/// Every row in another order: number i comes from number source\[i\].
pub(crate) fn arrange(rows: &[bf16], source: &[usize]) -> Vec<bf16> {
    let c = source.len();
    assert!(c > 0 && rows.len().is_multiple_of(c) && source.iter().all(|&i| i < c));
    let task = (TASK / c).max(1) * c;
    let fill = |out: &mut [MaybeUninit<bf16>]| {
        out.par_chunks_mut(task).zip(rows.par_chunks(task)).for_each(|(out, rows)| {
            for (out, row) in out.chunks_exact_mut(c).zip(rows.chunks_exact(c)) {
                for (out, &i) in out.iter_mut().zip(source) {
                    // SAFETY: every source lies in the row.
                    out.write(unsafe { *row.get_unchecked(i) });
                }
            }
        });
    };
    // SAFETY: every number of every row is written.
    unsafe { written(rows.len(), fill) }
}

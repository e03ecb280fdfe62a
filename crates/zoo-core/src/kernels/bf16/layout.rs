//! From f32 planes to bfloat16 rows of channels, and back.

use crate::kernels::buffer::written;
use half::bf16;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Numbers that one task converts.
const TASK: usize = 1 << 15;
/// Pixels whose channels are turned together: their rows stay in the first-level cache.
const PIXELS: usize = 64;

/// Rounds planes (images, channels, pixels) to bfloat16 rows (images, pixels, channels).
pub(crate) fn narrow(xs: &[f32], (channels, pixels): (usize, usize)) -> Vec<bf16> {
    turn(xs, (channels, pixels), bf16::from_f32)
}

/// Widens bfloat16 rows (images, pixels, channels) to planes (images, channels, pixels).
pub(crate) fn widen(xs: &[bf16], (channels, pixels): (usize, usize)) -> Vec<f32> {
    turn(xs, (pixels, channels), bf16::to_f32)
}

/// Planes of bfloat16 numbers as rows.
pub(crate) fn planes_to_rows(xs: &[bf16], (channels, pixels): (usize, usize)) -> Vec<bf16> {
    turn(xs, (channels, pixels), |x| x)
}

/// Rows of bfloat16 numbers as planes.
pub(crate) fn rows_to_planes(xs: &[bf16], (channels, pixels): (usize, usize)) -> Vec<bf16> {
    turn(xs, (pixels, channels), |x| x)
}

/// Matrices of `rows` by `columns`, each transposed, every number converted.
fn turn<A: Copy + Sync, B: Copy + Send + Sync>(
    xs: &[A],
    (rows, columns): (usize, usize),
    convert: impl Fn(A) -> B + Sync,
) -> Vec<B> {
    let each = rows * columns;
    assert!(each > 0 && xs.len().is_multiple_of(each), "{} numbers of {rows} x {columns}", xs.len());
    let fill = |out: &mut [MaybeUninit<B>]| {
        if rows == 1 || columns == 1 {
            let parts = out.par_chunks_mut(TASK).zip(xs.par_chunks(TASK));
            parts.for_each(|(out, xs)| out.iter_mut().zip(xs).for_each(|(to, &x)| _ = to.write(convert(x))));
            return;
        }
        let images = out.par_chunks_exact_mut(each).zip(xs.par_chunks_exact(each));
        images.with_min_len((TASK / each).max(1)).for_each(|(out, xs)| {
            for first in (0..columns).step_by(PIXELS) {
                let n = PIXELS.min(columns - first);
                for row in 0..rows {
                    for (i, &x) in xs[row * columns + first..][..n].iter().enumerate() {
                        out[(first + i) * rows + row].write(convert(x));
                    }
                }
            }
        });
    };
    // SAFETY: every row of every matrix is walked to its end.
    unsafe { written(xs.len(), fill) }
}

//! Sums along the rows and columns of a matrix, and numbers added to them.

use super::buffer::assume_init;
use super::simd::{Kernel, Real, Simd, dispatch};
use std::mem::MaybeUninit;

/// y = x + bias, where the bias is a row of the matrix, or a column if `column`.
struct Add<'a, T> {
    x: &'a [T],
    bias: &'a [T],
    cols: usize,
    column: bool,
    y: *mut T,
}

impl<T: Real> Kernel<T> for Add<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let Self { x, bias, cols, column, y } = self;
        let whole = cols - cols % V::LANES;
        for row in 0..x.len() / cols {
            // SAFETY: run by `dispatch`; x and y hold the rows, the bias `cols` elements or one a row.
            unsafe {
                let (x, y) = (x.as_ptr().add(row * cols), y.add(row * cols));
                let number = if column { V::splat(bias[row]) } else { V::zero() };
                for i in (0..whole).step_by(V::LANES) {
                    let number = if column { number } else { V::load(bias.as_ptr().add(i)) };
                    V::load(x.add(i)).add(number).store(y.add(i));
                }
                if whole < cols {
                    let rest = cols - whole;
                    let number = if column { number } else { V::load_first(bias.as_ptr().add(whole), rest) };
                    V::load_first(x.add(whole), rest).add(number).store_first(y.add(whole), rest);
                }
            }
        }
    }
}

/// Adds the sum of each column to `sums`, or of each row if `rows`.
struct Sums<'a, T> {
    x: &'a [T],
    rows: bool,
    sums: &'a mut [T],
}

impl<T: Real> Kernel<T> for Sums<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let Self { x, rows, sums } = self;
        let cols = if rows { x.len() / sums.len() } else { sums.len() };
        let whole = cols - cols % V::LANES;
        for row in 0..x.len() / cols {
            // SAFETY: run by `dispatch`; x holds the rows, `sums` one number a row or `cols`.
            unsafe {
                let (x, to) = (x.as_ptr().add(row * cols), sums.as_mut_ptr());
                let mut sum = V::zero();
                for i in (0..whole).step_by(V::LANES) {
                    let x = V::load(x.add(i));
                    if rows {
                        sum = sum.add(x);
                    } else {
                        V::load(to.add(i)).add(x).store(to.add(i));
                    }
                }
                if whole < cols {
                    let x = V::load_first(x.add(whole), cols - whole);
                    if rows {
                        sum = sum.add(x);
                    } else {
                        V::load_first(to.add(whole), cols - whole).add(x).store_first(to.add(whole), cols - whole);
                    }
                }
                if rows {
                    sums[row] += sum.sum();
                }
            }
        }
    }
}

/// y = x + `row` in each row.
pub(crate) fn add_row<'a, T: Real>(x: &[T], row: &[T], y: &'a mut [MaybeUninit<T>]) -> &'a mut [T] {
    assert!(x.len() == y.len() && x.len().is_multiple_of(row.len()));
    dispatch(Add { x, bias: row, cols: row.len(), column: false, y: y.as_mut_ptr().cast() });
    // SAFETY: the rows fill y.
    unsafe { assume_init(y) }
}

/// y = x + `column` in each column.
pub(crate) fn add_column<'a, T: Real>(x: &[T], column: &[T], y: &'a mut [MaybeUninit<T>]) -> &'a mut [T] {
    assert!(x.len() == y.len() && x.len().is_multiple_of(column.len()));
    let cols = x.len() / column.len();
    dispatch(Add { x, bias: column, cols, column: true, y: y.as_mut_ptr().cast() });
    // SAFETY: the rows fill y.
    unsafe { assume_init(y) }
}

/// Σ over the rows of each column, added to `sums`.
pub(crate) fn add_column_sums<T: Real>(x: &[T], sums: &mut [T]) {
    assert!(x.len().is_multiple_of(sums.len()));
    dispatch(Sums { x, rows: false, sums });
}

/// Σ over the columns of each row, added to `sums`.
pub(crate) fn add_row_sums<T: Real>(x: &[T], sums: &mut [T]) {
    assert!(x.len().is_multiple_of(sums.len()));
    dispatch(Sums { x, rows: true, sums });
}

//! Products of small matrices that a task holds in its scratch: those of a head of attention, of an image's tokens.
//!
//! Sums run over a whole number of steps of 32; what pads them is zero on both sides.

use super::sizes::NOWHERE;
use super::tiles::{BLOCK, Block, DEPTH, Product, SIDE};
use super::weight_grad::{From, paired, turned};
use crate::kernels::low_parts::LowParts;
use crate::kernels::math::gelu_for_bf16;
use crate::kernels::simd::Simd;
use half::bf16;

/// Numbers of a sum's whole steps.
pub(super) fn padded(k: usize) -> usize {
    k.next_multiple_of(DEPTH)
}

/// Numbers of a left side's room: rows in whole blocks.
pub(super) fn left_room(rows: usize, k: usize) -> usize {
    rows.next_multiple_of(BLOCK) * padded(k)
}

/// Numbers of a right side's room.
pub(super) fn right_room(k: usize, columns: usize) -> usize {
    columns.next_multiple_of(SIDE) * padded(k)
}

/// Where the steps of a sum over k begin.
pub(super) fn steps(k: usize) -> Vec<usize> {
    (0..k).step_by(DEPTH).collect()
}

/// k rows of a map as [`paired`] and [`turned`] want them, in whole steps.
pub(super) fn places(k: usize) -> Vec<u32> {
    (0..padded(k)).map(|i| if i < k { i as u32 } else { NOWHERE }).collect()
}

/// Rows of a matrix: the numbers that hold it, from a row to the next one, and where it begins.
pub(super) type Rows<'a> = (&'a [bf16], usize, usize);

/// The n columns of a right side: a matrix of as many rows as `places`.
///
/// # Safety
/// Below `dispatch`; `to` has [`right_room`].
#[inline(always)]
pub(super) unsafe fn right<V: Simd<Elem = f32>>((map, stride, first): Rows, n: usize, places: &[u32], to: *mut bf16) {
    for column in 0..n.div_ceil(SIDE) {
        let from: From = (map, stride, first + column * SIDE, SIDE.min(n - column * SIDE));
        // SAFETY: the caller's room.
        unsafe { paired::<V>(from, places, to.add(column * SIDE * places.len())) };
    }
}

/// The same of a matrix that lies transposed: n rows of k numbers.
///
/// # Safety
/// As [`right`].
#[inline(always)]
pub(super) unsafe fn right_transposed<V: Simd<Elem = f32>>(
    (map, stride, first): Rows,
    (k, n): (usize, usize),
    to: *mut bf16,
) {
    let mut square = Square([bf16::ZERO; SIDE * DEPTH]);
    for column in 0..n.div_ceil(SIDE) {
        let rows = SIDE.min(n - column * SIDE);
        for step in (0..k).step_by(DEPTH) {
            let width = DEPTH.min(k - step);
            if rows < SIDE || width < DEPTH {
                square.0.fill(bf16::ZERO);
            }
            for (row, to) in square.0.chunks_exact_mut(DEPTH).take(rows).enumerate() {
                let from = (column * SIDE + row) * stride + first + step;
                if width == DEPTH {
                    // Of known length: two moves.
                    to.copy_from_slice(&map[from..from + DEPTH]);
                } else {
                    to[..width].copy_from_slice(&map[from..from + width]);
                }
            }
            // SAFETY: sixteen rows of sixteen pairs are a square of 32-bit numbers, which are moved and not looked at.
            unsafe {
                let from = square.0.as_ptr().cast::<f32>();
                let to = to.add((column * padded(k) + step) * SIDE).cast::<f32>();
                for row in (0..SIDE).step_by(V::LANES) {
                    for pair in (0..SIDE).step_by(V::LANES) {
                        V::transpose(from.add(row * SIDE + pair), SIDE, to.add(pair * SIDE + row), SIDE);
                    }
                }
            }
        }
    }
}

#[repr(C, align(64))]
struct Square([bf16; SIDE * DEPTH]);

/// A left side: rows of k numbers, copied.
///
/// # Safety
/// `to` has [`left_room`].
#[inline(always)]
pub(super) unsafe fn left((map, stride, first): Rows, (rows, k): (usize, usize), to: *mut bf16) {
    let padded = padded(k);
    for row in 0..rows {
        let from = &map[row * stride + first..][..k];
        // SAFETY: the caller's room.
        unsafe {
            let to = to.add(row * padded);
            std::ptr::copy_nonoverlapping(from.as_ptr(), to, k);
            std::slice::from_raw_parts_mut(to.add(k), padded - k).fill(bf16::ZERO);
        }
    }
}

/// A left side that lies transposed: the columns of a matrix of as many rows as `places`.
///
/// # Safety
/// Below `dispatch`; `to` has [`left_room`].
#[inline(always)]
pub(super) unsafe fn left_transposed<V: Simd<Elem = f32>>(
    (map, stride, first): Rows,
    columns: usize,
    places: &[u32],
    to: *mut bf16,
) {
    for tile in 0..columns.div_ceil(SIDE) {
        let from: From = (map, stride, first + tile * SIDE, SIDE.min(columns - tile * SIDE));
        // SAFETY: the caller's room.
        unsafe { turned::<V>(from, places, (to.add(tile * SIDE * places.len()), places.len())) };
    }
}

/// A matrix that is added to a product, rows a stride apart, and the low parts: its own lies as it does, the sum's as
/// the target.
#[derive(Clone, Copy)]
pub(super) struct Skip {
    pub from: *const bf16,
    pub stride: usize,
    pub low: LowParts<bf16>,
}

/// Where a product goes: to rows a stride apart.
#[derive(Clone, Copy)]
pub(super) enum To {
    Wide(*mut f32, usize),
    /// Onto what is there.
    Onto(*mut f32, usize),
    /// Rounded.
    Narrow(*mut bf16, usize),
    /// Rounded, a number for each row added, and a matrix.
    Row(*mut bf16, usize, *const f32, Option<Skip>),
    /// GELU of the same sums.
    GeluOfRow(*mut bf16, usize, *const f32),
    /// Rounded, a number for each column added, and a matrix.
    Column(*mut bf16, usize, *const f32, Option<Skip>),
    /// GELU of the same sums.
    GeluOfColumn(*mut bf16, usize, *const f32),
}

/// left · right, of `m` rows and `n` columns.
///
/// # Safety
/// Below `dispatch` at `level`, whose tiles are configured for steps of 32; the sides are those of this file for the sum
/// that `product` has the steps of, and the target has room.
#[inline(always)]
pub(super) unsafe fn multiply<V: Simd<Elem = f32>>(
    product: &Product,
    (left, right): (*const bf16, *const bf16),
    (m, n): (usize, usize),
    to: To,
) {
    let (mut sums, column) = (Block::new(), product.column());
    for first in (0..n).step_by(BLOCK) {
        let width = BLOCK.min(n - first);
        for row in (0..m).step_by(BLOCK) {
            // SAFETY: the caller's sides and target.
            unsafe {
                let b = right.add(first / SIDE * column);
                let b = (b, (width > SIDE).then(|| b.add(column)));
                let a = left.add(row * product.stride);
                product.multiply::<V>([a, a.add(SIDE * product.stride)], b, &mut sums);
                put::<V>(&sums, (row, first), (BLOCK.min(m - row), width), to);
            }
        }
    }
}

#[inline(always)]
unsafe fn put<V: Simd<Elem = f32>>(sums: &Block, (row, column): (usize, usize), (rows, width): (usize, usize), to: To) {
    for i in 0..rows {
        for lane in (0..width).step_by(V::LANES) {
            let n = V::LANES.min(width - lane);
            // SAFETY: the target has the product's rows and columns.
            unsafe {
                let x = V::load(sums.0.as_ptr().add(i * BLOCK + lane));
                let at = |stride: usize| (row + i) * stride + column + lane;
                match to {
                    To::Wide(to, stride) => x.store_first(to.add(at(stride)), n),
                    To::Onto(to, stride) => {
                        let to = to.add(at(stride));
                        V::load_first(to, n).add(x).store_first(to, n);
                    }
                    To::Narrow(to, stride) => narrow(x, to.add(at(stride)), n),
                    To::Row(to, stride, add, skip) => {
                        let x = x.add(V::splat(*add.add(row + i)));
                        store(x, (to, at(stride)), skip.map(|skip| (skip, at(skip.stride))), n);
                    }
                    To::GeluOfRow(to, stride, add) => {
                        narrow(gelu_for_bf16(x.add(V::splat(*add.add(row + i)))), to.add(at(stride)), n);
                    }
                    To::GeluOfColumn(to, stride, add) => {
                        let x = x.add(V::load_first(add.add(column + lane), n));
                        narrow(gelu_for_bf16(x), to.add(at(stride)), n);
                    }
                    To::Column(to, stride, add, skip) => {
                        let x = x.add(V::load_first(add.add(column + lane), n));
                        store(x, (to, at(stride)), skip.map(|skip| (skip, at(skip.stride))), n);
                    }
                }
            }
        }
    }
}

/// Rounds and stores n lanes of sums, a matrix's added.
#[inline(always)]
unsafe fn store<V: Simd<Elem = f32>>(x: V, (to, at): (*mut bf16, usize), skip: Option<(Skip, usize)>, n: usize) {
    // SAFETY: the caller's.
    unsafe {
        let Some((skip, skip_at)) = skip else { return narrow(x, to.add(at), n) };
        let (from, low) = (skip.from.add(skip_at), skip.low.offset(skip_at, at));
        let x = x.add(if n == V::LANES { V::load_bf16(from) } else { V::load_first_bf16(from, n) });
        low.store(low.add(x, n), to.add(at), n);
    }
}

#[inline(always)]
unsafe fn narrow<V: Simd<Elem = f32>>(x: V, to: *mut bf16, n: usize) {
    // SAFETY: the caller's.
    unsafe { if n == V::LANES { x.store_bf16(to) } else { x.store_first_bf16(to, n) } }
}

/// A scratch that is cut into rooms, each on a cache line's boundary.
pub(super) struct Rooms {
    at: *mut f32,
}

impl Rooms {
    /// Of a scratch that begins on such a boundary.
    pub fn new(at: *mut f32) -> Self {
        Self { at }
    }

    /// 32-bit numbers of a scratch with rooms of so many 32-bit and 16-bit numbers.
    pub fn len(wide: &[usize], narrow: &[usize]) -> usize {
        let wide = wide.iter().map(|n| n.next_multiple_of(16));
        wide.chain(narrow.iter().map(|n| n.next_multiple_of(32) / 2)).sum()
    }

    /// # Safety
    /// The scratch was made with this room.
    pub unsafe fn wide(&mut self, n: usize) -> *mut f32 {
        let room = self.at;
        // SAFETY: the caller's.
        self.at = unsafe { room.add(n.next_multiple_of(16)) };
        room
    }

    /// # Safety
    /// As [`wide`](Self::wide).
    pub unsafe fn narrow(&mut self, n: usize) -> *mut bf16 {
        let room = self.at;
        // SAFETY: the caller's.
        self.at = unsafe { room.add(n.next_multiple_of(32) / 2) };
        room.cast()
    }
}

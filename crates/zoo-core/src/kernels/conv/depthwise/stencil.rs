//! One plane of a depthwise convolution: the 3x3 layers by columns of one vector's width, everything else tap by tap.

use super::Plane;
use crate::kernels::simd::Simd;
use candle_core::WithDType;
use std::ops::Range;

/// The lanes whose column `first + lane` lies in `0..w`.
#[inline(always)]
pub(super) fn inside<V: Simd>(first: isize, w: usize) -> u32 {
    let lanes = V::LANES as isize;
    let (start, end) = ((-first).clamp(0, lanes), (w as isize - first).clamp(0, lanes));
    ((1u32 << end) - 1) & !((1u32 << start) - 1)
}

/// The lanes whose output `first + lane` lies in `range`.
#[inline(always)]
pub(super) fn within<V: Simd>(first: usize, range: &Range<usize>) -> u32 {
    let start = range.start.saturating_sub(first).min(V::LANES);
    let end = range.end.saturating_sub(first).min(V::LANES);
    ((1u32 << end) - 1) & !((1u32 << start) - 1)
}

/// Stores `n` lanes, on top of what is there if `add`.
///
/// # Safety
/// Below `dispatch`; `to` holds n elements.
#[inline(always)]
unsafe fn put<V: Simd>(v: V, to: *mut V::Elem, n: usize, add: bool) {
    // SAFETY: the caller's.
    unsafe {
        let v = if add { v.add(V::load_first(to, n)) } else { v };
        v.store_first(to, n);
    }
}

/// taps · (left, middle, right) + start.
///
/// # Safety
/// Below `dispatch`.
#[inline(always)]
unsafe fn three<V: Simd>(taps: &[V], row: (V, V, V), start: V) -> V {
    // SAFETY: the caller's.
    unsafe { row.2.mul_add(taps[2], row.1.mul_add(taps[1], row.0.mul_add(taps[0], start))) }
}

/// The three neighbours of one vector of columns, for every row of a plane.
#[derive(Clone, Copy)]
pub(super) struct Neighbours {
    first: isize,
    lanes: [u32; 3],
}

impl Neighbours {
    #[inline(always)]
    pub fn new<V: Simd>(column: usize, w: usize) -> Self {
        let first = column as isize;
        // Lanes that hold no column read nothing, so that whatever is behind the row cannot reach a sum.
        let held = inside::<V>(first, w);
        Self { first, lanes: [-1, 0, 1].map(|shift| inside::<V>(first + shift, w) & held) }
    }

    /// # Safety
    /// Below `dispatch`; `row` holds the w elements.
    #[inline(always)]
    pub unsafe fn load<V: Simd>(&self, row: *const V::Elem) -> (V, V, V) {
        let at = row.wrapping_offset(self.first);
        // SAFETY: the lanes lie inside the row.
        unsafe {
            (
                V::load_where(at.wrapping_sub(1), self.lanes[0]),
                V::load_where(at, self.lanes[1]),
                V::load_where(at.wrapping_add(1), self.lanes[2]),
            )
        }
    }
}

/// The same at stride 2: columns 2o - 1, 2o and 2o + 1 for a vector of outputs o.
#[derive(Clone, Copy)]
pub(super) struct Neighbours2 {
    first: isize,
    lanes: [u32; 4],
}

impl Neighbours2 {
    #[inline(always)]
    pub fn new<V: Simd>(output: usize, w: usize) -> Self {
        let (first, lanes) = (2 * output as isize, V::LANES as isize);
        Self { first, lanes: [-1, lanes - 1, 1, lanes + 1].map(|shift| inside::<V>(first + shift, w)) }
    }

    /// # Safety
    /// Below `dispatch`; `row` holds the w elements.
    #[inline(always)]
    pub unsafe fn load<V: Simd>(&self, row: *const V::Elem) -> (V, V, V) {
        let at = row.wrapping_offset(self.first);
        // SAFETY: the lanes lie inside the row.
        unsafe {
            let a = V::load_where(at.wrapping_sub(1), self.lanes[0]);
            let b = V::load_where(at.wrapping_add(V::LANES - 1), self.lanes[1]);
            let c = V::load_where(at.wrapping_add(1), self.lanes[2]);
            let d = V::load_where(at.wrapping_add(V::LANES + 1), self.lanes[3]);
            let (left, middle) = a.deinterleave(b);
            (left, middle, c.deinterleave(d).0)
        }
    }
}

/// One plane of a 3x3 layer of stride 1.
///
/// # Safety
/// Below `dispatch`; both planes hold h·w elements.
#[inline(always)]
pub(super) unsafe fn plane_three<V: Simd>(
    (h, w): (usize, usize),
    x: *const V::Elem,
    k: &[V; 9],
    bias: V,
    y: *mut V::Elem,
    add: bool,
) {
    // SAFETY: rows lie in 0..h, columns are cut at w.
    unsafe {
        for column in (0..w).step_by(V::LANES) {
            let (at, n) = (Neighbours::new::<V>(column, w), V::LANES.min(w - column));
            let (x, y) = (x, y.add(column));
            let row = at.load::<V>(x);
            // What the output rows at and below the current input row have got so far.
            let mut here = three(&k[3..6], row, bias);
            let mut below = three(&k[0..3], row, bias);
            for r in 1..h {
                let row = at.load::<V>(x.add(r * w));
                put(three(&k[6..9], row, V::zero()).add(here), y.add((r - 1) * w), n, add);
                here = three(&k[3..6], row, V::zero()).add(below);
                below = three(&k[0..3], row, bias);
            }
            put(here, y.add((h - 1) * w), n, add);
        }
    }
}

/// One plane of a 3x3 layer of stride 2.
///
/// # Safety
/// Below `dispatch`; the planes hold their elements.
#[inline(always)]
pub(super) unsafe fn plane_three_by_two<V: Simd>(
    p: &Plane,
    x: *const V::Elem,
    k: &[V; 9],
    bias: V,
    y: *mut V::Elem,
    add: bool,
) {
    let ((h, w), (oh, ow)) = (p.input, p.output);
    // SAFETY: rows lie in 0..h and 0..oh, columns are cut at w and ow.
    unsafe {
        for column in (0..ow).step_by(V::LANES) {
            let (at, n) = (Neighbours2::new::<V>(column, w), V::LANES.min(ow - column));
            let y = y.add(column);
            let mut here = bias;
            for o in 0..oh {
                let even = three(&k[3..6], at.load::<V>(x.add(2 * o * w)), here);
                if 2 * o + 1 < h {
                    let odd = at.load::<V>(x.add((2 * o + 1) * w));
                    put(three(&k[6..9], odd, V::zero()).add(even), y.add(o * ow), n, add);
                    here = three(&k[0..3], odd, bias);
                } else {
                    put(even, y.add(o * ow), n, add);
                }
            }
        }
    }
}

/// Spreads outputs and their right neighbours over the even and odd columns of a row, on top of `start`: even columns
/// see one output, odd ones see it and the next.
///
/// # Safety
/// Below `dispatch`.
#[inline(always)]
unsafe fn spread<V: Simd>(k: &[V], (here, next): (V, V), (even, odd): (V, V)) -> (V, V) {
    // SAFETY: the caller's.
    unsafe { (here.mul_add(k[1], even), next.mul_add(k[2], here.mul_add(k[0], odd))) }
}

/// Stores the first `n` columns of a row from its even and odd ones.
///
/// # Safety
/// Below `dispatch`; `to` holds n elements.
#[inline(always)]
unsafe fn put_interleaved<V: Simd>((even, odd): (V, V), to: *mut V::Elem, n: usize, add: bool) {
    // SAFETY: the caller's.
    unsafe {
        let (a, b) = even.interleave(odd);
        put(a, to, n.min(V::LANES), add);
        if n > V::LANES {
            put(b, to.add(V::LANES), (n - V::LANES).min(V::LANES), add);
        }
    }
}

/// One plane of the input gradient of a 3x3 layer of stride 2; `k` is the flipped kernel.
///
/// # Safety
/// Below `dispatch`; the planes hold their elements.
#[inline(always)]
pub(super) unsafe fn plane_three_by_two_back<V: Simd>(
    p: &Plane,
    dy: *const V::Elem,
    k: &[V; 9],
    dx: *mut V::Elem,
    add: bool,
) {
    let ((oh, ow), (h, w)) = (p.input, p.output);
    // SAFETY: rows lie in 0..h and 0..oh, columns are cut at w and ow.
    unsafe {
        let nothing = (V::zero(), V::zero());
        for column in (0..ow).step_by(V::LANES) {
            let (at, right) = (inside::<V>(column as isize, ow), inside::<V>(column as isize + 1, ow));
            let (dy, dx, n) = (dy.add(column), dx.add(2 * column), w - 2 * column);
            let mut here = (V::load_where(dy, at), V::load_where(dy.wrapping_add(1), right));
            for o in 0..oh {
                put_interleaved(spread(&k[3..6], here, nothing), dx.add(2 * o * w), n, add);
                let mut below = nothing;
                if o + 1 < oh {
                    let dy = dy.add((o + 1) * ow);
                    below = (V::load_where(dy, at), V::load_where(dy.wrapping_add(1), right));
                }
                if 2 * o + 1 < h {
                    let sum = spread(&k[6..9], below, spread(&k[0..3], here, nothing));
                    put_interleaved(sum, dx.add((2 * o + 1) * w), n, add);
                }
                here = below;
            }
        }
    }
}

/// The elements of a row at `first`, `first + stride`, … for the lanes that are set, zeros elsewhere.
///
/// # Safety
/// Below `dispatch`; the row holds the elements of the lanes that are set.
#[inline(always)]
pub(super) unsafe fn load_strided<V: Simd>(row: *const V::Elem, first: isize, stride: usize, lanes: u32) -> V {
    let at = row.wrapping_offset(first);
    // SAFETY: the caller's.
    unsafe {
        if stride == 1 {
            return V::load_where(at, lanes);
        }
        let mut out = [V::Elem::from_f64(0.0); 16];
        for (lane, out) in out.iter_mut().enumerate().take(V::LANES) {
            if lanes >> lane & 1 == 1 {
                *out = *at.wrapping_add(lane * stride);
            }
        }
        V::load(out.as_ptr())
    }
}

/// One plane of any layer, tap by tap.
///
/// # Safety
/// Below `dispatch`; the planes hold their elements, `columns` are the plane's.
#[inline(always)]
pub(super) unsafe fn plane_taps<V: Simd>(
    p: &Plane,
    columns: &[(Range<usize>, isize)],
    x: *const V::Elem,
    taps: &[V::Elem],
    bias: V,
    y: *mut V::Elem,
    add: bool,
) {
    let (oh, ow) = p.output;
    for row in 0..oh {
        for column in (0..ow).step_by(V::LANES) {
            // SAFETY: rows and columns lie inside the planes, or are left out.
            unsafe {
                let mut total = bias;
                for (tap, taps) in taps.chunks_exact(p.kernel.1).enumerate() {
                    let Some(input_row) = p.input_row(row, tap) else { continue };
                    for (&tap, (reach, offset)) in taps.iter().zip(columns) {
                        let lanes = within::<V>(column, reach);
                        let first = (column * p.stride.1) as isize + offset;
                        let x = load_strided::<V>(x.add(input_row * p.input.1), first, p.stride.1, lanes);
                        total = x.mul_add(V::splat(tap), total);
                    }
                }
                put(total, y.add(row * ow + column), V::LANES.min(ow - column), add);
            }
        }
    }
}

//! 3x3 windows: R rows of outputs at once, along the columns of the input. Each column is loaded once and goes into the
//! three columns of outputs that see it, which are sums in registers beside the nine taps.

use super::finish::Stats;
use super::{Piece, Place, Windows};
use crate::kernels::simd::Simd;
use half::bf16;

/// Rows of the input that several rows of outputs see, at the most.
const ROWS: usize = 6;

/// The input rows of R rows of outputs at a stride.
pub(super) struct Rows {
    from: [*const bf16; ROWS],
    /// Bit r: row r lies in the image.
    there: u32,
}

impl Rows {
    /// # Safety
    /// The image lies in the map at `xs`.
    #[inline(always)]
    pub unsafe fn new(w: &Windows, xs: *const bf16, to: Place, stride: usize, count: usize) -> Self {
        let first = (to.row * stride) as isize - w.padding.0;
        let mut rows = Self { from: [xs; ROWS], there: 0 };
        for (r, from) in rows.from.iter_mut().enumerate().take(count) {
            let y = first + r as isize;
            if (0..w.input.0 as isize).contains(&y) {
                rows.there |= 1 << r;
                // SAFETY: row y of the image.
                *from = unsafe { xs.add((to.image * w.input.0 + y as usize) * w.input.1 * w.c + to.channel) };
            }
        }
        rows
    }

    /// Column `offset / c` of row r, if the row is there.
    ///
    /// # Safety
    /// Below `dispatch`; the column lies in the image.
    #[inline(always)]
    pub unsafe fn load<V: Simd>(&self, r: usize, offset: usize) -> Option<V> {
        // SAFETY: the caller's.
        (self.there & (1 << r) != 0).then(|| unsafe { V::load_bf16(self.from[r].add(offset)) })
    }
}

/// Position i of a row that begins `padding` pixels before the image: the column, if it lies in it.
#[inline(always)]
pub(super) fn column_at(i: usize, padding: isize, width: usize) -> Option<usize> {
    let column = i as isize - padding;
    (0..width as isize).contains(&column).then_some(column as usize)
}

/// # Safety
/// Below `dispatch`; nine rows of c channels, a vector from `channel` on.
#[inline(always)]
unsafe fn load_taps<V: Simd<Elem = f32>>(p: &Piece, channel: usize, is_turned: bool) -> [[V; 3]; 3] {
    let c = p.windows.c;
    // SAFETY: the caller's.
    unsafe {
        let mut taps = [[V::zero(); 3]; 3];
        for (i, tap) in taps.as_flattened_mut().iter_mut().enumerate() {
            let row = if is_turned { 8 - i } else { i };
            *tap = V::load(p.taps.as_ptr().add(row * c + channel));
        }
        taps
    }
}

/// # Safety
/// As [`load_taps`].
#[inline(always)]
unsafe fn load_shift<V: Simd<Elem = f32>>(p: &Piece, channel: usize) -> V {
    // SAFETY: the caller's.
    unsafe { p.shift.map_or(V::zero(), |shift| V::load(shift.as_ptr().add(channel))) }
}

/// sums\[kx\] += tap (·, kx) · one column of the input, for the kx that are wanted.
///
/// # Safety
/// Below `dispatch`; the column lies in the image.
#[inline(always)]
unsafe fn column<V: Simd, const R: usize, const S: usize>(
    rows: &Rows,
    offset: usize,
    taps: &[[V; 3]; 3],
    sums: &mut [[V; R]; 3],
    wanted: [bool; 3],
) {
    for r in 0..(R - 1) * S + 3 {
        // SAFETY: the caller's.
        unsafe {
            let Some(x) = rows.load::<V>(r, offset) else { continue };
            for q in 0..R {
                if r >= q * S && r - q * S < 3 {
                    for kx in 0..3 {
                        if wanted[kx] {
                            sums[kx][q] = x.mul_add(taps[r - q * S][kx], sums[kx][q]);
                        }
                    }
                }
            }
        }
    }
}

/// Stores a column of R outputs.
///
/// # Safety
/// Below `dispatch`; the outputs lie in the piece.
#[inline(always)]
unsafe fn put<V: Simd<Elem = f32>, const R: usize>(
    p: &Piece,
    to: Place,
    column: usize,
    sums: [V; R],
    stats: &mut Stats<V>,
) {
    let w = p.windows;
    for (q, sum) in sums.into_iter().enumerate() {
        let at = ((to.image * w.output.0 + to.row + q) * w.output.1 + column) * w.c + to.channel;
        // SAFETY: the caller's.
        unsafe { p.finish.put::<V, true>(sum, at, V::LANES, stats) };
    }
}

/// R rows of outputs at stride 1.
///
/// # Safety
/// Below `dispatch`; the rows lie in the piece, with a vector of channels from the place on.
#[inline(always)]
pub(super) unsafe fn by_one<V: Simd<Elem = f32>, const R: usize>(p: &Piece, to: Place, stats: &mut Stats<V>) {
    let w = p.windows;
    // SAFETY: columns are cut at the image's edges.
    unsafe {
        let rows = Rows::new(w, p.xs.as_ptr(), to, 1, R + 2);
        let (taps, shift) = (load_taps::<V>(p, to.channel, w.is_turned), load_shift::<V>(p, to.channel));
        let mut stats_here = *stats;
        // Those of the outputs i, i - 1 and i - 2, of which those that do not exist are never stored.
        let mut sums = [[shift; R]; 3];
        for i in 0..w.output.1 + 2 {
            if let Some(at) = column_at(i, w.padding.1, w.input.1) {
                column::<V, R, 1>(&rows, at * w.c, &taps, &mut sums, [true; 3]);
            }
            if i >= 2 {
                put(p, to, i - 2, sums[2], &mut stats_here);
            }
            sums = [[shift; R], sums[0], sums[1]];
        }
        *stats = stats_here;
    }
}

/// R rows of outputs at stride 2.
///
/// # Safety
/// As [`by_one`].
#[inline(always)]
pub(super) unsafe fn by_two<V: Simd<Elem = f32>, const R: usize>(p: &Piece, to: Place, stats: &mut Stats<V>) {
    let w = p.windows;
    // SAFETY: columns are cut at the image's edges.
    unsafe {
        let rows = Rows::new(w, p.xs.as_ptr(), to, 2, 2 * R + 1);
        let (taps, shift) = (load_taps::<V>(p, to.channel, false), load_shift::<V>(p, to.channel));
        let mut stats_here = *stats;
        let mut before = [shift; R];
        for j in 0..=w.output.1 {
            // The column that output j begins with and output j - 1 ends with.
            let mut sums = [[shift; R], [shift; R], before];
            if let Some(at) = column_at(2 * j, w.padding.1, w.input.1) {
                column::<V, R, 2>(&rows, at * w.c, &taps, &mut sums, [true, false, true]);
            }
            if j > 0 {
                put(p, to, j - 1, sums[2], &mut stats_here);
            }
            sums[1] = sums[0];
            if let Some(at) = column_at(2 * j + 1, w.padding.1, w.input.1) {
                column::<V, R, 2>(&rows, at * w.c, &taps, &mut sums, [false, true, false]);
            }
            before = sums[1];
        }
        *stats = stats_here;
    }
}

/// One or two rows of the gradient of the input at stride 2. Row o of the output's gradient reaches the rows 2o, 2o + 1
/// and 2o + 2 from the padding's edge on; so the pair of rows 2m and 2m + 1 sees rows m and m - 1, and columns alike.
///
/// # Safety
/// As [`by_one`]; two rows begin with the first of a pair.
#[inline(always)]
pub(super) unsafe fn by_two_back<V: Simd<Elem = f32>>(p: &Piece, to: Place, count: usize) {
    let w = p.windows;
    let padding = (w.padding.0 as usize, w.padding.1 as usize);
    let (pair, is_second) = ((to.row + padding.0) / 2, (to.row + padding.0) % 2 == 1);
    // SAFETY: rows and columns are cut at the edges of both maps.
    unsafe {
        let mut stats = Stats::<V>::new();
        let taps = load_taps::<V>(p, to.channel, false);
        // Rows m and m - 1.
        let rows = [Some(pair), pair.checked_sub(1)].map(|row| {
            let row = row.filter(|row| *row < w.input.0)?;
            Some(p.xs.as_ptr().add((to.image * w.input.0 + row) * w.input.1 * w.c + to.channel))
        });
        let mut before = [V::zero(); 2];
        for j in 0..(w.output.1 + padding.1).div_ceil(2) {
            // [row][column] of the pairs.
            let mut sums = [[V::zero(); 2]; 2];
            for r in 0..2 {
                let Some(row) = rows[r] else { continue };
                // Row m is the first and the second tap of the pair's rows, row m - 1 the third of the first.
                if j > 0 && j <= w.input.1 {
                    sums[0][0] = before[r].mul_add(taps[2 * r][2], sums[0][0]);
                    if r == 0 {
                        sums[1][0] = before[r].mul_add(taps[1][2], sums[1][0]);
                    }
                }
                if j < w.input.1 {
                    let x = V::load_bf16(row.add(j * w.c));
                    for i in 0..2 {
                        sums[0][i] = x.mul_add(taps[2 * r][i], sums[0][i]);
                        if r == 0 {
                            sums[1][i] = x.mul_add(taps[1][i], sums[1][i]);
                        }
                    }
                    before[r] = x;
                }
            }
            let [first, next] = sums;
            for (i, (first, next)) in first.into_iter().zip(next).enumerate() {
                let Some(column) = column_at(2 * j + i, w.padding.1, w.output.1) else { continue };
                let at = ((to.image * w.output.0 + to.row) * w.output.1 + column) * w.c + to.channel;
                p.finish.put::<V, true>(if is_second { next } else { first }, at, V::LANES, &mut stats);
                if count == 2 {
                    p.finish.put::<V, true>(next, at + w.output.1 * w.c, V::LANES, &mut stats);
                }
            }
        }
    }
}

//! The input of a direct convolution's tile, packed: in rows that every tap reads as vectors, or unfolded.

use super::geometry::valid_outputs;
use super::tile::Tile;
use crate::kernels::blocking::LINE;
use crate::kernels::simd::{Real, Simd};
use std::ops::Range;

impl<T: Real> Tile<'_, T> {
    /// Packs all that the tile reads.
    ///
    /// # Safety
    /// Below `dispatch`; the scratch is as large as the tiling says.
    #[inline(always)]
    pub unsafe fn pack_input<V: Simd<Elem = T>>(&self) {
        // SAFETY: the caller's.
        unsafe {
            if self.tiling.is_unfolded {
                return self.unfold();
            }
            for (slot, image) in self.images.clone().enumerate() {
                for channel in 0..self.conv.channels {
                    self.pack::<V>(slot, image, channel);
                }
            }
        }
    }

    /// Where the input plane starts.
    fn plane(&self, image: usize, channel: usize) -> usize {
        let conv = self.conv;
        ((image * conv.groups + self.group) * conv.channels + channel) * conv.plane.0 * conv.plane.1
    }

    /// Copies one channel of one image: each horizontal tap's shifted rows.
    #[inline(always)]
    unsafe fn pack<V: Simd<Elem = T>>(&self, slot: usize, image: usize, channel: usize) {
        let (conv, tiling) = (self.conv, self.tiling);
        let start = self.plane(image, channel);
        let width = conv.out.1;
        if let Some(pitch) = tiling.pitch {
            // SAFETY: the same.
            return unsafe { self.pack_once::<V>(start, pitch, slot * tiling.image + channel * tiling.channel) };
        }
        // SAFETY: the scratch holds `tiling.images` images of `tiling.image` elements and four vectors more; the source
        // is read inside the input alone, which every branch checks for itself.
        unsafe {
            let mut to = self.scratch.add(slot * tiling.image + channel * tiling.channel);
            for &col in &conv.cols {
                let reach = valid_outputs(width, conv.plane.1, conv.stride.1, col);
                for remainder in 0..conv.stride.0 {
                    let first = (self.rows.start * conv.stride.0 + remainder) as isize + tiling.first_row;
                    let rows = tiling.remainder_rows[remainder];
                    if conv.stride == (1, 1) && width == conv.plane.1 {
                        self.pack_block::<V>(start, first, rows, col, &reach, to);
                    } else {
                        for step in 0..rows {
                            let row = first + (step * conv.stride.0) as isize;
                            self.pack_row::<V>(start, row, col, &reach, to.add(step * width));
                        }
                    }
                    to = to.add(rows * width);
                }
            }
        }
    }

    /// Copies a channel's rows, `pitch` apart, with zeros before, between and behind them.
    #[inline(always)]
    unsafe fn pack_once<V: Simd<Elem = T>>(&self, start: usize, pitch: usize, to: usize) {
        let (h, w) = self.conv.plane;
        let first = self.rows.start as isize + self.tiling.first_row;
        // SAFETY: a channel has room for `LINE` elements and its rows of `pitch`; w and `LINE` are whole vectors.
        unsafe {
            let zeros = |to: *mut T, count: usize| {
                for i in (0..count).step_by(V::LANES) {
                    V::zero().store(to.add(i));
                }
            };
            let mut to = self.scratch.add(to);
            zeros(to, LINE);
            to = to.add(LINE);
            for step in 0..self.tiling.remainder_rows[0] {
                let row = first + step as isize;
                if row < 0 || row >= h as isize {
                    zeros(to, pitch);
                } else {
                    let from = self.operands.input[start + row as usize * w..][..w].as_ptr();
                    for x in (0..w).step_by(V::LANES) {
                        V::load(from.add(x)).store(to.add(x));
                    }
                    zeros(to.add(w), LINE);
                }
                to = to.add(pitch);
            }
        }
    }

    /// Rows as wide as the input's, one behind the other there as here: one run of memory, and zeros where the shift
    /// has brought the neighbouring row's pixels.
    #[inline(always)]
    unsafe fn pack_block<V: Simd<Elem = T>>(
        &self,
        start: usize,
        first: isize,
        rows: usize,
        col: isize,
        reach: &Range<usize>,
        to: *mut T,
    ) {
        let (h, w) = self.conv.plane;
        let above = (-first).clamp(0, rows as isize) as usize;
        let end = (h as isize - first).clamp(above as isize, rows as isize) as usize;
        // SAFETY: as in `pack`; whole vectors are written in the order of their addresses, so what runs over the end is
        // overwritten by what comes next, or lies in the slack.
        unsafe {
            let zeros = |from: usize, until: usize| {
                for i in (from * w..until * w).step_by(V::LANES) {
                    V::zero().store(to.add(i));
                }
            };
            zeros(0, above);
            let from = start as isize + (first + above as isize) * w as isize + col;
            let count = (end - above) * w;
            if from >= 0 && from as usize + count.next_multiple_of(V::LANES) <= self.operands.input.len() {
                let from = self.operands.input.as_ptr().add(from as usize);
                let to = to.add(above * w);
                for i in (0..count).step_by(V::LANES) {
                    V::load(from.add(i)).store(to.add(i));
                }
                for row in 0..end - above {
                    for x in 0..reach.start {
                        *to.add(row * w + x) = T::zero();
                    }
                    for x in reach.end..w {
                        *to.add(row * w + x) = T::zero();
                    }
                }
            } else {
                for row in above..end {
                    self.pack_row::<V>(start, first + row as isize, col, reach, to.add(row * w));
                }
            }
            zeros(end, rows);
        }
    }

    #[inline(always)]
    unsafe fn pack_row<V: Simd<Elem = T>>(
        &self,
        start: usize,
        row: isize,
        col: isize,
        reach: &Range<usize>,
        to: *mut T,
    ) {
        let (stride, width, (h, w)) = (self.conv.stride.1, self.conv.out.1, self.conv.plane);
        // SAFETY: as in `pack_block`.
        unsafe {
            if row < 0 || row >= h as isize || reach.is_empty() {
                for x in (0..width).step_by(V::LANES) {
                    V::zero().store(to.add(x));
                }
                return;
            }
            let from = (start + row as usize * w) as isize + col;
            let vectors = stride * width.next_multiple_of(V::LANES);
            if stride <= 2 && from >= 0 && from as usize + vectors <= self.operands.input.len() {
                let from = self.operands.input.as_ptr().add(from as usize);
                for x in (0..width).step_by(V::LANES) {
                    if stride == 1 {
                        V::load(from.add(x)).store(to.add(x));
                    } else {
                        let (a, b) = (V::load(from.add(2 * x)), V::load(from.add(2 * x + V::LANES)));
                        a.deinterleave(b).0.store(to.add(x));
                    }
                }
            } else {
                for x in reach.clone() {
                    *to.add(x) = *self.operands.input.get_unchecked((from + (x * stride) as isize) as usize);
                }
            }
            for x in (0..reach.start).chain(reach.end..width) {
                *to.add(x) = T::zero();
            }
        }
    }

    /// Unfolds small planes: factor by factor, the pixels of all images side by side.
    unsafe fn unfold(&self) {
        let (conv, tiling) = (self.conv, self.tiling);
        let pixels = conv.out.0 * conv.out.1;
        // The input pixel of each tap and output pixel.
        let mut sources: Vec<Option<usize>> = Vec::with_capacity(conv.taps() * pixels);
        for (&row, &col) in conv.rows.iter().flat_map(|row| conv.cols.iter().map(move |col| (row, col))) {
            for (y, x) in (0..conv.out.0).flat_map(|y| (0..conv.out.1).map(move |x| (y, x))) {
                let (y, x) = ((y * conv.stride.0) as isize + row, (x * conv.stride.1) as isize + col);
                let is_inside = y >= 0 && x >= 0 && (y as usize) < conv.plane.0 && (x as usize) < conv.plane.1;
                sources.push(is_inside.then(|| y as usize * conv.plane.1 + x as usize));
            }
        }
        for channel in 0..conv.channels {
            for tap in 0..conv.taps() {
                let sources = &sources[tap * pixels..][..pixels];
                // SAFETY: factor k has its row of images · pixels elements, rounded up, in the scratch.
                let row = unsafe { self.scratch.add(tiling.offsets[channel * conv.taps() + tap] as usize) };
                for (slot, image) in self.images.clone().enumerate() {
                    let plane = &self.operands.input[self.plane(image, channel)..][..conv.plane.0 * conv.plane.1];
                    for (pixel, source) in sources.iter().enumerate() {
                        let value = source.map_or(T::zero(), |source| plane[source]);
                        // SAFETY: as above.
                        unsafe { *row.add(slot * pixels + pixel) = value };
                    }
                }
            }
        }
    }
}

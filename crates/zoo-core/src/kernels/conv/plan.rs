//! The plan of a direct convolution as plain integers: which sum it is, how it is cut into tiles, where operands lie.

use super::geometry::Geometry;
use crate::kernels::blocking::{CONV_IMAGES, CONV_INPUT, LINE, odd_lines};
use crate::kernels::microkernel::RegisterTile;

/// out\[n, o, y, x\] = Σ over c and taps of w\[o, c, tap\] · in\[n, c, y·stride + row(tap), x·stride + col(tap)\] for
/// each group, 0 where the input ends.
pub(super) struct DirectConv {
    pub images: usize,
    pub groups: usize,
    /// Input channels of a group.
    pub channels: usize,
    /// Height and width of an input plane.
    pub plane: (usize, usize),
    /// Offsets of the taps: the kernel has `rows.len()` rows of `cols.len()` taps.
    pub rows: Vec<isize>,
    pub cols: Vec<isize>,
    pub stride: (usize, usize),
    /// Output channels of a group.
    pub out_channels: usize,
    /// Rows and columns of outputs.
    pub out: (usize, usize),
    /// Height and width of the plane that outputs are written to, from `out_start` on, `out_stride` apart.
    pub out_plane: (usize, usize),
    pub out_start: (usize, usize),
    pub out_stride: (usize, usize),
}

impl DirectConv {
    /// The forward pass of a convolution.
    pub fn forward(g: &Geometry) -> Self {
        let p = g.params;
        let offset = |tap: usize, dilation: usize, padding: usize| (tap * dilation) as isize - padding as isize;
        Self {
            images: g.b,
            groups: p.groups,
            channels: g.group_in(),
            plane: (g.h, g.w),
            rows: (0..g.kh).map(|t| offset(t, p.dilation.0, p.padding.0)).collect(),
            cols: (0..g.kw).map(|t| offset(t, p.dilation.1, p.padding.1)).collect(),
            stride: p.stride,
            out_channels: g.group_out(),
            out: (g.oh, g.ow),
            out_plane: (g.oh, g.ow),
            out_start: (0, 0),
            out_stride: (1, 1),
        }
    }

    /// The input gradient at the pixels `start`, `start + stride`, …, as a convolution of the output's gradient, with
    /// the row and the column in the kernel of each of its taps. `None` where the input has no such pixel.
    pub fn input_grad(g: &Geometry, start: (usize, usize)) -> Option<(Self, Vec<usize>, Vec<usize>)> {
        let p = g.params;
        // Pixel start + stride·i meets tap t where the output i + (start + padding - t·dilation) / stride exists, a
        // whole number.
        let taps = |start: usize, k: usize, stride: usize, padding: usize, dilation: usize| {
            let shift = |t: usize| (start + padding) as isize - (t * dilation) as isize;
            let met = (0..k).filter(|&t| shift(t) % stride as isize == 0);
            met.map(|t| (t, shift(t) / stride as isize)).unzip::<usize, isize, Vec<_>, Vec<_>>()
        };
        let (kernel_rows, rows) = taps(start.0, g.kh, p.stride.0, p.padding.0, p.dilation.0);
        let (kernel_cols, cols) = taps(start.1, g.kw, p.stride.1, p.padding.1, p.dilation.1);
        let out = (g.h.saturating_sub(start.0).div_ceil(p.stride.0), g.w.saturating_sub(start.1).div_ceil(p.stride.1));
        let conv = Self {
            images: g.b,
            groups: p.groups,
            channels: g.group_out(),
            plane: (g.oh, g.ow),
            rows,
            cols,
            stride: (1, 1),
            out_channels: g.group_in(),
            out,
            out_plane: (g.h, g.w),
            out_start: start,
            out_stride: p.stride,
        };
        (out.0 > 0 && out.1 > 0).then_some((conv, kernel_rows, kernel_cols))
    }

    /// The same outputs in tiles of 2x2 pixels, each of which reads four rows and columns: a tile is an output here.
    pub fn in_tiles_of_two(&self) -> Self {
        let four = |taps: &[isize]| {
            let first = taps.iter().copied().min().unwrap_or(0);
            (0..4).map(|i| first + i).collect::<Vec<_>>()
        };
        Self {
            rows: four(&self.rows),
            cols: four(&self.cols),
            stride: (2, 2),
            out: (self.out.0.div_ceil(2), self.out.1.div_ceil(2)),
            ..*self
        }
    }

    pub fn taps(&self) -> usize {
        self.rows.len() * self.cols.len()
    }

    /// Factors of one output.
    pub fn depth(&self) -> usize {
        self.channels * self.taps()
    }

    /// Elements of the input, and of the tensor that outputs are written to.
    pub fn elements(&self) -> (usize, usize) {
        let planes = self.images * self.groups;
        (
            planes * self.channels * self.plane.0 * self.plane.1,
            planes * self.out_channels * self.out_plane.0 * self.out_plane.1,
        )
    }

    /// Whether outputs are consecutive where they are written.
    fn is_dense(&self) -> bool {
        self.out_stride == (1, 1) && self.out_start == (0, 0) && self.out == self.out_plane
    }

    /// Rows between the first and the last that one output needs.
    fn span(&self) -> usize {
        let (first, last) = (self.rows.iter().min(), self.rows.iter().max());
        first.zip(last).map_or(0, |(&first, &last)| (last - first) as usize)
    }

    /// Whether every vector of outputs reads consecutive inputs of a single row, for any tap: the rows need no shifted
    /// copies then, only zeros between them.
    fn shares_rows(&self, lanes: usize) -> bool {
        let least = self.cols.iter().copied().min().unwrap_or(0);
        let most = self.cols.iter().copied().max().unwrap_or(0) + self.out.1 as isize - self.plane.1 as isize;
        let is_whole = self.out.1.is_multiple_of(lanes) && self.plane.1.is_multiple_of(lanes);
        let (margin, taps) = (LINE as isize, self.cols.len());
        is_whole && self.stride == (1, 1) && taps > 1 && least >= -margin && most <= margin
    }

    /// Packed rows of one remainder modulo the vertical stride, for a tile of `rows` outputs.
    fn remainder_rows(&self, remainder: usize, rows: usize) -> usize {
        let first = self.rows.iter().copied().min().unwrap_or(0);
        let steps = self.rows.iter().map(|&row| (row - first) as usize);
        let of_it = steps.filter(|step| step % self.stride.0 == remainder);
        of_it.map(|step| step / self.stride.0 + rows).max().unwrap_or(0)
    }
}

/// The tiles of a [`DirectConv`], each a task, and the layout of a tile's packed input.
pub(super) struct Tiling {
    /// Images of a tile: more than one only if it takes whole images.
    pub images: usize,
    /// Output rows of a tile.
    pub rows: usize,
    /// Parts of the output channels.
    pub parts: usize,
    /// Row-blocks of weights in a part.
    pub blocks: usize,
    /// Whether a factor's pixels of several images stand side by side, as im2col's.
    pub is_unfolded: bool,
    /// Whether the sums are stored where they belong, not staged and scattered.
    pub is_direct: bool,
    /// Elements from a packed row to the next, of which the last `LINE` are zeros, where one copy of the input serves
    /// all horizontal taps.
    pub pitch: Option<usize>,
    /// Packed elements of one channel, of one image (all of them if unfolded).
    pub channel: usize,
    pub image: usize,
    /// Packed position of each factor's input for output 0.
    pub offsets: Vec<u32>,
    /// Input row of the topmost tap of output row 0, and the packed rows of each remainder modulo the vertical stride.
    pub first_row: isize,
    pub remainder_rows: Vec<usize>,
    /// All vectors of output pixels of a tile.
    pub vectors: Vec<PixelVector>,
}

/// A vector of output pixels in its tile.
#[derive(Clone, Copy)]
pub(super) struct PixelVector {
    /// The packed image that it is of, and its first pixel there.
    pub image: usize,
    pub pixel: usize,
    /// Packed position of its inputs, and position of its outputs behind the first of a channel.
    pub from: usize,
    pub to: usize,
}

impl Tiling {
    /// For elements of `size` bytes and so many threads.
    pub fn new(
        conv: &DirectConv,
        RegisterTile { lanes, rows: row_block, .. }: RegisterTile,
        size: usize,
        threads: usize,
    ) -> Self {
        let pixels = conv.out.0 * conv.out.1;
        let budget = CONV_INPUT / size;
        let all_blocks = conv.out_channels.div_ceil(row_block);
        let is_unfolded = pixels < lanes;
        let pitch = (!is_unfolded && conv.shares_rows(lanes)).then_some(conv.plane.1 + LINE);
        let (images, rows) = if is_unfolded {
            let room = budget / (conv.depth() * pixels).max(1);
            // Enough pixels to hide the traffic of the weights, and a task for each thread.
            (
                room.clamp(1, 256).min(conv.images.div_ceil(threads)).max(lanes.div_ceil(pixels)).min(conv.images),
                conv.out.0,
            )
        } else {
            let per_row = conv.channels * pitch.unwrap_or(conv.cols.len().max(1) * conv.out.1);
            let room = (budget / per_row.max(1)).saturating_sub(conv.span() / conv.stride.0 + conv.stride.0).max(1);
            if room < conv.out.0 || conv.images < 2 * threads {
                // Bands of equal height, two vectors of pixels at the least; enough of them for all threads.
                let bands = conv.out.0.div_ceil(room).max((2 * threads).div_ceil(conv.images * conv.groups));
                let least = (2 * lanes).div_ceil(conv.out.1).min(conv.out.0);
                (1, conv.out.0.div_ceil(bands).max(least))
            } else {
                let fair = conv.images.div_ceil(4 * threads);
                let image = per_row * (conv.out.0 + conv.span()) * size;
                let images = (CONV_IMAGES / image.max(1)).clamp(1, 16).min(fair);
                // Vectors go in pairs.
                (if images > 1 { images & !1 } else { 1 }, conv.out.0)
            }
        };
        let tasks = conv.images.div_ceil(images) * conv.out.0.div_ceil(rows) * conv.groups;
        let parts = if tasks >= 2 * threads { 1 } else { (2 * threads).div_ceil(tasks).min(all_blocks) };
        let blocks = all_blocks.div_ceil(parts);

        // Rows of the input by their remainder modulo the stride: those of one remainder stand one behind the other.
        let first_row = conv.rows.iter().copied().min().unwrap_or(0);
        let relative = |row: isize| (row - first_row) as usize;
        let remainder_rows: Vec<usize> = (0..conv.stride.0).map(|r| conv.remainder_rows(r, rows)).collect();
        let (mut starts, mut packed_rows) = (vec![0; conv.stride.0], 0);
        for (start, rows) in starts.iter_mut().zip(&remainder_rows) {
            *start = packed_rows;
            packed_rows += rows;
        }
        let row_starts: Vec<usize> = conv
            .rows
            .iter()
            .map(|&row| starts[relative(row) % conv.stride.0] + relative(row) / conv.stride.0)
            .collect();
        let (channel, image, offsets);
        if is_unfolded {
            let width = odd_lines(images * pixels);
            channel = conv.taps() * width;
            image = conv.depth() * width;
            offsets = (0..conv.depth()).map(|k| (k * width) as u32).collect();
        } else {
            channel = match pitch {
                Some(pitch) => odd_lines(LINE + packed_rows * pitch),
                None => odd_lines(conv.cols.len() * packed_rows * conv.out.1),
            };
            image = conv.channels * channel;
            offsets = (0..conv.depth())
                .map(|k| {
                    let (c, tap) = (k / conv.taps(), k % conv.taps());
                    let (row, col) = (row_starts[tap / conv.cols.len()], tap % conv.cols.len());
                    let within = match pitch {
                        Some(pitch) => (LINE + row * pitch).strict_add_signed(conv.cols[col]),
                        None => (col * packed_rows + row) * conv.out.1,
                    };
                    (c * channel + within) as u32
                })
                .collect();
        }
        let (packed_images, pixels) = if is_unfolded { (1, images * pixels) } else { (images, rows * conv.out.1) };
        let vectors = (0..packed_images).flat_map(|at| (0..pixels).step_by(lanes).map(move |pixel| (at, pixel)));
        let vector = |(at, pixel): (usize, usize)| {
            let packed = pitch.map_or(pixel, |pitch| pixel / conv.out.1 * pitch + pixel % conv.out.1);
            let whole = at * conv.groups * conv.out_channels * conv.out.0 * conv.out.1;
            PixelVector { image: at, pixel, from: at * image + packed, to: whole + pixel }
        };
        let vectors = vectors.map(vector).collect();
        let is_direct = conv.is_dense() && !is_unfolded;
        Self {
            images,
            rows,
            parts,
            blocks,
            is_unfolded,
            is_direct,
            pitch,
            channel,
            image,
            offsets,
            first_row,
            remainder_rows,
            vectors,
        }
    }

    /// Elements of a tile's packed input, with the vectors that run over its end.
    pub fn packed(&self, lanes: usize) -> usize {
        (if self.is_unfolded { self.image } else { self.images * self.image }) + 4 * lanes
    }
}

#[cfg(test)]
mod tests {
    use super::super::Conv2dParams;
    use super::*;
    use crate::kernels::simd::Level;

    /// What the tiles read stays inside their scratch, for any thread count, width of vectors and kind of layout; and
    /// there is a case for each layout.
    #[test]
    fn every_vector_reads_inside_the_packed_input() {
        // b, channels (in, out), height, width, kernel, stride, padding, dilation
        let cases = [
            [8, 16, 16, 32, 32, 3, 1, 1, 1],
            [2, 3, 64, 224, 224, 7, 2, 3, 1],
            [1, 300, 9, 64, 64, 5, 1, 2, 1],
            [9, 4, 8, 3, 3, 3, 1, 1, 1],
            [4, 24, 20, 17, 13, 1, 2, 0, 1],
            [3, 5, 7, 19, 21, 3, 3, 2, 2],
        ];
        let (mut pitched, mut unfolded, mut staged) = (0, 0, 0);
        for [b, c_in, c_out, h, w, k, stride, padding, dilation] in cases {
            let pair = |n| (n, n);
            let (stride, padding, dilation) = (pair(stride), pair(padding), pair(dilation));
            let params = Conv2dParams { stride, padding, dilation, groups: 1 };
            let g = Geometry::new(&[b, c_in, h, w], &[c_out, c_in, k, k], params).unwrap();
            let backward =
                (0..stride.0).filter_map(|start| DirectConv::input_grad(&g, pair(start)).map(|(conv, ..)| conv));
            for conv in backward.chain([DirectConv::forward(&g)]) {
                for (lanes, rows) in [(16, 8), (8, 4), (4, 4)] {
                    let shape = RegisterTile { level: Level::Portable, rows, lanes };
                    for threads in [1, 2, 7, 64] {
                        let tiling = Tiling::new(&conv, shape, 4, threads);
                        let reach = tiling.offsets.iter().max().map_or(0, |&offset| offset as usize) + lanes;
                        let last = tiling.vectors.iter().map(|v| v.from + reach).max().unwrap();
                        assert!(last <= tiling.packed(lanes), "{last} of {}", tiling.packed(lanes));
                        let pixels = tiling.images * tiling.rows * conv.out.1;
                        assert!(tiling.vectors.len() * lanes >= pixels, "a vector for every pixel");
                        assert!(tiling.parts * tiling.blocks * rows >= conv.out_channels, "a block for every channel");
                        pitched += usize::from(tiling.pitch.is_some());
                        unfolded += usize::from(tiling.is_unfolded);
                        staged += usize::from(!tiling.is_direct);
                    }
                }
            }
        }
        assert!(pitched > 0 && unfolded > 0 && staged > unfolded, "{pitched} {unfolded} {staged}");
    }
}

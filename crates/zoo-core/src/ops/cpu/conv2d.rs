//! Convolution on the host: unfold each image (im2col) and multiply; depthwise layers run direct loops.
//!
//! Layouts are row-major: images (b, c, h, w), weights (c_out, c_in / groups, kh, kw).

use super::gemm::{Mat, gemm, threads_inside};
use super::{depthwise, sum};
use crate::ops::conv2d::Geometry;
use crate::ops::{Real, valid_outputs};
use rayon::prelude::*;
use std::ops::Range;

/// One tap of the kernel: which outputs it reaches, and where it reads for each.
struct Tap {
    rows: Range<usize>,
    cols: Range<usize>,
    /// Input row of output row `o` is `o·stride + row_offset`; the same for columns.
    row_offset: isize,
    col_offset: isize,
}

impl Geometry {
    fn taps(&self) -> impl Iterator<Item = Tap> {
        let p = self.params;
        (0..self.kh * self.kw).map(move |i| {
            let row_offset = (i / self.kw * p.dilation.0) as isize - p.padding.0 as isize;
            let col_offset = (i % self.kw * p.dilation.1) as isize - p.padding.1 as isize;
            Tap {
                rows: valid_outputs(self.oh, self.h, p.stride.0, row_offset),
                cols: valid_outputs(self.ow, self.w, p.stride.1, col_offset),
                row_offset,
                col_offset,
            }
        })
    }

    /// Length of one unfolded column: the taps of all channels of a group.
    fn depth(&self) -> usize {
        self.group_in() * self.kh * self.kw
    }

    /// One input channel a group: no sum over channels, so a matrix product would be all overhead.
    fn is_depthwise(&self) -> bool {
        self.group_in() == 1 && self.params.groups > 1
    }

    /// A 1x1 kernel that visits every pixel once: the image is its own unfolding.
    fn is_pointwise(&self) -> bool {
        let p = self.params;
        (self.kh, self.kw, p.stride, p.padding) == (1, 1, (1, 1), (0, 0))
    }

    fn input_image(&self) -> usize {
        self.c_in * self.input_plane()
    }

    fn output_image(&self) -> usize {
        self.c_out * self.output_plane()
    }
}

impl Tap {
    /// Writes 0 to the outputs of one plane that the tap does not reach.
    fn zero_outside<T: Real>(&self, g: &Geometry, outputs: &mut [T]) {
        if self.cols.is_empty() {
            return outputs.fill(T::zero());
        }
        outputs[..self.rows.start * g.ow].fill(T::zero());
        outputs[self.rows.end * g.ow..].fill(T::zero());
        for row in outputs[self.rows.start * g.ow..self.rows.end * g.ow].chunks_exact_mut(g.ow) {
            row[..self.cols.start].fill(T::zero());
            row[self.cols.end..].fill(T::zero());
        }
    }

    /// Calls `f(output start, input start, count)` for each output row that the tap reaches. Outputs step by 1, inputs by
    /// the horizontal stride.
    #[inline(always)]
    fn for_rows(&self, g: &Geometry, mut f: impl FnMut(usize, usize, usize)) {
        if self.cols.is_empty() {
            return;
        }
        let stride = g.params.stride;
        // `valid_outputs` makes both sums non-negative.
        let first_col = ((self.cols.start * stride.1) as isize + self.col_offset) as usize;
        for row in self.rows.clone() {
            let input_row = ((row * stride.0) as isize + self.row_offset) as usize;
            f(row * g.ow + self.cols.start, input_row * g.w + first_col, self.cols.len());
        }
    }
}

/// Unfolds one group of one image: `columns[(c, tap), output pixel]` = the input under that tap, 0 outside.
fn unfold<T: Real>(g: &Geometry, image: &[T], columns: &mut [T]) {
    let stride = g.params.stride.1;
    let planes = image.chunks_exact(g.input_plane());
    for (plane, rows) in planes.zip(columns.chunks_exact_mut(g.kh * g.kw * g.output_plane())) {
        for (tap, row) in g.taps().zip(rows.chunks_exact_mut(g.output_plane())) {
            tap.zero_outside(g, row);
            tap.for_rows(g, |out, inp, n| {
                if stride == 1 {
                    row[out..out + n].copy_from_slice(&plane[inp..inp + n]);
                } else {
                    let input = plane[inp..].iter().step_by(stride);
                    row[out..out + n].iter_mut().zip(input).for_each(|(o, &i)| *o = i);
                }
            });
        }
    }
}

/// The adjoint of [`unfold`]: adds every column entry to the pixel that it was read from.
fn fold<T: Real>(g: &Geometry, columns: &[T], image: &mut [T]) {
    let planes = image.chunks_exact_mut(g.input_plane());
    for (plane, rows) in planes.zip(columns.chunks_exact(g.kh * g.kw * g.output_plane())) {
        for (tap, row) in g.taps().zip(rows.chunks_exact(g.output_plane())) {
            add_tap(g, &tap, T::one(), row, plane);
        }
    }
}

/// plane\[input of the tap\] += scale · row\[output\].
fn add_tap<T: Real>(g: &Geometry, tap: &Tap, scale: T, row: &[T], plane: &mut [T]) {
    let stride = g.params.stride.1;
    tap.for_rows(g, |out, inp, n| {
        let row = &row[out..out + n];
        if stride == 1 {
            plane[inp..inp + n].iter_mut().zip(row).for_each(|(i, &o)| *i += scale * o);
        } else {
            plane[inp..].iter_mut().step_by(stride).zip(row).for_each(|(i, &o)| *i += scale * o);
        }
    });
}

pub(crate) fn forward<T: Real>(g: &Geometry, xs: &[T], weight: &[T], bias: Option<&[T]>) -> Vec<T> {
    if g.is_depthwise() {
        return depthwise::forward(g, xs, weight, bias);
    }
    let mut ys = vec![T::zero(); g.b * g.output_image()];
    if let Some(bias) = bias {
        let planes = ys.par_chunks_exact_mut(g.output_plane());
        planes.enumerate().for_each(|(i, plane)| plane.fill(bias[i % g.c_out]));
    }
    let (depth, plane, group_out) = (g.depth(), g.output_plane(), g.group_out());
    let images = ys.par_chunks_exact_mut(g.output_image()).zip(xs.par_chunks_exact(g.input_image()));
    images.for_each_init(Vec::new, |columns, (y, x)| {
        let groups = y.chunks_exact_mut(group_out * plane).zip(x.chunks_exact(g.group_in() * g.input_plane()));
        for ((y, x), w) in groups.zip(weight.chunks_exact(group_out * depth)) {
            let columns = unfolded(g, x, columns);
            let (w, columns) = (Mat::rows(w, depth), Mat::rows(columns, plane));
            gemm((group_out, plane, depth), y, bias.is_some(), w, columns, threads_inside(g.b));
        }
    });
    ys
}

/// The unfolded image: itself for a 1x1 layer, otherwise written into `scratch`.
fn unfolded<'a, T: Real>(g: &Geometry, image: &'a [T], scratch: &'a mut Vec<T>) -> &'a [T] {
    if g.is_pointwise() {
        return image;
    }
    scratch.resize(g.depth() * g.output_plane(), T::zero());
    unfold(g, image, scratch);
    scratch
}

pub(crate) fn input_grad<T: Real>(g: &Geometry, grad: &[T], weight: &[T]) -> Vec<T> {
    if g.is_depthwise() {
        return depthwise::input_grad(g, grad, weight);
    }
    let mut dx = vec![T::zero(); g.b * g.input_image()];
    let (depth, plane, group_out) = (g.depth(), g.output_plane(), g.group_out());
    let images = dx.par_chunks_exact_mut(g.input_image()).zip(grad.par_chunks_exact(g.output_image()));
    images.for_each_init(Vec::new, |columns, (dx, dy)| {
        let groups = dx.chunks_exact_mut(g.group_in() * g.input_plane()).zip(dy.chunks_exact(group_out * plane));
        for ((dx, dy), w) in groups.zip(weight.chunks_exact(group_out * depth)) {
            let (w, dy) = (Mat::transposed(w, depth), Mat::rows(dy, plane));
            let shape = (depth, plane, group_out);
            if g.is_pointwise() {
                gemm(shape, dx, false, w, dy, threads_inside(g.b));
            } else {
                columns.resize(depth * plane, T::zero());
                gemm(shape, columns, false, w, dy, threads_inside(g.b));
                fold(g, columns, dx);
            }
        }
    });
    dx
}

pub(crate) fn weight_grad<T: Real>(g: &Geometry, xs: &[T], grad: &[T]) -> Vec<T> {
    if g.is_depthwise() {
        return depthwise::weight_grad(g, xs, grad);
    }
    let (depth, plane, group_out) = (g.depth(), g.output_plane(), g.group_out());
    let elements = g.c_out * depth;
    // Each part sums its own share of the images. The number of parts depends on the shape alone, so the order of the sum,
    // and with it every bit, is the same for any number of threads. 32 MiB of partial sums at the most.
    let parts = ((4 << 20) / elements).clamp(4, 32).min(g.b);
    let images_a_part = g.b.div_ceil(parts);
    let partial: Vec<Vec<T>> = xs
        .par_chunks(images_a_part * g.input_image())
        .zip(grad.par_chunks(images_a_part * g.output_image()))
        .map_init(Vec::new, |columns, (xs, grad)| {
            let mut dw = vec![T::zero(); elements];
            for (x, dy) in xs.chunks_exact(g.input_image()).zip(grad.chunks_exact(g.output_image())) {
                let groups = x.chunks_exact(g.group_in() * g.input_plane()).zip(dy.chunks_exact(group_out * plane));
                for ((x, dy), dw) in groups.zip(dw.chunks_exact_mut(group_out * depth)) {
                    let columns = unfolded(g, x, columns);
                    let (dy, columns) = (Mat::rows(dy, plane), Mat::transposed(columns, plane));
                    gemm((group_out, depth, plane), dw, true, dy, columns, threads_inside(parts));
                }
            }
            dw
        })
        .collect();
    add_up(partial)
}

/// Σ over equal-length parts, in their order.
fn add_up<T: Real>(parts: Vec<Vec<T>>) -> Vec<T> {
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_default();
    for part in parts {
        total.iter_mut().zip(&part).for_each(|(t, &p)| *t += p);
    }
    total
}

pub(crate) fn bias_grad<T: Real>(g: &Geometry, grad: &[T]) -> Vec<T> {
    let plane = g.output_plane();
    (0..g.c_out)
        .into_par_iter()
        .map(|c| {
            let planes = (0..g.b).map(|n| &grad[(n * g.c_out + c) * plane..][..plane]);
            planes.fold(T::zero(), |total, plane| total + sum(plane))
        })
        .collect()
}

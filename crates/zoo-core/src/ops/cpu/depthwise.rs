//! Depthwise convolution on the host: direct loops, tap by tap.

use super::dot;
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
}

impl Tap {
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
    let mut ys = vec![T::zero(); g.b * g.output_image()];
    if let Some(bias) = bias {
        let planes = ys.par_chunks_exact_mut(g.output_plane());
        planes.enumerate().for_each(|(i, plane)| plane.fill(bias[i % g.c_out]));
    }
    let (plane_in, multiplier, stride) = (g.input_plane(), g.group_out(), g.params.stride.1);
    ys.par_chunks_exact_mut(g.output_plane()).enumerate().for_each(|(i, y)| {
        let (n, c_out) = (i / g.c_out, i % g.c_out);
        let x = &xs[(n * g.c_in + c_out / multiplier) * plane_in..][..plane_in];
        let taps = &weight[c_out * g.kh * g.kw..][..g.kh * g.kw];
        for (tap, &w) in g.taps().zip(taps) {
            tap.for_rows(g, |out, inp, n| {
                let y = &mut y[out..out + n];
                if stride == 1 {
                    y.iter_mut().zip(&x[inp..inp + n]).for_each(|(y, &x)| *y += w * x);
                } else {
                    y.iter_mut().zip(x[inp..].iter().step_by(stride)).for_each(|(y, &x)| *y += w * x);
                }
            });
        }
    });
    ys
}

pub(crate) fn input_grad<T: Real>(g: &Geometry, grad: &[T], weight: &[T]) -> Vec<T> {
    let mut dx = vec![T::zero(); g.b * g.input_image()];
    let (plane_out, multiplier, taps) = (g.output_plane(), g.group_out(), g.kh * g.kw);
    dx.par_chunks_exact_mut(g.input_plane()).enumerate().for_each(|(i, dx)| {
        let (n, c_in) = (i / g.c_in, i % g.c_in);
        for c_out in c_in * multiplier..(c_in + 1) * multiplier {
            let dy = &grad[(n * g.c_out + c_out) * plane_out..][..plane_out];
            for (tap, &w) in g.taps().zip(&weight[c_out * taps..][..taps]) {
                add_tap(g, &tap, w, dy, dx);
            }
        }
    });
    dx
}

pub(crate) fn weight_grad<T: Real>(g: &Geometry, xs: &[T], grad: &[T]) -> Vec<T> {
    let (plane_in, plane_out, multiplier) = (g.input_plane(), g.output_plane(), g.group_out());
    let (taps, stride) = (g.kh * g.kw, g.params.stride.1);
    let mut dw = vec![T::zero(); g.c_out * taps];
    dw.par_chunks_exact_mut(taps).enumerate().for_each(|(c_out, dw)| {
        for n in 0..g.b {
            let x = &xs[(n * g.c_in + c_out / multiplier) * plane_in..][..plane_in];
            let dy = &grad[(n * g.c_out + c_out) * plane_out..][..plane_out];
            for (tap, dw) in g.taps().zip(dw.iter_mut()) {
                tap.for_rows(g, |out, inp, n| {
                    let dy = &dy[out..out + n];
                    *dw += if stride == 1 {
                        dot(dy, &x[inp..inp + n])
                    } else {
                        x[inp..].iter().step_by(stride).zip(dy).fold(T::zero(), |sum, (&x, &dy)| sum + x * dy)
                    };
                });
            }
        }
    });
    dw
}

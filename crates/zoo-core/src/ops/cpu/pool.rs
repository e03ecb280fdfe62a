//! Pooling on the host, plane by plane.

use crate::ops::Real;
use crate::ops::max_pool::Window;
use rayon::prelude::*;
use std::ops::Range;

impl Window {
    /// The part of window `(oy, ox)` that lies inside the image.
    fn inside(&self, oy: usize, ox: usize) -> (Range<usize>, Range<usize>) {
        let clip = |o: usize, kernel: usize, stride: usize, padding: usize, n: usize| {
            (o * stride).saturating_sub(padding)..(o * stride + kernel).saturating_sub(padding).min(n)
        };
        (
            clip(oy, self.kernel.0, self.stride.0, self.padding.0, self.h),
            clip(ox, self.kernel.1, self.stride.1, self.padding.1, self.w),
        )
    }

    fn outputs(&self) -> impl Iterator<Item = (usize, usize)> {
        let ow = self.ow;
        (0..self.oh).flat_map(move |oy| (0..ow).map(move |ox| (oy, ox)))
    }

    /// The place of the largest element in a window, the first of equals; a NaN wins, as in PyTorch.
    fn argmax<T: Real>(&self, x: &[T], oy: usize, ox: usize) -> usize {
        let (rows, cols) = self.inside(oy, ox);
        let mut best = rows.start * self.w + cols.start;
        for row in rows {
            for i in row * self.w + cols.start..row * self.w + cols.end {
                #[allow(clippy::eq_op, reason = "the portable test for NaN")]
                if x[i] > x[best] || x[i] != x[i] {
                    best = i;
                }
            }
        }
        best
    }

    /// What the sum over window `(oy, ox)` is divided by. Without the padding that is the pixels inside the image; with it,
    /// the pixels inside the padded image, since with `ceil_mode` a window may reach beyond even that.
    pub(crate) fn divisor(&self, oy: usize, ox: usize, count_include_pad: bool) -> usize {
        if !count_include_pad {
            let (rows, cols) = self.inside(oy, ox);
            return rows.len() * cols.len();
        }
        let span =
            |o: usize, k: usize, s: usize, p: usize, n: usize| (o * s + k).min(n + 2 * p) - (o * s).min(n + 2 * p);
        span(oy, self.kernel.0, self.stride.0, self.padding.0, self.h)
            * span(ox, self.kernel.1, self.stride.1, self.padding.1, self.w)
    }

    fn plane_in(&self) -> usize {
        self.h * self.w
    }

    fn plane_out(&self) -> usize {
        self.oh * self.ow
    }
}

pub(crate) fn max_forward<T: Real>(w: &Window, xs: &[T]) -> Vec<T> {
    let mut ys = vec![T::zero(); w.planes * w.plane_out()];
    ys.par_chunks_exact_mut(w.plane_out()).zip(xs.par_chunks_exact(w.plane_in())).for_each(|(y, x)| {
        for (y, (oy, ox)) in y.iter_mut().zip(w.outputs()) {
            *y = x[w.argmax(x, oy, ox)];
        }
    });
    ys
}

/// The whole gradient of an output goes to the one input that won.
pub(crate) fn max_backward<T: Real>(w: &Window, xs: &[T], grad: &[T]) -> Vec<T> {
    let mut dx = vec![T::zero(); xs.len()];
    let planes = dx.par_chunks_exact_mut(w.plane_in()).zip(xs.par_chunks_exact(w.plane_in()));
    planes.zip(grad.par_chunks_exact(w.plane_out())).for_each(|((dx, x), dy)| {
        for (&dy, (oy, ox)) in dy.iter().zip(w.outputs()) {
            dx[w.argmax(x, oy, ox)] += dy;
        }
    });
    dx
}

pub(crate) fn avg_forward<T: Real>(w: &Window, count_include_pad: bool, xs: &[T]) -> Vec<T> {
    let mut ys = vec![T::zero(); w.planes * w.plane_out()];
    ys.par_chunks_exact_mut(w.plane_out()).zip(xs.par_chunks_exact(w.plane_in())).for_each(|(y, x)| {
        for (y, (oy, ox)) in y.iter_mut().zip(w.outputs()) {
            let (rows, cols) = w.inside(oy, ox);
            let total = rows
                .map(|row| super::sum(&x[row * w.w + cols.start..row * w.w + cols.end]))
                .fold(T::zero(), |total, row| total + row);
            *y = total / T::from_f64(w.divisor(oy, ox, count_include_pad) as f64);
        }
    });
    ys
}

pub(crate) fn avg_backward<T: Real>(w: &Window, count_include_pad: bool, grad: &[T]) -> Vec<T> {
    let mut dx = vec![T::zero(); w.planes * w.plane_in()];
    dx.par_chunks_exact_mut(w.plane_in()).zip(grad.par_chunks_exact(w.plane_out())).for_each(|(dx, dy)| {
        for (&dy, (oy, ox)) in dy.iter().zip(w.outputs()) {
            let share = dy / T::from_f64(w.divisor(oy, ox, count_include_pad) as f64);
            let (rows, cols) = w.inside(oy, ox);
            for row in rows {
                dx[row * w.w + cols.start..row * w.w + cols.end].iter_mut().for_each(|dx| *dx += share);
            }
        }
    });
    dx
}

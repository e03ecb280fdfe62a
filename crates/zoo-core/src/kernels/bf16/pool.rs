//! Pooling of rows of channels. A vector holds channels of one pixel; every sum is taken in f32 and rounded once.

use super::walk::load;
use crate::kernels::buffer::{Shared, written};
use crate::kernels::simd::{Kernel, Simd, dispatch};
use half::bf16;
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Numbers that one task reads.
const TASK: usize = 1 << 15;

/// The windows of a pooling: what each row and each column of windows covers of the image. They may overlap, and leave
/// pixels out.
#[derive(Debug, Clone)]
pub(crate) struct Grid {
    pub h: usize,
    pub w: usize,
    pub rows: Vec<Range<usize>>,
    pub cols: Vec<Range<usize>>,
    /// Columns of the widest window.
    width: usize,
}

impl Grid {
    /// Over an image of h by w pixels.
    pub fn new((h, w): (usize, usize), rows: Vec<Range<usize>>, cols: Vec<Range<usize>>) -> Self {
        let width = cols.iter().map(Range::len).max().unwrap_or(1);
        Self { h, w, rows, cols, width }
    }

    /// One window: `count` of n rows from the `first` on.
    fn of_rows((n, first, count): (usize, usize, usize)) -> Self {
        Self::new((n, 1), std::iter::once(first..first + count).collect(), std::iter::once(0..1).collect())
    }

    /// The windows whose ranges hold each place of 0..n: neighbours, where starts and ends only grow.
    fn over(ranges: &[Range<usize>], n: usize) -> Vec<Range<usize>> {
        let holders = |place: usize| {
            let first = ranges.iter().position(|range| range.contains(&place)).unwrap_or(0);
            let count = ranges[first..].iter().take_while(|range| range.contains(&place)).count();
            first..first + count
        };
        (0..n).map(holders).collect()
    }

    fn plane_in(&self) -> usize {
        self.h * self.w
    }

    fn plane_out(&self) -> usize {
        self.rows.len() * self.cols.len()
    }

    /// Numbers that a window's pixels have.
    pub fn taps(&self) -> usize {
        self.rows.iter().map(Range::len).max().unwrap_or(1) * self.width
    }

    /// The number of a pixel within a window: rows of the widest window behind each other.
    fn tap(&self, (y, x): (usize, usize), (rows, cols): (&Range<usize>, &Range<usize>)) -> usize {
        (y - rows.start) * self.width + x - cols.start
    }

    /// Runs `f` for every row of windows of every image, with its place in the output.
    fn for_rows<B: Send>(&self, c: usize, out: &mut [B], f: impl Fn(usize, usize, &mut [B]) + Sync) {
        let row = self.cols.len() * c;
        let read = (self.w * c * self.h / self.rows.len()).max(1);
        out.par_chunks_exact_mut(row).enumerate().with_min_len((TASK / read).max(1)).for_each(|(i, out)| {
            f(i / self.rows.len(), i % self.rows.len(), out);
        });
    }
}

/// Where a vector of c channels begins that is to hold channel `at`, and how many it holds: the last one reaches back
/// to channels that were done before, unless all together are fewer than its lanes.
#[inline(always)]
fn place(at: usize, c: usize, lanes: usize) -> (usize, usize) {
    if at + lanes <= c {
        (at, lanes)
    } else if c >= lanes {
        (c - lanes, lanes)
    } else {
        (0, c)
    }
}

/// The largest number under each window, a NaN before everything; `with_taps`, also at which tap of its window it lies,
/// the first of equals.
pub(crate) fn max_forward(grid: &Grid, c: usize, xs: &[bf16], with_taps: bool) -> (Vec<bf16>, Vec<u16>) {
    let (each, row) = (grid.plane_in() * c, grid.cols.len() * c);
    assert!(xs.len().is_multiple_of(each) && grid.taps() <= MOST_TAPS);
    let n = xs.len() / each * grid.plane_out() * c;
    let mut taps: Vec<u16> = Vec::with_capacity(if with_taps { n } else { 0 });
    let of_rows = with_taps.then(|| Shared::from_spare(&mut taps));
    let fill = |ys: &mut [MaybeUninit<bf16>]| {
        grid.for_rows(c, ys, |image, y, ys| {
            // SAFETY: the taps of this row, which are as many as its outputs.
            let taps = of_rows.map(|taps| unsafe { taps.at((image * grid.rows.len() + y) * row) });
            let image = &xs[image * each..][..each];
            dispatch(Max { grid, c, image, row: y, ys: ys.as_mut_ptr().cast(), taps });
        });
    };
    // SAFETY: the kernel writes every window of a row, and its tap.
    unsafe {
        let ys = written(n, fill);
        if with_taps {
            taps.set_len(n);
        }
        (ys, taps)
    }
}

/// Taps that a window has at the most, for them to be counted.
pub(crate) const MOST_TAPS: usize = 1 << 16;

/// A row of windows.
struct Max<'a> {
    grid: &'a Grid,
    c: usize,
    image: &'a [bf16],
    row: usize,
    ys: *mut bf16,
    taps: Option<*mut u16>,
}

impl Kernel<f32> for Max<'_> {
    const NARROWS: bool = true;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let Self { grid, c, image, row, ys, taps } = self;
        let rows = &grid.rows[row];
        for (ox, cols) in grid.cols.iter().enumerate() {
            for at in (0..c).step_by(V::LANES) {
                let (at, count) = place(at, c, V::LANES);
                // SAFETY: below `dispatch`; windows lie inside the image, and a row of them has its outputs.
                unsafe {
                    let from = image.as_ptr().add(at);
                    let mut largest = load::<V>(from, (rows.start * grid.w + cols.start) * c, count);
                    let mut tap = V::zero();
                    for y in rows.clone() {
                        for x in cols.clone() {
                            let next = load::<V>(from, (y * grid.w + x) * c, count);
                            if taps.is_some() {
                                // The first number is no larger than itself, but a NaN would take its own place anew.
                                let here = V::splat(grid.tap((y, x), (rows, cols)) as f32);
                                tap = next.if_nan(here, next.if_greater(largest, here, tap));
                            }
                            largest = next.if_nan(next, next.if_greater(largest, next, largest));
                        }
                    }
                    super::walk::store(largest, ys, ox * c + at, count);
                    if let Some(taps) = taps {
                        let mut lanes = [0f32; 16];
                        tap.store(lanes.as_mut_ptr());
                        let to = taps.add(ox * c + at);
                        if count == V::LANES {
                            (0..V::LANES).for_each(|i| to.add(i).write(lanes[i].to_int_unchecked::<i32>() as u16));
                        } else {
                            (0..count).for_each(|i| to.add(i).write(lanes[i] as u16));
                        }
                    }
                }
            }
        }
    }
}

/// The whole gradient of an output goes to the one input that won, at these taps.
pub(crate) fn max_backward(grid: &Grid, c: usize, taps: &[u16], grad: &[bf16]) -> Vec<bf16> {
    let (each, out) = (grid.plane_in() * c, grid.plane_out() * c);
    assert!(grad.len().is_multiple_of(out) && grad.len() == taps.len());
    let over = [Grid::over(&grid.rows, grid.h), Grid::over(&grid.cols, grid.w)];
    let fill = |dx: &mut [MaybeUninit<bf16>]| {
        let images = dx.par_chunks_exact_mut(each).zip(taps.par_chunks_exact(out)).zip(grad.par_chunks_exact(out));
        images.with_min_len((TASK / each).max(1)).for_each_init(
            || vec![0f32; out],
            |wide, ((dx, taps), grad)| {
                wide.iter_mut().zip(taps).for_each(|(wide, &tap)| *wide = f32::from(tap));
                let shares = Shares::Winners(wide);
                for (y, dx) in dx.chunks_exact_mut(grid.w * c).enumerate() {
                    dispatch(Gather { grid, c, over: &over, y, grad, shares, dx: dx.as_mut_ptr().cast() });
                }
            },
        );
    };
    // SAFETY: the kernel writes every pixel of a row.
    unsafe { written(grad.len() / out * each, fill) }
}

/// What of a window's gradient a pixel gets.
#[derive(Clone, Copy)]
enum Shares<'a> {
    /// All, if it is at this tap.
    Winners(&'a [f32]),
    /// This part, window by window.
    Parts(&'a [f32]),
}

/// A row of the input's gradient, gathered from the windows over each pixel.
struct Gather<'a> {
    grid: &'a Grid,
    c: usize,
    over: &'a [Vec<Range<usize>>; 2],
    y: usize,
    /// Of an image's windows.
    grad: &'a [bf16],
    shares: Shares<'a>,
    dx: *mut bf16,
}

impl Kernel<f32> for Gather<'_> {
    const NARROWS: bool = true;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let Self { grid, c, over: [rows, cols], y, grad, shares, dx } = self;
        for (x, cols) in cols.iter().enumerate() {
            for at in (0..c).step_by(V::LANES) {
                let (at, count) = place(at, c, V::LANES);
                // SAFETY: below `dispatch`; the windows over a pixel are among those of the gradient.
                unsafe {
                    let mut sum = V::zero();
                    for oy in rows[y].clone() {
                        for ox in cols.clone() {
                            let window = oy * grid.cols.len() + ox;
                            let dy = load::<V>(grad.as_ptr(), window * c + at, count);
                            sum = match shares {
                                Shares::Parts(parts) => dy.mul_add(V::splat(parts[window]), sum),
                                Shares::Winners(taps) => {
                                    let tap = V::load_first(taps.as_ptr().add(window * c + at), count);
                                    let here = grid.tap((y, x), (&grid.rows[oy], &grid.cols[ox])) as f32;
                                    let not_behind = tap.if_at_most(V::splat(here), dy, V::zero());
                                    sum.add(tap.if_at_most(V::splat(here - 0.5), V::zero(), not_behind))
                                }
                            };
                        }
                    }
                    super::walk::store(sum, dx, x * c + at, count);
                }
            }
        }
    }
}

/// The sum under each window times its number in `parts`.
pub(crate) fn avg_forward(grid: &Grid, parts: &[f32], c: usize, xs: &[bf16]) -> Vec<bf16> {
    let each = grid.plane_in() * c;
    assert!(xs.len().is_multiple_of(each) && parts.len() == grid.plane_out());
    let fill = |ys: &mut [MaybeUninit<bf16>]| {
        grid.for_rows(c, ys, |image, row, ys| {
            let image = &xs[image * each..][..each];
            dispatch(Average { grid, c, image, row, parts, ys: ys.as_mut_ptr().cast() });
        });
    };
    // SAFETY: the kernel writes every window of a row.
    unsafe { written(xs.len() / each * grid.plane_out() * c, fill) }
}

struct Average<'a> {
    grid: &'a Grid,
    c: usize,
    image: &'a [bf16],
    row: usize,
    parts: &'a [f32],
    ys: *mut bf16,
}

impl Kernel<f32> for Average<'_> {
    const NARROWS: bool = true;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let Self { grid, c, image, row, parts, ys } = self;
        for (ox, cols) in grid.cols.iter().enumerate() {
            let part = parts[row * grid.cols.len() + ox];
            for at in (0..c).step_by(V::LANES) {
                let (at, count) = place(at, c, V::LANES);
                // SAFETY: below `dispatch`; windows lie inside the image, and a row of them has its outputs.
                unsafe {
                    let mut sum = V::zero();
                    for y in grid.rows[row].clone() {
                        // A row of pixels by itself: the error grows with the sides of a window, not with its area.
                        let mut line = V::zero();
                        for x in cols.clone() {
                            line = line.add(load(image.as_ptr(), (y * grid.w + x) * c + at, count));
                        }
                        sum = sum.add(line);
                    }
                    super::walk::store(sum.mul(V::splat(part)), ys, ox * c + at, count);
                }
            }
        }
    }
}

/// The gradient of [`avg_forward`].
pub(crate) fn avg_backward(grid: &Grid, parts: &[f32], c: usize, grad: &[bf16]) -> Vec<bf16> {
    let (row, out) = (grid.w * c, grid.plane_out() * c);
    assert!(grad.len().is_multiple_of(out) && parts.len() == grid.plane_out());
    let over = [Grid::over(&grid.rows, grid.h), Grid::over(&grid.cols, grid.w)];
    let n = grad.len() / out * grid.plane_in() * c;
    let fill = |dx: &mut [MaybeUninit<bf16>]| {
        let rows = dx.par_chunks_exact_mut(row).enumerate().with_min_len((TASK / row).max(1));
        rows.for_each(|(i, dx)| {
            let (grad, y) = (&grad[i / grid.h * out..][..out], i % grid.h);
            let shares = Shares::Parts(parts);
            dispatch(Gather { grid, c, over: &over, y, grad, shares, dx: dx.as_mut_ptr().cast() });
        });
    };
    // SAFETY: the kernel writes every pixel of a row.
    unsafe { written(n, fill) }
}

/// The mean of `count` rows from the `first` on, of each image of `n` rows of c numbers.
pub(crate) fn mean_rows((n, first, count): (usize, usize, usize), c: usize, xs: &[bf16]) -> Vec<bf16> {
    avg_forward(&Grid::of_rows((n, first, count)), &[1.0 / count as f32], c, xs)
}

/// The gradient of [`mean_rows`].
pub(crate) fn mean_rows_backward((n, first, count): (usize, usize, usize), c: usize, grad: &[bf16]) -> Vec<bf16> {
    avg_backward(&Grid::of_rows((n, first, count)), &[1.0 / count as f32], c, grad)
}

//! Matrix products on the host.
//!
//! The right side is packed in panels of three vectors of columns; a panel's [`GEMM_DEPTH`] rows stay in the cache
//! while the rows of the left side run over them, each number broadcast to a vector. A row-major left side is read
//! where it lies, a transposed one is packed too. What is multiplied again and again, as weights are, is packed once
//! ([`Rhs`]), else a panel is packed right before the rows run over it.
//!
//! An element's sum is taken in one order, however the product is cut: the number of threads changes no bit.

use super::blocking::{GEMM_DEPTH, GEMM_LEFT, GEMM_ROWS};
use super::buffer::{Shared, with_scratch, written, written_by_tasks};
use super::microkernel::{RegisterTile, microkernel_of_rows};
use super::simd::{Kernel, Real, Simd, dispatch_at, prefetch};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Row blocks up to which a right side stays unpacked: packing a panel for each costs less than keeping all panels.
const PASSES: usize = 2;
/// Vectors of a panel's row.
const VECTORS: usize = 3;

/// A read-only matrix in a slice: element (i, j) is at `i·rs + j·cs`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a, T> {
    pub data: &'a [T],
    pub rs: usize,
    pub cs: usize,
}

impl<'a, T> Mat<'a, T> {
    /// A row-major matrix with rows of `cols` elements.
    pub fn rows(data: &'a [T], cols: usize) -> Self {
        Self { data, rs: cols, cs: 1 }
    }

    /// The transpose of a row-major matrix with rows of `cols` elements.
    pub fn transposed(data: &'a [T], cols: usize) -> Self {
        Self { data, rs: 1, cs: cols }
    }

    fn assert_holds(&self, rows: usize, cols: usize) {
        let last = (rows - 1) * self.rs + (cols - 1) * self.cs;
        assert!(last < self.data.len(), "a {rows}x{cols} matrix does not fit {} elements", self.data.len());
    }
}

/// Where a product goes: a row-major matrix.
pub(crate) enum Out<'a, T> {
    /// It becomes the product.
    Is(&'a mut [MaybeUninit<T>]),
    /// It becomes the product, plus this row in every row.
    OntoRow(&'a mut [MaybeUninit<T>], &'a [T]),
    /// The product is added to it.
    Plus(&'a mut [T]),
}

/// What the product is added to.
#[derive(Clone, Copy)]
enum Onto<'a, T> {
    Nothing,
    Row(&'a [T]),
    Itself,
}

impl<'a, T> Out<'a, T> {
    fn parts(self) -> (Shared<T>, usize, Onto<'a, T>) {
        match self {
            Self::Is(out) => (Shared::from_uninit(out), out.len(), Onto::Nothing),
            Self::OntoRow(out, row) => (Shared::from_uninit(out), out.len(), Onto::Row(row)),
            Self::Plus(out) => (Shared::new(out), out.len(), Onto::Itself),
        }
    }
}

/// Who works on a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The caller alone.
    One,
    /// The current pool.
    All,
}

impl Threads {
    /// For the products inside a loop that is itself parallel over `tasks`: one thread when the loop fills the pool.
    pub fn inside(tasks: usize) -> Self {
        if tasks >= rayon::current_num_threads() { Self::One } else { Self::All }
    }

    fn each(self, tasks: usize, task: impl Fn(usize) + Send + Sync) {
        match self {
            Self::One => (0..tasks).for_each(task),
            Self::All => (0..tasks).into_par_iter().for_each(task),
        }
    }
}

/// The right side of products.
pub(crate) struct Rhs<'a, T> {
    right: Right<'a, T>,
    k: usize,
    n: usize,
    shape: RegisterTile,
}

enum Right<'a, T> {
    /// Packed: for each `GEMM_DEPTH` rows one panel behind the other, row by row, zeros behind the last column.
    Panels(Vec<T>),
    /// Each panel is packed when its turn comes.
    Mat(Mat<'a, T>),
}

impl<'a, T: Real> Rhs<'a, T> {
    /// The matrix (k, n), for products with `rows` rows in all: packed beforehand if it is worth it.
    pub fn new(rhs: Mat<'a, T>, (k, n): (usize, usize), rows: usize, threads: Threads) -> Self {
        let shape = RegisterTile::current::<T>();
        if n == 0 || rows == 0 {
            return Self { right: Right::Panels(Vec::new()), k, n, shape };
        }
        rhs.assert_holds(k, n);
        if rows <= GEMM_ROWS * PASSES {
            return Self { right: Right::Mat(rhs), k, n, shape };
        }
        let width = VECTORS * shape.lanes;
        let panels = n.div_ceil(width);
        // SAFETY: every task packs a panel of its own, whole.
        let data = unsafe {
            written_by_tasks(panels * width * k, |data| {
                threads.each(panels, |panel| {
                    let cols = panel * width..n.min((panel + 1) * width);
                    for rows in depths(k) {
                        let to = data.at(rows.start * panels * width + panel * width * rows.len());
                        dispatch_at(shape.level, Pack { rhs, rows, cols: cols.clone(), to });
                    }
                });
            })
        };
        Self { right: Right::Panels(data), k, n, shape }
    }

    /// `out` (m, n) = `lhs` (m, k) · self, in the way that [`Out`] says.
    pub fn multiply(&self, m: usize, out: Out<T>, lhs: Mat<T>, threads: Threads) {
        self.product(m, out, self.n, T::one(), lhs, threads);
    }

    /// `out` (m, n; rows `rs` apart) = `scale` · `lhs` (m, k) · self.
    fn product(&self, m: usize, out: Out<T>, rs: usize, scale: T, lhs: Mat<T>, threads: Threads) {
        let (data, len, onto) = out.parts();
        let Self { k, n, .. } = *self;
        if m > 0 && n > 0 {
            check((m, n, k), len, rs, onto, lhs);
            Job { m, n, k, out: data, rs, onto, scale, lhs, right: &self.right }.run(self.shape, threads);
        }
    }
}

/// `out` (m, n; row-major) = `lhs` (m, k) · `rhs` (k, n), in the way that [`Out`] says.
pub(crate) fn gemm<T: Real>((m, n, k): (usize, usize, usize), out: Out<T>, lhs: Mat<T>, rhs: Mat<T>, threads: Threads) {
    product((m, n, k), out, n, T::one(), lhs, rhs, threads);
}

/// `out` (m, n; rows `rs` apart) = `scale` · `lhs` (m, k) · `rhs` (k, n), in the way that [`Out`] says.
pub(crate) fn product<T: Real>(
    (m, n, k): (usize, usize, usize),
    out: Out<T>,
    rs: usize,
    scale: T,
    lhs: Mat<T>,
    rhs: Mat<T>,
    threads: Threads,
) {
    Rhs::new(rhs, (k, n), m, threads).product(m, out, rs, scale, lhs, threads);
}

fn check<T>((m, n, k): (usize, usize, usize), len: usize, rs: usize, onto: Onto<T>, lhs: Mat<T>) {
    if m == 0 {
        return;
    }
    assert!(k > 0 && rs >= n && len >= (m - 1) * rs + n, "gemm: {m}x{n} from k = {k} into {len}");
    if let Onto::Row(row) = onto {
        assert_eq!(row.len(), n);
    }
    lhs.assert_holds(m, k);
}

/// The rows of panels that are multiplied at a time.
fn depths(k: usize) -> impl Iterator<Item = Range<usize>> {
    (0..k).step_by(GEMM_DEPTH).map(move |start| start..k.min(start + GEMM_DEPTH))
}

/// Packs some rows of a panel.
struct Pack<'a, T> {
    rhs: Mat<'a, T>,
    rows: Range<usize>,
    cols: Range<usize>,
    to: *mut T,
}

impl<T: Real> Kernel<T> for Pack<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let Self { rhs: Mat { data, rs, cs }, rows, cols, to } = self;
        let width = VECTORS * V::LANES;
        // SAFETY: the caller's `to` holds a panel's rows, and the matrix the rows and columns.
        unsafe {
            let from = data.as_ptr().add(rows.start * rs + cols.start * cs);
            if cs == 1 {
                for row in 0..rows.len() {
                    let (from, to) = (from.add(row * rs), to.add(row * width));
                    if cols.len() == width {
                        for i in 0..VECTORS {
                            V::load(from.add(i * V::LANES)).store(to.add(i * V::LANES));
                        }
                    } else {
                        for i in 0..VECTORS {
                            let (at, end) = (cols.len().min(i * V::LANES), cols.len().min((i + 1) * V::LANES));
                            V::load_first(from.add(at), end - at).store(to.add(i * V::LANES));
                        }
                    }
                }
                return;
            }
            for row in (0..rows.len()).step_by(V::LANES) {
                for col in (0..width).step_by(V::LANES) {
                    let (from, to) = (from.wrapping_add(row * rs + col * cs), to.add(row * width + col));
                    let (rows, cols) = (V::LANES.min(rows.len() - row), V::LANES.min(cols.len().saturating_sub(col)));
                    if rs == 1 && rows == V::LANES && cols == V::LANES {
                        V::transpose(from, cs, to, width);
                        continue;
                    }
                    // What does not fill a block goes through one that has zeros in the columns that are not there.
                    let mut block = [T::zero(); 16 * 16];
                    for j in 0..cols {
                        for i in 0..rows {
                            block[i * V::LANES + j] = *from.add(i * rs + j * cs);
                        }
                    }
                    for i in 0..rows {
                        V::load(block.as_ptr().add(i * V::LANES)).store(to.add(i * width));
                    }
                }
            }
        }
    }
}

/// A product whose sizes have been checked.
struct Job<'a, T> {
    m: usize,
    n: usize,
    k: usize,
    out: Shared<T>,
    rs: usize,
    onto: Onto<'a, T>,
    scale: T,
    lhs: Mat<'a, T>,
    right: &'a Right<'a, T>,
}

impl<T: Real> Job<'_, T> {
    /// Scratch for the left side, if it has to be packed.
    fn lhs_elements(&self, rows: usize, shape: RegisterTile) -> usize {
        if self.lhs.cs == 1 { 0 } else { rows.next_multiple_of(shape.rows) * self.k }
    }

    fn run(&self, shape: RegisterTile, threads: Threads) {
        let width = VECTORS * shape.lanes;
        let columns = self.n.div_ceil(width);
        let panel = match self.right {
            Right::Panels(data) => {
                assert_eq!(data.len(), columns * width * self.k);
                0
            }
            Right::Mat(_) => self.k.min(GEMM_DEPTH) * width,
        };
        let tasks = if threads == Threads::All { 4 * rayon::current_num_threads() } else { 1 };
        let rows = self.m.div_ceil(self.m.div_ceil(GEMM_ROWS)).next_multiple_of(shape.rows);
        let blocks = self.m.div_ceil(rows);
        let per_task = columns.div_ceil(tasks.div_ceil(blocks));
        let parts = columns.div_ceil(per_task);
        let task = |task: usize| {
            let rows = task / parts * rows..self.m.min((task / parts + 1) * rows);
            let columns = task % parts * per_task..columns.min((task % parts + 1) * per_task);
            with_scratch(panel + self.lhs_elements(rows.len(), shape), |scratch: *mut T| {
                let left = scratch.wrapping_add(panel);
                let block = Block { job: self, rows, columns, panel: scratch, left };
                dispatch_at(shape.level, block);
            });
        };
        threads.each(blocks * parts, task);
    }
}

/// Some rows and panels of a product.
struct Block<'a, T> {
    job: &'a Job<'a, T>,
    rows: Range<usize>,
    columns: Range<usize>,
    /// Room for a panel, if the right side has to be packed.
    panel: *mut T,
    /// Room for the packed left side.
    left: *mut T,
}

/// The left side: row i's number k at `start + i · row + k · step`, or in packed tiles.
#[derive(Clone, Copy)]
struct Left<T> {
    start: *const T,
    row: usize,
    step: usize,
}

impl<T: Real> Kernel<T> for Block<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        // SAFETY: below `dispatch`; `check` has compared the sizes, and the panels and the room are as large as they
        // say.
        unsafe {
            match V::ROWS {
                8 => self.multiply::<V, 8, 4, 2>(),
                _ => self.multiply::<V, 4, 2, 1>(),
            }
        }
    }
}

impl<T: Real> Block<'_, T> {
    #[inline(always)]
    unsafe fn multiply<V: Simd<Elem = T>, const M: usize, const HALF: usize, const QUARTER: usize>(self) {
        let (&Job { k, n, lhs, .. }, rows) = (self.job, self.rows.len());
        let width = VECTORS * V::LANES;
        let all_columns = n.div_ceil(width);
        // SAFETY: the caller's.
        unsafe {
            let packed = lhs.cs != 1;
            if packed {
                self.pack_left::<V, M>();
            }
            let depths = k.div_ceil(GEMM_DEPTH);
            // Elements of a cache line.
            let line_len = 64 / size_of::<T>();
            // While the rows run over a panel the next one comes from memory, unless all of them stay in the cache.
            let elsewhere = self.columns.len() * width * k * size_of::<T>() > GEMM_LEFT;
            let panel_by_panel = rows * k * size_of::<T>() <= GEMM_LEFT;
            // A step: first row, rows, panel.
            let step = |step: usize| {
                let (depth, panel) = match panel_by_panel {
                    true => (step % depths, step / depths),
                    false => (step / self.columns.len(), step % self.columns.len()),
                };
                let (first, panel) = (depth * GEMM_DEPTH, self.columns.start + panel);
                let depth = GEMM_DEPTH.min(k.saturating_sub(first));
                (first, depth, panel)
            };
            for at in 0..depths * self.columns.len() {
                let (first, depth, panel) = step(at);
                let (next_first, next_depth, next_panel) = step(at + 1);
                // Where the panel lies, and of what comes next: the start, elements between runs, lines of a run.
                let (b, next, run, run_lines) = match self.job.right {
                    Right::Panels(data) => {
                        let at = |first, depth, panel| {
                            data.as_ptr().wrapping_add(first * all_columns * width + panel * width * depth)
                        };
                        (at(first, depth, panel), at(next_first, next_depth, next_panel), width, width / line_len)
                    }
                    &Right::Mat(rhs) => {
                        let cols = panel * width..n.min((panel + 1) * width);
                        Pack { rhs, rows: first..first + depth, cols, to: self.panel }.run::<V>();
                        let next = rhs.data.as_ptr().wrapping_add(next_first * rhs.rs + next_panel * width * rhs.cs);
                        let run = if rhs.cs == 1 { width } else { next_depth };
                        (self.panel.cast_const(), next, rhs.rs.max(rhs.cs), run.div_ceil(line_len))
                    }
                };
                let lines = if elsewhere { (next_depth * width).div_ceil(line_len) } else { 0 };
                let share = lines.div_ceil(rows.div_ceil(M));
                let mut row = 0;
                while row < rows {
                    for line in row / M * share..(row / M + 1) * share {
                        prefetch(next.wrapping_add(line / run_lines * run + line % run_lines * line_len));
                    }
                    let left = match packed {
                        true => Left { start: self.left.add(row * k + first * M).cast_const(), row: 1, step: M },
                        false => {
                            let start = lhs.data.as_ptr().add((self.rows.start + row) * lhs.rs + first);
                            Left { start, row: lhs.rs, step: 1 }
                        }
                    };
                    let count = M.min(rows - row);
                    let place = (self.rows.start + row, panel * width);
                    if count > HALF {
                        self.tile::<V, M>(count, place, first, depth, left, b);
                    } else if count > QUARTER {
                        self.tile::<V, HALF>(count, place, first, depth, left, b);
                    } else {
                        self.tile::<V, QUARTER>(count, place, first, depth, left, b);
                    }
                    row += count;
                }
            }
        }
    }

    /// Lays the rows of the left side in tiles: (tile, k, row of the tile).
    #[inline(always)]
    unsafe fn pack_left<V: Simd<Elem = T>, const M: usize>(&self) {
        let &Job { k, lhs, .. } = self.job;
        // SAFETY: as in `multiply`.
        unsafe {
            let mut row = 0;
            // Four tiles at once, so that a line is read whole.
            while lhs.rs == 1 && M <= V::LANES && row + 4 * M <= self.rows.len() {
                let (from, to) = (lhs.data.as_ptr().add(self.rows.start + row), self.left.add(row * k));
                for i in 0..k {
                    for tile in 0..4 {
                        V::load_first(from.add(i * lhs.cs + tile * M), M).store_first(to.add((tile * k + i) * M), M);
                    }
                }
                row += 4 * M;
            }
            for row in (row..self.rows.len()).step_by(M) {
                let from = lhs.data.as_ptr().add((self.rows.start + row) * lhs.rs);
                let to = self.left.add(row * k);
                let count = M.min(self.rows.len() - row);
                for k in 0..k {
                    let (from, to) = (from.add(k * lhs.cs), to.add(k * M));
                    for i in 0..M {
                        *to.add(i) = if i < count { *from.add(i * lhs.rs) } else { T::zero() };
                    }
                }
            }
        }
    }

    /// `rows` ≤ M rows of a panel's columns.
    #[inline(always)]
    unsafe fn tile<V: Simd<Elem = T>, const M: usize>(
        &self,
        rows: usize,
        (row, col): (usize, usize),
        first: usize,
        depth: usize,
        left: Left<T>,
        b: *const T,
    ) {
        // SAFETY: as in `multiply`; the rows behind the last one read that one again.
        unsafe {
            let a: [*const T; M] = std::array::from_fn(|i| left.start.add(i.min(rows - 1) * left.row));
            let b_step = VECTORS * V::LANES;
            match (self.job.n - col).div_ceil(V::LANES) {
                1 => {
                    let sums = microkernel_of_rows(depth, a, left.step, b, b_step, [[V::zero(); 1]; M]);
                    self.store::<V, M, 1>(rows, (row, col), first, sums);
                }
                2 => {
                    let sums = microkernel_of_rows(depth, a, left.step, b, b_step, [[V::zero(); 2]; M]);
                    self.store::<V, M, 2>(rows, (row, col), first, sums);
                }
                _ => {
                    let sums = microkernel_of_rows(depth, a, left.step, b, b_step, [[V::zero(); 3]; M]);
                    self.store::<V, M, 3>(rows, (row, col), first, sums);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn store<V: Simd<Elem = T>, const M: usize, const N: usize>(
        &self,
        rows: usize,
        (row, col): (usize, usize),
        first: usize,
        sums: [[V; N]; M],
    ) {
        let job = self.job;
        // SAFETY: as in `multiply`; lanes beyond the last column are not touched.
        unsafe {
            let scale = V::splat(job.scale);
            for (i, sums) in sums.into_iter().enumerate().take(rows) {
                for (j, sum) in sums.into_iter().enumerate() {
                    let col = col + j * V::LANES;
                    let count = V::LANES.min(job.n - col);
                    let to = job.out.at((row + i) * job.rs + col);
                    let base = match job.onto {
                        Onto::Row(row) if first == 0 => Some(row.as_ptr().add(col)),
                        Onto::Nothing if first == 0 => None,
                        _ => Some(to.cast_const()),
                    };
                    let mut sum = sum;
                    if count == V::LANES {
                        sum = base.map_or(sum.mul(scale), |base| sum.mul_add(scale, V::load(base)));
                        sum.store(to);
                    } else {
                        sum = base.map_or(sum.mul(scale), |base| sum.mul_add(scale, V::load_first(base, count)));
                        sum.store_first(to, count);
                    }
                }
            }
        }
    }
}

/// Sizes of `count` products of matrices (m, k) and (k, n).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pairs {
    pub count: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// Which of two matrices lies transposed in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transposed {
    Neither,
    Left,
    Right,
}

/// The product of each pair of matrices, which lie one behind the other.
pub(crate) fn multiply_pairs<T: Real>(pairs: Pairs, transposed: Transposed, a: &[T], b: &[T]) -> Vec<T> {
    let Pairs { count, m, n, k } = pairs;
    let threads = Threads::inside(count);
    let each = |i: usize, out: &mut [MaybeUninit<T>]| {
        let (a, b) = (&a[i * m * k..][..m * k], &b[i * k * n..][..k * n]);
        let lhs = if transposed == Transposed::Left { Mat::transposed(a, m) } else { Mat::rows(a, k) };
        let rhs = if transposed == Transposed::Right { Mat::transposed(b, k) } else { Mat::rows(b, n) };
        gemm((m, n, k), Out::Is(out), lhs, rhs, threads);
    };
    // SAFETY: each product fills its matrix, and they are all.
    unsafe { written(count * m * n, |ys| ys.par_chunks_mut(m * n).enumerate().for_each(|(i, out)| each(i, out))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::buffer::uninit;
    use crate::testing::values;

    /// Sizes that no tile divides, both orders of both sides, everything that a product can be added to.
    #[test]
    fn products_are_those_of_plain_loops() {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (8, 32, 256), (9, 33, 257), (65, 65, 64), (300, 17, 31), (7, 100, 600)]
        {
            let (a, b, row) = (values("a", m * k), values("b", k * n), values("row", n));
            for case in 0..24 {
                let (lhs, rhs) = (
                    if case & 1 == 0 { Mat::rows(&a, k) } else { Mat::transposed(&a, m) },
                    if case & 2 == 0 { Mat::rows(&b, n) } else { Mat::transposed(&b, k) },
                );
                let threads = if case & 4 == 0 { Threads::One } else { Threads::All };
                let start = values("start", m * n);
                let want: Vec<f64> = (0..m * n)
                    .map(|at| {
                        let (i, j) = (at / n, at % n);
                        let sum: f64 = (0..k).map(|k| a[i * lhs.rs + k * lhs.cs] * b[k * rhs.rs + j * rhs.cs]).sum();
                        sum + [0.0, row[j], start[at]][case / 8]
                    })
                    .collect();
                for packed in [false, true] {
                    let mut got = start.clone();
                    let out = match case / 8 {
                        0 => Out::Is(uninit(&mut got)),
                        1 => Out::OntoRow(uninit(&mut got), &row),
                        _ => Out::Plus(&mut got),
                    };
                    if packed {
                        Rhs::new(rhs, (k, n), usize::MAX, threads).multiply(m, out, lhs, threads);
                    } else {
                        gemm((m, n, k), out, lhs, rhs, threads);
                    }
                    let error = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                    assert!(error <= 1e-12 * k as f64, "{m}x{n} from {k}, case {case}: {error}");
                }
            }
        }
    }
}

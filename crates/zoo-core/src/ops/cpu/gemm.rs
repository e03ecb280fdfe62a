//! Matrix product on slices: the safe door to the `gemm` crate.

use crate::ops::Real;
use gemm::Parallelism;

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

/// A matrix to write to, its rows `rs` apart.
pub(crate) struct MatMut<'a, T> {
    pub data: &'a mut [T],
    pub rs: usize,
}

/// `dst` (m, n; row-major) = `lhs` (m, k) · `rhs` (k, n), added to what `dst` holds if `accumulate`.
pub(crate) fn gemm<T: Real>(
    (m, n, k): (usize, usize, usize),
    dst: &mut [T],
    accumulate: bool,
    lhs: Mat<T>,
    rhs: Mat<T>,
    parallelism: Parallelism,
) {
    product((m, n, k), MatMut { data: dst, rs: n }, accumulate, T::one(), lhs, rhs, parallelism);
}

/// `dst` (m, n) = `scale` · `lhs` (m, k) · `rhs` (k, n), added to what `dst` holds if `accumulate`.
pub(crate) fn product<T: Real>(
    (m, n, k): (usize, usize, usize),
    dst: MatMut<T>,
    accumulate: bool,
    scale: T,
    lhs: Mat<T>,
    rhs: Mat<T>,
    parallelism: Parallelism,
) {
    if m == 0 || n == 0 {
        return;
    }
    let last = (m - 1) * dst.rs + n;
    assert!(k > 0 && dst.rs >= n && dst.data.len() >= last, "gemm: {m}x{n} from k = {k} into {}", dst.data.len());
    lhs.assert_holds(m, k);
    rhs.assert_holds(k, n);
    // SAFETY: the three asserts above bound every (i, j) that gemm touches inside its slice; `dst` is borrowed mutably,
    // so it overlaps neither operand; T is f32 or f64, which the crate dispatches on.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.data.as_mut_ptr(),
            1,
            dst.rs as isize,
            accumulate,
            lhs.data.as_ptr(),
            lhs.cs as isize,
            lhs.rs as isize,
            rhs.data.as_ptr(),
            rhs.cs as isize,
            rhs.rs as isize,
            if accumulate { T::one() } else { T::zero() },
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// All the threads of the current pool.
pub(crate) fn all_threads() -> Parallelism {
    Parallelism::Rayon(rayon::current_num_threads())
}

/// Threads for the products inside a loop that is itself parallel over `tasks`: none when the loop fills the pool.
pub(crate) fn threads_inside(tasks: usize) -> Parallelism {
    if tasks >= rayon::current_num_threads() { Parallelism::None } else { all_threads() }
}

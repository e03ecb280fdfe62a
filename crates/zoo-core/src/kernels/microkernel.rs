//! The inner loops behind every convolution and matrix product: a tile of a product that stays in registers.

use super::simd::{Kernel, Level, Real, Simd, dispatch_at};

/// The register tile that an operation runs with, from its packing to its last task.
#[derive(Clone, Copy)]
pub(crate) struct RegisterTile {
    pub level: Level,
    /// Rows of a tile.
    pub rows: usize,
    /// Lanes of a vector.
    pub lanes: usize,
}

impl RegisterTile {
    pub fn current<T: Real>() -> Self {
        struct Ask(Level);
        impl<T: Real> Kernel<T> for Ask {
            type Output = RegisterTile;

            #[inline(always)]
            unsafe fn run<V: Simd<Elem = T>>(self) -> RegisterTile {
                RegisterTile { level: self.0, rows: V::ROWS, lanes: V::LANES }
            }
        }
        let level = Level::current();
        dispatch_at::<T, _>(level, Ask(level))
    }
}

/// Σ over k of a\[k\] ⊗ b\[k\]: `M` rows by `N` vectors, in registers.
///
/// Row i of step k is `a[k · a_step + i]`; vector j of step k is `b[j][offsets[k]..]`.
///
/// # Safety
/// Below `dispatch`; `a` must hold (depth - 1) · a_step + M elements, `offsets` `depth` of them, and each `b[j]` the
/// lanes behind every offset.
#[inline(always)]
pub(crate) unsafe fn microkernel<V: Simd, const M: usize, const N: usize>(
    depth: usize,
    a: *const V::Elem,
    a_step: usize,
    b: [*const V::Elem; N],
    offsets: *const u32,
) -> [[V; N]; M] {
    // SAFETY: the caller's pointers hold what the loop reads.
    unsafe {
        let mut sums = [[V::zero(); N]; M];
        let mut a = a;
        for k in 0..depth {
            let offset = *offsets.add(k) as usize;
            let mut vectors = [V::zero(); N];
            for (vector, b) in vectors.iter_mut().zip(b) {
                *vector = V::load(b.add(offset));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let factor = V::splat(*a.add(i));
                for (sum, vector) in sums.iter_mut().zip(vectors) {
                    *sum = factor.mul_add(vector, *sum);
                }
            }
            a = a.add(a_step);
        }
        sums
    }
}

/// sums + Σ over k of a\[k\] ⊗ b\[k\] with a right side packed as it is read: row i of step k is `a[i][k · a_step]`,
/// and vector j is `b[k · b_step + j · LANES..]`.
///
/// # Safety
/// Below `dispatch`; each `a[i]` must hold (depth - 1) · a_step + 1 elements, `b` (depth - 1) · b_step + N · LANES.
#[inline(always)]
pub(crate) unsafe fn microkernel_of_rows<V: Simd, const M: usize, const N: usize>(
    depth: usize,
    a: [*const V::Elem; M],
    a_step: usize,
    b: *const V::Elem,
    b_step: usize,
    sums: [[V; N]; M],
) -> [[V; N]; M] {
    // SAFETY: the caller's pointers hold what the loop reads.
    unsafe {
        let mut sums = sums;
        let (mut at, mut b) = (0, b);
        for _ in 0..depth {
            let mut vectors = [V::zero(); N];
            for (j, vector) in vectors.iter_mut().enumerate() {
                *vector = V::load(b.add(j * V::LANES));
            }
            for (a, sums) in a.iter().zip(sums.iter_mut()) {
                let factor = V::splat(*a.add(at));
                for (sum, vector) in sums.iter_mut().zip(vectors) {
                    *sum = factor.mul_add(vector, *sum);
                }
            }
            at += a_step;
            b = b.add(b_step);
        }
        sums
    }
}

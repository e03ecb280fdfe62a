//! The one inner loop behind every convolution: a tile of a matrix product that stays in registers.

use super::simd::Simd;

/// Σ over k of a\[k\] ⊗ b\[k\]: `M` rows by `N` vectors, in registers.
///
/// Row i of step k is `a[k · a_step + i]`; vector j of step k is `b[j][offsets[k]..]`.
///
/// # Safety
/// Below `dispatch`; `a` must hold (depth - 1) · a_step + M elements, `offsets` `depth` of them, and each `b[j]` the lanes
/// behind every offset.
#[inline(always)]
pub(crate) unsafe fn tile<V: Simd, const M: usize, const N: usize>(
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

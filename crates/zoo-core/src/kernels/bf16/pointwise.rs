//! Sums and functions of bfloat16 maps, element by element.

use crate::kernels::buffer::written;
use crate::kernels::simd::{Kernel, Simd, dispatch};
use half::bf16;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Numbers of one task.
const TASK: usize = 1 << 15;

/// a + b.
pub(crate) fn add(a: &[bf16], b: &[bf16]) -> Vec<bf16> {
    assert_eq!(a.len(), b.len());
    let fill = |out: &mut [MaybeUninit<bf16>]| {
        let parts = out.par_chunks_mut(TASK).zip(a.par_chunks(TASK)).zip(b.par_chunks(TASK));
        parts.for_each(|((out, a), b)| {
            dispatch(Add { n: a.len(), to: out.as_mut_ptr().cast(), a: a.as_ptr(), b: b.as_ptr() });
        });
    };
    // SAFETY: the chunks have the same lengths, and every element is written.
    unsafe { written(a.len(), fill) }
}

/// a + b over a.
pub(crate) fn add_to(a: &mut [bf16], b: &[bf16]) {
    assert_eq!(a.len(), b.len());
    a.par_chunks_mut(TASK).zip(b.par_chunks(TASK)).for_each(|(a, b)| {
        let (to, n) = (a.as_mut_ptr(), a.len());
        dispatch(Add { n, to, a: to, b: b.as_ptr() });
    });
}

/// A sum of n numbers, which may be written over the first of its terms.
struct Add {
    n: usize,
    to: *mut bf16,
    a: *const bf16,
    b: *const bf16,
}

impl Kernel<f32> for Add {
    const NARROWS: bool = true;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let Self { n, to, a, b } = self;
        let whole = n - n % V::LANES;
        // SAFETY: n numbers behind every pointer; a vector is read before it is written, the last one cut to what is
        // left.
        unsafe {
            for i in (0..whole).step_by(V::LANES) {
                V::load_bf16(a.add(i)).add(V::load_bf16(b.add(i))).store_bf16(to.add(i));
            }
            let rest = n - whole;
            let sum = V::load_first_bf16(a.add(whole), rest).add(V::load_first_bf16(b.add(whole), rest));
            sum.store_first_bf16(to.add(whole), rest);
        }
    }
}

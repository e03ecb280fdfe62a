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
        parts.for_each(|((out, a), b)| dispatch(Add { out, a, b }));
    };
    // SAFETY: the chunks have the same lengths, and every element is written.
    unsafe { written(a.len(), fill) }
}

struct Add<'a> {
    out: &'a mut [MaybeUninit<bf16>],
    a: &'a [bf16],
    b: &'a [bf16],
}

impl Kernel<f32> for Add<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let (n, to) = (self.a.len(), self.out.as_mut_ptr().cast::<bf16>());
        let (a, b) = (self.a.as_ptr(), self.b.as_ptr());
        let whole = n - n % V::LANES;
        // SAFETY: `add` gives three slices of n numbers; the last vector is cut to what is left.
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

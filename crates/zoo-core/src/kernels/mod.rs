//! Kernels for the host. They work on plain slices whose lengths the callers have checked, are parallel over images or
//! planes, and **reduce in an order that does not depend on the number of threads**: the same input gives the same
//! bits.

pub(crate) mod attention;
pub(crate) mod batch_norm;
pub(crate) mod bf16;
pub(crate) mod bias;
mod blocking;
pub(crate) mod buffer;
pub(crate) mod conv;
pub(crate) mod copy;
pub(crate) mod cross_entropy;
pub(crate) mod fused_activation;
pub(crate) mod gemm;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod low_parts;
pub(crate) mod math;
mod microkernel;
pub(crate) mod optim;
pub(crate) mod pointwise;
pub(crate) mod pool;
pub(crate) mod residual_block;
pub mod simd;
pub(crate) mod softmax;
mod stored;

pub(crate) use simd::Real;

/// Σ x, over sixteen independent lanes: the compiler turns them into vector registers, and the error grows with n/16.
pub(crate) fn sum<T: Real>(xs: &[T]) -> T {
    lanes(xs.len(), |i| xs[i])
}

/// Σ f(i) for i in 0..n, in sixteen lanes.
#[inline(always)]
pub(crate) fn lanes<T: Real>(n: usize, f: impl Fn(usize) -> T) -> T {
    const LANES: usize = 16;
    let mut acc = [T::zero(); LANES];
    let whole = n - n % LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, a) in acc.iter_mut().enumerate() {
            *a += f(start + lane);
        }
    }
    let mut total = acc.into_iter().fold(T::zero(), |a, b| a + b);
    for i in whole..n {
        total += f(i);
    }
    total
}

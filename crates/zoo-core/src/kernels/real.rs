//! The element types of the kernels.

use super::simd::{self, Simd};
use candle_core::WithDType;
use std::ops::Neg;

/// The element types that have kernels: f32 to work in, f64 to check gradients in.
pub(crate) trait Real: WithDType + Neg<Output = Self> {
    /// The registers of each kind that hold it.
    #[cfg(target_arch = "x86_64")]
    type Avx512: Simd<Elem = Self>;
    #[cfg(target_arch = "x86_64")]
    type Avx2: Simd<Elem = Self>;
    type Portable: Simd<Elem = Self>;
}

impl Real for f32 {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = simd::F32x16;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = simd::F32x8;
    type Portable = simd::Lanes<f32, 8>;
}

impl Real for f64 {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = simd::F64x8;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = simd::F64x4;
    type Portable = simd::Lanes<f64, 4>;
}

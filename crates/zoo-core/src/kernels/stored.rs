//! Numbers as they lie in memory: those that kernels compute with, and bfloat16 ones, which they widen on the way.

use super::math::{NORMAL_DENSITY, gelu_for_bf16, gelu_with_slope_for_bf16, normal, num};
use super::simd::{Real, Simd};
use half::bf16;

/// A number in memory, for kernels whose formulas are the same whatever the memory holds.
pub(crate) trait Stored: Copy + Send + Sync {
    /// Whether storing rounds to bfloat16.
    const NARROWS: bool;
    /// What it is in a register.
    type Elem: Real;

    /// # Safety
    /// Below `dispatch`; a vector of numbers behind the pointer.
    unsafe fn load<V: Simd<Elem = Self::Elem>>(from: *const Self) -> V;
    /// The first `n` lanes, zeros behind.
    ///
    /// # Safety
    /// As [`load`](Self::load), of n numbers.
    unsafe fn load_first<V: Simd<Elem = Self::Elem>>(from: *const Self, n: usize) -> V;
    /// # Safety
    /// As [`load`](Self::load).
    unsafe fn store<V: Simd<Elem = Self::Elem>>(x: V, to: *mut Self);
    /// # Safety
    /// As [`load_first`](Self::load_first).
    unsafe fn store_first<V: Simd<Elem = Self::Elem>>(x: V, to: *mut Self, n: usize);
    /// x · Φ(x), as exact as the memory holds it.
    ///
    /// # Safety
    /// Below `dispatch`.
    unsafe fn gelu<V: Simd<Elem = Self::Elem>>(x: V) -> V;
    /// The same, and its derivative.
    ///
    /// # Safety
    /// Below `dispatch`.
    unsafe fn gelu_with_slope<V: Simd<Elem = Self::Elem>>(x: V) -> (V, V);
}

impl<T: Real> Stored for T {
    const NARROWS: bool = false;
    type Elem = T;

    #[inline(always)]
    unsafe fn load<V: Simd<Elem = T>>(from: *const T) -> V {
        // SAFETY: the caller's.
        unsafe { V::load(from) }
    }
    #[inline(always)]
    unsafe fn load_first<V: Simd<Elem = T>>(from: *const T, n: usize) -> V {
        // SAFETY: the caller's.
        unsafe { V::load_first(from, n) }
    }
    #[inline(always)]
    unsafe fn store<V: Simd<Elem = T>>(x: V, to: *mut T) {
        // SAFETY: the caller's.
        unsafe { x.store(to) }
    }
    #[inline(always)]
    unsafe fn store_first<V: Simd<Elem = T>>(x: V, to: *mut T, n: usize) {
        // SAFETY: the caller's.
        unsafe { x.store_first(to, n) }
    }
    #[inline(always)]
    unsafe fn gelu<V: Simd<Elem = T>>(x: V) -> V {
        // SAFETY: the caller's.
        unsafe { x.mul(normal(x).0) }
    }
    #[inline(always)]
    unsafe fn gelu_with_slope<V: Simd<Elem = T>>(x: V) -> (V, V) {
        // SAFETY: the caller's.
        unsafe {
            let (cdf, density) = normal(x);
            (x.mul(cdf), x.mul(density).mul_add(num(NORMAL_DENSITY), cdf))
        }
    }
}

impl Stored for bf16 {
    const NARROWS: bool = true;
    type Elem = f32;

    #[inline(always)]
    unsafe fn load<V: Simd<Elem = f32>>(from: *const bf16) -> V {
        // SAFETY: the caller's.
        unsafe { V::load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn load_first<V: Simd<Elem = f32>>(from: *const bf16, n: usize) -> V {
        // SAFETY: the caller's.
        unsafe { V::load_first_bf16(from, n) }
    }
    #[inline(always)]
    unsafe fn store<V: Simd<Elem = f32>>(x: V, to: *mut bf16) {
        // SAFETY: the caller's.
        unsafe { x.store_bf16(to) }
    }
    #[inline(always)]
    unsafe fn store_first<V: Simd<Elem = f32>>(x: V, to: *mut bf16, n: usize) {
        // SAFETY: the caller's.
        unsafe { x.store_first_bf16(to, n) }
    }
    #[inline(always)]
    unsafe fn gelu<V: Simd<Elem = f32>>(x: V) -> V {
        // SAFETY: the caller's.
        unsafe { gelu_for_bf16(x) }
    }
    #[inline(always)]
    unsafe fn gelu_with_slope<V: Simd<Elem = f32>>(x: V) -> (V, V) {
        // SAFETY: the caller's.
        unsafe { gelu_with_slope_for_bf16(x) }
    }
}

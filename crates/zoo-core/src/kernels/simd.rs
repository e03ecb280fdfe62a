//! Vectors of the machine: one trait, four kinds of register, chosen at run time.
//!
//! A kernel is written once over `Simd`, a handful of lanes of f32 or f64, and started through `dispatch`, which picks
//! the widest registers that the machine has: AVX-512, AVX2 with FMA, or arrays that the compiler lays into whatever the
//! target guarantees (SSE2 on x86-64, NEON on AArch64). [`force`] and the environment variable `ZOO_SIMD` choose a
//! narrower kind, to test it or to compare.
//!
//! Everything on the way from `dispatch` to the instruction is `#[inline(always)]`: only so does a kernel take on the target
//! features of the function that starts it.

use super::real::Real;
use candle_core::{Result, WithDType, bail};
use std::sync::atomic::{AtomicU8, Ordering};

/// A kind of vector registers, from the narrowest to the widest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// What every machine of the target has; NEON on AArch64.
    Portable = 1,
    /// 256 bits with fused multiply-add.
    Avx2 = 2,
    /// 512 bits.
    Avx512 = 3,
}

/// 0: not chosen yet.
static LEVEL: AtomicU8 = AtomicU8::new(0);

impl Level {
    const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// Whether this machine can run it.
    pub fn is_supported(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => is_x86_feature_detected!("avx512f"),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Every kind that this machine can run, narrowest first.
    pub fn supported() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|level| level.is_supported())
    }

    /// The name that `ZOO_SIMD` takes: `portable`, `avx2` or `avx512`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// The kind that kernels run with now.
    pub fn current() -> Self {
        match LEVEL.load(Ordering::Relaxed) {
            1 => Self::Portable,
            2 => Self::Avx2,
            3 => Self::Avx512,
            _ => Self::choose(),
        }
    }

    #[cold]
    fn choose() -> Self {
        let widest = Self::supported().last().unwrap_or(Self::Portable);
        // A wish that this machine cannot fulfil would end in an illegal instruction; a name that nobody knows is no wish.
        let wish = std::env::var("ZOO_SIMD").ok();
        let level = match Self::supported().find(|level| Some(level.name()) == wish.as_deref()) {
            Some(level) => level,
            None => {
                if let Some(wish) = wish {
                    eprintln!("ZOO_SIMD={wish} is no kind of vectors that this machine has; using {}", widest.name());
                }
                widest
            }
        };
        LEVEL.store(level as u8, Ordering::Relaxed);
        level
    }
}

/// Makes every kernel of this process run with `level`; `None` chooses anew. Results of different kinds differ by roundings.
///
/// # Errors
/// A kind that this machine does not have.
pub fn force(level: Option<Level>) -> Result<()> {
    match level {
        Some(level) if !level.is_supported() => bail!("this machine has no {} vectors", level.name()),
        _ => LEVEL.store(level.map_or(0, |level| level as u8), Ordering::Relaxed),
    }
    Ok(())
}

/// A vector register of `LANES` elements.
///
/// # Safety
/// Every method may use instructions that only machines with the register's [`Level`] have: call them below [`dispatch`]
/// only. The pointers of loads and stores must be valid for the lanes that they touch; no alignment is asked for.
pub(crate) trait Simd: Copy {
    type Elem: Real;
    const LANES: usize;
    /// Rows of the tile of a matrix product that this kind of register file holds, see `microkernel.rs`.
    const ROWS: usize;

    unsafe fn splat(x: Self::Elem) -> Self;
    unsafe fn load(from: *const Self::Elem) -> Self;
    unsafe fn store(self, to: *mut Self::Elem);
    /// The first `n` lanes, zeros behind them; n ≤ LANES.
    unsafe fn load_first(from: *const Self::Elem, n: usize) -> Self;
    /// Stores the first `n` lanes; n ≤ LANES.
    unsafe fn store_first(self, to: *mut Self::Elem, n: usize);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// self · a + b, rounded once where the machine can.
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
    /// `a` where self > `limit`, otherwise `b`; a NaN in self gives `b`.
    unsafe fn if_greater(self, limit: Self, a: Self, b: Self) -> Self;
    /// To the nearest integer, ties to even. Defined for |x| < 2²².
    unsafe fn round(self) -> Self;
    /// 2^self for integers in the range of normal numbers.
    unsafe fn exp2_of_integer(self) -> Self;
    /// `a` where self ≤ `limit`, otherwise `b`; a NaN in self gives `b`.
    unsafe fn if_at_most(self, limit: Self, a: Self, b: Self) -> Self;
    /// Transposes LANES rows of LANES elements.
    unsafe fn transpose(from: *const Self::Elem, from_stride: usize, to: *mut Self::Elem, to_stride: usize);

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller stands below `dispatch`.
        unsafe { Self::splat(Self::Elem::from_f64(0.0)) }
    }

    /// The larger one; `other` if self is NaN.
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { self.if_greater(other, self, other) }
    }

    /// Σ lanes, in a fixed order.
    #[inline(always)]
    unsafe fn sum(self) -> Self::Elem {
        let mut lanes = [Self::Elem::from_f64(0.0); 16];
        // SAFETY: no register has more than sixteen lanes.
        unsafe { self.store(lanes.as_mut_ptr()) };
        let mut n = Self::LANES;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                lanes[i] += lanes[i + n];
            }
        }
        lanes[0]
    }

    /// The largest lane; none may be NaN.
    #[inline(always)]
    unsafe fn largest(self) -> Self::Elem {
        let mut lanes = [Self::Elem::from_f64(f64::NEG_INFINITY); 16];
        // SAFETY: no register has more than sixteen lanes.
        unsafe { self.store(lanes.as_mut_ptr()) };
        let mut n = 16;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                lanes[i] = if lanes[i + n] > lanes[i] { lanes[i + n] } else { lanes[i] };
            }
        }
        lanes[0]
    }

    /// The lanes whose bit in `lanes` is set, zeros elsewhere; touches no other element.
    unsafe fn load_where(from: *const Self::Elem, lanes: u32) -> Self;
    /// The elements at even and at odd places of `self` followed by `other`.
    unsafe fn deinterleave(self, other: Self) -> (Self, Self);
    /// self\[0\], other\[0\], self\[1\], other\[1\], …
    unsafe fn interleave(self, other: Self) -> (Self, Self);
    /// `a` where self is NaN, otherwise `b`.
    unsafe fn if_nan(self, a: Self, b: Self) -> Self;
}

/// Asks for a cache line that is going to be read, in the second-level cache. Any address will do.
#[inline(always)]
pub(crate) fn prefetch<T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which reads nothing; SSE belongs to the target.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Asks for a cache line that is going to be written. Any address will do.
#[inline(always)]
pub(crate) fn prefetch_to_write<T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which writes nothing; without the instruction it is a no-operation.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_ET0 }>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Work over vectors: `run` must be `#[inline(always)]`, and so must everything it calls.
pub(crate) trait Kernel<T: Real> {
    type Output;
    /// # Safety
    /// The machine must have `V`'s registers. Started by [`dispatch`] alone.
    unsafe fn run<V: Simd<Elem = T>>(self) -> Self::Output;
}

/// Runs a kernel with the registers of [`Level::current`].
#[inline]
pub(crate) fn dispatch<T: Real, K: Kernel<T>>(kernel: K) -> K::Output {
    dispatch_at(Level::current(), kernel)
}

/// Runs a kernel with the registers of `level`, which this machine must have: what [`Level::current`] says. A kernel whose
/// callers lay data out for its registers asks for the level once.
#[inline]
pub(crate) fn dispatch_at<T: Real, K: Kernel<T>>(level: Level, kernel: K) -> K::Output {
    debug_assert!(level.is_supported());
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        unsafe fn avx512<T: Real, K: Kernel<T>>(kernel: K) -> K::Output {
            // SAFETY: this function is entered on machines with AVX-512 only.
            unsafe { kernel.run::<T::Avx512>() }
        }
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2<T: Real, K: Kernel<T>>(kernel: K) -> K::Output {
            // SAFETY: this function is entered on machines with AVX2 and FMA only.
            unsafe { kernel.run::<T::Avx2>() }
        }
        match level {
            // SAFETY: `Level::current` names supported levels only.
            Level::Avx512 => return unsafe { avx512(kernel) },
            // SAFETY: as above.
            Level::Avx2 => return unsafe { avx2(kernel) },
            Level::Portable => {}
        }
    }
    // SAFETY: arrays need no feature.
    unsafe { kernel.run::<T::Portable>() }
}

/// Lanes in an array, for the compiler to lay into the registers that the target guarantees.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<T, const N: usize>([T; N]);

/// Transposes element by element.
macro_rules! transpose_by_element {
    () => {
        #[inline(always)]
        unsafe fn transpose(from: *const Self::Elem, from_stride: usize, to: *mut Self::Elem, to_stride: usize) {
            for i in 0..Self::LANES {
                for j in 0..Self::LANES {
                    // SAFETY: the caller's blocks hold LANES rows of LANES elements.
                    unsafe { *to.add(j * to_stride + i) = *from.add(i * from_stride + j) };
                }
            }
        }
    };
}

macro_rules! portable {
    ($t:ty, $bits:ty, $mantissa:expr, $bias:expr, $n:expr) => {
        impl Simd for Lanes<$t, $n> {
            type Elem = $t;
            const LANES: usize = $n;
            const ROWS: usize = 4;

            #[inline(always)]
            unsafe fn splat(x: $t) -> Self {
                Self([x; $n])
            }
            #[inline(always)]
            unsafe fn load(from: *const $t) -> Self {
                // SAFETY: the caller's pointer holds the lanes.
                Self(unsafe { from.cast::<[$t; $n]>().read_unaligned() })
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut $t) {
                // SAFETY: the caller's pointer holds the lanes.
                unsafe { to.cast::<[$t; $n]>().write_unaligned(self.0) }
            }
            #[inline(always)]
            unsafe fn load_first(from: *const $t, n: usize) -> Self {
                let mut lanes = [0.0; $n];
                // SAFETY: the caller's pointer holds n lanes, and n ≤ LANES.
                unsafe { std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), n) };
                Self(lanes)
            }
            #[inline(always)]
            unsafe fn store_first(self, to: *mut $t, n: usize) {
                // SAFETY: the caller's pointer holds n lanes, and n ≤ LANES.
                unsafe { std::ptr::copy_nonoverlapping(self.0.as_ptr(), to, n) };
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
            }
            #[inline(always)]
            unsafe fn sub(self, other: Self) -> Self {
                Self(std::array::from_fn(|i| self.0[i] - other.0[i]))
            }
            #[inline(always)]
            unsafe fn mul(self, other: Self) -> Self {
                Self(std::array::from_fn(|i| self.0[i] * other.0[i]))
            }
            #[inline(always)]
            unsafe fn div(self, other: Self) -> Self {
                Self(std::array::from_fn(|i| self.0[i] / other.0[i]))
            }
            #[inline(always)]
            unsafe fn mul_add(self, a: Self, b: Self) -> Self {
                // Without the instruction `mul_add` would call a function for each lane.
                if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
                    Self(std::array::from_fn(|i| self.0[i].mul_add(a.0[i], b.0[i])))
                } else {
                    Self(std::array::from_fn(|i| self.0[i] * a.0[i] + b.0[i]))
                }
            }
            #[inline(always)]
            unsafe fn if_greater(self, limit: Self, a: Self, b: Self) -> Self {
                Self(std::array::from_fn(|i| if self.0[i] > limit.0[i] { a.0[i] } else { b.0[i] }))
            }
            #[inline(always)]
            unsafe fn if_at_most(self, limit: Self, a: Self, b: Self) -> Self {
                Self(std::array::from_fn(|i| if self.0[i] <= limit.0[i] { a.0[i] } else { b.0[i] }))
            }
            #[inline(always)]
            unsafe fn round(self) -> Self {
                // Adding 1.5 · 2^mantissa leaves no bits for a fraction.
                const MAGIC: $t = 1.5 * (1u64 << $mantissa) as $t;
                Self(std::array::from_fn(|i| (self.0[i] + MAGIC) - MAGIC))
            }
            #[inline(always)]
            unsafe fn exp2_of_integer(self) -> Self {
                Self(std::array::from_fn(|i| {
                    // SAFETY: the caller's integers lie in the range of exponents.
                    let exponent: $bits = unsafe { self.0[i].to_int_unchecked() };
                    <$t>::from_bits(((exponent + $bias) << $mantissa) as _)
                }))
            }
            transpose_by_element!();
            #[inline(always)]
            unsafe fn load_where(from: *const $t, lanes: u32) -> Self {
                if lanes == (1 << $n) - 1 {
                    // SAFETY: the caller's pointer holds every lane.
                    return unsafe { Self::load(from) };
                }
                let mut out = [0.0; $n];
                for (i, out) in out.iter_mut().enumerate() {
                    if lanes >> i & 1 == 1 {
                        // SAFETY: the caller's pointer holds the lanes that are set.
                        *out = unsafe { *from.wrapping_add(i) };
                    }
                }
                Self(out)
            }
            #[inline(always)]
            unsafe fn deinterleave(self, other: Self) -> (Self, Self) {
                let at = |i: usize| if i < $n { self.0[i] } else { other.0[i - $n] };
                (Self(std::array::from_fn(|i| at(2 * i))), Self(std::array::from_fn(|i| at(2 * i + 1))))
            }
            #[inline(always)]
            unsafe fn interleave(self, other: Self) -> (Self, Self) {
                let at = |i: usize| if i % 2 == 0 { self.0[i / 2] } else { other.0[i / 2] };
                (Self(std::array::from_fn(at)), Self(std::array::from_fn(|i| at(i + $n))))
            }
            #[inline(always)]
            unsafe fn if_nan(self, a: Self, b: Self) -> Self {
                Self(std::array::from_fn(|i| if self.0[i].is_nan() { a.0[i] } else { b.0[i] }))
            }
        }
    };
}
portable!(f32, i32, 23, 127, 8);
portable!(f64, i64, 52, 1023, 4);

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    macro_rules! method {
        ($name:ident($($arg:ident: $t:ty),*) -> $r:ty = $body:expr) => {
            #[inline(always)]
            unsafe fn $name($($arg: $t),*) -> $r {
                // SAFETY: callers stand below `dispatch`, which has checked for the instructions; their pointers hold the
                // lanes that are touched.
                unsafe { $body }
            }
        };
    }

    #[derive(Clone, Copy)]
    pub(crate) struct F32x16(__m512);
    #[derive(Clone, Copy)]
    pub(crate) struct F64x8(__m512d);
    #[derive(Clone, Copy)]
    pub(crate) struct F32x8(__m256);
    #[derive(Clone, Copy)]
    pub(crate) struct F64x4(__m256d);

    impl Simd for F32x16 {
        type Elem = f32;
        const LANES: usize = 16;
        const ROWS: usize = 8;
        method!(splat(x: f32) -> Self = Self(_mm512_set1_ps(x)));
        method!(load(from: *const f32) -> Self = Self(_mm512_loadu_ps(from)));
        method!(store(self: Self, to: *mut f32) -> () = _mm512_storeu_ps(to, self.0));
        method!(load_first(from: *const f32, n: usize) -> Self =
            Self(_mm512_maskz_loadu_ps(((1u32 << n) - 1) as __mmask16, from)));
        method!(store_first(self: Self, to: *mut f32, n: usize) -> () =
            _mm512_mask_storeu_ps(to, ((1u32 << n) - 1) as __mmask16, self.0));
        method!(add(self: Self, other: Self) -> Self = Self(_mm512_add_ps(self.0, other.0)));
        method!(sub(self: Self, other: Self) -> Self = Self(_mm512_sub_ps(self.0, other.0)));
        method!(mul(self: Self, other: Self) -> Self = Self(_mm512_mul_ps(self.0, other.0)));
        method!(div(self: Self, other: Self) -> Self = Self(_mm512_div_ps(self.0, other.0)));
        method!(mul_add(self: Self, a: Self, b: Self) -> Self = Self(_mm512_fmadd_ps(self.0, a.0, b.0)));
        method!(if_greater(self: Self, limit: Self, a: Self, b: Self) -> Self =
            Self(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, limit.0), b.0, a.0)));
        method!(if_at_most(self: Self, limit: Self, a: Self, b: Self) -> Self =
            Self(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LE_OQ>(self.0, limit.0), b.0, a.0)));
        method!(round(self: Self) -> Self = Self(_mm512_roundscale_ps::<0>(self.0)));
        method!(exp2_of_integer(self: Self) -> Self = {
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent)))
        });

        #[inline(always)]
        unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
            // SAFETY: AVX-512 is there, and the blocks hold sixteen rows of sixteen elements.
            unsafe {
                let r: [__m512; 16] = std::array::from_fn(|i| _mm512_loadu_ps(from.add(i * from_stride)));
                // Pairs of rows, then fours: within each 128-bit quarter q, t[4i + j] holds column 4q + j of rows 4i..4i + 4.
                let mut t = [_mm512_setzero_ps(); 16];
                for i in 0..4 {
                    let (a, b, c, d) = (r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3]);
                    let (ab0, ab1) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
                    let (cd0, cd1) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
                    t[4 * i] = _mm512_shuffle_ps::<0x44>(ab0, cd0);
                    t[4 * i + 1] = _mm512_shuffle_ps::<0xee>(ab0, cd0);
                    t[4 * i + 2] = _mm512_shuffle_ps::<0x44>(ab1, cd1);
                    t[4 * i + 3] = _mm512_shuffle_ps::<0xee>(ab1, cd1);
                }
                // Then the quarters: column 4q + j of all rows.
                for j in 0..4 {
                    let (low_even, low_odd) =
                        (_mm512_shuffle_f32x4::<0x88>(t[j], t[4 + j]), _mm512_shuffle_f32x4::<0xdd>(t[j], t[4 + j]));
                    let (high_even, high_odd) = (
                        _mm512_shuffle_f32x4::<0x88>(t[8 + j], t[12 + j]),
                        _mm512_shuffle_f32x4::<0xdd>(t[8 + j], t[12 + j]),
                    );
                    let column = |q: usize| to.add((4 * q + j) * to_stride);
                    _mm512_storeu_ps(column(0), _mm512_shuffle_f32x4::<0x88>(low_even, high_even));
                    _mm512_storeu_ps(column(2), _mm512_shuffle_f32x4::<0xdd>(low_even, high_even));
                    _mm512_storeu_ps(column(1), _mm512_shuffle_f32x4::<0x88>(low_odd, high_odd));
                    _mm512_storeu_ps(column(3), _mm512_shuffle_f32x4::<0xdd>(low_odd, high_odd));
                }
            }
        }

        method!(load_where(from: *const f32, lanes: u32) -> Self = Self(_mm512_maskz_loadu_ps(lanes as __mmask16, from)));
        method!(deinterleave(self: Self, other: Self) -> (Self, Self) = {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            (
                Self(_mm512_permutex2var_ps(self.0, even, other.0)),
                Self(_mm512_permutex2var_ps(self.0, odd, other.0)),
            )
        });
        method!(interleave(self: Self, other: Self) -> (Self, Self) = {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            (
                Self(_mm512_permutex2var_ps(self.0, low, other.0)),
                Self(_mm512_permutex2var_ps(self.0, high, other.0)),
            )
        });
        method!(if_nan(self: Self, a: Self, b: Self) -> Self =
            Self(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0), b.0, a.0)));
    }

    impl Simd for F64x8 {
        type Elem = f64;
        const LANES: usize = 8;
        const ROWS: usize = 8;
        method!(splat(x: f64) -> Self = Self(_mm512_set1_pd(x)));
        method!(load(from: *const f64) -> Self = Self(_mm512_loadu_pd(from)));
        method!(store(self: Self, to: *mut f64) -> () = _mm512_storeu_pd(to, self.0));
        method!(load_first(from: *const f64, n: usize) -> Self =
            Self(_mm512_maskz_loadu_pd(((1u32 << n) - 1) as __mmask8, from)));
        method!(store_first(self: Self, to: *mut f64, n: usize) -> () =
            _mm512_mask_storeu_pd(to, ((1u32 << n) - 1) as __mmask8, self.0));
        method!(add(self: Self, other: Self) -> Self = Self(_mm512_add_pd(self.0, other.0)));
        method!(sub(self: Self, other: Self) -> Self = Self(_mm512_sub_pd(self.0, other.0)));
        method!(mul(self: Self, other: Self) -> Self = Self(_mm512_mul_pd(self.0, other.0)));
        method!(div(self: Self, other: Self) -> Self = Self(_mm512_div_pd(self.0, other.0)));
        method!(mul_add(self: Self, a: Self, b: Self) -> Self = Self(_mm512_fmadd_pd(self.0, a.0, b.0)));
        method!(if_greater(self: Self, limit: Self, a: Self, b: Self) -> Self =
            Self(_mm512_mask_blend_pd(_mm512_cmp_pd_mask::<_CMP_GT_OQ>(self.0, limit.0), b.0, a.0)));
        method!(if_at_most(self: Self, limit: Self, a: Self, b: Self) -> Self =
            Self(_mm512_mask_blend_pd(_mm512_cmp_pd_mask::<_CMP_LE_OQ>(self.0, limit.0), b.0, a.0)));
        method!(round(self: Self) -> Self = Self(_mm512_roundscale_pd::<0>(self.0)));
        method!(exp2_of_integer(self: Self) -> Self = {
            let integers = _mm512_cvtepi32_epi64(_mm512_cvtpd_epi32(self.0));
            let exponent = _mm512_add_epi64(integers, _mm512_set1_epi64(1023));
            Self(_mm512_castsi512_pd(_mm512_slli_epi64::<52>(exponent)))
        });
        transpose_by_element!();

        method!(load_where(from: *const f64, lanes: u32) -> Self = Self(_mm512_maskz_loadu_pd(lanes as __mmask8, from)));
        method!(deinterleave(self: Self, other: Self) -> (Self, Self) = {
            let even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
            let odd = _mm512_add_epi64(even, _mm512_set1_epi64(1));
            (
                Self(_mm512_permutex2var_pd(self.0, even, other.0)),
                Self(_mm512_permutex2var_pd(self.0, odd, other.0)),
            )
        });
        method!(interleave(self: Self, other: Self) -> (Self, Self) = {
            let low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
            let high = _mm512_add_epi64(low, _mm512_set1_epi64(4));
            (
                Self(_mm512_permutex2var_pd(self.0, low, other.0)),
                Self(_mm512_permutex2var_pd(self.0, high, other.0)),
            )
        });
        method!(if_nan(self: Self, a: Self, b: Self) -> Self =
            Self(_mm512_mask_blend_pd(_mm512_cmp_pd_mask::<_CMP_UNORD_Q>(self.0, self.0), b.0, a.0)));
    }

    /// Lanes below `n` have their high bit set, as AVX2's masked moves want it.
    #[inline(always)]
    unsafe fn mask8(n: usize) -> __m256i {
        // SAFETY: below `dispatch`, on a machine with AVX2.
        unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
    }

    #[inline(always)]
    unsafe fn mask4(n: usize) -> __m256i {
        // SAFETY: below `dispatch`, on a machine with AVX2.
        unsafe { _mm256_cmpgt_epi64(_mm256_set1_epi64x(n as i64), _mm256_setr_epi64x(0, 1, 2, 3)) }
    }

    impl Simd for F32x8 {
        type Elem = f32;
        const LANES: usize = 8;
        const ROWS: usize = 4;
        method!(splat(x: f32) -> Self = Self(_mm256_set1_ps(x)));
        method!(load(from: *const f32) -> Self = Self(_mm256_loadu_ps(from)));
        method!(store(self: Self, to: *mut f32) -> () = _mm256_storeu_ps(to, self.0));
        method!(load_first(from: *const f32, n: usize) -> Self = Self(_mm256_maskload_ps(from, mask8(n))));
        method!(store_first(self: Self, to: *mut f32, n: usize) -> () = _mm256_maskstore_ps(to, mask8(n), self.0));
        method!(add(self: Self, other: Self) -> Self = Self(_mm256_add_ps(self.0, other.0)));
        method!(sub(self: Self, other: Self) -> Self = Self(_mm256_sub_ps(self.0, other.0)));
        method!(mul(self: Self, other: Self) -> Self = Self(_mm256_mul_ps(self.0, other.0)));
        method!(div(self: Self, other: Self) -> Self = Self(_mm256_div_ps(self.0, other.0)));
        method!(mul_add(self: Self, a: Self, b: Self) -> Self = Self(_mm256_fmadd_ps(self.0, a.0, b.0)));
        method!(if_greater(self: Self, limit: Self, a: Self, b: Self) -> Self =
            Self(_mm256_blendv_ps(b.0, a.0, _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, limit.0))));
        method!(if_at_most(self: Self, limit: Self, a: Self, b: Self) -> Self =
            Self(_mm256_blendv_ps(b.0, a.0, _mm256_cmp_ps::<_CMP_LE_OQ>(self.0, limit.0))));
        method!(round(self: Self) -> Self = Self(_mm256_round_ps::<0>(self.0)));
        method!(exp2_of_integer(self: Self) -> Self = {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), _mm256_set1_epi32(127));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        });
        transpose_by_element!();

        method!(load_where(from: *const f32, lanes: u32) -> Self = {
            let bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let mask = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(lanes as i32), bits), bits);
            Self(_mm256_maskload_ps(from, mask))
        });
        method!(deinterleave(self: Self, other: Self) -> (Self, Self) = {
            let even = _mm256_castps_pd(_mm256_shuffle_ps::<0x88>(self.0, other.0));
            let odd = _mm256_castps_pd(_mm256_shuffle_ps::<0xdd>(self.0, other.0));
            (
                Self(_mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(even))),
                Self(_mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(odd))),
            )
        });
        method!(interleave(self: Self, other: Self) -> (Self, Self) = {
            let (a, b) = (_mm256_unpacklo_ps(self.0, other.0), _mm256_unpackhi_ps(self.0, other.0));
            (Self(_mm256_permute2f128_ps::<0x20>(a, b)), Self(_mm256_permute2f128_ps::<0x31>(a, b)))
        });
        method!(if_nan(self: Self, a: Self, b: Self) -> Self =
            Self(_mm256_blendv_ps(b.0, a.0, _mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0))));
    }

    impl Simd for F64x4 {
        type Elem = f64;
        const LANES: usize = 4;
        const ROWS: usize = 4;
        method!(splat(x: f64) -> Self = Self(_mm256_set1_pd(x)));
        method!(load(from: *const f64) -> Self = Self(_mm256_loadu_pd(from)));
        method!(store(self: Self, to: *mut f64) -> () = _mm256_storeu_pd(to, self.0));
        method!(load_first(from: *const f64, n: usize) -> Self = Self(_mm256_maskload_pd(from, mask4(n))));
        method!(store_first(self: Self, to: *mut f64, n: usize) -> () = _mm256_maskstore_pd(to, mask4(n), self.0));
        method!(add(self: Self, other: Self) -> Self = Self(_mm256_add_pd(self.0, other.0)));
        method!(sub(self: Self, other: Self) -> Self = Self(_mm256_sub_pd(self.0, other.0)));
        method!(mul(self: Self, other: Self) -> Self = Self(_mm256_mul_pd(self.0, other.0)));
        method!(div(self: Self, other: Self) -> Self = Self(_mm256_div_pd(self.0, other.0)));
        method!(mul_add(self: Self, a: Self, b: Self) -> Self = Self(_mm256_fmadd_pd(self.0, a.0, b.0)));
        method!(if_greater(self: Self, limit: Self, a: Self, b: Self) -> Self =
            Self(_mm256_blendv_pd(b.0, a.0, _mm256_cmp_pd::<_CMP_GT_OQ>(self.0, limit.0))));
        method!(if_at_most(self: Self, limit: Self, a: Self, b: Self) -> Self =
            Self(_mm256_blendv_pd(b.0, a.0, _mm256_cmp_pd::<_CMP_LE_OQ>(self.0, limit.0))));
        method!(round(self: Self) -> Self = Self(_mm256_round_pd::<0>(self.0)));
        method!(exp2_of_integer(self: Self) -> Self = {
            let exponent = _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(self.0)), _mm256_set1_epi64x(1023));
            Self(_mm256_castsi256_pd(_mm256_slli_epi64::<52>(exponent)))
        });
        transpose_by_element!();

        method!(load_where(from: *const f64, lanes: u32) -> Self = {
            let bits = _mm256_setr_epi64x(1, 2, 4, 8);
            let mask = _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(i64::from(lanes)), bits), bits);
            Self(_mm256_maskload_pd(from, mask))
        });
        method!(deinterleave(self: Self, other: Self) -> (Self, Self) = (
            Self(_mm256_permute4x64_pd::<0xd8>(_mm256_unpacklo_pd(self.0, other.0))),
            Self(_mm256_permute4x64_pd::<0xd8>(_mm256_unpackhi_pd(self.0, other.0))),
        ));
        method!(interleave(self: Self, other: Self) -> (Self, Self) = {
            let (a, b) = (_mm256_unpacklo_pd(self.0, other.0), _mm256_unpackhi_pd(self.0, other.0));
            (Self(_mm256_permute2f128_pd::<0x20>(a, b)), Self(_mm256_permute2f128_pd::<0x31>(a, b)))
        });
        method!(if_nan(self: Self, a: Self, b: Self) -> Self =
            Self(_mm256_blendv_pd(b.0, a.0, _mm256_cmp_pd::<_CMP_UNORD_Q>(self.0, self.0))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each operation of one kind of register against the same on plain numbers.
    struct Check<T>(std::marker::PhantomData<T>);

    impl<T: Real> Kernel<T> for Check<T> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = T>>(self) {
            let n = V::LANES;
            let num = |x: f64| T::from_f64(x);
            let xs: Vec<T> = (0..n).map(|i| num(i as f64 * 1.25 - 3.0)).collect();
            let ys: Vec<T> = (0..n).map(|i| num(2.0 - i as f64 * 0.5)).collect();
            let mut out = vec![T::zero(); n];
            let check = |what: &str, out: &[T], f: &dyn Fn(usize) -> f64| {
                for (i, &o) in out.iter().enumerate() {
                    let want = f(i);
                    assert!((o.to_f64() - want).abs() <= 1e-6 * want.abs(), "{what}, lane {i}: {o} for {want}");
                }
            };
            let (a, b) = (|i: usize| xs[i].to_f64(), |i: usize| ys[i].to_f64());
            // SAFETY: run by `dispatch`; every slice has LANES elements, the blocks LANES².
            unsafe {
                let (x, y) = (V::load(xs.as_ptr()), V::load(ys.as_ptr()));
                type Lane<'a> = &'a dyn Fn(usize) -> f64;
                let ops: [(&str, V, Lane); 9] = [
                    ("if_at_most", x.if_at_most(y, x, y), &|i| a(i).min(b(i))),
                    ("add", x.add(y), &|i| a(i) + b(i)),
                    ("sub", x.sub(y), &|i| a(i) - b(i)),
                    ("mul", x.mul(y), &|i| a(i) * b(i)),
                    ("div", y.div(x.add(V::splat(num(0.1)))), &|i| b(i) / (a(i) + 0.1)),
                    ("mul_add", x.mul_add(y, x), &|i| a(i) * b(i) + a(i)),
                    ("max", x.max(y), &|i| a(i).max(b(i))),
                    ("round", x.round(), &|i| a(i).round_ties_even()),
                    ("exp2", x.round().exp2_of_integer(), &|i| a(i).round_ties_even().exp2()),
                ];
                for (name, vector, f) in ops {
                    vector.store(out.as_mut_ptr());
                    check(name, &out, f);
                }
                let sum: f64 = (0..n).map(a).sum();
                assert!((x.sum().to_f64() - sum).abs() < 1e-4 * sum.abs());
                for part in 0..=n {
                    V::load_first(xs.as_ptr(), part).store(out.as_mut_ptr());
                    check("load_first", &out, &|i| if i < part { a(i) } else { 0.0 });
                    y.store(out.as_mut_ptr());
                    x.store_first(out.as_mut_ptr(), part);
                    check("store_first", &out, &|i| if i < part { a(i) } else { b(i) });
                }
                let nan = V::splat(num(f64::NAN));
                nan.max(y).store(out.as_mut_ptr());
                check("max of NaN", &out, &b);
                nan.if_nan(x, y).store(out.as_mut_ptr());
                check("NaN is NaN", &out, &a);
                x.if_nan(nan, y).store(out.as_mut_ptr());
                check("numbers are not", &out, &b);
                for lanes in [0, 1, 0b101, 0b0110 & ((1 << n) - 1), (1 << n) - 2, (1 << n) - 1] {
                    V::load_where(xs.as_ptr(), lanes).store(out.as_mut_ptr());
                    check("load_where", &out, &|i| if lanes >> i & 1 == 1 { a(i) } else { 0.0 });
                }
                let joined = |i: usize| if i < n { a(i) } else { b(i - n) };
                let (even, odd) = x.deinterleave(y);
                even.store(out.as_mut_ptr());
                check("even", &out, &|i| joined(2 * i));
                odd.store(out.as_mut_ptr());
                check("odd", &out, &|i| joined(2 * i + 1));
                let (low, high) = even.interleave(odd);
                low.store(out.as_mut_ptr());
                check("low", &out, &a);
                high.store(out.as_mut_ptr());
                check("high", &out, &b);
                let block: Vec<T> = (0..n * (n + 3)).map(|i| num(i as f64)).collect();
                let mut turned = vec![T::zero(); n * (n + 1)];
                V::transpose(block.as_ptr(), n + 3, turned.as_mut_ptr(), n + 1);
                for i in 0..n {
                    for j in 0..n {
                        assert!(turned[j * (n + 1) + i] == block[i * (n + 3) + j], "transpose {i} {j}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_kind_of_register_computes_alike() {
        // `force` holds for the process: one test walks through the kinds, and the others may run with any of them.
        for level in Level::supported() {
            force(Some(level)).unwrap();
            dispatch_at(level, Check::<f32>(std::marker::PhantomData));
            dispatch_at(level, Check::<f64>(std::marker::PhantomData));
        }
        force(None).unwrap();
        println!("{:?}", Level::supported().collect::<Vec<_>>());
    }
}

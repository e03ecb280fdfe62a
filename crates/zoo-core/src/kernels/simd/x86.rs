//! Registers of x86-64: AVX-512, and AVX2 with FMA.

use super::Simd;
use half::bf16;
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
/// The same where `avx512_bf16` is there.
#[derive(Clone, Copy)]
pub(crate) struct F32x16Bf16(__m512);
#[derive(Clone, Copy)]
pub(crate) struct F64x8(__m512d);
#[derive(Clone, Copy)]
pub(crate) struct F32x8(__m256);
#[derive(Clone, Copy)]
pub(crate) struct F64x4(__m256d);

/// Sixteen f32 lanes, and how they are rounded to bfloat16.
macro_rules! f32x16 {
    ($name:ident, $narrow:ident) => {
        impl Simd for $name {
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
                    // Pairs of rows, then fours: within each 128-bit quarter q, t[4i + j] holds column 4q + j of rows 4i..4i +
                    // 4.
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
            method!(load_bf16(from: *const bf16) -> Self = Self(widen(_mm256_loadu_si256(from.cast()))));
            method!(interleave_bf16(a: *const bf16, b: *const bf16, to: *mut bf16) -> () = {
                let first = _mm512_cvtepu16_epi32(_mm256_loadu_si256(a.cast()));
                let second = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(b.cast())));
                _mm512_storeu_si512(to.cast(), _mm512_or_si512(first, second));
            });
            method!(load_pairs_bf16(from: *const bf16) -> (Self, Self) = {
                let pairs = _mm512_loadu_si512(from.cast());
                let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
                (Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs))), Self(_mm512_castsi512_ps(second)))
            });
            method!(store_bf16(self: Self, to: *mut bf16) -> () = _mm256_storeu_si256(to.cast(), $narrow(self.0)));
            #[inline(always)]
            unsafe fn load_first_bf16(from: *const bf16, n: usize) -> Self {
                let mut lanes = [bf16::ZERO; 16];
                // SAFETY: the caller's pointer holds n numbers, n ≤ 16.
                unsafe {
                    std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), n);
                    Self::load_bf16(lanes.as_ptr())
                }
            }
            #[inline(always)]
            unsafe fn store_first_bf16(self, to: *mut bf16, n: usize) {
                let mut lanes = [bf16::ZERO; 16];
                // SAFETY: as above.
                unsafe {
                    self.store_bf16(lanes.as_mut_ptr());
                    std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, n);
                }
            }
        }
    };
}

f32x16!(F32x16, narrow);
f32x16!(F32x16Bf16, narrow_at_once);

/// Sixteen bfloat16 numbers are the upper halves of f32 ones.
#[inline(always)]
unsafe fn widen(x: __m256i) -> __m512 {
    // SAFETY: AVX-512 is there.
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x))) }
}

/// To nearest even: half a unit, less one if the last bit that stays is 0, is added to the bits. A NaN is cut, and made
/// quiet.
#[inline(always)]
unsafe fn narrow(x: __m512) -> __m256i {
    // SAFETY: AVX-512 is there.
    unsafe {
        let bits = _mm512_castps_si512(x);
        let last = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, last), _mm512_set1_epi32(0x7fff));
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_mask_blend_epi32(nan, rounded, quiet)))
    }
}

/// The same by one instruction, which takes denormal numbers for zeros.
#[inline(always)]
unsafe fn narrow_at_once(x: __m512) -> __m256i {
    // SAFETY: `avx512_bf16` is there.
    unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)) }
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
    method!(load_bf16(from: *const bf16) -> Self =
        Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()))))));
    method!(interleave_bf16(a: *const bf16, b: *const bf16, to: *mut bf16) -> () = {
        let first = _mm256_cvtepu16_epi32(_mm_loadu_si128(a.cast()));
        let second = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(b.cast())));
        _mm256_storeu_si256(to.cast(), _mm256_or_si256(first, second));
    });
    method!(load_pairs_bf16(from: *const bf16) -> (Self, Self) = {
        let pairs = _mm256_loadu_si256(from.cast());
        let second = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
        (Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs))), Self(_mm256_castsi256_ps(second)))
    });
    method!(store_bf16(self: Self, to: *mut bf16) -> () = {
        let bits = _mm256_castps_si256(self.0);
        let last = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, last), _mm256_set1_epi32(0x7fff));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0));
        let halves = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
        // The instruction packs each half by itself: its results are the quarters 0 and 2.
        let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(halves, halves));
        _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(packed));
    });
    #[inline(always)]
    unsafe fn load_first_bf16(from: *const bf16, n: usize) -> Self {
        let mut lanes = [bf16::ZERO; 8];
        // SAFETY: the caller's pointer holds n numbers, n ≤ 8.
        unsafe {
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), n);
            Self::load_bf16(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_first_bf16(self, to: *mut bf16, n: usize) {
        let mut lanes = [bf16::ZERO; 8];
        // SAFETY: as above.
        unsafe {
            self.store_bf16(lanes.as_mut_ptr());
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, n);
        }
    }
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

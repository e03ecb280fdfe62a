//! Vectors as arrays.

use super::Simd;

/// Lanes in an array, for the compiler to lay into the registers that the target guarantees.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<T, const N: usize>([T; N]);

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
                    let exponent = self.0[i] as $bits;
                    <$t>::from_bits((exponent.wrapping_add($bias) << $mantissa) as _)
                }))
            }
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

//! Low parts of a sum in bfloat16: what rounding cuts off, kept as bfloat16 numbers beside the rounded ones.
//!
//! A residual stream is a sum of dozens of branches. Rounded after each of them, its errors add up to more than those of
//! all products; a sum of two bfloat16 numbers has their 16 bits, and the low part is needed by the next addition alone.

use super::simd::Simd;
use super::stored::Stored;

/// Where the low part of an addend lies, and where that of the sum goes. Both lie as their high parts do.
#[derive(Clone, Copy)]
pub(crate) struct LowParts<E> {
    pub addend: Option<*const E>,
    pub sum: Option<*mut E>,
}

impl<E: Stored> LowParts<E> {
    /// Both places, so many numbers on.
    ///
    /// # Safety
    /// Inside of what the pointers are made from.
    #[inline(always)]
    pub unsafe fn offset(self, addend: usize, sum: usize) -> Self {
        // SAFETY: the caller's.
        unsafe { Self { addend: self.addend.map(|at| at.add(addend)), sum: self.sum.map(|at| at.add(sum)) } }
    }

    /// x + the addend's low part of the first n lanes.
    ///
    /// # Safety
    /// Below `dispatch`; n numbers behind the addend's place.
    #[inline(always)]
    pub unsafe fn add<V: Simd<Elem = E::Elem>>(self, x: V, n: usize) -> V {
        let Some(from) = self.addend else { return x };
        // SAFETY: the caller's.
        unsafe { x.add(if n == V::LANES { E::load(from) } else { E::load_first(from, n) }) }
    }

    /// Stores the first n lanes of the sum x at `to`, and what rounding cuts off at the sum's place.
    ///
    /// # Safety
    /// Below `dispatch`; n numbers behind both places.
    #[inline(always)]
    pub unsafe fn store<V: Simd<Elem = E::Elem>>(self, x: V, to: *mut E, n: usize) {
        // SAFETY: the caller's.
        unsafe {
            if n == V::LANES {
                E::store(x, to);
                if let Some(low) = self.sum {
                    E::store(x.sub(E::load(to)), low);
                }
            } else {
                E::store_first(x, to, n);
                if let Some(low) = self.sum {
                    E::store_first(x.sub(E::load_first(to, n)), low, n);
                }
            }
        }
    }
}

//! Activations that kernels apply before they store a value: those that only cut.

use super::pointwise::Pointwise;
use super::simd::{Real, Simd};
use candle_core::WithDType;

/// An activation fused into a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FusedActivation {
    /// y = x
    None,
    /// y = max(x, 0)
    Relu,
    /// y = min(max(x, 0), 6)
    Relu6,
}

impl FusedActivation {
    /// The same as `activation`, if kernels have it.
    pub fn of(activation: Option<Pointwise>) -> Option<Self> {
        match activation {
            None => Some(Self::None),
            Some(Pointwise::Relu) => Some(Self::Relu),
            Some(Pointwise::Relu6) => Some(Self::Relu6),
            Some(_) => None,
        }
    }

    /// y of x. NaN stays NaN.
    ///
    /// # Safety
    /// Below `dispatch`.
    #[inline(always)]
    pub unsafe fn apply<V: Simd>(self, x: V) -> V {
        // SAFETY: the caller stands below `dispatch`.
        unsafe {
            match self {
                Self::None => x,
                Self::Relu => x.if_at_most(V::zero(), V::zero(), x),
                Self::Relu6 => {
                    let six = V::splat(V::Elem::from_f64(6.0));
                    let x = x.if_at_most(V::zero(), V::zero(), x);
                    x.if_greater(six, six, x)
                }
            }
        }
    }

    /// y of x, for one number.
    #[inline(always)]
    pub fn apply_to<T: Real>(self, x: T) -> T {
        let six = T::from_f64(6.0);
        match self {
            Self::None => x,
            Self::Relu | Self::Relu6 if x <= T::zero() => T::zero(),
            Self::Relu6 if x > six => six,
            _ => x,
        }
    }

    /// The gradient of x from that of y, where x or y is `at`: nothing passes where the value was cut, as in PyTorch.
    ///
    /// # Safety
    /// Below `dispatch`.
    #[inline(always)]
    pub unsafe fn gradient<V: Simd>(self, at: V, grad: V) -> V {
        // SAFETY: the caller stands below `dispatch`.
        unsafe {
            match self {
                Self::None => grad,
                Self::Relu => at.if_at_most(V::zero(), V::zero(), grad),
                Self::Relu6 => {
                    let six = V::splat(V::Elem::from_f64(6.0));
                    let grad = at.if_at_most(V::zero(), V::zero(), grad);
                    six.if_at_most(at, V::zero(), grad)
                }
            }
        }
    }
}

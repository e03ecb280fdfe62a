//! Numbers of the reference: a value in f64, and the scale that its rounding error is measured by.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// A value and its scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Num {
    pub value: f64,
    pub scale: f64,
}

pub const ZERO: Num = Num { value: 0.0, scale: 0.0 };

pub fn num(x: f64) -> Num {
    Num { value: x, scale: x.abs() }
}

impl Num {
    /// f(self), given f and its derivative there.
    pub fn map(self, f: f64, derivative: f64) -> Self {
        Self { value: f, scale: f.abs() + derivative.abs() * self.scale }
    }

    pub fn exp(self) -> Self {
        self.map(self.value.exp(), self.value.exp())
    }

    pub fn tanh(self) -> Self {
        self.map(self.value.tanh(), 1.0 - self.value.tanh().powi(2))
    }

    pub fn erf(self) -> Self {
        self.map(erf(self.value), std::f64::consts::FRAC_2_SQRT_PI * (-self.value * self.value).exp())
    }

    pub fn ln(self) -> Self {
        self.map(self.value.ln(), 1.0 / self.value)
    }

    /// 1 / √self
    pub fn rsqrt(self) -> Self {
        self.map(self.value.sqrt().recip(), -0.5 * self.value.powf(-1.5))
    }
}

/// 2/√π · e^(-x²) · Σ 2ⁿ x²ⁿ⁺¹ / (1·3·…·(2n+1)): all terms of one sign, so nothing cancels.
pub fn erf(x: f64) -> f64 {
    if x.is_nan() || x.abs() > 7.0 {
        return if x.is_nan() { x } else { x.signum() };
    }
    let (mut term, mut total) = (x, 0.0);
    for n in 1..400 {
        total += term;
        term *= 2.0 * x * x / f64::from(2 * n + 1);
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * total
}

macro_rules! arithmetic {
    ($($trait:ident $op:ident($a:ident, $b:ident) = $value:expr, $scale:expr;)*) => {
        $(impl $trait for Num {
            type Output = Self;
            #[inline]
            fn $op(self, other: Self) -> Self {
                let ($a, $b) = (self, other);
                Self { value: $value, scale: $scale }
            }
        })*
    };
}

arithmetic! {
    Add add(a, b) = a.value + b.value, a.scale + b.scale;
    Sub sub(a, b) = a.value - b.value, a.scale + b.scale;
    Mul mul(a, b) = a.value * b.value, a.scale * b.scale;
    Div div(a, b) = a.value / b.value, (a.scale + (a.value / b.value).abs() * b.scale) / b.value.abs();
}

impl AddAssign for Num {
    #[inline]
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Neg for Num {
    type Output = Self;
    fn neg(self) -> Self {
        Self { value: -self.value, scale: self.scale }
    }
}

impl std::iter::Sum for Num {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(ZERO, Add::add)
    }
}

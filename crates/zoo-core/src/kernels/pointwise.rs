//! Activation functions and their derivatives on the host, vector by vector.

use super::buffer::written;
use super::math::{num, sigmoid, tanh};
use super::simd::{Kernel, Real, Simd, dispatch};
use super::stored::Stored;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// An activation function; the derivatives at the kinks follow PyTorch (0 for ReLU at 0, for ReLU6 at 0 and 6).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pointwise {
    /// max(x, 0)
    Relu,
    /// min(max(x, 0), 6)
    Relu6,
    /// x if x > 0, else slope · x
    LeakyRelu(f64),
    /// x · Φ(x), with the normal distribution's exact Φ
    Gelu,
    /// x · ½(1 + tanh(√(2/π)(x + 0.044715 x³)))
    GeluTanh,
    /// x · σ(x), also called swish
    Silu,
    /// σ(x) = 1 / (1 + e⁻ˣ)
    Sigmoid,
    /// tanh x
    Tanh,
    /// min(max(x + 3, 0), 6) / 6
    HardSigmoid,
    /// x · min(max(x + 3, 0), 6) / 6
    HardSwish,
}

/// √(2/π) and the cubic's coefficient in the tanh form of GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415).
pub(crate) const GELU_TANH: (f64, f64) = (0.797_884_560_802_865_4, 0.044_715);

impl Pointwise {
    /// The function's usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Relu => "ReLU",
            Self::Relu6 => "ReLU6",
            Self::LeakyRelu(_) => "LeakyReLU",
            Self::Gelu | Self::GeluTanh => "GELU",
            Self::Silu => "SiLU",
            Self::Sigmoid => "Sigmoid",
            Self::Tanh => "Tanh",
            Self::HardSigmoid => "HardSigmoid",
            Self::HardSwish => "HardSwish",
        }
    }
}

/// Runs `$body` for each vector of a block, the last one with fewer lanes: `|inputs…| -> output`.
macro_rules! each {
    ($V:ident, $n:expr, [$($x:ident = $from:expr),*] -> $to:expr, $body:expr) => {{
        let whole = $n - $n % $V::LANES;
        for i in (0..whole).step_by($V::LANES) {
            $(let $x = Stored::load::<$V>($from.add(i));)*
            Stored::store::<$V>($body, $to.add(i));
        }
        if whole < $n {
            $(let $x = Stored::load_first::<$V>($from.add(whole), $n - whole);)*
            Stored::store_first::<$V>($body, $to.add(whole), $n - whole);
        }
    }};
}

/// min(max(x, 0), 6); NaN stays.
#[inline(always)]
unsafe fn clamp_six<V: Simd>(x: V) -> V {
    // SAFETY: the caller stands below `dispatch`.
    unsafe {
        let six = num::<V>(6.0);
        let low = x.if_at_most(V::zero(), V::zero(), x);
        six.if_at_most(low, six, low)
    }
}

/// tanh's argument in GELU's tanh form: √(2/π)(x + 0.044715 x³).
#[inline(always)]
unsafe fn gelu_inner<V: Simd>(x: V) -> V {
    // SAFETY: as above.
    unsafe {
        let cubic = x.mul(x).mul_add(num(GELU_TANH.1), num(1.0));
        x.mul(cubic).mul(num(GELU_TANH.0))
    }
}

struct Forward<'a, E>(Pointwise, &'a [E], *mut E);

impl<T: Real, E: Stored<Elem = T>> Kernel<T> for Forward<'_, E> {
    const NARROWS: bool = E::NARROWS;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let (n, from, to) = (self.1.len(), self.1.as_ptr(), self.2);
        // SAFETY: run by `dispatch`; both pointers hold n elements.
        unsafe {
            let (zero, one) = (V::zero(), num::<V>(1.0));
            match self.0 {
                Pointwise::Relu => each!(V, n, [x = from] -> to, x.if_at_most(zero, zero, x)),
                Pointwise::Relu6 => each!(V, n, [x = from] -> to, clamp_six(x)),
                Pointwise::LeakyRelu(slope) => {
                    let slope = num::<V>(slope);
                    each!(V, n, [x = from] -> to, x.if_at_most(zero, x.mul(slope), x))
                }
                Pointwise::Gelu => each!(V, n, [x = from] -> to, E::gelu(x)),
                Pointwise::GeluTanh => {
                    let half = num::<V>(0.5);
                    each!(V, n, [x = from] -> to, half.mul(x).mul(one.add(tanh(gelu_inner(x)))))
                }
                Pointwise::Silu => each!(V, n, [x = from] -> to, x.mul(sigmoid(x))),
                Pointwise::Sigmoid => each!(V, n, [x = from] -> to, sigmoid(x)),
                Pointwise::Tanh => each!(V, n, [x = from] -> to, tanh(x)),
                Pointwise::HardSigmoid => {
                    each!(V, n, [x = from] -> to, clamp_six(x.add(num(3.0))).div(num(6.0)))
                }
                Pointwise::HardSwish => {
                    each!(V, n, [x = from] -> to, x.mul(clamp_six(x.add(num(3.0)))).div(num(6.0)))
                }
            }
        }
    }
}

struct Backward<'a, E>(Pointwise, &'a [E], &'a [E], *mut E);

impl<T: Real, E: Stored<Elem = T>> Kernel<T> for Backward<'_, E> {
    const NARROWS: bool = E::NARROWS;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let (n, from, grad, to) = (self.1.len(), self.1.as_ptr(), self.2.as_ptr(), self.3);
        // SAFETY: run by `dispatch`; all pointers hold n elements.
        unsafe {
            let (zero, one, three) = (V::zero(), num::<V>(1.0), num::<V>(3.0));
            match self.0 {
                Pointwise::Relu => each!(V, n, [x = from, dy = grad] -> to, x.if_at_most(zero, zero, dy)),
                Pointwise::Relu6 => {
                    let six = num::<V>(6.0);
                    each!(V, n, [x = from, dy = grad] -> to, six.if_at_most(x, zero, x.if_at_most(zero, zero, dy)))
                }
                Pointwise::LeakyRelu(slope) => {
                    let slope = num::<V>(slope);
                    each!(V, n, [x = from, dy = grad] -> to, x.if_greater(zero, dy, dy.mul(slope)))
                }
                Pointwise::Gelu => each!(V, n, [x = from, dy = grad] -> to, E::gelu_with_slope(x).1.mul(dy)),
                Pointwise::GeluTanh => {
                    let (half, a) = (num::<V>(0.5), num::<V>(GELU_TANH.0));
                    each!(V, n, [x = from, dy = grad] -> to, {
                        let t = tanh(gelu_inner(x));
                        let inner = a.mul(x.mul(x).mul_add(num(3.0 * GELU_TANH.1), one));
                        let slope = half.mul(x).mul(one.sub(t.mul(t))).mul_add(inner, half.mul(one.add(t)));
                        slope.mul(dy)
                    })
                }
                Pointwise::Silu => each!(V, n, [x = from, dy = grad] -> to, {
                    let s = sigmoid(x);
                    s.mul(one.add(x.mul(one.sub(s)))).mul(dy)
                }),
                Pointwise::Sigmoid => each!(V, n, [x = from, dy = grad] -> to, {
                    let s = sigmoid(x);
                    s.mul(one.sub(s)).mul(dy)
                }),
                Pointwise::Tanh => each!(V, n, [x = from, dy = grad] -> to, {
                    let t = tanh(x);
                    one.sub(t.mul(t)).mul(dy)
                }),
                Pointwise::HardSigmoid => {
                    let (low, sixth) = (num::<V>(-3.0), num::<V>(1.0 / 6.0));
                    each!(V, n, [x = from, dy = grad] -> to, {
                        x.if_greater(low, three.if_greater(x, sixth, zero), zero).mul(dy)
                    })
                }
                Pointwise::HardSwish => {
                    let (low, half) = (num::<V>(-3.0), num::<V>(0.5));
                    each!(V, n, [x = from, dy = grad] -> to, {
                        let between = three.if_greater(x, x.div(three).add(half), one);
                        x.if_at_most(low, zero, between).mul(dy)
                    })
                }
            }
        }
    }
}

/// GELU and GELU' times the gradient, which that is written over, of n numbers.
///
/// # Safety
/// Below `dispatch`; n numbers behind every pointer.
#[inline(always)]
pub(crate) unsafe fn gelu_with_slope<V: Simd, E: Stored<Elem = V::Elem>>(
    n: usize,
    from: *const E,
    out: *mut E,
    grad: *mut E,
) {
    // SAFETY: the caller's.
    unsafe {
        let whole = n - n % V::LANES;
        for i in (0..whole).step_by(V::LANES) {
            let (y, slope) = E::gelu_with_slope::<V>(E::load(from.add(i)));
            E::store(y, out.add(i));
            E::store(slope.mul(E::load(grad.add(i))), grad.add(i));
        }
        if whole < n {
            let rest = n - whole;
            let (y, slope) = E::gelu_with_slope::<V>(E::load_first(from.add(whole), rest));
            E::store_first(y, out.add(whole), rest);
            let dy = E::load_first(grad.add(whole), rest);
            E::store_first(slope.mul(dy), grad.add(whole), rest);
        }
    }
}

/// GELU of n numbers; `out` may be `from`.
///
/// # Safety
/// As [`gelu_with_slope`].
#[inline(always)]
pub(crate) unsafe fn gelu_of<V: Simd, E: Stored<Elem = V::Elem>>(n: usize, from: *const E, out: *mut E) {
    // SAFETY: the caller's.
    unsafe { each!(V, n, [x = from] -> out, E::gelu(x)) }
}

struct GeluBoth<'a, E>(&'a [E], *mut E, *mut E);

impl<T: Real, E: Stored<Elem = T>> Kernel<T> for GeluBoth<'_, E> {
    const NARROWS: bool = E::NARROWS;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        // SAFETY: run by `dispatch`; all pointers hold as many elements.
        unsafe { gelu_with_slope::<V, E>(self.0.len(), self.0.as_ptr(), self.1, self.2) }
    }
}

/// ys = GELU(xs), and grad becomes GELU'(xs) · grad: both at the price of one.
pub(crate) fn gelu_and_grad<E: Stored>(xs: &[E], ys: &mut [MaybeUninit<E>], grad: &mut [E]) {
    assert!(xs.len() == ys.len() && xs.len() == grad.len());
    dispatch(GeluBoth(xs, ys.as_mut_ptr().cast(), grad.as_mut_ptr()));
}

/// [`gelu_and_grad`] by all threads.
pub(crate) fn gelu_and_grad_by_all<E: Stored>(xs: &[E], grad: &mut [E]) -> Vec<E> {
    let fill = |ys: &mut [MaybeUninit<E>]| {
        let blocks = ys.par_chunks_mut(BLOCK).zip(xs.par_chunks(BLOCK)).zip(grad.par_chunks_mut(BLOCK));
        blocks.for_each(|((ys, xs), grad)| gelu_and_grad(xs, ys, grad));
    };
    // SAFETY: the blocks cover the output.
    unsafe { written(xs.len(), fill) }
}

/// ys = GELU(xs)
pub(crate) fn gelu<T: Real>(xs: &[T], ys: &mut [MaybeUninit<T>]) {
    assert_eq!(xs.len(), ys.len());
    dispatch(Forward(Pointwise::Gelu, xs, ys.as_mut_ptr().cast()));
}

/// Elements that one task takes.
const BLOCK: usize = 1 << 14;

/// ys = f(xs)
pub(crate) fn forward<E: Stored>(function: Pointwise, xs: &[E]) -> Vec<E> {
    let fill = |ys: &mut [MaybeUninit<E>]| {
        let blocks = ys.par_chunks_mut(BLOCK).zip(xs.par_chunks(BLOCK));
        blocks.for_each(|(ys, xs)| dispatch(Forward(function, xs, ys.as_mut_ptr().cast())));
    };
    // SAFETY: the blocks cover the output, and each is written whole.
    unsafe { written(xs.len(), fill) }
}

/// dx = f'(xs) · grad
pub(crate) fn backward<E: Stored>(function: Pointwise, xs: &[E], grad: &[E]) -> Vec<E> {
    assert_eq!(xs.len(), grad.len());
    let fill = |dx: &mut [MaybeUninit<E>]| {
        let blocks = dx.par_chunks_mut(BLOCK).zip(xs.par_chunks(BLOCK)).zip(grad.par_chunks(BLOCK));
        blocks.for_each(|((dx, xs), dy)| dispatch(Backward(function, xs, dy, dx.as_mut_ptr().cast())));
    };
    // SAFETY: the blocks cover the output, and each is written whole.
    unsafe { written(xs.len(), fill) }
}

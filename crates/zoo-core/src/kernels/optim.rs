//! Optimizer steps in place: one pass over parameter, gradient and state, in the order of operations of `torch.optim`.

use super::simd::{Kernel, Real, Simd, dispatch};
use rayon::prelude::*;

/// Elements that one task works on: large enough to hide the hand-over, small enough that two cores share a layer of
/// ResNet-20.
pub(crate) const CHUNK: usize = 1 << 14;

/// Several slices of one length, cut at the same places.
trait Split: Sized + Send {
    fn len(&self) -> usize;
    fn split_at(self, at: usize) -> (Self, Self);
}

impl<T: Sync> Split for &[T] {
    fn len(&self) -> usize {
        <[T]>::len(self)
    }
    fn split_at(self, at: usize) -> (Self, Self) {
        <[T]>::split_at(self, at)
    }
}

impl<T: Send> Split for &mut [T] {
    fn len(&self) -> usize {
        <[T]>::len(self)
    }
    fn split_at(self, at: usize) -> (Self, Self) {
        self.split_at_mut(at)
    }
}

impl<A: Split, B: Split> Split for (A, B) {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn split_at(self, at: usize) -> (Self, Self) {
        let ((a, x), (b, y)) = (self.0.split_at(at), self.1.split_at(at));
        ((a, b), (x, y))
    }
}

/// Runs `f` on pieces of `slices`, in parallel.
fn in_chunks<S: Split>(slices: S, f: impl Fn(S) + Sync + Copy) {
    let n = slices.len();
    if n <= CHUNK {
        return f(slices);
    }
    let (left, right) = slices.split_at(n / 2);
    rayon::join(|| in_chunks(left, f), || in_chunks(right, f));
}

/// One SGD step on elements, with momentum where there is a buffer.
pub(crate) fn sgd<T: Real>(numbers: SgdNumbers<T>, p: &mut [T], g: &[T], buffer: Option<&mut [T]>) {
    match buffer {
        None => in_chunks((p, g), |(p, g)| dispatch(Sgd { numbers, p, g, buffer: None })),
        Some(b) => in_chunks(((p, g), b), |((p, g), b)| dispatch(Sgd { numbers, p, g, buffer: Some(b) })),
    }
}

/// The numbers of an SGD step.
#[derive(Clone, Copy)]
pub(crate) struct SgdNumbers<T> {
    pub lr: T,
    pub momentum: T,
    pub decay: T,
    pub nesterov: bool,
}

struct Sgd<'a, T> {
    numbers: SgdNumbers<T>,
    p: &'a mut [T],
    g: &'a [T],
    buffer: Option<&'a mut [T]>,
}

/// Plain loops: the compiler lays them into the registers of the level, in the order of operations that stands here.
impl<T: Real> Kernel<T> for Sgd<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let SgdNumbers { lr, momentum, decay, nesterov } = self.numbers;
        let pairs = self.p.iter_mut().zip(self.g);
        match self.buffer {
            None => {
                for (p, &g) in pairs {
                    *p -= lr * (g + decay * *p);
                }
            }
            Some(buffer) => {
                for ((p, &g), b) in pairs.zip(buffer) {
                    let d = g + decay * *p;
                    *b = momentum * *b + d;
                    *p -= lr * if nesterov { d + momentum * *b } else { *b };
                }
            }
        }
    }
}

/// One Adam or AdamW step on elements: parameter, gradient, first and second moment.
pub(crate) fn adam<T: Real>(numbers: AdamNumbers<T>, p: &mut [T], g: &[T], m: &mut [T], v: &mut [T]) {
    in_chunks((((p, g), m), v), |(((p, g), m), v)| dispatch(Adam { numbers, p, g, m, v }));
}

/// The numbers of an Adam step.
#[derive(Clone, Copy)]
pub(crate) struct AdamNumbers<T> {
    /// Learning rate over the first moment's bias correction.
    pub size: T,
    /// Root of the second moment's bias correction.
    pub root: T,
    /// What decoupled weight decay leaves of the parameter.
    pub shrink: T,
    pub l2: T,
    pub eps: T,
    /// 1 - beta1
    pub rest1: T,
    pub beta2: T,
    /// 1 - beta2
    pub rest2: T,
}

struct Adam<'a, T> {
    numbers: AdamNumbers<T>,
    p: &'a mut [T],
    g: &'a [T],
    m: &'a mut [T],
    v: &'a mut [T],
}

impl<T: Real> Kernel<T> for Adam<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let AdamNumbers { size, root, shrink, l2, eps, rest1, beta2, rest2 } = self.numbers;
        for (((p, &g), m), v) in self.p.iter_mut().zip(self.g).zip(self.m).zip(self.v) {
            *p *= shrink;
            let g = g + l2 * *p;
            *m += rest1 * (g - *m);
            *v = beta2 * *v + rest2 * g * g;
            *p -= size * (*m / (v.sqrt() / root + eps));
        }
    }
}

/// Σ x² in f64, in an order that does not depend on the number of threads.
pub(crate) fn sum_of_squares<T: Real>(xs: &[T]) -> f64 {
    let square = |x: T| x.to_f64() * x.to_f64();
    let parts: Vec<f64> = xs.par_chunks(CHUNK).map(|xs| super::lanes(xs.len(), |i| square(xs[i]))).collect();
    parts.iter().sum()
}

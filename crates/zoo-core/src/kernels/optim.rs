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

/// A slice that may be missing, beside one that is there: its length is not asked for.
impl<S: Split> Split for Option<S> {
    fn len(&self) -> usize {
        self.as_ref().map_or(0, S::len)
    }
    fn split_at(self, at: usize) -> (Self, Self) {
        self.map(|slices| slices.split_at(at)).unzip()
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

/// Runs `f` on the same pieces and adds up what it gives, in an order that does not depend on the number of threads.
fn sums_of_chunks<S: Split>(slices: S, f: impl Fn(S) -> [f64; 2] + Sync + Copy) -> [f64; 2] {
    let n = slices.len();
    if n <= CHUNK {
        return f(slices);
    }
    let (left, right) = slices.split_at(n / 2);
    let ([a, b], [c, d]) = rayon::join(|| sums_of_chunks(left, f), || sums_of_chunks(right, f));
    [a + c, b + d]
}

/// The way from one number to another, as `torch.lerp` goes it: from the nearer end.
#[derive(Clone, Copy)]
pub(crate) struct Lerp<T> {
    weight: T,
    rest: T,
    from_start: bool,
}

impl<T: Real> Lerp<T> {
    /// `weight` of the way: 0 is the start, 1 the end.
    pub fn new(weight: f64) -> Self {
        Self { weight: T::from_f64(weight), rest: T::from_f64(1.0 - weight), from_start: weight < 0.5 }
    }

    #[inline(always)]
    fn at(self, start: T, end: T) -> T {
        if self.from_start { start + self.weight * (end - start) } else { end - (end - start) * self.rest }
    }
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

/// What an RMSprop step keeps of elements: the mean square, and the mean and the momentum where there are such.
pub(crate) type RmspropState<'a, T> = (&'a mut [T], (Option<&'a mut [T]>, Option<&'a mut [T]>));

/// One RMSprop step on elements.
pub(crate) fn rmsprop<T: Real>(numbers: RmspropNumbers<T>, p: &mut [T], g: &[T], state: RmspropState<'_, T>) {
    in_chunks(((p, g), state), |((p, g), state)| dispatch(Rmsprop { numbers, p, g, state }));
}

/// The numbers of an RMSprop step.
#[derive(Clone, Copy)]
pub(crate) struct RmspropNumbers<T> {
    pub lr: T,
    pub alpha: T,
    /// 1 - alpha
    pub rest: T,
    pub to_mean: Lerp<T>,
    pub eps: T,
    pub l2: T,
    pub momentum: T,
}

struct Rmsprop<'a, T> {
    numbers: RmspropNumbers<T>,
    p: &'a mut [T],
    g: &'a [T],
    state: RmspropState<'a, T>,
}

impl<T: Real> Kernel<T> for Rmsprop<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let RmspropNumbers { lr, alpha, rest, to_mean, eps, l2, momentum } = self.numbers;
        let (square, (mean, buffer)) = self.state;
        let square_of = |v: &mut T, g: T| {
            *v = alpha * *v + rest * g * g;
            *v
        };
        let variance_of = |v: &mut T, m: &mut T, g: T| {
            *m = to_mean.at(*m, g);
            square_of(v, g) - *m * *m
        };
        let step = |p: &mut T, g: T, v: T| *p -= lr * g / (v.sqrt() + eps);
        let step_with = |p: &mut T, b: &mut T, g: T, v: T| {
            *b = momentum * *b + g / (v.sqrt() + eps);
            *p -= lr * *b;
        };
        let all = self.p.iter_mut().zip(self.g).zip(square).map(|((p, &g), v)| (g + l2 * *p, p, v));
        match (mean, buffer) {
            (None, None) => {
                for (g, p, v) in all {
                    step(p, g, square_of(v, g));
                }
            }
            (Some(mean), None) => {
                for ((g, p, v), m) in all.zip(mean) {
                    step(p, g, variance_of(v, m, g));
                }
            }
            (None, Some(buffer)) => {
                for ((g, p, v), b) in all.zip(buffer) {
                    step_with(p, b, g, square_of(v, g));
                }
            }
            (Some(mean), Some(buffer)) => {
                for (((g, p, v), m), b) in all.zip(mean).zip(buffer) {
                    step_with(p, b, g, variance_of(v, m, g));
                }
            }
        }
    }
}

/// The numbers of a LAMB step.
#[derive(Clone, Copy)]
pub(crate) struct LambNumbers<T> {
    /// What the gradient is divided by.
    pub clip: T,
    pub to_mean: Lerp<T>,
    pub beta2: T,
    /// 1 - beta2
    pub rest2: T,
    /// The first moment's bias correction, and the root of the second's.
    pub correction: T,
    pub root: T,
    pub eps: T,
    pub decay: T,
}

impl<T: Real> LambNumbers<T> {
    /// Adam's update with the weight decay in it.
    #[inline(always)]
    fn update(self, p: T, m: T, v: T) -> T {
        m / self.correction / (v.sqrt() / self.root + self.eps) + self.decay * p
    }
}

/// Moves both moments; the sums of squares of the parameter and of the update that it is to take.
pub(crate) fn lamb_moments<T: Real>(numbers: LambNumbers<T>, p: &[T], g: &[T], m: &mut [T], v: &mut [T]) -> [f64; 2] {
    sums_of_chunks((((p, g), m), v), |(((p, g), m), v)| dispatch(LambMoments { numbers, p, g, m, v }))
}

struct LambMoments<'a, T> {
    numbers: LambNumbers<T>,
    p: &'a [T],
    g: &'a [T],
    m: &'a mut [T],
    v: &'a mut [T],
}

impl<T: Real> Kernel<T> for LambMoments<'_, T> {
    type Output = [f64; 2];

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) -> [f64; 2] {
        let LambNumbers { clip, to_mean, beta2, rest2, .. } = self.numbers;
        for ((&g, m), v) in self.g.iter().zip(&mut *self.m).zip(&mut *self.v) {
            let g = g / clip;
            *m = to_mean.at(*m, g);
            *v = beta2 * *v + rest2 * g * g;
        }
        let square = |x: T| x.to_f64() * x.to_f64();
        let (p, m, v) = (self.p, &*self.m, &*self.v);
        let of_update = super::lanes(p.len(), |i| square(self.numbers.update(p[i], m[i], v[i])));
        [super::lanes(p.len(), |i| square(p[i])), of_update]
    }
}

/// Takes `size` of the update off the parameter.
pub(crate) fn lamb_step<T: Real>(numbers: LambNumbers<T>, size: T, p: &mut [T], m: &[T], v: &[T]) {
    in_chunks(((p, m), v), |((p, m), v)| dispatch(LambStep { numbers, size, p, m, v }));
}

struct LambStep<'a, T> {
    numbers: LambNumbers<T>,
    size: T,
    p: &'a mut [T],
    m: &'a [T],
    v: &'a [T],
}

impl<T: Real> Kernel<T> for LambStep<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        for ((p, &m), &v) in self.p.iter_mut().zip(self.m).zip(self.v) {
            *p -= self.size * self.numbers.update(*p, m, v);
        }
    }
}

/// One Lion step on elements: parameter, gradient, momentum.
pub(crate) fn lion<T: Real>(numbers: LionNumbers<T>, p: &mut [T], g: &[T], m: &mut [T]) {
    in_chunks(((p, g), m), |((p, g), m)| dispatch(Lion { numbers, p, g, m }));
}

/// The numbers of a Lion step.
#[derive(Clone, Copy)]
pub(crate) struct LionNumbers<T> {
    pub lr: T,
    /// What weight decay leaves of the parameter.
    pub shrink: T,
    /// From the momentum to the gradient: whose sign is taken, and what is kept.
    pub to_update: Lerp<T>,
    pub to_kept: Lerp<T>,
}

struct Lion<'a, T> {
    numbers: LionNumbers<T>,
    p: &'a mut [T],
    g: &'a [T],
    m: &'a mut [T],
}

impl<T: Real> Kernel<T> for Lion<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let LionNumbers { lr, shrink, to_update, to_kept } = self.numbers;
        for ((p, &g), m) in self.p.iter_mut().zip(self.g).zip(self.m) {
            let update = to_update.at(*m, g);
            // No step where the update is zero, or not a number.
            let up = if update < T::zero() { lr } else { T::zero() };
            let down = if update > T::zero() { lr } else { T::zero() };
            *p = *p * shrink - down + up;
            *m = to_kept.at(*m, g);
        }
    }
}

/// Moves Muon's momentum towards the gradient, which stands in `update` and leaves what is to be made orthogonal there.
pub(crate) fn muon_momentum<T: Real>(to_kept: Lerp<T>, nesterov: Option<Lerp<T>>, b: &mut [T], update: &mut [T]) {
    in_chunks((b, update), |(b, update)| {
        for (b, u) in b.iter_mut().zip(update) {
            *b = to_kept.at(*b, *u);
            *u = nesterov.map_or(*b, |lerp| lerp.at(*u, *b));
        }
    });
}

/// Moves elements along the way to others.
pub(crate) fn lerp<T: Real>(lerp: Lerp<T>, xs: &mut [T], end: &[T]) {
    in_chunks((xs, end), |(xs, end)| xs.iter_mut().zip(end).for_each(|(x, &end)| *x = lerp.at(*x, end)));
}

/// p = shrink · p - size · update
pub(crate) fn shrink_and_subtract<T: Real>(shrink: T, size: T, p: &mut [T], update: &[T]) {
    in_chunks((p, update), |(p, update)| {
        for (p, &u) in p.iter_mut().zip(update) {
            *p = *p * shrink - size * u;
        }
    });
}

/// Σ x² in f64, in an order that does not depend on the number of threads.
pub(crate) fn sum_of_squares<T: Real>(xs: &[T]) -> f64 {
    let square = |x: T| x.to_f64() * x.to_f64();
    let parts: Vec<f64> = xs.par_chunks(CHUNK).map(|xs| super::lanes(xs.len(), |i| square(xs[i]))).collect();
    parts.iter().sum()
}

//! Layer normalisation on the host: of rows of n elements, or of the columns of a matrix.

use super::buffer::{Shared, written, zeroed};
use super::low_parts::LowParts;
use super::math::num;
use super::simd::{Kernel, Real, Simd, dispatch};
use super::stored::Stored;
use candle_core::WithDType;
use half::bf16;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Rows that one task takes.
const ROWS: usize = 64;

/// A register's load of lanes i.., fewer at the end of n.
#[inline(always)]
unsafe fn part<V: Simd>(from: *const impl Stored<Elem = V::Elem>, i: usize, n: usize) -> V {
    // SAFETY: the caller stands below `dispatch`, with n elements behind `from`.
    unsafe { if i + V::LANES <= n { Stored::load(from.add(i)) } else { Stored::load_first(from.add(i), n - i) } }
}

#[inline(always)]
unsafe fn store_part<V: Simd, E: Stored<Elem = V::Elem>>(x: V, to: *mut E, i: usize, n: usize) {
    // SAFETY: as above.
    unsafe { if i + V::LANES <= n { E::store(x, to.add(i)) } else { E::store_first(x, to.add(i), n - i) } }
}

/// Mean and 1 / √(σ² + eps) of a row, in two passes, so that a large mean costs no digits.
#[inline(always)]
unsafe fn stats<V: Simd>(x: *const impl Stored<Elem = V::Elem>, n: usize, eps: f64) -> (V, V) {
    let (whole, rest) = (n - n % V::LANES, n % V::LANES);
    // SAFETY: as above.
    unsafe {
        let mut sum = V::zero();
        for i in (0..n).step_by(V::LANES) {
            sum = sum.add(part(x, i, n));
        }
        let mean_of_row = <V::Elem as WithDType>::from_f64(sum.sum().to_f64() / n as f64);
        let mean = V::splat(mean_of_row);
        let mut squares = V::zero();
        for i in (0..whole).step_by(V::LANES) {
            let d = part::<V>(x, i, n).sub(mean);
            squares = d.mul_add(d, squares);
        }
        let mut squares = squares.sum().to_f64();
        if rest > 0 {
            let mut lanes = [mean_of_row; 16];
            part::<V>(x, whole, n).store(lanes.as_mut_ptr());
            for &x in &lanes[..rest] {
                let d = (x - mean_of_row).to_f64();
                squares += d * d;
            }
        }
        (mean, num(1.0 / (squares / n as f64 + eps).sqrt()))
    }
}

struct Forward<'a, E: Stored> {
    xs: &'a [E],
    weight: &'a [E::Elem],
    bias: &'a [E::Elem],
    eps: f64,
    ys: *mut E,
}

impl<T: Real, E: Stored<Elem = T>> Kernel<T> for Forward<'_, E> {
    const NARROWS: bool = E::NARROWS;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let n = self.weight.len();
        let (weight, bias) = (self.weight.as_ptr(), self.bias.as_ptr());
        for i in 0..self.xs.len() / n {
            // SAFETY: run by `dispatch`; input and output hold the rows, weight and bias one.
            unsafe {
                let (x, y) = (self.xs.as_ptr().add(i * n), self.ys.add(i * n));
                row::<V, E>(n, x, (weight, bias), self.eps, y);
            }
        }
    }
}

/// One row of n elements.
///
/// # Safety
/// Below `dispatch`; n elements behind every pointer.
#[inline(always)]
pub(crate) unsafe fn row<V: Simd, E: Stored<Elem = V::Elem>>(
    n: usize,
    x: *const E,
    (weight, bias): (*const V::Elem, *const V::Elem),
    eps: f64,
    y: *mut E,
) {
    // SAFETY: the caller's.
    unsafe {
        let (mean, inv_std) = stats::<V>(x, n, eps);
        for i in (0..n).step_by(V::LANES) {
            let normal = part::<V>(x, i, n).sub(mean).mul(inv_std);
            store_part(normal.mul_add(part(weight, i, n), part(bias, i, n)), y, i, n);
        }
    }
}

/// The gradient of rows; see [`backward`].
pub(crate) struct Backward<'a, E: Stored> {
    pub xs: &'a [E],
    pub grad: &'a [E],
    pub weight: &'a [E::Elem],
    pub eps: f64,
    /// What dx is added to; it may be dx.
    pub onto: Option<*const E>,
    /// Of `onto` and of dx.
    pub low: LowParts<E>,
    pub dx: *mut E,
    pub dw: &'a mut [E::Elem],
    pub db: &'a mut [E::Elem],
}

impl<T: Real, E: Stored<Elem = T>> Kernel<T> for Backward<'_, E> {
    const NARROWS: bool = E::NARROWS;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let n = self.weight.len();
        let weight = self.weight.as_ptr();
        let (dw, db) = (self.dw.as_mut_ptr(), self.db.as_mut_ptr());
        for row in 0..self.xs.len() / n {
            // SAFETY: run by `dispatch`; input and gradients hold the rows, weight and its gradients one.
            unsafe {
                let (x, dy) = (self.xs.as_ptr().add(row * n), self.grad.as_ptr().add(row * n));
                let dx = self.dx.add(row * n);
                let (mean, inv_std) = stats::<V>(x, n, self.eps);
                let (mut sum_g, mut sum_gx) = (V::zero(), V::zero());
                for i in (0..n).step_by(V::LANES) {
                    let normal = part::<V>(x, i, n).sub(mean).mul(inv_std);
                    let dy = part::<V>(dy, i, n);
                    let g = dy.mul(part(weight, i, n));
                    sum_g = sum_g.add(g);
                    sum_gx = g.mul_add(normal, sum_gx);
                    store_part(dy.mul_add(normal, part(dw, i, n)), dw, i, n);
                    store_part(dy.add(part(db, i, n)), db, i, n);
                }
                let mean_g = num::<V>(sum_g.sum().to_f64() / n as f64);
                let minus_gx = num::<V>(-sum_gx.sum().to_f64() / n as f64);
                for i in (0..n).step_by(V::LANES) {
                    let normal = part::<V>(x, i, n).sub(mean).mul(inv_std);
                    let g = part::<V>(dy, i, n).mul(part(weight, i, n));
                    let inner = normal.mul_add(minus_gx, g.sub(mean_g));
                    let (lanes, low) = (V::LANES.min(n - i), self.low.offset(row * n + i, row * n + i));
                    let onto = match self.onto {
                        Some(onto) => low.add(part::<V>(onto.add(row * n), i, n), lanes),
                        None => V::zero(),
                    };
                    low.store(inner.mul_add(inv_std, onto), dx.add(i), lanes);
                }
            }
        }
    }
}

/// What a gradient of rows is added to, and its low part.
#[derive(Clone, Copy)]
pub(crate) struct Onto<'a, E> {
    pub high: &'a [E],
    pub low: Option<&'a [E]>,
}

impl<E: Stored> Onto<'_, E> {
    fn fits(&self, len: usize) -> bool {
        self.high.len() == len && self.low.is_none_or(|low| low.len() == len)
    }

    fn low(onto: Option<Self>, of_dx: Option<Shared<E>>) -> LowParts<E> {
        let addend = onto.and_then(|onto| onto.low).map(<[E]>::as_ptr);
        // SAFETY: where it begins.
        LowParts { addend, sum: of_dx.map(|low| unsafe { low.at(0) }) }
    }
}

/// Rows as long as the weight.
pub(crate) fn forward<E: Stored>(xs: &[E], weight: &[E::Elem], bias: &[E::Elem], eps: f64, ys: &mut [MaybeUninit<E>]) {
    let n = weight.len();
    assert!(bias.len() == n && xs.len() == ys.len() && xs.len().is_multiple_of(n));
    ys.par_chunks_mut(n * ROWS).zip(xs.par_chunks(n * ROWS)).for_each(|(ys, xs)| {
        dispatch(Forward { xs, weight, bias, eps, ys: ys.as_mut_ptr().cast() });
    });
}

/// [`forward`] to an output of its own.
pub(crate) fn normalized<E: Stored>(xs: &[E], weight: &[E::Elem], bias: &[E::Elem], eps: f64) -> Vec<E> {
    // SAFETY: `forward` writes every row.
    unsafe { written(xs.len(), |ys| forward(xs, weight, bias, eps, ys)) }
}

/// The gradients of input, weight and bias.
pub(crate) fn mixed_gradients(xs: &[bf16], grad: &[bf16], weight: &[f32], eps: f64) -> (Vec<bf16>, [Vec<f32>; 2]) {
    let mut sums = [(); 2].map(|()| vec![0f32; weight.len()]);
    let [dw, db] = &mut sums;
    // SAFETY: `backward` writes every row.
    let dx = unsafe { written(xs.len(), |dx| backward((xs, grad), weight, eps, None, (dx, None), (dw, db))) };
    (dx, sums)
}

/// The gradients of input, weight and bias below each other.
pub(crate) fn gradients<T: Real>(xs: &[T], grad: &[T], weight: &[T], eps: f64) -> Vec<T> {
    let n = weight.len();
    let fill = |all: &mut [MaybeUninit<T>]| {
        let (dx, sums) = all.split_at_mut(xs.len());
        backward((xs, grad), weight, eps, None, (dx, None), zeroed(sums).split_at_mut(n));
    };
    // SAFETY: `backward` writes every row, and the sums are written before it adds to them.
    unsafe { written(xs.len() + 2 * n, fill) }
}

/// dx = `onto` + the gradient of the input, and Σ dy·x̂ and Σ dy over the rows, added to `dw` and `db`. Each block sums
/// its rows, then the blocks are added in order.
pub(crate) fn backward<E: Stored>(
    (xs, grad): (&[E], &[E]),
    weight: &[E::Elem],
    eps: f64,
    onto: Option<Onto<E>>,
    (dx, dx_low): (&mut [MaybeUninit<E>], Option<&mut [MaybeUninit<E>]>),
    (dw, db): (&mut [E::Elem], &mut [E::Elem]),
) {
    let n = weight.len();
    assert!(xs.len() == grad.len() && xs.len() == dx.len() && xs.len().is_multiple_of(n));
    assert!(dw.len() == n && db.len() == n && onto.is_none_or(|onto| onto.fits(xs.len())));
    assert!(dx_low.as_ref().is_none_or(|low| low.len() == dx.len()));
    let dx_low = dx_low.map(Shared::from_uninit);
    let block = n * ROWS;
    let blocks = dx.par_chunks_mut(block).enumerate().zip(xs.par_chunks(block)).zip(grad.par_chunks(block));
    let sums = blocks.map(|(((i, dx), xs), grad)| {
        let zero = <E::Elem as WithDType>::from_f64(0.0);
        let (mut dw, mut db) = (vec![zero; n], vec![zero; n]);
        // SAFETY: the block's own place.
        let low = unsafe { Onto::low(onto, dx_low).offset(i * block, i * block) };
        let onto = onto.map(|onto| onto.high[i * block..].as_ptr());
        let dx = dx.as_mut_ptr().cast();
        dispatch(Backward { xs, grad, weight, eps, onto, low, dx, dw: &mut dw, db: &mut db });
        (dw, db)
    });
    for (block_dw, block_db) in sums.collect::<Vec<_>>() {
        dw.iter_mut().zip(block_dw).for_each(|(sum, x)| *sum += x);
        db.iter_mut().zip(block_db).for_each(|(sum, x)| *sum += x);
    }
}

/// Registers of columns that are walked down together: their sums wait for each other's additions and not for their own.
const TOGETHER: usize = 4;

/// Mean and 1 / √(σ² + eps) of each column of N registers of a matrix (rows, cols), from column j on.
#[inline(always)]
unsafe fn column_stats<V: Simd, const N: usize>(
    x: *const impl Stored<Elem = V::Elem>,
    j: usize,
    (rows, cols): (usize, usize),
    eps: f64,
) -> [(V, V); N] {
    // SAFETY: as above, `x` holds the matrix.
    unsafe {
        let count = num::<V>(1.0 / rows as f64);
        let mut mean = [V::zero(); N];
        for i in 0..rows {
            for (k, sum) in mean.iter_mut().enumerate() {
                *sum = sum.add(part::<V>(x.add(i * cols), j + k * V::LANES, cols));
            }
        }
        for mean in &mut mean {
            *mean = mean.mul(count);
        }
        let mut squares = [V::zero(); N];
        for i in 0..rows {
            for (k, (squares, mean)) in squares.iter_mut().zip(mean).enumerate() {
                let d = part::<V>(x.add(i * cols), j + k * V::LANES, cols).sub(mean);
                *squares = d.mul_add(d, *squares);
            }
        }
        let mut all = [(V::zero(), V::zero()); N];
        for ((all, squares), mean) in all.iter_mut().zip(squares).zip(mean) {
            let mut lanes = [<V::Elem as WithDType>::from_f64(0.0); 16];
            squares.mul(count).store(lanes.as_mut_ptr());
            lanes.iter_mut().for_each(|x| *x = <V::Elem as WithDType>::from_f64(1.0 / (x.to_f64() + eps).sqrt()));
            *all = (mean, V::load(lanes.as_ptr()));
        }
        all
    }
}

struct ColumnsForward<'a, E: Stored>(Forward<'a, E>);

impl<T: Real, E: Stored<Elem = T>> Kernel<T> for ColumnsForward<'_, E> {
    const NARROWS: bool = E::NARROWS;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let (cols, mut j) = (self.0.xs.len() / self.0.weight.len(), 0);
        // SAFETY: run by `dispatch`; registers together are whole.
        unsafe {
            while j + TOGETHER * V::LANES <= cols {
                self.columns::<V, TOGETHER>(j);
                j += TOGETHER * V::LANES;
            }
            for j in (j..cols).step_by(V::LANES) {
                self.columns::<V, 1>(j);
            }
        }
    }
}

impl<T: Real, E: Stored<Elem = T>> ColumnsForward<'_, E> {
    /// N registers of columns, from column j on.
    #[inline(always)]
    unsafe fn columns<V: Simd<Elem = T>, const N: usize>(&self, j: usize) {
        let &Forward { xs, weight, bias, eps, ys } = &self.0;
        let (rows, cols) = (weight.len(), xs.len() / weight.len());
        // SAFETY: the caller's; input and output hold the matrix.
        unsafe {
            let stats = column_stats::<V, N>(xs.as_ptr(), j, (rows, cols), eps);
            for i in 0..rows {
                let (weight, bias) = (V::splat(weight[i]), V::splat(bias[i]));
                for (k, (mean, inv_std)) in stats.into_iter().enumerate() {
                    let j = j + k * V::LANES;
                    let normal = part::<V>(xs.as_ptr().add(i * cols), j, cols).sub(mean).mul(inv_std);
                    store_part(normal.mul_add(weight, bias), ys.add(i * cols), j, cols);
                }
            }
        }
    }
}

struct ColumnsBackward<'a, E: Stored>(Backward<'a, E>);

impl<T: Real, E: Stored<Elem = T>> Kernel<T> for ColumnsBackward<'_, E> {
    const NARROWS: bool = E::NARROWS;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(mut self) {
        let (rows, mut j) = (self.0.weight.len(), 0);
        let cols = self.0.xs.len() / rows;
        // Sums of lanes over the columns, if the numbers are bfloat16. The sums of f32 numbers keep the order in which
        // recorded runs have taken them.
        let mut lanes = vec![[[V::Elem::from_f64(0.0); 16]; 2]; if E::NARROWS { rows } else { 0 }];
        // SAFETY: run by `dispatch`; registers together are whole.
        unsafe {
            while j + TOGETHER * V::LANES <= cols {
                self.columns::<V, TOGETHER>(j, &mut lanes);
                j += TOGETHER * V::LANES;
            }
            for j in (j..cols).step_by(V::LANES) {
                self.columns::<V, 1>(j, &mut lanes);
            }
            for (i, [of_w, of_b]) in lanes.iter().enumerate() {
                self.0.dw[i] += V::load(of_w.as_ptr()).sum();
                self.0.db[i] += V::load(of_b.as_ptr()).sum();
            }
        }
    }
}

impl<T: Real, E: Stored<Elem = T>> ColumnsBackward<'_, E> {
    /// N registers of columns, from column j on.
    #[inline(always)]
    unsafe fn columns<V: Simd<Elem = T>, const N: usize>(&mut self, j: usize, lanes: &mut [[[T; 16]; 2]]) {
        let Backward { xs, grad, weight, eps, onto, low, dx, dw, db } = &mut self.0;
        let (rows, cols) = (weight.len(), xs.len() / weight.len());
        // SAFETY: the caller's; input and gradients hold the matrix. Lanes beyond the last column hold zeros in the
        // gradient, and add none to the sums.
        unsafe {
            let (x, dy) = (xs.as_ptr(), grad.as_ptr());
            let stats = column_stats::<V, N>(x, j, (rows, cols), *eps);
            let mut sums = [(V::zero(), V::zero()); N];
            for i in 0..rows {
                let (weight, mut of_row) = (V::splat(weight[i]), [V::zero(); 2]);
                for (k, ((mean, inv_std), (sum_g, sum_gx))) in stats.into_iter().zip(&mut sums).enumerate() {
                    let j = j + k * V::LANES;
                    let normal = part::<V>(x.add(i * cols), j, cols).sub(mean).mul(inv_std);
                    let dy = part::<V>(dy.add(i * cols), j, cols);
                    let g = dy.mul(weight);
                    *sum_g = sum_g.add(g);
                    *sum_gx = g.mul_add(normal, *sum_gx);
                    if E::NARROWS {
                        of_row = [dy.mul_add(normal, of_row[0]), of_row[1].add(dy)];
                    } else {
                        dw[i] += dy.mul(normal).sum();
                        db[i] += dy.sum();
                    }
                }
                for (lanes, of_row) in lanes.iter_mut().skip(i).take(1).flatten().zip(of_row) {
                    let lanes = lanes.as_mut_ptr();
                    V::load(lanes).add(of_row).store(lanes);
                }
            }
            for (sum_g, sum_gx) in &mut sums {
                *sum_g = sum_g.mul(num(1.0 / rows as f64));
                *sum_gx = sum_gx.mul(num(-1.0 / rows as f64));
            }
            for (i, &weight) in weight.iter().enumerate() {
                let weight = V::splat(weight);
                for (k, ((mean, inv_std), (mean_g, minus_gx))) in stats.into_iter().zip(sums).enumerate() {
                    let j = j + k * V::LANES;
                    let normal = part::<V>(x.add(i * cols), j, cols).sub(mean).mul(inv_std);
                    let g = part::<V>(dy.add(i * cols), j, cols).mul(weight);
                    let inner = normal.mul_add(minus_gx, g.sub(mean_g));
                    let (at, lanes) = (i * cols + j, V::LANES.min(cols - j));
                    let low = low.offset(at, at);
                    let onto = match onto {
                        Some(onto) => low.add(part::<V>(onto.add(i * cols), j, cols), lanes),
                        None => V::zero(),
                    };
                    low.store(inner.mul_add(inv_std, onto), dx.add(at), lanes);
                }
            }
        }
    }
}

/// Columns as long as the weight, of one matrix.
pub(crate) fn columns_forward<E: Stored>(
    xs: &[E],
    weight: &[E::Elem],
    bias: &[E::Elem],
    eps: f64,
    ys: &mut [MaybeUninit<E>],
) {
    assert!(bias.len() == weight.len() && xs.len() == ys.len() && xs.len().is_multiple_of(weight.len()));
    dispatch(ColumnsForward(Forward { xs, weight, bias, eps, ys: ys.as_mut_ptr().cast() }));
}

/// As [`backward`], for the columns of one matrix.
pub(crate) fn columns_backward<E: Stored>(
    (xs, grad): (&[E], &[E]),
    weight: &[E::Elem],
    eps: f64,
    onto: Option<Onto<E>>,
    (dx, dx_low): (&mut [MaybeUninit<E>], Option<&mut [MaybeUninit<E>]>),
    (dw, db): (&mut [E::Elem], &mut [E::Elem]),
) {
    assert!(xs.len() == grad.len() && xs.len() == dx.len() && xs.len().is_multiple_of(weight.len()));
    assert!(dw.len() == weight.len() && db.len() == weight.len() && onto.is_none_or(|onto| onto.fits(xs.len())));
    assert!(dx_low.as_ref().is_none_or(|low| low.len() == dx.len()));
    let low = Onto::low(onto, dx_low.map(Shared::from_uninit));
    let onto = onto.map(|onto| onto.high.as_ptr());
    dispatch(ColumnsBackward(Backward { xs, grad, weight, eps, onto, low, dx: dx.as_mut_ptr().cast(), dw, db }));
}

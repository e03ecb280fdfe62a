//! Batch normalisation of rows of channels: y = act(x · scale + shift + skip), with statistics and gradients.
//!
//! Sums go over blocks of pixels whose sizes follow from the tensor alone: in f32 within a block, in f64 over the
//! blocks, in their order. The number of threads changes no bit.

mod stats;

pub(crate) use stats::stats;

use super::walk::{self, Step, add_f32, fold, load, load_f32, spread, store, walk};
use crate::kernels::blocking::WRITE_AHEAD;
use crate::kernels::buffer::{Shared, written};
use crate::kernels::fused_activation::FusedActivation;
use crate::kernels::simd::{Kernel, Simd, dispatch, prefetch_to_write};
use half::bf16;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Numbers of a task that sums nothing.
const TASK: usize = 1 << 14;
/// Pixels of a block, at least: adding up the blocks' sums costs a pass over their channels each.
const PIXELS: usize = 128;

/// Numbers of a block that is summed in f32. A lane gets no more than a thousand of them.
pub(crate) fn block(c: usize) -> usize {
    walk::part(c, (PIXELS * c).max(1 << 15))
}

/// A normalisation, channel by channel: y = x · scale + shift, which is (x - mean) · inv_std · weight + bias.
#[derive(Debug, Clone)]
pub(crate) struct Coefficients {
    pub mean: Vec<f32>,
    /// 1 / √(σ² + eps)
    pub inv_std: Vec<f32>,
    /// weight · inv_std
    pub scale: Vec<f32>,
    /// bias - mean · scale
    pub shift: Vec<f32>,
    /// Whether mean and variance are functions of x, or constants.
    pub through_stats: bool,
}

impl Coefficients {
    /// Those of weight, bias, mean and variance of each channel.
    pub fn new(weight: &[f32], bias: &[f32], (mean, var): (&[f32], &[f32]), eps: f64, through_stats: bool) -> Self {
        let inv_std: Vec<f32> = var.iter().map(|&v| (1.0 / (f64::from(v) + eps).sqrt()) as f32).collect();
        let scale: Vec<f32> = weight.iter().zip(&inv_std).map(|(&w, &i)| w * i).collect();
        let shift = |((&b, &m), &s): ((&f32, &f32), &f32)| (f64::from(b) - f64::from(m) * f64::from(s)) as f32;
        let shift = bias.iter().zip(mean).zip(&scale).map(shift).collect();
        Self { mean: mean.to_vec(), inv_std, scale, shift, through_stats }
    }

    /// The channels.
    pub fn channels(&self) -> usize {
        self.mean.len()
    }
}

/// y = act(x · scale + shift + skip), its coefficients laid out for vectors.
pub(crate) struct Affine {
    period: usize,
    scale: Vec<f32>,
    shift: Vec<f32>,
    activation: FusedActivation,
}

impl Affine {
    /// For up to `n` numbers of rows.
    pub fn new(scale: &[f32], shift: &[f32], n: usize, activation: FusedActivation) -> Self {
        assert!(scale.len() == shift.len() && !scale.is_empty());
        Self { period: walk::period(scale.len()), scale: spread(scale, n), shift: spread(shift, n), activation }
    }

    /// Of rows that begin with a pixel, on this thread.
    pub fn block(&self, rows: &[bf16], skip: Option<&[bf16]>, to: &mut [MaybeUninit<bf16>]) {
        assert!(rows.len() == to.len() && skip.is_none_or(|skip| skip.len() == rows.len()));
        assert!(rows.len().min(self.period) <= self.scale.len());
        let skip = skip.map(<[bf16]>::as_ptr);
        dispatch(AffineRun { by: self, n: rows.len(), rows: rows.as_ptr(), skip, to: to.as_mut_ptr().cast() });
    }

    /// The same over rows that nothing is added to.
    pub fn over(&self, rows: &mut [bf16]) {
        assert!(rows.len().min(self.period) <= self.scale.len());
        let to = rows.as_mut_ptr();
        dispatch(AffineRun { by: self, n: rows.len(), rows: to, skip: None, to });
    }
}

#[derive(Clone, Copy)]
struct AffineRun<'a> {
    by: &'a Affine,
    n: usize,
    rows: *const bf16,
    skip: Option<*const bf16>,
    to: *mut bf16,
}

impl<V: Simd<Elem = f32>> Step<V> for AffineRun<'_> {
    type State = (V, V);

    #[inline(always)]
    unsafe fn begin(&self, at: usize, count: usize) -> (V, V) {
        // SAFETY: below `dispatch`, inside the period.
        unsafe { (load_f32(self.by.scale.as_ptr(), at, count), load_f32(self.by.shift.as_ptr(), at, count)) }
    }
    #[inline(always)]
    unsafe fn step(&self, &mut (scale, shift): &mut (V, V), i: usize, count: usize) {
        prefetch_to_write(self.to.wrapping_add(i + WRITE_AHEAD));
        // SAFETY: below `dispatch`, inside the rows, which all have the same length.
        unsafe {
            let mut y = load::<V>(self.rows, i, count).mul_add(scale, shift);
            if let Some(skip) = self.skip {
                y = y.add(load(skip, i, count));
            }
            store(self.by.activation.apply(y), self.to, i, count);
        }
    }
}

impl Kernel<f32> for AffineRun<'_> {
    const NARROWS: bool = true;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        // SAFETY: below `dispatch`, with coefficients for a period or for all numbers.
        unsafe { walk::<V, _>(&self, self.n, self.by.period) }
    }
}

/// y = act(x · scale + shift + skip).
pub(crate) fn affine(
    rows: &[bf16],
    c: usize,
    scale: &[f32],
    shift: &[f32],
    skip: Option<&[bf16]>,
    activation: FusedActivation,
) -> Vec<bf16> {
    assert!(scale.len() == c && rows.len().is_multiple_of(c) && skip.is_none_or(|skip| skip.len() == rows.len()));
    let by = Affine::new(scale, shift, rows.len(), activation);
    let task = walk::part(c, TASK);
    let fill = |ys: &mut [MaybeUninit<bf16>]| {
        ys.par_chunks_mut(task).zip(rows.par_chunks(task)).enumerate().for_each(|(i, (ys, rows))| {
            by.block(rows, skip.map(|skip| &skip[i * task..][..rows.len()]), ys);
        });
    };
    // SAFETY: the tasks cover the output, and each writes its own.
    unsafe { written(rows.len(), fill) }
}

/// Σ g and Σ g · x̂ of each channel: the gradients of bias and weight.
pub(crate) struct Sums {
    pub bias: Vec<f32>,
    pub weight: Vec<f32>,
}

/// Σ g and Σ g · x̂, where g is the part of `grad` that passes the activation; and with `keep` g itself, the gradient
/// of what was added behind the normalisation.
///
/// What the activation cut is seen from its output, or without one from its input, computed again: for a normalisation
/// that nothing was added to.
pub(crate) fn gradient_sums(
    rows: &[bf16],
    output: Option<&[bf16]>,
    grad: &[bf16],
    by: &Coefficients,
    activation: FusedActivation,
    keep: bool,
) -> (Sums, Option<Vec<bf16>>) {
    let (n, c) = (rows.len(), by.channels());
    assert!(n.is_multiple_of(c) && grad.len() == n && output.is_none_or(|output| output.len() == n));
    let sums = SumsOf::new(by, n, activation);
    let block = block(c);
    let mut kept = Vec::with_capacity(if keep { n } else { 0 });
    let place = keep.then(|| Shared::from_spare(&mut kept));
    let parts: Vec<Vec<f64>> = (0..n.div_ceil(block))
        .into_par_iter()
        .map(|i| {
            let part = i * block..n.min((i + 1) * block);
            // SAFETY: room for n numbers, of which every block has its own.
            let keep = place.map(|place| unsafe { place.at(part.start) });
            // SAFETY: as many places as the block has numbers.
            unsafe { sums.block(&rows[part.clone()], output.map(|output| &output[part.clone()]), &grad[part], keep) }
        })
        .collect();
    if keep {
        // SAFETY: the blocks have written all.
        unsafe { kept.set_len(n) };
    }
    (sums.of_blocks(by, &parts), keep.then_some(kept))
}

/// The sums of a gradient, block by block, coefficients laid out for vectors.
pub(crate) struct SumsOf {
    c: usize,
    mean: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
    activation: FusedActivation,
}

impl SumsOf {
    /// For up to `n` numbers of rows.
    pub fn new(by: &Coefficients, n: usize, activation: FusedActivation) -> Self {
        let [mean, scale, shift] = [&by.mean, &by.scale, &by.shift].map(|values| spread(values, n));
        Self { c: by.channels(), mean, scale, shift, activation }
    }

    /// Σ g, then Σ g · (x - mean), of each channel, of rows that begin with a pixel, on this thread; g itself to
    /// `keep`.
    ///
    /// # Safety
    /// As many places behind `keep` as rows have numbers.
    pub unsafe fn block(
        &self,
        rows: &[bf16],
        output: Option<&[bf16]>,
        grad: &[bf16],
        keep: Option<*mut bf16>,
    ) -> Vec<f64> {
        let n = rows.len();
        assert!(grad.len() == n && output.is_none_or(|output| output.len() == n));
        let len = walk::period(self.c).min(n);
        assert!(len <= self.mean.len());
        let mut lanes = vec![0f32; 2 * len];
        let (sum, dot) = lanes.split_at_mut(len);
        let (cut, sums) = (output.map(<[bf16]>::as_ptr), [sum.as_mut_ptr(), dot.as_mut_ptr()]);
        dispatch(SumsRun { by: self, n, rows: rows.as_ptr(), cut, grad: grad.as_ptr(), keep, sums });
        let mut folded = vec![0f64; 2 * self.c];
        let (sums, dots) = folded.split_at_mut(self.c);
        fold(&lanes[..len], sums);
        fold(&lanes[len..], dots);
        folded
    }

    /// What all blocks give together.
    pub fn of_blocks(&self, by: &Coefficients, blocks: &[Vec<f64>]) -> Sums {
        let mut all = vec![0f64; 2 * self.c];
        for block in blocks {
            all.iter_mut().zip(block).for_each(|(all, part)| *all += part);
        }
        let (sums, dots) = all.split_at(self.c);
        let weight = dots.iter().zip(&by.inv_std).map(|(&dot, &inv_std)| (dot * f64::from(inv_std)) as f32).collect();
        Sums { bias: sums.iter().map(|&sum| sum as f32).collect(), weight }
    }
}

#[derive(Clone, Copy)]
struct SumsRun<'a> {
    by: &'a SumsOf,
    n: usize,
    rows: *const bf16,
    /// The activation's output.
    cut: Option<*const bf16>,
    grad: *const bf16,
    keep: Option<*mut bf16>,
    sums: [*mut f32; 2],
}

impl<V: Simd<Elem = f32>> Step<V> for SumsRun<'_> {
    /// Mean, scale, shift, and the two sums.
    type State = [V; 5];

    #[inline(always)]
    unsafe fn begin(&self, at: usize, count: usize) -> [V; 5] {
        let SumsOf { mean, scale, shift, .. } = self.by;
        // SAFETY: below `dispatch`, inside the period.
        unsafe {
            let [mean, scale, shift] = [mean, scale, shift].map(|of| load_f32(of.as_ptr(), at, count));
            [mean, scale, shift, V::zero(), V::zero()]
        }
    }
    #[inline(always)]
    unsafe fn step(&self, [mean, scale, shift, sum, dot]: &mut [V; 5], i: usize, count: usize) {
        // SAFETY: below `dispatch`, inside the rows. Lanes behind the last number hold zeros.
        unsafe {
            let (x, g) = (load::<V>(self.rows, i, count), load::<V>(self.grad, i, count));
            let g = passed(self.by.activation, self.cut.map(|cut| load(cut, i, count)), (x, *scale, *shift), g);
            if let Some(keep) = self.keep {
                prefetch_to_write(keep.wrapping_add(i + WRITE_AHEAD));
                store(g, keep, i, count);
            }
            *sum = sum.add(g);
            *dot = g.mul_add(x.sub(*mean), *dot);
        }
    }
    #[inline(always)]
    unsafe fn end(&self, [.., sum, dot]: [V; 5], at: usize, count: usize) {
        // SAFETY: below `dispatch`, inside the period; this task's own sums.
        unsafe {
            add_f32(sum, self.sums[0], at, count);
            add_f32(dot, self.sums[1], at, count);
        }
    }
}

impl Kernel<f32> for SumsRun<'_> {
    const NARROWS: bool = true;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        // SAFETY: below `dispatch`, with coefficients and sums for a period or for all numbers.
        unsafe { walk::<V, _>(&self, self.n, walk::period(self.by.c)) }
    }
}

/// The gradient that passes the activation, which cut where its output or x · scale + shift says.
#[inline(always)]
unsafe fn passed<V: Simd<Elem = f32>>(
    activation: FusedActivation,
    output: Option<V>,
    (x, scale, shift): (V, V, V),
    grad: V,
) -> V {
    // SAFETY: below `dispatch`.
    unsafe {
        match (activation, output) {
            (FusedActivation::None, _) => grad,
            (activation, Some(output)) => activation.gradient(output, grad),
            (activation, None) => activation.gradient(x.mul_add(scale, shift), grad),
        }
    }
}

/// dx = scale · g + b · x + d, which is scale · (g - (Σ g + x̂ · Σ g·x̂) / n); scale · g where the statistics are
/// constants. Its coefficients are laid out for vectors.
pub(crate) struct InputGrad {
    c: usize,
    scale: Vec<f32>,
    shift: Vec<f32>,
    rest: Option<(Vec<f32>, Vec<f32>)>,
    activation: FusedActivation,
}

impl InputGrad {
    /// Of a normalisation over this many pixels.
    pub fn new(by: &Coefficients, sums: &Sums, pixels: usize, activation: FusedActivation) -> Self {
        let (c, n) = (by.channels(), by.channels() * pixels);
        let rest = by.through_stats.then(|| {
            let each = |i: usize| {
                let (scale, inv_std) = (f64::from(by.scale[i]), f64::from(by.inv_std[i]));
                let b = -scale * inv_std * f64::from(sums.weight[i]) / pixels as f64;
                // b · (x - mean): with the rounded b, whose multiple of the mean is taken back.
                let d = -scale * f64::from(sums.bias[i]) / pixels as f64 - f64::from(b as f32) * f64::from(by.mean[i]);
                (b as f32, d as f32)
            };
            let (b, d): (Vec<f32>, Vec<f32>) = (0..c).map(each).unzip();
            (spread(&b, n), spread(&d, n))
        });
        Self { c, scale: spread(&by.scale, n), shift: spread(&by.shift, n), rest, activation }
    }

    /// The same for a gradient that has passed the activation: what [`gradient_sums`] keeps.
    #[allow(dead_code, reason = "for the convolution with its norm")]
    pub fn of_passed(self) -> Self {
        Self { activation: FusedActivation::None, ..self }
    }

    /// Of rows that begin with a pixel, on this thread: the gradient of these rows to `to`.
    pub fn block(&self, rows: &[bf16], output: Option<&[bf16]>, grad: &[bf16], to: &mut [MaybeUninit<bf16>]) {
        assert!(rows.len() == to.len() && grad.len() == rows.len());
        // SAFETY: the lengths are checked here and there.
        unsafe { self.run(rows.as_ptr(), output, grad.as_ptr(), None, to.as_mut_ptr().cast(), rows.len()) }
    }

    /// [`block`](Self::block) on top of what `to` holds: another reader's gradient.
    pub fn add_block(&self, rows: &[bf16], output: Option<&[bf16]>, grad: &[bf16], to: &mut [bf16]) {
        assert!(rows.len() == to.len() && grad.len() == rows.len());
        let to = to.as_mut_ptr();
        // SAFETY: as above; a vector of `to` is read before it is written.
        unsafe { self.run(rows.as_ptr(), output, grad.as_ptr(), Some(to), to, rows.len()) }
    }

    /// The gradient of all rows.
    pub fn all(&self, rows: &[bf16], output: Option<&[bf16]>, grad: &[bf16]) -> Vec<bf16> {
        assert!(grad.len() == rows.len());
        let task = walk::part(self.c, TASK);
        let fill = |dx: &mut [MaybeUninit<bf16>]| {
            let parts = dx.par_chunks_mut(task).zip(rows.par_chunks(task)).zip(grad.par_chunks(task));
            parts.enumerate().for_each(|(i, ((dx, rows), grad))| {
                self.block(rows, output.map(|output| &output[i * task..][..rows.len()]), grad, dx);
            });
        };
        // SAFETY: the tasks cover the output, and each writes its own.
        unsafe { written(rows.len(), fill) }
    }

    /// The gradient of all rows, written over them.
    #[allow(dead_code, reason = "for the convolution with its norm")]
    pub fn over_rows(&self, mut rows: Vec<bf16>, output: Option<&[bf16]>, grad: &[bf16]) -> Vec<bf16> {
        assert!(grad.len() == rows.len());
        let task = walk::part(self.c, TASK);
        rows.par_chunks_mut(task).zip(grad.par_chunks(task)).enumerate().for_each(|(i, (rows, grad))| {
            let output = output.map(|output| &output[i * task..][..rows.len()]);
            let to = rows.as_mut_ptr();
            // SAFETY: rows and gradient are of one length; a vector of rows is read before it is written.
            unsafe { self.run(to, output, grad.as_ptr(), None, to, rows.len()) }
        });
        rows
    }

    /// The gradient of all rows, written over that of the output.
    #[allow(dead_code, reason = "for the convolution with its norm")]
    pub fn over_grad(&self, rows: &[bf16], output: Option<&[bf16]>, mut grad: Vec<bf16>) -> Vec<bf16> {
        assert!(grad.len() == rows.len());
        let task = walk::part(self.c, TASK);
        grad.par_chunks_mut(task).zip(rows.par_chunks(task)).enumerate().for_each(|(i, (grad, rows))| {
            let output = output.map(|output| &output[i * task..][..rows.len()]);
            let to = grad.as_mut_ptr();
            // SAFETY: as above, for the gradient.
            unsafe { self.run(rows.as_ptr(), output, to, None, to, rows.len()) }
        });
        grad
    }

    /// # Safety
    /// `n` numbers behind every pointer.
    unsafe fn run(
        &self,
        rows: *const bf16,
        output: Option<&[bf16]>,
        grad: *const bf16,
        onto: Option<*const bf16>,
        to: *mut bf16,
        n: usize,
    ) {
        assert!(n.is_multiple_of(self.c) && output.is_none_or(|output| output.len() == n));
        assert!(n.min(walk::period(self.c)) <= self.scale.len());
        let cut = output.map(<[bf16]>::as_ptr);
        match &self.rest {
            Some((b, d)) => dispatch(GradRun { by: self, n, rows, cut, grad, onto, to, rest: Through(b, d) }),
            None => dispatch(GradRun { by: self, n, rows, cut, grad, onto, to, rest: Constant }),
        }
    }
}

/// What the statistics add to a gradient.
trait Rest: Copy {
    type State<V: Simd<Elem = f32>>: Copy;
    unsafe fn begin<V: Simd<Elem = f32>>(self, at: usize, count: usize) -> Self::State<V>;
    unsafe fn add<V: Simd<Elem = f32>>(state: Self::State<V>, scaled: V, x: V) -> V;
}

#[derive(Clone, Copy)]
struct Through<'a>(&'a [f32], &'a [f32]);

impl Rest for Through<'_> {
    type State<V: Simd<Elem = f32>> = (V, V);

    #[inline(always)]
    unsafe fn begin<V: Simd<Elem = f32>>(self, at: usize, count: usize) -> (V, V) {
        // SAFETY: below `dispatch`, inside the period.
        unsafe { (load_f32(self.0.as_ptr(), at, count), load_f32(self.1.as_ptr(), at, count)) }
    }
    #[inline(always)]
    unsafe fn add<V: Simd<Elem = f32>>((b, d): (V, V), scaled: V, x: V) -> V {
        // SAFETY: below `dispatch`.
        unsafe { scaled.add(x.mul_add(b, d)) }
    }
}

#[derive(Clone, Copy)]
struct Constant;

impl Rest for Constant {
    type State<V: Simd<Elem = f32>> = ();

    #[inline(always)]
    unsafe fn begin<V: Simd<Elem = f32>>(self, _at: usize, _count: usize) {}
    #[inline(always)]
    unsafe fn add<V: Simd<Elem = f32>>((): (), scaled: V, _x: V) -> V {
        scaled
    }
}

#[derive(Clone, Copy)]
struct GradRun<'a, R> {
    by: &'a InputGrad,
    n: usize,
    rows: *const bf16,
    cut: Option<*const bf16>,
    grad: *const bf16,
    onto: Option<*const bf16>,
    to: *mut bf16,
    rest: R,
}

impl<V: Simd<Elem = f32>, R: Rest> Step<V> for GradRun<'_, R> {
    type State = (V, V, R::State<V>);

    #[inline(always)]
    unsafe fn begin(&self, at: usize, count: usize) -> Self::State {
        let (scale, shift) = (self.by.scale.as_ptr(), self.by.shift.as_ptr());
        // SAFETY: below `dispatch`, inside the period.
        unsafe { (load_f32(scale, at, count), load_f32(shift, at, count), self.rest.begin(at, count)) }
    }
    #[inline(always)]
    unsafe fn step(&self, &mut (scale, shift, rest): &mut Self::State, i: usize, count: usize) {
        prefetch_to_write(self.to.wrapping_add(i + WRITE_AHEAD));
        // SAFETY: below `dispatch`, inside the rows; a place is read before it is written.
        unsafe {
            let (x, g) = (load::<V>(self.rows, i, count), load::<V>(self.grad, i, count));
            let g = passed(self.by.activation, self.cut.map(|cut| load(cut, i, count)), (x, scale, shift), g);
            let mut dx = R::add(rest, g.mul(scale), x);
            if let Some(onto) = self.onto {
                dx = dx.add(load(onto, i, count));
            }
            store(dx, self.to, i, count);
        }
    }
}

impl<R: Rest> Kernel<f32> for GradRun<'_, R> {
    const NARROWS: bool = true;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        // SAFETY: below `dispatch`, with coefficients for a period or for all numbers.
        unsafe { walk::<V, _>(&self, self.n, walk::period(self.by.c)) }
    }
}

#[cfg(test)]
mod tests;

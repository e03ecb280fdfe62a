//! The gradients of a normalisation, and of the activation behind it.

use super::small::{by_columns, has_small_planes, spread, sum_images};
use super::{Affine, Dims, PerChannel, Window, by_channel, for_planes};
use crate::kernels::blocking::WRITE_AHEAD;
use crate::kernels::buffer::{Shared, written_by_tasks};
use crate::kernels::fused_activation::FusedActivation;
use crate::kernels::simd::{Kernel, Real, Simd, dispatch, prefetch_to_write};
use std::borrow::Cow;
use std::ops::Range;

/// What tells which gradients the activation cuts.
#[derive(Clone, Copy)]
pub(crate) enum CutBy<'a, T> {
    /// The activation's output.
    Output(&'a [T]),
    /// Its input, computed again from x.
    Input(Affine<'a, T>),
}

impl<T: Copy> CutBy<'_, T> {
    /// For a part of the planes.
    pub fn part(&self, places: Range<usize>) -> Self {
        match *self {
            Self::Output(ys) => Self::Output(&ys[places]),
            Self::Input(by) => Self::Input(by),
        }
    }
}

/// What the backward pass reads of one plane, or with `EACH` of all planes of an image.
struct Grads<'a, T, const EACH: bool> {
    xs: *const T,
    grad: *const T,
    n: usize,
    output: Option<*const T>,
    mean: PerChannel<'a, T>,
    /// Of the activation's input.
    affine: Option<(PerChannel<'a, T>, PerChannel<'a, T>)>,
    activation: FusedActivation,
}

impl<T: Real, const EACH: bool> Grads<'_, T, EACH> {
    /// (gradient that passes the activation, x - mean) of some lanes.
    #[inline(always)]
    unsafe fn at<V: Simd<Elem = T>>(&self, i: usize, count: usize) -> (V, V) {
        // SAFETY: below `dispatch`, i + count ≤ n.
        unsafe {
            let grad = V::load_first(self.grad.add(i), count);
            let centered = V::load_first(self.xs.add(i), count).sub(self.mean.lanes::<V, EACH>(i, count));
            let grad = match (self.activation, self.output, self.affine) {
                (FusedActivation::None, ..) => grad,
                (activation, Some(output), _) => activation.gradient(V::load_first(output.add(i), count), grad),
                (activation, None, Some((scale, shift))) => {
                    let (scale, shift) = (scale.lanes::<V, EACH>(i, count), shift.lanes::<V, EACH>(i, count));
                    activation.gradient(centered.mul_add(scale, shift), grad)
                }
                (_, None, None) => grad,
            };
            (grad, centered)
        }
    }
}

/// `xs` and `grad` are the plane's own, or with `EACH` those of the image's `n` pixels that begin with this plane.
#[inline(always)]
fn grads<'a, T: Real, const EACH: bool>(
    (_, c, s): Dims,
    (plane, n): (usize, usize),
    (xs, grad): (*const T, *const T),
    mean: &'a [T],
    (activation, cut): (FusedActivation, CutBy<'a, T>),
) -> Grads<'a, T, EACH> {
    let channel = if EACH { 0 } else { plane % c };
    let (output, affine) = match cut {
        CutBy::Output(ys) => (Some(ys[plane * s..][..n].as_ptr()), None),
        CutBy::Input(by) => (None, Some((PerChannel::of(by.scale, channel), PerChannel::of(by.shift, channel)))),
    };
    Grads { xs, grad, n, output, mean: PerChannel::of(mean, channel), affine, activation }
}

/// [`CutBy`] with every channel's numbers repeated for its pixels.
struct SpreadCut<'a, T: Clone> {
    output: Option<&'a [T]>,
    affine: [Cow<'a, [T]>; 3],
}

impl<'a, T: Real> SpreadCut<'a, T> {
    fn of(cut: CutBy<'a, T>, dims: Dims) -> Self {
        let (_, _, s) = dims;
        match cut {
            CutBy::Output(ys) => Self { output: Some(ys), affine: [const { Cow::Borrowed(&[]) }; 3] },
            CutBy::Input(by) => {
                by.check(dims);
                Self { output: None, affine: [by.mean, by.scale, by.shift].map(|values| spread(values, s)) }
            }
        }
    }

    fn cut(&self) -> CutBy<'_, T> {
        let [mean, scale, shift] = &self.affine;
        match self.output {
            Some(ys) => CutBy::Output(ys),
            None => CutBy::Input(Affine { mean, scale, shift }),
        }
    }
}

/// Σ g and Σ g · (x - mean) of each channel, 2·c numbers, and with `keep` g itself: the gradient that passes the
/// activation. `grad` is the window of a wider tensor.
pub(crate) fn grad_sums<T: Real>(
    dims: Dims,
    xs: &[T],
    (grad, window): (&[T], Window),
    mean: &[T],
    activation: (FusedActivation, CutBy<T>),
    keep: bool,
) -> (Vec<T>, Option<Vec<T>>) {
    struct Plane<'a, T>(Grads<'a, T, false>, Option<*mut T>);
    impl<T: Real> Kernel<T> for Plane<'_, T> {
        type Output = [f64; 2];

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = T>>(self) -> [f64; 2] {
            let Self(plane, keep) = self;
            // SAFETY: below `dispatch`, inside the plane.
            unsafe {
                let mut sums = [V::zero(); 4];
                let mut i = 0;
                while i + 2 * V::LANES <= plane.n {
                    for j in 0..2 {
                        let at = i + j * V::LANES;
                        let (g, x) = plane.at::<V>(at, V::LANES);
                        if let Some(keep) = keep {
                            prefetch_to_write(keep.wrapping_add(at + WRITE_AHEAD));
                            g.store(keep.add(at));
                        }
                        sums[j] = sums[j].add(g);
                        sums[2 + j] = g.mul_add(x, sums[2 + j]);
                    }
                    i += 2 * V::LANES;
                }
                while i < plane.n {
                    let count = V::LANES.min(plane.n - i);
                    // Lanes behind the last pixel hold g = 0; x - mean there is finite unless the mean is not.
                    let (g, x) = plane.at::<V>(i, count);
                    if let Some(keep) = keep {
                        g.store_first(keep.add(i), count);
                    }
                    sums[0] = sums[0].add(g);
                    sums[2] = g.mul_add(x, sums[2]);
                    i += V::LANES;
                }
                [sums[0].add(sums[1]).sum().to_f64(), sums[2].add(sums[3]).sum().to_f64()]
            }
        }
    }
    struct Columns<'s, F> {
        /// What an image's planes read, and where their gradient is kept.
        image: F,
        images: usize,
        columns: Range<usize>,
        sums: &'s mut [[f64; 2]],
    }
    impl<'a, T: Real, F: Fn(usize) -> (Grads<'a, T, true>, Option<*mut T>)> Kernel<T> for Columns<'_, F> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = T>>(self) {
            let Self { image, images, columns, sums } = self;
            // SAFETY: below `dispatch`, inside the images' columns; no other task has these.
            unsafe {
                for (sums, i) in sums.chunks_mut(V::LANES).zip(columns.step_by(V::LANES)) {
                    let count = sums.len();
                    sum_images::<V>(images, sums, |n| {
                        let (plane, keep) = image(n);
                        let (g, x) = plane.at::<V>(i, count);
                        if let Some(keep) = keep {
                            g.store_first(keep.add(i), count);
                        }
                        [g, g.mul(x)]
                    });
                }
            }
        }
    }
    assert!(xs.len() == dims.0 * dims.1 * dims.2 && mean.len() == dims.1);
    window.check(dims, grad.len());
    if let CutBy::Output(ys) = activation.1 {
        assert_eq!(ys.len(), xs.len());
    }
    let mut kept = keep.then(|| Vec::with_capacity(xs.len()));
    let place = kept.as_mut().map(|kept: &mut Vec<T>| Shared::from_spare(kept));
    let (x, g) = (Shared::reading(xs), Shared::reading(grad));
    let (b, c, s) = dims;
    // SAFETY: planes lie inside the slices, whose lengths were checked; each has its place.
    let places = |plane: usize| unsafe { (x.at(plane * s).cast_const(), g.at(window.start(plane, dims)).cast_const()) };
    // SAFETY: as above.
    let keeps = |plane: usize| place.map(|place| unsafe { place.at(plane * s) });
    let sums = if has_small_planes(dims) {
        let (mean, cut) = (spread(mean, s), SpreadCut::of(activation.1, dims));
        by_columns(dims, |columns, sums| {
            let image = |i: usize| {
                let plane = i * c;
                (grads(dims, (plane, c * s), places(plane), &mean, (activation.0, cut.cut())), keeps(plane))
            };
            dispatch(Columns { image, images: b, columns, sums });
        })
    } else {
        by_channel(
            dims,
            |plane| dispatch(Plane(grads(dims, (plane, s), places(plane), mean, activation), keeps(plane))),
            |planes| planes.iter().fold([0.0; 2], |[a, b], [c, d]| [a + c, b + d]),
        )
    };
    if let Some(kept) = &mut kept {
        // SAFETY: every plane was written, and they are the whole capacity asked for.
        unsafe { kept.set_len(xs.len()) };
    }
    let sums = sums.iter().map(|s| s[0]).chain(sums.iter().map(|s| s[1])).map(T::from_f64).collect();
    (sums, kept)
}

/// dx = a · g - b · (x - mean) - d with a, b, d by channel. Constant statistics have no b and d: dx = a · g.
pub(crate) struct InputGrad<'a, T> {
    pub mean: &'a [T],
    pub a: &'a [T],
    pub rest: Option<(&'a [T], &'a [T])>,
}

/// How a gradient is stored: alone, or on top of what its place holds.
#[derive(Clone, Copy, PartialEq)]
enum Store {
    Overwrite,
    Add,
}

/// The gradient of x to `to`, which may be `xs` itself.
fn input_grad_into<T: Real>(
    dims: Dims,
    xs: Shared<T>,
    (to, store): (Shared<T>, Store),
    (grad, window): (&[T], Window),
    by: &InputGrad<T>,
    activation: (FusedActivation, CutBy<T>),
) {
    let (b, c, s) = dims;
    let g = Shared::reading(grad);
    // SAFETY: the callers have checked that all have the dims' length.
    let at = |plane: usize| unsafe {
        ((xs.at(plane * s).cast_const(), g.at(window.start(plane, dims)).cast_const()), to.at(plane * s))
    };
    if has_small_planes(dims) {
        let [mean, a] = [by.mean, by.a].map(|values| spread(values, s));
        let rest = by.rest.map(|(b, d)| (spread(b, s), spread(d, s)));
        let rest = rest.as_ref().map(|(b, d)| (&b[..], &d[..]));
        let (by, cut) = (InputGrad { mean: &mean, a: &a, rest }, SpreadCut::of(activation.1, dims));
        for_planes((b, 1, c * s), |run| {
            for image in run {
                let (places, to) = at(image * c);
                let grads = grads(dims, (image * c, c * s), places, by.mean, (activation.0, cut.cut()));
                input_grad_plane::<T, true>(grads, &by, 0, (to, store));
            }
        });
    } else {
        for_planes(dims, |run| {
            for plane in run {
                let (places, to) = at(plane);
                let grads = grads(dims, (plane, s), places, by.mean, activation);
                input_grad_plane::<T, false>(grads, by, plane % c, (to, store));
            }
        });
    }
}

/// A plane of `channel`, or with `EACH` the planes of an image.
#[inline]
fn input_grad_plane<T: Real, const EACH: bool>(
    grads: Grads<T, EACH>,
    by: &InputGrad<T>,
    channel: usize,
    (to, store): (*mut T, Store),
) {
    struct Plane<'a, T, const EACH: bool> {
        grads: Grads<'a, T, EACH>,
        to: *mut T,
        store: Store,
        a: PerChannel<'a, T>,
        rest: Option<(PerChannel<'a, T>, PerChannel<'a, T>)>,
    }
    impl<T: Real, const EACH: bool> Kernel<T> for Plane<'_, T, EACH> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = T>>(self) {
            // SAFETY: below `dispatch`, inside the plane; a place is read before it is written.
            unsafe {
                for i in (0..self.grads.n).step_by(V::LANES) {
                    let count = V::LANES.min(self.grads.n - i);
                    let (g, x) = self.grads.at::<V>(i, count);
                    let mut dx = self.a.lanes::<V, EACH>(i, count).mul(g);
                    if let Some((b, d)) = self.rest {
                        let (b, d) = (b.lanes::<V, EACH>(i, count), d.lanes::<V, EACH>(i, count));
                        dx = dx.sub(b.mul_add(x, d));
                    }
                    if self.store == Store::Add {
                        dx = dx.add(V::load_first(self.to.add(i), count));
                    }
                    dx.store_first(self.to.add(i), count);
                }
            }
        }
    }
    let number = |values| PerChannel::of(values, channel);
    let rest = by.rest.map(|(b, d)| (number(b), number(d)));
    dispatch(Plane { grads, to, store, a: PerChannel::of(by.a, channel), rest });
}

impl<T: Real> InputGrad<'_, T> {
    fn check(&self, dims: Dims, xs: &[T], (grad, window): (&[T], Window), cut: CutBy<T>) {
        let (b, c, s) = dims;
        assert!(xs.len() == b * c * s);
        window.check(dims, grad.len());
        assert!(self.mean.len() == c && self.a.len() == c);
        assert!(self.rest.is_none_or(|(b, d)| b.len() == c && d.len() == c));
        if let CutBy::Output(ys) = cut {
            assert_eq!(ys.len(), xs.len());
        }
    }
}

/// The gradient of x, from the window of a wider one.
pub(crate) fn input_grad<T: Real>(
    dims: Dims,
    xs: &[T],
    grad: (&[T], Window),
    by: &InputGrad<T>,
    activation: (FusedActivation, CutBy<T>),
) -> Vec<T> {
    by.check(dims, xs, grad, activation.1);
    let from = Shared::reading(xs);
    // SAFETY: the planes cover the output.
    unsafe {
        written_by_tasks(xs.len(), |to| input_grad_into(dims, from, (to, Store::Overwrite), grad, by, activation))
    }
}

/// The gradient of x, added to that of another reader of x.
pub(crate) fn add_input_grad<T: Real>(
    dims: Dims,
    xs: &[T],
    to: &mut [T],
    grad: (&[T], Window),
    by: &InputGrad<T>,
    activation: (FusedActivation, CutBy<T>),
) {
    by.check(dims, xs, grad, activation.1);
    assert_eq!(to.len(), xs.len());
    input_grad_into(dims, Shared::reading(xs), (Shared::new(to), Store::Add), grad, by, activation);
}

/// The gradient of x, written over x.
pub(crate) fn input_grad_over<T: Real>(
    dims: Dims,
    xs: &mut [T],
    grad: &[T],
    by: &InputGrad<T>,
    activation: (FusedActivation, CutBy<T>),
) {
    let grad = (grad, Window::whole(dims));
    by.check(dims, xs, grad, activation.1);
    let xs = Shared::new(xs);
    input_grad_into(dims, xs, (xs, Store::Overwrite), grad, by, activation);
}

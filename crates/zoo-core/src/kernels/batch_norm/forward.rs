//! y = act((x - mean) · scale + shift + skip), plane by plane or image by image.

use super::small::{has_small_planes, spread};
use super::{Affine, Dims, PerChannel, TASK, Window, for_planes};
use crate::kernels::blocking::WRITE_AHEAD;
use crate::kernels::buffer::{Shared, written_by_tasks};
use crate::kernels::fused_activation::FusedActivation;
use crate::kernels::simd::{Kernel, Real, Simd, dispatch, prefetch_to_write};
use rayon::prelude::*;

/// y = act((x - mean) · scale + shift + skip), into the window of a tensor of more channels.
///
/// # Safety
/// The output holds b · window.of · s elements.
pub(crate) unsafe fn affine_into<T: Real>(
    dims: Dims,
    xs: &[T],
    by: Affine<T>,
    skip: Option<&[T]>,
    activation: FusedActivation,
    (ys, window): (Shared<T>, Window),
) {
    by.check(dims);
    let (b, c, s) = dims;
    assert!(xs.len() == b * c * s && skip.is_none_or(|skip| skip.len() == xs.len()) && window.first + c <= window.of);
    let to = |plane: usize| {
        // SAFETY: the caller's output holds the planes of all images and of the window's channels.
        unsafe { ys.at(window.start(plane, dims)) }
    };
    if has_small_planes(dims) {
        let [mean, scale, shift] = [by.mean, by.scale, by.shift].map(|values| spread(values, s));
        let by = Affine { mean: &mean, scale: &scale, shift: &shift };
        for_planes((b, 1, c * s), |run| {
            for image in run {
                let part = image * c * s..(image + 1) * c * s;
                affine_plane::<T, true>(
                    &xs[part.clone()],
                    skip.map(|skip| &skip[part]),
                    by,
                    0,
                    activation,
                    to(image * c),
                );
            }
        });
    } else {
        for_planes(dims, |run| {
            for plane in run {
                let part = plane * s..(plane + 1) * s;
                let skip = skip.map(|skip| &skip[part.clone()]);
                affine_plane::<T, false>(&xs[part], skip, by, plane % c, activation, to(plane));
            }
        });
    }
}

/// A plane of `channel`, or with `EACH` the planes of an image.
#[inline]
fn affine_plane<T: Real, const EACH: bool>(
    xs: &[T],
    skip: Option<&[T]>,
    by: Affine<T>,
    channel: usize,
    activation: FusedActivation,
    ys: *mut T,
) {
    struct Plane<'a, T, const EACH: bool> {
        xs: &'a [T],
        ys: *mut T,
        skip: Option<&'a [T]>,
        mean: PerChannel<'a, T>,
        scale: PerChannel<'a, T>,
        shift: PerChannel<'a, T>,
        activation: FusedActivation,
    }
    impl<T: Real, const EACH: bool> Kernel<T> for Plane<'_, T, EACH> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = T>>(self) {
            // SAFETY: below `dispatch`; `xs`, `ys` and `skip` have the same length, and with `EACH` the numbers too.
            unsafe {
                let n = self.xs.len();
                for i in (0..n).step_by(V::LANES) {
                    let count = V::LANES.min(n - i);
                    prefetch_to_write(self.ys.wrapping_add(i + WRITE_AHEAD));
                    let (mean, scale) = (self.mean.lanes::<V, EACH>(i, count), self.scale.lanes::<V, EACH>(i, count));
                    let centered = V::load_first(self.xs.as_ptr().add(i), count).sub(mean);
                    let mut y = centered.mul_add(scale, self.shift.lanes::<V, EACH>(i, count));
                    if let Some(skip) = self.skip {
                        y = y.add(V::load_first(skip.as_ptr().add(i), count));
                    }
                    self.activation.apply(y).store_first(self.ys.add(i), count);
                }
            }
        }
    }
    let [mean, scale, shift] = [by.mean, by.scale, by.shift].map(|values| PerChannel::of(values, channel));
    dispatch(Plane::<T, EACH> { xs, ys, skip, mean, scale, shift, activation });
}

/// y = act((x - mean) · scale + shift + skip)
pub(crate) fn affine<T: Real>(
    dims: Dims,
    xs: &[T],
    by: Affine<T>,
    skip: Option<&[T]>,
    activation: FusedActivation,
) -> Vec<T> {
    // SAFETY: the planes cover the output.
    unsafe { written_by_tasks(xs.len(), |ys| affine_into(dims, xs, by, skip, activation, (ys, Window::whole(dims)))) }
}

/// y ← act(y + skip), in place.
pub(crate) fn add_and_activate<T: Real>(ys: &mut [T], skip: Option<&[T]>, activation: FusedActivation) {
    struct Run<'a, T>(&'a mut [T], Option<&'a [T]>, FusedActivation);
    impl<T: Real> Kernel<T> for Run<'_, T> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = T>>(self) {
            let n = self.0.len();
            // SAFETY: below `dispatch`; both slices have n elements.
            unsafe {
                for i in (0..n).step_by(V::LANES) {
                    let count = V::LANES.min(n - i);
                    let to = self.0.as_mut_ptr().add(i);
                    let mut y = V::load_first(to, count);
                    if let Some(skip) = self.1 {
                        y = y.add(V::load_first(skip.as_ptr().add(i), count));
                    }
                    self.2.apply(y).store_first(to, count);
                }
            }
        }
    }
    assert!(skip.is_none_or(|skip| skip.len() == ys.len()));
    ys.par_chunks_mut(TASK).enumerate().for_each(|(i, ys)| {
        let skip = skip.map(|skip| &skip[i * TASK..][..ys.len()]);
        dispatch(Run(ys, skip, activation));
    });
}

/// to ← to + from
pub(crate) fn add_to<T: Real>(to: &mut [T], from: &[T]) {
    add_and_activate(to, Some(from), FusedActivation::None);
}

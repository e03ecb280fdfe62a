//! Convolution on the host.
//!
//! Layouts are row-major: images (b, c, h, w), weights (c_out, c_in / groups, kh, kw).
//!
//! **Forward.** A tile takes some output rows (or some whole images) of one group and packs the input that it needs
//! into scratch that stays in the second-level cache. Where rows are whole vectors and the stride is 1, that is one
//! copy with zeros between the rows, and every tap reads its vectors from it, aligned or not. Elsewhere every
//! horizontal tap gets a shifted copy of each row, without the columns that a stride skips, the rows sorted by their
//! remainder modulo the vertical stride. Then for any tap the inputs of consecutive output pixels are consecutive,
//! across rows too: vectors run over the flattened output plane, on aligned memory, and the copy is kw times the image,
//! not kh · kw times as im2col's. Planes that do not fill a vector are unfolded instead, the pixels of several images
//! side by side.
//!
//! **Input gradient.** The same sum on the gradient of the output with transposed weights, once for each remainder of
//! the input's pixels modulo the stride.
//!
//! **Weight gradient.** A sum over pixels: both operands are transposed so that channels are innermost.
//!
//! Outputs of the first two do not depend on how the work is cut; the weight gradient is cut by shape alone, and its
//! parts are added in their order: the bits never depend on the number of threads.

mod depthwise;
mod direct;
mod epilogue;
mod geometry;
mod pack;
mod packed_weights;
mod plan;
mod small_planes;
mod tile;
mod weight_grad;
mod winograd;

pub(crate) use epilogue::Epilogue;
pub use geometry::Conv2dParams;
pub(crate) use geometry::Geometry;

use crate::kernels::batch_norm;
use crate::kernels::blocking::CONV_GRADIENT;
use crate::kernels::buffer::{Shared, written_by_tasks};
use crate::kernels::simd::Real;
use crate::kernels::sum;
use rayon::prelude::*;
use std::ops::Range;

/// The algorithms for a convolution and its gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    /// One input channel a group.
    Depthwise,
    /// Matrix products with the images as rows, where planes fill no vectors.
    SmallPlanes,
    /// The register tile over packed rows, or Winograd's algorithm where weights and inputs allow it.
    Direct,
}

impl Algorithm {
    /// The fastest one, by the sizes alone.
    fn choose(g: &Geometry) -> Self {
        match g {
            _ if g.is_depthwise() => Self::Depthwise,
            _ if small_planes::suits(g) => Self::SmallPlanes,
            _ => Self::Direct,
        }
    }
}

/// y = the convolution of `xs`, finished as `epilogue` says.
pub(crate) fn forward<T: Real>(g: &Geometry, xs: &[T], weight: &[T], epilogue: &Epilogue<T>) -> Vec<T> {
    forward_with_plane_stats(g, xs, weight, epilogue).0
}

/// The outputs, and mean and biased variance of each channel ([`batch_norm::stats`]): made plane by plane while they
/// are in the cache, where tiles take whole planes.
pub(crate) fn forward_with_stats<T: Real>(
    g: &Geometry,
    xs: &[T],
    weight: &[T],
    bias: Option<&[T]>,
) -> (Vec<T>, Vec<T>) {
    let dims = (g.b, g.c_out, g.output_plane());
    let mut planes = vec![[0.0; 2]; g.b * g.c_out];
    let epilogue = Epilogue { plane_stats: Some(Shared::new(&mut planes)), ..Epilogue::bias(bias) };
    let (ys, has_stats) = forward_with_plane_stats(g, xs, weight, &epilogue);
    let stats = if has_stats { batch_norm::stats_of_planes(dims, &planes) } else { batch_norm::stats(dims, &ys) };
    (ys, stats)
}

/// [`forward`], and whether it has made the statistics that `epilogue` asks for.
fn forward_with_plane_stats<T: Real>(g: &Geometry, xs: &[T], weight: &[T], epilogue: &Epilogue<T>) -> (Vec<T>, bool) {
    assert_eq!(weight.len(), g.c_out * g.depth());
    match Algorithm::choose(g) {
        Algorithm::Depthwise => (depthwise::forward(g, xs, weight, epilogue), false),
        Algorithm::SmallPlanes => (small_planes::forward(g, xs, weight, epilogue), false),
        Algorithm::Direct => direct::forward(g, xs, weight, epilogue),
    }
}

/// The gradient of the input from that of the output.
pub(crate) fn input_grad<T: Real>(g: &Geometry, grad: &[T], weight: &[T]) -> Vec<T> {
    assert_eq!((grad.len(), weight.len()), (g.b * g.output_image(), g.c_out * g.depth()));
    match Algorithm::choose(g) {
        Algorithm::Depthwise => depthwise::input_grad(g, grad, weight),
        Algorithm::SmallPlanes => small_planes::input_grad(g, grad, weight),
        Algorithm::Direct => {
            // SAFETY: `dx` holds the input.
            let fill = |dx| unsafe { direct::input_grad(g, grad, weight, dx) };
            // SAFETY: every pixel of the input is written.
            unsafe { written_by_tasks(g.b * g.input_image(), fill) }
        }
    }
}

/// The gradient of the weight.
pub(crate) fn weight_grad<T: Real>(g: &Geometry, xs: &[T], grad: &[T]) -> Vec<T> {
    assert_eq!((xs.len(), grad.len()), (g.b * g.input_image(), g.b * g.output_image()));
    match Algorithm::choose(g) {
        Algorithm::Depthwise => depthwise::weight_grad(g, xs, grad),
        Algorithm::SmallPlanes => small_planes::weight_grad(g, xs, grad),
        Algorithm::Direct => weight_grad::weight_grad(g, xs, grad),
    }
}

/// The gradient of the bias: the sums of the output's gradient.
pub(crate) fn bias_grad<T: Real>(g: &Geometry, grad: &[T]) -> Vec<T> {
    let plane = g.output_plane();
    (0..g.c_out)
        .into_par_iter()
        .map(|c| {
            let planes = (0..g.b).map(|n| &grad[(n * g.c_out + c) * plane..][..plane]);
            planes.fold(T::zero(), |total, plane| total + sum(plane))
        })
        .collect()
}

/// Images of a part of [`gradients_by_images`], if that is faster than one gradient after the other: where the planes
/// are large and the weights small.
pub(crate) fn images_at_once<T: Real>(g: &Geometry, weight: &[T]) -> Option<usize> {
    let images = (CONV_GRADIENT / (g.output_image() * size_of::<T>())).max(1);
    let is_light = weight.len() <= CONV_GRADIENT / 8 / size_of::<T>();
    let is_faster = Algorithm::choose(g) == Algorithm::Direct && g.b >= 2 * images && is_light;
    (is_faster && !winograd::suits_input_grad(g, weight)).then_some(images)
}

/// The gradients of input (if `wants_input`) and weight, `images` images at a time: `epilogue` turns their part of
/// `grad` into the gradient of the output, which both then find in the cache. The weight's is summed part by part.
pub(crate) fn gradients_by_images<T: Real>(
    g: &Geometry,
    (xs, weight): (&[T], &[T]),
    grad: &mut [T],
    (images, wants_input): (usize, bool),
    epilogue: impl Fn(Range<usize>, &mut [T]) + Sync,
) -> (Option<Vec<T>>, Vec<T>) {
    assert_eq!((xs.len(), grad.len()), (g.b * g.input_image(), g.b * g.output_image()));
    assert_eq!(weight.len(), g.c_out * g.depth());
    let mut sums = Vec::new();
    let mut run = |dx: Option<Shared<T>>| {
        let parts = grad.par_chunks_mut(images * g.output_image()).zip(xs.par_chunks(images * g.input_image()));
        let parts = parts.enumerate().with_max_len(1).map(|(part, (grad, xs))| {
            let first = part * images;
            let g = Geometry { b: xs.len() / g.input_image(), ..*g };
            epilogue(first..first + g.b, grad);
            if let Some(dx) = dx {
                // SAFETY: each part has its images' place.
                unsafe { direct::input_grad(&g, grad, weight, dx.offset(first * g.input_image())) };
            }
            weight_grad(&g, xs, grad)
        });
        sums = parts.collect();
    };
    let dx = if wants_input {
        // SAFETY: the parts cover the images.
        Some(unsafe { written_by_tasks(g.b * g.input_image(), |dx| run(Some(dx))) })
    } else {
        run(None);
        None
    };
    let mut sums = sums.into_iter();
    let mut dw: Vec<T> = sums.next().unwrap_or_default();
    sums.for_each(|part: Vec<T>| dw.iter_mut().zip(part).for_each(|(sum, x)| *sum += x));
    (dx, dw)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole planes in one task, bands of large ones, planes that are unfolded, groups, strides: the statistics made on
    /// the way are those of the outputs, bit by bit.
    #[test]
    fn statistics_on_the_way_are_the_outputs() -> Result<(), String> {
        // b, input channels, side, output channels, kernel, stride, padding, groups
        let cases = [
            [8, 16, 32, 16, 3, 1, 1, 1],
            [8, 6, 16, 20, 3, 1, 1, 2],
            [8, 16, 32, 24, 3, 2, 1, 1],
            [8, 5, 15, 7, 1, 1, 0, 1],
            [1, 300, 64, 9, 5, 1, 2, 1],
            [9, 4, 3, 8, 3, 1, 1, 1],
            [8, 12, 9, 12, 3, 1, 1, 12],
        ];
        let mut made = 0;
        for case @ [b, c_in, side, c_out, k, stride, padding, groups] in cases {
            let values = |n: usize| (0..n).map(|i| ((i * 37 + i / 7) % 101) as f32 / 50.0 - 1.0).collect::<Vec<_>>();
            let (xs, w) = (values(b * c_in * side * side), values(c_out * c_in / groups * k * k));
            let params = Conv2dParams {
                stride: (stride, stride),
                padding: (padding, padding),
                groups,
                ..Conv2dParams::default()
            };
            let g = Geometry::new(&[b, c_in, side, side], &[c_out, c_in / groups, k, k], params)?;
            let bias = values(c_out);
            let mut planes = vec![[0.0; 2]; b * c_out];
            let epilogue = Epilogue { plane_stats: Some(Shared::new(&mut planes)), ..Epilogue::bias(Some(&bias)) };
            made += usize::from(forward_with_plane_stats(&g, &xs, &w, &epilogue).1);
            let (ys, stats) = forward_with_stats(&g, &xs, &w, Some(&bias));
            assert_eq!(ys, forward(&g, &xs, &w, &Epilogue::bias(Some(&bias))), "{case:?}");
            assert_eq!(stats, batch_norm::stats((b, c_out, g.output_plane()), &ys), "{case:?}");
        }
        assert!((3..cases.len()).contains(&made), "{made} of {} made them on the way", cases.len());
        Ok(())
    }
}

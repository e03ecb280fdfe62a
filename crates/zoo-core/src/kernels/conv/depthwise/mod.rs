//! Depthwise convolution: every output channel sees one input channel, so there is nothing to multiply as matrices and
//! all depends on touching the memory once.
//!
//! Padding is never stored: loads leave out the lanes that lie outside the image. The 3x3 layers of the mobile networks
//! (padding 1, stride 1 or 2) walk down columns of one vector's width and use each loaded row for the three rows of
//! outputs that see it ([`stencil`]). Images no larger than one vector are taken several channels at a time
//! ([`packed`]); everything else goes tap by tap.

mod packed;
mod stencil;
mod weight_grad;

pub(super) use weight_grad::weight_grad;

use super::epilogue::Epilogue;
use super::geometry::{Geometry, valid_outputs};
use crate::kernels::batch_norm;
use crate::kernels::blocking::PLANE_TASK;
use crate::kernels::buffer::written;
use crate::kernels::fused_activation::FusedActivation;
use crate::kernels::simd::{Kernel, Real, Simd, dispatch};
use packed::packed;
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;
use stencil::{plane_taps, plane_three, plane_three_by_two, plane_three_by_two_back};

pub(super) fn forward<T: Real>(g: &Geometry, xs: &[T], weight: &[T], epilogue: &Epilogue<T>) -> Vec<T> {
    let scaled = epilogue.scale.map(|scale| -> Vec<T> {
        let taps = weight.chunks_exact(g.depth()).zip(scale);
        taps.flat_map(|(taps, &scale)| taps.iter().map(move |&w| w * scale)).collect()
    });
    let (weight, bias) = (scaled.as_deref().unwrap_or(weight), epilogue.bias);
    let plane = Plane::forward(g);
    let multiplier = g.c_out / g.c_in;
    let (in_channels, out_channels) = (g.c_in, g.c_out);
    let planes = Planes { plane: &plane, inputs: xs, in_channels, out_channels, fan: 1, multiplier, weight, bias };
    let mut ys = planes.run(g.b);
    if epilogue.skip.is_some() || epilogue.activation != FusedActivation::None {
        batch_norm::add_and_activate(&mut ys, epilogue.skip, epilogue.activation);
    }
    ys
}

pub(super) fn input_grad<T: Real>(g: &Geometry, grad: &[T], weight: &[T]) -> Vec<T> {
    let plane = Plane::backward(g);
    let mut flipped = weight.to_vec();
    flipped.chunks_exact_mut(plane.taps()).for_each(|taps| taps.reverse());
    let (in_channels, out_channels, fan) = (g.c_out, g.c_in, g.c_out / g.c_in);
    let (inputs, weight, bias) = (grad, &flipped[..], None);
    Planes { plane: &plane, inputs, in_channels, out_channels, fan, multiplier: 1, weight, bias }.run(g.b)
}

/// The sum that makes one plane of another: out\[o\] = Σ taps\[t\] · input\[o·stride + t·dilation - padding\]. Pairs
/// are (vertical, horizontal).
#[derive(Clone)]
struct Plane {
    way: Way,
    input: (usize, usize),
    output: (usize, usize),
    kernel: (usize, usize),
    stride: (usize, usize),
    dilation: (usize, usize),
    padding: (isize, isize),
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// 3x3, stride 1, padding 1.
    Three,
    /// 3x3, stride 2, padding 1.
    ThreeByTwo,
    /// The input gradient of `ThreeByTwo`.
    ThreeByTwoBack,
    Taps,
    /// `Taps` on an input with zeros between its elements, which stand this many places apart.
    Spread((usize, usize)),
}

impl Plane {
    fn forward(g: &Geometry) -> Self {
        let p = g.params;
        let three = (g.kh, g.kw) == (3, 3) && p.padding == (1, 1) && p.dilation == (1, 1);
        let way = match p.stride {
            (1, 1) if three => Way::Three,
            (2, 2) if three => Way::ThreeByTwo,
            _ => Way::Taps,
        };
        Self {
            way,
            input: (g.h, g.w),
            output: (g.oh, g.ow),
            kernel: (g.kh, g.kw),
            stride: p.stride,
            dilation: p.dilation,
            padding: (p.padding.0 as isize, p.padding.1 as isize),
        }
    }

    /// The input gradient: the same sum over the gradient of the outputs, with the kernel flipped.
    fn backward(g: &Geometry) -> Self {
        let (forward, p) = (Self::forward(g), g.params);
        let way = match forward.way {
            Way::Three => Way::Three,
            Way::ThreeByTwo => Way::ThreeByTwoBack,
            _ if p.stride == (1, 1) => Way::Taps,
            _ => Way::Spread(p.stride),
        };
        let input = match way {
            Way::Spread(_) => ((g.oh - 1) * p.stride.0 + 1, (g.ow - 1) * p.stride.1 + 1),
            _ => (g.oh, g.ow),
        };
        let padding = (
            (p.dilation.0 * (g.kh - 1)) as isize - forward.padding.0,
            (p.dilation.1 * (g.kw - 1)) as isize - forward.padding.1,
        );
        Self { way, input, output: (g.h, g.w), stride: (1, 1), padding, ..forward }
    }

    fn taps(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }

    /// For each horizontal tap the outputs that it reaches, and where it reads for output 0.
    fn columns(&self) -> Vec<(Range<usize>, isize)> {
        let offset = |tap: usize| (tap * self.dilation.1) as isize - self.padding.1;
        let reach = |tap| valid_outputs(self.output.1, self.input.1, self.stride.1, offset(tap));
        (0..self.kernel.1).map(|tap| (reach(tap), offset(tap))).collect()
    }

    /// The input row under vertical tap `tap` of output row `row`.
    #[inline(always)]
    fn input_row(&self, row: usize, tap: usize) -> Option<usize> {
        let at = (row * self.stride.0 + tap * self.dilation.0) as isize - self.padding.0;
        (0..self.input.0 as isize).contains(&at).then_some(at as usize)
    }
}

/// All planes of a pass. Output channel c sums over `fan` inputs from channel c / multiplier · fan on, each with its
/// own kernel: one input in the forward pass, `multiplier` in the input gradient.
#[derive(Clone, Copy)]
struct Planes<'a, T> {
    plane: &'a Plane,
    inputs: &'a [T],
    in_channels: usize,
    out_channels: usize,
    fan: usize,
    multiplier: usize,
    weight: &'a [T],
    bias: Option<&'a [T]>,
}

impl<T: Real> Planes<'_, T> {
    fn run(self, images: usize) -> Vec<T> {
        let (p, count) = (self.plane, images * self.out_channels);
        let (input, output) = (p.input.0 * p.input.1, p.output.0 * p.output.1);
        let input =
            if let Way::Spread(step) = p.way { p.input.0.div_ceil(step.0) * p.input.1.div_ceil(step.1) } else { input };
        assert_eq!(self.inputs.len(), images * self.in_channels * input);
        assert_eq!(self.weight.len(), self.out_channels * self.fan * p.taps());
        assert_eq!(self.in_channels * self.multiplier, self.out_channels * self.fan);
        assert!(self.bias.is_none_or(|bias| bias.len() == self.out_channels));
        let fill = |out: &mut [MaybeUninit<T>]| {
            if self.fan == 1 && self.multiplier == 1 && p.way == Way::Three && output <= lanes::<T>() {
                return packed(&self, output, out);
            }
            let task = (PLANE_TASK / (size_of::<T>() * (input * self.fan + output))).max(1);
            let tasks = out.par_chunks_mut(task * output).enumerate();
            tasks.for_each(|(i, out)| dispatch(PlanesTask { planes: self, first: i * task, input, out }));
        };
        // SAFETY: each way writes every element of each of its planes.
        unsafe { written(count * output, fill) }
    }
}

struct PlanesTask<'a, T> {
    planes: Planes<'a, T>,
    /// Number of the first output plane.
    first: usize,
    /// Elements of an input plane.
    input: usize,
    out: &'a mut [MaybeUninit<T>],
}

impl<T: Real> Kernel<T> for PlanesTask<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let Planes { plane: p, inputs, in_channels, out_channels, fan, multiplier, weight, bias } = self.planes;
        let columns = if matches!(p.way, Way::Taps | Way::Spread(_)) { p.columns() } else { Vec::new() };
        let mut scratch = if let Way::Spread(_) = p.way { vec![T::zero(); p.input.0 * p.input.1] } else { Vec::new() };
        for (i, out) in self.out.chunks_exact_mut(p.output.0 * p.output.1).enumerate() {
            let (image, c) = ((self.first + i) / out_channels, (self.first + i) % out_channels);
            let out = out.as_mut_ptr().cast::<T>();
            for j in 0..fan {
                let x = &inputs[(image * in_channels + c / multiplier * fan + j) * self.input..][..self.input];
                let taps = &weight[(c * fan + j) * p.taps()..][..p.taps()];
                // SAFETY: `run` is below `dispatch`, and the planes have their elements.
                unsafe {
                    let bias = V::splat(bias.map_or(T::zero(), |bias| bias[c]));
                    let nine = || -> [V; 9] { std::array::from_fn(|tap| V::splat(taps[tap])) };
                    let (x, add) = (x.as_ptr(), j > 0);
                    match p.way {
                        Way::Three => plane_three(p.input, x, &nine(), bias, out, add),
                        Way::ThreeByTwo => plane_three_by_two(p, x, &nine(), bias, out, add),
                        Way::ThreeByTwoBack => plane_three_by_two_back(p, x, &nine(), out, add),
                        Way::Taps => plane_taps(p, &columns, x, taps, bias, out, add),
                        Way::Spread(step) => {
                            let width = p.input.1.div_ceil(step.1);
                            for row in 0..p.input.0.div_ceil(step.0) {
                                for column in 0..width {
                                    scratch[row * step.0 * p.input.1 + column * step.1] = *x.add(row * width + column);
                                }
                            }
                            plane_taps(p, &columns, scratch.as_ptr(), taps, bias, out, add);
                        }
                    }
                }
            }
        }
    }
}

/// Lanes of the registers in use.
fn lanes<T: Real>() -> usize {
    struct Count;
    impl<T: Real> Kernel<T> for Count {
        type Output = usize;
        #[inline(always)]
        unsafe fn run<V: Simd<Elem = T>>(self) -> usize {
            V::LANES
        }
    }
    dispatch::<T, _>(Count)
}

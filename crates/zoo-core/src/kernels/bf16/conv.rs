//! Convolutions of bfloat16 maps with f32 weights: the forward pass and both gradients. Those of one channel a group go to
//! `depthwise`; the others are products.

use super::correlation::{Plan, map_of, zeroed};
use super::pack::Weights;
use super::sizes::{Channels, Correlation, Tap, window};
use super::store::{Finish, mean_and_var};
use super::{depthwise, weight_grad as sums_of_products};
use crate::kernels::buffer::Shared;
use crate::kernels::conv::{Conv2dParams, Geometry};
use half::bf16;

/// act(conv(x, w) + shift + skip).
pub(crate) fn forward(g: &Geometry, x: &[bf16], w: &[f32], finish: &Finish) -> Vec<bf16> {
    Forward::new(g, w, None).run(x, finish)
}

/// conv(x, w) + bias, and the mean and the biased variance of each output channel.
pub(crate) fn forward_with_stats(
    g: &Geometry,
    x: &[bf16],
    w: &[f32],
    bias: Option<&[f32]>,
) -> (Vec<bf16>, Vec<f32>, Vec<f32>) {
    if depthwise::fits(g) {
        return depthwise::forward_with_stats(g, x, w, bias);
    }
    let (ys, sums) = Forward::new(g, w, None).correlate(x, &Finish { with_sums: true, ..Finish::bias(bias) });
    let (mean, var) = mean_and_var(&sums, g.b * g.output_plane());
    (ys, mean, var)
}

/// A forward pass whose weights are rounded and packed.
pub(crate) struct Forward {
    g: Geometry,
    /// One for each group.
    plans: Vec<Plan>,
    /// The weights of a convolution of one channel a group.
    taps: Vec<f32>,
}

impl Forward {
    /// With these weights, those of each output channel multiplied by its `scale`.
    pub fn new(g: &Geometry, w: &[f32], scale: Option<&[f32]>) -> Self {
        let (each, outputs, taps) = (g.group_in(), g.group_out(), g.kh * g.kw);
        assert_eq!(w.len(), g.c_out * each * taps);
        if depthwise::fits(g) {
            let mut taps = w.to_vec();
            if let Some(scale) = scale {
                let of_output = taps.chunks_exact_mut(g.kh * g.kw).zip(scale);
                of_output.for_each(|(taps, scale)| taps.iter_mut().for_each(|tap| *tap *= scale));
            }
            return Self { g: *g, plans: Vec::new(), taps };
        }
        let plan = |group: usize| {
            let sizes = Correlation {
                images: g.b,
                source: (g.h, g.w),
                out: (g.oh, g.ow),
                stride: g.params.stride,
                taps: window(g),
                from: Channels { all: g.c_in, first: group * each, used: each },
                to: Channels { all: g.c_out, first: group * outputs, used: outputs },
                target: (g.oh, g.ow),
                start: (0, 0),
                step: (1, 1),
            };
            let all = &w[group * outputs * each * taps..];
            let scale = scale.map(|scale| &scale[group * outputs..][..outputs]);
            Plan::new(sizes, Weights { all, output: each * taps, channel: taps, taps, scale })
        };
        Self { g: *g, plans: (0..g.params.groups).map(plan).collect(), taps: Vec::new() }
    }

    /// act(conv(x) + shift + skip).
    pub fn run(&self, x: &[bf16], finish: &Finish) -> Vec<bf16> {
        if depthwise::fits(&self.g) {
            let &Finish { shift, skip, activation, .. } = finish;
            let epilogue = depthwise::Epilogue { scale: None, shift, skip, activation };
            return depthwise::forward(&self.g, x, &self.taps, &epilogue);
        }
        self.correlate(x, &Finish { with_sums: false, ..*finish }).0
    }

    /// [`run`](Self::run) and the low part of its output, for no activation.
    pub fn run_with_low_part(&self, x: &[bf16], finish: &Finish) -> (Vec<bf16>, Vec<bf16>) {
        let n = self.g.b * self.g.output_plane() * self.g.c_out;
        if depthwise::fits(&self.g) {
            // Of a single channel, whose kernel rounds.
            return (self.run(x, finish), vec![bf16::ZERO; n]);
        }
        let mut ys = Vec::new();
        let fill = |low: Shared<bf16>| ys = self.correlate(x, &Finish { low: Some(low), ..*finish }).0;
        // SAFETY: the groups are all channels.
        let low = unsafe { map_of(n, fill) };
        (ys, low)
    }

    fn correlate(&self, x: &[bf16], finish: &Finish) -> (Vec<bf16>, Vec<[f64; 2]>) {
        let mut sums = Vec::with_capacity(self.g.c_out);
        let fill = |out: Shared<bf16>| {
            for plan in &self.plans {
                // SAFETY: each group writes its channels of all outputs.
                sums.extend(unsafe { plan.run(x, out, finish) });
            }
        };
        // SAFETY: the groups are all channels.
        (unsafe { map_of(self.g.b * self.g.output_plane() * self.g.c_out, fill) }, sums)
    }
}

/// The gradient of the input: pixels that are a step apart read the same taps, so that each residue of the stride is a
/// correlation of its own.
pub(crate) fn input_grad(g: &Geometry, grad: &[bf16], w: &[f32]) -> Vec<bf16> {
    if depthwise::fits(g) {
        return depthwise::input_grad(g, grad, w);
    }
    let (each, outputs, taps) = (g.group_in(), g.group_out(), g.kh * g.kw);
    assert_eq!(w.len(), g.c_out * each * taps);
    let stride = g.params.stride;
    let phases: Vec<((usize, usize), Vec<Tap>)> = (0..stride.0.min(g.h))
        .flat_map(|py| (0..stride.1.min(g.w)).map(move |px| (py, px)))
        .map(|start| (start, phase(g, start)))
        .collect();
    let run = |out: Shared<bf16>| {
        for (start, taps_of_phase) in phases.iter().filter(|(_, taps)| !taps.is_empty()) {
            for group in 0..g.params.groups {
                let sizes = Correlation {
                    images: g.b,
                    source: (g.oh, g.ow),
                    out: ((g.h - start.0).div_ceil(stride.0), (g.w - start.1).div_ceil(stride.1)),
                    stride: (1, 1),
                    taps: taps_of_phase.clone(),
                    from: Channels { all: g.c_out, first: group * outputs, used: outputs },
                    to: Channels { all: g.c_in, first: group * each, used: each },
                    target: (g.h, g.w),
                    start: *start,
                    step: stride,
                };
                let all = &w[group * outputs * each * taps..];
                let plan = Plan::new(sizes, Weights { all, output: taps, channel: each * taps, taps, scale: None });
                // SAFETY: a phase has its own pixels, a group its own channels.
                unsafe { plan.run(grad, out, &Finish::bias(None)) };
            }
        }
    };
    let n = g.b * g.input_plane() * g.c_in;
    if phases.iter().any(|(_, taps)| taps.is_empty()) {
        let mut out = zeroed(n);
        run(Shared::new(&mut out));
        return out;
    }
    // SAFETY: the phases are all pixels, the groups all channels.
    unsafe { map_of(n, run) }
}

/// The gradient of the weights, in their order.
pub(crate) fn weight_grad(g: &Geometry, x: &[bf16], grad: &[bf16]) -> Vec<f32> {
    if depthwise::fits(g) {
        return depthwise::weight_grad(g, x, grad);
    }
    sums_of_products::weight_grad(g, x, grad)
}

/// The taps by which the pixels at `start`, a stride apart, get their gradient.
fn phase(g: &Geometry, start: (usize, usize)) -> Vec<Tap> {
    let Conv2dParams { stride, padding, dilation, .. } = g.params;
    let offset = |start: usize, k: usize, padding: usize, dilation: usize, stride: usize| {
        let from = (start + padding) as isize - (k * dilation) as isize;
        (from.rem_euclid(stride as isize) == 0).then(|| from.div_euclid(stride as isize))
    };
    let mut taps = Vec::new();
    for ky in 0..g.kh {
        for kx in 0..g.kw {
            let dy = offset(start.0, ky, padding.0, dilation.0, stride.0);
            let dx = offset(start.1, kx, padding.1, dilation.1, stride.1);
            if let (Some(dy), Some(dx)) = (dy, dx) {
                taps.push(Tap { dy, dx, index: ky * g.kw + kx });
            }
        }
    }
    taps.sort_by_key(|tap| (tap.dy, tap.dx));
    taps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::bf16::norm;
    use crate::testing::values;

    /// The sums that the kernel takes on the way are those of its output, to rounding.
    #[test]
    fn statistics_are_those_of_the_output() {
        let numbers = |name: &str, n: usize| values(name, n).into_iter().map(|x| x as f32).collect::<Vec<_>>();
        for (x, w, params) in [
            ([6, 3, 8, 8], [16, 3, 3, 3], Conv2dParams { padding: (1, 1), ..Default::default() }),
            ([40, 16, 9, 8], [33, 16, 3, 3], Conv2dParams { padding: (1, 1), ..Default::default() }),
            ([5, 32, 9, 7], [48, 16, 1, 1], Conv2dParams { groups: 2, ..Default::default() }),
        ] {
            let g = Geometry::new(&x, &w, params).unwrap();
            let xs: Vec<bf16> = numbers("x", g.b * g.input_image()).into_iter().map(bf16::from_f32).collect();
            let ws = numbers("w", w.iter().product());
            let bias = numbers("b", g.c_out);
            let (ys, mean, var) = forward_with_stats(&g, &xs, &ws, Some(&bias));
            assert_eq!(ys, forward(&g, &xs, &ws, &Finish::bias(Some(&bias))));
            let (want_mean, want_var) = norm::stats(&ys, g.c_out);
            for c in 0..g.c_out {
                let scale = want_var[c].sqrt();
                assert!((mean[c] - want_mean[c]).abs() < 1e-3 * scale, "{c}: mean {} for {}", mean[c], want_mean[c]);
                assert!((var[c] / want_var[c] - 1.0).abs() < 2e-3, "{c}: variance {} for {}", var[c], want_var[c]);
            }
        }
    }
}

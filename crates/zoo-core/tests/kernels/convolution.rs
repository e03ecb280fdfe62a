//! Convolution against plain loops.

use crate::compare::{Expected, compare, property};
use crate::input::{Input, Setting, Values, channels, draw, setting, side};
use crate::num::{ZERO, num};
use candle_core::{Result, Tensor};
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use proptest::test_runner::TestCaseError;
use zoo_core::ops::{self, Conv2dParams};
use zoo_core::rng::Rng;

#[derive(Debug, Clone, Copy)]
pub struct Conv {
    pub b: usize,
    pub c_in: usize,
    pub c_out: usize,
    pub size: (usize, usize),
    pub kernel: (usize, usize),
    pub params: Conv2dParams,
    pub bias: bool,
}

impl Conv {
    pub fn reach(&self) -> (usize, usize) {
        let p = self.params;
        ((self.kernel.0 - 1) * p.dilation.0 + 1, (self.kernel.1 - 1) * p.dilation.1 + 1)
    }

    fn output(&self) -> (usize, usize) {
        let (p, reach) = (self.params, self.reach());
        let along = |n: usize, reach: usize, stride: usize, padding: usize| (n + 2 * padding - reach) / stride + 1;
        (along(self.size.0, reach.0, p.stride.0, p.padding.0), along(self.size.1, reach.1, p.stride.1, p.padding.1))
    }

    fn macs(&self) -> usize {
        let (oh, ow) = self.output();
        self.b * self.c_out * oh * ow * self.c_in / self.params.groups * self.kernel.0 * self.kernel.1
    }

    /// Large enough for its kernel, small enough for the loops.
    fn fitted(mut self) -> Self {
        let (reach, p) = (self.reach(), self.params);
        let least = (reach.0.saturating_sub(2 * p.padding.0).max(1), reach.1.saturating_sub(2 * p.padding.1).max(1));
        self.size = (self.size.0.max(least.0), self.size.1.max(least.1));
        while self.macs() > 1_000_000 {
            match () {
                () if self.b > 1 => self.b -= 1,
                () if self.size.0 > least.0 && self.size.0 >= self.size.1 => self.size.0 -= 1,
                () if self.size.1 > least.1 => self.size.1 -= 1,
                () if self.size.0 > least.0 => self.size.0 -= 1,
                () => break,
            }
        }
        self
    }

    pub fn inputs(&self, setting: &Setting) -> Vec<Input> {
        let (rng, values) = (&mut setting.rng(), setting.values);
        let weight = [self.c_out, self.c_in / self.params.groups, self.kernel.0, self.kernel.1];
        let xs = Input::new(rng, &[self.b, self.c_in, self.size.0, self.size.1], values, 1.0);
        let mut inputs = vec![
            xs.lying(setting.lies[0]).tracked(setting.tracked[0]),
            Input::new(rng, &weight, values, 1.0).lying(setting.lies[1]).tracked(setting.tracked[1]),
        ];
        if self.bias {
            inputs.push(Input::new(rng, &[self.c_out], values, 1.0).lying(setting.lies[1]));
        }
        inputs
    }

    pub fn expected(&self, inputs: &[Input], rng: &mut Rng) -> Expected {
        let Conv2dParams { stride, padding, dilation, groups } = self.params;
        let ((h, w), (oh, ow), (kh, kw)) = (self.size, self.output(), self.kernel);
        let (group_in, group_out) = (self.c_in / groups, self.c_out / groups);
        let dims = vec![self.b, self.c_out, oh, ow];
        let upstream = draw(rng, dims.iter().product(), Values::Uniform, 1.0);
        let (xs, weight) = (inputs[0].nums(), inputs[1].nums());
        let mut output = Vec::with_capacity(upstream.len());
        let (mut dx, mut dw, mut db) = (vec![ZERO; xs.len()], vec![ZERO; weight.len()], vec![ZERO; self.c_out]);
        for n in 0..self.b {
            for (o, db) in db.iter_mut().enumerate() {
                for (i, j) in (0..oh).flat_map(|i| (0..ow).map(move |j| (i, j))) {
                    let dy = num(upstream[output.len()]);
                    let mut y = inputs.get(2).map_or(ZERO, |bias| num(bias.values[o]));
                    *db += dy;
                    for (c, ki) in (0..group_in).flat_map(|c| (0..kh).map(move |ki| (c, ki))) {
                        let Some(row) = (i * stride.0 + ki * dilation.0).checked_sub(padding.0).filter(|&r| r < h)
                        else {
                            continue;
                        };
                        for kj in 0..kw {
                            let Some(col) = (j * stride.1 + kj * dilation.1).checked_sub(padding.1).filter(|&c| c < w)
                            else {
                                continue;
                            };
                            let channel = o / group_out * group_in + c;
                            let x = ((n * self.c_in + channel) * h + row) * w + col;
                            let k = ((o * group_in + c) * kh + ki) * kw + kj;
                            y += xs[x] * weight[k];
                            dx[x] += weight[k] * dy;
                            dw[k] += xs[x] * dy;
                        }
                    }
                    output.push(y);
                }
            }
        }
        Expected { dims, upstream, output, grads: vec![dx, dw, db] }
    }

    pub fn run(&self, inputs: &[Tensor]) -> Result<Tensor> {
        ops::conv2d(&inputs[0], &inputs[1], inputs.get(2), self.params)
    }

    pub fn check(&self, setting: &Setting) -> std::result::Result<(), TestCaseError> {
        let inputs = self.inputs(setting);
        let expected = self.expected(&inputs, &mut Rng::new(setting.seed, "upstream"));
        compare(&inputs, &expected, setting.strided_upstream, |t| self.run(t))
    }
}

pub fn square(kernel: usize, stride: usize, padding: usize) -> ((usize, usize), Conv2dParams) {
    let pair = |n| (n, n);
    ((kernel, kernel), Conv2dParams { stride: pair(stride), padding: pair(padding), ..Conv2dParams::default() })
}

/// The windows that networks have, as often as any other.
fn window() -> impl Strategy<Value = ((usize, usize), Conv2dParams)> {
    let usual = select(vec![square(3, 1, 1), square(3, 2, 1), square(1, 1, 0), square(1, 2, 0), square(5, 1, 2)]);
    let pair = |range: std::ops::RangeInclusive<usize>| (range.clone(), range);
    let other = (pair(1..=5), pair(1..=4), pair(0..=3), pair(1..=2)).prop_map(|(kernel, stride, padding, dilation)| {
        (kernel, Conv2dParams { stride, padding, dilation, groups: 1 })
    });
    prop_oneof![usual, other]
}

fn conv() -> impl Strategy<Value = Conv> {
    let grouping = prop_oneof![3 => Just(0usize), 1 => Just(1), 1 => Just(2), 1 => Just(3)];
    (1..=4usize, channels(), channels(), side(), window(), grouping, any::<bool>()).prop_map(
        |(b, c_in, c_out, size, (kernel, params), grouping, bias)| {
            let (c_in, c_out, groups) = match grouping {
                0 => (c_in, c_out, 1),
                1 => (c_in.next_multiple_of(2), c_out.next_multiple_of(2), 2),
                // Depthwise, with one or two outputs a channel.
                multiplier => (c_in, c_in * (multiplier - 1), c_in),
            };
            Conv { b, c_in, c_out, size, kernel, params: Conv2dParams { groups, ..params }, bias }.fitted()
        },
    )
}

#[test]
fn convolution() {
    property(600, (conv(), setting()), |(conv, setting)| conv.check(&setting));
}

/// Many channels and images on planes of a few pixels, where the products run over the images.
#[test]
fn convolution_of_small_planes() {
    let pointwise = ((1usize, 1usize), Conv2dParams::default());
    let windows = prop_oneof![2 => window(), 1 => Just(pointwise)];
    let (images, channels, side) = (8..=11usize, select(vec![32usize, 33, 48, 70]), 1..=7usize);
    let convs = (images, (channels.clone(), channels), (side.clone(), side), windows, 1..=2usize, any::<bool>());
    let convs = convs.prop_map(|(b, (c_in, c_out), size, (kernel, params), groups, bias)| {
        let (c_in, c_out) = (c_in * groups, c_out * groups);
        let mut conv = Conv { b, c_in, c_out, size, kernel, params: Conv2dParams { groups, ..params }, bias };
        let (reach, p) = (conv.reach(), params.padding);
        conv.size = (size.0.max(reach.0.saturating_sub(2 * p.0)), size.1.max(reach.1.saturating_sub(2 * p.1)));
        conv
    });
    property(40, (convs, setting()), |(conv, setting)| conv.check(&setting));
}

/// Rows of whole vectors, of which one packed copy serves all horizontal taps: shifts that stay in the zeros between
/// the rows, fill them, and reach past them; outputs as wide as the input, narrower and wider by whole vectors.
#[test]
fn convolution_of_whole_rows() {
    let width = select(vec![8usize, 16, 24, 32, 48]);
    let taps = (select(vec![2usize, 3, 5]), 1..=9usize, select(vec![0usize, 1, 2]));
    let sizes = (1..=5usize, select(vec![1usize, 3, 8, 17]), 1..=9usize, width, taps, 1..=2usize, any::<bool>());
    let convs = sizes.prop_map(|(b, channels, height, width, (taps, dilation, share), groups, bias)| {
        let reach = (taps - 1) * dilation + 1;
        // No padding, what keeps the width, or all that meets the image.
        let padding = (reach - 1) * share / 2;
        let params = Conv2dParams { padding: (1, padding), dilation: (1, dilation), groups, ..Conv2dParams::default() };
        let (c_in, c_out) = (channels * groups, (channels + 1) * groups);
        let size = (height, width.max(reach.saturating_sub(2 * padding)));
        Conv { b, c_in, c_out, size, kernel: (3, taps), params, bias }
    });
    property(120, (convs, setting()), |(conv, setting)| conv.check(&setting));
}

/// Larger than a tile of any kind, which the random cases seldom are.
#[test]
fn large_convolution() {
    let conv = |b, c_in, c_out, size, (kernel, params): (_, Conv2dParams), groups| Conv {
        b,
        c_in,
        c_out,
        size,
        kernel,
        params: Conv2dParams { groups, ..params },
        bias: true,
    };
    let cases = [
        conv(1, 64, 64, (33, 33), square(3, 1, 1), 1),
        conv(9, 16, 16, (16, 16), square(3, 1, 1), 1),
        conv(2, 3, 64, (41, 37), square(7, 2, 3), 1),
        conv(3, 300, 72, (8, 8), square(1, 1, 0), 1),
        conv(2, 130, 17, (16, 16), square(1, 2, 0), 1),
        conv(3, 60, 240, (15, 15), square(1, 1, 0), 3),
        conv(3, 96, 96, (33, 31), square(3, 2, 1), 96),
        conv(1, 20, 70, (4, 4), square(3, 1, 1), 1),
        conv(17, 512, 40, (1, 1), square(3, 1, 1), 1),
        conv(35, 260, 40, (4, 4), square(3, 1, 1), 1),
        conv(9, 32, 130, (15, 15), square(3, 2, 1), 1),
        conv(5, 96, 70, (7, 7), square(1, 1, 0), 1),
        conv(1, 3, 5, (70, 65), square(11, 4, 2), 1),
    ];
    for (i, conv) in cases.iter().enumerate() {
        conv.check(&Setting::plain(i as u64)).unwrap_or_else(|e| panic!("{conv:?}: {e}"));
    }
}

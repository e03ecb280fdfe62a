//! Pooling against plain loops.

use crate::compare::{Expected, compare, property, with_level};
use crate::input::{Input, Values, channels, draw, setting, side};
use crate::num::{Num, ZERO, num};
use candle_core::{Device, Result, Tensor, Var};
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use zoo_core::ops::{self, Level};
use zoo_core::rng::Rng;

#[derive(Debug, Clone, Copy)]
pub struct Pool {
    pub kernel: (usize, usize),
    pub stride: (usize, usize),
    pub padding: (usize, usize),
    pub ceil_mode: bool,
}

#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Max,
    Average { count_include_pad: bool },
}

impl Pool {
    /// Windows along one dimension: (first, end) in the padded image, without those that `ceil_mode` drops.
    fn windows(&self, n: usize, k: usize, s: usize, p: usize) -> Vec<(usize, usize)> {
        let starts = (0..).map(|o| o * s);
        starts
            .take_while(|start| {
                start + k <= n + 2 * p || (self.ceil_mode && start + k < n + 2 * p + s && *start < n + p)
            })
            .map(|start| (start, start + k))
            .collect()
    }

    pub fn expected(&self, kind: Kind, input: &Input, rng: &mut Rng) -> Expected {
        self.expected_of(kind, input, |n| draw(rng, n, Values::Uniform, 1.0))
    }

    /// With an upstream gradient of so many numbers.
    pub fn expected_of(&self, kind: Kind, input: &Input, upstream: impl FnOnce(usize) -> Vec<f64>) -> Expected {
        let &[b, c, h, w] = input.dims.as_slice() else { unreachable!("four dimensions") };
        let rows = self.windows(h, self.kernel.0, self.stride.0, self.padding.0);
        let cols = self.windows(w, self.kernel.1, self.stride.1, self.padding.1);
        let dims = vec![b, c, rows.len(), cols.len()];
        let upstream = upstream(dims.iter().product());
        let xs = input.nums();
        let (mut output, mut dx) = (Vec::new(), vec![ZERO; xs.len()]);
        for plane in 0..b * c {
            for (row, col) in rows.iter().flat_map(|row| cols.iter().map(move |col| (row, col))) {
                let dy = num(upstream[output.len()]);
                let inside: Vec<usize> = (row.0..row.1)
                    .flat_map(|r| (col.0..col.1).map(move |c| (r, c)))
                    .filter(|(r, c)| {
                        (self.padding.0..h + self.padding.0).contains(r)
                            && (self.padding.1..w + self.padding.1).contains(c)
                    })
                    .map(|(r, c)| (plane * h + r - self.padding.0) * w + c - self.padding.1)
                    .collect();
                match kind {
                    Kind::Max => {
                        let mut best = inside[0];
                        for &i in &inside {
                            if xs[i].value > xs[best].value || xs[i].value.is_nan() {
                                best = i;
                            }
                        }
                        output.push(xs[best]);
                        dx[best] += dy;
                    }
                    Kind::Average { count_include_pad } => {
                        // What lies beyond even the padding never counts.
                        let padded =
                            (row.1.min(h + 2 * self.padding.0) - row.0) * (col.1.min(w + 2 * self.padding.1) - col.0);
                        let count = num(if count_include_pad { padded } else { inside.len() } as f64);
                        output.push(inside.iter().map(|&i| xs[i]).sum::<Num>() / count);
                        inside.iter().for_each(|&i| dx[i] += dy / count);
                    }
                }
            }
        }
        Expected { dims, upstream, output, grads: vec![dx] }
    }

    pub fn run(&self, kind: Kind, xs: &Tensor) -> Result<Tensor> {
        let Self { kernel, stride, padding, ceil_mode } = *self;
        match kind {
            Kind::Max => ops::max_pool2d(xs, kernel, stride, padding, ceil_mode),
            Kind::Average { count_include_pad } => {
                ops::avg_pool2d(xs, kernel, stride, padding, ceil_mode, count_include_pad)
            }
        }
    }
}

pub fn pool() -> impl Strategy<Value = Pool> {
    let usual = |kernel, stride, padding| Pool {
        kernel: (kernel, kernel),
        stride: (stride, stride),
        padding: (padding, padding),
        ceil_mode: false,
    };
    let pair = |range: std::ops::RangeInclusive<usize>| (range.clone(), range);
    let other =
        (pair(1..=5), pair(1..=4), pair(0..=2), any::<bool>()).prop_map(|(kernel, stride, padding, ceil_mode)| {
            let padding = (padding.0.min(kernel.0 / 2), padding.1.min(kernel.1 / 2));
            Pool { kernel, stride, padding, ceil_mode }
        });
    prop_oneof![select(vec![usual(2, 2, 0), usual(3, 2, 1), usual(3, 1, 1), usual(3, 2, 0)]), other]
}

#[test]
fn pooling() {
    let kind = select(vec![
        Kind::Max,
        Kind::Max,
        Kind::Average { count_include_pad: true },
        Kind::Average { count_include_pad: false },
    ]);
    property(400, (1..=4usize, channels(), side(), pool(), kind, setting()), |(b, c, (h, w), pool, kind, setting)| {
        let (h, w) = (h.max(pool.kernel.0), w.max(pool.kernel.1));
        let input = Input::new(&mut setting.rng(), &[b, c, h, w], setting.values, 2.0).lying(setting.lies[0]);
        let expected = pool.expected(kind, &input, &mut Rng::new(setting.seed, "upstream"));
        compare(&[input], &expected, setting.strided_upstream, |t| pool.run(kind, &t[0]))
    });
}

#[test]
fn adaptive_pooling() {
    let cells = prop_oneof![Just((1, 1)), (1..=9usize, 1..=9usize)];
    property(150, (1..=4usize, channels(), side(), cells, setting()), |(b, c, (h, w), (oh, ow), setting)| {
        let input = Input::new(&mut setting.rng(), &[b, c, h, w], setting.values, 2.0).lying(setting.lies[0]);
        let cell = |i: usize, n: usize, cells: usize| i * n / cells..((i + 1) * n).div_ceil(cells);
        let dims = vec![b, c, oh, ow];
        let upstream = draw(&mut Rng::new(setting.seed, "upstream"), dims.iter().product(), Values::Uniform, 1.0);
        let xs = input.nums();
        let (mut output, mut dx) = (Vec::new(), vec![ZERO; xs.len()]);
        for plane in 0..b * c {
            for (i, j) in (0..oh).flat_map(|i| (0..ow).map(move |j| (i, j))) {
                let dy = num(upstream[output.len()]);
                let places: Vec<usize> =
                    cell(i, h, oh).flat_map(|r| cell(j, w, ow).map(move |c| (plane * h + r) * w + c)).collect();
                let count = num(places.len() as f64);
                output.push(places.iter().map(|&i| xs[i]).sum::<Num>() / count);
                places.iter().for_each(|&i| dx[i] += dy / count);
            }
        }
        let expected = Expected { dims, upstream, output, grads: vec![dx] };
        compare(&[input], &expected, setting.strided_upstream, |t| ops::adaptive_avg_pool2d(&t[0], (oh, ow)))
    });
}

/// Max pooling to the bit: ties, NaN, odd sizes and the edges.
fn check_max_pooling(level: Level) {
    let mut rng = Rng::new(5, "pooling");
    for case in 0..3000 {
        let (kernel, stride) = if case % 2 == 0 { (2, 2) } else { (1 + rng.below(4), 1 + rng.below(3)) };
        let padding = if case % 2 == 0 { 0 } else { rng.below(kernel / 2 + 1) };
        let (h, w) = (kernel + rng.below(12), kernel + rng.below(40));
        let ceil_mode = rng.bernoulli(0.3);
        // Few values, so that ties are many; some NaN and infinities.
        let value = |rng: &mut Rng| match rng.below(20) {
            0 if case % 3 == 0 => f32::NAN,
            1 => f32::NEG_INFINITY,
            n => (n / 3) as f32 - 3.0,
        };
        let x: Vec<f32> = (0..2 * h * w).map(|_| value(&mut rng)).collect();
        let var = Var::from_vec(x.clone(), (1, 2, h, w), &Device::Cpu).unwrap();
        let pair = |n| (n, n);
        let y = ops::max_pool2d(&var, pair(kernel), pair(stride), pair(padding), ceil_mode).unwrap();
        let (_, _, oh, ow) = y.dims4().unwrap();
        let dy: Vec<f32> = (0..2 * oh * ow).map(|i| i as f32 + 1.0).collect();
        let upstream = Tensor::from_vec(dy.clone(), (1, 2, oh, ow), &Device::Cpu).unwrap();
        let grads = (&y * upstream).unwrap().sum_all().unwrap().backward().unwrap();
        let (mut expected, mut dx) = (Vec::new(), vec![0f32; x.len()]);
        for (o, dy) in dy.into_iter().enumerate() {
            let (plane, oy, ox) = (o / (oh * ow), o / ow % oh, o % ow);
            let mut best = None;
            for (ky, kx) in (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| (ky, kx))) {
                let (row, column) =
                    ((oy * stride + ky).wrapping_sub(padding), (ox * stride + kx).wrapping_sub(padding));
                if row < h && column < w {
                    let i = (plane * h + row) * w + column;
                    if best.is_none_or(|best: usize| x[i] > x[best] || x[i].is_nan()) {
                        best = Some(i);
                    }
                }
            }
            let best = best.unwrap();
            expected.push(x[best]);
            dx[best] += dy;
        }
        let bits = |xs: &[f32]| xs.iter().map(|x| if x.is_nan() { 1 } else { x.to_bits() }).collect::<Vec<_>>();
        let what = format!("{level:?}: {h}x{w}, {kernel}/{stride} padding {padding} ceil {ceil_mode}");
        assert_eq!(bits(&y.flatten_all().unwrap().to_vec1().unwrap()), bits(&expected), "{what}");
        let got = grads.get(&var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(got, dx, "{what}");
    }
}

#[test]
fn max_pooling_with_ties_and_nan() {
    for level in Level::vectors() {
        with_level(level, || check_max_pooling(level));
    }
}

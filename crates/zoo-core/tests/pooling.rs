//! Max pooling against plain loops, for every kind of vector register: ties, NaN, odd sizes and the edges.

use candle_core::{Device, Tensor, Var};
use zoo_core::ops::{self, Level, simd};
use zoo_core::rng::Rng;

/// `force` holds for the process, so one test walks through everything.
#[test]
fn max_pooling_agrees_with_plain_loops() {
    for level in Level::supported() {
        simd::force(Some(level)).unwrap();
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
    simd::force(None).unwrap();
}

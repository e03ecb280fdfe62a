//! Convolution against its definition.
use candle_core::{Device, Tensor, Var};
use zoo_core::ops::{Conv2dParams, Level, conv2d, simd};

fn naive(g: &[usize; 12], x: &[f64], w: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let &[b, ci, h, wd, co, kh, kw, s, p, d, groups, _] = g;
    let (oh, ow) = ((h + 2 * p - d * (kh - 1) - 1) / s + 1, (wd + 2 * p - d * (kw - 1) - 1) / s + 1);
    let (gi, go) = (ci / groups, co / groups);
    let mut y = vec![0.0; b * co * oh * ow];
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
    for n in 0..b {
        for o in 0..co {
            for c in 0..gi {
                for ky in 0..kh {
                    for kx in 0..kw {
                        for yy in 0..oh {
                            for xx in 0..ow {
                                let (iy, ix) =
                                    ((yy * s + ky * d) as isize - p as isize, (xx * s + kx * d) as isize - p as isize);
                                if iy < 0 || ix < 0 || iy >= h as isize || ix >= wd as isize {
                                    continue;
                                }
                                let xi = ((n * ci + o / go * gi + c) * h + iy as usize) * wd + ix as usize;
                                let wi = ((o * gi + c) * kh + ky) * kw + kx;
                                let yi = ((n * co + o) * oh + yy) * ow + xx;
                                y[yi] += x[xi] * w[wi];
                                dx[xi] += dy[yi] * w[wi];
                                dw[wi] += dy[yi] * x[xi];
                            }
                        }
                    }
                }
            }
        }
    }
    (y, dx, dw)
}

#[test]
fn grid() {
    let mut seed = 1u64;
    let mut next = move || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize
    };
    for level in Level::supported() {
        simd::force(Some(level)).unwrap();
        for case in 0..400 {
            let pick = |r: usize, from: &[usize]| from[r % from.len()];
            let groups = pick(next(), &[1, 1, 1, 2, 3]);
            let (gi, go) = (pick(next(), &[2, 3, 5, 8, 16, 17, 24, 33]), pick(next(), &[1, 3, 8, 16, 17, 24, 70]));
            let (kh, kw) = (1 + next() % 5, 1 + next() % 5);
            let (s, p, d) = (1 + next() % 4, next() % 4, 1 + next() % 2);
            let (h, w) = (1 + next() % 33, 1 + next() % 33);
            if h + 2 * p < d * (kh - 1) + 1 || w + 2 * p < d * (kw - 1) + 1 {
                continue;
            }
            let b = 1 + next() % 4;
            let g = [b, gi * groups, h, w, go * groups, kh, kw, s, p, d, groups, 0];
            let (oh, ow) = ((h + 2 * p - d * (kh - 1) - 1) / s + 1, (w + 2 * p - d * (kw - 1) - 1) / s + 1);
            let mut draw = |n: usize| -> Vec<f64> { (0..n).map(|_| (next() % 2001) as f64 / 1000.0 - 1.0).collect() };
            let (x, wt, dy) =
                (draw(b * gi * groups * h * w), draw(go * groups * gi * kh * kw), draw(b * go * groups * oh * ow));
            let want = naive(&g, &x, &wt, &dy);
            let dev = &Device::Cpu;
            for f32 in [false, true] {
                let dt = if f32 { candle_core::DType::F32 } else { candle_core::DType::F64 };
                let tol = if f32 { 3e-5 } else { 1e-12 };
                let t = |v: &Vec<f64>, sh: (usize, usize, usize, usize)| {
                    Tensor::from_vec(v.clone(), sh, dev).unwrap().to_dtype(dt).unwrap()
                };
                let xv = Var::from_tensor(&t(&x, (b, gi * groups, h, w))).unwrap();
                let wv = Var::from_tensor(&t(&wt, (go * groups, gi, kh, kw))).unwrap();
                let params = Conv2dParams { stride: (s, s), padding: (p, p), dilation: (d, d), groups };
                let ys = conv2d(xv.as_tensor(), wv.as_tensor(), None, params).unwrap();
                let grads = (&ys * t(&dy, (b, go * groups, oh, ow))).unwrap().sum_all().unwrap().backward().unwrap();
                let got = [ys.clone(), grads.get(&xv).unwrap().clone(), grads.get(&wv).unwrap().clone()];
                for (what, (got, want)) in ["y", "dx", "dw"].iter().zip(got.iter().zip([&want.0, &want.1, &want.2])) {
                    let got =
                        got.flatten_all().unwrap().to_dtype(candle_core::DType::F64).unwrap().to_vec1::<f64>().unwrap();
                    let scale = want.iter().fold(1.0f64, |m, v| m.max(v.abs()));
                    for (i, (a, b)) in got.iter().zip(want.iter()).enumerate() {
                        assert!(
                            (a - b).abs() <= tol * scale,
                            "{} case {case} {g:?} f32 {f32} {what}[{i}]: {a} for {b}",
                            level.name()
                        );
                    }
                }
            }
        }
    }
    simd::force(None).unwrap();
}

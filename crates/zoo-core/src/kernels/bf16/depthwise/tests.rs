//! Epilogue and statistics, which no operation reaches alone.

use super::*;
use crate::kernels::conv::Conv2dParams;
use crate::testing::values;

fn maps(name: &str, n: usize) -> Vec<bf16> {
    values(name, n).into_iter().map(bf16::from_f64).collect()
}

fn weights(name: &str, n: usize) -> Vec<f32> {
    values(name, n).into_iter().map(|x| x as f32).collect()
}

fn geometry(b: usize, c: usize, side: usize, kernel: usize, stride: usize) -> Geometry {
    let (stride, padding) = ((stride, stride), (kernel / 2, kernel / 2));
    let params = Conv2dParams { stride, padding, dilation: (1, 1), groups: c };
    Geometry::new(&[b, c, side, side + 1], &[c, 1, kernel, kernel], params).unwrap()
}

fn geometries() -> impl Iterator<Item = Geometry> {
    [1, 5, 16, 17, 33, 100].into_iter().flat_map(|c| {
        [(1, 1, 3, 1), (3, 7, 3, 1), (3, 8, 3, 2), (2, 5, 2, 1), (2, 40, 3, 1), (2, 9, 5, 3)]
            .map(|(b, side, kernel, stride)| geometry(b, c, side, kernel, stride))
    })
}

/// To one rounding of the sum, its scale and its shift in f64.
#[test]
fn the_epilogue_is_folded_in() {
    for g in geometries() {
        let (c, n) = (g.c_out, g.b * g.output_image());
        let (xs, weight, skip) = (maps("x", g.b * g.input_image()), weights("w", c * g.kh * g.kw), maps("skip", n));
        let (scale, shift) = (weights("scale", c), weights("shift", c));
        let reach = Windows::forward(&g).reach;
        for level in Level::supported() {
            for activation in [FusedActivation::None, FusedActivation::Relu, FusedActivation::Relu6] {
                let epilogue = Epilogue { scale: Some(&scale), shift: Some(&shift), skip: Some(&skip), activation };
                let taps = rows_of_taps(&g, &weight, epilogue.scale);
                let (ys, _) = run(level, &Windows::forward(&g), (&g, &xs), &taps, &epilogue, false);
                for (i, y) in ys.iter().enumerate() {
                    let (pixel, channel) = (i / c, i % c);
                    let (image, row, column) = (pixel / (g.oh * g.ow), pixel / g.ow % g.oh, pixel % g.ow);
                    let (mut sum, mut size) = (0.0, 0.0);
                    for (ky, at_y) in reach.0.at(row) {
                        for (kx, at_x) in reach.1.at(column) {
                            let x = xs[((image * g.h + at_y) * g.w + at_x) * c + channel].to_f64();
                            let tap = f64::from(weight[(channel * g.kh + ky) * g.kw + kx]);
                            sum += x * tap;
                            size += (x * tap).abs();
                        }
                    }
                    let (scale, shift) = (f64::from(scale[channel]), f64::from(shift[channel]));
                    let want = activation.apply_to(sum * scale + shift + skip[i].to_f64());
                    let size = size * scale.abs() + shift.abs() + skip[i].to_f64().abs();
                    let bound = want.abs() * 2f64.powi(-8) + size * (g.kh * g.kw + 3) as f64 * 2f64.powi(-23);
                    assert!((y.to_f64() - want).abs() <= bound, "{level:?} {g:?}, {i}: {y} for {want}");
                }
            }
        }
    }
}

/// Those of the rounded outputs, whose numbers are those of the convolution alone; a mean that is large beside the
/// deviation costs no digits.
#[test]
fn statistics_are_those_of_the_output() {
    for g in geometries() {
        let c = g.c_out;
        let (xs, weight) = (maps("x", g.b * g.input_image()), weights("w", c * g.kh * g.kw));
        for (level, shift) in Level::supported().flat_map(|level| [(level, 0.0), (level, 1000.0)]) {
            let bias: Vec<f32> = weights("bias", c).into_iter().map(|bias| bias + shift).collect();
            let (ys, mean, variance) = with_stats(level, &g, &xs, &weight, Some(&bias));
            let taps = rows_of_taps(&g, &weight, None);
            let plain = run(level, &Windows::forward(&g), (&g, &xs), &taps, &Epilogue::bias(Some(&bias)), false);
            assert!(ys == plain.0, "{level:?} {g:?}");
            for channel in 0..c {
                let of = || ys.iter().skip(channel).step_by(c).map(|y| y.to_f64());
                let n = of().count() as f64;
                let want = of().sum::<f64>() / n;
                let spread = of().map(|y| (y - want) * (y - want)).sum::<f64>() / n;
                // From the first output of a piece to the mean it is a few deviations.
                let (bound, slip) = (want.abs() * 1e-7 + spread.sqrt() * 1e-5, spread * 1e-4);
                let (mean, variance) = (f64::from(mean[channel]), f64::from(variance[channel]));
                assert!((mean - want).abs() <= bound, "{level:?} {g:?}, {channel}: mean {mean} for {want}");
                assert!((variance - spread).abs() <= slip, "{level:?} {g:?}, {channel}: {variance} for {spread}");
            }
        }
    }
}

#[test]
fn statistics_come_with_the_output() {
    let g = geometry(3, 33, 8, 3, 1);
    let (xs, weight) = (maps("x", g.b * g.input_image()), weights("w", 33 * 9));
    let (ys, mean, variance) = forward_with_stats(&g, &xs, &weight, None);
    assert_eq!((ys.len(), mean.len(), variance.len()), (g.b * g.output_image(), 33, 33));
}

#[test]
fn statistics_of_no_numbers_are_none() {
    let g = geometry(2, 20, 5, 1, 1);
    let mut xs = maps("x", g.b * g.input_image());
    (xs[3], xs[24], xs[5]) = (bf16::NAN, bf16::INFINITY, bf16::NEG_INFINITY);
    for level in Level::supported() {
        let (_, mean, variance) = with_stats(level, &g, &xs, &[1.0; 20], None);
        for channel in 0..20 {
            let (mean, variance) = (mean[channel], variance[channel]);
            match channel {
                3 => assert!(mean.is_nan() && variance.is_nan()),
                4 => assert!(mean == f32::INFINITY && variance.is_nan()),
                5 => assert!(mean == f32::NEG_INFINITY && variance.is_nan()),
                _ => assert!(mean.is_finite() && variance.is_finite()),
            }
        }
    }
}

/// Maps of whole and of broken lines, cut into pieces of rows, of images, and of both: every row once.
#[test]
fn pieces_cover_the_map() {
    for (b, h, w, c) in
        [(1, 1, 1, 1), (64, 32, 32, 64), (3, 45, 43, 17), (70, 2, 2, 320), (2, 9, 2000, 3), (5, 3, 3, 70000)]
    {
        let pieces = Pieces::new((b, h, w), c);
        let mut seen = vec![0; b * h];
        for i in 0..pieces.count() {
            let (images, rows) = pieces.at(i);
            assert_eq!(pieces.pixels(i), images.len() * rows.len() * w);
            for image in images {
                rows.clone().for_each(|row| seen[image * h + row] += 1);
            }
        }
        assert!(seen.iter().all(|times| *times == 1), "{b} {h} {w} {c}");
    }
}

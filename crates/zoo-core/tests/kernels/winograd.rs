//! Convolutions large enough for Winograd's algorithm, against their definition.
//!
//! The rule: |ours - f64| ≤ ε · scale with ε = 1e-5 in f32 and 1e-12 in f64, where the scale of a pixel is the largest
//! Σ |w|·|x| of the windows in its 3x3 neighbourhood, which holds its 2x2 tile: those are the sums that the algorithm
//! forms. A pixel in a neighbourhood of zeros is zero.

use crate::compare::with_level;
use crate::input::{Values, draw};
use candle_core::{DType, Device, Result, Tensor, Var};
use zoo_core::ops::{Conv2dParams, Level, conv2d};
use zoo_core::rng::Rng;

/// Images, channels in, out, height, width, groups.
type Shape = (usize, usize, usize, usize, usize, usize);

/// y of w ⋆ x with a 3x3 kernel and a padding of 1; `turned` is the way back: x of w and y.
fn reference((b, ci, co, h, w, groups): Shape, x: &[f64], weight: &[f64], turned: bool) -> Vec<f64> {
    let (gi, go) = (ci / groups, co / groups);
    let (from, to) = if turned { (co, ci) } else { (ci, co) };
    let mut y = vec![0.0; b * to * h * w];
    for (n, o, c) in (0..b).flat_map(|n| (0..co).flat_map(move |o| (0..gi).map(move |c| (n, o, c)))) {
        let kernel = &weight[(o * gi + c) * 9..][..9];
        let c = o / go * gi + c;
        let (source, target) = if turned { (o, c) } else { (c, o) };
        let x = &x[(n * from + source) * h * w..][..h * w];
        let y = &mut y[(n * to + target) * h * w..][..h * w];
        for (row, col) in (0..h).flat_map(|row| (0..w).map(move |col| (row, col))) {
            for (tap, k) in kernel.iter().enumerate() {
                let (dy, dx) = (tap as isize / 3 - 1, tap as isize % 3 - 1);
                let (dy, dx) = if turned { (-dy, -dx) } else { (dy, dx) };
                let (r, c) = (row as isize + dy, col as isize + dx);
                if (0..h as isize).contains(&r) && (0..w as isize).contains(&c) {
                    y[row * w + col] += k * x[r as usize * w + c as usize];
                }
            }
        }
    }
    y
}

fn largest_near(scale: &[f64], h: usize, w: usize) -> Vec<f64> {
    let mut near = vec![0.0; scale.len()];
    for (near, scale) in near.chunks_exact_mut(h * w).zip(scale.chunks_exact(h * w)) {
        for (row, col) in (0..h).flat_map(|row| (0..w).map(move |col| (row, col))) {
            for r in row.saturating_sub(1)..h.min(row + 2) {
                for c in col.saturating_sub(1)..w.min(col + 2) {
                    near[row * w + col] = scale[r * w + c].max(near[row * w + col]);
                }
            }
        }
    }
    near
}

fn check(what: &str, got: &Tensor, want: &[f64], scale: &[f64], epsilon: f64) -> Result<()> {
    let got = got.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, ((got, want), scale)) in got.iter().zip(want).zip(scale).enumerate() {
        assert!((got - want).abs() <= epsilon * scale, "{what}, element {i}: {got:e} for {want:e} of scale {scale:e}");
    }
    Ok(())
}

#[test]
fn large_convolutions_of_three_taps() -> Result<()> {
    Level::vectors().try_for_each(|level| with_level(level, || check_all(level)))
}

fn check_all(level: Level) -> Result<()> {
    let shapes: [Shape; 4] =
        [(2, 64, 64, 16, 16, 1), (1, 64, 72, 17, 19, 1), (1, 128, 128, 15, 33, 2), (3, 65, 64, 16, 21, 1)];
    for shape @ (b, ci, co, h, w, groups) in shapes {
        let mut rng = Rng::new(1, "winograd");
        let x = draw(&mut rng, b * ci * h * w, Values::MostlyZero, 1.0);
        let weight = draw(&mut rng, co * ci / groups * 9, Values::Uniform, 1.0);
        let dy = draw(&mut rng, b * co * h * w, Values::MostlyZero, 1.0);
        let abs = |v: &[f64]| v.iter().map(|x| x.abs()).collect::<Vec<_>>();
        let y_scale = largest_near(&reference(shape, &abs(&x), &abs(&weight), false), h, w);
        let dx_scale = largest_near(&reference(shape, &abs(&dy), &abs(&weight), true), h, w);
        let (y, dx) = (reference(shape, &x, &weight, false), reference(shape, &dy, &weight, true));
        for (dtype, epsilon) in [(DType::F32, 1e-5), (DType::F64, 1e-12)] {
            let tensor =
                |v: &[f64], dims: [usize; 4]| Tensor::from_vec(v.to_vec(), &dims, &Device::Cpu)?.to_dtype(dtype);
            let xs = Var::from_tensor(&tensor(&x, [b, ci, h, w])?)?;
            let weight = tensor(&weight, [co, ci / groups, 3, 3])?;
            let params = Conv2dParams { padding: (1, 1), groups, ..Default::default() };
            let ys = conv2d(xs.as_tensor(), &weight, None, params)?;
            let grads = (&ys * tensor(&dy, [b, co, h, w])?)?.sum_all()?.backward()?;
            let what = format!("{shape:?} {dtype:?} {}", level.name());
            check(&format!("y of {what}"), &ys, &y, &y_scale, epsilon)?;
            // In evaluation the forward pass, too, goes by tiles.
            let plain = conv2d(&xs.detach(), &weight, None, params)?;
            check(&format!("y in evaluation of {what}"), &plain, &y, &y_scale, epsilon)?;
            check(&format!("dx of {what}"), grads.get(&xs).expect("tracked"), &dx, &dx_scale, epsilon)?;
        }
    }
    Ok(())
}

/// Winograd's tiles would spread a NaN, and make one of an infinity.
#[test]
fn what_is_not_finite_reaches_its_windows_alone() -> Result<()> {
    let (h, w) = (16, 18);
    for special in [f32::NAN, f32::INFINITY] {
        let mut x = vec![1f32; 64 * h * w];
        x[7 * h * w + 5 * w + 8] = special;
        let xs = Tensor::from_vec(x, (1, 64, h, w), &Device::Cpu)?;
        let weight = Tensor::ones((64, 64, 3, 3), DType::F32, &Device::Cpu)?;
        let params = Conv2dParams { padding: (1, 1), ..Default::default() };
        let ys = conv2d(&xs, &weight, None, params)?.flatten_all()?.to_vec1::<f32>()?;
        for (i, y) in ys.iter().enumerate() {
            let (row, col) = (i / w % h, i % w);
            let is_met = (4..=6).contains(&row) && (7..=9).contains(&col);
            assert_eq!(y.is_finite(), !is_met, "{row} {col}: {y}");
            assert_eq!(y.is_infinite(), is_met && special.is_infinite(), "{row} {col}: {y}");
        }
    }
    Ok(())
}

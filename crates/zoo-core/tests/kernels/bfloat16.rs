//! Products of bfloat16 numbers against f64, at every level: of instructions on tiles, on pairs, and of f32 vectors.
//!
//! An output is rounded once to eight bits: half a unit in its last place is at most 2⁻⁸ of it. Before that, a sum of k products
//! in f32 is off by at most k · 2⁻²³ of the sum of their absolute values.

use crate::compare::with_level;
use candle_core::{DType, Device, Result, Tensor};
use zoo_core::ops::{Level, linear};
use zoo_core::rng::Rng;

fn numbers(rng: &mut Rng, dims: &[usize]) -> Result<Tensor> {
    let values = (0..dims.iter().product()).map(|_| 2.0 * rng.uniform() - 1.0);
    Tensor::from_vec(values.collect::<Vec<f64>>(), dims, &Device::Cpu)?.to_dtype(DType::BF16)
}

fn rows(xs: &Tensor) -> Result<Vec<Vec<f64>>> {
    xs.to_dtype(DType::F64)?.to_vec2()
}

#[test]
fn linear_maps_are_right_to_one_rounding_at_every_level() -> Result<()> {
    let mut rng = Rng::new(7, "bfloat16");
    for (n, c_in, c_out) in
        [(1, 1, 1), (3, 5, 17), (16, 32, 16), (17, 33, 31), (33, 31, 65), (100, 70, 130), (2, 1025, 3)]
    {
        let (x, w, b) =
            (numbers(&mut rng, &[n, c_in])?, numbers(&mut rng, &[c_out, c_in])?, numbers(&mut rng, &[c_out])?);
        let (xs, ws, bs) = (rows(&x)?, rows(&w)?, b.to_dtype(DType::F64)?.to_vec1::<f64>()?);
        for bias in [None, Some(&b)] {
            for level in Level::supported() {
                let ys = rows(&with_level(level, || linear(&x, &w, bias))?)?;
                // A strided input is made contiguous at the door.
                let strided = x.t()?.contiguous()?.t()?;
                assert_eq!(rows(&with_level(level, || linear(&strided, &w, bias))?)?, ys);
                for (i, j) in (0..n).flat_map(|i| (0..c_out).map(move |j| (i, j))) {
                    let products = xs[i].iter().zip(&ws[j]).map(|(x, w)| x * w);
                    let shift = bias.map_or(0.0, |_| bs[j]);
                    let (want, scale) = products.fold((shift, shift.abs()), |(s, a), p| (s + p, a + p.abs()));
                    let bound = want.abs() * 2f64.powi(-8) + scale * (c_in + 1) as f64 * 2f64.powi(-23);
                    let error = (ys[i][j] - want).abs();
                    assert!(error <= bound, "{level:?} {n}x{c_in} to {c_out}, ({i}, {j}): {} for {want}", ys[i][j]);
                }
            }
        }
    }
    Ok(())
}

/// What is no number goes to its own row and to all of it; an infinity stays one.
#[test]
fn nan_and_infinity_stay_in_their_rows() -> Result<()> {
    let mut rng = Rng::new(8, "bfloat16");
    let mut values = rows(&numbers(&mut rng, &[40, 50])?)?.concat();
    values[7 * 50 + 49] = f64::NAN;
    values[33 * 50] = f64::INFINITY;
    let x = Tensor::from_vec(values, (40, 50), &Device::Cpu)?.to_dtype(DType::BF16)?;
    let w = Tensor::ones((18, 50), DType::BF16, &Device::Cpu)?;
    for level in Level::supported() {
        for (i, row) in rows(&with_level(level, || linear(&x, &w, None))?)?.iter().enumerate() {
            let right = |y: &f64| match i {
                7 => y.is_nan(),
                33 => *y == f64::INFINITY,
                _ => y.is_finite(),
            };
            assert!(row.iter().all(right), "{level:?}, row {i}: {row:?}");
        }
    }
    Ok(())
}

/// The number of threads, and the rows beside it, change no bit of a row.
#[test]
fn a_row_is_the_same_alone() -> Result<()> {
    let mut rng = Rng::new(9, "bfloat16");
    let (x, w) = (numbers(&mut rng, &[70, 96])?, numbers(&mut rng, &[40, 96])?);
    for level in Level::supported() {
        let all = rows(&with_level(level, || linear(&x, &w, None))?)?;
        for i in [0, 15, 16, 31, 32, 69] {
            let alone = rows(&with_level(level, || linear(&x.narrow(0, i, 1)?, &w, None))?)?;
            assert_eq!(alone[0], all[i], "{level:?}, row {i}");
        }
    }
    Ok(())
}

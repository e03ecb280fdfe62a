//! Elementary functions on vectors, a few units in the last place from the true values in f32 and in f64.

use super::simd::Simd;
use candle_core::WithDType;

/// Whether the lanes are f32.
#[inline(always)]
const fn single<V: Simd>() -> bool {
    size_of::<V::Elem>() == 4
}

/// A number in every lane.
#[inline(always)]
pub(crate) unsafe fn num<V: Simd>(x: f64) -> V {
    // SAFETY: the caller stands below `dispatch`.
    unsafe { V::splat(<V::Elem as WithDType>::from_f64(x)) }
}

/// Σ coefficients[i] · xⁱ
#[inline(always)]
unsafe fn polynomial<V: Simd>(x: V, coefficients: &[f64]) -> V {
    let (last, rest) = (coefficients[coefficients.len() - 1], &coefficients[..coefficients.len() - 1]);
    // SAFETY: as above.
    unsafe {
        let mut y = num::<V>(last);
        for &c in rest.iter().rev() {
            y = y.mul_add(x, num(c));
        }
        y
    }
}

/// 1 / (k + 1)!: (eʳ - 1) / r
const EXPM1: [f64; 14] = {
    let (mut coefficients, mut factorial, mut k) = ([0.0; 14], 1.0, 0);
    while k < 14 {
        factorial *= (k + 1) as f64;
        coefficients[k] = 1.0 / factorial;
        k += 1;
    }
    coefficients
};

/// eˣ = 2ⁿ · (1 + q) with an integer n and |log(1 + q)| ≤ ½ log 2: (n, q), for x in lo..hi; NaN makes q NaN and n a
/// number.
#[inline(always)]
unsafe fn reduced<V: Simd>(x: V, lo: f64, hi: f64) -> (V, V) {
    // The high part has zeros at its end, so that n times it is exact without fused multiply-add too.
    let (ln2_hi, ln2_lo) = if single::<V>() {
        (0.693_359_375, -2.121_944_400_546_905_8e-4)
    } else {
        (0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10)
    };
    // SAFETY: as above; `safe` lies in lo..=hi whatever x is.
    unsafe {
        let (lo, hi) = (num::<V>(lo), num::<V>(hi));
        let x = lo.if_greater(x, lo, x);
        let x = x.if_greater(hi, hi, x);
        let safe = x.if_greater(lo, x, lo);
        let n = safe.mul(num(std::f64::consts::LOG2_E)).round();
        let r = n.mul_add(num(-ln2_lo), n.mul_add(num(-ln2_hi), x));
        // f32: 0.35⁸ / 9! is below a tenth of a unit; f64: 0.35¹⁴ / 15!.
        let terms = if single::<V>() { 7 } else { 13 };
        (n, polynomial(r, &EXPM1[..terms]).mul(r))
    }
}

/// eˣ: 0 and ∞ beyond the range of the type, with its subnormal numbers between.
#[inline(always)]
pub(crate) unsafe fn exp<V: Simd>(x: V) -> V {
    let (lo, hi) = if single::<V>() { (-105.0, 89.0) } else { (-746.0, 710.0) };
    // SAFETY: as above; half of n and the rest are exponents of normal numbers.
    unsafe {
        let (n, q) = reduced(x, lo, hi);
        let half = n.mul(num(0.5)).round();
        let scale = half.exp2_of_integer();
        q.mul_add(scale, scale).mul(n.sub(half).exp2_of_integer())
    }
}

/// eˣ for x ≤ 0, or NaN; below the normal numbers of the type it is 0 or as good as 0.
#[inline(always)]
pub(crate) unsafe fn exp_negative<V: Simd>(x: V) -> V {
    let lo = if single::<V>() { -87.33 } else { -708.39 };
    // SAFETY: as above; n is the exponent of a normal number.
    unsafe {
        let (n, q) = reduced(x, lo, 0.0);
        let scale = n.exp2_of_integer();
        let y = q.mul_add(scale, scale);
        num::<V>(lo).if_greater(x, V::zero(), y)
    }
}

/// 1 / (1 + e⁻ˣ)
#[inline(always)]
pub(crate) unsafe fn sigmoid<V: Simd>(x: V) -> V {
    // SAFETY: as above.
    unsafe {
        let one = num::<V>(1.0);
        one.div(one.add(exp(V::zero().sub(x))))
    }
}

/// tanh x = m / (m + 2) with m = e²ˣ - 1, which loses no digits next to 0.
#[inline(always)]
pub(crate) unsafe fn tanh<V: Simd>(x: V) -> V {
    // SAFETY: as above; beyond ±20 tanh is ±1 to the last digit.
    unsafe {
        let (n, q) = reduced(x.add(x), -40.0, 40.0);
        let (one, scale) = (num::<V>(1.0), n.exp2_of_integer());
        let m = q.mul_add(scale, scale.sub(one));
        m.div(m.add(num(2.0)))
    }
}

/// Φ(-z) · exp(z²/2) · (z + k) for z ≥ 0 as a polynomial in (z - k) / (z + k), which runs from -1 to 1: interpolated at
/// Chebyshev's points. To 1.1e-8 with k = 3.5, and to 4.3e-17 with k = 4.5.
const TAIL_F32: (f64, [f64; 11]) = (
    3.5,
    [
        0.744416075436,
        -0.565561908729,
        0.315425057953,
        -0.116049045394,
        0.0174060587339,
        0.0064652340767,
        -0.00317898590069,
        -0.000417768598173,
        0.000452693919728,
        3.46352008215e-5,
        -4.97668893548e-5,
    ],
);
const TAIL_F64: (f64, [f64; 23]) = (
    4.5,
    [
        0.763_230_528_970_203,
        -0.640_257_760_252_616_4,
        0.446_452_517_055_678_8,
        -0.253_141_799_951_03,
        0.111_382_596_570_211_8,
        -0.033_871_326_175_496_98,
        0.004_223_613_380_222_517,
        0.001_748_830_546_878_372_7,
        -0.000_917_746_504_616_300_9,
        6.381_301_387_947_126e-6,
        0.000_112_042_734_053_610_24,
        -1.593_374_804_746_960_5e-5,
        -1.423_608_032_308_793_8e-5,
        3.192_101_291_510_306_3e-6,
        2.143_361_572_838_347e-6,
        -5.037_939_004_504_017e-7,
        -3.800_815_165_641_788e-7,
        6.609_076_515_816_807e-8,
        7.121_242_949_722_104e-8,
        -6.187_992_570_040_285e-9,
        -1.150_778_009_318_618_7e-8,
        2.694_771_971_116_124e-10,
        1.090_580_230_758_969_4e-9,
    ],
);

/// (Φ(x), exp(-x²/2)): the normal distribution's share below x, and its density but for 1/√(2π).
#[inline(always)]
pub(crate) unsafe fn normal<V: Simd>(x: V) -> (V, V) {
    let (k, coefficients): (f64, &[f64]) =
        if single::<V>() { (TAIL_F32.0, &TAIL_F32.1) } else { (TAIL_F64.0, &TAIL_F64.1) };
    // SAFETY: as above.
    unsafe {
        let far = num::<V>(40.0);
        let z = x.max(V::zero().sub(x));
        let z = z.if_greater(far, far, z);
        let density = exp_negative(z.mul(z).mul(num(-0.5)));
        let (k, one) = (num::<V>(k), num::<V>(1.0));
        let inverse = one.div(z.add(k));
        let tail = polynomial(z.sub(k).mul(inverse), coefficients).mul(inverse).mul(density);
        (x.if_greater(V::zero(), one.sub(tail), tail), density)
    }
}

/// 1/√(2π)
pub(crate) const NORMAL_DENSITY: f64 = 0.398_942_280_401_432_7;

/// log₂ Φ(w) for w in -13.1..=0, interpolated at Chebyshev's points: Φ to 2⁻¹⁵ of itself. At the left end it is below the
/// normal numbers.
const LOG2_CDF: [f64; 10] = [
    -1.000_027_581_255_679_4,
    1.151_022_753_096_587,
    -0.458_697_758_871_121_1,
    0.054_037_313_463_289_174,
    0.008_701_600_794_699_173,
    0.001_029_264_043_990_604_6,
    8.481_818_004_051_287e-5,
    4.559_915_843_294_984e-6,
    1.427_972_341_495_642e-7,
    1.967_493_209_141e-9,
];
/// φ(w) / Φ(w) there, to 2.5e-6 / (|w| · Φ(w)).
const CDF_RISE: [f64; 5] = [
    0.797_780_074_257_461,
    -0.637_200_004_327_382_3,
    0.108_415_760_206_404_9,
    0.019_973_383_065_934_25,
    0.001_697_317_463_831_614_7,
];
/// 2ᶠ for |f| ≤ ½, to 2⁻¹⁸.
const EXP2_FOR_BF16: [f64; 5] =
    [1.0, 0.693_124_193_294_975_7, 0.240_240_986_139_798_2, 0.055_906_425_658_240_41, 0.009_582_853_231_952_085];

/// 2ˣ to 2⁻¹⁸ of itself, for x in -127.5..=127 or NaN; 0 below -126.5.
#[inline(always)]
unsafe fn exp2_in_range<V: Simd<Elem = f32>>(x: V) -> V {
    // SAFETY: as above; a NaN stays in the polynomial, whatever its exponent is.
    unsafe {
        let n = x.round();
        polynomial(x.sub(n), &EXP2_FOR_BF16).mul(n.exp2_of_integer())
    }
}

/// 2ˣ to 2⁻¹⁸ of itself, for results that are rounded to bfloat16: x ≤ 127, or NaN; 0 below -126.5.
#[inline(always)]
pub(crate) unsafe fn exp2_for_bf16<V: Simd<Elem = f32>>(x: V) -> V {
    // SAFETY: as above.
    unsafe {
        let low = num::<V>(-127.0);
        exp2_in_range(low.if_greater(x, low, x))
    }
}

/// (-|x|, w, Φ(w)) with w = -min(|x|, 13), to 2⁻¹⁴ of itself; 0 where that is no normal number.
#[inline(always)]
unsafe fn lower_tail<V: Simd<Elem = f32>>(x: V) -> (V, V, V) {
    // SAFETY: as above.
    unsafe {
        let (negative, lo) = (V::zero().sub(x), num::<V>(-13.0));
        let below = x.if_greater(negative, negative, x);
        let w = lo.if_greater(below, lo, below);
        (below, w, exp2_in_range(polynomial(w, &LOG2_CDF)))
    }
}

/// x · Φ(x), for positive x as x - x · Φ(-x).
#[inline(always)]
unsafe fn gelu_of_tail<V: Simd<Elem = f32>>(x: V, w: V, tail: V) -> V {
    // SAFETY: as above.
    unsafe { x.if_greater(V::zero(), w.mul_add(tail, x), x.mul(tail)) }
}

/// x · Φ(x) to 2⁻¹⁴ of itself, for results that are rounded to bfloat16. As in the formula, -∞ gives no number.
#[inline(always)]
pub(crate) unsafe fn gelu_for_bf16<V: Simd<Elem = f32>>(x: V) -> V {
    // SAFETY: as above.
    unsafe {
        let (_, w, tail) = lower_tail(x);
        gelu_of_tail(x, w, tail)
    }
}

/// The same, and its derivative Φ(x) + x · φ(x) to 2⁻¹⁵.
#[inline(always)]
pub(crate) unsafe fn gelu_with_slope_for_bf16<V: Simd<Elem = f32>>(x: V) -> (V, V) {
    // SAFETY: as above.
    unsafe {
        let (below, w, tail) = lower_tail(x);
        let one = num::<V>(1.0);
        let slope = tail.mul(below.mul_add(polynomial(w, &CDF_RISE), one));
        (gelu_of_tail(x, w, tail), x.if_greater(V::zero(), one.sub(slope), slope))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::simd::{Kernel, Real, dispatch};
    use candle_core::cpu::erf::erf_f64;

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        ExpNegative,
        Tanh,
        Sigmoid,
        Cdf,
    }

    struct Apply<'a, T>(Function, &'a mut [T]);

    impl<T: Real> Kernel<T> for Apply<'_, T> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = T>>(self) {
            for chunk in self.1.chunks_mut(V::LANES) {
                // SAFETY: run by `dispatch`; no lane beyond the chunk is touched.
                unsafe {
                    let x = V::load_first(chunk.as_ptr(), chunk.len());
                    let y = match self.0 {
                        Function::Exp => exp(x),
                        Function::ExpNegative => exp_negative(x),
                        Function::Tanh => tanh(x),
                        Function::Sigmoid => sigmoid(x),
                        Function::Cdf => normal(x).0,
                    };
                    y.store_first(chunk.as_mut_ptr(), chunk.len());
                }
            }
        }
    }

    fn check<T: Real>(epsilon: f64, tiny: f64) {
        type Want<'a> = &'a dyn Fn(f64) -> f64;
        let functions: [(Function, f64, Want); 5] = [
            (Function::Exp, 4.0, &f64::exp),
            (Function::ExpNegative, 4.0, &f64::exp),
            (Function::Tanh, 6.0, &f64::tanh),
            (Function::Sigmoid, 6.0, &|x| 1.0 / (1.0 + (-x).exp())),
            // Of the square, half a unit times its size; where erf loses digits to 1, the tail is not compared.
            (Function::Cdf, 32.0, &|x| 0.5 * (1.0 + erf_f64(x * std::f64::consts::FRAC_1_SQRT_2))),
        ];
        for (function, units, want) in functions {
            let bound = |x: f64| match function {
                Function::ExpNegative => -x.abs(),
                Function::Cdf => x / 20.0,
                _ => x,
            };
            let xs: Vec<T> = (-40_000..=40_000).map(|i| T::from_f64(bound(i as f64 / 500.0))).collect();
            let mut ys = xs.clone();
            dispatch(Apply(function, &mut ys));
            for (x, y) in xs.iter().zip(&ys) {
                let want = want(x.to_f64());
                let close = (y.to_f64() - want).abs() <= units * epsilon * want.abs() + tiny;
                let ends = want >= f64::from(f32::MAX) && y.to_f64() == f64::INFINITY;
                assert!(close || ends, "{} of {x}: {y} for {want}", function as usize);
            }
            let mut ends = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(T::from_f64);
            dispatch(Apply(function, &mut ends));
            assert!(ends[0].to_f64().is_nan());
            for (y, x) in ends[1..].iter().zip([f64::INFINITY, f64::NEG_INFINITY]) {
                if !(matches!(function, Function::ExpNegative) && x > 0.0) {
                    assert_eq!(y.to_f64(), want(x), "{} of {x}", function as usize);
                }
            }
        }
    }

    struct ForBf16<'a>(&'a [f32], [&'a mut [f32]; 3]);

    impl Kernel<f32> for ForBf16<'_> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = f32>>(self) {
            let Self(xs, [exp2, ys, slopes]) = self;
            for i in (0..xs.len()).step_by(V::LANES) {
                let n = V::LANES.min(xs.len() - i);
                // SAFETY: run by `dispatch`; no lane beyond the slices is touched.
                unsafe {
                    let x = V::load_first(xs.as_ptr().add(i), n);
                    exp2_for_bf16(x).store_first(exp2.as_mut_ptr().add(i), n);
                    let (y, slope) = gelu_with_slope_for_bf16(x);
                    y.store_first(ys.as_mut_ptr().add(i), n);
                    slope.store_first(slopes.as_mut_ptr().add(i), n);
                }
            }
        }
    }

    /// Far below the rounding to eight bits, 2⁻⁸; no digits are lost in the tail.
    #[test]
    fn close_enough_for_bf16() {
        let mut xs: Vec<f32> = (-104_000..=104_000).map(|i| i as f32 / 8000.0).collect();
        xs.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1e30, -126.0, -200.0]);
        let [mut exp2, mut ys, mut slopes] = [(); 3].map(|()| vec![0f32; xs.len()]);
        dispatch(ForBf16(&xs, [&mut exp2, &mut ys, &mut slopes]));
        let (values, ends) = xs.split_at(208_001);
        for (i, &x) in values.iter().enumerate() {
            let (x, near) = (f64::from(x), |got: f32, want: f64, by: f64| (f64::from(got) - want).abs() <= by);
            // Φ by the kernel in f64, which has its own test.
            let (mut cdf, density) = ([x], (-0.5 * x * x).exp() * NORMAL_DENSITY);
            dispatch(Apply(Function::Cdf, &mut cdf));
            let (y, slope) = (x * cdf[0], cdf[0] + x * density);
            assert!(near(exp2[i], x.exp2(), x.exp2() * 2f64.powi(-18)), "2^{x}: {}", exp2[i]);
            assert!(near(ys[i], y, y.abs() * 2f64.powi(-14) + 2e-37), "GELU of {x}: {} for {y}", ys[i]);
            assert!(near(slopes[i], slope, 2f64.powi(-15)), "its slope at {x}: {} for {slope}", slopes[i]);
        }
        let [exp2, ys, slopes] = [&exp2[208_001..], &ys[208_001..], &slopes[208_001..]];
        assert!(ends[0].is_nan() && exp2[0].is_nan() && ys[0].is_nan() && slopes[0].is_nan());
        assert_eq!((exp2[2], exp2[4], exp2[5]), (0.0, f32::MIN_POSITIVE, 0.0));
        // ∞ · 0 is no number, as PyTorch has it.
        assert!(ys[1] == f32::INFINITY && slopes[1].is_nan() && ys[2].is_nan() && slopes[2].is_nan());
        assert_eq!((ys[3], slopes[3]), (0.0, 0.0));
    }

    #[test]
    fn close_to_the_true_values() {
        check::<f32>(f64::from(f32::EPSILON), 1e-37);
        check::<f64>(f64::EPSILON, 1e-16);
    }
}

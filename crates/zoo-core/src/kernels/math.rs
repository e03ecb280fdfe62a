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

    #[test]
    fn close_to_the_true_values() {
        check::<f32>(f64::from(f32::EPSILON), 1e-37);
        check::<f64>(f64::EPSILON, 1e-16);
    }
}

//! What no operation of this crate shows of the kernels: sums with a shortcut, and gradients over what they read.

use super::*;
use crate::testing::values;

fn numbers(name: &str, n: usize) -> Vec<bf16> {
    values(name, n).into_iter().map(bf16::from_f64).collect()
}

fn wide(xs: &[bf16]) -> Vec<f64> {
    xs.iter().map(|x| x.to_f64()).collect()
}

/// |got - want| ≤ 2⁻⁸ · |want| + 1e-4, for numbers around one.
fn close(what: &str, got: &[bf16], want: impl Iterator<Item = f64>) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (got.to_f64() - want).abs();
        assert!(error <= want.abs() / 256.0 + 1e-4, "{what} {i}: {got} for {want}");
    }
}

#[test]
fn a_normalisation_with_a_shortcut_has_the_gradients_of_its_formula() {
    for (c, pixels) in [(1, 700), (3, 50), (16, 2500), (17, 64), (24, 9), (64, 300), (512, 140)] {
        let n = c * pixels;
        let [xs, skip, grad] = ["xs", "skip", "grad"].map(|name| numbers(name, n));
        let affine_of = |name: &str| values(name, c).into_iter().map(|x| (1.0 + 0.5 * x) as f32).collect::<Vec<_>>();
        let (weight, bias) = (affine_of("weight"), affine_of("bias"));
        let (mean, var) = stats(&xs, c);
        for through_stats in [true, false] {
            let by = Coefficients::new(&weight, &bias, (&mean, &var), 1e-3, through_stats);
            for activation in [FusedActivation::None, FusedActivation::Relu, FusedActivation::Relu6] {
                let ys = affine(&xs, c, &by.scale, &by.shift, Some(&skip), activation);
                let hat = |i: usize| (xs[i].to_f64() - f64::from(mean[i % c])) * f64::from(by.inv_std[i % c]);
                let linear = |i: usize| hat(i) * f64::from(weight[i % c]) + f64::from(bias[i % c]) + skip[i].to_f64();
                let of = |y: f64| match activation {
                    FusedActivation::None => y,
                    FusedActivation::Relu => y.max(0.0),
                    FusedActivation::Relu6 => y.clamp(0.0, 6.0),
                };
                close("output", &ys, (0..n).map(|i| of(linear(i))));

                let passes = |y: f64| match activation {
                    FusedActivation::None => true,
                    FusedActivation::Relu => y > 0.0,
                    FusedActivation::Relu6 => y > 0.0 && y < 6.0,
                };
                let g: Vec<f64> =
                    wide(&grad).iter().zip(wide(&ys)).map(|(&g, y)| if passes(y) { g } else { 0.0 }).collect();
                let (sums, kept) = gradient_sums(&xs, Some(&ys), &grad, &by, activation, true);
                let kept = kept.expect("asked for");
                assert_eq!(wide(&kept), g);
                for channel in 0..c {
                    let own = || (channel..n).step_by(c);
                    let (sum, dot): (f64, f64) = (own().map(|i| g[i]).sum(), own().map(|i| g[i] * hat(i)).sum());
                    for (got, want) in [(sums.bias[channel], sum), (sums.weight[channel], dot)] {
                        assert!((f64::from(got) - want).abs() < 1e-5 * pixels as f64, "{c} {channel}: {got} {want}");
                    }
                }

                let dx = |i: usize| {
                    let (sum, dot) = (f64::from(sums.bias[i % c]), f64::from(sums.weight[i % c]));
                    let rest = if through_stats { (sum + hat(i) * dot) / pixels as f64 } else { 0.0 };
                    f64::from(by.scale[i % c]) * (g[i] - rest)
                };
                let make = InputGrad::new(&by, &sums, pixels, activation);
                let all = make.all(&xs, Some(&ys), &grad);
                close("gradient", &all, (0..n).map(dx));
                assert_eq!(make.over_rows(xs.clone(), Some(&ys), &grad), all);
                assert_eq!(make.over_grad(&xs, Some(&ys), grad.clone()), all);
                // Pixels by themselves, and on top of another gradient.
                let (from, to) = (pixels / 3 * c, pixels / 2 * c);
                let mut part = vec![bf16::ZERO; to - from];
                make.block(&xs[from..to], Some(&ys[from..to]), &grad[from..to], uninit_numbers(&mut part));
                assert_eq!(part, all[from..to]);
                let mut sum = skip.clone();
                make.add_block(&xs, Some(&ys), &grad, &mut sum);
                close("sum", &sum, (0..n).map(|i| dx(i) + skip[i].to_f64()));
                assert_eq!(make.of_passed().all(&xs, None, &kept), all);
            }
        }
    }
}

fn uninit_numbers(xs: &mut [bf16]) -> &mut [MaybeUninit<bf16>] {
    // SAFETY: the same layout, and the kernel leaves numbers behind.
    unsafe { &mut *(std::ptr::from_mut(xs) as *mut [MaybeUninit<bf16>]) }
}

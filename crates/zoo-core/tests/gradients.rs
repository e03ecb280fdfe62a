//! Every gradient against finite differences in f64, for kernels and compositions; and what golden values do not cover
//! of half types and special values. `kernels.rs` holds the kernels against plain loops.

use candle_core::{DType, Device, Result, Tensor, Var};
use zoo_core::ops::{self, Conv2dParams, Pointwise};
use zoo_core::rng::Rng;

fn random(name: &str, dims: &[usize]) -> Tensor {
    let mut rng = Rng::new(17, name);
    let values = (0..dims.iter().product()).map(|_| rng.uniform_in(-1.0, 1.0)).collect::<Vec<f64>>();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

/// Compares the gradient of Σ f(inputs) · r, r random, with central differences. Step and tolerance: the rounding of
/// f64 (1e-16 / 1e-5) and the third derivative (1e-10) are both far below 1e-6 for functions of this size.
fn check(name: &str, shapes: &[&[usize]], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    const STEP: f64 = 1e-5;
    let vars: Vec<Var> = shapes
        .iter()
        .enumerate()
        .map(|(i, dims)| Var::from_tensor(&random(&format!("{name}/{i}"), dims)).unwrap())
        .collect();
    let tensors = |vars: &[Var]| vars.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>();
    let output = f(&tensors(&vars)).unwrap();
    let upstream = random(&format!("{name}/upstream"), output.dims());
    let loss = |inputs: &[Tensor]| (f(inputs).unwrap() * &upstream).unwrap().sum_all().unwrap();
    let grads = loss(&tensors(&vars)).backward().unwrap();
    for (i, var) in vars.iter().enumerate() {
        let gradient = grads.get(var).unwrap_or_else(|| panic!("{name}: input {i} has no gradient"));
        assert_eq!(gradient.dims(), var.dims(), "{name}: input {i}");
        let gradient: Vec<f64> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        let values: Vec<f64> = var.flatten_all().unwrap().to_vec1().unwrap();
        for (k, got) in gradient.into_iter().enumerate() {
            let at = |delta: f64| -> f64 {
                let mut moved = values.clone();
                moved[k] += delta;
                let mut inputs: Vec<Tensor> = vars.iter().map(|v| v.as_detached_tensor()).collect();
                inputs[i] = Tensor::from_vec(moved, var.dims(), &Device::Cpu).unwrap();
                loss(&inputs).to_scalar().unwrap()
            };
            let expected = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            let bound = 1e-6 * expected.abs().max(1.0);
            assert!((got - expected).abs() < bound, "{name}: input {i} element {k}: {got} against {expected}");
        }
    }
}

/// The same check on the kernel and on the composition of candle's ops.
fn check_both(name: &str, shapes: &[&[usize]], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    check(name, shapes, &f);
    check(name, shapes, |inputs| ops::with_fallback(|| f(inputs)));
}

fn conv(stride: usize, padding: usize, dilation: usize, groups: usize) -> Conv2dParams {
    let pair = |n| (n, n);
    Conv2dParams { stride: pair(stride), padding: pair(padding), dilation: pair(dilation), groups }
}

#[test]
fn convolution() {
    let cases: &[(&str, &[usize], &[usize], Conv2dParams)] = &[
        ("3x3", &[2, 2, 5, 4], &[3, 2, 3, 3], conv(1, 1, 1, 1)),
        ("stride", &[1, 2, 7, 6], &[2, 2, 3, 3], conv(2, 1, 1, 1)),
        ("stride that does not divide", &[2, 1, 8, 7], &[2, 1, 3, 3], conv(3, 0, 1, 1)),
        ("dilation", &[1, 2, 6, 7], &[2, 2, 3, 3], conv(1, 2, 2, 1)),
        ("groups", &[2, 4, 4, 5], &[6, 2, 3, 3], conv(1, 1, 1, 2)),
        ("depthwise", &[2, 3, 5, 4], &[3, 1, 3, 3], conv(1, 1, 1, 3)),
        ("depthwise with a multiplier and stride", &[1, 2, 6, 5], &[4, 1, 3, 3], conv(2, 1, 1, 2)),
        ("1x1", &[2, 3, 3, 2], &[4, 3, 1, 1], conv(1, 0, 1, 1)),
        ("1x1 with stride", &[1, 3, 5, 4], &[2, 3, 1, 1], conv(2, 0, 1, 1)),
        ("one pixel", &[1, 2, 1, 1], &[3, 2, 3, 3], conv(1, 1, 1, 1)),
        ("padding wider than the kernel", &[1, 1, 2, 3], &[1, 1, 1, 1], conv(1, 3, 1, 1)),
    ];
    for (name, x, w, params) in cases {
        check_both(name, &[x, w, &[w[0]]], |t| ops::conv2d(&t[0], &t[1], Some(&t[2]), *params));
    }
    let params = Conv2dParams { stride: (2, 1), padding: (0, 2), dilation: (1, 2), groups: 1 };
    check_both("non-square", &[&[1, 2, 6, 5], &[2, 2, 1, 3]], |t| ops::conv2d(&t[0], &t[1], None, params));
}

#[test]
fn pooling() {
    for (kernel, stride, padding, ceil_mode) in [(2, 2, 0, false), (3, 2, 1, false), (3, 2, 0, true), (3, 1, 1, false)]
    {
        let pair = |n| (n, n);
        let name = format!("{kernel}/{stride} p{padding} ceil {ceil_mode}");
        check_both(&format!("max {name}"), &[&[1, 2, 6, 7]], |t| {
            ops::max_pool2d(&t[0], pair(kernel), pair(stride), pair(padding), ceil_mode)
        });
        for include in [true, false] {
            check_both(&format!("avg {name} {include}"), &[&[1, 2, 6, 7]], |t| {
                ops::avg_pool2d(&t[0], pair(kernel), pair(stride), pair(padding), ceil_mode, include)
            });
        }
    }
}

#[test]
fn joining_and_rearranging() {
    let channels = [2usize, 1, 3, 1, 2];
    for dim in [0, 1, 3] {
        let shapes: Vec<Vec<usize>> = channels
            .iter()
            .map(|&n| {
                let mut dims = vec![2, 2, 2, 3];
                dims[dim] = n;
                dims
            })
            .collect();
        for n in 1..=shapes.len() {
            let shapes: Vec<&[usize]> = shapes[..n].iter().map(Vec::as_slice).collect();
            let joined = |t: &[Tensor]| ops::concat(&t.iter().collect::<Vec<_>>(), dim);
            check_both(&format!("concat {n} along {dim}"), &shapes, joined);
        }
    }
    for (below, above) in [(0, 2), (1, 0), (2, 3), (0, 0)] {
        check_both("pad_channels", &[&[2, 3, 2, 2]], |t| ops::pad_channels(&t[0], below, above));
    }
    for groups in [1, 2, 3, 6] {
        check_both("channel_shuffle", &[&[2, 6, 2, 1]], |t| ops::channel_shuffle(&t[0], groups));
        let xs = random("shuffle", &[2, 6, 2, 1]);
        let (a, b) = (ops::channel_shuffle(&xs, groups), ops::with_fallback(|| ops::channel_shuffle(&xs, groups)));
        let values = |t: Result<Tensor>| t.unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(values(a), values(b), "{groups} groups");
    }
    check_both("add", &[&[2, 3, 2], &[2, 3, 2]], |t| ops::add(&t[0], &t[1]));
    check_both("add to itself", &[&[2, 3, 2]], |t| ops::add(&t[0], &t[0]));
    let (a, b) = (random("a", &[2, 3]), random("b", &[3, 3]));
    assert!(ops::add(&a, &b).is_err() && ops::concat(&[&a, &b], 1).is_err() && ops::concat(&[], 0).is_err());
}

#[test]
fn batch_normalisation() {
    for dims in [&[3usize, 2, 2, 3] as &[usize], &[5, 3], &[4, 2, 1, 1]] {
        let c = [dims[1]];
        check_both("train", &[dims, &c, &c], |t| {
            let stats = ops::batch_stats(&t[0])?;
            ops::batch_norm(&t[0], &t[1], &t[2], (&stats.mean, &stats.var), 1e-2, true)
        });
        let (mean, var) = (random("mean", &c), (random("var", &c).abs().unwrap() + 0.5).unwrap());
        check_both("eval", &[dims, &c, &c], |t| ops::batch_norm(&t[0], &t[1], &t[2], (&mean, &var), 1e-2, false));
    }
}

#[test]
fn linear_and_activations() {
    check_both("linear", &[&[3, 4], &[2, 4], &[2]], |t| ops::linear(&t[0], &t[1], Some(&t[2])));
    check_both("linear 3d", &[&[2, 3, 4], &[5, 4]], |t| ops::linear(&t[0], &t[1], None));
    use Pointwise::*;
    for f in [Relu, Relu6, LeakyRelu(0.1), Gelu, GeluTanh, Silu, Sigmoid, Tanh, HardSigmoid, HardSwish] {
        // Scaled so that both ends of the hard functions are reached; random points miss the kinks themselves.
        check_both(&format!("{f:?}"), &[&[4, 5]], |t| ops::pointwise(&(&t[0] * 8.0)?, f));
    }
}

#[test]
fn loss() {
    let targets = Tensor::new(&[2u32, 0, 4], &Device::Cpu).unwrap();
    for smoothing in [0.0, 0.1, 1.0] {
        check_both("cross entropy", &[&[3, 5]], |t| ops::cross_entropy(&t[0], &targets, smoothing));
    }
    // Weights of classes, of either sign, whose rows sum to what they do.
    let weights = random("weights of the classes", &[3, 5]);
    for smoothing in [0.0, 0.1, 1.0] {
        check_both("soft cross entropy", &[&[3, 5]], |t| ops::cross_entropy(&t[0], &weights, smoothing));
    }
}

/// One target of weight 1 is a class; and half types give an f32 loss on the CPU, or one of their own, as with classes.
#[test]
fn certain_weights_are_classes() {
    let classes = Tensor::new(&[2u32, 0, 4], &Device::Cpu).unwrap();
    let mut rows = vec![0f32; 15];
    for i in [2, 5, 14] {
        rows[i] = 1.0;
    }
    let weights = Tensor::from_vec(rows, (3, 5), &Device::Cpu).unwrap();
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
        let x = Var::from_tensor(&random("logits", &[3, 5]).to_dtype(dtype).unwrap()).unwrap();
        for smoothing in [0.0, 0.1] {
            let of = |targets: &Tensor| {
                let loss = ops::cross_entropy(&x, targets, smoothing).unwrap();
                let grads = loss.backward().unwrap();
                let grad = grads.get(&x).unwrap().to_dtype(DType::F64).unwrap().flatten_all().unwrap();
                (loss.dtype(), loss.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap(), grad.to_vec1().unwrap())
            };
            let (want, got): ((_, _, Vec<f64>), (_, _, Vec<f64>)) = (of(&classes), of(&weights));
            let bound = if dtype == DType::F64 { 1e-15 } else { 1e-7 };
            assert!(got.0 == want.0 && (got.1 - want.1).abs() < bound, "{dtype:?}: {} for {}", got.1, want.1);
            let close = |(a, b): (&f64, &f64)| (a - b).abs() <= bound;
            assert!(got.2.iter().zip(&want.2).all(close), "{dtype:?}: {:?} for {:?}", got.2, want.2);
        }
    }
}

#[test]
fn what_asks_for_no_gradient_gets_none() {
    let images = random("images", &[2, 3, 4, 4]);
    let weight = Var::from_tensor(&random("weight", &[2, 3, 3, 3])).unwrap();
    let ys = ops::conv2d(&images, &weight, None, conv(1, 1, 1, 1)).unwrap();
    let grads = ys.sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&weight).is_some() && grads.get(&images).is_none());
}

#[test]
fn half_types_work_and_stay_half() {
    for dtype in [DType::F16, DType::BF16] {
        let x = Var::from_tensor(&random("half x", &[2, 3, 6, 6]).to_dtype(dtype).unwrap()).unwrap();
        let w = Var::from_tensor(&random("half w", &[4, 3, 3, 3]).to_dtype(dtype).unwrap()).unwrap();
        let exact =
            ops::conv2d(&x.to_dtype(DType::F64).unwrap(), &w.to_dtype(DType::F64).unwrap(), None, conv(1, 1, 1, 1))
                .unwrap();
        let ys = ops::conv2d(&x, &w, None, conv(1, 1, 1, 1)).unwrap();
        assert_eq!(ys.dtype(), dtype);
        let error = (ys.to_dtype(DType::F64).unwrap() - exact).unwrap().abs().unwrap().max_all().unwrap();
        // One rounding of values up to about 8: half of 2⁻⁸ · 8 for bf16, of 2⁻¹¹ · 8 for f16.
        let bound = if dtype == DType::BF16 { 1.6e-2 } else { 2e-3 };
        assert!(error.to_scalar::<f64>().unwrap() < bound, "{dtype:?}: {error}");
        let pooled = ops::max_pool2d(&ops::pointwise(&ys, Pointwise::Relu).unwrap(), (2, 2), (2, 2), (0, 0), false);
        let grads = pooled.unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(grads.get(&w).unwrap().dtype(), dtype);
    }
}

#[test]
fn special_values_pass_through() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let xs = Tensor::new(&[nan, inf, -inf, 0., -0.], &Device::Cpu).unwrap();
    for composed in [false, true] {
        let relu = || ops::pointwise(&xs, Pointwise::Relu).unwrap().to_vec1::<f32>().unwrap();
        let ys = if composed { ops::with_fallback(relu) } else { relu() };
        assert!(ys[0].is_nan() && ys[1] == inf && ys[2..].iter().all(|&y| y == 0.0), "{ys:?}");
    }
    let image = Tensor::new(&[1f32, nan, 3., 4.], &Device::Cpu).unwrap().reshape((1, 1, 2, 2)).unwrap();
    let pooled = ops::max_pool2d(&image, (2, 2), (2, 2), (0, 0), false).unwrap();
    assert!(pooled.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0].is_nan(), "max pooling hides a NaN");
    let logits = Tensor::new(&[[0f32, -inf, 1.]], &Device::Cpu).unwrap();
    let loss = ops::cross_entropy(&logits, &Tensor::new(&[2u32], &Device::Cpu).unwrap(), 0.0).unwrap();
    assert!((loss.to_scalar::<f32>().unwrap() - 0.313_261_7).abs() < 1e-6, "{loss}");
    let certain = Tensor::new(&[[0f32, 0., 1.]], &Device::Cpu).unwrap();
    for composed in [false, true] {
        let soft = || ops::cross_entropy(&logits, &certain, 0.0).unwrap().to_scalar::<f32>().unwrap();
        let soft = if composed { ops::with_fallback(soft) } else { soft() };
        assert!((soft - 0.313_261_7).abs() < 1e-6, "{soft}");
    }
}

//! Convolutions and linear maps in mixed precision against the same in f64 of operands rounded to bfloat16, at every level:
//! of instructions on tiles, on pairs, and of f32 vectors.
//!
//! A map that is stored is rounded once: half a unit in its last place is at most 2⁻⁸ of it. Before that, a sum of n products
//! in f32 is off by at most n · 2⁻²³ of the sum of their absolute values, which is the same operation on absolute values.
//! The gradient of a weight is f32, and only its sum is off.

use crate::compare::with_level;
use candle_core::{DType, Device, Result, Tensor, Var};
use zoo_core::ops::{Conv2dParams, Level, conv2d, linear};
use zoo_core::rng::Rng;
use zoo_core::tape::recorded;
use zoo_core::{BatchNorm, Conv2d, Conv2dConfig, ModuleT, Pointwise, Residual, VarStore, seq};

fn numbers(rng: &mut Rng, dims: &[usize]) -> Result<Tensor> {
    let values = (0..dims.iter().product()).map(|_| 2.0 * rng.uniform() - 1.0);
    Tensor::from_vec(values.collect::<Vec<f64>>(), dims, &Device::Cpu)?.to_dtype(DType::BF16)?.to_dtype(DType::F64)
}

type Op<'a> = &'a dyn Fn(&Tensor, &Tensor, Option<&Tensor>) -> Result<Tensor>;

/// Output, and the gradients of input, weight and bias, of Σ output · upstream.
fn results(op: Op, inputs: &[Tensor], upstream: &Tensor, mixed: bool) -> Result<Vec<Tensor>> {
    let (map, weight) = if mixed { (DType::BF16, DType::F32) } else { (DType::F64, DType::F64) };
    let vars = inputs
        .iter()
        .enumerate()
        .map(|(i, t)| Var::from_tensor(&t.to_dtype(if i == 0 { map } else { weight })?))
        .collect::<Result<Vec<_>>>()?;
    let bias = vars.get(2).map(Var::as_tensor);
    let ys = recorded(&vars[0], true, |xs| op(xs, &vars[1], bias))?;
    assert_eq!(ys.dtype(), map);
    let grads = (&ys * upstream.to_dtype(map)?)?.sum_all()?.backward()?;
    let mut all = vec![ys.detach()];
    for (i, var) in vars.iter().enumerate() {
        let grad = grads.get(var).expect("a gradient").clone();
        assert_eq!(grad.dtype(), if i == 0 { map } else { weight });
        all.push(grad);
    }
    // Off the tape.
    let plain = op(&vars[0].as_detached_tensor(), &vars[1].as_detached_tensor(), bias.map(Tensor::detach).as_ref())?;
    all.push(plain);
    all.into_iter().map(|t| t.contiguous()?.to_dtype(DType::F64)).collect()
}

fn check(what: &str, op: Op, inputs: &[Tensor], rng: &mut Rng) -> Result<()> {
    let dims = op(&inputs[0], &inputs[1], inputs.get(2))?.dims().to_vec();
    let upstream = numbers(rng, &dims)?;
    let want = results(op, inputs, &upstream, false)?;
    let abs = inputs.iter().map(Tensor::abs).collect::<Result<Vec<_>>>()?;
    let scale = results(op, &abs, &upstream.abs()?, false)?;
    // As many terms as any sum here can have.
    let terms = inputs.iter().map(Tensor::elem_count).max().unwrap_or(0).max(upstream.elem_count());
    for level in Level::supported() {
        let got = with_level(level, || results(op, inputs, &upstream, true))?;
        for (i, ((got, want), scale)) in got.iter().zip(&want).zip(&scale).enumerate() {
            assert_eq!(got.dims(), want.dims(), "{what}");
            let rounding = if i == 2 || i == 3 && inputs.len() > 2 { 0.0 } else { 2f64.powi(-8) };
            let flat = |t: &Tensor| t.flatten_all()?.to_vec1::<f64>();
            for (at, ((got, want), scale)) in flat(got)?.into_iter().zip(flat(want)?).zip(flat(scale)?).enumerate() {
                let bound = want.abs() * rounding + scale * (terms as f64).min(1e4) * 2f64.powi(-23);
                assert!((got - want).abs() <= bound, "{what} {level:?}, result {i}, {at}: {got} for {want}");
            }
        }
    }
    Ok(())
}

fn conv(sizes: [usize; 5], kernel: (usize, usize), params: Conv2dParams, with_bias: bool) -> Result<()> {
    let [b, c_in, h, w, c_out] = sizes;
    let mut rng = Rng::new(11, "bf16 conv");
    let mut inputs = vec![
        numbers(&mut rng, &[b, c_in, h, w])?,
        numbers(&mut rng, &[c_out, c_in / params.groups, kernel.0, kernel.1])?,
    ];
    if with_bias {
        inputs.push(numbers(&mut rng, &[c_out])?);
    }
    let what = format!("{sizes:?} by {kernel:?}, {params:?}");
    check(&what, &|x, w, b| conv2d(x, w, b, params), &inputs, &mut rng)
}

#[test]
fn convolutions_are_right_at_every_level() -> Result<()> {
    let params = |stride: usize, padding: usize, dilation: usize, groups: usize| Conv2dParams {
        stride: (stride, stride),
        padding: (padding, padding),
        dilation: (dilation, dilation),
        groups,
    };
    // The window of most networks: every width of channels, from images of one pixel up.
    for (b, c_in, c_out) in [(1, 1, 1), (2, 3, 16), (3, 16, 17), (1, 17, 33), (2, 33, 5), (2, 64, 48)] {
        for (h, w) in [(1, 1), (3, 2), (4, 4), (9, 7), (8, 17), (16, 33)] {
            conv([b, c_in, h, w, c_out], (3, 3), params(1, 1, 1, 1), c_out == 17)?;
        }
    }
    for stride in 1..4 {
        for padding in 0..3 {
            for (dilation, kernel) in [(1, (1, 1)), (1, (3, 3)), (2, (3, 3)), (1, (2, 5)), (2, (3, 1))] {
                conv([2, 10, 11, 9, 18], kernel, params(stride, padding, dilation, 1), false)?;
            }
        }
    }
    for (groups, c_in, c_out) in [(2, 4, 6), (3, 24, 48), (3, 51, 33), (4, 64, 64)] {
        for (kernel, padding, stride) in [((1, 1), 0, 1), ((3, 3), 1, 1), ((3, 3), 1, 2)] {
            conv([3, c_in, 6, 7, c_out], kernel, params(stride, padding, 1, groups), true)?;
        }
    }
    // Strides and paddings that differ, and an image in bands.
    let uneven = Conv2dParams { stride: (2, 1), padding: (0, 2), dilation: (1, 2), groups: 1 };
    conv([2, 16, 7, 10, 20], (2, 3), uneven, true)?;
    conv([1, 24, 101, 130, 8], (3, 3), params(1, 1, 1, 1), true)
}

#[test]
fn linear_maps_are_right_at_every_level() -> Result<()> {
    let mut rng = Rng::new(12, "bf16 linear");
    for (lead, c_in, c_out) in
        [(&[1][..], 1, 1), (&[3], 5, 17), (&[2, 16], 32, 16), (&[17], 33, 31), (&[3, 50], 100, 130), (&[1100], 48, 10)]
    {
        let inputs = [
            numbers(&mut rng, &[lead, &[c_in]].concat())?,
            numbers(&mut rng, &[c_out, c_in])?,
            numbers(&mut rng, &[c_out])?,
        ];
        let what = format!("{lead:?} {c_in}-{c_out}");
        check(&what, &|x, w, b| linear(x, w, b), &inputs, &mut rng)?;
        check(&what, &|x, w, b| linear(x, w, b), &inputs[..2], &mut rng)?;
    }
    Ok(())
}

/// What is no number goes where its windows are, and nowhere else; an infinity stays one.
#[test]
fn nan_and_infinity_stay_in_their_windows() -> Result<()> {
    for (c, side) in [(3, 6), (16, 8), (17, 4), (32, 12)] {
        let mut xs = vec![1f32; c * side * side];
        xs[side + 1] = f32::NAN;
        xs[(c - 1) * side * side + 3 * side + 3] = f32::INFINITY;
        let x = Tensor::from_vec(xs, (1, c, side, side), &Device::Cpu)?.to_dtype(DType::BF16)?;
        let w = Tensor::ones((20, c, 3, 3), DType::F32, &Device::Cpu)?;
        let params = Conv2dParams { padding: (1, 1), ..Default::default() };
        for level in Level::supported() {
            let ys = with_level(level, || conv2d(&x, &w, None, params))?;
            let ys = ys.contiguous()?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            for (i, y) in ys.into_iter().enumerate() {
                let near = |center: usize| {
                    let apart = |at: usize| at.abs_diff(center) <= 1;
                    apart(i / side % side) && apart(i % side)
                };
                let right = match (near(1), near(3)) {
                    (true, _) => y.is_nan(),
                    (false, true) => y == f32::INFINITY,
                    _ => y.is_finite(),
                };
                assert!(right, "{level:?} {c}x{side}: {y} at {i}");
            }
        }
    }
    Ok(())
}

/// Convolution, norm, sum and activation as one operation: output and gradients beside those of its layers in f64. What is
/// kept of the convolution is rounded, and again what the norm makes of it. An activation's input close to zero may change
/// sign, and with it the gradient there: so the distance of the whole counts, a few units of 2⁻⁸.
#[test]
fn fused_layers_are_right_at_every_level() -> Result<()> {
    let device = Device::Cpu;
    for (c_in, c_out, side, stride, groups, bias) in [
        (3, 16, 8, 1, 1, false),
        (16, 16, 8, 1, 1, false),
        (16, 33, 7, 2, 1, true),
        (24, 24, 6, 1, 24, false),
        (5, 16, 5, 1, 1, true),
    ] {
        for (activation, with_sum) in [(None, false), (Some(Pointwise::Relu), false), (Some(Pointwise::Relu), true)] {
            if with_sum && (c_in != c_out || stride != 1) {
                continue;
            }
            let run = |mixed: bool, train: bool| -> Result<Vec<Tensor>> {
                let mut rng = Rng::new(13, "fused");
                let (map, dtype) = if mixed { (DType::BF16, DType::F32) } else { (DType::F64, DType::F64) };
                let store = VarStore::new(5, dtype, &device);
                let vb = store.root();
                let mut config = Conv2dConfig::new(3).padding(1).stride(stride).groups(groups);
                if !bias {
                    config = config.no_bias();
                }
                let conv = Conv2d::new(c_in, c_out, config, vb.pp("conv"))?;
                let norm = BatchNorm::new(c_out, vb.pp("norm"))?;
                for (_, var) in store.parameters() {
                    var.set(&numbers(&mut rng, var.dims())?.to_dtype(dtype)?)?;
                }
                let xs = Var::from_tensor(&numbers(&mut rng, &[6, c_in, side, side])?.to_dtype(map)?)?;
                let layer: Box<dyn ModuleT> = match (with_sum, activation) {
                    (true, Some(activation)) => Box::new(Residual::new(seq![conv, norm]).activation(activation)),
                    (false, Some(activation)) => Box::new(seq![conv, norm, activation]),
                    _ => Box::new(seq![conv, norm]),
                };
                if !train {
                    return Ok(vec![
                        layer.forward_t(&xs.as_detached_tensor(), false)?.contiguous()?.to_dtype(DType::F64)?,
                    ]);
                }
                let ys = recorded(&xs, true, |xs| layer.forward_t(xs, true))?;
                let upstream = numbers(&mut rng, ys.dims())?.to_dtype(map)?;
                let grads = (&ys * upstream)?.sum_all()?.backward()?;
                let mut all = vec![ys.detach(), grads.get(&xs).expect("a gradient").clone()];
                for (key, var) in store.parameters() {
                    if key != "conv.bias" {
                        all.push(grads.get(&var).expect("a gradient").clone());
                    }
                }
                all.extend(store.buffers().into_iter().map(|(_, var)| var.as_detached_tensor()));
                all.into_iter().map(|t| t.contiguous()?.to_dtype(DType::F64)).collect()
            };
            for train in [true, false] {
                let want = run(false, train)?;
                for level in Level::supported() {
                    let got = with_level(level, || run(true, train))?;
                    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                        let norm = |t: &Tensor| t.sqr()?.sum_all()?.to_scalar::<f64>();
                        let error = (norm(&(got - want)?)? / norm(want)?).sqrt();
                        let what = format!("{c_in}-{c_out} {side} {stride} {groups} {activation:?} {with_sum} {train}");
                        assert!(
                            error <= if activation.is_some() { 0.05 } else { 0.01 },
                            "{what} {level:?}, result {i}: {error}"
                        );
                    }
                }
            }
        }
    }
    Ok(())
}

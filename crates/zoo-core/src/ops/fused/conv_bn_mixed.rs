//! Convolution, batch normalisation, the sum with a shortcut and an activation as one operation on bfloat16 maps.
//!
//! In training the convolution's kernel sums its outputs for the statistics while they are in registers. The tape keeps the
//! convolution's output, and its gradient is written over it. In evaluation the normalisation is folded into the weights, in
//! f32 and before they are rounded.

use super::conv_bn::{Scale, check_skip};
use crate::kernels::bf16::conv as kernel;
use crate::kernels::bf16::norm::{Coefficients, InputGrad, affine, gradient_sums};
use crate::kernels::bf16::{Finish, bias as bias_kernel};
use crate::kernels::fused_activation::FusedActivation;
use crate::ops::batch_norm::{BatchStats, Norm};
use crate::ops::conv2d::geometry;
use crate::ops::{Conv2dParams, with_elements};
use crate::pass::{self, tracks};
use crate::storage::{map, place, rows, with_rows};
use crate::tape::{self, Gradient};
use candle_core::{DType, Device, Result, Shape, Tensor, WithDType};
use half::bf16;

/// Training, on the tape: the output, and the batch's statistics, which the caller moves the running ones with.
pub(crate) fn conv_bn_train(
    xs: &Tensor,
    (weight, bias): (&Tensor, Option<&Tensor>),
    params: Conv2dParams,
    scale: &Scale,
    skip: Option<&Tensor>,
    activation: FusedActivation,
) -> Result<(Tensor, BatchStats)> {
    let g = geometry(xs, weight, bias, params)?;
    check_skip(skip, xs, &g)?;
    let shape = Shape::from((g.b, g.c_out, g.oh, g.ow));
    let pixels = g.b * g.output_plane();
    let (x, w) = (rows(xs)?, in_f32(weight)?);
    let (gamma, beta) = (numbers(scale.weight)?, numbers(scale.bias)?);
    let shift = bias.map(numbers).transpose()?;
    let (conv, mean, var) =
        lend::<bf16, _>(&x, |x| lend::<f32, _>(&w, |w| kernel::forward_with_stats(&g, x, w, shift.as_deref())))??;
    let row = |row: &[f32]| Tensor::from_vec(row.to_vec(), g.c_out, &Device::Cpu);
    let batch = BatchStats { mean: row(&mean)?, var: row(&var)?, count: pixels };
    let norm = Norm {
        weight: scale.weight,
        bias: scale.bias,
        mean: &batch.mean,
        var: &batch.var,
        eps: scale.eps,
        through_stats: true,
    };
    norm.check(shape.dims())?;
    let by = Coefficients::new(&gamma, &beta, (&mean, &var), scale.eps, true);
    let ys = match skip {
        Some(skip) => {
            with_rows(&[skip], |all| Ok(affine(&conv, g.c_out, &by.scale, &by.shift, Some(all[0]), activation)))?
        }
        None => affine(&conv, g.c_out, &by.scale, &by.shift, None, activation),
    };
    let ys = map(ys, &shape)?;
    let mut inputs = vec![xs, weight, scale.weight, scale.bias];
    inputs.extend(skip);
    inputs.extend(bias);
    // Without a shortcut the activation's input follows from the convolution's output; with one, its output has to be
    // kept.
    let output = skip.is_some().then(|| ys.clone());
    let (wants_dx, wants_dw, has_bias) = (tracks(xs), tracks(weight), bias.is_some());
    let (x_shape, w_shape) = (xs.shape().clone(), weight.shape().clone());
    tape::push("conv_bn", &inputs, &ys, move |grad| {
        let cuts = activation != FusedActivation::None;
        let (sums, dy, passed) = with_rows(&[&grad.tensor], |all| {
            let grad = all[0];
            let run = |output: Option<&[bf16]>, conv: Vec<bf16>| {
                let keep = output.is_some() && cuts;
                let (sums, passed) = gradient_sums(&conv, output.filter(|_| cuts), grad, &by, activation, keep);
                let behind = InputGrad::new(&by, &sums, pixels, activation);
                let dy = match &passed {
                    Some(passed) => behind.of_passed().over_rows(conv, None, passed),
                    None => behind.over_rows(conv, None, grad),
                };
                (sums, dy, passed)
            };
            match &output {
                Some(output) => with_rows(&[output], |all| Ok(run(Some(all[0]), conv))),
                None => Ok(run(None, conv)),
            }
        })?;
        let has_skip = output.is_some();
        drop(output);
        // The gradient of the input is as large as the one that came in, which is not needed any more: it goes first.
        let skip = match passed {
            Some(passed) => {
                drop(grad);
                Some(Gradient::new(map(passed, &shape)?))
            }
            None => has_skip.then_some(Gradient { owned: false, ..grad }),
        };
        let dw = wants_dw.then(|| lend::<bf16, _>(&x, |x| kernel::weight_grad(&g, x, &dy))).transpose()?;
        drop(x);
        let dx = wants_dx.then(|| lend::<f32, _>(&w, |w| kernel::input_grad(&g, &dy, w))).transpose()?;
        let dx = dx.map(|dx| map(dx, &x_shape)).transpose()?;
        let row = |row: Vec<f32>| -> Result<Option<Gradient>> {
            Ok(Some(Gradient::new(Tensor::from_vec(row, g.c_out, &Device::Cpu)?)))
        };
        let dw = dw.map(|dw| Tensor::from_vec(dw, w_shape, &Device::Cpu)).transpose()?;
        let mut all = vec![dx.map(Gradient::new), dw.map(Gradient::new), row(sums.weight)?, row(sums.bias)?];
        all.extend(skip.map(Some));
        if has_bias {
            all.push(row(bias_kernel::gradient(&dy, g.c_out))?);
        }
        Ok(all)
    });
    Ok((ys, batch))
}

/// Evaluation, off every graph: y = act(conv(x, weight · s) + bias' + skip) with s = γ / √(σ² + eps).
pub(crate) fn conv_bn_eval(
    xs: &Tensor,
    (weight, bias): (&Tensor, Option<&Tensor>),
    params: Conv2dParams,
    norm: &Norm,
    skip: Option<&Tensor>,
    activation: FusedActivation,
) -> Result<Tensor> {
    let g = geometry(xs, weight, bias, params)?;
    let shape = Shape::from((g.b, g.c_out, g.oh, g.ow));
    norm.check(shape.dims())?;
    check_skip(skip, xs, &g)?;
    let read = [weight, norm.weight, norm.mean];
    let prepared = || -> Result<Folded> {
        let by = norm.mixed_coefficients()?;
        let mut shift = by.shift;
        if let Some(bias) = bias {
            let bias = numbers(bias)?;
            shift.iter_mut().zip(bias).zip(&by.scale).for_each(|((shift, bias), scale)| *shift += bias * scale);
        }
        let conv = lend::<f32, _>(&in_f32(weight)?, |w| kernel::Forward::new(&g, w, Some(&by.scale)))?;
        Ok(Folded { conv, shift, _read: read.map(Tensor::clone) })
    };
    let key = [g.b, g.h, g.w, g.oh, g.ow, place(norm.weight), place(norm.mean)];
    let folded = pass::prepared(place(weight), &key, prepared)?;
    let run = |skip: Option<&[bf16]>| {
        let finish = Finish { skip, activation, ..Finish::bias(Some(&folded.shift)) };
        with_rows(&[xs], |all| Ok(folded.conv.run(all[0], &finish)))
    };
    let ys = match skip {
        Some(skip) => with_rows(&[skip], |all| run(Some(all[0])))?,
        None => run(None)?,
    };
    map(ys, &shape)
}

/// A convolution with a normalisation folded into it.
struct Folded {
    conv: kernel::Forward,
    shift: Vec<f32>,
    /// Their places are theirs as long as these are kept.
    _read: [Tensor; 3],
}

/// A weight in f32: itself, if it is that.
pub(super) fn in_f32(weight: &Tensor) -> Result<Tensor> {
    weight.detach().to_dtype(DType::F32)?.contiguous()
}

/// A weight's elements, in f32.
pub(super) fn numbers(weight: &Tensor) -> Result<Vec<f32>> {
    in_f32(weight)?.flatten_all()?.to_vec1()
}

/// Lends the elements of a tensor that is contiguous.
pub(super) fn lend<T: WithDType, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> R) -> Result<R> {
    with_elements::<T, _>("conv_bn", &[tensor], |all| Ok(f(all[0])))
}

//! Convolution, batch normalisation, the sum with a shortcut and an activation as one operation.
//!
//! In training, on the tape: y = act(norm(conv(x)) + skip) keeps the convolution's output for the backward pass, which
//! writes its gradient over it. In evaluation the normalisation is folded into the weights and the whole is one
//! convolution.

use crate::kernels::batch_norm::{self as norm_kernel, CutBy, InputGrad};
use crate::kernels::conv::{self as kernel, Epilogue, Geometry};
use crate::kernels::fused_activation::FusedActivation;
use crate::ops::batch_norm::{BatchStats, Norm};
use crate::ops::conv2d::geometry;
use crate::ops::{Conv2dParams, Real, for_dtype, read, tensor};
use crate::pass::tracks;
use crate::tape::{self, Gradient};
use candle_core::{Result, Shape, Tensor, WithDType, bail};
use std::ops::Range;

/// The affine part of a normalisation that has no statistics yet.
pub(crate) struct Scale<'a> {
    pub weight: &'a Tensor,
    pub bias: &'a Tensor,
    pub eps: f64,
}

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
    for_dtype!("conv_bn", xs.dtype(), T => train::<T>(xs, (weight, bias), g, scale, skip, activation))
}

fn train<T: Real>(
    xs: &Tensor,
    (weight, bias): (&Tensor, Option<&Tensor>),
    g: Geometry,
    scale: &Scale,
    skip: Option<&Tensor>,
    activation: FusedActivation,
) -> Result<(Tensor, BatchStats)> {
    let (xs, weight) = (&tape::contiguous(xs)?, &weight.contiguous()?);
    let skip = skip.map(tape::contiguous).transpose()?;
    let dims = (g.b, g.c_out, g.output_plane());
    let shape = Shape::from((g.b, g.c_out, g.oh, g.ow));
    let conv_bias = bias.map(|bias| bias.to_vec1::<T>()).transpose()?;
    let forward = |x: &[T], w: &[T]| kernel::forward_with_stats(&g, x, w, conv_bias.as_deref());
    let (conv, stats) = read::<T, _>(xs, |x| read::<T, _>(weight, |w| forward(x, w)))??;
    let (mean, var) = {
        let (mean, var) = stats.split_at(g.c_out);
        (tensor(mean.to_vec(), g.c_out)?, tensor(var.to_vec(), g.c_out)?)
    };
    let batch = BatchStats { mean: mean.clone(), var: var.clone(), count: dims.0 * dims.2 };
    let (gamma, beta) = (scale.weight, scale.bias);
    let norm = Norm { weight: gamma, bias: beta, mean: &mean, var: &var, eps: scale.eps, through_stats: true };
    norm.check(shape.dims())?;
    let rows = norm.coefficients::<T>()?;
    let ys = match &skip {
        Some(skip) => {
            read::<T, _>(skip, |skip| norm_kernel::affine(dims, &conv, rows.affine(), Some(skip), activation))?
        }
        None => norm_kernel::affine(dims, &conv, rows.affine(), None, activation),
    };
    let ys = tensor(ys, shape.clone())?;
    let mut inputs = vec![xs, weight, gamma, beta];
    inputs.extend(skip.as_ref());
    inputs.extend(bias);
    let has_bias = bias.is_some();
    // Without a shortcut the activation's input follows from the convolution's output; with one, its output has to be
    // kept.
    let output = skip.is_some().then(|| ys.clone());
    let (x, w) = (xs.clone(), weight.clone());
    tape::push("conv_bn", &inputs, &ys, move |grad| {
        let (wants_dx, wants_dw) = (tracks(&x), tracks(&w));
        // What comes behind the norm: its input gradient, written over the convolution's output, and the convolution's.
        let behind = |mut conv: Vec<T>, grad: &[T], by: &InputGrad<T>, activation: (FusedActivation, CutBy<T>)| {
            let (mut dx, mut dw) = (None, None);
            read::<T, _>(&x, |x| {
                read::<T, _>(&w, |w| match kernel::images_at_once(&g, w).filter(|_| wants_dw) {
                    Some(images) => {
                        let (c, image) = (dims.1, dims.1 * dims.2);
                        let finish = |part: Range<usize>, conv: &mut [T]| {
                            let places = part.start * image..part.end * image;
                            let activation = (activation.0, activation.1.part(places.clone()));
                            norm_kernel::input_grad_over((part.len(), c, dims.2), conv, &grad[places], by, activation);
                        };
                        let both = kernel::gradients_by_images(&g, (x, w), &mut conv, (images, wants_dx), finish);
                        (dx, dw) = (both.0, Some(both.1));
                    }
                    None => {
                        norm_kernel::input_grad_over(dims, &mut conv, grad, by, activation);
                        dw = wants_dw.then(|| kernel::weight_grad(&g, x, &conv));
                        dx = wants_dx.then(|| kernel::input_grad(&g, &conv, w));
                    }
                })
            })??;
            Ok::<_, candle_core::Error>((conv, dx, dw))
        };
        let grads = |output: Option<&[T]>| {
            read::<T, _>(&grad.tensor, |grad| {
                rows.gradients(dims, conv, grad, (activation, output), output.is_some(), behind)
            })
        };
        let (behind, grads) = match &output {
            Some(output) => read::<T, _>(output, |output| grads(Some(output)))??,
            None => grads(None)?,
        };
        let (dy, dx, dw) = behind?;
        let skip = match grads.skip {
            Some(skip) => Gradient::new(tensor(skip, shape)?),
            None => Gradient { owned: false, ..grad },
        };
        let has_skip = output.is_some();
        drop(output);
        let row = |row: Vec<T>| -> Result<Option<Gradient>> { Ok(Some(Gradient::new(tensor(row, g.c_out)?))) };
        let gradient = |values: Option<Vec<T>>, like: &Tensor| -> Result<Option<Gradient>> {
            values.map(|values| Ok(Gradient::new(tensor(values, like.shape())?))).transpose()
        };
        let (dx, dw) = (gradient(dx, &x)?, gradient(dw, &w)?);
        let mut all = vec![dx, dw, row(grads.weight)?, row(grads.bias)?];
        all.extend(has_skip.then_some(Some(skip)));
        if has_bias {
            all.push(row(kernel::bias_grad(&g, &dy))?);
        }
        Ok(all)
    });
    Ok((ys, batch))
}

/// A shortcut is of the convolution's output shape and of the input's type.
pub(super) fn check_skip(skip: Option<&Tensor>, xs: &Tensor, g: &Geometry) -> Result<()> {
    match skip {
        Some(skip) if skip.dims() != [g.b, g.c_out, g.oh, g.ow] || skip.dtype() != xs.dtype() => bail!(
            "conv_bn: a shortcut of {:?} {:?} cannot be added to an output of {:?} {:?}",
            skip.dims(),
            skip.dtype(),
            [g.b, g.c_out, g.oh, g.ow],
            xs.dtype()
        ),
        _ => Ok(()),
    }
}

/// Evaluation, off every graph: y = act(conv(x, weight · s) + bias' + skip) with s = γ / √(σ² + eps).
pub(crate) fn conv_bn_eval(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    params: Conv2dParams,
    norm: &Norm,
    skip: Option<&Tensor>,
    activation: FusedActivation,
) -> Result<Tensor> {
    let g = geometry(xs, weight, bias, params)?;
    let shape = Shape::from((g.b, g.c_out, g.oh, g.ow));
    norm.check(shape.dims())?;
    check_skip(skip, xs, &g)?;
    let (xs, weight) = (xs.contiguous()?, weight.contiguous()?);
    let skip = skip.map(Tensor::contiguous).transpose()?;
    for_dtype!("conv_bn", xs.dtype(), T => {
        let rows = norm.coefficients::<T>()?;
        let bias = bias.map(|bias| bias.to_vec1::<T>()).transpose()?.unwrap_or_else(|| vec![T::from_f64(0.0); g.c_out]);
        let shift: Vec<T> = (0..g.c_out).map(|c| rows.shift[c] + (bias[c] - rows.mean[c]) * rows.scale[c]).collect();
        let run = |skip: Option<&[T]>| {
            let finish = Epilogue::fold_batch_norm(Some(&rows.scale), Some(&shift), skip, activation).allow_winograd(true);
            read::<T, _>(&xs, |x| read::<T, _>(&weight, |w| kernel::forward(&g, x, w, &finish)))?
        };
        let ys = match &skip {
            Some(skip) => read::<T, _>(skip, |skip| run(Some(skip)))??,
            None => run(None)?,
        };
        tensor(ys, shape)
    })
}

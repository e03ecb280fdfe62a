//! act₂(norm₂(conv(act₁(norm₁(x))))) of bfloat16 maps x that stand one behind the other and are never put together, with a
//! convolution of single taps: what a layer of a dense block begins with (Huang et al. 2016, arXiv:1608.06993, "bottleneck
//! layers"). The tape keeps the convolution's output alone.

use super::concat_norm::ConcatView;
use super::conv_bn::Scale;
use super::conv_bn_mixed::{in_f32, lend, numbers};
use crate::kernels::bf16::concat_norm::Maps;
use crate::kernels::bf16::dense_unit::{Unit, right_side};
use crate::kernels::bf16::norm::{Coefficients, InputGrad, affine, gradient_sums};
use crate::kernels::bf16::{Finish, mean_and_var};
use crate::kernels::fused_activation::FusedActivation;
use crate::ops::batch_norm::{BatchStats, Norm};
use crate::ops::{Conv2dParams, with_elements};
use crate::pass::{self, tracks};
use crate::storage::{map, place, rows, with_rows};
use crate::tape::{self, Gradient};
use candle_core::{DType, Device, Result, Tensor, bail};
use half::bf16;

/// Whether maps and convolution are those that this operation is for.
pub(crate) fn fits(maps: &ConcatView, weight: &Tensor, bias: Option<&Tensor>, params: Conv2dParams) -> bool {
    let channels: Option<usize> = maps.iter().map(|(xs, _)| xs.dims().get(1)).sum();
    let one_tap = matches!(weight.dims(), [_, c, 1, 1] if Some(*c) == channels) && params == Conv2dParams::default();
    maps.first().is_some_and(|(xs, _)| xs.dtype() == DType::BF16) && one_tap && bias.is_none()
}

/// The dimensions of the output, and the channels of each map.
fn dims(maps: &[&Tensor], weight: &Tensor) -> Result<([usize; 4], Vec<usize>)> {
    let Some(first) = maps.first() else { bail!("dense_unit: no map to normalise") };
    let (b, _, h, w) = first.dims4()?;
    if let Some(other) = maps.iter().find(|xs| !matches!(xs.dims(), [n, _, y, x] if [*n, *y, *x] == [b, h, w])) {
        bail!("dense_unit: maps of {:?} and {:?} cannot stand side by side", first.dims(), other.dims())
    }
    Ok(([b, weight.dim(0)?, h, w], maps.iter().map(|xs| xs.dim(1)).collect::<Result<_>>()?))
}

/// Training, on the tape: the output, and the batch's statistics of the convolution's output, which the caller moves the
/// running ones with.
pub(crate) fn dense_unit_train(
    maps: &[&Tensor],
    (first, cut_first): (&Norm, FusedActivation),
    weight: &Tensor,
    second: &Scale,
    activation: FusedActivation,
) -> Result<(Tensor, BatchStats)> {
    let (dims, widths) = dims(maps, weight)?;
    let [b, outputs, h, w] = dims;
    let (pixels, c) = (b * h * w, widths.iter().sum::<usize>());
    first.check(&[b, c, h, w])?;
    if let Some(row) = [second.weight, second.bias].into_iter().find(|row| row.dims() != [outputs]) {
        bail!("dense_unit: {outputs} outputs want a norm of as many channels, got {:?}", row.dims())
    }
    let by = first.mixed_coefficients()?;
    let numbers_of_weight = in_f32(weight)?;
    let forward = |w: &[f32]| {
        with_rows(maps, |all| {
            let unit = Unit::new(Maps::new(all, &widths), &by, cut_first, outputs);
            Ok(unit.forward(&right_side(w, outputs, None), &Finish { with_sums: true, ..Finish::bias(None) }))
        })
    };
    let (conv, sums) = lend::<f32, _>(&numbers_of_weight, forward)??;
    let (mean, var) = mean_and_var(&sums, pixels);
    let (gamma, beta) = (numbers(second.weight)?, numbers(second.bias)?);
    let behind = Coefficients::new(&gamma, &beta, (&mean, &var), second.eps, true);
    let row = |row: Vec<f32>| Tensor::from_vec(row, outputs, &Device::Cpu);
    let batch = BatchStats { mean: row(mean)?, var: row(var)?, count: pixels };
    let shape = (b, outputs, h, w).into();
    let ys = map(affine(&conv, outputs, &behind.scale, &behind.shift, None, activation), &shape)?;
    let mut inputs = maps.to_vec();
    inputs.extend([first.weight, first.bias, weight, second.weight, second.bias]);
    let saved: Vec<Tensor> = inputs.iter().map(|&input| input.clone()).collect();
    tape::push_accumulating("dense_unit", &inputs, &ys, move |grad, earlier| {
        let (maps, weights) = saved.split_at(widths.len());
        let (sums, dy) = with_rows(&[&grad.tensor], |all| {
            let (sums, _) = gradient_sums(&conv, None, all[0], &behind, activation, false);
            let by = InputGrad::new(&behind, &sums, pixels, activation);
            Ok((sums, by.over_rows(conv, None, all[0])))
        })?;
        drop(grad);
        let wanted: Vec<bool> = maps.iter().map(tracks).collect();
        let sent = earlier[..maps.len()].iter().flatten().map(|sent| rows(&sent.tensor)).collect::<Result<Vec<_>>>()?;
        let backward = |w: &[f32], all: &[&[bf16]], sent: &[&[bf16]]| {
            let mut sent = sent.iter().copied();
            let earlier: Vec<Option<&[bf16]>> =
                earlier[..maps.len()].iter().map(|earlier| earlier.as_ref().and_then(|_| sent.next())).collect();
            let unit = Unit::new(Maps::new(all, &widths), &by, cut_first, outputs);
            let (dw, of_norm) = unit.gradient_sums(w, &dy);
            let through = InputGrad::new(&by, &of_norm, pixels, cut_first);
            (dw, unit.input_grads(w, &dy, &through, &earlier, &wanted), of_norm)
        };
        let (dw, grads, of_norm) = with_rows(&maps.iter().collect::<Vec<_>>(), |all| {
            with_elements("dense_unit", &sent.iter().collect::<Vec<_>>(), |sent| {
                lend::<f32, _>(&numbers_of_weight, |w| backward(w, all, sent))
            })
        })?;
        let mut earlier = earlier.into_iter();
        let mut all = Vec::with_capacity(saved.len());
        for ((made, xs), earlier) in grads.into_iter().zip(maps).zip(earlier.by_ref()) {
            all.push(match made {
                Some(made) => Some(Gradient::new(map(made, xs.shape())?)),
                None => earlier,
            });
        }
        let made = [of_norm.weight, of_norm.bias, dw, sums.weight, sums.bias];
        for ((made, of), earlier) in made.into_iter().zip(weights).zip(earlier) {
            let made = Gradient::new(Tensor::from_vec(made, of.shape(), &Device::Cpu)?.to_dtype(of.dtype())?);
            all.push(Some(match earlier {
                Some(earlier) => earlier.add(made)?,
                None => made,
            }));
        }
        Ok(all)
    });
    Ok((ys, batch))
}

/// Evaluation, off every graph, with the second normalisation folded into the weights.
pub(crate) fn dense_unit_eval(
    maps: &[&Tensor],
    (first, cut_first): (&Norm, FusedActivation),
    weight: &Tensor,
    second: &Norm,
    activation: FusedActivation,
) -> Result<Tensor> {
    /// What is prepared of the weights.
    struct Folded {
        first: Coefficients,
        side: Vec<bf16>,
        shift: Vec<f32>,
        /// Their places are theirs as long as these are kept.
        _read: [Tensor; 5],
    }
    let ([b, outputs, h, w], widths) = dims(maps, weight)?;
    first.check(&[b, widths.iter().sum(), h, w])?;
    second.check(&[b, outputs, h, w])?;
    let read = [weight, first.weight, first.mean, second.weight, second.mean];
    let prepared = || {
        let behind = second.mixed_coefficients()?;
        let side = lend::<f32, _>(&in_f32(weight)?, |w| right_side(w, outputs, Some(&behind.scale)))?;
        Ok(Folded { first: first.mixed_coefficients()?, side, shift: behind.shift, _read: read.map(Tensor::clone) })
    };
    let folded = pass::prepared(place(weight), &read.map(place), prepared)?;
    let ys = with_rows(maps, |all| {
        let unit = Unit::new(Maps::new(all, &widths), &folded.first, cut_first, outputs);
        Ok(unit.forward(&folded.side, &Finish { activation, ..Finish::bias(Some(&folded.shift)) }).0)
    })?;
    map(ys, &(b, outputs, h, w).into())
}

//! Batch normalisation of maps that stand one behind the other along the channels and are never put together: what a
//! dense block reads (Huang et al. 2016, arXiv:1608.06993). A channel's statistics are its own, so they are those of
//! its map, made once; the normalised maps are written side by side, for the convolution that reads them; and a
//! gradient is added to those that the block's later layers have sent.

use crate::kernels::batch_norm::{self as kernel, Affine, Coefficients, CutBy, InputGrad, Sums, Window};
use crate::kernels::bf16::concat_norm::Maps;
use crate::kernels::bf16::norm as mixed;
use crate::kernels::buffer::written_by_tasks;
use crate::kernels::fused_activation::FusedActivation;
use crate::ops::batch_norm::{BatchStats, Norm, batch_stats};
use crate::ops::{Real, elements, elements_mut, for_dtype, read, tensor, with_elements};
use crate::pass::tracks;
use crate::storage::{map, rows, with_rows};
use crate::tape::{self, Gradient};
use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Result, Tensor, bail};
use half::bf16;

/// Maps that stand one behind the other along the channels and are not put together, in training with their statistics.
pub(crate) type ConcatView = Vec<(Tensor, Option<BatchStats>)>;

/// The statistics of all maps, one behind the other.
pub(crate) fn concat_stats(maps: &ConcatView) -> Result<BatchStats> {
    let (mut means, mut vars, mut count) = (Vec::new(), Vec::new(), 0);
    for (xs, stats) in maps {
        let stats = stats.clone().map_or_else(|| batch_stats(xs), Ok)?;
        means.push(stats.mean);
        vars.push(stats.var);
        count = stats.count;
    }
    Ok(BatchStats { mean: Tensor::cat(&means, 0)?, var: Tensor::cat(&vars, 0)?, count })
}

/// activation((x - μ) / √(σ² + eps) · weight + bias) of `maps`, each (b, cᵢ, h, w), as one tensor (b, Σ cᵢ, h, w); the
/// norm's tensors are of Σ cᵢ channels. On the tape, or without a graph.
pub(crate) fn concat_norm(maps: &[&Tensor], norm: &Norm, activation: FusedActivation) -> Result<Tensor> {
    let Some(first) = maps.first() else { bail!("batch_norm: no map to normalise") };
    let (b, _, h, w) = first.dims4()?;
    let widths: Vec<usize> = maps.iter().map(|xs| xs.dim(1)).collect::<Result<_>>()?;
    if let Some(other) = maps.iter().find(|xs| xs.dims4().is_ok_and(|(n, _, y, x)| (n, y, x) != (b, h, w))) {
        bail!("batch_norm: maps of {:?} and {:?} cannot stand side by side", first.dims(), other.dims())
    }
    let dims = [b, widths.iter().sum(), h, w];
    norm.check(&dims)?;
    if first.dtype() == DType::BF16 {
        return run_mixed(maps, widths, dims, norm, activation);
    }
    for_dtype!("batch_norm", first.dtype(), T => {
        let maps = maps.iter().map(|xs| tape::contiguous(xs)).collect::<Result<Vec<_>>>()?;
        run::<T>(maps, widths, dims, norm, activation)
    })
}

fn run<T: Real>(
    maps: Vec<Tensor>,
    widths: Vec<usize>,
    [b, c, h, w]: [usize; 4],
    norm: &Norm,
    activation: FusedActivation,
) -> Result<Tensor> {
    let parts = Parts { b, s: h * w, widths, activation, rows: norm.coefficients::<T>()? };
    let ys = tensor(parts.forward(&maps)?, (b, c, h, w))?;
    let (weight, bias) = (norm.weight.contiguous()?, norm.bias.contiguous()?);
    let inputs: Vec<&Tensor> = maps.iter().chain([&weight, &bias]).collect();
    let owned = maps.clone();
    tape::push_accumulating("batch_norm", &inputs, &ys, move |grad, earlier| parts.backward(&owned, grad, earlier));
    Ok(ys)
}

/// [`concat_norm`] of bfloat16 maps.
fn run_mixed(
    maps: &[&Tensor],
    widths: Vec<usize>,
    [b, c, h, w]: [usize; 4],
    norm: &Norm,
    activation: FusedActivation,
) -> Result<Tensor> {
    let by = norm.mixed_coefficients()?;
    let ys = with_rows(maps, |all| Ok(Maps::new(all, &widths).affine(&by, activation)))?;
    let ys = map(ys, &(b, c, h, w).into())?;
    let inputs: Vec<&Tensor> = maps.iter().copied().chain([norm.weight, norm.bias]).collect();
    let owned: Vec<Tensor> = maps.iter().map(|&xs| xs.clone()).collect();
    let types = [norm.weight.dtype(), norm.bias.dtype()];
    tape::push_accumulating("batch_norm", &inputs, &ys, move |grad, mut earlier| {
        let of_weights = earlier.split_off(owned.len());
        let wanted: Vec<bool> = owned.iter().map(tracks).collect();
        let earlier_rows = earlier.iter().flatten().map(|earlier| rows(&earlier.tensor)).collect::<Result<Vec<_>>>()?;
        let mut tensors: Vec<&Tensor> = vec![&grad.tensor];
        tensors.extend(&owned);
        let (sums, grads) = with_rows(&tensors, |all| {
            with_elements("batch_norm", &earlier_rows.iter().collect::<Vec<_>>(), |sent| {
                let mut sent = sent.iter().copied();
                let earlier: Vec<Option<&[bf16]>> =
                    earlier.iter().map(|earlier| earlier.as_ref().and_then(|_| sent.next())).collect();
                let (maps, grad) = (Maps::new(&all[1..], &widths), all[0]);
                let sums = maps.gradient_sums(grad, &by, activation);
                let dx = mixed::InputGrad::new(&by, &sums, b * h * w, activation);
                Ok((sums, maps.input_grads(grad, &dx, &earlier, &wanted)))
            })
        })?;
        let mut all = Vec::with_capacity(owned.len() + 2);
        for ((made, xs), earlier) in grads.into_iter().zip(&owned).zip(earlier) {
            all.push(match made {
                Some(made) => Some(Gradient::new(map(made, xs.shape())?)),
                None => earlier,
            });
        }
        for ((row, dtype), earlier) in [sums.weight, sums.bias].into_iter().zip(types).zip(of_weights) {
            let row = Gradient::new(tensor(row, c)?.to_dtype(dtype)?);
            all.push(Some(match earlier {
                Some(earlier) => earlier.add(row)?,
                None => row,
            }));
        }
        Ok(all)
    });
    Ok(ys)
}

/// The maps' places in the whole tensor, and the normalisation.
struct Parts<T> {
    b: usize,
    /// Pixels of a plane.
    s: usize,
    /// Channels of each map.
    widths: Vec<usize>,
    activation: FusedActivation,
    rows: Coefficients<T>,
}

impl<T: Real> Parts<T> {
    fn window(&self, part: usize) -> Window {
        Window { first: self.widths[..part].iter().sum(), of: self.widths.iter().sum() }
    }

    fn dims(&self, part: usize) -> kernel::Dims {
        (self.b, self.widths[part], self.s)
    }

    fn affine(&self, part: usize) -> Affine<'_, T> {
        let first = self.window(part).first;
        let own = first..first + self.widths[part];
        let Coefficients { mean, scale, shift, .. } = &self.rows;
        Affine { mean: &mean[own.clone()], scale: &scale[own.clone()], shift: &shift[own] }
    }

    fn forward(&self, maps: &[Tensor]) -> Result<Vec<T>> {
        let total = self.b * self.s * self.widths.iter().sum::<usize>();
        with_elements("batch_norm", &maps.iter().collect::<Vec<_>>(), |maps| {
            let write = |ys| {
                for (part, xs) in maps.iter().enumerate() {
                    let (by, into) = (self.affine(part), (ys, self.window(part)));
                    // SAFETY: the output holds all channels, of which the window is a part.
                    unsafe { kernel::affine_into(self.dims(part), xs, by, None, self.activation, into) };
                }
            };
            // SAFETY: the windows of all maps cover the output.
            Ok(unsafe { written_by_tasks(total, write) })
        })
    }

    /// For each map, and for weight and bias, the gradient with what came `earlier`.
    fn backward(
        &self,
        maps: &[Tensor],
        grad: Gradient,
        earlier: Vec<Option<Gradient>>,
    ) -> Result<Vec<Option<Gradient>>> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        let mut all = Vec::with_capacity(maps.len() + 2);
        let mut earlier = earlier.into_iter();
        for (part, xs) in maps.iter().enumerate() {
            let (dims, window, affine) = (self.dims(part), self.window(part), self.affine(part));
            let activation = (self.activation, CutBy::Input(affine));
            let (sums, _) = read::<T, _>(&grad.tensor, |grad| {
                read::<T, _>(xs, |xs| kernel::grad_sums(dims, xs, (grad, window), affine.mean, activation, false))
            })??;
            let Sums { weight: dw, bias: db, b, d } = self.rows.sums(dims, window.first, &sums);
            weight.extend(dw);
            bias.extend(db);
            let earlier = earlier.next().flatten();
            if !tracks(xs) {
                all.push(earlier);
                continue;
            }
            let rest = self.rows.through_stats.then_some((b.as_slice(), d.as_slice()));
            let by = InputGrad { mean: affine.mean, a: affine.scale, rest };
            all.push(Some(match earlier {
                Some(to) if to.owned && to.tensor.is_contiguous() => {
                    to.tensor.inplace_op2(&grad.tensor, &AddInputGrad { xs, dims, window, by, activation })?;
                    to
                }
                earlier => {
                    let dx = read::<T, _>(&grad.tensor, |grad| {
                        read::<T, _>(xs, |xs| kernel::input_grad(dims, xs, (grad, window), &by, activation))
                    })??;
                    let dx = Gradient::new(tensor(dx, xs.shape())?);
                    match earlier {
                        Some(earlier) => earlier.add(dx)?,
                        None => dx,
                    }
                }
            }));
        }
        for row in [weight, bias] {
            let row = Gradient::new(tensor(row, self.rows.mean.len())?);
            all.push(Some(match earlier.next().flatten() {
                Some(earlier) => earlier.add(row)?,
                None => row,
            }));
        }
        Ok(all)
    }
}

/// The gradient of a map is added to the first tensor, from the window of the second.
struct AddInputGrad<'a, T> {
    xs: &'a Tensor,
    dims: kernel::Dims,
    window: Window,
    by: InputGrad<'a, T>,
    activation: (FusedActivation, CutBy<'a, T>),
}

impl<T: Real> InplaceOp2 for AddInputGrad<'_, T> {
    fn name(&self) -> &'static str {
        "batch_norm gradient in place"
    }

    fn cpu_fwd(&self, to: &mut CpuStorage, to_layout: &Layout, grad: &CpuStorage, layout: &Layout) -> Result<()> {
        let grad = elements::<T>(self.name(), grad, layout)?;
        let (Some((start, end)), Some(to)) = (to_layout.contiguous_offsets(), elements_mut::<T>(to)) else {
            bail!("{}: wants contiguous tensors of one type, got strides {:?}", self.name(), to_layout.stride())
        };
        let to = &mut to[start..end];
        read::<T, _>(self.xs, |xs| {
            kernel::add_input_grad(self.dims, xs, to, (grad, self.window), &self.by, self.activation);
        })
    }
}

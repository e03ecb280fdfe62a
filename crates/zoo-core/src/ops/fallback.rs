//! The same operations out of candle's own ops, for devices and element types without a kernel of ours.
//!
//! Candle's convolution has a right gradient; its pools do not, and its ReLU has the wrong derivative at 0, so those
//! are built from selections whose gradients are right. The tests run every function here on the CPU against PyTorch's
//! values, exactly as they do the kernels.

use crate::kernels::conv::Conv2dParams;
use crate::kernels::pointwise::{GELU_TANH, Pointwise};
use crate::kernels::pool::Window;
use candle_core::{D, Result, Tensor};

/// Candle's convolution knows one stride, padding and dilation for both directions, and its gradient takes the rows
/// that the last window leaves unread for the unread columns as well: right where the two are equal. Elsewhere the
/// image is padded and cut to what is read by hand; where the directions differ, the kernel is spread and the strided
/// outputs are selected from the dense ones.
pub(crate) fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, params: Conv2dParams) -> Result<Tensor> {
    let Conv2dParams { stride, padding, dilation, groups } = params;
    let (_, _, h, w) = xs.dims4()?;
    let (_, _, kh, kw) = weight.dims4()?;
    // What all windows together read of the padded image, and what they leave.
    let read = |n: usize, k: usize, s: usize, p: usize, d: usize| {
        let window = d * (k - 1) + 1;
        (n + 2 * p - window) / s * s + window
    };
    let rows = read(h, kh, stride.0, padding.0, dilation.0);
    let cols = read(w, kw, stride.1, padding.1, dilation.1);
    let square = stride.0 == stride.1 && dilation.0 == dilation.1;
    let ys = if square && padding.0 == padding.1 && h + 2 * padding.0 - rows == w + 2 * padding.1 - cols {
        xs.conv2d(weight, padding.0, stride.0, dilation.0, groups)?
    } else {
        let xs = xs.pad_with_zeros(2, padding.0, padding.0)?.pad_with_zeros(3, padding.1, padding.1)?;
        let xs = xs.narrow(2, 0, rows)?.narrow(3, 0, cols)?.contiguous()?;
        if square {
            xs.conv2d(weight, 0, stride.0, dilation.0, groups)?
        } else {
            let weight = spread(&spread(weight, 2, dilation.0)?, 3, dilation.1)?;
            let dense = xs.conv2d(&weight, 0, 1, 1, groups)?;
            every(&every(&dense, 2, stride.0)?, 3, stride.1)?
        }
    };
    match bias {
        Some(bias) => ys.broadcast_add(&bias.reshape((1, bias.elem_count(), 1, 1))?),
        None => Ok(ys),
    }
}

/// Puts `step - 1` zeros between neighbours along `dim`.
fn spread(xs: &Tensor, dim: usize, step: usize) -> Result<Tensor> {
    if step == 1 {
        return Ok(xs.clone());
    }
    let mut dims = xs.dims().to_vec();
    let n = dims[dim];
    dims[dim] = n * step;
    xs.unsqueeze(dim + 1)?.pad_with_zeros(dim + 1, 0, step - 1)?.reshape(dims)?.narrow(dim, 0, (n - 1) * step + 1)
}

/// Elements 0, step, 2·step, … along `dim`.
fn every(xs: &Tensor, dim: usize, step: usize) -> Result<Tensor> {
    if step == 1 {
        return Ok(xs.clone());
    }
    select(xs, dim, 0, step, xs.dim(dim)?.div_ceil(step))
}

/// `count` elements along `dim`, from `start` in steps of `step`.
fn select(xs: &Tensor, dim: usize, start: usize, step: usize, count: usize) -> Result<Tensor> {
    let indices: Vec<u32> = (0..count).map(|i| (start + i * step) as u32).collect();
    xs.contiguous()?.index_select(&Tensor::from_vec(indices, count, xs.device())?, dim)
}

pub(crate) fn linear(rows: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let ys = rows.matmul(&weight.t()?)?;
    match bias {
        Some(bias) => ys.broadcast_add(bias),
        None => Ok(ys),
    }
}

/// The elements under each tap of the window, stacked on a new last dimension: (b, c, oh, ow, kh·kw). Outside the image
/// stands `fill`.
fn windows(xs: &Tensor, w: &Window, fill: f64) -> Result<Tensor> {
    let pad = |xs: Tensor, dim: usize, before: usize, needed: usize| -> Result<Tensor> {
        let after = needed.saturating_sub(before + xs.dim(dim)?);
        let filled = |n: usize| -> Result<Tensor> {
            let mut dims = xs.dims().to_vec();
            dims[dim] = n;
            Tensor::full(fill, dims, xs.device())?.to_dtype(xs.dtype())
        };
        match (before, after) {
            (0, 0) => Ok(xs),
            _ => Tensor::cat(&[filled(before)?, xs.clone(), filled(after)?], dim),
        }
    };
    let xs = pad(xs.clone(), 2, w.padding.0, (w.oh - 1) * w.stride.0 + w.kernel.0)?;
    let xs = pad(xs, 3, w.padding.1, (w.ow - 1) * w.stride.1 + w.kernel.1)?;
    let mut taps = Vec::with_capacity(w.kernel.0 * w.kernel.1);
    for ky in 0..w.kernel.0 {
        let rows = select(&xs, 2, ky, w.stride.0, w.oh)?;
        for kx in 0..w.kernel.1 {
            taps.push(select(&rows, 3, kx, w.stride.1, w.ow)?);
        }
    }
    Tensor::stack(&taps, 4)
}

pub(crate) fn max_pool2d(xs: &Tensor, w: &Window) -> Result<Tensor> {
    let windows = windows(xs, w, f64::NEG_INFINITY)?;
    // Gathering the winner sends the whole gradient to it; candle's own maximum would split it among equals.
    let winner = windows.detach().argmax_keepdim(D::Minus1)?;
    windows.gather(&winner, D::Minus1)?.squeeze(D::Minus1)
}

pub(crate) fn avg_pool2d(xs: &Tensor, w: &Window, count_include_pad: bool) -> Result<Tensor> {
    let divisors: Vec<f64> =
        (0..w.oh).flat_map(|oy| (0..w.ow).map(move |ox| w.divisor(oy, ox, count_include_pad) as f64)).collect();
    let divisors = Tensor::from_vec(divisors, (w.oh, w.ow), xs.device())?.to_dtype(xs.dtype())?;
    windows(xs, w, 0.0)?.sum(D::Minus1)?.broadcast_div(&divisors)
}

/// (mean, biased variance) of (b, c, s) over b and s.
pub(crate) fn batch_stats(xs: &Tensor) -> Result<(Tensor, Tensor)> {
    let mean = xs.mean_keepdim((0, 2))?;
    let var = xs.broadcast_sub(&mean)?.sqr()?.mean((0, 2))?;
    Ok((mean.flatten_all()?, var))
}

pub(crate) fn batch_norm(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    (mean, var): (&Tensor, &Tensor),
    eps: f64,
    through_stats: bool,
) -> Result<Tensor> {
    let row = |t: &Tensor| t.to_dtype(xs.dtype())?.reshape((1, t.elem_count(), 1));
    // For the gradient to pass through the statistics they must be on the graph: compute them there.
    let (mean, var) = if through_stats { batch_stats(xs)? } else { (mean.detach(), var.detach()) };
    let inv_std = (row(&var)? + eps)?.sqrt()?.recip()?;
    xs.broadcast_sub(&row(&mean)?)?.broadcast_mul(&inv_std)?.broadcast_mul(&row(weight)?)?.broadcast_add(&row(bias)?)
}

/// Rows (r, n), weight and bias (n).
pub(crate) fn layer_norm(rows: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = rows.broadcast_sub(&rows.mean_keepdim(1)?)?;
    let inv_std = (centred.sqr()?.mean_keepdim(1)? + eps)?.sqrt()?.recip()?;
    centred.broadcast_mul(&inv_std)?.broadcast_mul(weight)?.broadcast_add(bias)
}

pub(crate) fn pointwise(xs: &Tensor, function: Pointwise) -> Result<Tensor> {
    let constant = |value: f64| Tensor::full(value, xs.shape(), xs.device())?.to_dtype(xs.dtype());
    // Selections, not clamps: candle's clamp gives half the gradient at a tie.
    let clamp_six =
        |xs: &Tensor| xs.ge(6.0)?.where_cond(&constant(6.0)?, &xs.le(0.0)?.where_cond(&constant(0.0)?, xs)?);
    let sigmoid = |xs: &Tensor| (xs.neg()?.exp()? + 1.0)?.recip();
    match function {
        Pointwise::Relu => xs.le(0.0)?.where_cond(&constant(0.0)?, xs),
        Pointwise::Relu6 => clamp_six(xs),
        Pointwise::LeakyRelu(slope) => xs.gt(0.0)?.where_cond(xs, &(xs * slope)?),
        // Candle's gelu_erf has six digits of 1/√(2π) in its gradient; its erf has them all.
        Pointwise::Gelu => (xs * 0.5)? * ((xs * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)?,
        Pointwise::GeluTanh => {
            let inner = ((xs + (xs.sqr()? * xs)? * GELU_TANH.1)? * GELU_TANH.0)?.tanh()?;
            (xs * 0.5)? * (inner + 1.0)?
        }
        Pointwise::Silu => xs * sigmoid(xs)?,
        Pointwise::Sigmoid => sigmoid(xs),
        Pointwise::Tanh => xs.tanh(),
        Pointwise::HardSigmoid => clamp_six(&(xs + 3.0)?)? / 6.0,
        Pointwise::HardSwish => (xs * clamp_six(&(xs + 3.0)?)?)? / 6.0,
    }
}

pub(crate) fn cross_entropy(logits: &Tensor, targets: &Tensor, label_smoothing: f64) -> Result<Tensor> {
    let log_probs = candle_nn::ops::log_softmax(logits, D::Minus1)?;
    let on_target = log_probs.gather(&targets.unsqueeze(1)?, 1)?.mean_all()?;
    if label_smoothing == 0.0 {
        return on_target.neg();
    }
    let everywhere = log_probs.mean_all()?;
    (on_target * (label_smoothing - 1.0))? - (everywhere * label_smoothing)?
}

/// Targets (b, classes), weights of the classes.
pub(crate) fn soft_cross_entropy(logits: &Tensor, targets: &Tensor, label_smoothing: f64) -> Result<Tensor> {
    let (b, classes) = logits.dims2()?;
    let mut weights = targets.detach().to_dtype(logits.dtype())?.to_device(logits.device())?;
    if label_smoothing != 0.0 {
        weights = weights.affine(1.0 - label_smoothing, label_smoothing / classes as f64)?;
    }
    let terms = (candle_nn::ops::log_softmax(logits, D::Minus1)? * &weights)?;
    // A class that is not wanted must not enter: 0 · ∞ would make a NaN of a logit of -∞.
    weights.eq(0.0)?.where_cond(&terms.zeros_like()?, &terms)?.sum_all()? * (-1.0 / b as f64)
}

//! Steps on tokens (b, n, c): what a Transformer and a Mixer do between their layers.

use crate::kernels::bf16::norm::{self, Coefficients};
use crate::kernels::bf16::{channels, layout, pool, row_mean};
use crate::kernels::fused_activation::FusedActivation;
use crate::op::{Passed, on_maps};
use crate::ops::concat;
use crate::tape::foreign_op;
use candle_core::{D, Result, Tensor, bail};

/// (b, n, c) -> (b, c, n): channels as rows.
///
/// # Errors
/// An input of fewer than three dimensions.
pub fn transpose(xs: &Tensor) -> Result<Tensor> {
    if let &[b, n, c] = xs.dims() {
        let turned = on_maps(
            ("transpose", &[b, c, n], (false, false)),
            (&[xs], 1),
            |inputs| Ok(layout::rows_to_planes(inputs[0].map(), (c, n))),
            move |saved| Ok(vec![Passed::Made(layout::planes_to_rows(saved.grad, (c, n)))]),
        )?;
        if let Some(ys) = turned {
            return Ok(ys);
        }
    }
    foreign_op(&[xs], |xs| xs[0].transpose(1, 2)?.contiguous())
}

/// The token (1, 1, c) in front of every image's: (b, n, c) -> (b, 1 + n, c).
///
/// # Errors
/// Shapes that do not fit together.
pub fn prepend_token(xs: &Tensor, token: &Tensor) -> Result<Tensor> {
    let (b, n, c) = xs.dims3()?;
    if token.dims() != [1, 1, c] {
        bail!("prepend_token: tokens {:?} want one of [1, 1, {c}], got {:?}", xs.dims(), token.dims())
    }
    let longer = on_maps(
        ("prepend_token", &[b, n + 1, c], (false, false)),
        (&[xs, token], 1),
        |inputs| {
            let token: Vec<_> = inputs[1].weight().iter().map(|&x| half::bf16::from_f32(x)).collect();
            Ok(channels::join(b, &[&token.repeat(b), inputs[0].map()], (0, 0)))
        },
        move |saved| {
            let wanted = [saved.wanted[1], saved.wanted[0]];
            let mut parts = channels::split(saved.grad, &[c, n * c], &wanted);
            let (tokens, first) = (parts.pop().flatten(), parts.pop().flatten());
            let sum = |rows: Vec<half::bf16>| {
                let mut sum = vec![0f32; c];
                rows.chunks_exact(c).for_each(|row| sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x.to_f32()));
                Passed::InF32(sum)
            };
            Ok(vec![Passed::of(tokens), first.map_or(Passed::Nothing, sum)])
        },
    )?;
    match longer {
        Some(ys) => Ok(ys),
        None => concat(&[&token.broadcast_as((b, 1, c))?, xs], 1),
    }
}

/// Every image's tokens plus their places' numbers: (b, n, c) and (1, n, c) -> (b, n, c).
///
/// # Errors
/// Shapes that do not fit together.
pub fn add_positions(xs: &Tensor, positions: &Tensor) -> Result<Tensor> {
    if let (&[b, n, c], &[1, m, d]) = (xs.dims(), positions.dims())
        && (n, c) == (m, d)
    {
        let each = n * c;
        let placed = on_maps(
            ("add_positions", &[b, n, c], (false, false)),
            (&[xs, positions], 1),
            |inputs| {
                let positions = inputs[1].weight();
                Ok(norm::affine(inputs[0].map(), each, &vec![1.0; each], positions, None, FusedActivation::None))
            },
            move |saved| {
                let sum = || {
                    let zeros = vec![0.0; each];
                    let by = Coefficients::new(&zeros, &zeros, (&zeros, &zeros), 1.0, false);
                    norm::gradient_sums(saved.grad, None, saved.grad, &by, FusedActivation::None, false).0.bias
                };
                Ok(vec![Passed::Whole, saved.want_weight(1, sum)])
            },
        )?;
        if let Some(ys) = placed {
            return Ok(ys);
        }
    }
    foreign_op(&[xs, positions], |t| t[0].broadcast_add(&t[1]))
}

/// Every image's first token: (b, n, c) -> (b, 1, c).
///
/// # Errors
/// An input that is not (b, n, c).
pub fn first_token(xs: &Tensor) -> Result<Tensor> {
    let (b, n, c) = xs.dims3()?;
    let first = on_maps(
        ("first_token", &[b, 1, c], (false, false)),
        (&[xs], 1),
        |inputs| {
            let mut parts = channels::split(inputs[0].map(), &[c, (n - 1) * c], &[true, false]);
            Ok(parts.swap_remove(0).unwrap_or_default())
        },
        move |saved| Ok(vec![Passed::Made(channels::join(b, &[saved.grad], (0, (n - 1) * c)))]),
    )?;
    match first {
        Some(ys) => Ok(ys),
        None => foreign_op(&[xs], |xs| xs[0].narrow(1, 0, 1)),
    }
}

/// The mean of every image's tokens from the `first` on: (b, n, c) -> (b, c).
///
/// # Errors
/// An input that is not (b, n, c), or no token to take.
pub fn mean_tokens(xs: &Tensor, first: usize) -> Result<Tensor> {
    let (b, n, c) = xs.dims3()?;
    if first >= n {
        bail!("mean_tokens: {first} tokens left out of {:?} leave none", xs.dims())
    }
    let count = n - first;
    let mean = on_maps(
        ("mean_tokens", &[b, c], (false, false)),
        (&[xs], 1),
        |inputs| Ok(pool::mean_rows((n, first, count), c, inputs[0].map())),
        move |saved| Ok(vec![saved.want(0, || pool::mean_rows_backward((n, first, count), c, saved.grad))]),
    )?;
    match mean {
        Some(ys) => Ok(ys),
        None => foreign_op(&[xs], |xs| if first == 0 { xs[0].mean(1) } else { xs[0].narrow(1, first, count)?.mean(1) }),
    }
}

/// The mean of every token's channels: (b, n, c) -> (b, n).
///
/// # Errors
/// An input that is not (b, n, c).
pub fn mean_channels(xs: &Tensor) -> Result<Tensor> {
    let (b, n, c) = xs.dims3()?;
    let mean = on_maps(
        ("mean_channels", &[b, n], (false, false)),
        (&[xs], 1),
        |inputs| Ok(row_mean::forward(c, inputs[0].map())),
        move |saved| Ok(vec![saved.want(0, || row_mean::backward(c, saved.grad))]),
    )?;
    match mean {
        Some(ys) => Ok(ys),
        None => foreign_op(&[xs], |xs| xs[0].mean(D::Minus1)),
    }
}

/// The pixels of a map as tokens: (b, c, h, w) -> (b, h · w, c).
///
/// # Errors
/// An input that is not (b, c, h, w).
pub fn tokens(xs: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = xs.dims4()?;
    // In memory a bfloat16 map is its pixels' tokens.
    let same = on_maps(
        ("tokens", &[b, h * w, c], (false, false)),
        (&[xs], 1),
        |inputs| Ok(inputs[0].map().to_vec()),
        move |saved| Ok(vec![saved.want(0, || saved.grad.to_vec())]),
    )?;
    match same {
        Some(ys) => Ok(ys),
        None => foreign_op(&[xs], |map| map[0].flatten_from(2)?.transpose(1, 2)?.contiguous()),
    }
}

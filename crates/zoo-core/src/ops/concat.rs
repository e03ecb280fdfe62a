//! Joining and rearranging along one dimension: copies at the speed of the memory, which candle's strided ones, on one
//! thread, are not.

use super::Real;
use crate::kernels::bf16::channels;
use crate::kernels::copy as kernel;
use crate::op::{Op, Operand, Passed, Saved, apply};
use crate::pass::is_on_tape;
use candle_core::{Result, Tensor, bail};
use half::bf16;

/// Tensors one behind the other along `dim`, as `Tensor::cat`.
///
/// # Errors
/// Shapes that differ elsewhere, or nothing to join.
pub fn concat(parts: &[&Tensor], dim: usize) -> Result<Tensor> {
    let Some(first) = parts.first() else { return Tensor::cat(parts, dim) };
    let fits = |part: &&Tensor| {
        let agree = |(i, (a, b)): (usize, (&usize, &usize))| i == dim || a == b;
        part.rank() == first.rank()
            && part.dtype() == first.dtype()
            && part.elem_count() > 0
            && part.dims().iter().zip(first.dims()).enumerate().all(agree)
    };
    // What does not fit is candle's to report.
    if dim >= first.rank() || !parts.iter().all(fits) {
        return Tensor::cat(parts, dim);
    }
    match parts {
        [_] => Tensor::cat(parts, dim),
        // On candle's graph an operation has three inputs at most: the rest is joined first.
        [a, b, rest @ ..] if rest.len() > 1 && !parts.iter().any(|part| is_on_tape(part)) => {
            concat(&[a, b, &concat(rest, dim)?], dim)
        }
        _ => {
            let widths: Vec<usize> = parts.iter().map(|part| part.dims()[dim]).collect();
            let mut shape = first.dims().to_vec();
            shape[dim] = widths.iter().sum();
            apply(Concat { dim, widths, shape }, parts)
        }
    }
}

struct Concat {
    dim: usize,
    /// Of each part, along `dim`.
    widths: Vec<usize>,
    shape: Vec<usize>,
}

/// The rows of a bfloat16 tensor that are cut along `dim`, and the numbers of one for each place of it: a map's
/// channels are innermost in memory.
fn rows_along(shape: &[usize], dim: usize) -> (usize, usize) {
    let order = |i: usize| if shape.len() == 4 { [0, 2, 3, 1][i] } else { i };
    let at = (0..shape.len()).position(|i| order(i) == dim).unwrap_or(dim);
    let product = |of: std::ops::Range<usize>| of.map(|i| shape[order(i)]).product::<usize>();
    (product(0..at), product(at + 1..shape.len()))
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn saves(&self) -> (bool, bool) {
        (false, false)
    }

    fn forward<T: Real>(&self, inputs: &[&[T]]) -> Result<Vec<T>> {
        Ok(kernel::join(self.shape[..self.dim].iter().product(), inputs, 0, 0))
    }

    /// Views: they are added to what is there in any case, and a copy before that would be one pass more.
    fn backward<T: Real>(&self, _: &Saved<T>) -> Result<Vec<Passed<T>>> {
        let mut start = 0;
        let slice = |&len: &usize| {
            start += len;
            Passed::Slice { dim: self.dim, start: start - len, len }
        };
        Ok(self.widths.iter().map(slice).collect())
    }

    fn maps(&self) -> usize {
        self.widths.len()
    }

    fn forward_bf16(&self, inputs: &[Operand]) -> Result<Vec<bf16>> {
        let parts: Vec<&[bf16]> = inputs.iter().map(|input| input.map()).collect();
        Ok(channels::join(rows_along(&self.shape, self.dim).0, &parts, (0, 0)))
    }

    fn backward_bf16(&self, saved: &Saved<bf16, Operand>) -> Result<Vec<Passed<bf16>>> {
        let (_, each) = rows_along(&self.shape, self.dim);
        let widths: Vec<usize> = self.widths.iter().map(|width| width * each).collect();
        Ok(channels::split(saved.grad, &widths, saved.wanted).into_iter().map(Passed::of).collect())
    }

    fn fallback(&self, inputs: &[Tensor]) -> Result<Tensor> {
        Tensor::cat(inputs, self.dim)
    }
}

/// Zero channels below and above: (b, c, …) -> (b, below + c + above, …).
///
/// # Errors
/// An input of fewer than two dimensions.
pub fn pad_channels(xs: &Tensor, below: usize, above: usize) -> Result<Tensor> {
    let dims = xs.dims();
    if dims.len() < 2 || xs.elem_count() == 0 || below + above == 0 {
        return xs.pad_with_zeros(1, below, above);
    }
    apply(PadChannels { below, above, input: dims.to_vec() }, &[xs])
}

struct PadChannels {
    below: usize,
    above: usize,
    /// The input's shape.
    input: Vec<usize>,
}

impl Op for PadChannels {
    fn name(&self) -> &'static str {
        "pad_channels"
    }

    fn shape(&self) -> Vec<usize> {
        let mut shape = self.input.clone();
        shape[1] += self.below + self.above;
        shape
    }

    fn saves(&self) -> (bool, bool) {
        (false, false)
    }

    fn forward<T: Real>(&self, inputs: &[&[T]]) -> Result<Vec<T>> {
        let plane = self.input[2..].iter().product::<usize>();
        Ok(kernel::join(self.input[0], inputs, self.below * plane, self.above * plane))
    }

    fn backward<T: Real>(&self, _: &Saved<T>) -> Result<Vec<Passed<T>>> {
        Ok(vec![Passed::Slice { dim: 1, start: self.below, len: self.input[1] }])
    }

    fn maps(&self) -> usize {
        1
    }

    fn forward_bf16(&self, inputs: &[Operand]) -> Result<Vec<bf16>> {
        let (rows, each) = rows_along(&self.input, 1);
        Ok(channels::join(rows, &[inputs[0].map()], (self.below * each, self.above * each)))
    }

    fn backward_bf16(&self, saved: &Saved<bf16, Operand>) -> Result<Vec<Passed<bf16>>> {
        let (_, each) = rows_along(&self.input, 1);
        let widths = [self.below, self.input[1], self.above].map(|width| width * each);
        let mut parts = channels::split(saved.grad, &widths, &[false, saved.wanted[0], false]);
        Ok(vec![Passed::of(parts.swap_remove(1))])
    }

    fn fallback(&self, inputs: &[Tensor]) -> Result<Tensor> {
        inputs[0].pad_with_zeros(1, self.below, self.above)
    }
}

/// Channel j of group i becomes channel i of group j: (b, c, h, w) -> (b, c, h, w).
///
/// # Errors
/// An input that is not (b, c, h, w), or channels that the groups do not divide.
pub fn channel_shuffle(xs: &Tensor, groups: usize) -> Result<Tensor> {
    let (b, c, h, w) = xs.dims4()?;
    if groups == 0 || !c.is_multiple_of(groups) {
        bail!("channel_shuffle: {groups} groups do not divide the channels of {:?}", xs.dims())
    }
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    apply(ChannelShuffle { groups, sizes: [b, c, h, w] }, &[xs])
}

struct ChannelShuffle {
    groups: usize,
    /// b, c, h, w
    sizes: [usize; 4],
}

impl ChannelShuffle {
    /// Deals the planes out to `groups`: plane j of group i goes to plane i of group j, image by image.
    fn deal<T: Real>(&self, xs: &[T], groups: usize) -> Vec<T> {
        let [_, c, h, w] = self.sizes;
        let each = c / groups;
        let source = |plane: usize| plane - plane % c + plane % groups * each + plane % c / groups;
        kernel::arrange(xs, h * w, source)
    }

    /// The same on rows of channels.
    fn deal_rows(&self, rows: &[bf16], groups: usize) -> Vec<bf16> {
        let c = self.sizes[1];
        let each = c / groups;
        channels::arrange(rows, &(0..c).map(|i| i % groups * each + i / groups).collect::<Vec<_>>())
    }
}

impl Op for ChannelShuffle {
    fn name(&self) -> &'static str {
        "channel_shuffle"
    }

    fn shape(&self) -> Vec<usize> {
        self.sizes.to_vec()
    }

    fn saves(&self) -> (bool, bool) {
        (false, false)
    }

    fn forward<T: Real>(&self, inputs: &[&[T]]) -> Result<Vec<T>> {
        Ok(self.deal(inputs[0], self.groups))
    }

    /// Dealing in by the other count undoes dealing out.
    fn backward<T: Real>(&self, saved: &Saved<T>) -> Result<Vec<Passed<T>>> {
        Ok(vec![Passed::Made(self.deal(saved.grad, self.sizes[1] / self.groups))])
    }

    fn maps(&self) -> usize {
        1
    }

    fn forward_bf16(&self, inputs: &[Operand]) -> Result<Vec<bf16>> {
        Ok(self.deal_rows(inputs[0].map(), self.groups))
    }

    fn backward_bf16(&self, saved: &Saved<bf16, Operand>) -> Result<Vec<Passed<bf16>>> {
        Ok(vec![Passed::Made(self.deal_rows(saved.grad, self.sizes[1] / self.groups))])
    }

    fn fallback(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let [b, c, h, w] = self.sizes;
        let groups = inputs[0].reshape((b, self.groups, c / self.groups, h * w))?;
        groups.transpose(1, 2)?.contiguous()?.reshape((b, c, h, w))
    }
}

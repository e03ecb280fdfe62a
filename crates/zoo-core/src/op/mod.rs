//! An operation with a gradient of its own, and what puts it to work: the kernel or its stand-in, the tape or candle's
//! graph.

mod apply;
mod mixed;

pub(crate) use apply::apply;
pub(crate) use mixed::on_maps;

use crate::kernels::Real;
use candle_core::{Result, Tensor, bail};
use half::bf16;

/// An operation on tensors of one element type: a value that holds every size, so that its passes are slices in, slices
/// out.
///
/// [`apply`] runs it. Whoever writes one states the arithmetic, and nothing of tensors, devices, the tape or candle's
/// graph.
pub(crate) trait Op: Send + Sync + 'static {
    /// What errors and tapes call it.
    fn name(&self) -> &'static str;

    /// The output's shape.
    fn shape(&self) -> Vec<usize>;

    /// What the backward pass reads of the forward pass: the inputs, the output.
    fn saves(&self) -> (bool, bool) {
        (true, false)
    }

    /// The output's elements of the inputs'.
    fn forward<T: Real>(&self, inputs: &[&[T]]) -> Result<Vec<T>>;

    /// How many of the inputs, from the first on, are bfloat16 maps to its kernels of mixed precision; the others are f32
    /// weights. 0: there are no such kernels, and it runs in f32.
    fn maps(&self) -> usize {
        0
    }

    /// The output's elements of those of bfloat16 maps, channels innermost in all of them.
    fn forward_bf16(&self, _inputs: &[Operand]) -> Result<Vec<bf16>> {
        bail!("{}: no kernel of mixed precision", self.name())
    }

    /// A gradient for each input of [`forward_bf16`](Self::forward_bf16): of bfloat16 numbers for a map, of f32 for a
    /// weight.
    fn backward_bf16(&self, _saved: &Saved<bf16, Operand>) -> Result<Vec<Passed<bf16>>> {
        bail!("{}: no gradient of mixed precision", self.name())
    }

    /// A gradient for each input, from that of the output.
    fn backward<T: Real>(&self, saved: &Saved<T>) -> Result<Vec<Passed<T>>>;

    /// The same out of candle's own operations, whose gradient is right, for devices and element types without a
    /// kernel.
    fn fallback(&self, inputs: &[Tensor]) -> Result<Tensor>;
}

/// An input of an operation in mixed precision.
#[derive(Clone, Copy)]
pub(crate) enum Operand<'a> {
    /// A map: rows of channels.
    Map(&'a [bf16]),
    /// A weight, in row-major order.
    Weight(&'a [f32]),
}

impl<'a> Operand<'a> {
    /// The map's rows; none for a weight.
    pub fn map(self) -> &'a [bf16] {
        if let Self::Map(rows) = self { rows } else { &[] }
    }

    /// The weight's elements; none for a map.
    pub fn weight(self) -> &'a [f32] {
        if let Self::Weight(elements) = self { elements } else { &[] }
    }
}

/// What a backward pass reads; empty what [`Op::saves`] does not ask for.
pub(crate) struct Saved<'a, T, I = &'a [T]> {
    pub inputs: Vec<I>,
    pub output: &'a [T],
    /// The gradient of the output.
    pub grad: &'a [T],
    /// Which inputs ask for a gradient.
    pub wanted: &'a [bool],
}

impl<T, I> Saved<'_, T, I> {
    /// The gradient of input `i`, if it is asked for.
    pub fn want(&self, i: usize, gradient: impl FnOnce() -> Vec<T>) -> Passed<T> {
        if self.wanted[i] { Passed::Made(gradient()) } else { Passed::Nothing }
    }
}

impl Passed<bf16> {
    /// What a kernel has made, if it was asked.
    pub fn of(made: Option<Vec<bf16>>) -> Self {
        made.map_or(Self::Nothing, Self::Made)
    }
}

impl Saved<'_, bf16, Operand<'_>> {
    /// The gradient of weight `i`, if it is asked for.
    pub fn want_weight(&self, i: usize, gradient: impl FnOnce() -> Vec<f32>) -> Passed<bf16> {
        if self.wanted[i] { Passed::InF32(gradient()) } else { Passed::Nothing }
    }
}

/// What an input gets.
pub(crate) enum Passed<T> {
    /// No gradient: it asks for none.
    Nothing,
    /// Elements that a kernel has made.
    Made(Vec<T>),
    /// The same for a weight in mixed precision.
    InF32(Vec<f32>),
    /// The output's gradient itself.
    Whole,
    /// `len` places of the output's gradient along `dim`.
    Slice { dim: usize, start: usize, len: usize },
}

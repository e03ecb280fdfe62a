//! The sizes of a convolution, checked once.

use std::ops::Range;

/// How a convolution walks over its input; pairs are (vertical, horizontal).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dParams {
    /// Step of the window.
    pub stride: (usize, usize),
    /// Zeros put around the image.
    pub padding: (usize, usize),
    /// Distance between the taps of the kernel.
    pub dilation: (usize, usize),
    /// Input and output channels are split into this many independent groups.
    pub groups: usize,
}

impl Default for Conv2dParams {
    fn default() -> Self {
        Self { stride: (1, 1), padding: (0, 0), dilation: (1, 1), groups: 1 }
    }
}

/// Every size of one convolution, checked once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub b: usize,
    pub c_in: usize,
    pub h: usize,
    pub w: usize,
    pub c_out: usize,
    pub kh: usize,
    pub kw: usize,
    pub oh: usize,
    pub ow: usize,
    pub params: Conv2dParams,
}

impl Geometry {
    /// Of an input and a weight with these dimensions; the error names them.
    pub fn new(x: &[usize], k: &[usize], params: Conv2dParams) -> Result<Self, String> {
        let (&[b, c_in, h, w], &[c_out, c_group, kh, kw]) = (x, k) else {
            return Err(format!(
                "conv2d: wants input (b, c_in, h, w) and weight (c_out, c_in / groups, kh, kw), got {x:?} and {k:?}"
            ));
        };
        let Conv2dParams { stride, padding, dilation, groups } = params;
        if [stride.0, stride.1, dilation.0, dilation.1, groups, kh, kw].contains(&0) {
            return Err(format!(
                "conv2d: stride, dilation, groups and kernel must be at least 1, got {params:?} and weight {k:?}"
            ));
        }
        if x.contains(&0) || c_out == 0 {
            return Err(format!("conv2d: nothing to convolve in input {x:?} with weight {k:?}"));
        }
        if c_group * groups != c_in || c_out % groups != 0 {
            return Err(format!("conv2d: weight {k:?} with groups {groups} does not fit input {x:?}"));
        }
        let (Some(oh), Some(ow)) =
            (output_size(h, kh, stride.0, padding.0, dilation.0), output_size(w, kw, stride.1, padding.1, dilation.1))
        else {
            return Err(format!(
                "conv2d: the kernel of weight {k:?} with {params:?} is larger than the padded input {x:?}"
            ));
        };
        Ok(Self { b, c_in, h, w, c_out, kh, kw, oh, ow, params })
    }

    /// Multiply-adds of the forward pass.
    pub fn macs(&self) -> u64 {
        (self.b * self.c_out * self.oh * self.ow * self.group_in() * self.kh * self.kw) as u64
    }

    pub fn group_in(&self) -> usize {
        self.c_in / self.params.groups
    }

    pub fn group_out(&self) -> usize {
        self.c_out / self.params.groups
    }

    pub fn output_plane(&self) -> usize {
        self.oh * self.ow
    }

    pub fn input_plane(&self) -> usize {
        self.h * self.w
    }

    /// Factors of one output: the taps of all channels of a group.
    pub fn depth(&self) -> usize {
        self.group_in() * self.kh * self.kw
    }

    /// One input channel a group: no sum over channels, so a matrix product would be all overhead.
    pub fn is_depthwise(&self) -> bool {
        self.group_in() == 1 && self.params.groups > 1
    }

    pub fn input_image(&self) -> usize {
        self.c_in * self.input_plane()
    }

    pub fn output_image(&self) -> usize {
        self.c_out * self.output_plane()
    }
}

/// Output length of a convolution or pooling along one dimension:
/// ⌊(n + 2p - d(k - 1) - 1) / s⌋ + 1. `None` when no window fits.
pub(crate) fn output_size(n: usize, kernel: usize, stride: usize, padding: usize, dilation: usize) -> Option<usize> {
    let span = dilation * (kernel - 1) + 1;
    Some((n + 2 * padding).checked_sub(span)? / stride + 1)
}

/// The output positions `o` in `0..out` whose tap `o·stride + offset` lies inside `0..n`.
pub(crate) fn valid_outputs(out: usize, n: usize, stride: usize, offset: isize) -> Range<usize> {
    let first = if offset >= 0 { 0 } else { (-offset as usize).div_ceil(stride) };
    let last = n as isize - 1 - offset;
    let end = if last < 0 { 0 } else { (last as usize / stride + 1).min(out) };
    first.min(end)..end
}

//! Max pooling for any kernel, stride, padding and `ceil_mode`, with the gradient that PyTorch gives.

use super::{Real, fallback};
use crate::kernels::bf16::pool as mixed;
use crate::kernels::pool::{self as kernel, Window};
use crate::op::{Op, Passed, Saved, apply, on_maps};
use crate::pass::tracks;
use candle_core::{Error, Result, Tensor};
use std::sync::{Arc, OnceLock};

/// The largest element under each window: (b, c, h, w) -> (b, c, oh, ow), as `torch.nn.functional.max_pool2d`.
///
/// oh = ⌊(h + 2·padding - kernel) / stride⌋ + 1, or ⌈…⌉ + 1 with `ceil_mode` (a last window that would start in the
/// padding is dropped). Padding never wins. The whole gradient goes to the winner, the first of equals.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::arange(0f32, 16., &Device::Cpu)?.reshape((1, 1, 4, 4))?;
/// let ys = zoo_core::ops::max_pool2d(&xs, (2, 2), (2, 2), (0, 0), false)?;
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [5., 7., 13., 15.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// An input that is not (b, c, h, w), a window larger than the padded image, padding of more than half the kernel.
pub fn max_pool2d(
    xs: &Tensor,
    kernel: (usize, usize),
    stride: (usize, usize),
    padding: (usize, usize),
    ceil_mode: bool,
) -> Result<Tensor> {
    let window = Window::new("max_pool2d", xs.dims(), kernel, stride, padding, ceil_mode).map_err(Error::msg)?;
    if let Some(ys) = on_bfloat16_maps(xs, &window)? {
        return Ok(ys);
    }
    // Every half value is an f32 value, so comparing in f32 changes nothing.
    apply(MaxPool(window), &[xs])
}

/// On bfloat16 maps. Kept for the gradient is where each window's winner lies: a window's input is several times as
/// large, and its layer's output is read by nobody else.
fn on_bfloat16_maps(xs: &Tensor, window: &Window) -> Result<Option<Tensor>> {
    let (grid, c, shape) = (window.grid(), window.output[1], window.output);
    if grid.taps() > mixed::MOST_TAPS {
        return Ok(None);
    }
    let winners = Arc::new(OnceLock::new());
    let (found, ahead, with_taps) = (winners.clone(), grid.clone(), tracks(xs));
    on_maps(
        ("max_pool2d", &shape, (false, false)),
        (&[xs], 1),
        move |inputs| {
            let (ys, taps) = mixed::max_forward(&ahead, c, inputs[0].map(), with_taps);
            found.get_or_init(|| taps);
            Ok(ys)
        },
        move |saved| {
            let taps = winners.get().map_or(&[][..], Vec::as_slice);
            Ok(vec![saved.want(0, || mixed::max_backward(&grid, c, taps, saved.grad))])
        },
    )
}

struct MaxPool(Window);

impl Op for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn shape(&self) -> Vec<usize> {
        self.0.output.to_vec()
    }

    fn forward<T: Real>(&self, inputs: &[&[T]]) -> Result<Vec<T>> {
        Ok(kernel::max_forward(&self.0, inputs[0]))
    }

    /// The winners are found again: cheaper than keeping them.
    fn backward<T: Real>(&self, saved: &Saved<T>) -> Result<Vec<Passed<T>>> {
        Ok(vec![Passed::Made(kernel::max_backward(&self.0, saved.inputs[0], saved.grad))])
    }

    fn fallback(&self, inputs: &[Tensor]) -> Result<Tensor> {
        fallback::max_pool2d(&inputs[0], &self.0)
    }
}

//! Max pooling for any kernel, stride, padding and `ceil_mode`, with the gradient that PyTorch gives.

use super::{Path, compose, elements, for_real, path};
use crate::kernels::pool::{self as kernel, Window};
use crate::{tape, trace};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Error, Layout, Result, Shape, Tensor, WithDType};

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
    match path(xs) {
        Path::Shape => trace::shape_only(&window.output, xs.dtype(), xs.device()),
        Path::Compose => compose::max_pool2d(xs, &window),
        // Every half value is an f32 value, so comparing in f32 changes nothing.
        Path::KernelInF32 => {
            tape::apply1(&xs.to_dtype(DType::F32)?.contiguous()?, MaxPool(window))?.to_dtype(xs.dtype())
        }
        Path::Kernel => tape::apply1(&tape::contiguous(xs)?, MaxPool(window)),
    }
}

struct MaxPool(Window);

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(self.name(), x, T => {
            let ys = kernel::max_forward::<T>(&self.0, elements(self.name(), x, xl)?);
            Ok((T::to_cpu_storage_owned(ys), self.0.output.as_slice().into()))
        })
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        xs.apply_op2_no_bwd(&grad.contiguous()?, &MaxPoolGrad(self.0)).map(Some)
    }
}

/// (input, gradient of the output) -> gradient of the input. The winners are found again: cheaper than keeping them.
struct MaxPoolGrad(Window);

impl CustomOp2 for MaxPoolGrad {
    fn name(&self) -> &'static str {
        "max_pool2d gradient"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, g: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(self.name(), x, T => {
            let dx = kernel::max_backward::<T>(&self.0, elements(self.name(), x, xl)?, elements(self.name(), g, gl)?);
            Ok((T::to_cpu_storage_owned(dx), xl.shape().clone()))
        })
    }
}

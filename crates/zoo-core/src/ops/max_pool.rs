//! Max pooling for any kernel, stride, padding and `ceil_mode`, with the gradient that PyTorch gives.

use super::cpu::pool as kernel;
use super::{Path, compose, elements, for_real, path};
use crate::{tape, trace};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType, bail};

/// The sizes of one pooling, checked once; pairs are (vertical, horizontal).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// b · c
    pub planes: usize,
    pub h: usize,
    pub w: usize,
    pub oh: usize,
    pub ow: usize,
    pub kernel: (usize, usize),
    pub stride: (usize, usize),
    pub padding: (usize, usize),
    /// (b, c, oh, ow)
    pub output: [usize; 4],
}

impl Window {
    pub fn new(
        op: &str,
        xs: &Tensor,
        kernel: (usize, usize),
        stride: (usize, usize),
        padding: (usize, usize),
        ceil_mode: bool,
    ) -> Result<Self> {
        let &[b, c, h, w] = xs.dims() else { bail!("{op}: wants input (b, c, h, w), got {:?}", xs.dims()) };
        if [b, c, h, w, kernel.0, kernel.1, stride.0, stride.1].contains(&0) {
            bail!("{op}: input, kernel and stride must not be empty, got {:?}, {kernel:?}, {stride:?}", xs.dims())
        }
        if 2 * padding.0 > kernel.0 || 2 * padding.1 > kernel.1 {
            bail!("{op}: padding {padding:?} is more than half the kernel {kernel:?}: a window could hold only padding")
        }
        let size = |n: usize, k: usize, s: usize, p: usize| -> Option<usize> {
            let room = (n + 2 * p).checked_sub(k)?;
            let out = if ceil_mode { room.div_ceil(s) } else { room / s } + 1;
            // A last window that would start in the padding on the right is dropped.
            Some(if ceil_mode && (out - 1) * s >= n + p { out - 1 } else { out })
        };
        let (Some(oh), Some(ow)) = (size(h, kernel.0, stride.0, padding.0), size(w, kernel.1, stride.1, padding.1))
        else {
            bail!("{op}: kernel {kernel:?} is larger than input {:?} with padding {padding:?}", xs.dims())
        };
        Ok(Self { planes: b * c, h, w, oh, ow, kernel, stride, padding, output: [b, c, oh, ow] })
    }
}

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
    let window = Window::new("max_pool2d", xs, kernel, stride, padding, ceil_mode)?;
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

//! 2-d convolution (cross-correlation, as every framework calls it) with groups, stride, padding and dilation.

use super::{Path, compose, elements, for_real, path};
use crate::kernels::conv::{self as kernel, Conv2dParams, Geometry};
use crate::{tape, trace};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Error, Layout, Result, Shape, Tensor, WithDType, bail,
};

/// y\[n, o\] = bias\[o\] + Σ over i in o's group of weight\[o, i\] ⋆ x\[n, i\], where ⋆ is 2-d cross-correlation.
///
/// Input (b, c_in, h, w), weight (c_out, c_in / groups, kh, kw), bias (c_out); output (b, c_out, oh, ow) with
/// oh = ⌊(h + 2·padding - dilation·(kh - 1) - 1) / stride⌋ + 1, as `torch.nn.functional.conv2d`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use zoo_core::ops::{conv2d, Conv2dParams};
/// let image = Tensor::ones((1, 1, 3, 3), candle_core::DType::F32, &Device::Cpu)?;
/// let params = Conv2dParams { padding: (1, 1), ..Default::default() };
/// let ys = conv2d(&image, &image, None, params)?;
/// // Each output counts the taps that fall inside the image.
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [4., 6., 4., 6., 9., 6., 4., 6., 4.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Shapes or element types that do not fit together, naming them.
pub fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, params: Conv2dParams) -> Result<Tensor> {
    let geometry = geometry(xs, weight, bias, params)?;
    trace::count_macs(geometry.macs());
    match path(xs) {
        Path::Shape => {
            trace::shape_only(&[geometry.b, geometry.c_out, geometry.oh, geometry.ow], xs.dtype(), xs.device())
        }
        Path::Compose => compose::conv2d(xs, weight, bias, params),
        Path::KernelInF32 => {
            let bias = bias.map(|b| b.to_dtype(DType::F32)).transpose()?;
            kernel_conv2d(&xs.to_dtype(DType::F32)?, &weight.to_dtype(DType::F32)?, bias.as_ref(), geometry)?
                .to_dtype(xs.dtype())
        }
        Path::Kernel => kernel_conv2d(xs, weight, bias, geometry),
    }
}

/// The sizes of a convolution of these tensors, checked.
pub(crate) fn geometry(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, params: Conv2dParams) -> Result<Geometry> {
    let geometry = Geometry::new(xs.dims(), weight.dims(), params).map_err(Error::msg)?;
    if let Some(bias) = bias
        && bias.dims() != [geometry.c_out]
    {
        bail!("conv2d: bias {:?} does not fit weight {:?}", bias.dims(), weight.dims())
    }
    if let Some(other) = [Some(weight), bias].into_iter().flatten().find(|t| t.dtype() != xs.dtype()) {
        bail!("conv2d: input is {:?}, weight or bias {:?}", xs.dtype(), other.dtype())
    }
    Ok(geometry)
}

fn kernel_conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, geometry: Geometry) -> Result<Tensor> {
    let (xs, weight) = (tape::contiguous(xs)?, weight.contiguous()?);
    let is_plain = ![Some(&xs), Some(&weight), bias].into_iter().flatten().any(tape::tracks);
    match bias {
        Some(bias) => tape::apply3(&xs, &weight, &bias.contiguous()?, Forward(geometry, is_plain)),
        None => tape::apply2(&xs, &weight, Forward(geometry, is_plain)),
    }
}

/// Sizes, and whether no gradient will follow.
struct Forward(Geometry, bool);

impl Forward {
    fn gradients(&self, xs: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let dx = tape::tracks(xs).then(|| grad.apply_op2_no_bwd(weight, &InputGrad(self.0))).transpose()?;
        let dw = tape::tracks(weight).then(|| xs.apply_op2_no_bwd(&grad, &WeightGrad(self.0))).transpose()?;
        Ok((dx, dw))
    }

    fn finish<'a, T>(&self, bias: Option<&'a [T]>) -> kernel::Epilogue<'a, T> {
        kernel::Epilogue::bias(bias).allow_winograd(self.1)
    }

    fn output_shape(&self) -> Shape {
        (self.0.b, self.0.c_out, self.0.oh, self.0.ow).into()
    }
}

impl CustomOp2 for Forward {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!("conv2d", x, T => {
            let ys = kernel::forward::<T>(&self.0, elements("conv2d", x, xl)?, elements("conv2d", w, wl)?, &self.finish(None));
            Ok((T::to_cpu_storage_owned(ys), self.output_shape()))
        })
    }

    fn bwd(&self, xs: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.gradients(xs, weight, grad)
    }
}

impl CustomOp3 for Forward {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        for_real!("conv2d", x, T => {
            let bias = Some(elements::<T>("conv2d", b, bl)?);
            let ys = kernel::forward::<T>(&self.0, elements("conv2d", x, xl)?, elements("conv2d", w, wl)?, &self.finish(bias));
            Ok((T::to_cpu_storage_owned(ys), self.output_shape()))
        })
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = self.gradients(xs, weight, grad)?;
        let db = tape::tracks(bias).then(|| grad.contiguous()?.apply_op1_no_bwd(&BiasGrad(self.0))).transpose()?;
        Ok((dx, dw, db))
    }
}

/// (gradient of the output, weight) -> gradient of the input.
struct InputGrad(Geometry);

impl CustomOp2 for InputGrad {
    fn name(&self) -> &'static str {
        "conv2d input gradient"
    }

    fn cpu_fwd(&self, g: &CpuStorage, gl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(self.name(), g, T => {
            let dx = kernel::input_grad::<T>(&self.0, elements(self.name(), g, gl)?, elements(self.name(), w, wl)?);
            Ok((T::to_cpu_storage_owned(dx), (self.0.b, self.0.c_in, self.0.h, self.0.w).into()))
        })
    }
}

/// (input, gradient of the output) -> gradient of the weight.
struct WeightGrad(Geometry);

impl CustomOp2 for WeightGrad {
    fn name(&self) -> &'static str {
        "conv2d weight gradient"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, g: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(self.name(), x, T => {
            let dw = kernel::weight_grad::<T>(&self.0, elements(self.name(), x, xl)?, elements(self.name(), g, gl)?);
            Ok((T::to_cpu_storage_owned(dw), (self.0.c_out, self.0.group_in(), self.0.kh, self.0.kw).into()))
        })
    }
}

/// Gradient of the output -> gradient of the bias.
struct BiasGrad(Geometry);

impl CustomOp1 for BiasGrad {
    fn name(&self) -> &'static str {
        "conv2d bias gradient"
    }

    fn cpu_fwd(&self, g: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(self.name(), g, T => {
            let db = kernel::bias_grad::<T>(&self.0, elements(self.name(), g, gl)?);
            Ok((T::to_cpu_storage_owned(db), self.0.c_out.into()))
        })
    }
}

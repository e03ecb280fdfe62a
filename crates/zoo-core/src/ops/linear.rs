//! The affine map of a fully connected layer.

use super::{Path, compose, elements, for_real, path};
use crate::kernels::linear::{self as kernel, Sizes};
use crate::{tape, trace};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, WithDType, bail};

/// y = x · weightᵀ + bias over the last dimension, as `torch.nn.functional.linear`.
///
/// Input (…, in), weight (out, in), bias (out); output (…, out).
///
/// ```
/// use candle_core::{Device, Tensor};
/// let weight = Tensor::new(&[[1f32, 2.], [0., 1.], [3., 0.]], &Device::Cpu)?;
/// let ys = zoo_core::ops::linear(&Tensor::new(&[[1f32, 10.]], &Device::Cpu)?, &weight, None)?;
/// assert_eq!(ys.to_vec2::<f32>()?, [[21., 10., 3.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// Shapes or element types that do not fit together, naming them.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (x, w) = (xs.dims(), weight.dims());
    let (&[ref lead @ .., c_in], &[c_out, w_in]) = (x, w) else {
        bail!("linear: wants input (…, in) and weight (out, in), got {x:?} and {w:?}")
    };
    if c_in != w_in || xs.elem_count() == 0 || c_out == 0 {
        bail!("linear: weight {w:?} does not fit input {x:?}")
    }
    if let Some(bias) = bias
        && bias.dims() != [c_out]
    {
        bail!("linear: bias {:?} does not fit weight {w:?}", bias.dims())
    }
    if let Some(other) = [Some(weight), bias].into_iter().flatten().find(|t| t.dtype() != xs.dtype()) {
        bail!("linear: input is {:?}, weight or bias {:?}", xs.dtype(), other.dtype())
    }
    let sizes = Sizes { rows: lead.iter().product(), c_in, c_out };
    trace::count_macs((sizes.rows * c_in * c_out) as u64);
    let dims = [lead, &[c_out]].concat();
    match path(xs) {
        Path::Shape => trace::shape_only(&dims, xs.dtype(), xs.device()),
        Path::Compose => compose::linear(&xs.reshape((sizes.rows, c_in))?, weight, bias)?.reshape(dims),
        Path::KernelInF32 => {
            let bias = bias.map(|b| b.to_dtype(DType::F32)).transpose()?;
            apply(&xs.to_dtype(DType::F32)?, &weight.to_dtype(DType::F32)?, bias.as_ref(), sizes)?.to_dtype(xs.dtype())
        }
        Path::Kernel => apply(xs, weight, bias, sizes),
    }
}

fn apply(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, sizes: Sizes) -> Result<Tensor> {
    let (xs, weight) = (tape::contiguous(xs)?, weight.contiguous()?);
    match bias {
        Some(bias) => tape::apply3(&xs, &weight, &bias.contiguous()?, Forward(sizes)),
        None => tape::apply2(&xs, &weight, Forward(sizes)),
    }
}

/// The shape of `layout` with another last dimension.
fn with_last(layout: &Layout, last: usize) -> Shape {
    let mut dims = layout.dims().to_vec();
    if let Some(n) = dims.last_mut() {
        *n = last;
    }
    dims.into()
}

struct Forward(Sizes);

impl Forward {
    fn gradients(&self, xs: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let dx = tape::tracks(xs).then(|| grad.apply_op2_no_bwd(weight, &InputGrad(self.0))).transpose()?;
        let dw = tape::tracks(weight).then(|| xs.apply_op2_no_bwd(&grad, &WeightGrad(self.0))).transpose()?;
        Ok((dx, dw))
    }
}

impl CustomOp2 for Forward {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!("linear", x, T => {
            let ys = kernel::forward::<T>(self.0, elements("linear", x, xl)?, elements("linear", w, wl)?, None);
            Ok((T::to_cpu_storage_owned(ys), with_last(xl, self.0.c_out)))
        })
    }

    fn bwd(&self, xs: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.gradients(xs, weight, grad)
    }
}

impl CustomOp3 for Forward {
    fn name(&self) -> &'static str {
        "linear"
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
        for_real!("linear", x, T => {
            let bias = Some(elements::<T>("linear", b, bl)?);
            let ys = kernel::forward::<T>(self.0, elements("linear", x, xl)?, elements("linear", w, wl)?, bias);
            Ok((T::to_cpu_storage_owned(ys), with_last(xl, self.0.c_out)))
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

/// (gradient of the output (rows, out), weight) -> gradient of the input: dy · W.
struct InputGrad(Sizes);

impl CustomOp2 for InputGrad {
    fn name(&self) -> &'static str {
        "linear input gradient"
    }

    fn cpu_fwd(&self, g: &CpuStorage, gl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(self.name(), g, T => {
            let (grad, weight) = (elements::<T>(self.name(), g, gl)?, elements::<T>(self.name(), w, wl)?);
            let dx = kernel::input_grad(self.0, grad, weight);
            Ok((T::to_cpu_storage_owned(dx), with_last(gl, self.0.c_in)))
        })
    }
}

/// (input (rows, in), gradient of the output) -> gradient of the weight: dyᵀ · x.
struct WeightGrad(Sizes);

impl CustomOp2 for WeightGrad {
    fn name(&self) -> &'static str {
        "linear weight gradient"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, g: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(self.name(), x, T => {
            let (xs, grad) = (elements::<T>(self.name(), x, xl)?, elements::<T>(self.name(), g, gl)?);
            let dw = kernel::weight_grad(self.0, xs, grad);
            Ok((T::to_cpu_storage_owned(dw), (self.0.c_out, self.0.c_in).into()))
        })
    }
}

/// Gradient of the output -> gradient of the bias: its column sums.
struct BiasGrad(Sizes);

impl CustomOp1 for BiasGrad {
    fn name(&self) -> &'static str {
        "linear bias gradient"
    }

    fn cpu_fwd(&self, g: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!(self.name(), g, T => {
            let db = kernel::bias_grad::<T>(self.0, elements(self.name(), g, gl)?);
            Ok((T::to_cpu_storage_owned(db), self.0.c_out.into()))
        })
    }
}

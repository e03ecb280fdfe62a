//! Activation functions, element by element, each with the derivative that PyTorch uses at the kinks.

use super::cpu::pointwise as kernel;
use super::{Path, compose, elements, for_real, path};
use crate::{tape, trace};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType};

/// Which function; the derivatives at the kinks follow PyTorch (0 for ReLU at 0, for ReLU6 at 0 and 6).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pointwise {
    /// max(x, 0)
    Relu,
    /// min(max(x, 0), 6)
    Relu6,
    /// x if x > 0, else slope · x
    LeakyRelu(f64),
    /// x · Φ(x), with the normal distribution's exact Φ
    Gelu,
    /// x · ½(1 + tanh(√(2/π)(x + 0.044715 x³)))
    GeluTanh,
    /// x · σ(x), also called swish
    Silu,
    /// σ(x) = 1 / (1 + e⁻ˣ)
    Sigmoid,
    /// tanh x
    Tanh,
    /// min(max(x + 3, 0), 6) / 6
    HardSigmoid,
    /// x · min(max(x + 3, 0), 6) / 6
    HardSwish,
}

/// √(2/π) and the cubic's coefficient in the tanh form of GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415).
pub(crate) const GELU_TANH: (f64, f64) = (0.797_884_560_802_865_4, 0.044_715);

impl Pointwise {
    /// The function's usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Relu => "ReLU",
            Self::Relu6 => "ReLU6",
            Self::LeakyRelu(_) => "LeakyReLU",
            Self::Gelu | Self::GeluTanh => "GELU",
            Self::Silu => "SiLU",
            Self::Sigmoid => "Sigmoid",
            Self::Tanh => "Tanh",
            Self::HardSigmoid => "HardSigmoid",
            Self::HardSwish => "HardSwish",
        }
    }
}

/// Applies the function to every element; the shape stays.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use zoo_core::ops::{pointwise, Pointwise};
/// let xs = Tensor::new(&[-1f32, 0., 2.], &Device::Cpu)?;
/// assert_eq!(pointwise(&xs, Pointwise::Relu)?.to_vec1::<f32>()?, [0., 0., 2.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// An element type that is not floating point.
pub fn pointwise(xs: &Tensor, function: Pointwise) -> Result<Tensor> {
    match path(xs) {
        Path::Shape => trace::shape_only(xs.dims(), xs.dtype(), xs.device()),
        Path::Compose => compose::pointwise(xs, function),
        Path::KernelInF32 => tape::apply1(&xs.to_dtype(DType::F32)?.contiguous()?, function)?.to_dtype(xs.dtype()),
        Path::Kernel => tape::apply1(&tape::contiguous(xs)?, function),
    }
}

impl CustomOp1 for Pointwise {
    fn name(&self) -> &'static str {
        "pointwise"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!("pointwise", x, T => {
            let xs = elements::<T>("pointwise", x, xl)?;
            Ok((T::to_cpu_storage_owned(kernel::forward(*self, xs)), xl.shape().clone()))
        })
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        xs.apply_op2_no_bwd(&grad.contiguous()?, self).map(Some)
    }
}

/// (input, gradient of the output) -> gradient of the input.
impl CustomOp2 for Pointwise {
    fn name(&self) -> &'static str {
        "pointwise gradient"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, g: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!("pointwise gradient", x, T => {
            let xs = elements::<T>("pointwise gradient", x, xl)?;
            let grad = elements::<T>("pointwise gradient", g, gl)?;
            Ok((T::to_cpu_storage_owned(kernel::backward(*self, xs, grad)), xl.shape().clone()))
        })
    }
}

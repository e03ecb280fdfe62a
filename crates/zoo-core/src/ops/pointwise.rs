//! Activation functions, element by element, each with the derivative that PyTorch uses at the kinks.

use super::{Path, Real, compose, elements, for_real, path};
use crate::{tape, trace};
use candle_core::cpu::erf::{erf_f32, erf_f64};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType};
use rayon::prelude::*;

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

/// What the kernels need beyond arithmetic.
pub(crate) trait Functions: Real {
    fn exp(self) -> Self;
    fn tanh(self) -> Self;
    fn erf(self) -> Self;
}

impl Functions for f32 {
    fn exp(self) -> Self {
        f32::exp(self)
    }
    fn tanh(self) -> Self {
        f32::tanh(self)
    }
    fn erf(self) -> Self {
        erf_f32(self)
    }
}

impl Functions for f64 {
    fn exp(self) -> Self {
        f64::exp(self)
    }
    fn tanh(self) -> Self {
        f64::tanh(self)
    }
    fn erf(self) -> Self {
        erf_f64(self)
    }
}

fn sigmoid<T: Functions>(x: T) -> T {
    T::one() / (T::one() + (-x).exp())
}

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

    /// The function, as a loop over one block. A comparison with NaN is false, so NaN falls through to itself.
    fn forward<T: Functions>(self, xs: &[T], ys: &mut [T]) {
        let c = T::from_f64;
        let each = |ys: &mut [T], f: &dyn Fn(T) -> T| ys.iter_mut().zip(xs).for_each(|(y, &x)| *y = f(x));
        match self {
            // The two that every CNN runs are written out, so that they become vector code.
            Self::Relu => {
                let zero = T::zero();
                ys.iter_mut().zip(xs).for_each(|(y, &x)| *y = if x <= zero { zero } else { x });
            }
            Self::Relu6 => {
                let (zero, six) = (T::zero(), c(6.0));
                let low = |x: T| if x <= zero { zero } else { x };
                ys.iter_mut().zip(xs).for_each(|(y, &x)| *y = if x >= six { six } else { low(x) });
            }
            Self::LeakyRelu(slope) => each(ys, &|x| if x <= T::zero() { x * c(slope) } else { x }),
            Self::Gelu => each(ys, &|x| c(0.5) * x * (T::one() + (x * c(std::f64::consts::FRAC_1_SQRT_2)).erf())),
            Self::GeluTanh => {
                let (a, b) = (c(GELU_TANH.0), c(GELU_TANH.1));
                each(ys, &|x| c(0.5) * x * (T::one() + (a * (x + b * x * x * x)).tanh()));
            }
            Self::Silu => each(ys, &|x| x * sigmoid(x)),
            Self::Sigmoid => each(ys, &sigmoid),
            Self::Tanh => each(ys, &|x| x.tanh()),
            Self::HardSigmoid => each(ys, &|x| clamp_six(x + c(3.0)) / c(6.0)),
            Self::HardSwish => each(ys, &|x| x * clamp_six(x + c(3.0)) / c(6.0)),
        }
    }

    /// dx = f'(x) · dy, as a loop over one block.
    fn backward<T: Functions>(self, xs: &[T], grad: &[T], dx: &mut [T]) {
        let (c, zero, one) = (T::from_f64, T::zero(), T::one());
        let each = |dx: &mut [T], f: &dyn Fn(T) -> T| {
            dx.iter_mut().zip(xs).zip(grad).for_each(|((dx, &x), &dy)| *dx = f(x) * dy);
        };
        match self {
            Self::Relu => {
                let both = dx.iter_mut().zip(xs).zip(grad);
                both.for_each(|((dx, &x), &dy)| *dx = if x <= zero { zero } else { dy });
            }
            Self::Relu6 => {
                let six = c(6.0);
                let both = dx.iter_mut().zip(xs).zip(grad);
                both.for_each(|((dx, &x), &dy)| *dx = if x <= zero || x >= six { zero } else { dy });
            }
            Self::LeakyRelu(slope) => each(dx, &|x| if x > zero { one } else { c(slope) }),
            Self::Gelu => {
                // φ(x) = e^(-x²/2) / √(2π)
                let norm = c(0.398_942_280_401_432_7);
                let cdf = |x: T| c(0.5) * (one + (x * c(std::f64::consts::FRAC_1_SQRT_2)).erf());
                each(dx, &|x| cdf(x) + x * norm * (c(-0.5) * x * x).exp());
            }
            Self::GeluTanh => {
                let (a, b) = (c(GELU_TANH.0), c(GELU_TANH.1));
                each(dx, &|x| {
                    let t = (a * (x + b * x * x * x)).tanh();
                    c(0.5) * (one + t) + c(0.5) * x * (one - t * t) * a * (one + c(3.0) * b * x * x)
                });
            }
            Self::Silu => each(dx, &|x| {
                let s = sigmoid(x);
                s * (one + x * (one - s))
            }),
            Self::Sigmoid => each(dx, &|x| {
                let s = sigmoid(x);
                s * (one - s)
            }),
            Self::Tanh => each(dx, &|x| one - x.tanh() * x.tanh()),
            Self::HardSigmoid => each(dx, &|x| if x > c(-3.0) && x < c(3.0) { one / c(6.0) } else { zero }),
            Self::HardSwish => each(dx, &|x| {
                if x <= c(-3.0) {
                    zero
                } else if x < c(3.0) {
                    x / c(3.0) + c(0.5)
                } else {
                    one
                }
            }),
        }
    }
}

fn clamp_six<T: Real>(x: T) -> T {
    let six = T::from_f64(6.0);
    if x <= T::zero() {
        T::zero()
    } else if x >= six {
        six
    } else {
        x
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
        Path::Kernel => tape::apply1(&tape::contiguous(&xs)?, function),
    }
}

/// A block that stays in the first-level cache while three streams pass.
const BLOCK: usize = 4096;

impl CustomOp1 for Pointwise {
    fn name(&self) -> &'static str {
        "pointwise"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!("pointwise", x, T => {
            let xs = elements::<T>("pointwise", x, xl)?;
            let mut ys = vec![0.0; xs.len()];
            ys.par_chunks_mut(BLOCK).zip(xs.par_chunks(BLOCK)).for_each(|(y, x)| self.forward(x, y));
            Ok((T::to_cpu_storage_owned(ys), xl.shape().clone()))
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
            let mut dx = vec![0.0; xs.len()];
            let blocks = dx.par_chunks_mut(BLOCK).zip(xs.par_chunks(BLOCK)).zip(grad.par_chunks(BLOCK));
            blocks.for_each(|((dx, x), dy)| self.backward(x, dy, dx));
            Ok((T::to_cpu_storage_owned(dx), xl.shape().clone()))
        })
    }
}

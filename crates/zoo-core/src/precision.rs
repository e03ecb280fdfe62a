//! Precision: whether a network computes in f32 alone, or in mixed precision with bfloat16 maps between its layers.

use crate::tape::to_dtype;
use candle_core::{DType, Device, DeviceLocation, Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

/// The numbers that a network hands on from layer to layer. Its weights are f32 in either case.
///
/// The input decides: [`cast`](Self::cast) it, and the same network with the same weights runs in that precision.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{Linear, ModuleT, Precision, VarStore, ops::cross_entropy, tape};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let net = Linear::new(3, 2, store.root())?;
/// let images = Precision::Bf16.cast(&Tensor::ones((4, 3), DType::F32, &Device::Cpu)?)?;
///
/// // Evaluation: the logits are bfloat16 too, whoever reads them takes them to f32.
/// let logits = net.forward_t(&images, false)?;
/// assert_eq!(logits.dtype(), DType::BF16);
/// let rows = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
/// # assert_eq!(rows.len(), 4);
///
/// // Training: the images are cast before the tape begins. The loss is f32, and so are the weights' gradients.
/// let labels = Tensor::new(&[0u32, 1, 0, 1], &Device::Cpu)?;
/// let (loss, grads) =
///     tape::value_and_grad(&images, |xs| cross_entropy(&net.forward_t(xs, true)?, &labels, 0.0))?;
/// assert_eq!(loss.dtype(), DType::F32);
/// for (key, weight) in store.parameters() {
///     assert_eq!(grads.get(&weight).expect(&key).dtype(), DType::F32);
/// }
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// An own loss on logits, on the tape, takes them to f32 by [`tape::to_dtype`](to_dtype), which gradients follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 throughout.
    #[default]
    F32,
    /// Mixed: maps between layers, their gradients and the operands of products are bfloat16. Weights, their gradients,
    /// statistics and scales of norms, softmax, sums, loss and optimizer stay f32. On the CPU alone.
    Bf16,
}

impl Precision {
    /// All of them.
    pub const ALL: &[Self] = &[Self::F32, Self::Bf16];

    /// The name: `f32` or `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// The type of the maps.
    pub const fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// A network's input in this precision. In training, cast it before the tape begins: what
    /// [`value_and_grad`](crate::tape::value_and_grad) is given must be cast already.
    ///
    /// # Errors
    /// A device that does not compute in it, see [`check`](Self::check); a type that cannot be converted.
    pub fn cast(self, xs: &Tensor) -> Result<Tensor> {
        self.check(xs.device())?;
        to_dtype(xs, self.dtype())
    }

    /// Whether networks compute in this precision on `device`.
    ///
    /// # Errors
    /// [`Bf16`](Self::Bf16) on anything but the CPU: candle's operations, which run there, do not mix types.
    pub fn check(self, device: &Device) -> Result<()> {
        self.check_at(device.location())
    }

    fn check_at(self, location: DeviceLocation) -> Result<()> {
        let device = match location {
            _ if self == Self::F32 => return Ok(()),
            DeviceLocation::Cpu => return Ok(()),
            DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            DeviceLocation::Metal { .. } => "metal".into(),
        };
        bail!("{self} is for the CPU: on {device} networks compute in f32")
    }

    /// Its name where it is not f32: what labels of runs need to say.
    pub fn unusual(self) -> Option<&'static str> {
        (self != Self::default()).then_some(self.name())
    }
}

impl Display for Precision {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(name: &str) -> std::result::Result<Self, UnknownPrecision> {
        Self::ALL
            .iter()
            .copied()
            .find(|precision| precision.name() == name)
            .ok_or_else(|| UnknownPrecision(name.into()))
    }
}

/// A name that is no [`Precision`]'s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownPrecision(pub String);

impl Display for UnknownPrecision {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "there is no precision `{}`: take f32, or bf16 for mixed precision with bfloat16 maps", self.0)
    }
}

impl Error for UnknownPrecision {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_refused() {
        for &precision in Precision::ALL {
            assert_eq!(precision.to_string().parse(), Ok(precision));
            let json = serde_json::to_string(&precision).unwrap();
            assert_eq!(json, format!("\"{precision}\""));
            assert_eq!(serde_json::from_str::<Precision>(&json).unwrap(), precision);
        }
        for other in ["", "BF16", "f16", "bfloat16", "f32 "] {
            let error = other.parse::<Precision>().unwrap_err().to_string();
            assert!(
                error.contains(&format!("`{other}`")) && error.contains("f32") && error.contains("bf16"),
                "{error}"
            );
        }
        assert_eq!(Precision::default(), Precision::F32);
        assert_eq!([Precision::F32, Precision::Bf16].map(Precision::unusual), [None, Some("bf16")]);
    }

    #[test]
    fn bf16_is_refused_where_types_do_not_mix() {
        let (cuda, metal) = (DeviceLocation::Cuda { gpu_id: 1 }, DeviceLocation::Metal { gpu_id: 0 });
        for &precision in Precision::ALL {
            assert!(precision.check_at(DeviceLocation::Cpu).is_ok());
        }
        for (location, name) in [(cuda, "cuda:1"), (metal, "metal")] {
            assert!(Precision::F32.check_at(location).is_ok());
            let error = Precision::Bf16.check_at(location).unwrap_err().to_string();
            assert!(error.contains(&format!("bf16 is for the CPU: on {name} networks compute in f32")), "{error}");
        }
    }

    #[test]
    fn a_cast_keeps_the_shape_and_f32_keeps_the_tensor() -> Result<()> {
        let xs = Tensor::randn(0f32, 1.0, (2, 3, 5, 7), &Device::Cpu)?;
        assert_eq!(Precision::F32.cast(&xs)?.id(), xs.id());
        let ys = Precision::Bf16.cast(&xs)?;
        assert_eq!((ys.dtype(), ys.dims()), (DType::BF16, xs.dims()));
        let rounded = |xs: &Tensor| xs.to_dtype(DType::BF16)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        assert_eq!(rounded(&ys)?, rounded(&xs)?);
        Ok(())
    }
}

//! Products of batches of matrices.

use super::{Path, path};
use crate::trace;
use candle_core::{DType, Result, Tensor, bail};

/// Matrix products over the last two dimensions: (…, m, k) · (…, k, n) -> (…, m, n), the leading dimensions equal.
///
/// Candle's own product, whose gradient is right; here its shapes are checked and its multiply-adds counted.
///
/// # Errors
/// Shapes that do not fit together, naming both.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (&[ref lead_a @ .., m, k], &[ref lead_b @ .., k_b, n]) = (a.dims(), b.dims()) else {
        bail!("matmul: wants two tensors of at least two dimensions, got {:?} and {:?}", a.dims(), b.dims())
    };
    if lead_a != lead_b || k != k_b {
        bail!("matmul: {:?} and {:?} do not fit together", a.dims(), b.dims())
    }
    trace::count_macs((lead_a.iter().product::<usize>() * m * k * n) as u64);
    match path(a) {
        Path::Shape => trace::shape_only(&[lead_a, &[m, n]].concat(), a.dtype(), a.device()),
        Path::KernelInF32 => {
            a.to_dtype(DType::F32)?.contiguous()?.matmul(&b.to_dtype(DType::F32)?.contiguous()?)?.to_dtype(a.dtype())
        }
        Path::Kernel | Path::Compose => a.contiguous()?.matmul(&b.contiguous()?),
    }
}

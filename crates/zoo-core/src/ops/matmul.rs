//! Products of batches of matrices.

use super::{Path, Real, elements, for_real, path};
use crate::kernels::buffer::written;
use crate::kernels::gemm::{Mat, Out, Threads, gemm};
use crate::{tape, trace};
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType, bail};
use rayon::prelude::*;

/// Matrix products over the last two dimensions: (…, m, k) · (…, k, n) -> (…, m, n), the leading dimensions equal.
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
    if a.dtype() != b.dtype() {
        bail!("matmul: the left side is {:?}, the right side {:?}", a.dtype(), b.dtype())
    }
    trace::count_macs((lead_a.iter().product::<usize>() * m * k * n) as u64);
    let is_empty = a.elem_count() == 0 || b.elem_count() == 0;
    match path(a) {
        Path::Shape => trace::shape_only(&[lead_a, &[m, n]].concat(), a.dtype(), a.device()),
        Path::Compose => a.contiguous()?.matmul(&b.contiguous()?),
        _ if is_empty => a.contiguous()?.matmul(&b.contiguous()?),
        Path::KernelInF32 => {
            let single = |t: &Tensor| t.to_dtype(DType::F32)?.contiguous();
            tape::apply2(&single(a)?, &single(b)?, Product::Plain)?.to_dtype(a.dtype())
        }
        Path::Kernel => tape::apply2(&tape::contiguous(a)?, &tape::contiguous(b)?, Product::Plain),
    }
}

/// The product of each pair of matrices, one of them transposed or none.
enum Product {
    /// a · b
    Plain,
    /// a · bᵀ
    RightTransposed,
    /// aᵀ · b
    LeftTransposed,
}

impl Product {
    fn run<T: Real>(
        &self,
        (a, al): (&CpuStorage, &Layout),
        (b, bl): (&CpuStorage, &Layout),
    ) -> Result<(Vec<T>, Shape)> {
        let (a, b) = (elements::<T>("matmul", a, al)?, elements::<T>("matmul", b, bl)?);
        let (&[ref lead @ .., rows_a, cols_a], &[.., rows_b, cols_b]) = (al.dims(), bl.dims()) else {
            bail!("matmul: {:?} and {:?} are no matrices", al.dims(), bl.dims())
        };
        let (m, n, k) = match self {
            Self::Plain => (rows_a, cols_b, cols_a),
            Self::RightTransposed => (rows_a, rows_b, cols_a),
            Self::LeftTransposed => (cols_a, cols_b, rows_a),
        };
        let batch: usize = lead.iter().product();
        let threads = Threads::inside(batch);
        let each = |i: usize, out: &mut [std::mem::MaybeUninit<T>]| {
            let (a, b) = (&a[i * rows_a * cols_a..][..rows_a * cols_a], &b[i * rows_b * cols_b..][..rows_b * cols_b]);
            let lhs = match self {
                Self::LeftTransposed => Mat::transposed(a, cols_a),
                _ => Mat::rows(a, cols_a),
            };
            let rhs = match self {
                Self::RightTransposed => Mat::transposed(b, cols_b),
                _ => Mat::rows(b, cols_b),
            };
            gemm((m, n, k), Out::Is(out), lhs, rhs, threads);
        };
        // SAFETY: each product fills its matrix, and they are all.
        let ys = unsafe {
            written(batch * m * n, |ys| ys.par_chunks_mut(m * n).enumerate().for_each(|(i, out)| each(i, out)))
        };
        Ok((ys, [lead, &[m, n]].concat().into()))
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn cpu_fwd(&self, a: &CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        for_real!("matmul", a, T => {
            let (ys, shape) = self.run::<T>((a, al), (b, bl))?;
            Ok((T::to_cpu_storage_owned(ys), shape))
        })
    }

    /// The gradients of a are dy · bᵀ, those of b aᵀ · dy.
    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let da = tape::tracks(a).then(|| grad.apply_op2_no_bwd(b, &Self::RightTransposed)).transpose()?;
        let db = tape::tracks(b).then(|| a.apply_op2_no_bwd(&grad, &Self::LeftTransposed)).transpose()?;
        Ok((da, db))
    }
}

//! Products of batches of matrices.

use super::Real;
use crate::kernels::gemm::{Pairs, Transposed, multiply_pairs};
use crate::op::{Op, Passed, Saved, apply};
use crate::trace;
use candle_core::{Result, Tensor, bail};

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
    if a.elem_count() == 0 || b.elem_count() == 0 {
        return a.contiguous()?.matmul(&b.contiguous()?);
    }
    let pairs = Pairs { count: lead_a.iter().product(), m, n, k };
    apply(MatMul { pairs, shape: [lead_a, &[m, n]].concat() }, &[a, b])
}

struct MatMul {
    pairs: Pairs,
    shape: Vec<usize>,
}

impl Op for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn forward<T: Real>(&self, inputs: &[&[T]]) -> Result<Vec<T>> {
        Ok(multiply_pairs(self.pairs, Transposed::Neither, inputs[0], inputs[1]))
    }

    /// da = dy · bᵀ, db = aᵀ · dy
    fn backward<T: Real>(&self, saved: &Saved<T>) -> Result<Vec<Passed<T>>> {
        let (Pairs { count, m, n, k }, a, b) = (self.pairs, saved.inputs[0], saved.inputs[1]);
        let da = || multiply_pairs(Pairs { count, m, n: k, k: n }, Transposed::Right, saved.grad, b);
        let db = || multiply_pairs(Pairs { count, m: k, n, k: m }, Transposed::Left, a, saved.grad);
        Ok(vec![saved.want(0, da), saved.want(1, db)])
    }

    fn fallback(&self, inputs: &[Tensor]) -> Result<Tensor> {
        inputs[0].contiguous()?.matmul(&inputs[1].contiguous()?)
    }
}

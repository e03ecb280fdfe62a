//! bfloat16 maps: (b, c, h, w) in shape, channels innermost in memory.

use super::{elements, read, with_elements};
use crate::kernels::bf16::{layout, pointwise};
use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Shape, Tensor, bail};
use half::bf16;

/// A tensor in another type, off every graph. f32 maps have their pixels innermost, bfloat16 ones their channels.
pub(crate) fn convert(xs: &Tensor, dtype: DType) -> Result<Tensor> {
    let xs = xs.detach();
    match (xs.dtype(), dtype, xs.dims()) {
        (DType::F32, DType::BF16, &[_, c, h, w]) if xs.elem_count() > 0 => {
            map(read::<f32, _>(&xs.contiguous()?, |xs| layout::narrow(xs, (c, h * w)))?, xs.shape())
        }
        (DType::BF16, DType::F32, &[_, c, h, w]) if xs.elem_count() > 0 => {
            let planes = with_rows(&[&xs], |all| Ok(layout::widen(all[0], (c, h * w))))?;
            Tensor::from_vec(planes, xs.shape(), &Device::Cpu)
        }
        _ => xs.contiguous()?.to_dtype(dtype),
    }
}

/// A map of rows of channels, of this shape.
pub(crate) fn map(rows: Vec<bf16>, shape: &Shape) -> Result<Tensor> {
    match *shape.dims() {
        [b, c, h, w] => Tensor::from_vec(rows, (b, h, w, c), &Device::Cpu)?.permute((0, 3, 1, 2)),
        _ => Tensor::from_vec(rows, shape, &Device::Cpu),
    }
}

/// A map's rows of channels: a view, unless its pixels are innermost.
pub(crate) fn rows(xs: &Tensor) -> Result<Tensor> {
    let &[b, c, h, w] = xs.dims() else { return xs.detach().contiguous() };
    let rows = xs.detach().permute((0, 2, 3, 1))?;
    if rows.is_contiguous() {
        return Ok(rows);
    }
    let planes = xs.detach().contiguous()?;
    let rows = with_elements("rows", &[&planes], |all| Ok(layout::planes_to_rows(all[0], (c, h * w))))?;
    Tensor::from_vec(rows, (b, h, w, c), &Device::Cpu)
}

/// A map's elements in row-major order, pixels innermost, as candle's own operations like them.
pub(crate) fn planes(xs: &Tensor) -> Result<Tensor> {
    let &[_, c, h, w] = xs.dims() else { return xs.contiguous() };
    if xs.is_contiguous() || xs.elem_count() == 0 {
        return xs.contiguous();
    }
    let planes = with_rows(&[xs], |all| Ok(layout::rows_to_planes(all[0], (c, h * w))))?;
    Tensor::from_vec(planes, xs.shape(), &Device::Cpu)
}

/// Lends the rows of maps.
pub(crate) fn with_rows<R>(maps: &[&Tensor], f: impl FnOnce(&[&[bf16]]) -> Result<R>) -> Result<R> {
    let rows = maps.iter().map(|xs| rows(xs)).collect::<Result<Vec<_>>>()?;
    with_elements("mixed precision", &rows.iter().collect::<Vec<_>>(), f)
}

/// Lends a map's rows to write to, and another's to read; false if the first has its pixels innermost.
fn update_map(to: &Tensor, from: &Tensor, f: impl Fn(&mut [bf16], &[bf16])) -> Result<bool> {
    struct Update<F>(F);
    impl<F: Fn(&mut [bf16], &[bf16])> InplaceOp2 for Update<F> {
        fn name(&self) -> &'static str {
            "map in place"
        }

        fn cpu_fwd(&self, to: &mut CpuStorage, to_at: &Layout, from: &CpuStorage, from_at: &Layout) -> Result<()> {
            let (CpuStorage::BF16(to), Some((start, end))) = (to, to_at.contiguous_offsets()) else {
                bail!("{}: wants rows of bfloat16 numbers, got strides {:?}", self.name(), to_at.stride())
            };
            (self.0)(&mut to[start..end], elements(self.name(), from, from_at)?);
            Ok(())
        }
    }
    let to = if to.rank() == 4 { to.detach().permute((0, 2, 3, 1))? } else { to.detach() };
    if !to.is_contiguous() {
        return Ok(false);
    }
    to.inplace_op2(&rows(from)?, &Update(f))?;
    Ok(true)
}

/// The second map added to the first in its memory; false if that has its pixels innermost.
pub(crate) fn add_to_map(to: &Tensor, from: &Tensor) -> Result<bool> {
    update_map(to, from, pointwise::add_to)
}

/// The sum of two maps of one shape.
pub(crate) fn add_maps(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    map(with_rows(&[a, b], |all| Ok(pointwise::add(all[0], all[1])))?, a.shape())
}

//! Joining and rearranging along one dimension: copies at the speed of the memory, which candle's strided ones, on
//! one thread, are not.

use super::{Path, elements, for_real, path, tensor};
use crate::kernels::copy as kernel;
use crate::tape::{self, Gradient};
use crate::trace;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, WithDType, bail,
};

/// Tensors one behind the other along `dim`, as `Tensor::cat`.
///
/// # Errors
/// Shapes that differ elsewhere, or nothing to join.
pub fn concat(parts: &[&Tensor], dim: usize) -> Result<Tensor> {
    let Some(first) = parts.first() else { return Tensor::cat(parts, dim) };
    let fits = |part: &&Tensor| {
        let agree = |(i, (a, b)): (usize, (&usize, &usize))| i == dim || a == b;
        part.rank() == first.rank()
            && part.dtype() == first.dtype()
            && part.elem_count() > 0
            && part.dims().iter().zip(first.dims()).enumerate().all(agree)
    };
    // What does not fit is candle's to report.
    if dim >= first.rank() || !parts.iter().all(fits) {
        return Tensor::cat(parts, dim);
    }
    match (path(first), parts) {
        (Path::Shape, _) => {
            let mut dims = first.dims().to_vec();
            dims[dim] = parts.iter().map(|part| part.dims()[dim]).sum();
            trace::shape_only(&dims, first.dtype(), first.device())
        }
        (Path::Kernel, _) if parts.iter().any(|part| tape::is_recorded(part)) => recorded(parts, dim),
        (Path::Kernel, [a, b]) => a.contiguous()?.apply_op2(&b.contiguous()?, Concat { dim }),
        (Path::Kernel, [a, b, c]) => a.contiguous()?.apply_op3(&b.contiguous()?, &c.contiguous()?, Concat { dim }),
        // An operation has three inputs at most: the rest is joined first.
        (Path::Kernel, [a, b, rest @ ..]) if !rest.is_empty() => concat(&[a, b, &concat(rest, dim)?], dim),
        _ => Tensor::cat(parts, dim),
    }
}

/// Any number of parts, on the tape.
fn recorded(parts: &[&Tensor], dim: usize) -> Result<Tensor> {
    let parts: Vec<Tensor> = parts.iter().map(|part| tape::contiguous(part)).collect::<Result<_>>()?;
    let storages: Vec<_> = parts.iter().map(Tensor::storage_and_layout).collect();
    let on_host = storages.iter().map(|(storage, layout)| match &**storage {
        Storage::Cpu(storage) => Ok((storage, *layout)),
        _ => bail!("concat: wants tensors on the CPU"),
    });
    let (ys, shape) = Concat { dim }.run(&on_host.collect::<Result<Vec<_>>>()?)?;
    let ys = match ys {
        CpuStorage::F32(ys) => tensor(ys, shape)?,
        CpuStorage::F64(ys) => tensor(ys, shape)?,
        _ => bail!("concat: no CPU kernel for {:?}", parts[0].dtype()),
    };
    drop(storages);
    let widths: Vec<usize> = parts.iter().map(|part| part.dims()[dim]).collect();
    tape::record("concat", &parts.iter().collect::<Vec<_>>(), &ys, move |grad| {
        let mut start = 0;
        let slices = widths.into_iter().map(|width| {
            let slice = grad.tensor.narrow(dim, start, width)?;
            start += width;
            Ok(Some(Gradient { tensor: slice, owned: false }))
        });
        slices.collect()
    });
    Ok(ys)
}

struct Concat {
    dim: usize,
}

impl Concat {
    fn run(&self, parts: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        let mut dims = parts[0].1.dims().to_vec();
        let rows = dims[..self.dim].iter().product();
        dims[self.dim] = parts.iter().map(|(_, layout)| layout.dims()[self.dim]).sum();
        for_real!("concat", parts[0].0, T => {
            let parts = parts.iter().map(|(storage, layout)| elements::<T>("concat", storage, layout));
            let ys = kernel::join(rows, &parts.collect::<Result<Vec<_>>>()?, 0, 0);
            Ok((T::to_cpu_storage_owned(ys), dims.into()))
        })
    }

    /// A view: candle adds it to what it has in any case, and a copy before that would be one pass more.
    fn gradient(&self, part: &Tensor, start: usize, grad: &Tensor) -> Result<Option<Tensor>> {
        part.track_op().then(|| grad.narrow(self.dim, start, part.dims()[self.dim])).transpose()
    }
}

impl CustomOp2 for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn cpu_fwd(&self, a: &CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        self.run(&[(a, al), (b, bl)])
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((self.gradient(a, 0, grad)?, self.gradient(b, a.dims()[self.dim], grad)?))
    }
}

impl CustomOp3 for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        al: &Layout,
        b: &CpuStorage,
        bl: &Layout,
        c: &CpuStorage,
        cl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run(&[(a, al), (b, bl), (c, cl)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (b_start, c_start) = (a.dims()[self.dim], a.dims()[self.dim] + b.dims()[self.dim]);
        Ok((self.gradient(a, 0, grad)?, self.gradient(b, b_start, grad)?, self.gradient(c, c_start, grad)?))
    }
}

/// Zero channels below and above: (b, c, …) -> (b, below + c + above, …).
///
/// # Errors
/// An input of fewer than two dimensions.
pub fn pad_channels(xs: &Tensor, below: usize, above: usize) -> Result<Tensor> {
    match (path(xs), xs.dims()) {
        (Path::Kernel, [_, _, ..]) if xs.elem_count() > 0 && below + above > 0 => {
            tape::apply1(&tape::contiguous(xs)?, PadChannels { below, above })
        }
        _ => xs.pad_with_zeros(1, below, above),
    }
}

struct PadChannels {
    below: usize,
    above: usize,
}

impl CustomOp1 for PadChannels {
    fn name(&self) -> &'static str {
        "pad_channels"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut dims = xl.dims().to_vec();
        let (rows, each) = (dims[0], dims[2..].iter().product::<usize>());
        dims[1] += self.below + self.above;
        for_real!(self.name(), x, T => {
            let xs = elements::<T>(self.name(), x, xl)?;
            let ys = kernel::join(rows, &[xs], self.below * each, self.above * each);
            Ok((T::to_cpu_storage_owned(ys), dims.into()))
        })
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        grad.narrow(1, self.below, xs.dims()[1]).map(Some)
    }
}

/// Channel j of group i becomes channel i of group j: (b, c, h, w) -> (b, c, h, w).
///
/// # Errors
/// An input that is not (b, c, h, w), or channels that the groups do not divide.
pub fn channel_shuffle(xs: &Tensor, groups: usize) -> Result<Tensor> {
    let (b, c, h, w) = xs.dims4()?;
    if groups == 0 || !c.is_multiple_of(groups) {
        bail!("channel_shuffle: {groups} groups do not divide the channels of {:?}", xs.dims())
    }
    match path(xs) {
        Path::Kernel if xs.elem_count() > 0 => tape::apply1(&tape::contiguous(xs)?, Shuffle { groups }),
        _ => xs.reshape((b, groups, c / groups, h * w))?.transpose(1, 2)?.contiguous()?.reshape((b, c, h, w)),
    }
}

struct Shuffle {
    groups: usize,
}

impl CustomOp1 for Shuffle {
    fn name(&self) -> &'static str {
        "channel_shuffle"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, c, h, w) = xl.shape().dims4()?;
        let (groups, each) = (self.groups, c / self.groups);
        // Plane j of group i goes to plane i of group j, image by image.
        let source = |plane: usize| plane - plane % c + plane % groups * each + plane % c / groups;
        debug_assert!(c.is_multiple_of(groups));
        for_real!(self.name(), x, T => {
            let ys = kernel::arrange::<T>(elements(self.name(), x, xl)?, h * w, source);
            Ok((T::to_cpu_storage_owned(ys), xl.shape().clone()))
        })
    }

    /// Dealing in by the other count undoes dealing out.
    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let groups = xs.dims()[1] / self.groups;
        grad.contiguous()?.apply_op1_no_bwd(&Shuffle { groups }).map(Some)
    }
}

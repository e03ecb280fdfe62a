//! One tensor of a file: where its bytes are, and how they become a Candle tensor.

use super::bytes::{Parsed, fail, shown};
use candle_core::{DType, Device, Result, Shape, Tensor, WithDType};
use half::{bf16, f16};
use std::ops::Range;

/// How a file stores one number; always little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U32,
    U16,
    U8,
    Bool,
}

impl Element {
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Candle's type for it: the same, or where Candle has none the next wider one that holds every value.
    pub fn dtype(self) -> DType {
        match self {
            Self::F64 => DType::F64,
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
            Self::I64 => DType::I64,
            Self::I32 => DType::I32,
            Self::I16 | Self::I8 => DType::I16,
            Self::U32 | Self::U16 => DType::U32,
            Self::U8 | Self::Bool => DType::U8,
        }
    }
}

/// A tensor inside a file. Its bounds are checked when it is made, so reading it cannot fail on the file's account.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub element: Element,
    pub shape: Shape,
    /// Which of the files that hold the tensors it is in.
    pub part: usize,
    start: usize,
    count: usize,
    /// In elements; `None` where the elements lie row by row without gaps.
    strides: Option<Vec<usize>>,
}

impl Entry {
    /// More axes than any layer's weight has (a 3-d convolution has five). A cap keeps what a shape takes in memory
    /// near what it takes in the file.
    pub const MAX_AXES: usize = 8;

    /// A tensor whose elements lie row by row in `bytes` of the file and fill it.
    pub fn contiguous(key: &str, element: Element, dims: Vec<usize>, bytes: Range<usize>, at: usize) -> Parsed<Self> {
        let count = element_count(key, &dims, at)?;
        let (have, need) = (bytes.len(), count.checked_mul(element.size()));
        if need != Some(have) {
            return fail(at, format!("`{}`: shape {dims:?} of {element:?} does not take {have} bytes", shown(key)));
        }
        Ok(Self { element, shape: dims.into(), part: 0, start: bytes.start, count, strides: None })
    }

    /// A view into the storage that lies at `storage` of the file; offset and strides in elements.
    pub fn view(
        key: &str,
        element: Element,
        (dims, mut strides, offset): (Vec<usize>, Vec<usize>, usize),
        storage: Range<usize>,
        at: usize,
    ) -> Parsed<Self> {
        let count = element_count(key, &dims, at)?;
        if dims.len() != strides.len() {
            return fail(at, format!("`{}`: shape {dims:?} and strides {strides:?} differ in length", shown(key)));
        }
        if count == 0 {
            return Ok(Self { element, shape: dims.into(), part: 0, start: storage.start, count, strides: None });
        }
        // An axis of length 1 is never stepped along: its stride is free, and files do hold odd ones.
        for (stride, _) in strides.iter_mut().zip(&dims).filter(|&(_, &dim)| dim == 1) {
            *stride = 0;
        }
        let reach = strides.iter().zip(&dims).try_fold(offset, |reach, (stride, dim)| {
            stride.checked_mul(dim - 1).and_then(|step| reach.checked_add(step))
        });
        let capacity = storage.len() / element.size();
        if reach.is_none_or(|last| last >= capacity) {
            let what = format!("shape {dims:?}, strides {strides:?} and offset {offset} leave its storage");
            return fail(at, format!("`{}`: {what} of {capacity} elements", shown(key)));
        }
        let mut run = 1;
        let is_dense = strides.iter().zip(&dims).rev().all(|(&stride, &dim)| {
            let dense = dim == 1 || stride == run;
            run *= dim;
            dense
        });
        let start = storage.start + offset * element.size();
        Ok(Self { element, shape: dims.into(), part: 0, start, count, strides: (!is_dense).then_some(strides) })
    }

    /// Bytes that the tensor takes once read.
    pub fn size_in_memory(&self) -> usize {
        self.count.saturating_mul(self.element.dtype().size_in_bytes())
    }

    pub fn read(&self, file: &[u8], device: &Device) -> Result<Tensor> {
        match self.element {
            Element::F64 => self.decode(file, device, f64::from_le_bytes),
            Element::F32 => self.decode(file, device, f32::from_le_bytes),
            Element::F16 => self.decode(file, device, f16::from_le_bytes),
            Element::BF16 => self.decode(file, device, bf16::from_le_bytes),
            Element::I64 => self.decode(file, device, i64::from_le_bytes),
            Element::I32 => self.decode(file, device, i32::from_le_bytes),
            Element::I16 => self.decode(file, device, i16::from_le_bytes),
            Element::I8 => self.decode(file, device, |b| i16::from(i8::from_le_bytes(b))),
            Element::U32 => self.decode(file, device, u32::from_le_bytes),
            Element::U16 => self.decode(file, device, |b| u32::from(u16::from_le_bytes(b))),
            Element::U8 => self.decode(file, device, u8::from_le_bytes),
            Element::Bool => self.decode(file, device, |[b]| u8::from(b != 0)),
        }
    }

    fn decode<const N: usize, T: WithDType>(
        &self,
        file: &[u8],
        device: &Device,
        value: impl Fn([u8; N]) -> T,
    ) -> Result<Tensor> {
        let (elements, _) = file[self.start..].as_chunks::<N>();
        let mut values: Vec<T> = Vec::new();
        if values.try_reserve_exact(self.count).is_err() {
            bail!("a tensor {:?} of {} takes more memory than there is", self.shape.dims(), T::DTYPE.as_str())
        }
        match &self.strides {
            None => values.extend(elements[..self.count].iter().map(|&bytes| value(bytes))),
            Some(strides) => {
                let mut positions = Positions::new(self.shape.dims(), strides);
                values.extend((0..self.count).map(|_| value(elements[positions.advance()])));
            }
        }
        Tensor::from_vec(values, &self.shape, device)
    }
}

/// The product of the axes, such that no partial product overflows either, in whatever order it is taken: a zero among
/// the axes hides nothing.
fn element_count(key: &str, dims: &[usize], at: usize) -> Parsed<usize> {
    if dims.len() > Entry::MAX_AXES {
        return fail(at, format!("`{}`: more than {} axes", shown(key), Entry::MAX_AXES));
    }
    match dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim.max(1))) {
        Some(_) if dims.contains(&0) => Ok(0),
        Some(count) => Ok(count),
        None => fail(at, format!("`{}`: shape {dims:?} has more elements than can be counted", shown(key))),
    }
}

/// Walks a strided tensor in row-major order.
struct Positions<'a> {
    dims: &'a [usize],
    strides: &'a [usize],
    index: Vec<usize>,
    position: usize,
}

impl<'a> Positions<'a> {
    fn new(dims: &'a [usize], strides: &'a [usize]) -> Self {
        Self { dims, strides, index: vec![0; dims.len()], position: 0 }
    }

    fn advance(&mut self) -> usize {
        let current = self.position;
        for axis in (0..self.dims.len()).rev() {
            self.index[axis] += 1;
            self.position += self.strides[axis];
            if self.index[axis] < self.dims[axis] {
                break;
            }
            self.position -= self.dims[axis] * self.strides[axis];
            self.index[axis] = 0;
        }
        current
    }
}

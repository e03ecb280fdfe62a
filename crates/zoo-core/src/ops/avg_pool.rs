//! Average pooling for any kernel, stride, padding and `ceil_mode`.

use super::{Real, fallback};
use crate::kernels::bf16::pool::{self as mixed, Grid};
use crate::kernels::pool::{self as kernel, Window};
use crate::op::{Op, Operand, Passed, Saved, apply, on_maps};
use crate::pass::{Backend, backend};
use crate::tape::foreign_op;
use crate::trace::shape_only;
use candle_core::{Error, Result, Tensor, bail};
use half::bf16;

/// The mean under each window: (b, c, h, w) -> (b, c, oh, ow), as `torch.nn.functional.avg_pool2d`.
///
/// Sizes as [`max_pool2d`](super::max_pool2d). With `count_include_pad` (PyTorch's default) the zeros of the padding
/// count in the mean; without it the sum is divided by the pixels that lie inside the image.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// let xs = Tensor::ones((1, 1, 2, 2), DType::F32, &Device::Cpu)?;
/// let ys = zoo_core::ops::avg_pool2d(&xs, (2, 2), (1, 1), (1, 1), false, true)?;
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [0.25, 0.5, 0.25, 0.5, 1., 0.5, 0.25, 0.5, 0.25]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// An input that is not (b, c, h, w), a window larger than the padded image, padding of more than half the kernel.
pub fn avg_pool2d(
    xs: &Tensor,
    kernel: (usize, usize),
    stride: (usize, usize),
    padding: (usize, usize),
    ceil_mode: bool,
    count_include_pad: bool,
) -> Result<Tensor> {
    let window = Window::new("avg_pool2d", xs.dims(), kernel, stride, padding, ceil_mode).map_err(Error::msg)?;
    apply(AvgPool { window, count_include_pad }, &[xs])
}

struct AvgPool {
    window: Window,
    count_include_pad: bool,
}

impl AvgPool {
    /// What the sum under each window is multiplied by.
    fn parts(&self) -> Vec<f32> {
        let Window { oh, ow, .. } = self.window;
        let windows = (0..oh).flat_map(|oy| (0..ow).map(move |ox| (oy, ox)));
        windows.map(|(oy, ox)| 1.0 / self.window.divisor(oy, ox, self.count_include_pad) as f32).collect()
    }
}

impl Op for AvgPool {
    fn name(&self) -> &'static str {
        "avg_pool2d"
    }

    fn shape(&self) -> Vec<usize> {
        self.window.output.to_vec()
    }

    fn saves(&self) -> (bool, bool) {
        (false, false)
    }

    fn forward<T: Real>(&self, inputs: &[&[T]]) -> Result<Vec<T>> {
        Ok(kernel::avg_forward(&self.window, self.count_include_pad, inputs[0]))
    }

    fn backward<T: Real>(&self, saved: &Saved<T>) -> Result<Vec<Passed<T>>> {
        Ok(vec![Passed::Made(kernel::avg_backward(&self.window, self.count_include_pad, saved.grad))])
    }

    fn maps(&self) -> usize {
        1
    }

    fn forward_bf16(&self, inputs: &[Operand]) -> Result<Vec<bf16>> {
        Ok(mixed::avg_forward(&self.window.grid(), &self.parts(), self.window.output[1], inputs[0].map()))
    }

    fn backward_bf16(&self, saved: &Saved<bf16, Operand>) -> Result<Vec<Passed<bf16>>> {
        let (grid, parts, c) = (self.window.grid(), self.parts(), self.window.output[1]);
        Ok(vec![saved.want(0, || mixed::avg_backward(&grid, &parts, c, saved.grad))])
    }

    fn fallback(&self, inputs: &[Tensor]) -> Result<Tensor> {
        fallback::avg_pool2d(&inputs[0], &self.window, self.count_include_pad)
    }
}

/// The mean over each cell of a grid of `size` laid over the image, as `torch.nn.functional.adaptive_avg_pool2d`: (b,
/// c, h, w) -> (b, c, size.0, size.1). Cell i of n reaches from ⌊i·h/n⌋ to ⌈(i+1)·h/n⌉, so that neighbours overlap
/// where n does not divide h, and repeat pixels where n is larger.
///
/// # Errors
/// An input that is not (b, c, h, w), or a size of 0.
pub fn adaptive_avg_pool2d(xs: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    let &[b, c, h, w] = xs.dims() else { bail!("adaptive_avg_pool2d: wants input (b, c, h, w), got {:?}", xs.dims()) };
    let (oh, ow) = size;
    if oh == 0 || ow == 0 || xs.elem_count() == 0 {
        bail!("adaptive_avg_pool2d: nothing to pool of {:?} to {size:?}", xs.dims())
    }
    if (h, w) == size {
        return Ok(xs.clone());
    }
    if h % oh == 0 && w % ow == 0 {
        let kernel = (h / oh, w / ow);
        return avg_pool2d(xs, kernel, kernel, (0, 0), false, true);
    }
    if backend(xs) == Backend::Shapes {
        return shape_only(&[b, c, oh, ow], xs.dtype(), xs.device());
    }
    if let Some(ys) = cells(xs, size)? {
        return Ok(ys);
    }
    // Cells of several sizes: a matrix of means for each direction.
    let means = |n: usize, cells: usize| -> Result<Tensor> {
        let mut matrix = vec![0.0; n * cells];
        for cell in 0..cells {
            let (start, end) = (cell * n / cells, ((cell + 1) * n).div_ceil(cells));
            (start..end).for_each(|i| matrix[i * cells + cell] = 1.0 / (end - start) as f64);
        }
        Tensor::from_vec(matrix, (n, cells), xs.device())?.to_dtype(xs.dtype())
    };
    foreign_op(&[xs], |xs| {
        let rows = xs[0].reshape((b * c * h, w))?.matmul(&means(w, ow)?)?; // (b·c·h, ow)
        let cols = rows.reshape((b * c, h, ow))?.transpose(1, 2)?.contiguous()?.reshape((b * c * ow, h))?;
        let cells = cols.matmul(&means(h, oh)?)?.reshape((b * c, ow, oh))?;
        cells.transpose(1, 2)?.contiguous()?.reshape((b, c, oh, ow))
    })
}

/// [`adaptive_avg_pool2d`] of bfloat16 maps.
fn cells(xs: &Tensor, (oh, ow): (usize, usize)) -> Result<Option<Tensor>> {
    let (b, c, h, w) = xs.dims4()?;
    let ranges = |n: usize, cells: usize| (0..cells).map(|i| i * n / cells..((i + 1) * n).div_ceil(cells)).collect();
    let grid = Grid::new((h, w), ranges(h, oh), ranges(w, ow));
    let part = |rows: usize, cols: usize| 1.0 / (rows * cols) as f32;
    let parts = grid.rows.iter().flat_map(|rows| grid.cols.iter().map(|cols| part(rows.len(), cols.len())));
    let parts: Vec<f32> = parts.collect();
    let (behind, shares) = (grid.clone(), parts.clone());
    on_maps(
        ("adaptive_avg_pool2d", &[b, c, oh, ow], (false, false)),
        (&[xs], 1),
        |inputs| Ok(mixed::avg_forward(&grid, &parts, c, inputs[0].map())),
        move |saved| Ok(vec![saved.want(0, || mixed::avg_backward(&behind, &shares, c, saved.grad))]),
    )
}

//! Tensors of a checkpoint for another image than it was trained on, made as timm makes them: stems of other channels,
//! position embeddings of another grid.

use candle_core::{DType, Device, Result, Shape, Tensor};

/// How a tensor of a file becomes one of another shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Adaptation {
    /// A convolution of red, green and blue for so many channels.
    Channels(usize),
    /// Position embeddings (1, tokens, width) of a square grid, from one side to another, behind the tokens that stand
    /// for no patch.
    Positions { prefix: usize, from: usize, to: usize },
}

/// The way from the shape in the file to the network's, if there is one for the tensor of this key.
pub(super) fn adaptation(key: &str, file: &Shape, network: &Shape) -> Option<Adaptation> {
    match (file.dims(), network.dims()) {
        (&[out, 3, h, w], &[same, channels, height, width]) => {
            ((out, h, w) == (same, height, width)).then_some(Adaptation::Channels(channels))
        }
        (&[1, from, width], &[1, to, same]) if width == same && key.rsplit('.').next() == Some("pos_embed") => {
            // A class token, or that and one for distillation.
            (0..=2).find_map(|prefix| {
                let [from, to] = [from, to].map(|tokens| square_root(tokens.checked_sub(prefix)?));
                Some(Adaptation::Positions { prefix, from: from?, to: to? })
            })
        }
        _ => None,
    }
}

fn square_root(n: usize) -> Option<usize> {
    let root = n.isqrt();
    (root > 0 && root * root == n).then_some(root)
}

impl Adaptation {
    /// The tensor in its new shape, as f32.
    pub fn of(self, tensor: &Tensor) -> Result<Tensor> {
        let tensor = tensor.to_dtype(DType::F32)?;
        match self {
            Self::Channels(channels) => stem(&tensor, channels),
            Self::Positions { prefix, from, to } => positions(&tensor, prefix, (from, to)),
        }
    }
}

impl std::fmt::Display for Adaptation {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Channels(1) => write!(f, "its three channels summed for grey images"),
            Self::Channels(channels) => write!(f, "its three channels repeated for {channels}, scaled to one sum"),
            Self::Positions { from, to, .. } => write!(f, "{from}x{from} positions resampled to {to}x{to}"),
        }
    }
}

/// timm's `adapt_input_conv`: for grey images the sum over the channels; for others the channels over and over, scaled so
/// that an image of as many equal channels gives the same sums.
fn stem(weight: &Tensor, channels: usize) -> Result<Tensor> {
    if channels == 1 {
        return weight.sum_keepdim(1);
    }
    let repeated = Tensor::cat(&vec![weight; channels.div_ceil(3)], 1)?;
    repeated.narrow(1, 0, channels)?.contiguous()? * (3.0 / channels as f64)
}

/// timm's `resample_abs_pos_embed`: bicubic, and antialiased where the grid becomes smaller.
fn positions(embedding: &Tensor, prefix: usize, (from, to): (usize, usize)) -> Result<Tensor> {
    let width = embedding.dim(2)?;
    let all = embedding.flatten_all()?.to_vec1::<f32>()?;
    let (before, grid) = all.split_at(prefix * width);
    let rows = resampled(grid, (from, width * from), to);
    // Columns: every row's grid of `from` columns by itself.
    let columns = rows.chunks_exact(width * from).flat_map(|row| resampled(row, (from, width), to));
    let values: Vec<f32> = before.iter().copied().chain(columns).collect();
    Tensor::from_vec(values, (1, prefix + to * to, width), &Device::Cpu)
}

/// n rows of so many numbers, as m rows.
fn resampled(values: &[f32], (n, width): (usize, usize), m: usize) -> Vec<f32> {
    let mut all = Vec::with_capacity(m * width);
    for i in 0..m {
        let (first, weights) = taps(n, m, i);
        let start = all.len();
        all.resize(start + width, 0.0);
        for (weight, row) in weights.iter().zip(values.chunks_exact(width).skip(first)) {
            all[start..].iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
        }
    }
    all
}

/// The rows of n that row i of m is made of: the first, and the weights of it and those behind. The cubic is Keys's with
/// a = -1/2, as wide as a step of the new grid where that is the larger.
fn taps(n: usize, m: usize, i: usize) -> (usize, Vec<f32>) {
    let scale = n as f64 / m as f64;
    let stretch = scale.max(1.0);
    let (center, support) = (scale * (i as f64 + 0.5), 2.0 * stretch);
    let first = (center - support + 0.5).max(0.0) as usize;
    let end = ((center + support + 0.5) as usize).min(n);
    let weights: Vec<f64> = (first..end).map(|row| cubic((row as f64 - center + 0.5) / stretch)).collect();
    let sum: f64 = weights.iter().sum();
    (first, weights.into_iter().map(|weight| (weight / sum) as f32).collect())
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    match x.abs() {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

//! Depthwise convolution of rows of channels: a vector holds channels of one pixel, so that every tap is one
//! multiply-add and no lane is ever shifted.
//!
//! A task makes some images, or some rows of one. In it a cache line of channels goes over all pixels before the next:
//! its taps and its sums stay at hand. The 3x3 layers of the mobile networks keep their nine taps in registers and walk
//! along several rows of outputs at once, so that a number is read for all the windows that hold it ([`three`]);
//! everything else goes pixel by pixel over the taps that reach it ([`any`]). Taps outside the image are left out, not
//! multiplied with zeros.

mod any;
mod finish;
mod three;
mod weight_grad;

pub(crate) use weight_grad::weight_grad;

use crate::kernels::buffer::{Shared, written};
use crate::kernels::conv::Geometry;
use crate::kernels::fused_activation::FusedActivation;
use crate::kernels::simd::{Kernel, Level, Simd, dispatch_at};
use any::Reach;
use finish::{Finish, Stats, merge};
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// Pixels of a task at the most: so many numbers a lane sums up in f32.
const PIXELS: usize = 1024;
/// Numbers that a task makes at the most: with what it reads they stay in the second-level cache.
const NUMBERS: usize = 1 << 16;
/// Channels of a cache line.
const LINE: usize = 32;
/// Vectors of these, on the narrowest registers.
const VECTORS: usize = 4;

/// Whether these kernels do it: every output channel sees the input channel of its own number.
pub(crate) fn fits(g: &Geometry) -> bool {
    g.params.groups == g.c_in && g.c_in == g.c_out
}

/// y = act(scale · sum + shift + skip), scale and shift by channel.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue<'a> {
    pub scale: Option<&'a [f32]>,
    pub shift: Option<&'a [f32]>,
    /// A map of the output's shape.
    pub skip: Option<&'a [bf16]>,
    pub activation: FusedActivation,
}

impl<'a> Epilogue<'a> {
    /// A bias alone.
    pub fn bias(bias: Option<&'a [f32]>) -> Self {
        Self { scale: None, shift: bias, skip: None, activation: FusedActivation::None }
    }
}

/// The convolution of rows `xs` with weights (c, 1, kh, kw).
pub(crate) fn forward(g: &Geometry, xs: &[bf16], weight: &[f32], epilogue: &Epilogue) -> Vec<bf16> {
    run(Level::current(), &Windows::forward(g), (g, xs), &rows_of_taps(g, weight, epilogue.scale), epilogue, false).0
}

/// The same, and mean and biased variance of each of its channels, as they are rounded.
pub(crate) fn forward_with_stats(
    g: &Geometry,
    xs: &[bf16],
    weight: &[f32],
    bias: Option<&[f32]>,
) -> (Vec<bf16>, Vec<f32>, Vec<f32>) {
    with_stats(Level::current(), g, xs, weight, bias)
}

fn with_stats(
    level: Level,
    g: &Geometry,
    xs: &[bf16],
    weight: &[f32],
    bias: Option<&[f32]>,
) -> (Vec<bf16>, Vec<f32>, Vec<f32>) {
    let taps = rows_of_taps(g, weight, None);
    let (ys, sums) = run(level, &Windows::forward(g), (g, xs), &taps, &Epilogue::bias(bias), true);
    let (mean, variance) = merge(g.c_out, &Pieces::new((g.b, g.oh, g.ow), g.c_out), &sums);
    (ys, mean, variance)
}

/// The gradient of the input from that of the output.
pub(crate) fn input_grad(g: &Geometry, grad: &[bf16], weight: &[f32]) -> Vec<bf16> {
    let taps = rows_of_taps(g, weight, None);
    run(Level::current(), &Windows::backward(g), (g, grad), &taps, &Epilogue::bias(None), false).0
}

/// (c, 1, kh, kw) -> (kh·kw, c), scaled by channel.
fn rows_of_taps(g: &Geometry, weight: &[f32], scale: Option<&[f32]>) -> Vec<f32> {
    let (c, taps) = (g.c_out, g.kh * g.kw);
    assert_eq!(weight.len(), c * taps);
    let mut rows = vec![0.0; weight.len()];
    for (channel, weight) in weight.chunks_exact(taps).enumerate() {
        let scale = scale.map_or(1.0, |scale| scale[channel]);
        for (tap, &w) in weight.iter().enumerate() {
            rows[tap * c + channel] = w * scale;
        }
    }
    rows
}

/// How the windows are walked over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// 3x3, one pixel at a time.
    ThreeByOne,
    /// 3x3, two pixels at a time.
    ThreeByTwo,
    /// From the outputs of that to its inputs.
    ThreeByTwoBack,
    /// Over the taps that reach a pixel.
    Any,
}

/// Which pixels of one map make a pixel of another. Pairs are (vertical, horizontal).
struct Windows {
    way: Way,
    c: usize,
    input: (usize, usize),
    output: (usize, usize),
    /// Whether `ThreeByOne` goes from the last tap to the first.
    is_turned: bool,
    /// Of `ThreeByOne` and `ThreeByTwo`: output o sees the inputs from o·stride - padding on. Of `ThreeByTwoBack`: the
    /// convolution's own.
    padding: (isize, isize),
    kernel: (usize, usize),
    /// The taps that reach a row, and a column, of the output.
    reach: (Reach, Reach),
}

impl Windows {
    fn forward(g: &Geometry) -> Self {
        let p = g.params;
        let way = match p.stride {
            (1, 1) if is_three(g) => Way::ThreeByOne,
            (2, 2) if is_three(g) => Way::ThreeByTwo,
            _ => Way::Any,
        };
        let reach = (
            Reach::forward((g.oh, g.h), g.kh, p.stride.0, p.padding.0, p.dilation.0),
            Reach::forward((g.ow, g.w), g.kw, p.stride.1, p.padding.1, p.dilation.1),
        );
        let padding = (p.padding.0 as isize, p.padding.1 as isize);
        let (input, output, kernel) = ((g.h, g.w), (g.oh, g.ow), (g.kh, g.kw));
        Self { way, c: g.c_in, input, output, is_turned: false, padding, kernel, reach }
    }

    fn backward(g: &Geometry) -> Self {
        let p = g.params;
        let padding = (p.padding.0 as isize, p.padding.1 as isize);
        let (way, padding) = match p.stride {
            (1, 1) if is_three(g) => (Way::ThreeByOne, (2 - padding.0, 2 - padding.1)),
            (2, 2) if is_three(g) => (Way::ThreeByTwoBack, padding),
            _ => (Way::Any, padding),
        };
        let reach = (
            Reach::backward((g.h, g.oh), g.kh, p.stride.0, p.padding.0, p.dilation.0),
            Reach::backward((g.w, g.ow), g.kw, p.stride.1, p.padding.1, p.dilation.1),
        );
        let (input, output, kernel) = ((g.oh, g.ow), (g.h, g.w), (g.kh, g.kw));
        Self { way, c: g.c_in, input, output, is_turned: true, padding, kernel, reach }
    }

    /// Rows that are made at a time, where `row` is the next and `left` are left.
    #[inline(always)]
    fn step(&self, row: usize, left: usize) -> usize {
        match self.way {
            Way::ThreeByOne if left >= 4 => 4,
            Way::ThreeByOne | Way::ThreeByTwo if left >= 2 => 2,
            // Rows are made in pairs of one row of the gradient.
            Way::ThreeByTwoBack if left >= 2 && (row as isize + self.padding.0) % 2 == 0 => 2,
            _ => 1,
        }
    }
}

fn is_three(g: &Geometry) -> bool {
    (g.kh, g.kw) == (3, 3) && g.params.dilation == (1, 1)
}

/// What the tasks make: so many images each, or so many rows of one image. By sizes alone.
struct Pieces {
    b: usize,
    rows: usize,
    width: usize,
    images_each: usize,
    rows_each: usize,
}

impl Pieces {
    /// Of a map of c channels.
    fn new((b, h, w): (usize, usize, usize), c: usize) -> Self {
        let pixels = PIXELS.min(NUMBERS / c).max(1);
        let (images_each, rows_each) = if h * w <= pixels {
            (b.div_ceil(b.div_ceil(pixels / (h * w))), h)
        } else {
            let bands = h.div_ceil((pixels / w).max(1));
            (1, h.div_ceil(bands).next_multiple_of(4).min(h))
        };
        Self { b, rows: h, width: w, images_each, rows_each }
    }

    fn bands(&self) -> usize {
        self.rows.div_ceil(self.rows_each)
    }

    fn count(&self) -> usize {
        self.b.div_ceil(self.images_each) * self.bands()
    }

    /// Images and rows of piece `i`.
    fn at(&self, i: usize) -> (Range<usize>, Range<usize>) {
        let (image, row) = (i / self.bands() * self.images_each, i % self.bands() * self.rows_each);
        (image..self.b.min(image + self.images_each), row..self.rows.min(row + self.rows_each))
    }

    /// Pixels of piece `i`.
    fn pixels(&self, i: usize) -> usize {
        let (images, rows) = self.at(i);
        images.len() * rows.len() * self.width
    }
}

/// The output map; and with `stats` three rows of channels for each piece, see [`Stats`].
fn run(
    level: Level,
    windows: &Windows,
    (g, xs): (&Geometry, &[bf16]),
    taps: &[f32],
    epilogue: &Epilogue,
    stats: bool,
) -> (Vec<bf16>, Vec<f32>) {
    let Windows { c, input, output, .. } = *windows;
    let n = g.b * output.0 * output.1 * c;
    assert!(fits(g) && xs.len() == g.b * input.0 * input.1 * c);
    assert!(epilogue.shift.is_none_or(|shift| shift.len() == c) && epilogue.skip.is_none_or(|skip| skip.len() == n));
    let pieces = Pieces::new((g.b, output.0, output.1), c);
    let mut sums = vec![0.0; if stats { pieces.count() * 3 * c } else { 0 }];
    let sums_of = Shared::new(&mut sums);
    // SAFETY: the pieces cover the map, and a piece is written whole.
    let ys = unsafe {
        written(n, |ys| {
            let ys = Shared::from_uninit(ys);
            (0..pieces.count()).into_par_iter().for_each(|i| {
                let (images, rows) = pieces.at(i);
                let finish = Finish { ys, skip: epilogue.skip, activation: epilogue.activation, stats };
                // SAFETY: every piece has its three rows, if there are any.
                let sums = stats.then(|| sums_of.offset(i * 3 * c));
                dispatch_at(level, Piece { windows, xs, taps, shift: epilogue.shift, finish, images, rows, sums });
            });
        })
    };
    (ys, sums)
}

/// Rows of some images of an output.
struct Piece<'a> {
    windows: &'a Windows,
    xs: &'a [bf16],
    /// A row of channels a tap.
    taps: &'a [f32],
    shift: Option<&'a [f32]>,
    finish: Finish<'a>,
    images: Range<usize>,
    rows: Range<usize>,
    sums: Option<Shared<f32>>,
}

impl Kernel<f32> for Piece<'_> {
    const NARROWS: bool = true;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let (c, way) = (self.windows.c, self.windows.way);
        // SAFETY: run by `dispatch_at`; images and rows lie in the map, which has c channels; a vector of channels
        // begins where c has one more.
        unsafe {
            for line in (0..c).step_by(LINE) {
                let mut stats = [Stats::<V>::new(); VECTORS];
                for image in self.images.clone() {
                    let mut row = self.rows.start;
                    while row < self.rows.end {
                        let step = self.windows.step(row, self.rows.end - row);
                        for (at, stats) in vectors::<V>(line, c).zip(&mut stats) {
                            let to = Place { image, row, channel: at };
                            match (way, step) {
                                _ if c < V::LANES => any::row::<V, false>(&self, to, stats),
                                (Way::ThreeByOne, 4) => three::by_one::<V, 4>(&self, to, stats),
                                (Way::ThreeByOne, 2) => three::by_one::<V, 2>(&self, to, stats),
                                (Way::ThreeByOne, _) => three::by_one::<V, 1>(&self, to, stats),
                                (Way::ThreeByTwo, 2) => three::by_two::<V, 2>(&self, to, stats),
                                (Way::ThreeByTwo, _) => three::by_two::<V, 1>(&self, to, stats),
                                (Way::ThreeByTwoBack, _) => three::by_two_back::<V>(&self, to, step),
                                (Way::Any, _) => any::row::<V, true>(&self, to, stats),
                            }
                        }
                        row += if c < V::LANES { 1 } else { step };
                    }
                }
                if let Some(sums) = self.sums {
                    for (at, stats) in vectors::<V>(line, c).zip(&stats) {
                        stats.store(sums.at(at), c, V::LANES.min(c));
                    }
                }
            }
        }
    }
}

/// Where the next outputs begin.
#[derive(Clone, Copy)]
struct Place {
    image: usize,
    row: usize,
    channel: usize,
}

/// The first channels of the vectors of a line: the last one steps back, so that it is whole, and makes some channels
/// twice.
#[inline(always)]
fn vectors<V: Simd>(line: usize, c: usize) -> impl Iterator<Item = usize> {
    (line..c.min(line + LINE)).step_by(V::LANES).map(move |at| at.min(c.saturating_sub(V::LANES)))
}

#[cfg(test)]
mod tests;

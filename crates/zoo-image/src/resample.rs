//! Resizing in Pillow's arithmetic, byte for byte as Pillow up to 12 (13 takes the columns first where that costs less, and then
//! a byte may be one off): weights as whole numbers of 2⁻²², each row first, rounded to bytes, then
//! each column. Only the pixels that are kept are computed, so that it costs no memory how large the rest would be.

use std::f64::consts::PI;
use std::ops::Range;
use zoo_core::Interpolation;

/// Binary digits of a weight behind the point.
const DIGITS: u32 = 22;
/// Red, green and blue of a pixel, side by side.
const RGB: usize = 3;

/// The pixels of one axis that each kept pixel is made of.
pub(super) struct Axis {
    /// The first pixel, and where its weights are.
    windows: Vec<(usize, Range<usize>)>,
    weights: Vec<i32>,
}

impl Axis {
    /// Of a side of `side` pixels that becomes `to`, of which the `kept` are kept. `mirrored`: the side runs backwards in
    /// the file.
    pub fn new(side: usize, to: u64, kept: Range<u64>, mirrored: bool, interpolation: Interpolation) -> Self {
        let scale = side as f64 / to as f64;
        let mut axis = Self { windows: Vec::new(), weights: Vec::new() };
        let place = |first: usize, count: usize| if mirrored { side - first - count } else { first };
        let (support, filter): (f64, fn(f64) -> f64) = match interpolation {
            Interpolation::Nearest => {
                // Pillow walks along the side; the sum of the steps is not their product to the last digit.
                let mut at = 0.5 * scale;
                for pixel in 0..kept.end {
                    if pixel >= kept.start {
                        let start = axis.weights.len();
                        axis.weights.push(1 << DIGITS);
                        axis.windows.push((place((at as usize).min(side - 1), 1), start..start + 1));
                    }
                    at += scale;
                }
                return axis;
            }
            Interpolation::Bilinear => (1.0, bilinear),
            Interpolation::Bicubic => (2.0, bicubic),
            Interpolation::Lanczos => (3.0, lanczos),
        };
        // Where pixels become fewer, the filter grows over all of those that one is made of.
        let stretch = scale.max(1.0);
        let reach = support * stretch;
        let mut window = Vec::new();
        for pixel in kept {
            let centre = (pixel as f64 + 0.5) * scale;
            let first = (centre - reach + 0.5).max(0.0) as usize;
            let end = ((centre + reach + 0.5) as usize).min(side);
            window.clear();
            window.extend((first..end).map(|x| filter((x as f64 - centre + 0.5) * (1.0 / stretch))));
            let sum: f64 = window.iter().sum();
            let start = axis.weights.len();
            let fixed = |weight: &f64| {
                let weight = if sum == 0.0 { *weight } else { weight / sum } * f64::from(1u32 << DIGITS);
                (weight + 0.5f64.copysign(weight)) as i32
            };
            axis.weights.extend(window.iter().map(fixed));
            if mirrored {
                axis.weights[start..].reverse();
            }
            axis.windows.push((place(first, window.len()), start..axis.weights.len()));
        }
        axis
    }

    /// The kept pixels.
    fn len(&self) -> usize {
        self.windows.len()
    }

    /// All pixels that are read.
    fn reach(&self) -> Range<usize> {
        let first = self.windows.iter().map(|window| window.0).min().unwrap_or(0);
        let end = self.windows.iter().map(|window| window.0 + window.1.len()).max().unwrap_or(0);
        first..end
    }
}

fn bilinear(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

/// Keys's cubic with a = -½.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    match x.abs() {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

/// The kept part of an image of `width` pixels a row, red, green and blue side by side: `axes` along its rows and along its
/// columns, `rows_first` in which order.
pub(super) fn resample(image: &[u8], width: usize, [x, y]: &[Axis; 2], rows_first: bool) -> Vec<u8> {
    in_order::<RGB>(image, width, [x, y], rows_first)
}

/// A planar image of `shape`, (channels, height, width), resized to `to`, (height, width), with antialiasing: byte for byte
/// as Pillow 13 resizes.
///
/// ```
/// use zoo_core::Interpolation;
/// let image = [0, 100, 200, 100];
/// assert_eq!(zoo_image::resize(&image, [1, 1, 4], [1, 2], Interpolation::Bilinear), [71, 143]);
/// ```
///
/// # Panics
/// If the image has another number of bytes.
pub fn resize(image: &[u8], shape: [usize; 3], to: [usize; 2], interpolation: Interpolation) -> Vec<u8> {
    let [channels, height, width] = shape;
    assert!(image.len() == channels * height * width, "{} bytes for an image of shape {shape:?}", image.len());
    let axis = |side: usize, to: usize| Axis::new(side, to as u64, 0..to as u64, false, interpolation);
    let (x, y) = (axis(width, to[1]), axis(height, to[0]));
    // What decides since Pillow 13: columns come first where the height shrinks by more than twice what the width does.
    let rows_first = to[0] >= height || (height - to[0]) as i64 <= 2 * (width as i64 - to[1] as i64);
    let planes = image.chunks_exact((height * width).max(1));
    planes.flat_map(|plane| in_order::<1>(plane, width, [&x, &y], rows_first)).collect()
}

/// As [`resample`], of pixels of `CHANNELS` bytes.
fn in_order<const CHANNELS: usize>(image: &[u8], width: usize, [x, y]: [&Axis; 2], rows_first: bool) -> Vec<u8> {
    if rows_first {
        let lines = y.reach();
        let lines_of = &image[CHANNELS * width * lines.start..][..CHANNELS * width * lines.len()];
        let narrow = along_rows::<CHANNELS>(lines_of, width, x, 0);
        return along_columns::<CHANNELS>(&narrow, x.len(), 0..x.len(), y, lines.start);
    }
    let columns = x.reach();
    let low = along_columns::<CHANNELS>(image, width, columns.clone(), y, 0);
    along_rows::<CHANNELS>(&low, columns.len(), x, columns.start)
}

/// Every row of `image`, whose first pixel is the axis's pixel `offset`.
fn along_rows<const CHANNELS: usize>(image: &[u8], width: usize, axis: &Axis, offset: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(CHANNELS * axis.len() * (image.len() / (CHANNELS * width).max(1)));
    for row in image.chunks_exact(CHANNELS * width) {
        for (first, weights) in &axis.windows {
            let weights = &axis.weights[weights.clone()];
            let pixels = &row[CHANNELS * (first - offset)..][..CHANNELS * weights.len()];
            let mut sums = [1i32 << (DIGITS - 1); CHANNELS];
            for (pixel, &weight) in pixels.chunks_exact(CHANNELS).zip(weights) {
                for (sum, &byte) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(byte) * weight;
                }
            }
            out.extend(sums.map(to_byte));
        }
    }
    out
}

/// Some columns of `image`, whose first row is the axis's pixel `offset`.
fn along_columns<const CHANNELS: usize>(
    image: &[u8],
    width: usize,
    columns: Range<usize>,
    axis: &Axis,
    offset: usize,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(CHANNELS * columns.len() * axis.len());
    let mut sums = vec![0i32; CHANNELS * columns.len()];
    for (first, weights) in &axis.windows {
        sums.fill(1 << (DIGITS - 1));
        for (line, &weight) in axis.weights[weights.clone()].iter().enumerate() {
            let row = &image[CHANNELS * ((first - offset + line) * width + columns.start)..][..sums.len()];
            for (sum, &byte) in sums.iter_mut().zip(row) {
                *sum += i32::from(byte) * weight;
            }
        }
        out.extend(sums.iter().map(|&sum| to_byte(sum)));
    }
    out
}

/// Rounded, as half a unit was added before.
fn to_byte(sum: i32) -> u8 {
    (sum >> DIGITS).clamp(0, 255) as u8
}

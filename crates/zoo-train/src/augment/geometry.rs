//! Affine transforms in Pillow's arithmetic.
//!
//! Pillow asks for every pixel of the result where in the image it comes from. Between pixels it counts from their
//! centres; the nearest one it finds in fixed point with 16 binary digits, or, where the axes stay apart, by adding up
//! steps. Both leave traces in single pixels, so both are kept.

use super::pixels::Pixels;
use serde::{Deserialize, Serialize};

/// How pixels between pixels are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// The pixel that is nearest.
    Nearest,
    /// From the 2x2 neighbours.
    #[default]
    Bilinear,
    /// From the 4x4 neighbours.
    Bicubic,
}

impl From<Interpolation> for zoo_core::Interpolation {
    fn from(interpolation: Interpolation) -> Self {
        match interpolation {
            Interpolation::Nearest => Self::Nearest,
            Interpolation::Bilinear => Self::Bilinear,
            Interpolation::Bicubic => Self::Bicubic,
        }
    }
}

/// What an operation that moves pixels asks of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    /// How pixels between pixels are found.
    pub interpolation: Interpolation,
    /// What is seen beyond the image's border: red, green and blue; grey takes the first.
    pub fill: [u8; 3],
}

impl Sampling {
    /// torchvision's default: the nearest pixel, black outside.
    pub const NEAREST: Self = Self { interpolation: Interpolation::Nearest, fill: [0; 3] };
}

/// The image turned counter-clockwise about its centre, as `PIL.Image.rotate`.
pub(super) fn rotate(image: &Pixels, degrees: f64, sampling: Sampling) -> Pixels {
    let [_, height, width] = image.shape();
    let degrees = degrees.rem_euclid(360.0);
    // Pillow turns by right angles exactly.
    if degrees == 0.0 {
        return image.clone();
    } else if degrees == 180.0 {
        return gather(image, |x, y| Some((width - 1 - x, height - 1 - y)), [0; 3]);
    } else if height == width && degrees == 90.0 {
        return gather(image, |x, y| Some((width - 1 - y, x)), [0; 3]);
    } else if height == width && degrees == 270.0 {
        return gather(image, |x, y| Some((y, height - 1 - x)), [0; 3]);
    }
    let angle = -degrees.to_radians();
    let [sin, cos] = [angle.sin(), angle.cos()].map(fifteen_digits);
    let [cx, cy] = [width as f64 / 2.0, height as f64 / 2.0];
    let right = cos * -cx + sin * -cy + 0.0 + cx;
    let down = -sin * -cx + cos * -cy + 0.0 + cy;
    affine(image, [cos, sin, right, -sin, cos, down], sampling)
}

/// As Python's `round(value, 15)`, which Pillow makes of sines.
fn fifteen_digits(value: f64) -> f64 {
    format!("{value:.15}").parse().unwrap_or(value)
}

/// The pixel (x, y) of the result is the image's at (a·x + b·y + c, d·x + e·y + f), as `PIL.Image.transform`.
pub(super) fn affine(image: &Pixels, matrix: [f64; 6], sampling: Sampling) -> Pixels {
    let [a, b, c, d, e, f] = matrix;
    let at = |x: usize, y: usize| {
        let (x, y) = (x as f64 + 0.5, y as f64 + 0.5);
        [a * x + b * y + c, d * x + e * y + f]
    };
    match sampling.interpolation {
        Interpolation::Nearest => nearest(image, matrix, sampling.fill),
        Interpolation::Bilinear => interpolate(image, at, bilinear, sampling.fill),
        Interpolation::Bicubic => interpolate(image, at, bicubic, sampling.fill),
    }
}

fn nearest(image: &Pixels, [a, b, c, d, e, f]: [f64; 6], fill: [u8; 3]) -> Pixels {
    let [_, height, width] = image.shape();
    if b == 0.0 && d == 0.0 {
        // The sum of the steps is not their product to the last digit.
        let walk = |start: f64, step: f64, side: usize| {
            let place = |at: &f64| (*at >= 0.0 && *at < side as f64).then_some(*at as usize);
            std::iter::successors(Some(start), move |at| Some(at + step)).take(side).map(|at| place(&at)).collect()
        };
        let columns: Vec<Option<usize>> = walk(c + a * 0.5, a, width);
        let rows: Vec<Option<usize>> = walk(f + e * 0.5, e, height);
        return gather(image, |x, y| columns[x].zip(rows[y]), fill);
    }
    // Pillow leaves fixed point for images of more than 32,768 pixels a side; 64 bits have room for those too.
    let fixed = |value: f64| (value * 65536.0 + 0.5).floor() as i64;
    let (right, down) = (fixed(c + a * 0.5 + b * 0.5), fixed(f + d * 0.5 + e * 0.5));
    let [a, b, d, e] = [a, b, d, e].map(fixed);
    let inside = |at: i64, side: usize| usize::try_from(at >> 16).ok().filter(|&at| at < side);
    let place = |x: usize, y: usize| {
        let (x, y) = (x as i64, y as i64);
        inside(right + a * x + b * y, width).zip(inside(down + d * x + e * y, height))
    };
    gather(image, place, fill)
}

/// Every pixel is the image's at the (column, row) that `place` says of its own column and row.
fn gather(image: &Pixels, place: impl Fn(usize, usize) -> Option<(usize, usize)>, fill: [u8; 3]) -> Pixels {
    let [_, height, width] = image.shape();
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let places: Vec<Option<usize>> = pixels.map(|(x, y)| place(x, y).map(|(x, y)| y * width + x)).collect();
    let mut data = Vec::with_capacity(image.data().len());
    for (plane, fill) in image.planes().zip(fill) {
        data.extend(places.iter().map(|place| place.map_or(fill, |place| plane[place])));
    }
    Pixels::of(data, image.shape())
}

/// Rows and columns around a place, held inside the image, and how far the place is from the first of them.
type Window<const N: usize> = ([usize; N], [Option<usize>; N], [f64; 2]);

fn interpolate(
    image: &Pixels,
    at: impl Fn(usize, usize) -> [f64; 2],
    value: fn(&[u8], [f64; 2], [usize; 2]) -> f64,
    fill: [u8; 3],
) -> Pixels {
    let [_, height, width] = image.shape();
    let mut data = Vec::with_capacity(image.data().len());
    for (plane, fill) in image.planes().zip(fill) {
        for y in 0..height {
            data.extend((0..width).map(|x| {
                let [x, y] = at(x, y);
                let inside = x >= 0.0 && x < width as f64 && y >= 0.0 && y < height as f64;
                // The cast cuts off what is behind the point, and what is below 0 or above 255, as Pillow does.
                if inside { value(plane, [x, y], [width, height]) as u8 } else { fill }
            }));
        }
    }
    Pixels::of(data, image.shape())
}

/// The `N` columns and rows from `before` ahead of the pixel left of and above a place. The first row and all columns
/// are held inside the image; a later row that is outside stands for the one before it.
fn window<const N: usize>([x, y]: [f64; 2], [width, height]: [usize; 2], before: isize) -> Window<N> {
    let (x, y) = (x - 0.5, y - 0.5);
    let (left, top) = (x.floor(), y.floor());
    let columns = std::array::from_fn(|i| (left as isize - before + i as isize).clamp(0, width as isize - 1) as usize);
    let rows = std::array::from_fn(|i| {
        let row = top as isize - before + i as isize;
        let row = if i == 0 { row.clamp(0, height as isize - 1) } else { row };
        usize::try_from(row).ok().filter(|&row| row < height)
    });
    (columns, rows, [x - left, y - top])
}

fn bilinear(plane: &[u8], place: [f64; 2], size: [usize; 2]) -> f64 {
    let (columns, rows, [dx, dy]) = window::<2>(place, size, 0);
    let between = |a: f64, b: f64, share: f64| a + (b - a) * share;
    let along = |row: usize| {
        let [a, b] = columns.map(|column| f64::from(plane[row * size[0] + column]));
        between(a, b, dx)
    };
    let upper = rows[0].map_or(0.0, along);
    between(upper, rows[1].map_or(upper, along), dy)
}

fn bicubic(plane: &[u8], place: [f64; 2], size: [usize; 2]) -> f64 {
    let (columns, rows, [dx, dy]) = window::<4>(place, size, 1);
    let along = |row: usize| cubic(columns.map(|column| f64::from(plane[row * size[0] + column])), dx);
    let mut last = 0.0;
    let values = rows.map(|row| {
        last = row.map_or(last, along);
        last
    });
    cubic(values, dy)
}

/// The cubic through four values (a = -1, unlike the -½ of Pillow's resizing), between the second and the third.
fn cubic([a, b, c, d]: [f64; 4], share: f64) -> f64 {
    let second = -a + c;
    let third = 2.0 * (a - b) + c - d;
    let fourth = -a + b - c + d;
    b + share * (second + share * (third + share * fourth))
}

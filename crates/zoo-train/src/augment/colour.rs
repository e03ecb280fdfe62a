//! Operations on colours in Pillow's arithmetic: blends in f32, tables by histogram, hue by way of bytes of HSV.

use super::pixels::Pixels;

/// Pillow's grey of a pixel: ITU-R 601-2 in whole numbers of 2⁻¹⁶.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

/// The grey of every pixel.
fn grey(image: &Pixels) -> Vec<u8> {
    let area = image.area();
    match image.data() {
        data if data.len() == area => data.to_vec(),
        data => (0..area).map(|i| luma([data[i], data[area + i], data[2 * area + i]])).collect(),
    }
}

/// From `degenerate` to a byte of the image by `factor`, beyond it where that is over 1: `PIL.Image.blend`.
fn blend(degenerate: u8, byte: u8, factor: f32) -> u8 {
    // What is behind the point is cut off; the cast also holds the value in 0..=255.
    (f32::from(degenerate) + factor * (f32::from(byte) - f32::from(degenerate))) as u8
}

pub(super) fn brightness(image: &mut Pixels, factor: f64) {
    image.data_mut().iter_mut().for_each(|byte| *byte = blend(0, *byte, factor as f32));
}

pub(super) fn contrast(image: &mut Pixels, factor: f64) {
    let grey = grey(image);
    let sum: u64 = grey.iter().map(|&byte| u64::from(byte)).sum();
    let mean = (sum as f64 / grey.len() as f64 + 0.5) as u8;
    image.data_mut().iter_mut().for_each(|byte| *byte = blend(mean, *byte, factor as f32));
}

pub(super) fn saturation(image: &mut Pixels, factor: f64) {
    let grey = grey(image);
    for plane in image.planes_mut() {
        plane.iter_mut().zip(&grey).for_each(|(byte, &grey)| *byte = blend(grey, *byte, factor as f32));
    }
}

pub(super) fn sharpness(image: &mut Pixels, factor: f64) {
    let [_, height, width] = image.shape();
    // Pillow's filter leaves an image alone that it does not fit into: the blend is the image then.
    if height < 3 || width < 3 {
        return;
    }
    for plane in image.planes_mut() {
        let smooth = smooth(plane, width);
        plane.iter_mut().zip(smooth).for_each(|(byte, smooth)| *byte = blend(smooth, *byte, factor as f32));
    }
}

/// `PIL.ImageFilter.SMOOTH`: the mean of 3x3 pixels with five parts of the middle one; the border stays as it is.
fn smooth(plane: &[u8], width: usize) -> Vec<u8> {
    let (side, middle) = (1.0 / 13.0, 5.0 / 13.0);
    let mut out = plane.to_vec();
    for y in 1..plane.len() / width - 1 {
        for x in 1..width - 1 {
            let row = |y: usize, own: f32| {
                let at = |x: usize| f32::from(plane[y * width + x]);
                at(x - 1) * side + at(x) * own + at(x + 1) * side
            };
            // The order of the sum is Pillow's: the row below comes first, and what rounds stands before all.
            out[y * width + x] = (0.5 + row(y + 1, side) + row(y, middle) + row(y - 1, side)) as u8;
        }
    }
    out
}

/// Puts `table` of its value in the place of every byte.
pub(super) fn point(image: &mut Pixels, table: impl Fn(u8) -> u8) {
    let table: [u8; 256] = std::array::from_fn(|byte| table(byte as u8));
    image.data_mut().iter_mut().for_each(|byte| *byte = table[usize::from(*byte)]);
}

fn histogram(plane: &[u8]) -> [usize; 256] {
    let mut counts = [0; 256];
    plane.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
    counts
}

/// Every channel stretched from its darkest to its lightest value: `PIL.ImageOps.autocontrast`.
pub(super) fn autocontrast(image: &mut Pixels) {
    for plane in image.planes_mut() {
        let (low, high) = plane.iter().fold((255, 0), |(low, high), &byte| (byte.min(low), byte.max(high)));
        if high > low {
            let scale = 255.0 / f64::from(high - low);
            let offset = -f64::from(low) * scale;
            plane.iter_mut().for_each(|byte| *byte = (f64::from(*byte) * scale + offset) as u8);
        }
    }
}

/// Every channel's values spread evenly: `PIL.ImageOps.equalize`.
pub(super) fn equalize(image: &mut Pixels) {
    for plane in image.planes_mut() {
        let counts = histogram(plane);
        let lightest = counts.iter().rev().find(|&&count| count > 0).copied().unwrap_or(0);
        // 0 for a single value, and where there are fewer pixels than values: left as it is.
        let step = (plane.len() - lightest) / 255;
        if step > 0 {
            let mut below = step / 2;
            let table = counts.map(|count| {
                let value = (below / step).min(255) as u8;
                below += count;
                value
            });
            plane.iter_mut().for_each(|byte| *byte = table[usize::from(*byte)]);
        }
    }
}

/// Turns the hue by a share of the circle, as torchvision's `adjust_hue` on a Pillow image. Grey has none.
pub(super) fn hue(image: &mut Pixels, factor: f64) {
    let area = image.area();
    let shift = (factor * 255.0) as i32 as u8;
    if let [red, green, blue] = image.data_mut().chunks_exact_mut(area).collect::<Vec<_>>().as_mut_slice() {
        for ((red, green), blue) in red.iter_mut().zip(green.iter_mut()).zip(blue.iter_mut()) {
            let [h, s, v] = to_hsv([*red, *green, *blue]);
            [*red, *green, *blue] = to_rgb([h.wrapping_add(shift), s, v]);
        }
    }
}

fn to_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    if most == least {
        return [0, 0, most];
    }
    let range = f32::from(most - least);
    let [rc, gc, bc] = [r, g, b].map(|c| f32::from(most - c) / range);
    // In f64 between two roundings to f32, as C computes with constants that are no floats.
    let hue = if r == most {
        bc - gc
    } else if g == most {
        (2.0 + f64::from(rc) - f64::from(bc)) as f32
    } else {
        (4.0 + f64::from(gc) - f64::from(rc)) as f32
    };
    let hue = ((f64::from(hue) / 6.0 + 1.0) % 1.0) as f32;
    let saturation = range / f32::from(most);
    [(f64::from(hue) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, most]
}

fn to_rgb([h, s, v]: [u8; 3]) -> [u8; 3] {
    if s == 0 {
        return [v; 3];
    }
    let sixths = f64::from(h) * 6.0 / 255.0;
    let sector = sixths.floor();
    let share = (sixths - sector) as f32;
    let saturation = (f64::from(s) / 255.0) as f32;
    let value = |less: f64| (f64::from(v) * (1.0 - less)).round() as u8;
    let p = value(f64::from(saturation));
    let q = value(f64::from(saturation * share));
    let t = value(f64::from(saturation) * (1.0 - f64::from(share)));
    match sector as u8 % 6 {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}

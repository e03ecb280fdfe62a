//! How a task brings the windows of a correlation into its cache: images in a frame of zeros, or one by one.

use super::pack::Depths;
use super::sizes::{Correlation, NOWHERE, Part, Tap, period};
use super::tiles::{BLOCK, DEPTH, SIDE};
use half::bf16;
use std::ops::Range;

/// Bytes of a task's frame: it stays in the second-level cache beside weights and outputs.
const FRAME: usize = 512 << 10;
/// Outputs that a frame's task has at least, if the batch has them.
const OUTPUTS: usize = 1024;
/// A frame is worth it while this part of its rows are outputs.
const LEAST_SHARE: f64 = 0.6;

/// Images whose rows have zeros beside them: a tap is a fixed distance from its output, wherever that stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    /// Numbers of a pixel: the channels, zeros behind them.
    pub channels: usize,
    /// Pixels from a row to the next, and how many of them stand left of the image.
    pitch: usize,
    left: usize,
    /// From an image's first row to the next one's: the zeros below an image are those above the next.
    period: usize,
    /// The first row that an output's taps reach, from its own, and how many rows further the last one is.
    above: isize,
    span: usize,
}

impl Frame {
    /// The frame, the numbers of a step, where they begin, and what they hold; `None` where windows are better
    /// copied.
    pub fn new(sizes: &Correlation) -> Option<(Self, usize, Vec<usize>, Depths)> {
        if sizes.stride != (1, 1) {
            return None;
        }
        let used = sizes.from.used;
        let (out, source) = (sizes.out, sizes.source);
        let dys = || sizes.taps.iter().map(|tap| tap.dy);
        let dxs = || sizes.taps.iter().map(|tap| tap.dx);
        let (top, bottom) = (dys().min()?, dys().max()?);
        let left = (-dxs().min()?).max(0) as usize;
        let right = (out.1 as isize - 1 + dxs().max()? - (source.1 as isize - 1)).max(0) as usize;
        // The zeros right of a row are those left of the next one.
        let pitch = (source.1 + left.max(right)).max(out.1);
        let span = (bottom - top) as usize;
        let period = period(out.0, source.0, (top, bottom));
        if ((out.0 * out.1) as f64) < LEAST_SHARE * (period * pitch) as f64 {
            return None;
        }
        let runs = runs(&sizes.taps);
        let length = runs[0].len();
        let same = runs.iter().all(|run| run.len() == length);
        let runs: Vec<&[Tap]> = if same { runs } else { sizes.taps.chunks(1).collect() };
        let length = runs[0].len();
        // The padding of channels that makes the fewest steps.
        let (steps, channels) = (used..used + DEPTH)
            .filter(|channels| channels.is_multiple_of(2))
            .filter_map(|channels| {
                let numbers = length * channels;
                let fits = |n: &usize| numbers.is_multiple_of(2 * n) && numbers / n <= DEPTH;
                Some(((numbers.div_ceil(DEPTH)..=numbers / 2).find(fits)?, channels))
            })
            .min()?;
        let depth = length * channels / steps;
        let frame = Self { channels, pitch, left, period, above: top, span };
        let mut starts = Vec::new();
        let mut of_taps = Vec::with_capacity(sizes.taps.len());
        for (i, run) in runs.iter().enumerate() {
            let first = run.first()?;
            let pixel = (first.dy - top) as usize * pitch + (first.dx + left as isize) as usize;
            starts.extend((0..steps).map(|step| pixel * channels + step * depth));
            of_taps.extend((0..length).map(|tap| (i * length + tap) * channels));
        }
        let depths = Depths { numbers: runs.len() * length * channels, channels: used, starts: of_taps };
        Some((frame, depth, starts, depths))
    }

    /// Rows in a frame of some images, `outputs` rows of each.
    fn lines(&self, images: usize, outputs: usize) -> usize {
        (images - 1) * self.period + outputs + self.span
    }

    /// Images together, or one in bands.
    pub fn parts(&self, images: usize, out: (usize, usize)) -> Vec<Part> {
        let bytes = |lines: usize| lines * self.pitch * self.channels * size_of::<bf16>();
        let image = bytes(self.lines(1, out.0));
        if image > FRAME {
            let fits = (FRAME / bytes(1)).saturating_sub(self.span).max(1);
            let band = out.0.div_ceil(out.0.div_ceil(fits));
            let bands = |image: usize| {
                let bands = (0..out.0).step_by(band);
                bands.map(move |y| Part::Images(image..image + 1, y..(y + band).min(out.0)))
            };
            return (0..images).flat_map(bands).collect();
        }
        let together = (FRAME / image).min(OUTPUTS.div_ceil(out.0 * out.1)).max(1);
        let first = (0..images).step_by(together);
        first.map(|first| Part::Images(first..(first + together).min(images), 0..out.0)).collect()
    }

    /// Rows of products that the part's frame has, and its numbers.
    pub fn room(&self, images: &Range<usize>, ys: &Range<usize>) -> (usize, usize) {
        let lines = self.lines(images.len(), ys.len());
        let rows = ((lines - self.span) * self.pitch).next_multiple_of(BLOCK);
        // The last rows' taps reach as far again; what they read is no output's.
        let reach = (self.span + 1) * self.pitch + self.left + SIDE + DEPTH;
        (rows, (rows + reach) * self.channels + DEPTH)
    }

    /// Copies images into the frame.
    pub fn fill(
        &self,
        sizes: &Correlation,
        source: &[bf16],
        (images, ys): (&Range<usize>, &Range<usize>),
        room: &mut [bf16],
    ) {
        let (height, width) = sizes.source;
        let (all, first, used) = (sizes.from.all, sizes.from.first, sizes.from.used);
        let line = self.pitch * self.channels;
        let (lines, behind) = room.split_at_mut(self.lines(images.len(), ys.len()) * line);
        // Taps right of the last row.
        behind[..line].fill(bf16::ZERO);
        let mut lines = lines.chunks_exact_mut(line);
        for image in images.clone() {
            let count = if image + 1 == images.end { ys.len() + self.span } else { self.period };
            for (line, to) in lines.by_ref().take(count).enumerate() {
                let y = ys.start as isize + line as isize + self.above;
                if !(0..height as isize).contains(&y) {
                    to.fill(bf16::ZERO);
                    continue;
                }
                let (zeros, to) = to.split_at_mut(self.left * self.channels);
                zeros.fill(bf16::ZERO);
                let (pixels, zeros) = to.split_at_mut(width * self.channels);
                zeros.fill(bf16::ZERO);
                let from = &source[(image * height + y as usize) * width * all..][..width * all];
                if self.channels == all {
                    pixels.copy_from_slice(from);
                    continue;
                }
                if (self.channels, all, used) == (4, 3, 3) {
                    // Colours: a copy of three numbers is not worth a call.
                    for (to, from) in pixels.as_chunks_mut::<4>().0.iter_mut().zip(from.as_chunks::<3>().0) {
                        *to = [from[0], from[1], from[2], bf16::ZERO];
                    }
                    continue;
                }
                for (to, from) in pixels.chunks_exact_mut(self.channels).zip(from.chunks_exact(all)) {
                    let (to, zeros) = to.split_at_mut(used);
                    to.copy_from_slice(&from[first..first + used]);
                    zeros.fill(bf16::ZERO);
                }
            }
        }
    }

    /// The pixel of the target that each row of products is.
    pub fn places(&self, sizes: &Correlation, (images, ys): (&Range<usize>, &Range<usize>), rows: usize) -> Vec<u32> {
        let mut places = vec![NOWHERE; rows];
        for (i, image) in images.clone().enumerate() {
            for (line, y) in ys.clone().enumerate() {
                let first = (i * self.period + line) * self.pitch;
                for (x, place) in places[first..][..sizes.out.1].iter_mut().enumerate() {
                    *place = sizes.place(image, y, x) as u32;
                }
            }
        }
        places
    }
}

/// The taps that stand side by side, together.
fn runs(taps: &[Tap]) -> Vec<&[Tap]> {
    taps.chunk_by(|a, b| a.dy == b.dy && a.dx + 1 == b.dx).collect()
}

/// Windows copied one by one: all taps of an output side by side, zeros behind them.
pub(super) struct Windows {
    /// Numbers of a row.
    pub row: usize,
}

impl Windows {
    /// Copies the windows of some outputs.
    pub fn copy(&self, sizes: &Correlation, source: &[bf16], rows: Range<usize>, room: &mut [bf16]) {
        let ((height, width), (oh, ow)) = (sizes.source, sizes.out);
        let (all, first, used) = (sizes.from.all, sizes.from.first, sizes.from.used);
        let runs = if all == used { runs(&sizes.taps) } else { sizes.taps.chunks(1).collect() };
        for (row, to) in rows.zip(room.chunks_exact_mut(self.row)) {
            let (image, y, x) = (row / (oh * ow), row / ow % oh, row % ow);
            let (y, x) = ((y * sizes.stride.0) as isize, (x * sizes.stride.1) as isize);
            let mut rest = to;
            for run in &runs {
                let (to, behind) = std::mem::take(&mut rest).split_at_mut(run.len() * used);
                rest = behind;
                let (sy, sx) = (y + run[0].dy, x + run[0].dx);
                if !(0..height as isize).contains(&sy) {
                    to.fill(bf16::ZERO);
                    continue;
                }
                let line = (image * height + sy as usize) * width;
                // The taps inside the image.
                let inside = (-sx).clamp(0, run.len() as isize)..(width as isize - sx).clamp(0, run.len() as isize);
                let inside = inside.start as usize..(inside.end as usize).max(inside.start as usize);
                let (zeros, to) = to.split_at_mut(inside.start * used);
                let (to, more) = to.split_at_mut(inside.len() * used);
                zeros.fill(bf16::ZERO);
                more.fill(bf16::ZERO);
                if !inside.is_empty() {
                    let pixel = line + (sx + inside.start as isize) as usize;
                    to.copy_from_slice(&source[pixel * all + first..][..inside.len() * used]);
                }
            }
            rest.fill(bf16::ZERO);
        }
    }
}

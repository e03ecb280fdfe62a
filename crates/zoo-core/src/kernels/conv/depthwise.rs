//! Depthwise convolution: every output channel sees one input channel, so there is nothing to multiply as matrices and all
//! depends on touching the memory once.
//!
//! Padding is never stored: loads leave out the lanes that lie outside the image. The 3x3 layers of the mobile networks
//! (padding 1, stride 1 or 2) walk down columns of one vector's width and use each loaded row for the three rows of outputs
//! that see it; images no larger than one vector are taken several channels at a time ([`Packed`]); everything else goes
//! tap by tap.

use super::geometry::{Geometry, valid_outputs};
use crate::kernels::buffer::written;
use crate::kernels::real::Real;
use crate::kernels::simd::{Kernel, Simd, dispatch};
use candle_core::WithDType;
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// What one task works on: large enough to hide the hand-over, and it stays in the cache of a core.
const TASK_BYTES: usize = 64 << 10;
/// Images that are taken together, so that what is loaded for a channel serves several.
const IMAGES: usize = 8;

/// How one plane becomes another: out\[o\] = Σ taps\[t\] · input\[o·stride + t·dilation - padding\]. Pairs are (vertical,
/// horizontal).
#[derive(Clone)]
struct Plane {
    way: Way,
    input: (usize, usize),
    output: (usize, usize),
    kernel: (usize, usize),
    stride: (usize, usize),
    dilation: (usize, usize),
    padding: (isize, isize),
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// 3x3, stride 1, padding 1.
    Three,
    /// 3x3, stride 2, padding 1.
    ThreeByTwo,
    /// From the outputs of `ThreeByTwo` back to its inputs.
    ThreeByTwoBack,
    Taps,
    /// `Taps` on an input that is first spread out, with this many places from one element to the next and zeros between.
    Spread((usize, usize)),
}

impl Plane {
    fn forward(g: &Geometry) -> Self {
        let p = g.params;
        let three = (g.kh, g.kw) == (3, 3) && p.padding == (1, 1) && p.dilation == (1, 1);
        let way = match p.stride {
            (1, 1) if three => Way::Three,
            (2, 2) if three => Way::ThreeByTwo,
            _ => Way::Taps,
        };
        Self {
            way,
            input: (g.h, g.w),
            output: (g.oh, g.ow),
            kernel: (g.kh, g.kw),
            stride: p.stride,
            dilation: p.dilation,
            padding: (p.padding.0 as isize, p.padding.1 as isize),
        }
    }

    /// The way back: the same sum over the gradient of the outputs, with the kernel turned around.
    fn backward(g: &Geometry) -> Self {
        let (forward, p) = (Self::forward(g), g.params);
        let way = match forward.way {
            Way::Three => Way::Three,
            Way::ThreeByTwo => Way::ThreeByTwoBack,
            _ if p.stride == (1, 1) => Way::Taps,
            _ => Way::Spread(p.stride),
        };
        let input = match way {
            Way::Spread(_) => ((g.oh - 1) * p.stride.0 + 1, (g.ow - 1) * p.stride.1 + 1),
            _ => (g.oh, g.ow),
        };
        let padding = (
            (p.dilation.0 * (g.kh - 1)) as isize - forward.padding.0,
            (p.dilation.1 * (g.kw - 1)) as isize - forward.padding.1,
        );
        Self { way, input, output: (g.h, g.w), stride: (1, 1), padding, ..forward }
    }

    fn taps(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }

    /// For each horizontal tap the outputs that it reaches, and where it reads for output 0.
    fn columns(&self) -> Vec<(Range<usize>, isize)> {
        let offset = |tap: usize| (tap * self.dilation.1) as isize - self.padding.1;
        let reach = |tap| valid_outputs(self.output.1, self.input.1, self.stride.1, offset(tap));
        (0..self.kernel.1).map(|tap| (reach(tap), offset(tap))).collect()
    }

    /// The input row under vertical tap `tap` of output row `row`.
    #[inline(always)]
    fn input_row(&self, row: usize, tap: usize) -> Option<usize> {
        let at = (row * self.stride.0 + tap * self.dilation.0) as isize - self.padding.0;
        (0..self.input.0 as isize).contains(&at).then_some(at as usize)
    }
}

/// The lanes whose column `first + lane` lies in `0..w`.
#[inline(always)]
fn inside<V: Simd>(first: isize, w: usize) -> u32 {
    let lanes = V::LANES as isize;
    let (start, end) = ((-first).clamp(0, lanes), (w as isize - first).clamp(0, lanes));
    ((1u32 << end) - 1) & !((1u32 << start) - 1)
}

/// The lanes whose output `first + lane` lies in `range`.
#[inline(always)]
fn within<V: Simd>(first: usize, range: &Range<usize>) -> u32 {
    let start = range.start.saturating_sub(first).min(V::LANES);
    let end = range.end.saturating_sub(first).min(V::LANES);
    ((1u32 << end) - 1) & !((1u32 << start) - 1)
}

/// Stores `n` lanes, on top of what is there if `add`.
///
/// # Safety
/// Below `dispatch`; `to` holds n elements.
#[inline(always)]
unsafe fn put<V: Simd>(v: V, to: *mut V::Elem, n: usize, add: bool) {
    // SAFETY: the caller's.
    unsafe {
        let v = if add { v.add(V::load_first(to, n)) } else { v };
        v.store_first(to, n);
    }
}

/// taps · (left, middle, right) + start.
///
/// # Safety
/// Below `dispatch`.
#[inline(always)]
unsafe fn three<V: Simd>(taps: &[V], row: (V, V, V), start: V) -> V {
    // SAFETY: the caller's.
    unsafe { row.2.mul_add(taps[2], row.1.mul_add(taps[1], row.0.mul_add(taps[0], start))) }
}

/// The three neighbours of one vector of columns, for every row of a plane.
#[derive(Clone, Copy)]
struct Neighbours {
    first: isize,
    lanes: [u32; 3],
}

impl Neighbours {
    #[inline(always)]
    fn new<V: Simd>(column: usize, w: usize) -> Self {
        let first = column as isize;
        // Lanes that hold no column read nothing, so that whatever is behind the row cannot reach a sum.
        let held = inside::<V>(first, w);
        Self { first, lanes: [-1, 0, 1].map(|shift| inside::<V>(first + shift, w) & held) }
    }

    /// # Safety
    /// Below `dispatch`; `row` holds the w elements.
    #[inline(always)]
    unsafe fn load<V: Simd>(&self, row: *const V::Elem) -> (V, V, V) {
        let at = row.wrapping_offset(self.first);
        // SAFETY: the lanes lie inside the row.
        unsafe {
            (
                V::load_where(at.wrapping_sub(1), self.lanes[0]),
                V::load_where(at, self.lanes[1]),
                V::load_where(at.wrapping_add(1), self.lanes[2]),
            )
        }
    }
}

/// The same at stride 2: columns 2o - 1, 2o and 2o + 1 for a vector of outputs o.
#[derive(Clone, Copy)]
struct Neighbours2 {
    first: isize,
    lanes: [u32; 4],
}

impl Neighbours2 {
    #[inline(always)]
    fn new<V: Simd>(output: usize, w: usize) -> Self {
        let (first, lanes) = (2 * output as isize, V::LANES as isize);
        Self { first, lanes: [-1, lanes - 1, 1, lanes + 1].map(|shift| inside::<V>(first + shift, w)) }
    }

    /// # Safety
    /// Below `dispatch`; `row` holds the w elements.
    #[inline(always)]
    unsafe fn load<V: Simd>(&self, row: *const V::Elem) -> (V, V, V) {
        let at = row.wrapping_offset(self.first);
        // SAFETY: the lanes lie inside the row.
        unsafe {
            let a = V::load_where(at.wrapping_sub(1), self.lanes[0]);
            let b = V::load_where(at.wrapping_add(V::LANES - 1), self.lanes[1]);
            let c = V::load_where(at.wrapping_add(1), self.lanes[2]);
            let d = V::load_where(at.wrapping_add(V::LANES + 1), self.lanes[3]);
            let (left, middle) = a.deinterleave(b);
            (left, middle, c.deinterleave(d).0)
        }
    }
}

/// One plane of a 3x3 layer of stride 1.
///
/// # Safety
/// Below `dispatch`; both planes hold h·w elements.
#[inline(always)]
unsafe fn plane_three<V: Simd>(
    (h, w): (usize, usize),
    x: *const V::Elem,
    k: &[V; 9],
    bias: V,
    y: *mut V::Elem,
    add: bool,
) {
    // SAFETY: rows lie in 0..h, columns are cut at w.
    unsafe {
        for column in (0..w).step_by(V::LANES) {
            let (at, n) = (Neighbours::new::<V>(column, w), V::LANES.min(w - column));
            let (x, y) = (x, y.add(column));
            let row = at.load::<V>(x);
            // What the output rows at and below the current input row have got so far.
            let mut here = three(&k[3..6], row, bias);
            let mut below = three(&k[0..3], row, bias);
            for r in 1..h {
                let row = at.load::<V>(x.add(r * w));
                put(three(&k[6..9], row, V::zero()).add(here), y.add((r - 1) * w), n, add);
                here = three(&k[3..6], row, V::zero()).add(below);
                below = three(&k[0..3], row, bias);
            }
            put(here, y.add((h - 1) * w), n, add);
        }
    }
}

/// One plane of a 3x3 layer of stride 2.
///
/// # Safety
/// Below `dispatch`; the planes hold their elements.
#[inline(always)]
unsafe fn plane_three_by_two<V: Simd>(p: &Plane, x: *const V::Elem, k: &[V; 9], bias: V, y: *mut V::Elem, add: bool) {
    let ((h, w), (oh, ow)) = (p.input, p.output);
    // SAFETY: rows lie in 0..h and 0..oh, columns are cut at w and ow.
    unsafe {
        for column in (0..ow).step_by(V::LANES) {
            let (at, n) = (Neighbours2::new::<V>(column, w), V::LANES.min(ow - column));
            let y = y.add(column);
            let mut here = bias;
            for o in 0..oh {
                let even = three(&k[3..6], at.load::<V>(x.add(2 * o * w)), here);
                if 2 * o + 1 < h {
                    let odd = at.load::<V>(x.add((2 * o + 1) * w));
                    put(three(&k[6..9], odd, V::zero()).add(even), y.add(o * ow), n, add);
                    here = three(&k[0..3], odd, bias);
                } else {
                    put(even, y.add(o * ow), n, add);
                }
            }
        }
    }
}

/// Spreads outputs and their right neighbours over the even and odd columns of a row, on top of `start`: even columns see
/// one output, odd ones see it and the next.
///
/// # Safety
/// Below `dispatch`.
#[inline(always)]
unsafe fn spread<V: Simd>(k: &[V], (here, next): (V, V), (even, odd): (V, V)) -> (V, V) {
    // SAFETY: the caller's.
    unsafe { (here.mul_add(k[1], even), next.mul_add(k[2], here.mul_add(k[0], odd))) }
}

/// Stores the first `n` columns of a row from its even and odd ones.
///
/// # Safety
/// Below `dispatch`; `to` holds n elements.
#[inline(always)]
unsafe fn put_interleaved<V: Simd>((even, odd): (V, V), to: *mut V::Elem, n: usize, add: bool) {
    // SAFETY: the caller's.
    unsafe {
        let (a, b) = even.interleave(odd);
        put(a, to, n.min(V::LANES), add);
        if n > V::LANES {
            put(b, to.add(V::LANES), (n - V::LANES).min(V::LANES), add);
        }
    }
}

/// One plane of the way back through a 3x3 layer of stride 2. `k` is turned around, as for every way back.
///
/// # Safety
/// Below `dispatch`; the planes hold their elements.
#[inline(always)]
unsafe fn plane_three_by_two_back<V: Simd>(p: &Plane, dy: *const V::Elem, k: &[V; 9], dx: *mut V::Elem, add: bool) {
    let ((oh, ow), (h, w)) = (p.input, p.output);
    // SAFETY: rows lie in 0..h and 0..oh, columns are cut at w and ow.
    unsafe {
        let nothing = (V::zero(), V::zero());
        for column in (0..ow).step_by(V::LANES) {
            let (at, right) = (inside::<V>(column as isize, ow), inside::<V>(column as isize + 1, ow));
            let (dy, dx, n) = (dy.add(column), dx.add(2 * column), w - 2 * column);
            let mut here = (V::load_where(dy, at), V::load_where(dy.wrapping_add(1), right));
            for o in 0..oh {
                put_interleaved(spread(&k[3..6], here, nothing), dx.add(2 * o * w), n, add);
                let mut below = nothing;
                if o + 1 < oh {
                    let dy = dy.add((o + 1) * ow);
                    below = (V::load_where(dy, at), V::load_where(dy.wrapping_add(1), right));
                }
                if 2 * o + 1 < h {
                    let sum = spread(&k[6..9], below, spread(&k[0..3], here, nothing));
                    put_interleaved(sum, dx.add((2 * o + 1) * w), n, add);
                }
                here = below;
            }
        }
    }
}

/// The elements of a row at `first`, `first + stride`, … for the lanes that are set, zeros elsewhere.
///
/// # Safety
/// Below `dispatch`; the row holds the elements of the lanes that are set.
#[inline(always)]
unsafe fn load_strided<V: Simd>(row: *const V::Elem, first: isize, stride: usize, lanes: u32) -> V {
    let at = row.wrapping_offset(first);
    // SAFETY: the caller's.
    unsafe {
        if stride == 1 {
            return V::load_where(at, lanes);
        }
        let mut out = [V::Elem::from_f64(0.0); 16];
        for (lane, out) in out.iter_mut().enumerate().take(V::LANES) {
            if lanes >> lane & 1 == 1 {
                *out = *at.wrapping_add(lane * stride);
            }
        }
        V::load(out.as_ptr())
    }
}

/// One plane of any layer, tap by tap.
///
/// # Safety
/// Below `dispatch`; the planes hold their elements, `columns` are the plane's.
#[inline(always)]
unsafe fn plane_taps<V: Simd>(
    p: &Plane,
    columns: &[(Range<usize>, isize)],
    x: *const V::Elem,
    taps: &[V::Elem],
    bias: V,
    y: *mut V::Elem,
    add: bool,
) {
    let (oh, ow) = p.output;
    for row in 0..oh {
        for column in (0..ow).step_by(V::LANES) {
            // SAFETY: rows and columns lie inside the planes, or are left out.
            unsafe {
                let mut total = bias;
                for (tap, taps) in taps.chunks_exact(p.kernel.1).enumerate() {
                    let Some(input_row) = p.input_row(row, tap) else { continue };
                    for (&tap, (reach, offset)) in taps.iter().zip(columns) {
                        let lanes = within::<V>(column, reach);
                        let first = (column * p.stride.1) as isize + offset;
                        let x = load_strided::<V>(x.add(input_row * p.input.1), first, p.stride.1, lanes);
                        total = x.mul_add(V::splat(tap), total);
                    }
                }
                put(total, y.add(row * ow + column), V::LANES.min(ow - column), add);
            }
        }
    }
}

/// Planes made of planes. Output channel c sums over `fan` inputs from channel c / multiplier · fan on, each with its own
/// kernel: one input on the way forward, `multiplier` on the way back.
#[derive(Clone, Copy)]
struct Planes<'a, T> {
    plane: &'a Plane,
    inputs: &'a [T],
    in_channels: usize,
    out_channels: usize,
    fan: usize,
    multiplier: usize,
    weight: &'a [T],
    bias: Option<&'a [T]>,
}

impl<T: Real> Planes<'_, T> {
    fn run(self, images: usize) -> Vec<T> {
        let (p, count) = (self.plane, images * self.out_channels);
        let (input, output) = (p.input.0 * p.input.1, p.output.0 * p.output.1);
        let input =
            if let Way::Spread(step) = p.way { p.input.0.div_ceil(step.0) * p.input.1.div_ceil(step.1) } else { input };
        assert_eq!(self.inputs.len(), images * self.in_channels * input);
        assert_eq!(self.weight.len(), self.out_channels * self.fan * p.taps());
        assert_eq!(self.in_channels * self.multiplier, self.out_channels * self.fan);
        assert!(self.bias.is_none_or(|bias| bias.len() == self.out_channels));
        let fill = |out: &mut [MaybeUninit<T>]| {
            if self.fan == 1 && self.multiplier == 1 && p.way == Way::Three && output <= lanes::<T>() {
                return packed(&self, output, out);
            }
            let task = (TASK_BYTES / (size_of::<T>() * (input * self.fan + output))).max(1);
            let tasks = out.par_chunks_mut(task * output).enumerate();
            tasks.for_each(|(i, out)| dispatch(PlanesTask { planes: self, first: i * task, input, out }));
        };
        // SAFETY: each way writes every element of each of its planes.
        unsafe { written(count * output, fill) }
    }
}

struct PlanesTask<'a, T> {
    planes: Planes<'a, T>,
    /// Number of the first output plane.
    first: usize,
    /// Elements of an input plane.
    input: usize,
    out: &'a mut [MaybeUninit<T>],
}

impl<T: Real> Kernel<T> for PlanesTask<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let Planes { plane: p, inputs, in_channels, out_channels, fan, multiplier, weight, bias } = self.planes;
        let columns = if matches!(p.way, Way::Taps | Way::Spread(_)) { p.columns() } else { Vec::new() };
        let mut scratch = if let Way::Spread(_) = p.way { vec![T::zero(); p.input.0 * p.input.1] } else { Vec::new() };
        for (i, out) in self.out.chunks_exact_mut(p.output.0 * p.output.1).enumerate() {
            let (image, c) = ((self.first + i) / out_channels, (self.first + i) % out_channels);
            let out = out.as_mut_ptr().cast::<T>();
            for j in 0..fan {
                let x = &inputs[(image * in_channels + c / multiplier * fan + j) * self.input..][..self.input];
                let taps = &weight[(c * fan + j) * p.taps()..][..p.taps()];
                // SAFETY: `run` is below `dispatch`, and the planes have their elements.
                unsafe {
                    let bias = V::splat(bias.map_or(T::zero(), |bias| bias[c]));
                    let nine = || -> [V; 9] { std::array::from_fn(|tap| V::splat(taps[tap])) };
                    let (x, add) = (x.as_ptr(), j > 0);
                    match p.way {
                        Way::Three => plane_three(p.input, x, &nine(), bias, out, add),
                        Way::ThreeByTwo => plane_three_by_two(p, x, &nine(), bias, out, add),
                        Way::ThreeByTwoBack => plane_three_by_two_back(p, x, &nine(), out, add),
                        Way::Taps => plane_taps(p, &columns, x, taps, bias, out, add),
                        Way::Spread(step) => {
                            let width = p.input.1.div_ceil(step.1);
                            for row in 0..p.input.0.div_ceil(step.0) {
                                for column in 0..width {
                                    scratch[row * step.0 * p.input.1 + column * step.1] = *x.add(row * width + column);
                                }
                            }
                            plane_taps(p, &columns, scratch.as_ptr(), taps, bias, out, add);
                        }
                    }
                }
            }
        }
    }
}

/// Lanes of the registers in use.
fn lanes<T: Real>() -> usize {
    struct Count;
    impl<T: Real> Kernel<T> for Count {
        type Output = usize;
        #[inline(always)]
        unsafe fn run<V: Simd<Elem = T>>(self) -> usize {
            V::LANES
        }
    }
    dispatch::<T, _>(Count)
}

/// Images of no more pixels than a vector has lanes, 3x3 with stride 1: as many channels as fit lie in one vector, one behind
/// the other as in memory. A tap is then a load from a place nearby that leaves out the lanes whose neighbour lies outside
/// their own image.
struct Packed {
    pixels: usize,
    /// Channels in a vector.
    channels: usize,
    /// Where each tap reads, from the pixel's own place.
    offsets: [isize; 9],
    lanes: [u32; 9],
}

impl Packed {
    fn new((h, w): (usize, usize), lanes: usize) -> Self {
        let (pixels, channels) = (h * w, lanes / (h * w));
        let inside = |tap: usize| {
            let (dy, dx) = (tap / 3, tap % 3);
            let pixel = |i: usize| (1..=h).contains(&(i / w + dy)) && (1..=w).contains(&(i % w + dx));
            (0..channels * pixels).filter(|lane| pixel(lane % pixels)).fold(0, |lanes, lane| lanes | 1 << lane)
        };
        Self {
            pixels,
            channels,
            offsets: std::array::from_fn(|tap| (tap / 3 * w + tap % 3) as isize - w as isize - 1),
            lanes: std::array::from_fn(inside),
        }
    }

    /// The taps' lanes where only `held` lanes hold a pixel.
    #[inline(always)]
    fn cut(&self, held: usize) -> [u32; 9] {
        self.lanes.map(|lanes| lanes & ((1 << held) - 1))
    }
}

/// [`Planes`] of small images. `IMAGES` images are one task.
fn packed<T: Real>(planes: &Planes<T>, pixels: usize, out: &mut [MaybeUninit<T>]) {
    let (lanes, channels) = (lanes::<T>(), planes.out_channels);
    let shape = Packed::new(planes.plane.input, lanes);
    // For each vector of channels the nine taps and the bias, each in the lanes of its channel.
    let mut table = vec![T::zero(); channels.div_ceil(shape.channels) * 10 * lanes];
    for (group, table) in table.chunks_exact_mut(10 * lanes).enumerate() {
        for c in 0..shape.channels.min(channels - group * shape.channels) {
            let channel = group * shape.channels + c;
            for (i, row) in table.chunks_exact_mut(lanes).enumerate() {
                let value = match planes.bias {
                    _ if i < 9 => planes.weight[channel * 9 + i],
                    Some(bias) => bias[channel],
                    None => T::zero(),
                };
                row[c * pixels..][..pixels].fill(value);
            }
        }
    }
    let image = channels * pixels;
    let tasks = out.par_chunks_mut(IMAGES * image).zip(planes.inputs.par_chunks(IMAGES * image));
    tasks.for_each(|(out, xs)| dispatch(PackedTask { shape: &shape, table: &table, image, xs, out }));
}

struct PackedTask<'a, T> {
    shape: &'a Packed,
    table: &'a [T],
    /// Elements of an image.
    image: usize,
    xs: &'a [T],
    out: &'a mut [MaybeUninit<T>],
}

impl<T: Real> Kernel<T> for PackedTask<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let step = self.shape.channels * self.shape.pixels;
        for (start, table) in (0..self.image).step_by(step).zip(self.table.chunks_exact(10 * V::LANES)) {
            let held = step.min(self.image - start);
            let lanes = self.shape.cut(held);
            // SAFETY: below `dispatch`; only lanes of this image's channels are read and written.
            unsafe {
                let rows: [V; 10] = std::array::from_fn(|i| V::load(table.as_ptr().add(i * V::LANES)));
                for (x, y) in self.xs.chunks_exact(self.image).zip(self.out.chunks_exact_mut(self.image)) {
                    let x = x.as_ptr().add(start);
                    let mut total = rows[9];
                    for tap in 0..9 {
                        let x = V::load_where(x.wrapping_offset(self.shape.offsets[tap]), lanes[tap]);
                        total = x.mul_add(rows[tap], total);
                    }
                    total.store_first(y.as_mut_ptr().cast::<T>().add(start), held);
                }
            }
        }
    }
}

pub(crate) fn forward<T: Real>(g: &Geometry, xs: &[T], weight: &[T], bias: Option<&[T]>) -> Vec<T> {
    let plane = Plane::forward(g);
    let multiplier = g.c_out / g.c_in;
    let (in_channels, out_channels) = (g.c_in, g.c_out);
    Planes { plane: &plane, inputs: xs, in_channels, out_channels, fan: 1, multiplier, weight, bias }.run(g.b)
}

pub(crate) fn input_grad<T: Real>(g: &Geometry, grad: &[T], weight: &[T]) -> Vec<T> {
    let plane = Plane::backward(g);
    let mut turned = weight.to_vec();
    turned.chunks_exact_mut(plane.taps()).for_each(|taps| taps.reverse());
    let (in_channels, out_channels, fan) = (g.c_out, g.c_in, g.c_out / g.c_in);
    let (inputs, weight, bias) = (grad, &turned[..], None);
    Planes { plane: &plane, inputs, in_channels, out_channels, fan, multiplier: 1, weight, bias }.run(g.b)
}

/// Each task has its own channels and goes through all images, so the order of the sum is fixed by the shapes.
pub(crate) fn weight_grad<T: Real>(g: &Geometry, xs: &[T], grad: &[T]) -> Vec<T> {
    let plane = Plane::forward(g);
    let (input, output, taps) = (g.input_plane(), g.output_plane(), plane.taps());
    assert_eq!((xs.len(), grad.len()), (g.b * g.c_in * input, g.b * g.c_out * output));
    let mut dw = vec![T::zero(); g.c_out * taps];
    let packed = g.c_in == g.c_out && plane.way == Way::Three && output <= lanes::<T>();
    let packed = packed.then(|| Packed::new(plane.input, lanes::<T>()));
    // The sums of a task's channels, a vector for each tap, stay in the cache while the images pass.
    let channels = match &packed {
        Some(shape) => 32 * shape.channels,
        None => (TASK_BYTES / 4 / (size_of::<T>() * output)).clamp(1, 64),
    };
    dw.par_chunks_mut(channels * taps).enumerate().for_each(|(i, dw)| {
        let first = i * channels;
        match &packed {
            Some(shape) => dispatch(PackedWeightGrad { g, shape, xs, grad, first, dw }),
            None => dispatch(WeightGrad { g, plane: &plane, xs, grad, first, dw }),
        }
    });
    dw
}

struct WeightGrad<'a, T> {
    g: &'a Geometry,
    plane: &'a Plane,
    xs: &'a [T],
    grad: &'a [T],
    /// The first output channel.
    first: usize,
    dw: &'a mut [T],
}

impl<T: Real> Kernel<T> for WeightGrad<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let (g, p) = (self.g, self.plane);
        let (input, output, taps, multiplier) = (g.input_plane(), g.output_plane(), p.taps(), g.c_out / g.c_in);
        let columns = p.columns();
        let mut sums = vec![T::zero(); self.dw.len() * V::LANES];
        for image in 0..g.b {
            for (i, sums) in sums.chunks_exact_mut(taps * V::LANES).enumerate() {
                let c = self.first + i;
                let x = &self.xs[(image * g.c_in + c / multiplier) * input..][..input];
                let dy = &self.grad[(image * g.c_out + c) * output..][..output];
                // SAFETY: `run` is below `dispatch`, the planes have their elements, `sums` a vector for each tap.
                unsafe {
                    let (x, dy, sums) = (x.as_ptr(), dy.as_ptr(), sums.as_mut_ptr());
                    match p.way {
                        Way::Three => keep(sums, weight_grad_three::<V>(p.input, x, dy)),
                        Way::ThreeByTwo => keep(sums, weight_grad_three_by_two::<V>(p, x, dy)),
                        _ => weight_grad_taps::<V>(p, &columns, x, dy, sums),
                    }
                }
            }
        }
        for (dw, sums) in self.dw.iter_mut().zip(sums.chunks_exact(V::LANES)) {
            // SAFETY: below `dispatch`, a vector a tap.
            *dw = unsafe { V::load(sums.as_ptr()).sum() };
        }
    }
}

/// Adds a plane's nine sums to those so far.
///
/// # Safety
/// Below `dispatch`; `sums` holds nine vectors.
#[inline(always)]
unsafe fn keep<V: Simd>(sums: *mut V::Elem, plane: [V; 9]) {
    for (tap, sum) in plane.into_iter().enumerate() {
        // SAFETY: the caller's.
        unsafe {
            let to = sums.add(tap * V::LANES);
            V::load(to).add(sum).store(to);
        }
    }
}

/// sums += row · dy, for the three taps of a row of the kernel.
///
/// # Safety
/// Below `dispatch`.
#[inline(always)]
unsafe fn three_products<V: Simd>(sums: &mut [V], row: (V, V, V), dy: V) {
    // SAFETY: the caller's.
    unsafe {
        sums[0] = row.0.mul_add(dy, sums[0]);
        sums[1] = row.1.mul_add(dy, sums[1]);
        sums[2] = row.2.mul_add(dy, sums[2]);
    }
}

/// # Safety
/// Below `dispatch`; both planes hold h·w elements.
#[inline(always)]
unsafe fn weight_grad_three<V: Simd>((h, w): (usize, usize), x: *const V::Elem, dy: *const V::Elem) -> [V; 9] {
    // SAFETY: rows lie in 0..h, columns are cut at w.
    unsafe {
        let mut sums = [V::zero(); 9];
        for column in (0..w).step_by(V::LANES) {
            let (at, n) = (Neighbours::new::<V>(column, w), inside::<V>(column as isize, w));
            let (mut above, mut here) = (V::zero(), V::load_where(dy.add(column), n));
            for r in 0..h {
                let row = at.load::<V>(x.add(r * w));
                let below = if r + 1 < h { V::load_where(dy.add((r + 1) * w + column), n) } else { V::zero() };
                three_products(&mut sums[3..6], row, here);
                // Outputs that do not exist are left out: zero times a NaN would be one.
                if r + 1 < h {
                    three_products(&mut sums[0..3], row, below);
                }
                if r > 0 {
                    three_products(&mut sums[6..9], row, above);
                }
                (above, here) = (here, below);
            }
        }
        sums
    }
}

/// # Safety
/// Below `dispatch`; the planes hold their elements.
#[inline(always)]
unsafe fn weight_grad_three_by_two<V: Simd>(p: &Plane, x: *const V::Elem, dy: *const V::Elem) -> [V; 9] {
    let ((h, w), (oh, ow)) = (p.input, p.output);
    // SAFETY: rows lie in 0..h and 0..oh, columns are cut at w and ow.
    unsafe {
        let mut sums = [V::zero(); 9];
        for column in (0..ow).step_by(V::LANES) {
            let (at, n) = (Neighbours2::new::<V>(column, w), inside::<V>(column as isize, ow));
            let mut here = V::load_where(dy.add(column), n);
            for o in 0..oh {
                three_products(&mut sums[3..6], at.load::<V>(x.add(2 * o * w)), here);
                let below = if o + 1 < oh { V::load_where(dy.add((o + 1) * ow + column), n) } else { V::zero() };
                if 2 * o + 1 < h {
                    let odd = at.load::<V>(x.add((2 * o + 1) * w));
                    three_products(&mut sums[6..9], odd, here);
                    if o + 1 < oh {
                        three_products(&mut sums[0..3], odd, below);
                    }
                }
                here = below;
            }
        }
        sums
    }
}

/// # Safety
/// Below `dispatch`; the planes hold their elements, `sums` a vector for each tap.
#[inline(always)]
unsafe fn weight_grad_taps<V: Simd>(
    p: &Plane,
    columns: &[(Range<usize>, isize)],
    x: *const V::Elem,
    dy: *const V::Elem,
    sums: *mut V::Elem,
) {
    let (oh, ow) = p.output;
    for tap in 0..p.taps() {
        let (reach, offset) = &columns[tap % p.kernel.1];
        // SAFETY: rows and columns lie inside the planes, or are left out.
        unsafe {
            let mut sum = V::zero();
            for row in 0..oh {
                let Some(input_row) = p.input_row(row, tap / p.kernel.1) else { continue };
                for column in (0..ow).step_by(V::LANES) {
                    let lanes = within::<V>(column, reach);
                    let first = (column * p.stride.1) as isize + offset;
                    let x = load_strided::<V>(x.add(input_row * p.input.1), first, p.stride.1, lanes);
                    sum = x.mul_add(V::load_where(dy.add(row * ow + column), lanes), sum);
                }
            }
            let to = sums.add(tap * V::LANES);
            V::load(to).add(sum).store(to);
        }
    }
}

struct PackedWeightGrad<'a, T> {
    g: &'a Geometry,
    shape: &'a Packed,
    xs: &'a [T],
    grad: &'a [T],
    /// The first channel.
    first: usize,
    dw: &'a mut [T],
}

impl<T: Real> Kernel<T> for PackedWeightGrad<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = T>>(self) {
        let Packed { pixels, channels, offsets, .. } = *self.shape;
        let image = self.g.c_in * pixels;
        let (begin, elements) = (self.first * pixels, self.dw.len() / 9 * pixels);
        let step = channels * pixels;
        let mut sums = vec![T::zero(); elements.div_ceil(step) * 9 * V::LANES];
        for (xs, dys) in self.xs.chunks(IMAGES * image).zip(self.grad.chunks(IMAGES * image)) {
            for (start, sums) in (0..elements).step_by(step).zip(sums.chunks_exact_mut(9 * V::LANES)) {
                let held = step.min(elements - start);
                let lanes = self.shape.cut(held);
                // SAFETY: below `dispatch`; only lanes of this image's channels are read; `sums` holds nine vectors.
                unsafe {
                    let sums = sums.as_mut_ptr();
                    let mut nine: [V; 9] = std::array::from_fn(|tap| V::load(sums.add(tap * V::LANES)));
                    for (x, dy) in xs.chunks_exact(image).zip(dys.chunks_exact(image)) {
                        let (x, dy) = (x.as_ptr().add(begin + start), dy.as_ptr().add(begin + start));
                        let dy = V::load_first(dy, held);
                        for tap in 0..9 {
                            let x = V::load_where(x.wrapping_offset(offsets[tap]), lanes[tap]);
                            nine[tap] = x.mul_add(dy, nine[tap]);
                        }
                    }
                    nine.into_iter().enumerate().for_each(|(tap, sum)| sum.store(sums.add(tap * V::LANES)));
                }
            }
        }
        for (c, dw) in self.dw.chunks_exact_mut(9).enumerate() {
            let group = &sums[c / channels * 9 * V::LANES..];
            for (dw, lanes) in dw.iter_mut().zip(group.chunks_exact(V::LANES)) {
                let own = &lanes[c % channels * pixels..][..pixels];
                *dw = own.iter().fold(T::zero(), |total, &x| total + x);
            }
        }
    }
}

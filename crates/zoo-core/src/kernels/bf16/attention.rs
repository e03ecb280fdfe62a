//! Scaled dot-product attention of bfloat16 maps: a task is a head of an image, whose scores stay in its cache.
//!
//! Queries, keys and values are read where the linear layer has put them, and turned into the sides of products.
//! Probabilities and the scores' gradient are rounded to bfloat16 as operands of products; softmax and its sums are f32.

use super::matrix::{
    Rooms, To, left, left_room, left_transposed, multiply, padded, places, right, right_room, right_transposed, steps,
};
use super::softmax::Softmax;
use super::tiles::{DEPTH, Product, Tiles};
use crate::kernels::attention::Sizes;
use crate::kernels::buffer::{Shared, with_scratch, written};
use crate::kernels::simd::{Kernel, Level, Simd, dispatch_at};
use half::bf16;
use rayon::prelude::*;

/// (b, n, 3 · heads · d) -> (b, queries, heads · d)
pub(crate) fn forward(sizes: Sizes, qkv: &[bf16]) -> Vec<bf16> {
    let Sizes { n, queries, .. } = sizes;
    let images = images(sizes, qkv);
    let plan = Plan::new(sizes);
    // SAFETY: the heads of all images are all outputs.
    unsafe {
        written(images * queries * sizes.width(), |out| {
            let out = Shared::from_uninit(out);
            plan.for_each(images, |image, head, scratch| {
                let qkv = &qkv[image * n * 3 * sizes.width()..][..n * 3 * sizes.width()];
                let out = (out.offset(image * queries * sizes.width()), sizes.width());
                dispatch_at(plan.level, Alone(Head { plan: &plan, head, qkv, grad: None, out, scratch }));
            });
        })
    }
}

/// The gradient of `qkv` from `grad`, that of the output; and the output once more.
pub(crate) fn backward(sizes: Sizes, qkv: &[bf16], grad: &[bf16]) -> (Vec<bf16>, Vec<bf16>) {
    let Sizes { n, queries, .. } = sizes;
    let (images, width) = (images(sizes, qkv), sizes.width());
    assert_eq!(grad.len(), images * queries * width);
    let plan = Plan::new(sizes);
    let mut out = Vec::with_capacity(grad.len());
    // SAFETY: the heads of all images are all outputs, and all of the gradient.
    unsafe {
        let dqkv = written(qkv.len(), |dqkv| {
            let (dqkv, out) = (Shared::from_uninit(dqkv), Shared::from_spare(&mut out));
            plan.for_each(images, |image, head, scratch| {
                let (at, from) = (image * n * 3 * width, image * queries * width);
                let qkv = &qkv[at..][..n * 3 * width];
                let grad = Some(((&grad[from..][..queries * width], width), (dqkv.offset(at), 3 * width)));
                let out = (out.offset(from), width);
                dispatch_at(plan.level, Alone(Head { plan: &plan, head, qkv, grad, out, scratch }));
            });
        });
        out.set_len(grad.len());
        (dqkv, out)
    }
}

fn images(sizes: Sizes, qkv: &[bf16]) -> usize {
    let image = sizes.n * 3 * sizes.width();
    assert!(qkv.len().is_multiple_of(image), "{} numbers of {sizes:?}", qkv.len());
    qkv.len() / image
}

/// What all tasks share.
pub(super) struct Plan {
    sizes: Sizes,
    level: Level,
    /// Steps of sums over a head's numbers, over keys and over queries.
    of_width: Vec<usize>,
    of_keys: Vec<usize>,
    of_queries: Vec<usize>,
    keys: Vec<u32>,
    queries: Vec<u32>,
}

impl Plan {
    pub fn new(sizes: Sizes) -> Self {
        let Sizes { n, queries, d, .. } = sizes;
        Self {
            sizes,
            level: Level::current(),
            of_width: steps(d),
            of_keys: steps(n),
            of_queries: steps(queries),
            keys: places(n),
            queries: places(queries),
        }
    }

    fn for_each(&self, images: usize, run: impl Fn(usize, usize, *mut f32) + Sync) {
        let heads = self.sizes.heads;
        (0..images * heads).into_par_iter().for_each(|task| {
            // Outside of `dispatch`: what a closure holds does not take on the features of the function around it.
            with_scratch::<f32, _>(self.rooms(), |scratch| run(task / heads, task % heads, scratch));
        });
    }

    pub fn heads(&self) -> usize {
        self.sizes.heads
    }

    /// Numbers of a task's scratch.
    pub fn rooms(&self) -> usize {
        let Sizes { n, queries, d, .. } = self.sizes;
        let probabilities = left_room(queries, n);
        let rights = [right_room(d, n), right_room(n, d), right_room(queries, d)];
        let lefts = [left_room(queries, d), probabilities, probabilities, left_room(n, queries)];
        Rooms::len(&[queries * Softmax::stride(n)], &[&rights[..], &lefts].concat())
    }

    fn product<'a>(&self, steps: &'a [usize]) -> Product<'a> {
        Product { level: self.level, depth: DEPTH, stride: steps.len() * DEPTH, steps }
    }
}

/// The rows of a gradient, and where those of the next one go, each with the distance of two rows.
pub(super) type Passing<'a> = ((&'a [bf16], usize), (Shared<bf16>, usize));

/// One head of one image.
pub(super) struct Head<'a> {
    pub plan: &'a Plan,
    pub head: usize,
    /// One image's.
    pub qkv: &'a [bf16],
    /// The gradient of the output, and where that of `qkv` goes, with the distances of their rows.
    pub grad: Option<Passing<'a>>,
    /// With the distance of its rows.
    pub out: (Shared<bf16>, usize),
    pub scratch: *mut f32,
}

/// A head that is a task.
struct Alone<'a>(Head<'a>);

impl Kernel<f32> for Alone<'_> {
    const NARROWS: bool = true;
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Simd<Elem = f32>>(self) {
        let _tiles = Tiles::new(self.0.plan.level, DEPTH);
        // SAFETY: run by `dispatch`, with tiles.
        unsafe { self.0.run::<V>() }
    }
}

impl Head<'_> {
    /// # Safety
    /// Below `dispatch` at the plan's level, whose tiles are configured for steps of 32; the scratch has
    /// [`rooms`](Plan::rooms), the targets have an image's rows.
    #[inline(always)]
    pub unsafe fn run<V: Simd<Elem = f32>>(self) {
        let Self { plan, head, qkv, grad, out, scratch } = self;
        let Sizes { n, queries, d, .. } = plan.sizes;
        let (width, row) = (plan.sizes.width(), 3 * plan.sizes.width());
        let scale = (1.0 / (d as f64).sqrt()) as f32;
        let (by_width, by_keys) = (plan.product(&plan.of_width), plan.product(&plan.of_keys));
        let [q, k, v] = [0, 1, 2].map(|part| (qkv, row, part * width + head * d));
        let (keys, stride, softmax) = (padded(n), Softmax::stride(n), Softmax::new(n, scale));
        // SAFETY: the caller's; the scratch has all rooms, each is written before it is read, and the rows of a left
        // side beyond its last one are rows of numbers that reach no output.
        unsafe {
            let mut rooms = Rooms::new(scratch);
            let scores = rooms.wide(queries * stride);
            let of_tokens = rooms.narrow(right_room(d, n));
            let of_rows = rooms.narrow(right_room(n, d));
            let rows = rooms.narrow(left_room(queries, d));
            let p = rooms.narrow(left_room(queries, n));
            left(q, (queries, d), rows);
            right_transposed::<V>(k, (d, n), of_tokens);
            multiply::<V>(&by_width, (rows, of_tokens), (queries, stride), To::Wide(scores, stride));
            for i in 0..queries {
                let p = p.add(i * keys);
                softmax.row::<V>(scores.add(i * stride), p);
                std::slice::from_raw_parts_mut(p.add(stride), keys - stride).fill(bf16::ZERO);
            }
            right::<V>(v, d, &plan.keys, of_rows);
            multiply::<V>(&by_keys, (p, of_rows), (queries, d), To::Narrow(out.0.at(head * d), out.1));
            let Some(((grad, of_grad), (to, of_to))) = grad else { return };
            let to = [0, 1, 2].map(|part| To::Narrow(to.at(part * width + head * d), of_to));
            let by_queries = plan.product(&plan.of_queries);
            let of_queries = rooms.narrow(right_room(queries, d));
            let ds = rooms.narrow(left_room(queries, n));
            let turned = rooms.narrow(left_room(n, queries));
            let whole = queries * keys;
            let dy = (grad, of_grad, head * d);
            // dv = pᵀ · dy
            right::<V>(dy, d, &plan.queries, of_queries);
            left_transposed::<V>((std::slice::from_raw_parts(p, whole), keys, 0), n, &plan.queries, turned);
            multiply::<V>(&by_queries, (turned, of_queries), (n, d), to[2]);
            // dp = dy · vᵀ
            left(dy, (queries, d), rows);
            right_transposed::<V>(v, (d, n), of_tokens);
            multiply::<V>(&by_width, (rows, of_tokens), (queries, stride), To::Wide(scores, stride));
            for i in 0..queries {
                let ds = ds.add(i * keys);
                softmax.row_backward::<V>((p.add(i * keys), scores.add(i * stride)), ds);
                std::slice::from_raw_parts_mut(ds.add(stride), keys - stride).fill(bf16::ZERO);
            }
            // dq = ds · k
            right::<V>(k, d, &plan.keys, of_rows);
            multiply::<V>(&by_keys, (ds, of_rows), (queries, d), to[0]);
            if let To::Narrow(to, _) = to[0] {
                for i in queries..n {
                    std::slice::from_raw_parts_mut(to.add(i * of_to), d).fill(bf16::ZERO);
                }
            }
            // dk = dsᵀ · q
            right::<V>(q, d, &plan.queries, of_queries);
            left_transposed::<V>((std::slice::from_raw_parts(ds, whole), keys, 0), n, &plan.queries, turned);
            multiply::<V>(&by_queries, (turned, of_queries), (n, d), to[1]);
        }
    }
}

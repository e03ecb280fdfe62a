//! Batch normalisation of maps that stand side by side and are never put together: their rows are joined a task at a
//! time, in the cache.

use super::channels::{join_block, split_block};
use super::norm::{Affine, Coefficients, InputGrad, Sums, SumsOf, block};
use super::walk;
use crate::kernels::buffer::{Shared, written};
use crate::kernels::fused_activation::FusedActivation;
use half::bf16;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Numbers of a task that sums nothing.
const TASK: usize = 1 << 14;

/// Maps of the same pixels.
pub(crate) struct Maps<'a> {
    /// Rows, and channels.
    pub(super) parts: Vec<(&'a [bf16], usize)>,
    pub(super) c: usize,
    pub(super) pixels: usize,
}

impl<'a> Maps<'a> {
    /// Of these rows, with as many channels as `widths` say.
    pub fn new(rows: &[&'a [bf16]], widths: &[usize]) -> Self {
        let parts: Vec<_> = rows.iter().copied().zip(widths.iter().copied()).collect();
        let pixels = rows[0].len() / widths[0];
        assert!(rows.len() == widths.len() && parts.iter().all(|(rows, width)| rows.len() == pixels * width));
        Self { parts, c: widths.iter().sum(), pixels }
    }

    /// Numbers of all maps.
    fn len(&self) -> usize {
        self.pixels * self.c
    }

    /// y = act(x · scale + shift), all maps side by side.
    pub fn affine(&self, by: &Coefficients, activation: FusedActivation) -> Vec<bf16> {
        assert_eq!(by.channels(), self.c);
        let (task, affine) = (walk::part(self.c, TASK), Affine::new(&by.scale, &by.shift, self.len(), activation));
        let fill = |ys: &mut [MaybeUninit<bf16>]| {
            ys.par_chunks_mut(task).enumerate().for_each(|(i, ys)| {
                let rows = (i * task / self.c, ys.len() / self.c);
                // SAFETY: the maps have as many rows as the output, and the task's are joined before they are read.
                unsafe {
                    join_block(&self.parts, rows, ys.as_mut_ptr().cast());
                    affine.over(&mut *(std::ptr::from_mut(ys) as *mut [bf16]));
                }
            });
        };
        // SAFETY: the tasks cover the output.
        unsafe { written(self.len(), fill) }
    }

    /// The gradients of bias and weight from that of the output, all maps side by side.
    pub fn gradient_sums(&self, grad: &[bf16], by: &Coefficients, activation: FusedActivation) -> Sums {
        assert!(grad.len() == self.len() && by.channels() == self.c);
        let sums = SumsOf::new(by, grad.len(), activation);
        let parts = grad.par_chunks(block(self.c)).enumerate().map_init(Vec::new, |joined, (i, grad)| {
            let rows = self.join(joined, (i * block(self.c), grad.len()));
            // SAFETY: nothing is kept.
            unsafe { sums.block(rows, None, grad, None) }
        });
        sums.of_blocks(by, &parts.collect::<Vec<_>>())
    }

    /// The gradient of each map that is wanted, on top of what other readers have sent `earlier`.
    pub fn input_grads(
        &self,
        grad: &[bf16],
        by: &InputGrad,
        earlier: &[Option<&[bf16]>],
        wanted: &[bool],
    ) -> Vec<Option<Vec<bf16>>> {
        assert_eq!(grad.len(), self.len());
        self.input_grads_of(walk::part(self.c, TASK) / self.c, Grad::Whole(grad), by, earlier, wanted)
    }

    /// The same, so many pixels at a time.
    pub(super) fn input_grads_of(
        &self,
        pixels: usize,
        grad: Grad,
        by: &InputGrad,
        earlier: &[Option<&[bf16]>],
        wanted: &[bool],
    ) -> Vec<Option<Vec<bf16>>> {
        assert!(earlier.len() == self.parts.len() && wanted.len() == self.parts.len());
        let mut all: Vec<Option<Vec<bf16>>> = self.parts.iter().zip(wanted).map(room).collect();
        let places = all.iter_mut().map(|part| part.as_mut().map(Shared::from_spare));
        let places: Vec<_> = places.zip(&self.parts).map(|(place, &(_, width))| (place, width)).collect();
        let buffers = || [Vec::new(), Vec::new(), Vec::new()];
        (0..self.pixels.div_ceil(pixels)).into_par_iter().for_each_init(buffers, |[joined, sums, made], i| {
            let at = (i * pixels, pixels.min(self.pixels - i * pixels));
            let n = at.1 * self.c;
            let rows = self.join(joined, (at.0 * self.c, n));
            let grad = match grad {
                Grad::Whole(grad) => &grad[at.0 * self.c..][..n],
                Grad::Made(make) => {
                    make(at, made);
                    made
                }
            };
            sums.clear();
            sums.resize(n, bf16::ZERO);
            let mut before = 0;
            for (&(part, width), earlier) in self.parts.iter().zip(earlier) {
                if let Some(earlier) = earlier {
                    assert_eq!(earlier.len(), part.len());
                    for (row, sums) in sums.chunks_exact_mut(self.c).enumerate() {
                        sums[before..][..width].copy_from_slice(&earlier[(at.0 + row) * width..][..width]);
                    }
                }
                before += width;
            }
            by.add_block(rows, None, grad, sums);
            // SAFETY: every wanted map has room for all of its rows, of which these are this task's.
            unsafe { split_block(sums.as_ptr(), &places, at) }
        });
        for (part, &(rows, _)) in all.iter_mut().zip(&self.parts) {
            if let Some(part) = part {
                // SAFETY: the tasks have written all rows.
                unsafe { part.set_len(rows.len()) }
            }
        }
        all
    }

    /// The maps' rows side by side, `n` numbers from number `from` on, which begins a row.
    fn join<'b>(&self, joined: &'b mut Vec<bf16>, (from, n): (usize, usize)) -> &'b [bf16] {
        joined.resize(n, bf16::ZERO);
        // SAFETY: the maps have these rows, and the vector has room for them.
        unsafe { join_block(&self.parts, (from / self.c, n / self.c), joined.as_mut_ptr()) }
        joined
    }
}

/// The gradient of the normalised maps side by side: as it lies, or made for some pixels at a time.
#[derive(Clone, Copy)]
pub(super) enum Grad<'g> {
    Whole(&'g [bf16]),
    Made(&'g Make<'g>),
}

/// Makes the gradient of these pixels, the first one and how many.
type Make<'g> = dyn Fn((usize, usize), &mut Vec<bf16>) + Sync + 'g;

fn room((&(rows, _), &wanted): (&(&[bf16], usize), &bool)) -> Option<Vec<bf16>> {
    wanted.then(|| Vec::with_capacity(rows.len()))
}

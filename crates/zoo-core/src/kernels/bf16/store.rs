//! What happens to sums before they are rounded and stored.

use super::sizes::{Channels, NOWHERE};
use super::tiles::{BLOCK, Block};
use crate::kernels::buffer::Shared;
use crate::kernels::fused_activation::FusedActivation;
use crate::kernels::low_parts::LowParts;
use crate::kernels::simd::Simd;
use half::bf16;

/// y = act(sum + shift + skip), rounded; shift by output channel, the skip a map as the target is.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a> {
    pub shift: Option<&'a [f32]>,
    pub skip: Option<&'a [bf16]>,
    /// The skip's low part, and where the output's goes: see `kernels::low_parts`. For no activation.
    pub skip_low: Option<&'a [bf16]>,
    pub low: Option<Shared<bf16>>,
    pub activation: FusedActivation,
    /// Whether Σ y and Σ y² of each channel are wanted, of the numbers before they are rounded.
    pub with_sums: bool,
}

/// Σ y and Σ y² by channel.
pub(super) type Sums = Vec<[f64; 2]>;

/// Mean and biased variance of each channel, of its sums over n pixels.
pub(crate) fn mean_and_var(sums: &[[f64; 2]], n: usize) -> (Vec<f32>, Vec<f32>) {
    let n = n as f64;
    let mean = sums.iter().map(|sums| (sums[0] / n) as f32);
    let var = sums.iter().map(|sums| (sums[1] / n - (sums[0] / n).powi(2)).max(0.0) as f32);
    (mean.collect(), var.collect())
}

impl<'a> Finish<'a> {
    /// The sums as they are, and a bias.
    pub fn bias(shift: Option<&'a [f32]>) -> Self {
        Self { shift, skip: None, skip_low: None, low: None, activation: FusedActivation::None, with_sums: false }
    }

    /// Panics where a slice does not fit.
    pub(super) fn check(&self, to: Channels, pixels: usize) {
        assert!(to.first + to.used <= to.all, "{to:?}");
        assert!(self.shift.is_none_or(|shift| shift.len() == to.all), "a shift for every channel of {to:?}");
        let fits = |skip: Option<&[bf16]>| skip.is_none_or(|skip| skip.len() == pixels * to.all);
        assert!(fits(self.skip) && fits(self.skip_low), "a skip for {pixels} pixels of {to:?}");
        assert!(self.low.is_none() || matches!(self.activation, FusedActivation::None), "low parts are those of sums");
    }
}

/// Stores a block of sums: its rows at their places, columns `first` to `first + width` of the group.
///
/// # Safety
/// Below `dispatch`; `out` has every place.
#[inline(always)]
pub(super) unsafe fn store<V: Simd<Elem = f32>>(
    sums: &Block,
    places: &[u32],
    (to, first, width): (Channels, usize, usize),
    out: Shared<bf16>,
    finish: &Finish,
    own: &mut [[f32; BLOCK]; 2],
) {
    let channel = to.first + first;
    for lane in (0..width).step_by(V::LANES) {
        let n = V::LANES.min(width - lane);
        // SAFETY: rows and lanes inside the block, channels inside the map: `check` has seen to the slices.
        unsafe {
            let shift = match finish.shift {
                Some(shift) => V::load_first(shift.as_ptr().add(channel + lane), n),
                None => V::zero(),
            };
            let (mut sum, mut squares) = (V::zero(), V::zero());
            for (row, &place) in places.iter().enumerate() {
                if place == NOWHERE {
                    continue;
                }
                let at = place as usize * to.all + channel + lane;
                let mut y = V::load(sums.0.as_ptr().add(row * BLOCK + lane)).add(shift);
                if finish.with_sums {
                    sum = sum.add(y);
                    squares = y.mul_add(y, squares);
                }
                let addend = finish.skip_low.map(|low| low.as_ptr().add(at));
                let low = LowParts { addend, sum: finish.low.map(|low| low.at(at)) };
                if let Some(skip) = finish.skip {
                    let skip = skip.as_ptr().add(at);
                    y = y.add(if n == V::LANES { V::load_bf16(skip) } else { V::load_first_bf16(skip, n) });
                }
                low.store(finish.activation.apply(low.add(y, n)), out.at(at), n);
            }
            if finish.with_sums {
                for (own, part) in own.iter_mut().zip([sum, squares]) {
                    let to = own.as_mut_ptr().add(lane);
                    V::load(to).add(part).store(to);
                }
            }
        }
    }
}

//! A walk over rows of channels in whole vectors, whatever their number.
//!
//! A vector takes the numbers as they lie, those of neighbouring channels and pixels. After a period, the least common
//! multiple of the channels and of [`GROUP`] numbers, its lanes meet the same channels again. So what belongs to a
//! channel is repeated once for a period, and no vector but the last of all is cut.

use crate::kernels::simd::Simd;
use half::bf16;

/// Numbers whose coefficients stay in registers: four of the widest vectors.
pub(crate) const GROUP: usize = 64;

/// Numbers of a period of `c` channels.
pub(crate) fn period(c: usize) -> usize {
    c * (GROUP >> c.trailing_zeros().min(GROUP.trailing_zeros()))
}

/// Numbers of a part of rows of `c` channels that one task takes: whole periods, at least `least` numbers.
pub(crate) fn part(c: usize, least: usize) -> usize {
    least.next_multiple_of(period(c))
}

/// Each channel's number at its lanes: repeated for a period, or for `n` numbers if they are fewer.
pub(crate) fn spread(values: &[f32], n: usize) -> Vec<f32> {
    let len = period(values.len()).min(n);
    let mut all = Vec::with_capacity(len);
    while all.len() < len {
        all.extend_from_slice(&values[..values.len().min(len - all.len())]);
    }
    all
}

/// Adds the numbers of a period's lanes to their channels.
pub(crate) fn fold(lanes: &[f32], sums: &mut [f64]) {
    for lanes in lanes.chunks(sums.len()) {
        sums.iter_mut().zip(lanes).for_each(|(sum, &x)| *sum += f64::from(x));
    }
}

/// What a walk does to every vector. All methods are `#[inline(always)]`, and stand below `dispatch`.
pub(crate) trait Step<V: Simd<Elem = f32>> {
    /// Of a place in the period: coefficients and sums.
    type State: Copy;
    /// # Safety
    /// The period's numbers from `at` on, `count` of them, at most a vector.
    unsafe fn begin(&self, at: usize, count: usize) -> Self::State;
    /// # Safety
    /// The rows' numbers from `i` on, `count` of them.
    unsafe fn step(&self, state: &mut Self::State, i: usize, count: usize);
    /// # Safety
    /// As [`begin`](Self::begin).
    #[inline(always)]
    unsafe fn end(&self, _state: Self::State, _at: usize, _count: usize) {}
}

/// Walks over `n` numbers of rows that begin with a period of this length. A place of the period ends once for all of
/// its repetitions, and once more for the rest that fills no period.
///
/// # Safety
/// Below `dispatch`, where `step` may touch n numbers.
#[inline(always)]
pub(crate) unsafe fn walk<V: Simd<Elem = f32>, S: Step<V>>(step: &S, n: usize, period: usize) {
    const VECTORS: usize = 4;
    let (group, whole) = (VECTORS * V::LANES, n - n % period);
    // SAFETY: a period is whole groups of whole vectors; the rest's last vector is cut to what is left.
    unsafe {
        if whole > 0 {
            for at in (0..period).step_by(group) {
                let lane = |j: usize| at + j * V::LANES;
                let mut states = [
                    step.begin(lane(0), V::LANES),
                    step.begin(lane(1), V::LANES),
                    step.begin(lane(2), V::LANES),
                    step.begin(lane(3), V::LANES),
                ];
                for start in (at..whole).step_by(period) {
                    for (j, state) in states.iter_mut().enumerate() {
                        step.step(state, start + j * V::LANES, V::LANES);
                    }
                }
                for (j, state) in states.into_iter().enumerate() {
                    step.end(state, lane(j), V::LANES);
                }
            }
        }
        for at in (0..n - whole).step_by(V::LANES) {
            let count = V::LANES.min(n - whole - at);
            let mut state = step.begin(at, count);
            step.step(&mut state, whole + at, count);
            step.end(state, at, count);
        }
    }
}

/// Numbers from `i` on, widened, zeros behind `count`.
///
/// # Safety
/// Below `dispatch`, inside what `from` points to.
#[inline(always)]
pub(crate) unsafe fn load<V: Simd<Elem = f32>>(from: *const bf16, i: usize, count: usize) -> V {
    // SAFETY: the caller's.
    unsafe { if count == V::LANES { V::load_bf16(from.add(i)) } else { V::load_first_bf16(from.add(i), count) } }
}

/// Stores the first `count` lanes at `i`, rounded.
///
/// # Safety
/// As [`load`].
#[inline(always)]
pub(crate) unsafe fn store<V: Simd<Elem = f32>>(x: V, to: *mut bf16, i: usize, count: usize) {
    // SAFETY: the caller's.
    unsafe { if count == V::LANES { x.store_bf16(to.add(i)) } else { x.store_first_bf16(to.add(i), count) } }
}

/// [`load`] of f32 numbers: coefficients, sums.
///
/// # Safety
/// As [`load`].
#[inline(always)]
pub(crate) unsafe fn load_f32<V: Simd<Elem = f32>>(from: *const f32, i: usize, count: usize) -> V {
    // SAFETY: the caller's.
    unsafe { if count == V::LANES { V::load(from.add(i)) } else { V::load_first(from.add(i), count) } }
}

/// Adds to the sums of the lanes from `at` on.
///
/// # Safety
/// As [`load`]; nobody else has these sums.
#[inline(always)]
pub(crate) unsafe fn add_f32<V: Simd<Elem = f32>>(x: V, to: *mut f32, at: usize, count: usize) {
    // SAFETY: the caller's.
    unsafe { load_f32::<V>(to, at, count).add(x).store_first(to.add(at), count) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_is_whole_pixels_and_whole_vectors() {
        for (c, want) in [(1, 64), (3, 192), (16, 64), (17, 1088), (24, 192), (64, 64), (96, 192), (512, 512)] {
            assert_eq!(period(c), want);
            assert_eq!(part(c, 1000), 1000usize.div_ceil(want) * want);
        }
    }

    #[test]
    fn what_is_spread_folds_back() {
        let values = [1.0, 2.0, 4.0];
        for (n, times) in [(192, 64.0), (500, 64.0), (6, 2.0)] {
            let mut sums = [0.0; 3];
            fold(&spread(&values, n), &mut sums);
            assert_eq!(sums, values.map(|x| f64::from(x) * times));
        }
    }
}

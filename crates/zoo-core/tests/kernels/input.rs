//! Inputs: their values, how they lie in memory, and what else a case has.

use crate::num::{Num, num};
use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use zoo_core::rng::Rng;

/// How a tensor lies in memory. Whatever surrounds it is NaN, so that a kernel that strays is seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Lies {
    Contiguous,
    /// The last two dimensions exchanged.
    Transposed,
    /// A part of the last dimension.
    Narrowed,
    /// A part of the first dimension: contiguous from an offset.
    Offset,
}

pub fn lies() -> impl Strategy<Value = Lies> {
    prop_oneof![3 => Just(Lies::Contiguous), 1 => Just(Lies::Transposed), 1 => Just(Lies::Narrowed), 1 => Just(Lies::Offset)]
}

/// What the values are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Values {
    Uniform,
    /// Multiples of 1/2: ties, zeros, and every kink of the functions.
    Grid,
    MostlyZero,
}

pub fn values() -> impl Strategy<Value = Values> {
    prop_oneof![2 => Just(Values::Uniform), 1 => Just(Values::Grid), 1 => Just(Values::MostlyZero)]
}

pub fn draw(rng: &mut Rng, n: usize, values: Values, size: f64) -> Vec<f64> {
    let mut one = || match values {
        Values::Uniform => f64::from(rng.uniform_in(-size, size) as f32),
        Values::Grid => (rng.uniform_in(-size, size) * 2.0).round() / 2.0,
        Values::MostlyZero if rng.below(4) > 0 => 0.0,
        Values::MostlyZero => f64::from(rng.uniform_in(-size, size) as f32),
    };
    (0..n).map(|_| one()).collect()
}

#[derive(Debug, Clone)]
pub struct Input {
    pub dims: Vec<usize>,
    pub values: Vec<f64>,
    pub lies: Lies,
    /// Asks for its gradient.
    pub tracked: bool,
}

impl Input {
    pub fn new(rng: &mut Rng, dims: &[usize], values: Values, size: f64) -> Self {
        let n = dims.iter().product();
        Self { dims: dims.to_vec(), values: draw(rng, n, values, size), lies: Lies::Contiguous, tracked: true }
    }

    pub fn lying(self, lies: Lies) -> Self {
        Self { lies, ..self }
    }

    pub fn tracked(self, tracked: bool) -> Self {
        Self { tracked, ..self }
    }

    pub fn nums(&self) -> Vec<Num> {
        self.values.iter().map(|&x| num(x)).collect()
    }

    pub fn tensor(&self, dtype: DType) -> Result<Tensor> {
        Tensor::from_slice(&self.values, self.dims.as_slice(), &Device::Cpu)?.to_dtype(dtype)
    }

    /// What lies in memory.
    pub fn stored(&self, dtype: DType) -> Result<Tensor> {
        let plain = self.tensor(dtype)?;
        let rank = self.dims.len();
        let within = |dim: usize| {
            let rubbish = |n: usize| {
                let mut dims = self.dims.clone();
                dims[dim] = n;
                Tensor::full(f64::NAN, dims, &Device::Cpu)?.to_dtype(dtype)
            };
            Tensor::cat(&[&rubbish(1)?, &plain, &rubbish(2)?], dim)
        };
        match self.lies {
            Lies::Transposed if rank >= 2 => plain.transpose(rank - 2, rank - 1)?.contiguous(),
            Lies::Narrowed => within(rank - 1),
            Lies::Offset => within(0),
            _ => Ok(plain),
        }
    }

    /// The tensor itself in what lies in memory, or in the gradient of that.
    pub fn view(&self, stored: &Tensor) -> Result<Tensor> {
        let rank = self.dims.len();
        match self.lies {
            Lies::Transposed if rank >= 2 => stored.transpose(rank - 2, rank - 1),
            Lies::Narrowed => stored.narrow(rank - 1, 1, self.dims[rank - 1]),
            Lies::Offset => stored.narrow(0, 1, self.dims[0]),
            _ => Ok(stored.clone()),
        }
    }
}

/// What a case has besides its shapes.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    pub lies: [Lies; 2],
    pub tracked: [bool; 2],
    pub values: Values,
    pub strided_upstream: bool,
    pub seed: u64,
}

impl Setting {
    /// Contiguous, tracked, uniform.
    pub fn plain(seed: u64) -> Self {
        let (lies, tracked) = ([Lies::Contiguous; 2], [true; 2]);
        Self { lies, tracked, values: Values::Uniform, strided_upstream: false, seed }
    }

    pub fn rng(&self) -> Rng {
        Rng::new(self.seed, "kernels")
    }
}

pub fn setting() -> impl Strategy<Value = Setting> {
    let tracked = || prop_oneof![4 => Just(true), 1 => Just(false)];
    ((lies(), lies()), (tracked(), tracked()), values(), any::<bool>(), any::<u64>()).prop_map(
        |(lies, tracked, values, strided_upstream, seed)| Setting {
            lies: lies.into(),
            tracked: tracked.into(),
            values,
            strided_upstream,
            seed,
        },
    )
}

pub fn channels() -> impl Strategy<Value = usize> {
    select(vec![1, 3, 5, 8, 16, 17, 24, 64])
}

pub fn side() -> impl Strategy<Value = (usize, usize)> {
    (1..=33usize, 1..=33usize)
}

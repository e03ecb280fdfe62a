//! What the tests of several files need: numbers to compute with, and how far two results are apart.

use crate::rng::Rng;
use candle_core::{Device, Tensor};

/// Numbers from -1 to 1; the same name draws the same ones.
pub fn numbers(name: &str, dims: &[usize]) -> Tensor {
    Tensor::from_vec(values(name, dims.iter().product()), dims, &Device::Cpu).unwrap()
}

/// The same as a vector.
pub fn values(name: &str, n: usize) -> Vec<f64> {
    let mut rng = Rng::new(5, name);
    (0..n).map(|_| 2.0 * rng.uniform() - 1.0).collect()
}

/// The largest difference of two elements.
pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    (a.detach() - b.detach()).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

//! What puts layers together, and runs several as one operation where [`crate::fuse`] has one.

mod concat;
mod residual;
mod sequential;
#[cfg(test)]
mod tests;

pub use concat::{Concat, DenseBlock};
pub use residual::Residual;
pub use sequential::{Sequential, Stages, conv_bn};

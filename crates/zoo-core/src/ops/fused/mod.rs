//! Operations that are several layers at once, for passes on the tape and for evaluation without a graph:
//! [`crate::fuse`] says which layers they stand for.

pub(crate) mod concat_norm;
pub(crate) mod conv_bn;
pub(crate) mod conv_bn_mixed;
pub(crate) mod dense_unit_mixed;
pub(crate) mod residual_branch;
mod residual_branch_mixed;

//! The sizes that depend on caches, all of them: how much a task packs, how far a loop goes before it starts anew.
//!
//! They were measured on cores with 32 to 48 kB of first-level and 1 to 2 MB of second-level cache. Those of gradients
//! ([`CONV_IMAGES`], [`CONV_GRADIENT`], [`WEIGHT_GRAD_PIXELS`], [`SMALL_PLANES_INPUT`]) also cut sums into parts:
//! another value gives other last bits.

/// Elements of a cache line of f32; packed rows are cut off at multiples of it.
pub(crate) const LINE: usize = 16;

/// Room for `n` elements in an odd number of cache lines: rows that far apart spread over all sets of a cache.
pub(crate) fn odd_lines(n: usize) -> usize {
    (n.div_ceil(LINE) | 1) * LINE
}

/// Bytes of packed input of one tile of a direct convolution, in the second-level cache.
pub(crate) const CONV_INPUT: usize = 1 << 20;

/// Bytes of packed input where a tile takes several images: their inputs and outputs go through the same cache.
/// Measured on cifar_resnet56: with `CONV_INPUT` here and in the weight gradient training is 4 % slower.
pub(crate) const CONV_IMAGES: usize = CONV_INPUT / 4;

/// Bytes of weights that stay in the cache while all of a tile's pixels run over them.
pub(crate) const CONV_WEIGHTS: usize = 128 << 10;

/// Bytes of an output gradient that go through all of its readers at once. Measured on cifar_resnet20: half and twice
/// as much are slower.
pub(crate) const CONV_GRADIENT: usize = 1 << 20;

/// Pixels of the weight gradient that the register tile takes at a time: their operands fit into the first-level cache.
pub(crate) const WEIGHT_GRAD_PIXELS: usize = 256;

/// Bytes of transformed input of one task of Winograd's algorithm, in the second-level cache.
pub(crate) const WINOGRAD_INPUT: usize = 512 << 10;

/// Bytes of input of one task on small planes, in the second-level cache.
pub(crate) const SMALL_PLANES_INPUT: usize = 1 << 20;

/// Bytes of a task that goes plane by plane: large enough to hide the hand-over, and it stays in the cache of a core.
pub(crate) const PLANE_TASK: usize = 64 << 10;

/// Rows of a matrix product's panel that are multiplied at a time.
pub(crate) const GEMM_DEPTH: usize = 384;

/// Bytes of a matrix product's left side that may wait in the second-level cache for the next panel.
pub(crate) const GEMM_LEFT: usize = 3 << 19;

/// Rows of a matrix product's left side that one task takes, at the most.
pub(crate) const GEMM_ROWS: usize = 512;

/// Elements between a normalisation's write and its prefetch: memory is read before it is written, and two threads that
/// wait for it get two thirds of what the memory can do.
pub(crate) const WRITE_AHEAD: usize = 512;

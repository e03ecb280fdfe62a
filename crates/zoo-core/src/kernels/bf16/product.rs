//! Products of bfloat16 matrices: operands of 16 bits, products exact, sums in f32, rounded once to 16 bits.
//!
//! Both sides are packed into tiles: 16 rows of 32 numbers of the left one; of the right one 16 pairs of rows of 16 columns,
//! the two numbers of a pair side by side. That is what an AMX instruction multiplies, and what one of `avx512_bf16` does row
//! by row. Where the machine has neither, there is no kernel here, and f32 vectors do the same arithmetic.
//!
//! Both instructions take denormal numbers for zeros. Sums are taken in one order, whatever the number of threads.

use crate::kernels::linear::Sizes;
use crate::kernels::simd::Level;
use half::bf16;
use rayon::prelude::*;

/// Rows of a left tile, columns of a right one.
const SIDE: usize = 16;
/// Numbers that one instruction on tiles sums.
const DEPTH: usize = 32;
const TILE: usize = SIDE * DEPTH;

/// x · weightᵀ + bias of bfloat16 numbers; `None` where this machine has no instruction for it, or is told to do without.
pub(crate) fn linear(sizes: Sizes, x: &[bf16], weight: &[bf16], bias: Option<&[bf16]>) -> Option<Vec<bf16>> {
    let level = Level::current();
    if level < Level::Avx512Bf16 {
        return None;
    }
    #[cfg(target_arch = "x86_64")]
    return Some(x86::linear(level == Level::Amx, sizes, x, weight, bias));
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// Rows of `cols` numbers as left tiles: \[row block\]\[depth block\]\[16\]\[32\], zeros where there is nothing.
fn pack_left(rows: &[bf16], cols: usize) -> Vec<bf16> {
    let count = rows.len() / cols;
    let mut tiles = vec![bf16::ZERO; count.div_ceil(SIDE) * panel(cols)];
    tiles.par_chunks_mut(panel(cols)).zip(rows.par_chunks(SIDE * cols)).for_each(|(tiles, rows)| {
        for (i, row) in rows.chunks_exact(cols).enumerate() {
            for (tile, part) in tiles.chunks_exact_mut(TILE).zip(row.chunks(DEPTH)) {
                tile[i * DEPTH..][..part.len()].copy_from_slice(part);
            }
        }
    });
    tiles
}

/// The transpose of rows of `cols` numbers as right tiles: \[column block\]\[depth block\]\[16 pairs\]\[16\]\[2\].
fn pack_right_transposed(rows: &[bf16], cols: usize) -> Vec<bf16> {
    let count = rows.len() / cols;
    let mut tiles = vec![bf16::ZERO; count.div_ceil(SIDE) * panel(cols)];
    tiles.par_chunks_mut(panel(cols)).zip(rows.par_chunks(SIDE * cols)).for_each(|(tiles, rows)| {
        for (j, row) in rows.chunks_exact(cols).enumerate() {
            for (tile, part) in tiles.chunks_exact_mut(TILE).zip(row.chunks(DEPTH)) {
                for (pair, two) in part.chunks(2).enumerate() {
                    tile[pair * DEPTH + 2 * j..][..two.len()].copy_from_slice(two);
                }
            }
        }
    });
    tiles
}

/// Numbers of a panel: all tiles of 16 rows of `cols`.
fn panel(cols: usize) -> usize {
    cols.div_ceil(DEPTH) * TILE
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{DEPTH, SIDE, Sizes, TILE, bf16, pack_left, pack_right_transposed, panel};
    use crate::kernels::buffer::written;
    use rayon::prelude::*;
    use std::arch::asm;
    use std::arch::x86_64::{
        __m256bh, __m256i, __m512bh, __m512i, _mm256_storeu_si256, _mm512_add_ps, _mm512_cvtneps_pbh, _mm512_dpbf16_ps,
        _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
    };
    use std::mem::{MaybeUninit, transmute};

    /// 2x2 tiles of sums: 32 rows of 32.
    type Block = [f32; 4 * SIDE * SIDE];
    /// Bytes of a row of a [`Block`].
    const BLOCK_ROW: usize = 2 * SIDE * size_of::<f32>();

    pub fn linear(on_tiles: bool, sizes: Sizes, x: &[bf16], weight: &[bf16], bias: Option<&[bf16]>) -> Vec<bf16> {
        let Sizes { rows, c_in, c_out } = sizes;
        assert!(
            x.len() == rows * c_in && weight.len() == c_out * c_in,
            "{sizes:?} with {} and {}",
            x.len(),
            weight.len()
        );
        let (left, right) = (pack_left(x, c_in), pack_right_transposed(weight, c_in));
        let panel = panel(c_in);
        // A bias for every column of a block, zeros beyond.
        let mut shift = vec![0f32; c_out.next_multiple_of(2 * SIDE)];
        shift.iter_mut().zip(bias.unwrap_or_default()).for_each(|(to, from)| *to = from.to_f32());
        let pair = |tiles: &'_ [bf16], block: usize| {
            let first = &tiles[2 * block * panel..][..panel];
            // The last block may have one panel: its second half is not stored.
            [
                first.as_ptr(),
                tiles.get((2 * block + 1) * panel..).filter(|rest| !rest.is_empty()).unwrap_or(first).as_ptr(),
            ]
        };
        let run = |block: usize, ys: &mut [MaybeUninit<bf16>]| {
            let _tiles = on_tiles.then(Tiles::new);
            let a = pair(&left, block);
            let mut sums: Block = [0.0; 4 * SIDE * SIDE];
            for (block, shift) in shift.chunks_exact(2 * SIDE).enumerate() {
                let b = pair(&right, block);
                // SAFETY: each pointer has a panel behind it; the level was asked for, and with it the machine's
                // features; the tiles are configured.
                unsafe {
                    match on_tiles {
                        true => multiply_tiles(a, b, panel / TILE, &mut sums),
                        false => multiply_pairs(a, b, panel / TILE, &mut sums),
                    }
                }
                let columns = 2 * SIDE * block..(2 * SIDE * (block + 1)).min(c_out);
                for (ys, sums) in ys.chunks_exact_mut(c_out).zip(sums.chunks_exact(2 * SIDE)) {
                    // SAFETY: as above; a row of sums and the shifts are of 32 numbers.
                    unsafe { store(sums, shift, &mut ys[columns.clone()]) };
                }
            }
        };
        // SAFETY: every block writes all columns of its rows.
        unsafe {
            written(rows * c_out, |ys: &mut [MaybeUninit<bf16>]| {
                ys.par_chunks_mut(2 * SIDE * c_out).enumerate().for_each(|(block, ys)| run(block, ys));
            })
        }
    }

    /// This thread's tile registers, eight of 16 rows of 64 bytes, until it is dropped.
    struct Tiles;

    impl Tiles {
        fn new() -> Self {
            #[repr(C, align(64))]
            struct Config([u8; 64]);
            let mut config = Config([0; 64]);
            // Palette 1; bytes of a row from byte 16 on, two for each tile; rows from byte 48 on.
            config.0[0] = 1;
            for tile in 0..8 {
                config.0[16 + 2 * tile] = 64;
                config.0[48 + tile] = 16;
            }
            // SAFETY: the level says that tiles are permitted, and the configuration is one of palette 1.
            unsafe { asm!("ldtilecfg [{}]", in(reg) config.0.as_ptr(), options(nostack, readonly)) };
            Self
        }
    }

    impl Drop for Tiles {
        fn drop(&mut self) {
            // SAFETY: the tiles were configured.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }

    /// The products of two left and two right panels of `depth` tiles.
    ///
    /// # Safety
    /// On a machine with permitted and configured tiles; `depth`, at least 1, tiles behind each pointer.
    unsafe fn multiply_tiles(a: [*const bf16; 2], b: [*const bf16; 2], depth: usize, sums: &mut Block) {
        // SAFETY: tiles are read 1024 bytes apart, `depth` of them; the four sums fill the block.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{a0} + {row}]",
                "tileloadd tmm6, [{b0} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {row}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a1} + {row}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a0}, {tile}",
                "add {a1}, {tile}",
                "add {b0}, {tile}",
                "add {b1}, {tile}",
                "dec {depth}",
                "jnz 2b",
                "tilestored [{sums} + {to}], tmm0",
                "tilestored [{sums} + {to} + {right}], tmm1",
                "tilestored [{sums} + {to} + {below}], tmm2",
                "tilestored [{sums} + {to} + {below} + {right}], tmm3",
                a0 = inout(reg) a[0] => _,
                a1 = inout(reg) a[1] => _,
                b0 = inout(reg) b[0] => _,
                b1 = inout(reg) b[1] => _,
                depth = inout(reg) depth => _,
                row = in(reg) DEPTH * size_of::<bf16>(),
                to = in(reg) BLOCK_ROW,
                sums = in(reg) sums.as_mut_ptr(),
                tile = const TILE * size_of::<bf16>(),
                right = const SIDE * size_of::<f32>(),
                below = const SIDE * BLOCK_ROW,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        }
    }

    /// [`multiply_tiles`] by instructions on pairs: eight rows by two vectors of sums stay in registers.
    ///
    /// # Safety
    /// On a machine with `avx512_bf16`; `depth` tiles behind each pointer.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn multiply_pairs(a: [*const bf16; 2], b: [*const bf16; 2], depth: usize, sums: &mut Block) {
        const ROWS: usize = 8;
        for first in (0..2 * SIDE).step_by(ROWS) {
            let mut acc = [[_mm512_setzero_ps(); 2]; ROWS];
            for tile in 0..depth {
                // SAFETY: a tile holds 16 rows of 32 numbers, of which these are eight; a row of pairs is a vector.
                unsafe {
                    let rows = a[first / SIDE].add(tile * TILE + first % SIDE * DEPTH);
                    for pair in 0..SIDE {
                        let at = tile * TILE + pair * DEPTH;
                        let right = b.map(|b| transmute::<__m512i, __m512bh>(_mm512_loadu_si512(b.add(at).cast())));
                        for (i, acc) in acc.iter_mut().enumerate() {
                            let two = rows.add(i * DEPTH + 2 * pair).cast::<i32>().read_unaligned();
                            let two = transmute::<__m512i, __m512bh>(_mm512_set1_epi32(two));
                            acc[0] = _mm512_dpbf16_ps(acc[0], two, right[0]);
                            acc[1] = _mm512_dpbf16_ps(acc[1], two, right[1]);
                        }
                    }
                }
            }
            for (acc, to) in acc.iter().zip(sums[first * 2 * SIDE..].chunks_exact_mut(2 * SIDE)) {
                // SAFETY: a row of the block holds two vectors.
                unsafe {
                    _mm512_storeu_ps(to.as_mut_ptr(), acc[0]);
                    _mm512_storeu_ps(to.as_mut_ptr().add(SIDE), acc[1]);
                }
            }
        }
    }

    /// Rounds sums + shift to bfloat16, to nearest even.
    ///
    /// # Safety
    /// On a machine with `avx512_bf16`; 32 sums and shifts, at most 32 numbers to write.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn store(sums: &[f32], shift: &[f32], ys: &mut [MaybeUninit<bf16>]) {
        let mut rounded = [bf16::ZERO; 2 * SIDE];
        for at in [0, SIDE] {
            // SAFETY: the caller's sums and shifts are of 32 numbers, as `rounded` is.
            unsafe {
                let y = _mm512_add_ps(_mm512_loadu_ps(sums.as_ptr().add(at)), _mm512_loadu_ps(shift.as_ptr().add(at)));
                let y = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(y));
                _mm256_storeu_si256(rounded.as_mut_ptr().add(at).cast(), y);
            }
        }
        ys.iter_mut().zip(rounded).for_each(|(y, rounded)| _ = y.write(rounded));
    }
}

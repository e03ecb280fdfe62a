//! The product of 32 rows of bfloat16 numbers with two columns of tiles: on AMX tiles, by `avx512_bf16`, or out of f32
//! vectors. Products are exact; sums are f32.
//!
//! A left row is read where it lies, in pieces: `depth` numbers from each of `steps` on. The right side is packed: for each
//! step `depth` / 2 pairs of rows of 16 columns, the two numbers of a pair side by side. So a tile's rows are pixels of a
//! map whose channels are innermost, and a convolution's taps are steps: nothing of the left side is packed.
//!
//! The instructions of AMX and `avx512_bf16` take denormal numbers for zeros; f32 vectors do not.

use crate::kernels::simd::{Level, Simd};
use half::bf16;
#[cfg(target_arch = "x86_64")]
use std::arch::asm;

/// Rows of a left tile, columns of a right one.
pub(super) const SIDE: usize = 16;
/// Numbers of a row that one step takes at the most.
pub(super) const DEPTH: usize = 32;
/// Rows of a block of sums, and the distance of two of its rows: two tiles each way.
pub(super) const BLOCK: usize = 2 * SIDE;

/// Sums of 32 rows and 32 columns.
#[repr(C, align(64))]
pub(super) struct Block(pub [f32; BLOCK * BLOCK]);

impl Block {
    pub fn new() -> Self {
        Self([0.0; BLOCK * BLOCK])
    }
}

/// How the rows of one product are multiplied.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub level: Level,
    /// Numbers of a step: even, 32 at the most.
    pub depth: usize,
    /// From a row's start to that of its next one, in numbers, for left rows.
    pub stride: usize,
    /// Where each step begins in a row.
    pub steps: &'a [usize],
}

impl Product<'_> {
    /// Numbers of a packed column of tiles.
    pub fn column(&self) -> usize {
        self.steps.len() * self.depth * SIDE
    }

    /// Σ over all steps, of 16 rows from each of `a` on, with the packed columns `b`; the second may be missing.
    ///
    /// # Safety
    /// Below `dispatch`, at `level`, whose tiles are configured ([`Tiles`]) for `depth`. Behind each `a`, 16 rows with all
    /// steps; behind each `b`, [`column`](Self::column) numbers.
    #[inline(always)]
    pub unsafe fn multiply<V: Simd<Elem = f32>>(
        &self,
        a: [*const bf16; 2],
        b: (*const bf16, Option<*const bf16>),
        sums: &mut Block,
    ) {
        // SAFETY: the caller's pointers, and the level's instructions are there.
        unsafe {
            match self.level {
                #[cfg(target_arch = "x86_64")]
                Level::Amx => match b.1 {
                    Some(second) => self.on_tiles(a, [b.0, second], sums),
                    None => self.on_tiles_of_one_column(a, b.0, sums),
                },
                #[cfg(target_arch = "x86_64")]
                Level::Avx512Bf16 => self.by_pairs(a, b, sums),
                _ => self.by_vectors::<V>(a, b, sums),
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn on_tiles(&self, a: [*const bf16; 2], b: [*const bf16; 2], sums: &mut Block) {
        // SAFETY: the caller's rows and columns; the four tiles of sums fill the block.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "mov {at}, [{step}]",
                "lea {at}, [{a0} + 2 * {at}]",
                "tileloadd tmm4, [{at} + {row}]",
                "tileloadd tmm6, [{b0} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {line}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {at}, {below}",
                "tileloadd tmm5, [{at} + {row}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {step}, 8",
                "add {b0}, {tile}",
                "add {b1}, {tile}",
                "cmp {step}, {end}",
                "jb 2b",
                "mov {at}, {sums_row}",
                "tilestored [{sums} + {at}], tmm0",
                "tilestored [{sums} + {at} + {right}], tmm1",
                "tilestored [{sums} + {at} + {lower}], tmm2",
                "tilestored [{sums} + {at} + {lower} + {right}], tmm3",
                at = out(reg) _,
                a0 = in(reg) a[0],
                below = in(reg) a[1].byte_offset_from(a[0]),
                b0 = inout(reg) b[0] => _,
                b1 = inout(reg) b[1] => _,
                step = inout(reg) self.steps.as_ptr() => _,
                end = in(reg) self.steps.as_ptr().add(self.steps.len()),
                row = in(reg) self.stride * size_of::<bf16>(),
                line = in(reg) 4 * SIDE,
                tile = in(reg) self.depth * SIDE * size_of::<bf16>(),
                sums = in(reg) sums.0.as_mut_ptr(),
                sums_row = const BLOCK * size_of::<f32>(),
                right = const SIDE * size_of::<f32>(),
                lower = const SIDE * BLOCK * size_of::<f32>(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn on_tiles_of_one_column(&self, a: [*const bf16; 2], b: *const bf16, sums: &mut Block) {
        // SAFETY: the caller's rows and column; the two tiles of sums fill the left half of the block.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm2",
                "2:",
                "mov {at}, [{step}]",
                "lea {at}, [{a0} + 2 * {at}]",
                "tileloadd tmm4, [{at} + {row}]",
                "tileloadd tmm6, [{b0} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "add {at}, {below}",
                "tileloadd tmm5, [{at} + {row}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "add {step}, 8",
                "add {b0}, {tile}",
                "cmp {step}, {end}",
                "jb 2b",
                "mov {at}, {sums_row}",
                "tilestored [{sums} + {at}], tmm0",
                "tilestored [{sums} + {at} + {lower}], tmm2",
                at = out(reg) _,
                a0 = in(reg) a[0],
                below = in(reg) a[1].byte_offset_from(a[0]),
                b0 = inout(reg) b => _,
                step = inout(reg) self.steps.as_ptr() => _,
                end = in(reg) self.steps.as_ptr().add(self.steps.len()),
                row = in(reg) self.stride * size_of::<bf16>(),
                line = in(reg) 4 * SIDE,
                tile = in(reg) self.depth * SIDE * size_of::<bf16>(),
                sums = in(reg) sums.0.as_mut_ptr(),
                sums_row = const BLOCK * size_of::<f32>(),
                lower = const SIDE * BLOCK * size_of::<f32>(),
                out("tmm0") _, out("tmm2") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
                options(nostack)
            );
        }
    }

    /// By instructions on pairs: eight rows by two vectors of sums stay in registers.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn by_pairs(&self, a: [*const bf16; 2], b: (*const bf16, Option<*const bf16>), sums: &mut Block) {
        use std::arch::x86_64::*;
        use std::mem::transmute;
        const ROWS: usize = 8;
        let columns = [b.0, b.1.unwrap_or(b.0)];
        for first in (0..BLOCK).step_by(ROWS) {
            let mut acc = [[_mm512_setzero_ps(); 2]; ROWS];
            // SAFETY: the caller's rows and columns: a row of pairs is a vector.
            unsafe {
                let rows = a[first / SIDE].add(first % SIDE * self.stride);
                let mut columns = columns;
                for &step in self.steps {
                    for pair in 0..self.depth / 2 {
                        let right = columns.map(|b| transmute::<__m512i, __m512bh>(_mm512_loadu_si512(b.cast())));
                        columns = columns.map(|b| b.add(2 * SIDE));
                        for (i, acc) in acc.iter_mut().enumerate() {
                            let two = rows.add(i * self.stride + step + 2 * pair).cast::<i32>().read_unaligned();
                            let two = transmute::<__m512i, __m512bh>(_mm512_set1_epi32(two));
                            acc[0] = _mm512_dpbf16_ps(acc[0], two, right[0]);
                            acc[1] = _mm512_dpbf16_ps(acc[1], two, right[1]);
                        }
                    }
                }
                for (acc, to) in acc.iter().zip(sums.0[first * BLOCK..].chunks_exact_mut(BLOCK)) {
                    _mm512_storeu_ps(to.as_mut_ptr(), acc[0]);
                    _mm512_storeu_ps(to.as_mut_ptr().add(SIDE), acc[1]);
                }
            }
        }
    }

    /// Out of f32 vectors.
    #[inline(always)]
    unsafe fn by_vectors<V: Simd<Elem = f32>>(
        &self,
        a: [*const bf16; 2],
        b: (*const bf16, Option<*const bf16>),
        sums: &mut Block,
    ) {
        const ROWS: usize = 8;
        for (at, column) in [Some(b.0), b.1].into_iter().flatten().enumerate() {
            for lane in (0..SIDE).step_by(V::LANES) {
                for first in (0..BLOCK).step_by(ROWS) {
                    // SAFETY: the caller's rows and columns; a block's row has room for two columns.
                    unsafe {
                        let mut acc = [V::zero(); ROWS];
                        let rows = a[first / SIDE].add(first % SIDE * self.stride);
                        let mut column = column.add(2 * lane);
                        for &step in self.steps {
                            for pair in 0..self.depth / 2 {
                                let (even, odd) = V::load_pairs_bf16(column);
                                column = column.add(2 * SIDE);
                                for (i, acc) in acc.iter_mut().enumerate() {
                                    let two = rows.add(i * self.stride + step + 2 * pair);
                                    *acc = V::splat(two.read().to_f32()).mul_add(even, *acc);
                                    *acc = V::splat(two.add(1).read().to_f32()).mul_add(odd, *acc);
                                }
                            }
                        }
                        for (i, acc) in acc.into_iter().enumerate() {
                            acc.store(sums.0.as_mut_ptr().add((first + i) * BLOCK + at * SIDE + lane));
                        }
                    }
                }
            }
        }
    }
}

/// This thread's tile registers, until it is dropped; nothing at levels without tiles.
pub(super) struct Tiles {
    #[cfg(target_arch = "x86_64")]
    configured: bool,
}

impl Tiles {
    /// Four tiles of 16x16 sums, two left ones of 16 rows of `depth` numbers, two right ones of `depth` / 2 rows of pairs.
    pub fn new(level: Level, depth: usize) -> Self {
        assert!(depth > 0 && depth <= DEPTH && depth.is_multiple_of(2), "a step of {depth} numbers");
        #[cfg(target_arch = "x86_64")]
        {
            #[repr(C, align(64))]
            struct Config([u8; 64]);
            let mut config = Config([0; 64]);
            // Palette 1; bytes of a row from byte 16 on, two for each tile; rows from byte 48 on.
            config.0[0] = 1;
            for tile in 0..8 {
                let (rows, bytes) = match tile {
                    4 | 5 => (SIDE, 2 * depth),
                    6 | 7 => (depth / 2, 4 * SIDE),
                    _ => (SIDE, 4 * SIDE),
                };
                config.0[16 + 2 * tile] = bytes as u8;
                config.0[48 + tile] = rows as u8;
            }
            let configured = level == Level::Amx;
            if configured {
                // SAFETY: the level says that tiles are permitted, and the configuration is one of palette 1.
                unsafe { asm!("ldtilecfg [{}]", in(reg) config.0.as_ptr(), options(nostack, readonly)) };
            }
            Self { configured }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = level;
            Self {}
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.configured {
            // SAFETY: the tiles were configured.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }
}

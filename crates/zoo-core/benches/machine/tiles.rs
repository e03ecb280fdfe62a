//! What products of bfloat16 numbers reach: on matrix tiles with their loads, or by instructions on pairs.

use zoo_core::ops::Level;

/// Whether a level has products of its own, beside those of f32.
pub fn has_products(level: Level) -> bool {
    cfg!(target_arch = "x86_64") && matches!(level, Level::Amx | Level::Avx512Bf16)
}

/// As many products as take some milliseconds; the number of operations.
#[cfg(target_arch = "x86_64")]
pub fn products(level: Level) -> usize {
    // SAFETY: the levels are supported, since the level at hand is one that is.
    unsafe { if level == Level::Amx { on_tiles(50_000) } else { by_pairs(500_000) } }
}

/// Never asked for: there is no level with products.
#[cfg(not(target_arch = "x86_64"))]
pub fn products(_: Level) -> usize {
    0
}

/// Two left tiles times two right ones, loaded from the first-level cache each time, into four of sums.
///
/// # Safety
/// The system permits tiles.
#[cfg(target_arch = "x86_64")]
unsafe fn on_tiles(rounds: usize) -> usize {
    use std::arch::asm;
    #[repr(C, align(64))]
    struct Config([u8; 64]);
    #[repr(C, align(64))]
    struct Operands([u8; 4096]);
    let mut config = Config([0; 64]);
    config.0[0] = 1;
    for tile in 0..8 {
        config.0[16 + 2 * tile] = 64;
        config.0[48 + tile] = 16;
    }
    let operands = Operands([0; 4096]);
    // SAFETY: tiles are permitted at this level; four tiles of a kilobyte are read; whoever uses tiles configures its own.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{from} + {line}]",
            "tileloadd tmm6, [{from} + {line} + 2048]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{from} + {line} + 3072]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{from} + {line} + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {rounds}",
            "jnz 2b",
            "tilerelease",
            config = in(reg) config.0.as_ptr(),
            from = in(reg) operands.0.as_ptr(),
            line = in(reg) 64usize,
            rounds = inout(reg) rounds => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly)
        );
    }
    rounds * 4 * 2 * 16 * 16 * 32
}

/// Sums of pairs on registers alone.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn by_pairs(rounds: usize) -> usize {
    use std::arch::x86_64::*;
    use std::hint::black_box;
    const SUMS: usize = 16;
    let two = black_box(_mm512_cvtne2ps_pbh(_mm512_set1_ps(0.999), _mm512_set1_ps(0.001)));
    let mut sums = [_mm512_setzero_ps(); SUMS];
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = _mm512_dpbf16_ps(*sum, two, two));
    }
    for sum in sums {
        black_box(_mm512_reduce_add_ps(sum));
    }
    rounds * SUMS * 2 * 32
}

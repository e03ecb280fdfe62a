//! Vectors of the machine: one trait, four kinds of register, chosen at run time.
//!
//! A kernel is written once over `Simd`, a handful of lanes of f32 or f64, and started through `dispatch`, which picks
//! the widest registers that the machine has: AVX-512, AVX2 with FMA, or arrays that the compiler lays into whatever
//! the target guarantees (SSE2 on x86-64, NEON on AArch64). Two more kinds have the registers of AVX-512 and multiply
//! bfloat16 numbers besides, in pairs or in tiles. [`force`] and the environment variable `ZOO_SIMD` choose a
//! narrower kind, to test it or to compare.
//!
//! Everything on the way from `dispatch` to the instruction is `#[inline(always)]`: only so does a kernel take on the
//! target features of the function that starts it.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use candle_core::WithDType;
use half::bf16;
use std::error::Error;
use std::fmt::{Display, Formatter};
use std::ops::Neg;
use std::sync::atomic::{AtomicU8, Ordering};

/// A kind of vector registers, from the narrowest to the widest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// What every machine of the target has; NEON on AArch64.
    Portable = 1,
    /// 256 bits with fused multiply-add.
    Avx2 = 2,
    /// 512 bits.
    Avx512 = 3,
    /// The same, and products of bfloat16 numbers in pairs.
    Avx512Bf16 = 4,
    /// The same, and products of tiles of bfloat16 numbers.
    Amx = 5,
}

/// 0: not chosen yet.
static LEVEL: AtomicU8 = AtomicU8::new(0);

impl Level {
    const ALL: [Self; 5] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// Whether this machine can run it.
    pub fn is_supported(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Self::Avx512.is_supported() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx => Self::Avx512Bf16.is_supported() && amx::is_permitted(),
            #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
            _ => false,
        }
    }

    /// Every kind that this machine can run whose registers are not those of a narrower one: what kernels of f32 and f64
    /// numbers can tell apart.
    pub fn vectors() -> impl Iterator<Item = Self> {
        Self::supported().filter(|level| *level <= Self::Avx512)
    }

    /// Every kind that this machine can run, narrowest first.
    pub fn supported() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|level| level.is_supported())
    }

    /// The name that `ZOO_SIMD` takes: `portable`, `avx2`, `avx512`, `avx512_bf16` or `amx`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512_bf16",
            Self::Amx => "amx",
        }
    }

    /// The kind that kernels run with now.
    pub fn current() -> Self {
        match LEVEL.load(Ordering::Relaxed) {
            1 => Self::Portable,
            2 => Self::Avx2,
            3 => Self::Avx512,
            4 => Self::Avx512Bf16,
            5 => Self::Amx,
            _ => Self::choose(),
        }
    }

    #[cold]
    fn choose() -> Self {
        let widest = Self::supported().last().unwrap_or(Self::Portable);
        // A wish that this machine cannot fulfil would end in an illegal instruction; a name that nobody knows is no
        // wish.
        let wish = std::env::var("ZOO_SIMD").ok();
        let level = match Self::supported().find(|level| Some(level.name()) == wish.as_deref()) {
            Some(level) => level,
            None => {
                if let Some(wish) = wish {
                    eprintln!("ZOO_SIMD={wish} is no kind of vectors that this machine has; using {}", widest.name());
                }
                widest
            }
        };
        LEVEL.store(level as u8, Ordering::Relaxed);
        level
    }
}

/// Makes every kernel of this process run with `level`; `None` chooses anew. Results of different kinds differ by
/// roundings.
///
/// # Errors
/// A kind that this machine does not have.
pub fn force(level: Option<Level>) -> Result<(), Unsupported> {
    match level {
        Some(level) if !level.is_supported() => Err(Unsupported(level)),
        _ => {
            LEVEL.store(level.map_or(0, |level| level as u8), Ordering::Relaxed);
            Ok(())
        }
    }
}

/// A kind of vector registers that this machine does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsupported(pub Level);

impl Display for Unsupported {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        write!(f, "this machine has no {} vectors", self.0.name())
    }
}

impl Error for Unsupported {}

/// The element types that have kernels: f32 to work in, f64 to check gradients in.
pub(crate) trait Real: WithDType + Neg<Output = Self> {
    /// The registers of each kind that hold it.
    #[cfg(target_arch = "x86_64")]
    type Avx512: Simd<Elem = Self>;
    #[cfg(target_arch = "x86_64")]
    type Avx512Bf16: Simd<Elem = Self>;
    #[cfg(target_arch = "x86_64")]
    type Avx2: Simd<Elem = Self>;
    type Portable: Simd<Elem = Self>;

    fn sqrt(self) -> Self;
}

impl Real for f32 {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = x86::F32x16;
    #[cfg(target_arch = "x86_64")]
    type Avx512Bf16 = x86::F32x16Bf16;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = x86::F32x8;
    type Portable = portable::Lanes<f32, 8>;

    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
}

impl Real for f64 {
    #[cfg(target_arch = "x86_64")]
    type Avx512 = x86::F64x8;
    #[cfg(target_arch = "x86_64")]
    type Avx512Bf16 = x86::F64x8;
    #[cfg(target_arch = "x86_64")]
    type Avx2 = x86::F64x4;
    type Portable = portable::Lanes<f64, 4>;

    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
}

/// A vector register of `LANES` elements.
///
/// # Safety
/// Every method may use instructions that only machines with the register's [`Level`] have: call them below
/// [`dispatch`] only. The pointers of loads and stores must be valid for the lanes that they touch; no alignment is
/// asked for.
pub(crate) trait Simd: Copy {
    type Elem: Real;
    const LANES: usize;
    /// Rows of the tile of a matrix product that this kind of register file holds, see `microkernel.rs`.
    const ROWS: usize;

    unsafe fn splat(x: Self::Elem) -> Self;
    unsafe fn load(from: *const Self::Elem) -> Self;
    unsafe fn store(self, to: *mut Self::Elem);
    /// The first `n` lanes, zeros behind them; n ≤ LANES.
    unsafe fn load_first(from: *const Self::Elem, n: usize) -> Self;
    /// Stores the first `n` lanes; n ≤ LANES.
    unsafe fn store_first(self, to: *mut Self::Elem, n: usize);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// self · a + b, rounded once where the machine can.
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
    /// `a` where self > `limit`, otherwise `b`; a NaN in self gives `b`.
    unsafe fn if_greater(self, limit: Self, a: Self, b: Self) -> Self;
    /// To the nearest integer, ties to even. Defined for |x| < 2²².
    unsafe fn round(self) -> Self;
    /// 2^self for integers in the range of normal numbers, and 0 for the one below them; of a NaN any bits.
    unsafe fn exp2_of_integer(self) -> Self;
    /// `a` where self ≤ `limit`, otherwise `b`; a NaN in self gives `b`.
    unsafe fn if_at_most(self, limit: Self, a: Self, b: Self) -> Self;
    /// Transposes LANES rows of LANES elements.
    #[inline(always)]
    unsafe fn transpose(from: *const Self::Elem, from_stride: usize, to: *mut Self::Elem, to_stride: usize) {
        for i in 0..Self::LANES {
            for j in 0..Self::LANES {
                // SAFETY: the caller's blocks hold LANES rows of LANES elements.
                unsafe { *to.add(j * to_stride + i) = *from.add(i * from_stride + j) };
            }
        }
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller stands below `dispatch`.
        unsafe { Self::splat(Self::Elem::from_f64(0.0)) }
    }

    /// The larger one; `other` if self is NaN.
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { self.if_greater(other, self, other) }
    }

    /// Σ lanes, in a fixed order.
    #[inline(always)]
    unsafe fn sum(self) -> Self::Elem {
        let mut lanes = [Self::Elem::from_f64(0.0); 16];
        // SAFETY: no register has more than sixteen lanes.
        unsafe { self.store(lanes.as_mut_ptr()) };
        let mut n = Self::LANES;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                lanes[i] += lanes[i + n];
            }
        }
        lanes[0]
    }

    /// The largest lane; none may be NaN.
    #[inline(always)]
    unsafe fn largest(self) -> Self::Elem {
        let mut lanes = [Self::Elem::from_f64(f64::NEG_INFINITY); 16];
        // SAFETY: no register has more than sixteen lanes.
        unsafe { self.store(lanes.as_mut_ptr()) };
        let mut n = 16;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                lanes[i] = if lanes[i + n] > lanes[i] { lanes[i + n] } else { lanes[i] };
            }
        }
        lanes[0]
    }

    /// The lanes whose bit in `lanes` is set, zeros elsewhere; touches no other element.
    unsafe fn load_where(from: *const Self::Elem, lanes: u32) -> Self;
    /// The elements at even and at odd places of `self` followed by `other`.
    unsafe fn deinterleave(self, other: Self) -> (Self, Self);
    /// self\[0\], other\[0\], self\[1\], other\[1\], …
    unsafe fn interleave(self, other: Self) -> (Self, Self);
    /// `a` where self is NaN, otherwise `b`.
    unsafe fn if_nan(self, a: Self, b: Self) -> Self;

    /// LANES bfloat16 numbers, widened.
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: as this one.
        unsafe { Self::load_first_bf16(from, Self::LANES) }
    }

    /// LANES pairs of bfloat16 numbers: the first and the second of each pair, widened.
    #[inline(always)]
    unsafe fn load_pairs_bf16(from: *const bf16) -> (Self, Self) {
        // SAFETY: the caller's pointer holds 2 · LANES numbers.
        unsafe { Self::load_bf16(from).deinterleave(Self::load_bf16(from.add(Self::LANES))) }
    }

    /// a\[0\], b\[0\], a\[1\], b\[1\], … of LANES bfloat16 numbers each.
    #[inline(always)]
    unsafe fn interleave_bf16(a: *const bf16, b: *const bf16, to: *mut bf16) {
        // SAFETY: the caller's pointers hold LANES numbers, `to` twice as many.
        unsafe {
            for i in 0..Self::LANES {
                to.add(2 * i).write(a.add(i).read());
                to.add(2 * i + 1).write(b.add(i).read());
            }
        }
    }

    /// Rounds every lane to bfloat16, to nearest even; a NaN stays one.
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16) {
        // SAFETY: as this one.
        unsafe { self.store_first_bf16(to, Self::LANES) }
    }

    /// The first `n` of them, zeros behind; n ≤ LANES.
    #[inline(always)]
    unsafe fn load_first_bf16(from: *const bf16, n: usize) -> Self {
        let mut lanes = [Self::Elem::from_f64(0.0); 16];
        // SAFETY: the caller's pointer holds n numbers, and no register has more than sixteen lanes.
        unsafe {
            for (i, lane) in lanes.iter_mut().enumerate().take(n) {
                *lane = Self::Elem::from_f64(from.add(i).read().to_f64());
            }
            Self::load(lanes.as_ptr())
        }
    }

    /// Rounds and stores the first `n` lanes; n ≤ LANES.
    #[inline(always)]
    unsafe fn store_first_bf16(self, to: *mut bf16, n: usize) {
        let mut lanes = [Self::Elem::from_f64(0.0); 16];
        // SAFETY: as above.
        unsafe {
            self.store(lanes.as_mut_ptr());
            for (i, lane) in lanes.iter().enumerate().take(n) {
                // An f32's own bits are rounded; the conversion from f64 drops the lowest of them first.
                to.add(i).write(bf16::from_f32(lane.to_f64() as f32));
            }
        }
    }
}

/// Asks for a cache line that is going to be read, in the second-level cache. Any address will do.
#[inline(always)]
pub(crate) fn prefetch<T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which reads nothing; SSE belongs to the target.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Asks for a cache line that is going to be written. Any address will do.
#[inline(always)]
pub(crate) fn prefetch_to_write<T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which writes nothing; without the instruction it is a no-operation.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_ET0 }>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Work over vectors: `run` must be `#[inline(always)]`, and so must everything it calls.
pub(crate) trait Kernel<T: Real> {
    /// Whether it rounds to bfloat16, for which some machines have an instruction.
    const NARROWS: bool = false;
    type Output;
    /// # Safety
    /// The machine must have `V`'s registers. Started by [`dispatch`] alone.
    unsafe fn run<V: Simd<Elem = T>>(self) -> Self::Output;
}

/// Runs a kernel with the registers of [`Level::current`].
#[inline]
pub(crate) fn dispatch<T: Real, K: Kernel<T>>(kernel: K) -> K::Output {
    dispatch_at(Level::current(), kernel)
}

/// Runs a kernel with the registers of `level`, which this machine must have: what [`Level::current`] says. A kernel
/// whose callers lay data out for its registers asks for the level once.
#[inline]
pub(crate) fn dispatch_at<T: Real, K: Kernel<T>>(level: Level, kernel: K) -> K::Output {
    debug_assert!(level.is_supported());
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        unsafe fn avx512<T: Real, K: Kernel<T>>(kernel: K) -> K::Output {
            // SAFETY: this function is entered on machines with AVX-512 only.
            unsafe { kernel.run::<T::Avx512>() }
        }
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2<T: Real, K: Kernel<T>>(kernel: K) -> K::Output {
            // SAFETY: this function is entered on machines with AVX2 and FMA only.
            unsafe { kernel.run::<T::Avx2>() }
        }
        #[target_feature(enable = "avx512f,avx512bf16")]
        unsafe fn avx512_bf16<T: Real, K: Kernel<T>>(kernel: K) -> K::Output {
            // SAFETY: this function is entered on machines with AVX-512 and its instructions on bfloat16 only.
            unsafe { kernel.run::<T::Avx512Bf16>() }
        }
        match level {
            // SAFETY: `Level::current` names supported levels only.
            Level::Avx512Bf16 | Level::Amx if K::NARROWS => return unsafe { avx512_bf16(kernel) },
            // SAFETY: as above.
            Level::Avx512 | Level::Avx512Bf16 | Level::Amx => return unsafe { avx512(kernel) },
            // SAFETY: as above.
            Level::Avx2 => return unsafe { avx2(kernel) },
            Level::Portable => {}
        }
    }
    // SAFETY: arrays need no feature.
    unsafe { kernel.run::<T::Portable>() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each operation of one kind of register against the same on plain numbers.
    struct Check<T>(std::marker::PhantomData<T>);

    impl<T: Real> Kernel<T> for Check<T> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<V: Simd<Elem = T>>(self) {
            let n = V::LANES;
            let num = |x: f64| T::from_f64(x);
            let xs: Vec<T> = (0..n).map(|i| num(i as f64 * 1.25 - 3.0)).collect();
            let ys: Vec<T> = (0..n).map(|i| num(2.0 - i as f64 * 0.5)).collect();
            let mut out = vec![T::zero(); n];
            let check = |what: &str, out: &[T], f: &dyn Fn(usize) -> f64| {
                for (i, &o) in out.iter().enumerate() {
                    let want = f(i);
                    assert!((o.to_f64() - want).abs() <= 1e-6 * want.abs(), "{what}, lane {i}: {o} for {want}");
                }
            };
            let (a, b) = (|i: usize| xs[i].to_f64(), |i: usize| ys[i].to_f64());
            // SAFETY: run by `dispatch`; every slice has LANES elements, the blocks LANES².
            unsafe {
                let (x, y) = (V::load(xs.as_ptr()), V::load(ys.as_ptr()));
                type Lane<'a> = &'a dyn Fn(usize) -> f64;
                let ops: [(&str, V, Lane); 9] = [
                    ("if_at_most", x.if_at_most(y, x, y), &|i| a(i).min(b(i))),
                    ("add", x.add(y), &|i| a(i) + b(i)),
                    ("sub", x.sub(y), &|i| a(i) - b(i)),
                    ("mul", x.mul(y), &|i| a(i) * b(i)),
                    ("div", y.div(x.add(V::splat(num(0.1)))), &|i| b(i) / (a(i) + 0.1)),
                    ("mul_add", x.mul_add(y, x), &|i| a(i) * b(i) + a(i)),
                    ("max", x.max(y), &|i| a(i).max(b(i))),
                    ("round", x.round(), &|i| a(i).round_ties_even()),
                    ("exp2", x.round().exp2_of_integer(), &|i| a(i).round_ties_even().exp2()),
                ];
                for (name, vector, f) in ops {
                    vector.store(out.as_mut_ptr());
                    check(name, &out, f);
                }
                let sum: f64 = (0..n).map(a).sum();
                assert!((x.sum().to_f64() - sum).abs() < 1e-4 * sum.abs());
                for part in 0..=n {
                    V::load_first(xs.as_ptr(), part).store(out.as_mut_ptr());
                    check("load_first", &out, &|i| if i < part { a(i) } else { 0.0 });
                    y.store(out.as_mut_ptr());
                    x.store_first(out.as_mut_ptr(), part);
                    check("store_first", &out, &|i| if i < part { a(i) } else { b(i) });
                }
                let nan = V::splat(num(f64::NAN));
                nan.max(y).store(out.as_mut_ptr());
                check("max of NaN", &out, &b);
                let narrow: Vec<bf16> = xs.iter().map(|x| bf16::from_f64(x.to_f64() * 1.01)).collect();
                let third = |x: bf16| bf16::from_f64(x.to_f64() / 3.0);
                for part in 0..=n {
                    let mut to = vec![bf16::ONE; n];
                    let x = if part == n {
                        V::load_bf16(narrow.as_ptr())
                    } else {
                        V::load_first_bf16(narrow.as_ptr(), part)
                    };
                    x.store(out.as_mut_ptr());
                    check("load_bf16", &out, &|i| if i < part { narrow[i].to_f64() } else { 0.0 });
                    let y = x.div(V::splat(num(3.0)));
                    if part == n {
                        y.store_bf16(to.as_mut_ptr())
                    } else {
                        y.store_first_bf16(to.as_mut_ptr(), part)
                    };
                    for (i, to) in to.into_iter().enumerate() {
                        assert_eq!(to, if i < part { third(narrow[i]) } else { bf16::ONE }, "store_bf16, lane {i}");
                    }
                }
                let wide: Vec<bf16> = (0..2 * n).map(|i| bf16::from_f64(i as f64 * 0.75 - 3.0)).collect();
                let (first, second) = V::load_pairs_bf16(wide.as_ptr());
                first.store(out.as_mut_ptr());
                check("first of pairs", &out, &|i| wide[2 * i].to_f64());
                second.store(out.as_mut_ptr());
                check("second of pairs", &out, &|i| wide[2 * i + 1].to_f64());
                let mut mixed = vec![bf16::ZERO; 2 * n];
                V::interleave_bf16(wide.as_ptr(), wide.as_ptr().add(n), mixed.as_mut_ptr());
                assert!((0..n).all(|i| mixed[2 * i] == wide[i] && mixed[2 * i + 1] == wide[n + i]), "{mixed:?}");
                let mut special = vec![bf16::ONE; n];
                for (x, fits) in [
                    (f64::NAN, bf16::is_nan as fn(bf16) -> bool),
                    (f64::INFINITY, bf16::is_infinite),
                    (1.0 + 1.0 / 256.0, |x| x == bf16::ONE),
                    (1.0 + 3.0 / 256.0, |x| x.to_f64() == 1.0 + 4.0 / 256.0),
                ] {
                    V::splat(num(x)).store_bf16(special.as_mut_ptr());
                    assert!(special.iter().all(|&y| fits(y)), "{x}: {special:?}");
                }
                nan.if_nan(x, y).store(out.as_mut_ptr());
                check("NaN is NaN", &out, &a);
                x.if_nan(nan, y).store(out.as_mut_ptr());
                check("numbers are not", &out, &b);
                for lanes in [0, 1, 0b101, 0b0110 & ((1 << n) - 1), (1 << n) - 2, (1 << n) - 1] {
                    V::load_where(xs.as_ptr(), lanes).store(out.as_mut_ptr());
                    check("load_where", &out, &|i| if lanes >> i & 1 == 1 { a(i) } else { 0.0 });
                }
                let joined = |i: usize| if i < n { a(i) } else { b(i - n) };
                let (even, odd) = x.deinterleave(y);
                even.store(out.as_mut_ptr());
                check("even", &out, &|i| joined(2 * i));
                odd.store(out.as_mut_ptr());
                check("odd", &out, &|i| joined(2 * i + 1));
                let (low, high) = even.interleave(odd);
                low.store(out.as_mut_ptr());
                check("low", &out, &a);
                high.store(out.as_mut_ptr());
                check("high", &out, &b);
                let block: Vec<T> = (0..n * (n + 3)).map(|i| num(i as f64)).collect();
                let mut turned = vec![T::zero(); n * (n + 1)];
                V::transpose(block.as_ptr(), n + 3, turned.as_mut_ptr(), n + 1);
                for i in 0..n {
                    for j in 0..n {
                        assert!(turned[j * (n + 1) + i] == block[i * (n + 3) + j], "transpose {i} {j}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_kind_of_register_computes_alike() {
        // `force` holds for the process: one test walks through the kinds, and the others may run with any of them.
        struct Narrows(Check<f32>);
        impl Kernel<f32> for Narrows {
            const NARROWS: bool = true;
            type Output = ();

            #[inline(always)]
            unsafe fn run<V: Simd<Elem = f32>>(self) {
                // SAFETY: run by `dispatch`.
                unsafe { self.0.run::<V>() }
            }
        }
        for level in Level::supported() {
            force(Some(level)).unwrap();
            dispatch_at(level, Narrows(Check(std::marker::PhantomData)));
            dispatch_at(level, Check::<f32>(std::marker::PhantomData));
            dispatch_at(level, Check::<f64>(std::marker::PhantomData));
        }
        force(None).unwrap();
        println!("{:?}", Level::supported().collect::<Vec<_>>());
    }
}

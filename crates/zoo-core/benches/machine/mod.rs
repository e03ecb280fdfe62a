//! What this machine can do at the most, and a criterion measurement that states throughput as a share of it.

mod tiles;

use criterion::Throughput;
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use rayon::prelude::*;
use std::cell::Cell;
use std::hint::black_box;
use std::rc::Rc;
use std::time::{Duration, Instant};
use zoo_core::Precision;
use zoo_core::ops::Level;

/// Wall time, with throughput in the machine's terms: `Throughput::Elements` counts operations, `Throughput::Bytes`
/// bytes.
pub struct Machine {
    /// Floating-point operations a second of products in f32 and in bfloat16, all threads together.
    flops: [f64; 2],
    /// Bytes a second that a copy in memory reads and writes, all threads together.
    bytes: f64,
    counts: Rc<Counts>,
}

/// What elements are, and which peak they are held against.
#[derive(Default)]
pub struct Counts {
    /// Where elements are images and not operations: the operations of one image; 0 of images that nobody computes with.
    #[allow(dead_code, reason = "some benches count operations, the others images")]
    pub flops_per_image: Cell<Option<f64>>,
    /// What the operands of products are.
    #[allow(dead_code, reason = "some benches compute in f32 alone")]
    pub precision: Cell<Precision>,
}

impl Machine {
    /// Measures the machine, and says what it found.
    pub fn measure() -> Self {
        let threads = rayon::current_num_threads();
        let level = Level::current();
        let peak = peak_flops(|| multiply_add(black_box(2_000_000), black_box(0.999), black_box(0.001)));
        let in_bf16 = if tiles::has_products(level) { peak_flops(|| tiles::products(level)) } else { peak };
        let machine = Self { flops: [peak, in_bf16], bytes: peak_bytes(), counts: Rc::default() };
        let [peak, in_bf16] = machine.flops.map(|flops| flops / 1e9);
        println!(
            "{threads} threads: {peak:.0} GFLOP/s f32, {in_bf16:.0} GFLOP/s bf16 ({}), copies at {:.1} GB/s\n",
            level.name(),
            machine.bytes / 1e9
        );
        machine
    }

    /// What is counted, to be set from line to line.
    #[allow(dead_code, reason = "some benches count operations in f32 alone")]
    pub fn counts(&self) -> Rc<Counts> {
        self.counts.clone()
    }
}

/// The best of some runs: whatever else goes on can only slow one down.
fn best(mut run: impl FnMut() -> f64) -> f64 {
    (0..8).map(|_| run()).fold(0.0, f64::max)
}

/// `run`, which returns the number of its operations, in every thread at once.
fn peak_flops(run: impl Fn() -> usize + Sync) -> f64 {
    best(|| {
        rayon::broadcast(|_| {
            let start = Instant::now();
            run() as f64 / start.elapsed().as_secs_f64()
        })
        .into_iter()
        .sum()
    })
}

/// Copies a buffer that fits into no cache.
fn peak_bytes() -> f64 {
    const CHUNK: usize = 1 << 16;
    let from = vec![1f32; 32 << 20];
    let mut to = vec![0f32; from.len()];
    best(|| {
        let start = Instant::now();
        to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| to.copy_from_slice(from));
        black_box(&to);
        (2 * size_of_val(from.as_slice())) as f64 / start.elapsed().as_secs_f64()
    })
}

/// Independent sums: enough to hide the latency of four cycles on two units, few enough for the registers.
const SUMS: usize = 12;

/// `rounds` of x·a + b on `SUMS` registers of the widest kind; the number of operations done.
fn multiply_add(rounds: usize, a: f32, b: f32) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has AVX-512.
            return unsafe { multiply_add_avx512(rounds, a, b) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the machine has AVX2 and FMA.
            return unsafe { multiply_add_avx2(rounds, a, b) };
        }
    }
    // Arrays that the compiler lays into the target's registers. Where it has no fused instruction, two take its place.
    let fused = |x: f32| if cfg!(target_arch = "aarch64") { x.mul_add(a, b) } else { x * a + b };
    let mut sums = [[0f32; 4]; SUMS];
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = sum.map(fused));
    }
    black_box(sums);
    2 * 4 * SUMS * rounds
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn multiply_add_avx512(rounds: usize, a: f32, b: f32) -> usize {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
    let (a, b) = (_mm512_set1_ps(a), _mm512_set1_ps(b));
    let mut sums = [_mm512_set1_ps(0.0); SUMS];
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, a, b));
    }
    for sum in sums {
        black_box(_mm512_reduce_add_ps(sum));
    }
    2 * 16 * SUMS * rounds
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_add_avx2(rounds: usize, a: f32, b: f32) -> usize {
    use std::arch::x86_64::{_mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps};
    let (a, b) = (_mm256_set1_ps(a), _mm256_set1_ps(b));
    let mut sums = [_mm256_set1_ps(0.0); SUMS];
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, a, b));
    }
    for sum in sums {
        black_box(_mm256_cvtss_f32(sum));
    }
    2 * 8 * SUMS * rounds
}

impl Measurement for Machine {
    type Intermediate = Instant;
    type Value = Duration;

    fn start(&self) -> Instant {
        WallTime.start()
    }
    fn end(&self, start: Instant) -> Duration {
        WallTime.end(start)
    }
    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        WallTime.add(a, b)
    }
    fn zero(&self) -> Duration {
        WallTime.zero()
    }
    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        self
    }
}

impl ValueFormatter for Machine {
    fn format_throughput(&self, throughput: &Throughput, nanoseconds: f64) -> String {
        let share = |rate: f64, peak: f64| 100.0 * rate / peak;
        let peak = self.flops[usize::from(self.counts.precision.get() == Precision::Bf16)];
        match (throughput, self.counts.flops_per_image.get()) {
            (&Throughput::Elements(images), Some(0.0)) => format!("{:.0} images/s", images as f64 / nanoseconds * 1e9),
            (&Throughput::Elements(images), Some(flops)) => {
                let rate = images as f64 / nanoseconds * 1e9;
                let flops = rate * flops;
                format!("{rate:.1} images/s, {:.1} GFLOP/s, {:.0} % of peak", flops / 1e9, share(flops, peak))
            }
            (&Throughput::Elements(flops), None) => {
                let rate = flops as f64 / nanoseconds * 1e9;
                format!("{:.1} GFLOP/s, {:.0} % of peak", rate / 1e9, share(rate, peak))
            }
            (&Throughput::Bytes(bytes), _) => {
                let rate = bytes as f64 / nanoseconds * 1e9;
                format!("{:.1} GB/s, {:.0} % of a copy", rate / 1e9, share(rate, self.bytes))
            }
            (other, _) => WallTime.formatter().format_throughput(other, nanoseconds),
        }
    }
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_values(typical, values)
    }
    fn scale_throughputs(&self, typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_throughputs(typical, throughput, values)
    }
    fn scale_for_machines(&self, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_for_machines(values)
    }
}

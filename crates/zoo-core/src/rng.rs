//! Random numbers that a seed fixes, on every device.
//!
//! Candle's CPU generator cannot be seeded, so the zoo draws all its randomness here: initial weights, shuffling,
//! augmentation and dropout. The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
//! 1, 2, 3"), a counter-based one: word `i` of a stream is a pure function of (seed, stream name, `i`). Three things
//! follow that a stateful generator does not give:
//!
//! - streams are **named**, so adding a layer or drawing more numbers in one place moves nothing elsewhere;
//! - a stream can **jump** to any position, so a run resumes exactly from one integer;
//! - numbers are made on the host and copied, so CPU and GPU runs see the same bits.

/// The rounds that the paper calls Crush-resistant.
const ROUNDS: usize = 10;
const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// The golden ratio and √3 - 1: the key's increments (Weyl sequence).
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let a = u64::from(MULTIPLIER[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIER[1]) * u64::from(counter[2]);
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// One named stream of random numbers.
///
/// ```
/// use zoo_core::rng::Rng;
/// let mut a = Rng::new(7, "shuffle/epoch-1");
/// let mut b = Rng::new(7, "shuffle/epoch-1");
/// assert_eq!(a.next_u32(), b.next_u32());
/// assert_ne!(a.next_u32(), Rng::new(8, "shuffle/epoch-1").next_u32());
/// ```
#[derive(Debug, Clone)]
pub struct Rng {
    key: [u32; 2],
    /// The stream's name takes half of the 128-bit counter, so that streams of one seed never overlap by accident.
    stream: [u32; 2],
    position: u64,
    block: [u32; 4],
}

impl Rng {
    /// The stream called `name` under `seed`, at its first word.
    pub fn new(seed: u64, name: &str) -> Self {
        let hash = fnv1a(name);
        Self {
            key: [seed as u32, (seed >> 32) as u32],
            stream: [hash as u32, (hash >> 32) as u32],
            position: 0,
            block: [0; 4],
        }
    }

    /// How many words were drawn: with the seed and the name, the whole state.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes to any word of the stream.
    pub fn seek(&mut self, position: u64) {
        self.position = position;
        if !position.is_multiple_of(4) {
            self.refill();
        }
    }

    fn refill(&mut self) {
        let n = self.position / 4;
        self.block = philox([n as u32, (n >> 32) as u32, self.stream[0], self.stream[1]], self.key);
    }

    /// Uniform over all 32-bit words.
    pub fn next_u32(&mut self) -> u32 {
        let lane = (self.position % 4) as usize;
        if lane == 0 {
            self.refill();
        }
        self.position += 1;
        self.block[lane]
    }

    /// Uniform over all 64-bit words.
    pub fn next_u64(&mut self) -> u64 {
        let low = u64::from(self.next_u32());
        low | u64::from(self.next_u32()) << 32
    }

    /// Uniform in [0, 1), with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [lo, hi).
    pub fn uniform_in(&mut self, lo: f64, hi: f64) -> f64 {
        lo + (hi - lo) * self.uniform()
    }

    /// Uniform in 0..n (Lemire's multiplication; its bias is below n / 2⁶⁴). `n` must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        debug_assert!(n > 0, "below(0) has no value to return");
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// True with probability `p`.
    pub fn bernoulli(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Standard normal (Box and Muller; one of the pair is dropped, so that every draw takes the same four words).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Fisher and Yates: every order equally likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 library.
    #[test]
    fn philox_matches_the_published_vectors() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn seeking_gives_the_word_that_drawing_gives() {
        let mut drawn = Rng::new(3, "x");
        let words: Vec<u32> = (0..23).map(|_| drawn.next_u32()).collect();
        for (i, &word) in words.iter().enumerate() {
            let mut sought = Rng::new(3, "x");
            sought.seek(i as u64);
            assert_eq!(sought.next_u32(), word, "word {i}");
        }
        assert_eq!(drawn.position(), 23);
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let n = 100_000;
        let mean_var = |f: &mut dyn FnMut() -> f64| {
            let xs: Vec<f64> = (0..n).map(|_| f()).collect();
            let mean = xs.iter().sum::<f64>() / n as f64;
            (mean, xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64)
        };
        let mut rng = Rng::new(0, "moments");
        // Four standard errors of each estimate, at 1e5 draws.
        let (mean, var) = mean_var(&mut || rng.uniform());
        assert!((mean - 0.5).abs() < 0.004 && (var - 1.0 / 12.0).abs() < 0.001, "{mean} {var}");
        let (mean, var) = mean_var(&mut || rng.normal());
        assert!(mean.abs() < 0.013 && (var - 1.0).abs() < 0.018, "{mean} {var}");
    }

    #[test]
    fn shuffle_permutes() {
        let mut items: Vec<usize> = (0..100).collect();
        Rng::new(1, "s").shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}

//! Writing with a trained [`Seq2Seq`]: greedily, or with a beam and a length penalty (section 6.1 of Vaswani et al.
//! 2017; Y. Wu et al. 2016, arXiv:1609.08144, equation 14).
//!
//! Both keep keys and values of what they have written ([`super::Cache`]); without the cache every step reads the whole
//! prefix anew, which gives the same tokens and, but for rounding, the same probabilities.

use super::Cache;
use super::seq2seq::{Memory, Seq2Seq};
use candle_core::{DType, Result, Tensor, bail};

/// Where a sequence begins and where it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoding {
    /// The token before the first.
    pub begin: u32,
    /// The token behind the last.
    pub end: u32,
    /// The most tokens to write, the end's included.
    pub max_len: usize,
    /// Whether keys and values are kept from step to step.
    pub cache: bool,
}

impl Decoding {
    /// With the cache.
    pub fn new(begin: u32, end: u32, max_len: usize) -> Self {
        Self { begin, end, max_len, cache: true }
    }
}

/// One sequence that was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// Without begin and end.
    pub tokens: Vec<u32>,
    /// Natural logarithm of the probability of these tokens, with the end if it is finished.
    pub log_prob: f64,
    /// What hypotheses are ranked by: `log_prob` over the length penalty.
    pub score: f64,
    /// Whether it came to its end within the length allowed.
    pub finished: bool,
}

/// Always the most probable token; of equal ones the lowest. One hypothesis a source, in their order; the score is the
/// log-probability. Source (b, n) of u32.
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use zoo_core::VarStore;
/// # use zoo_transformer::transformer::{self, seq2seq::{Config, Seq2Seq}};
/// use zoo_transformer::transformer::decode::{Beam, Decoding, beam_search, greedy};
/// # let small = transformer::Config { d_model: 32, encoder_layers: 1, decoder_layers: 1, ..transformer::Config::base() };
/// # let net = Seq2Seq::new(&Config { transformer: small, ..Config::base(100, 0) },
/// #     VarStore::new(0, DType::F32, &Device::Cpu).root())?;
/// let source = Tensor::new(&[[17u32, 4, 9], [3, 3, 0]], &Device::Cpu)?;
/// let how = Decoding::new(1, 2, 20);
/// let first_try = greedy(&net, &source, &how)?;
/// let best_of_four = beam_search(&net, &source, &how, &Beam::default())?;
/// assert_eq!((first_try.len(), best_of_four.len()), (2, 2));
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// A source that the network does not read, or probabilities that are not finite.
pub fn greedy(net: &Seq2Seq, source: &Tensor, how: &Decoding) -> Result<Vec<Hypothesis>> {
    let mut writer = Writer::new(net, source, how)?;
    let start = |_| Hypothesis { tokens: Vec::new(), log_prob: 0.0, score: 0.0, finished: false };
    let mut all: Vec<Hypothesis> = (0..source.dim(0)?).map(start).collect();
    // The sources that are still being written for: the rows of the batch.
    let mut open: Vec<usize> = (0..all.len()).collect();
    for _ in 0..how.max_len {
        let prefixes: Vec<&[u32]> = open.iter().map(|&i| all[i].tokens.as_slice()).collect();
        let log_probs = writer.next(&prefixes)?;
        for (&i, log_probs) in open.iter().zip(&log_probs) {
            let (token, log_prob) = best(log_probs, 1)[0];
            all[i].log_prob += log_prob;
            if token == how.end {
                all[i].finished = true;
            } else {
                all[i].tokens.push(token);
            }
        }
        let rows: Vec<u32> = (0..).zip(&open).filter(|&(_, &i)| !all[i].finished).map(|(row, _)| row).collect();
        open.retain(|&i| !all[i].finished);
        if open.is_empty() {
            break;
        }
        writer.keep(&rows)?;
    }
    all.iter_mut().for_each(|hypothesis| hypothesis.score = hypothesis.log_prob);
    Ok(all)
}

/// How a beam searches; the default is the paper's: 4 hypotheses, α = 0.6.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Beam {
    /// Hypotheses that are followed at a time.
    pub width: usize,
    /// α: a log-probability is divided by ((5 + length) / 6)^α, where the end counts as a token. 0 for no penalty.
    pub length_penalty: f64,
}

impl Default for Beam {
    fn default() -> Self {
        Self { width: 4, length_penalty: 0.6 }
    }
}

impl Beam {
    fn score(&self, log_prob: f64, len: usize) -> f64 {
        log_prob / ((5.0 + len as f64) / 6.0).powf(self.length_penalty)
    }
}

/// One source's search.
#[derive(Debug)]
struct Search {
    /// Unfinished, with their log-probabilities, the most probable first.
    open: Vec<(Vec<u32>, f64)>,
    /// The best by score, best first, at most as many as the beam is wide.
    done: Vec<Hypothesis>,
}

impl Search {
    fn finish(&mut self, hypothesis: Hypothesis, width: usize) {
        let at = self.done.iter().take_while(|other| other.score >= hypothesis.score).count();
        self.done.insert(at, hypothesis);
        self.done.truncate(width);
    }

    /// Goes one token on, and says which of the old hypotheses the new ones continue.
    fn step(&mut self, log_probs: &[Vec<f64>], how: &Decoding, beam: &Beam) -> Vec<usize> {
        // At most one continuation of each hypothesis ends it, so that among twice the width enough go on.
        let wanted = 2 * beam.width;
        let mut next: Vec<(usize, u32, f64)> = Vec::new();
        for (i, ((_, so_far), log_probs)) in self.open.iter().zip(log_probs).enumerate() {
            next.extend(best(log_probs, wanted).into_iter().map(|(token, log_prob)| (i, token, so_far + log_prob)));
        }
        // Stable: of equal ones the better parent's, then the lower token.
        next.sort_by(|a, b| b.2.total_cmp(&a.2));
        let (mut open, mut parents) = (Vec::new(), Vec::new());
        for (rank, (i, token, log_prob)) in next.into_iter().take(wanted).enumerate() {
            let mut tokens = self.open[i].0.clone();
            if token == how.end {
                // An end that is not among the best would not have been followed either.
                if rank < beam.width {
                    let score = beam.score(log_prob, tokens.len() + 1);
                    self.finish(Hypothesis { tokens, log_prob, score, finished: true }, beam.width);
                }
            } else if open.len() < beam.width {
                tokens.push(token);
                open.push((tokens, log_prob));
                parents.push(i);
            }
        }
        // Nothing that is open can still get among the best: the most it may score is what it has, at the greatest
        // length if length is rewarded, at its next if it is punished.
        let reachable = |&(ref tokens, log_prob): &(Vec<u32>, f64)| {
            beam.score(log_prob, how.max_len).max(beam.score(log_prob, tokens.len() + 1))
        };
        let best_open = open.iter().map(reachable).fold(f64::NEG_INFINITY, f64::max);
        let full = self.done.len() == beam.width;
        if full && self.done.last().is_some_and(|worst| worst.score >= best_open) {
            (open, parents) = (Vec::new(), Vec::new());
        }
        self.open = open;
        parents
    }
}

/// The best hypotheses for each source, best first, at most as many as the beam is wide. Those that do not come to
/// their end stand behind those that do. Source (b, n) of u32.
///
/// # Errors
/// A beam of width 0, and as [`greedy`].
pub fn beam_search(net: &Seq2Seq, source: &Tensor, how: &Decoding, beam: &Beam) -> Result<Vec<Vec<Hypothesis>>> {
    if beam.width == 0 || !beam.length_penalty.is_finite() {
        bail!("beam_search: wants a width of at least 1 and a finite length penalty, got {beam:?}")
    }
    let mut writer = Writer::new(net, source, how)?;
    let start = |_| Search { open: vec![(Vec::new(), 0.0)], done: Vec::new() };
    let mut searches: Vec<Search> = (0..source.dim(0)?).map(start).collect();
    for _ in 0..how.max_len {
        let open = searches.iter().flat_map(|search| &search.open);
        let prefixes: Vec<&[u32]> = open.map(|(tokens, _)| tokens.as_slice()).collect();
        let log_probs = writer.next(&prefixes)?;
        let (mut rows, mut first) = (Vec::new(), 0);
        for search in &mut searches {
            let count = search.open.len();
            let parents = search.step(&log_probs[first..first + count], how, beam);
            rows.extend(parents.into_iter().map(|i| (first + i) as u32));
            first += count;
        }
        if rows.is_empty() {
            break;
        }
        writer.keep(&rows)?;
    }
    let results = searches.into_iter().map(|search| {
        let unfinished = search.open.into_iter().map(|(tokens, log_prob)| {
            let score = beam.score(log_prob, tokens.len());
            Hypothesis { tokens, log_prob, score, finished: false }
        });
        search.done.into_iter().chain(unfinished).take(beam.width).collect()
    });
    Ok(results.collect())
}

/// The `count` most probable tokens, the most probable first; of equal ones the lowest first.
fn best(log_probs: &[f64], count: usize) -> Vec<(u32, f64)> {
    let mut all: Vec<(u32, f64)> = (0..).zip(log_probs.iter().copied()).collect();
    let order = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if count < all.len() {
        all.select_nth_unstable_by(count, order);
        all.truncate(count);
    }
    all.sort_by(order);
    all
}

/// The network on a batch of prefixes of one length, step by step.
struct Writer<'a> {
    net: &'a Seq2Seq,
    memory: Memory,
    cache: Option<Cache>,
    begin: u32,
}

impl<'a> Writer<'a> {
    fn new(net: &'a Seq2Seq, source: &Tensor, how: &Decoding) -> Result<Self> {
        let cache = how.cache.then(Cache::default);
        Ok(Self { net, memory: net.encode(source, false)?, cache, begin: how.begin })
    }

    /// The logarithm of every token's probability behind each prefix, in f64 whatever the network computes in.
    fn next(&mut self, prefixes: &[&[u32]]) -> Result<Vec<Vec<f64>>> {
        let written = prefixes.first().map_or(0, |prefix| prefix.len());
        let known = self.cache.as_ref().map_or(0, Cache::len);
        let tokens: Vec<u32> = prefixes
            .iter()
            .flat_map(|prefix| std::iter::once(self.begin).chain(prefix.iter().copied()).skip(known))
            .collect();
        let new = written + 1 - known;
        let tokens = Tensor::from_vec(tokens, (prefixes.len(), new), self.memory.states.device())?;
        let logits = match &mut self.cache {
            Some(cache) => self.net.decode_next(&tokens, &self.memory, cache)?,
            None => self.net.decode(&tokens, &self.memory, false)?,
        };
        let rows = logits.narrow(1, new - 1, 1)?.squeeze(1)?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        rows.into_iter().map(log_softmax).collect()
    }

    /// Goes on with these rows of the batch, in this order.
    fn keep(&mut self, rows: &[u32]) -> Result<()> {
        if rows.len() == self.memory.states.dim(0)? && rows.iter().zip(0..).all(|(&row, i)| row == i) {
            return Ok(());
        }
        let rows = Tensor::new(rows, self.memory.states.device())?;
        self.memory = self.memory.select(&rows)?;
        self.cache = self.cache.as_ref().map(|cache| cache.select(&rows)).transpose()?;
        Ok(())
    }
}

fn log_softmax(mut logits: Vec<f64>) -> Result<Vec<f64>> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = max + logits.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
    if !log_sum.is_finite() {
        bail!("decoding: the logits are not finite; is a source nothing but padding?")
    }
    logits.iter_mut().for_each(|x| *x -= log_sum);
    Ok(logits)
}

#[cfg(test)]
mod tests {
    use super::super::Config as TransformerConfig;
    use super::super::seq2seq::{Config, Sharing};
    use super::*;
    use candle_core::Device;
    use zoo_core::VarStore;

    const VOCAB: usize = 7;

    /// A net with large random weights, so that its choices differ from source to source.
    fn net(dtype: DType, seed: u64) -> Seq2Seq {
        let transformer = TransformerConfig {
            d_model: 16,
            heads: 2,
            encoder_layers: 2,
            decoder_layers: 2,
            feed_forward: 32,
            ..TransformerConfig::base()
        };
        let store = VarStore::new(seed, dtype, &Device::Cpu);
        let config = Config { transformer, sharing: Sharing::None, ..Config::base(VOCAB, 0) };
        let net = Seq2Seq::new(&config, store.root()).unwrap();
        for (key, var) in store.parameters() {
            if key == "generator.weight" {
                var.set(&(var.as_detached_tensor() * 3.0).unwrap()).unwrap();
            }
        }
        net
    }

    fn sources() -> Tensor {
        Tensor::new(&[[3u32, 4, 5, 6], [6, 3, 0, 0], [4, 4, 3, 0]], &Device::Cpu).unwrap()
    }

    fn how(cache: bool) -> Decoding {
        Decoding { cache, ..Decoding::new(1, 2, 9) }
    }

    /// The probability that the network gives a sequence, in one pass over all of it.
    fn log_prob_of(net: &Seq2Seq, source: &Tensor, tokens: &[u32], finished: bool) -> f64 {
        let mut target = vec![1];
        target.extend(tokens);
        let input = Tensor::new(target.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = net.forward(source, &input, false).unwrap().squeeze(0).unwrap().to_dtype(DType::F64).unwrap();
        let rows = logits.to_vec2::<f64>().unwrap();
        let wanted = tokens.iter().copied().chain(finished.then_some(2));
        rows.into_iter().zip(wanted).map(|(row, token)| log_softmax(row).unwrap()[token as usize]).sum()
    }

    fn same(a: &[Hypothesis], b: &[Hypothesis], tolerance: f64) {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(b) {
            assert_eq!((&a.tokens, a.finished), (&b.tokens, b.finished));
            assert!((a.log_prob - b.log_prob).abs() <= tolerance, "{a:?} {b:?}");
        }
    }

    /// A product with one row sums in another order than one with many: hence roundings, over some nine steps, of some
    /// 1e-16 and 1e-7 each.
    #[test]
    fn with_and_without_cache_the_same_is_written() {
        for seed in 0..4 {
            for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-4)] {
                let (net, sources) = (net(dtype, seed), sources());
                let run = |cache| greedy(&net, &sources, &how(cache)).unwrap();
                same(&run(true), &run(false), tolerance);
                let run = |cache| beam_search(&net, &sources, &how(cache), &Beam::default()).unwrap().concat();
                same(&run(true), &run(false), tolerance);
            }
        }
    }

    /// Log-probabilities are those of the whole sequence in one pass, and padding or company in the batch changes
    /// nothing.
    #[test]
    fn a_batch_writes_what_each_source_alone_does() {
        let (net, sources) = (net(DType::F64, 1), sources());
        let (together, beams) = (
            greedy(&net, &sources, &how(true)).unwrap(),
            beam_search(&net, &sources, &how(true), &Beam::default()).unwrap(),
        );
        for (i, len) in [4, 2, 3].into_iter().enumerate() {
            let alone = sources.narrow(0, i, 1).unwrap().narrow(1, 0, len).unwrap();
            same(&greedy(&net, &alone, &how(true)).unwrap(), &together[i..=i], 1e-12);
            same(&beam_search(&net, &alone, &how(true), &Beam::default()).unwrap()[0], &beams[i], 1e-12);
            for hypothesis in beams[i].iter().chain([&together[i]]) {
                let wanted = log_prob_of(&net, &alone, &hypothesis.tokens, hypothesis.finished);
                assert!((hypothesis.log_prob - wanted).abs() < 1e-12, "{hypothesis:?}, {wanted}");
            }
        }
    }

    #[test]
    fn a_beam_of_one_without_penalty_is_greedy() {
        for seed in 0..6 {
            let (net, sources) = (net(DType::F64, seed), sources());
            let beam = Beam { width: 1, length_penalty: 0.0 };
            let beams = beam_search(&net, &sources, &how(true), &beam).unwrap().concat();
            same(&beams, &greedy(&net, &sources, &how(true)).unwrap(), 1e-12);
        }
    }

    /// A beam wide enough for everything finds the best of all sequences, whatever length is rewarded or punished.
    #[test]
    fn a_wide_beam_finds_the_best_there_is() {
        let (net, max_len) = (net(DType::F64, 3), 3);
        let source = sources().narrow(0, 0, 1).unwrap();
        let mut all = vec![Vec::new()];
        for len in 0..max_len - 1 {
            let longer: Vec<Vec<u32>> = all.iter().filter(|t: &&Vec<u32>| t.len() == len).cloned().collect();
            let tokens = (0..VOCAB as u32).filter(|&t| t != 2);
            all.extend(tokens.flat_map(|t| longer.iter().map(move |l| [l.as_slice(), &[t]].concat())));
        }
        assert_eq!(all.len(), 1 + 6 + 36);
        for length_penalty in [0.0, 0.6, 3.0, -1.0] {
            let beam = Beam { width: 300, length_penalty };
            let score = |tokens: &Vec<u32>| beam.score(log_prob_of(&net, &source, tokens, true), tokens.len() + 1);
            let mut wanted: Vec<(f64, &Vec<u32>)> = all.iter().map(|tokens| (score(tokens), tokens)).collect();
            wanted.sort_by(|a, b| b.0.total_cmp(&a.0));
            let found = beam_search(&net, &source, &Decoding::new(1, 2, max_len), &beam).unwrap().remove(0);
            let finished: Vec<_> = found.iter().filter(|hypothesis| hypothesis.finished).collect();
            assert_eq!(finished.len(), all.len());
            for (got, (score, tokens)) in finished.iter().zip(wanted) {
                assert!(got.tokens == *tokens && (got.score - score).abs() < 1e-12, "{got:?} {score} {tokens:?}");
            }
            // A narrow beam never finds a better one, and stopping early loses nothing that it had.
            let narrow = Beam { width: 2, length_penalty };
            let narrow = beam_search(&net, &source, &Decoding::new(1, 2, max_len), &narrow).unwrap().remove(0);
            assert!(narrow.len() <= 2 && (!narrow[0].finished || narrow[0].score <= found[0].score));
            assert!(narrow.windows(2).all(|pair| pair[0].score >= pair[1].score || !pair[1].finished));
        }
    }

    #[test]
    fn nothing_to_write_and_nothing_to_read() {
        let (net, sources) = (net(DType::F32, 0), sources());
        let none = greedy(&net, &sources, &Decoding::new(1, 2, 0)).unwrap();
        assert!(none.iter().all(|h| h.tokens.is_empty() && !h.finished && h.log_prob == 0.0));
        let error = beam_search(&net, &sources, &how(true), &Beam { width: 0, length_penalty: 0.6 }).unwrap_err();
        assert!(error.to_string().contains("width"));
        let padding = sources.zeros_like().unwrap();
        assert!(greedy(&net, &padding, &how(true)).unwrap_err().to_string().contains("padding"));
    }
}

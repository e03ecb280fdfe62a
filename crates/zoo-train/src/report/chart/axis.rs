//! Axes of a chart: the range of each, where its ticks stand and what they say.

use super::scale::{Scale, multiples, span, step};
use crate::format::compact;

/// One axis: its range, where its ticks stand and what they say.
#[derive(Debug, Clone)]
pub struct Axis {
    /// What it measures; empty where the chart's title and the ticks say it.
    pub(super) name: &'static str,
    low: f64,
    high: f64,
    ticks: Vec<f64>,
    log: bool,
    format: fn(f64) -> String,
}

impl Axis {
    /// The course of a run from its first step on, ticks at whole epochs.
    pub(crate) fn course(last: usize) -> Self {
        Self { low: 0.0, high: last.max(1) as f64, ..Self::epochs(last) }
    }

    /// Epochs from the first to the last one, ticks at whole numbers.
    pub fn epochs(last: usize) -> Self {
        let span = last.saturating_sub(1) as f64;
        // A little room on the left, and a lone epoch in the middle.
        let (low, high) = if last > 1 { (1.0 - 0.03 * span, last as f64) } else { (0.5, 1.5) };
        let step = step(span, 8).max(1.0);
        let ticks = multiples(low, high, step).into_iter().filter(|&tick| tick > 0.0);
        let ticks = if step > 1.0 { [1.0].into_iter().chain(ticks).collect() } else { ticks.collect() };
        Self { name: "epoch", low, high, ticks, log: false, format: tidy }
    }

    /// Around `values`, a few known ones with a tick at each.
    pub fn at(name: &'static str, values: impl Iterator<Item = f64>) -> Self {
        let mut ticks: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        let (low, high) = span(ticks.iter().copied()).unwrap_or((0.0, 1.0));
        let spare = ((high - low) * 0.06).max(0.5);
        Self { name, low: low - spare, high: high + spare, ticks, log: false, format: tidy }
    }

    /// Percent that span `values`, in round numbers and never beyond 0 and 100.
    pub fn percent(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = span(values).unwrap_or((0.0, 100.0));
        // Wide enough that a difference of a tenth of a point does not look like one of ten.
        let spare = (4.0 - (high - low)).max(0.0) / 2.0;
        let (low, high) = (low - spare, high + spare);
        let step = step(high - low, 5);
        let low = ((low / step - 0.1).floor() * step).max(0.0);
        let high = ((high / step + 0.1).ceil() * step).min(100.0);
        let ticks = multiples(low, high, step);
        Self { name: "", low, high, ticks, log: false, format: |v| format!("{} %", tidy(v)) }
    }

    /// From zero to the largest of `values`.
    pub(crate) fn from_zero(values: impl Iterator<Item = f64>) -> Self {
        // Beyond the largest number an axis could end at.
        let largest = span(values).map_or(0.0, |(_, high)| high.min(1e300));
        let top = if largest > 0.0 { largest } else { 1.0 };
        let step = step(top, 5);
        let high = (top / step).ceil() * step;
        Self { name: "", low: 0.0, high, ticks: multiples(0.0, high, step), log: false, format: amount }
    }

    /// From zero, for the losses of some curves. A run that diverges does not flatten all others, nor does a lone peak:
    /// the axis then ends above the others, and what lies higher is drawn at its edge.
    pub(crate) fn losses(curves: &[Vec<f64>]) -> Self {
        /// More than a network that guesses among 20 classes: no loss up to here is cut off.
        const GUESSING: f64 = 3.0;
        /// So many times larger than all below it, a curve is another kind of thing.
        const APART: f64 = 8.0;
        let mut reaches: Vec<f64> = curves.iter().filter_map(|curve| reach(curve)).collect();
        reaches.sort_by(f64::total_cmp);
        let usual = reaches.into_iter().reduce(
            |usual, reach| {
                if reach <= (usual * APART).max(GUESSING) { reach } else { usual }
            },
        );
        let usual = usual.unwrap_or(1.0);
        let shown = |value: &f64| *value <= (usual * 3.0).max(GUESSING);
        Self::from_zero(curves.iter().flatten().copied().filter(shown))
    }

    /// A logarithmic axis around positive `values`, with ticks at 1, 2 and 5 times powers of ten.
    pub fn log(name: &'static str, values: impl Iterator<Item = f64>, format: fn(f64) -> String) -> Self {
        let powers = || (-9..15).map(|power| 10f64.powi(power));
        let fine = powers().flat_map(|power| [power, 2.0 * power, 5.0 * power]).collect();
        let axis = Self::log_with_ticks(name, values, format, [fine, powers().collect()]);
        match axis.ticks.len() {
            // So short a stretch that even steps look right.
            0..2 => Self { ticks: multiples(axis.low, axis.high, step(axis.high - axis.low, 4)), ..axis },
            _ => axis,
        }
    }

    /// A logarithmic axis of seconds, with ticks where a clock has round numbers, each at least twice the one before.
    pub fn time(values: impl Iterator<Item = f64>) -> Self {
        let (minute, hour) = (60.0, 3600.0);
        let seconds = [0.001, 0.01, 0.1, 1.0].into_iter().flat_map(|unit| [unit, 2.0 * unit, 5.0 * unit]);
        let minutes = [1.0, 2.0, 5.0, 10.0, 30.0].map(|count| count * minute);
        let hours = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0].map(|count| count * hour);
        let fine = seconds.chain([10.0, 30.0]).chain(minutes).chain(hours).collect();
        let coarse = [0.001, 0.01, 0.1, 1.0, 10.0, minute, 10.0 * minute, hour, 10.0 * hour, 100.0 * hour].into();
        let format = |seconds: f64| match seconds {
            0.0..60.0 => format!("{} s", tidy(seconds)),
            60.0..3600.0 => format!("{} min", seconds / 60.0),
            _ => format!("{} h", seconds / 3600.0),
        };
        Self::log_with_ticks("time", values, format, [fine, coarse])
    }

    /// The first of the `choices` of ticks that does not crowd the axis.
    fn log_with_ticks(
        name: &'static str,
        values: impl Iterator<Item = f64>,
        format: fn(f64) -> String,
        choices: [Vec<f64>; 2],
    ) -> Self {
        let (low, high) = span(values.filter(|&value| value > 0.0)).unwrap_or((1.0, 10.0));
        // Wide enough that a tick always falls inside: neighbours are up to a factor of 3 apart, which is less than
        // 1.8².
        let (low, high) = (low / 1.8, high * 1.8);
        let [fine, coarse] =
            choices.map(|ticks| ticks.into_iter().filter(|tick| (low..=high).contains(tick)).collect::<Vec<_>>());
        Self { name, low, high, ticks: if fine.len() <= 9 { fine } else { coarse }, log: true, format }
    }

    /// Its scale between two `pixels`.
    pub(super) fn scale(&self, pixels: (f64, f64)) -> Scale {
        Scale { values: (self.low, self.high), pixels, log: self.log }
    }

    /// The place and the words of every tick on `scale`.
    pub(super) fn labels(&self, scale: Scale) -> impl Iterator<Item = (f64, String)> {
        self.ticks.iter().map(move |&tick| (scale.at(tick), (self.format)(tick)))
    }

    /// Whether `value` lies above what the axis shows.
    pub(crate) fn cuts(&self, value: f64) -> bool {
        value.is_finite() && value > self.high
    }

    /// Where the axis ends, in words.
    pub(crate) fn end(&self) -> String {
        (self.format)(self.high)
    }
}

/// How high a curve of losses reaches but for a tenth of its points, at least one: the peaks of a run that trains all
/// the same.
fn reach(curve: &[f64]) -> Option<f64> {
    let mut values: Vec<f64> = curve.iter().copied().filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let peaks = if values.len() < 4 { 0 } else { values.len().div_ceil(10) };
    values.get(values.len().checked_sub(peaks + 1)?).copied()
}

/// A tick's number without the noise of binary fractions.
fn tidy(value: f64) -> String {
    ((value * 1e6).round() / 1e6).to_string()
}

/// Any size of number, short: `0.5`, `1.7 M`, `2.5e18`.
pub(crate) fn amount(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        0.0001..1000.0 => tidy(value),
        1000.0..1e15 => compact(value),
        _ => format!("{value:.1e}").replace(".0e", "e"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::scale::apart;
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.labels(axis.scale((0.0, 1.0))).map(|(_, words)| words).collect()
    }

    #[test]
    fn ticks_are_round_for_any_number_of_epochs() {
        assert_eq!(labels(&Axis::epochs(1)), ["1"]);
        assert_eq!(labels(&Axis::epochs(4)), ["1", "2", "3", "4"]);
        assert_eq!(labels(&Axis::epochs(20)), ["1", "5", "10", "15", "20"]);
        assert_eq!(labels(&Axis::epochs(200)), ["1", "50", "100", "150", "200"]);
        for epochs in 1..1000 {
            let axis = Axis::epochs(epochs);
            assert!((1..=10).contains(&axis.ticks.len()), "{epochs}: {:?}", axis.ticks);
            assert!(axis.ticks.iter().all(|tick| tick.fract() == 0.0), "{epochs}: {:?}", axis.ticks);
        }
    }

    #[test]
    fn known_values_get_a_tick_each() {
        let axis = Axis::at("layers", [56.0, 20.0, 56.0, f64::NAN].into_iter());
        assert_eq!(labels(&axis), ["20", "56"]);
        assert!(axis.low < 20.0 && axis.high > 56.0);
    }

    #[test]
    fn percent_stays_between_0_and_100() {
        assert_eq!(labels(&Axis::percent([12.0, 93.0].into_iter())), ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]);
        assert_eq!(labels(&Axis::percent([100.0].into_iter())).last().unwrap(), "100 %");
        let narrow = Axis::percent([91.2, 91.2].into_iter());
        assert!(narrow.high - narrow.low >= 4.0 && narrow.ticks.len() >= 3, "{:?}", narrow.ticks);
    }

    /// Four epochs, three runs: a third of all points are those of the diverged one.
    #[test]
    fn a_diverged_run_does_not_flatten_the_others() {
        let usual = vec![2.3, 1.2, 0.8, 0.6];
        let diverged = vec![1.7e6, 4.0e5, 1.2e6, f64::NAN];
        for curves in [
            vec![usual.clone(), vec![1.9, 1.5, 1.4, 1.3], diverged.clone()],
            vec![diverged.clone(), usual.clone()],
            vec![diverged.clone(), diverged.clone(), diverged.clone(), usual.clone()],
            vec![vec![f64::INFINITY; 4], usual.clone(), vec![]],
            // A lone peak in a run that trains all the same.
            vec![vec![2.3, 900.0, 0.9, 0.8, 0.7, 0.6]],
            // It starts as the others do, and ends nowhere.
            vec![usual.clone(), vec![2.3, 2.4, 1e9, 1e30]],
        ] {
            let axis = Axis::losses(&curves);
            assert!((2.0..=3.0).contains(&axis.high), "{curves:?}: {}", axis.high);
            assert_eq!(axis.cuts(1.7e6), axis.cuts(1e30));
        }
        // What only trains worse, or has learnt by heart, is shown whole.
        for curves in [vec![usual.clone(), vec![2.3; 4]], vec![vec![0.02, 0.01, 0.01, 0.01], usual]] {
            let axis = Axis::losses(&curves);
            assert!(!curves.iter().flatten().any(|&loss| axis.cuts(loss)), "{curves:?}: {}", axis.high);
        }
    }

    #[test]
    fn words_of_any_size_stay_short() {
        assert_eq!(labels(&Axis::from_zero([0.5, 2.3].into_iter())), ["0", "0.5", "1", "1.5", "2", "2.5"]);
        assert_eq!(labels(&Axis::losses(&[vec![1.7e6]])), ["0", "500 k", "1 M", "1.5 M", "2 M"]);
        for exponent in -308..308 {
            for words in labels(&Axis::from_zero([1.7 * 10f64.powi(exponent)].into_iter())) {
                assert!(words.len() <= 8, "1.7e{exponent}: {words}");
            }
        }
        assert_eq!(labels(&Axis::losses(&[])).last().unwrap(), "1");
        assert_eq!(labels(&Axis::losses(&[vec![0.0, f64::NAN]])).last().unwrap(), "1");
    }

    #[test]
    fn a_log_axis_always_has_ticks() {
        for exponent in -20..80 {
            let value = 10f64.powf(f64::from(exponent) / 10.0);
            let log = Axis::log("", [value].into_iter(), tidy);
            assert!((2..=9).contains(&log.ticks.len()) && log.low < value && value < log.high, "{value}");
            // A clock's ticks end at 500 hours.
            let time = Axis::time([value.min(2e6)].into_iter());
            assert!(!time.ticks.is_empty(), "{value} s");
            let steps: Vec<f64> = time.ticks.windows(2).map(|pair| pair[1] / pair[0]).collect();
            assert!(steps.iter().all(|&step| step > 1.99), "{value} s: {:?}", time.ticks);
        }
        assert_eq!(
            labels(&Axis::log("", [100.0, 1e6].into_iter(), tidy)),
            ["100", "1000", "10000", "100000", "1000000"]
        );
        assert_eq!(
            labels(&Axis::time([25.0, 3000.0].into_iter())),
            ["30 s", "1 min", "2 min", "5 min", "10 min", "30 min", "1 h"]
        );
        assert_eq!(labels(&Axis::time([0.5, 30_000.0].into_iter())), ["1 s", "10 s", "1 min", "10 min", "1 h", "10 h"]);
    }

    #[test]
    fn words_under_a_narrow_axis_do_not_touch() {
        let along = |axis: &Axis, width: f64| apart(axis.labels(axis.scale((0.0, width))), 13.0).len();
        let time = Axis::time([25.0, 3000.0].into_iter());
        assert_eq!(along(&time, 450.0), time.ticks.len());
        assert!((3..time.ticks.len()).contains(&along(&time, 260.0)), "{}", along(&time, 260.0));
        assert_eq!(along(&Axis::epochs(20), 270.0), 5);
    }
}

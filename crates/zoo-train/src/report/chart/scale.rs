//! Scales, ticks and the width of text: the arithmetic of a drawing, apart from what is drawn.

/// A scale from values to pixels along one side of a drawing, even or logarithmic.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    /// The values at both ends.
    pub(super) values: (f64, f64),
    /// Where these ends stand, in pixels.
    pub(super) pixels: (f64, f64),
    /// Whether equal factors, not equal differences, take equal room.
    pub(super) log: bool,
}

impl Scale {
    /// The pixel of `value`; what lies outside the range is drawn at its edge.
    pub(super) fn at(&self, value: f64) -> f64 {
        let (low, high) = self.values;
        let along = |value: f64| if self.log { value.ln() } else { value };
        let share = (along(value.clamp(low, high)) - along(low)) / (along(high) - along(low));
        self.pixels.0 + (self.pixels.1 - self.pixels.0) * share
    }
}

/// The least of 1, 2, 5 times a power of ten that cuts `span` into at most `parts`.
pub(super) fn step(span: f64, parts: usize) -> f64 {
    let rough = (span / parts as f64).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|digit| digit * power)
        .into_iter()
        .find(|&step| step >= rough * 0.999_999)
        .unwrap_or(10.0 * power)
}

/// The multiples of `step` from `low` to `high`.
pub(super) fn multiples(low: f64, high: f64, step: f64) -> Vec<f64> {
    let (first, last) = ((low / step - 1e-6).ceil() as i64, (high / step + 1e-6).floor() as i64);
    (first..=last).map(|index| index as f64 * step).collect()
}

/// Smallest and largest finite value.
pub(super) fn span(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|value| value.is_finite()).fold(None, |span, value| {
        let (low, high) = span.unwrap_or((value, value));
        Some((value.min(low), value.max(high)))
    })
}

/// The labels of a horizontal axis, each with its middle's pixel, without those that would touch the one before.
pub(super) fn apart(labels: impl IntoIterator<Item = (f64, String)>, size: f64) -> Vec<(f64, String)> {
    let mut end = f64::NEG_INFINITY;
    let mut free = |(middle, text): &(f64, String)| {
        let half = text_width(text, size) / 2.0;
        let is_free = middle - half > end + 0.6 * size;
        if is_free {
            end = middle + half;
        }
        is_free
    };
    labels.into_iter().filter(|label| free(label)).collect()
}

/// The width of `text` in pixels at a font's `size`, rather too large than too small: which font a reader's system has
/// is not known, and those in use differ by a sixth.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    let share = |letter: char| match letter {
        'i' | 'j' | 'l' | '.' | ',' | ':' | ';' | '\'' | '|' | ' ' => 0.34,
        'm' | 'w' | 'M' | 'W' | '%' | '@' => 0.95,
        'A'..='Z' => 0.7,
        _ => 0.62,
    };
    text.chars().map(share).sum::<f64>() * size
}

/// A coordinate as an SVG holds it: to a tenth of a pixel.
pub(super) fn px(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// Points as a `polyline` or `polygon` holds them.
pub(super) fn points(points: impl IntoIterator<Item = (f64, f64)>) -> String {
    points.into_iter().map(|(x, y)| format!("{},{}", px(x), px(y))).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_between_the_ends() {
        let even = Scale { values: (0.0, 10.0), pixels: (50.0, 250.0), log: false };
        assert_eq!([0.0, 2.5, 10.0, -1.0, 99.0].map(|value| even.at(value)), [50.0, 100.0, 250.0, 50.0, 250.0]);
        // Upwards, as a y axis is.
        let up = Scale { values: (1.0, 100.0), pixels: (200.0, 0.0), log: true };
        assert!((up.at(10.0) - 100.0).abs() < 1e-9 && up.at(0.0) == 200.0, "{}", up.at(10.0));
    }

    #[test]
    fn steps_are_round() {
        assert_eq!([step(100.0, 5), step(19.0, 8), step(0.7, 5), step(4.0, 4)], [20.0, 5.0, 0.2, 1.0]);
        assert_eq!(multiples(-1.0, 10.0, 5.0), [0.0, 5.0, 10.0]);
        assert!(step(0.0, 5) > 0.0);
    }

    #[test]
    fn only_finite_values_span() {
        assert_eq!(span([3.0, f64::NAN, -1.0, f64::INFINITY].into_iter()), Some((-1.0, 3.0)));
        assert_eq!(span([f64::NAN].into_iter()), None);
    }

    #[test]
    fn labels_that_would_touch_are_left_out() {
        let at = |middles: [f64; 3]| middles.into_iter().zip(["20 min", "30 min", "1 h"].map(String::from));
        assert_eq!(apart(at([100.0, 200.0, 300.0]), 13.0).len(), 3);
        let kept: Vec<String> = apart(at([100.0, 140.0, 180.0]), 13.0).into_iter().map(|(_, text)| text).collect();
        assert_eq!(kept, ["20 min", "1 h"]);
    }

    /// Advance widths of DejaVu Sans, the widest font that browsers take for `sans-serif`, in thousandths of its size.
    #[test]
    fn no_label_is_wider_than_it_is_taken_for() {
        let dejavu = |letter: char| match letter {
            '0'..='9' => 636,
            ' ' | '.' => 318,
            'm' => 974,
            'i' => 278,
            'n' | 'h' => 634,
            's' => 521,
            'k' => 579,
            'M' => 863,
            '%' => 950,
            other => panic!("no width for {other:?}"),
        };
        for text in ["20 min", "30 s", "10 h", "87.5 %", "500 k", "1.5 M"] {
            let wide = text.chars().map(dejavu).sum::<i32>() as f64 * 13.0 / 1000.0;
            let taken = text_width(text, 13.0);
            assert!((wide - 0.7..1.2 * wide).contains(&taken), "{text}: {wide} for {taken}");
        }
    }

    #[test]
    fn coordinates_are_short() {
        assert_eq!([0.0, 12.04, 12.06, -3.96].map(px), ["0", "12", "12.1", "-4"]);
        assert_eq!(points([(1.0, 2.5), (3.25, 4.0)]), "1,2.5 3.2,4");
    }
}

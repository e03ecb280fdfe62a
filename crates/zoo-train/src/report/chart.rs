//! Charts as inline SVG that follow the page's theme.
//!
//! `plotters` draws them, in the colours of the light theme. Its SVG knows no classes, so [`theme_css`] maps each of
//! those colours to a variable of the style sheet by attribute (`[stroke="#0072B2"]`); a chart saved on its own still
//! looks right. Nor does it know hover titles: a transparent layer with the same coordinates lies on top and carries
//! one circle with a `<title>` for each point.

use std::ops::Range;

use anyhow::{Result, anyhow};
use maud::{Markup, PreEscaped, html};
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// One colour in the light and the dark theme.
#[derive(Clone, Copy)]
struct Themed {
    light: u32,
    dark: u32,
}

/// The hues that Okabe and Ito chose to be told apart with any colour vision, darkened or lightened until they stand
/// out from their background by 3:1. Their yellow and black are left out: one vanishes on white, the other is the
/// text's.
const PALETTE: [Themed; 6] = [
    Themed { light: 0x0072B2, dark: 0x3F9BDC },
    Themed { light: 0xD55E00, dark: 0xF0803C },
    Themed { light: 0x009270, dark: 0x1FBF97 },
    Themed { light: 0xB8558F, dark: 0xE39AC6 },
    Themed { light: 0xB07D00, dark: 0xEDB933 },
    Themed { light: 0x2E9BD6, dark: 0x8CD3FF },
];
const INK: Themed = Themed { light: 0x5B6470, dark: 0x9AA4B2 };
const AXIS: Themed = Themed { light: 0xB4BBC4, dark: 0x4A525E };
const GRID: Themed = Themed { light: 0xE6E9ED, dark: 0x2A3039 };

/// Dash and gap in pixels, for the second and third turn through the palette.
const DASHES: [Option<(i32, i32)>; 3] = [None, Some((7, 4)), Some((2, 3))];

/// Chart units a CSS pixel: plotters has whole-number coordinates, which would show as steps in a curve.
const SCALE: i32 = 8;

/// How a series looks: colour and dashes by its index, or the muted line that others are compared with.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Style {
    /// The colour of the series with this index.
    Series(usize),
    /// Grey and dashed.
    Muted,
}

impl Style {
    fn colour(self) -> Themed {
        match self {
            Self::Series(index) => PALETTE[index % PALETTE.len()],
            Self::Muted => INK,
        }
    }

    fn dash(self) -> Option<(i32, i32)> {
        match self {
            Self::Series(index) => DASHES[index / PALETTE.len() % DASHES.len()],
            Self::Muted => Some((4, 3)),
        }
    }

    /// A short piece of the line, for legends and tables.
    pub(super) fn swatch(self) -> Markup {
        let dash = self.dash().map(|(dash, gap)| format!("{dash} {gap}"));
        html! {
            svg.chart.swatch viewBox="0 0 24 10" aria-hidden="true" {
                line x1="1" y1="5" x2="23" y2="5" stroke-width="3"
                    stroke=(hex(self.colour().light)) stroke-dasharray=[dash] {}
            }
        }
    }
}

/// The style sheet's part for charts: one variable a colour, and the rule that puts it in place of the drawn colour.
pub(super) fn theme_css() -> String {
    let colours: Vec<Themed> = PALETTE.into_iter().chain([INK, AXIS, GRID]).collect();
    let variables = |pick: fn(&Themed) -> u32| -> String {
        colours.iter().enumerate().map(|(index, colour)| format!("--chart-{index}:{};", hex(pick(colour)))).collect()
    };
    let (light, dark) = (variables(|colour| colour.light), variables(|colour| colour.dark));
    let mut css = format!(":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n");
    for (index, colour) in colours.iter().enumerate() {
        for paint in ["fill", "stroke"] {
            let drawn = hex(colour.light);
            css.push_str(&format!(".chart [{paint}=\"{drawn}\"]{{{paint}:var(--chart-{index})}}\n"));
        }
    }
    css
}

fn hex(colour: u32) -> String {
    format!("#{colour:06X}")
}

fn rgb(colour: Themed) -> RGBColor {
    let [_, red, green, blue] = colour.light.to_be_bytes();
    RGBColor(red, green, blue)
}

/// One axis: its range, where its ticks stand and what they say. plotters' own axes leave a narrow logarithmic range
/// without ticks.
#[derive(Clone)]
pub(super) struct Axis {
    /// What it measures; empty where the chart's title and the ticks say it.
    name: &'static str,
    low: f64,
    high: f64,
    ticks: Vec<f64>,
    log: bool,
    format: fn(f64) -> String,
}

impl Axis {
    /// Epochs from the first to the last one, ticks at whole numbers.
    pub(super) fn epochs(last: usize) -> Self {
        let span = last.saturating_sub(1) as f64;
        // A little room on the left, and a lone epoch in the middle.
        let (low, high) = if last > 1 { (1.0 - 0.03 * span, last as f64) } else { (0.5, 1.5) };
        let step = step(span, 8).max(1.0);
        let ticks = multiples(low, high, step).into_iter().filter(|&tick| tick > 0.0);
        let ticks = if step > 1.0 { [1.0].into_iter().chain(ticks).collect() } else { ticks.collect() };
        Self { name: "epoch", low, high, ticks, log: false, format: tidy }
    }

    /// Around `values`, a few known ones with a tick at each.
    pub(super) fn at(name: &'static str, values: impl Iterator<Item = f64>) -> Self {
        let mut ticks: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        let (low, high) = span(ticks.iter().copied()).unwrap_or((0.0, 1.0));
        let spare = ((high - low) * 0.06).max(0.5);
        Self { name, low: low - spare, high: high + spare, ticks, log: false, format: tidy }
    }

    /// Percent that span `values`, in round numbers and never beyond 0 and 100.
    pub(super) fn percent(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = span(values).unwrap_or((0.0, 100.0));
        // Wide enough that a difference of a tenth of a point does not look like one of ten.
        let spare = (4.0 - (high - low)).max(0.0) / 2.0;
        let (low, high) = (low - spare, high + spare);
        let step = step(high - low, 5);
        let low = ((low / step - 0.1).floor() * step).max(0.0);
        let high = ((high / step + 0.1).ceil() * step).min(100.0);
        Self {
            name: "",
            low,
            high,
            ticks: multiples(low, high, step),
            log: false,
            format: |v| format!("{} %", tidy(v)),
        }
    }

    /// From zero to the largest of `values`; a lone peak of a run that diverges does not flatten all others.
    pub(super) fn from_zero(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let largest = values.last().copied().unwrap_or(1.0);
        let usual = values.get(values.len() * 9 / 10).copied().unwrap_or(largest);
        let top = largest.min(usual * 3.0).max(f64::MIN_POSITIVE);
        let step = step(top, 5);
        let high = (top / step).ceil() * step;
        Self { name: "", low: 0.0, high, ticks: multiples(0.0, high, step), log: false, format: tidy }
    }

    /// A logarithmic axis around positive `values`, with ticks at 1, 2 and 5 times powers of ten.
    pub(super) fn log(name: &'static str, values: impl Iterator<Item = f64>, format: fn(f64) -> String) -> Self {
        let powers = || (-9..15).map(|power| 10f64.powi(power));
        let fine = powers().flat_map(|power| [power, 2.0 * power, 5.0 * power]).collect();
        Self::log_with_ticks(name, values, format, [fine, powers().collect()])
    }

    /// A logarithmic axis of seconds, with ticks where a clock has round numbers, each at least twice the one before:
    /// closer ones' words would touch.
    pub(super) fn time(values: impl Iterator<Item = f64>) -> Self {
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
        // Wide enough that a tick always falls inside: neighbours are up to a factor of 3 apart, which is less than 1.8².
        let (low, high) = (low / 1.8, high * 1.8);
        let [fine, coarse] =
            choices.map(|ticks| ticks.into_iter().filter(|tick| (low..=high).contains(tick)).collect::<Vec<_>>());
        Self { name, low, high, ticks: if fine.len() <= 9 { fine } else { coarse }, log: true, format }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    /// What lies outside the range is drawn at its edge.
    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        let scale = |value: f64| if self.log { value.ln() } else { value };
        let share = (scale(value.clamp(self.low, self.high)) - scale(self.low)) / (scale(self.high) - scale(self.low));
        start + (f64::from(end - start) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(tick: &f64) -> String {
        tick.to_string()
    }

    fn format_ext(&self, tick: &f64) -> String {
        (self.format)(*tick)
    }
}

/// Smallest and largest finite value.
fn span(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|value| value.is_finite()).fold(None, |span, value| {
        let (low, high) = span.unwrap_or((value, value));
        Some((value.min(low), value.max(high)))
    })
}

/// The least of 1, 2, 5 times a power of ten that cuts `span` into at most `parts`.
fn step(span: f64, parts: usize) -> f64 {
    let rough = (span / parts as f64).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|digit| digit * power)
        .into_iter()
        .find(|&step| step >= rough * 0.999_999)
        .unwrap_or(10.0 * power)
}

fn multiples(low: f64, high: f64, step: f64) -> Vec<f64> {
    let (first, last) = ((low / step - 1e-6).ceil() as i64, (high / step + 1e-6).floor() as i64);
    (first..=last).map(|index| index as f64 * step).collect()
}

/// A tick's number without the noise of binary fractions.
fn tidy(value: f64) -> String {
    ((value * 1e6).round() / 1e6).to_string()
}

/// One point with what its hover title says.
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) title: String,
}

/// One line, or one dot of a scatter chart.
pub(super) struct Series {
    pub(super) style: Style,
    /// Points in order; those that are not finite are left out.
    pub(super) points: Vec<Point>,
    /// Low and high `y` around a point, drawn as a shade or, around a lone point, as a bar. May be empty.
    pub(super) spread: Vec<(f64, f64, f64)>,
    /// Ends in a cross: the run was cut off there.
    pub(super) cut_off: bool,
    /// Thin: one run beside the mean of others.
    pub(super) thin: bool,
    /// The name beside a lone point.
    pub(super) label: Option<String>,
}

/// Words with their place in chart units.
type Placed<'a> = ((i32, i32), &'a str);

/// A chart: lines and dots over two axes.
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
    /// The names of its lines, where the page's common legend does not hold them.
    pub(super) legend: Vec<(Style, String)>,
    /// Width and height in CSS pixels at full size.
    pub(super) size: (i32, i32),
}

impl Chart {
    /// The chart as a `<figure>`.
    pub(super) fn figure(&self) -> Result<Markup> {
        let mut svg = String::new();
        // plotters' error type borrows the string that it draws into.
        let hovers = self.draw(&mut svg).map_err(|error| anyhow!("cannot draw the chart {:?}: {error}", self.title))?;
        let (width, height) = (self.size.0 * SCALE, self.size.1 * SCALE);
        Ok(html! {
            figure {
                figcaption { (self.title) }
                @if !self.legend.is_empty() {
                    ul.legend { @for (style, name) in &self.legend { li { (style.swatch()) (name) } } }
                }
                div.chart {
                    (PreEscaped(svg))
                    svg.hover viewBox={ "0 0 " (width) " " (height) } role="img" aria-label=(self.title) {
                        @for ((x, y), title) in hovers {
                            circle cx=(x) cy=(y) r=(6 * SCALE) { title { (title) } }
                        }
                    }
                }
            }
        })
    }

    /// Draws into `svg`; returns the hover titles with their places.
    fn draw<'a>(&'a self, svg: &mut String) -> Result<Vec<Placed<'a>>, Box<dyn std::error::Error>> {
        let size = ((self.size.0 * SCALE) as u32, (self.size.1 * SCALE) as u32);
        let root = SVGBackend::with_string(svg, size).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin_top(8 * SCALE)
            .margin_right(22 * SCALE)
            .x_label_area_size(42 * SCALE)
            .y_label_area_size(50 * SCALE)
            .build_cartesian_2d(self.x.clone(), self.y.clone())?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(rgb(GRID).stroke_width(SCALE as u32))
            .light_line_style(TRANSPARENT)
            .axis_style(rgb(AXIS).stroke_width(SCALE as u32))
            .set_all_tick_mark_size(4 * SCALE)
            .label_style(text(13))
            .axis_desc_style(text(13))
            .x_desc(self.x.name)
            .draw()?;

        let mut hovers = Vec::new();
        let mut labels = Vec::new();
        for series in &self.series {
            let colour = rgb(series.style.colour());
            let (stroke, radius) = if series.thin { (1.2, 2) } else { (2.2, 3) };
            let stroke = colour.stroke_width((stroke * f64::from(SCALE)) as u32);
            let spread: Vec<_> =
                series.spread.iter().filter(|(_, low, high)| low.is_finite() && high.is_finite()).collect();
            if let [(x, low, high)] = spread[..] {
                chart.draw_series([PathElement::new([(*x, *low), (*x, *high)], stroke)])?;
            } else if !spread.is_empty() {
                let lows = spread.iter().map(|(x, low, _)| (*x, *low));
                let highs = spread.iter().rev().map(|(x, _, high)| (*x, *high));
                chart.draw_series([Polygon::new(lows.chain(highs).collect::<Vec<_>>(), colour.mix(0.16))])?;
            }

            let points: Vec<&Point> =
                series.points.iter().filter(|point| point.x.is_finite() && point.y.is_finite()).collect();
            let places: Vec<(f64, f64)> = points.iter().map(|point| (point.x, point.y)).collect();
            if places.is_empty() {
                continue;
            }
            match series.style.dash() {
                Some((dash, gap)) if places.len() > 1 => {
                    chart.draw_series(DashedLineSeries::new(places.clone(), dash * SCALE, gap * SCALE, stroke))?;
                }
                _ => {
                    chart.draw_series([PathElement::new(places.clone(), stroke)])?;
                }
            }
            // Dots at every epoch while they stay apart, else only where the line ends.
            let dotted = if places.len() <= 30 && !series.thin { 0 } else { places.len().saturating_sub(1) };
            let radius = if places.len() == 1 { 5 } else { radius };
            // A cross stands for the last dot.
            let dots = places.len() - usize::from(series.cut_off);
            let dots = places[..dots].iter().skip(dotted);
            chart.draw_series(dots.map(|&at| Circle::new(at, radius * SCALE, colour.filled())))?;
            if let (true, Some(&at)) = (series.cut_off, places.last()) {
                let stroke = colour.stroke_width((2.5 * f64::from(SCALE)) as u32);
                chart.draw_series([Cross::new(at, 6 * SCALE, stroke)])?;
            }
            // A title for each of at most some fifty points of a line, the last one always: more would lie on one
            // another.
            let every = points.len().div_ceil(50).max(1);
            let last = points.len().saturating_sub(1);
            for (point, at) in points.iter().zip(&places).rev().step_by(every) {
                hovers.push((chart.backend_coord(at), point.title.as_str()));
            }
            if let (Some(label), Some(at)) = (&series.label, places.get(last)) {
                labels.push((chart.backend_coord(at), label.as_str()));
            }
        }
        drop(chart);
        for ((at, label), anchor) in self.arrange(&labels) {
            root.draw_text(label, &text(12).pos(Pos::new(anchor, VPos::Center)), at)?;
        }
        root.present()?;
        Ok(hovers)
    }

    /// Puts each label beside its point where it covers neither a point nor a label; one without such a place is left
    /// to the legend.
    fn arrange<'a>(&self, labels: &[Placed<'a>]) -> Vec<(Placed<'a>, HPos)> {
        // (left, right, top, bottom)
        let mut taken: Vec<[i32; 4]> =
            labels.iter().map(|((x, y), _)| [x - 5 * SCALE, x + 5 * SCALE, y - 5 * SCALE, y + 5 * SCALE]).collect();
        let mut placed = Vec::new();
        for &((x, y), label) in labels {
            let width = label.chars().count() as i32 * 15 * SCALE / 2;
            let candidates = [
                (HPos::Left, 9, 0),
                (HPos::Right, -9, 0),
                (HPos::Center, 0, -14),
                (HPos::Center, 0, 14),
                (HPos::Left, 8, -11),
                (HPos::Left, 8, 11),
                (HPos::Right, -8, -11),
                (HPos::Right, -8, 11),
            ];
            for (anchor, dx, dy) in candidates {
                let (x, y) = (x + dx * SCALE, y + dy * SCALE);
                let left = match anchor {
                    HPos::Left => x,
                    HPos::Center => x - width / 2,
                    HPos::Right => x - width,
                };
                let space = [left, left + width, y - 7 * SCALE, y + 7 * SCALE];
                let inside = left > 54 * SCALE
                    && left + width < self.size.0 * SCALE
                    && y < (self.size.1 - 46) * SCALE
                    && y > 8 * SCALE;
                let free = |other: &[i32; 4]| {
                    other[0] > space[1] || other[1] < space[0] || other[2] > space[3] || other[3] < space[2]
                };
                if inside && taken.iter().all(free) {
                    taken.push(space);
                    placed.push((((x, y), label), anchor));
                    break;
                }
            }
        }
        placed
    }
}

/// Text of the axes' colour, `size` CSS pixels high. plotters' SVG divides a font's size by 1.24.
fn text(size: i32) -> TextStyle<'static> {
    ("sans-serif", f64::from(size * SCALE) * 1.24).into_font().color(&rgb(INK))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks.iter().map(|tick| axis.format_ext(tick)).collect()
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

    #[test]
    fn a_diverged_run_does_not_flatten_the_others() {
        let usual = (1..=20).map(|epoch| 2.3 / f64::from(epoch));
        let axis = Axis::from_zero(usual.chain([1e9, f64::NAN, f64::INFINITY]));
        assert!((2.0..10.0).contains(&axis.high), "{}", axis.high);
        assert_eq!(labels(&Axis::from_zero([0.5, 2.3].into_iter())), ["0", "0.5", "1", "1.5", "2", "2.5"]);
    }

    #[test]
    fn a_log_axis_always_has_ticks() {
        for exponent in -20..80 {
            let value = 10f64.powf(f64::from(exponent) / 10.0);
            let log = Axis::log("", [value].into_iter(), tidy);
            assert!(!log.ticks.is_empty() && log.low < value && value < log.high, "{value}");
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
    fn every_colour_that_is_drawn_follows_the_theme() {
        let point = |x: f64| Point { x, y: 50.0, title: format!("<epoch {x}>") };
        let series = (0..20).map(|index| Series {
            style: if index == 19 { Style::Muted } else { Style::Series(index) },
            points: vec![point(1.0), point(2.0), point(f64::NAN)],
            spread: vec![(1.0, 40.0, 60.0), (2.0, 40.0, 60.0)],
            cut_off: index == 3,
            thin: index == 4,
            label: Some(format!("series {index}")),
        });
        let (x, y) = (Axis::epochs(2), Axis::percent([40.0, 60.0].into_iter()));
        let chart = Chart { title: "a & b".into(), x, y, series: series.collect(), legend: vec![], size: (520, 300) };
        let html = chart.figure().unwrap().into_string();
        let css = theme_css();
        for paint in ["fill", "stroke"] {
            for drawn in html.split(&format!(" {paint}=\"#")).skip(1).map(|rest| &rest[..6]) {
                assert!(css.contains(&format!("[{paint}=\"#{drawn}\"]")), "{paint} {drawn}");
            }
        }
        assert!(html.contains("a &amp; b") && html.contains("<title>&lt;epoch 1&gt;</title>"));
        assert_eq!(html.matches("<title>").count(), 40, "one a finite point");
    }
}

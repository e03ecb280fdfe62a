//! Charts as inline SVG that follow the page's theme.
//!
//! `plotters` draws them, in the colours of the light theme. Its SVG knows no classes, so [`theme_css`] maps each of
//! those colours to a variable of the style sheet by attribute (`[stroke="#0072B2"]`); a chart saved on its own still
//! looks right. Nor does it know hover titles: a transparent layer with the same coordinates lies on top and carries
//! one circle with a `<title>` for each point.
//!
//! A chart shrunk to a phone's width could not be read any more, so a wide one is drawn a second time for narrow screens; the
//! style sheet shows the one that fits.

use std::ops::Range;

use anyhow::{Result, anyhow};
use maud::{Markup, PreEscaped, html};
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::format::compact;

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
/// The pages that colours must stand out from: the charts' cards in the light and the dark theme.
const PAGES: Themed = Themed { light: 0xFFFFFF, dark: 0x1A1E25 };
const INK: Themed = Themed { light: 0x5B6470, dark: 0x9AA4B2 };
const AXIS: Themed = Themed { light: 0xB4BBC4, dark: 0x4A525E };
const GRID: Themed = Themed { light: 0xE6E9ED, dark: 0x2A3039 };

/// The colour of series `index`: no two have the same. Behind the palette hues follow at the golden angle, each as bright as it
/// must be to stand out from its page.
fn colour(index: usize) -> Themed {
    if let Some(&colour) = PALETTE.get(index) {
        return colour;
    }
    let hue = (index as f64 * 0.618_034 + 0.05).fract();
    let saturation = [0.8, 0.5, 0.95][index % 3];
    let at = |lightness: f64| {
        let (red, green, blue) = HSLColor(hue, saturation, lightness).to_backend_color().rgb;
        u32::from_be_bytes([0, red, green, blue])
    };
    let steps = || (0..100).map(|step| f64::from(step) / 100.0);
    let stands_out = |colour: u32, page: u32| contrast(colour, page) >= 3.1;
    Themed {
        light: steps().rev().map(at).find(|&colour| stands_out(colour, PAGES.light)).unwrap_or(INK.light),
        // Brighter than it must be: what only just stands out from black looks dull.
        dark: steps().map(|lightness| at(lightness.max(0.6))).find(|&c| stands_out(c, PAGES.dark)).unwrap_or(INK.dark),
    }
}

/// The contrast of two colours as WCAG 2 counts it, 1 to 21.
fn contrast(a: u32, b: u32) -> f64 {
    let luminance = |colour: u32| {
        let [_, red, green, blue] = colour.to_be_bytes().map(|part| {
            let part = f64::from(part) / 255.0;
            if part <= 0.040_45 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
        });
        0.2126 * red + 0.7152 * green + 0.0722 * blue
    };
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

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
            Self::Series(index) => colour(index),
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

/// The style sheet's part for charts of up to `series` series: one variable a colour, and the rule that puts it in place of the
/// drawn colour.
pub(super) fn theme_css(series: usize) -> String {
    let colours: Vec<Themed> =
        [INK, AXIS, GRID].into_iter().chain((0..series.max(PALETTE.len())).map(colour)).collect();
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
    /// The course of a run from its first step on, ticks at whole epochs.
    pub(super) fn course(last: usize) -> Self {
        Self { low: 0.0, high: last.max(1) as f64, ..Self::epochs(last) }
    }

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

    /// From zero to the largest of `values`.
    pub(super) fn from_zero(values: impl Iterator<Item = f64>) -> Self {
        // Beyond the largest number an axis could end at.
        let largest = span(values).map_or(0.0, |(_, high)| high.min(1e300));
        let top = if largest > 0.0 { largest } else { 1.0 };
        let step = step(top, 5);
        let high = (top / step).ceil() * step;
        Self { name: "", low: 0.0, high, ticks: multiples(0.0, high, step), log: false, format: amount }
    }

    /// From zero, for the losses of some curves: one of a run that diverges does not flatten all others, nor does a lone peak. The
    /// axis then ends above the others; what lies higher is drawn at its edge.
    pub(super) fn losses(curves: &[Vec<f64>]) -> Self {
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
    pub(super) fn log(name: &'static str, values: impl Iterator<Item = f64>, format: fn(f64) -> String) -> Self {
        let powers = || (-9..15).map(|power| 10f64.powi(power));
        let fine = powers().flat_map(|power| [power, 2.0 * power, 5.0 * power]).collect();
        let axis = Self::log_with_ticks(name, values, format, [fine, powers().collect()]);
        match axis.ticks.len() {
            // So short a stretch that even steps look right.
            0..2 => Self { ticks: multiples(axis.low, axis.high, step(axis.high - axis.low, 4)), ..axis },
            _ => axis,
        }
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

    /// The axis without the ticks whose words would touch those before them, drawn along `width` pixels.
    fn thinned(&self, width: i32) -> Self {
        let mut end = f64::NEG_INFINITY;
        let apart = |tick: &f64| {
            let (middle, half) = (f64::from(self.map(tick, (0, width))), wide(&(self.format)(*tick), 13) / 2.0);
            let free = middle - half > end + 6.0;
            if free {
                end = middle + half;
            }
            free
        };
        Self { ticks: self.ticks.iter().copied().filter(apart).collect(), ..self.clone() }
    }

    /// Whether `value` lies above what the axis shows.
    pub(super) fn cuts(&self, value: f64) -> bool {
        value.is_finite() && value > self.high
    }

    /// Where the axis ends, in words.
    pub(super) fn end(&self) -> String {
        (self.format)(self.high)
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

/// How high a curve of losses reaches but for a tenth of its points, at least one: the peaks of a run that trains all the same.
fn reach(curve: &[f64]) -> Option<f64> {
    let mut values: Vec<f64> = curve.iter().copied().filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let peaks = if values.len() < 4 { 0 } else { values.len().div_ceil(10) };
    values.get(values.len().checked_sub(peaks + 1)?).copied()
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

/// Any size of number, short: `0.5`, `1.7 M`, `2.5e18`.
pub(super) fn amount(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        0.0001..1000.0 => tidy(value),
        1000.0..1e15 => compact(value),
        _ => format!("{value:.1e}").replace(".0e", "e"),
    }
}

/// About how many pixels `text` is wide at a font's `size`.
fn wide(text: &str, size: i32) -> f64 {
    text.chars().count() as f64 * f64::from(size) * 0.58
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

/// A label beside its point, or away from it at the end of a line.
struct Label {
    text: String,
    at: (i32, i32),
    anchor: HPos,
    line: Option<[(i32, i32); 2]>,
}

/// What a drawing needs beside its lines.
struct Drawn<'a> {
    /// Hover titles.
    hovers: Vec<Placed<'a>>,
    /// The names of points that have a number on the chart, in its order: there was no room for the names themselves.
    key: Vec<(Style, &'a str)>,
}

/// Width and height of a chart on a phone, in CSS pixels.
const NARROW: (i32, i32) = (350, 270);
/// The least room for the y axis's words, in CSS pixels.
const LEFT: i32 = 50;

/// A chart: lines and dots over two axes.
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
    /// The names of its lines, where the page's common legend does not hold them.
    pub(super) legend: Vec<(Style, String)>,
    /// What it does not show, and why.
    pub(super) notes: Vec<String>,
    /// Width and height in CSS pixels at full size.
    pub(super) size: (i32, i32),
}

impl Chart {
    /// The chart as a `<figure>`.
    pub(super) fn figure(&self) -> Result<Markup> {
        let narrow = self.size.0 > NARROW.0 + 50;
        let drawings = [(Some(self.size), "wide"), (narrow.then_some(NARROW), "narrow")];
        let drawings =
            drawings.into_iter().filter_map(|(size, class)| Some(self.drawing(size?, narrow.then_some(class))));
        let drawings = drawings.collect::<Result<Vec<_>>>()?;
        Ok(html! {
            figure {
                figcaption { (self.title) }
                @if !self.legend.is_empty() {
                    ul.legend { @for (style, name) in &self.legend { li { (style.swatch()) (name) } } }
                }
                @for note in &self.notes { p.note { (note) } }
                @for drawing in drawings { (drawing) }
            }
        })
    }

    /// The chart at one size, for screens of one `class` or of any.
    fn drawing(&self, size: (i32, i32), class: Option<&str>) -> Result<Markup> {
        let mut svg = String::new();
        // plotters' error type borrows the string that it draws into.
        let drawn =
            self.draw(&mut svg, size).map_err(|error| anyhow!("cannot draw the chart {:?}: {error}", self.title))?;
        let (width, height) = (size.0 * SCALE, size.1 * SCALE);
        Ok(html! {
            div class=[class] {
                div.chart {
                    (PreEscaped(svg))
                    svg.hover viewBox={ "0 0 " (width) " " (height) } role="img" aria-label=(self.title) {
                        @for ((x, y), title) in drawn.hovers {
                            circle cx=(x) cy=(y) r=(6 * SCALE) { title { (title) } }
                        }
                    }
                }
                @if !drawn.key.is_empty() {
                    ul.legend {
                        @for (index, (style, name)) in drawn.key.iter().enumerate() {
                            li { (style.swatch()) b { (index + 1) } " " (name) }
                        }
                    }
                }
            }
        })
    }

    /// Draws into `svg`.
    fn draw<'a>(&'a self, svg: &mut String, size: (i32, i32)) -> Result<Drawn<'a>, Box<dyn std::error::Error>> {
        let root = SVGBackend::with_string(svg, ((size.0 * SCALE) as u32, (size.1 * SCALE) as u32)).into_drawing_area();
        let words = self.y.ticks.iter().map(|tick| wide(&(self.y.format)(*tick), 13) as i32 + 14);
        let left = words.fold(LEFT, i32::max);
        let right = 22;
        let mut chart = ChartBuilder::on(&root)
            .margin_top(8 * SCALE)
            .margin_right(right * SCALE)
            .x_label_area_size(42 * SCALE)
            .y_label_area_size(left * SCALE)
            .build_cartesian_2d(self.x.thinned(size.0 - left - right), self.y.clone())?;
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
        let (mut labels, mut styles) = (Vec::new(), Vec::new());
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
            let dots = dots.filter(|&&(_, y)| !self.y.cuts(y));
            chart.draw_series(dots.map(|&at| Circle::new(at, radius * SCALE, colour.filled())))?;
            let cut: Vec<_> = places.iter().filter(|&&(_, y)| self.y.cuts(y)).collect();
            let some = cut.iter().step_by(cut.len().div_ceil(30).max(1));
            chart.draw_series(some.map(|&&at| TriangleMarker::new(at, 5 * SCALE, colour.filled())))?;
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
                styles.push(series.style);
            }
        }
        drop(chart);
        let (arranged, key) = match arrange(&labels, size, left, false) {
            Some(arranged) => (arranged, Vec::new()),
            None => {
                let numbers: Vec<String> = (1..=labels.len()).map(|number| number.to_string()).collect();
                let numbered: Vec<Placed> =
                    labels.iter().zip(&numbers).map(|((at, _), number)| (*at, number.as_str())).collect();
                let names = labels.iter().map(|(_, name)| *name);
                (arrange(&numbered, size, left, true).unwrap_or_default(), styles.into_iter().zip(names).collect())
            }
        };
        for Label { text: words, at, anchor, line } in arranged {
            if let Some(line) = line {
                root.draw(&PathElement::new(line, rgb(INK).stroke_width(SCALE as u32)))?;
            }
            root.draw_text(&words, &text(12).pos(Pos::new(anchor, VPos::Center)), at)?;
        }
        root.present()?;
        Ok(Drawn { hovers, key })
    }
}

/// Puts each label where it covers neither a point nor a label: beside its point, or a little away with a line to it. `None` where
/// one finds no such place; with `all` it is then put beside its point all the same.
fn arrange(labels: &[Placed], (width, height): (i32, i32), left: i32, all: bool) -> Option<Vec<Label>> {
    let near = [
        (HPos::Left, 9, 0),
        (HPos::Right, -9, 0),
        (HPos::Center, 0, -14),
        (HPos::Center, 0, 14),
        (HPos::Left, 8, -11),
        (HPos::Left, 8, 11),
        (HPos::Right, -8, -11),
        (HPos::Right, -8, 11),
    ];
    let away = (2..=9).flat_map(|ring| {
        let (dx, dy) = (6 * ring, 13 * ring);
        let sides = [(HPos::Left, dx), (HPos::Right, -dx), (HPos::Center, 0)];
        sides.into_iter().flat_map(move |(anchor, dx)| [(anchor, dx, -dy), (anchor, dx, dy)])
    });
    let candidates: Vec<(bool, (HPos, i32, i32))> =
        near.map(|place| (false, place)).into_iter().chain(away.map(|place| (true, place))).collect();
    // (left, right, top, bottom)
    let mut taken: Vec<[i32; 4]> =
        labels.iter().map(|((x, y), _)| [x - 5 * SCALE, x + 5 * SCALE, y - 5 * SCALE, y + 5 * SCALE]).collect();
    let mut placed = Vec::new();
    for &((x, y), words) in labels {
        let long = (wide(words, 13) * f64::from(SCALE)) as i32;
        let space = |(anchor, dx, dy): (HPos, i32, i32)| {
            let (x, y) = (x + dx * SCALE, y + dy * SCALE);
            let start = match anchor {
                HPos::Left => x,
                HPos::Center => x - long / 2,
                HPos::Right => x - long,
            };
            [start, start + long, y - 7 * SCALE, y + 7 * SCALE]
        };
        let free = |place: (HPos, i32, i32)| {
            let space = space(place);
            let inside = space[0] > (left + 4) * SCALE
                && space[1] < width * SCALE
                && space[3] < (height - 39) * SCALE
                && space[2] > SCALE;
            let apart = |other: &[i32; 4]| {
                other[0] > space[1] || other[1] < space[0] || other[2] > space[3] || other[3] < space[2]
            };
            inside && taken.iter().all(apart)
        };
        // Where its line meets the label: the middle of its lower or upper edge, or that edge's end.
        let end = |(_, dx, dy): (HPos, i32, i32)| (x + dx * SCALE, y + (dy - 6 * dy.signum()) * SCALE);
        let clear = |place: (HPos, i32, i32)| {
            let (to_x, to_y) = end(place);
            let along = |part: i32| (x + (to_x - x) * part / 24, y + (to_y - y) * part / 24);
            let covers = |space: &[i32; 4], (x, y): (i32, i32)| {
                (space[0]..=space[1]).contains(&x) && (space[2]..=space[3]).contains(&y)
            };
            // Its own point is no obstacle.
            let others = taken.iter().filter(|space| !covers(space, (x, y)));
            others.into_iter().all(|space| !(0..=24).any(|part| covers(space, along(part))))
        };
        let fits = |&(is_away, place): &(bool, (HPos, i32, i32))| free(place) && (!is_away || clear(place));
        let found = candidates.iter().copied().find(fits);
        let (is_away, place) = found.or(all.then_some((false, near[0])))?;
        let line = is_away.then_some([(x, y), end(place)]);
        taken.push(space(place));
        let (anchor, dx, dy) = place;
        let at = (x + dx * SCALE, y + dy * SCALE);
        placed.push(Label { text: words.to_owned(), at, anchor, line });
    }
    Some(placed)
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
    fn words_under_a_narrow_axis_do_not_touch() {
        let time = Axis::time([25.0, 3000.0].into_iter());
        assert_eq!(labels(&time.thinned(450)), labels(&time));
        let narrow = time.thinned(260);
        assert!((3..labels(&time).len()).contains(&narrow.ticks.len()), "{:?}", labels(&narrow));
        assert_eq!(labels(&Axis::epochs(20).thinned(270)), ["1", "5", "10", "15", "20"]);
    }

    #[test]
    fn no_two_series_share_a_colour() {
        for pick in [|c: Themed| c.light, |c: Themed| c.dark] {
            let colours: Vec<u32> = (0..60).map(|index| pick(colour(index))).collect();
            let mut unique = colours.clone();
            unique.sort_unstable();
            unique.dedup();
            assert_eq!(unique.len(), colours.len(), "{colours:x?}");
        }
        for index in 0..60 {
            let Themed { light, dark } = colour(index);
            assert!(
                contrast(light, PAGES.light) >= 3.0 && contrast(dark, PAGES.dark) >= 3.0,
                "{index}: {light:x} {dark:x}"
            );
        }
    }

    /// Points on one another, names too long for the chart, and more of them than fit: each is named, on the chart or by its number.
    #[test]
    fn no_point_loses_its_label() {
        let scatter = |count: usize, name: &str| {
            let series = (0..count).map(|index| Series {
                style: Style::Series(index),
                points: vec![Point { x: 1000.0 + index as f64, y: 50.0, title: format!("title {index}") }],
                spread: vec![],
                cut_off: false,
                thin: false,
                label: Some(format!("{name} {index:03}")),
            });
            let (x, y) = (Axis::log("", [1000.0, 2000.0].into_iter(), tidy), Axis::percent([50.0].into_iter()));
            let series = series.collect();
            Chart { title: String::new(), x, y, series, legend: vec![], notes: vec![], size: (520, 300) }
        };
        for (count, name) in
            [(2, "mlp"), (7, "cifar_resnet20"), (12, "seresnet101"), (40, "mlp"), (3, &"long ".repeat(40))]
        {
            let html = scatter(count, name).figure().unwrap().into_string();
            for index in 0..count {
                let label = format!("{name} {index:03}");
                assert_eq!(html.matches(&label).count(), 2, "{count} x {name}: {label}, on both drawings");
            }
            // Where they are numbered, each number stands on the chart, too.
            for part in html.split("<ul class=\"legend\">").skip(1) {
                assert_eq!(part.split("</ul>").next().unwrap().matches("<b>").count(), count);
            }
        }
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
        let chart = Chart {
            title: "a & b".into(),
            x,
            y,
            series: series.collect(),
            legend: vec![],
            notes: vec![],
            size: (520, 300),
        };
        let html = chart.figure().unwrap().into_string();
        let css = theme_css(20);
        for paint in ["fill", "stroke"] {
            for drawn in html.split(&format!(" {paint}=\"#")).skip(1).map(|rest| &rest[..6]) {
                assert!(css.contains(&format!("[{paint}=\"#{drawn}\"]")), "{paint} {drawn}");
            }
        }
        assert!(html.contains("a &amp; b") && html.contains("<title>&lt;epoch 1&gt;</title>"));
        assert_eq!(html.matches("<title>").count(), 80, "one a finite point of each drawing");
    }
}

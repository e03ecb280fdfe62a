//! Drawing of a chart as SVG: grid, axes, series, labels, and on top of them the titles that show under the pointer.

use maud::{Markup, html};

use super::labels::{self, Placed, arrange};
use super::scale::{Scale, apart, points, px, text_width};
use super::{Chart, Paint, Point, Series, Style};

/// The size of the axes' words.
const WORDS: f64 = 13.0;
/// How far below its middle a line of words stands, as a share of its size. Not every program that shows SVG knows
/// `dominant-baseline`.
const BASELINE: f64 = 0.35;
/// The least room for the y axis's words.
const LEFT: f64 = 50.0;
/// The least room for one half of the last word below the x axis.
const RIGHT: f64 = 22.0;
/// The room above the axes.
const TOP: f64 = 8.0;
/// The room for the x axis's words and its name.
const BELOW: f64 = 42.0;
/// The length of a tick mark.
const MARK: f64 = 4.0;

/// One drawing of a chart.
pub(super) struct Drawing<'a> {
    pub(super) svg: Markup,
    /// The names of points that have a number on the drawing, in its order: there was no room for the names themselves.
    pub(super) key: Vec<(Style, &'a str)>,
}

/// The scales of a drawing, whose pixels are the edges of its axes.
struct Frame {
    x: Scale,
    y: Scale,
}

impl Frame {
    fn of(chart: &Chart, (width, height): (f64, f64)) -> Self {
        let y = chart.y.scale((height - BELOW, TOP));
        let left = chart.y.labels(y).map(|(_, words)| text_width(&words, WORDS) + MARK + 10.0).fold(LEFT, f64::max);
        let unfinished = chart.x.scale((left, width));
        let last = chart.x.labels(unfinished).last().map_or(0.0, |(_, words)| text_width(&words, WORDS) / 2.0 + 2.0);
        Self { x: chart.x.scale((left, width - RIGHT.max(last))), y }
    }

    fn at(&self, point: &Point) -> (f64, f64) {
        (self.x.at(point.x), self.y.at(point.y))
    }
}

impl Chart {
    /// The chart at one size.
    pub(super) fn draw(&self, size: (f64, f64)) -> Drawing<'_> {
        let frame = Frame::of(self, size);
        let (arranged, key) = self.labels(&frame, size);
        let svg = html! {
            svg.chart.drawing xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (px(size.0)) " " (px(size.1)) }
                font-family="sans-serif" role="img" aria-label=(self.title) {
                (self.axes(&frame, size))
                @for series in &self.series { (series.draw(&frame, |value| self.y.cuts(value))) }
                (arranged)
                g.hover fill-opacity="0" {
                    @for series in &self.series {
                        @for point in series.titled() {
                            @let (x, y) = frame.at(point);
                            circle cx=(px(x)) cy=(px(y)) r="6" { title { (point.title) } }
                        }
                    }
                }
            }
        };
        Drawing { svg, key }
    }

    fn axes(&self, frame: &Frame, (_, height): (f64, f64)) -> Markup {
        let ((left, right), (bottom, top)) = (frame.x.pixels, frame.y.pixels);
        let x: Vec<(f64, String)> = apart(self.x.labels(frame.x), WORDS);
        let y: Vec<(f64, String)> = self.y.labels(frame.y).collect();
        let painted = |paint: Paint, path: String| {
            html! { path class=(paint.class()) color=(paint.hex()) d=(path) fill="none" stroke="currentColor" {} }
        };
        let grid = y.iter().map(|(y, _)| format!("M{} {}H{}", px(left), px(*y), px(right))).collect();
        let mut axes = format!("M{} {}V{}H{}", px(left), px(top), px(bottom), px(right));
        axes.extend(x.iter().map(|(x, _)| format!("M{} {}v{MARK}", px(*x), px(bottom))));
        axes.extend(y.iter().map(|(y, _)| format!("M{} {}h-{MARK}", px(left), px(*y))));
        html! {
            (painted(Paint::Grid, grid))
            (painted(Paint::Axis, axes))
            g class=(Paint::Ink.class()) color=(Paint::Ink.hex()) fill="currentColor" font-size=(WORDS) {
                @for (y, words) in &y {
                    text x=(px(left - MARK - 4.0)) y=(px(y + BASELINE * WORDS)) text-anchor="end" { (words) }
                }
                @for (x, words) in &x {
                    text x=(px(*x)) y=(px(bottom + MARK + 14.0)) text-anchor="middle" { (words) }
                }
                @if !self.x.name.is_empty() {
                    text x=(px((left + right) / 2.0)) y=(px(height - 6.0)) text-anchor="middle" { (self.x.name) }
                }
            }
        }
    }

    /// The names of points, and what stands below the drawing where they have found no room on it: the points are then
    /// numbered.
    fn labels<'a>(&'a self, frame: &Frame, (width, height): (f64, f64)) -> (Markup, Vec<(Style, &'a str)>) {
        let named =
            |series: &'a Series| Some((frame.at(series.finite().last()?), series.style, series.label.as_deref()?));
        let named: Vec<((f64, f64), Style, &str)> = self.series.iter().filter_map(named).collect();
        let inside = [frame.x.pixels.0 + 4.0, width, 1.0, height - BELOW + 3.0];
        let names: Vec<Placed> = named.iter().map(|&(at, _, name)| (at, name)).collect();
        let numbers: Vec<String> = (1..=named.len()).map(|number| number.to_string()).collect();
        let numbered: Vec<Placed> =
            names.iter().zip(&numbers).map(|((at, _), number)| (*at, number.as_str())).collect();
        let (arranged, key) = match arrange(&names, inside, false) {
            Some(arranged) => (arranged, Vec::new()),
            None => {
                let key = named.iter().map(|&(_, style, name)| (style, name)).collect();
                (arrange(&numbered, inside, true).unwrap_or_default(), key)
            }
        };
        let markup = html! {
            g class=(Paint::Ink.class()) color=(Paint::Ink.hex()) fill="currentColor" font-size=(labels::SIZE) {
                @for label in arranged {
                    @if let Some(line) = label.line {
                        polyline points=(points(line)) stroke="currentColor" {}
                    }
                    text x=(px(label.at.0)) y=(px(label.at.1 + BASELINE * labels::SIZE))
                        text-anchor=(label.anchor.name()) { (label.text) }
                }
            }
        };
        (markup, key)
    }
}

impl Series {
    fn draw(&self, frame: &Frame, cuts: impl Fn(f64) -> bool) -> Markup {
        let finite: Vec<&Point> = self.finite().collect();
        let places: Vec<(f64, f64)> = finite.iter().map(|point| frame.at(point)).collect();
        let paint = self.style.paint();
        let (width, radius) = if self.thin { (1.2, 2) } else { (2.2, 3) };
        let radius = if places.len() == 1 { 5 } else { radius };
        // Dots at every epoch while they stay apart, else only where the line ends. A cross stands for the last dot.
        let from = if places.len() <= 30 && !self.thin { 0 } else { places.len().saturating_sub(1) };
        let to = places.len().saturating_sub(usize::from(self.cut_off));
        let dots = (from..to).filter(|&index| !cuts(finite[index].y)).map(|index| places[index]);
        let above: Vec<(f64, f64)> =
            finite.iter().zip(&places).filter(|(point, _)| cuts(point.y)).map(|(_, &place)| place).collect();
        let above = above.iter().step_by(above.len().div_ceil(30).max(1));
        let end = places.last().filter(|_| self.cut_off);
        html! {
            g class=(paint.class()) color=(paint.hex()) fill="none" stroke="currentColor" stroke-width=(width)
                stroke-linejoin="round" {
                (self.draw_spread(frame))
                @if places.len() > 1 {
                    polyline points=(points(places.iter().copied())) stroke-dasharray=[self.style.dash()] {}
                }
                g fill="currentColor" stroke="none" {
                    @for (x, y) in dots { circle cx=(px(x)) cy=(px(y)) r=(radius) {} }
                    @for &(x, y) in above {
                        polygon points=(points([(x, y - 5.0), (x + 4.3, y + 2.5), (x - 4.3, y + 2.5)])) {}
                    }
                }
                @if let Some(&(x, y)) = end {
                    path d=(format!("M{} {}l12 12m0 -12l-12 12", px(x - 6.0), px(y - 6.0))) stroke-width="2.5" {}
                }
            }
        }
    }

    /// A shade around a line, or a bar through a lone point.
    fn draw_spread(&self, frame: &Frame) -> Markup {
        let finite = self.spread.iter().filter(|(_, low, high)| low.is_finite() && high.is_finite());
        let ends = finite.map(|&(x, low, high)| (frame.x.at(x), frame.y.at(low), frame.y.at(high)));
        let ends: Vec<(f64, f64, f64)> = ends.collect();
        let lows = ends.iter().map(|&(x, low, _)| (x, low));
        let highs = ends.iter().rev().map(|&(x, _, high)| (x, high));
        html! {
            @match ends.len() {
                0 => {},
                1 => polyline points=(points(lows.chain(highs))) {},
                _ => polygon points=(points(lows.chain(highs)))
                    fill="currentColor" fill-opacity="0.16" stroke="none" {},
            }
        }
    }

    /// The points that can be drawn.
    fn finite(&self) -> impl Iterator<Item = &Point> {
        self.points.iter().filter(|point| point.x.is_finite() && point.y.is_finite())
    }

    /// At most some fifty points of the line, the last one always: the titles of more would lie on one another.
    fn titled(&self) -> impl Iterator<Item = &Point> {
        let finite: Vec<&Point> = self.finite().collect();
        let every = finite.len().div_ceil(50).max(1);
        finite.into_iter().rev().step_by(every)
    }
}

//! Charts as inline SVG that follow the page's theme.
//!
//! A chart shrunk to a phone's width could not be read any more, so a wide one is drawn a second time for narrow
//! screens; the style sheet shows the one that fits.

mod axis;
mod colour;
mod draw;
mod labels;
mod scale;

use maud::{Markup, html};

pub use axis::Axis;
pub(crate) use axis::amount;
use colour::Paint;
pub use colour::Style;
pub(crate) use colour::theme_css;
use draw::Drawing;

/// Width and height of a chart of many series, in CSS pixels.
pub const LARGE: (f64, f64) = (520.0, 300.0);
/// Width and height of a chart on a phone, in CSS pixels.
const NARROW: (f64, f64) = (350.0, 270.0);

/// One point with what its hover title says.
#[derive(Debug, Clone)]
pub struct Point {
    /// Its place along the x axis.
    pub x: f64,
    /// Its place along the y axis.
    pub y: f64,
    /// What shows under the pointer.
    pub title: String,
}

/// One line, or one dot of a scatter chart.
#[derive(Debug, Clone)]
pub struct Series {
    /// How it looks.
    pub style: Style,
    /// Points in order; those that are not finite are left out.
    pub points: Vec<Point>,
    /// Low and high `y` around a point, drawn as a shade or, around a lone point, as a bar. May be empty.
    pub spread: Vec<(f64, f64, f64)>,
    /// Ends in a cross: the run was cut off there.
    pub cut_off: bool,
    /// Thin: one run beside the mean of others.
    pub thin: bool,
    /// The name beside a lone point.
    pub label: Option<String>,
}

/// A chart: lines and dots over two axes.
#[derive(Debug, Clone)]
pub struct Chart {
    /// What it shows, and on which data.
    pub title: String,
    /// The axis below.
    pub x: Axis,
    /// The axis on the left.
    pub y: Axis,
    /// Lines and dots, the later ones on top.
    pub series: Vec<Series>,
    /// The names of its lines, where the page's common legend does not hold them.
    pub legend: Vec<(Style, String)>,
    /// What it does not show, and why.
    pub notes: Vec<String>,
    /// Width and height in CSS pixels at full size.
    pub size: (f64, f64),
}

impl Chart {
    /// The chart as a `<figure>`.
    pub(super) fn figure(&self) -> Markup {
        let has_narrow = self.size.0 > NARROW.0 + 50.0;
        let drawings = [(Some(self.size), "wide"), (has_narrow.then_some(NARROW), "narrow")];
        html! {
            figure {
                figcaption { (self.title) }
                @if !self.legend.is_empty() {
                    ul.legend { @for (style, name) in &self.legend { li { (style.swatch()) (name) } } }
                }
                @for note in &self.notes { p.note { (note) } }
                @for (size, class) in drawings.into_iter().filter_map(|(size, class)| Some((size?, class))) {
                    (self.drawing(size, has_narrow.then_some(class)))
                }
            }
        }
    }

    /// The chart at one size, for screens of one `class` or of any.
    fn drawing(&self, size: (f64, f64), class: Option<&str>) -> Markup {
        let Drawing { svg, key } = self.draw(size);
        html! {
            div class=[class] {
                (svg)
                @if !key.is_empty() {
                    ul.legend {
                        @for (index, (style, name)) in key.iter().enumerate() {
                            li { (style.swatch()) b { (index + 1) } " " (name) }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Points on one another, names too long for the chart, and more of them than fit: each is named, on the chart or
    /// by its number.
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
            let (x, y) = (Axis::log("", [1000.0, 2000.0].into_iter(), amount), Axis::percent([50.0].into_iter()));
            let series = series.collect();
            Chart { title: String::new(), x, y, series, legend: vec![], notes: vec![], size: (520.0, 300.0) }
        };
        for (count, name) in
            [(2, "mlp"), (7, "cifar_resnet20"), (12, "seresnet101"), (40, "mlp"), (3, &"long ".repeat(40))]
        {
            let html = scatter(count, name).figure().into_string();
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

    /// Twenty series on two epochs, the last one muted, the fourth cut off, the fifth thin.
    fn crowded() -> String {
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
        let series = series.collect();
        let chart = Chart { title: "a & b".into(), x, y, series, legend: vec![], notes: vec![], size: (520.0, 300.0) };
        chart.figure().into_string()
    }

    #[test]
    fn every_colour_that_is_drawn_follows_the_theme() {
        let (html, css) = (crowded(), theme_css(20));
        let classes: Vec<&str> =
            html.split("\" color=\"#").filter_map(|before| before.rsplit("class=\"").next()).collect();
        assert!(classes.len() > 40);
        for class in &classes[..classes.len() - 1] {
            assert!(css.contains(&format!(".chart .{class}{{color:#")), "{class}");
        }
        for paint in ["fill=\"", "stroke=\""] {
            for drawn in html.split(&format!(" {paint}")).skip(1).filter_map(|rest| rest.split('"').next()) {
                assert!(["none", "currentColor"].contains(&drawn), "{paint}{drawn}");
            }
        }
        assert!(html.contains("a &amp; b") && html.contains("<title>&lt;epoch 1&gt;</title>"));
        assert_eq!(html.matches("<title>").count(), 80, "one a finite point of each drawing");
    }

    #[test]
    fn lines_are_drawn_as_their_series_ask_for() {
        let html = crowded();
        let wide = html.split("<ul").next().unwrap();
        assert_eq!(wide.matches("<polygon").count(), 20, "a shade for each");
        assert_eq!(wide.matches(" stroke-dasharray=\"7 4\"").count(), 6, "the second turn through the palette");
        assert_eq!(wide.matches("stroke-width=\"2.5\"").count(), 1, "one cross");
        assert_eq!(wide.matches(" r=\"3\"").count(), 18 * 2 + 1, "the cross stands for a dot");
    }
}

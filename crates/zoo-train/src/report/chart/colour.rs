//! Colours of a chart's series in the light and the dark theme, each told apart with any colour vision.
//!
//! A drawing holds the light theme's colours, as the `color` of a group with a class: saved on its own it looks right.
//! [`theme_css`] gives the class its other colour where the page is dark.

use maud::{Markup, html};

/// One colour in the light and the dark theme.
#[derive(Clone, Copy)]
pub(super) struct Themed {
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

/// What a colour is for: the class of whatever is drawn in it.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Paint {
    /// Words, and lines that others are compared with.
    Ink,
    /// Axes and their tick marks.
    Axis,
    /// The lines across the chart, one at every tick.
    Grid,
    /// The series with this index.
    Series(usize),
}

impl Paint {
    /// The name of its class.
    pub(super) fn class(self) -> String {
        match self {
            Self::Ink => "ink".into(),
            Self::Axis => "axis".into(),
            Self::Grid => "grid".into(),
            Self::Series(index) => format!("s{index}"),
        }
    }

    /// Its colour in the light theme.
    pub(super) fn hex(self) -> String {
        hex(self.themed().light)
    }

    fn themed(self) -> Themed {
        match self {
            Self::Ink => Themed { light: 0x5B6470, dark: 0x9AA4B2 },
            Self::Axis => Themed { light: 0xB4BBC4, dark: 0x4A525E },
            Self::Grid => Themed { light: 0xE6E9ED, dark: 0x2A3039 },
            Self::Series(index) => colour(index),
        }
    }
}

/// The colour of series `index`: no two have the same. Behind the palette hues follow at the golden angle, each as
/// bright as it must be to stand out from its page.
fn colour(index: usize) -> Themed {
    if let Some(&colour) = PALETTE.get(index) {
        return colour;
    }
    let hue = (index as f64 * 0.618_034 + 0.05).fract();
    let saturation = [0.8, 0.5, 0.95][index % 3];
    let at = |lightness: f64| from_hsl(hue, saturation, lightness);
    let steps = || (0..100).map(|step| f64::from(step) / 100.0);
    let stands_out = |colour: u32, page: u32| contrast(colour, page) >= 3.1;
    let ink = Paint::Ink.themed();
    Themed {
        light: steps().rev().map(at).find(|&colour| stands_out(colour, PAGES.light)).unwrap_or(ink.light),
        // Brighter than it must be: what only just stands out from black looks dull.
        dark: steps().map(|lightness| at(lightness.max(0.6))).find(|&c| stands_out(c, PAGES.dark)).unwrap_or(ink.dark),
    }
}

/// The colour of a hue, a saturation and a lightness, each from 0 to 1.
fn from_hsl(hue: f64, saturation: f64, lightness: f64) -> u32 {
    let reach = saturation * lightness.min(1.0 - lightness);
    // Red, green and blue follow the same course around the circle of hues, a third of it apart.
    let part = |offset: f64| {
        let sector = (offset + hue * 12.0) % 12.0;
        let share = lightness - reach * (sector - 3.0).min(9.0 - sector).clamp(-1.0, 1.0);
        (share * 255.0).round() as u8
    };
    u32::from_be_bytes([0, part(0.0), part(8.0), part(4.0)])
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

fn hex(colour: u32) -> String {
    format!("#{colour:06X}")
}

/// How a series looks: colour and dashes by its index, or the muted line that others are compared with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Style {
    /// The colour of the series with this index.
    Series(usize),
    /// Grey and dashed.
    Muted,
}

impl Style {
    pub(super) fn paint(self) -> Paint {
        match self {
            Self::Series(index) => Paint::Series(index),
            Self::Muted => Paint::Ink,
        }
    }

    /// Dash and gap in pixels, for the second and third turn through the palette.
    pub(super) fn dash(self) -> Option<&'static str> {
        match self {
            Self::Series(index) => [None, Some("7 4"), Some("2 3")][index / PALETTE.len() % 3],
            Self::Muted => Some("4 3"),
        }
    }

    /// A short piece of the line, for legends and tables.
    pub(crate) fn swatch(self) -> Markup {
        let paint = self.paint();
        html! {
            svg.chart.swatch viewBox="0 0 24 10" aria-hidden="true" {
                line class=(paint.class()) color=(paint.hex()) x1="1" y1="5" x2="23" y2="5" stroke-width="3"
                    stroke="currentColor" stroke-dasharray=[self.dash()] {}
            }
        }
    }
}

/// The style sheet's part for charts of up to `series` series: what each class is drawn in where the page is dark.
pub(crate) fn theme_css(series: usize) -> String {
    let series = (0..series.max(PALETTE.len())).map(Paint::Series);
    let rules = [Paint::Ink, Paint::Axis, Paint::Grid].into_iter().chain(series);
    let rules = rules.map(|paint| format!(".chart .{}{{color:{}}}\n", paint.class(), hex(paint.themed().dark)));
    format!("@media (prefers-color-scheme:dark){{\n{}}}\n", rules.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn hues_go_around_the_circle() {
        let hues = [0.0, 1.0 / 6.0, 1.0 / 3.0, 0.5, 2.0 / 3.0, 5.0 / 6.0];
        let around = [0xFF0000, 0xFFFF00, 0x00FF00, 0x00FFFF, 0x0000FF, 0xFF00FF];
        assert_eq!(hues.map(|hue| from_hsl(hue, 1.0, 0.5)), around);
        assert_eq!([from_hsl(0.3, 0.0, 0.5), from_hsl(0.3, 0.7, 1.0)], [0x808080, 0xFFFFFF]);
    }

    #[test]
    fn every_class_has_its_dark_colour() {
        let css = theme_css(20);
        for paint in [Paint::Ink, Paint::Axis, Paint::Grid, Paint::Series(0), Paint::Series(19)] {
            assert_eq!(css.matches(&format!(".chart .{}{{color:#", paint.class())).count(), 1, "{css}");
        }
    }
}

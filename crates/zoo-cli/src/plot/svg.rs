//! The SVG picture of a laid-out outline.

use super::layout::Layout;
use super::outline::{End, Frame, Item, Layer, Outline};
use crate::info::Traced;
use crate::text::{shape, short, thousands};
use maud::{Markup, html};

/// Pixels a character of the boxes' text takes, on the average.
const CHARACTER: f64 = 6.7;
const LINE: f64 = 15.0;
const MARGIN: f64 = 24.0;
const TITLE: f64 = 58.0;

/// What a box says: its title, and smaller lines.
fn lines(layer: &Layer) -> (String, Vec<String>) {
    let name = match layer.kinds[0] {
        "Conv2d" => "Conv",
        other => other,
    };
    let title = format!("{name} {}", layer.detail.replace('x', "×")).trim_end().to_string();
    let mut small = Vec::new();
    if layer.kinds.len() > 1 {
        small.push(layer.kinds[1..].join(" · "));
    }
    if layer.parameters > 0 {
        small.push(format!("{} parameters", short(layer.parameters as u64)));
    }
    (title, small)
}

/// Small boxes are those of additions and the like, which hold no parameters.
fn joins(layer: &Layer) -> bool {
    matches!(layer.kinds[0], "Add" | "Concat" | "Scale")
}

/// Width and height of a box.
pub fn box_size(layer: &Layer) -> (f64, f64) {
    let (title, small) = lines(layer);
    let widest = small.iter().map(|line| line.chars().count() as f64 * CHARACTER * 0.88);
    let width = widest.fold(title.chars().count() as f64 * CHARACTER, f64::max) + 24.0;
    let least = if joins(layer) { 44.0 } else { 96.0 };
    (width.max(least), 12.0 + LINE * (1 + small.len()) as f64)
}

fn frame_label(frame: &Frame) -> String {
    // The last two parts of the key tell it; whole keys would make frames wide.
    let parts: Vec<&str> = frame.places.0.split('.').collect();
    let mut place = parts[parts.len().saturating_sub(2)..].join(".");
    if frame.repeat > 1 {
        let number = |place: &str| place.chars().skip_while(|c| !c.is_ascii_digit()).collect::<String>();
        place += &format!("–{}", number(frame.places.1.rsplit('.').next().unwrap_or_default()));
    }
    let repeat = if frame.repeat > 1 { format!(" × {}", frame.repeat) } else { String::new() };
    format!("{}{repeat}  {place}", frame.kind).trim().to_string()
}

/// Room that a frame's label needs.
pub fn frame_label_width(frame: &Frame) -> f64 {
    frame_label(frame).chars().count() as f64 * CHARACTER * 0.9
}

/// The class of a box, which gives its colour.
fn class(layer: &Layer) -> &'static str {
    match layer.kinds[0] {
        "Input" => "input",
        "Conv2d" => "conv",
        "Linear" => "linear",
        "Attention" => "attention",
        "MaxPool" | "AvgPool" => "pool",
        "BatchNorm" | "LayerNorm" => "norm",
        _ if joins(layer) => "join",
        _ => "other",
    }
}

const STYLE: &str = "
svg { background: #ffffff; font-family: 'Helvetica Neue', Helvetica, Arial, sans-serif; }
.title { font-size: 20px; font-weight: 600; fill: #1d2733; } .subtitle { font-size: 13px; fill: #5b6775; }
.frame { fill: #f5f7fa; stroke: #c3ccd6; } .frame .frame { fill: #eaeef3; } .stack { fill: #ffffff; stroke: #c3ccd6; }
.label { font-size: 11.5px; fill: #5b6775; font-weight: 600; }
.name { font-size: 12.5px; fill: #1d2733; text-anchor: middle; font-weight: 600; }
.small { font-size: 11px; fill: #3f4a57; text-anchor: middle; }
.edge { fill: none; stroke: #6b7785; stroke-width: 1.4; }
.skip { stroke: #d0622b; stroke-width: 1.8; }
.shape { font-size: 10.5px; fill: #5b6775; paint-order: stroke; stroke: #ffffff; stroke-width: 3px; }
.box { stroke-width: 1.2; }
.input { fill: #ffffff; stroke: #6b7785; } .conv { fill: #d9e8fb; stroke: #5b8fd0; } .linear { fill: #e7dcf7; stroke: #8f6cc4; }
.attention { fill: #fde3c8; stroke: #d79242; } .pool { fill: #d8f0dd; stroke: #57a56b; } .norm { fill: #fbf3cf; stroke: #c2a83e; }
.join { fill: #ffffff; stroke: #d0622b; } .other { fill: #eceff3; stroke: #8b96a3; }
";

/// The whole picture as an SVG file.
pub fn draw(traced: &Traced, outline: &Outline) -> String {
    let layout = Layout::new(outline, &|layer| box_size(&outline.layers[layer]));
    let Traced { name, paper, input, graph, .. } = traced;
    let subtitle = format!(
        "{} parameters · {:.2} GMACs · {input} · {paper}",
        thousands(graph.parameters() as u64),
        graph.macs() as f64 / 1e9,
    );
    let (width, height) = layout.frame(0).map_or((0.0, 0.0), |root| root.size);
    let total = (width + 2.0 * MARGIN).max(subtitle.chars().count() as f64 * 6.4 + 2.0 * MARGIN);
    let bottom = height + TITLE + 2.0 * MARGIN;
    let view = format!("0 0 {total:.0} {bottom:.0}");
    let picture = html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox=(view) width=(format!("{total:.0}")) height=(format!("{bottom:.0}"))
            role="img" aria-label=(format!("The network {name}")) {
            style { (STYLE) }
            defs {
                marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto" {
                    path d="M0 0.8 L8 4 L0 7.2 z" fill="#6b7785" {}
                }
            }
            text.title x=(MARGIN) y=(MARGIN + 14.0) { (name) }
            text.subtitle x=(MARGIN) y=(MARGIN + 36.0) { (subtitle) }
            (items(outline, &layout, 0, ((total - width) / 2.0, MARGIN + TITLE)))
        }
    };
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}\n", picture.into_string())
}

fn items(outline: &Outline, layout: &Layout, frame: usize, (x, y): (f64, f64)) -> Markup {
    let Some(placed) = layout.frame(frame) else { return html! {} };
    html! {
        @for (item, (dx, dy)) in &placed.items {
            @match item {
                Item::Layer(layer) => (layer_box(&outline.layers[*layer], (x + dx, y + dy))),
                Item::Frame(inner) => (frame_box(outline, layout, *inner, (x + dx, y + dy))),
            }
        }
        @for (edge, points) in &placed.edges {
            path.edge.skip[is_skip(outline, edge.to, points)] d=(curve(points, (x, y)))
                marker-end=[(edge.to != End::Border).then_some("url(#arrow)")] {}
        }
        @for (at, text) in shapes(outline, placed) {
            text.shape x=(px(x + at.0 + 5.0)) y=(px(y + at.1 + 13.0)) { (text) }
        }
    }
}

/// An edge that goes around something on its way to where branches meet.
fn is_skip(outline: &Outline, to: End, points: &[(f64, f64)]) -> bool {
    let meets =
        matches!(to, End::Item(Item::Layer(layer)) if matches!(outline.layers[layer].kinds[0], "Add" | "Scale"));
    meets && points.len() > 2
}

/// The shape of each tensor, written where it leaves its box; once, however many read it, and not again at a frame's
/// border.
fn shapes(outline: &Outline, placed: &super::layout::Placed) -> Vec<((f64, f64), String)> {
    let mut seen = Vec::new();
    let mut labels = Vec::new();
    for (edge, points) in &placed.edges {
        let said_elsewhere = edge.from == End::Border || edge.to == End::Border;
        if said_elsewhere || seen.contains(&(edge.from, edge.producer)) {
            continue;
        }
        seen.push((edge.from, edge.producer));
        // Behind blocks that repeat stands what the last of them gives.
        let dims = match edge.from {
            End::Item(Item::Frame(_)) => outline.shapes.get(&edge.producer),
            _ => outline.layers.get(edge.producer).map(|layer| &layer.shape),
        };
        if let (Some(&at), Some(dims)) = (points.first(), dims) {
            labels.push((at, shape(dims)));
        }
    }
    labels
}

fn layer_box(layer: &Layer, (x, y): (f64, f64)) -> Markup {
    let ((title, small), (w, h)) = (lines(layer), box_size(layer));
    let radius = if joins(layer) { h / 2.0 } else { 5.0 };
    let tip = format!(
        "{} {}\noutput {}\n{} parameters\n{} multiply-adds",
        layer.kinds.join(", "),
        layer.place,
        shape(&layer.shape),
        thousands(layer.parameters as u64),
        thousands(layer.macs)
    );
    html! {
        g {
            title { (tip) }
            rect class=(format!("box {}", class(layer))) x=(px(x)) y=(px(y)) width=(px(w)) height=(px(h)) rx=(px(radius)) {}
            text.name x=(px(x + w / 2.0)) y=(px(y + 17.0)) { (title) }
            @for (i, line) in small.iter().enumerate() {
                text.small x=(px(x + w / 2.0)) y=(px(y + 17.0 + LINE * (i + 1) as f64)) { (line) }
            }
        }
    }
}

fn frame_box(outline: &Outline, layout: &Layout, frame: usize, (x, y): (f64, f64)) -> Markup {
    let (w, h) = layout.frame(frame).map_or((0.0, 0.0), |placed| placed.size);
    let this = &outline.frames[frame];
    html! {
        @if this.repeat > 1 {
            rect.stack x=(px(x + 6.0)) y=(px(y + 6.0)) width=(px(w)) height=(px(h)) rx="8" {}
        }
        g.frame {
            rect.frame x=(px(x)) y=(px(y)) width=(px(w)) height=(px(h)) rx="8" {}
        }
        text.label x=(px(x + 10.0)) y=(px(y + 15.0)) { (frame_label(this)) }
        (items(outline, layout, frame, (x, y)))
    }
}

/// A line through the points, upright where it begins and ends.
fn curve(points: &[(f64, f64)], (dx, dy): (f64, f64)) -> String {
    let at = |&(x, y): &(f64, f64)| (x + dx, y + dy);
    let mut path = String::new();
    for (i, point) in points.iter().enumerate() {
        let (x, y) = at(point);
        match i.checked_sub(1).map(|before| at(&points[before])) {
            None => path += &format!("M{x:.1} {y:.1}"),
            Some((px, _)) if (px - x).abs() < 0.05 => path += &format!("V{y:.1}"),
            Some((px, py)) => {
                let half = (py + y) / 2.0;
                path += &format!("C{px:.1} {half:.1} {x:.1} {half:.1} {x:.1} {y:.1}");
            }
        }
    }
    path
}

fn px(value: f64) -> String {
    format!("{value:.1}")
}

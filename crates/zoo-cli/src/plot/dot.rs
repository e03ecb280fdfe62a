//! The outline in Graphviz's language, with blocks as clusters.

use super::outline::{Edge, End};
use super::outline::{Item, Layer, Outline};
use crate::info::Traced;
use crate::text::{shape, short};

/// The whole outline as a `digraph`.
pub fn write(traced: &Traced, outline: &Outline) -> String {
    let mut text = format!("digraph {} {{\n", quoted(traced.name));
    text += "  node [shape=box, style=\"rounded,filled\", fillcolor=white, fontname=Helvetica];\n";
    text += "  edge [fontname=Helvetica, fontsize=10];\n";
    frame(outline, 0, 1, &mut text);
    edges(outline, &mut text);
    text + "}\n"
}

fn frame(outline: &Outline, index: usize, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    for item in &outline.frames[index].items {
        match *item {
            Item::Layer(layer) => {
                *text += &format!("{indent}n{layer} [label={}];\n", quoted(&label(&outline.layers[layer])));
            }
            Item::Frame(inner) => {
                let this = &outline.frames[inner];
                let repeat = if this.repeat > 1 { format!(" × {}", this.repeat) } else { String::new() };
                let title = format!("{} {}{repeat}", this.kind, this.places.0);
                *text += &format!("{indent}subgraph cluster_{inner} {{\n{indent}  label={};\n", quoted(&title));
                frame(outline, inner, depth + 1, text);
                *text += &format!("{indent}}}\n");
            }
        }
    }
}

fn label(layer: &Layer) -> String {
    let mut label = format!("{} {}", layer.kinds.join(", "), layer.detail).trim_end().to_string();
    if layer.parameters > 0 {
        label += &format!("\n{} parameters", short(layer.parameters as u64));
    }
    label
}

/// From box to box: the parts of a way through borders are put together again at the box where it ends.
fn edges(outline: &Outline, text: &mut String) {
    for frame in &outline.frames {
        for Edge { to, producer, .. } in &frame.edges {
            if let End::Item(Item::Layer(layer)) = to {
                let dims = outline.shapes.get(producer).map(|dims| shape(dims)).unwrap_or_default();
                *text += &format!("  n{producer} -> n{layer} [label={}];\n", quoted(&dims));
            }
        }
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_edge_ends_at_a_box_that_is_there() {
        let traced = Traced::new("cifar_resnet20", None, None).unwrap();
        let text = write(&traced, &Outline::new(&traced.graph, true));
        let declared = |n: &str| text.contains(&format!("{n} [label="));
        let arrows: Vec<_> = text.lines().filter_map(|line| line.trim().split_once(" -> ")).collect();
        assert!(arrows.len() > 20, "{text}");
        for (from, to) in arrows {
            let to = to.split(' ').next().unwrap();
            assert!(declared(from) && declared(to), "{from} -> {to}");
        }
        assert!(text.contains("Block layer1.0 × 3"), "{text}");
    }
}

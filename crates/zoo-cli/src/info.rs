//! `zoo info`: a network layer by layer.

use crate::network::no_image_options;
use crate::text::{shape, thousands, until_closed};
use anyhow::{Context, Result, ensure};
use std::io::{self, Write};
use std::str::FromStr;
use zoo::{ModelInfo, ModelOptions, VarStore};
use zoo_core::Preprocess;
use zoo_core::trace::{Graph, Node};

/// Arguments of `info`.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the network, see `zoo list`
    model: String,
    /// Shape of the image as CHANNELSxHEIGHTxWIDTH, such as 3x224x224. Default: the network's own
    #[arg(long)]
    image: Option<Image>,
    /// Number of classes. Default: the network's own (10 or 1000)
    #[arg(long)]
    classes: Option<usize>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// The shape of an image: 3x224x224.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image(pub usize, pub usize, pub usize);

impl FromStr for Image {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let sizes: Vec<usize> = text.split('x').map(str::parse).collect::<Result<_, _>>().unwrap_or_default();
        match sizes[..] {
            [c, h, w] if sizes.iter().all(|size| (1..=100_000).contains(size)) => Ok(Self(c, h, w)),
            _ => anyhow::bail!("wants CHANNELSxHEIGHTxWIDTH such as 3x224x224, each from 1 to 100,000, got `{text}`"),
        }
    }
}

/// A registered network and its graph on one image, or on one pair of sequences.
pub struct Traced {
    /// Its name.
    pub name: &'static str,
    /// Authors, year and arXiv id.
    pub paper: &'static str,
    /// Whose checkpoint keys it speaks.
    pub keys: &'static str,
    /// What it is shown, for people: `3×224×224`.
    pub input: String,
    /// The image's shape and how a photograph becomes one; a network on sequences has none.
    pub image: Option<(Image, Preprocess)>,
    /// The graph.
    pub graph: Graph,
}

/// Length of the two sequences that a sequence model is traced on.
const SEQUENCE: usize = 32;

impl Traced {
    /// Traces the network called `model`.
    ///
    /// # Errors
    /// No such network, or an image that it cannot take.
    pub fn new(model: &str, image: Option<Image>, classes: Option<usize>) -> Result<Self> {
        if let Some(info) = zoo::sequence_models().find(|info| info.name == model) {
            no_image_options(model, image.is_some() || classes.is_some())?;
            let net = (info.builder)(VarStore::shapes_only().root())?;
            let shape = [1, SEQUENCE, info.d_model];
            let graph = Graph::of(&[&shape, &shape], |inputs| net.forward_t(&inputs[0], &inputs[1], false))?;
            let input = format!("two sequences of {SEQUENCE}×{}", info.d_model);
            return Ok(Self { name: info.name, paper: info.paper, keys: info.keys, input, image: None, graph });
        }
        let info = zoo::find(model)?;
        let image = image.unwrap_or(Image(3, info.preprocess.size, info.preprocess.size));
        let Image(c, h, w) = image;
        let options = ModelOptions {
            num_classes: classes,
            in_chans: Some(c),
            image_size: (h == w).then_some(h),
            ..ModelOptions::default()
        };
        let net = info.build(&options, VarStore::shapes_only().root())?;
        let graph = Graph::of_model(net.as_ref(), (c, h, w))
            .with_context(|| format!("{model} cannot take an image of {c}x{h}x{w}"))?;
        ensure!(graph.nodes.len() > 1, "{model} has no layer");
        let ModelInfo { name, paper, keys, preprocess, .. } = *info;
        Ok(Self { name, paper, keys, input: format!("{c}×{h}×{w}"), image: Some((image, preprocess)), graph })
    }
}

/// Prints the table.
pub fn run(args: &Args) -> Result<()> {
    let traced = Traced::new(&args.model, args.image, args.classes)?;
    let mut out = io::stdout().lock();
    until_closed(if args.json { writeln!(out, "{}", json(&traced)) } else { print(&traced, &mut out) })
}

/// A layer's key; a step without tensors goes by its block's.
fn name<'a>(graph: &'a Graph, node: &'a Node) -> &'a str {
    match node.block {
        Some(block) if node.path.is_empty() => &graph.blocks[block].path,
        _ => &node.path,
    }
}

fn json(traced: &Traced) -> serde_json::Value {
    let Traced { name: model, paper, keys, image, graph, .. } = traced;
    let layers = graph.nodes.iter().map(|node| {
        serde_json::json!({
            "name": name(graph, node), "kind": node.kind(), "detail": node.step.detail(), "output": node.shape,
            "parameters": node.parameters, "macs": node.macs, "inputs": node.inputs,
            "operation": node.operation,
        })
    });
    serde_json::json!({
        "model": model,
        "paper": paper,
        "keys": keys,
        "image": image.map(|(Image(c, h, w), _)| [c, h, w]),
        "parameters": graph.parameters(),
        "macs": graph.macs(),
        "gmacs": graph.macs() as f64 / 1e9,
        "input": image.map(|(_, input)| serde_json::json!({
            "size": input.size, "mean": input.mean, "std": input.std, "crop": input.crop,
            "interpolation": format!("{:?}", input.interpolation).to_lowercase(),
        })),
        "layers": layers.collect::<Vec<_>>(),
    })
}

fn print(traced: &Traced, out: &mut impl Write) -> io::Result<()> {
    let Traced { name: model, paper, keys, input, graph, .. } = traced;
    writeln!(out, "{model}  {paper}")?;
    writeln!(
        out,
        "{} parameters, {:.2} GMACs on {input}, keys: {keys}",
        thousands(graph.parameters() as u64),
        graph.macs() as f64 / 1e9,
    )?;
    // A step that is no operation of its own is marked.
    let kind = |(i, node): (usize, &Node)| {
        let mark = if node.operation < i { "+ " } else { "" };
        format!("{mark}{} {}", node.kind(), node.step.detail()).trim_end().to_string()
    };
    let names = graph.nodes.iter().map(|node| name(graph, node).chars().count()).max().unwrap_or(0).max(4);
    let kinds = graph.nodes.iter().enumerate().map(|node| kind(node).chars().count()).max().unwrap_or(0).max(4);
    writeln!(out, "\n{:names$}  {:kinds$}  {:>13}  {:>12}  {:>15}", "name", "kind", "output", "parameters", "MACs")?;
    for (i, node) in graph.nodes.iter().enumerate() {
        let number = |n: u64| if n == 0 { String::new() } else { thousands(n) };
        let line = format!(
            "{:names$}  {:kinds$}  {:>13}  {:>12}  {:>15}",
            name(graph, node),
            kind((i, node)),
            shape(&node.shape),
            number(node.parameters as u64),
            number(node.macs)
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    if graph.nodes.iter().enumerate().any(|(i, node)| node.operation < i) {
        writeln!(out, "\n+ runs in one operation with the step above")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_sums_up() {
        let traced = Traced::new("cifar_resnet20", None, None).unwrap();
        let object = json(&traced);
        assert_eq!((&object["parameters"], &object["macs"]), (&269_722.into(), &40_551_040u64.into()));
        let mut text = Vec::new();
        print(&traced, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("269,722 parameters, 0.04 GMACs on 3×32×32"), "{text}");
        assert!(text.lines().any(|l| l.starts_with("layer2.0.conv1") && l.contains("3x3, stride 2")), "{text}");
        // The norm, and the sum with its ReLU, are part of the convolution's operation.
        let fused = |name: &str, kind: &str| text.lines().any(|l| l.starts_with(name) && l.contains(kind));
        assert!(fused("layer2.0.bn1", "+ BatchNorm") && fused("layer2.0 ", "+ Add"), "{text}");
        assert!(fused("layer2.0.conv1", "  Conv2d") && text.ends_with("with the step above\n"), "{text}");
    }

    #[test]
    fn images_and_classes_are_followed() {
        let traced = Traced::new("cifar_resnet20", Some(Image(1, 40, 24)), Some(7)).unwrap();
        assert_eq!(traced.graph.nodes.last().unwrap().shape, [1, 7]);
        assert_eq!(traced.graph.nodes[1].shape, [1, 16, 40, 24]);
    }

    #[test]
    fn an_image_is_three_numbers() {
        assert_eq!("3x32x40".parse::<Image>().unwrap(), Image(3, 32, 40));
        for wrong in ["", "3x32", "3x32x", "3x0x32", "3x32x32x32", "axbxc"] {
            assert!(wrong.parse::<Image>().unwrap_err().to_string().contains("3x224x224"), "{wrong}");
        }
    }
}

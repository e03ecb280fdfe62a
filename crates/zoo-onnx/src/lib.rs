//! The zoo's networks as [ONNX](https://onnx.ai) files: what ONNX Runtime, OpenVINO, TensorRT, browsers and phones run.
//!
//! A network is traced ([`Graph`]), and every step is written as the standard's operators, opset 17, in f32. The number of
//! images stays open, and so do the lengths of sequences; the size of images is that of the trace. Norms, activations and attention are written as they are
//! computed, and each engine fuses them as it likes.
//!
//! ```
//! use candle_core::{DType, Device};
//! use zoo_core::{Preprocess, VarStore, trace::Graph};
//! let store = VarStore::new(0, DType::F32, &Device::Cpu);
//! let options = zoo::ModelOptions { num_classes: Some(2), ..Default::default() };
//! let net = zoo::find("cifar_resnet20").unwrap().build(&options, store.root())?;
//! let graph = Graph::of_model(net.as_ref(), (3, 32, 32))?;
//! let options = zoo_onnx::Options {
//!     classes: vec!["cat".into(), "dog".into()],
//!     preprocess: Some(Preprocess::CIFAR10),
//!     ..zoo_onnx::Options::new("cifar_resnet20")
//! };
//! let file = zoo_onnx::to_bytes(&graph, &store, &options)?;
//! assert!(file.len() > 4 * store.parameter_count());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What a file holds
//!
//! | | |
//! |---|---|
//! | input `images` | (batch, channels, height, width), f32, normalised |
//! | or `pixels` | (batch, height, width, 3), u8, red first, as pictures are decoded: with [`Options::pixels`] |
//! | output `logits` | (batch, classes), f32 |
//! | inputs `source`, `target` | of an encoder and decoder: (batch, length, width), f32, embedded; no mask, any lengths |
//! | output `output` | (batch, length of the target, width), f32 |
//! | metadata | `model`; `classes`, a JSON list; `preprocess`, a JSON object: see [`Options::preprocess`] |
#![deny(missing_docs)]

mod builder;
mod proto;
mod steps;

use builder::Builder;
use prost::Message;
use proto::{AttributeProto, FLOAT, ModelProto, OperatorSetId, StringStringEntry, UINT8, ValueInfo};
use steps::Traced;
use zoo_core::trace::{Graph, Step};
use zoo_core::{ChannelOrder, Preprocess, VarStore};

/// Why a network cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A step that opset 17 has no operator for.
    #[error("{step} ({kind}): {why}")]
    NoOperator {
        /// Where it stands.
        step: String,
        /// What it is.
        kind: &'static str,
        /// What is in the way.
        why: String,
    },
    /// The store holds no values under a key that the graph names.
    #[error("the store holds no tensor `{0}`: is it that of the network that was traced, with its weights?")]
    NoTensor(String),
    /// The graph is neither that of an image classifier nor that of an encoder with a decoder.
    #[error("{0}")]
    Shape(String),
    /// The standard keeps one file below 2 GiB.
    #[error("its tensors take {0:.1} GiB, and an ONNX file holds less than 2")]
    TooLarge(f64),
    /// A tensor could not be read.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// What goes into the file beside the network.
#[derive(Debug, Clone)]
pub struct Options {
    /// The network's name.
    pub name: String,
    /// What the classes are called, in the order of the logits; none if that is not known.
    pub classes: Vec<String>,
    /// How a photograph becomes an image. It stands in the metadata as JSON: `size`, `crop`, `crop_mode`, `interpolation`,
    /// `mean`, `std` and `channel_order`, the words those of the `zoo` command.
    pub preprocess: Option<Preprocess>,
    /// Whether the network reads bytes as pictures have them, and normalises them itself as `preprocess` says. Cutting a
    /// photograph to the network's size is left to the caller.
    pub pixels: bool,
}

impl Options {
    /// A network of this name, about which nothing else is known.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), classes: Vec::new(), preprocess: None, pixels: false }
    }
}

/// A traced network as an ONNX file, with the weights of the `store` that it was built in.
///
/// # Errors
/// A step that the standard has no operator for, a graph of another network than the store's, and tensors of 2 GiB and
/// more.
pub fn to_bytes(graph: &Graph, store: &VarStore, options: &Options) -> Result<Vec<u8>, Error> {
    let mut to = Builder::new(&options.name, store);
    let Ends { mut given, inputs, output } = Ends::of(&mut to, graph, options)?;
    let mut values = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        if node.step == Step::Input {
            values.push(given.pop().unwrap_or_default());
            continue;
        }
        let read: Vec<&str> = node.inputs.iter().map(|&i: &usize| String::as_str(&values[i])).collect();
        let value = steps::write(&mut to, &Traced::new(graph, node), &read)?;
        values.push(value);
    }
    if to.size >= 1 << 31 {
        return Err(Error::TooLarge(to.size as f64 / f64::from(1 << 30)));
    }
    let value = values.last().map_or("", String::as_str);
    to.op_named("Identity", value, &output.name);
    to.graph.input = inputs;
    to.graph.output.push(output);
    let file = ModelProto {
        ir_version: proto::IR_VERSION,
        producer_name: "candle-zoo".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(to.graph),
        opset_import: vec![OperatorSetId { domain: String::new(), version: proto::OPSET }],
        metadata_props: metadata(options),
    };
    Ok(file.encode_to_vec())
}

/// What a file reads and gives.
struct Ends {
    /// The values of the graph's inputs, the last first.
    given: Vec<String>,
    inputs: Vec<ValueInfo>,
    output: ValueInfo,
}

impl Ends {
    fn of(to: &mut Builder, graph: &Graph, options: &Options) -> Result<Self, Error> {
        let inputs = graph.nodes.iter().filter(|node| node.step == Step::Input).map(|node| node.shape.as_slice());
        let last = graph.nodes.last().map_or(&[][..], |node| &node.shape);
        match inputs.collect::<Vec<_>>()[..] {
            [&[_, channels, height, width]] => Self::of_images(to, [channels, height, width], &last[1..], options),
            [&[_, _, source], &[_, _, target]] if last.len() == 3 && !options.pixels => {
                let [from, into] = [("source", source), ("target", target)].map(|(name, width)| {
                    let length = format!("{name}_length");
                    (to.name(name), ValueInfo::of(name, FLOAT, &["batch", &length], &[width]))
                });
                let output = ValueInfo::of(&to.name("output"), FLOAT, &["batch", "target_length"], &last[2..]);
                Ok(Self { given: vec![into.0, from.0], inputs: vec![from.1, into.1], output })
            }
            ref shapes => Err(Error::Shape(format!(
                "images (b, c, h, w), or a source and a target (b, n, d) are what can be read, and the network reads {shapes:?}"
            ))),
        }
    }

    fn of_images(to: &mut Builder, shape: [usize; 3], logits: &[usize], options: &Options) -> Result<Self, Error> {
        let [channels, height, width] = shape;
        let output = ValueInfo::of_batch(&to.name("logits"), FLOAT, logits);
        let (input, images) = if options.pixels {
            if channels != 3 {
                let problem = format!("pixels have three colours, and the network reads {channels} channels");
                return Err(Error::Shape(problem));
            }
            let preprocess = options.preprocess.unwrap_or(Preprocess::IMAGENET);
            let pixels = to.name("pixels");
            let images = from_pixels(to, &pixels, &preprocess);
            (ValueInfo::of_batch(&pixels, UINT8, &[height, width, 3]), images)
        } else {
            let images = to.name("images");
            (ValueInfo::of_batch(&images, FLOAT, &shape), images)
        };
        Ok(Self { given: vec![images], inputs: vec![input], output })
    }
}

/// From bytes, (b, h, w, 3), to normalised images, (b, 3, h, w): ((x / 255) - mean) / std.
fn from_pixels(to: &mut Builder, pixels: &str, preprocess: &Preprocess) -> String {
    let cast = AttributeProto::int("to", i64::from(FLOAT));
    let numbers = to.op(("Cast", "pixels.numbers"), &[pixels], [cast]);
    let mut maps = to.op(("Transpose", "pixels.maps"), &[&numbers], [AttributeProto::ints("perm", [0, 3, 1, 2])]);
    if preprocess.channel_order == ChannelOrder::Bgr {
        let order = to.whole_numbers("pixels.order", &[2, 1, 0]);
        maps = to.op(("Gather", "pixels.blue_first"), &[&maps, &order], [AttributeProto::int("axis", 1)]);
    }
    let Preprocess { mean, std, .. } = preprocess;
    let shift = std::array::from_fn(|i| -mean[i] / std[i]);
    steps::channels(to, "pixels.normalized", &maps, std.map(|std| 1.0 / (255.0 * std)), shift)
}

fn metadata(options: &Options) -> Vec<StringStringEntry> {
    let entry = |key: &str, value: String| StringStringEntry { key: key.into(), value };
    let mut entries = vec![entry("model", options.name.clone())];
    if !options.classes.is_empty() {
        entries.push(entry("classes", serde_json::json!(options.classes).to_string()));
    }
    if let Some(preprocess) = &options.preprocess {
        let json = serde_json::json!({
            "size": preprocess.size,
            "crop": preprocess.crop,
            "crop_mode": if preprocess.squash { "squash" } else { "center" },
            "interpolation": preprocess.interpolation.name(),
            "mean": preprocess.mean,
            "std": preprocess.std,
            "channel_order": match preprocess.channel_order {
                ChannelOrder::Rgb => "rgb",
                ChannelOrder::Bgr => "bgr",
            },
        });
        entries.push(entry("preprocess", json.to_string()));
    }
    entries
}

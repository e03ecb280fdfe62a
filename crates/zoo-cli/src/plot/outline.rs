//! What of a graph is drawn: boxes for layers, frames for blocks, and which reads which.

use std::collections::{BTreeMap, BTreeSet};
use zoo_core::trace::{Graph, Node};

/// Kinds that are written into the box of the layer before them, if that layer feeds nothing else.
const FOLLOWERS: [&str; 12] = [
    "BatchNorm",
    "ReLU",
    "ReLU6",
    "LeakyReLU",
    "GELU",
    "SiLU",
    "Sigmoid",
    "Tanh",
    "HardSigmoid",
    "HardSwish",
    "Dropout",
    "Tokens",
];

/// A box: one layer, with the normalisation and activation that follow it.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Where the network keeps it.
    pub place: String,
    /// Its kind and, behind it, what follows.
    pub kinds: Vec<&'static str>,
    /// What distinguishes it among its kind.
    pub detail: String,
    /// Trainable elements.
    pub parameters: usize,
    /// Multiply-adds.
    pub macs: u64,
    /// Shape of the output, batch first.
    pub shape: Vec<usize>,
}

/// A frame: a block with what is in it. The root frame holds the whole network.
#[derive(Debug, Clone, Default)]
pub struct Frame {
    /// `Bottleneck`, …; empty for the root.
    pub kind: &'static str,
    /// Places of the first and the last of the blocks that it stands for.
    pub places: (String, String),
    /// How many blocks in a row it stands for.
    pub repeat: usize,
    /// Boxes and frames in it, in the order in which they run.
    pub items: Vec<Item>,
    /// Between its items and its border.
    pub edges: Vec<Edge>,
}

/// A box or a frame, by index into [`Outline`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// A box.
    Layer(usize),
    /// A frame.
    Frame(usize),
}

/// One end of an edge inside a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// An item of the frame.
    Item(Item),
    /// The frame's own border: what comes in at the top or leaves at the bottom.
    Border,
}

/// A tensor on its way from one item of a frame to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    /// Where it comes from.
    pub from: End,
    /// Where it goes.
    pub to: End,
    /// The box that made the tensor, wherever that stands.
    pub producer: usize,
}

/// Everything that is drawn.
#[derive(Debug, Clone, Default)]
pub struct Outline {
    /// All boxes.
    pub layers: Vec<Layer>,
    /// All frames; the first is the root.
    pub frames: Vec<Frame>,
    /// The shape that leaves each box: of the last of its repetitions.
    pub shapes: BTreeMap<usize, Vec<usize>>,
}

/// The tree of blocks before folding: boxes by index, frames by index.
struct Tree {
    parent_of_frame: Vec<usize>,
    frame_of_layer: Vec<usize>,
}

impl Tree {
    /// The frames around an item, innermost first, ending with the root.
    fn around(&self, frame: usize) -> Vec<usize> {
        let mut chain = vec![frame];
        while let Some(&last) = chain.last().filter(|&&f| f != 0) {
            chain.push(self.parent_of_frame[last]);
        }
        chain
    }
}

impl Outline {
    /// The outline of `graph`; with `fold`, blocks in a row that are built alike become one.
    pub fn new(graph: &Graph, fold: bool) -> Self {
        let (mut outline, layer_of_node, tree) = boxes_and_frames(graph);
        let mut links: BTreeSet<(usize, usize)> = BTreeSet::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            let to = layer_of_node[i];
            links.extend(node.inputs.iter().map(|&input| (layer_of_node[input], to)).filter(|(from, to)| from != to));
        }
        let mut stands_for: Vec<usize> = (0..outline.layers.len()).collect();
        if fold {
            outline.fold(0, &mut links, &mut stands_for);
        }
        for (layer, &first) in stands_for.iter().enumerate() {
            outline.shapes.insert(first, outline.layers[layer].shape.clone());
        }
        let links: BTreeSet<_> = links.iter().map(|&(a, b)| (stands_for[a], stands_for[b])).collect();
        for (from, to) in links {
            outline.connect(&tree, from, to);
        }
        outline
    }

    /// Boxes under an item, in order.
    pub fn layers_under(&self, item: Item) -> Vec<usize> {
        match item {
            Item::Layer(layer) => vec![layer],
            Item::Frame(frame) => self.frames[frame].items.iter().flat_map(|&item| self.layers_under(item)).collect(),
        }
    }

    /// What makes two blocks alike: their layers with the widths that weights fix, and how they are connected. Widths
    /// that are handed through may differ, as they do along a dense block.
    fn signature(&self, frame: usize, links: &BTreeSet<(usize, usize)>) -> (Vec<String>, Vec<(usize, usize)>) {
        let layers = self.layers_under(Item::Frame(frame));
        let index: BTreeMap<usize, usize> = layers.iter().enumerate().map(|(i, &layer)| (layer, i)).collect();
        let describe = |&layer: &usize| {
            let Layer { kinds, detail, shape, .. } = &self.layers[layer];
            let own = matches!(kinds[0], "Conv2d" | "Linear" | "Attention");
            let shape = if own { &shape[1..] } else { shape.get(2..).unwrap_or_default() };
            let detail = if kinds[0] == "Linear" || own { detail.as_str() } else { "" };
            format!("{kinds:?} {detail} {shape:?}")
        };
        let inner = links.iter().filter_map(|(a, b)| Some((*index.get(a)?, *index.get(b)?)));
        (layers.iter().map(describe).collect(), inner.collect())
    }

    /// Puts the first of several equal blocks in a row in the place of all, in this frame and in those it keeps.
    fn fold(&mut self, frame: usize, links: &mut BTreeSet<(usize, usize)>, stands_for: &mut [usize]) {
        let items = std::mem::take(&mut self.frames[frame].items);
        let mut kept: Vec<Item> = Vec::with_capacity(items.len());
        let mut last_signature = None;
        for item in items {
            let Item::Frame(this) = item else {
                last_signature = None;
                kept.push(item);
                continue;
            };
            let signature = Some((self.frames[this].kind, self.signature(this, links)));
            match kept.last() {
                Some(&Item::Frame(first)) if signature == last_signature => {
                    let (firsts, these) = (self.layers_under(Item::Frame(first)), self.layers_under(item));
                    let before: BTreeSet<usize> = stands_for
                        .iter()
                        .enumerate()
                        .filter(|(_, stands)| firsts.contains(stands))
                        .map(|(layer, _)| layer)
                        .collect();
                    // From one repetition to the next: inside the one block that is drawn there is no such way.
                    links.retain(|(a, b)| !(before.contains(a) && these.contains(b)));
                    for (&first, &this) in firsts.iter().zip(&these) {
                        stands_for[this] = first;
                    }
                    let place = self.frames[this].places.1.clone();
                    self.frames[first].repeat += 1;
                    self.frames[first].places.1 = place;
                }
                _ => {
                    last_signature = signature;
                    kept.push(item);
                }
            }
        }
        for &item in &kept {
            if let Item::Frame(inner) = item {
                self.fold(inner, links, stands_for);
            }
        }
        self.frames[frame].items = kept;
    }

    /// Draws the way from box to box through the borders of the frames between them.
    fn connect(&mut self, tree: &Tree, from: usize, to: usize) {
        let (mut up, mut down) = (tree.around(tree.frame_of_layer[from]), tree.around(tree.frame_of_layer[to]));
        // The innermost frame around both stays the last of each.
        while up.len() > 1 && down.len() > 1 && up[up.len() - 2] == down[down.len() - 2] {
            up.pop();
            down.pop();
        }
        let mut add = |frame: usize, from: End, to: End, producer: usize| {
            let edge = Edge { from, to, producer };
            let edges = &mut self.frames[frame].edges;
            if !edges.contains(&edge) {
                edges.push(edge);
            }
        };
        let mut source = Item::Layer(from);
        for &frame in &up[..up.len() - 1] {
            add(frame, End::Item(source), End::Border, from);
            source = Item::Frame(frame);
        }
        let mut target = Item::Layer(to);
        for &frame in &down[..down.len() - 1] {
            add(frame, End::Border, End::Item(target), from);
            target = Item::Frame(frame);
        }
        add(up[up.len() - 1], End::Item(source), End::Item(target), from);
    }
}

fn boxes_and_frames(graph: &Graph) -> (Outline, Vec<usize>, Tree) {
    let mut readers = vec![0; graph.nodes.len()];
    graph.nodes.iter().flat_map(|node| &node.inputs).for_each(|&input| readers[input] += 1);

    let root = Frame { repeat: 1, ..Frame::default() };
    let frames = graph.blocks.iter().map(|block| Frame {
        kind: block.kind,
        places: (block.path.clone(), block.path.clone()),
        repeat: 1,
        ..Frame::default()
    });
    let mut outline = Outline { frames: std::iter::once(root).chain(frames).collect(), ..Outline::default() };
    let parent = |block: Option<usize>| block.map_or(0, |block| block + 1);
    let parents = graph.blocks.iter().map(|block| parent(block.parent));
    let mut tree = Tree { parent_of_frame: std::iter::once(0).chain(parents).collect(), frame_of_layer: Vec::new() };

    let mut layer_of_node: Vec<usize> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        if let Some(layer) = follows(graph, node, &readers, &layer_of_node) {
            let layer = {
                layer_of_node.push(layer);
                &mut outline.layers[layer]
            };
            layer.kinds.push(node.kind());
            layer.parameters += node.parameters;
            layer.macs += node.macs;
            layer.shape.clone_from(&node.shape);
            continue;
        }
        let layer = outline.layers.len();
        layer_of_node.push(layer);
        outline.layers.push(Layer {
            place: node.path.clone(),
            kinds: vec![node.kind()],
            detail: node.step.detail(),
            parameters: node.parameters,
            macs: node.macs,
            shape: node.shape.clone(),
        });
        // The frames around it stand in their parents from their first layer on.
        let mut item = Item::Layer(layer);
        let mut frame = parent(node.block);
        tree.frame_of_layer.push(frame);
        loop {
            if outline.frames[frame].items.contains(&item) {
                break;
            }
            outline.frames[frame].items.push(item);
            if frame == 0 {
                break;
            }
            item = Item::Frame(frame);
            frame = tree.parent_of_frame[frame];
        }
    }
    (outline, layer_of_node, tree)
}

/// The box that a node is written into, if it only changes what one layer of its block made for it alone.
fn follows(graph: &Graph, node: &Node, readers: &[usize], layer_of_node: &[usize]) -> Option<usize> {
    let &[input] = node.inputs.as_slice() else { return None };
    let before = &graph.nodes[input];
    let alone = readers[input] == 1 && before.block == node.block && before.kind() != "Input";
    (alone && FOLLOWERS.contains(&node.kind())).then(|| layer_of_node[input])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::info::Traced;

    fn outline(model: &str, fold: bool) -> Outline {
        Outline::new(&Traced::new(model, None, None).unwrap().graph, fold)
    }

    #[test]
    fn equal_blocks_fold_and_the_first_of_a_stage_stays() {
        let folded = outline("cifar_resnet56", true);
        let root = &folded.frames[0];
        let repeats: Vec<usize> = root
            .items
            .iter()
            .filter_map(|item| match item {
                Item::Frame(frame) => Some(folded.frames[*frame].repeat),
                Item::Layer(_) => None,
            })
            .collect();
        // The first stage keeps its width; the other two begin with a block that halves the map.
        assert_eq!(repeats, [9, 1, 8, 1, 8]);
        let open = outline("cifar_resnet56", false);
        assert_eq!(open.frames[0].items.iter().filter(|item| matches!(item, Item::Frame(_))).count(), 27);
    }

    #[test]
    fn a_shortcut_is_an_edge_from_the_border_to_the_addition() {
        let folded = outline("cifar_resnet20", true);
        let frame = &folded.frames[1];
        let is_add = |end: End| matches!(end, End::Item(Item::Layer(l)) if folded.layers[l].kinds[0] == "Add");
        assert!(frame.edges.iter().any(|e| e.from == End::Border && is_add(e.to)), "{:?}", frame.edges);
    }

    #[test]
    fn norm_and_activation_go_into_the_layers_box() {
        let folded = outline("cifar_vgg16_bn", true);
        assert!(folded.layers.iter().any(|layer| layer.kinds == ["Conv2d", "BatchNorm", "ReLU"]));
        assert!(!folded.layers.iter().any(|layer| layer.kinds[0] == "BatchNorm"));
    }

    /// Whatever is folded, every box but the input is reached.
    #[test]
    fn everything_is_connected() {
        for info in zoo::all() {
            for fold in [false, true] {
                let outline = outline(info.name, fold);
                let mut drawn = vec![0];
                while let Some(i) = drawn.pop() {
                    let frame = &outline.frames[i];
                    drawn.extend(frame.items.iter().filter_map(|item| match item {
                        Item::Frame(inner) => Some(*inner),
                        Item::Layer(_) => None,
                    }));
                    for &item in &frame.items {
                        let is_input = matches!(item, Item::Layer(l) if outline.layers[l].kinds[0] == "Input");
                        let reached = frame.edges.iter().any(|e| e.to == End::Item(item));
                        assert!(is_input || reached, "{}: {item:?} of frame {i} is read by nothing", info.name);
                    }
                }
            }
        }
    }
}

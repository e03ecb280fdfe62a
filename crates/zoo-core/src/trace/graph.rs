//! The graph of a forward pass, and who writes it down: plain data.

use super::step::Step;
use candle_core::{Tensor, TensorId};
use std::collections::{HashMap, HashSet};

/// One step of a forward pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The key that the layer's tensors begin with, for example `layer1.0.conv1`; empty for a step without tensors.
    pub path: String,
    /// What it computes.
    pub step: Step,
    /// The nodes whose outputs it reads, by index.
    pub inputs: Vec<usize>,
    /// Shape of the output, batch first.
    pub shape: Vec<usize>,
    /// Trainable elements that no earlier node counted.
    pub parameters: usize,
    /// Multiply-adds.
    pub macs: u64,
    /// The innermost block it runs in, by index.
    pub block: Option<usize>,
    /// The first node of the fused operation that it runs in; its own number where it runs alone.
    pub operation: usize,
    /// How many tensors of the output's size a training step keeps for its backward pass: 0 for a step inside a fused
    /// operation that never makes the tensor, 2 where candle's own graph starts from a copy.
    pub kept: usize,
    /// The same in mixed precision.
    pub kept_mixed: usize,
}

impl Node {
    /// Elements of the output.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// `Conv2d`, `ReLU`, `Add`, …
    pub fn kind(&self) -> &'static str {
        self.step.kind()
    }
}

/// A named group of steps: one residual block, one stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The key that the block's tensors begin with.
    pub path: String,
    /// For example `Bottleneck`.
    pub kind: &'static str,
    /// The block around it, by index.
    pub parent: Option<usize>,
}

/// What one forward pass does, step by step. The first nodes are the inputs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Graph {
    /// The steps, in the order in which they ran.
    pub nodes: Vec<Node>,
    /// The blocks, in the order in which they began.
    pub blocks: Vec<Block>,
}

impl Graph {
    /// Trainable elements of all nodes.
    pub fn parameters(&self) -> usize {
        self.nodes.iter().map(|node| node.parameters).sum()
    }

    /// Multiply-adds of all nodes: convolutions, linear layers and matrix products, as the published figures count them
    /// (FLOPs = 2 · MACs). Normalisation, activations and pooling are not counted.
    pub fn macs(&self) -> u64 {
        self.nodes.iter().map(|node| node.macs).sum()
    }
}

/// Who looks on while a pass runs, and writes its graph down.
#[derive(Debug, Default)]
pub(crate) struct Tracer {
    pub graph: Graph,
    pub known: HashMap<TensorId, usize>,
    /// Weights whose elements a node has counted.
    pub counted: HashSet<TensorId>,
    /// The blocks that are open, innermost last.
    pub blocks: Vec<usize>,
    /// Multiply-adds of the layer that is running.
    pub macs: u64,
    /// Whether the layer that is running goes through candle's own graph.
    pub foreign: bool,
    /// Inside a layer: its own steps are not listed.
    pub inside: bool,
    /// Whether values are computed, and looked at.
    pub values: bool,
    /// Whether those of the last node are not finite.
    pub not_finite: bool,
}

impl Tracer {
    /// Lists an input of the pass.
    pub fn input(&mut self, xs: &Tensor) {
        self.list(Step::Input, "", &[], &[], xs);
    }

    /// Lists a step, unless it returns what is known already.
    pub fn list(&mut self, step: Step, path: &str, weights: &[Option<&Tensor>], inputs: &[&Tensor], output: &Tensor) {
        if self.known.contains_key(&output.id()) {
            return;
        }
        let own = weights.iter().flatten().filter(|w| self.counted.insert(w.id()));
        let parameters = own.map(|w| w.elem_count()).sum();
        let inputs = inputs.iter().filter_map(|xs| self.known.get(&xs.id()).copied()).collect();
        self.known.insert(output.id(), self.graph.nodes.len());
        self.graph.nodes.push(Node {
            path: path.to_string(),
            step,
            inputs,
            shape: output.dims().to_vec(),
            parameters,
            macs: self.macs,
            block: self.blocks.last().copied(),
            operation: self.graph.nodes.len(),
            kept: 1 + usize::from(self.foreign),
            kept_mixed: 1 + usize::from(self.foreign),
        });
    }
}

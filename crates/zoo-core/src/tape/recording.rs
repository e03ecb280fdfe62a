//! What a tape holds while it is recorded: plain data.

use crate::storage::{add_in_place, add_maps, add_to_map, has_whole_rows};
use candle_core::{DType, Result, Tensor, TensorId};
use half::bf16;
use std::collections::HashSet;

/// A gradient on its way down the tape.
pub(crate) struct Gradient {
    pub tensor: Tensor,
    /// Nobody else reads this tensor's memory: it may be written over.
    pub owned: bool,
    /// What rounding to bfloat16 has cut off, for who can add it: the branches of a residual stream.
    pub low: Option<Vec<bf16>>,
}

impl Gradient {
    /// One that a kernel has just made.
    pub fn new(tensor: Tensor) -> Self {
        Self::of(tensor, true)
    }

    /// One that has no low part.
    pub fn of(tensor: Tensor, owned: bool) -> Self {
        Self { tensor, owned, low: None }
    }

    /// The sum of two, rounded, over the memory of one that is owned.
    pub fn add(self, other: Self) -> Result<Self> {
        let (mut to, from) = if self.owned { (self, other) } else { (other, self) };
        to.low = None;
        if to.tensor.dtype() == DType::BF16 {
            return match to.owned && add_to_map(&to.tensor, &from.tensor)? {
                true => Ok(to),
                false => Ok(Self::new(add_maps(&to.tensor, &from.tensor)?)),
            };
        }
        if to.owned && to.tensor.is_contiguous() {
            let from = if has_whole_rows(&from.tensor) { from.tensor } else { from.tensor.contiguous()? };
            add_in_place(&to.tensor, &from)?;
            return Ok(to);
        }
        Ok(Self::new((to.tensor + from.tensor)?))
    }
}

/// One gradient for each input of an operation, where there is one.
pub(crate) type Gradients = Vec<Option<Gradient>>;

/// How an operation's gradient passes to its inputs.
pub(crate) enum Backward {
    /// To be added to those of other readers.
    Separate(Box<dyn FnOnce(Gradient) -> Result<Gradients> + Send>),
    /// Given what other readers have sent so far, the sums with it.
    Accumulating(Box<dyn FnOnce(Gradient, Gradients) -> Result<Gradients> + Send>),
}

/// One recorded operation.
pub(crate) struct Node {
    pub name: &'static str,
    pub inputs: Vec<Option<TensorId>>,
    pub output: TensorId,
    pub backward: Backward,
}

/// The operations of one pass so far.
#[derive(Default)]
pub(crate) struct Recording {
    pub nodes: Vec<Node>,
    /// The pass's inputs and every output of its operations, whether a gradient is wanted or not.
    pub known: HashSet<TensorId>,
    /// An input that becomes known when [`recorded`](super::recorded) takes it: a network that does not speak the tape
    /// stays on candle's graph.
    pub offered: Option<TensorId>,
    /// Those, and the variables, whose gradient is wanted.
    pub tracked: HashSet<TensorId>,
    /// Every variable that an operation has read, once.
    pub variables: Vec<Tensor>,
    /// What rounding to bfloat16 has cut off from the output of the last operation that keeps it.
    pub low: Option<(TensorId, Vec<bf16>)>,
}

impl Recording {
    /// Adds an operation, unless it reads nothing that this tape knows.
    pub fn push(&mut self, name: &'static str, inputs: &[&Tensor], output: &Tensor, backward: Backward) {
        if !inputs.iter().any(|input| self.known.contains(&input.id())) {
            return;
        }
        self.known.insert(output.id());
        let inputs: Vec<Option<TensorId>> = inputs.iter().map(|t| self.tracks(t).then(|| t.id())).collect();
        if inputs.iter().any(Option::is_some) {
            self.tracked.insert(output.id());
            self.nodes.push(Node { name, inputs, output: output.id(), backward });
        }
    }

    fn tracks(&mut self, tensor: &Tensor) -> bool {
        // A variable, or what candle has made of one.
        if tensor.track_op() && self.tracked.insert(tensor.id()) {
            self.variables.push(tensor.clone());
        }
        self.tracked.contains(&tensor.id())
    }
}

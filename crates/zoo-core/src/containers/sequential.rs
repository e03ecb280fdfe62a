//! Layers one behind the other.

use crate::fuse::{self, Row};
use crate::layers::{BatchNorm, BatchNormConfig, Conv2d, Conv2dConfig, Layer};
use crate::ops::Pointwise;
use crate::pass::{self, Mode};
use crate::tape;
use crate::trace;
use crate::vars::{Training, VarBuilder};
use candle_core::{Result, Tensor};
use candle_nn::ModuleT;
use std::sync::Arc;

/// f = fₙ ∘ … ∘ f₂ ∘ f₁: each layer reads what the one before it made. [`seq!`](crate::seq) writes one down.
///
/// Where several neighbours have one kernel, as a convolution, its norm and a ReLU have, they run as one operation in
/// training on the tape and in evaluation; the numbers are those of the layers to rounding. A sequence inside a
/// sequence is spliced in, unless it is a block with a name.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use zoo_core::{BatchNorm, Conv2d, Conv2dConfig, ModuleT, Pointwise, VarStore, seq};
/// let vb = VarStore::new(0, DType::F32, &Device::Cpu).root();
/// let conv = Conv2d::new(3, 8, Conv2dConfig::new(3).padding(1).no_bias(), vb.pp("conv"))?;
/// let unit = seq![conv, BatchNorm::new(8, vb.pp("bn"))?, Pointwise::Relu];
/// let ys = unit.forward_t(&Tensor::zeros((1, 3, 4, 4), DType::F32, &Device::Cpu)?, false)?;
/// assert_eq!(ys.dims(), &[1, 8, 4, 4]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Sequential {
    steps: Vec<Step>,
    block: Option<(&'static str, String)>,
}

/// A [`Sequential`](crate::Sequential) of these layers.
#[macro_export]
macro_rules! seq {
    ($($layer:expr),* $(,)?) => {
        $crate::Sequential::new(vec![$(std::sync::Arc::new($layer) as std::sync::Arc<dyn $crate::Layer>),*])
    };
}

/// Layers that are one operation where `row` says so, or a single one.
#[derive(Debug, Clone)]
struct Step {
    layers: Vec<Arc<dyn Layer>>,
    row: Option<&'static Row>,
    /// Its layers are not trained.
    frozen: bool,
}

impl Step {
    fn of(layers: Vec<Arc<dyn Layer>>, row: Option<&'static Row>) -> Self {
        let frozen = row.is_some() && fuse::training(&layers).is_frozen();
        Self { layers, row, frozen }
    }

    fn forward(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let train = train && !self.frozen;
        let by_layers = || self.layers.iter().try_fold(xs.clone(), |xs, layer| layer.forward_t(&xs, train));
        let Some(row) = self.row else { return by_layers() };
        if let Mode::Tape | Mode::Inference = pass::mode(xs, train)
            && let Some(ys) = row.run(&self.layers, xs, None, train)?
        {
            return Ok(tape::constant(ys, &[xs]));
        }
        trace::fused(Some(row.kept()), by_layers)
    }
}

impl Sequential {
    /// These layers, the first first.
    pub fn new(layers: Vec<Arc<dyn Layer>>) -> Self {
        let mut flat = Vec::with_capacity(layers.len());
        for layer in layers {
            match fuse::layer_as::<Self>(&*layer) {
                Some(inner) if inner.block.is_none() => flat.extend(inner.layers()),
                _ => flat.push(layer),
            }
        }
        let mut steps = Vec::new();
        while !flat.is_empty() {
            let row = fuse::sequence(&flat);
            let rest = flat.split_off(row.map_or(1, |row| row.layers.len()));
            steps.push(Step::of(flat, row));
            flat = rest;
        }
        Self { steps, block: None }
    }

    /// Names it as a block of this kind at `vb`: tracers list its steps together.
    pub fn block(mut self, kind: &'static str, vb: &VarBuilder) -> Self {
        self.block = Some((kind, vb.path().to_string()));
        self
    }

    /// The layers, the first first.
    pub(crate) fn layers(&self) -> impl Iterator<Item = Arc<dyn Layer>> + '_ {
        self.steps.iter().flat_map(|step| step.layers.iter().cloned())
    }

    /// Runs `run` as this block, if it has a name.
    pub(crate) fn in_block<R>(&self, run: impl FnOnce() -> Result<R>) -> Result<R> {
        match &self.block {
            Some((kind, path)) => trace::block(kind, path, run),
            None => run(),
        }
    }

    /// What of its layers is trained, of those that operations are made of.
    pub(crate) fn training(&self) -> Training {
        let of = |step: &Step| {
            let inner = |layer: &Arc<dyn Layer>| {
                fuse::layer_as::<Self>(&**layer).map_or_else(Training::default, Self::training)
            };
            step.layers.iter().map(inner).fold(fuse::training(&step.layers), Training::and)
        };
        self.steps.iter().map(of).fold(Training::default(), Training::and)
    }

    /// The operation that can begin it on maps that are not joined, if there is one.
    pub(crate) fn first_on_concat(&self) -> Option<&'static Row> {
        self.steps.first()?.row.filter(|row| row.on_concat.is_some())
    }

    /// What all layers make of `xs`, outside the block's name.
    pub(crate) fn steps_on(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.steps.iter().try_fold(xs.clone(), |xs, step| step.forward(&xs, train))
    }

    /// What the layers from the second operation on make of the first one's output.
    pub(crate) fn behind_first(&self, ys: Tensor, train: bool) -> Result<Tensor> {
        self.steps[1..].iter().try_fold(ys, |xs, step| step.forward(&xs, train))
    }

    /// The layers of the first operation.
    pub(crate) fn first_layers(&self) -> &[Arc<dyn Layer>] {
        self.steps.first().map_or(&[], |step| &step.layers)
    }
}

impl ModuleT for Sequential {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.in_block(|| self.steps_on(xs, train))
    }
}

impl<L: Layer> FromIterator<L> for Sequential {
    fn from_iter<I: IntoIterator<Item = L>>(layers: I) -> Self {
        Self::new(layers.into_iter().map(|layer| Arc::new(layer) as Arc<dyn Layer>).collect())
    }
}

/// act(norm(conv(x))), the unit that most networks are made of: (b, channels.0, h, w) -> (b, channels.1, oh, ow). The
/// keys are those of its two layers, `at` the places of the convolution and of the norm. A bias in front of the norm
/// would be cancelled by it: see [`Conv2dConfig::no_bias`].
///
/// # Errors
/// Channels that the groups do not divide.
pub fn conv_bn(
    channels: (usize, usize),
    conv: Conv2dConfig,
    norm: BatchNormConfig,
    activation: Option<Pointwise>,
    at: (VarBuilder, VarBuilder),
) -> Result<Sequential> {
    let conv = Conv2d::new(channels.0, channels.1, conv, at.0)?;
    let norm = BatchNorm::with(channels.1, norm, at.1)?;
    Ok(match activation {
        Some(activation) => seq![conv, norm, activation],
        None => seq![conv, norm],
    })
}

/// The stages of a network one behind the other, each with the name that
/// [`Model::forward_intermediates`](crate::Model::forward_intermediates) gives its output.
#[derive(Debug, Clone, Default)]
pub struct Stages(Vec<(String, Sequential)>);

impl Stages {
    /// One more stage behind the others.
    pub fn push(&mut self, name: impl Into<String>, stage: Sequential) {
        self.0.push((name.into(), stage));
    }
}

impl ModuleT for Stages {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let run =
            |xs: Tensor, (name, stage): &(String, Sequential)| Ok(trace::stage(name, stage.forward_t(&xs, train)?));
        self.0.iter().try_fold(xs.clone(), run)
    }
}
